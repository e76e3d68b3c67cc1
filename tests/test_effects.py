"""Sizes of effects: against scikit-learn, by hand, by laws, and against loops written independently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, mannwhitneyu
from sklearn.metrics import average_precision_score, roc_auc_score

import semprobe
from semprobe.effects import (
    _choices,
    _split,
    auroc,
    average_precision,
    held_out_f1,
)
from semprobe.errors import DataError
from semprobe.intervals import f1_interval, f1_interval_of_counts

INF = float("inf")
FREE = {"auroc": auroc, "average_precision": average_precision}

# patch sums of 2 positives, then of 2 negatives: AUROC, average precision, and why
BY_HAND: list[tuple[tuple[float, float, float, float], float, float, str]] = [
    ((3, 2, 1, 0), 1, 1, "perfect"),
    ((0, 1, 2, 3), 0, (1 / 3 + 2 / 4) / 2, "exactly wrong"),
    ((0, 0, 0, 0), 0.5, 0.5, "dead: all equal, the share of positives"),
    ((7, 7, 7, 7), 0.5, 0.5, "always on and always alike"),
    ((3, 1, 1, 0), 3.5 / 4, (1 / 1 + 2 / 3) / 2, "a positive equal to a negative counts one half"),
    ((2, 2, 2, 0), 3 / 4, 2 / 3, "three equal: one threshold"),
    ((5, 0, 0, 0), 3 / 4, (1 / 1 + 2 / 4) / 2, "fires once, and rightly"),
    ((0.0, 1, -0.0, -1), 3.5 / 4, (1 / 1 + 2 / 3) / 2, "0 and -0 are equal"),
    ((INF, 0, 1, -INF), 3 / 4, (1 / 1 + 2 / 3) / 2, "infinite sums have ranks"),
]


def labels(column: Any, *more: Any, names: tuple[str, ...] = ("wheel", "fur", "web")) -> xr.DataArray:
    columns = np.array([column, *more], np.int8).T
    return xr.DataArray(columns, dims=("image", "concept"), coords={"concept": list(names[: columns.shape[1]])})


def values(rows: Any, name: str | None = None) -> xr.DataArray:
    return xr.DataArray(np.asarray(rows), dims=("image", "latent"), name=name)


def study(images: int = 30, latents: int = 12, concepts: int = 2, seed: int = 0) -> tuple[xr.DataArray, xr.DataArray]:
    """Patch sums with ties, a dead latent, one always on, and labels with images of no set."""
    rng = np.random.default_rng(seed)
    sums = rng.integers(-2, 4, (images, latents)).clip(0).astype(np.float32) / 4
    sums[:, 0], sums[:, -1] = 0, 1
    label = rng.integers(-1, 2, (images, concepts)).astype(np.int8)
    label[:4] = [[1], [1], [0], [0]]
    coords = {"image": [f"{at:03}.png" for at in range(images)]}
    return values(sums).assign_coords(coords), labels(*label.T).assign_coords(coords)


# without a threshold


@pytest.mark.parametrize(("sums", "area", "mean", "why"), BY_HAND, ids=[row[-1] for row in BY_HAND])
def test_threshold_free_by_hand(sums: tuple[float, ...], area: float, mean: float, why: str) -> None:
    found = [of(values(np.array(sums)[:, None]), labels([1, 1, 0, 0])) for of in FREE.values()]
    np.testing.assert_allclose([one.item() for one in found], [area, mean], rtol=1e-15, err_msg=why)
    assert all(one.dims == ("concept", "latent") and one.dtype == np.float64 for one in found)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(4, 60), st.sampled_from([np.float16, np.float32, np.float64]))
def test_threshold_free_equals_scikit_learn(seed: int, images: int, dtype: type) -> None:
    sums, label = study(images, seed=seed)
    for name, theirs in (("auroc", roc_auc_score), ("average_precision", average_precision_score)):
        found = FREE[name](sums.astype(dtype), label)
        for concept, column in enumerate(label.values.T):
            kept = column >= 0
            expected = [theirs(column[kept], one[kept]) for one in sums.values.T.astype(dtype)]
            np.testing.assert_allclose(found.values[concept], expected, rtol=1e-12, atol=1e-15)


def test_auroc_is_mann_and_whitneys_u() -> None:
    sums, label = study(50, concepts=1)
    column = label.values[:, 0]
    u = mannwhitneyu(sums.values[column == 1], sums.values[column == 0]).statistic
    np.testing.assert_array_equal(auroc(sums, label)[0], u / ((column == 1).sum() * (column == 0).sum()))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.integers(1, 30), st.integers(1, 12), st.sampled_from(sorted(FREE)))
def test_threshold_free_for_every_chunking(seed: int, image: int, latent: int, name: str) -> None:
    sums, label = study(seed=seed)
    expected = FREE[name](sums, label)
    xr.testing.assert_identical(FREE[name](sums.chunk(image=image, latent=latent), label).compute(), expected)
    xr.testing.assert_identical(FREE[name](sums.T, label.T), expected)
    alone = FREE[name](sums[:, latent - 1 : latent], label)
    xr.testing.assert_identical(alone, expected[:, latent - 1 : latent])


def test_blocks_of_latents_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    sums, label = study(latents=40)
    expected = [of(sums, label) for of in FREE.values()]
    monkeypatch.setattr("semprobe.effects._CELLS", 100)
    monkeypatch.setattr("semprobe.effects._BYTES", 1000)
    for of, one in zip(FREE.values(), expected, strict=True):
        xr.testing.assert_identical(of(sums, label), one)
        lazy = of(sums.chunk(image=7), label)
        assert max(lazy.chunks[1]) < 40
        xr.testing.assert_identical(lazy.compute(), one)


def test_what_is_kept_beside_the_numbers() -> None:
    sums, label = study()
    named = sums.assign_coords(latent=np.arange(12) + 100)
    for name, of in FREE.items():
        found = of(named, label.assign_coords(note=("concept", ["a", "b"])))
        assert found.name == name
        assert found.attrs["description"]
        assert found["latent"].values.tolist() == list(range(100, 112))
        assert found["concept"].values.tolist() == ["wheel", "fur"]
        assert set(found.coords) == {"latent", "concept", "note"}


def test_nan_is_an_error_only_in_the_set() -> None:
    sums, label = study()
    label[5], label[6] = -1, 1
    outside = sums.where(sums["image"] != "005.png")
    inside = sums.where((sums["image"] != "006.png") | (sums["latent"] != 3))
    for of in FREE.values():
        xr.testing.assert_identical(of(outside, label), of(sums, label))
        with pytest.raises(DataError, match=r"image 006\.png is NaN"):
            of(inside, label)
        with pytest.raises(DataError, match=r"image 006\.png is NaN"):
            of(inside.chunk(latent=2), label).compute()


Effect = Callable[[xr.DataArray, xr.DataArray], Any]
EFFECTS: list[Effect] = [auroc, average_precision, held_out_f1, f1_interval]


@pytest.mark.parametrize("effect", EFFECTS)
def test_nothing_computes(never_computes: None, effect: Effect) -> None:
    sums, label = study()
    found = effect((sums > 0).chunk(image=7, latent=5), label)
    ones = found.values() if isinstance(found, xr.Dataset) else [found]
    assert all(one.chunks is not None for one in ones)


@pytest.mark.parametrize("effect", EFFECTS)
def test_what_has_no_effect_to_measure(effect: Effect) -> None:
    sums, label = study()
    fired = sums > 0
    with pytest.raises(DataError, match="concept wheel has no negative images"):
        effect(fired, label.where(label != 0, 1))
    with pytest.raises(DataError, match="same order"):
        effect(fired, label[::-1])
    with pytest.raises(DataError, match="30 images have predictions and 5 are labelled"):
        effect(fired, label[:5])
    with pytest.raises(DataError, match=r"expected \(image, latent\)"):
        effect(fired.rename(latent="feature"), label)
    with pytest.raises(DataError, match="label is lazy"):
        effect(fired, label.chunk(image=4))


def test_errors_name_what_was_given() -> None:
    sums, label = study()
    with pytest.raises(DataError, match="30 images have patch sums"):
        auroc(sums.rename("patch_sum"), label[:5])


# chosen on one half, reported on the other


def test_held_out_by_hand() -> None:
    """Two latents on 2 + 2 images: halves hold one positive and one negative each."""
    label = labels([1, 1, 0, 0])
    perfect = held_out_f1(values([[1, 1], [1, 1], [1, 0], [1, 0]]).astype(bool), label)
    assert perfect["held_out_f1"].item() == 1
    assert perfect["chosen_latent"].values.tolist() == [[1, -1, -1, -1, -1]]
    assert perfect["chosen_share"].values.tolist() == [[1, 0, 0, 0, 0]]
    # each latent finds one of the positives: whoever is chosen finds nothing in the other half
    split = held_out_f1(values([[1, 0], [0, 1], [0, 0], [0, 0]]).astype(bool), label)
    assert [split[f"held_out_{name}"].item() for name in ("f1", "low", "median", "high")] == [0, 0, 0, 0]
    assert split["chosen_latent"].values.tolist() == [[0, 1, -1, -1, -1]]
    assert split["chosen_share"].values.tolist() == [[0.5, 0.5, 0, 0, 0]]
    dead = held_out_f1(values(np.zeros((4, 3), bool)), label)
    assert dead["held_out_f1"].item() == 0
    assert dead["chosen_latent"].values.tolist() == [[0, -1, -1, -1, -1]]
    always = held_out_f1(values(np.ones((4, 3), bool)), label)
    np.testing.assert_allclose(always["held_out_f1"], 2 / 3)


def test_choice_breaks_ties_by_precision_then_number() -> None:
    """On halves of 3 + 3, (tp, fp) of (3, 3) and of (2, 1) have F1 2/3, and the second is more precise."""
    fired = np.zeros((12, 4), bool)
    fired[:, 0] = True
    column = [1] * 6 + [0] * 6
    halves = [(np.array([[1, 1, 1, 0, 0, 0]], bool), np.array([[1, 1, 1, 0, 0, 0]], bool))]
    fired[[0, 1, 3, 4, 6, 9], 2] = fired[[0, 1, 3, 4, 6, 9], 3] = True
    choice = _choices(values(fired), labels(column), halves)
    assert choice[0].values.ravel().tolist() == [2, 2]
    np.testing.assert_allclose(choice[1].values.ravel(), 2 / 3)
    dead = _choices(values(fired & False), labels(column), halves)
    assert dead[0].values.ravel().tolist() == [0, 0]
    wrong_before_dead = np.zeros((12, 2), bool)
    wrong_before_dead[6:, 1] = True  # F1 0 both; predicting wrongly has precision 0, predicting nothing has none
    assert _choices(values(wrong_before_dead), labels(column), halves)[0].values.ravel().tolist() == [1, 1]


def _held_out_by_loops(predictions: np.ndarray, column: np.ndarray, first: np.ndarray) -> tuple[list[float], list[int]]:
    """For each split (a mask of images in the first half), both directions, with the library's own counts and rank."""
    held, chosen = [], []
    for mask in first:
        for here, there in ((mask, ~mask), (~mask, mask)):
            scores = []
            for part in (here, there):
                counts = semprobe.confusion(values(predictions[part]), labels(column[part]))
                scores.append(counts.assign(f1=semprobe.f1(counts), precision=semprobe.precision(counts)))
            best = int(semprobe.rank(scores[0], "wheel", 1)[0])
            chosen.append(best)
            held.append(float(scores[1]["f1"][0, best]))
    return held, chosen


