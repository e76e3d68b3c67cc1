"""What a directory of saev's activation shards says of itself, and whether its files agree.

Every version of the format is read. Names of fields changed between them and meanings did not, so that a field is
looked up by any of its names. Nothing that the metadata claims is believed before the files agree with it: there is
neither a mark of completion nor a checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from typing import Any, NamedTuple

from semprobe.errors import StoreCorrupt, StoreError
from semprobe.stores._paths import Place

METADATA, COUNTS = "metadata.json", "shards.json"

PROTOCOLS = (None, "1.0.0", "1.1", "2.0", "2.1")

_NAMES = {
    "family": ("family", "vit_family", "model_family", "model_org"),
    "model": ("ckpt", "vit_ckpt", "model_ckpt"),
    "patches": ("content_tokens_per_example", "n_content_tokens_per_example", "patches_per_ex", "n_patches_per_img"),
    "features": ("d_model", "d_vit"),
    "images": ("n_examples", "n_ex", "n_imgs"),
    "tokens": ("max_tokens_per_shard", "patches_per_shard", "max_patches_per_shard", "n_patches_per_shard"),
    "layers": ("layers",),
    "cls_token": ("cls_token",),
}
"""Each field's names, newest first."""

_ACTS = re.compile(r"acts(\d{6,})\.bin")
_JSON_BYTES = 5_000_000  # more is no metadata
_TOLD = 1000  # characters kept of what the metadata says of the data


def is_shards(path: str | os.PathLike[str]) -> bool:
    """Whether this looks like a directory of saev's activation shards, and not like a store."""
    place = Place(path)
    if place.exists("zarr.json") or place.exists("incomplete.json"):
        return False
    return place.exists(METADATA) or place.exists(_acts(0))


def _acts(number: int) -> str:
    return f"acts{number:06}.bin"


# metadata


class Metadata(NamedTuple):
    """What metadata.json says, under one set of names."""

    family: str
    model: str
    patches: int
    features: int
    images: int
    tokens: int  # at most, in one file
    layers: list[int]
    cls_token: bool
    protocol: str | None
    data: str
    sha256: str


