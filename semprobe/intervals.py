"""Bootstrap intervals of F1, which is always defined, and so are they."""

from __future__ import annotations

import numpy as np
import xarray as xr

from semprobe.errors import DataError
from semprobe.scoring import aligned, check_classes, concept_rng, confusion
from semprobe.vocabulary import attrs


def _interval(
    tp: int, fp: int, fn: int, tn: int, concept: str, level: float, resamples: int, seed: int
) -> tuple[float, float]:
    positives, negatives = tp + fn, fp + tn
    if not positives or not negatives:
        raise DataError(f"concept {concept} has {positives} positives and {negatives} negatives: F1 needs both")
    rng = concept_rng(concept, seed)  # the same for all latents: equal counts have equal intervals
    found = rng.binomial(positives, tp / positives, resamples)
    wrong = rng.binomial(negatives, fp / negatives, resamples)
    low, high = np.quantile(2.0 * found / (found + wrong + positives), ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def _intervals(*given: np.ndarray, level: float, resamples: int, seed: int) -> np.ndarray:
    """(…, 2), the interval of every cell of tp, fp, fn, tn and the concept's name."""
    *counts, concept = np.broadcast_arrays(*given)
    out = np.empty((*concept.shape, 2))
    for at in np.ndindex(concept.shape):
        tp, fp, fn, tn = (int(count[at]) for count in counts)
        out[at] = _interval(tp, fp, fn, tn, str(concept[at]), level, resamples, seed)
    return out


def f1_interval_of_counts(
    counts: xr.Dataset, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> xr.Dataset:
    """:func:`f1_interval` from counts, which are all that it depends on.

    Parameters
    ----------
    counts
        ``tp fp fn tn`` (concept, latent) int32, as :func:`semprobe.confusion` gives them, of the latents wanted.
    level, resamples, seed
        As :func:`f1_interval`.

    Returns
    -------
    xarray.Dataset
        ``f1_low f1_high`` (concept, latent) float64; lazy if the counts are.

    Raises
    ------
    DataError
        Odd options, or (when computed) a concept without positives or without negatives.
    """
    if not 0 < level < 1 or resamples < 1 or seed < 0:
        raise DataError(
            f"level {level}, resamples {resamples}, seed {seed}: expected between 0 and 1, at least 1, at least 0"
        )
    names = xr.DataArray(np.array([str(name) for name in counts["concept"].values]), dims="concept")
    both = xr.apply_ufunc(
        _intervals,
        *(counts[name] for name in ("tp", "fp", "fn", "tn")),
        names,
        output_core_dims=[["bound"]],
        kwargs={"level": level, "resamples": resamples, "seed": seed},
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"bound": 2}},
    )
    ends = {name: both.isel(bound=at) for at, name in enumerate(("f1_low", "f1_high"))}
    return xr.Dataset({name: one.assign_attrs(attrs(name)) for name, one in ends.items()}).drop_attrs(deep=False)


def f1_interval(
    predictions: xr.DataArray, label: xr.DataArray, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> xr.Dataset:
    """Stratified bootstrap percentile interval of F1 for a few latents, *conditional on their selection*.

    Positives and negatives are each drawn again with replacement, as many as there are, and the interval runs between
    the ``(1 - level) / 2`` and ``(1 + level) / 2`` quantiles of ``F1* = 2 X / (X + Y + n+)``. Drawing images again
    makes the number of predicted ones binomial, exactly: ``X ~ B(n+, tp / n+)`` and ``Y ~ B(n-, fp / n-)``, so the
    counts are drawn and not the images.

    It says how F1 of *this* latent would vary with other images. A latent chosen as the best of many on the same images
    has an F1 that is too high, and so is its interval: report :func:`semprobe.effects.held_out_f1` beside it. Counts at
    their ends do not vary: a perfect latent has the interval 1 to 1, which is no certainty; with few images all are too
    narrow.

    Parameters
    ----------
    predictions
        (image, latent) bool, of the latents wanted: each takes about a tenth of a millisecond.
    label
        (image, concept) int8: 1 positive, 0 negative, -1 not in the set.
    level
        Share of the resamples inside.
    resamples
        How many to draw.
    seed
        Of the draw, which depends on it, on the concept's name and on the latent's counts alone.

    Returns
    -------
    xarray.Dataset
        ``f1_low f1_high`` (concept, latent) float64; lazy if the predictions are.

    Raises
    ------
    DataError
        Other dims or images, a concept without positives or without negatives, or odd options.

    References
    ----------
    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3 (percentiles).
    """
    _, wanted = aligned(predictions, label)
    check_classes(wanted)
    return f1_interval_of_counts(confusion(predictions, label), level=level, resamples=resamples, seed=seed)
