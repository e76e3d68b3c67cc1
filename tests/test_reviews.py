"""Answers: every change a row, nothing lost, agreement, damage told in plain words."""

from __future__ import annotations

import json
import math
import multiprocessing
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from sklearn.metrics import cohen_kappa_score

from semprobe.errors import StudyError, StudyLocked
from semprobe.manifest import MAX_CELL
from semprobe.reviews import FIELDS, Answer, Reviews, cohen_kappa
from semprobe.study import Study
from tests.conftest import HOSTILE, answer

Run = Callable[..., Result]


@pytest.fixture
def reviews(tmp_path: Path) -> Iterator[Reviews]:
    with Reviews(tmp_path / "review.sqlite") as opened:
        yield opened


def test_answers_are_what_changes_add_up_to(reviews: Reviews) -> None:
    reviews.set("Ada", "wheel", 3, "hypothesis", "rims")
    reviews.set(" Ada ", "wheel", 3, "hypothesis", "rims of cars")
    reviews.set("Ada", "wheel", 3, "verdict", "validated")
    reviews.set("Ada", "wheel", 3, "verdict", "unclear", blinded=True)
    reviews.set("Ben", "wheel", 3, "verdict", "rejected")
    for image, picked in (("a", True), ("b", True), ("a", False), ("c", True), ("b", True)):
        reviews.pick("Ada", "wheel", 3, "pictures_for", image, picked=picked)
    first, blinded, other = reviews.answers()
    at = reviews.history()[-1].at
    assert first == Answer(
        "Ada", "wheel", 3, False, at=at, verdict="validated", hypothesis="rims of cars", pictures_for=("c", "b")
    )
    assert (blinded.verdict, blinded.blinded, blinded.hypothesis) == ("unclear", True, "")
    assert (other.reviewer, other.verdict) == ("Ben", "rejected")
    assert [one.value for one in reviews.history("wheel", 3) if one.field == "hypothesis"] == ["rims", "rims of cars"]
    assert reviews.history("fur") == []


def test_only_what_is_asked_for_is_read(reviews: Reviews) -> None:
    for who, concept, latent in (("Ada", "wheel", 3), ("Ben", "wheel", 3), ("Ada", "wheel", 4), ("Ada", "fur", 3)):
        reviews.set(who, concept, latent, "verdict", "validated")
    all_ = reviews.answers()
    for concept, latent, number in ((None, None, 4), ("wheel", None, 3), ("wheel", 3, 2), (None, 3, 3), ("sky", 3, 0)):
        found = reviews.answers(concept, latent)
        assert found == [one for one in all_ if concept in (None, one.concept) and latent in (None, one.latent)]
        assert len(found) == number
    with closing(sqlite3.connect(reviews.path, isolation_level=None)) as base:
        base.execute("INSERT INTO change SELECT NULL, at, reviewer, concept, 5, 'mood', value, 0 FROM change LIMIT 1")
    assert len(reviews.answers("wheel", 3)) == len(reviews.history("wheel", 3)) == 2  # the damage is elsewhere


def test_two_windows_on_one_field_are_told_of_each_other(reviews: Reviews) -> None:
    first = reviews.set("Ada", "wheel", 3, "caveats", "one", seen=0)
    second = reviews.set("Ada", "wheel", 3, "caveats", "two", seen=0)
    third = reviews.set("Ada", "wheel", 3, "caveats", "three", seen=second.change.id)
    reviews.set("Ben", "wheel", 3, "caveats", "mine", seen=0)
    assert (first.others, second.others, third.others) == ([], [first.change], [])
    assert len(reviews.history()) == 4


def test_no_row_ever_changes(reviews: Reviews) -> None:
    reviews.set("Ada", "wheel", 3, "caveats", "one")
    with sqlite3.connect(reviews.path) as base:
        for words in ("UPDATE change SET value = 'x'", "DELETE FROM change"):
            with pytest.raises(sqlite3.IntegrityError, match="only ever added"):
                base.execute(words)
    base.close()
    assert [one.value for one in reviews.history()] == ["one"]


