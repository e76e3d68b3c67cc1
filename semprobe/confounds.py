"""Can label and source be told apart? And is one picture on both sides?

A source is what the coordinate ``source`` says, whole and word for word. Images without one count as one further
source, since nothing is known that would tell them apart. Sources of a single image, such as an address of its own for
every picture, say nothing of what pictures share: two or more of them count as one source. Where that, or no source at
all, is all that a concept's images have, nothing is known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import xarray as xr

from semprobe.errors import DataError
from semprobe.images import read_image
from semprobe.scoring import as_label, check_classes
from semprobe.vocabulary import NEGATIVE, POSITIVE, UNLABELLED, attrs

_ALONE = "sources of one image each"
_SHUFFLES = 2000  # of the labels, to see how far they go with source by chance


class _Table(NamedTuple):
    """A concept's labelled images by source, sources in order of their names."""

    concept: str
    rows: np.ndarray
    which: np.ndarray
    """The source of each row, by number."""
    names: list[str]
    counts: np.ndarray
    """(2, source): positives, negatives."""

    @property
    def unknown(self) -> bool:
        """Whether nothing is known that images could share."""
        return self.names in ([""], [_ALONE])


def _texts(values: xr.DataArray, name: str) -> np.ndarray:
    if values.dims != ("image",):
        raise DataError(f"{name} has dims {values.dims}, expected (image,)")
    if values.chunks is not None:
        raise DataError(f"{name} is lazy; load it first: data.assign_coords({name}=data.{name}.load())")
    return np.array(["" if value is None or value != value else str(value) for value in values.values], dtype=object)


def _tables(label: xr.DataArray, source: xr.DataArray) -> Iterator[_Table]:
    if set(label.dims) != {"image", "concept"} or label.sizes["image"] != source.size:
        raise DataError(
            f"label has sizes {dict(label.sizes)} and source {dict(source.sizes)}, expected (image, concept) and "
            "(image,) of the same images"
        )
    if all("image" in one.indexes for one in (label, source)) and not label.indexes["image"].equals(
        source.indexes["image"]
    ):
        raise DataError("label and source are not of the same images in the same order; align them first")
    wanted = as_label(label).transpose("image", "concept")
    check_classes(wanted)
    texts = _texts(source, "source")
    for concept, column in zip(wanted["concept"].values, wanted.values.T, strict=True):
        rows = np.flatnonzero(column != UNLABELLED)
        names, which, sizes = np.unique(texts[rows], return_inverse=True, return_counts=True)
        if (sizes == 1).sum() > 1:
            names, which = np.unique(np.where(sizes == 1, _ALONE, names)[which], return_inverse=True)
        counts = [np.bincount(which[column[rows] == value], minlength=len(names)) for value in (POSITIVE, NEGATIVE)]
        yield _Table(str(concept), rows, which, names.tolist(), np.stack(counts))


def _concepts(label: xr.DataArray) -> dict[str, xr.DataArray]:
    return {str(name): coord for name, coord in label.coords.items() if coord.dims == ("concept",)}


# association


def _cramers_v(table: _Table) -> float:
    return float("nan") if table.unknown else float(_v(table.counts))


def _v(counts: np.ndarray) -> np.ndarray:
    """Of (…, label, source)."""
    images = counts.sum((-2, -1), keepdims=True, dtype=np.float64)
    expected = counts.sum(-1, keepdims=True) * counts.sum(-2, keepdims=True) / images
    return np.asarray(np.sqrt(((counts - expected) ** 2 / expected).sum((-2, -1)) / images[..., 0, 0]))


def _v_by_chance(table: _Table) -> float:
    """95 % quantile of V with labels dealt out at random; the same whenever it is asked for."""
    sizes, positives = table.counts.sum(0), int(table.counts[0].sum())
    dealt = np.random.default_rng(0).multivariate_hypergeometric(sizes, positives, _SHUFFLES, method="marginals")
    return float(np.quantile(_v(np.stack([dealt, sizes - dealt], axis=1)), 0.95, method="higher"))


