"""How a picture becomes a model's input: timm's evaluation transform, and the named transforms of other projects."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from semprobe.errors import BackboneError

if TYPE_CHECKING:
    import torch
    from PIL import Image


class Variant(NamedTuple):
    """A transform of another project: a sentence about it, and its settings in the words of `Transform`."""

    text: str
    settings: dict[str, Any]


_OPENAI = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_DINOV2 = {"size": 224, "crop_pct": 224 / 256, "interpolation": "bilinear", **_IMAGENET}

VARIANTS: dict[str, Variant] = {
    "saev-clip": Variant(
        "open_clip's evaluation: bicubic, shortest edge to the model's size, centre crop, OpenAI's mean and deviation",
        {"crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic", **_OPENAI},
    ),
    "saev-dinov2": Variant(
        "since June 2025: bilinear, squashed to 256 x 256, centre crop 224, ImageNet's mean and deviation",
        {"crop_mode": "squash", **_DINOV2},
    ),
    "saev-dinov2-2025-05": Variant(
        "before: bilinear, shortest edge to 256, centre crop 224, ImageNet's mean and deviation",
        {"crop_mode": "center", **_DINOV2},
    ),
}
"""Transforms that other projects made their activations with, by the name that ``like`` takes."""

LIKE = ("saev", *VARIANTS)
"""What ``like`` may be; ``saev`` chooses by the model's family."""

_FAMILIES = {"clip": "saev-clip", "dinov2": "saev-dinov2"}


def _variant(like: str, model: str) -> str:
    """The variant that is meant; ``saev`` knows families by the model's name in timm."""
    if like not in LIKE:
        raise BackboneError(f"like is {like!r}, expected one of {', '.join(LIKE)}")
    fitting = [variant for family, variant in _FAMILIES.items() if family in model.lower()]
    if like == "saev" and not fitting:
        raise BackboneError(
            f"model {model} is neither a CLIP nor a DINOv2 by its name, so like 'saev' does not say which transform is "
            f"meant; choose one of {', '.join(VARIANTS)}"
        )
    return fitting[0] if like == "saev" else like


def like_settings(like: str | None, model: str, given: dict[str, Any]) -> dict[str, Any]:
    """Settings of a transform: those given, and those of a named variant.

    Parameters
    ----------
    like
        A name of ``LIKE``, or None.
    model
        timm's name of the model.
    given
        Settings asked for besides, None where not; they may not contradict the variant.

    Returns
    -------
    dict
        Settings that are not None, with the variant's name as ``like``.

    Raises
    ------
    BackboneError
        An unknown variant, a model of no known family, or a contradiction.
    """
    given = {key: value for key, value in given.items() if value is not None}
    if like is None:
        return given
    name = _variant(like, model)
    settings = VARIANTS[name].settings
    for key, value in given.items():
        if key in settings and value != settings[key]:
            raise BackboneError(
                f"{key} is {value}, but like {name!r} stands for {key} {settings[key]}: the pixels would be like "
                "neither; leave one of the two out"
            )
    return {**given, **settings, "like": name}


def _centre(length: int, wanted: int) -> int:
    """Where a centred crop begins; below 0 where it pads, with the odd pixel after the picture."""
    return round((length - wanted) / 2) if length >= wanted else -((wanted - length) // 2)


@dataclass(frozen=True)
class Transform:
    """How a picture becomes the model's input, in timm's words; every number is recorded in the store."""

    size: tuple[int, int]
    crop_pct: float
    crop_mode: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    like: str | None = None

    def describe(self) -> dict[str, Any]:
        """What stores record of it."""
        named = {} if self.like is None else {"like": self.like}
        return named | {
            "size": list(self.size), "crop_pct": self.crop_pct, "crop_mode": self.crop_mode,
            "interpolation": self.interpolation, "mean": list(self.mean), "std": list(self.std), "alpha": "on white",
        }  # fmt: skip

    def pipeline(self) -> Callable[[Image.Image], torch.Tensor]:
        """timm's own evaluation transform."""
        from timm.data import create_transform

        found: Callable[[Image.Image], torch.Tensor] = create_transform(
            input_size=(3, *self.size), crop_pct=self.crop_pct, crop_mode=self.crop_mode,
            interpolation=self.interpolation, mean=self.mean, std=self.std, is_training=False,
        )  # fmt: skip
        return found

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after resizing, before cropping: the rounding of torchvision and timm."""
        high, wide = (math.floor(edge / self.crop_pct) for edge in self.size)
        if self.crop_mode == "squash":
            return wide, high
        if self.crop_mode == "center" and high == wide:
            short, long = min(width, height), max(width, height)
            other = int(high * long / short)
            return (high, other) if width <= height else (other, high)
        ratios = (height / high, width / wide)
        ratio = max(ratios) if self.crop_mode == "border" else min(ratios)
        return round(width / ratio), round(height / ratio)

    def resized_pixels(self, width: int, height: int) -> int:
        """Pixels of the resized picture before it is cropped; many for a very long one."""
        wide, high = self._resized(width, height)
        return wide * high

    def crop(self, width: int, height: int, covered: tuple[int, int]) -> tuple[float, float, float, float]:
        """Rectangle of the picture that the patches cover.

        Parameters
        ----------
        width, height
            Of the picture, after EXIF rotation.
        covered
            Height and width in pixels of the model's input that its patches cover.

        Returns
        -------
        tuple of float
            Left, top, right, bottom in pixels of the picture; outside of it where the model pads.
        """
        new_width, new_height = self._resized(width, height)
        left, top = _centre(new_width, self.size[1]), _centre(new_height, self.size[0])
        across, down = width / new_width, height / new_height
        return left * across, top * down, (left + covered[1]) * across, (top + covered[0]) * down


def make_transform(config: dict[str, Any], settings: dict[str, Any]) -> Transform:
    """A model's own transform with other settings.

    Parameters
    ----------
    config
        timm's data configuration of the model.
    settings
        As :func:`like_settings` gives them; ``size`` is in the configuration already.

    Raises
    ------
    BackboneError
        A crop share out of range.
    """
    merged = {**config, **settings}
    if not 0.05 <= merged["crop_pct"] <= 1:
        raise BackboneError(f"crop_pct is {merged['crop_pct']}, expected 0.05 to 1")
    height, width = merged["input_size"][1:]
    return Transform(
        (height, width), float(merged["crop_pct"]), merged.get("crop_mode") or "center", merged["interpolation"],
        tuple(map(float, merged["mean"])), tuple(map(float, merged["std"])), merged.get("like"),
    )  # fmt: skip


def crop_like(like: str, model: str, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Rectangle of a picture that a model of another project saw.

    Parameters
    ----------
    like
        A name of ``LIKE``.
    model
        Name of the model, or anything in which its family's name is.
    size
        Width and height of the picture.

    Returns
    -------
    tuple of float
        Left, top, right, bottom in pixels of the picture, as :meth:`Transform.crop` gives it for an input of 224 pixels
        (for CLIP another size changes it by less than a pixel of the input).

    Raises
    ------
    BackboneError
        An unknown name, or ``saev`` and a model of no known family.
    """
    settings = like_settings(like, model, {})
    edge = settings.get("size", 224)
    transform = make_transform({"input_size": (3, edge, edge)}, settings)
    return transform.crop(*size, transform.size)
