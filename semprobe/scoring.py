"""From predictions to counts, and from counts to F1: the experiment's own arithmetic.

Counts come first and are additive; ratios come last.
What 0/0 gives is decided here, once: F1 and recall are always defined, since a concept without positives is refused;
precision without any prediction is NaN.
"""

from __future__ import annotations

import zlib

import dask.array as da
import numpy as np
import xarray as xr

from semprobe.errors import DataError
from semprobe.predictions import as_bits, predict
from semprobe.sae import SAE
from semprobe.vocabulary import NEGATIVE, POSITIVE, UNLABELLED, attrs


def _count_block(predictions: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(1, outcome, concept, latent) predictions among positives, among negatives; only labelled rows are touched."""
    out = np.empty((1, 2, label.shape[1], predictions.shape[1]), np.int32)
    for outcome, wanted in enumerate((POSITIVE, NEGATIVE)):
        for concept in range(label.shape[1]):
            np.add.reduce(predictions[label[:, concept] == wanted], 0, dtype=np.int32, out=out[0, outcome, concept])
    return out


def as_label(label: xr.DataArray) -> xr.DataArray:
    """Labels as int8; NaN, which selecting and concatenating leave behind, is "not in the set"."""
    whole = label.fillna(UNLABELLED) if label.dtype.kind == "f" else label
    if whole.chunks is None and not np.isin(whole.values, (POSITIVE, NEGATIVE, UNLABELLED)).all():
        raise DataError(f"labels are {np.unique(whole.values).tolist()}, expected only 1, 0 and -1")
    return whole.astype(np.int8)


def aligned(values: xr.DataArray, label: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Values as (image, latent) and labels as (image, concept) int8, after a check that they are of the same images.

    Parameters
    ----------
    values
        (image, latent): predictions or patch sums.
    label
        (image, concept) int8.

    Raises
    ------
    DataError
        Other dims or labels, or the images of the two are not the same in the same order.
    """
    what = str(values.name or "prediction").replace("_", " ") + "s"
    if set(values.dims) != {"image", "latent"} or set(label.dims) != {"image", "concept"}:
        raise DataError(
            f"{what} have dims {values.dims} and label {label.dims}, expected (image, latent) and (image, concept)"
        )
    if values.sizes["image"] != label.sizes["image"]:
        raise DataError(f"{values.sizes['image']} images have {what} and {label.sizes['image']} are labelled")
    if all("image" in one.indexes for one in (values, label)) and not values.indexes["image"].equals(
        label.indexes["image"]
    ):
        raise DataError(f"{what} and label are not of the same images in the same order; align them first")
    return values.transpose("image", "latent"), as_label(label).transpose("image", "concept")


def confusion(predictions: xr.DataArray, label: xr.DataArray) -> xr.Dataset:
    """True and false positives and negatives of every latent for every concept, in one pass.

    Images labelled -1 are not in a concept's set and count nowhere.

    Parameters
    ----------
    predictions
        (image, latent) bool.
    label
        (image, concept) int8: 1 positive, 0 negative, -1 not in the set.

    Returns
    -------
    xarray.Dataset
        ``tp fp fn tn`` (concept, latent) int32; lazy if the predictions are.

    Raises
    ------
    DataError
        Other dims or labels, or the images of the two are not the same in the same order.
    """
    ordered, wanted = aligned(predictions, label)
    if ordered.chunks is None:
        counts = _count_block(ordered.values, wanted.values)[0]
    else:
        rows = wanted.data.rechunk if wanted.chunks else lambda chunks: da.from_array(wanted.data, chunks=chunks)
        blocks = da.blockwise(
            _count_block, "iocl", ordered.data, "il", rows((ordered.data.chunks[0], -1)), "ic",
            new_axes={"o": 2}, adjust_chunks={"i": 1}, concatenate=True, dtype=np.int32,
            meta=np.empty((0, 0, 0, 0), np.int32),
        )  # fmt: skip
        counts = blocks.sum(0, dtype=np.int32, split_every=8)
    positives, negatives = ((wanted == v).sum("image", dtype=np.int32) for v in (POSITIVE, NEGATIVE))
    coords = {
        name: c for name, c in {**ordered.coords, **wanted.coords}.items() if c.dims in (("latent",), ("concept",))
    }
    tp, fp = (xr.DataArray(counts[k], dims=("concept", "latent"), coords=coords) for k in (0, 1))
    found = {"tp": tp, "fp": fp, "fn": positives - tp, "tn": negatives - fp}
    dims = ("concept", "latent")
    return xr.Dataset({k: v.transpose(*dims).astype(np.int32).assign_attrs(attrs(k)) for k, v in found.items()})


def f1(counts: xr.Dataset) -> xr.DataArray:
    """F1, the harmonic mean of precision and recall: 2 tp / (2 tp + fp + fn).

    0 where nothing positive is found; always defined as long as there is a positive, and NaN (0/0) if there is none.

    Parameters
    ----------
    counts
        ``tp``, ``fp`` and ``fn``, as :func:`confusion` gives them.

    Returns
    -------
    xarray.DataArray
        The counts' dims, float64; lazy if they are.

    References
    ----------
    van Rijsbergen, Information Retrieval, 1979, chapter 7.

    Examples
    --------
    >>> import semprobe, xarray as xr
    >>> float(semprobe.f1(xr.Dataset({"tp": 20, "fp": 20, "fn": 0, "tn": 0})))  # fires on every image of 20 + 20
    0.6666666666666666
    """
    twice = 2.0 * counts["tp"]
    return (twice / (twice + counts["fp"] + counts["fn"])).rename("f1").assign_attrs(attrs("f1"))


def precision(counts: xr.Dataset) -> xr.DataArray:
    """Share of predicted images that are positive: tp / (tp + fp), NaN where nothing is predicted.

    Parameters and return as :func:`f1`.
    """
    predicted = (counts["tp"] + counts["fp"]).astype(np.float64)
    return (counts["tp"] / predicted.where(predicted > 0)).rename("precision").assign_attrs(attrs("precision"))


def recall(counts: xr.Dataset) -> xr.DataArray:
    """Share of positive images that are predicted: tp / (tp + fn), NaN only where there is no positive.

    Parameters and return as :func:`f1`.
    """
    found = counts["tp"] / (counts["tp"] + counts["fn"]).astype(np.float64)
    return found.rename("recall").assign_attrs(attrs("recall"))


def support(counts: xr.Dataset) -> xr.DataArray:
    """Share of a concept's images that are predicted positive: (tp + fp) / (tp + fp + fn + tn).

    Parameters and return as :func:`f1`.
    """
    predicted, rest = counts["tp"] + counts["fp"], counts["fn"] + counts["tn"]
    return (predicted / (predicted + rest).astype(np.float64)).rename("support").assign_attrs(attrs("support"))


def floor_f1(label: xr.DataArray) -> xr.DataArray:
    """F1 of a latent that fires on every image: 2 p / (1 + p), with p the share of positives.

    Parameters
    ----------
    label
        (image, concept) int8.

    Returns
    -------
    xarray.DataArray
        (concept,) float64. A latent below it is worse than no looking at all.
    """
    whole = as_label(label)
    positives, negatives = ((whole == v).sum("image") for v in (POSITIVE, NEGATIVE))
    share = positives / (positives + negatives)
    return (2 * share / (1 + share)).rename("floor_f1").assign_attrs(attrs("floor_f1"))


def concept_rng(concept: str, seed: int) -> np.random.Generator:
    """Random numbers that depend on the seed and on the concept's name alone, not on the concepts beside it."""
    return np.random.default_rng([seed, zlib.crc32(concept.encode())])


def draw_latents(concepts: list[str], latents: int, draws: int, seed: int) -> np.ndarray:
    """Latents drawn at random without replacement, for each concept its own.

    A concept's draw depends on the seed and on its name alone, not on the concepts beside it.

    Returns
    -------
    numpy.ndarray
        (concept, draw) int64; all latents where fewer than `draws` exist.
    """
    size = min(draws, latents)
    drawn = [concept_rng(name, seed).choice(latents, size, replace=False) for name in concepts]
    return np.stack(drawn).astype(np.int64)


def check_classes(label: xr.DataArray) -> None:
    """Refuse labels that are lazy, and concepts without positives or without negatives."""
    if label.sizes["concept"] == 0:
        raise DataError(
            "no concept is labelled in this store, so there is nothing to score; extract from folders named "
            "{concept}-positive and {concept}-negative, or from a manifest; shards of saev take theirs from --images"
        )
    if label.chunks is not None:
        raise DataError("label is lazy; load it first: data.assign_coords(label=data.label.load())")
    for name, column in zip(label["concept"].values, label.transpose("concept", "image").values, strict=True):
        for value, word in ((POSITIVE, "positive"), (NEGATIVE, "negative")):
            if not (column == value).any():
                raise DataError(f"concept {name} has no {word} images: F1 needs both positives and negatives")


def labelled(data: xr.Dataset) -> xr.Dataset:
    """The images that are in some concept's set, with their labels as int8.

    Raises
    ------
    DataError
        No labels, or a concept without positives or without negatives.
    """
    if "label" not in data:
        raise DataError("found no label, so there is nothing to score; expected a store of activations or of latents")
    label = as_label(data["label"])
    check_classes(label)
    rows = (label != UNLABELLED).any("concept").values
    found = data.assign_coords(label=label)
    return found if rows.all() else found.isel(image=np.flatnonzero(rows))


def _predictions(data: xr.Dataset, sae: SAE | None, threshold: float) -> xr.DataArray:
    if "patch_sum" in data:
        if sae is not None:
            raise DataError("this store holds patch sums already, so an SAE has nothing to do; leave it out")
        return predict(data["patch_sum"], threshold)
    if "activations" not in data:
        raise DataError(f"found {sorted(map(str, data.data_vars))}, expected activations or patch_sum to score")
    if sae is None:
        raise DataError("scoring activations needs an SAE; give one, or score a store of latents")
    from semprobe.encoding import reductions

    if threshold == 0 and not sae.signed:  # codes are not negative: the sum is positive if and only if some code is
        return predict(reductions(data["activations"], sae, ("patch_max",))["patch_max"], 0.0)
    return predict(reductions(data["activations"], sae, ("patch_sum",))["patch_sum"], threshold)


def score(
    data: xr.Dataset, *, sae: SAE | None = None, threshold: float = 0.0, random: int = 1000, seed: int = 0
) -> xr.Dataset:
    """Score every latent for every concept, beside the floor and a random baseline.

    Parameters
    ----------
    data
        A store of activations (then `sae` is needed) or of latents, with its ``label``.
    sae
        The encoder.
    threshold
        A prediction is patch sum > threshold.
    random
        Number of latents drawn at random for the baseline.
    seed
        Of that draw.

    Returns
    -------
    xarray.Dataset
        ``tp fp fn tn f1 precision recall support`` (concept, latent), ``random_latent random_f1`` (concept, draw),
        ``floor_f1`` (concept,) and ``prediction_bits`` (image, byte), from which :func:`semprobe.assess` tests; lazy:
        computing it all is one pass over the data. Images that no concept labels are left out.

    Raises
    ------
    DataError
        A concept without positives or without negatives, nothing to score, or (when computed) values that are not
        finite.
    SAEError
        The SAE reads another number of features.
    """
    data = labelled(data)
    label = data["label"]
    if random < 1 or seed < 0 or not np.isfinite(threshold):
        raise DataError(f"random {random}, seed {seed}, threshold {threshold}: expected at least 1, at least 0, finite")
    predictions = _predictions(data, sae, threshold)
    counts = confusion(predictions, label)
    found = beside_chance(counts, label, random=random, seed=seed)
    return found.assign(prediction_bits=as_bits(predictions)).assign_coords(image_coords(data))


def image_coords(data: xr.Dataset) -> dict[str, xr.DataArray]:
    """Coordinates of images and concepts, which scores keep."""
    return {str(name): one for name, one in data.coords.items() if set(one.dims) <= {"image", "concept", "edge"}}


def beside_chance(counts: xr.Dataset, label: xr.DataArray, *, random: int = 1000, seed: int = 0) -> xr.Dataset:
    """Ratios of counts, beside the floor and the F1 of latents drawn at random.

    Parameters
    ----------
    counts
        ``tp fp fn tn`` (concept, latent), as :func:`confusion` gives them.
    label
        (image, concept) int8, in memory.
    random, seed
        As :func:`score`.

    Returns
    -------
    xarray.Dataset
        The counts with ``f1 precision recall support floor_f1 random_latent random_f1``; lazy if they are.
    """
    scores = f1(counts)
    drawn = draw_latents([str(c) for c in label["concept"].values], counts.sizes["latent"], random, seed)
    flat = drawn + np.arange(len(drawn))[:, None] * counts.sizes["latent"]
    picked = scores.transpose("concept", "latent").data.reshape(-1)[flat.reshape(-1)].reshape(drawn.shape)
    numbers = counts["latent"].values if "latent" in counts.coords else np.arange(counts.sizes["latent"])
    return counts.assign(
        f1=scores,
        precision=precision(counts),
        recall=recall(counts),
        support=support(counts),
        floor_f1=floor_f1(label),
        random_latent=(("concept", "draw"), numbers[drawn], attrs("random_latent")),
        random_f1=(("concept", "draw"), picked, attrs("random_f1")),
    ).drop_attrs(deep=False)


def rank(scores: xr.Dataset, concept: str, number: int = 5) -> np.ndarray:
    """Latents of a concept from best to worst: by F1, at equal F1 by precision, at equal precision by number.

    A latent that never fires has no precision and comes last among equals.

    Parameters
    ----------
    scores
        As :func:`score` gives them, computed.
    concept
        Name of the concept.
    number
        How many are wanted.

    Returns
    -------
    numpy.ndarray
        (number,) int64 positions along ``latent``.
    """
    here = scores.sel(concept=concept)
    order = np.lexsort((np.arange(here.sizes["latent"]), -here["precision"].fillna(-1).values, -here["f1"].values))
    return order[:number]