@pytest.mark.parametrize("text", [*HOSTILE, "\ud800", "", "x" * MAX_CELL])
def test_text_is_saved_as_typed(reviews: Reviews, text: str) -> None:
    reviews.set("Ada", "wheel", 3, "evidence_for", text)
    kept = text.encode("utf-8", "backslashreplace").decode()
    assert reviews.answers()[0].evidence_for == kept
    assert json.loads(json.dumps(reviews.export()))["answers"][0]["evidence_for"] == kept


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("", "wheel", 3, "verdict", "validated"), "name"),
        (("x" * 101, "wheel", 3, "verdict", "validated"), "name"),
        (("a\u202eb", "wheel", 3, "verdict", "validated"), "visible"),
        (("Ada", "wheel", 3, "verdict", "maybe"), "expected validated, rejected, unclear"),
        (("Ada", "wheel", 3, "pictures_for", "a"), "no field"),
        (("Ada", "wheel", 3, "caveats", "x" * (MAX_CELL + 1)), "the limit is 100,000"),
        (("Ada", "wheel", -1, "caveats", "x"), "no latent"),
    ],
)
def test_what_is_no_answer_is_refused(reviews: Reviews, given: tuple[str, str, int, str, str], said: str) -> None:
    with pytest.raises(StudyError, match=said):
        reviews.set(*given)
    assert reviews.history() == []
    with pytest.raises(StudyError, match="no field"):
        reviews.pick("Ada", "wheel", 3, "caveats", "a")


def test_kappa_is_scikit_learns(reviews: Reviews) -> None:
    rng = np.random.default_rng(0)
    words = np.array(["validated", "rejected", "unclear"])
    first = words[rng.integers(0, 3, 40)]
    second = np.where(rng.random(40) < 0.6, first, words[rng.integers(0, 3, 40)])
    for latent, (one, other) in enumerate(zip(first, second, strict=True)):
        reviews.set("Ada", "wheel", latent, "verdict", one)
        reviews.set("Ben", "wheel", latent, "verdict", other)
    reviews.set("Ada", "fur", 1, "verdict", "validated")
    reviews.set("Cay", "fur", 2, "verdict", "validated")
    (found,) = reviews.kappa()
    assert (found.first, found.second, found.judged) == ("Ada", "Ben", 40)
    assert found.kappa == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)
    assert reviews.kappa("fur") == reviews.kappa(blinded=True) == []


def test_kappa_by_hand() -> None:
    assert cohen_kappa([("a", "a"), ("b", "b")]) == 1
    assert cohen_kappa([("a", "b"), ("b", "a")]) == -1
    assert math.isnan(cohen_kappa([]))
    assert math.isnan(cohen_kappa([("a", "a")]))


# the file


def _write_many(path: Path, who: str) -> None:
    with Reviews(path) as opened:
        for at in range(300):
            opened.set(who, "wheel", at, "caveats", f"{who} {at}", seen=0)  # reads, then writes


def test_processes_and_threads_lose_nothing(tmp_path: Path) -> None:
    path, context = tmp_path / "review.sqlite", multiprocessing.get_context("spawn")
    Reviews(path).close()
    writers = [context.Process(target=_write_many, args=(path, who)) for who in ("Ada", "Ben")]
    for one in writers:
        one.start()
    for one in writers:
        one.join(60)
        assert one.exitcode == 0
    with Reviews(path) as opened:
        assert len(opened.history()) == 600
        assert len({(one.reviewer, one.latent) for one in opened.answers()}) == 600


def test_what_was_saved_outlives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "review.sqlite"
    code = (
        "import os, signal, sys\nfrom semprobe.reviews import Reviews\nopened = Reviews(sys.argv[1])\n"
        "for at in range(5): opened.set('Ada', 'wheel', at, 'caveats', 'text')\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    with Reviews(path) as opened:
        assert len(opened.answers()) == 5


def _damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)


