"""Draw negatives at random from a pool: reproducible from seed and verdicts, in little memory.

The order of a pool is that of :func:`semprobe.study.order_key`, so it depends on the seed and on each entry's own name
alone: not on the file system, and adding entries to a pool leaves the others in their order.
"""

from __future__ import annotations

import csv
import heapq
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from semprobe.collecting import Known, OtherSide, Skipped, add
from semprobe.errors import SemprobeError, StudyError
from semprobe.fetching import fetch
from semprobe.images import SUFFIXES
from semprobe.manifest import Row, restore
from semprobe.study import Study, is_drawn, is_study, now, order_key

MAX_UNREADABLE = 1000
"""Pictures of a pool that can't be read before drawing stops: then the pool is not there, not damaged."""


# pools


class Pool(NamedTuple):
    """Where negatives are drawn from."""

    address: str
    """Absolute path, or URL of an activation store."""
    kind: str
    """folder, manifest or store."""
    entries: Callable[[], Iterator[tuple[str, bool]]]
    """Each entry's name, and whether the pool itself calls it a positive of the concept; one by one, in any order."""
    file: Callable[[str], str]
    """The file of an entry."""


def open_pool(path: str | os.PathLike[str], concept: str = "") -> Pool:
    """A folder, a CSV file, an activation store or another study to draw negatives from.

    Parameters
    ----------
    path
        A folder, all images below it; a CSV file with a column path (and perhaps concept and label); a store of
        activations, whose images are read where they were; or a study, all images in it.
    concept
        Entries that the pool labels as positive for it are not drawn.

    Raises
    ------
    StudyError
        Nothing there, or something else.
    """
    text = str(path)
    local = Path(os.path.abspath(text))
    if "://" in text or (local / "zarr.json").is_file():
        return _of_store(text if "://" in text else str(local), concept)
    if is_study(local):
        local /= "manifest.csv"
    if local.is_dir():
        return Pool(str(local), "folder", lambda: ((name, False) for name in _below(str(local))), _joined(local))
    if local.is_file():
        return Pool(str(local), "manifest", lambda: _of_manifest(local, concept), _joined(local.parent))
    raise StudyError(f"{path}: there is no such folder, CSV file or store of activations to draw from")


def _joined(root: Path) -> Callable[[str], str]:
    return lambda name: os.path.normpath(root / name)


