"""Find and open SAE checkpoints: which file it is, what lies beside it, and which format it has.

How each format encodes is in :mod:`semprobe.formats`.
"""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from semprobe.errors import SAEError

if TYPE_CHECKING:
    import torch

    from semprobe.sae import SAE

_HEAD = 1_000_000  # bytes that recognition may look at
_TOLD = 1000  # characters of a message
_CONFIGS = ("cfg.json", "config.json")
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x1f\x8b")


class Tensors(Mapping[str, "torch.Tensor"]):
    """Named tensors as float32, each read when asked for; asking for one that is not there names what is."""

    def __init__(self, path: Path, names: list[str], get: Callable[[str], torch.Tensor]) -> None:
        self._path, self._names, self._get = path, names, get

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            held = ", ".join(sorted(self._names)[:12]) or "no tensors"
            raise SAEError(f"{self._path}: lacks {name}; it holds {held}")
        found = self._get(name)
        if not (found.is_floating_point() or found.numel() == 1):
            raise SAEError(f"{self._path}: {name} has dtype {found.dtype}, expected a float one")
        return found.detach().float()


@dataclass
class Options:
    """What a user says about a checkpoint that does not say it itself; what was asked for is remembered."""

    kind: str | None = None
    k: int | None = None
    threshold: float | None = None
    decoder: bool = False
    used: set[str] = field(default_factory=set)

    def take(self, name: str) -> Any:
        """An option's value, None if it was not given."""
        self.used.add(name)
        return getattr(self, name)

    def given(self) -> dict[str, Any]:
        """The options that were given."""
        return {name: value for name in ("kind", "k", "threshold") if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Raw:
    """A checkpoint as it lies on disk."""

    path: Path
    tensors: Tensors
    header: dict[str, Any] | None = None
    """The line of JSON before the tensors."""
    config: dict[str, Any] = field(default_factory=dict)
    """The JSON file beside it."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Of a safetensors file."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What else a torch file holds."""


# the JSON beside the weights


def _config(folder: Path) -> dict[str, Any]:
    """The configuration beside a checkpoint; nothing if there is none."""
    above = [folder.parent] if folder.name == "checkpoints" else []  # as dictionary_learning has them
    for file in (place / name for place in (folder, *above) for name in _CONFIGS):
        if not file.is_file():
            continue
        try:
            if file.stat().st_size > 10 * _HEAD:
                raise ValueError("it is larger than any configuration")
            found = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError, OSError) as error:
            raise SAEError(f"{file}: can't be read as JSON ({error}); it says how the SAE encodes") from error
        if not isinstance(found, dict):
            raise SAEError(f"{file}: holds a {type(found).__name__}, expected the settings of an SAE")
        return found
    return {}


# the weights


class _PrismaConfig:
    """Stands in for the classes that ViT-Prisma pickles beside its weights; only their attributes are read."""


_PRISMA_CONFIGS = (
    "vit_prisma.sae.config.VisionModelSAERunnerConfig",
    "vit_prisma.configs.HookedViTConfig.HookedViTConfig",  # in its vit_model_cfg
)


def _check_zip(path: Path) -> None:
    """A torch file whose parts are as large as it says: reading one allocates what its directory claims."""
    try:
        with zipfile.ZipFile(path) as file:
            parts = file.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise SAEError(f"{path}: the tensors can't be read ({error}); the file is damaged or no checkpoint") from error
    packed = [part for part in parts if part.compress_type != zipfile.ZIP_STORED]
    if packed or sum(part.file_size for part in parts) > path.stat().st_size:
        raise SAEError(f"{path}: its parts are packed or claim more than the file holds, as torch.save never writes it")


def _load_torch(file: BinaryIO | Path, path: Path) -> dict[str, Any]:
    """A saved dict, without ever running a pickle's code."""
    import torch

    _check_zip(path)
    stand_ins: list[Any] = [(_PrismaConfig, name) for name in _PRISMA_CONFIGS]
    try:
        with torch.serialization.safe_globals(stand_ins):
            state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SAEError(
            f"{path}: this checkpoint holds a pickle that would run code, and is refused; save its state_dict alone "
            "(torch.save(sae.state_dict(), …) or safetensors)"
        ) from error
    except Exception as error:
        raise SAEError(f"{path}: the tensors can't be read ({error}); the file is damaged or no checkpoint") from error
    if not isinstance(state, dict):
        raise SAEError(f"{path}: found a {type(state).__name__}, expected a state dict of tensors")
    return {str(name): value for name, value in state.items()}


