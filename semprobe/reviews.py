"""What reviewers answer: an SQLite file in which every change is a row, and no row ever changes.

The state of a form is what its changes add up to, so that two tabs or two reviewers lose nothing.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, Self

from semprobe.errors import StudyError, StudyLocked
from semprobe.manifest import MAX_CELL

VERSION = 1

VERDICTS = ("validated", "rejected", "unclear", "")

TEXTS = ("hypothesis", "evidence_for", "evidence_against", "failure_modes", "edge_cases", "caveats")
PICTURES = ("pictures_for", "pictures_against")

FIELDS = {
    "verdict": "validated, rejected, unclear, or empty: no verdict (any more)",
    "hypothesis": "what the latent seems to respond to",
    "evidence_for": "what speaks for that",
    "evidence_against": "what speaks against it",
    "pictures_for": "pictures picked as evidence for it, in the order in which they were picked",
    "pictures_against": "pictures picked as evidence against it",
    "failure_modes": "when it fires and should not, or the reverse",
    "edge_cases": "pictures that are hard to call",
    "caveats": "what a reader has to know before relying on it",
}
"""What a reviewer fills in, in a sentence each."""

MAX_REVIEWER = 100

_TABLE = """
CREATE TABLE IF NOT EXISTS change (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, reviewer TEXT NOT NULL, concept TEXT NOT NULL,
    latent INTEGER NOT NULL, field TEXT NOT NULL, value TEXT NOT NULL, blinded INTEGER NOT NULL
)
"""
_NO = ("CREATE TRIGGER IF NOT EXISTS no_{0} BEFORE {0} ON change BEGIN "
       "SELECT RAISE(ABORT, 'answers are only ever added'); END")  # fmt: skip
_SMALLEST_PAGE = 512
_COLUMNS = "id, at, reviewer, concept, latent, field, value, blinded"


class Change(NamedTuple):
    """One row: somebody changed one field of one latent."""

    id: int
    at: str
    """When, in UTC, as 2026-11-24T04:02:04.123+00:00."""
    reviewer: str
    concept: str
    latent: int
    field: str
    value: str
    """The whole text; of pictures JSON, ``{"add": image}`` or ``{"remove": image}``."""
    blinded: bool
    """Whether number, scores and rank were hidden."""


class Saved(NamedTuple):
    """What became of a change."""

    change: Change
    others: list[Change]
    """Changes of the same field of the same form since the one that was seen last, oldest first."""


@dataclass(frozen=True)
class Answer:
    """What one reviewer says of one latent, blinded or not; a field that was never filled in is empty."""

    reviewer: str
    concept: str
    latent: int
    blinded: bool
    at: str = ""
    """When anything of it changed last, in UTC."""
    verdict: str = ""
    hypothesis: str = ""
    evidence_for: str = ""
    evidence_against: str = ""
    pictures_for: tuple[str, ...] = ()
    pictures_against: tuple[str, ...] = ()
    failure_modes: str = ""
    edge_cases: str = ""
    caveats: str = ""


class Agreement(NamedTuple):
    """How far two reviewers agree."""

    first: str
    second: str
    judged: int
    """Latents to which both gave a verdict; one latent of two concepts counts twice."""
    kappa: float
    """Cohen's kappa, NaN where it is 0/0: both gave the same one verdict to everything."""


