"""A study's manifest: a CSV file with one row an image and concept, safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from semprobe.errors import StudyError

Row = dict[str, str]
"""One row by column, every value text; columns of :data:`COLUMNS` and any that a person added."""

COLUMNS = {
    "path": "the picture in the study: images/, the SHA-256 of its bytes, and the suffix of its format",
    "sha256": "SHA-256 of the picture's bytes, hexadecimal",
    "concept": "the concept that this row is about; a picture has a row for each of its concepts",
    "label": "positive or negative",
    "source": "where pictures like this come from, such as web; compared with the label word for word",
    "url": "where this picture came from: its address, the absolute path of a file, or the entry of a pool",
    "query": "what was searched for; of a negative drawn at random 'sampling' and its number in study.json",
    "reason": "why the picture was chosen",
    "licence": "under which it may be shared",
    "added_by": "who added it",
    "added_at": "when, in UTC, as 2026-11-24T04:02:04+00:00",
    "verified_by": "who gave the verdict; empty without one",
    "verified_at": "when, in UTC; empty without a verdict",
    "verdict": "accepted, rejected, unsure, or empty: nobody has looked",
    "criteria": "what the picture was to be judged by",
}
"""Every column, in order, in a sentence."""

VERIFICATION = ("verified_by", "verified_at", "verdict", "criteria")
"""The columns that a verdict changes; all others stay as they were added."""

VERDICTS = ("", "accepted", "rejected", "unsure")
LABELS = ("positive", "negative")

MAX_CELL = 100_000
"""Characters; more than that is refused, since readers of CSV stop there or soon after."""

NAME_RULE = (
    "a concept's name has 1 to 100 characters: letters and digits of any script, single spaces, and - _ . inside; it "
    "starts and ends with a letter or digit"
)

MAX_NAME = 100

_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
PATH = re.compile(r"images/([0-9a-f]{64})\.[a-z0-9]{2,4}")
"""A picture's path in a study; the group is the SHA-256 of its bytes."""


# cells


def neutralise(text: str) -> str:
    """A cell that no spreadsheet runs as a formula; :func:`restore` undoes it.

    What starts with ``= + - @``, their full-width forms, a tab or a line break gets an apostrophe in front, and so does
    what starts with an apostrophe itself, so that nothing is lost. It holds for readers that take commas to separate
    cells: to one that expects semicolons a line break within a cell begins a row.

    Examples
    --------
    >>> neutralise("=1+1"), neutralise("'t is"), neutralise("a=1")
    ("'=1+1", "''t is", 'a=1')
    """
    return f"'{text}" if text.startswith((*_FORMULA, "'")) else text


def restore(text: str) -> str:
    """What :func:`neutralise` was given; a single apostrophe before anything harmless stays.

    Examples
    --------
    >>> restore("'=1+1"), restore("''t is"), restore("'t is")
    ('=1+1', "'t is", "'t is")
    """
    return text[1:] if text.startswith("'") and text[1:].startswith((*_FORMULA, "'")) else text


def _cell(text: str) -> str:
    if len(text) > MAX_CELL:
        raise StudyError(f"a text of {len(text):,} characters is too long for a cell; the limit is {MAX_CELL:,}")
    return neutralise(text.encode("utf-8", "backslashreplace").decode())  # file names may hold what is no Unicode


def to_csv(columns: Iterable[str], rows: Iterable[Row]) -> str:
    """Rows as CSV: every cell quoted and neutralised, so that no separator or formula gets out of its cell.

    Raises
    ------
    StudyError
        A cell has more than `MAX_CELL` characters.
    """
    names = list(columns)
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_cell(row.get(name, "")) for name in names] for row in rows)
    return file.getvalue()


def from_csv(path: Path) -> tuple[list[str], list[tuple[int, Row]]]:
    """Columns, and every row with the number of its last line; cells as they were before :func:`neutralise`.

    Raises
    ------
    StudyError
        It is not there, no CSV in UTF-8, or a line has more or fewer cells than the first.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = list(reader.fieldnames or [])
            lines = [(reader.line_num, line) for line in reader]
    except FileNotFoundError as error:
        raise StudyError(f"{path}: there is no such file") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    for number, line in lines:
        if None in line or None in line.values():
            raise StudyError(f"{path}, line {number}: has another number of cells than the first line")
    return columns, [(number, {name: restore(text) for name, text in line.items()}) for number, line in lines]


# rows


def check_name(name: str) -> str:
    """A concept's name in Unicode's composed form, if it is one.

    Raises
    ------
    StudyError
        It has other characters than :data:`NAME_RULE` allows: no slashes, quotes, brackets, line breaks or marks that
        turn the direction of text.

    Examples
    --------
    >>> check_name("t-shirt")
    't-shirt'
    """
    found = unicodedata.normalize("NFC", name)
    word = [unicodedata.category(one)[0] in "LMN" for one in found]
    good = all(is_word or one in " -_." for one, is_word in zip(found, word, strict=True))
    if not 1 <= len(found) <= MAX_NAME or not good or "  " in found or not (found[0].isalnum() and word[-1]):
        shown = ascii(found[:40]) + (f"… ({len(found):,} characters)" if len(found) > 40 else "")
        raise StudyError(f"{shown} can't be a concept's name: {NAME_RULE}")
    return found


def read(path: Path) -> tuple[list[str], list[Row]]:
    """Columns and rows of a manifest, checked.

    Raises
    ------
    StudyError
        Names the file and the line: a column is missing, a path leads out of ``images/`` or does not agree with the
        hash, a label or verdict is another word, or an image has two rows for one concept.
    """
    columns, lines = from_csv(path)
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise StudyError(
            f"{path}: has no column {', '.join(missing)}, only {', '.join(columns) or 'none'}; columns are separated "
            "by commas and may be added, but none taken away"
        )
    seen: dict[tuple[str, str], int] = {}
    for number, row in lines:
        _check(row, f"{path}, line {number}")
        there = seen.setdefault((row["path"], row["concept"]), number)
        if there != number:
            raise StudyError(
                f"{path}, lines {there} and {number}: {row['path']} is there twice for concept {row['concept']}; "
                "keep one"
            )
    return columns, [row for _, row in lines]


def _check(row: Row, where: str) -> None:
    found = PATH.fullmatch(row["path"])
    if not found or found[1] != row["sha256"]:
        raise StudyError(
            f"{where}: path {row['path'][:100]!r} with sha256 {row['sha256'][:64]!r}; expected images/, that very hash "
            "and a suffix"
        )
    if row["label"] not in LABELS or row["verdict"] not in VERDICTS:
        raise StudyError(
            f"{where}: label {row['label'][:100]!r}, verdict {row['verdict'][:100]!r}; expected label positive or "
            "negative, and verdict accepted, rejected, unsure or nothing"
        )
    try:
        check_name(row["concept"])
    except StudyError as error:
        raise StudyError(f"{where}: {error}") from error
