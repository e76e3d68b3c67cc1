"""What several formats need: layouts, and values of a configuration that are of the right type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from semprobe.errors import SAEError

if TYPE_CHECKING:
    import torch


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


def declared(backbone: Any, layer: Any) -> dict[str, Any]:
    """Backbone and layer as the file says them, left out where it says nothing of use."""
    found: dict[str, Any] = {}
    if isinstance(backbone, str) and backbone:
        found["backbone"] = backbone
    if type(layer) is int:
        found["layer"] = layer
    return found


def at_least(threshold: np.ndarray | float) -> np.ndarray | float:
    """The largest float32 below a threshold: ``>=`` it is ``>`` that."""
    below = np.nextafter(np.asarray(threshold, np.float32), np.float32(-np.inf))
    return below if below.ndim else float(below)


def hook_layer(hook: Any) -> int | None:
    """The block in a hook's name, such as ``blocks.10.hook_resid_post``."""
    parts = hook.split(".") if isinstance(hook, str) else []
    return next((int(part) for part in parts if part.isdecimal()), None)
