"""From labels and predictions to a verdict: against outsiders, by simulation, and by the command."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import Result
from scipy.stats import binom
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

from semprobe import stores
from semprobe.assessment import assess, score_sums
from semprobe.errors import DataError
from semprobe.power import detection
from semprobe.predictions import as_bits
from semprobe.scoring import score
from semprobe.significance import significance
from tests.conftest import make_activations, make_sae

Run = Callable[..., Result]


def study(predictions: np.ndarray, label: np.ndarray, source: list[str] | None = None) -> xr.Dataset:
    """Patch sums that are 1 or 0."""
    coords: dict[str, Any] = {
        "image": np.array([f"{at:03}.png" for at in range(len(label))], dtype=object),
        "concept": np.array(["wheel"], dtype=object),
        "latent": np.arange(predictions.shape[1]),
        "label": (("image", "concept"), label[:, None].astype(np.int8)),
    }
    if source is not None:
        coords["source"] = ("image", np.array(source, dtype=object))
    return xr.Dataset({"patch_sum": (("image", "latent"), predictions.astype(np.float32))}, coords=coords)


# against outsiders


@pytest.mark.parametrize("seed", range(4))
def test_numbers_equal_scikit_learn(seed: int) -> None:
    """With ties, dead and always-on latents."""
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.resize([1, 0, 0, -1], 30))
    sums = np.maximum(rng.integers(-5, 6, (30, 25)) * rng.random(25).round(1), 0)
    sums[:, 0], sums[:, 1] = 0, 3
    found = score_sums(study(sums, label)).compute()
    rows = label >= 0
    for latent in range(25):
        truth, values = label[rows], sums[rows, latent].astype(np.float32)
        fires = values > 0
        here = {name: float(found[name][0, latent]) for name in ("f1", "precision", "recall")}
        assert here["f1"] == pytest.approx(f1_score(truth, fires), abs=1e-15)
        assert here["recall"] == recall_score(truth, fires)
        assert np.isnan(here["precision"]) if not fires.any() else here["precision"] == precision_score(truth, fires)
        assert float(found["auroc"][0, latent]) == pytest.approx(roc_auc_score(truth, values), abs=1e-12)
        expected = average_precision_score(truth, values)
        assert float(found["average_precision"][0, latent]) == pytest.approx(expected, abs=1e-12)


SOURCES = [None, ["a"] * 5 + ["b"] * 6 + ["c"] * 3, ["a", "b"] * 7]


@pytest.mark.parametrize("source", SOURCES, ids=["no source", "one of a single label", "two sources"])
def test_p_max_is_exactly_that_of_all_labelings_counted(source: list[str] | None) -> None:
    """Shuffles are compared with what every way to deal out the labels within sources would give."""
    from itertools import combinations, product

    rng = np.random.default_rng(6)
    label = np.array([1, 1, 0, 0, 0, 1, 1, 0, 1, 0, 0, 1, 1, 1])
    found = rng.random((14, 9)) < rng.random(9)
    found[:, 0], found[:, 1], found[:, 3] = False, True, found[:, 2]
    groups: dict[str, list[int]] = {}
    for at, name in enumerate(source or [""] * 14):
        groups.setdefault(name, []).append(at)
    ways = [list(combinations(rows, sum(label[at] for at in rows))) for rows in groups.values()]
    columns = [set(np.flatnonzero(one).tolist()) for one in found.T if 0 < one.sum() < 14]

    def best(positives: set[int]) -> float:
        return max(2 * len(fires & positives) / (len(fires) + len(positives)) for fires in columns)

    every = [best(set().union(*way)) for way in product(*ways)]
    tested = assess(score(study(found, label, source)).compute(), permutations=4000)
    assert set(tested["null_max_f1"].values[0].tolist()) <= set(every)
    scores = score(study(found, label)).compute()["f1"].values[0]
    for latent, p in enumerate(tested["p_max"].values[0]):
        exact = np.mean([value >= scores[latent] for value in every])
        assert abs(p - (1 if found[:, latent].sum() in (0, 14) else exact)) < 4 * 0.5 / 4000**0.5
    assert len({float(p) for p in tested["p_max"].values[0]}) > 2


# calibration and power, small


def correlated(images: int, latents: int, rng: np.random.Generator) -> np.ndarray:
    """Groups of eight share a factor; shares from a few images to nearly all."""
    noise = rng.standard_normal((images, latents)) + np.repeat(rng.standard_normal((images, latents // 8)), 8, axis=1)
    return noise > np.quantile(noise, 1 - rng.uniform(0.01, 0.95, latents), axis=0).diagonal()


LABEL = np.repeat([1, 0], 20)


def test_null_studies_of_correlated_latents() -> None:
    rng, alpha, studies, points = np.random.default_rng(0), 0.1, 60, np.array([0.01, 0.05, 0.2, 0.5])
    hits, shares, false = 0, np.zeros(4), []
    for seed in range(studies):
        found = correlated(40, 400, rng)
        tests = significance(score(study(found, LABEL)).compute(), permutations=400, seed=seed, alpha=alpha)
        hits += bool(tests["significant"].any())
        inside = found.any(0) & ~found.all(0)
        shares += (tests["p_value"].values[0, inside, None] <= points).mean(0) / studies
        found[:, :20] = rng.random((40, 20)) < np.where(LABEL == 1, 0.9, 0.1)[:, None]
        q = significance(score(study(found, LABEL)).compute(), permutations=1)["q_value"].values[0]
        false.append((q[20:] <= alpha).sum() / max(1, (q <= alpha).sum()))
    assert 1 <= hits <= binom.ppf(0.995, studies, alpha)
    assert (shares <= points * 1.05).all(), "conservative, since counts are whole numbers"
    assert shares[-1] > 0.3
    assert np.mean(false) <= alpha


def test_power_is_what_semprobe_power_says() -> None:
    rng, studies = np.random.default_rng(1), 150
    share = rng.uniform(0.05, 0.95, 300)
    hits, expected = 0, 0.0
    for seed in range(studies):
        found = rng.random((40, 300)) < share
        found[:, 0] = rng.random(40) < np.where(LABEL == 1, 0.8, 0.1)
        scores = score(study(found, LABEL)).compute()
        hits += bool(significance(scores, permutations=399, seed=seed)["significant"][0, 0])
        expected += detection(20, 20, 300, 0.8, 0.1, support=scores["support"].values[0]) / studies
    low, high = binom.ppf([0.005, 0.995], studies, expected)
    assert low <= hits <= high
    assert 0.6 < expected < 0.95, "neither sure nor hopeless"


# rules


def test_dead_and_always_on_latents() -> None:
    found = np.random.default_rng(0).random((40, 30)) < 0.5
    found[:, 0], found[:, 1] = False, True
    scores = score(study(found, LABEL)).compute()
    tests = assess(scores, permutations=50)
    assert scores["f1"].values[0, :2].tolist() == [0, 2 / 3]
    assert float(scores["floor_f1"][0]) == 2 / 3
    for name in ("p_value", "q_value", "p_max"):
        assert tests[name].values[0, :2].tolist() == [1, 1]
    assert not tests["significant"].values[0, :2].any()
    alone = assess(score(study(found[:, 2:], LABEL)).compute(), permutations=50)
    for name in ("q_value", "p_max"):
        np.testing.assert_array_equal(tests[name].values[0, 2:], alone[name].values[0])


def test_only_such_latents() -> None:
    found = np.repeat([[False, True]], 40, axis=0)
    tests = assess(score(study(found, LABEL)).compute(), permutations=20)
    assert (tests["p_max"] == 1).all()
    assert (tests["q_value"] == 1).all()
    assert (tests["null_max_f1"] == 0).all()


def test_a_nan_names_image_and_patch() -> None:
    data = make_activations()
    data["activations"].values[17, 4, 2] = np.nan
    data["label"].values[17] = 1
    with pytest.raises(DataError, match=r"17.*patch 4"):
        score(data, sae=make_sae()).compute()


@pytest.mark.parametrize("chunks", [{"image": 1}, {"image": 5, "patch": 2, "feature": 3}, {"image": 23}])
def test_results_do_not_depend_on_chunks(chunks: dict[str, int]) -> None:
    data = make_activations()
    lazy = data.assign(activations=data["activations"].chunk(chunks))
    whole, cut = (score(one, sae=make_sae()).compute() for one in (data, lazy))
    xr.testing.assert_identical(whole, cut)
    xr.testing.assert_identical(assess(whole, permutations=100), assess(cut, permutations=100))


def test_lazy_scores_are_refused() -> None:
    with pytest.raises(DataError, match="lazy; compute them first"):
        assess(score(make_activations(), sae=make_sae()))


def test_a_store_gives_the_same(tmp_path: Path) -> None:
    data = make_activations().assign_coords(sha256=("image", np.array([""] * 23, dtype=object)))
    scores = score(data, sae=make_sae()).compute()
    stores.write_whole(str(tmp_path / "s.zarr"), scores, kind="scores", provenance={})
    reopened = stores.open_store(tmp_path / "s.zarr").compute()
    xr.testing.assert_identical(
        assess(reopened, permutations=100).drop_attrs(), assess(scores, permutations=100).drop_attrs()
    )


# sources


def web_study(source: list[str]) -> xr.Dataset:
    """Latent 0 fires on the web's pictures, latent 1 on the concept."""
    found = np.random.default_rng(2).random((40, 200)) < 0.4
    found[:, 0], found[:, 1] = np.array(source) == "web", LABEL == 1
    found[[0, 25], 1] ^= True
    return study(found, LABEL, source)


