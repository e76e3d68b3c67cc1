"""A study on disk: its manifest, verdicts, two writers at once, and hostile text."""

from __future__ import annotations

import csv
import json
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from semprobe import open_store
from semprobe.collecting import Item, collect
from semprobe.errors import StudyError
from semprobe.images import find_images
from semprobe.manifest import COLUMNS, Row, check_name, neutralise, restore
from semprobe.study import Study, create, unverified
from tests.conftest import MODEL, draw

Run = Callable[..., Result]

HOSTILE = [
    "=HYPERLINK(\"http://evil\")", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1", "'quoted", "'=1", "''", "'", "＝1",
    "a\nb\r\nc", '"quotes", and; commas',
    "../../etc/passwd", "<script>alert(1)</script>", "\u202eabc", "x" * 10_000, "",
]  # fmt: skip


def row(at: int, concept: str = "wheel", label: str = "negative", **more: str) -> Row:
    digest = f"{at:064x}"
    return {"path": f"images/{digest}.png", "sha256": digest, "concept": concept, "label": label, **more}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return create(tmp_path / "study", ["wheel", "t-shirt"])


@pytest.fixture
def filled(study: Study, tmp_path: Path) -> Study:
    """Three positives, and three negatives one of which is on both concepts."""
    for label, colours in (("positive", (20, 80, 140)), ("negative", (40, 100, 160))):
        files = [draw(tmp_path / f"{label}{c}.png", (c, 255 - c, c // 2), (40 + c, 50)) for c in colours]
        items = [Item(str(file), {"reason": "for the test", "source": "drawn"}) for file in files]
        assert {one.state for one in collect(study, "wheel", items, label=label)} == {"added"}
    shared = Item(str(tmp_path / "negative40.png"), {"reason": "has sleeves", "source": "drawn"})
    assert [one.state for one in collect(study, "t-shirt", [shared])] == ["added"]
    return study


def test_a_new_study_has_all_that_is_promised(study: Study) -> None:
    assert study.concepts == ["wheel", "t-shirt"]
    assert study.manifest.read_text().splitlines() == [",".join(f'"{name}"' for name in COLUMNS)]
    assert study.images.is_dir()
    assert json.loads((study.folder / "study.json").read_text())["semprobe_study"] == 1


def test_init_adds_concepts_and_touches_nothing_else(filled: Study, run: Run) -> None:
    before = filled.manifest.read_bytes()
    assert "wheel, t-shirt, fur" in run("init", filled.folder, "--concept", "fur", "--concept", "wheel").stdout
    assert filled.manifest.read_bytes() == before
    assert "differs from Wheel in case only" in run("init", filled.folder, "--concept", "Wheel", code=1).stderr


def test_init_leaves_other_folders_alone(tmp_path: Path, run: Run) -> None:
    draw(tmp_path / "photos" / "a.png")
    assert "not an empty folder" in run("init", tmp_path / "photos", "--concept", "wheel", code=1).stderr
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.png"]


@pytest.mark.parametrize("name", ["wheel", "t-shirt", "cat 2", "Fahrrad", "колесо", "車輪", "हिन्दी", "v1.0_b"])
def test_names_that_can_be(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", " wheel", "wheel ", "a  b", "../x", "a/b", "a\\b", "a\nb", 'a"b', "a'b", "<b>", "=1", "-a", ".a", "a\u202eb",
     "a\u200fb", "a;b", "a:b", "x" * 101, "\u0301a", "a\0b", "\ud800"],
)  # fmt: skip
def test_names_that_can_not(name: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="starts and ends with a letter or digit") as caught:
        create(tmp_path / "study", [name])
    assert len(str(caught.value)) < 400
    assert "\u202e" not in str(caught.value)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("text", HOSTILE)
def test_no_cell_is_a_formula_and_nothing_is_lost(text: str, study: Study) -> None:
    assert restore(neutralise(text)) == text
    study.append([row(1, reason=text, url=text, licence=text)])
    assert study.rows()[0]["reason"] == text
    with study.manifest.open(newline="") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    assert not [cell for cell in cells if cell.startswith(tuple("=+-@\t\r\n＝"))]
    study.set_verdict(row(1)["path"], "wheel", "accepted", text or "Ada")
    assert study.rows()[0]["verified_by"] == (text or "Ada")


def test_file_names_that_are_no_unicode_can_be_written_down(study: Study) -> None:
    study.append([row(1, url="/pictures/\udcff.png")])
    assert study.rows()[0]["url"] == "/pictures/\\udcff.png"


def test_a_cell_too_long_for_any_reader_is_refused(study: Study) -> None:
    before = study.manifest.read_bytes()
    with pytest.raises(StudyError, match="100,001 characters"):
        study.append([row(1, reason="x" * 100_001)])
    assert study.manifest.read_bytes() == before


def test_a_verdict_changes_four_cells(study: Study) -> None:
    study.append([row(at, reason="r", criteria="old") for at in range(3)])
    study.append([row(1, "t-shirt")])
    before = study.rows()
    study.set_criteria("wheel", "no wheel at all")
    study.set_verdict(row(1)["path"], "wheel", "rejected", "Ada")
    after = study.rows()
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True, True]
    changed = {key for key in COLUMNS if before[1][key] != after[1][key]}
    assert changed == {"verdict", "verified_by", "verified_at", "criteria"}
    assert after[1]["criteria"] == "no wheel at all"
    study.set_verdict(row(1)["path"], "wheel", "", "Ada")
    assert (study.rows()[1]["verdict"], study.rows()[1]["verified_by"]) == ("", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((row(9)["path"], "wheel", "accepted", "Ada"), "has no row"),
        ((row(1)["path"], "t-shirt", "accepted", "Ada"), "has no row"),
        ((row(1)["path"], "wheel", "perhaps", "Ada"), "expected accepted"),
        ((row(1)["path"], "wheel", "accepted", " "), "the name of who looked"),
    ],
)
def test_verdicts_that_can_not_be(study: Study, arguments: tuple[str, str, str, str], said: str) -> None:
    study.append([row(1)])
    before = study.manifest.read_bytes()
    with pytest.raises(StudyError, match=said):
        study.set_verdict(*arguments)
    assert study.manifest.read_bytes() == before


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"path": "images/../../secret.png"}, "expected images/"),
        ({"sha256": "0" * 64}, "expected images/"),
        ({"label": "maybe"}, "expected label"),
        ({"verdict": "ok"}, "expected label"),
        ({"concept": "../x"}, "can't be a concept's name"),
    ],
)
def test_rows_that_break_a_rule_are_refused_and_nothing_is_written(study: Study, bad: Row, said: str) -> None:
    study.append([row(1)])
    before = study.manifest.read_bytes()
    with pytest.raises(StudyError, match=said):
        study.append([row(2), {**row(3), **bad}])
    with pytest.raises(StudyError, match="twice"):
        study.append([row(1)])
    assert study.manifest.read_bytes() == before
    assert [path.name for path in study.folder.glob(".*.part")] == []


