"""semprobe show: where latents look, as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from semprobe.cli import _common
from semprobe.cli._pictures import Pictures
from semprobe.transforms import LIKE

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from PIL import Image

    from semprobe.sae import SAE
    from semprobe.sheet import Tile

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_EDGE = 224  # pixels of a picture on the sheet


@click.command(
    epilog="""\b
Examples:
  semprobe show acts.zarr --sae sae.pt --latent 3 -o latent-3.png
  semprobe show acts.zarr --sae sae.pt --latent 3 --latent 7 --concept wheel --number 16 -o wheel.png
  semprobe show acts.zarr --sae sae.pt --latent 3 --images-root /new/place/images -o latent-3.png
  semprobe show shards/ --images images/ --like saev --sae sae.pt --latent 3 -o latent-3.png --json
"""
)
@click.argument("store")
@click.option("--sae", "sae_path", required=True, metavar="FILE", help="SAE checkpoint, or pilot for the embedded one.")
@click.option("--latent", "latents", type=click.IntRange(0), multiple=True, required=True, help="Latent; repeatable.")
@click.option("--concept", help="Show its true positives and its false positives apart.")
@click.option(
    "--threshold", type=float, default=0.0, show_default=True, help="An image is shown if its patch sum is above it."
)
@click.option("--number", type=click.IntRange(1, 200), default=8, show_default=True, help="Images a row, and patches.")
@click.option("--images-root", type=click.Path(), help="Folder of the images, where they are not in their old place.")
@click.option(
    "--like",
    type=click.Choice(LIKE),
    help="Of saev shards, which do not say what part of a picture the model saw: whose transform made them.",
)
@click.option("-o", "--output", required=True, metavar="FILE", help=f"Picture to make: {', '.join(_SUFFIXES)}.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@_common.sae_options
@_common.normalize
@_common.force
@_common.shards
@_common.workers
@_common.as_json
@_common.quiet
def command(as_json: bool, **options: Any) -> None:
    """Draw where latents fire in the images of a STORE of activations, or of saev shards.

    For each latent the images with the largest patch sums, whole, with its codes painted on the patches that the model
    saw; grey is what it did not see. The bar goes to the latent's largest code on any image of the store. With
    --concept there are two rows: images rightly (TP) and wrongly (FP) predicted to show it.

    Images are looked for where they were extracted from. One that is not the file it was then (by its SHA-256) is an
    error: the codes are not that picture's. Patch sums may differ from those of score in the sixth digit.
    """
    result = run(**options)
    if as_json:
        _common.print_json(result)
    else:
        _tell(result)


class _Row(NamedTuple):
    """Images of one latent, by their positions in the store."""

    name: str
    latent: int
    images: list[int]
    share: str


def run(
    *, store: str, sae_path: str, latents: tuple[int, ...], output: str, concept: str | None = None,
    threshold: float = 0.0, number: int = 8, images_root: str | None = None, like: str | None = None,
    overwrite: bool = False, workers: int | None = None, quiet: bool = False, normalize: str = "none",
    force: bool = False, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """The command without click; returns what it drew."""
    from semprobe.cli.encode import open_activations
    from semprobe.heatmaps import heatmap

    clock = _common.Clock()
    _check_output(store, output, overwrite)
    normalisation = _common.Normalisation(normalize)
    data, sae, _ = open_activations(store, sae_path, force, options)
    normalisation.check(data)
    wanted = list(dict.fromkeys(latents))
    lazy = heatmap(data, sae, wanted)
    rows_of = _classes(store, data, concept)
    pictures = Pictures(store, data, images_root, like)
    pictures.check_apart(output)
    data, _ = normalisation.apply(data, workers, quiet)
    totals = _totals(heatmap(data, sae, wanted) if normalize != "none" else lazy, workers, quiet)
    rows = [
        _row(name, at, totals["patch_sum"].values[:, at], among, threshold, number)
        for at in range(len(wanted))
        for name, among in rows_of.items()
    ]
    heat, top = _heat(data, sae, wanted, totals, rows, number)
    _save(_sheet(rows, heat, totals, pictures), output)
    return {
        "output": output, "images_root": pictures.root, "hashes_compared": pictures.hashed,
        "latents": [_describe(at, rows, totals, pictures, top[at]) for at in range(len(wanted))],
        "seconds": clock.seconds,
    }  # fmt: skip


# what is to be shown


def _check_output(store: str, output: str, overwrite: bool) -> None:
    """Refuse, before anything long, an output that can't be."""
    from semprobe.errors import StoreError, StoreExists
    from semprobe.stores import Place

    path = Path(output)
    if path.suffix.lower() not in _SUFFIXES:
        raise click.UsageError(f"the output {output} is no picture by its name; expected one ending in {_SUFFIXES}")
    _common.check_apart(store, output)
    Place(output).check_writable()
    if path.is_dir():
        raise StoreError(f"{output}: is a folder, expected the name of a picture")
    if path.exists() and not overwrite:
        raise StoreExists(f"{output}: is here already; choose another output, or replace it with --overwrite")


def _classes(store: str, data: xr.Dataset, concept: str | None) -> dict[str, np.ndarray]:
    """Rows by name, and which images may be in them."""
    import numpy as np

    from semprobe.errors import DataError
    from semprobe.scoring import as_label
    from semprobe.vocabulary import NEGATIVE, POSITIVE

    if concept is None:
        return {"largest patch sums": np.ones(data.sizes["image"], bool)}
    known = data["concept"].values.tolist() if "concept" in data.coords else []
    if concept not in known:
        there = ", ".join(map(str, known)) or "none"
        raise DataError(f"{store}: has no concept {concept!r}; found {there}")
    label = as_label(data["label"]).sel(concept=concept).values
    return {f"TP, {concept}": label == POSITIVE, f"FP, not {concept}": label == NEGATIVE}


