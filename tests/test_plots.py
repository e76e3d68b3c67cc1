"""The picture of what chance reaches: its numbers against brute force, its parts, its files."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import xarray as xr
from click.testing import Result
from matplotlib.figure import Figure
from PIL import Image

from semprobe import plots, stores
from semprobe.errors import DataError
from semprobe.panels import critical_f1_of_null, in_words, panels
from semprobe.scoring import draw_latents, floor_f1, precision, recall, support
from semprobe.significance import p_max, significance
from tests.test_significance import make_scores

Run = Callable[..., Result]


def make_tested(
    names: tuple[str, ...] = ("fur", "wheel"), images: int = 60, plant: bool = True, **how: Any
) -> xr.Dataset:
    """Scores with everything that is drawn; of the last concept five latents are equal and all but perfect."""
    scores = make_scores(images, 50, concepts=len(names))
    if plant:
        mine = scores["label"].values[:, -1]
        bits = np.unpackbits(scores["prediction_bits"].values, axis=1)
        bits[:, 40:45] = (mine == 1)[:, None]
        bits[np.flatnonzero(mine == 1)[0], 40:45] = 0
        scores["prediction_bits"] = ("image", "byte"), np.packbits(bits, axis=1)
        positives, negatives = (int((mine == value).sum()) for value in (1, 0))
        for name, value in {"tp": positives - 1, "fp": 0, "fn": 1, "tn": negatives}.items():
            scores[name][-1, 40:45] = value
        scores["f1"][-1, 40:45] = 2 * (positives - 1) / (2 * positives - 1)
    scores = scores.assign_coords(concept=np.array(names, dtype=object), latent=np.arange(50))
    drawn = draw_latents(list(names), 50, 30, 0)
    return scores.assign(significance(scores, permutations=200, **how)).assign(
        precision=precision(scores), recall=recall(scores),
        support=support(scores), floor_f1=floor_f1(scores["label"]), random_latent=(("concept", "draw"), drawn),
        random_f1=(("concept", "draw"), np.take_along_axis(scores["f1"].values, drawn, 1)),
        f1_low=scores["f1"].where(scores["f1"] > 0.5) - 0.1, f1_high=(scores["f1"] + 0.1).clip(max=1),
    ).assign_attrs(provenance={"alpha": how.get("alpha", 0.05), "permutations": 200,
                               "family": how.get("family", "concept")})  # fmt: skip


def texts(figure: Figure) -> list[str]:
    from matplotlib.text import Text

    return [found.get_text() for found in figure.findobj(Text)]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "scores.zarr"
    data = make_tested()
    stores.write_whole(path, data.drop_vars("label"), kind="scores", provenance=data.attrs["provenance"])
    return path


# numbers


def test_settings_of_the_test_are_read_where_score_keeps_them() -> None:
    data = make_tested(family="study", alpha=0.2)
    nested = data.assign_attrs(provenance={"tests": data.attrs["provenance"]})
    assert [(one.alpha, one.family) for one in panels(nested)] == [(0.2, "study")] * 2


@pytest.mark.parametrize(("positives", "negatives"), [(4, 4), (7, 3), (2, 9), (1, 1)])
@pytest.mark.parametrize("alpha", [0.001, 0.01, 0.05, 0.1, 0.5, 0.99])
def test_the_critical_f1_is_that_of_brute_force(positives: int, negatives: int, alpha: float) -> None:
    possible = sorted({
        2 * tp / (tp + fp + positives)
        for tp, fp in product(range(positives + 1), range(negatives + 1)) if 0 < tp + fp < positives + negatives
    })  # fmt: skip
    for seed in range(5):
        null = np.random.default_rng(seed).choice(possible[-5:] if seed else possible, 99)
        expected = [f for f in possible if (1 + sum(null >= f)) / 100 <= alpha]
        found = critical_f1_of_null(null, positives, negatives, alpha=alpha)
        assert found == (expected[0] if expected else np.inf)


def test_the_critical_f1_is_where_latents_become_significant() -> None:
    scores = make_tested(images=200)
    for panel in panels(scores, top=50):
        inside = scores.sel(concept=panel.concept).isel(latent=slice(4, None))
        assert ((inside["f1"] >= panel.critical) == inside["significant"]).all()
        assert all(one.significant == (one.p_max <= 0.05) for one in panel.top)
    assert panels(scores)[1].top[0].significant


def test_a_perfect_f1_of_chance_leaves_no_critical_f1() -> None:
    assert critical_f1_of_null(np.ones(100), 20, 20) == np.inf
    assert critical_f1_of_null(np.zeros(10), 20, 20) == np.inf, "ten permutations can't tell 5 %"
    assert critical_f1_of_null(np.zeros(10), 50_000, 50_000, alpha=0.5) > 0, "no arrays of all pairs"


def test_panels_are_what_the_store_holds() -> None:
    scores = make_tested(alpha=0.2)
    fur, wheel = panels(scores, top=7)
    assert (fur.concept, fur.positives, fur.negatives, fur.latents) == ("fur", 20, 20, 50)
    assert fur.alpha == 0.2
    assert fur.floor == float(scores["floor_f1"][0])
    assert (fur.null == scores["null_max_f1"].values[0]).all()
    assert [one.latent for one in wheel.top[:5]] == [40, 41, 42, 43, 44]
    assert len(wheel.top) == 7
    assert wheel.top[0].p_max == float(scores["p_max"][1, 40])
    assert wheel.top[0].low == pytest.approx(wheel.top[0].f1 - 0.1)
    found = wheel.describe()
    assert found["null"] == {
        "permutations": 200, **{f"p{q:02}": np.quantile(wheel.null, q / 100) for q in (5, 50, 95)}
    }  # fmt: skip
    assert found["random"]["draws"] == 30
    assert [one.concept for one in panels(scores, concepts=["wheel", "fur", "wheel"])] == ["wheel", "fur"]
    assert panels(scores, alpha=0.01)[0].alpha == 0.01


def test_a_study_has_its_own_bar_a_concept() -> None:
    scores = make_tested(images=200, family="study")
    alone = panels(make_tested(images=200))
    for one, plain in zip(panels(scores, top=50), alone, strict=True):
        assert (one.null == plain.null).all()
        assert one.critical >= plain.critical
        inside = scores.sel(concept=one.concept).isel(latent=slice(4, None))
        assert ((inside["f1"] >= one.critical) == inside["significant"]).all()
    (wheel,) = panels(scores, concepts=["wheel"])
    assert (
        wheel.critical
        == critical_f1_of_null(wheel.null, wheel.positives, wheel.negatives, alpha=0.05, concepts=2)
        == critical_f1_of_null(wheel.null, wheel.positives, wheel.negatives, alpha=0.025)
    )
    again = panels(scores.drop_vars("p_max"))[1]
    assert [one.p_max for one in again.top] == [one.p_max for one in wheel.top]
    assert wheel.top[0].p_max == 2 * p_max(np.array([wheel.top[0].f1]), wheel.null)[0]
    assert any("all latents of all 2 concepts (family: study)" in text for text in texts(plots.draw([wheel])))


def test_only_some_variables() -> None:
    scores = make_tested()
    bare = scores[["tp", "fp", "fn", "tn", "f1", "null_max_f1"]].drop_attrs(deep=False).drop_vars("latent")
    for one, other in zip(panels(bare), panels(scores), strict=True):
        assert [(top.latent, top.p_max) for top in one.top] == [(top.latent, top.p_max) for top in other.top]
        assert (one.critical, one.floor) == (other.critical, other.floor)
    figure = plots.plot_null(bare)
    assert not any("drawn at random" in text or "interval" in text for text in texts(figure))
    always_on = panels(bare, top=50)[0].top
    assert next(one for one in always_on if one.latent == 1).p_max == 1
    with pytest.raises(DataError, match="found no null_max_f1.*score again"):
        plots.plot_null(scores.drop_vars("null_max_f1"))
    with pytest.raises(DataError, match="no concept hub, expected some of fur, wheel"):
        plots.plot_null(scores, concepts=["hub"])
    for wrong in ({"top": 0}, {"alpha": 1.0}):
        with pytest.raises(DataError, match="expected at least 1"):
            plots.plot_null(scores, **wrong)  # type: ignore[arg-type]


# the picture


@pytest.mark.parametrize("values", [[0.8] * 50, [0.7, 0.74, 0.75, 0.81, 0.9] * 30, [0.0, 1.0] * 9, [2 / 3] * 9 + [1.0]])
def test_bins_do_not_lose_anything(values: list[float]) -> None:
    null = np.array(values)
    shares = plots._shares(null, plots._null_edges(null))
    assert shares.sum() == pytest.approx(1)
    assert plots._shares(null, plots._edges(0.05)).sum() == pytest.approx(1)


def test_bins_show_one_peak() -> None:
    """Every other one of fine bins is empty where F1 takes few values; the picture must not be such a comb."""
    rng = np.random.default_rng(0)
    null = 0.6 + 0.031 * rng.binomial(10, 0.5, 5000)
    shares = plots._shares(null, plots._null_edges(null))
    peak = shares.argmax()
    assert (np.diff(shares[: peak + 1]) >= -0.005).all()
    assert (np.diff(shares[peak:]) <= 0.005).all()


def test_the_picture_says_what_it_shows() -> None:
    figure = plots.plot_null(make_tested())
    said = texts(figure)
    for part in ("fur", "wheel", "20 positive, 20 negative images; 50 latents", "F1 (no unit)", "share of permutations",
                 "latent 40", "latent 44", "floor 0.667", "chance: the largest F1 of all latents, labels shuffled",
                 "critical F1: the smallest that is significant", "floor: F1 of firing on every image",
                 "best latents, significant: F1 and bootstrap interval"):  # fmt: skip
        assert part in said, part
    assert figure.get_label().splitlines()[1:] == [in_words(one) for one in panels(make_tested())]
    limits = {axes.get_xlim() for axes in figure.axes}
    assert len(limits) == 1, "one axis of F1 for all"


@pytest.mark.parametrize("number", [1, 4])
def test_a_confounded_concept_is_no_all_clear(number: int, tmp_path: Path, run: Run) -> None:
    names = tuple(f"c{at}" for at in range(number))
    data = make_tested(names)
    within = np.arange(number) % 2 == 1
    data = data.assign(
        within_source=("concept", within),
        source_words=("concept", np.array([f"all positives of {name} come from web" for name in names], dtype=object)),
    )
    found = panels(data)
    assert [one.confounded for one in found] == (~within).tolist()
    figure = plots.plot_null(data)
    assert [text.startswith("CONFOUNDED") for text in texts(figure)].count(True) == (~within).sum()
    for one, told in zip(found, figure.get_label().splitlines()[1:], strict=True):
        sentence = f"{'CONFOUNDED: ' if one.confounded else ''}all positives of {one.concept} come from web"
        assert told == in_words(one)
        assert told.endswith(f"significant; {sentence}")
        assert one.describe().items() >= {"within_source": not one.confounded, "source_words": one.source_words}.items()
    assert "CONFOUNDED: significant may mean the source" in plots.as_svg(figure)
    check_apart(figure)
    stores.write_whole(tmp_path / "s.zarr", data.drop_vars("label"), kind="scores", provenance={})
    out = run("plot", tmp_path / "s.zarr", "-o", tmp_path / "s.png").stdout
    assert "CONFOUNDED: all positives of c0" in out
    assert not any(one.confounded for one in panels(make_tested())), "scores that do not tell"


def test_significant_latents_differ_by_shape_and_colour() -> None:
    figure = plots.plot_null(make_tested(), concepts=["wheel"], top=8)
    points = [line for line in figure.axes[1].lines if line.get_marker() in ("D", "o")]
    assert len(points) == 8
    yes, no = ({(line.get_marker(), line.get_color()) for line in points[part]} for part in (slice(5), slice(5, None)))
    assert len(yes) == len(no) == 1
    assert all(one != other for one, other in zip(*yes, *no, strict=True))


@pytest.mark.parametrize("number", [1, 4, 13])
def test_no_two_words_overlap(number: int) -> None:
    names = ("a name that goes on and on " * 9, "WIDE " * 40, *map(str, range(number)))[:number]
    assert check_apart(plots.plot_null(make_tested(names))) > 30 * number


def check_apart(figure: Figure) -> int:
    """Fail if words of a figure overlap or leave it; the number of words."""
    from matplotlib.text import Text

    figure.draw_without_rendering()
    boxes = [one.get_window_extent() for one in figure.findobj(Text) if one.get_text().strip() and one.get_visible()]
    for at, one in enumerate(boxes):
        assert figure.bbox.x0 <= one.x0
        assert one.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= one.y0
        assert one.y1 <= figure.bbox.y1
        for other in boxes[at + 1 :]:
            across, down = min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1) - max(one.y0, other.y0)
            assert across < 0 or down < 2, (one, other)
    return len(boxes)


def test_nothing_can_be_significant() -> None:
    scores = make_tested()
    scores["null_max_f1"] = xr.ones_like(scores["null_max_f1"])
    figure = plots.plot_null(scores.drop_vars("p_max"))
    assert "no F1 is high enough:\nnothing can be significant" in texts(figure)
    assert not any("critical" in text for text in texts(figure))
    assert "no F1 can be significant" in figure.get_label()


# files

ODD = ('<b>x</b> & "q" ]]>', "$\\frac{$", "snow_leopard", "عجلة السيارة", "車輪" * 40, "\U0001f6de \x01", "%s{}")


@pytest.mark.parametrize("form", plots.FORMATS)
def test_odd_names_and_the_same_bytes_again(form: str, caplog: pytest.LogCaptureFixture) -> None:
    scores = make_tested(ODD, images=90)
    with caplog.at_level(logging.WARNING):
        first = plots.render(plots.plot_null(scores), form)
    assert caplog.messages == []
    with matplotlib.rc_context({"font.size": 30, "savefig.bbox": "tight", "axes.facecolor": "red"}):
        assert plots.render(plots.plot_null(scores), form) == first
    assert first.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[form])


def test_svg_for_a_page() -> None:
    figure = plots.plot_null(make_tested(ODD, images=90))
    found = plots.as_svg(figure)
    root = ET.fromstring(found)
    assert found.startswith("<svg ")
    assert found.rstrip().endswith("</svg>")
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("role") == "img"
    assert root[0].tag == "{http://www.w3.org/2000/svg}title"
    assert root[0].text == figure.get_label().replace("\x01", " ")
    assert "<b>" not in found
    words = ["".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {ODD[0], ODD[1], ODD[2]} <= set(words), "text is text, and no mathematics"
    assert root.find(".//{http://www.w3.org/2000/svg}metadata") is None
    groups = [one for one in root.iter("{http://www.w3.org/2000/svg}g") if one.get("id")]
    assert groups == [], "ids that several figures on a page would share"


# the command


def test_command_draws(store: Path, tmp_path: Path, run: Run) -> None:
    png = tmp_path / "null.PNG"
    out = run("plot", store, "-o", png).stdout
    assert "wheel: critical F1 0." in out
    assert "best latent 40 with F1 0.974" in out
    assert out.endswith(f"{png}: 2 concepts\n")
    with Image.open(png) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1500
        assert len(picture.convert("RGB").getcolors(10**6) or []) > 50
    found = json.loads(run("plot", store, "-o", tmp_path / "a.svg", "--concept", "wheel", "--top", 2, "--json").stdout)
    (wheel,) = found["concepts"]
    assert found["picture"] == str(tmp_path / "a.svg")
    assert [one["latent"] for one in wheel["top"]] == [40, 41]
    assert wheel["top"][0]["significant"] is True
    assert wheel["critical_f1"] == panels(make_tested())[1].critical
    assert wheel["floor_f1"] == pytest.approx(2 / 3)
    assert wheel["null"]["permutations"] == 200
    ET.fromstring((tmp_path / "a.svg").read_text())
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.svg", "null.PNG", "scores.zarr"]


def test_command_refuses(store: Path, acts: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object, message: str, code: int = 1) -> None:
        result = run("plot", *arguments, code=code)
        assert result.stdout == ""
        assert message in " ".join(result.stderr.split())

    png = tmp_path / "null.png"
    for name in ("null.jpg", "null", ".png"):
        fails(store, "-o", tmp_path / name, message="a picture is .png, .svg, .pdf", code=2)
    fails(store, message="Missing option '-o'", code=2)
    fails(store, "-o", png, "--top", 0, message="'--top': 0 is not in the range", code=2)
    fails(store, "-o", png, "--concept", "hub", message="scores.zarr: there is no concept hub, expected some of fur")
    fails(acts, "-o", png, message="this is a store of activations, expected one of scores")
    fails(tmp_path / "no.zarr", "-o", png, message="no.zarr")
    fails(store, "-o", tmp_path / "no" / "null.png", message="there is no folder")
    old = tmp_path / "old.zarr"
    data = make_tested().drop_vars(["label", "null_max_f1"])
    stores.write_whole(old, data, kind="scores", provenance={})
    fails(old, "-o", png, message="old.zarr: found no null_max_f1, which says what chance reaches; score again")
    assert not png.exists()
    png.write_bytes(b"mine")
    fails(store, "-o", png, message="null.png: this file exists already; --overwrite replaces it")

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        patch.setattr(Path, "replace", full)
        fails(store, "-o", png, "--overwrite", message="No space left on device")
    assert png.read_bytes() == b"mine"
    assert not list(tmp_path.glob(".*"))
    run("plot", store, "-o", png, "--overwrite")
    assert png.read_bytes().startswith(b"\x89PNG")


def test_matplotlib_is_loaded_by_drawing_alone_and_pyplot_never() -> None:
    code = (
        "import sys, semprobe.plots, semprobe.panels, semprobe.cli.plot; print('matplotlib' in sys.modules);"
        "from tests.test_plots import make_tested; import semprobe.plots as p; p.as_svg(p.plot_null(make_tested()));"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.split() == ["False", "False"]
