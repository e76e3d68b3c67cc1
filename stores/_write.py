"""Write a store that was set up: regions, then the mark that it is complete.

A store under way has no root ``zarr.json``: the root's metadata waits under another name, so that neither semprobe
nor plain xarray can take it for a whole one. A region is one shard, one file a variable, written atomically, so a run
that is killed leaves whole regions and nothing else, and the same command goes on with those that are missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import numpy as np
import zarr

from semprobe.errors import StoreCorrupt, StoreError
from semprobe.stores._paths import Place
from semprobe.stores._read import REPLACED, ROOT, TEMPLATE, StoredArray, lost_files, sizes


class Writer:
    """A store under way: tells which regions are missing, writes them, and completes the store.

    As a context, one that an error leaves without any whole region is taken away again.
    """

    def __init__(self, place: Place, streamed: dict[str, zarr.Array], run: str) -> None:
        self.place = place
        self._arrays, self._run = streamed, run
        self._writing = False
        first = next(iter(streamed.values()))
        self.images = int(first.shape[0])
        self.shard = int((first.shards or first.chunks)[0])

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is None or self._writing:  # an interrupt leaves zarr's thread at its file
            return
        with suppress(OSError, StoreError), self.place.locked():  # what went wrong before is what matters
            self._let_go()

    def _let_go(self) -> None:
        waiting = self.place.read_json(TEMPLATE) if self.place.exists(TEMPLATE) else {}
        there, stored = sizes(self.place), [StoredArray(self.place.url, name) for name in self._arrays]
        whole = any(all(there.get(one.key(start)) for one in stored) for start, _ in self.regions())
        if waiting.get("run") == self._run and not whole:
            give_back(self.place, waiting["replaces"])

    def _check_ours(self) -> None:
        """Two runs on one store would mix their numbers: the one that came last has it."""
        if not self.place.exists(TEMPLATE) or self.place.read_json(TEMPLATE).get("run") != self._run:
            raise StoreError(f"{self.place}: another run has taken this store over or finished it; let that one go on")

    def regions(self) -> list[tuple[int, int]]:
        """First and last-plus-one image of every region, in order."""
        return [(at, min(at + self.shard, self.images)) for at in range(0, self.images, self.shard)]

    def missing(self) -> list[tuple[int, int]]:
        """Regions that are not there, or that fail their checksum."""
        there = sizes(self.place)
        return [region for region in self.regions() if not all(self._sound(n, *region, there) for n in self._arrays)]

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
        with self.place.locked():  # or the store could be another run's by the time that zarr is done
            self._check_ours()
            self._writing = True
            try:
                for name, block in values.items():
                    self._arrays[name][start:stop] = block
            except OSError as error:
                self._writing = False
                raise StoreError(
                    f"{self.place}: images {start} to {stop - 1} can't be written: {error.strerror or error}. "
                    "Regions that were written before are kept, and the same command goes on with the others"
                ) from error
            self._writing = False

    def complete(self) -> None:
        """Mark the store complete, last of all, and let go of the store that it replaces."""
        with self.place.locked(), named(self.place):
            self._check_ours()
            lost = lost_files(self.place, self._arrays)
            if lost:
                raise StoreError(f"{self.place}: can't be completed, {len(lost)} file(s) were never written")
            finish(self.place)


@contextmanager
def named(place: Place) -> Iterator[None]:
    """Errors of the disk say of which store they are."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{place}: can't be written: {error.strerror or error}") from error


def give_back(place: Place, replaces: bool) -> None:
    """Leave a place as it was before a store was begun there."""
    place.remove()
    if replaces:
        place.sibling(REPLACED).move_to(place)


def finish(place: Place) -> None:
    """Mark a store complete: its root's metadata, written once, and then nothing but deleting."""
    waiting = place.read_json(TEMPLATE)
    root = {
        "zarr_format": 3, "node_type": "group", "attributes": {**waiting["attributes"], "state": "complete"},
        "consolidated_metadata": waiting["consolidated_metadata"],
    }  # fmt: skip
    place.write_json(ROOT, root)
    if waiting["replaces"]:
        place.sibling(REPLACED).remove()
    place.remove(TEMPLATE)
    place.sweep()
