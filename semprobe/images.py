"""Find images and their labels, and read an image file into upright RGB."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr
from PIL import Image, ImageOps

from semprobe.errors import ImagesError, UnreadableImage
from semprobe.vocabulary import DIMS, NEGATIVE, POSITIVE, UNLABELLED, VARIABLES, attrs

if TYPE_CHECKING:
    from semprobe.study import Study

SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .ppm .tif .tiff .webp".split()
)  # fmt: skip
"""File names that end like this (in any case) should be images; all other files are ignored and counted."""

IMAGE_FOLDER = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What torchvision's ImageFolder takes for images, in any case."""

LABELS = {"positive": POSITIVE, "negative": NEGATIVE}

MAX_PIXELS = 100_000_000
"""A picture with more pixels is refused: a small file can unpack to more than memory holds."""

_KEPT = ("sha256", "source", "url", "licence")

_RESERVED = (set(VARIABLES) | set(DIMS) | {"path", "file", "stratum", "code"}) - {"source"}


class _Row(NamedTuple):
    """One image under one concept, or under none ("")."""

    path: Path
    name: str
    concept: str
    label: int
    extra: dict[str, str]


# finding


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder, links followed, but not back into a folder above; links to nothing, which is told later.

    Raises
    ------
    ImagesError
        A folder can't be read.
    """

    def refuse(error: OSError) -> None:
        raise ImagesError(f"{error.filename}: this folder can't be read ({error.strerror}); change its permissions")

    for at, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        above = {os.path.realpath(folder)} | {os.path.realpath(p) for p in Path(at).parents if p.is_relative_to(folder)}
        if Path(at) != folder and os.path.realpath(at) in above:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        found = (Path(at) / name for name in files)
        yield from (one for one in found if one.is_file() or (one.is_symlink() and not one.exists()))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _label_of(parts: tuple[str, ...], labelled: bool) -> tuple[str, int] | None:
    """Concept and label that the folders above a file say, None if they say nothing."""
    top = parts[0] if len(parts) > 1 else ""
    concept, hyphen, word = top.rpartition("-")
    if hyphen and word in LABELS and concept:
        return concept, LABELS[word]
    if len(parts) > 2 and parts[1] in LABELS:
        return top, LABELS[parts[1]]
    return None if labelled else ("", UNLABELLED)


def _as_image_folder(root: Path) -> Iterator[Path]:
    """All files below class folders, in the order in which torchvision's ImageFolder meets them."""
    for folder in sorted(entry.name for entry in os.scandir(root) if entry.is_dir()):
        visits = []
        for at, inner, files in os.walk(root / folder, followlinks=True):
            if os.path.islink(at) and any(os.path.samefile(at, above) for above in Path(at).parents):
                raise ImagesError(f"{at}: leads back to a folder above, where ImageFolder goes round; remove the link")
            visits.append((at, inner, files))
        for at, _, files in sorted(visits):
            yield from (Path(at) / name for name in sorted(files))


def _from_folder(root: Path, order: str) -> tuple[list[_Row], int]:
    if order == "saev":
        files = list(_as_image_folder(root))
        images = [path for path in files if path.name.lower().endswith(IMAGE_FOLDER)]
        files += [path for path in root.iterdir() if path.is_file()]
    else:
        files = list(_walk(root))
        images = [path for path in files if _is_image(path)]
    return _labelled(root, images, strict=order != "saev"), len(files) - len(images)


def _labelled(root: Path, images: list[Path], strict: bool) -> list[_Row]:
    """Rows of the images; with `strict` none may be in a folder without a label where others have one."""
    relative = {path: path.relative_to(root).parts for path in images}
    labelled = any(_label_of(parts, True) for parts in relative.values())
    rows = []
    for path, parts in relative.items():
        found = _label_of(parts, labelled and strict)
        if found is None:
            raise ImagesError(
                f"{path}: some folders of {root} are labelled, and this image is in none that is. Name its folder "
                "{concept}-positive or {concept}-negative, or {concept}/positive or {concept}/negative, or move it away"
            )
        rows.append(_Row(path, "/".join(parts), *found, {}))
    return rows