def _split(state: dict[str, Any], path: Path, nested: bool = False) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and the rest, of a state dict or of one nested under ``ae`` or ``state_dict``."""
    import torch

    for key in ("ae", "state_dict"):
        if isinstance(state.get(key), dict) and not nested:
            extra = {name: value for name, value in state.items() if name != key}
            return _split(state[key], path, nested=True)[0], {**extra, "nested": key}
    tensors = {name: value for name, value in state.items() if torch.is_tensor(value)}
    size = path.stat().st_size
    for name, value in tensors.items():
        if value.layout != torch.strided:
            raise SAEError(f"{path}: {name} is a {value.layout} tensor, expected a dense one")
        if max(value.nbytes, value.untyped_storage().nbytes()) > size:
            raise SAEError(f"{path}: {name} claims shape {tuple(value.shape)}, and the file has {size} bytes; damaged")
    rest = {name: value for name, value in state.items() if name not in tensors}
    return Tensors(path, list(tensors), tensors.__getitem__), rest


def _open_torch(path: Path) -> Raw:
    tensors, extra = _split(_load_torch(path, path), path)
    config = _config(path.parent)
    stored = extra.get("cfg")
    if isinstance(stored, _PrismaConfig):
        config = config or vars(stored)
        extra["prisma"] = True
    return Raw(path, tensors, config=config, extra=extra)


def _open_saev(path: Path) -> Raw:
    with path.open("rb") as file:
        line = file.readline(_HEAD)
        try:
            header = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SAEError(f"{path}: the first line is not the JSON header of a saev checkpoint ({error})") from error
        if not isinstance(header, dict):
            raise SAEError(f"{path}: the first line holds a {type(header).__name__}, expected saev's settings")
        return Raw(path, _split(_load_torch(file, path), path)[0], header=header)


def _open_safetensors(path: Path) -> Raw:
    from safetensors import SafetensorError, safe_open

    try:
        file: Any = safe_open(path, framework="pt")
        names, metadata = list(file.keys()), file.metadata() or {}
    except SafetensorError as error:
        raise SAEError(f"{path}: the safetensors file is damaged ({error})") from error

    def get(name: str) -> torch.Tensor:
        tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    return Raw(path, Tensors(path, names, get), config=_config(path.parent), metadata=metadata)


def _opener(path: Path) -> Callable[[Path], Raw] | None:
    """How a file is opened, by its first bytes; None if it is no checkpoint at all."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise SAEError(f"{path}: can't be read: {error.strerror}") from error
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return _open_safetensors
    if head[:2] == b"PK":
        return _open_torch
    return _open_saev if head.lstrip()[:1] == b"{" else None


def _refuse(path: Path) -> SAEError:
    from semprobe.formats import FORMATS

    known = "; ".join(form.name for form in FORMATS)
    with path.open("rb") as file:
        head = file.read(2)
    if head in _PICKLES:
        return SAEError(
            f"{path}: this is a pickle, and pickles are never loaded; save its state_dict with torch.save or as "
            "safetensors, beside the JSON that says how it encodes"
        )
    return SAEError(f"{path}: not a checkpoint that semprobe knows. Known: {known}")


# which file


def _is_json(path: Path) -> bool:
    """Whether a file is JSON and nothing else, as configurations are; in a saev file tensors follow."""
    if path.stat().st_size > 10 * _HEAD:
        return False
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return True


def _candidates(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return [path for path in files if _opener(path) and not _is_json(path)]


def _weights_in(folder: Path, deeper: int = 3) -> Path:
    """The one file of a folder that is an SAE's weights; where it has one folder and no such file, the one in there."""
    found = _candidates(folder)
    if len(found) > 1:
        found = [path for path in found if _recognised(path)] or found
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found[:8])
        raise SAEError(f"{folder}: holds {len(found)} files that may be the SAE: {names}; name one of them")
    below = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if len(below) == 1 and deeper:
        return _weights_in(below[0], deeper - 1)
    hint = f"; it has folders, name one of them: {', '.join(path.name for path in below[:12])}" if below else ""
    raise SAEError(f"{folder}: holds no file that can be an SAE{hint}")


