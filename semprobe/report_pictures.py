"""The pictures of a report: which images show what a latent does, painted with its codes."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from PIL import Image, ImageOps

from semprobe.assessment import outcomes
from semprobe.heatmaps import overlay, patch_crop, top_patches

EDGE = 200
"""Pixels of a picture's longer side."""

EACH = 4
"""Examples of each outcome."""

PATCHES = 8
PICKED = 12
"""Most patches, and most pictures picked as evidence, that are drawn of a latent."""

OUTCOMES = {
    "tp": "True positives",
    "fp": "False positives",
    "fn": "False negatives",
    "tn": "True negatives",
}

_QUALITY = 82

Read = Callable[[str], tuple[Image.Image, np.ndarray | None]]
"""An upright picture by its name, and the crop that the model saw."""


@dataclass(frozen=True)
class Picture:
    """A JPEG file, and what it shows in words."""

    name: str
    data: bytes
    width: int
    height: int
    alt: str
    caption: tuple[str, ...]

    @property
    def uri(self) -> str:
        """The file as the address of an ``<img>``."""
        return "data:image/jpeg;base64," + base64.b64encode(self.data).decode()


@dataclass(frozen=True)
class Gallery:
    """Pictures under one heading."""

    kind: str
    title: str
    pictures: tuple[Picture, ...]
    note: str = ""


@dataclass(frozen=True)
class Look:
    """A latent's codes on the images, as far as they are known.

    Attributes
    ----------
    concept, latent
        Whose.
    names
        Of the images, in the order of `sums` and `heat`.
    sums
        (image,) patch sums; NaN where they are not known.
    heat
        (image, row, column) codes, computed; None without an SAE.
    read, told
        The picture of a name; and in a word or two where it came from.
    stem
        How names of its pictures' files begin.
    notice
        Why this latent has no heat, in a sentence that names it; empty where it has, or where no latent has any.
    """

    concept: str
    latent: int
    names: Sequence[str]
    sums: np.ndarray
    heat: xr.DataArray | None
    read: Read
    told: Callable[[str], str]
    stem: str = ""
    notice: str = ""

    @property
    def maximum(self) -> float:
        """Largest code on any image; 0 if it never fires or codes are not known."""
        return 0.0 if self.heat is None else max(0.0, float(self.heat.max()))

    def sum_of(self, name: str) -> float:
        """Patch sum of an image."""
        return float(self.sums[list(self.names).index(name)])


def galleries(look: Look, scores: xr.Dataset, *, number: int = EACH, patches: int = PATCHES) -> tuple[Gallery, ...]:
    """Examples of every outcome, largest patch sums first, and the patches with the largest codes.

    Parameters
    ----------
    look
        The latent.
    scores
        A store of scores, in memory.
    number, patches
        How many, at most.

    Raises
    ------
    UnreadableImage, DataError
        A picture is gone or another one than was scored; scores without their predictions.
    """
    became = outcomes(scores, look.concept, look.latent)
    found = [_outcome(look, became, kind, number) for kind in OUTCOMES]
    return (*found, *([_patches(look, became, patches)] if look.heat is not None and patches else []))


def _outcome(look: Look, became: xr.DataArray, kind: str, number: int) -> Gallery:
    names = [str(name) for name in became["image"].values[became.values == kind]]
    best = sorted(names, key=lambda name: -_known(look.sum_of(name)))[:number]
    pictures = tuple(_painted(look, name, f"{kind}-{at}", OUTCOMES[kind].lower()[:-1]) for at, name in enumerate(best))
    title = f"{OUTCOMES[kind]}: {len(best)} of {len(names)}" if names else f"{OUTCOMES[kind]}: none"
    return Gallery(kind, title, pictures)


def _known(value: float) -> float:
    return value if value == value else 0.0


def picked(look: Look, names: Iterable[str], kind: str, title: str) -> Gallery:
    """Pictures that a reviewer picked; what is no image of the study is only named."""
    there, all_ = set(look.names), list(names)
    known = [name for name in all_ if name in there]
    pictures = tuple(
        _painted(look, name, f"{kind}-{at}", "picked as evidence") for at, name in enumerate(known[:PICKED])
    )
    left = [f"{len(known) - PICKED} more are not drawn"] if len(known) > PICKED else []
    left += [f"no image of this study: {name[:100]}" for name in all_ if name not in there]
    return Gallery(kind, title, pictures, "; ".join(left))


def _painted(look: Look, name: str, stem: str, what: str) -> Picture:
    """A whole picture, with heat where it is known."""
    picture, crop = look.read(name)
    total = look.sum_of(name)
    if look.heat is None or crop is None:
        shown, also = ImageOps.contain(picture.convert("RGB"), (EDGE, EDGE)), ""
    else:
        heat = look.heat.isel(image=list(look.names).index(name))
        shown, also = overlay(picture, heat, crop, maximum=look.maximum, edge=EDGE), ", heat where it fires"
    said = f"patch sum {total:.3g}" if total == total else ""
    alt = f"{look.told(name)}: {what} of latent {look.latent} for {look.concept}{', ' if said else ''}{said}{also}"
    return _file(look, stem, shown, alt, (look.told(name), said))


def _patches(look: Look, became: xr.DataArray, number: int) -> Gallery:
    """Where the codes are largest, one patch an image."""
    assert look.heat is not None
    grid = look.heat.sizes["row"], look.heat.sizes["column"]
    kinds = {str(name): str(kind) for name, kind in zip(became["image"].values, became.values, strict=True)}
    pictures = []
    for at, patch in enumerate(top_patches(look.heat, number)):
        picture, crop = look.read(patch.image)
        if crop is None:
            continue
        shown = patch_crop(picture, crop, patch.row, patch.column, grid, edge=EDGE * 3 // 4)
        word = label_of(kinds.get(patch.image))
        alt = (
            f"patch in row {patch.row + 1}, column {patch.column + 1} of {look.told(patch.image)} ({word}), "
            f"code {patch.value:.4g}"
        )
        pictures.append(_file(look, f"patch-{at}", shown, alt, (f"code {patch.value:.3g}", word)))
    title = "Patches with the largest codes" if pictures else "Patches: it fires on none"
    return Gallery("patch", title, tuple(pictures))


def label_of(outcome: str | None) -> str:
    """A concept's label of an image, by its outcome."""
    return {"tp": "positive", "fn": "positive", "fp": "negative", "tn": "negative", None: "in no set"}[outcome]


def _file(look: Look, stem: str, shown: Image.Image, alt: str, caption: tuple[str, ...]) -> Picture:
    out = io.BytesIO()
    shown.save(out, "JPEG", quality=_QUALITY, optimize=True)
    return Picture(f"{look.stem}{look.latent}-{stem}.jpg", out.getvalue(), *shown.size, alt, caption)