@pytest.mark.parametrize(("seed", "images"), [(0, 31), (1, 31), (2, 31), (3, 260)])
def test_held_out_equals_loops(seed: int, images: int) -> None:
    """260 images are more of a class than one word of bits holds."""
    sums, label = study(images, 40, concepts=1, seed=seed)
    column = label.values[:, 0]
    fired, splits = sums.values > 0, 15
    positives, negatives = _split(label, splits, seed)[0]
    first = np.zeros((splits, len(column)), bool)
    first[:, column == 1], first[:, column == 0] = positives, negatives
    assert (first[:, column == 1].sum(1) == (column == 1).sum() // 2).all()
    assert (first[:, column == 0].sum(1) == (column == 0).sum() // 2).all()
    assert len(np.unique(first, axis=0)) > 10
    kept = column >= 0
    held, chosen = _held_out_by_loops(fired[kept], column[kept], first[:, kept])
    found = held_out_f1(values(fired), label, splits=splits, seed=seed)
    np.testing.assert_allclose(found["held_out_f1"].item(), np.mean(held), rtol=1e-14)
    expected = np.quantile(held, [0.05, 0.5, 0.95])
    np.testing.assert_allclose([found[f"held_out_{q}"].item() for q in ("low", "median", "high")], expected, rtol=1e-14)
    number, share = found["chosen_latent"].values[0], found["chosen_share"].values[0]
    for latent, part in zip(number[number >= 0], share, strict=False):
        assert part == chosen.count(latent) / len(chosen)
    assert share[0] == max(chosen.count(one) for one in chosen) / len(chosen)
    assert (np.diff(share) <= 0).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 99), st.integers(1, 30), st.integers(1, 50))