def source_association(label: xr.DataArray, source: xr.DataArray) -> xr.DataArray:
    """Cramér's V of label and source over each concept's images.

    ``V = sqrt(chi2 / (n min(rows - 1, columns - 1)))``, here ``sqrt(chi2 / n)`` since there are two labels; ``chi2`` is
    Pearson's, without Yates's correction, and V is not corrected for bias: with many sources of few images each it is
    above 0 by chance. 1: every source has one label only. 0: every source has the same share of positives, as has a
    single source (0/0 in the formula). NaN: no image has a source, or none shares it, so nothing is known.

    Parameters
    ----------
    label
        (image, concept) int8: 1 positive, 0 negative, -1 not in the set.
    source
        (image,) string, empty where unknown.

    Returns
    -------
    xarray.DataArray
        (concept,) float64.

    Raises
    ------
    DataError
        Other dims, another number of images, lazy values, or a concept without positives or without negatives.

    References
    ----------
    Cramér, Mathematical Methods of Statistics, 1946, section 21.9. Bergsma, Journal of the Korean Statistical Society
    42 (2013) 323-328, for the correction that is not made.

    Examples
    --------
    >>> import xarray as xr
    >>> label = xr.DataArray([[1], [1], [0], [0]], dims=("image", "concept"))
    >>> source_association(label, xr.DataArray(["web", "web", "web", "own"], dims="image")).values.round(4).tolist()
    [0.5774]
    """
    values = [_cramers_v(table) for table in _tables(label, source)]
    found = xr.DataArray(values, dims="concept", coords=_concepts(label), name="source_association")
    return found.assign_attrs(attrs("source_association"))


def _named(table: _Table, which: np.ndarray) -> str:
    """Sources in words, the first three of them."""
    names = [table.names[at] or "no known source" for at in np.flatnonzero(which)]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _separate(table: _Table) -> str:
    positive, negative = (_named(table, row > 0) for row in table.counts)
    look = f"'{positive} picture'" if positive in table.names and positive != _ALONE else "the look of those sources"
    return (
        f"all positives come from {positive} and all negatives from {negative}: label and source can't be told apart, "
        f"so a latent for {look} scores as well as one for {table.concept}"
    )


def _partial(table: _Table, value: float) -> str:
    positives, negatives = table.counts.sum(1)
    at = int(np.abs(table.counts[0] / positives - table.counts[1] / negatives).argmax())
    mixed = int(table.counts[:, (table.counts > 0).all(0)].sum())
    by_chance = _v_by_chance(table)
    how = "in part" if value > by_chance + 1e-9 else "no more than shuffled labels do"
    return (
        f"label and source go together {how} (Cramér's V {value:.2f}; up to {by_chance:.2f} in 95 % of shuffles): "
        f"{table.counts[0, at]} of {positives} positives and {table.counts[1, at]} of {negatives} negatives come from "
        f"{table.names[at] or 'no known source'}; {mixed} of {positives + negatives} images are in a source with both "
        "labels"
    )


def _sentence(table: _Table) -> str:
    value = _cramers_v(table)
    if table.unknown:
        lack = "has a source" if table.names == [""] else "shares its source with another"
        return (
            f"no image of {table.concept} {lack}, so whether label and source go together is unknown; a column "
            "source in a manifest says where pictures came from, such as web"
        )
    if len(table.names) == 1:
        return f"all images of {table.concept} come from one source, {table.names[0]}, so label can't go with source"
    if not (table.counts > 0).all(0).any():
        return _separate(table)
    if value < 1e-9:  # rounding of a share
        return f"every source of {table.concept} has the same share of positives, so label does not go with source"
    return _partial(table, value)


def words(label: xr.DataArray, source: xr.DataArray) -> xr.DataArray:
    """One plain sentence a concept on whether label and source go together.

    Parameters and errors as :func:`source_association`.

    Returns
    -------
    xarray.DataArray
        (concept,) object, strings without a full stop.

    Examples
    --------
    >>> import xarray as xr
    >>> label = xr.DataArray([[1], [0]], dims=("image", "concept"), coords={"concept": ["wheel"]})
    >>> print(words(label, xr.DataArray(["own", "own"], dims="image")).item())
    all images of wheel come from one source, own, so label can't go with source
    """
    found = np.array([_sentence(table) for table in _tables(label, source)], dtype=object)
    return xr.DataArray(found, dims="concept", coords=_concepts(label), name="source_words")


# strata