class Reviews:
    """The answers in a study's review.sqlite, which is made if it is not there.

    May be used from several threads and by several processes. Each change is on the disk when its method returns.

    Parameters
    ----------
    path
        Of the file.
    timeout
        Seconds to wait while another process writes.

    Raises
    ------
    StudyError
        The file is a link, truncated or damaged, of a later version, locked by another program, or can't be made.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 5.0) -> None:
        self.path, self._thread = Path(path), threading.RLock()
        if self.path.is_symlink():
            raise StudyError(f"{self.path}: is a link, expected a file in the study; put the file itself in its place")
        with self._told():
            self._check_size()
            self._base = sqlite3.connect(self.path, timeout=timeout, check_same_thread=False, isolation_level=None)
        try:
            with self._told():
                self._prepare()
        except BaseException:
            self._base.close()
            raise

    def _check_size(self) -> None:
        """Refuse what SQLite would begin anew, or where it would read a row from what is left of a page."""
        if not self.path.is_file():
            return
        size = self.path.stat().st_size
        if size == 0:
            raise StudyError(
                f"{self.path}: is empty, which answers never are; take it from a copy, or remove it to begin anew"
            )
        page = _SMALLEST_PAGE if size < _SMALLEST_PAGE else _page_size(self.path)
        if size % page:
            raise sqlite3.DatabaseError(f"it has {size:,} bytes, expected whole pages of {page:,}")

    def _prepare(self) -> None:
        version = self._base.execute("PRAGMA user_version").fetchone()[0]
        tables = {name for (name,) in self._base.execute("SELECT name FROM sqlite_master")}
        if version > VERSION:
            raise StudyError(
                f"{self.path}: is of version {version}, and this semprobe reads up to {VERSION}; update it"
            )
        if tables and "change" not in tables:
            raise StudyError(f"{self.path}: is a database of something else, expected answers of semprobe review")
        damage = self._base.execute("PRAGMA quick_check(1)").fetchone()[0]
        if damage != "ok":
            raise sqlite3.DatabaseError(damage)
        self._base.execute("PRAGMA synchronous = FULL")
        if not tables:
            self._base.execute("PRAGMA journal_mode = WAL")
            with self._writing():
                self._base.execute(_TABLE)
                for word in ("UPDATE", "DELETE"):
                    self._base.execute(_NO.format(word))
                self._base.execute(f"PRAGMA user_version = {VERSION}")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say in plain words what SQLite reports."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorname", "").startswith(("SQLITE_FULL", "SQLITE_IOERR")):
                raise StudyLocked(f"{self.path}: nothing was written ({error}); make room on its disk") from error
            if "locked" in str(error) or "busy" in str(error):
                raise StudyLocked(
                    f"{self.path}: is locked by another program, nothing was written; close what has it open"
                ) from error
            raise StudyError(f"{self.path}: can't be used ({error}); is its folder there, and may it be written?") \
                from error  # fmt: skip
        except OverflowError as error:
            raise StudyError(f"a number is too large for a latent or a change ({error}); nothing was written") \
                from error  # fmt: skip
        except sqlite3.DatabaseError as error:
            raise StudyError(
                f"{self.path}: is damaged or no SQLite file ({error}); take it from a copy of the study"
            ) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._thread, self._told():
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._base.in_transaction:  # SQLite ends it by itself where a disk is full
                    self._base.execute("ROLLBACK")
                raise
            self._base.execute("COMMIT")

    def close(self) -> None:
        """Close the file; what SQLite keeps beside it is merged into it."""
        with self._thread:
            self._base.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # writing

    def set(
        self, reviewer: str, concept: str, latent: int, field: str, value: str, *, blinded: bool = False,
        seen: int | None = None,
    ) -> Saved:  # fmt: skip
        """Fill in a field.

        Parameters
        ----------
        field
            ``verdict``, or one of `TEXTS`; pictures are picked with :meth:`pick`.
        value
            The whole new text.
        seen
            Id of the last change that whoever writes has seen (0 for none); changes since then are told.

        Raises
        ------
        StudyError
            Another field or verdict, nobody's name, a text above the limit of a cell, a number that SQLite can't keep,
            or a file that can't be written.
        """
        if field not in ("verdict", *TEXTS):
            raise StudyError(f"there is no field {field[:40]!r} to fill in, only verdict, {', '.join(TEXTS)}")
        if field == "verdict" and value not in VERDICTS:
            raise StudyError(f"verdict is {value[:40]!r}, expected validated, rejected, unclear or nothing")
        return self._add(reviewer, concept, latent, field, value, blinded, seen)

    def pick(
        self, reviewer: str, concept: str, latent: int, field: str, image: str, *, picked: bool = True,
        blinded: bool = False, seen: int | None = None,
    ) -> Saved:  # fmt: skip
        """Pick one picture as evidence, or take it away again; other pictures stay as they are.

        Parameters
        ----------
        field
            ``pictures_for`` or ``pictures_against``.
        image
            Name of the image in the study's stores.

        Raises
        ------
        StudyError
            As :meth:`set`.
        """
        if field not in PICTURES:
            raise StudyError(f"there is no field {field[:40]!r} for pictures, only {', '.join(PICTURES)}")
        value = json.dumps({"add" if picked else "remove": image})
        return self._add(reviewer, concept, latent, field, value, blinded, seen)

    def _add(
        self, reviewer: str, concept: str, latent: int, field: str, value: str, blinded: bool, seen: int | None
    ) -> Saved:
        who, text = check_reviewer(reviewer), value.encode("utf-8", "backslashreplace").decode()
        if len(text) > MAX_CELL:
            raise StudyError(f"{field} has {len(text):,} characters; the limit is {MAX_CELL:,}")
        if latent < 0:
            raise StudyError(f"there is no latent {latent}")
        with self._writing():
            others = [] if seen is None else self._since((who, concept, latent, field, blinded), seen)
            if others and others[-1].value == text:  # sent again, since its answer was lost
                return Saved(others[-1], others[:-1])
            at = datetime.now(UTC).isoformat(timespec="milliseconds")
            number = self._base.execute(
                "INSERT INTO change (at, reviewer, concept, latent, field, value, blinded) VALUES (?,?,?,?,?,?,?)",
                (at, who, concept, latent, field, text, blinded),
            ).lastrowid
        return Saved(Change(number or 0, at, who, concept, latent, field, text, blinded), others)

    def _since(self, form: tuple[Any, ...], seen: int) -> list[Change]:
        where = "reviewer = ? AND concept = ? AND latent = ? AND field = ? AND blinded = ? AND id > ?"
        return self._rows(where, (*form, seen))

    # reading

    def _rows(self, where: str = "1", values: tuple[Any, ...] = ()) -> list[Change]:
        with self._thread, self._told():
            rows = self._base.execute(f"SELECT {_COLUMNS} FROM change WHERE {where} ORDER BY id", values).fetchall()
            return [_change(row) for row in rows]

    def history(self, concept: str | None = None, latent: int | None = None) -> list[Change]:
        """All changes, oldest first; of one concept or latent if these are given."""
        where = [name for name, one in (("concept", concept), ("latent", latent)) if one is not None]
        values = tuple(one for one in (concept, latent) if one is not None)
        return self._rows(" AND ".join(f"{name} = ?" for name in where) or "1", values)

    def answers(self, concept: str | None = None, latent: int | None = None) -> list[Answer]:
        """What the changes add up to: an answer for each reviewer, concept, latent, and whether blinded.

        In the order in which they were begun. One whose fields were all emptied again is still there. Only the changes
        of the concept or latent are read, if these are given.
        """
        found: dict[tuple[Any, ...], Answer] = {}
        for change in self.history(concept, latent):
            key = (change.reviewer, change.concept, change.latent, change.blinded)
            found[key] = _changed(found.get(key) or Answer(*key), change)
        return list(found.values())

    def kappa(self, concept: str | None = None, *, blinded: bool = False) -> list[Agreement]:
        """Cohen's kappa of each two reviewers, on what both gave a verdict to; pairs without any are left out.

        ``kappa = (p_o - p_e) / (1 - p_e)``: p_o is the share of equal verdicts, p_e the share to be expected by chance
        from how often each of the two gave each verdict. 0/0, both gave the same one verdict to everything, is NaN:
        then nothing tells agreement from habit.

        Parameters
        ----------
        concept
            Only its latents; all by default.
        blinded
            Whether to compare the blinded answers, or the others.

        References
        ----------
        Cohen, A coefficient of agreement for nominal scales, Educational and Psychological Measurement 20, 1960.
        """
        verdicts: dict[str, dict[tuple[str, int], str]] = {}
        for one in self.answers(concept):
            if one.verdict and one.blinded == blinded:
                verdicts.setdefault(one.reviewer, {})[one.concept, one.latent] = one.verdict
        found = []
        for first, second in combinations(sorted(verdicts), 2):
            both = sorted(verdicts[first].keys() & verdicts[second].keys())
            if both:
                pairs = [(verdicts[first][key], verdicts[second][key]) for key in both]
                found.append(Agreement(first, second, len(pairs), cohen_kappa(pairs)))
        return found

    def export(self) -> dict[str, Any]:
        """All of it as plain values for JSON: answers, agreement (NaN as null) and every change."""
        agreement = [
            {"blinded": blinded, **one._asdict(), "kappa": None if one.kappa != one.kappa else one.kappa}
            for blinded in (False, True)
            for one in self.kappa(blinded=blinded)
        ]
        return {
            "semprobe_answers": VERSION, "answers": [asdict(one) for one in self.answers()], "agreement": agreement,
            "changes": [one._asdict() for one in self.history()],
        }  # fmt: skip


def _page_size(path: Path) -> int:
    """What the header says, read by SQLite: closing the file ourselves would drop this process's locks on it."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True)) as base:
        return int(base.execute("PRAGMA page_size").fetchone()[0])