MIXED = ["web"] * 17 + ["own"] * 3 + ["web"] * 3 + ["own"] * 17


def test_a_latent_of_the_source_alone_is_flagged_or_loses() -> None:
    apart, mixed = (assess(score(web_study(one)).compute(), permutations=999) for one in
                    (["web"] * 20 + ["own"] * 20, MIXED))  # fmt: skip
    assert float(apart["source_association"][0]) == pytest.approx(1)
    assert not bool(apart["within_source"][0])
    assert "can't be told apart" in str(apart["source_words"].values[0])
    assert apart["significant"].values[0, :2].all(), "the test can't see it"
    assert bool(mixed["within_source"][0])
    assert mixed["significant"].values[0, :2].tolist() == [False, True]
    assert float(mixed["p_value"][0, 0]) == float(mixed["q_value"][0, 0]) == 1
    assert float(mixed["q_value"][0, 1]) < 0.01
    across = assess(score(study(web_study(MIXED)["patch_sum"].values > 0, LABEL)).compute(), permutations=999)
    assert across["significant"].values[0, :2].all(), "without sources it would be significant"


@pytest.mark.parametrize("sweep", [False, True])
def test_latents_of_the_source_are_no_discoveries(sweep: bool) -> None:
    """Firing depends on the source alone: within sources nothing is to be found, by q as little as by p_max."""
    rng, hits, alone = np.random.default_rng(1), 0, 0
    source = ["a"] * 15 + ["b"] * 5 + ["a"] * 5 + ["b"] * 15
    for _ in range(40):
        found = rng.random((40, 300)) < rng.random((2, 300))[(np.array(source) == "b").astype(int)]
        tests = [assess(score_sums(study(found, LABEL, given), sweep=sweep), permutations=1, splits=1)
                 for given in (source, None)]  # fmt: skip
        hits += bool((tests[0]["q_value"] <= 0.1).any())
        alone += bool((tests[1]["q_value"] <= 0.1).any())
    assert hits <= binom.ppf(0.995, 40, 0.1)
    assert alone > 10 or sweep, "without sources they are"


