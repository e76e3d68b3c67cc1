"""Local paths and fsspec URLs, treated alike."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
from filelock import FileLock, Timeout
from fsspec.implementations.local import LocalFileSystem

from semprobe.errors import StoreError

_LOCK_SECONDS = 60


class Place:
    """A folder of files at a local path or an fsspec URL."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.given = os.fspath(path)
        try:
            self.fs, self.root = fsspec.url_to_fs(self.given)
        except (ValueError, ImportError) as error:  # unknown protocol, or its package is not installed
            raise StoreError(f"{self.given}: this address can't be opened: {error}") from error
        self.local = isinstance(self.fs, LocalFileSystem)
        self.root = self.root.rstrip("/")
        if self.local and os.path.islink(self.root):  # what is done to a store is done where it is, and not to the link
            self.root = os.path.realpath(self.root)
        self.url = self.root if self.local else self.fs.unstrip_protocol(self.root)
        """What zarr is given: absolute, so that it means the same in another process."""

    def __str__(self) -> str:
        return self.given

    def join(self, *keys: str) -> str:
        return "/".join((self.root, *keys))

    def exists(self, *keys: str) -> bool:
        return bool(self.fs.exists(self.join(*keys)))

    def read(self, key: str) -> bytes:
        return bytes(self.fs.cat_file(self.join(key)))

    def read_json(self, key: str) -> Any:
        return json.loads(self.read(key))

    def write_json(self, key: str, value: Any) -> None:
        """Write a JSON file whole or not at all."""
        self.write(key, json.dumps(value, indent=2).encode())

    def write(self, key: str, data: bytes) -> None:
        """Write a file whole or not at all: local files by rename, objects by a single put."""
        if not self.local:
            self.fs.pipe_file(self.join(key), data)
            return
        aside = self.join(f"{key}.{uuid.uuid4().hex}.partial")
        os.makedirs(os.path.dirname(aside), exist_ok=True)
        with open(aside, "wb") as file:
            file.write(data)
        os.replace(aside, self.join(key))

    def remove(self, *keys: str) -> None:
        if self.exists(*keys):
            self.fs.rm(self.join(*keys), recursive=True)

    def clear(self, last: str) -> None:
        """Delete everything, one file last of all: where it is left, others know what this was."""
        if not self.exists():
            return
        for inside in (os.path.basename(os.fspath(found)) for found in self.fs.ls(self.root, detail=False)):
            if inside != last:
                self.remove(inside)
        self.remove(last)
        if not self.is_mounted():
            self.remove()

    def is_mounted(self) -> bool:
        """Whether a disk is mounted here, so that the folder itself has to stay."""
        return self.local and os.path.ismount(self.root)

    def rename(self, key: str, other: str) -> None:
        """Give a file another name, at once."""
        self.fs.mv(self.join(key), self.join(other))

    def sibling(self, suffix: str) -> Place:
        return Place(self.url + suffix)

    def overlaps(self, other: Place) -> bool:
        """Whether one is the other or lies inside of it."""
        one, two = (os.path.realpath(p.root) if p.local else p.url for p in (self, other))
        return f"{one}/".startswith(f"{two}/") or f"{two}/".startswith(f"{one}/")

    def move_to(self, other: Place) -> None:
        self.fs.mv(self.root, other.root, recursive=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let no other process of this user on this machine write to a store here meanwhile; does nothing for URLs.

        Raises
        ------
        StoreError
            Another process has been at it for a minute.
        """
        if not self.local:
            yield
            return
        name = hashlib.sha256(os.path.realpath(self.root).encode("utf-8", "surrogateescape")).hexdigest()[:32]
        folder = os.path.join(tempfile.gettempdir(), f"semprobe-{os.getuid() if hasattr(os, 'getuid') else 'user'}")
        lock = FileLock(os.path.join(folder, f"{name}.lock"), timeout=_LOCK_SECONDS)
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise StoreError(f"{self}: another process is writing to this store; try again") from error
        except OSError as error:
            raise StoreError(f"{folder}: locks can't be kept there: {error.strerror or error}") from error
        try:
            yield
        finally:
            lock.release()

    def size(self) -> int:
        """Bytes of all files below."""
        return int(self.fs.du(self.root))

    def folder(self) -> str:
        """A folder on the same disk that can be written to; of a URL, the system's for temporary files."""
        return self._nearest() if self.local else tempfile.gettempdir()

    def _nearest(self) -> str:
        """The closest folder above, or here, that is there."""
        at = os.path.abspath(self.root)
        while not os.path.exists(at):
            at = os.path.dirname(at)
        return at

    def free(self) -> int | None:
        """Bytes that can still be written here; None where that can't be told."""
        return shutil.disk_usage(self._nearest()).free if self.local else None

    def check_writable(self) -> None:
        """Raise a `StoreError` if nothing can be written here; where that can't be told, do nothing."""
        if not self.local:
            return
        nearest = self._nearest()
        if not os.path.isdir(nearest) and nearest != os.path.abspath(self.root):
            raise StoreError(f"{self}: {nearest} is a file, expected a folder")
        if not os.access(nearest, os.W_OK):
            raise StoreError(f"{self}: {nearest} can't be written to; choose another output or change its permissions")

    def sweep(self) -> None:
        """Delete the temporary files that a killed write left behind."""
        if self.local:
            for found in self.fs.glob(self.join("**", "*.partial")):
                self.fs.rm(found)
