"""Put pictures into a study with everything known about them, and tell duplicates."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from semprobe.errors import SemprobeError, StudyError
from semprobe.fetching import LIMITS, Limits, fetch, is_address, shown
from semprobe.images import cores, decode
from semprobe.manifest import LABELS, Row, from_csv
from semprobe.study import Study, now

NEAR = 6
"""Bits of 64 in which the looks of two pictures may differ to be reported as alike."""

SUFFIX = {
    "AVIF": ".avif", "BMP": ".bmp", "GIF": ".gif", "JPEG": ".jpg", "JPEG2000": ".jp2", "MPO": ".jpg", "PNG": ".png",
    "PPM": ".ppm", "TIFF": ".tif", "WEBP": ".webp",
}  # fmt: skip
"""Of files in images/, by their format as Pillow calls it."""

GIVEN = ("reason", "query", "source", "licence")
"""What a person says of a picture."""


# duplicates


class Fingerprint(NamedTuple):
    """What tells pictures apart: hash of the upright RGB pixels, and their look."""

    pixels: str
    look: int


def fingerprint(image: Image.Image) -> Fingerprint:
    """Fingerprint of an upright RGB picture, as `read_image` gives it.

    The look is a 64-bit difference hash: of the picture at 9 x 8 in grey, whether each pixel is brighter than the one
    to its left. Pictures that were resized or compressed again differ in few bits.

    References
    ----------
    Krawetz, "Kind of Like That", The Hacker Factor Blog, 2013.

    Examples
    --------
    >>> from PIL import Image
    >>> one = Image.linear_gradient("L").rotate(90).convert("RGB")
    >>> (fingerprint(one).look ^ fingerprint(one.resize((90, 70))).look).bit_count() <= NEAR
    True
    """
    pixels = hashlib.sha256(f"{image.size} ".encode() + image.tobytes()).hexdigest()
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS), dtype=np.int16)
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    return Fingerprint(pixels, int.from_bytes(bits.tobytes(), "big"))


class Known:
    """Pictures of one concept that a study has, to compare new ones with.

    Parameters
    ----------
    done
        Called with the number of pictures just looked at.

    Raises
    ------
    UnreadableImage, StudyError
        A picture of the study can't be read any more.
    """

    def __init__(self, study: Study, concept: str, done: Callable[[int], None] = lambda n: None) -> None:
        self._rows: list[tuple[Row, Fingerprint]] = []

        def look(row: Row) -> Fingerprint:
            file = study.image(row["path"])
            return fingerprint(decode(file, file.read_bytes())[0])

        rows = [row for row in study.rows() if row["concept"] == concept]
        with ThreadPoolExecutor(cores()) as pool:
            for row, found in zip(rows, pool.map(look, rows), strict=True):
                self.add(row, found)
                done(1)

    def add(self, row: Row, found: Fingerprint) -> None:
        """Compare with this one too from now on."""
        self._rows.append((row, found))

    def equal_pixels(self, found: Fingerprint) -> list[Row]:
        """Rows of pictures with the same pixels."""
        return [row for row, other in self._rows if other.pixels == found.pixels]

    def alike(self, found: Fingerprint) -> list[Row]:
        """Rows of pictures that look nearly the same and have other pixels."""
        return [
            row
            for row, other in self._rows
            if other.pixels != found.pixels and (other.look ^ found.look).bit_count() <= NEAR
        ]


# what is to be collected


class Item(NamedTuple):
    """A file or address, and what a person says of it: the columns of :data:`GIVEN`."""

    origin: str
    given: Row


def items_from_csv(path: Path) -> list[Item]:
    """Items of a CSV file: column ``url`` (an address, or a file relative to the CSV), and any of :data:`GIVEN`.

    Raises
    ------
    StudyError
        It can't be read, has no column url, an empty one, or a column that would be lost.
    """
    columns, lines = from_csv(path)
    other = [name for name in columns if name not in ("url", *GIVEN)]
    if "url" not in columns or other:
        raise StudyError(
            f"{path}: has columns {', '.join(columns) or 'none'}; expected url, and any of {', '.join(GIVEN)}"
        )
    empty = [number for number, row in lines if not row["url"].strip()]
    if empty:
        raise StudyError(f"{path}, line {empty[0]}: the url is empty; expected an address or a file")
    items = []
    for _, row in lines:
        origin = row.pop("url").strip()
        items.append(Item(origin if is_address(origin) else str(path.parent / origin), row))
    return items


# collecting


class Outcome(NamedTuple):
    """What became of one item: ``added``, ``skipped`` or ``failed``, and what a person should know of it."""

    origin: str
    state: str
    path: str
    messages: list[str]


class Skipped(Exception):
    """The picture is there already, with the same label."""


class OtherSide(StudyError):
    """The picture is on the concept's other side."""