def _of_something_else(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as base:
        base.execute("CREATE TABLE songs (name TEXT)")
    base.close()


def _later(path: Path) -> None:
    with sqlite3.connect(path) as base:
        base.execute("PRAGMA user_version = 99")
    base.close()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:1]), "has 1 bytes, expected whole pages of 512"),
        (lambda path: path.write_bytes(path.read_bytes()[:511]), "has 511 bytes, expected whole pages of 512"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, expected whole pages of 4,096"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4096]), "damaged"),
        (lambda path: path.write_bytes(b"no database at all" * 300), "damaged or no SQLite file"),
        (_damaged, "damaged"),
        (_of_something_else, "something else"),
        (_later, "version 99"),
    ],
)
def test_a_spoilt_file_is_told_and_left_alone(tmp_path: Path, spoil: Callable[[Path], None], said: str) -> None:
    path = tmp_path / "review.sqlite"
    with Reviews(path) as opened:
        for at in range(100):
            opened.set("Ada", "wheel", at, "caveats", "text" * 50)
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(StudyError, match=said) as told:
        Reviews(path)
    assert str(path) in str(told.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_not_followed(tmp_path: Path, there: bool) -> None:
    elsewhere, path = tmp_path / "elsewhere.sqlite", tmp_path / "review.sqlite"
    if there:
        Reviews(elsewhere).close()
    path.symlink_to(elsewhere)
    with pytest.raises(StudyError, match="is a link"):
        Reviews(path)
    assert elsewhere.exists() == there


@pytest.mark.parametrize("size", [512, 65536])
def test_pages_of_any_size_are_whole(tmp_path: Path, size: int) -> None:
    path = tmp_path / "review.sqlite"
    with Reviews(path) as opened:
        opened.set("Ada", "wheel", 3, "caveats", "text" * 100)
    with closing(sqlite3.connect(path, isolation_level=None)) as base:
        for words in ("PRAGMA journal_mode = DELETE", f"PRAGMA page_size = {size}", "VACUUM"):
            base.execute(words)
    with Reviews(path) as opened:
        assert len(opened.history()) == 1
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StudyError, match=f"expected whole pages of {size:,}"):
        Reviews(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("pictures_for", "no JSON"), ("pictures_for", "[]"), ("pictures_for", "{}"), ("pictures_for", '{"add": 3}'),
     ("pictures_against", '{"take": "a"}'), ("pictures_for", "[" * 10**5), ("at", "x"), ("mood", "x"),
     ("verdict", "maybe"), ("caveats", b"\xff")],
)  # fmt: skip
def test_a_row_that_is_no_answer_is_told_as_damage(tmp_path: Path, field: str, value: str | bytes) -> None:
    path = tmp_path / "review.sqlite"
    with Reviews(path) as opened:
        opened.set("Ada", "wheel", 3, "caveats", "one")
    with closing(sqlite3.connect(path, isolation_level=None)) as base:
        row = ("2026-11-24T04:02:04.123+00:00", "Ada", "wheel", 3, field, value, 0)
        base.execute(f"INSERT INTO change VALUES (NULL{', ?' * 7})", row)
    with Reviews(path) as opened:
        for read in (opened.answers, opened.history, opened.kappa, opened.export):
            with pytest.raises(StudyError, match="is damaged .*its row 2 is no answer"):
                read()


def test_numbers_too_large_are_refused(reviews: Reviews) -> None:
    for latent, seen in ((3, 10**30), (3, -(10**30)), (10**30, 0)):
        with pytest.raises(StudyError, match="too large"):
            reviews.set("Ada", "wheel", latent, "caveats", "one", seen=seen)
    assert reviews.history() == []
    reviews.set("Ada", "wheel", 3, "caveats", "one")
    with pytest.raises(StudyError, match="too large"):
        reviews.history("wheel", 10**30)


def test_opening_it_again_keeps_the_locks_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "review.sqlite"
    code = "import sys\nfrom semprobe.reviews import Reviews\nReviews(sys.argv[1]).close()"
    with Reviews(path) as opened:
        opened.set("Ada", "wheel", 3, "caveats", "one")
        Reviews(path).close()
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)  # would remove a log that nobody holds
        assert path.with_name("review.sqlite-wal").exists()
        opened.set("Ada", "wheel", 3, "caveats", "two")
    with Reviews(path) as opened:
        assert [one.value for one in opened.history()] == ["one", "two"]


