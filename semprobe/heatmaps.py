"""Where a latent looks: its codes on the backbone's grid, and these painted on the picture that the model saw.

All geometry is that of the recorded crop: the rectangle of the upright picture that the patches cover.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from PIL import Image, ImageDraw

from semprobe.encoding import encode
from semprobe.errors import DataError
from semprobe.sae import SAE
from semprobe.vocabulary import EDGES, attrs

Box = tuple[float, float, float, float]

_STOPS = "0d0887 46039f 7201a8 9c179e bd3786 d8576b ed7953 fb9f3a fdca26 f0f921"
_PLASMA = np.array([list(bytes.fromhex(stop)) for stop in _STOPS.split()], dtype=np.float64)
"""Plasma of matplotlib at ten equal steps: perceptually uniform, safe for colour-blind eyes, unlike sky and leaves."""

_ORIENTATION = 0x0112
_UNSEEN = (96, 96, 96)


class Patch(NamedTuple):
    """One patch of one image, and the latent's code there."""

    image: str
    row: int
    column: int
    value: float


# codes


def _grid(data: xr.Dataset) -> tuple[int, int]:
    """Rows and columns of the patches, after a check that they are all there and in order."""
    if not {"row", "column"} <= set(data.coords) or (data["row"].values < 0).any():
        raise DataError(
            f"nothing says how these {data.sizes['patch']} patches lie in a grid, so no heatmap can be drawn; expected "
            "coordinates row and column, as semprobe extract stores them"
        )
    row, column = data["row"].values, data["column"].values
    rows, columns = int(row.max()) + 1, int(column.max()) + 1
    if not np.array_equal(row * columns + column, np.arange(rows * columns)):
        raise DataError(
            f"these {len(row)} patches are not the whole {rows} x {columns} grid, row by row; heatmaps need all "
            "patches in their order"
        )
    return rows, columns


def _checked(latents: Sequence[int], sae: SAE) -> list[int]:
    wrong = [latent for latent in latents if not 0 <= latent < sae.latents]
    if wrong or len(latents) == 0:
        found = f"latent {wrong[0]}" if wrong else "no latent"
        raise DataError(f"found {found}, expected some of 0 to {sae.latents - 1}, which {sae.path or 'the SAE'} has")
    return [int(latent) for latent in latents]


def heatmap(data: xr.Dataset, sae: SAE, latents: Sequence[int]) -> xr.Dataset:
    """Codes of a few latents on the backbone's grid of patches, lazily.

    Only those columns of the encoder are multiplied (TopK has to compare all latents of a patch, and multiplies all).
    Summed over row and column it is the patch sum, to 1e-5 of it.

    Parameters
    ----------
    data
        ``activations`` (image, patch, feature), with ``row`` and ``column`` of the patches.
    sae
        The encoder.
    latents
        Numbers of latents.

    Returns
    -------
    xarray.Dataset
        ``code`` (image, row, column, latent) float32, lazy, in blocks of images; 0 where the latent does not fire. With
        it every coordinate that does not belong to patches: ``crop`` (image, edge), NaN where it is not known, is what
        :func:`overlay` needs.

    Raises
    ------
    DataError
        A latent that the SAE does not have, or patches that are not a whole grid.
    SAEError
        The SAE reads another number of features.

    Examples
    --------
    >>> import numpy as np, semprobe, xarray as xr
    >>> sae = semprobe.SAE(encoder=np.eye(3), bias=-np.ones(3))
    >>> x = xr.Dataset(
    ...     {"activations": (("image", "patch", "feature"), np.full((1, 2, 3), 1.5))},
    ...     coords={"row": ("patch", [0, 0]), "column": ("patch", [0, 1])},
    ... )
    >>> semprobe.heatmap(x, sae, [2])["code"].sel(latent=2).values
    array([[[0.5, 0.5]]], dtype=float32)
    """
    grid, wanted = _grid(data), _checked(latents, sae)
    codes = encode(data["activations"], sae).sel(latent=wanted)
    coords = {name: one for name, one in data.coords.items() if set(one.dims) <= {"image", "concept", "edge"}}
    if "crop" not in coords:
        unknown = np.full((codes.sizes["image"], len(EDGES)), np.nan)
        coords["crop"] = xr.DataArray(unknown, dims=("image", "edge"), attrs=attrs("crop"))
    shaped = codes.data.reshape(codes.sizes["image"], *grid, len(wanted))
    return xr.Dataset(
        {"code": (("image", "row", "column", "latent"), shaped, codes.attrs)},
        coords={**coords, "latent": ("latent", wanted, attrs("latent"))},
    )