def _from_manifest(manifest: Path) -> list[_Row]:
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = [name.strip() for name in reader.fieldnames or []]
            _check_columns(manifest, columns)
            reader.fieldnames = columns
            lines = [(reader.line_num, line) for line in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ImagesError(f"{manifest}: not a CSV file in UTF-8 ({error})") from error
    return [_manifest_row(manifest, number, line) for number, line in lines]


def _check_columns(manifest: Path, columns: list[str]) -> None:
    if "path" not in columns or ("concept" in columns) != ("label" in columns):
        raise ImagesError(
            f"{manifest}: has columns {', '.join(columns) or 'none'}; expected path, concept and label (or path alone)"
        )
    clash = [c for c in columns if c in _RESERVED - {"path", "concept", "label"}] + [
        c for c in set(columns) if columns.count(c) > 1
    ]
    odd = [name for name in columns if not name.isidentifier()]
    if odd:
        raise ImagesError(f"{manifest}: column {odd[0]!r} can't be kept; name it with letters, digits and _ only")
    if clash:
        raise ImagesError(f"{manifest}: column {clash[0]!r} is there twice or is a name of the store's own; rename it")


def _manifest_row(manifest: Path, number: int, line: dict[str, Any]) -> _Row:
    where = f"{manifest}, line {number}"
    if None in line or None in line.values():
        raise ImagesError(f"{where}: has another number of fields than the first line")
    fields = {key: value.strip() for key, value in line.items()}
    named, concept, word = fields.pop("path"), fields.pop("concept", ""), fields.pop("label", "")
    if not named:
        raise ImagesError(f"{where}: the path is empty")
    if bool(concept) != bool(word) or (word and word not in LABELS):
        raise ImagesError(f"{where}: concept {concept!r} with label {word!r}; expected label positive or negative")
    root = os.path.abspath(manifest.parent)
    path = Path(os.path.normpath(os.path.join(root, named)))
    name = (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
    return _Row(path, name, concept, LABELS.get(word, UNLABELLED), fields)


def _from_study(study: Study) -> list[_Row]:
    """The rows that the experiment uses, with the columns that are about the picture whatever the concept."""
    return [
        _Row(study.image(row["path"]), row["path"], row["concept"], LABELS[row["label"]], {c: row[c] for c in _KEPT})
        for row in study.used()
    ]


def _merge_extra(rows: list[_Row], column: str) -> str:
    """An image's value in a further column; where its concepts say different things, all of them."""
    values = sorted({(row.concept, row.extra.get(column, "")) for row in rows})
    if len({value for _, value in values}) == 1:
        return values[0][1]
    return "; ".join(f"{concept}: {value}" for concept, value in values if value)


def _in_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _table(rows: list[_Row], root: Path, ignored: int) -> xr.Dataset:
    by_name: dict[str, list[_Row]] = {}
    for row in rows:
        by_name.setdefault(row.name, []).append(row)
    names = sorted(by_name, key=lambda name: tuple(name.split("/")))
    odd = [name for name in names if "\0" in name or not _in_unicode(name)]
    if odd:
        raise ImagesError(f"{odd[0]!r}: this file name is not valid Unicode, so no store can keep it; rename it")
    concepts = sorted({row.concept for row in rows if row.concept})
    label = np.full((len(names), len(concepts)), UNLABELLED, np.int8)
    for at, name in enumerate(names):
        for row in by_name[name]:
            if not row.concept:
                continue
            there = label[at, concepts.index(row.concept)]
            if there not in (UNLABELLED, row.label):
                raise ImagesError(f"{name}: is both positive and negative for concept {row.concept}; keep one")
            label[at, concepts.index(row.concept)] = row.label
    columns = sorted({column for row in rows for column in row.extra} | {"source"})
    extra = {c: [_merge_extra(by_name[name], c) for name in names] for c in columns}
    coords: dict[str, Any] = {
        "image": ("image", np.array(names, dtype=object), attrs("image")),
        "concept": ("concept", np.array(concepts, dtype=object), attrs("concept")),
        "label": (("image", "concept"), label, attrs("label")),
        "file": ("image", np.array([str(by_name[name][0].path) for name in names], dtype=object)),
    }
    for column, values in extra.items():
        about = attrs(column) if column in VARIABLES else {"description": f"column {column} of the manifest"}
        coords[column] = ("image", np.array(values, dtype=object), about)
    return xr.Dataset(coords=coords, attrs={"root": str(root), "ignored_files": ignored})


def find_images(path: str | os.PathLike[str], *, order: str = "path") -> xr.Dataset:
    """Find images and their labels.

    Parameters
    ----------
    path
        A study, by its folder or its manifest.csv: of it the images that are used, as
        :meth:`semprobe.study.Study.used` says. Or a folder with ``{concept}-{positive|negative}/`` (split at the last
        hyphen) or ``{concept}/{positive|negative}`` below it; or a CSV file with columns path (relative to that file),
        concept, label (positive or negative) and any further ones; or any other folder, whose images then have no
        labels.
    order
        ``path``: by path, folder by folder and by code point. ``saev``: as saev's shards have them, of a folder what
        torchvision's ImageFolder takes for images, in its order; of a CSV file its lines, a path's first one.

    Returns
    -------
    xarray.Dataset
        Coordinates only: ``image`` in that order, ``label`` (image, concept), ``source`` and further columns of the
        CSV, ``file`` where each is on disk.
        ``attrs["ignored_files"]`` counts files that are no images.

    Raises
    ------
    ImagesError
        Nothing there, no image in it, a folder or line that can't be understood, or one image with two labels.
    """
    if order not in ("path", "saev"):
        raise ImagesError(f"order is {order!r}, expected path or saev")
    from semprobe.study import Study, is_study

    given = Path(path)
    if is_study(given) or (given.name == "manifest.csv" and is_study(given.parent)):
        study = Study(given if given.is_dir() else given.parent)
        rows, ignored, root, given = _from_study(study), 0, study.folder, study.manifest
        if not rows:
            raise ImagesError(f"{study.folder}: the study has no images to use; semprobe collect adds some")
    elif given.is_dir():
        rows, ignored = _from_folder(given, order)
        root = given
    elif given.is_file():
        rows, ignored, root = _from_manifest(given), 0, given.parent
    else:
        raise ImagesError(f"{given}: there is no such folder or CSV file")
    if not rows:
        also = f" ({ignored} other files were ignored)" if ignored else ""
        raise ImagesError(f"{given}: no images in here{also}; expected files ending in {' '.join(sorted(SUFFIXES))}")
    table = _table(rows, root, ignored)
    if order == "path":
        return table
    said = {"order": "ImageFolder", "root": os.path.realpath(root)}
    if given.is_file():
        said |= {"order": "lines of the CSV file", "manifest_sha256": hashlib.sha256(_bytes(given)).hexdigest()}
    return table.sel(image=list(dict.fromkeys(row.name for row in rows))).assign_attrs(said)


# reading


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Inspected(NamedTuple):
    """What a first look at a file tells: hash of its bytes, size after EXIF rotation, transparency."""

    sha256: str
    width: int
    height: int
    alpha: bool


@cache
def _formats() -> list[str]:
    Image.init()
    wanted = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
    return [name for name in wanted if name in Image.OPEN]


def _open(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=_formats())  # others, such as EPS, would run outside programs
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, more than the limit of {MAX_PIXELS:,}")
    return image


def _guarded(path: str | os.PathLike[str], data: bytes, read: Callable[[bytes], Any]) -> Any:
    try:
        if not data:
            raise ValueError("the file is empty")
        return read(data)
    except Exception as error:  # Pillow's plugins raise whatever they meet in a damaged file
        why = "its bytes are no image that Pillow knows" if type(error).__name__ == "UnidentifiedImageError" else error
        raise UnreadableImage(f"{path}: can't be read as an image: {why}") from error


def _bytes(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UnreadableImage(f"{path}: can't be read: {error.strerror}") from error


def _upright_size(image: Image.Image) -> tuple[int, int]:
    turned = image.format != "TIFF" and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # Pillow turns TIFF itself
    return (image.height, image.width) if turned else (image.width, image.height)


def _inspect(data: bytes) -> Inspected:
    image = _open(data)
    width, height = _upright_size(image)
    image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))  # JPEG alone: an eighth of the work
    image.load()
    if _deep(image):
        _to_eight_bits(image, image.format)
    return Inspected(hashlib.sha256(data).hexdigest(), width, height, image.has_transparency_data and not _deep(image))


def inspect(path: str | os.PathLike[str]) -> Inspected:
    """Hash a file and make sure that all of it can be decoded.

    Raises
    ------
    UnreadableImage
        Names the file and says why.
    """
    found: Inspected = _guarded(path, _bytes(path), _inspect)
    return found


def inspect_all(
    files: Iterable[str], workers: int, done: Callable[[int], None] = lambda n: None
) -> list[Inspected | UnreadableImage]:
    """Inspect files side by side, in order; an unreadable one gives its error instead."""

    def attempt(file: str) -> Inspected | UnreadableImage:
        try:
            return inspect(file)
        except UnreadableImage as error:
            return error

    found = []
    with ThreadPoolExecutor(workers) as pool:
        for result in pool.map(attempt, files):
            found.append(result)
            done(1)
    return found


def _to_eight_bits(image: Image.Image, form: str | None) -> Image.Image:
    """Grey with more than 8 bits, by its high byte, as Pillow reduces colour; 32-bit TIFFs that hold 8 as they are."""
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"grey values of {image.mode} from {values.min()} to {values.max()}; save it with 8 or 16 bits"
        )
    eight = form == "TIFF" and image.mode == "I" and values.max() <= 255
    return Image.fromarray((values if eight else values.astype(np.uint16) >> 8).astype(np.uint8))


