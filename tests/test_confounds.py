"""Label against source, strata, and one picture on both sides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats.contingency import association, crosstab

import semprobe
from semprobe.confounds import check_duplicates, check_equal_pixels, source_association, strata, words
from semprobe.errors import DataError, UnreadableImage
from semprobe.extraction import inspect_images
from tests.conftest import draw


def study(rows: str, concept: str = "wheel") -> tuple[xr.DataArray, xr.DataArray]:
    """Labels and sources of "+web -own .web", a word an image: positive, negative, not in the set."""
    parts = rows.split()
    label = np.array([{"+": 1, "-": 0, ".": -1}[part[0]] for part in parts], np.int8)[:, None]
    names = np.array([f"{at}.png" for at in range(len(parts))], dtype=object)
    source = np.array([part[1:] for part in parts], dtype=object)
    return (
        xr.DataArray(label, dims=("image", "concept"), coords={"image": names, "concept": [concept]}),
        xr.DataArray(source, dims="image", coords={"image": names}),
    )


NAN = float("nan")

# images: Cramér's V, strata, whether any label can move, the sentence
BY_HAND: list[tuple[str, float, list[int], bool, str]] = [
    (
        "+web +web -own -own .own",
        1, [1, 1, 0, 0, -1], False,
        "all positives come from web and all negatives from own: label and source can't be told apart, so a latent for "
        "'web picture' scores as well as one for wheel",
    ),
    (
        "+web +web +web -web -own -own",
        np.sqrt(6 * (3 * 2) ** 2 / (3 * 3 * 4 * 2) / 6), [1, 1, 1, 1, 0, 0], True,
        "label and source go together no more than shuffled labels do (Cramér's V 0.71; up to 0.71 in 95 % of "
        "shuffles): 3 of 3 positives and 1 of 3 negatives come from web; "
        "4 of 6 images are in a source with both labels",
    ),
    (
        "+web " * 8 + "-web -web +own +own " + "-own " * 8,
        0.6, [1] * 10 + [0] * 10, True,
        "label and source go together in part (Cramér's V 0.60; up to 0.40 in 95 % of shuffles): 2 of 10 positives "
        "and 8 of 10 negatives come from own; 20 of 20 images are in a source with both labels",
    ),
    (
        "+web -web +own -own +own -own",
        0, [1, 1, 0, 0, 0, 0], True,
        "every source of wheel has the same share of positives, so label does not go with source",
    ),
    (
        "+web -web .own",
        0, [0, 0, -1], True,
        "all images of wheel come from one source, web, so label can't go with source",
    ),
    (
        "+ - .web",
        NAN, [0, 0, -1], True,
        "no image of wheel has a source, so whether label and source go together is unknown; a column source in a "
        "manifest says where pictures came from, such as web",
    ),
    (
        "+a +b -c -d",
        NAN, [0, 0, 0, 0], True,
        "no image of wheel shares its source with another, so whether label and source go together is unknown; a "
        "column source in a manifest says where pictures came from, such as web",
    ),
    (
        "+a +b -own -own",
        1, [1, 1, 0, 0], False,
        "all positives come from sources of one image each and all negatives from own: label and source can't be told "
        "apart, so a latent for the look of those sources scores as well as one for wheel",
    ),
    (
        "+a +a +b +b +c +c +d +d +e +e - -",
        1, [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 0, 0], False,
        "all positives come from a, b, c and 2 more and all negatives from no known source: label and source can't be "
        "told apart, so a latent for the look of those sources scores as well as one for wheel",
    ),
    (
        "+ + -web -web",
        1, [0, 0, 1, 1], False,
        "all positives come from no known source and all negatives from web: label and source can't be told apart, so "
        "a latent for the look of those sources scores as well as one for wheel",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "value", "groups", "moves", "sentence"), BY_HAND, ids=[row[0] for row in BY_HAND])
def test_by_hand(rows: str, value: float, groups: list[int], moves: bool, sentence: str) -> None:
    label, source = study(rows)
    found = source_association(label, source)
    np.testing.assert_allclose(found.item(), value, rtol=1e-12, atol=1e-12)
    assert (found.dims, found.dtype, found.name) == (("concept",), np.float64, "source_association")
    assert words(label, source).values.tolist() == [sentence]
    groupings = strata(label, source)
    assert groupings["stratum"].values[:, 0].tolist() == groups
    assert groupings["stratum"].dtype == np.int32
    assert groupings["permutable"].values.tolist() == [moves]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([-1, 0, 1]), st.sampled_from("abcd")), min_size=2, max_size=40))
def test_association_equals_scipy(images: list[tuple[int, str]]) -> None:
    images = [(1, "a"), (0, "b"), *images]
    label, source = study(" ".join(".-+"[value + 1] + name for value, name in images))
    kept = label.values[:, 0] >= 0
    names = source.values[kept].astype(str)
    alone = {name for name in names if (names == name).sum() == 1}
    pooled = np.array(["alone" if name in alone else name for name in names])
    if set(pooled) == {"alone"}:
        assert np.isnan(source_association(label, source)).all()
        return
    table = crosstab(label.values[kept, 0], pooled).count
    expected = association(table, method="cramer", correction=False)
    np.testing.assert_allclose(source_association(label, source).item(), expected, rtol=1e-12, atol=1e-12)
    perfect = bool((np.minimum(*table) == 0).all())
    assert (abs(expected - 1) < 1e-12) == perfect == (not strata(label, source)["permutable"].item())


def test_random_labels_do_not_go_with_sources() -> None:
    """Sixteen meaningless sources of 40 images: V is 0.6 on average, and is not called an association."""
    rng, said, values = np.random.default_rng(0), 0, []
    for _ in range(100):
        signs = rng.permutation(["+"] * 20 + ["-"] * 20)
        label, source = study(" ".join(f"{sign}s{at % 16}" for at, sign in enumerate(signs)))
        values.append(source_association(label, source).item())
        sentence = words(label, source).item()
        assert sentence == words(label, source).item()
        said += "go together in part" in sentence
    assert np.mean(values) > 0.5
    assert said <= 12, "99 % of a binomial of 100 and 0.05 is at most 11"


def test_concepts_do_not_see_each_other() -> None:
    label, source = study("+web +web -own -own .web .own .web .own")
    other, _ = study(".web .web .own .own +web +own -web -own", "fur")
    both = xr.concat([label, other], "concept")
    assert source_association(both, source).to_series().to_dict() == {"wheel": 1.0, "fur": 0.0}
    assert [text.split()[0] for text in words(both, source).values] == ["all", "every"]
    found = strata(both.T, source)
    assert found["stratum"].sel(concept="fur").values.tolist() == [-1] * 4 + [1, 0, 1, 0]
    assert found["permutable"].values.tolist() == [False, True]
    assert found["stratum"].dims == ("image", "concept")


def test_missing_sources_are_empty() -> None:
    label, source = study("+ - + -")
    for nothing in (None, NAN):
        lost = source.copy(data=np.array([nothing] * 4, dtype=object))
        assert np.isnan(source_association(label, lost)).all()
        xr.testing.assert_identical(strata(label, lost), strata(label, source))


def test_permuting_within_strata_keeps_the_table() -> None:
    """What the strata are for: a latent for the source keeps its F1 under every permutation."""
    label, source = study("+web +web +web -web -web +own -own -own -own +only")
    stratum, column = strata(label, source)["stratum"].values[:, 0], label.values[:, 0]
    rng, seen = np.random.default_rng(0), set()
    fires = xr.DataArray((source.values == "web")[:, None], dims=("image", "latent"))
    for _ in range(50):
        moved = column.copy()
        for group in np.unique(stratum[stratum >= 0]):
            rows = np.flatnonzero(stratum == group)
            moved[rows] = column[rng.permutation(rows)]
        counts = semprobe.confusion(fires, label.copy(data=moved[:, None]).drop_vars("image"))
        seen.add((counts["tp"].item(), counts["fp"].item()))
        assert moved[-1] == 1
    assert seen == {(3, 2)}


@pytest.mark.parametrize("of", [source_association, words, strata])
def test_what_cannot_be_compared(of: Callable[..., Any]) -> None:
    label, source = study("+web -own +web")
    with pytest.raises(DataError, match="of the same images"):
        of(label, source[:2])
    with pytest.raises(DataError, match="same order"):
        of(label, source[::-1])
    with pytest.raises(DataError, match="source is lazy"):
        of(label, source.astype(str).chunk())
    with pytest.raises(DataError, match="label is lazy"):
        of(label.chunk(), source)
    with pytest.raises(DataError, match="no negative images"):
        of(label[[0, 2]], source[[0, 2]])


# one picture on both sides


def _hashed(rows: str, *hashes: str | None) -> xr.Dataset:
    label, _ = study(rows)
    return xr.Dataset(coords={"label": label, "sha256": ("image", np.array(hashes, dtype=object))})


def test_equal_bytes_with_both_labels() -> None:
    check_duplicates(_hashed("+ + - - .", "aa", "aa", "bb", "bb", "aa"))  # twice on one side, and once outside
    check_duplicates(_hashed("+ - + -", "", "", None, None))  # unknown
    with pytest.raises(DataError, match=r"1\.png and 3\.png have equal bytes.*for concept wheel;"):
        check_duplicates(_hashed("+ + - -", "aa", "bb", "cc", "bb"))
    with pytest.raises(DataError, match=r"0\.png and 2\.png .* \(and 1 more such negatives\)"):
        check_duplicates(_hashed("+ + - -", "aa", "aa", "aa", "aa"))
    with pytest.raises(DataError, match="found no sha256"):
        check_duplicates(_hashed("+ -", "aa", "bb").drop_vars("sha256"))


def test_equal_bytes_of_another_concept_pass() -> None:
    one, _ = study("+ . .")
    other, _ = study(". - +", "fur")
    label = xr.concat([one, other], "concept")
    check_duplicates(xr.Dataset(coords={"label": label, "sha256": ("image", np.array(["aa", "aa", "bb"]))}))
    with pytest.raises(DataError, match="for concept fur"):
        check_duplicates(xr.Dataset(coords={"label": label, "sha256": ("image", np.array(["bb", "aa", "aa"]))}))


def test_stores_and_folders_can_be_checked(acts: Path) -> None:
    check_duplicates(semprobe.open_store(acts))


def test_equal_pixels_with_both_labels(tmp_path: Path) -> None:
    draw(tmp_path / "wheel-positive" / "a.png", (9, 90, 200))
    draw(tmp_path / "wheel-negative" / "b.png", (200, 90, 9))
    check_equal_pixels(_found(tmp_path))
    draw(tmp_path / "wheel-negative" / "c.bmp", (9, 90, 200))
    found = _found(tmp_path)
    with pytest.raises(DataError, match=r"wheel-positive/a\.png and wheel-negative/c\.bmp have equal pixels"):
        check_equal_pixels(found, workers=2)
    known = np.where(found["label"].values[:, 0] == 1, found["file"].values, "")
    check_equal_pixels(found.assign_coords(file=("image", known)))
    (tmp_path / "wheel-negative" / "c.bmp").write_bytes(b"no picture")
    with pytest.raises(UnreadableImage, match=r"c\.bmp"):
        check_equal_pixels(found)


def _found(path: Path) -> xr.Dataset:
    return inspect_images(semprobe.find_images(path))


def test_pictures_of_another_size_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for side, size in (("positive", (4, 6)), ("negative", (6, 4))):
        (tmp_path / f"wheel-{side}").mkdir()
        Image.new("RGB", size, "red").save(tmp_path / f"wheel-{side}" / "a.png")
    found = _found(tmp_path)
    monkeypatch.setattr("semprobe.confounds.read_image", None)
    check_equal_pixels(found)
    with pytest.raises(TypeError):
        check_equal_pixels(found.assign_coords(width=0 * found["width"], height=0 * found["height"]))
