"""Numbers that come by image and are wanted by latent: on disk in between, since in memory they would not fit."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import dask.array as da
import numpy as np

from semprobe.errors import StoreError
from semprobe.stores._paths import Place


class Turned:
    """(image, latent) numbers in a file without a name: written image by image, read latent by latent.

    The file vanishes with the process, however that ends. It lies block after block of latents, each with all images,
    so that neither side reads or writes more than it holds.

    Parameters
    ----------
    beside
        The output whose disk is to hold it; of a URL, the system's folder for temporary files.
    shape
        (image, latent).
    dtype
        Of the numbers.
    width
        Latents a block.
    """

    def __init__(self, beside: Place, shape: tuple[int, int], dtype: np.dtype, width: int) -> None:
        self.shape, self.dtype, self.ndim, self._width = shape, np.dtype(dtype), 2, width
        self._folder = beside.folder()
        self._lock = threading.Lock()
        with self._told():
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed with this object

    def __enter__(self) -> Turned:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # of a full disk, that was told already
            self._file.close()

    def _at(self, image: int, start: int, stop: int) -> int:
        """Where an image's numbers of a block of latents begin."""
        return (self.shape[0] * start + image * (stop - start)) * self.dtype.itemsize

    def _blocks(self) -> list[tuple[int, int]]:
        return [(at, min(at + self._width, self.shape[1])) for at in range(0, self.shape[1], self._width)]

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"{self._folder}: a temporary file of patch sums can't be used there: {error.strerror or error}"
            ) from error

    def __setitem__(self, key: tuple[slice, slice], rows: np.ndarray) -> None:
        """Write all latents of some images, which is what `dask.array.store` does with chunks of whole rows."""
        first = key[0].start or 0
        if rows.shape[1] != self.shape[1]:
            raise ValueError(f"found {rows.shape[1]} latents, expected all {self.shape[1]} of some images")
        with self._lock, self._told():
            for start, stop in self._blocks():
                self._file.seek(self._at(first, start, stop))
                self._file.write(np.ascontiguousarray(rows[:, start:stop]).data)
            self._file.flush()  # or a full disk would be told by whoever comes next

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        """Read all images of one block of latents."""
        start, stop = key[1].start, key[1].stop
        found = np.empty((self.shape[0], stop - start), self.dtype)
        with self._lock, self._told():
            self._file.seek(self._at(0, start, stop))
            if self._file.readinto(found.data) != found.nbytes:
                raise OSError("it is shorter than what was written")
        return found

    def lazy(self) -> da.Array:
        """All of it, blocks of latents."""
        return da.from_array(self, chunks=(-1, self._width), fancy=False, name=False, inline_array=True)
