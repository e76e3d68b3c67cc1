"""How large an effect is, said honestly: without a threshold, and on images that did not choose the latent.

0/0 does not arise in AUROC and average precision, since a concept without positives or without negatives is refused.
A class of fewer than two images can't be halved: its held-out F1 is NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import dask.array as da
import numpy as np
import xarray as xr
from scipy.stats import rankdata

from semprobe.errors import DataError
from semprobe.predictions import words
from semprobe.scoring import aligned, check_classes, concept_rng
from semprobe.vocabulary import NEGATIVE, POSITIVE, UNLABELLED, attrs

_CELLS = 400_000  # values ranked at once: their copies stay in cache
_BYTES = 2_000_000  # of a block of patch sums that holds all labelled images
_LATENTS = 1024  # compared at once over all splits
_CHOICES = 5  # latents named per concept, of those that splits chose

_Halves = list[tuple[np.ndarray, np.ndarray]]


# without a threshold


def _auroc(values: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """(latent,) from (latent, image); sums of half-integers are exact, so no order of images shows."""
    positives = int(positive.sum())
    ranks = rankdata(values, axis=1)[:, positive].sum(1)
    return (ranks - positives * (positives + 1) / 2) / (positives * (len(positive) - positives))


def _average_precision(values: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """(latent,) from (latent, image): the precision at each positive's own value, averaged over positives."""
    found = positive.sum() + 1 - rankdata(values[:, positive], "min", axis=1)
    predicted = len(positive) + 1 - rankdata(values, "min", axis=1)[:, positive]
    return np.ascontiguousarray(found / predicted).mean(1)  # contiguous: one order of adding for every block size


def _check_numbers(values: np.ndarray, images: np.ndarray) -> None:
    missing = np.isnan(values).any(0)
    if missing.any():
        raise DataError(
            f"a patch sum of image {images[missing.argmax()]} is NaN, which has no rank among numbers; encode this "
            "image again"
        )


