"""semprobe plot: what chance reaches, beside what the best latents reach."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from semprobe.cli import _common

if TYPE_CHECKING:
    import xarray as xr


@click.command(
    epilog="""\b
Examples:
  semprobe plot scores.zarr -o null.png
  semprobe plot scores.zarr -o null.svg --concept wheel --concept fur --top 10
  semprobe plot scores.zarr -o null.pdf --overwrite --json | jq '.concepts[].critical_f1'
"""
)
@click.argument("store", metavar="SCORES")
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path),
    help="Picture to make: a .png, .svg or .pdf file.",
)  # fmt: skip
@click.option("--concept", "concepts", multiple=True, help="Draw this one only; may be given several times.")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Latents to draw a concept.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@_common.as_json
def command(store: str, output: Path, concepts: tuple[str, ...], top: int, overwrite: bool, as_json: bool) -> None:
    """Draw what chance reaches in a store of SCORES, and where the best latents are.

    A panel a concept: how high the largest F1 of all latents gets when labels are shuffled, the F1 of random latents,
    the floor, the critical F1, at or above which a latent is significant, and the best latents with their intervals.
    Alpha and what was corrected for are the store's. Where label and source can't be told apart, it says CONFOUNDED.
    """
    from semprobe.panels import in_words, panels
    from semprobe.plots import FORMATS, draw, render

    form = output.suffix.lower().removeprefix(".")
    if form not in FORMATS:
        raise click.UsageError(f"{output}: a picture is {', '.join('.' + one for one in FORMATS)}; name it so")
    _check_free(output, overwrite)
    found = panels(_open(store, concepts), concepts=concepts, top=top)
    _write(output, render(draw(found), form), overwrite)
    if as_json:
        _common.print_json({"picture": str(output), "concepts": [one.describe() for one in found]})
        return
    for one in found:
        click.echo(in_words(one))
    click.echo(f"{output}: {len(found)} concepts")


def _open(store: str, concepts: tuple[str, ...]) -> xr.Dataset:
    from semprobe.errors import DataError, StoreError
    from semprobe.stores import open_store

    data = open_store(store)
    if "tp" not in data:
        kind = data.attrs["semprobe_format"]["kind"]
        raise StoreError(f"{store}: this is a store of {kind}, expected one of scores, as semprobe score makes")
    if "null_max_f1" not in data:
        raise DataError(f"{store}: found no null_max_f1, which says what chance reaches; score again")
    known = [str(name) for name in data["concept"].values]
    if unknown := [name for name in concepts if name not in known]:
        raise DataError(f"{store}: there is no concept {', '.join(unknown)}, expected some of {', '.join(known)}")
    return data


def _check_free(output: Path, overwrite: bool) -> None:
    """Call it before long work, and once more after."""
    from semprobe.errors import StoreError, StoreExists

    if not output.parent.is_dir():
        raise StoreError(f"{output}: there is no folder {output.parent}; make it first")
    if output.exists() and not overwrite:
        raise StoreExists(f"{output}: this file exists already; --overwrite replaces it")


def _write(output: Path, picture: bytes, overwrite: bool) -> None:
    """Whole or not at all: what was there stays until the new file is complete."""
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        part.write_bytes(picture)
        _check_free(output, overwrite)
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)
