"""Set up a store, or go on with one that was stopped half way; what is at its place already decides which."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from zarr.storage import MemoryStore

from semprobe.errors import StoreError, StoreExists, StoreMismatch
from semprobe.stores._layout import FORMAT_VERSION, encoding
from semprobe.stores._paths import Place
from semprobe.stores._read import REPLACED, ROOT, TEMPLATE, check_version, is_complete, open_store, root_attributes
from semprobe.stores._write import Writer, clear, finish, give_back, named, waiting_at

_NOT_SETTINGS = {"command", "created"}  # what may differ between a run and its continuation


def _digest(values: np.ndarray) -> str:
    if values.dtype.kind in "OUT":
        data = "\0".join(map(str, values.ravel().tolist())).encode()
    else:
        data = np.ascontiguousarray(values).tobytes()
    return hashlib.sha256(repr(values.shape).encode() + data).hexdigest()[:16]


def _is_setting(key: str) -> bool:
    """Whether a run may go on only if this is the same; not where a file is, since its hash is."""
    return key.split(".")[0] not in _NOT_SETTINGS and not key.endswith(".path")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found.update(_flat(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = list(value) if isinstance(value, tuple) else value
    return found


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What two sets of settings disagree on, one readable phrase each."""
    old = {k: v for k, v in _flat(there).items() if _is_setting(k)}
    new = {k: v for k, v in _flat(here).items() if _is_setting(k)}
    return [
        f"{key}: {old.get(key, 'absent')} in the store, {new.get(key, 'absent')} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _set_up(place: Place, template: xr.Dataset, streamed: set[str], shard: int, replaces: bool) -> str:
    """Write the template; returns the token of this run."""
    run = uuid.uuid4().hex
    waiting = {"attributes": template.attrs, "run": run, "replaces": replaces, "ready": False}
    try:
        place.write_json(TEMPLATE, waiting)  # first of all, so that a kill leaves nothing that is not known as ours
        files = _files_of(template, streamed, shard)
        written = json.loads(files.pop(ROOT))["attributes"]  # with what xarray adds, such as the names of coordinates
        for name, data in files.items():
            place.write(name, data)
    except OSError as error:
        raise StoreError(f"{place}: the store can't be set up: {error.strerror or error}") from error
    place.write_json(TEMPLATE, {**waiting, "attributes": written, "ready": True})
    return run


def _files_of(template: xr.Dataset, streamed: set[str], shard: int) -> dict[str, bytes]:
    """Everything but the shards, made in memory: on disk, the root's metadata would open as a store at once."""
    files: dict[str, Any] = {}
    placeholders = {
        name: (v.dims, da.zeros(v.shape, dtype=v.dtype, chunks=(shard, *v.shape[1:])), v.attrs)
        for name, v in ((name, template[name].variable) for name in streamed)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        template.assign(placeholders).to_zarr(
            MemoryStore(files),
            mode="w",
            compute=False,
            consolidated=False,
            zarr_format=3,
            encoding=encoding(template, streamed, shard),
            write_empty_chunks=True,
        )
    return {name: data.to_bytes() for name, data in files.items()}


def _is_empty(place: Place) -> bool:
    """Whether a folder has nothing in it but what a run left that was killed at its very beginning."""
    return all(str(name).endswith(".partial") for name in place.fs.ls(place.root, detail=False))


def check_output(path: str | os.PathLike[str], overwrite: bool = False) -> str:
    """What is at an output's place: ``nothing``, ``unfinished`` or ``complete``.

    Call it before long work: it changes nothing and finds what would only fail at the end.

    Raises
    ------
    StoreExists
        A complete store, unless `overwrite` is set, or something else.
    StoreError
        The place can't be written to.
    """
    place = Place(path)
    place.check_writable()
    if not place.exists() or (place.fs.isdir(place.root) and _is_empty(place)):
        return "nothing"
    attributes = root_attributes(place)
    if attributes is None:
        raise StoreExists(f"{place}: something that is not a semprobe store is here already; choose another output")
    check_version(place, attributes)
    if not is_complete(place, attributes):
        return "unfinished"
    if not overwrite:
        raise StoreExists(f"{place}: this store exists already and is complete; --overwrite replaces it")
    return "complete"


def is_made(path: str | os.PathLike[str], template: xr.Dataset, provenance: Mapping[str, Any]) -> bool:
    """Whether the complete store that is here is the one that :func:`create` would begin with these settings.

    Raises
    ------
    StoreExists
        It is another one; the message says what differs.
    StoreCorrupt
        It lacks files.
    """
    place = Place(path)
    attributes = root_attributes(place) or {}
    if not attributes or not is_complete(place, attributes):
        return False
    open_store(path)  # checks that its files are there
    differs = differences(attributes["provenance"], _provenance(template, _streamed(template), provenance))
    if differs:
        raise StoreExists(
            f"{place}: a complete store with other settings is here: {'; '.join(differs)}. --overwrite replaces it"
        )
    return True


class _Found(NamedTuple):
    """What making way for a store found."""

    unfinished: dict[str, Any] | None = None  # attributes of a store under way, ready to be gone on with
    replaces: bool = False  # whether an old store waits aside


def _make_way(place: Place, overwrite: bool) -> _Found:
    """Look at an output's place; a complete store that may be replaced is put aside."""
    there = check_output(place.url, overwrite)
    aside = place.sibling(REPLACED)
    if there == "nothing":  # a run that was to replace a store may have been killed when it had put it aside
        return _Found(replaces=overwrite and root_attributes(aside) is not None)
    if there == "complete":
        if aside.exists() and place.exists(TEMPLATE):  # a run was killed while it deleted the old store
            aside.remove()
        if place.is_mounted():
            raise StoreExists(f"{place}: a disk is mounted here, which can't be put aside; choose a folder on it")
        if aside.exists():
            raise StoreExists(f"{aside}: is in the way of putting the old store aside; move or delete it")
        place.move_to(aside)
        return _Found(replaces=True)
    waiting = waiting_at(place)
    replaces = bool(waiting.get("replaces"))
    if waiting.get("ready"):
        return _Found(waiting["attributes"], replaces)
    clear(place)  # killed while it was set up: nothing worth keeping
    return _Found(replaces=replaces)


def _streamed(template: xr.Dataset) -> set[str]:
    """Variables that are written region by region: those that are lazy."""
    return {str(name) for name, variable in template.variables.items() if variable.chunks is not None}


def _provenance(template: xr.Dataset, streamed: set[str], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance, with what else has to be the same for a run to go on: the template."""
    eager = sorted(str(n) for n in template.variables if n not in streamed)
    written = {name: f"{template[name].dtype} {template[name].shape}" for name in sorted(streamed)}
    return {
        **provenance,
        "coordinates": {name: _digest(template[name].values) for name in eager},
        "variables": written,
    }


def create(
    path: str | os.PathLike[str],
    template: xr.Dataset,
    *,
    kind: str,
    shard: int,
    provenance: Mapping[str, Any],
    overwrite: bool = False,
) -> Writer:
    """Set up a store, or go on with one that was stopped half way.

    Parameters
    ----------
    path
        Local path or fsspec URL.
    template
        The whole store: coordinates with their values, and the variables to be written by region as dask arrays, of
        which only shape and dtype count.
    kind
        ``activations`` or ``latents``.
    shard
        Images a region holds.
    provenance
        Where the numbers come from. A store under way is gone on with only if all of it but the command and the date
        is the same.
    overwrite
        Replace a complete store. It is renamed aside first, and deleted when the new one is complete.

    Raises
    ------
    StoreExists
        A complete store, or something else, is there.
    StoreMismatch
        A store with other settings is under way; the message says what differs.
    """
    place = Place(path)
    streamed = _streamed(template)
    full = _provenance(template, streamed, provenance)
    with place.locked(), named(place):
        run = _begin(place, template, streamed, kind, shard, full, overwrite)
        config = {"write_empty_chunks": True}  # a shard of fill values is a result too
        arrays = {name: zarr.open_array(place.url, path=name, mode="r+", config=config) for name in sorted(streamed)}
    return Writer(place, arrays, run)


def _begin(
    place: Place, template: xr.Dataset, streamed: set[str], kind: str, shard: int, provenance: dict[str, Any],
    overwrite: bool,
) -> str:  # fmt: skip
    """Set up a store or take over one that was stopped; returns the token of this run."""
    found = _make_way(place, overwrite)
    differs = _differs(found.unfinished, kind, provenance) if found.unfinished else []
    if differs and not overwrite:
        raise StoreMismatch(
            f"{place}: a store with other settings is under way here: {'; '.join(differs)}. Go on with the old "
            "settings, choose another output, or replace it with --overwrite"
        )
    if found.unfinished and not differs:
        run = uuid.uuid4().hex
        place.write_json(TEMPLATE, {**waiting_at(place), "run": run})
        return run
    if found.unfinished:
        clear(place)
    form = {"kind": kind, "version": FORMAT_VERSION}
    marked = template.assign_attrs(semprobe_format=form, state="writing", provenance=provenance)
    try:
        return _set_up(place, marked, streamed, shard, found.replaces)
    except BaseException:
        with suppress(OSError, StoreError):
            give_back(place, found.replaces)
        raise


def _differs(attributes: Mapping[str, Any], kind: str, provenance: Mapping[str, Any]) -> list[str]:
    there = attributes["semprobe_format"]["kind"]
    found = differences(attributes.get("provenance", {}), provenance)
    return found if there == kind else [f"kind: {there} in the store, {kind} now", *found]


def write_whole(
    path: str | os.PathLike[str],
    dataset: xr.Dataset,
    *,
    kind: str,
    provenance: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Write a store that fits in memory, in one go: complete or not there.

    Parameters and errors are those of :func:`create`; a store of the same kind that was stopped half way is begun anew,
    one of another kind is refused.
    """
    place = Place(path)
    with place.locked(), named(place):
        _write_whole(place, dataset, kind, provenance, overwrite)


def _write_whole(
    place: Place, dataset: xr.Dataset, kind: str, provenance: Mapping[str, Any], overwrite: bool
) -> None:  # fmt: skip
    found = _make_way(place, overwrite)
    there = (found.unfinished or {}).get("semprobe_format", {}).get("kind", kind)
    if there != kind and not overwrite:
        raise StoreMismatch(f"{place}: a store of {there} is under way here; finish it or choose another output")
    if found.unfinished:
        clear(place)
    form = {"kind": kind, "version": FORMAT_VERSION}
    marked = dataset.assign_attrs(semprobe_format=form, state="writing", provenance=dict(provenance))
    try:
        _set_up(place, marked, set(), 0, found.replaces)
        finish(place)
    except BaseException:
        with suppress(OSError, StoreError):
            if not is_complete(place, root_attributes(place) or {}):
                give_back(place, found.replaces)
        raise
