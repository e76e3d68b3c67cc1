"""From patch sums to predictions, and predictions as bits.

A prediction is ``patch sum > threshold`` (``>``, never ``>=``).
"""

from __future__ import annotations

import dask.array as da
import numpy as np
import xarray as xr

from semprobe.errors import DataError
from semprobe.vocabulary import attrs

_BYTES = 128  # of bits that are unpacked at once: 1,024 latents


def predict(patch_sums: xr.DataArray, threshold: float = 0.0) -> xr.DataArray:
    """Binary predictions: patch sum > threshold.

    Parameters
    ----------
    patch_sums
        (image, latent) float.
    threshold
        A sum equal to it predicts negative.

    Returns
    -------
    xarray.DataArray
        (image, latent) bool, lazy if the input is.

    Raises
    ------
    DataError
        When computed: a patch sum is NaN; names image and latent.
    """
    names = [patch_sums[name].variable.to_base_variable() for name in ("image", "latent")]
    if patch_sums.chunks is not None:
        names = [one.chunk({dim: patch_sums.chunksizes[dim] for dim in one.dims}) for one in names]
    found = xr.apply_ufunc(
        _exceeds, patch_sums, *names, kwargs={"threshold": float(threshold)}, dask="parallelized", output_dtypes=[bool]
    )
    return found.rename("prediction")


def _exceeds(values: np.ndarray, images: np.ndarray, latents: np.ndarray, *, threshold: float) -> np.ndarray:
    if (wrong := np.isnan(values)).any():
        raise DataError(
            f"{where(wrong, images, latents)}: a patch sum is NaN, so nothing can be predicted; encode these images "
            "again"
        )
    return values > values.dtype.type(threshold)  # or whether it is lazy would decide at a threshold such as 0.1


def where(wrong: np.ndarray, images: np.ndarray, latents: np.ndarray) -> str:
    """The first place that is wrong, in words; names are broadcast with `wrong`."""
    first = tuple(np.argwhere(wrong)[0])
    image, latent = (np.broadcast_to(names, wrong.shape)[first] for names in (images, latents))
    return f"image {image}, latent {latent}"


def pack(predictions: np.ndarray) -> np.ndarray:
    """Predictions (image, latent) bool as bits (image, byte) uint8, the first latent in the highest bit."""
    return np.packbits(predictions, axis=-1)


def unpack(bits: np.ndarray, latents: int) -> da.Array:
    """The reverse of `pack`: (image, latent) bool, lazy in blocks of latents, since it is eight times as large."""
    packed = da.from_array(bits, chunks=(-1, _BYTES), name=False)
    wide = tuple(8 * size for size in packed.chunks[1])
    found = packed.map_blocks(np.unpackbits, axis=-1, chunks=(packed.chunks[0], wide), dtype=np.uint8)
    return found[:, :latents].astype(bool)


def words(bits: np.ndarray) -> np.ndarray:
    """(word, column) uint64 from (row, column) bool: 64 rows a word, for counting what two columns share."""
    packed = np.packbits(bits, axis=0)
    padded = np.pad(packed, ((0, -len(packed) % 8), (0, 0)))
    eights = padded.reshape(len(padded) // 8, 8, bits.shape[1])
    return np.ascontiguousarray(eights.transpose(0, 2, 1)).view(np.uint64)[..., 0]


def as_bits(predictions: xr.DataArray) -> xr.DataArray:
    """Predictions (image, latent) as ``prediction_bits`` (image, byte); lazy if they are."""
    plain = predictions.drop_vars("latent", errors="ignore").transpose("image", "latent")
    if plain.chunks is None:
        bits: np.ndarray | da.Array = pack(plain.values)
    else:
        cut = plain.chunksizes["latent"]
        whole = plain if not any(size % 8 for size in cut[:-1]) else plain.chunk(latent=-1)
        bytes_of = tuple(-(-size // 8) for size in whole.chunksizes["latent"])
        bits = whole.data.map_blocks(pack, chunks=(whole.chunksizes["image"], bytes_of), dtype=np.uint8)
    found = xr.DataArray(bits, dims=("image", "byte"), coords=plain.coords, name="prediction_bits")
    return found.assign_attrs(attrs("prediction_bits"))