def test_a_damaged_study_says_where(study: Study, tmp_path: Path) -> None:
    study.manifest.write_text("path;sha256\n")
    with pytest.raises(StudyError, match="separated by commas"):
        study.rows()
    (study.folder / "study.json").write_text('{"semprobe_study": 99, "concepts": [], "samplings": []}')
    with pytest.raises(StudyError, match="version 99"):
        Study(study.folder)
    (study.folder / "study.json").write_text('{"semprobe')
    with pytest.raises(StudyError, match="damaged"):
        Study(study.folder)
    with pytest.raises(StudyError, match="semprobe init"):
        Study(tmp_path)


def _append(folder: Path, start: int) -> None:
    study = Study(folder)
    for at in range(start, start + 25):
        study.append([row(at)])
        study.set_verdict(row(at)["path"], "wheel", "accepted", f"process {start}")


def test_two_processes_lose_nothing(study: Study) -> None:
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_append, args=(study.folder, start)) for start in (0, 100)]
    for one in others:
        one.start()
    for one in others:
        one.join()
    assert [one.exitcode for one in others] == [0, 0]
    found = {found["path"]: found["verified_by"] for found in study.rows()}
    assert found == {row(at)["path"]: f"process {at // 100 * 100}" for at in (*range(25), *range(100, 125))}


def test_pictures_outside_are_out_of_reach(filled: Study, tmp_path: Path) -> None:
    draw(tmp_path / "secret.png")
    (filled.images / "link.png").symlink_to(tmp_path / "secret.png")
    for path in ("../secret.png", "images/../../secret.png", str(tmp_path / "secret.png"), "images/link.png", "images/",
                 "study.json", "images/../study.json"):  # fmt: skip
        with pytest.raises(StudyError, match="no picture of this study"):
            filled.image(path)
    assert filled.image(filled.rows()[0]["path"]).is_file()


