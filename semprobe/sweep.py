"""Thresholds other than 0, chosen with the labels in sight, so that the test has to pay for the choice.

A latent is tried at threshold 0 and at its own quantiles: at thresholds where at most 5, 10, ..., 95 % of a concept's
images are above it. Quantiles do not look at labels, so a permutation of labels leaves them as they are, and
:func:`semprobe.significance.significance` takes its maximum over all of them.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from semprobe.errors import DataError
from semprobe.predictions import where
from semprobe.scoring import aligned, check_classes
from semprobe.vocabulary import NEGATIVE, POSITIVE, UNLABELLED, attrs

_SHARES = np.arange(19, 0, -1) / 20  # of the images, at most, that are above a threshold


def cuts(sums: np.ndarray) -> np.ndarray:
    """Thresholds that are tried, (cut, latent) of patch sums (image, latent): 0, then those where ever fewer fire."""
    images = len(sums)
    fire = np.unique((_SHARES * images + 1e-9).astype(int))[::-1]
    at = np.sort(sums, axis=0)[images - 1 - fire[fire > 0]]
    return np.concatenate([np.zeros((1, sums.shape[1]), sums.dtype), at])


def _best(sums: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """(tp, fp, threshold) x latent of the cut with the largest F1, of those above which are some images and not all."""
    best = np.full((2, sums.shape[1]), -np.inf)  # F1 and precision
    found = np.zeros((3, sums.shape[1]))  # float64 holds a threshold of any dtype
    for cut in cuts(sums):
        fires = sums > cut
        tp, fp = fires[positive].sum(0), fires[~positive].sum(0)
        trivial = (tp + fp == 0) | (tp + fp == len(sums))  # last of all: it tells nothing, whatever its F1
        f1 = 2 * tp / (tp + fp + positive.sum()) - 2 * trivial
        rank = np.stack([f1, np.where(tp + fp > 0, tp / np.maximum(tp + fp, 1), -1)])
        better = (rank[0] > best[0]) | ((rank[0] == best[0]) & (rank[1] > best[1]))
        best = np.where(better, rank, best)
        found = np.where(better, [tp, fp, cut], found)
    return found


def sweep(patch_sums: xr.DataArray, label: xr.DataArray) -> xr.Dataset:
    """Counts of every latent at the threshold with its largest F1, for each concept; computes.

    A threshold above which no image is, or every one, is taken where there is no other: it can't tell images apart. At
    equal F1 the larger precision is taken, at equal precision threshold 0, then the lowest. The F1 of such counts is
    the best of some twenty: only a test that knows of the sweep may judge it.

    Parameters
    ----------
    patch_sums
        (image, latent) float.
    label
        (image, concept) int8: 1 positive, 0 negative, -1 not in the set.

    Returns
    -------
    xarray.Dataset
        ``tp fp fn tn`` (concept, latent) int32 and ``threshold`` (concept, latent) of the patch sums' dtype, in memory.

    Raises
    ------
    DataError
        A NaN, other dims or images, or a concept without positives or without negatives.
    """
    ordered, wanted = aligned(patch_sums, label)
    check_classes(wanted)
    sums = ordered.values
    if (wrong := ~np.isfinite(sums)).any():
        place = where(wrong, ordered["image"].values[:, None], ordered["latent"].values)
        raise DataError(
            f"{place}: a patch sum is NaN or infinite, so it can't be a threshold; encode these images again"
        )
    out = np.empty((5, wanted.sizes["concept"], sums.shape[1]))
    for concept, column in enumerate(wanted.values.T):
        here = np.flatnonzero(column != UNLABELLED)
        tp, fp, threshold = _best(sums[here], column[here] == POSITIVE)
        out[:, concept] = (
            tp, fp, (column == POSITIVE).sum() - tp, (column == NEGATIVE).sum() - fp, threshold
        )  # fmt: skip
    coords = {
        name: c for name, c in {**ordered.coords, **wanted.coords}.items() if c.dims in (("latent",), ("concept",))
    }
    named = dict(zip(("tp", "fp", "fn", "tn", "threshold"), out, strict=True))
    return xr.Dataset(
        {
            name: (("concept", "latent"), values.astype(sums.dtype if name == "threshold" else np.int32), attrs(name))
            for name, values in named.items()
        },
        coords=coords,
    )
