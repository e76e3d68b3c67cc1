"""Lazy views of activations through an SAE: codes for looking at a few latents, patch sums for scoring all.

Both are thin: they cut the work into blocks of images and hand each to :mod:`semprobe.kernel`.
"""

from __future__ import annotations

import operator
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize

from semprobe import kernel
from semprobe.errors import DataError, SAEError
from semprobe.sae import SAE, TopK
from semprobe.vocabulary import attrs

_DIMS = ("image", "patch", "feature")
_BLOCK = 16  # images, where the activations do not come in blocks already


def check_activations(activations: xr.DataArray) -> None:
    """Make sure that these are activations.

    Raises
    ------
    DataError
        Other dims, or not a float dtype.
    """
    if not isinstance(activations, xr.DataArray) or set(activations.dims) != set(_DIMS):
        found = f"dims {activations.dims}" if isinstance(activations, xr.DataArray) else type(activations).__name__
        raise DataError(f"found {found}, expected a DataArray of activations with dims {_DIMS}")
    if not all(activations.shape):
        raise DataError(f"activations have shape {activations.shape}: there is nothing to encode")
    if activations.dtype.kind != "f":
        raise DataError(f"activations have dtype {activations.dtype}, expected a float one")


def check_fit(activations: xr.DataArray, sae: SAE) -> None:
    """Make sure that an SAE can read these activations.

    Raises
    ------
    DataError
        Other dims, or not a float dtype.
    SAEError
        Another number of features.
    """
    check_activations(activations)
    if activations.sizes["feature"] != sae.width:
        raise SAEError(
            f"{sae.path or 'the SAE'} reads {sae.width} features, and these activations have "
            f"{activations.sizes['feature']}: it was trained on another backbone; choose the one that belongs to it"
        )


def blocks_of(activations: xr.DataArray) -> da.Array:
    """The activations as dask blocks of whole images: (image, patch, feature).

    Raises
    ------
    DataError
        Other dims, or not a float dtype.
    """
    check_activations(activations)
    ordered = activations.transpose(*_DIMS)
    if ordered.chunks is None:
        return da.from_array(ordered.data, chunks=(_BLOCK, -1, -1))
    return ordered.data.rechunk({1: -1, 2: -1})


def names_of(activations: xr.DataArray, blocks: da.Array) -> da.Array:
    """Names of the images, for messages, cut like the blocks."""
    named = "image" in activations.coords
    values = activations["image"].values if named else np.arange(blocks.shape[0])
    return da.from_array(values.astype(object), chunks=(blocks.chunks[0],))


def _coords(data: xr.DataArray | xr.Dataset, *dims: str) -> dict[str, xr.DataArray]:
    """Coordinates that still make sense on those dims."""
    return {str(k): v for k, v in data.coords.items() if set(v.dims) <= {*dims, "concept", "edge"}}


class _Codes(da.Array):
    """Codes as a dask array that passes a selection of latents on to the encoder.

    A plain dask array would compute whole tiles and then throw most columns away. Anything but a selection gives a
    plain dask array.
    """

    __slots__ = ("_parts",)
    _parts: tuple[str, da.Array, da.Array, SAE, np.ndarray | None]

    @classmethod
    def build(cls, blocks: da.Array, names: da.Array, sae: SAE, columns: np.ndarray | None) -> _Codes:
        number = sae.latents if columns is None else len(columns)
        split = isinstance(sae.activation, TopK)  # needs all latents of a patch in one block
        wide = (number,) if split else da.core.normalize_chunks(kernel.LATENTS, (number,))[0]
        wanted = da.from_array(np.arange(number) if columns is None else columns, chunks=(wide,))
        plain = da.blockwise(
            _block_codes, "ipl", blocks, "ipf", names, "i", wanted, "l",
            sae=sae, concatenate=True, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32),
            name=f"codes-{tokenize(blocks.name, names.name, sae, columns)}",
        )  # fmt: skip
        found = cls(plain.dask, plain.name, plain.chunks, dtype=plain.dtype, meta=plain._meta)
        found._parts = (plain.name, blocks, names, sae, columns)
        return found

    def __getitem__(self, index: Any) -> da.Array:
        all_of = slice(None)
        key: tuple[Any, ...] = index if isinstance(index, tuple) else (index,)
        if any(k is None or k is Ellipsis or getattr(k, "ndim", 0) > 1 for k in key):
            return super().__getitem__(index)
        image, patch, latent = key + (all_of,) * (3 - len(key)) if len(key) <= 3 else (None, None, None)
        built, blocks, names, sae, columns = self._parts
        plain = isinstance(latent, slice | int | np.integer)
        fancy = isinstance(latent, list | np.ndarray) and all(isinstance(k, slice | int | np.integer) for k in key[:2])
        if not (plain or fancy) or self.name != built:  # another name: its values were assigned to
            return super().__getitem__(index)
        chosen = (np.arange(sae.latents) if columns is None else columns)[latent]
        everything = isinstance(latent, slice) and latent == all_of
        wanted = columns if everything else np.atleast_1d(chosen)
        if isinstance(image, slice):
            blocks, names, image = blocks[image], names[image], all_of
        found = _Codes.build(blocks, names, sae, wanted)
        rest = (image, patch, all_of if np.ndim(chosen) else 0)
        whole = all(isinstance(k, slice) and k == all_of for k in rest)
        return found if whole else da.Array.__getitem__(found, rest)


