"""Read SAE checkpoints, each exactly as the project that wrote it encodes.

A format is a `Format`: how a file of it is recognised by its content, and how it is read. To add one, write both
functions and put it in `FORMATS`.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from semprobe.errors import SAEError
from semprobe.sae import SAE, Activation, Threshold, TopK

if TYPE_CHECKING:
    import torch

_HEAD = 1_000_000  # bytes that recognition may look at


def _tensors(file: BinaryIO, path: Path) -> dict[str, torch.Tensor]:
    """A saved state dict from the file's present position, without ever running a pickle's code."""
    import torch

    try:
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
    return {str(name): value.detach().float() for name, value in state.items() if torch.is_tensor(value)}


def _require(tensors: dict[str, torch.Tensor], names: tuple[str, ...], path: Path) -> None:
    absent = [name for name in names if name not in tensors]
    if absent:
        raise SAEError(f"{path}: lacks {', '.join(absent)}; it holds {', '.join(sorted(tensors)) or 'no tensors'}")


def _rows(encoder: torch.Tensor) -> np.ndarray:
    """(feature, latent) weights as (latent, feature) in C order; torch transposes on all cores."""
    return encoder.T.contiguous().numpy()


# saev: a line of JSON, then torch.save(state_dict)


def _is_saev(head: bytes, path: Path) -> bool:
    return head.lstrip()[:1] == b"{" and path.is_file()


def _saev_activation(header: dict[str, Any], tensors: dict[str, torch.Tensor], path: Path) -> Activation:
    schema, cfg = header.get("schema"), header.get("cfg", header)
    declared = cfg.get("activation") or {"cls": header.get("cls", None if schema else "Relu"), "params": cfg}
    name, params = declared.get("cls"), declared.get("params") or {}
    if name == "Relu":
        return Threshold()
    if name not in ("TopK", "BatchTopK"):
        raise SAEError(f"{path}: unknown activation {name!r} of saev; known are Relu, TopK and BatchTopK")
    if name == "BatchTopK" and "activation.threshold" in tensors:
        threshold = float(tensors["activation.threshold"])
        return Threshold(0.0 if threshold < 0 else threshold)
    if name == "BatchTopK" and schema in (1, 2):
        raise SAEError(
            f"{path}: BatchTopK of schema {schema} without a threshold: the code of a patch depended on the other "
            "patches of its batch, so it can't be encoded faithfully"
        )
    if type(params.get("top_k")) is not int:
        raise SAEError(f"{path}: the header of this {name} SAE has no top_k")
    return TopK(params["top_k"])


def _read_saev(path: Path) -> SAE:
    with path.open("rb") as file:
        line = file.readline(1_000_000)
        try:
            header = json.loads(line)
        except ValueError as error:
            raise SAEError(f"{path}: the first line is not the JSON header of a saev checkpoint ({error})") from error
        schema = header.get("schema") if isinstance(header, dict) else None
        if not isinstance(header, dict) or isinstance(schema, bool) or schema not in (None, 1, 2, 3, 4, 5):
            raise SAEError(f"{path}: saev schema {schema!r} is not known; this semprobe reads none and 1 to 5")
        tensors = _tensors(file, path)
    tensors.pop("W_dec", None)  # as large as the encoder, and not needed to encode
    _require(tensors, ("W_enc", "b_enc", "b_dec"), path)
    activation = _saev_activation(header, tensors, path)
    subtracts = schema is None or (schema == 1 and "activation" not in header.get("cfg", {}))
    return SAE(
        encoder=_rows(tensors["W_enc"]),
        bias=tensors["b_enc"].numpy(),
        activation=activation,
        centre=tensors["b_dec"].numpy() if subtracts else None,
        origin=f"saev, {'no schema' if schema is None else f'schema {schema}'}",
        path=str(path),
    )


# semprobe's own: safetensors with the formula in its metadata


def _is_semprobe(head: bytes, path: Path) -> bool:
    return head[8:9] == b"{" and b"semprobe-sae" in head


def _read_semprobe(path: Path) -> SAE:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            wanted = [name for name in file.keys() if name != "W_dec"]
            tensors = {name: file.get_tensor(name).float() for name in wanted}
    except SafetensorError as error:
        raise SAEError(f"{path}: the safetensors file is damaged ({error})") from error
    if about.get("version") != "1":
        raise SAEError(f"{path}: semprobe-sae version {about.get('version')!r}; this semprobe reads version 1: upgrade")
    _require(tensors, ("W_enc", "b_enc", "b_dec"), path)
    kind, subtracts = about.get("activation"), about.get("subtract_b_dec")
    if subtracts not in ("true", "false"):
        raise SAEError(f"{path}: subtract_b_dec is {subtracts!r}, expected 'true' or 'false'")
    if kind not in ("relu", "threshold", "topk"):
        raise SAEError(f"{path}: unknown activation {kind!r}; known are relu, threshold and topk")
    kinds: dict[str, Callable[[], Activation]] = {
        "relu": Threshold,
        "threshold": lambda: Threshold(float(about["threshold"])),
        "topk": lambda: TopK(int(about["k"])),
    }
    return SAE(
        encoder=_rows(tensors["W_enc"]),
        bias=tensors["b_enc"].numpy(),
        activation=kinds[kind](),
        centre=tensors["b_dec"].numpy() if subtracts == "true" else None,
        origin="semprobe, version 1",
        path=str(path),
        declared={key: about[key] for key in ("backbone", "layer") if key in about},
    )


class Format(NamedTuple):
    """A checkpoint format: `recognises(first bytes, path)`, and `read(path)`."""

    name: str
    recognises: Callable[[bytes, Path], bool]
    read: Callable[[Path], SAE]


FORMATS = (
    Format("saev (sae.pt: a JSON line, then tensors)", _is_saev, _read_saev),
    Format("semprobe (safetensors with metadata)", _is_semprobe, _read_semprobe),
)


def _read(form: Format, file: Path) -> SAE:
    try:
        sae = form.read(file)
    except SAEError as error:
        raise error if str(file) in str(error) else SAEError(f"{file}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError) as error:
        raise SAEError(f"{file}: recognised as {form.name}, but not as that is written: {error!r}") from error
    object.__setattr__(sae, "_as_in_file", True)  # so that it may travel as a path; a changed copy may not
    return sae


def pilot_sae_path() -> Path:
    """The SAE that comes with semprobe, for the embedded pilot backbone."""
    return Path(__file__).parent / "data" / "pilot-sae.safetensors"


def load_sae(path: str | os.PathLike[str]) -> SAE:
    """Read an SAE checkpoint, recognised by its content.

    Parameters
    ----------
    path
        A local file, or ``pilot`` for the embedded SAE.

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
    file = pilot_sae_path() if os.fspath(path) == "pilot" else Path(path)
    if not file.is_file():
        what = "is a folder, expected a file" if file.is_dir() else "there is no such file"
        raise SAEError(f"{file}: {what}")
    try:
        with file.open("rb") as opened:
            head = opened.read(_HEAD)
    except OSError as error:
        raise SAEError(f"{file}: can't be read: {error.strerror}") from error
    for form in FORMATS:
        if form.recognises(head, file):
            return _read(form, file)
    if head[:2] in (b"PK", b"\x80\x02", b"\x80\x04"):
        raise SAEError(
            f"{file}: this is a torch or pickle file without a header that says how it encodes; pickles are never "
            "loaded, and a bare state dict does not tell its formula"
        )
    known = "; ".join(form.name for form in FORMATS)
    raise SAEError(f"{file}: not a checkpoint that semprobe knows. Known: {known}")
