"""semprobe extract: images to patch activations."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from semprobe.cli import _common, _studies
from semprobe.transforms import LIKE, VARIANTS

if TYPE_CHECKING:
    import xarray as xr

    from semprobe.backbones import Backbone


_LIKE_HELP = (
    "Transform pictures as another project did, in place of the model's own way. saev: as saev did for this model, "
    f"CLIP or DINOv2. {'. '.join(f'{name}: {variant.text}' for name, variant in VARIANTS.items())}."
)


@click.command(
    epilog="""\b
Examples:
  semprobe extract images/ -o acts.zarr --model clip-vit-b16
  semprobe extract my-study/ --model clip-vit-b16
  semprobe extract study.csv -o acts.zarr --model vit_small_patch16_224 --on-error skip
  semprobe extract images/ -o acts.zarr --model clip-vit-b16-gelu --like saev
  semprobe extract images/ -o 'acts-{layer}.zarr' --model dinov2-vit-b14-reg --layer 6 --layer -2 --cls
"""
)
@click.argument("images", type=click.Path(exists=True))
@click.option(
    "--model", required=True, help="A timm ViT, or clip-vit-b16, clip-vit-b16-gelu, dinov2-vit-b14-reg, pilot."
)
@click.option(
    "--layer",
    "layers",
    type=int,
    multiple=True,
    default=(-2,),
    show_default=True,
    help="Block whose output is kept; negative counts from the end. Give several, with {layer} in the output.",
)
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False),
    help="Local checkpoint for the model: of timm, open_clip or DINOv2.",
)
@click.option(
    "--random-weights", type=click.IntRange(0, 2**63 - 1), metavar="SEED", help="Random weights, for trying things out."
)
@click.option("--size", type=click.IntRange(1), help="Edge of the model's input in pixels.  [default: the model's]")
@click.option("--crop-pct", type=float, help="Share of the resized picture that is kept.  [default: the model's]")
@click.option("--crop-mode", type=click.Choice(["center", "squash", "border"]), help="[default: the model's]")
@click.option("--interpolation", type=click.Choice(["bilinear", "bicubic"]), help="[default: the model's]")
@click.option("--like", type=click.Choice(LIKE), help=_LIKE_HELP)
@_common.cls
@_common.dtype
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Images run at once.")
@click.option("--device", default="cpu", show_default=True, help="Where torch runs the model, such as cuda.")
@click.option(
    "--on-error",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="At an image that can't be read: stop, or leave it out and list it in the store.",
)
@_common.output("Store of activations to make", study=True)
def command(images: str, output: str | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Run IMAGES through a vision transformer and keep its patch activations.

    IMAGES is a folder with {concept}-positive and {concept}-negative folders (or {concept}/positive and
    {concept}/negative), a CSV file with columns path, concept, label (positive or negative) and any others, or any
    folder of images. A run that was stopped goes on where it was when the same command is given again.
    """  # fmt: skip
    images, output = _studies.in_study(images, output, makes="activations")
    result = run(images, output=output, as_json=as_json, quiet=quiet, **options)
    if as_json and result:
        _common.print_json(result)
    for store in result.get("stores", []) if not as_json else []:
        click.echo(f"{store}: {result['images']} images of {result['patches']} patches x {result['features']} features")