def _block_codes(block: np.ndarray, names: np.ndarray, wanted: np.ndarray, *, sae: SAE) -> np.ndarray:
    return kernel.codes(block, sae, wanted, names)


def _block_reduce(block: np.ndarray, names: np.ndarray, *, sae: SAE, want: frozenset[str]) -> dict[str, np.ndarray]:
    return kernel.reduce(block, sae, set(want), names)


def encode(activations: xr.DataArray, sae: SAE) -> xr.DataArray:
    """Codes of every patch, lazily: for looking at a few latents.

    Selecting latents or images first computes only those: ``encode(a, sae).sel(latent=[3, 7]).max("patch")``
    multiplies two columns of the encoder (TopK has to compare all latents of a patch, and multiplies all). To score
    every latent use :func:`patch_sum`, which does not build the codes.

    Parameters
    ----------
    activations
        (image, patch, feature) float.
    sae
        The encoder.

    Returns
    -------
    xarray.DataArray
        (image, patch, latent) float32, lazy; blocks of images by 1,024 latents. 0 where the latent does not fire. Of a
        subset of latents the values agree with those of all to 1e-5: the product has another shape.

    Raises
    ------
    SAEError
        The SAE reads another number of features.
    DataError
        Other dims; when computed, an activation that is not finite, named by image and patch.
    """
    check_fit(activations, sae)
    blocks = blocks_of(activations)
    data = _Codes.build(blocks, names_of(activations, blocks), sae, None)
    coords = {**_coords(activations, "image", "patch"), "latent": np.arange(sae.latents)}
    described = {"description": "code of the latent at the patch", "sae": sae.sha256}
    return xr.DataArray(data, dims=("image", "patch", "latent"), coords=coords, name="codes", attrs=described)


def reductions(activations: xr.DataArray, sae: SAE, names: tuple[str, ...]) -> xr.Dataset:
    """Reductions of the codes over patches, lazily, all in one pass.

    Parameters
    ----------
    activations
        (image, patch, feature) float.
    sae
        The encoder.
    names
        Among ``patch_sum``, ``patch_max``, ``patch_argmax``.

    Returns
    -------
    xarray.Dataset
        The named variables (image, latent), lazy; blocks of images, all latents.

    Raises
    ------
    SAEError, DataError
        As :func:`encode`.
    """
    check_fit(activations, sae)
    blocks = blocks_of(activations)
    shape = (blocks.chunks[0], (sae.latents,))
    parts = da.blockwise(
        _block_reduce, "il", blocks, "ipf", names_of(activations, blocks), "i",
        sae=sae, want=frozenset(names), new_axes={"l": sae.latents}, concatenate=True, dtype=object,
        meta=np.empty((0, 0), object),
    )  # fmt: skip
    coords = {**_coords(activations, "image"), "latent": np.arange(sae.latents)}
    found = {}
    for name in names:
        dtype = np.dtype(np.int32 if name == "patch_argmax" else np.float32)
        part = da.map_blocks(operator.itemgetter(name), parts, dtype=dtype, meta=np.empty((0, 0), dtype), chunks=shape)
        found[name] = (("image", "latent"), part, attrs(name))
    return xr.Dataset(found, coords={**coords, "latent": ("latent", coords["latent"], attrs("latent"))})


def latents(data: xr.Dataset, sae: SAE, *, maxima: bool = False) -> xr.Dataset:
    """What a store of latents holds, lazily, from what a store of activations holds.

    Parameters
    ----------
    data
        ``activations`` and its coordinates.
    sae
        The encoder.
    maxima
        Whether to add ``patch_max`` and ``patch_argmax``, in the same pass.

    Returns
    -------
    xarray.Dataset
        ``patch_sum`` (image, latent), lazy, with every coordinate that does not belong to patches.

    Raises
    ------
    SAEError, DataError
        As :func:`encode`.
    """
    names = ("patch_sum", "patch_max", "patch_argmax") if maxima else ("patch_sum",)
    return reductions(data["activations"], sae, names).assign_coords(_coords(data, "image"))


def patch_sum(activations: xr.DataArray, sae: SAE) -> xr.DataArray:
    """Sum over patches of every latent's code, lazily and without building the codes.

    Equal to ``encode(activations, sae).sum("patch")`` up to the order of a float32 sum, and positive for the very same
    cells. Bit for bit independent of how the images are cut into chunks and of the number of workers.

    Parameters
    ----------
    activations
        (image, patch, feature) float.
    sae
        The encoder.

    Returns
    -------
    xarray.DataArray
        (image, latent) float32, lazy; blocks of images, all latents.

    Raises
    ------
    SAEError, DataError
        As :func:`encode`.

    Examples
    --------
    >>> import numpy as np, semprobe, xarray as xr
    >>> sae = semprobe.SAE(encoder=np.eye(3), bias=-np.ones(3))
    >>> x = xr.DataArray(np.full((2, 4, 3), 1.5), dims=("image", "patch", "feature"))
    >>> semprobe.patch_sum(x, sae).compute().values
    array([[2., 2., 2.],
           [2., 2., 2.]], dtype=float32)
    """
    return reductions(activations, sae, ("patch_sum",))["patch_sum"]