def test_held_out_for_every_chunking(seed: int, image: int, latent: int) -> None:
    sums, label = study(latents=50, seed=seed)
    fired = (sums > 0.25).assign_coords(latent=np.arange(50) + 7)
    expected = held_out_f1(fired, label, splits=9)
    xr.testing.assert_identical(
        held_out_f1(fired.chunk(image=image, latent=latent), label, splits=9).compute(), expected
    )
    xr.testing.assert_identical(held_out_f1(fired.T, label.T, splits=9), expected)
    assert expected["chosen_latent"].where(expected["chosen_latent"] >= 0).min() >= 7, "numbers, not positions"


def test_held_out_blocks_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    sums, label = study(150, 50)
    expected = held_out_f1(sums > 0, label, splits=5)
    monkeypatch.setattr("semprobe.effects._LATENTS", 7)
    monkeypatch.setattr("semprobe.effects._BYTES", 1500)
    xr.testing.assert_identical(held_out_f1(sums > 0, label, splits=5), expected)
    xr.testing.assert_identical(held_out_f1((sums > 0).chunk(), label, splits=5).compute(), expected)


def test_held_out_depends_on_seed_and_concept_alone() -> None:
    sums, label = study(60, 40)
    fired = sums > 0
    both, again = (held_out_f1(fired, label) for _ in range(2))
    xr.testing.assert_identical(both, again)
    xr.testing.assert_identical(held_out_f1(fired, label[:, 1:]), both.isel(concept=[1]))
    inside = np.flatnonzero(label.values[:, 0] >= 0)
    xr.testing.assert_identical(held_out_f1(fired[inside], label[inside, :1]), both.isel(concept=[0]))
    assert (held_out_f1(fired, label, seed=1)["held_out_f1"] != both["held_out_f1"]).all()
    twins = labels(label.values[:, 0], label.values[:, 0])
    assert np.ptp(held_out_f1(fired.drop_vars("image"), twins)["held_out_f1"].values) > 0, (
        "each concept has its own halves"
    )


