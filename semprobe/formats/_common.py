"""What several formats need: layouts, and values of a configuration that are of the right type."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from semprobe.errors import SAEError

if TYPE_CHECKING:
    import torch

_BLOCK = re.compile(r"(?:^|\.)(?:blocks|resblocks|layers|layer|h)\.(\d+)(?=\.|$)")

_TOLD = 200  # characters kept of what a file says of its backbone


def rows(encoder: torch.Tensor) -> np.ndarray:
    """(feature, latent) weights as (latent, feature) in C order; torch transposes on all cores."""
    return encoder.T.contiguous().numpy()


def whole(value: Any, name: str) -> int:
    if type(value) is not int:
        raise SAEError(f"{name} is {value!r}, expected a whole number")
    return value


def flag(config: dict[str, Any], name: str, default: bool) -> bool:
    value = config.get(name, default)
    if type(value) is not bool:
        raise SAEError(f"{name} is {value!r}, expected true or false")
    return value


def settings_in(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SAEError(f"{name} is {value!r}, expected settings in braces")
    return value


def printable(text: str) -> str:
    """A text of a file as it may be shown and stored: no control characters, no half of a surrogate pair."""
    shown = (one if one.isprintable() else one.encode("unicode_escape").decode() for one in text[:_TOLD])
    return "".join(shown)


def declared(backbone: Any, hook: Any = None, layer: Any = None) -> dict[str, Any]:
    """Backbone, block and site as the file says them, left out where it says nothing of use.

    Parameters
    ----------
    hook
        Where the activations were taken, as TransformerLens and others name it: ``blocks.10.hook_resid_post``.
    layer
        The block, where `hook` does not say it.
    """
    found: dict[str, Any] = {}
    if isinstance(backbone, str) and backbone:
        found["backbone"] = printable(backbone)
    match = _BLOCK.search(hook) if isinstance(hook, str) else None
    block = int(match[1]) if match else layer
    site = str(hook)[match.end() :].strip("._") if match else str(hook or "").strip("._")
    site = site.removeprefix("hook_")
    if site.startswith("resid_pre") and type(block) is int and block > 0:  # what enters a block left the one before
        block, site = block - 1, ""
    if type(block) is int:
        found["layer"] = block
    return found if site in ("", "resid_post") else {**found, "site": printable(site)}


def at_least(threshold: np.ndarray | float) -> np.ndarray | float:
    """The largest float32 below a threshold: ``>=`` it is ``>`` that."""
    below = np.nextafter(np.asarray(threshold, np.float32), np.float32(-np.inf))
    return below if below.ndim else float(below)
