"""saev's activation shards as a store of activations: memory-mapped where they are, nothing copied."""

from __future__ import annotations

import hashlib
import math
import os
from itertools import pairwise
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize

from semprobe.errors import ImagesError, StoreCorrupt, StoreError
from semprobe.stores._layout import FORMAT_VERSION, images_per_block
from semprobe.stores._paths import Place
from semprobe.stores._saev_files import METADATA, Directory, Metadata, read_directory
from semprobe.vocabulary import UNLABELLED, VARIABLES, attrs

LABELS = "labels.bin"

_OPENED = 10_000  # pictures that are opened at most to find those that are none


class Mapped:
    """One array in raw files, mapped where and when it is sliced; small enough to be sent to a worker."""

    def __init__(
        self,
        path: str,
        dtype: str,
        record: tuple[int, ...],
        pick: tuple[Any, ...],
        shape: tuple[int, ...],
        per_file: int,
    ) -> None:
        self.path, self.per_file = path, per_file  # {number} in the path, images in each file
        self.record, self.pick = record, pick  # shape of one image in the file, and what of it is wanted
        self.dtype, self.shape, self.ndim = np.dtype(dtype), shape, len(shape)

    def chunks(self) -> tuple[tuple[int, ...], ...]:
        """Blocks of about 10 MB that never cross a file."""
        block = images_per_block(math.prod(self.shape[1:]) * self.dtype.itemsize)
        ends = [(at, min(at + self.per_file, self.shape[0])) for at in range(0, self.shape[0], self.per_file)]
        blocks = [min(block, stop - at) for start, stop in ends for at in range(start, stop, block)]
        return (tuple(blocks), *((size,) for size in self.shape[1:]))

    def _map(self, start: int, stop: int) -> np.ndarray:
        """Images of one file; mapped for writing to memory alone, since torch warns of what is read-only."""
        number, first = divmod(start, self.per_file)
        path = self.path.format(number=number)
        offset = first * math.prod(self.record) * self.dtype.itemsize
        try:
            mapped = np.memmap(path, self.dtype, "c", offset=offset, shape=(stop - start, *self.record))
        except (OSError, ValueError) as error:
            raise StoreCorrupt(f"{path}: was cut off or removed since it was opened ({error}); restore it") from error
        return np.asarray(mapped)[(slice(None), *self.pick)]

    def __getitem__(self, key: Any) -> np.ndarray:
        image, *rest = key if isinstance(key, tuple) else (key,)
        number = not isinstance(image, slice)
        start, stop, step = (int(image), int(image) + 1, 1) if number else image.indices(self.shape[0])
        ends = [start, *range(start - start % self.per_file + self.per_file, stop, self.per_file), max(start, stop)]
        parts = [self._map(*pair) for pair in pairwise(ends) if pair[0] < pair[1]]
        if not parts:
            return np.empty((0, *self.shape[1:]), self.dtype)[(slice(None), *rest)]
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return rows[(0 if number else slice(None, None, step), *rest)]


# dataset


def _chosen(folder: str, about: Metadata, layer: int | None) -> int:
    if layer is None and len(about.layers) == 1:
        return about.layers[0]
    if layer in about.layers:
        return layer
    wanted = "several layers are here; choose one with layer" if layer is None else f"layer {layer} is not here"
    raise StoreError(f"{folder}: {wanted}; found {', '.join(map(str, about.layers[:100]))}, as {METADATA} has them")


def _numbered(images: int) -> xr.Dataset:
    """Coordinates of images of which nothing is known."""
    names = np.array([f"{at:06}" for at in range(images)], dtype=object)
    nothing = np.full((images, 0), UNLABELLED, np.int8)
    return xr.Dataset(
        coords={
            "image": ("image", names, attrs("image")),
            "concept": ("concept", np.array([], dtype=object), attrs("concept")),
            "label": (("image", "concept"), nothing, attrs("label")),
            "source": ("image", np.full(images, "", dtype=object), attrs("source")),
        }
    )


def _checked(images: Any, folder: str, expected: int) -> xr.Dataset:
    """The coordinates that were given, if they can be those of the shards."""
    if not isinstance(images, xr.Dataset) or not {"image", "concept", "label", "source"} <= set(images.coords):
        raise ImagesError(
            f"images is {type(images).__name__}, expected a Dataset as find_images(..., order='saev') gives"
        )
    if "order" not in images.attrs:
        raise ImagesError("these images are in the order of their paths; shards need find_images(..., order='saev')")
    names = images["image"].values.tolist()
    if len(names) != expected:
        raise ImagesError(
            f"{images.attrs.get('root', 'images')}: found {len(names)} images, and the shards in {folder} hold "
            f"{expected}: {_difference(images, expected)}. Give the images that the shards were made from, no others. "
            "ImageFolder takes .jpg .jpeg .png .ppm .bmp .pgm .tif .tiff .webp in class folders, hidden ones too, and "
            f"ignores others ({images.attrs.get('ignored_files', 0)} here), such as .gif, and files in no folder"
        )
    return images.drop_vars(["file", *images.data_vars], errors="ignore")


