"""Write a store that was set up: regions, then the mark that it is complete.

A store under way has no root ``zarr.json``: the root's metadata waits under another name, so that neither semprobe
nor plain xarray can take it for a whole one. A region is one shard, one file a variable, written atomically, so a run
that is killed leaves whole regions and nothing else, and the same command goes on with those that are missing.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import zarr
from zarr.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from semprobe.errors import StoreCorrupt, StoreError
from semprobe.stores._paths import Place
from semprobe.stores._read import DELETED, REPLACED, ROOT, TEMPLATE, StoredArray, lost_files, metadata, sizes


class Writer:
    """A store under way: tells which regions are missing, writes them, and completes the store.

    As a context, one that an error leaves without any whole region is taken away again.
    """

    def __init__(self, place: Place, streamed: dict[str, zarr.Array], run: str) -> None:
        self.place = place
        self._arrays, self._run = streamed, run
        first = next(iter(streamed.values()))
        self.images = int(first.shape[0])
        self.shard = int((first.shards or first.chunks)[0])

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is not None:
            with suppress(OSError, StoreError), self.place.locked():  # what went wrong before is what matters
                self._let_go()

    def _let_go(self) -> None:
        waiting = waiting_at(self.place)
        there, stored = sizes(self.place), [StoredArray(self.place.url, name) for name in self._arrays]
        whole = any(all(there.get(one.key(start)) for one in stored) for start, _ in self.regions())
        if waiting.get("run") == self._run and not whole:
            give_back(self.place, waiting["replaces"])

    def _check_ours(self) -> None:
        """Two runs on one store would mix their numbers: the one that came last has it."""
        if waiting_at(self.place).get("run") != self._run:
            raise StoreError(f"{self.place}: another run has taken this store over or finished it; let that one go on")

    def regions(self) -> list[tuple[int, int]]:
        """First and last-plus-one image of every region, in order."""
        return [(at, min(at + self.shard, self.images)) for at in range(0, self.images, self.shard)]

    def missing(self) -> list[tuple[int, int]]:
        """Regions that are not there, or that fail their checksum."""
        there = sizes(self.place)
        try:
            return [one for one in self.regions() if not all(self._sound(n, *one, there) for n in self._arrays)]
        except FileNotFoundError:  # all of it is gone
            self._check_ours()
            raise

    def _sound(self, name: str, start: int, stop: int, there: Mapping[str, int]) -> bool:
        stored = StoredArray(self.place.url, name)
        if not there.get(stored.key(start)):
            return False
        try:
            stored[start:stop]
        except StoreCorrupt:
            return False
        return True

    def write(self, start: int, values: Mapping[str, np.ndarray]) -> None:
        """Write one region of every streamed variable.

        Raises
        ------
        StoreError
            The values are not exactly one region: part of a shard can't be written safely, since two writers in one
            shard would silently lose data.
        """
        if set(values) != set(self._arrays):
            raise StoreError(f"{self.place}: got {sorted(values)} to write, expected {sorted(self._arrays)}")
        stop = min(start + self.shard, self.images)
        for name, block in values.items():
            array = self._arrays[name]
            expected = (stop - start, *array.shape[1:])
            if start % self.shard or block.shape != expected or block.dtype != array.dtype:
                raise StoreError(
                    f"{self.place}: {name} at image {start} has shape {block.shape} and dtype {block.dtype}, expected "
                    f"{expected} and {array.dtype}, starting at a multiple of {self.shard}: only whole shards are safe"
                )
        # the place is ours until the write ends, even if it is interrupted: leaving waits for the thread
        with self.place.locked(), ThreadPoolExecutor(1) as pool:
            pool.submit(self._check_ours).result()  # there, so that the thread is known before it matters
            try:
                pool.submit(self._put, start, stop, values).result()
            except OSError as error:
                raise StoreError(
                    f"{self.place}: images {start} to {stop - 1} can't be written: {error.strerror or error}. "
                    "Regions that were written before are kept, and the same command goes on with the others"
                ) from error

    def _put(self, start: int, stop: int, values: Mapping[str, np.ndarray]) -> None:
        for name, block in values.items():
            self._arrays[name][start:stop] = block

    def complete(self) -> None:
        """Mark the store complete, last of all, and let go of the store that it replaces."""
        with self.place.locked(), named(self.place):
            self._check_ours()
            lost = lost_files(self.place, self._arrays)
            if lost:
                raise StoreError(f"{self.place}: can't be completed, {len(lost)} file(s) were never written")
            finish(self.place)


def waiting_at(place: Place) -> dict[str, Any]:
    """What stands in the place of the root's metadata of a store under way; nothing if none is.

    Raises
    ------
    StoreCorrupt
        It can't be read.
    """
    return metadata(place, TEMPLATE) or {**metadata(place, DELETED), "run": None, "ready": False}


@contextmanager
def named(place: Place) -> Iterator[None]:
    """Errors of the disk say of which store they are."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{place}: can't be written: {error.strerror or error}") from error


def clear(place: Place) -> None:
    """Delete a store under way."""
    if place.exists(TEMPLATE):
        place.rename(TEMPLATE, DELETED)
    place.clear(DELETED)


def give_back(place: Place, replaces: bool) -> None:
    """Leave a place as it was before a store was begun there."""
    clear(place)
    if replaces:
        place.sibling(REPLACED).move_to(place)


def finish(place: Place) -> None:
    """Mark a store complete: its root's metadata, written once, and then nothing but deleting."""
    waiting = waiting_at(place)
    about = {"zarr_format": 3, "node_type": "group", "attributes": {**waiting["attributes"], "state": "complete"}}
    keys = [key for key in sizes(place) if key.endswith(f"/{ROOT}")]
    files: dict[str, Any] = {key: Buffer.from_bytes(place.read(key)) for key in keys}
    files[ROOT] = Buffer.from_bytes(json.dumps(about).encode())
    with warnings.catch_warnings():  # consolidated metadata is not yet in the Zarr 3 specification
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        zarr.consolidate_metadata(MemoryStore(files))
    place.write(ROOT, files[ROOT].to_bytes())
    if waiting.get("replaces"):
        place.sibling(REPLACED).remove()
    place.remove(TEMPLATE)
    place.sweep()