def check_reviewer(name: str) -> str:
    """A reviewer's name without space around it.

    Raises
    ------
    StudyError
        It is empty, too long, or has what can't be seen in it.
    """
    found = name.strip()
    if not 1 <= len(found) <= MAX_REVIEWER or not found.isprintable():
        raise StudyError(
            f"{found[:40]!a} can't be a reviewer's name: it has 1 to {MAX_REVIEWER} letters, all of them visible"
        )
    return found


def _change(row: tuple[Any, ...]) -> Change:
    """A row of the file, if semprobe can have written it."""
    found = Change._make((*row[:7], bool(row[7])))
    try:
        good = tuple(map(type, found)) == (int, str, str, str, int, str, str, bool) and found.field in FIELDS
        if found.field in PICTURES:
            what, image = _picked(found.value)
            good = good and what in ("add", "remove") and isinstance(image, str)
    except (ValueError, TypeError, AttributeError, RecursionError):
        good = False
    if not good or (found.field == "verdict" and found.value not in VERDICTS):
        raise sqlite3.DatabaseError(f"its row {found.id} is no answer: {str(found.field)[:40]!a}")
    return found


def _picked(value: str) -> tuple[str, str]:
    """``add`` or ``remove``, and which picture."""
    ((what, image),) = json.loads(value).items()
    return what, image


def _changed(answer: Answer, change: Change) -> Answer:
    value: Any = change.value
    if change.field in PICTURES:
        what, image = _picked(change.value)
        others = tuple(one for one in getattr(answer, change.field) if one != image)
        value = (*others, image) if what == "add" else others
    new: dict[str, Any] = {"at": change.at, change.field: value}
    return replace(answer, **new)


def cohen_kappa(pairs: list[tuple[str, str]]) -> float:
    """Cohen's kappa of pairs of verdicts; NaN without pairs, or if all of them are the same one verdict.

    Examples
    --------
    >>> cohen_kappa([("yes", "yes"), ("yes", "no"), ("no", "no"), ("no", "no")])
    0.5
    """
    words, number = {word for pair in pairs for word in pair}, len(pairs)
    if len(words) < 2:
        return float("nan")
    same = sum(one == other for one, other in pairs) / number
    first, second = [one for one, _ in pairs], [other for _, other in pairs]
    chance = sum(first.count(word) * second.count(word) for word in words) / number**2
    return (same - chance) / (1 - chance)