def test_choosing_among_noise_is_paid_for() -> None:
    """The best of 2,000 null latents looks good on the images that chose it, and is chance on others."""
    fired = values(np.random.default_rng(0).random((40, 2000)) < 0.5)
    label = labels([1] * 20 + [0] * 20)
    best = semprobe.f1(semprobe.confusion(fired, label)).max().item()
    found = held_out_f1(fired, label)["held_out_f1"].item()
    assert best > 0.75
    assert 0.4 < found < 0.6


def test_a_class_of_one_cannot_be_halved() -> None:
    label = labels([1, 0, 0, 0], [1, 1, 0, 0])
    for fired in (values(np.eye(4, dtype=bool)), values(np.eye(4, dtype=bool)).chunk(latent=2)):
        found = held_out_f1(fired, label).compute()
        assert np.isnan([found[f"held_out_{name}"].values[0] for name in ("f1", "low", "median", "high")]).all()
        assert found["chosen_latent"].values[0].tolist() == [-1] * 5
        assert found["chosen_share"].values[0].tolist() == [0] * 5
        assert found["held_out_f1"].notnull()[1]


def test_odd_options_are_refused() -> None:
    sums, label = study()
    with pytest.raises(DataError, match="splits 0"):
        held_out_f1(sums > 0, label, splits=0)
    with pytest.raises(DataError, match="no latents"):
        held_out_f1(sums[:, :0] > 0, label)
    for odd in ({"level": 1.0}, {"level": 0}, {"resamples": 0}, {"seed": -1}):
        with pytest.raises(DataError, match="expected between 0 and 1"):
            f1_interval(sums > 0, label, **odd)  # type: ignore[arg-type]


# intervals


