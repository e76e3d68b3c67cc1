"""Open a store: validated, lazy, with every read checked."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from dask.base import tokenize

from semprobe.errors import StoreCorrupt, StoreError, StoreIncomplete, StoreNotFound
from semprobe.stores._layout import FORMAT_VERSION, REQUIRED, images_per_block
from semprobe.stores._paths import Place
from semprobe.stores._saev import open_shards
from semprobe.stores._saev_files import is_shards
from semprobe.vocabulary import VARIABLES

ROOT, TEMPLATE = "zarr.json", "incomplete.json"
"""The root metadata of a complete store, and what stands in its place until then."""

DELETED = "deleted.json"
"""The template of a store that is being deleted: what a kill leaves of it is known as ours, and not gone on with."""

REPLACED = ".replaced"
"""Ending of the name under which an old store waits until the new one is complete."""


def metadata(place: Place, key: str) -> dict[str, Any]:
    """A JSON object at the root of a store; empty if the file is not there.

    Raises
    ------
    StoreCorrupt
        It can't be read.
    """
    if not place.exists(key):
        return {}
    try:
        found = place.read_json(key)
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}, expected an object")
    except ValueError as error:
        raise StoreCorrupt(f"{place}: {key} is not readable JSON ({error}); the store is damaged") from error
    return found


def root_attributes(place: Place) -> dict[str, Any] | None:
    """Root attributes of a store in whatever state, None if this is no semprobe store."""
    for key in (ROOT, TEMPLATE, DELETED):
        found = metadata(place, key).get("attributes")
        if isinstance(found, dict) and "semprobe_format" in found:
            return found
    return None


def is_complete(place: Place, attributes: dict[str, Any]) -> bool:
    """Whether the run that makes a store has finished."""
    return place.exists(ROOT) and attributes.get("state") == "complete"


def check_version(place: Place, attributes: dict[str, Any]) -> str:
    """The kind of a store whose version can be read."""
    form = attributes["semprobe_format"]
    kind, version = (form.get("kind"), form.get("version")) if isinstance(form, dict) else (form, None)
    if not isinstance(kind, str) or kind not in REQUIRED:
        raise StoreError(f"{place}: unknown kind of store {kind!r}; known are {', '.join(REQUIRED)}")
    if type(version) is not int or version < 1 or not isinstance(attributes.get("provenance"), dict):
        raise StoreCorrupt(f"{place}: format version {version!r} or its provenance is not as semprobe writes it")
    if version > FORMAT_VERSION:
        raise StoreError(
            f"{place}: this store has format version {version}, and this semprobe reads up to {FORMAT_VERSION}: "
            "upgrade semprobe"
        )
    return str(kind)


class StoredArray:
    """One variable on disk, sliced lazily; small enough to be sent to a worker.

    A read that fails its checksum raises `StoreCorrupt` naming the file.
    """

    def __init__(self, url: str, name: str) -> None:
        self.url, self.name = url, name
        self._array: zarr.Array | None = None
        self.shape, self.dtype, self.ndim = self.array.shape, self.array.dtype, self.array.ndim

    @property
    def array(self) -> zarr.Array:
        if self._array is None:
            self._array = zarr.open_array(self.url, path=self.name, mode="r")
        return self._array

    @property
    def shard(self) -> int:
        """Images a shard holds."""
        return int((self.array.shards or self.array.chunks)[0])

    def keys(self) -> list[str]:
        """Names of all files that it is made of."""
        lengths = self.array.shards or self.array.chunks
        grid = itertools.product(*(range(-(-n // length)) for n, length in zip(self.shape, lengths, strict=True)))
        return ["/".join([self.name, "c", *map(str, at)]) for at in grid]

    def key(self, image: int) -> str:
        """Name of the file that holds an image."""
        return "/".join([self.name, "c", str(image // self.shard), *["0"] * (self.ndim - 1)])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}

    def __getitem__(self, key: Any) -> np.ndarray:
        try:
            return np.asarray(self.array[key])
        except Exception as error:  # zarr raises whatever its codecs and the file system raise
            first = key[0] if isinstance(key, tuple) else key
            start, stop, _ = first.indices(self.shape[0]) if isinstance(first, slice) else (0, self.shape[0], 1)
            raise StoreCorrupt(
                f"{self.url}: file {self._damaged(start, stop)} can't be read: {error}. It was truncated or changed "
                "after it was written; restore it or make the store again"
            ) from error

    def _damaged(self, start: int, stop: int) -> str:
        """The first file of these images that can't be read."""
        for at in range(start - start % self.shard, stop, self.shard):
            try:
                self.array[at : at + self.shard]
            except Exception:
                return self.key(at)
        return self.key(start)


def sizes(place: Place) -> dict[str, int]:
    """Bytes of every file of a store, by its name below the store's root."""
    prefix = place.root.rstrip("/") + "/"
    found = place.fs.find(place.root, detail=True)
    return {os.fspath(path).removeprefix(prefix): int(about["size"] or 0) for path, about in found.items()}


def lost_files(place: Place, names: Iterable[str]) -> list[str]:
    """Files of these variables that are not there, or empty: zarr would read fill values in their place."""
    there = sizes(place)
    return [key for name in names for key in StoredArray(place.url, name).keys() if not there.get(key)]