def _short(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= 60 else f"{told[:60]}…"


def _read_json(path: str) -> tuple[Any, str]:
    """A JSON file's content, and its hash."""
    try:
        if not os.path.isfile(path) or os.path.getsize(path) > _JSON_BYTES:
            raise StoreError(f"{path}: expected a JSON file of less than {_JSON_BYTES:,} bytes, as saev writes it")
        with open(path, "rb") as file:
            data = file.read()
        return json.loads(data), hashlib.sha256(data).hexdigest()
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{path}: can't be read as JSON ({error}); copy the directory again") from error


def _field(found: dict[str, Any], field: str, where: str) -> tuple[str, Any]:
    """A field's name in this file, and its value."""
    names = [name for name in _NAMES[field] if name in found]
    if not names:
        raise StoreError(f"{where}: has no {_NAMES[field][0]} (or {', '.join(_NAMES[field][1:]) or 'other name'})")
    if any(found[name] != found[names[0]] for name in names):
        raise StoreError(f"{where}: {' and '.join(names)} mean the same and differ; expected one of them")
    return names[0], found[names[0]]


def _number(found: dict[str, Any], field: str, where: str) -> int:
    name, value = _field(found, field, where)
    if type(value) is not int or not 1 <= value < 2**63:
        raise StoreError(f"{where}: {name} is {_short(value)}, expected a whole number from 1")
    return value


def _text(found: dict[str, Any], field: str, where: str) -> str:
    name, value = _field(found, field, where)
    if not isinstance(value, str) or value != _writable(value):
        raise StoreError(f"{where}: {name} is {_short(value)}, expected a short text")
    return value


def _writable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()[:_TOLD]


def _layers(found: dict[str, Any], where: str) -> list[int]:
    _, value = _field(found, "layers", where)
    if not isinstance(value, list) or not value or not all(type(one) is int and abs(one) < 2**31 for one in value):
        raise StoreError(f"{where}: layers is {_short(value)}, expected a list of whole numbers")
    if len(set(value)) < len(value):
        raise StoreError(f"{where}: layers is {_short(value)}, the same one twice; expected each once")
    return value


def _origin(found: dict[str, Any], protocol: str | None) -> str:
    """Where the metadata says that the images came from. From 2.1 on `data` is a pickle, which is never touched."""
    told = found.get("dataset") or (None if protocol == "2.1" else found.get("data"))
    return _writable(told if isinstance(told, str) else json.dumps(told)) if told is not None else ""


def _metadata(folder: str) -> Metadata:
    where = os.path.join(folder, METADATA)
    if not os.path.lexists(where):
        raise StoreError(f"{folder}: has acts files and no {METADATA}, without which they can't be read; copy it too")
    found, sha256 = _read_json(where)
    if not isinstance(found, dict):
        raise StoreError(f"{where}: holds a {type(found).__name__}, expected the fields of saev's metadata")
    protocol, dtype = found.get("protocol"), found.get("dtype", "float32")
    if protocol not in PROTOCOLS:
        known = ", ".join(map(str, PROTOCOLS[1:]))
        raise StoreError(
            f"{where}: protocol is {_short(protocol)}, expected none or {known}; a newer semprobe may know it"
        )
    if dtype != "float32":
        raise StoreError(f"{where}: dtype is {_short(dtype)}, expected float32, which is all that saev writes")
    cls_token = _field(found, "cls_token", where)[1]
    if type(cls_token) is not bool:
        raise StoreError(f"{where}: cls_token is {_short(cls_token)}, expected true or false")
    texts: dict[str, Any] = {field: _text(found, field, where) for field in ("family", "model")}
    numbers: dict[str, Any] = {
        field: _number(found, field, where) for field in ("patches", "features", "images", "tokens")
    }
    return Metadata(
        **texts, **numbers, layers=_layers(found, where), cls_token=cls_token, protocol=protocol,
        data=_origin(found, protocol), sha256=sha256,
    )  # fmt: skip


def _counts(folder: str) -> list[int] | None:
    """Images of each file as shards.json has them, None where there is none."""
    where = os.path.join(folder, COUNTS)
    if not os.path.lexists(where):
        return None
    found, _ = _read_json(where)
    if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
        raise StoreError(f"{where}: expected a list with a name and a count for each file, found {_short(found)}")
    counts = []
    for at, one in enumerate(found):
        if one.get("name") != _acts(at):
            raise StoreError(f"{where}: entry {at} is named {_short(one.get('name'))}, expected {_acts(at)}")
        name, count = _field(one, "images", f"{where}, {_acts(at)}")
        if type(count) is not int or not 0 <= count < 2**63:
            raise StoreError(f"{where}, {_acts(at)}: {name} is {_short(count)}, expected a whole number")
        counts.append(count)
    return counts


# files


class Layout(NamedTuple):
    """How the files are cut."""

    per_file: int
    tokens: int
    bytes: int

    def counts(self, images: int, files: int) -> list[int]:
        return [min(self.per_file, max(0, images - at * self.per_file)) for at in range(files)]


def _layouts(about: Metadata) -> list[Layout]:
    """With and without a CLS row, the declared one first."""
    found = []
    for tokens in (about.patches + about.cls_token, about.patches + (not about.cls_token)):
        per_file = about.tokens // (tokens * len(about.layers))
        size = per_file * len(about.layers) * tokens * about.features * 4
        found += [Layout(per_file, tokens, size)] if per_file else []
    return found


def _files(folder: str) -> dict[int, os.stat_result]:
    """Number of every acts file, and its size and date."""
    found = {}
    try:
        with os.scandir(folder) as entries:
            named = {entry: _ACTS.fullmatch(entry.name) for entry in entries}
        for entry, match in named.items():
            if match and entry.name == _acts(int(match[1])):
                found[int(match[1])] = entry.stat()
    except OSError as error:
        raise StoreError(f"{error.filename or folder}: can't be read: {error.strerror}") from error
    odd = [at for at, about in found.items() if not stat.S_ISREG(about.st_mode)]
    if odd:
        raise StoreError(f"{os.path.join(folder, _acts(odd[0]))}: is no file, expected raw activations")
    return found


def _needed(about: Metadata, layout: Layout) -> int:
    """Files that the images need."""
    return -(-about.images // layout.per_file)


def _layout(folder: str, about: Metadata, counts: list[int] | None, files: dict[int, os.stat_result]) -> Layout:
    """The layout that the first file's size says, whatever the metadata says of a CLS row."""
    layouts = _layouts(about)
    if not layouts:
        raise StoreError(
            f"{folder}: {METADATA} allows {about.tokens} tokens a file, less than one image of {about.patches} "
            f"patches and {len(about.layers)} layers; it is not what the files were written with"
        )
    if 0 not in files:
        raise StoreError(f"{folder}: {_acts(0)} is not there; copy the directory again")
    fits = [one for one in layouts if one.bytes == files[0].st_size]
    possible = [one for one in fits if _needed(about, one) <= len(files) <= about.images // one.per_file + 1]
    fits = possible or fits  # both sizes may be the same
    if counts is not None:
        fits = [one for one in fits if one.counts(sum(counts), len(counts)) == counts] or fits
    if not fits:
        raise _wrong_size(folder, 0, files[0].st_size, layouts[0].bytes)
    return fits[0]


def _wrong_size(folder: str, number: int, found: int, expected: int) -> StoreCorrupt:
    return StoreCorrupt(
        f"{os.path.join(folder, _acts(number))}: found {found:,} bytes, expected {expected:,} by {METADATA}; the file "
        "was cut off or is still being written: copy or make it again"
    )


def _check_files(folder: str, layout: Layout, images: int, listed: int, files: dict[int, os.stat_result]) -> None:
    needed = -(-images // layout.per_file)
    first = next(at for at in range(len(files) + 1) if at not in files)
    if first < needed:
        raise StoreError(
            f"{folder}: {_acts(first)} is not there; found {len(files)} acts files, expected {needed} for {images} "
            f"images, {layout.per_file} a file. The run that made them was stopped, or not all was copied"
        )
    for number, about in sorted(files.items()):
        if about.st_size != layout.bytes:
            raise _wrong_size(folder, number, about.st_size, layout.bytes)
    allowed = max(images // layout.per_file + 1, listed)  # saev begins the next file as soon as one is full
    if max(files) >= allowed:
        raise StoreError(
            f"{folder}: {_acts(max(files))} is one too many for {images} images, {layout.per_file} a file; expected at "
            f"most {allowed} files. Files of two runs may be mixed here: make the shards again"
        )


def _check_counts(folder: str, layout: Layout, about: Metadata, counts: list[int]) -> None:
    where = os.path.join(folder, COUNTS)
    if counts != layout.counts(sum(counts), len(counts)):
        raise StoreError(
            f"{where}: counts {_short(counts)} images, expected {layout.per_file} in each file but the last; it does "
            f"not belong to {METADATA}"
        )
    if sum(counts) != about.images:
        raise StoreError(
            f"{where}: counts {sum(counts)} images, and {METADATA} says {about.images}: the run that made the shards "
            "was stopped, or the files are of two runs; make them again"
        )


class Directory(NamedTuple):
    """A directory whose files agree with its metadata."""

    about: Metadata
    layout: Layout
    state: list[tuple[int, int, int]]  # number, bytes and date of each file


def read_directory(folder: str) -> Directory:
    """Read the metadata and compare it with names and sizes of the files, before anything is made of it.

    Raises
    ------
    StoreCorrupt
        A file is shorter or longer than the others.
    StoreError
        Anything else that is not as saev writes it.
    """
    about, counts, files = _metadata(folder), _counts(folder), _files(folder)
    layout = _layout(folder, about, counts, files)
    if counts is not None:
        _check_counts(folder, layout, about, counts)
    _check_files(folder, layout, about.images, len(counts or ()), files)
    return Directory(about, layout, [(at, one.st_size, one.st_mtime_ns) for at, one in sorted(files.items())])
