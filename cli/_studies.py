"""Where commands that are given a study read and write, and what they say of it."""

from __future__ import annotations

from pathlib import Path
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
    if reads is not None:
        _check_current(study, getattr(study, reads), reads)
    return given if reads is None else str(getattr(study, reads)), output or str(getattr(study, makes))


def _check_current(study: Study, path: Path, kind: str) -> None:
    from semprobe.errors import StoreNotFound
    from semprobe.images import find_images
    from semprobe.stores import open_store
    from semprobe.study import STORES

    steps = [f"semprobe {_MADE_BY[one]} {study.folder}" for one in STORES[: STORES.index(kind) + 1]]
    try:
        there = labels(open_store(str(path)))
    except StoreNotFound as error:
        raise StoreNotFound(f"{path}: the study has no {kind} yet; {steps[-1]} makes them") from error
    wanted = labels(find_images(study.folder))
    if there != wanted:
        new, gone = len(wanted.keys() - there.keys()), len(there.keys() - wanted.keys())
        other = sum(there[key] != wanted[key] for key in there.keys() & wanted.keys())
        raise StoreError(
            f"{path}: was made of other images than the study uses now ({new} labels are new, {gone} no longer used, "
            f"{other} changed); make it anew: {', then '.join(f'{step} --overwrite' for step in steps)}"
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
