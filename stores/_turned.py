"""Numbers that come by image and are wanted by latent: on disk in between, since in memory they would not fit."""

from __future__ import annotations

import tempfile
import threading

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
        self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed with this object
        self._lock = threading.Lock()

    def __enter__(self) -> Turned:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _at(self, image: int, start: int, stop: int) -> int:
        """Where an image's numbers of a block of latents begin."""
        return (self.shape[0] * start + image * (stop - start)) * self.dtype.itemsize

    def _blocks(self) -> list[tuple[int, int]]:
        return [(at, min(at + self._width, self.shape[1])) for at in range(0, self.shape[1], self._width)]

    def __setitem__(self, key: tuple[slice, slice], rows: np.ndarray) -> None:
        """Write all latents of some images, which is what `dask.array.store` does."""
        first = key[0].start or 0
        try:
            for start, stop in self._blocks():
                with self._lock:
                    self._file.seek(self._at(first, start, stop))
                    self._file.write(np.ascontiguousarray(rows[:, start:stop]).data)
        except OSError as error:
            raise StoreError(
                f"{self._folder}: a temporary file of patch sums can't be written: {error.strerror or error}"
            ) from error

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        """Read all images of one block of latents."""
        start, stop = key[1].start, key[1].stop
        found = np.empty((self.shape[0], stop - start), self.dtype)
        with self._lock:
            self._file.seek(self._at(0, start, stop))
            self._file.readinto(found.data)
        return found

    def lazy(self) -> da.Array:
        """All of it, blocks of latents."""
        return da.from_array(self, chunks=(-1, self._width), fancy=False, name=False, inline_array=True)