def run(
    images: str, *, output: str, model: str, layers: tuple[int, ...] = (-2,), weights: str | None = None,
    random_weights: int | None = None, size: int | None = None, crop_pct: float | None = None,
    crop_mode: str | None = None, interpolation: str | None = None, like: str | None = None, cls: bool = False,
    dtype: str = "float32", batch: int = 8, device: str = "cpu", on_error: str = "stop", overwrite: bool = False,
    dry_run: bool = False, workers: int | None = None, as_json: bool = False, quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """The command without click; returns what it did, or nothing for a dry run."""
    if weights is not None and random_weights is not None:
        raise click.UsageError("--weights and --random-weights exclude each other")
    if len(set(layers)) > 1 and "{layer}" not in output:
        raise click.UsageError(
            f"{len(layers)} layers need {{layer}} in the output's name, such as 'acts-{{layer}}.zarr'"
        )
    from semprobe import stores
    from semprobe.images import find_images

    clock = _common.Clock()
    found = find_images(images)
    _say_found(found, quiet)
    from semprobe.backbones import load_backbone

    backbone = load_backbone(
        model, layers=layers, weights=weights, random_weights=random_weights, size=size, crop_pct=crop_pct,
        crop_mode=crop_mode, interpolation=interpolation, like=like, device=device,
    )  # fmt: skip
    if random_weights is not None:
        _common.say(f"RANDOM WEIGHTS (seed {random_weights}): the activations mean nothing; for trying things out only")
    outputs = {layer: output.replace("{layer}", str(layer)) for layer in backbone.layers}
    made = [stores.check_output(path, overwrite or len(outputs) > 1) == "complete" for path in outputs.values()]
    if all(made):
        stores.check_output(next(iter(outputs.values())), overwrite)
    per_image = (backbone.patches + cls) * backbone.features * (2 if dtype == "float16" else 4)
    place = stores.Place(next(iter(outputs.values())))
    total = per_image * found.sizes["image"] * len(outputs)
    seconds = _seconds(backbone, found.sizes["image"], workers)
    if _common.forecast(place, total, seconds, "activations", dry_run=dry_run, as_json=as_json, quiet=quiet):
        return {}

    from semprobe import confounds, extraction
    from semprobe.images import cores

    with _common.progress(found.sizes["image"], "checking", quiet) as update:
        good = extraction.inspect_images(found, skip=on_error == "skip", workers=workers, done=update)
    for one in good.attrs["skipped"]:
        _common.say(f"left out: {one['reason']}")
    confounds.check_duplicates(good)
    confounds.check_equal_pixels(good, workers=workers or cores())
    filled = extraction.template(good, backbone, dtype=dtype, cls=cls)
    shard = stores.images_per_shard(per_image, good.sizes["image"])
    with ExitStack() as under_way:
        writers = {}
        for layer, path in outputs.items():
            settings = _common.provenance(backbone=backbone.describe(layer), dtype=dtype, batch=batch, cls=cls)
            if len(outputs) > 1 and not overwrite and stores.is_made(path, filled, settings):
                continue  # by a run that was stopped between the layers
            writers[layer] = under_way.enter_context(stores.create(
                path, filled, kind="activations", shard=shard, provenance=settings, overwrite=overwrite
            ))  # fmt: skip
        update = under_way.enter_context(_common.progress(good.sizes["image"], "extracting", quiet))
        extraction.extract(good, backbone, writers, batch=batch, workers=workers, dtype=dtype, cls=cls, done=update)
    return {
        "stores": list(outputs.values()), "layers": list(outputs), "images": good.sizes["image"],
        "patches": backbone.patches, "features": backbone.features, "bytes": total,
        "ignored_files": good.attrs["ignored_files"], "skipped": good.attrs["skipped"], "seconds": clock.seconds,
    }  # fmt: skip


def _say_found(found: xr.Dataset, quiet: bool) -> None:
    label = found["label"].values
    parts = [
        f"{concept} {(column == 1).sum()} + {(column == 0).sum()}"
        for concept, column in zip(found["concept"].values, label.T, strict=True)
    ]
    shown = f"; positive + negative: {', '.join(parts)}" if parts else "; no labels"
    ignored = found.attrs["ignored_files"]
    also = f"; {ignored} files that are no images ignored" if ignored else ""
    _common.say(f"found {found.sizes['image']} images{shown}{also}", quiet)


def _seconds(backbone: Backbone, images: int, workers: int | None) -> float:
    """Time for all images, from running one."""
    import time

    import torch

    from semprobe.images import cores

    one = torch.zeros(1, 3, *backbone.transform.size)
    took = []
    for _ in range(2):
        start = time.perf_counter()
        backbone.tokens(one)
        took.append(time.perf_counter() - start)
    return min(took) * images * max(1.0, cores() / (workers or cores()))
