"""Thresholds chosen with the labels in sight, and the test that pays for it: against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy.stats import false_discovery_control, fisher_exact

from semprobe.assessment import assess, outcomes, score_sums
from semprobe.errors import DataError
from semprobe.significance import permuted_labels, significance
from semprobe.sweep import cuts, sweep


def study(images: int = 14, latents: int = 12, seed: int = 0) -> xr.Dataset:
    """Patch sums with ties, a dead, an always-on and a constant latent; one image is in no set."""
    rng = np.random.default_rng(seed)
    sums = np.maximum(rng.integers(-6, 9, (images, latents)) / 2, 0).astype(np.float32)
    sums[:, 0], sums[:, 1], sums[:, 2] = 0, 1 + np.arange(images) % 5, 2
    label = np.resize(np.array([1, 0, 0], np.int8), images)
    label[-1] = -1
    coords = {"concept": np.array(["wheel"], dtype=object), "image": np.array([f"{i}.png" for i in range(images)])}
    return xr.Dataset(
        {"patch_sum": (("image", "latent"), sums)}, coords={**coords, "label": (("image", "concept"), label[:, None])}
    )


def tried_by_hand(sums: list[float]) -> list[float]:
    """0, and for 95, 90, ..., 5 % of the images the smallest value of which at most so many are above."""
    found = [0.0]
    for percent in range(95, 0, -5):
        most = percent * len(sums) // 100
        if most:
            found.append(min(v for v in sums if sum(w > v for w in sums) <= most))
    return found


def table_of(sums: list[float], cut: float, truth: list[int]) -> tuple[int, int]:
    fires = [value > cut for value in sums]
    return sum(f and t for f, t in zip(fires, truth, strict=True)), sum(
        f and not t for f, t in zip(fires, truth, strict=True)
    )


def largest(sums: list[float], truth: list[int], keep: bool = True) -> float:
    """The best F1 of a latent over its thresholds; those where all or none fire are left out, unless kept."""
    best = 0.0
    for cut in tried_by_hand(sums):
        tp, fp = table_of(sums, cut, truth)
        if keep or 0 < tp + fp < len(sums):
            best = max(best, 2 * tp / (tp + fp + sum(truth)))
    return best


@pytest.mark.parametrize("seed", range(3))
def test_all_of_it_equals_a_loop(seed: int) -> None:
    data = study(seed=seed)
    sums, truth = data["patch_sum"].values[:-1].astype(float), data["label"].values[:-1, 0].tolist()
    columns = [column.tolist() for column in sums.T]
    scores = score_sums(data, sweep=True)
    expected = [largest(c, truth, keep=False) or largest(c, truth) for c in columns]
    assert scores["f1"].values[0].tolist() == expected
    found = significance(scores, permutations=60, seed=seed)
    import zlib

    dealt = permuted_labels(np.array(truth), np.zeros(13, int), 60, [seed, zlib.crc32(b"wheel")])
    drawn = np.unpackbits(dealt.T.copy().view(np.uint8), axis=1, count=13)  # of one word each
    null = [max(largest(c, one.astype(int).tolist(), keep=False) for c in columns) for one in drawn]
    assert found["null_max_f1"].values[0].tolist() == null
    for at, column in enumerate(columns):
        tp, fp = table_of(column, float(scores["threshold"][0, at]), truth)
        trivial = tp + fp in (0, len(truth))
        observed = 2 * tp / (tp + fp + sum(truth))
        rare = (1 + sum(one >= observed for one in null)) / 61
        assert found["p_max"].values[0, at] == (1 if trivial else rare)
        rest = [[tp, fp], [sum(truth) - tp, len(truth) - sum(truth) - fp]]
        expected = min(1, len(tried_by_hand(column)) * fisher_exact(rest, alternative="greater")[1])
        assert found["p_value"].values[0, at] == pytest.approx(expected)


def test_thresholds_by_hand() -> None:
    values = np.array([[5.0], [1.0], [0.0], [3.0]], np.float32)
    assert cuts(values)[:, 0].tolist() == [0, 0, 1, 3]  # 0, then at most 3, 2 and 1 of four are above
    assert [int((values > cut).sum()) for cut in np.unique(cuts(values))] == [3, 2, 1]


def test_ties_take_the_precise_then_the_low_threshold() -> None:
    data = study(8, 3)
    data["label"].values[:, 0] = [1, 1, 1, 1, 0, 0, 0, 0]
    data["patch_sum"].values[:, 0] = [4, 4, 4, 4, 1, 1, 1, 1]  # perfect from 1 on, below 4
    data["patch_sum"].values[:, 1] = [2, 2, 2, 1, 1, 1, 1, 0]  # 3 of 3 for F1 6/7; above 0 it is 8/11
    data["patch_sum"].values[:, 2] = [3, 3, 2, 1, 2, 2, 1, 1]  # 2/3 everywhere: 4 of 8, 3 of 5, 2 of 2
    found = sweep(data["patch_sum"], data["label"])
    assert found["threshold"].values[0].tolist() == [1, 1, 2]
    assert [found[n].values[0].tolist() for n in ("tp", "fp")] == [[4, 3, 2], [0, 0, 0]]


def test_always_on_is_no_threshold_where_there_is_another() -> None:
    """Large sums are 45 of 100 positives and no negative: F1 0.62, and firing on all of 100 + 50 images has 0.8."""
    data = study(151, 4)
    data["label"].values[:, 0] = np.repeat([1, 0, -1], [100, 50, 1])
    data["patch_sum"].values[:] = 1
    data["patch_sum"].values[:, 3] += np.arange(151) < 45
    scores = score_sums(data, sweep=True)
    assert [int(scores[name][0, 3]) for name in ("tp", "fp")] == [45, 0]
    assert float(scores["f1"][0, 3]) == 90 / 145
    found = significance(scores, permutations=999)
    assert found["significant"].values[0].tolist() == [False, False, False, True]
    assert float(found["q_value"][0, 3]) < 1e-7
    assert scores["f1"].values[0, :3].tolist() == [0.8] * 3, "the others have no other threshold"


def test_the_family_of_q_does_not_look_at_labels() -> None:
    """A latent on every image, whose largest F1 may be at the threshold that tells nothing, stays in the family."""
    data = study(40, 60, seed=3)
    data["patch_sum"].values[:, 5:] += 1  # always above 0
    data["patch_sum"].values[:, 5:9] += 9 * (data["label"].values == 1)
    scores = score_sums(data, sweep=True)
    assert (scores["f1"].values[0, 9:] < float(scores["floor_f1"][0])).any(), "some have their largest F1 there"
    fires = (scores["tp"] + scores["fp"]).values[0]
    assert (fires[3:] < 39).all(), "and none is taken"
    found = significance(scores, permutations=20)
    assert (found["q_value"].values[0, 5:9] < 1e-3).all()
    tests = np.r_[1, 3:60]  # never firing, and constant, can't be tested at any threshold
    np.testing.assert_allclose(found["q_value"].values[0, tests], false_discovery_control(found["p_value"][0, tests]))
    assert found["q_value"].values[0, [0, 2]].tolist() == [1, 1]
    assert (found["p_max"].values[0, fires == 39] == 1).all()


def test_null_studies_are_called_significant_as_seldom_as_alpha() -> None:
    """Were the choice of a threshold free, most of these would be."""
    hits = 0
    for seed in range(60):
        data = study(41, 80, seed=100 + seed)
        data["patch_sum"].values[:, 8:] += 1  # tell nothing at threshold 0
        data["label"].values[:40, 0] = np.random.default_rng(seed).permutation(np.repeat([1, 0], 20))
        hits += bool(significance(score_sums(data, sweep=True), permutations=99, alpha=0.1)["significant"].any())
    assert hits <= 12, "99 % of a binomial of 60 and 0.1 is at most 12"


def test_outcomes_are_those_of_the_threshold_chosen() -> None:
    data = study(seed=2)
    scores = score_sums(data, sweep=True)
    for latent in range(12):
        found = outcomes(scores, "wheel", latent).values.tolist()
        assert [found.count(n) for n in ("tp", "fp", "fn", "tn")] == [
            int(scores[n][0, latent]) for n in ("tp", "fp", "fn", "tn")
        ]


def test_a_threshold_keeps_the_bits_of_the_sums() -> None:
    """Of float64 sums a threshold cut to float32 is another one."""
    data = study(40, 20)
    data["patch_sum"] = ("image", "latent"), np.random.default_rng(0).random((40, 20))
    scores = score_sums(data, sweep=True)
    assert scores["threshold"].dtype == np.float64
    assert sweep(study()["patch_sum"], study()["label"])["threshold"].dtype == np.float32
    for latent in range(20):
        found = outcomes(scores, "wheel", latent).values.tolist()
        assert [found.count(n) for n in ("tp", "fp")] == [int(scores[n][0, latent]) for n in ("tp", "fp")]


def test_a_latent_is_chosen_once_whatever_its_threshold() -> None:
    """Latent 2 is perfect at several thresholds, of which splits choose now one and now another."""
    data = study(41, 12, seed=5)
    data["label"].values[:, 0] = np.repeat([1, 0, -1], [20, 20, 1])
    data["patch_sum"].values[:20, 2] = np.linspace(2, 9, 20)
    data["patch_sum"].values[20:, 2] = np.linspace(0, 3, 21)
    found = assess(score_sums(data, sweep=True), permutations=9)
    chosen = found["chosen_latent"].values[0]
    assert chosen.tolist() == [2, -1, -1, -1, -1]
    assert found["chosen_share"].values[0].tolist() == [1, 0, 0, 0, 0]


def test_not_finite_sums_are_refused() -> None:
    data = study()
    data["patch_sum"].values[3, 4] = np.inf
    with pytest.raises(DataError, match=r"image 3\.png, latent 4: .*can't be a threshold"):
        score_sums(data, sweep=True)
