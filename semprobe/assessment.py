"""Everything that can be said of scores without the activations: tests, sizes of effects, confounds."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import mannwhitneyu

from semprobe import confounds
from semprobe.effects import auroc, average_precision, held_out_f1
from semprobe.errors import DataError
from semprobe.intervals import f1_interval_of_counts
from semprobe.scoring import beside_chance, image_coords, labelled, rank, score
from semprobe.significance import fired, significance, tried
from semprobe.sweep import sweep as sweep_thresholds
from semprobe.vocabulary import POSITIVE, attrs

TOP = 5
"""Latents that are compared with the random ones."""

_INTERVALS = 100  # best latents of a concept that get an interval


def score_sums(
    data: xr.Dataset, *, threshold: float = 0.0, sweep: bool = False, random: int = 1000, seed: int = 0
) -> xr.Dataset:
    """Score patch sums, with what only they can tell.

    Parameters
    ----------
    data
        ``patch_sum`` (image, latent), of a sweep in memory, and ``label``.
    threshold, random, seed
        As :func:`semprobe.score`.
    sweep
        Take each latent's best threshold, see :func:`semprobe.sweep.sweep`; ``patch_sum`` is kept then, and no bits.

    Returns
    -------
    xarray.Dataset
        What :func:`semprobe.score` returns, with ``auroc`` and ``average_precision`` (concept, latent); lazy if the
        patch sums are.

    Raises
    ------
    DataError
        As :func:`semprobe.score`.
    """
    data = labelled(data)
    sums, label = data["patch_sum"], data["label"]
    if sweep:
        found = beside_chance(sweep_thresholds(sums, label), label, random=random, seed=seed)
        found = found.assign(patch_sum=sums).assign_coords(image_coords(data))
    else:
        found = score(data, threshold=threshold, random=random, seed=seed)
    return found.assign(auroc=auroc(sums, label), average_precision=average_precision(sums, label))


def assess(
    scores: xr.Dataset, *, permutations: int = 10_000, alpha: float = 0.05, family: str = "concept",
    splits: int = 100, seed: int = 0,
) -> xr.Dataset:  # fmt: skip
    """Test every latent, measure how large the best effects are, and look for confounds; computes.

    Labels are permuted within each source where some source has both labels; otherwise over all of a concept's images,
    and ``source_words`` says what that leaves open.

    Parameters
    ----------
    scores
        As :func:`semprobe.score` gives them, in memory; or a store of scores, opened.
    permutations, alpha, family
        See :func:`semprobe.significance.significance`.
    splits
        See :func:`semprobe.effects.held_out_f1`.
    seed
        Of permutations, splits and resamples.

    Returns
    -------
    xarray.Dataset
        What :func:`semprobe.significance.significance` and :func:`semprobe.effects.held_out_f1` return; ``f1_low
        f1_high`` (concept, latent), of the 100 best; ``top_vs_random_p``, ``source_association``, ``source_words`` and
        ``within_source`` (concept,).

    Raises
    ------
    DataError
        Scores without their predictions, settings out of range, or one picture that is positive and negative.
    """
    if scores["tp"].chunks is not None:
        raise DataError("the scores are lazy; compute them first: scores.compute()")
    if "sha256" in scores.coords:
        confounds.check_duplicates(scores)
    strata, about = _sources(scores)
    tests = significance(
        scores.assign(stratum=strata), permutations=permutations, seed=seed, alpha=alpha, family=family
    )
    parts = [tests, about, _held_out(scores, splits, seed), _intervals(scores, seed), _against_random(scores)]
    return xr.merge(parts, join="exact", compat="no_conflicts").drop_vars(
        [name for name in scores.coords if name != "concept"], errors="ignore"
    )


def outcomes(scores: xr.Dataset, concept: str, latent: int) -> xr.DataArray:
    """What became of each of a concept's images: which are a latent's true and false positives and negatives.

    Parameters
    ----------
    scores
        As :func:`semprobe.score` gives them, in memory; or a store of scores, opened.
    concept
        Name of the concept.
    latent
        Number of the latent.

    Returns
    -------
    xarray.DataArray
        (image,) object: ``tp``, ``fp``, ``fn`` or ``tn``, of the images in the concept's set.

    Raises
    ------
    DataError
        The scores do not hold their predictions.
    """
    wanted = scores["latent"].values == latent
    if "threshold" in scores:  # of sums, one column is enough; a byte of bits holds eight latents
        scores, wanted = scores.isel(latent=wanted), wanted[wanted]
    rows, lazy = fired(scores, concept)
    fires = lazy[:, wanted].compute(scheduler="synchronous")
    positive = scores["label"].sel(concept=concept).values[rows] == POSITIVE
    found = np.where(positive, np.where(fires[:, 0], "tp", "fn"), np.where(fires[:, 0], "fp", "tn")).astype(object)
    return xr.DataArray(found, dims="image", coords={"image": scores["image"].values[rows]}, name="outcome")


def _sources(scores: xr.Dataset) -> tuple[xr.DataArray, xr.Dataset]:
    """Strata of the permutation, and what is known of sources."""
    label = scores["label"]
    source = scores.get("source", xr.DataArray(np.full(scores.sizes["image"], "", dtype=object), dims="image"))
    found = confounds.strata(label, source)
    within = found["permutable"]
    about = xr.Dataset({
        "source_association": confounds.source_association(label, source),
        "source_words": confounds.words(label, source),
        "within_source": within,
    })  # fmt: skip
    about = about.assign({name: about[name].assign_attrs(attrs(name)) for name in ("source_words", "within_source")})
    return found["stratum"].where(within, 0), about


def _held_out(scores: xr.Dataset, splits: int, seed: int) -> xr.Dataset:
    found = []
    for concept in scores["concept"].values:
        rows, predictions = tried(scores, str(concept))
        numbers = np.resize(scores["latent"].values, predictions.shape[1])
        fires = xr.DataArray(predictions, dims=("image", "latent"), coords={"latent": numbers})
        label = scores["label"].sel(concept=[concept]).isel(image=rows).transpose("image", "concept")
        plain = xr.DataArray(label.values, dims=label.dims, coords={"concept": [concept]})
        found.append(held_out_f1(fires, plain, splits=splits, seed=seed).compute(scheduler="synchronous"))
    return xr.concat(found, "concept").assign_coords(concept=scores["concept"])


def _intervals(scores: xr.Dataset, seed: int) -> xr.Dataset:
    """Of the best latents of each concept; NaN elsewhere."""
    ends = np.full((2, scores.sizes["concept"], scores.sizes["latent"]), np.nan)
    for at, concept in enumerate(scores["concept"].values):
        best = rank(scores, str(concept), _INTERVALS)
        found = f1_interval_of_counts(scores.isel(concept=[at], latent=best), seed=seed)
        ends[:, at, best] = [found[name].transpose("concept", "latent").values[0] for name in ("f1_low", "f1_high")]
    return xr.Dataset({
        name: (("concept", "latent"), values, attrs(name))
        for name, values in zip(("f1_low", "f1_high"), ends, strict=True)
    })  # fmt: skip


def _against_random(scores: xr.Dataset) -> xr.Dataset:
    p = []
    for concept in scores["concept"].values:
        here = scores.sel(concept=concept)
        top = here["f1"].values[rank(scores, str(concept), TOP)]
        p.append(mannwhitneyu(top, here["random_f1"].values, alternative="greater", method="asymptotic").pvalue)
    return xr.Dataset({"top_vs_random_p": ("concept", np.array(p, np.float64), attrs("top_vs_random_p"))})


# telling

NUMBERS = (
    "f1", "f1_low", "f1_high", "p_max", "significant", "q_value", "p_value", "auroc", "average_precision", "precision",
    "recall", "support", "tp", "fp", "fn", "tn", "threshold",
)  # fmt: skip
"""Of a latent, as :func:`describe` and :func:`numbers` tell them; ``threshold`` of a sweep only."""


def describe(scores: xr.Dataset, concept: str, top: int) -> dict[str, Any]:
    """A concept's best latents beside what chance does, as plain values.

    Parameters
    ----------
    scores
        A store of scores that were tested, in memory.
    concept
        Name of the concept.
    top
        How many latents, best first.
    """
    here = scores.sel(concept=concept)
    first, drawn, null = here.isel(latent=0), here["random_f1"], here["null_max_f1"]
    found = {
        "positives": int(first["tp"] + first["fn"]), "negatives": int(first["fp"] + first["tn"]),
        "latents": here.sizes["latent"],
        "dead_latents": int((here["support"] == 0).sum()), "always_on_latents": int((here["support"] == 1).sum()),
        "floor_f1": float(here["floor_f1"]),
        "random": {"draws": drawn.sizes["draw"], "sd": float(drawn.std()), **_spread(drawn),
                   "top_vs_random_p": float(here["top_vs_random_p"])},
        "null_max_f1": {"permutations": null.sizes["permutation"], **_spread(null)},
        "smallest_p": float(here["smallest_p"]) if "smallest_p" in here else 0.0,
        "significant_latents": int(here["significant"].sum()),
        "held_out_f1": {"mean": float(here["held_out_f1"]), "p5": float(here["held_out_low"]),
                        "median": float(here["held_out_median"]), "p95": float(here["held_out_high"])},
        "source": {"cramers_v": float(here["source_association"]), "words": str(here["source_words"].item()),
                   "permuted_within_source": bool(here["within_source"])},
        "top": _rows(here, rank(scores, concept, top)),
    }  # fmt: skip
    if "channel_f1" in here:
        found["channels"] = {"f1": float(here["channel_f1"].max()), "auroc": float(here["channel_auroc"].max())}
    if "random_sae_f1" in here:
        found["random_sae"] = {"f1": float(here["random_sae_f1"].max()), **_spread(here["random_sae_f1"])}
    return found


def numbers(scores: xr.Dataset, concept: str, latents: Collection[int]) -> list[dict[str, Any]]:
    """Some latents of a concept, best first, a dict each: ``rank`` among all, from 1; ``latent``; and `NUMBERS`."""
    order = rank(scores, concept, scores.sizes["latent"])
    places = np.flatnonzero(np.isin(scores["latent"].values[order], list(latents)))
    rows = _rows(scores.sel(concept=concept), order[places])
    return [{"rank": int(place) + 1, **row} for place, row in zip(places, rows, strict=True)]


def _rows(here: xr.Dataset, positions: np.ndarray) -> list[dict[str, Any]]:
    kept = here.isel(latent=positions)
    return [
        {"latent": int(kept["latent"][at]), **{name: kept[name].values[at].item() for name in NUMBERS if name in kept}}
        for at in range(len(positions))
    ]


def _spread(values: xr.DataArray) -> dict[str, float]:
    return {"mean": float(values.mean()), "p95": float(values.quantile(0.95))}
