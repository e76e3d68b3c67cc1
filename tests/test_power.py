"""Critical F1, chance to detect and images needed: by hand, by enumeration, by simulation, and as a command."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations, product
from math import comb, inf, prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import Result
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import semprobe
from semprobe import stores
from semprobe.errors import DataError
from semprobe.power import _f1, critical_f1, detection, floor, images_needed
from tests.conftest import make_activations, make_sae

Run = Callable[..., Result]

# 2 + 2 images, three latents that fire on 1, 2 and 3 of them. Chances that the best F1 is at least
# 1: 1/6; 4/5: 1 - 5/6 1/2 = 7/12; 2/3: 1 - 5/6 1/2 1/2 = 19/24; 1/2: 1 - 1/6 1/2 1/2 = 23/24; 2/5: 1
BY_HAND = [
    (0.05, inf, "F1 = 1 happens by chance once in six"),
    (1 / 6 - 1e-6, inf, "just below the chance of 1"),
    (1 / 6, 1.0, "a chance equal to alpha is rare enough"),
    (0.5, 1.0, "between two values"),
    (7 / 12, 4 / 5, "equal again"),
    (19 / 24, 2 / 3, "equal again, where two tables have the same F1"),
    (23 / 24, 1 / 2, "below the floor"),
]


@pytest.mark.parametrize(("alpha", "expected", "why"), BY_HAND, ids=[row[2] for row in BY_HAND])
def test_critical_f1_by_hand(alpha: float, expected: float, why: str) -> None:
    assert critical_f1(2, 2, 3, alpha=alpha) == expected


def test_detection_by_hand() -> None:
    found = [detection(2, 2, 3, 0.9, 0.2, alpha=alpha) for alpha in (0.05, 0.5, 0.6, 0.8)]
    perfect, one_wrong = 0.81 * 0.64, 0.81 * (1 - 0.04)
    ties = 0.81 + 0.18 * 0.64  # 2/3: all positives found whatever else, or one of them and nothing else
    np.testing.assert_allclose(found, [0, perfect, one_wrong, ties], rtol=1e-14)
    assert detection(20, 20, 24576, 1, 0) == 1
    assert detection(20, 20, 24576, 0, 1) == 0


def _by_enumeration(positives: int, negatives: int, fired: list[int], alpha: Fraction) -> float:
    """Every way to fire, in fractions: images 0..n+ - 1 are positive."""
    images = positives + negatives

    def value(tp: int, number: int) -> Fraction:
        return Fraction(2 * tp, number + positives)

    def below(number: int, bound: Fraction) -> Fraction:
        ways = [sum(i < positives for i in chosen) for chosen in combinations(range(images), number)]
        return Fraction(sum(value(tp, number) < bound for tp in ways), len(ways))

    values = {value(tp, tp + fp) for tp, fp in product(range(positives + 1), range(negatives + 1))}
    rare = [v for v in values if 1 - prod(below(number, v) for number in fired if 0 < number < images) <= alpha]
    return float(min(rare)) if rare else inf


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_critical_f1_agrees_with_enumeration(data: st.DataObject) -> None:
    positives, negatives = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    fired = data.draw(st.lists(st.integers(0, positives + negatives), min_size=1, max_size=6))
    assume(any(0 < number < positives + negatives for number in fired))
    alpha = Fraction(data.draw(st.integers(1, 996)), 997)  # a prime: no chance is equal to it
    support = np.array(fired) / (positives + negatives)
    found = critical_f1(positives, negatives, len(fired), alpha=float(alpha), support=support)
    assert found == _by_enumeration(positives, negatives, fired, alpha)


def test_equal_fractions_are_equal_floats() -> None:
    tables = [(tp, fp) for tp in range(31) for fp in range(18)]
    exact = [Fraction(2 * tp, tp + fp + 30) for tp, fp in tables]
    found = _f1(30, 17)
    assert [float(v) for v in exact] == found.ravel().tolist()
    assert len(set(exact)) == np.unique(found).size
    tp, fp = (xr.DataArray(np.array(column)) for column in zip(*tables, strict=True))
    scored = semprobe.f1(xr.Dataset({"tp": tp, "fp": fp, "fn": 30 - tp, "tn": 17 - fp}))
    assert scored.values.tolist() == found.ravel().tolist(), "what is compared with the critical F1"


# how often latents fire


@pytest.mark.parametrize("sizes", [(2, 2), (7, 4), (20, 20)])
def test_the_assumption_is_as_many_latents_at_each_support(sizes: tuple[int, int]) -> None:
    images = sum(sizes)
    each = np.repeat(np.arange(1, images), 30) / images
    for alpha in (0.01, 0.05, 0.5):
        assert critical_f1(*sizes, each.size, alpha=alpha) == critical_f1(*sizes, each.size, alpha=alpha, support=each)


@pytest.mark.parametrize("sizes", [(6, 6), (7, 4), (20, 20)])
def test_worst_case_is_the_worst_of_all_supports(sizes: tuple[int, int]) -> None:
    for latents in (1, 50, 24576):
        each = [critical_f1(*sizes, latents, support=np.array([p / sum(sizes)])) for p in range(1, sum(sizes))]
        assert critical_f1(*sizes, latents, support="worst") == max(each)


def test_latents_that_never_or_always_fire_are_left_out() -> None:
    some = np.array([0.25, 0.5, 0.5, 0.75])
    assert critical_f1(2, 2, 8, alpha=0.3, support=np.append(some, np.zeros(4))) == critical_f1(
        2, 2, 4, alpha=0.3, support=some
    )
    assert critical_f1(2, 2, 4, alpha=0.3, support=some) > critical_f1(2, 2, 2, alpha=0.3, support=some)
    assert critical_f1(2, 2, 8, alpha=0.3, support=np.append(some, np.ones(4))) == critical_f1(
        2, 2, 4, alpha=0.3, support=some
    )
    assert floor(2, 2) == 2 / 3


def test_one_always_firing_latent_does_not_change_what_the_test_finds() -> None:
    """50 latents that fire on a fifth of 20 + 20 images: the floor, 0.667, would be the bar."""
    few = np.full(50, 0.2)
    assert critical_f1(20, 20, 51, support=np.append(few, 1)) == critical_f1(20, 20, 50, support=few) < floor(20, 20)


def test_shares_are_rounded_to_whole_images_but_never_to_none_or_all() -> None:
    def critical(share: float) -> float:
        return critical_f1(20, 20, 1000, support=np.array([share]))

    assert critical(0.001) == critical(1 / 40) < critical(2 / 40)
    assert critical(0.999) == critical(39 / 40)
    assert critical(0.26) == critical(10 / 40) < critical(11 / 40) == critical(0.27)
    assert critical(0.5) == max(map(critical, (0.3, 0.5, 0.7)))


# by simulation


@pytest.mark.parametrize(("sizes", "alpha"), [((20, 20), 0.05), ((12, 25), 0.1)])
def test_null_latents_reach_it_as_seldom_as_alpha_says(sizes: tuple[int, int], alpha: float) -> None:
    rng, runs, (positives, negatives) = np.random.default_rng(0), 4000, sizes
    fired = np.tile(np.arange(1, positives + negatives), 20)
    tp = rng.hypergeometric(positives, negatives, fired, (runs, fired.size))
    best = (2 * tp / (fired + positives)).max(1)
    critical = critical_f1(*sizes, fired.size, alpha=alpha)
    error = 3 * np.sqrt(alpha * (1 - alpha) / runs)
    values = np.unique(_f1(*sizes))
    assert (best >= critical).mean() <= alpha + error
    assert (best >= values[values < critical].max()).mean() > alpha - error, "the smallest such value"


@pytest.mark.parametrize(("tpr", "fpr"), [(0.9, 0.05), (0.7, 0.2), (1.0, 0.1), (0.5, 0.0)])
def test_detection_agrees_with_simulation(tpr: float, fpr: float) -> None:
    rng, runs = np.random.default_rng(1), 100_000
    tp, fp = rng.binomial(20, tpr, runs), rng.binomial(30, fpr, runs)
    critical = critical_f1(20, 30, 24576)
    seen = (2 * tp / (tp + fp + 20) >= critical).mean()
    found = detection(20, 30, 24576, tpr, fpr)
    assert 0 < found < 1
    assert abs(seen - found) < 4 * np.sqrt(found * (1 - found) / runs)


# laws


def test_more_latents_raise_the_bar() -> None:
    numbers = (1, 10, 100, 1000, 24576, 10**6)
    critical = [critical_f1(20, 20, latents) for latents in numbers]
    chances = [detection(20, 20, latents, 0.9, 0.05) for latents in numbers]
    needed = [images_needed(latents, 0.9, 0.05) for latents in numbers]
    assert critical == sorted(critical)
    assert chances == sorted(chances, reverse=True)
    assert needed == sorted(needed)
    assert len(set(critical)) == len(set(needed)) == len(numbers)


def test_a_smaller_alpha_raises_the_bar() -> None:
    critical = [critical_f1(20, 20, 24576, alpha=alpha) for alpha in (0.5, 0.05, 1e-3, 1e-6)]
    assert critical == sorted(critical)
    assert len(set(critical)) == 4


def test_chances_far_below_the_precision_of_floats_count() -> None:
    def chance(least: int) -> Fraction:
        return Fraction(sum(comb(60, tp) * comb(60, 60 - tp) for tp in range(least, 61)), comb(120, 60))

    rare = next(tp for tp in range(61) if 10**9 * chance(tp) <= Fraction(1, 10**20))
    found = critical_f1(60, 60, 10**9, alpha=1e-20, support=np.array([0.5]))
    assert 2 * (rare - 1) / 120 < found <= 2 * rare / 120 < 1


@pytest.mark.parametrize(("tpr", "fpr", "power"), [(0.9, 0.05, 0.8), (0.8, 0.1, 0.9), (0.7, 0.0, 0.5), (1, 0, 0.99)])
def test_images_needed_is_the_first_that_stays_enough(tpr: float, fpr: float, power: float) -> None:
    found = images_needed(5000, tpr, fpr, power=power)
    enough = [detection(n, n, 5000, tpr, fpr) >= power for n in range(1, found + 11)]
    assert all(enough[found - 1 :])
    assert not enough[found - 2]
    assert not any(all(enough[n : n + 11]) for n in range(found - 1))


def test_images_needed_passes_over_a_tooth_of_the_saw() -> None:
    found = images_needed(24576, 0.7, 0)
    first = next(n for n in range(1, 100) if detection(n, n, 24576, 0.7, 0) >= 0.8)
    assert (first, found) == (31, 36)


# what goes wrong

BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: critical_f1(0, 20, 100), "found 0 positive images"),
    (lambda: critical_f1(20, -1, 100), "found -1 negative images"),
    (lambda: critical_f1(20, 20, 0), "found 0 latents"),
    (lambda: critical_f1(2.5, 20, 10), "found 2.5 positive images"),  # type: ignore[arg-type]
    (lambda: critical_f1(20, 20, 100, alpha=0), "alpha is 0"),
    (lambda: critical_f1(20, 20, 100, alpha=float("nan")), "alpha is nan"),
    (lambda: critical_f1(50_000, 50_000, 100), "would take arrays of 5,000,000,000 numbers"),
    (lambda: critical_f1(20, 20, 100, support="best"), 'support is "best"'),  # type: ignore[arg-type]
    (lambda: critical_f1(20, 20, 100, support=np.array([3.0, 4.0])), "between 0 and 1"),
    (lambda: critical_f1(20, 20, 100, support=np.array([0.5, np.nan])), "between 0 and 1"),
    (lambda: critical_f1(20, 20, 100, support=np.array([])), "or none"),
    (lambda: critical_f1(20, 20, 100, support=np.zeros(3)), "no latent fires on some"),
    (lambda: critical_f1(20, 20, 100, support=np.array([0.0, 1.0])), "0 or 1: no latent fires on some"),
    (lambda: detection(20, 20, 100, 1.1, 0), "true positive rate is 1.1"),
    (lambda: detection(20, 20, 100, 1, float("nan")), "false positive rate is nan"),
    (lambda: images_needed(100, 0.9, 0.1, power=1), "power 1"),
    (lambda: images_needed(100, 0.9, 0.1, cap=10), "cap above 10"),
    (lambda: images_needed(100, 0.4, 0.1, cap=50), "50 positives and 50 negatives are not enough.*tends to 0.533"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[row[1] for row in BAD])
def test_bad_arguments(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()


# the command

SIZES = ("--positives", 20, "--negatives", 20, "--latents", 24576)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, xr.Dataset]:
    """A store of scores of two concepts and 70 latents, one of which never fires and one always."""
    path = tmp_path_factory.mktemp("power") / "scores.zarr"
    found = semprobe.score(make_activations(40), sae=make_sae()).compute()
    stores.write_whole(path, found, kind="scores", provenance={})
    return path, found


def test_command_says_it_in_words(run: Run) -> None:
    out = run("power", *SIZES).stdout
    for part in (
        "20 positive and 20 negative images, 24,576 latents, alpha 0.05",
        "Critical F1: 0.842\n  If no latent had anything to do with the concept, the best of 24,576 would still",
        "at most 5 % of all experiments",
        "Floor F1: 0.667",
        "Chance to detect: 96 %\n  That a latent which fires on 90 % of the positives and on 5 % of the negatives",
        "Images needed: 15\n",
        "Assumed: latents spread evenly",
        "Worst case, all latents firing as often as helps chance most: critical F1 0.865, chance to detect 91 %",
        "99 %; 13",
        "over 99 %; 12",
    ):
        assert part in out, part
    assert "more than 500" in run("power", *SIZES, "--tpr", 0.3).stdout
    none = run("power", *SIZES[:-1], 10**9, "--positives", 5).stdout
    assert (
        "Critical F1: none\n  With so few images the best of 1,000,000,000 has an F1 of 1 by chance too often" in none
    )


def test_command_as_json(run: Run) -> None:
    found = json.loads(run("power", *SIZES, "--tpr", 0.8, "--alpha", 0.01, "--json").stdout)
    expected = {"critical_f1": critical_f1(20, 20, 24576, alpha=0.01), "floor_f1": 2 / 3, "alpha": 0.01, "power": 0.8}
    assert found.items() >= expected.items()
    assert found["detection"] == detection(20, 20, 24576, 0.8, 0.05, alpha=0.01)
    assert found["images_needed"] == images_needed(24576, 0.8, 0.05, alpha=0.01)
    assert found["worst_case"]["critical_f1"] == critical_f1(20, 20, 24576, alpha=0.01, support="worst")
    assert found["worst_case"]["detection"] < found["detection"]
    assert [(row["tpr"], row["fpr"]) for row in found["table"]] == list(product((0.6, 0.8, 0.9, 1), (0, 0.05, 0.1)))
    assert next(r for r in found["table"] if (r["tpr"], r["fpr"]) == (0.8, 0.05))["detection"] == found["detection"]
    few = json.loads(run("power", *SIZES, "--positives", 3, "--tpr", 0.2, "--json").stdout)
    assert few["critical_f1"] is few["images_needed"] is None
    assert few["detection"] == 0


def test_command_takes_support_and_sizes_from_a_store(scores: tuple[Path, xr.Dataset], run: Run) -> None:
    path, data = scores
    here = data.sel(concept="fur")
    sizes = {"positives": int((here.tp + here.fn)[0]), "negatives": int((here.fp + here.tn)[0]), "latents": 70}
    shares = semprobe.support(here).values
    found = json.loads(run("power", "--support", path, "--concept", "fur", "--json").stdout)
    assert found.items() >= sizes.items()
    assert found["critical_f1"] == critical_f1(**sizes, support=shares) != critical_f1(**sizes)
    assert "fur" in found["assumption"]
    assert f"{(shares == 0).sum()} of which never fire" in found["assumption"]
    assert f"{(shares == 1).sum()} always" in found["assumption"]
    more = json.loads(run("power", "--support", path, "--concept", "fur", *SIZES, "--json").stdout)
    assert more["critical_f1"] == critical_f1(20, 20, 24576, support=shares)


def test_command_refuses(scores: tuple[Path, xr.Dataset], acts: Path, tmp_path: Path, run: Run) -> None:
    path, data = scores

    def fails(*arguments: object, message: str, code: int) -> None:
        result = run("power", *arguments, code=code)
        assert result.stdout == ""
        assert message in " ".join(result.stderr.split())
        assert [line.startswith("Error: ") for line in result.stderr.splitlines()].count(True) == 1

    fails(*SIZES, "--positives", 0, message="'--positives': 0 is not in the range", code=2)
    fails(*SIZES, "--tpr", 1.2, message="'--tpr': 1.2 is not in the range", code=2)
    fails(*SIZES, "--alpha", 0, message="'--alpha': 0.0 is not in the range", code=2)
    fails("--positives", 20, message="Missing --negatives, --latents; or give a store of scores", code=2)
    fails(*SIZES, "--concept", "fur", message="needs --support", code=2)
    fails("--support", path, message="holds the concepts fur, wheel; choose one with --concept", code=2)
    fails("--support", path, "--concept", "hub", message="no concept hub, expected one of fur, wheel", code=1)
    fails("--support", tmp_path / "no.zarr", message="no.zarr", code=1)
    swept = tmp_path / "swept.zarr"
    stores.write_whole(swept, data.assign(threshold=data["f1"].astype(np.float32)), kind="scores", provenance={})
    fails("--support", swept, "--concept", "fur", message="swept.zarr: these are scores of a threshold sweep", code=1)
    fails("--support", acts, message="this is a store of activations, expected one of scores", code=1)
    fails(*SIZES, "--positives", 50_000, message="50000 positives and 20 negatives would take arrays", code=1)