def _over_concepts(
    sums: np.ndarray,
    *,
    kernel: Callable[[np.ndarray, np.ndarray], np.ndarray],
    label: np.ndarray,
    images: np.ndarray,
) -> np.ndarray:
    """(latent, concept) from (latent, image), a few latents at a time."""
    out = np.empty((len(sums), label.shape[1]))
    step = max(1, _CELLS // len(images))
    for concept, column in enumerate(label.T):
        rows = np.flatnonzero(column != UNLABELLED)
        for at in range(0, len(sums), step):
            values = np.ascontiguousarray(sums[at : at + step, rows])
            _check_numbers(values, images[rows])
            out[at : at + step, concept] = kernel(values, column[rows] == POSITIVE)
    return out


def latents_at_once(images: int, itemsize: int = 4) -> int:
    """How many latents a block of some megabytes holds of so many images; whole bytes of bits."""
    return max(8, _BYTES // (images * itemsize) // 8 * 8)


def _in_blocks(values: xr.DataArray) -> xr.DataArray:
    """All images in one chunk, and as many latents as fit beside them; what is in memory stays as it is."""
    if values.chunks is None:
        return values
    return values.chunk(image=-1, latent=latents_at_once(values.sizes["image"], values.dtype.itemsize))


def _labelled(values: xr.DataArray, label: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Both with the images alone that are in some concept's set."""
    ordered, wanted = aligned(values, label)
    check_classes(wanted)
    inside = (wanted.values != UNLABELLED).any(1)
    rows = slice(None) if inside.all() else np.flatnonzero(inside)
    return _in_blocks(ordered.isel(image=rows)), wanted.isel(image=rows)


def _along_concept(label: xr.DataArray) -> dict[str, xr.DataArray]:
    return {str(name): coord for name, coord in label.coords.items() if coord.dims == ("concept",)}


def _free(
    name: str, kernel: Callable[[np.ndarray, np.ndarray], np.ndarray], patch_sums: xr.DataArray, label: xr.DataArray
) -> xr.DataArray:
    sums, wanted = _labelled(patch_sums, label)
    found = xr.apply_ufunc(
        _over_concepts,
        sums,
        input_core_dims=[["image"]],
        output_core_dims=[["concept"]],
        kwargs={"kernel": kernel, "label": wanted.values, "images": wanted["image"].values},
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"concept": wanted.sizes["concept"]}},
    )
    named = found.assign_coords(_along_concept(wanted)).transpose("concept", "latent")
    return named.rename(name).assign_attrs(attrs(name))


def auroc(patch_sums: xr.DataArray, label: xr.DataArray) -> xr.DataArray:
    """Area under the ROC curve: how often a positive's patch sum exceeds a negative's.

    ``AUROC = (R+ - n+ (n+ + 1) / 2) / (n+ n-)``, with ``R+`` the sum of the positives' ranks among the concept's
    images; equal sums share the mean of their ranks, so a pair of equal ones counts one half. It is Mann and Whitney's
    ``U / (n+ n-)``. 1 is perfect, 0.5 chance and every latent whose sums are all equal (dead ones), 0 the wrong way
    round.

    It tells how images are ordered, not that any threshold (0 among them) separates them, and the largest of many
    latents' is above 0.5 by chance.

    Parameters
    ----------
    patch_sums
        (image, latent) float; infinite sums are ranked as such.
    label
        (image, concept) int8: 1 positive, 0 negative, -1 not in the set.

    Returns
    -------
    xarray.DataArray
        (concept, latent) float64; lazy if the patch sums are, then with all labelled images of some latents in a block.
        The same bits for every chunking.

    Raises
    ------
    DataError
        Other dims or images, a concept without positives or without negatives, or (when computed) a NaN.

    References
    ----------
    Mann and Whitney, Annals of Mathematical Statistics 18 (1947) 50-60. Hanley and McNeil, Radiology 143 (1982) 29-36.

    Examples
    --------
    >>> import xarray as xr
    >>> sums = xr.DataArray([[3.0], [1.0], [1.0], [0.0]], dims=("image", "latent"))
    >>> label = xr.DataArray([[1], [1], [0], [0]], dims=("image", "concept"))
    >>> auroc(sums, label).item()  # of four pairs three are right and one is equal
    0.875
    """
    return _free("auroc", _auroc, patch_sums, label)


def average_precision(patch_sums: xr.DataArray, label: xr.DataArray) -> xr.DataArray:
    """Average precision: precision at every distinct threshold, weighted by the recall that it adds.

    ``AP = sum over k of (R_k - R_{k-1}) P_k``, thresholds k being the distinct patch sums from the largest down and a
    prediction ``patch sum >= threshold``: without interpolation, and equal sums are one threshold. That is the mean,
    over positives, of the precision at the positive's own sum. 1 is perfect; a latent whose sums are all equal gets the
    share of positives, and so does chance, nearly.

    Parameters and return as :func:`auroc`.

    References
    ----------
    Manning, Raghavan and Schütze, Introduction to Information Retrieval, 2008, section 8.4.

    Examples
    --------
    >>> import xarray as xr
    >>> sums = xr.DataArray([[3.0], [1.0], [1.0], [0.0]], dims=("image", "latent"))
    >>> label = xr.DataArray([[1], [1], [0], [0]], dims=("image", "concept"))
    >>> round(average_precision(sums, label).item(), 4)  # (1/1 + 2/3) / 2
    0.8333
    """
    return _free("average_precision", _average_precision, patch_sums, label)


# chosen on one half, reported on the other


def _half(images: int, splits: int, rng: np.random.Generator) -> np.ndarray:
    """(split, image) bool: which images are in the first half; of an odd number it gets the smaller part."""
    order = rng.random((splits, images)).argsort(1)
    return order < images // 2


def _split(label: xr.DataArray, splits: int, seed: int) -> _Halves:
    """For every concept, the first halves of its positives and of its negatives."""
    halves = []
    for name, column in zip(label["concept"].values, label.values.T, strict=True):
        rng = concept_rng(str(name), seed)
        positives, negatives = (_half(int((column == value).sum()), splits, rng) for value in (POSITIVE, NEGATIVE))
        halves.append((positives, negatives))
    return halves


def _overlap(half: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """(2, split, latent) int32: images predicted in the first half and in the second.

    By bits, exact, and not by a matmul, whose threads would quarrel with torch's and dask's.
    """
    first = np.zeros((len(half), predictions.shape[1]), np.int32)
    for these, those in zip(words(half.T), words(predictions), strict=True):
        first += np.bitwise_count(these[:, None] & those)
    return np.stack([first, predictions.sum(0, dtype=np.int32) - first])


def _first_best(f1: np.ndarray, precision: np.ndarray, axis: int) -> np.ndarray:
    """Where the best is, as :func:`semprobe.rank` orders: F1, precision (-1 for none), then what comes first."""
    tied = f1 == f1.max(axis, keepdims=True)
    return np.expand_dims(np.where(tied, precision, -2).argmax(axis), axis)


def _best(parts: np.ndarray) -> np.ndarray:
    """The best of (part, value, …), its values being F1, precision, number, held-out F1."""
    at = _first_best(parts[:, 0], parts[:, 1], 0)
    return np.take_along_axis(parts, at[:, None], 0)[0]


def _winners(
    positives: np.ndarray, negatives: np.ndarray, numbers: np.ndarray, halves: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """(value, direction, split) of (image, latent) predictions: the best on each half, and its F1 on the other."""
    tp, fp = _overlap(halves[0], positives), _overlap(halves[1], negatives)
    sizes = np.array([halves[0][0].sum(), (~halves[0][0]).sum()])[:, None, None]
    f1 = 2.0 * tp / (tp + fp + sizes)
    precision = np.where(tp + fp > 0, tp / np.maximum(tp + fp, 1), -1)
    at = _first_best(f1, precision, 2)
    picked = [np.take_along_axis(values, at, 2)[..., 0] for values in (f1, precision, f1[::-1])]
    return np.stack([picked[0], picked[1], numbers[at[..., 0]], picked[2]])


def _choose(predictions: np.ndarray, numbers: np.ndarray, *, label: np.ndarray, halves: _Halves) -> np.ndarray:
    """(1, value, concept, direction, split) over a block of latents; NaN where a class can't be halved."""
    splits = len(halves[0][0])
    out = np.full((1, 4, len(halves), 2, splits), np.nan)
    for concept, column in enumerate(label.T):
        positive, negative = (np.flatnonzero(column == value) for value in (POSITIVE, NEGATIVE))
        if min(len(positive), len(negative)) < 2:
            continue
        blocks = [slice(at, at + _LATENTS) for at in range(0, predictions.shape[1], _LATENTS)]
        both = halves[concept]
        parts = [_winners(predictions[positive, b], predictions[negative, b], numbers[b], both) for b in blocks]
        out[0, :, concept] = _best(np.stack(parts))
    return out


def _choices(predictions: xr.DataArray, label: xr.DataArray, halves: _Halves) -> xr.DataArray:
    """Held-out F1 and the number of the latent chosen, of every split in both directions."""
    positions = np.arange(predictions.sizes["latent"])
    if predictions.chunks is None:
        best = _choose(predictions.values, positions, label=label.values, halves=halves)[0]
    else:
        data, shape = predictions.data, (4, len(halves), 2, len(halves[0][0]))
        blocks = da.blockwise(
            _choose, "lvcds", data, "il", da.from_array(positions, chunks=(data.chunks[1],)), "l",
            new_axes=dict(zip("vcds", shape, strict=True)), adjust_chunks={"l": 1}, concatenate=True,
            dtype=np.float64, meta=np.empty((0,) * 5), label=label.values, halves=halves,
        )  # fmt: skip
        best = blocks.map_blocks(_best, drop_axis=0, dtype=np.float64, meta=np.empty((0,) * 4))
    return xr.DataArray(best[2:], dims=("value", "concept", "direction", "split"), coords=_along_concept(label))


def _summary(choices: np.ndarray, *, numbers: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mean, quantiles, latents chosen and their shares, of (…, value, direction, split)."""
    position, held = choices.reshape(*choices.shape[:-2], -1).swapaxes(0, -2)[[0, 1]]
    low, median, high = np.quantile(held, (0.05, 0.5, 0.95), axis=-1)
    chosen, share = np.full((len(held), _CHOICES), -1), np.zeros((len(held), _CHOICES))
    for concept, row in enumerate(position):
        latents = numbers[row[~np.isnan(row)].astype(int)]  # several columns of a sweep are one latent
        found, times = np.unique(latents, return_counts=True)
        often = np.argsort(-times, kind="stable")[:_CHOICES]
        chosen[concept, : len(often)] = found[often]
        share[concept, : len(often)] = times[often] / row.size
    return held.mean(-1), low, median, high, chosen, share


def held_out_f1(predictions: xr.DataArray, label: xr.DataArray, *, splits: int = 100, seed: int = 0) -> xr.Dataset:
    """F1 of the best latent on images that did not choose it, over repeated stratified halves.

    For every split, a concept's positives and its negatives are each cut into two halves at random. The best latent on
    one half (F1, at equal F1 precision, at equal precision the lower number, as :func:`semprobe.rank`) gets its F1
    measured on the other half, and the other way round: ``held_out_f1 = mean over splits and directions of
    F1(other half; argmax over latents of F1(half))``. Of an odd number the first half has one image less.

    It is what the *choice of a latent by F1* gives on new images of the same origin, choosing on half of the images: a
    little pessimistic for a choice on all of them. It is not a test. Splits overlap, so the quantiles describe them and
    are no confidence interval. If label and source go together, both halves share that, and so does this number.

    Parameters
    ----------
    predictions
        (image, latent) bool.
    label
        (image, concept) int8: 1 positive, 0 negative, -1 not in the set.
    splits
        How many times to halve; each counts twice.
    seed
        Of the halves; they depend on it, on the concept's name and on the order of its images alone.

    Returns
    -------
    xarray.Dataset
        ``held_out_f1 held_out_low held_out_median held_out_high`` (concept,) float64, mean and 5, 50 and 95 %
        quantiles; NaN where positives or negatives are fewer than two. ``chosen_latent`` (concept, choice) int64 and
        ``chosen_share`` float64: latents chosen most often, -1 and 0 where there were fewer. Lazy if the predictions
        are; the same bits for every chunking.

    Raises
    ------
    DataError
        Other dims or images, a concept without positives or without negatives, no latents, or odd options.

    References
    ----------
    Picard and Cook, Journal of the American Statistical Association 79 (1984) 575-583. Cawley and Talbot, Journal of
    Machine Learning Research 11 (2010) 2079-2107, for why the score that chose must not be the score reported.
    """
    if splits < 1 or seed < 0:
        raise DataError(f"splits {splits}, seed {seed}: expected at least 1 and at least 0")
    kept, wanted = _labelled(predictions, label)
    if kept.sizes["latent"] == 0:
        raise DataError("there are no latents, so none can be chosen; expected predictions of at least one")
    choices = _choices(kept, wanted, _split(wanted, splits, seed))
    numbers = kept["latent"].values
    names = ("held_out_f1", "held_out_low", "held_out_median", "held_out_high", "chosen_latent", "chosen_share")
    found = xr.apply_ufunc(
        _summary,
        choices,
        input_core_dims=[["value", "direction", "split"]],
        output_core_dims=[[], [], [], [], ["choice"], ["choice"]],
        kwargs={"numbers": numbers},
        dask="parallelized",
        output_dtypes=[np.float64] * 4 + [np.int64, np.float64],
        dask_gufunc_kwargs={"output_sizes": {"choice": _CHOICES}},
    )
    return xr.Dataset({name: one.assign_attrs(attrs(name)) for name, one in zip(names, found, strict=True)})
