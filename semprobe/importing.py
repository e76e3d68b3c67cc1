"""Activations made elsewhere, as a store of activations holds them."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from semprobe.errors import DataError
from semprobe.vocabulary import EDGES, attrs


def narrowed(values: np.ndarray, names: np.ndarray, *, kept_as: str, why: str) -> np.ndarray:
    """Values of some images in the dtype of a store.

    Parameters
    ----------
    values
        (image, ...) float.
    names
        (image,) for the error.
    kept_as
        ``float32`` or ``float16``.
    why
        What is wrong where a value was not finite to begin with.

    Raises
    ------
    DataError
        A value is not finite, or is not in that dtype; names the image.
    """
    with np.errstate(over="ignore"):
        kept = values.astype(kept_as)
    finite = np.isfinite(kept).all(tuple(range(1, kept.ndim)))
    if not finite.all():
        told = f" in {kept_as}; use float32" if np.isfinite(values).all() else f"; {why}"
        raise DataError(f"image {names[np.argmin(finite)]}: some activations are not finite{told}")
    return kept


def _lazily(array: xr.DataArray, dtype: str) -> xr.DataArray:
    names = da.from_array(array["image"].values, chunks=(array.data.chunks[0],))
    axes = tuple(range(array.ndim))
    cast = da.blockwise(
        narrowed, axes, array.data, axes, names, axes[:1],
        kept_as=dtype, why="these shards are not sound", dtype=dtype, meta=np.empty((0,) * array.ndim, dtype),
    )  # fmt: skip
    return array.copy(data=cast)


def template(data: xr.Dataset, *, dtype: str = "float32", cls: bool = False) -> xr.Dataset:
    """What a store holds of activations that were made elsewhere, lazily.

    Parameters
    ----------
    data
        As :func:`semprobe.open_store` gives saev shards.
    dtype
        ``float32`` or ``float16``.
    cls
        Whether to keep the class token.

    Returns
    -------
    xarray.Dataset
        ``activations``, ``cls`` if wanted and ``patch_label`` if there, lazy and in the same blocks of images, with
        every coordinate that a store needs. What is not known is "" for ``sha256``, 0 for ``width`` and ``height``, NaN
        for ``crop``, -1 for ``row`` and ``column``.

    Raises
    ------
    DataError
        The class token is wanted and not there; when computed, a value that is not finite in that dtype.
    """
    if cls and "cls" not in data:
        raise DataError("the class token is wanted, and these activations have none; leave --cls out")
    unknown = {name: value for name, value in _unknown(data).items() if name not in data.coords}
    kept = data if cls else data.drop_vars("cls", errors="ignore")
    cast = {name: _lazily(kept[name], dtype) for name in ("activations", "cls") if name in kept}
    return kept.assign(cast).assign_coords(unknown)


def _unknown(data: xr.Dataset) -> dict[str, Any]:
    """What stands for coordinates that nobody knows."""
    images, patches = data.sizes["image"], data.sizes["patch"]
    found: dict[str, Any] = {
        "sha256": ("image", np.full(images, "", dtype=object)),
        "width": ("image", np.zeros(images, np.int32)),
        "height": ("image", np.zeros(images, np.int32)),
        "crop": (("image", "edge"), np.full((images, len(EDGES)), np.nan)),
        "edge": ("edge", np.array(EDGES, dtype=object)),
        "row": ("patch", np.full(patches, -1, np.int32)),
        "column": ("patch", np.full(patches, -1, np.int32)),
    }
    return {name: (*value, attrs(name)) for name, value in found.items()}