def _totals(heat: xr.Dataset, workers: int | None, quiet: bool) -> xr.Dataset:
    """Patch sum and largest code of every image."""
    import xarray as xr

    code, patches = heat["code"], ("row", "column")
    lazy = xr.Dataset({"patch_sum": code.sum(patches), "patch_max": code.max(patches)})
    number = lazy.sizes["image"]
    with _common.computing(number, "looking", workers, quiet):
        return lazy.compute()


def _row(name: str, latent: int, sums: np.ndarray, among: np.ndarray, threshold: float, number: int) -> _Row:
    """A row of the sheet; its share is that of images above the threshold, shown or not."""
    share = f"{int((sums[among] > threshold).sum())} of {int(among.sum())} images"
    return _Row(name, latent, _largest(sums, among, threshold, number), share)


def _largest(values: np.ndarray, among: np.ndarray, threshold: float, number: int) -> list[int]:
    """Positions of the largest values above the threshold, ties in order."""
    import numpy as np

    order = np.argsort(-values, kind="stable")
    return order[among[order] & (values[order] > threshold)][:number].tolist()


def _heat(
    data: xr.Dataset, sae: SAE, latents: list[int], totals: xr.Dataset, rows: list[_Row], number: int
) -> tuple[xr.DataArray, list[list[Any]]]:
    """Heatmaps of the images that are shown, by name, and each latent's largest patches in all images."""
    import numpy as np

    from semprobe.heatmaps import heatmap, top_patches

    everywhere, maxima = np.ones(totals.sizes["image"], bool), totals["patch_max"].values
    needed = {at for row in rows for at in row.images}
    for column in range(len(latents)):
        needed |= set(_largest(maxima[:, column], everywhere, 0.0, number))
    positions = sorted(needed) or [0]  # of none, no heatmap can be made
    heat = heatmap(data.isel(image=positions), sae, latents)["code"].compute()
    top = [top_patches(heat.isel(latent=at), number) for at in range(len(latents))]
    return heat.assign_coords(position=("image", positions)).swap_dims(image="position"), top


# pictures


def _tile(heat: xr.DataArray, at: int, total: float, maximum: float, pictures: Pictures) -> Tile:
    from semprobe.heatmaps import overlay
    from semprobe.sheet import Tile

    picture, crop = pictures.read(at)
    painted = overlay(picture, heat.sel(position=at), crop, maximum=maximum, edge=_EDGE)
    return Tile(painted, (str(pictures.names[at]), pictures.said(at), f"patch sum {total:.4g}"))


def _sheet(rows: list[_Row], heat: xr.DataArray, totals: xr.Dataset, pictures: Pictures) -> Image.Image:
    from semprobe.sheet import Strip, contact_sheet

    pictures.check_there(sorted({at for row in rows for at in row.images}))
    sums, maxima = totals["patch_sum"].values, totals["patch_max"].values.max(0)
    strips = []
    for row in rows:
        maximum, number = max(0.0, float(maxima[row.latent])), int(totals["latent"][row.latent])
        here = heat.isel(latent=row.latent)
        tiles = [_tile(here, at, float(sums[at, row.latent]), maximum, pictures) for at in row.images]
        strips.append(Strip(f"latent {number}: {row.name}, {row.share}", tiles, maximum))
    return contact_sheet(strips, edge=_EDGE)


def _save(sheet: Image.Image, output: str) -> None:
    """Write the picture whole or not at all."""
    aside = Path(f"{output}.partial")
    try:
        with aside.open("wb") as file:
            sheet.save(file, format={".png": "PNG", ".webp": "WEBP"}.get(Path(output).suffix.lower(), "JPEG"))
        aside.replace(output)
    finally:
        aside.unlink(missing_ok=True)


# what is said


def _describe(at: int, rows: list[_Row], totals: xr.Dataset, pictures: Pictures, top: list[Any]) -> dict[str, Any]:
    """A latent's images, sums and largest patches as plain values."""
    sums = totals["patch_sum"].values[:, at]
    shown = {
        row.name: [
            {"image": str(pictures.names[one]), "label": pictures.said(one), "patch_sum": float(sums[one])}
            for one in row.images
        ]
        for row in rows
        if row.latent == at
    }
    return {
        "latent": int(totals["latent"][at]), "largest_code": float(totals["patch_max"].values[:, at].max()),
        "fires_on": int((totals["patch_max"].values[:, at] > 0).sum()), "images": len(sums), "rows": shown,
        "largest_patches": [one._asdict() for one in top],
    }  # fmt: skip


def _tell(result: dict[str, Any]) -> None:
    from semprobe.sheet import printable

    for one in result["latents"]:
        click.echo(
            f"latent {one['latent']}: fires on {one['fires_on']} of {one['images']} images, largest code "
            f"{one['largest_code']:.4g}"
        )
        for name, images in one["rows"].items():
            click.echo(f"  {printable(name)}{'' if images else ': none'}")
            for image in images:
                click.echo(f"    {image['patch_sum']:>10.4g}  {printable(image['label'])}  {printable(image['image'])}")
        if one["largest_patches"]:
            click.echo("  largest codes (row, column of the patch)")
        for patch in one["largest_patches"]:
            where = f"({patch['row']}, {patch['column']})"
            click.echo(f"    {patch['value']:>10.4g}  {where:>8}  {printable(patch['image'])}")
    click.echo(result["output"])