def _difference(images: xr.Dataset, expected: int) -> str:
    names = images["image"].values.astype(str).tolist()
    extra = len(names) - expected
    if extra < 0:
        return f"{-extra} missing"
    if odd := _odd(images, names):
        return f"{extra} too many, of which may be {_some(odd)}, hidden or no picture that can be opened"
    return f"{extra} too many, past the end are {_some(names[expected:])}. Which ones are extra a count can't tell"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _odd(images: xr.Dataset, names: list[str]) -> list[str]:
    """Files that hardly were among those that the shards were made from."""
    hidden = [name for name in names if any(part.startswith(".") for part in name.split("/"))]
    if "file" not in images or len(names) > _OPENED:
        return hidden
    files = dict(zip(names, images["file"].values.tolist(), strict=True))
    return hidden + [name for name in names if name not in hidden and not _opens(files[name])]


def _opens(file: str) -> bool:
    from PIL import Image

    try:
        with Image.open(file):
            return True
    except Exception:  # whatever Pillow raises at bytes that are no picture
        return False


def _patch_labels(folder: str, images: int, patches: int) -> Mapped | None:
    path = os.path.join(folder, LABELS)
    if not os.path.lexists(path):
        return None
    found = os.path.getsize(path) if os.path.isfile(path) else 0
    if found != images * patches:
        raise StoreCorrupt(
            f"{path}: found {found:,} bytes, expected {images * patches:,}, one for each patch; copy it again"
        )
    return Mapped(_literal(path), "u1", (patches,), (slice(None),), (images, patches), images)


def _literal(path: str) -> str:
    return path.replace("{", "{{").replace("}", "}}")


def _variables(folder: str, here: Directory, layer: int) -> dict[str, Mapped]:
    about, layout = here.about, here.layout
    path = os.path.join(_literal(folder), "acts{number:06}.bin")
    record = (len(about.layers), layout.tokens, about.features)
    at, first = about.layers.index(layer), layout.tokens - about.patches
    shape = (about.images, about.patches, about.features)
    found = {"activations": Mapped(path, "<f4", record, (at, slice(first, None)), shape, layout.per_file)}
    if first:
        found["cls"] = Mapped(path, "<f4", record, (at, 0), (shape[0], shape[2]), layout.per_file)
    labels = _patch_labels(folder, about.images, about.patches)
    return found | ({"patch_label": labels} if labels is not None else {})


def _grid(patches: int) -> dict[str, Any]:
    edge = math.isqrt(patches)
    if edge * edge != patches:
        return {}
    row, column = np.divmod(np.arange(patches, dtype=np.int32), np.int32(edge))
    return {"row": ("patch", row, attrs("row")), "column": ("patch", column, attrs("column"))}


def _state(folder: str, here: Directory) -> str:
    """What tells files that were written again: sizes and dates, since reading all would take as long as encoding."""
    labels = os.path.join(folder, LABELS)
    there = os.stat(labels) if os.path.isfile(labels) else None
    known = (here.state, there and (there.st_size, there.st_mtime_ns))
    return hashlib.sha256(repr(known).encode()).hexdigest()


def _provenance(folder: str, here: Directory, layer: int, images: xr.Dataset) -> dict[str, Any]:
    about = here.about
    return {
        "backbone": {"model": about.model, "family": about.family, "layer": layer},
        "shards": {
            "path": os.path.realpath(folder), "format": "saev", "protocol": about.protocol or "none",
            "metadata_sha256": about.sha256, "files_sha256": _state(folder, here), "data": about.data,
        },
        "images": {
            name: str(images.attrs[name]) for name in ("root", "order", "manifest_sha256") if name in images.attrs
        },
    }  # fmt: skip


def _lazy(one: Mapped, name: str) -> da.Array:
    return da.from_array(one, one.chunks(), name=name, fancy=False, inline_array=True)


def open_shards(place: Place, *, layer: int | None, images: xr.Dataset | None) -> xr.Dataset:
    """Open a directory of saev's shards; see `open_store`."""
    if not place.local:
        raise StoreError(
            f"{place}: saev shards are memory-mapped, so they have to be on a local disk; copy them to one"
        )
    folder = place.root
    here = read_directory(folder)
    chosen = _chosen(folder, here.about, layer)
    named = _numbered(here.about.images) if images is None else _checked(images, folder, here.about.images)
    token = tokenize(folder, here.about.sha256, chosen, here.state)
    lazy = {
        name: (VARIABLES[name].dims, _lazy(one, f"{name}-{token}"), attrs(name))
        for name, one in _variables(folder, here, chosen).items()
    }
    protocol = here.about.protocol or "none"
    form = {"kind": "activations", "version": FORMAT_VERSION, "saev_protocol": protocol}
    kept = {name: named.attrs[name] for name in ("root", "ignored_files") if name in named.attrs}
    came = _provenance(folder, here, chosen, named)
    found = named.drop_attrs(deep=False).assign_coords(_grid(here.about.patches)).assign(lazy)
    return found.assign_attrs(kept, semprobe_format=form, provenance=came)
