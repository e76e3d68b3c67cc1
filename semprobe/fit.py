"""Does an SAE fit these activations? By rebuilding a sample of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr

from semprobe import kernel
from semprobe.encoding import check_fit
from semprobe.sae import SAE

_AT_ONCE = 4  # images whose codes are in memory together


class Fit(NamedTuple):
    """How an SAE does on a sample of patches."""

    images: int
    patches: int
    explained_variance: float | None
    """1 - sum |x - rebuilt|^2 / sum |x - mean x|^2; None where no decoder rebuilds the input, or nothing varies."""
    l0: float
    """Codes that are not 0, a patch."""
    dead: float
    """Share of latents that fire on no patch of the sample."""
    always_on: float
    """Share of latents that fire on every patch of it."""

    @property
    def verdict(self) -> str:
        """What the explained variance says, in words."""
        if self.explained_variance is None:
            return "no decoder that rebuilds the input, or activations that never vary: how well it fits can't be told"
        said = f"explained variance {self.explained_variance:.2f}"
        if self.explained_variance < 0:
            return f"{said}: these activations are not what this SAE was trained on"
        if self.explained_variance < 0.5:
            return f"{said}: a poor fit; another layer, transform or normalisation may be what it was trained on"
        return f"{said}: this SAE fits these activations"


def sample(activations: xr.DataArray, *, patches: int = 20_000, seed: int = 0) -> xr.DataArray:
    """A seeded draw of whole images, enough for that many patches, in memory."""
    number = activations.sizes["image"]
    wanted = min(number, -(-patches // activations.sizes["patch"]))
    drawn = np.sort(np.random.default_rng(seed).choice(number, wanted, replace=False))
    return activations.isel(image=drawn).transpose("image", "patch", "feature").compute()


def measure_fit(activations: xr.DataArray, sae: SAE) -> Fit:
    """Encode and rebuild activations; computes.

    Parameters
    ----------
    activations
        (image, patch, feature) float, a sample: all of it is read.
    sae
        With its decoder, for explained variance.

    Raises
    ------
    SAEError, DataError
        As :func:`semprobe.encode`.
    """
    check_fit(activations, sae)
    x = np.asarray(activations.transpose("image", "patch", "feature").values, np.float32)
    mean = x.mean((0, 1), dtype=np.float64)
    fired, total, left, spread = np.zeros(sae.latents, np.int64), 0, 0.0, 0.0
    names = activations["image"].values if "image" in activations.coords else np.arange(len(x))
    for at in range(0, len(x), _AT_ONCE):
        block = x[at : at + _AT_ONCE]
        codes = kernel.codes(block, sae, names=names[at : at + _AT_ONCE])
        fires = codes != 0
        fired += fires.sum((0, 1))
        total += int(fires.sum())
        if sae.decoder is not None:
            left += float(np.square(block - sae.decode(codes, block), dtype=np.float64).sum())
            spread += float(np.square(block - mean, dtype=np.float64).sum())
    patches = x.shape[0] * x.shape[1]
    explained = 1 - left / spread if spread else None  # nothing to explain in what never varies
    dead, always = float((fired == 0).mean()), float((fired == patches).mean())
    return Fit(len(x), patches, explained, total / patches, dead, always)


def words(fit: Fit, normalised: Fit | None) -> str:
    """The verdict, and whether normalising would change it.

    Parameters
    ----------
    fit
        As it would be used.
    normalised
        With ``--normalize probe``, where `fit` is without.
    """
    other = None if normalised is None else normalised.explained_variance
    if other is None or fit.explained_variance is None or other < fit.explained_variance + 0.05:
        return fit.verdict
    return f"{fit.verdict}; with --normalize probe it is {other:.2f}"
