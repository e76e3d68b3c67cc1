"""semprobe import: saev shards to a store of activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from semprobe.cli import _common

if TYPE_CHECKING:
    import xarray as xr

_BYTES_A_SECOND = 100e6  # what a plain disk reads and writes again


@click.command(
    "import",
    epilog="""\b
Examples:
  semprobe import shards/ -o acts.zarr --images images/
  semprobe import shards/ -o acts.zarr --layer -2 --cls --dtype float16
""",
)
@click.argument("shards")
@_common.shards
@_common.cls
@_common.dtype
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
    from semprobe.images import find_images
    from semprobe.importing import template

    clock = _common.Clock()
    _common.check_apart(shards, output)
    stores.check_output(output, overwrite)
    if not stores.is_shards(shards):
        raise StoreError(f"{shards}: is no directory of saev shards, expected metadata.json and acts000000.bin in it")
    found = None if images is None else find_images(images, order="saev")
    lazy = template(stores.open_store(shards, layer=layer, images=found), dtype=dtype, cls=cls)
    number, size = lazy.sizes["image"], sum(v.nbytes for v in lazy.data_vars.values())
    place = stores.Place(output)
    seconds = size / _BYTES_A_SECOND
    if _common.forecast(place, size, seconds, "activations", dry_run=dry_run, as_json=as_json, quiet=quiet):
        return {}
    if found is not None:
        lazy = lazy.assign_coords(_looked_at(found, workers, quiet))
    settings = _common.provenance(**lazy.attrs["provenance"], dtype=dtype, cls=cls)
    shard = stores.images_per_shard(size // number, number)
    writer = stores.create(output, lazy, kind="activations", shard=shard, provenance=settings, overwrite=overwrite)
    _common.fill(writer, lazy, "importing", workers=workers, quiet=quiet)
    return {
        "store": output, "images": number, "patches": lazy.sizes["patch"], "features": lazy.sizes["feature"],
        "layer": settings["backbone"]["layer"], "bytes": size, "seconds": clock.seconds,
    }  # fmt: skip


def _looked_at(found: xr.Dataset, workers: int | None, quiet: bool) -> dict[str, Any]:
    """Hash, size and transparency of every image; what stands for the unknown where a picture is gone."""
    from semprobe.extraction import coordinates
    from semprobe.images import Inspected, cores, inspect_all

    with _common.progress(found.sizes["image"], "checking", quiet) as update:
        results = inspect_all(found["file"].values.tolist(), workers or cores(), update)
    gone = [str(one) for one in results if not isinstance(one, Inspected)]
    if gone:
        _common.say(f"{len(gone)} images can't be read, their hash and size stay unknown; the first: {gone[0]}")
    known = [one if isinstance(one, Inspected) else Inspected("", 0, 0, False) for one in results]
    return coordinates(known)