def top_patches(heat: xr.DataArray, number: int, *, per_image: int | None = 1) -> list[Patch]:
    """The patches that a latent fires on most; ties go by the order of images, then of patches.

    Patches on which it does not fire are never among them.

    Parameters
    ----------
    heat
        (image, row, column) codes of one latent, computed.
    number
        How many are wanted, at most.
    per_image
        How many of one image, at most; None for any number.

    Raises
    ------
    DataError
        Other dims, or a heatmap that is not computed yet.
    """
    if set(heat.dims) != {"image", "row", "column"}:
        raise DataError(f"heat has dims {heat.dims}, expected (image, row, column) of one latent; select one")
    ordered = _computed(heat.transpose("image", "row", "column"))
    names = heat["image"].values if "image" in heat.coords else np.arange(len(ordered))
    taken = np.zeros(len(ordered), int)
    found: list[Patch] = []
    for flat in np.argsort(-ordered, axis=None, kind="stable").tolist():
        image, row, column = (int(at) for at in np.unravel_index(flat, ordered.shape))
        value = float(ordered[image, row, column])
        if len(found) == number or value <= 0:
            break
        if per_image is None or taken[image] < per_image:
            taken[image] += 1
            found.append(Patch(str(names[image]), row, column, value))
    return found


def _computed(heat: np.ndarray | xr.DataArray) -> np.ndarray:
    if isinstance(heat, xr.DataArray) and heat.chunks is not None:
        raise DataError("the heatmap is lazy; compute it first: heat.compute()")
    return np.asarray(heat, dtype=np.float32)


# geometry


def patch_box(crop: Sequence[float] | np.ndarray, row: int, column: int, grid: tuple[int, int]) -> Box:
    """Rectangle of a patch: the crop, split evenly by the grid.

    Parameters
    ----------
    crop
        Left, top, right, bottom in pixels of the upright picture, as stores keep it.
    row, column
        Of the patch, from the top left.
    grid
        Rows and columns.

    Returns
    -------
    tuple of float
        Left, top, right, bottom in pixels of the upright picture; outside of it where the model padded.

    Examples
    --------
    >>> patch_box((40, 0, 140, 100), row=1, column=0, grid=(2, 4))
    (40.0, 50.0, 65.0, 100.0)
    """
    left, top, right, bottom = map(float, crop)
    across, down = (right - left) / grid[1], (bottom - top) / grid[0]
    return left + across * column, top + down * row, left + across * (column + 1), top + down * (row + 1)


def _known(crop: Sequence[float] | np.ndarray) -> Box:
    left, top, right, bottom = map(float, crop)
    if not (left < right and top < bottom):
        raise DataError(
            f"the crop is {(left, top, right, bottom)}: nothing says which part of the picture the model saw, as with "
            "shards of saev, so a heatmap would be drawn in the wrong place"
        )
    return left, top, right, bottom


def _patch_at(pixels: int, length: int, start: float, stop: float, number: int) -> np.ndarray:
    """Row or column of the patch below each pixel's centre, -1 where the model saw nothing.

    `length` is the picture's, of which `pixels` are drawn.
    """
    centre = (np.arange(pixels) + 0.5) * length / pixels
    at = np.floor((centre - start) / (stop - start) * number).astype(int)
    return np.where((at >= 0) & (at < number), at, -1)


# pictures


def colours(share: np.ndarray) -> np.ndarray:
    """Colours of shares of the largest code, from 0 to 1: (..., 3) uint8."""
    at = np.linspace(0, 1, len(_PLASMA))
    return np.stack([np.interp(share, at, channel) for channel in _PLASMA.T], -1).round().astype(np.uint8)


def _upright(picture: Image.Image) -> Image.Image:
    picture.load()  # Pillow turns TIFF only now
    if picture.getexif().get(_ORIENTATION, 1) != 1:
        raise DataError(
            "its EXIF data turn this picture and it is not upright yet; read it with semprobe.images.read_image"
        )
    return picture.convert("RGB")


def _scaled(picture: Image.Image, edge: int | None) -> Image.Image:
    if edge is None:
        return picture
    ratio = edge / max(picture.size)
    size = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _grey(picture: Image.Image) -> Image.Image:
    return picture.convert("L").convert("RGB")


def _dimmed(picture: Image.Image) -> Image.Image:
    """Grey and flat, so that it differs from dark and from light pictures."""
    return Image.blend(_grey(picture), Image.new("RGB", picture.size, _UNSEEN), 0.6)


