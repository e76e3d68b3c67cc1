"""Do the tests keep what they promise? By simulated studies, and as a check of ``semprobe power``.

    python benchmarks/calibration.py                        # 400 studies of 24,576 latents, 20 + 20: some minutes
    python benchmarks/calibration.py --structure correlated --studies 1000

A study draws which of its images each latent fires on, without a look at labels: a standard normal number above the
latent's own threshold. Correlated latents come in groups of 64 that share a factor, with correlation 0.5, and some have
a twin that fires alike. Thresholds are such that shares of images go from 0.5 % to 99 % evenly on a logarithmic scale;
one latent in 20 never fires and one in 50 always. Then ten latents are planted that fire on 90 % of the positives and
5 % of the negatives, and the study is tested again.
"""

from __future__ import annotations

import time

import click
import numpy as np
import xarray as xr
from scipy.stats import binom, binomtest, hypergeom, norm

from semprobe.power import detection
from semprobe.predictions import pack
from semprobe.scoring import confusion, f1, support
from semprobe.significance import in_family, significance

GROUP, PLANTED, TPR, FPR = 64, 10, 0.9, 0.05
AT = (0.001, 0.01, 0.05, 0.1, 0.5)


def thresholds(latents: int, rng: np.random.Generator) -> np.ndarray:
    """(latent,) of standard normal numbers."""
    shares = np.exp(rng.uniform(np.log(0.005), np.log(0.99), latents))
    kind = rng.random(latents)
    return np.where(kind < 0.05, np.inf, np.where(kind > 0.98, -np.inf, norm.isf(shares))).astype(np.float32)


def draw(images: int, above: np.ndarray, correlated: bool, rng: np.random.Generator) -> np.ndarray:
    """(image, latent) bool, whatever the labels are."""
    noise = rng.standard_normal((images, len(above)), dtype=np.float32)
    if correlated:
        factor = rng.standard_normal((images, -(-len(above) // GROUP)), dtype=np.float32)
        noise = (noise + np.repeat(factor, GROUP, axis=1)[:, : len(above)]) * np.float32(0.5**0.5)
    found = noise > above
    if correlated:
        found[:, 1::50] = found[:, 0::50][:, : found[:, 1::50].shape[1]]  # twins
    return found


def plant(found: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same with the first latents of given rates."""
    planted = rng.random((len(label), PLANTED)) < np.where(label == 1, TPR, FPR)[:, None]
    return np.concatenate([planted, found[:, PLANTED:]], axis=1)


def scored(found: np.ndarray, label: np.ndarray) -> xr.Dataset:
    named = xr.DataArray(label[:, None], dims=("image", "concept"), coords={"concept": ["c"]})
    counts = confusion(xr.DataArray(found, dims=("image", "latent")), named)
    return counts.assign(f1=f1(counts), prediction_bits=(("image", "byte"), pack(found))).assign_coords(label=named)


def p_shares(scores: xr.Dataset, p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(2, point): share of the family with an exact p of at most each point; and with a randomised one, uniform."""
    inside = in_family(scores).values[0]
    tp, fp, fn, tn = (scores[name].values[0][inside] for name in ("tp", "fp", "fn", "tn"))
    table = hypergeom.pmf(np.arange(tp[0] + fn[0] + 1), (tp + fp + fn + tn)[0], tp[0] + fn[0], np.arange(
        (tp + fp + fn + tn)[0] + 1)[:, None])  # fmt: skip
    smoothed = p[inside] - rng.random(len(tp)) * table[tp + fp, tp]
    return np.stack([[(one <= at).mean() for at in AT] for one in (p[inside], smoothed)])


def interval(hits: int, of: int) -> str:
    low, high = binomtest(hits, of).proportion_ci(0.99)
    return f"{hits}/{of} = {hits / of:.4f} (99 % interval {low:.4f} to {high:.4f})"


def simulate(
    name: str, studies: int, latents: int, positives: int, negatives: int, permutations: int, alpha: float, seed: int
) -> None:
    rng = np.random.default_rng([seed, name == "correlated"])
    above = thresholds(latents, rng)
    label = np.repeat(np.array([1, 0], np.int8), (positives, negatives))
    any_found, first_found, power, family, start = 0, 0, [], [], time.perf_counter()
    shares, false, false_null, found_of_planted = [], [], 0, []
    for study in range(studies):
        found = draw(len(label), above, name == "correlated", rng)
        null = scored(found, label)
        tests = significance(null, permutations=permutations, seed=study, alpha=alpha)
        any_found += bool(tests["significant"].any())
        false_null += bool((tests["q_value"] <= alpha).any())
        family.append(int(in_family(null).sum()))
        shares.append(p_shares(null, tests["p_value"].values[0], rng))
        planted = scored(plant(found, label, rng), label)
        tests = significance(planted, permutations=permutations, seed=study, alpha=alpha)
        significant, discovered = tests["significant"].values[0], tests["q_value"].values[0] <= alpha
        first_found += bool(significant[0])
        found_of_planted.append(significant[:PLANTED].mean())
        false.append(discovered[PLANTED:].sum() / max(1, discovered.sum()))
        power.append(detection(
            positives, negatives, latents, TPR, FPR, alpha=alpha, support=support(planted).values[0]
        ))  # fmt: skip
    say(name, studies, latents, permutations, alpha, family, any_found, false_null)
    error = 2.576 / max(1, studies - 1) ** 0.5
    exact, smoothed = np.stack(shares).mean(0)
    spread = np.stack(shares).std(0)[1] * error
    for at, one, two, around in zip(AT, exact, smoothed, spread, strict=True):
        click.echo(f"  exact p at most {at}: {one:.5f} of the family; randomised p {two:.5f} +- {around:.5f}")
    click.echo(
        f"  BH with {PLANTED} planted: false discovery rate {np.mean(false):.4f} +- {np.std(false) * error:.4f}, at "
        f"most {alpha} promised"
    )
    click.echo(
        f"  power for TPR {TPR}, FPR {FPR}: one planted latent found in {interval(first_found, studies)}; all planted "
        f"{np.mean(found_of_planted):.4f}; semprobe power predicts {np.mean(power):.4f}"
    )
    click.echo(f"  {time.perf_counter() - start:.0f} s")


def say(
    name: str, studies: int, latents: int, permutations: int, alpha: float, family: list[int], hits: int, false: int
) -> None:
    most = int(binom.ppf(0.995, studies, alpha))
    click.echo(
        f"{name}: {studies} null studies of {latents} latents, of which {np.mean(family):.0f} are in the family; "
        f"{permutations} permutations"
    )
    click.echo(
        f"  any latent significant at {alpha}: {interval(hits, studies)}; a binomial of {alpha} stays within "
        f"{int(binom.ppf(0.005, studies, alpha))} to {most} with 99 %: {'fine' if hits <= most else 'TOO OFTEN'}"
    )
    click.echo(f"  any latent with q at most {alpha}: {interval(false, studies)}")


@click.command(help=__doc__)
@click.option("--structure", type=click.Choice(["correlated", "independent"]), multiple=True,
              default=("correlated", "independent"), show_default=True)  # fmt: skip
@click.option("--studies", default=400, show_default=True)
@click.option("--latents", default=24_576, show_default=True)
@click.option("--positives", default=20, show_default=True)
@click.option("--negatives", default=20, show_default=True)
@click.option("--permutations", default=999, show_default=True)
@click.option("--alpha", default=0.05, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(structure: tuple[str, ...], **options: float) -> None:
    for name in structure:
        simulate(name, **options)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