def _recognised(path: Path) -> bool:
    from semprobe.formats import FORMATS

    opener = _opener(path)
    try:
        raw = opener(path) if opener else None
        return raw is not None and any(form.recognises(raw) for form in FORMATS)
    except Exception:  # whatever a damaged file raises: it is none of ours
        return False


def _weights(path: Path) -> Path:
    """The weights file that a path stands for: itself, the one in a folder, or the one beside a configuration."""
    if path.is_dir():
        return _weights_in(path)
    if not path.is_file():
        raise SAEError(f"{path}: there is no such file")
    if path.name in _CONFIGS and _is_json(path):
        return _weights_in(path.parent)
    return path


def pilot_sae_path() -> Path:
    """The SAE that comes with semprobe, for the embedded pilot backbone."""
    return Path(__file__).parent / "data" / "pilot-sae.safetensors"


def _told(path: Path, text: str) -> SAEError:
    """An error that names the file, without all that a strange file may hold."""
    whole = text if str(path.parent) in text else f"{path}: {text}"
    return SAEError(whole if len(whole) <= _TOLD else f"{whole[:_TOLD]}…")


def _read(path: Path, options: Options) -> SAE:
    from semprobe.formats import FORMATS

    opener = _opener(path)
    if opener is None:
        raise _refuse(path)
    form = None
    try:
        raw = opener(path)
        form = next((one for one in FORMATS if one.recognises(raw)), None)
        sae = form.read(raw, options) if form else None
    except SAEError as error:
        raise _told(path, str(error)) from error
    except Exception as error:  # a damaged or strange file meets the reader anywhere
        what = f"recognised as {form.name}, but not" if form else "not"
        raise _told(path, f"{what} as that is written; damaged? {error!r}") from error
    if sae is None:
        held = ", ".join(sorted(raw.tensors)[:8])[:500] or "no tensors"
        beside = (
            "the JSON beside it is of no known library" if raw.config else "no cfg.json or config.json is beside it"
        )
        raise _told(path, f"holds {held}, and {beside}, so how it encodes is not known; see docs/what-loads.md")
    unused = sorted(set(options.given()) - options.used)
    if unused:
        raise SAEError(f"{path}: has no use for {' and '.join(unused)} ({sae.origin}); leave the option out")
    return sae


def load_sae(
    path: str | os.PathLike[str],
    *,
    kind: str | None = None,
    k: int | None = None,
    threshold: float | None = None,
    decoder: bool = False,
) -> SAE:
    """Read an SAE checkpoint, recognised by its content.

    Parameters
    ----------
    path
        A local file or folder; ``hf://owner/name[@revision][/file or folder]`` on the Hugging Face hub; a short name of
        :data:`semprobe.hub.PUBLISHED`; or ``pilot`` for the embedded SAE.
    kind, k, threshold
        For files that do not say it themselves (``docs/what-loads.md`` says which): the class, such as ``relu``,
        ``topk`` or ``batchtopk``; codes kept a patch; threshold of the codes.
    decoder
        Read the decoder too; encoding does not need it.

    Returns
    -------
    SAE
        The encoder, with the formula of the project that wrote the file.

    Raises
    ------
    SAEError
        Nothing there, an unknown or damaged file, or one that can't be encoded faithfully; the message says why. A
        pickle is never run.
    """
    from semprobe import hub

    given = os.fspath(path)
    if not given:
        raise SAEError("the path of the SAE is empty")
    about = hub.PUBLISHED.get(given)
    local = pilot_sae_path() if given == "pilot" else hub.local_path(about.address if about else given)
    file = _weights(local)
    options = Options(kind, k, threshold, decoder)
    sae = _read(file, options)
    if about:
        sae.declared.update({"backbone": about.backbone, "layer": about.layer})
    if not decoder:  # so that it may travel as a path; a changed copy may not
        object.__setattr__(sae, "_source", (os.path.abspath(file), options.given()))
    return sae