def _exact_quantiles(tp: int, fp: int, positives: int, negatives: int, shares: list[float]) -> np.ndarray:
    """Of F1 under the stratified bootstrap, over all pairs of counts."""
    found, wrong = np.meshgrid(np.arange(positives + 1), np.arange(negatives + 1), indexing="ij")
    weight = np.outer(
        binom.pmf(np.arange(positives + 1), positives, tp / positives),
        binom.pmf(np.arange(negatives + 1), negatives, fp / negatives),
    )
    f1 = 2 * found / (found + wrong + positives)
    order = np.argsort(f1.ravel())
    below = np.cumsum(weight.ravel()[order])
    return f1.ravel()[order][np.searchsorted(below, shares)]


@pytest.mark.parametrize("counts", [(15, 4, 5, 16), (3, 1, 2, 4), (20, 20, 0, 20), (1, 0, 19, 20)])
def test_interval_equals_the_exact_distribution(counts: tuple[int, ...]) -> None:
    tp, fp, fn, tn = counts
    data = xr.Dataset(
        {k: (("concept", "latent"), [[v]]) for k, v in zip(("tp", "fp", "fn", "tn"), counts, strict=True)},
        coords={"concept": ["wheel"]},
    )
    for level in (0.95, 0.5):
        found = f1_interval_of_counts(data, level=level, resamples=200_000)
        ends = [found["f1_low"].item(), found["f1_high"].item()]
        around = [
            _exact_quantiles(tp, fp, tp + fn, fp + tn, [(1 - level) / 2 + by, (1 + level) / 2 + by])
            for by in (-0.004, 0.004)
        ]
        assert (around[0] - 1e-12 <= ends).all()
        assert (ends <= around[1] + 1e-12).all()


def test_interval_equals_drawing_images_again() -> None:
    """The naive bootstrap, image by image."""
    sums, label = study(60, 6, concepts=1)
    column = label.values[:, 0]
    fired = sums.values > 0
    rng = np.random.default_rng(5)
    positives, negatives = (fired[column == value] for value in (1, 0))
    scores = []
    for _ in range(4000):
        tp, fp = (part[rng.integers(0, len(part), len(part))].sum(0) for part in (positives, negatives))
        scores.append(2 * tp / (tp + fp + len(positives)))
    found = f1_interval(sums > 0, label, resamples=4000)
    expected = np.quantile(scores, [0.025, 0.975], axis=0)
    np.testing.assert_allclose([found["f1_low"][0], found["f1_high"][0]], expected, atol=0.03)


def test_interval_ends() -> None:
    label = labels([1] * 5 + [0] * 5)
    fired = np.array([[1, 0, 0, 1]] * 5 + [[0, 0, 1, 1]] * 5, bool)
    found = f1_interval(values(fired), label)
    np.testing.assert_allclose(found["f1_low"][0], [1, 0, 0, 2 / 3])  # perfect, dead, exactly wrong, always on
    np.testing.assert_allclose(found["f1_high"][0], [1, 0, 0, 2 / 3])


def test_interval_depends_on_seed_concept_and_counts_alone() -> None:
    sums, label = study(60, 12)
    fired = sums > 0
    whole = f1_interval(fired, label)
    xr.testing.assert_identical(f1_interval(fired, label), whole)
    xr.testing.assert_identical(f1_interval(fired[:, 3:5], label[:, 1:]), whole.isel(concept=[1], latent=[3, 4]))
    xr.testing.assert_identical(f1_interval(fired.chunk(image=7, latent=5), label).compute(), whole)
    assert (f1_interval(fired, label, seed=1)["f1_low"] != whole["f1_low"]).any()
    f1 = semprobe.f1(semprobe.confusion(fired, label))
    assert ((whole["f1_low"] <= f1) & (f1 <= whole["f1_high"])).all()
    assert (f1_interval(fired, label, level=0.5)["f1_high"] <= whole["f1_high"]).all()
    order = np.random.default_rng(0).permutation(60)
    xr.testing.assert_identical(f1_interval(fired[order], label[order]), whole)


def test_interval_of_counts_without_a_class() -> None:
    counts = semprobe.confusion(values(np.ones((2, 1), bool)), labels([0, 0]))
    with pytest.raises(DataError, match="concept wheel has 0 positives"):
        f1_interval_of_counts(counts)