def collect(
    study: Study,
    concept: str,
    items: Iterable[Item],
    *,
    label: str = "positive",
    by: str = "",
    limits: Limits = LIMITS,
    known: Known | None = None,
) -> Iterator[Outcome]:
    """Copy or download pictures into a study, one after the other, as the iterator is consumed.

    Equal bytes under the same concept and label are skipped; equal bytes or pixels on both sides of a concept are an
    error, since no latent can be right on both. Equal pixels in another file, and pictures that look alike, are kept
    and reported with both origins.

    Parameters
    ----------
    items
        Each needs a ``reason``.
    label
        positive or negative.
    by
        Who adds them.
    known
        The concept's pictures so far; read from the study if not given.

    Yields
    ------
    Outcome
        One an item. What failed left no file and no row.

    Raises
    ------
    StudyError
        The study has no such concept, or the label is another word. Failures of single items do not raise.
    """
    name = study.check_concept(concept)
    if label not in LABELS:
        raise StudyError(f"label is {label!r}, expected positive or negative")
    study.tidy()
    known = Known(study, name) if known is None else known
    for item in items:
        row = {
            **{column: item.given.get(column, "") for column in GIVEN}, "concept": name, "label": label,
            "url": item.origin if is_address(item.origin) else os.path.abspath(item.origin), "added_by": by,
            "criteria": study.criteria(name) if label == "negative" else "",
        }  # fmt: skip
        try:
            if not row["reason"].strip():
                raise StudyError(f"{shown(item.origin)}: no reason is given for it")
            path, notes = add(study, row, fetch(item.origin, limits), known)
            yield Outcome(item.origin, "added", path, notes)
        except Skipped as skipped:
            yield Outcome(item.origin, "skipped", "", [str(skipped)])
        except SemprobeError as error:
            yield Outcome(item.origin, "failed", "", [str(error)])


def add(study: Study, row: Row, data: bytes, known: Known) -> tuple[str, list[str]]:
    """Put one picture and its row into a study; its path, and what else looks like it.

    Raises
    ------
    UnreadableImage
        The bytes are no image that the project's reader takes.
    Skipped
        Its bytes are there with this concept and label.
    OtherSide
        It is on the concept's other side.
    """
    image, form = decode(shown(row["url"]), data)
    found = fingerprint(image)
    with study.locked():
        notes = _compare(study, row, hashlib.sha256(data).hexdigest(), found, known)
        path, digest = study.keep(data, SUFFIX[form])
        full = {**row, "path": path, "sha256": digest, "added_at": now()}
        study.append([full])
    known.add(full, found)
    return path, notes


def _compare(study: Study, row: Row, digest: str, found: Fingerprint, known: Known) -> list[str]:
    """Notes on pictures that look alike; or the refusal of one that is there or is on the other side."""
    me = f"{shown(row['url'])} ({row['label']})"
    for other in study.rows():
        if other["sha256"] == digest and other["concept"] == row["concept"]:
            _same(me, row, other, "bytes")
    notes = []
    for other in known.equal_pixels(found):
        if other["label"] != row["label"] and other["verdict"] != "rejected":
            _same(me, row, other, "pixels")
        notes.append(f"{me} has the same pixels as {describe(other)}; both are kept, and count twice")
    notes += [f"{me} looks like {describe(other)}; both are kept, look at them" for other in known.alike(found)]
    return notes


def _same(me: str, row: Row, other: Row, what: str) -> None:
    if other["label"] == row["label"]:
        state = f", {other['verdict']}" if other["verdict"] else ""
        raise Skipped(f"{me} is there already, with equal {what}: {describe(other)}{state}; skipped")
    raise OtherSide(
        f"{me} has the same {what} as {describe(other)}: one picture can't be on both sides of {row['concept']}; "
        "decide which it is"
    )


def describe(row: Row) -> str:
    """A picture of the study in words: its file, label and origin."""
    return f"{row['path'][:19]}… ({row['label']}, from {shown(row['url'])})"