def written(path: Path, data: xr.Dataset) -> Path:
    """As a store of latents."""
    empty = np.array([""] * data.sizes["image"], dtype=object)
    more = {"sha256": ("image", empty)} | ({} if "source" in data.coords else {"source": ("image", empty)})
    stores.write_whole(str(path), data.assign_coords(more), kind="latents", provenance={})
    return path


def test_the_command_says_so(tmp_path: Path, run: Run) -> None:
    for name, source in (("apart", ["web"] * 20 + ["own"] * 20), ("mixed", MIXED)):
        latents = written(tmp_path / f"{name}-latents.zarr", web_study(source))
        said = run("score", latents, "-o", tmp_path / f"{name}.zarr", "--permutations", 999).stdout
        assert ("CONFOUNDED: all positives come from web" in said) == (name == "apart")
        assert ("shuffled within sources" in said) == (name == "mixed")
        assert ("1 latent is significant" in said) == (name == "mixed")


def test_too_few_ways_to_deal_out_the_labels_are_told(tmp_path: Path, run: Run) -> None:
    """10 web + 1 web and 9 own: eleven ways, so that even a perfect latent has p of at least 1 / 11."""
    label = np.repeat([1, 0], 10)
    found = np.random.default_rng(0).random((20, 30)) < 0.5
    found[:, 7] = label == 1
    few = study(found, label, ["web"] * 11 + ["own"] * 9)
    assert float(assess(score(few).compute(), permutations=50)["smallest_p"][0]) == 1 / 11
    told = run("score", written(tmp_path / "few.zarr", few), "-o", tmp_path / "s.zarr").stdout
    assert "no latent is significant: the labels can be dealt out in so few ways that p is at least 0.091" in told
    many = study(found, label)
    told = run("score", written(tmp_path / "many.zarr", many), "-o", tmp_path / "t.zarr").stdout
    assert "so few ways" not in told


