"""A study: one folder with pictures, their provenance, verdicts, stores, answers and report.

Everything that is written goes to a temporary file first and is renamed, under a lock of the operating system, so that
a reader sees the old file or the new one and two processes lose nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from semprobe import manifest
from semprobe.errors import StudyError
from semprobe.manifest import COLUMNS, VERDICTS, Row, check_name

VERSION = 1

STORES = ("activations", "latents", "scores")

OWN = (
    "study.json", "manifest.csv", "images", *(f"{kind}.zarr" for kind in STORES), "report", ".lock",
    *(f"review.sqlite{end}" for end in ("", "-wal", "-shm", "-journal")),
)  # fmt: skip
"""What a study's folder has in it, by name; not all of it from the beginning."""

_LOCK_SECONDS = 60


def now() -> str:
    """The time in UTC, as manifests have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def is_study(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is a study: it has a study.json."""
    return os.path.isfile(os.path.join(path, "study.json"))


def write_atomically(path: Path, data: bytes) -> None:
    """Put bytes at a path: all of them, or what was there before stays."""
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def order_key(seed: int, entry: str) -> bytes:
    """Where an entry of a pool comes in the random order of a seed: SHA-256 of ``{seed}``, a zero byte, the entry."""
    return hashlib.sha256(f"{seed}\0{entry}".encode("utf-8", "surrogateescape")).digest()


def create(path: str | os.PathLike[str], concepts: Iterable[str]) -> Study:
    """Make a study, or add concepts to the one that is there.

    Parameters
    ----------
    path
        A folder that is a study, is empty, or is not there yet.
    concepts
        Names by ``manifest.NAME_RULE``; those that the study has already are left as they are.

    Raises
    ------
    StudyError
        The folder has other things in it, a name can't be one, or differs from another in upper and lower case only.
    """
    folder, names = Path(path), [check_name(name) for name in concepts]
    if not is_study(folder):
        if not names:
            raise StudyError(f"{folder}: a study needs a concept")
        if folder.exists() and (not folder.is_dir() or any(entry.name != ".lock" for entry in folder.iterdir())):
            raise StudyError(f"{folder}: is no study, and not an empty folder either; choose a new one")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "images").mkdir(exist_ok=True)
        write_atomically(folder / "manifest.csv", manifest.to_csv(COLUMNS, []).encode())
        about = {"semprobe_study": VERSION, "created": now(), "concepts": [], "samplings": []}
        write_atomically(folder / "study.json", _as_json(about))
    study = Study(folder)
    study.add_concepts(names)
    return study


