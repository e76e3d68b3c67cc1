"""semprobe encode: activations to patch sums."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from semprobe.cli import _common, _studies

if TYPE_CHECKING:
    import xarray as xr

    from semprobe.sae import SAE


@click.command(
    epilog="""\b
Examples:
  semprobe encode acts.zarr --sae sae.pt -o latents.zarr
  semprobe encode my-study/ --sae sae.pt
  semprobe encode acts.zarr --sae sae.pt -o latents.zarr --max --workers 8
  semprobe encode shards/ --layer -2 --images images/ --sae sae.pt -o latents.zarr
  semprobe encode acts.zarr --sae hf://osunlp/SAE_DINOv2_24K_ViT-B-14_IN1K --normalize probe -o latents.zarr
"""
)
@click.argument("store")
@click.option("--sae", "sae_path", required=True, metavar="FILE", help="SAE checkpoint, or pilot for the embedded one.")
@_common.sae_options
@_common.normalize
@_common.force
@click.option("--max", "maxima", is_flag=True, help="Keep each image's largest code and its patch too.")
@_common.shards
@_common.output("Store of latents to make", study=True)
def command(store: str, output: str | None, as_json: bool, **options: Any) -> None:
    """Encode a STORE of activations, saev shards or a study with an SAE and keep each latent's sum over patches.

    The codes of single patches are not kept: they are many, and `semprobe.encode` computes those of a few latents
    when they are asked for. A run that was stopped goes on where it was when the same command is given again.
    """
    store, output = _studies.in_study(store, output, makes="latents", reads="activations")
    result = run(store, output=output, as_json=as_json, **options)
    if as_json and result:
        _common.print_json(result)
    elif result:
        click.echo(f"{result['store']}: {result['images']} images x {result['latents']} latents")


def open_activations(
    store: str, sae_path: str, force: bool, options: dict[str, Any]
) -> tuple[xr.Dataset, SAE, dict[str, Any]]:
    """An activation store, the SAE for it, and what outputs record of both; or the error that they do not fit."""
    from semprobe.encoding import check_fit

    data = _common.open_activations(store, options)
    sae = _common.load_sae(sae_path, options)
    check_fit(data["activations"], sae)
    forced = _common.check_declared(store, data, sae, force)
    activations = _common.without_run(data.attrs["provenance"])
    return data, sae, {"activations": activations, "sae": sae.describe(), **forced}


def seconds(data: xr.Dataset, sae: SAE, workers: int | None) -> float:
    """Forecast of one pass over the activations."""
    from semprobe.images import cores
    from semprobe.kernel import seconds_per_image

    each = seconds_per_image(sae, data.sizes["patch"])
    return each * data.sizes["image"] / min(workers or cores(), cores())


def run(
    store: str, *, sae_path: str, output: str, maxima: bool = False, overwrite: bool = False, dry_run: bool = False,
    workers: int | None = None, as_json: bool = False, quiet: bool = False, normalize: str = "none",
    force: bool = False, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """The command without click; returns what it did, or nothing for a dry run."""
    from semprobe import stores
    from semprobe.encoding import latents

    clock = _common.Clock()
    _common.check_apart(store, output)
    stores.check_output(output, overwrite)
    normalisation = _common.Normalisation(normalize)
    data, sae, settings = open_activations(store, sae_path, force, options)
    normalisation.check(data)
    images, per_image = data.sizes["image"], 4 * sae.latents * (3 if maxima else 1)
    guess = seconds(data, sae, workers)
    place = stores.Place(output)
    size = images * per_image
    if _common.forecast(place, size, guess, "latents", dry_run=dry_run, as_json=as_json, quiet=quiet):
        return {}
    data, shifted = normalisation.apply(data, workers, quiet)
    lazy = latents(data, sae, maxima=maxima)
    settings = _common.provenance(**settings, normalisation=shifted)
    shard = stores.images_per_shard(per_image, images)
    writer = stores.create(output, lazy, kind="latents", shard=shard, provenance=settings, overwrite=overwrite)
    _common.fill(writer, lazy, "encoding", workers=workers, quiet=quiet)
    return {
        "store": output, "images": images, "latents": sae.latents, "sae": sae.describe(), "bytes": size,
        "seconds": clock.seconds,
    }  # fmt: skip