def overlay(
    picture: Image.Image,
    heat: np.ndarray | xr.DataArray,
    crop: Sequence[float] | np.ndarray,
    *,
    maximum: float,
    opacity: float = 0.6,
    edge: int | None = None,
    lines: bool = False,
) -> Image.Image:
    """Paint a heatmap on a picture, each patch where the model saw it.

    A patch whose code is 0 or below stays as it is, and what the model did not see is shown in flat grey. On all other
    patches colour and cover grow with the code: cover is ``opacity * sqrt(code / maximum)``, over the picture without
    its own colours. A pixel belongs to the patch below its centre.

    Parameters
    ----------
    picture
        The whole upright picture, as :func:`semprobe.images.read_image` gives it.
    heat
        (row, column) codes, computed.
    crop
        Left, top, right, bottom in pixels of that picture; it may reach outside, where the model padded.
    maximum
        Code of the last colour; codes above it have that colour too. 0 if the latent never fires.
    opacity
        Cover at the maximum, from 0 to 1.
    edge
        Pixels of the longer side of the result; the picture's own by default.
    lines
        Whether to draw the grid.

    Raises
    ------
    DataError
        A crop that is not known, a picture that is not upright, a heatmap that is not computed or has other dims.
    """
    values = _computed(heat)
    if values.ndim != 2 or not (np.isfinite(maximum) and maximum >= 0 and 0 <= opacity <= 1):
        raise DataError(
            f"heat has {values.ndim} dims, maximum is {maximum} and opacity {opacity}; expected (row, column), a "
            "finite maximum from 0 and an opacity from 0 to 1"
        )
    left, top, right, bottom = _known(crop)
    whole = _upright(picture)
    shown = _scaled(whole, edge)
    rows = _patch_at(shown.height, whole.height, top, bottom, values.shape[0])
    columns = _patch_at(shown.width, whole.width, left, right, values.shape[1])
    share = np.clip(values / maximum, 0, 1) if maximum > 0 else np.zeros_like(values)
    share = np.pad(share, ((0, 1), (0, 1)))  # -1 is outside: one more row and column without code
    cover = (255 * opacity * np.sqrt(share)).round().astype(np.uint8)
    seen = np.outer(rows >= 0, columns >= 0)
    base = Image.composite(shown, _dimmed(shown), Image.fromarray(seen))
    at = np.ix_(rows, columns)
    base = Image.composite(_grey(shown), base, Image.fromarray(share[at] > 0))  # or colours of picture and code mix
    out = Image.composite(Image.fromarray(colours(share)[at]), base, Image.fromarray(cover[at]))
    if lines:
        _draw_lines(out, rows, columns)
    return out


def _draw_lines(image: Image.Image, rows: np.ndarray, columns: np.ndarray) -> None:
    """The grid, along the first pixels of its rows and columns."""
    draw = ImageDraw.Draw(image)
    down, across = (np.flatnonzero(at >= 0) for at in (rows, columns))
    if not len(down) or not len(across):
        return
    for x in np.flatnonzero(np.diff(columns, prepend=-1) > 0).tolist():
        draw.line([(x, int(down[0])), (x, int(down[-1]))], fill="white")
    for y in np.flatnonzero(np.diff(rows, prepend=-1) > 0).tolist():
        draw.line([(int(across[0]), y), (int(across[-1]), y)], fill="white")


def patch_crop(
    picture: Image.Image,
    crop: Sequence[float] | np.ndarray,
    row: int,
    column: int,
    grid: tuple[int, int],
    *,
    context: float = 1.5,
    edge: int = 160,
) -> Image.Image:
    """Cut a patch out of a picture, with what is around it; its own box is outlined.

    Parameters
    ----------
    picture, crop
        As :func:`overlay` takes them.
    row, column, grid
        As :func:`patch_box` takes them.
    context
        Patches on each side of it that are shown too; grey where the picture ends.
    edge
        Pixels of the longer side of the result.

    Raises
    ------
    DataError
        A crop that is not known, or a picture that is not upright.
    """
    left, top, right, bottom = patch_box(_known(crop), row, column, grid)
    wide, high = (right - left) * context, (bottom - top) * context
    around = (left - wide, top - high, right + wide, bottom + high)
    first = int(np.floor(around[0])), int(np.floor(around[1]))
    last = int(np.ceil(around[2])), int(np.ceil(around[3]))
    canvas = Image.new("RGB", (last[0] - first[0], last[1] - first[1]), _UNSEEN)
    canvas.paste(_upright(picture), (-first[0], -first[1]))
    inner = (around[0] - first[0], around[1] - first[1], around[2] - first[0], around[3] - first[1])
    ratio = edge / max(around[2] - around[0], around[3] - around[1])
    size = (max(1, round((around[2] - around[0]) * ratio)), max(1, round((around[3] - around[1]) * ratio)))
    found = canvas.resize(size, Image.Resampling.BICUBIC, box=inner)
    own = [round(value * ratio) for value in (wide, high, wide + right - left, high + bottom - top)]
    draw = ImageDraw.Draw(found)
    draw.rectangle([own[0] - 1, own[1] - 1, own[2], own[3]], outline="black")
    draw.rectangle([own[0] - 2, own[1] - 2, own[2] + 1, own[3] + 1], outline="white")
    return found
