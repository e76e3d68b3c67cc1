"""Shift and scale activations before an SAE reads them, for SAEs that were trained so and do not say it.

saev's loader did this from November 2024 to July 2025, with statistics of whatever activations it had opened. No file
says whether an SAE needs it; :func:`semprobe.fit.measure_fit` settles it by explained variance.
"""

from __future__ import annotations

import hashlib
import math
import os
import zipfile
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask._task_spec import convert_legacy_graph

from semprobe.encoding import blocks_of, names_of
from semprobe.errors import DataError

CLAMP = 1e5
"""Activations are cut off at plus and minus this first, as saev does."""

_MOST = 1_000_000  # features; no model has as many

_TOGETHER = 1024  # images whose sums are added in one step, whatever the chunks: the order of a sum shows in its bits


def _clamped(block: np.ndarray, names: np.ndarray) -> np.ndarray:
    finite = np.isfinite(block).all(2)
    if not finite.all():
        image, patch = np.argwhere(~finite)[0]
        raise DataError(
            f"image {names[image]}, patch {patch}: an activation is not finite (NaN or infinite), so nothing can be "
            "normalised by it; extract it again, in float32 if it overflowed float16"
        )
    return np.clip(block.astype(np.float32, copy=False), -CLAMP, CLAMP)


def _sums(block: np.ndarray, names: np.ndarray) -> np.ndarray:
    return _clamped(block, names).sum(1, dtype=np.float64)


