"""Score from an activation store, over the bare matmul of the same sizes.

    python benchmarks/score_floor.py                       # 64 and 256 images, ReLU and TopK
    python benchmarks/score_floor.py --images 256 --kind relu --rounds 5
    python benchmarks/score_floor.py --memory              # peak memory of the command at 200 and 1,000 images

A round runs the floor, then the product, on the same threads; the ratio is taken within the round, so that it holds
when the machine's speed drifts. The product opens the store, loads the SAE from disk and scores every latent for two
concepts. The floor multiplies the same numbers, in memory, in tiles of the best shape, into a buffer, and does nothing
else.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import dask.array as da
import numpy as np
import torch
import xarray as xr

import semprobe
from semprobe import stores
from semprobe.cli import main as semprobe_command
from semprobe.images import cores


def make_sae(path: Path, features: int, latents: int, kind: str) -> None:
    """Write a random SAE in saev's format; a latent fires on a few patches of some images."""
    torch.manual_seed(0)
    activation = {"relu": {"cls": "Relu", "params": {}}, "topk": {"cls": "TopK", "params": {"top_k": 32}}}[kind]
    header = {"schema": 5, "cfg": {"d_model": features, "d_sae": latents, "activation": activation}}
    encoder = torch.randn(features, latents) / features**0.5
    tensors = {"W_enc": encoder, "b_enc": torch.full((latents,), -2.5), "b_dec": torch.zeros(features)}
    tensors["W_dec"] = encoder.T.contiguous()
    with path.open("wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        torch.save(tensors, file)


def make_store(path: Path, images: int, patches: int, features: int) -> None:
    """Write a store of random activations, region by region."""
    rng = np.random.default_rng(0)
    names = np.array([f"{at:06}.png" for at in range(images)], dtype=object)
    label = np.stack([np.arange(images) % 2, np.arange(images) // 2 % 2], 1).astype(np.int8)
    text = np.array([""] * images, dtype=object)
    template = xr.Dataset(
        {"activations": (("image", "patch", "feature"), da.zeros((images, patches, features), dtype=np.float32))},
        coords={
            "image": names, "concept": np.array(["a", "b"], dtype=object), "label": (("image", "concept"), label),
            "source": ("image", text), "sha256": ("image", text), "width": ("image", np.ones(images, np.int32)),
            "height": ("image", np.ones(images, np.int32)), "crop": (("image", "edge"), np.zeros((images, 4))),
            "row": ("patch", np.zeros(patches, np.int32)), "column": ("patch", np.zeros(patches, np.int32)),
        },
    )  # fmt: skip
    shard = stores.images_per_shard(patches * features * 4, images)
    writer = stores.create(path, template, kind="activations", shard=shard, provenance={})
    for start, stop in writer.regions():
        writer.write(start, {"activations": rng.standard_normal((stop - start, patches, features), dtype=np.float32)})
    writer.complete()


def product(store: Path, sae: Path) -> float:
    start = time.perf_counter()
    semprobe.score(semprobe.open_store(store), sae=semprobe.load_sae(sae)).compute(scheduler="threads")
    return time.perf_counter() - start


def floor(x: torch.Tensor, weights: torch.Tensor, tile: int = 1024) -> float:
    """Four images by 1,024 latents at a time, into a buffer, on as many threads as there are cores."""

    def run(rows: torch.Tensor) -> None:
        torch.set_num_threads(1)
        out = torch.empty(len(rows), tile)
        for at in range(0, len(weights), tile):
            part = weights[at : at + tile].T
            torch.mm(rows, part, out=out[:, : part.shape[1]])

    start = time.perf_counter()
    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(run, (part.reshape(-1, x.shape[2]) for part in x.split(4))))
    return time.perf_counter() - start


def compare(images: int, kind: str, rounds: int, patches: int, features: int, latents: int) -> list[float]:
    """Ratios of product to floor, one a round."""
    with tempfile.TemporaryDirectory() as folder:
        store, sae = Path(folder, "acts.zarr"), Path(folder, "sae.pt")
        make_store(store, images, patches, features)
        make_sae(sae, features, latents, kind)
        x = torch.from_numpy(semprobe.open_store(store)["activations"].values)
        weights = torch.from_numpy(semprobe.load_sae(sae).encoder)
        floor(x[:8], weights)
        product(store, sae)  # neither is measured cold
        ratios = []
        for _ in range(rounds):
            low, high = floor(x, weights), product(store, sae)
            ratios.append(high / low)
            click.echo(f"  {kind} {images} images: floor {low:.2f} s, score {high:.2f} s, ratio {high / low:.3f}")
    return ratios


def peak(images: int, kind: str, patches: int, features: int, latents: int) -> float:
    """Peak resident memory in MB of the whole command, tests of the scores and all."""
    with tempfile.TemporaryDirectory() as folder:
        store, sae = Path(folder, "acts.zarr"), Path(folder, "sae.pt")
        make_store(store, images, patches, features)
        make_sae(sae, features, latents, kind)
        command = [sys.executable, __file__, "--child", str(store), str(sae)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


@click.command(help=__doc__)
@click.option("--images", type=int, multiple=True, default=(64, 256), show_default=True)
@click.option("--kind", "kinds", type=click.Choice(["relu", "topk"]), multiple=True, default=("relu", "topk"))
@click.option("--rounds", default=3, show_default=True)
@click.option("--patches", default=196, show_default=True)
@click.option("--features", default=768, show_default=True)
@click.option("--latents", default=24_576, show_default=True)
@click.option("--memory", is_flag=True, help="Peak memory instead of time.")
@click.option("--child", nargs=2, hidden=True)
def main(
    images: tuple[int, ...], kinds: tuple[str, ...], rounds: int, patches: int, features: int, latents: int,
    memory: bool, child: tuple[str, str] | None,
) -> None:  # fmt: skip
    if child:
        store, sae = child
        command = ["score", store, "--sae", sae, "-o", f"{store}.scores", "--quiet"]
        semprobe_command(command, standalone_mode=False)
        click.echo(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)
        return
    for kind in kinds:
        if memory:
            peaks = {n: peak(n, kind, patches, features, latents) for n in (200, 1000)}
            ratio = peaks[1000] / peaks[200]
            click.echo(
                f"{kind}: peak {peaks[200]:.0f} MB at 200 images, {peaks[1000]:.0f} MB at 1,000: ratio {ratio:.3f}"
            )
            continue
        for number in images:
            ratios = compare(number, kind, rounds, patches, features, latents)
            click.echo(f"{kind}, {number} images: score over matmul, median of {rounds}: {np.median(ratios):.3f}")


if __name__ == "__main__":
    main()