def test_too_few_permutations_are_refused(tmp_path: Path, run: Run) -> None:
    latents = written(tmp_path / "latents.zarr", web_study(MIXED))
    for options, least in (
        (("--permutations", 10), "p is at least 0.091 (1 / 11), above --alpha 0.05, so nothing could be significant; "
         "give at least 19"),
        (("--alpha", 5e-5), "give at least 19999"),
    ):  # fmt: skip
        told = run("score", latents, "-o", tmp_path / "s.zarr", *options, code=2)
        assert least in " ".join(told.stderr.split())
        assert not (tmp_path / "s.zarr").exists()
    run("score", latents, "-o", tmp_path / "s.zarr", "--permutations", 19)


def test_sources_apart_are_apart_in_spite_of_rounding() -> None:
    """39 + 23 images: Cramér's V is a last bit below 1."""
    from semprobe.cli.score import _verdict

    label = np.repeat([1, 0], [39, 23])
    found = np.random.default_rng(0).random((62, 20)) < 0.5
    tests = assess(score(study(found, label, ["a"] * 39 + ["b"] * 23)).compute(), permutations=9)
    source = {"cramers_v": float(tests["source_association"][0]), "permuted_within_source": False}
    assert source["cramers_v"] < 1
    assert "within sources" not in _verdict({"significant_latents": 0, "source": source}, 0.05, "concept")


# the command


def test_scoring_patch_sums_needs_no_torch(tmp_path: Path) -> None:
    latents = written(tmp_path / "latents.zarr", web_study(MIXED))
    code = (
        "import sys; from semprobe.cli import main;"
        f"main(['score', {str(latents)!r}, '-o', {str(tmp_path / 's.zarr')!r}], standalone_mode=False);"
        "print('torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert told.splitlines()[-1] == "False"


def test_csv_is_the_scores_and_no_formula(tmp_path: Path, run: Run) -> None:
    data = web_study(MIXED).assign_coords(concept=np.array(["=1+1"], dtype=object))
    latents = written(tmp_path / "latents.zarr", data)
    run("score", latents, "-o", tmp_path / "s.zarr", "--csv", tmp_path / "s.csv", "--permutations", 99)
    with (tmp_path / "s.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    scores = stores.open_store(tmp_path / "s.zarr").compute().sel(concept="=1+1")
    assert len(rows) == 200
    assert {row["concept"] for row in rows} == {"'=1+1"}
    values = [float(row["f1"]) for row in rows]
    assert values == sorted(values, reverse=True)
    assert rows[0]["latent"] == "1"
    for row in rows:
        here = scores.sel(latent=int(row["latent"]))
        for name in ("tp", "fp", "fn", "tn", "f1", "p_value", "q_value", "p_max", "auroc"):
            assert float(row[name]) == float(here[name])
        assert row["significant"] == str(bool(here["significant"]))
        assert row["f1_low"] == "" if np.isnan(here["f1_low"]) else float(row["f1_low"]) == float(here["f1_low"])


def test_scores_of_before_the_tests_are_scored_again(tmp_path: Path, run: Run) -> None:
    scores = score(web_study(MIXED)).compute().drop_vars("prediction_bits")
    empty = ("image", np.array([""] * 40, dtype=object))
    scores = scores.assign_coords(sha256=empty)
    stores.write_whole(str(tmp_path / "old.zarr"), scores, kind="scores", provenance={})
    told = run("score", tmp_path / "old.zarr", "-o", tmp_path / "new.zarr", code=1)
    assert "found no prediction_bits or label, so nothing can be tested; score again" in told.stderr
    assert not (tmp_path / "new.zarr").exists()


def test_a_baseline_needs_activations(tmp_path: Path, run: Run) -> None:
    latents = written(tmp_path / "latents.zarr", web_study(MIXED))
    for name in ("channels", "random-sae"):
        told = run("score", latents, "-o", tmp_path / "s.zarr", "--baseline", name, code=2)
        assert "need --sae" in told.stderr
        assert not (tmp_path / "s.zarr").exists()


def test_bits_of_chunks_are_the_bits() -> None:
    found = xr.DataArray(np.random.default_rng(0).random((7, 30)) < 0.5, dims=("image", "latent"))
    xr.testing.assert_identical(as_bits(found), as_bits(found.chunk(image=2, latent=7)).compute())
