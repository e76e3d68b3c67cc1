"""Is a latent's F1 more than chance, given how many latents were looked at?

The family of a concept is every latent that fires on some of its images and not on all; a latent outside of it can't
tell positives from negatives, and has p = 1. All tests are one-sided: high F1. ``docs/statistics.md`` is the norm.
"""

from __future__ import annotations

import itertools
import math
import zlib

import dask.array as da
import numpy as np
import xarray as xr
from scipy.stats import false_discovery_control, hypergeom

from semprobe.errors import DataError
from semprobe.predictions import unpack, words
from semprobe.sweep import cuts
from semprobe.vocabulary import POSITIVE, UNLABELLED, attrs

_ROWS, _AT_ONCE = 128, 1024  # latents and permutations whose true positives are counted at once: they fit a cache
_CELLS = 2**18  # random numbers drawn at once


def exact_p(scores: xr.Dataset) -> xr.DataArray:
    """Chance of at least as many true positives, were the labels dealt out at random over the images.

    ``p = P(TP >= tp)`` with TP hypergeometric: of n images n+ are positive, and the latent fires on tp + fp. At a fixed
    number of predictions F1 grows with tp, so that this is the p of F1 too; equal to Fisher's exact test, one-sided.
    Labels that change places within strata only make TP the sum of a hypergeometric of each. A latent that fires on no
    image or on all has p = 1. Says nothing of how many latents were looked at.

    Parameters
    ----------
    scores
        ``tp fp fn tn`` (concept, latent), in memory. With ``stratum`` (image, concept), what
        :func:`significance` takes.

    Returns
    -------
    xarray.DataArray
        (concept, latent) float64.

    References
    ----------
    Fisher 1935, The Logic of Inductive Inference. Within strata: Birch 1964, The Detection of Partial Association.
    """
    tp, fp, fn, tn = (scores[name].transpose("concept", "latent").values for name in ("tp", "fp", "fn", "tn"))
    rows, back = np.unique(np.stack([tp, fp, fn, tn]).reshape(4, -1), axis=1, return_inverse=True)
    found = hypergeom.sf(rows[0] - 1, rows.sum(0), rows[0] + rows[2], rows[0] + rows[1])
    p = np.clip(found, 0, 1)[back].reshape(tp.shape)
    for at, concept in enumerate(scores["concept"].values if "stratum" in scores else []):
        label, strata = _dealt_of(scores, str(concept))
        if len(np.unique(strata)) > 1:
            p[at] = _p_within(fired(scores, str(concept))[1], label == POSITIVE, strata)
    return scores["tp"].transpose("concept", "latent").copy(data=p).rename("p_value").assign_attrs(attrs("p_value"))