def _check_files(place: Place, names: Iterable[str]) -> None:
    """Every chunk is written, so a file that is not there is lost."""
    lost = lost_files(place, names)
    if lost:
        raise StoreCorrupt(
            f"{place}: {len(lost)} file(s) are missing or empty, the first {lost[0]}; restore them or make the store "
            "again"
        )


def _lazy(place: Place, name: str, token: str) -> da.Array:
    stored = StoredArray(place.url, name)
    per_image = int(np.prod(stored.shape[1:])) * stored.dtype.itemsize
    chunks = (images_per_block(per_image), *stored.shape[1:])
    return da.from_array(stored, chunks=chunks, name=f"{name}-{token}", fancy=False, inline_array=True)


def _streamed(dataset: xr.Dataset) -> Iterator[str]:
    for name, variable in dataset.data_vars.items():
        if variable.encoding.get("shards"):
            yield str(name)


def _validate(place: Place, kind: str, dataset: xr.Dataset) -> None:
    absent = REQUIRED[kind] - set(map(str, dataset.variables))
    if absent:
        raise StoreError(f"{place}: this store of {kind} lacks {', '.join(sorted(absent))}; make it again")
    for name, variable in dataset.variables.items():
        known = VARIABLES.get(str(name))
        if known and tuple(variable.dims) != known.dims:
            raise StoreError(f"{place}: {name} has dims {tuple(variable.dims)}, expected {known.dims}")


def open_store(
    path: str | os.PathLike[str], *, layer: int | None = None, images: xr.Dataset | None = None
) -> xr.Dataset:
    """Open a complete store, or a directory of saev's activation shards, lazily, after checking that it is whole.

    Coordinates and small variables are loaded; the large ones are dask arrays whose chunks are blocks of images. Shards
    are memory-mapped where they are; they have no checksums.

    Parameters
    ----------
    path
        Local path or fsspec URL; of shards a local path, the directory that holds metadata.json.
    layer
        Of shards only: which of the recorded layers, as their metadata writes it. Needed where there are several.
    images
        Of shards only: the images in the shards' order, as ``find_images(..., order="saev")`` gives them. Without them
        images are numbered and have no labels.

    Returns
    -------
    xarray.Dataset
        Dims and variables of ``docs/store-format.md``; ``attrs["semprobe_format"]["kind"]`` says which kind it is.

    Raises
    ------
    StoreNotFound
        Nothing is there.
    StoreIncomplete
        The run that makes it has not finished.
    StoreCorrupt
        A file is missing or damaged. A damaged chunk is found when it is read, not before.
    StoreError
        It is no semprobe store, or of a newer version; shards that contradict their own metadata.
    ImagesError
        There are more or fewer `images` than the shards hold.
    """
    place = Place(path)
    if not place.exists():
        aside = place.sibling(REPLACED)
        hint = f"; {aside} may be the one that a stopped --overwrite put aside" if aside.exists() else ""
        raise StoreNotFound(f"{place}: there is no store here{hint}")
    attributes = root_attributes(place)
    if attributes is None and is_shards(path):
        return open_shards(place, layer=layer, images=images)
    if attributes is None:
        raise StoreError(
            f"{place}: this is not a semprobe store (no {ROOT} with semprobe_format), nor a directory of saev "
            "shards (no metadata.json)"
        )
    if layer is not None or images is not None:
        raise StoreError(f"{place}: this store says itself which layer and images it holds; leave layer and images out")
    kind = check_version(place, attributes)
    if not is_complete(place, attributes):
        raise StoreIncomplete(f"{place}: this store of {kind} is not complete; run the same command again to finish it")
    try:
        dataset = xr.open_zarr(place.url, chunks=None, consolidated=True)
        _validate(place, kind, dataset)
        _check_files(place, map(str, dataset.variables))
        token = tokenize(place.url, attributes)
        streamed = set(_streamed(dataset))
        loaded = dataset.drop_vars(streamed).load()
    except StoreError:
        raise
    except Exception as error:
        raise StoreCorrupt(f"{place}: the store can't be read: {error}") from error
    lazy = {name: (dataset[name].dims, _lazy(place, name, token), dataset[name].attrs) for name in streamed}
    return loaded.assign(lazy)


def verify(path: str | os.PathLike[str]) -> Iterator[tuple[str, int, int]]:
    """Read every shard of a store, so that each checksum is compared.

    Yields
    ------
    tuple of str, int, int
        Variable, and the first and last-plus-one image just found sound.

    Raises
    ------
    StoreCorrupt
        Names the first file that fails.
    """
    if is_shards(path):
        raise StoreError(
            f"{Place(path)}: saev shards have no checksums to compare; semprobe import makes a store of them"
        )
    return _verified(Place(path), open_store(path))


def _verified(place: Place, dataset: xr.Dataset) -> Iterator[tuple[str, int, int]]:
    for name in (str(n) for n, v in dataset.data_vars.items() if v.chunks):
        stored = StoredArray(place.url, name)
        for start in range(0, stored.shape[0], stored.shard):
            stop = min(start + stored.shard, stored.shape[0])
            stored[start:stop]
            yield name, start, stop
