"""Exact p, false discovery rate and the family-wise test, against outsiders and against brute force."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, fisher_exact

from semprobe import significance
from semprobe.errors import DataError
from semprobe.power import critical_f1
from semprobe.predictions import pack, unpack, words
from semprobe.scoring import confusion, f1


def make_scores(images: int = 12, latents: int = 30, seed: int = 0, concepts: int = 2) -> xr.Dataset:
    """Counts with ties, a dead, an always-on and two equal latents."""
    rng = np.random.default_rng(seed)
    found = rng.random((images, latents)) < rng.random(latents)
    found[:, 0], found[:, 1], found[:, 3] = False, True, found[:, 2]
    label = rng.permuted(np.resize([1, 0, -1], (images, concepts)), axis=0).astype(np.int8)
    names = np.array([f"c{at}" for at in range(concepts)], dtype=object)
    coords = {"concept": names, "label": (("image", "concept"), label)}
    predictions = xr.DataArray(found, dims=("image", "latent"))
    counts = confusion(predictions, xr.DataArray(label, dims=("image", "concept"), coords={"concept": names}))
    bits = ("image", "byte"), pack(found)
    return counts.assign(f1=f1(counts), prediction_bits=bits).assign_coords(coords)


def images_of(dealt: np.ndarray, images: int) -> np.ndarray:
    """(image, permutation) bool of words."""
    eights = dealt[..., None].view(np.uint8).transpose(0, 2, 1).reshape(-1, dealt.shape[1])
    return np.unpackbits(eights, axis=0, count=images).astype(bool)


def test_bits_keep_predictions() -> None:
    found = np.random.default_rng(0).random((5, 13)) < 0.5
    assert pack(found).shape == (5, 2)
    assert (unpack(pack(found), 13) == found).all()
    wide = np.random.default_rng(0).random((3, 2500)) < 0.5
    assert (unpack(pack(wide), 2500).compute() == wide).all(), "in several blocks"


def test_exact_p_is_fishers() -> None:
    scores = make_scores()
    p = significance.exact_p(scores)
    for concept, latent in itertools.product(range(2), range(30)):
        tp, fp, fn, tn = (int(scores[name][concept, latent]) for name in ("tp", "fp", "fn", "tn"))
        assert p[concept, latent] == pytest.approx(fisher_exact([[tp, fp], [fn, tn]], alternative="greater")[1])
    assert (p[:, :2] == 1).all()


STRATA = [0, 0, 0, 1, 1, 1, 1, 0, 2, 2, 3, 3, 1, 0]  # of 2 all are positive, of 3 none


def test_exact_p_within_strata_is_that_of_all_labelings_counted() -> None:
    rng = np.random.default_rng(4)
    strata, label = np.array(STRATA), np.array([1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0, 0, 0, 0], np.int8)
    fires = rng.random((14, 40)) < rng.random(40)
    fires[:, 0], fires[:, 1], fires[:, 2], fires[:, 3] = False, True, strata == 0, label == 1
    groups = [np.flatnonzero(strata == one) for one in range(4)]
    ways = itertools.product(*(itertools.combinations(rows, int(label[rows].sum())) for rows in groups))
    every = np.array([fires[[at for part in way for at in part]].sum(0) for way in ways])
    named = xr.DataArray(label[:, None], dims=("image", "concept"), coords={"concept": ["wheel"]})
    counts = confusion(xr.DataArray(fires, dims=("image", "latent")), named)
    bits = ("image", "byte"), pack(fires)
    scores = counts.assign(f1=f1(counts), prediction_bits=bits).assign_coords(label=named)
    within = scores.assign(stratum=named.copy(data=strata[:, None]))
    p = significance.exact_p(within)
    np.testing.assert_allclose(p.values[0], (every >= fires[label == 1].sum(0)).mean(0), rtol=1e-12)
    assert (p.values[0, :3] == 1).all(), "no shuffle gives fewer"
    assert p[0, 3] == pytest.approx(1 / len(every))
    for other, values in (("one stratum", 0 * strata), ("each its own", np.arange(14))):
        found = significance.exact_p(scores.assign(stratum=named.copy(data=values[:, None])))
        plain = significance.exact_p(scores)
        assert (found == (plain if other == "one stratum" else 1)).all(), other
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(significance, "_ROWS", 3)
        assert (significance.exact_p(within) == p).all()
    xr.testing.assert_identical(significance.significance(within, permutations=9)["p_value"], p)


def test_q_is_scipys_within_the_family() -> None:
    scores = make_scores()
    p, inside = significance.exact_p(scores), significance.in_family(scores)
    p = p.copy(data=p * np.random.default_rng(0).random(p.shape) ** 4)  # some small
    q = significance.q_values(p, inside)
    for row, values, kept in zip(q.values, p.values, inside.transpose("concept", "latent").values, strict=True):
        np.testing.assert_allclose(row[kept], false_discovery_control(values[kept]))
        assert (row[~kept] == 1).all()
    assert not inside[:, :2].any()


@pytest.mark.parametrize("seed", range(4))
def test_the_null_is_that_of_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = rng.random((9, 40)) < rng.random(40)
    label = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0])
    dealt = significance.permuted_labels(label, np.zeros(9, int), 300, [seed])
    expected = []
    for column in images_of(dealt, 9).T:
        best = 0.0
        for latent in found.T:
            tp, fp, fn = (latent & column).sum(), (latent & ~column).sum(), (~latent & column).sum()
            best = max(best, 2 * tp / (2 * tp + fp + fn))
        expected.append(best)
    np.testing.assert_array_equal(significance.null_max_f1(found, dealt), expected)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 50), at_once=st.integers(1, 40))
def test_the_null_does_not_depend_on_how_it_is_cut(rows: int, at_once: int) -> None:
    found = np.random.default_rng(1).random((14, 60)) < 0.4
    dealt = significance.permuted_labels(np.arange(14) % 2, np.zeros(14, int), 64, [0])
    whole = significance.null_max_f1(found, dealt)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(significance, "_ROWS", rows)
        patch.setattr(significance, "_AT_ONCE", at_once)
        assert (significance.null_max_f1(found, dealt) == whole).all()


def test_the_null_is_counted_by_one_thread() -> None:
    """Threads wait for each other, and for whoever else has a core."""
    found = np.random.default_rng(0).random((200, 4000)) < 0.4
    dealt = significance.permuted_labels(np.arange(200) % 2, np.zeros(200, int), 2000, [0])
    all_threads, mine = time.process_time(), time.thread_time()
    significance.null_max_f1(found, dealt)
    mine = time.thread_time() - mine
    assert time.process_time() - all_threads < 1.2 * mine + 0.02


def test_the_test_needs_no_torch() -> None:
    code = (
        "import sys; from tests.test_significance import make_scores; import semprobe.assessment;"
        "from semprobe.significance import significance; significance(make_scores()); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("images", [63, 64, 65, 255, 256, 300])
def test_numbers_of_images_around_the_size_of_a_word_and_a_byte(images: int) -> None:
    rng = np.random.default_rng(images)
    found = rng.random((images, 20)) < rng.random(20)
    found[:, 0], found[:-1, 1], found[-1, 1] = np.arange(images) % 2 == 0, True, False
    dealt = significance.permuted_labels(np.arange(images) < images - 2, np.zeros(images, int), 30, [0])
    tp = found.T.astype(int) @ images_of(dealt, images)
    expected = (2 * tp / (found.sum(0)[:, None] + images - 2)).max(0)
    np.testing.assert_array_equal(significance.null_max_f1(found, dealt), expected)


@settings(max_examples=20, deadline=None)
@given(cells=st.integers(1, 500))
def test_labels_dealt_do_not_depend_on_how_they_are_cut(cells: int) -> None:
    label, strata = np.arange(23) % 3 == 0, np.arange(23) % 2
    whole = np.zeros((23, 40), bool)
    for one, rng in enumerate(np.random.default_rng([1, 2]).spawn(2)):  # as all at once
        here = np.flatnonzero(strata == one)
        order = rng.random((40, len(here))).argsort(1)[:, : label[here].sum()]
        whole[here[order].T, np.arange(40)] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(significance, "_CELLS", cells)
        assert (images_of(significance.permuted_labels(label, strata, 40, [1, 2]), 23) == whole).all()


def test_labels_are_dealt_in_little_memory() -> None:
    """Of 1,000 images and 4,000 permutations: half a MB of labels, and not 64 MB of numbers beside them."""
    label, strata = np.arange(1000) % 2, np.zeros(1000, int)
    tracemalloc.start()
    try:
        significance.permuted_labels(label, strata, 4000, [0])
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


def test_labels_change_places_within_strata_only() -> None:
    label, strata = np.array([1, 1, 0, 0, 1, 0, 0]), np.array([0, 0, 0, 0, 1, 1, 1])
    dealt = images_of(significance.permuted_labels(label, strata, 500, [3]), 7)
    assert (dealt[:4].sum(0) == 2).all()
    assert (dealt[4:].sum(0) == 1).all()
    np.testing.assert_allclose(dealt.mean(1), [0.5] * 4 + [1 / 3] * 3, atol=0.07)
    assert (dealt == images_of(significance.permuted_labels(label, strata, 500, [3]), 7)).all()


def test_p_max_counts_ties_and_itself() -> None:
    null = np.array([0.5, 0.8, 0.8, 0.9])
    assert significance.p_max(np.array([0.95, 0.9, 0.8, 0.1]), null).tolist() == [1 / 5, 2 / 5, 4 / 5, 1.0]
    assert significance.p_max(np.array([0.95, 0.9, 0.8]), null, concepts=2).tolist() == [2 / 5, 4 / 5, 1.0]


def test_a_small_concept_does_not_decide_for_the_others() -> None:
    """3 + 4 images, where chance reaches 1, beside 20 + 20 with a latent that is all but perfect."""
    found = np.random.default_rng(0).random((47, 200)) < 0.5
    label = np.full((47, 2), -1, np.int8)
    label[:40, 0], label[40:, 1] = np.repeat([1, 0], 20), [1, 1, 1, 0, 0, 0, 0]
    found[:40, 9] = label[:40, 0] == 1
    found[0, 9] = False
    named = xr.DataArray(label, dims=("image", "concept"), coords={"concept": ["wheel", "few"]})
    counts = confusion(xr.DataArray(found, dims=("image", "latent")), named)
    bits = ("image", "byte"), pack(found)
    scores = counts.assign(f1=f1(counts), prediction_bits=bits).assign_coords(label=named)
    study, alone = (significance.significance(scores, permutations=999, family=one) for one in ("study", "concept"))
    assert (study["null_max_f1"].sel(concept="few") == 1).mean() > 0.5
    assert float(study["p_max"].sel(concept="wheel")[9]) == 2 / 1000
    assert study["significant"].sel(concept="wheel").values.nonzero()[0].tolist() == [9]
    np.testing.assert_array_equal(study["p_max"], np.minimum(1, 2 * alone["p_max"]))


def test_the_page_on_statistics_by_hand() -> None:
    """The worked example: all 20 ways to deal out the labels, and as many shuffles as say it roughly."""
    fires = [{0, 1, 2, 3}, {0, 1}, {0, 2, 3, 5}]
    found = np.array([[image in one for one in fires] for image in range(6)])
    label = np.array([1, 1, 1, 0, 0, 0], np.int8)
    named = xr.DataArray(label[:, None], dims=("image", "concept"), coords={"concept": ["wheel"]})
    counts = confusion(xr.DataArray(found, dims=("image", "latent")), named)
    bits = ("image", "byte"), pack(found)
    scores = counts.assign(f1=f1(counts), prediction_bits=bits).assign_coords(label=named)
    assert scores["f1"].values[0].tolist() == [6 / 7, 4 / 5, 4 / 7]
    tested = significance.significance(scores, permutations=20_000)
    np.testing.assert_allclose(tested["p_value"][0], [4 / 20, 4 / 20, 16 / 20])
    np.testing.assert_allclose(tested["q_value"][0], [0.3, 0.3, 0.8])
    every = np.zeros((6, 20), bool)
    for at, chosen in enumerate(itertools.combinations(range(6), 3)):
        every[list(chosen), at] = True
    null = significance.null_max_f1(found, words(every))
    assert [int((null >= one).sum()) for one in scores["f1"].values[0]] == [7, 9, 19]
    np.testing.assert_allclose(tested["p_max"][0], [7 / 20, 9 / 20, 19 / 20], atol=0.015)


def test_a_rare_but_precise_latent_as_the_page_has_it() -> None:
    """14 of 20 positives and no negative: q tells it, p_max does not."""
    one = {name: (("concept", "latent"), [[value]]) for name, value in (("tp", 14), ("fp", 0), ("fn", 6), ("tn", 20))}
    p = significance.exact_p(xr.Dataset(one, coords={"concept": ["wheel"]})).item()
    assert p == pytest.approx(1.67e-6, rel=1e-2)
    assert 24_576 * p == pytest.approx(0.04, abs=0.005)
    assert 28 / 34 < critical_f1(20, 20, 24_576) == pytest.approx(0.842, abs=1e-3)


def test_all_of_it() -> None:
    scores = make_scores(60, 50)
    found = significance.significance(scores, permutations=200)
    assert found["null_max_f1"].shape == (2, 200)
    assert (found["p_max"][:, :2] == 1).all()
    assert (found["significant"] == (found["p_max"] <= 0.05)).all()
    alone = significance.significance(scores.sel(concept=["c1"]), permutations=200)
    assert (alone["p_max"].values[0] == found["p_max"].values[1]).all(), "a concept does not depend on those beside it"
    study = significance.significance(scores, permutations=200, family="study")
    assert (study["p_max"] >= found["p_max"]).all()
    for wrong in ({"permutations": 0}, {"alpha": 1.0}, {"family": "all"}):
        with pytest.raises(DataError, match="out of range"):
            significance.significance(scores, **wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no prediction_bits"):
        significance.significance(scores.drop_vars("prediction_bits"))


def test_studies_without_a_concept_find_one_in_alpha() -> None:
    """The share of null studies with any significant latent is inside the 99 % binomial interval around alpha."""
    rng = np.random.default_rng(0)
    hits, studies, alpha = 0, 120, 0.1
    label = np.repeat([1, 0], 10)
    for study in range(studies):
        common = rng.random((20, 1)) < 0.5
        found = np.where(
            rng.random(150) < 0.5, common ^ (rng.random((20, 150)) < 0.2), rng.random((20, 150)) < rng.random(150)
        )
        inside = (found.any(0)) & (~found.all(0))
        null = significance.null_max_f1(
            found[:, inside], significance.permuted_labels(label, np.zeros(20, int), 199, [study])
        )
        tp = found[label == 1].sum(0)
        best = (2 * tp / (found.sum(0) + 10))[inside].max()
        hits += bool(significance.p_max(np.array([best]), null)[0] <= alpha)
    assert hits <= 22, "99 % of a binomial of 120 and 0.1 is at most 21"
    assert hits >= 2


def test_a_planted_latent_is_found() -> None:
    rng = np.random.default_rng(5)
    label = np.repeat([1, 0], 20).astype(np.int8)
    found = rng.random((40, 500)) < 0.5
    found[:, 77] = label == 1
    predictions = xr.DataArray(found, dims=("image", "latent"))
    named = xr.DataArray(label[:, None], dims=("image", "concept"), coords={"concept": ["wheel"]})
    counts = confusion(predictions, named)
    bits = ("image", "byte"), pack(found)
    scores = counts.assign(f1=f1(counts), prediction_bits=bits, label=named)
    tested = significance.significance(scores.set_coords("label"), permutations=999)
    assert tested["significant"].values[0].nonzero()[0].tolist() == [77]
    assert float(tested["p_max"][0, 77]) == 1 / 1000