def _deep(image: Image.Image) -> bool:
    """Whether grey has more than 8 bits; transparency is not applied to it."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _to_rgb(image: Image.Image, form: str | None) -> Image.Image:
    if _deep(image):
        return _to_eight_bits(image, form).convert("RGB")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    return image.convert("RGB")


def read_image(path: str | os.PathLike[str], sha256: str | None = None) -> Image.Image:
    """Read an image as upright 8-bit RGB: the first frame, EXIF rotation applied, transparency on white.

    Parameters
    ----------
    path
        File to read; never changed.
    sha256
        What its bytes should hash to, if that is known.

    Raises
    ------
    UnreadableImage
        It can't be decoded, or is another file than it was.
    """
    data = _bytes(path)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise UnreadableImage(
            f"{path}: the file changed since it was first looked at; put the old one back, or run extract again"
        )
    return decode(path, data)[0]


def decode(name: str | os.PathLike[str], data: bytes) -> tuple[Image.Image, str]:
    """An image file's bytes as `read_image` gives them, and the file's format, as Pillow calls it; errors have `name`.

    Raises
    ------
    UnreadableImage
        They can't be decoded.
    """

    def upright(data: bytes) -> tuple[Image.Image, str]:
        opened = _open(data)
        return _to_rgb(ImageOps.exif_transpose(opened), opened.format), str(opened.format)

    found: tuple[Image.Image, str] = _guarded(name, data, upright)
    return found
