"""Vision transformers from timm: weights, transform, geometry and the patch tokens of chosen blocks."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data import resolve_model_data_config
from timm.layers import PatchEmbed
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from semprobe.errors import BackboneError
from semprobe.transforms import Transform, like_settings, make_transform
from semprobe.weights import put_weights, read_weights, weights_sha256

DEFAULT_LAYER = -2

SHORT_NAMES: dict[str, tuple[str, int | None]] = {
    "clip-vit-b16": ("vit_base_patch16_clip_quickgelu_224.openai", None),
    "clip-vit-b16-gelu": ("vit_base_patch16_clip_224.openai", None),
    "dinov2-vit-b14-reg": ("vit_base_patch14_reg4_dinov2.lvd142m", 224),
    "pilot": ("pilot", None),
}
"""Short name: timm's name, and the edge in pixels if it is not the model's own."""

PILOT: dict[str, Any] = {
    "img_size": 96, "patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 4, "num_classes": 0,
    "global_pool": "token",
}  # fmt: skip
"""Architecture of the embedded backbone, for timm's VisionTransformer."""

_PILOT_TRANSFORM = {
    "input_size": (3, 96, 96), "interpolation": "bicubic", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
    "crop_pct": 1.0, "crop_mode": "center",
}  # fmt: skip

_PILOT_WEIGHTS = Path(__file__).parent / "data" / "pilot-vit.safetensors"


def pilot_vit(path: str | os.PathLike[str] | None = None) -> VisionTransformer:
    """The embedded backbone, with weights from a safetensors file, or untrained."""
    model = VisionTransformer(**PILOT)
    if path is not None:
        state = read_weights(path)
        model.load_state_dict({name: value.float() for name, value in state.items()})
    return model.eval()


# the backbone