def test_what_is_sent_again_is_stored_once(reviews: Reviews) -> None:
    """Its answer was lost; the page still knows of what was there before."""
    form = ("Ada", "wheel", 3, "caveats")
    before = reviews.set(*form, "x", seen=0).change.id
    first = reviews.set(*form, "y", seen=before)
    again = reviews.set(*form, "y", seen=before)
    assert (again.change, again.others) == (first.change, [])
    reviews.set(*form, "z", seen=first.change.id)
    assert [one.value for one in reviews.set(*form, "y", seen=first.change.id).others] == ["z"]
    assert [one.value for one in reviews.history()] == ["x", "y", "z", "y"]


def test_a_full_disk_may_have_room_later(reviews: Reviews) -> None:
    [pages] = reviews._base.execute("PRAGMA page_count").fetchone()
    reviews._base.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StudyLocked, match="review.sqlite: nothing was written.*full.*make room on its disk"):
        reviews.set("Ada", "wheel", 3, "caveats", "x" * MAX_CELL)
    reviews._base.execute("PRAGMA max_page_count = 100000")
    reviews.set("Ada", "wheel", 3, "caveats", "x" * MAX_CELL)
    assert len(reviews.history()) == 1


def test_a_locked_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "review.sqlite"
    with Reviews(path, timeout=0.1) as opened:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StudyError, match="locked by another program, nothing was written"):
            opened.set("Ada", "wheel", 3, "caveats", "text")
        other.execute("ROLLBACK")
        other.close()
        opened.set("Ada", "wheel", 3, "caveats", "text")
        assert len(opened.history()) == 1


# semprobe review --export


def test_export_has_everything(made: Study, run: Run, tmp_path: Path) -> None:
    answer(made, "Ada", "t-shirt", 3, verdict="validated", hypothesis="collars\u202e")
    answer(made, "Ben", "t-shirt", 3, verdict="validated")
    to = tmp_path / "answers.json"
    run("review", made.folder, "--export", to)
    found = json.loads(to.read_text())
    assert json.loads(run("review", made.folder, "--export", "-").stdout) == found
    assert found["semprobe_answers"] == 1
    assert set(found["answers"][0]) == {"reviewer", "concept", "latent", "blinded", "at", *FIELDS}
    assert len(found["changes"]) == 3
    assert found["agreement"] == [{"blinded": False, "first": "Ada", "second": "Ben", "judged": 1, "kappa": None}]
    assert "is here already" in run("review", made.folder, "--export", to, code=1).stderr
    run("review", made.folder, "--export", to, "--overwrite")
    assert "can't be a file" in run("review", made.folder, "--export", tmp_path / "no" / "a.json", code=1).stderr


@pytest.mark.parametrize(
    "name",
    ["review.sqlite", "review.sqlite-wal", "Study.json", "manifest.csv", ".lock", "images/a.json", "report/report.html",
     "scores.zarr/zarr.json", "images/../latents.zarr"],
)  # fmt: skip
def test_answers_are_not_exported_onto_the_study_itself(made: Study, run: Run, tmp_path: Path, name: str) -> None:
    answer(made, "Ada", "t-shirt", 3, verdict="validated")
    (tmp_path / "link").symlink_to(made.folder)
    before = made.reviews.read_bytes()
    for folder in (made.folder, tmp_path / "link"):
        told = run("review", made.folder, "--export", folder / name, "--overwrite", code=1).stderr
        assert "belongs to the study itself" in told
    assert made.reviews.read_bytes() == before
    run("review", made.folder, "--export", made.folder / "answers.json")
    assert not made.owns(tmp_path / "review.sqlite")


def test_nothing_to_export_is_told(made: Study, run: Run, tmp_path: Path) -> None:
    assert "nobody has answered" in run("review", made.folder, "--export", tmp_path / "a.json", code=1).stderr
    assert not made.reviews.exists()
    assert "is no study" in run("review", tmp_path, "--export", "-", code=1).stderr
    made.reviews.write_bytes(b"rubbish" * 1000)
    assert "damaged" in run("review", made.folder, "--export", "-", code=1).stderr
    assert "damaged" in run("review", made.folder, "--no-browser", code=1).stderr
