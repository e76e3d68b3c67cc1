"""Two more baselines: the backbone's own channels, and random directions that fire as often as the SAE's latents.

If a channel finds the concept as well, no SAE is needed; if random directions do, its training did not matter.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from semprobe import kernel
from semprobe.encoding import check_activations, check_fit
from semprobe.fit import sample
from semprobe.sae import SAE
from semprobe.vocabulary import attrs

_AT_ONCE = 4  # images whose codes are in memory together


def channel_sums(activations: xr.DataArray) -> xr.DataArray:
    """Patch sums of the channels as if they were latents, lazily.

    Parameters
    ----------
    activations
        (image, patch, feature) float.

    Returns
    -------
    xarray.DataArray
        (image, latent) float32, twice as many latents as features: the channels' sums over patches, then the negatives
        of these, since a channel may tell a concept by being low.

    Raises
    ------
    DataError
        Other dims, or not a float dtype.
    """
    check_activations(activations)
    sums = activations.transpose("image", "patch", "feature").astype(np.float32).sum("patch", skipna=False)
    both = xr.concat([sums, -sums], "feature").rename(feature="latent")
    return both.assign_coords(latent=np.arange(both.sizes["latent"])).rename("patch_sum")


def best_of_both(name: str, values: xr.DataArray) -> xr.DataArray:
    """(concept, feature) the larger value of each channel and its negative, from (concept, latent)."""
    halves = values.transpose("concept", "latent").values.reshape(values.sizes["concept"], 2, -1)
    return xr.DataArray(
        halves.max(1), dims=("concept", "feature"), coords={"concept": values["concept"]}, attrs=attrs(name), name=name
    )


def random_sae(activations: xr.DataArray, sae: SAE, *, patches: int = 4096, seed: int = 0) -> SAE:
    """An SAE with random directions that fire on as many patches of a sample as the given one's latents; computes.

    Latent by latent: the direction is drawn uniformly from the sphere, and the bias is set half way between the
    products of the patches that should fire and of those that should not, so that as many codes of the sample are above
    0 as the given latent's; unless patches tie there, such as equal ones, which fire together or not at all.

    Parameters
    ----------
    activations
        (image, patch, feature) float, as `sae` reads them.
    sae
        Whose shape and firing rates are taken.
    patches
        Size of the sample, in whole images.
    seed
        Of the sample and of the directions.

    Returns
    -------
    SAE
        ReLU, without anything subtracted first.

    Raises
    ------
    SAEError, DataError
        As :func:`semprobe.encode`.
    """
    check_fit(activations, sae)
    drawn = sample(activations, patches=patches, seed=seed).values.astype(np.float32)
    fires = np.zeros(sae.latents, np.int64)
    for start in range(0, len(drawn), _AT_ONCE):
        fires += (kernel.codes(drawn[start : start + _AT_ONCE], sae) > 0).sum((0, 1))
    rng = np.random.default_rng(seed)
    encoder = rng.standard_normal((sae.latents, sae.width), dtype=np.float32)
    encoder /= np.linalg.norm(encoder, axis=1, keepdims=True)
    rows = drawn.reshape(-1, sae.width)
    bias = np.empty(sae.latents, np.float32)
    for start in range(0, sae.latents, kernel.LATENTS):
        part = slice(start, start + kernel.LATENTS)
        bias[part] = -_edges(rows @ encoder[part].T, fires[part])
    return SAE(encoder=encoder, bias=bias)


def _edges(products: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Between the smallest of the `above` largest products of each column and the next one."""
    ordered = np.sort(products, axis=0)[::-1]
    wide = np.concatenate([ordered[:1] + 1, ordered, ordered[-1:] - 1])
    columns = np.arange(products.shape[1])
    return (wide[above, columns] + wide[above + 1, columns]) / 2
