"""From patch sums to predictions, and predictions as bits.

A prediction is ``patch sum > threshold`` (``>``, never ``>=``).
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from semprobe.errors import DataError
from semprobe.vocabulary import attrs


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


def unpack(bits: np.ndarray, latents: int) -> np.ndarray:
    """The reverse of `pack`: (image, latent) bool."""
    return np.unpackbits(bits, axis=-1, count=latents).view(bool)


def words(bits: np.ndarray) -> np.ndarray:
    """(word, column) uint64 from (row, column) bool: 64 rows a word, for counting what two columns share."""
    packed = np.packbits(bits, axis=0)
    padded = np.pad(packed, ((0, -len(packed) % 8), (0, 0)))
    eights = padded.reshape(len(padded) // 8, 8, bits.shape[1])
    return np.ascontiguousarray(eights.transpose(0, 2, 1)).view(np.uint64)[..., 0]


def as_bits(predictions: xr.DataArray) -> xr.DataArray:
    """Predictions (image, latent) as ``prediction_bits`` (image, byte); lazy if they are."""
    whole = predictions if predictions.chunks is None else predictions.chunk(latent=-1)
    size = -(-predictions.sizes["latent"] // 8)
    found = xr.apply_ufunc(
        pack, whole.drop_vars("latent", errors="ignore"), input_core_dims=[["latent"]], output_core_dims=[["byte"]],
        dask="parallelized", output_dtypes=[np.uint8], dask_gufunc_kwargs={"output_sizes": {"byte": size}},
    )  # fmt: skip
    return found.rename("prediction_bits").assign_attrs(attrs("prediction_bits"))