def _dealt_of(scores: xr.Dataset, concept: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels of a concept's images, and the strata within which they change places; without any, one."""
    label = scores["label"].sel(concept=concept).values
    rows = label != UNLABELLED
    strata = scores["stratum"].sel(concept=concept).values if "stratum" in scores else np.zeros(len(label), int)
    return label[rows], strata[rows]


def _ways(label: np.ndarray, strata: np.ndarray) -> int:
    """In how many ways labels can be dealt out."""
    groups = (label[strata == one] for one in np.unique(strata))
    return math.prod(math.comb(len(group), int((group == POSITIVE).sum())) for group in groups)


def _p_within(fires: da.Array, positive: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """(latent,) exact p of predictions (image, latent), by convolution of the strata's hypergeometrics."""
    mixed = [here for here in (strata == one for one in np.unique(strata)) if 0 < positive[here].sum() < here.sum()]
    chances = [_chances(here.sum(), positive[here].sum()) for here in mixed]  # labels of the others never move
    rows = np.stack([np.any(mixed, axis=0) & positive, *mixed])
    unique, back = np.unique(_fires(fires, rows), axis=1, return_inverse=True)
    blocks = [unique[:, at : at + _ROWS] for at in range(0, unique.shape[1], _ROWS)]
    return np.concatenate([_tail(block[0], block[1:], chances) for block in blocks])[back.reshape(-1)]


def _fires(predictions: da.Array, sets: np.ndarray) -> np.ndarray:
    """(set, latent) predictions (image, latent) in each set (set, image) of images."""

    def count(block: np.ndarray) -> np.ndarray:
        return np.stack([block[one].sum(0) for one in sets])

    found = predictions.map_blocks(count, chunks=((len(sets),), predictions.chunks[1]), dtype=np.int64)
    return np.asarray(found.compute(scheduler="synchronous"))


def _chances(images: int, positives: int) -> np.ndarray:
    """(fires, tp) hypergeometric chance of each number of true positives, for each number of predictions."""
    return np.asarray(hypergeom.pmf(np.arange(positives + 1), images, positives, np.arange(images + 1)[:, None]))


def _tail(tp: np.ndarray, fired: np.ndarray, chances: list[np.ndarray]) -> np.ndarray:
    """(latent,) P(TP >= tp), TP the sum over strata (of `chances`) of which a latent fires on `fired`."""
    found, least = np.ones((len(tp), 1)), np.zeros(len(tp), int)
    for table, here in zip(chances, fired, strict=True):
        short, long = sorted((found, table[here]), key=lambda one: one.shape[1])
        found = np.zeros((len(tp), short.shape[1] + long.shape[1] - 1))
        for more in range(short.shape[1]):
            found[:, more : more + long.shape[1]] += short[:, more, None] * long
        least += (table > 0).argmax(1)[here]
    upper = np.where(np.arange(found.shape[1]) >= tp[:, None], found, 0).sum(1)
    return np.where(tp <= least, 1, np.minimum(upper, 1))  # 1 without rounding where no shuffle gives less


def in_family(counts: xr.Dataset) -> xr.DataArray:
    """(concept, latent) bool: the latent fires on some of the concept's images and not on all."""
    return (counts["tp"] + counts["fp"] > 0) & (counts["fn"] + counts["tn"] > 0)


def q_values(p: xr.DataArray, family: xr.DataArray) -> xr.DataArray:
    """Smallest false discovery rate at which a latent is among the discoveries, concept by concept.

    Parameters
    ----------
    p
        (concept, latent), of :func:`exact_p`.
    family
        (concept, latent) bool, of :func:`in_family`; 1 outside of it.

    Returns
    -------
    xarray.DataArray
        (concept, latent) float64.

    References
    ----------
    Benjamini and Hochberg 1995, Controlling the False Discovery Rate.
    """
    found = np.ones(p.shape)
    for row, values, inside in zip(found, p.values, family.transpose(*p.dims).values, strict=True):
        if inside.any():
            row[inside] = false_discovery_control(values[inside], method="bh")
    return p.copy(data=found).rename("q_value").assign_attrs(attrs("q_value"))


# the largest F1 by chance


def permuted_labels(label: np.ndarray, strata: np.ndarray, number: int, seed: list[int]) -> np.ndarray:
    """Labels dealt out anew at random, within each stratum.

    Parameters
    ----------
    label
        (image,) 1 or 0.
    strata
        (image,) int: labels change places within a stratum only.

    Returns
    -------
    numpy.ndarray
        (word, permutation) uint64, 64 images a word as :func:`semprobe.predictions.words` has them; 1 for positive.
    """
    rng, numbers = np.random.default_rng(seed), np.unique(strata)
    own = [rng] if len(numbers) == 1 else rng.spawn(len(numbers))  # so that blocks of permutations change nothing
    groups = [(np.flatnonzero(strata == one), each) for one, each in zip(numbers, own, strict=True)]
    found = np.zeros((-(-len(label) // 64), number), np.uint64)
    block = max(1, _CELLS // len(label))
    for start in range(0, number, block):
        some = min(block, number - start)
        dealt = np.zeros((len(label), some), bool)
        for here, each in groups:
            order = each.random((some, len(here))).argsort(1)[:, : int(label[here].sum())]
            dealt[here[order].T, np.arange(some)] = True
        found[:, start : start + some] = words(dealt)
    return found


def null_max_f1(predictions: np.ndarray | da.Array, dealt: np.ndarray) -> np.ndarray:
    """The largest F1 of all latents under each permutation of the labels.

    At a fixed number of predictions the largest F1 is that of the most true positives, so only those are counted, and
    F1 = 2 tp / (P + n+) comes last, in float64. Latents that predict alike are counted once; numbers of predictions
    are visited from the largest F1 that they could reach, until none left could change a maximum. Exact.

    Parameters
    ----------
    predictions
        (image, latent) bool, of the family alone; lazy ones are computed block by block.
    dealt
        (word, permutation) uint64, of :func:`permuted_labels`; as many positives in each.

    Returns
    -------
    numpy.ndarray
        (permutation,) float64; 0 without latents.
    """
    positives = int(np.bitwise_count(dealt[:, 0]).sum())
    lazy = da.asarray(predictions).rechunk({0: -1})
    packed = lazy.map_blocks(words, chunks=((-(-len(lazy) // 64),), lazy.chunks[1]), dtype=np.uint64)
    unique = np.unique(packed.compute(scheduler="synchronous"), axis=1)
    fires = np.bitwise_count(unique).sum(0, dtype=np.int64)
    bound = 2 * np.minimum(fires, positives) / (fires + positives)
    order = np.lexsort((fires, -bound))
    rows, fires, bound = unique[:, order], fires[order], bound[order]
    best = np.zeros(dealt.shape[1])
    counts = np.min_scalar_type(len(predictions))
    for start in range(0, len(best), _AT_ONCE):
        here, drawn = best[start : start + _AT_ONCE], dealt[:, start : start + _AT_ONCE]
        for first in range(0, len(fires), _ROWS):
            if bound[first] <= here.min():
                break
            tp = _shared(rows[:, first : first + _ROWS], drawn, counts)
            _raise(here, tp, fires[first : first + _ROWS], positives)
    return best


def _shared(rows: np.ndarray, drawn: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """(latent, permutation) images that both have, of words of bits.

    A matmul would count them, too, with threads that wait for whoever else has a core.
    """
    found = np.zeros((rows.shape[1], drawn.shape[1]), dtype)
    both = np.empty(found.shape, np.uint64)
    for one, other in zip(rows, drawn, strict=True):
        found += np.bitwise_count(np.bitwise_and(one[:, None], other, out=both))
    return found


def _raise(best: np.ndarray, tp: np.ndarray, fires: np.ndarray, positives: int) -> None:
    """Raise maxima to the F1 of these true positives (latent, permutation), sorted by number of predictions."""
    edges = [0, *(np.flatnonzero(np.diff(fires)) + 1), len(fires)]
    for start, stop in itertools.pairwise(edges):
        most = tp[start:stop].max(0).astype(np.float64)
        np.maximum(best, 2 * most / (fires[start] + positives), out=best)


def p_max(f1: np.ndarray, null: np.ndarray, *, concepts: int = 1) -> np.ndarray:
    """``concepts (1 + permutations whose largest F1 is at least f1) / (1 + permutations)``, at most 1.

    Parameters
    ----------
    f1
        Of latents of one concept.
    null
        (permutation,) largest F1 of the concept's latents.
    concepts
        That the family spans: Bonferroni, true whatever concepts share.

    References
    ----------
    Westfall and Young 1993, Resampling-Based Multiple Testing, for the maximum; Phipson and Smyth 2010, Permutation
    P-values Should Never Be Zero, for the 1.
    """
    reached = 1 + len(null) - np.searchsorted(np.sort(null), f1, side="left")
    return np.minimum(1, concepts * reached / (1 + len(null)))


def significance(
    scores: xr.Dataset, *, permutations: int = 10_000, seed: int = 0, alpha: float = 0.05, family: str = "concept"
) -> xr.Dataset:
    """Exact p, false discovery rate and family-wise p of every latent; computes.

    Parameters
    ----------
    scores
        ``tp fp fn tn f1`` (concept, latent), ``prediction_bits`` (image, byte) and ``label`` (image, concept), all in
        memory, as :func:`semprobe.score` gives them; of a sweep ``threshold`` and ``patch_sum`` in place of the bits.
        With ``stratum`` (image, concept) labels change places within strata only.
    permutations
        Of the labels; the same for all latents of a concept.
    seed
        Of the permutations. A concept's depend on it and on the concept's name alone.
    alpha
        A latent is significant if its ``p_max`` is at most this.
    family
        ``concept`` corrects over all latents of a concept, ``study`` over all latents of all concepts: the p of each
        concept times the number of concepts.

    Returns
    -------
    xarray.Dataset
        ``p_value q_value p_max`` float64 and ``significant`` bool (concept, latent), ``null_max_f1`` (concept,
        permutation) and ``smallest_p`` (concept,) float64. Of a sweep p is multiplied by the number of thresholds tried
        (Bonferroni).

    Raises
    ------
    DataError
        No prediction bits, or settings out of range.
    """
    if permutations < 1 or not 0 < alpha < 1 or family not in ("concept", "study"):
        raise DataError(f"permutations {permutations}, alpha {alpha}, family {family!r}: out of range")
    p, inside = exact_p(scores), in_family(scores).transpose("concept", "latent")
    nulls, ways = [], []
    for at, concept in enumerate(p["concept"].values):
        _, predictions = tried(scores, str(concept))
        p[at] = np.minimum(1, p[at] * (predictions.shape[1] // scores.sizes["latent"]))
        label, strata = _dealt_of(scores, str(concept))
        dealt = permuted_labels(label, strata, permutations, [seed, zlib.crc32(str(concept).encode())])
        ways.append(_ways(label, strata))
        fires = _fires(predictions, np.ones((1, len(label)), bool))[0]
        nulls.append(null_max_f1(predictions[:, (fires > 0) & (fires < len(label))], dealt))
    null, concepts = np.stack(nulls), 1 if family == "concept" else len(nulls)
    f1 = scores["f1"].transpose("concept", "latent").values
    worst = np.stack([p_max(one, other, concepts=concepts) for one, other in zip(f1, null, strict=True)])
    worst[~inside.values] = 1
    return xr.Dataset({
        "p_value": p, "q_value": q_values(p, inside),
        "p_max": p.copy(data=worst).assign_attrs(attrs("p_max")),
        "significant": p.copy(data=worst <= alpha).assign_attrs(attrs("significant")),
        "smallest_p": ("concept", np.minimum(1, [concepts / one for one in ways]), attrs("smallest_p")),
        "null_max_f1": (("concept", "permutation"), null, attrs("null_max_f1")),
    })  # fmt: skip


def tried(scores: xr.Dataset, concept: str) -> tuple[np.ndarray, da.Array]:
    """Which images are in a concept's set, and what was predicted of them.

    Returns
    -------
    rows
        (n,) positions along ``image``.
    predictions
        (n, candidate) bool, lazy in blocks of candidates: every latent, and of a sweep every latent at every threshold,
        one after the other.

    Raises
    ------
    DataError
        The scores do not hold their predictions.
    """
    rows, values = _kept(scores, concept)
    if "threshold" not in scores:
        return rows, unpack(values, scores.sizes["latent"])
    sums = da.from_array(values, chunks=(-1, _AT_ONCE), name=False)
    return rows, da.concatenate([sums > cut for cut in cuts(values)], axis=1)


def fired(scores: xr.Dataset, concept: str) -> tuple[np.ndarray, da.Array]:
    """The same of every latent once: of a sweep at the threshold that was chosen."""
    rows, values = _kept(scores, concept)
    if "threshold" not in scores:
        return rows, unpack(values, scores.sizes["latent"])
    sums = da.from_array(values, chunks=(-1, _AT_ONCE), name=False)
    return rows, sums > scores["threshold"].sel(concept=concept).values


def _kept(scores: xr.Dataset, concept: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions of a concept's images, and their bits, or of a sweep their patch sums."""
    kept = "patch_sum" if "threshold" in scores else "prediction_bits"
    if kept not in scores or "label" not in scores:
        raise DataError(f"found no {kept} or label, so nothing can be tested; score again")
    rows = np.flatnonzero(scores["label"].sel(concept=concept).values != UNLABELLED)
    return rows, scores[kept].values[rows]
