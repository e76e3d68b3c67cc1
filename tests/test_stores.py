"""Stores: sharded, checksummed, resumable, complete last, and open in plain xarray."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr

from semprobe import stores
from semprobe.errors import StoreCorrupt, StoreError, StoreExists, StoreIncomplete, StoreMismatch, StoreNotFound

IMAGES, LATENTS, SHARD = 40, 5, 16


def _template(images: int = IMAGES) -> xr.Dataset:
    names = np.array([f"ä/{at}.png" for at in range(images)], dtype=object)
    return xr.Dataset(
        {"patch_sum": (("image", "latent"), da.zeros((images, LATENTS), dtype=np.float32))},
        coords={
            "image": names,
            "concept": np.array(["wheel"], dtype=object),
            "latent": np.arange(LATENTS),
            "label": (("image", "concept"), np.zeros((images, 1), np.int8)),
        },
    )


def _values(start: int, stop: int) -> np.ndarray:
    return (np.arange(start, stop)[:, None] + np.linspace(0, 0.5, LATENTS)).astype(np.float32)


def _create(path: Any, **changes: Any) -> stores.Writer:
    options: dict[str, Any] = {"kind": "latents", "shard": SHARD, "provenance": {"sae": {"sha256": "a"}, "created": 1}}
    return stores.create(path, _template(), **{**options, **changes})


def _fill(writer: stores.Writer) -> None:
    for start, stop in writer.missing():
        writer.write(start, {"patch_sum": _values(start, stop)})
    writer.complete()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    _fill(_create(tmp_path / "a.zarr"))
    return tmp_path / "a.zarr"


def test_round_trip_lazy_and_plain_without_a_warning(store: Path, never_computes: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain, ours = xr.open_zarr(store), stores.open_store(store)
    assert ours["patch_sum"].chunks is not None
    assert ours["label"].chunks is None
    for found in (plain, ours):
        values = found["patch_sum"].compute(scheduler="sync").values
        assert (values == _values(0, IMAGES)).all()
        assert found["image"].values[3] == "ä/3.png"
        assert found.attrs["state"] == "complete"


def test_every_chunk_has_a_checksum_and_shards_are_files(store: Path) -> None:
    for name in ("patch_sum", "image", "label", "latent"):
        codecs = json.dumps(json.loads((store / name / "zarr.json").read_text())["codecs"])
        assert "crc32c" in codecs, name
    assert len(list((store / "patch_sum" / "c").glob("*/0"))) == 3
    assert zarr.open_array(store, path="patch_sum", mode="r").chunks == (1, LATENTS)


def test_half_written_opens_nowhere_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    writer = _create(path)
    writer.write(16, {"patch_sum": _values(16, 32)})
    with pytest.raises(StoreIncomplete, match="run the same command again"):
        stores.open_store(path)
    with pytest.raises(FileNotFoundError):
        xr.open_zarr(path)
    with pytest.raises(StoreError, match="2 file"):
        writer.complete()
    again = _create(path, provenance={"sae": {"sha256": "a"}, "created": 2})
    assert again.missing() == [(0, 16), (32, 40)]
    _fill(again)
    assert (stores.open_store(path)["patch_sum"].values == _values(0, IMAGES)).all()


def test_a_damaged_region_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    writer = _create(path)
    for start, stop in writer.regions():
        writer.write(start, {"patch_sum": _values(start, stop)})
    file = path / "patch_sum" / "c" / "1" / "0"
    file.write_bytes(file.read_bytes()[:-20])
    assert _create(path).missing() == [(16, 32)]


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    _create(path)
    with pytest.raises(StoreMismatch, match=r"sae\.sha256: a in the store, b now"):
        _create(path, provenance={"sae": {"sha256": "b"}})
    with pytest.raises(StoreMismatch, match=r"coordinates\.image"):
        stores.create(path, _template(39), kind="latents", shard=SHARD, provenance={"sae": {"sha256": "a"}})


def test_killed_while_setting_up_starts_again(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    waiting = path / "incomplete.json"
    _create(path)
    half = json.loads(waiting.read_text()) | {"ready": False}
    for root in (None, '{"attributes": {}, "zarr_format": 3, "node_type": "group"}', json.dumps(half)):
        waiting.write_text(json.dumps(half))
        if root:  # as it is for a moment
            (path / "zarr.json").write_text(root)
        with pytest.raises(StoreIncomplete):
            stores.open_store(path)
        _create(path, provenance={"sae": {"sha256": "other"}})
    _fill(_create(path, provenance={"sae": {"sha256": "other"}}))
    assert stores.open_store(path).attrs["provenance"]["sae"]["sha256"] == "other"


def test_existing_and_foreign_outputs(store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreExists, match="--overwrite"):
        _create(store)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(StoreExists, match="not a semprobe store"):
        _create(tmp_path / "thesis", overwrite=True)
    (tmp_path / "empty").mkdir()
    _fill(_create(tmp_path / "empty"))


def test_overwrite_keeps_the_old_store_until_the_new_one_stands(store: Path) -> None:
    aside = Path(f"{store}.replaced")
    writer = _create(store, overwrite=True, provenance={"sae": {"sha256": "new"}})
    assert stores.open_store(aside).attrs["provenance"]["sae"]["sha256"] == "a"
    with pytest.raises(StoreIncomplete):
        stores.open_store(store)
    _fill(writer)
    assert stores.open_store(store).attrs["provenance"]["sae"]["sha256"] == "new"
    assert not aside.exists()


def test_overwrite_goes_on_and_remembers_what_it_replaces(store: Path) -> None:
    new = {"overwrite": True, "provenance": {"sae": {"sha256": "new"}}}
    writer = _create(store, **new)
    writer.write(0, {"patch_sum": _values(0, 16)})
    again = _create(store, **new)
    assert again.missing() == [(16, 32), (32, 40)]
    other = _create(store, **{**new, "provenance": {"sae": {"sha256": "newer"}}})
    assert len(other.missing()) == 3
    _fill(other)
    assert not Path(f"{store}.replaced").exists()


def test_what_nobody_put_aside_is_not_deleted(store: Path) -> None:
    aside = Path(f"{store}.replaced")
    aside.mkdir()
    (aside / "thesis.tex").write_text("x")
    with pytest.raises(StoreExists, match="in the way"):
        _create(store, overwrite=True)
    store.rename(store.with_name("b.zarr"))
    with pytest.raises(StoreNotFound, match=r"a\.zarr\.replaced may be the one"):
        stores.open_store(store)
    _fill(_create(store))
    assert (aside / "thesis.tex").exists()


def test_a_second_run_takes_the_store_over(tmp_path: Path) -> None:
    first = _create(tmp_path / "a.zarr")
    second = _create(tmp_path / "a.zarr")
    with pytest.raises(StoreError, match="another run"):
        first.write(0, {"patch_sum": _values(0, 16)})
    _fill(second)
    for call in (lambda: first.write(0, {"patch_sum": _values(0, 16)}), first.complete):
        with pytest.raises(StoreError, match="another run"):
            call()


def _create_and_fill(path: Path, layer: int, done: Any) -> None:
    try:
        _fill(_create(path, provenance={"layer": layer}))
        done.put("complete")
    except StoreError as error:
        done.put(str(error))


def test_processes_that_begin_one_store_at_once_are_told_and_spoil_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    for trial, layers in enumerate(((1, 1, 1), (1, 2, 3))):
        path, done = tmp_path / f"{trial}.zarr", context.Queue()
        runs = [context.Process(target=_create_and_fill, args=(path, layer, done)) for layer in layers]
        for one in runs:
            one.start()
        said = [done.get(timeout=60) for _ in runs]
        for one in runs:
            one.join(60)
        assert "complete" in said
        told = ("is here already", "exists already", "another run", "with other settings", "complete")
        assert all(any(words in one for words in told) for one in said), said
        assert (stores.open_store(path)["patch_sum"].values == _values(0, IMAGES)).all()


def test_a_run_that_was_killed_at_its_very_beginning_is_no_foreign_folder(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    path.mkdir()
    (path / f"incomplete.json.{'0' * 32}.partial").write_text("{")
    _fill(_create(path))
    assert not list(path.glob("*.partial"))


def test_what_a_killed_replacement_left_is_swept_by_the_next(store: Path) -> None:
    aside = store.with_name("a.zarr.replaced")
    store.rename(aside)  # killed when it had put the old store aside
    _fill(_create(store))
    assert aside.exists()  # nobody asked to replace it
    shutil.rmtree(store)
    _fill(_create(store, overwrite=True))
    assert not aside.exists()
    shutil.copytree(store, aside)  # killed while it deleted the old store
    (aside / "zarr.json").unlink()
    (store / "incomplete.json").write_text(json.dumps({"replaces": True, "attributes": {}}))
    _fill(_create(store, overwrite=True))
    assert not aside.exists()


def test_where_an_sae_is_does_not_matter_but_which(tmp_path: Path) -> None:
    _create(tmp_path / "a.zarr", provenance={"sae": {"sha256": "a", "path": "sae.pt"}})
    _fill(_create(tmp_path / "a.zarr", provenance={"sae": {"sha256": "a", "path": "/elsewhere/sae.pt"}}))


def test_a_full_disk_is_told_with_the_stores_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = _create(tmp_path / "a.zarr")
    for start, stop in writer.missing():
        writer.write(start, {"patch_sum": _values(start, stop)})
    monkeypatch.setattr(stores._write.Place, "write", full)
    with pytest.raises(StoreError, match=r"a\.zarr: can't be written: No space left on device"):
        writer.complete()


def test_a_disk_that_fills_while_a_store_is_set_up(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = stores.Place.write

    def full(place: stores.Place, key: str, data: bytes) -> None:
        if key.startswith("label"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(place, key, data)

    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(stores.Place, "write", full)
    for path, options in ((tmp_path / "b.zarr", {}), (store, {"overwrite": True})):
        with pytest.raises(StoreError, match="can't be set up: No space left on device"):
            _create(path, **options)
        assert sorted(tmp_path.rglob("*")) == before, "and the old store is back"


@pytest.mark.parametrize("width", [1, 8, 13, 100])
def test_what_comes_by_image_goes_by_latent(width: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((70, 29), dtype=np.float32)
    asked: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        real = tempfile.TemporaryFile
        patch.setattr(tempfile, "TemporaryFile", lambda **where: asked.append(where["dir"]) or real(**where))
        turned = stores.Turned(stores.Place(tmp_path / "not" / "there.zarr"), values.shape, values.dtype, width)
        (tmp_path / "there").mkdir()
        with stores.Turned(stores.Place(tmp_path / "there"), values.shape, values.dtype, width):
            pass
        (tmp_path / "there").rmdir()
    assert asked == [str(tmp_path), str(tmp_path / "there")], "on the output's disk, and where it may be written"
    with turned:
        da.store(da.from_array(values, chunks=(9, -1)), turned, lock=False, scheduler="threads", num_workers=4)
        assert turned.lazy().chunks[1][0] == min(width, 29)
        np.testing.assert_array_equal(turned.lazy().compute(scheduler="threads", num_workers=4), values)
        with pytest.raises(ValueError, match="expected all 29 of some images"):
            da.store(da.from_array(values, chunks=(9, 16)), turned, lock=False, scheduler="synchronous")
        assert list(tmp_path.iterdir()) == []
    with stores.Turned(stores.Place(tmp_path / "a.zarr"), (70, 29), values.dtype, width) as turned:
        turned[slice(0, 9), slice(None)] = values[:9]
        with pytest.raises(StoreError, match="shorter than what was written"):
            turned.lazy().compute(scheduler="synchronous")


def test_a_temporary_file_that_can_not_be_made_or_written_is_told(tmp_path: Path) -> None:
    def full(*given: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    message = f"{tmp_path}: a temporary file of patch sums can't be used there: No space left on device"
    values = np.zeros((3, 8), np.float32)
    of = (stores.Place(tmp_path / "a.zarr"), (3, 8), values.dtype, 8)
    with stores.Turned(*of) as turned:
        for name in ("write", "flush"):
            file = turned._file
            broken: Any = SimpleNamespace(**{"seek": int, "write": len, "flush": int, name: full})
            turned._file = broken
            with pytest.raises(StoreError, match=re.escape(message)):
                turned[slice(0, 3), slice(None)] = values
            turned._file = file
    with pytest.raises(StoreError, match=re.escape(message)), stores.Turned(*of) as turned:
        turned._file.close()
        turned._file = cast(Any, SimpleNamespace(seek=int, write=len, flush=full, close=full))
        turned[slice(0, 3), slice(None)] = values
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", full)
        with pytest.raises(StoreError, match=re.escape(message)):
            stores.Turned(*of)


def test_nothing_opens_while_a_store_is_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, seen = stores.Place.write, []

    def watched(place: stores.Place, key: str, data: bytes) -> None:
        write(place, key, data)
        seen.append((key, (tmp_path / "a.zarr" / "zarr.json").exists()))

    monkeypatch.setattr(stores.Place, "write", watched)
    _create(tmp_path / "a.zarr")
    assert len(seen) > 10
    assert not any(there for _, there in seen)


def test_an_error_before_the_first_region_leaves_nothing(tmp_path: Path, store: Path) -> None:
    for path, options in ((tmp_path / "b.zarr", {}), (store, {"overwrite": True})):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ZeroDivisionError), _create(path, **options):
            raise ZeroDivisionError
        assert sorted(tmp_path.rglob("*")) == before, "and the old store is back"
    stores.open_store(store)
    with pytest.raises(ZeroDivisionError), _create(tmp_path / "b.zarr") as writer:
        start, stop = writer.regions()[1]
        writer.write(start, {"patch_sum": _values(start, stop)})
        raise ZeroDivisionError
    with _create(tmp_path / "b.zarr") as writer:
        assert writer.regions()[1] not in writer.missing()
        _fill(writer)
    stores.open_store(tmp_path / "b.zarr")


class _Array:
    """An array that does something else before it is written to."""

    def __init__(self, array: zarr.Array, first: Callable[[], object]) -> None:
        self._array, self._first, self.shape, self.dtype = array, first, array.shape, array.dtype

    def __setitem__(self, key: Any, values: Any) -> None:
        self._first()
        self._array[key] = values


def _slowly(writer: stores.Writer, first: Callable[[], object], name: str = "patch_sum") -> None:
    writer._arrays[name] = _Array(writer._arrays[name], first)  # type: ignore[assignment]


def test_another_run_waits_for_a_write(tmp_path: Path) -> None:
    under_way, other = threading.Event(), {"sae": {"sha256": "b"}}
    writer = _create(tmp_path / "a.zarr")
    _slowly(writer, lambda: (under_way.set(), time.sleep(0.5)))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(writer.write, 0, {"patch_sum": _values(0, 16)})
        assert under_way.wait(10)
        second = _create(tmp_path / "a.zarr", overwrite=True, provenance=other)
        first.result()
        assert second.missing() == second.regions(), "numbers of one run under the provenance of another"
        with pytest.raises(StoreError, match="another run has taken this store over"):
            writer.write(16, {"patch_sum": _values(16, 32)})


def test_an_interrupt_waits_for_what_is_being_written(store: Path) -> None:
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)  # the main thread gets it
        time.sleep(0.5)

    with pytest.raises(KeyboardInterrupt), _create(store, overwrite=True, provenance={}) as writer:
        _slowly(writer, interrupt)
        writer.write(0, {"patch_sum": _values(0, 16)})
    with pytest.raises(StoreIncomplete):
        stores.open_store(store)
    assert stores.open_store(f"{store}.replaced").attrs["provenance"]["created"] == 1
    again = _create(store, overwrite=True, provenance={})
    assert again.missing() == [(16, 32), (32, 40)]
    _fill(again)
    assert "created" not in stores.open_store(store).attrs["provenance"]
    assert not Path(f"{store}.replaced").exists()


def test_part_of_a_region_is_none(tmp_path: Path) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    more = _template().assign(patch_max=_template()["patch_sum"])
    with (
        pytest.raises(StoreError, match="images 0 to 15 can't be written: No space left on device"),
        stores.create(tmp_path / "a.zarr", more, kind="latents", shard=SHARD, provenance={}) as writer,
    ):
        _slowly(writer, full, "patch_sum")
        writer.write(0, {name: _values(0, 16) for name in ("patch_max", "patch_sum")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["clear", "read_json"])
def test_what_went_wrong_first_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def broken(place: stores.Place, *keys: str) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = _create(tmp_path / "a.zarr")
    monkeypatch.setattr(stores.Place, name, broken)
    with pytest.raises(ZeroDivisionError), writer:
        raise ZeroDivisionError
    monkeypatch.setattr(stores._create, "_files_of", full)
    with pytest.raises(StoreError, match="can't be set up: No space left on device"):
        _create(tmp_path / "b.zarr")
    with pytest.raises(StoreError, match="can't be set up: No space left on device"):
        stores.write_whole(tmp_path / "c.zarr", _template().compute(), kind="latents", provenance={})


def test_links_stay_and_lead_to_the_store(tmp_path: Path) -> None:
    real, link = tmp_path / "disk" / "real.zarr", tmp_path / "link.zarr"
    real.mkdir(parents=True)
    link.symlink_to(real)
    for overwrite in (False, True):
        with pytest.raises(ZeroDivisionError), _create(link, overwrite=overwrite):
            raise ZeroDivisionError
        assert real.exists() == overwrite, "the old store is back"
        _fill(_create(link, overwrite=overwrite))
        assert link.is_symlink()
        assert (stores.open_store(real)["patch_sum"].compute().values == _values(0, IMAGES)).all()
    assert list(real.parent.iterdir()) == [real]


def test_mounted_disks_stay(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: str(path) in (str(store), str(tmp_path / "disk")))
    with pytest.raises(StoreExists, match="a disk is mounted here"):
        _create(store, overwrite=True)
    stores.open_store(store)
    with pytest.raises(ZeroDivisionError), _create(tmp_path / "disk"):
        raise ZeroDivisionError
    assert list((tmp_path / "disk").iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_while_a_store_is_taken_away(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    """At every file: what is left is known as ours, or the old store is back."""
    path, remove, steps = store if overwrite else tmp_path / "b.zarr", stores.Place.remove, 0

    def killed(place: stores.Place, *keys: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        remove(place, *keys)

    while True:
        steps, left = steps + 1, steps + 1
        monkeypatch.setattr(stores.Place, "remove", killed)
        with suppress(KeyboardInterrupt, ZeroDivisionError), _create(path, overwrite=overwrite):
            raise ZeroDivisionError
        monkeypatch.setattr(stores.Place, "remove", remove)
        _fill(_create(path, overwrite=overwrite))
        if left > 0:  # it was not killed any more
            break
        if not overwrite:
            shutil.rmtree(path)
    assert steps > 5


def test_a_store_that_is_gone_is_told(tmp_path: Path) -> None:
    writer = _create(tmp_path / "a.zarr")
    shutil.rmtree(tmp_path / "a.zarr")
    with pytest.raises(StoreError, match="another run has taken this store over"):
        writer.missing()
    writer = _create(tmp_path / "a.zarr")
    for text in ("{", "[]"):
        (tmp_path / "a.zarr" / "incomplete.json").write_text(text)
        with pytest.raises(StoreCorrupt, match="incomplete.json is not readable JSON"):
            writer.write(0, {"patch_sum": _values(0, 16)})


def test_locks_that_can_not_be_kept_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "file"))
    with pytest.raises(StoreError, match="file/semprobe-.*: locks can't be kept there: Not a directory"):
        _create(tmp_path / "a.zarr")


def test_other_variables_are_other_settings(tmp_path: Path) -> None:
    _create(tmp_path / "a.zarr")
    more = _template().assign(patch_max=_template()["patch_sum"])
    with pytest.raises(StoreMismatch, match=r"variables\.patch_max: absent in the store"):
        stores.create(
            tmp_path / "a.zarr", more, kind="latents", shard=SHARD, provenance={"sae": {"sha256": "a"}, "created": 1}
        )


def test_one_kind_does_not_replace_another_that_is_under_way(tmp_path: Path) -> None:
    _create(tmp_path / "a.zarr")
    with pytest.raises(StoreMismatch, match="store of latents is under way"):
        stores.write_whole(tmp_path / "a.zarr", _template().compute(), kind="scores", provenance={})
    with pytest.raises(StoreMismatch, match="kind: latents in the store, activations now"):
        _create(tmp_path / "a.zarr", kind="activations")


@pytest.mark.parametrize("spelling", ["file://{}", "{}/", "relative"])
def test_spellings_of_local_paths(tmp_path: Path, spelling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = "a.zarr" if spelling == "relative" else spelling.format(tmp_path / "a.zarr")
    _fill(_create(path))
    found = stores.open_store(path)
    monkeypatch.chdir("/")
    assert (found["patch_sum"].compute().values == _values(0, IMAGES)).all()


@pytest.mark.parametrize(("start", "rows"), [(0, 8), (8, 16), (32, 16), (0, 40)])
def test_part_of_a_shard_is_refused(tmp_path: Path, start: int, rows: int) -> None:
    writer = _create(tmp_path / "a.zarr")
    with pytest.raises(StoreError, match="only whole shards are safe"):
        writer.write(start, {"patch_sum": np.zeros((rows, LATENTS), np.float32)})
    with pytest.raises(StoreError, match="expected"):
        writer.write(0, {"patch_max": np.zeros((16, LATENTS), np.float32)})


def test_truncated_and_changed_chunks_are_named(store: Path) -> None:
    file = store / "patch_sum" / "c" / "1" / "0"
    good = file.read_bytes()
    flipped = bytearray(good)
    flipped[5] ^= 1
    for bad in (good[:-1], good[: len(good) // 2], b"", bytes(flipped)):
        file.write_bytes(bad)
        with pytest.raises(StoreCorrupt, match="patch_sum/c/1/0"):
            stores.open_store(store)["patch_sum"].compute()
        with pytest.raises(StoreCorrupt, match="patch_sum/c/1/0"):
            list(stores.verify(store))
    file.unlink()
    with pytest.raises(StoreCorrupt, match="patch_sum/c/1/0"):
        stores.open_store(store)
    file.write_bytes(good)
    label = store / "label" / "c" / "0" / "0"
    label.write_bytes(b"")  # zarr would read zeros: every image negative
    with pytest.raises(StoreCorrupt, match="label/c/0/0"):
        stores.open_store(store)
    label.write_bytes(b"1234567890")
    with pytest.raises(StoreCorrupt, match="can't be read"):
        stores.open_store(store)
    stores.write_whole(store, _template().compute(), kind="latents", provenance={}, overwrite=True)
    _fill(_create(store, overwrite=True))
    assert [found[1:] for found in stores.verify(store)] == [(0, 16), (16, 32), (32, 40)]


def _edit_root(store: Path, **changes: Any) -> None:
    root = json.loads((store / "zarr.json").read_text())
    root["attributes"].update(changes)
    (store / "zarr.json").write_text(json.dumps(root))


def test_newer_and_unknown_stores(store: Path, tmp_path: Path) -> None:
    _edit_root(store, semprobe_format={"kind": "latents", "version": 99})
    with pytest.raises(StoreError, match="format version 99.*upgrade"):
        stores.open_store(store)
    with pytest.raises(StoreError, match="format version 99"):
        _create(store, overwrite=True)
    for damaged in ({"kind": "latents", "version": "1"}, {"kind": "latents", "version": 0}, {"kind": "latents"}):
        _edit_root(store, semprobe_format=damaged)
        with pytest.raises(StoreCorrupt, match="not as semprobe writes it"):
            stores.open_store(store)
    _edit_root(store, semprobe_format={"kind": "latents", "version": 1}, provenance=None)
    with pytest.raises(StoreCorrupt, match="not as semprobe writes it"):
        stores.open_store(store)
    _edit_root(store, semprobe_format={"kind": "cake", "version": 1})
    with pytest.raises(StoreError, match="unknown kind of store 'cake'"):
        stores.open_store(store)
    (store / "zarr.json").write_text("{")
    with pytest.raises(StoreCorrupt, match="not readable JSON"):
        stores.open_store(store)
    with pytest.raises(StoreNotFound, match="no store here"):
        stores.open_store(tmp_path / "nowhere.zarr")
    xr.Dataset({"x": ("t", [1.0])}).to_zarr(tmp_path / "other.zarr", zarr_format=3, consolidated=False)
    with pytest.raises(StoreError, match="not a semprobe store"):
        stores.open_store(tmp_path / "other.zarr")


def test_a_store_without_a_variable_it_needs(store: Path) -> None:
    root = json.loads((store / "zarr.json").read_text())
    del root["consolidated_metadata"]["metadata"]["label"]
    (store / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(StoreError, match="lacks label"):
        stores.open_store(store)


def test_fsspec_urls() -> None:
    _fill(_create("memory://bucket/a.zarr"))
    assert (stores.open_store("memory://bucket/a.zarr")["patch_sum"].values == _values(0, IMAGES)).all()
    _fill(_create("memory://bucket/a.zarr", overwrite=True))
    with pytest.raises(StoreNotFound):
        stores.open_store("memory://bucket/b.zarr")
    with pytest.raises(StoreError, match="can't be opened"):
        stores.open_store("nosuchprotocol://a.zarr")


def test_whole_stores_are_there_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zarr"
    data = _template().compute()
    stores.write_whole(path, data, kind="latents", provenance={})
    assert stores.open_store(path)["patch_sum"].shape == (IMAGES, LATENTS)

    def killed(place: stores.Place) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("semprobe.stores._create.finish", killed)
    with pytest.raises(KeyboardInterrupt):
        stores.write_whole(path, data, kind="latents", provenance={}, overwrite=True)
    assert stores.open_store(path)["patch_sum"].shape == (IMAGES, LATENTS)  # the old one is back
    with pytest.raises(KeyboardInterrupt):
        stores.write_whole(tmp_path / "b.zarr", data, kind="latents", provenance={})
    assert not (tmp_path / "b.zarr").exists()


def test_unwritable_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="is a file, expected a folder"):
        stores.check_output(tmp_path / "file" / "a.zarr")
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(StoreError, match="can't be written to"):
        stores.check_output(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("per_image", "images", "expected"),
    [(602_112, 10_000, 48), (602_112, 20, 32), (98_304, 10_000, 320), (200_000_000, 100, 16), (1, 1, 16)],
)
def test_shards_hold_about_32_mb(per_image: int, images: int, expected: int) -> None:
    assert stores.images_per_shard(per_image, images) == expected