def _below(folder: str, name: str = "", above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Names of images below a folder, a directory entry at a time: `os.walk` would list a million of them first."""
    here = os.path.realpath(folder)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _below(entry.path, f"{name}{entry.name}/", above | {here})
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                yield name + entry.name


def _of_manifest(path: Path, concept: str) -> Iterator[tuple[str, bool]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            columns = [name.strip() for name in next(reader, [])]
            if "path" not in columns:
                raise StudyError(f"{path}: has columns {', '.join(columns) or 'none'}; a pool needs path")
            at = columns.index("path")
            claims = [columns.index(name) for name in ("concept", "label") if name in columns]
            for line in reader:
                if len(line) != len(columns):
                    raise StudyError(f"{path}, line {reader.line_num}: has another number of cells than the first line")
                yield restore(line[at]).strip(), [line[one].strip() for one in claims] == [concept, "positive"]
    except (csv.Error, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: not a CSV file in UTF-8 ({error})") from error


def _of_store(address: str, concept: str) -> Pool:
    from semprobe.stores import open_store
    from semprobe.vocabulary import POSITIVE

    data = open_store(address)
    if "activations" not in data:
        raise StudyError(
            f"{address}: is a store of {data.attrs['semprobe_format']['kind']}, expected one of activations"
        )
    root = Path(os.path.abspath(data.attrs.get("root", "")))
    there = concept in data["concept"].values if "concept" in data.coords else False
    label = (data["label"].sel(concept=concept) == POSITIVE).values if there else [False] * data.sizes["image"]
    names = [str(name) for name in data["image"].values]
    return Pool(address, "store", lambda: ((n, bool(p)) for n, p in zip(names, label, strict=True)), _joined(root))


# the order


class Order(NamedTuple):
    """The beginning of a pool's random order."""

    first: list[str]
    """Entries, the first one first."""
    images: int
    """Entries in the pool, those left out too."""
    names_digest: str
    """Of the pool's names, whatever their order: the sum of their keys, modulo 2^256, hexadecimal."""


def first_in_order(
    entries: Iterable[tuple[str, bool]], *, seed: int, number: int, without: Collection[str] = frozenset()
) -> Order:
    """The entries that come first in a seed's order, in one pass and with `number` of them in memory.

    Parameters
    ----------
    entries
        Names, and whether to leave one out.
    without
        Further names to leave out.

    Examples
    --------
    >>> names = [(f"{at}.png", False) for at in range(100)]
    >>> first_in_order(names, seed=0, number=3).first == first_in_order(names[::-1], seed=0, number=3).first
    True
    """
    images = total = 0

    def keyed() -> Iterator[tuple[bytes, str]]:
        nonlocal images, total
        for name, positive in entries:
            images += 1
            key = order_key(seed, name)
            total += int.from_bytes(key, "big")
            if not positive and name not in without:
                yield key, name

    first = heapq.nsmallest(number, keyed())
    return Order([name for _, name in first], images, f"{total % (1 << 256):064x}")


# drawing


class Drawn(NamedTuple):
    """What drawing did."""

    added: list[str]
    """Paths of new rows."""
    unreadable: list[str]
    """Why entries were passed over, a line each."""
    notes: list[str]
    """Pictures that look like another one, and what else a person should know."""
    missing: int
    """Pictures that the sample lacks because the pool has no more."""


def negatives(
    study: Study,
    concept: str,
    pool: str | os.PathLike[str],
    *,
    number: int = 20,
    seed: int = 0,
    criteria: str = "",
    source: str | None = None,
    by: str = "",
    done: Callable[[int], None] = lambda n: None,
) -> Drawn:
    """Draw negatives of a concept until the sample has `number` that are not rejected.

    The concept's positives are passed over (by bytes, pixels and file), and so is all that is in the study for this
    concept already. The same pool and seed again goes on with the same sampling, with this `number`.

    Parameters
    ----------
    pool
        As for :func:`open_pool`.
    criteria
        What a negative is judged by, such as "no wheel visible, not even partly"; needed the first time.
    source
        For the column of that name; the pool's own name if not given.
    by
        Who draws.
    done
        Called with the number of pictures just added.

    Raises
    ------
    StudyError
        No such concept or pool, no criteria, or the pool's pictures can't be read.
    """
    name = study.check_concept(concept)
    opened = open_pool(pool, name)
    if criteria.strip():
        study.set_criteria(name, criteria.strip())
    elif not study.criteria(name):
        raise StudyError(f"{name} has no criteria to judge negatives by; say them with --criteria, once")
    entry = {
        "concept": name, "pool": opened.address, "kind": opened.kind, "seed": seed, "number": number,
        "source": Path(opened.address).stem if source is None else source, "drawn_by": by, "drawn_at": now(),
        "images": 0, "names_digest": "", "passed_over": [],
    }  # fmt: skip
    same = ("concept", "pool", "seed")

    def change(about: dict[str, Any]) -> None:
        for sampling in about["samplings"]:
            if all(sampling[key] == entry[key] for key in same):
                sampling["number"] = number
                return
        about["samplings"].append(entry)

    study.change(change)
    samplings = study.about()["samplings"]
    which = next(at for at, one in enumerate(samplings, 1) if all(one[key] == entry[key] for key in same))
    return _draw(study, which, opened, by, done)


def resample(
    study: Study, concept: str, *, by: str | None = None, done: Callable[[int], None] = lambda n: None
) -> Drawn:
    """Replace rejected negatives by the next in the order, for all samplings of a concept.

    Nothing is drawn for samplings that are complete, and their pools need not be there.

    Parameters
    ----------
    by
        Who draws; whoever drew first if not given.
    done
        Called with the number of pictures just added.

    Raises
    ------
    StudyError
        No such concept, it has no sampling, or a pool is not there any more.
    """
    name = study.check_concept(concept)
    found = [(at, one) for at, one in enumerate(study.about()["samplings"], 1) if one["concept"] == name]
    if not found:
        raise StudyError(f"{study.folder}: no negatives were drawn for {name} yet; say from where with --from")
    results = [
        _draw(study, at, open_pool(one["pool"], name), one["drawn_by"] if by is None else by, done)
        for at, one in found
        if _needed(study, at) > 0
    ]
    return Drawn(
        [path for one in results for path in one.added], [why for one in results for why in one.unreadable],
        [note for one in results for note in one.notes], sum(one.missing for one in results),
    )  # fmt: skip


def _needed(study: Study, which: int) -> int:
    """How many pictures a sampling lacks."""
    sampling = study.about()["samplings"][which - 1]
    there = [row for row in study.rows() if is_drawn(row, sampling, which) and row["verdict"] != "rejected"]
    return int(sampling["number"]) - len(there)


def _draw(study: Study, which: int, pool: Pool, by: str, done: Callable[[int], None]) -> Drawn:
    sampling = study.about()["samplings"][which - 1]
    concept, seed = sampling["concept"], sampling["seed"]
    found = Drawn([], [], [], max(0, _needed(study, which)))
    if not found.missing:
        return found
    rows = [row for row in study.rows() if row["concept"] == concept]
    files = {row["url"] for row in rows}
    tried = {row["url"] for row in rows if is_drawn(row, sampling, which)}
    known = Known(study, concept)
    over: dict[str, str] = {}
    length = 2 * found.missing + 64
    row = {
        "concept": concept, "label": "negative", "source": sampling["source"], "query": f"sampling {which}",
        "reason": f"drawn at random with seed {seed}", "added_by": by, "criteria": study.criteria(concept),
    }  # fmt: skip
    while True:
        order = first_in_order(pool.entries(), seed=seed, number=length, without=tried)
        for name in order.first:
            if (missing := _needed(study, which)) <= 0:
                break
            tried.add(name)
            if pool.file(name) not in files:
                over |= _try(study, {**row, "url": name}, pool.file(name), known, found, done)
            if len(found.unreadable) >= MAX_UNREADABLE:
                raise StudyError(f"{pool.address}: {MAX_UNREADABLE} pictures can't be read; {found.unreadable[-1]}")
        missing = _needed(study, which)
        if missing <= 0 or len(order.first) < length:
            break
        length *= 4
    found.notes.extend(_record(study, which, order, over))
    return found._replace(missing=max(0, missing))


def _try(study: Study, row: Row, file: str, known: Known, found: Drawn, done: Callable[[int], None]) -> dict[str, str]:
    """Add one entry of the pool, or say why it is passed over for good."""
    try:
        data = fetch(file)
        path, notes = add(study, row, data, known)
    except Skipped:
        return {}
    except OtherSide as error:
        found.notes.append(f"passed over: {error}")
        return {row["url"]: str(error)}
    except SemprobeError as error:
        found.unreadable.append(str(error))
        return {row["url"]: str(error)}
    found.added.append(path)
    found.notes.extend(notes)
    done(1)
    return {}


def _record(study: Study, which: int, order: Order, over: dict[str, str]) -> list[str]:
    """Write down what pool it was; says so if it is another than the first time."""
    notes = []

    def change(about: dict[str, Any]) -> None:
        sampling = about["samplings"][which - 1]
        before, after = sampling["names_digest"], order.names_digest
        if before and before != after:
            notes.append(
                f"{sampling['pool']}: had {sampling['images']} pictures and now has {order.images}, or others; the "
                "sample can be drawn again only from a pool with the same names"
            )
        sampling |= {} if before else {"images": order.images, "names_digest": after}
        there = {one["entry"] for one in sampling["passed_over"]}
        sampling["passed_over"] += [{"entry": e, "reason": r} for e, r in over.items() if e not in there]

    study.change(change)
    return notes
