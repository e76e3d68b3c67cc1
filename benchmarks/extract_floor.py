"""Extract from image files, over the bare forward pass stopped at the same block.

    python benchmarks/extract_floor.py                            # 256 drawn photographs, vit_small_patch16_224
    python benchmarks/extract_floor.py --images FOLDER --rounds 5

A round runs the floor, then the product; the ratio is taken within the round. The product finds, checks, decodes and
transforms the files, runs the model with random weights and writes the store. The floor runs the same model on as many
batches of tensors that are in memory already, on all cores, and does nothing else.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

from semprobe import stores
from semprobe.backbones import Backbone, load_backbone
from semprobe.extraction import extract, inspect_images, template
from semprobe.images import cores, find_images


def draw(folder: Path, number: int) -> None:
    """JPEG pictures of 640 x 480 with as much detail as a photograph."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for at in range(number):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
            (640, 480), Image.Resampling.BICUBIC
        )
        fine = rng.normal(0, 8, (480, 640, 1))
        Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)).save(
            folder / f"{at:04}.jpg", quality=90
        )


def product(images: Path, backbone: Backbone, output: Path, batch: int) -> float:
    start = time.perf_counter()
    good = inspect_images(find_images(images))
    filled = template(good, backbone)
    shard = stores.images_per_shard(backbone.patches * backbone.features * 4, good.sizes["image"])
    writer = stores.create(output, filled, kind="activations", shard=shard, provenance={}, overwrite=True)
    extract(good, backbone, {backbone.layers[0]: writer}, batch=batch)
    return time.perf_counter() - start


def floor(backbone: Backbone, images: int, batch: int) -> float:
    torch.set_num_threads(cores())
    x = torch.randn(batch, 3, *backbone.transform.size)
    start = time.perf_counter()
    with torch.inference_mode():
        for _ in range(-(-images // batch)):
            backbone.model.forward_intermediates(
                x, indices=list(backbone.layers), norm=False, stop_early=True, output_fmt="NLC", intermediates_only=True
            )
    return time.perf_counter() - start


@click.command(help=__doc__)
@click.option("--model", default="vit_small_patch16_224", show_default=True)
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of photographs.")
@click.option("--number", default=256, show_default=True, help="Pictures to draw where no folder is given.")
@click.option("--batch", default=8, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(model: str, images: Path | None, number: int, batch: int, rounds: int) -> None:
    backbone = load_backbone(model, random_weights=0)
    with tempfile.TemporaryDirectory() as folder:
        if images is None:
            images = Path(folder, "images")
            draw(images, number)
        count = find_images(images).sizes["image"]
        floor(backbone, batch, batch)  # not measured cold
        ratios = []
        for _ in range(rounds):
            low = floor(backbone, count, batch)
            high = product(images, backbone, Path(folder, "acts.zarr"), batch)
            ratios.append(high / low)
            click.echo(f"  {count} images: floor {low:.2f} s, extract {high:.2f} s, ratio {high / low:.3f}")
    click.echo(f"{model}: extract over forward pass, median of {rounds}: {np.median(ratios):.3f}")


if __name__ == "__main__":
    main()
