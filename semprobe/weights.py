"""Weights from local checkpoints: timm's, open_clip's and the original DINOv2's, by way of timm's own conversion."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from semprobe.errors import BackboneError

_WRAPPERS = ("state_dict", "model", "teacher")

_UNUSED = ("head", "fc_norm", "attn_pool", "head_dist")
"""Weights after the last block, which a model that is only read need not have."""


def _is_safetensors(path: Path) -> bool:
    """Eight bytes of length and a JSON object; torch's files are zip archives or pickles."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _read(path: Path) -> Any:
    try:
        if _is_safetensors(path):
            from safetensors.torch import load_file

            return load_file(path)
        with path.open("rb") as file:  # by its name, torch would take any .safetensors for one
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BackboneError(
            f"{path}: is no checkpoint, or one whose pickle would run code, which is refused; save a state dict"
        ) from error
    except Exception as error:
        if "TorchScript" in str(error):
            raise BackboneError(
                f"{path}: found a TorchScript archive, such as OpenAI's own files, expected a state dict; save one "
                "with torch.save(torch.jit.load(file).state_dict(), other_file)"
            ) from error
        raise BackboneError(f"{path}: the weights can't be read ({error})") from error


def read_weights(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """A state dict from a safetensors file or a torch file without code in it, told apart by their first bytes.

    Parameters
    ----------
    path
        The file. What training scripts wrap a state dict in (``state_dict``, ``model``, ``teacher``, names that begin
        with ``module.``) is taken off.

    Returns
    -------
    dict of str to torch.Tensor
        Tensors by name, on the CPU, in the dtype that they are stored in.

    Raises
    ------
    BackboneError
        Nothing there, damaged, or a pickle that would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise BackboneError(f"{path}: there is no such weights file")
    found = _read(path)
    for key in _WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict):
        raise BackboneError(f"{path}: found a {type(found).__name__}, expected a state dict")
    tensors = {str(name).removeprefix("module."): value for name, value in found.items() if torch.is_tensor(value)}
    if not tensors:
        raise BackboneError(f"{path}: holds no tensors")
    return tensors


def _backbone_only(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """DINOv2 as its hub names it, also from a teacher of its training."""
    if any(name.startswith("backbone.") for name in state):
        state = {name[9:]: value for name, value in state.items() if name.startswith("backbone.")}
    # in training, blocks are in chunks and keep their number: blocks.CHUNK.NUMBER
    state = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): value for name, value in state.items()}
    if "register_tokens" in state:
        state.setdefault("mask_token", torch.zeros(0))  # by which timm knows DINOv2
    return state


def _misfit(path: Path, what: str) -> BackboneError:
    return BackboneError(
        f"{path}: these weights do not fit the model: {what}; choose the model that they were made for"
    )


def _check_patches(state: dict[str, torch.Tensor], model: Any, path: Path) -> None:
    """timm would resample the embedding of other patches without a word: the result is a model nobody trained."""
    expected = tuple(model.patch_embed.proj.weight.shape)
    for name, value in state.items():
        embeds = name.endswith(("patch_embed.proj.weight", "visual.conv1.weight")) and value.ndim == 4
        if embeds and tuple(value.shape) != expected:
            raise _misfit(path, f"found {name} of shape {tuple(value.shape)}, expected {expected}")


def _grids(model: Any) -> set[int]:
    """Patches along an edge that weights may come with: the model's, and what it was trained with; {} if unknown."""
    trained = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (0, 0, 0))[1]
    grids = {trained // int(model.patch_embed.patch_size[0])} if trained else set()
    return {int(model.patch_embed.grid_size[0]), *grids} if grids else set()


def _check_positions(state: dict[str, torch.Tensor], model: Any, path: Path) -> None:
    """Weights of another resolution are another model, which timm would resample without a word."""
    grids = _grids(model)
    for name in ("pos_embed", "visual.positional_embedding", "module.visual.positional_embedding"):
        if not grids or name not in state or state[name].ndim not in (2, 3):
            continue
        tokens, prefixes = state[name].shape[-2], {0, 1, int(getattr(model, "num_prefix_tokens", 1))}
        if not {tokens - prefix for prefix in prefixes} & {edge * edge for edge in grids}:
            edges = " or ".join(f"{edge} x {edge}" for edge in sorted(grids))
            raise _misfit(path, f"found positions of {tokens} tokens, expected a grid of {edges} patches")


def _check_registers(state: dict[str, torch.Tensor], model: Any, path: Path) -> None:
    wanted = getattr(model, "num_reg_tokens", 0)
    found = state["register_tokens"].shape[1] if "register_tokens" in state else 0
    if "mask_token" in state and found != wanted:
        raise _misfit(path, f"found {found} register tokens, expected {wanted}")


def _converted(state: dict[str, torch.Tensor], model: torch.nn.Module, path: Path) -> dict[str, torch.Tensor]:
    convert: Callable[..., Any] | None = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        converted: dict[str, torch.Tensor] = convert(state, model) if convert else state
    except Exception as error:
        raise _misfit(path, f"timm can't convert them ({str(error).splitlines()[0]})") from error
    for name, value in model.state_dict().items():
        if name in converted and converted[name].shape != value.shape:
            found, expected = tuple(converted[name].shape), tuple(value.shape)
            raise _misfit(path, f"found {name} of shape {found}, expected {expected}")
    return converted


def put_weights(model: torch.nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a local checkpoint with timm's own conversion; every weight of the model must be in it.

    Parameters
    ----------
    model
        A vision transformer of timm; changed.
    path
        Checkpoint in timm's naming, of open_clip (a whole CLIP: the text tower is left out) or of DINOv2 (position
        embeddings are resampled to the model's grid), or any other that timm converts.

    Raises
    ------
    BackboneError
        It can't be read, or is another model's. QuickGELU and GELU have no weights, so they can't be told apart.
    """
    path = Path(path)
    state = _backbone_only(read_weights(path))
    _check_patches(state, model, path)
    _check_positions(state, model, path)
    _check_registers(state, model, path)
    result = model.load_state_dict(_converted(state, model, path), strict=False)
    missing, extra = result.missing_keys, [k for k in result.unexpected_keys if not k.startswith(_UNUSED)]
    if missing or extra:
        raise _misfit(
            path,
            f"{len(missing)} are missing ({', '.join(missing[:3])}), {len(extra)} are not known "
            f"({', '.join(extra[:3])})",
        )


def weights_sha256(model: torch.nn.Module) -> str:
    """Hash of all weights, by name, shape and value."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