def test_the_lock_is_no_link(filled: Study, tmp_path: Path) -> None:
    (filled.folder / ".lock").unlink(missing_ok=True)
    (filled.folder / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StudyError, match=r"\.lock: can't be locked"), Study(filled.folder).locked():
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_pictures_are_in_the_study_itself(filled: Study, tmp_path: Path) -> None:
    filled.images.rename(tmp_path / "elsewhere")
    filled.images.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StudyError, match="images: is a link"):
        Study(filled.folder)


# what the experiment uses


def test_find_images_uses_what_is_not_rejected(filled: Study) -> None:
    first, second, third = (
        found for found in filled.rows() if (found["label"], found["concept"]) == ("negative", "wheel")
    )
    filled.set_verdict(first["path"], "wheel", "rejected", "Ada")
    filled.set_verdict(second["path"], "wheel", "accepted", "Ada")
    filled.set_verdict(third["path"], "wheel", "unsure", "Ada")
    for given in (filled.folder, filled.manifest):
        found = find_images(given)
        label = found["label"].to_pandas()
        assert label.loc[first["path"]].to_dict() == {"t-shirt": 1, "wheel": -1}
        assert label.loc[second["path"], "wheel"] == label.loc[third["path"], "wheel"] == 0
        assert set(found["source"].values) == {"drawn"}
        assert set(found.coords) == {"image", "concept", "label", "file", "source", "url", "licence", "sha256"}
    assert unverified(filled) == {"wheel": (1, 2), "t-shirt": (0, 0)}
    assert len(filled.rows()) == 7


def test_commands_know_where_to_write(filled: Study, sae_file: Path, run: Run, tmp_path: Path) -> None:
    run("collect", filled.folder, "t-shirt", tmp_path / "positive20.png", "--negative", "--reason", "bare", "--quiet")
    assert "has no activations yet" in run("encode", filled.folder, "--sae", sae_file, code=1).stderr
    model = ("--model", MODEL, "--random-weights", 0, "--quiet")
    run("extract", filled.folder, *model)
    assert {"source", "url", "licence"} <= set(open_store(filled.activations).coords)
    run("encode", filled.folder, "--sae", sae_file, "--quiet")
    stored = run("score", filled.folder, "--random", 9)
    assert "wheel: 3 of 3 negatives are unverified" in stored.stderr
    assert "wheel: 3 positive, 3 negative" in stored.stdout
    direct = run("score", filled.folder, "--sae", sae_file, "--random", 9, "--overwrite", "--json", "--quiet")
    assert json.loads(direct.stdout)["unverified_negatives"] == {"wheel": 3, "t-shirt": 1}
    assert open_store(filled.scores).sizes["concept"] == 2

    negative = next(found["path"] for found in filled.rows() if found["label"] == "negative")
    filled.set_verdict(negative, "wheel", "rejected", "Ada")
    stale = run("score", filled.folder, "-o", tmp_path / "other.zarr", code=1).stderr
    assert "1 no longer used" in stale
    assert "--overwrite" in stale
    run("extract", filled.folder, *model, "--overwrite")
    again = run("score", filled.folder, "--sae", sae_file, "--random", 9, "--overwrite")
    assert "wheel: 2 of 2 negatives are unverified" in again.stderr


def test_a_study_can_be_moved(filled: Study, tmp_path: Path) -> None:
    there = Path(shutil.move(filled.folder, tmp_path / "elsewhere"))
    assert np.all([Path(file).is_file() for file in find_images(there)["file"].values])


def test_elsewhere_an_output_is_still_needed(pictures: Path, run: Run) -> None:
    assert "Missing option '-o'" in run("extract", pictures, "--model", MODEL, code=2).stderr


def test_a_changed_picture_is_noticed(filled: Study, run: Run) -> None:
    draw(filled.image(filled.rows()[0]["path"]), (1, 2, 3))
    found = run("extract", filled.folder, "--model", MODEL, "--random-weights", 0, "--quiet", code=1).stderr
    assert "other bytes than its name says" in found
    assert not filled.activations.exists()
