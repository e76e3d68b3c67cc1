"""semprobe import: saev shards to a store of activations."""

from __future__ import annotations

from typing import Any

import click

from semprobe.cli import _common

_BYTES_A_SECOND = 100e6  # what a plain disk reads and writes again


@click.command(
    "import",
    epilog="""\b
Examples:
  semprobe import shards/ -o acts.zarr --images images/
  semprobe import shards/ -o acts.zarr --layer -2 --cls --dtype float16
""",
)
@click.argument("shards", type=click.Path(exists=True, file_okay=False))
@_common.shards
@click.option("--cls", is_flag=True, help="Keep the class token too.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="On disk; float16 is half the size and flips about 5 predictions in 100,000.",
)
@_common.output("Store of activations to make")
def command(as_json: bool, **options: Any) -> None:
    """Make a store of activations from saev SHARDS: checksummed, resumable, open in plain xarray.

    SHARDS is a directory with metadata.json and acts000000.bin, of any version. Shards can also be encoded and scored
    as they are; a store guards against files that are cut off or changed, and keeps the images' hashes and sizes.
    A run that was stopped goes on where it was when the same command is given again.
    """
    result = run(as_json=as_json, **options)
    if as_json and result:
        _common.print_json(result)
    elif result:
        shape = f"{result['patches']} patches x {result['features']} features"
        click.echo(f"{result['store']}: {result['images']} images of {shape}")


def run(
    shards: str, *, output: str, layer: int | None = None, images: str | None = None, cls: bool = False,
    dtype: str = "float32", overwrite: bool = False, dry_run: bool = False, workers: int | None = None,
    as_json: bool = False, quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """The command without click; returns what it did, or nothing for a dry run."""
    from semprobe import stores
    from semprobe.errors import StoreError
    from semprobe.importing import template

    clock = _common.Clock()
    _common.check_apart(shards, output)
    stores.check_output(output, overwrite)
    if not stores.is_shards(shards):
        raise StoreError(f"{shards}: is no directory of saev shards, expected metadata.json and acts000000.bin in it")
    lazy = template(_common.open_input(shards, {"layer": layer, "images": images}), dtype=dtype, cls=cls)
    number, size = lazy.sizes["image"], sum(v.nbytes for v in lazy.data_vars.values())
    place = stores.Place(output)
    seconds = size / _BYTES_A_SECOND
    if _common.forecast(place, size, seconds, "activations", dry_run=dry_run, as_json=as_json, quiet=quiet):
        return {}
    if images is not None:
        lazy = lazy.assign_coords(_looked_at(images, workers, quiet))
    settings = _common.provenance(**lazy.attrs["provenance"], dtype=dtype, cls=cls)
    shard = stores.images_per_shard(size // number, number)
    writer = stores.create(output, lazy, kind="activations", shard=shard, provenance=settings, overwrite=overwrite)
    _common.fill(writer, lazy, "importing", workers=workers, quiet=quiet)
    return {
        "store": output, "images": number, "patches": lazy.sizes["patch"], "features": lazy.sizes["feature"],
        "layer": settings["backbone"]["layer"], "bytes": size, "seconds": clock.seconds,
    }  # fmt: skip


def _looked_at(images: str, workers: int | None, quiet: bool) -> dict[str, Any]:
    """Hash, size and transparency of every image."""
    from semprobe.extraction import inspect_images
    from semprobe.images import find_images

    found = find_images(images, order="saev")
    with _common.progress(found.sizes["image"], "checking", quiet) as update:
        good = inspect_images(found, workers=workers, done=update)
    return {name: good[name].variable for name in ("sha256", "width", "height", "alpha")}