def strata(label: xr.DataArray, source: xr.DataArray) -> xr.Dataset:
    """Groups within which labels may be permuted, so that a permutation leaves label's tie to source as it is.

    The rule in words: every source is a stratum, and labels change places only inside one. Images of a source that has
    one label only therefore keep their labels; they still count in every F1. If no source of a concept has both labels,
    no label can move (``permutable`` is False): label and source can't be told apart, and a permutation across sources
    would test something else. Images without a source are one stratum; where no image has one, that is all of them, and
    the permutation is the ordinary one.

    Sources that have both labels, but few images, allow few distinct permutations: p can't be smaller than one over
    their number.

    Parameters
    ----------
    label
        (image, concept) int8: 1 positive, 0 negative, -1 not in the set.
    source
        (image,) string, empty where unknown.

    Returns
    -------
    xarray.Dataset
        ``stratum`` (image, concept) int32: number of the source among the concept's sources in order of their names,
        -1 for images that are not in its set. ``permutable`` (concept,) bool: whether some source has both labels.

    Raises
    ------
    DataError
        As :func:`source_association`.

    References
    ----------
    Good, Permutation, Parametric and Bootstrap Tests of Hypotheses, 2005 (permutation within blocks).

    Examples
    --------
    >>> import xarray as xr
    >>> label = xr.DataArray([[1], [0], [0], [-1]], dims=("image", "concept"))
    >>> found = strata(label, xr.DataArray(["web", "web", "own", "own"], dims="image"))
    >>> found["stratum"].values[:, 0].tolist(), found["permutable"].item()
    ([1, 1, 0, -1], True)
    """
    number = np.full((label.sizes["image"], label.sizes["concept"]), -1, np.int32)
    permutable = []
    for concept, table in enumerate(_tables(label, source)):
        number[table.rows, concept] = table.which
        permutable.append(bool((table.counts > 0).all(0).any()))
    coords = {n: c for n, c in label.coords.items() if c.dims in (("image",), ("concept",))}
    return xr.Dataset(
        {
            "stratum": (
                ("image", "concept"), number, {"description": "labels are permuted within it; -1 not in the set"}
            ),
            "permutable": ("concept", permutable, {"description": "whether some source has both labels"}),
        },
        coords=coords,
    )  # fmt: skip


# one picture on both sides


def _check_equal(keys: np.ndarray, label: xr.DataArray, what: str) -> None:
    """Refuse equal keys on both sides of a concept; empty ones are unknown."""
    wanted = as_label(label).transpose("image", "concept")
    images = wanted["image"].values
    for concept, column in zip(wanted["concept"].values, wanted.values.T, strict=True):
        positive = {keys[at]: at for at in np.flatnonzero(column == POSITIVE)[::-1] if keys[at]}
        pairs = [(positive[keys[at]], at) for at in np.flatnonzero(column == NEGATIVE) if keys[at] in positive]
        if pairs:
            more = f" (and {len(pairs) - 1} more such negatives)" if len(pairs) > 1 else ""
            raise DataError(
                f"{images[pairs[0][0]]} and {images[pairs[0][1]]} have equal {what}, but one is positive and the other "
                f"negative for concept {concept}{more}; no latent can be right on both. Correct a label or remove one"
            )


def check_duplicates(data: xr.Dataset) -> None:
    """Refuse files with equal bytes that are positive and negative of one concept.

    Equal images with the same label pass, though they count twice. Empty hashes are unknown and equal to nothing. A
    picture saved twice has other bytes; :func:`check_equal_pixels` may find it.

    Parameters
    ----------
    data
        With coords ``image``, ``concept``, ``label`` (image, concept) and ``sha256`` (image,).

    Raises
    ------
    DataError
        Names both images and the concept, or the coordinate that is not there.
    """
    missing = {"sha256", "label"} - set(map(str, data.variables))
    if missing:
        raise DataError(f"found no {' and no '.join(sorted(missing))}; expected label and the SHA-256 of the files")
    _check_equal(_texts(data["sha256"], "sha256"), data["label"], "bytes")


def _pixels(path: str) -> str:
    image = read_image(path)
    return f"{image.size} {hashlib.sha256(image.tobytes()).hexdigest()}"


def _both_sides(sizes: np.ndarray, label: xr.DataArray) -> np.ndarray:
    """(image,) bool: labelled, and some image on the concept's other side is as large."""
    found = np.zeros(len(sizes), bool)
    for column in as_label(label).transpose("concept", "image").values:
        sides = [set(sizes[column == value].tolist()) for value in (POSITIVE, NEGATIVE)]
        shared = np.array([size in sides[0] & sides[1] for size in sizes.tolist()], bool)
        found |= shared & (column != UNLABELLED)
    return found


def check_equal_pixels(data: xr.Dataset, *, workers: int = 1) -> None:
    """Refuse files with equal pixels (upright 8-bit RGB) that are positive and negative of one concept.

    Reads files whose width and height occur on both sides of a concept. It finds the same picture in two lossless
    files, or with other metadata; not one that was resized or compressed again.

    Parameters
    ----------
    data
        With coords ``image``, ``concept``, ``label`` (image, concept), ``width``, ``height`` and ``file`` (image,), the
        path of each file; empty where unknown.
    workers
        Files read at once.

    Raises
    ------
    DataError
        Names both images and the concept.
    UnreadableImage
        A file can't be read.
    """
    paths = _texts(data["file"], "file")
    sizes = data["width"].values.astype(np.int64) << 32 | data["height"].values
    rows = np.flatnonzero(_both_sides(sizes, data["label"]) & (paths != ""))
    keys = np.full(len(paths), "", dtype=object)
    with ThreadPoolExecutor(workers) as pool:
        keys[rows] = list(pool.map(_pixels, paths[rows]))
    _check_equal(keys, data["label"], "pixels")