def _as_json(value: Any) -> bytes:
    text: str = json.dumps(value, indent=2, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


class Study:
    """A study's folder. Making the object reads study.json, writes nothing, and keeps nothing in memory.

    Attributes
    ----------
    folder, manifest, images, activations, latents, scores, reviews, report
        Paths: of the folder, manifest.csv, images/, the three stores, review.sqlite and report/. Only the first three
        are there from the beginning.

    Raises
    ------
    StudyError
        The folder is no study, one of a later version of semprobe, or its images/ is a link.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.folder = Path(path)
        self.manifest = self.folder / "manifest.csv"
        self.images = self.folder / "images"
        self.activations, self.latents, self.scores = (self.folder / f"{kind}.zarr" for kind in STORES)
        self.reviews = self.folder / "review.sqlite"
        self.report = self.folder / "report"
        self._lock = FileLock(self.folder / ".lock", timeout=_LOCK_SECONDS)
        self.about()
        if self.images.is_symlink():
            raise StudyError(f"{self.images}: is a link, and a study holds its pictures; put the folder in its place")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let no other process or thread write meanwhile; may be nested.

        Raises
        ------
        StudyError
            Another one has held the lock for a minute, or .lock is a link or can't be written.
        """
        try:
            self._lock.acquire()
        except Timeout as error:
            raise StudyError(
                f"{self.folder}: another process has been writing for a minute; try again later"
            ) from error
        except OSError as error:
            raise StudyError(
                f"{self.folder / '.lock'}: can't be locked ({error.strerror}); expected a file, no link"
            ) from error
        try:
            yield
        finally:
            self._lock.release()

    def owns(self, path: str | os.PathLike[str]) -> bool:
        """Whether a path is one of the study's own files or folders, or in one of these; it need not be there."""
        folder, name = os.path.split(os.path.abspath(path))
        inside = os.path.relpath(os.path.join(os.path.realpath(folder), name), os.path.realpath(self.folder))
        return inside.casefold().split(os.sep)[0] in OWN  # to some file systems upper and lower case are one

    # study.json

    def about(self) -> dict[str, Any]:
        """What study.json says: ``semprobe_study``, ``created``, ``concepts`` and ``samplings``.

        Raises
        ------
        StudyError
            It is not there, damaged, or of a later version.
        """
        path = self.folder / "study.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            version = found["semprobe_study"]
            names = [one["name"] for one in found["concepts"]] + [one["concept"] for one in found["samplings"]]
        except FileNotFoundError as error:
            raise StudyError(f"{self.folder}: is no study (it has no study.json); semprobe init makes one") from error
        except (ValueError, KeyError, TypeError) as error:
            raise StudyError(f"{path}: is damaged ({type(error).__name__}: {error}); take it from a copy") from error
        if not isinstance(version, int) or version > VERSION:
            raise StudyError(f"{path}: is of version {version}, and this semprobe reads up to {VERSION}; update it")
        for name in names:
            check_name(name)
        return found

    def change(self, how: Callable[[dict[str, Any]], None]) -> None:
        """Change study.json under the lock: `how` is given what it says, and changes that."""
        with self.locked():
            about = self.about()
            how(about)
            write_atomically(self.folder / "study.json", _as_json(about))

    @property
    def concepts(self) -> list[str]:
        """Names, in the order in which they were added."""
        return [one["name"] for one in self.about()["concepts"]]

    def add_concepts(self, names: Iterable[str]) -> None:
        """Add concepts; known ones are left as they are.

        Raises
        ------
        StudyError
            A name breaks ``manifest.NAME_RULE``, or differs from a known one in upper and lower case only.
        """
        with self.locked():
            for name in map(check_name, names):
                known = {one.casefold(): one for one in self.concepts}
                other = known.get(name.casefold())
                if other is None:
                    new = {"name": name, "criteria": "", "added_at": now()}
                    self.change(lambda about, new=new: about["concepts"].append(new))  # type: ignore[misc]
                elif other != name:
                    raise StudyError(f"{self.folder}: has a concept {other}, which differs from {name} in case only")

    def check_concept(self, concept: str) -> str:
        """The name as the study has it.

        Raises
        ------
        StudyError
            The study has no such concept; says which it has.
        """
        name, known = unicodedata.normalize("NFC", concept), self.concepts
        if name not in known:
            shown = ascii(name[:40]) if len(name) > 40 or not name.isprintable() else name
            raise StudyError(
                f"{self.folder}: has no concept {shown}, only {', '.join(known)}; semprobe init {self.folder} "
                "--concept … adds one"
            )
        return name

    def criteria(self, concept: str) -> str:
        """What the concept's negatives are judged by; empty if nothing was said."""
        name = self.check_concept(concept)
        return next(one["criteria"] for one in self.about()["concepts"] if one["name"] == name)

    def set_criteria(self, concept: str, criteria: str) -> None:
        """Say what the concept's negatives are judged by, from now on; rows keep what they have."""
        name = self.check_concept(concept)

        def change(about: dict[str, Any]) -> None:
            next(one for one in about["concepts"] if one["name"] == name)["criteria"] = criteria

        self.change(change)

    # manifest

    def rows(self) -> list[Row]:
        """All rows of the manifest, in the order in which they were added, rejected ones too.

        Raises
        ------
        StudyError
            The manifest is damaged; names the line.
        """
        return manifest.read(self.manifest)[1]

    def used(self) -> list[Row]:
        """The rows that the experiment uses.

        All but those rejected, and but spares: if a rejection is taken back after its replacement was drawn, a sampling
        has more pictures than its number, and the last ones in its order are spares. Rows that are unsure or that
        nobody looked at are used.
        """
        kept = [row for row in self.rows() if row["verdict"] != "rejected"]
        spare = set()
        for number, sampling in enumerate(self.about()["samplings"], 1):
            drawn = [row for row in kept if is_drawn(row, sampling, number)]
            drawn.sort(key=lambda row, seed=sampling["seed"]: order_key(seed, row["url"]))  # type: ignore[misc]
            spare |= {(row["path"], row["concept"]) for row in drawn[sampling["number"] :]}
        return [row for row in kept if (row["path"], row["concept"]) not in spare]

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows; a column that a row does not have is empty.

        Raises
        ------
        StudyError
            A row breaks a rule of the manifest, or its image has a row for that concept already; nothing is added then.
        """
        with self.locked():
            columns, there = manifest.read(self.manifest)
            self._write(columns, [*there, *({name: row.get(name, "") for name in columns} for row in rows)])

    def _write(self, columns: list[str], rows: list[Row]) -> None:
        """Replace the manifest, if what would be there can be read back."""
        part = self.folder / f".{uuid.uuid4().hex}.part"
        data = manifest.to_csv(columns, rows).encode()
        try:
            part.write_bytes(data)
            manifest.read(part)
        finally:
            part.unlink(missing_ok=True)
        write_atomically(self.manifest, data)

    def set_verdict(
        self, path: str, concept: str, verdict: str, by: str, *, criteria: str | None = None, was: str | None = None,
        at: str = "", label: str | None = None, was_by: str | None = None,
    ) -> None:  # fmt: skip
        """Give an image the verdict of a person who looked at it.

        Changes ``verdict``, ``verified_by``, ``verified_at`` and ``criteria`` of one row, and nothing else.

        Parameters
        ----------
        path
            As the row has it, ``images/…``.
        verdict
            accepted, rejected or unsure; empty takes a verdict back, with name and date.
        by
            Who looked; needed for a verdict.
        criteria
            What it was judged by; by default the concept's of now, and where it has none the row keeps its own.
        was
            The verdict that `by` knows of; with another one in the row nothing is changed. Any, if not given.
        at
            When it was given, in UTC; now, if empty.
        label
            What the row has to be, positive or negative. Any, if not given.
        was_by
            Who gave the verdict `was`, as `by` knows. Anybody, if not given.

        Raises
        ------
        StudyError
            No such row, another word, nobody's name, or somebody gave another verdict meanwhile.
        """
        if verdict not in VERDICTS:
            raise StudyError(f"verdict is {verdict[:100]!r}, expected accepted, rejected, unsure or nothing")
        if verdict and not by.strip():
            raise StudyError("a verdict needs the name of who looked")
        with self.locked():
            columns, rows = manifest.read(self.manifest)
            found = [row for row in rows if (row["path"], row["concept"]) == (path, concept)]
            if not found or label not in (None, found[0]["label"]):
                what = f"no {label or ''} row".replace("  ", " ")
                raise StudyError(f"{self.manifest}: has {what} of {path[:100]!r} for concept {concept[:100]!r}")
            there, who = found[0]["verdict"], found[0]["verified_by"]
            if was not in (None, there) or (there and was_by not in (None, who)):
                raise StudyError(f"{who or 'somebody'} made it {there or 'not looked at'} meanwhile; look at it again")
            judged_by = self.criteria(concept) if criteria is None else criteria
            found[0] |= {
                "verdict": verdict, "verified_by": by if verdict else "",
                "verified_at": (at or now()) if verdict else "",
                "criteria": judged_by or found[0]["criteria"],
            }  # fmt: skip
            self._write(columns, rows)

    # images

    def image(self, path: str) -> Path:
        """The file of a row's ``path``; never one outside of images/.

        Raises
        ------
        StudyError
            The path leads elsewhere, by itself or through a link, or there is no such file.
        """
        file = self.folder / path
        there = os.path.join(os.path.realpath(self.images), os.path.basename(path))
        if not manifest.PATH.fullmatch(path) or os.path.realpath(file) != there:
            raise StudyError(f"{self.folder}: {path[:100]!r} is no picture of this study")
        if not file.is_file():
            raise StudyError(f"{file}: is in the manifest and not on the disk; take it from a copy of the study")
        return file

    def keep(self, data: bytes, suffix: str) -> tuple[str, str]:
        """Put an image's bytes into images/, unless they are there; its path for a row, and its SHA-256."""
        digest = hashlib.sha256(data).hexdigest()
        path = f"images/{digest}{suffix}"
        with self.locked():
            if not (self.folder / path).exists():
                write_atomically(self.folder / path, data)
        return path, digest

    def tidy(self) -> None:
        """Remove temporary files that a killed process left; nothing refers to them."""
        with self.locked():
            for folder in (self.folder, self.images):
                for part in folder.glob(".*.part"):
                    part.unlink(missing_ok=True)


def is_drawn(row: Row, sampling: dict[str, Any], number: int) -> bool:
    """Whether a row was drawn by a sampling of study.json, the first of which has number 1."""
    return (row["concept"], row["label"], row["query"]) == (sampling["concept"], "negative", f"sampling {number}")


def unverified(study: Study) -> dict[str, tuple[int, int]]:
    """How many of the negatives that are used nobody has accepted, and how many are used, by concept."""
    found = {}
    for concept in study.concepts:
        there = [row for row in study.used() if (row["concept"], row["label"]) == (concept, "negative")]
        found[concept] = (sum(row["verdict"] != "accepted" for row in there), len(there))
    return found