def _lengths(block: np.ndarray, names: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Each image's sum over patches of the distance to the mean."""
    return np.linalg.norm(_clamped(block, names) - mean, axis=-1).sum(1, dtype=np.float64)


def _total(parts: da.Array) -> da.Array:
    return parts.rechunk({0: _TOGETHER}).sum(0)


def _read_again(x: da.Array) -> da.Array:
    """The same array by other names, so that chunks of a first pass do not stay in memory for a second one.

    dask's own `clone` fails on the graphs of selections.
    """
    graph = convert_legacy_graph(dict(x.__dask_graph__()))
    names = {key: (f"again-{key[0]}", *key[1:]) if isinstance(key, tuple) else f"again-{key}" for key in graph}
    renamed = {names[key]: task.substitute(names, key=names[key]) for key, task in graph.items()}
    return da.Array(renamed, f"again-{x.name}", x.chunks, meta=x._meta)


def statistics(activations: xr.DataArray) -> xr.Dataset:
    """Mean over patches, and mean distance to it, lazily: two passes, in memory that does not grow with images.

    ``mean_f = mean over patches of x_f`` and ``scale = mean over patches of |x - mean| / sqrt(features)``, of
    activations cut off at plus and minus `CLAMP`. The same bits however the activations are cut into chunks.

    Parameters
    ----------
    activations
        (image, patch, feature) float.

    Returns
    -------
    xarray.Dataset
        ``mean`` (feature) and ``scale`` (), float32, lazy.

    Raises
    ------
    DataError
        Other dims.
    """
    x = blocks_of(activations)
    number, patches, features = x.shape
    again = _read_again(x)
    names = names_of(activations, x)
    sums = da.blockwise(_sums, "if", x, "ipf", names, "i", concatenate=True, dtype=np.float64, meta=np.empty((0, 0)))
    mean = (_total(sums) / (number * patches)).astype(np.float32)
    lengths = da.blockwise(
        _lengths, "i", again, "ipf", names, "i", mean, "f", concatenate=True, dtype=np.float64, meta=np.empty(0)
    )
    scale = (_total(lengths) / (number * patches) / np.sqrt(features)).astype(np.float32)
    return xr.Dataset({"mean": ("feature", mean), "scale": ((), scale)})


def _shifted(block: np.ndarray, names: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    found = _clamped(block, names)
    found -= mean
    found /= scale
    return found


def normalize(activations: xr.DataArray, by: xr.Dataset) -> xr.DataArray:
    """``(clip(x, -1e5, 1e5) - mean) / scale``, lazily.

    Parameters
    ----------
    activations
        (image, patch, feature) float.
    by
        ``mean`` (feature) and ``scale`` (), of :func:`statistics` or :func:`read_statistics`.

    Returns
    -------
    xarray.DataArray
        (image, patch, feature) float32, lazy, with the coordinates of the input.

    Raises
    ------
    DataError
        Other dims, or statistics of another number of features.
    """
    x = blocks_of(activations)
    if by["mean"].shape != x.shape[2:]:
        whose = by.attrs.get("path", "the statistics")
        raise DataError(f"{whose}: mean is of {by['mean'].size} features, the activations have {x.shape[2]}")
    mean, scale = da.asarray(by["mean"].data), da.asarray(by["scale"].data)
    shifted = da.blockwise(
        _shifted, "ipf", x, "ipf", names_of(activations, x), "i", mean, "f", scale, "",
        concatenate=True, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32),
    )  # fmt: skip
    return activations.transpose("image", "patch", "feature").copy(data=shifted)


def read_statistics(path: str | os.PathLike[str]) -> xr.Dataset:
    """Statistics from an .npz file with ``mean`` (feature) and ``scale`` (), such as those of ImageNet activations.

    Raises
    ------
    DataError
        Nothing there, another kind of file, or numbers that can't be divided by.
    """
    try:
        with zipfile.ZipFile(path) as file:
            mean, scale = _numbers(file, "mean"), _numbers(file, "scale")
    except Exception as error:  # a damaged file meets zlib and numpy anywhere
        reason = _reason(error)
        raise DataError(f"{path}: expected none, probe or an .npz file with mean and scale, and {reason}") from error
    if scale.size != 1 or mean.ndim != 1:
        raise DataError(
            f"{path}: mean and scale have shapes {mean.shape} and {scale.shape}, expected (feature,) and ()"
        )
    found = xr.Dataset({"mean": ("feature", mean), "scale": ((), scale.reshape(()))}, attrs={"path": os.fspath(path)})
    return checked(found, str(path))


def _numbers(file: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array of an .npz file, after a look at its header: reading allocates what that claims."""
    if f"{name}.npy" not in file.namelist():
        raise DataError(f"this one has no {name}")
    with file.open(f"{name}.npy") as part:
        old = np.lib.format.read_magic(part) == (1, 0)
        header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(part)
    if dtype.kind not in "fiu" or math.prod(shape) > _MOST:
        raise DataError(f"{name} has shape {shape} and dtype {dtype}, where up to {_MOST:,} floats are expected")
    with file.open(f"{name}.npy") as part, np.errstate(over="ignore"):
        return np.lib.format.read_array(part, allow_pickle=False).astype(np.float32)


def _reason(error: Exception) -> str:
    if isinstance(error, DataError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"this one can't be read: {error.strerror}"
    return "this is none, or it is damaged: make it again with numpy.savez(file, mean=…, scale=…)"


def checked(found: xr.Dataset, where: str) -> xr.Dataset:
    """Statistics in memory, after making sure that they are finite and that the scale is above 0.

    Raises
    ------
    DataError
        They are not; `where` is named.
    """
    if not (np.isfinite(found["mean"].values).all() and 0 < float(found["scale"]) < np.inf):
        raise DataError(
            f"{where}: the mean is not finite, or the scale {float(found['scale']):g} is not above 0, so nothing can "
            "be normalised by them; are the activations all the same, or NaN?"
        )
    return found


def describe(by: xr.Dataset, kind: str) -> dict[str, Any]:
    """What stores record of a normalisation."""
    mean = np.ascontiguousarray(by["mean"].values, np.float32)
    return {
        "kind": kind, "clamp": CLAMP, "scale": float(by["scale"]),
        "mean_sha256": hashlib.sha256(mean.tobytes()).hexdigest(),
    }  # fmt: skip
