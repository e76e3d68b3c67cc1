"""Time and memory of the permutation test, and how they grow.

    python benchmarks/permutation.py                     # 24,576 latents, 10,000 permutations, 40 and 400 images
    python benchmarks/permutation.py --growth            # with latents, images, permutations and concepts
    python benchmarks/permutation.py --images 4000 --rounds 1

`null` is :func:`semprobe.significance.null_max_f1`: the largest F1 of all latents under each permutation. `test` is
:func:`semprobe.significance.significance`: with dealing out labels, exact p and false discovery rate. Predictions are
those of ``benchmarks/calibration.py``, correlated: shares of images from 0.5 % to 99 %, with dead, always-on and equal
latents. Memory is the peak of a process of its own beyond what it has after imports and making the predictions (on
Linux only).
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import xarray as xr
from calibration import draw, scored, thresholds

from semprobe.significance import null_max_f1, permuted_labels, significance


def make(latents: int, images: int, concepts: int = 1) -> xr.Dataset:
    """Scores of concepts with as many positives as negatives, of images of their own."""
    rng = np.random.default_rng(0)
    above = thresholds(latents, rng)
    label = np.arange(images) % 2
    one = scored(draw(images, above, True, rng), label.astype(np.int8))
    names = np.array([f"c{at}" for at in range(concepts)])
    return xr.concat([one] * concepts, "concept", data_vars="minimal").assign_coords(concept=names)


def measure(latents: int, images: int, permutations: int, concepts: int = 1) -> tuple[float, float]:
    """Seconds of the null of one concept, and of the whole test of all concepts."""
    scores = make(latents, images, concepts)
    label = scores["label"].values[:, 0]
    found = np.unpackbits(scores["prediction_bits"].values, axis=1, count=latents).astype(bool)
    found = found[:, found.any(0) & ~found.all(0)]
    dealt = permuted_labels(label, np.zeros(images, int), permutations, [0])
    start = time.perf_counter()
    null_max_f1(found, dealt)
    between = time.perf_counter()
    significance(scores, permutations=permutations)
    return between - start, time.perf_counter() - between


def warm() -> None:
    measure(2000, 40, 100)


def peak(latents: int, images: int, permutations: int) -> float:
    """MB of a process of its own."""
    command = [sys.executable, __file__, "--child", str(latents), str(images), str(permutations)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def memory(name: str) -> float:
    """MB that this process has (VmRSS), or had at most (VmHWM)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return float(status.split(f"{name}:")[1].split()[0]) / 1000


def compare(latents: int, images: int, permutations: int, rounds: int) -> None:
    found = []
    for _ in range(rounds):
        found.append(measure(latents, images, permutations))
        click.echo(f"  {images} images: null {found[-1][0]:.3f} s, test {found[-1][1]:.3f} s")
    null, test = np.median(found, axis=0)
    click.echo(
        f"{latents} latents, {permutations} permutations, {images} images: median of {rounds}: null {null:.3f} s, test "
        f"{test:.3f} s; {peak(latents, images, permutations):.0f} MB"
    )


def growth(latents: int, images: int, permutations: int) -> None:
    """One thing at a time, from the sizes given."""
    click.echo("| latents | images | permutations | concepts | null of one concept, s | test, s |")
    click.echo("|---|---|---|---|---|---|")
    rows = [
        *((latents * k, images, permutations, 1) for k in (1, 2, 4)),
        *((latents, images * k, permutations, 1) for k in (2, 4, 8, 16)),
        *((latents, images, permutations * k, 1) for k in (2, 4)),
        *((latents, images, permutations, k) for k in (2, 4)),
    ]
    for row in rows:
        null, test = np.median([measure(*row) for _ in range(3)], axis=0)
        click.echo(f"| {' | '.join(f'{n:,}' for n in row)} | {null:.2f} | {test:.2f} |")


@click.command(help=__doc__)
@click.option("--images", type=int, multiple=True, default=(40, 400), show_default=True)
@click.option("--latents", default=24_576, show_default=True)
@click.option("--permutations", default=10_000, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--growth", "grows", is_flag=True, help="A table of how time grows, from the first number of images.")
@click.option("--child", nargs=3, type=int, hidden=True)
def main(
    images: tuple[int, ...], latents: int, permutations: int, rounds: int, grows: bool, child: tuple[int, int, int]
) -> None:
    warm()
    if child:
        scores = make(*child[:2])
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forgets the peak so far
        before = memory("VmRSS")
        significance(scores, permutations=child[2])
        click.echo(memory("VmHWM") - before)
        return
    if grows:
        growth(latents, images[0], permutations)
        return
    for number in images:
        compare(latents, number, permutations, rounds)


if __name__ == "__main__":
    main()
