"""Which SAE latent, if any, is *wheel*? Experiments on vision transformers that can be defended.

Names are loaded when first used: ``import semprobe`` itself is quick and imports neither torch nor xarray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semprobe.assessment import assess, outcomes
    from semprobe.checkpoints import load_sae
    from semprobe.encoding import encode, latents, patch_sum
    from semprobe.errors import SemprobeError
    from semprobe.heatmaps import heatmap
    from semprobe.images import find_images
    from semprobe.predictions import predict
    from semprobe.sae import SAE
    from semprobe.scoring import confusion, f1, floor_f1, precision, rank, recall, score, support
    from semprobe.stores import open_store

_HOMES = {
    "SAE": "semprobe.sae",
    "SemprobeError": "semprobe.errors",
    "assess": "semprobe.assessment",
    "confusion": "semprobe.scoring",
    "encode": "semprobe.encoding",
    "f1": "semprobe.scoring",
    "find_images": "semprobe.images",
    "floor_f1": "semprobe.scoring",
    "heatmap": "semprobe.heatmaps",
    "latents": "semprobe.encoding",
    "load_sae": "semprobe.checkpoints",
    "open_store": "semprobe.stores",
    "outcomes": "semprobe.assessment",
    "patch_sum": "semprobe.encoding",
    "precision": "semprobe.scoring",
    "predict": "semprobe.predictions",
    "rank": "semprobe.scoring",
    "recall": "semprobe.scoring",
    "score": "semprobe.scoring",
    "support": "semprobe.scoring",
}

__all__ = [
    "SAE",
    "SemprobeError",
    "__version__",
    "assess",
    "confusion",
    "encode",
    "f1",
    "find_images",
    "floor_f1",
    "heatmap",
    "latents",
    "load_sae",
    "open_store",
    "outcomes",
    "patch_sum",
    "precision",
    "predict",
    "rank",
    "recall",
    "score",
    "support",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("semprobe")
    if name not in _HOMES:
        raise AttributeError(f"module 'semprobe' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