@dataclass(frozen=True)
class Backbone:
    """A model, the blocks to read, and how pictures reach it."""

    model: torch.nn.Module
    name: str
    layers: tuple[int, ...]
    transform: Transform
    weights: str
    sha256: str
    grid: tuple[int, int]
    patch_pixels: tuple[int, int]
    device: str = "cpu"

    @property
    def features(self) -> int:
        """Channels of the residual stream."""
        return int(self.model.embed_dim)  # type: ignore[arg-type]

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def has_cls(self) -> bool:
        """Whether there is a class token to keep."""
        return getattr(self.model, "cls_token", None) is not None

    def crop(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Rectangle of a picture that the patches cover: left, top, right, bottom."""
        covered = (self.grid[0] * self.patch_pixels[0], self.grid[1] * self.patch_pixels[1])
        return self.transform.crop(width, height, covered)

    @torch.inference_mode()
    def tokens(self, batch: torch.Tensor) -> dict[int, tuple[np.ndarray, np.ndarray | None]]:
        """Patch tokens and class token of each layer.

        Parameters
        ----------
        batch
            (image, 3, height, width) float32.

        Returns
        -------
        dict of int to tuple
            Layer: (image, patch, feature) and (image, feature) or None, float32.
        """
        wanted = sorted(set(self.layers))
        found = self.model.forward_intermediates(  # type: ignore[operator]
            batch.to(self.device), indices=wanted, return_prefix_tokens=True, norm=False, stop_early=True,
            output_fmt="NLC", intermediates_only=True,
        )  # fmt: skip
        out = {}
        for layer, one in zip(wanted, found, strict=True):
            patches, prefix = one if isinstance(one, tuple) else (one, None)
            cls = prefix[:, 0].float().cpu().numpy() if self.has_cls and prefix is not None else None
            out[layer] = (patches.float().cpu().numpy(), cls)
        return out

    def describe(self, layer: int) -> dict[str, Any]:
        """What stores record of it."""
        return {
            "model": self.name, "weights": self.weights, "weights_sha256": self.sha256, "layer": layer,
            "transform": self.transform.describe(), "grid": list(self.grid),
        }  # fmt: skip


def _unknown(name: str) -> BackboneError:
    known = [*SHORT_NAMES, *timm.list_models("vit_*"), *timm.list_models("eva*"), *timm.list_models("beit*")]
    close = difflib.get_close_matches(name, known, 3)
    hint = f"; did you mean {' or '.join(close)}" if close else ""
    return BackboneError(f"model {name!r} is not known to timm {timm.__version__}{hint}")


def _create(name: str, size: int | None, pretrained: bool) -> torch.nn.Module:
    base = name.split(":")[-1].split("/")[-1].split(".")[0]
    if ":" not in name and not timm.is_model(base):
        raise _unknown(name)
    options: dict[str, Any] = {"num_classes": 0}
    if size is not None:
        options["img_size"] = size
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        if pretrained:
            raise BackboneError(
                f"model {name}: its weights can't be had from the hub ({first}). Give a local file with --weights, or "
                "random ones with --random-weights SEED to try things out"
            ) from error
        raise BackboneError(f"model {name} can't be made: {first}") from error


def _fetch(name: str, size: int | None, layers: tuple[int, ...]) -> torch.nn.Module:
    """A model with the weights that its name stands for; what can't be read is refused before they are fetched."""
    if ":" not in name:  # else what the model is stands on the hub, too
        with torch.device("meta"):
            _check(_create(name, size, pretrained=False), name, layers)
    return _create(name, size, pretrained=True)


def _check(model: torch.nn.Module, name: str, layers: tuple[int, ...]) -> tuple[int, ...]:
    """Refuse what is no plain vision transformer, or lacks a layer; returns the layers counted from 0."""
    if not isinstance(model, VisionTransformer | Eva | Beit) or not isinstance(model.patch_embed, PatchEmbed):
        raise BackboneError(
            f"model {name} is a {type(model).__name__}; semprobe reads plain vision transformers of timm "
            "(ViT, CLIP, SigLIP, DINOv2, EVA, DINOv3, BEiT), which keep one grid of patches in every block"
        )
    return tuple(resolve_layer(layer, len(model.blocks), name) for layer in layers)


def resolve_layer(layer: int, depth: int, name: str) -> int:
    """Number of a block from 0; negative ones count from the end."""
    if not -depth <= layer < depth:
        raise BackboneError(f"model {name} has {depth} blocks; layer {layer} is none of {-depth} to {depth - 1}")
    return layer % depth


def _own_colours(settings: dict[str, Any], model: torch.nn.Module, name: str) -> dict[str, Any]:
    """open_clip takes each CLIP's own mean and deviation, which are not always OpenAI's."""
    own: Any = getattr(model, "pretrained_cfg", None) or {}
    if settings.get("like") != "saev-clip" or "clip" not in name.lower() or not own.get("mean"):
        return settings
    return {**settings, "mean": own["mean"], "std": own["std"]}


def _put_on(model: torch.nn.Module, device: str) -> torch.nn.Module:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise BackboneError(f"device {device!r} can't be used: {str(error).splitlines()[0]}") from error


def load_backbone(
    name: str,
    *,
    layers: tuple[int, ...] = (DEFAULT_LAYER,),
    weights: str | os.PathLike[str] | None = None,
    random_weights: int | None = None,
    size: int | None = None,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    interpolation: str | None = None,
    like: str | None = None,
    device: str = "cpu",
) -> Backbone:
    """Make a backbone ready to read.

    Parameters
    ----------
    name
        A model of timm, with or without its weights' tag, or a short name of ``SHORT_NAMES``.
    layers
        Blocks whose output is read; negative ones count from the end.
    weights
        Local checkpoint, as :func:`semprobe.weights.put_weights` reads it: of timm, open_clip or DINOv2.
    random_weights
        Seed of random weights, for trying things out. At most one of the two; otherwise timm loads the weights that
        the name stands for.
    size, crop_pct, crop_mode, interpolation
        Changes to the model's own transform: edge in pixels, timm's crop share, ``center``, ``squash`` or ``border``,
        and ``bilinear`` or ``bicubic``.
    like
        The transform of another project in place of the model's own: a name of ``semprobe.transforms.LIKE``. A change
        that contradicts it is an error.
    device
        Where torch runs it.

    Raises
    ------
    BackboneError
        An unknown model, one that is no plain vision transformer, a layer it lacks, weights that do not fit, or a
        transform that contradicts itself.
    """
    timm_name, default_size = SHORT_NAMES.get(name, (name, None))
    changes = {"size": size, "crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": interpolation}
    settings = like_settings(like, timm_name, changes)
    edge = settings.get("size", default_size)
    pretrained = weights is None and random_weights is None
    with torch.random.fork_rng():
        torch.manual_seed(random_weights or 0)
        if timm_name == "pilot":
            if edge not in (None, PILOT["img_size"]):
                raise BackboneError(f"the pilot backbone reads {PILOT['img_size']} pixels, not {edge}")
            model: torch.nn.Module = pilot_vit(_PILOT_WEIGHTS if pretrained else None)
            config: dict[str, Any] = dict(_PILOT_TRANSFORM)
        else:
            model = _fetch(timm_name, edge, layers) if pretrained else _create(timm_name, edge, pretrained=False)
            config = resolve_model_data_config(model)
    counted = _check(model, name, layers)
    if weights is not None:
        put_weights(model, weights)
    source = "pretrained" if pretrained else f"random, seed {random_weights}" if weights is None else Path(weights).name
    if edge is not None:
        config["input_size"] = (3, edge, edge)
    transform = make_transform(config, _own_colours(settings, model, timm_name))
    patch_pixels = tuple(model.patch_embed.patch_size)  # type: ignore[union-attr,arg-type]
    embed: Any = model.patch_embed
    uneven = any(edge % pixels for edge, pixels in zip(transform.size, patch_pixels, strict=True))
    if uneven and not embed.strict_img_size:  # a model made for one size drops the rest, one for all sizes refuses
        raise BackboneError(f"model {name} has patches of {patch_pixels[0]} pixels; {transform.size} is no multiple")
    grid = embed.grid_size
    return Backbone(
        model=_put_on(model.eval(), device),
        name=timm_name if pretrained else timm_name.partition(".")[0],  # the tag names weights that it does not have
        layers=counted,
        transform=transform,
        weights=source,
        sha256=weights_sha256(model),
        grid=(int(grid[0]), int(grid[1])),
        patch_pixels=(patch_pixels[0], patch_pixels[1]),
        device=device,
    )
