"""Where commands that are given a study read and write, and what they say of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from semprobe.cli import _common
from semprobe.errors import StoreError
from semprobe.vocabulary import UNLABELLED

if TYPE_CHECKING:
    import xarray as xr

    from semprobe.study import Study


_MADE_BY = {"activations": "extract", "latents": "encode", "scores": "score"}


def in_study(given: str, output: str | None, *, makes: str, reads: str | None = None) -> tuple[str, str]:
    """Input and output of a command: a study's own stores where a study is given, else what is given.

    Parameters
    ----------
    makes, reads
        Kind of the store that the command makes, and of the one that it reads; None if it reads images.

    Raises
    ------
    StoreError
        The study's store was made of other images or labels than the study has now.
    """
    from semprobe.study import Study, is_study

    if not is_study(given):
        if output is None:
            raise click.UsageError(f"Missing option '-o' / '--output': {given} is no study that would know where")
        return given, output
    study = Study(given)
    if reads is not None and (told := stale(study, made(study, reads), reads)):
        raise StoreError(f"{getattr(study, reads)}: {told}")
    return given if reads is None else str(getattr(study, reads)), output or str(getattr(study, makes))


def made(study: Study, kind: str) -> xr.Dataset:
    """A store of the study, opened.

    Raises
    ------
    StoreNotFound
        It is not there yet; says which command makes it.
    """
    from semprobe.errors import StoreNotFound
    from semprobe.stores import open_store

    path = getattr(study, kind)
    try:
        return open_store(str(path))
    except StoreNotFound as error:
        step = f"semprobe {_MADE_BY[kind]} {study.folder}"
        raise StoreNotFound(f"{path}: the study has no {kind} yet; {step} makes them") from error


def stale(study: Study, data: xr.Dataset, kind: str) -> str:
    """That a store of the study was made of other images or labels than the study has now; empty if it was not."""
    from semprobe.images import find_images
    from semprobe.study import STORES

    there, wanted = labels(data), labels(find_images(study.folder))
    if there == wanted:
        return ""
    steps = [f"semprobe {_MADE_BY[one]} {study.folder}" for one in STORES[: STORES.index(kind) + 1]]
    new, gone = len(wanted.keys() - there.keys()), len(there.keys() - wanted.keys())
    other = sum(there[key] != wanted[key] for key in there.keys() & wanted.keys())
    return (
        f"was made of other images than the study uses now ({new} labels are new, {gone} no longer used, {other} "
        f"changed); make it anew: {', then '.join(f'{step} --overwrite' for step in steps)}"
    )


def labels(data: xr.Dataset) -> dict[tuple[str, str], int]:
    """Label by image and concept, without those that are in no set."""
    table = data["label"].transpose("image", "concept").values
    rows, columns = (table != UNLABELLED).nonzero()
    images, concepts = data["image"].values, data["concept"].values
    return {
        (str(images[row]), str(concepts[column])): int(table[row, column])
        for row, column in zip(rows, columns, strict=True)
    }


def say_unverified(given: str) -> dict[str, dict[str, int]]:
    """Say how many of a study's negatives nobody has accepted, and return it for a JSON result; nothing elsewhere."""
    from semprobe.study import Study, is_study, unverified

    if not is_study(given):
        return {}
    found = {concept: pair for concept, pair in unverified(Study(given)).items() if pair[1]}
    for concept, (open_, number) in found.items():
        how_many = f"{open_} of {number} negatives are unverified" if open_ else f"all {number} negatives are verified"
        _common.say(f"{concept}: {how_many}")
    return {"unverified_negatives": {concept: open_ for concept, (open_, _) in found.items()}}
