"""semprobe score: F1 of every latent for every concept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from semprobe.cli import _common

if TYPE_CHECKING:
    import xarray as xr

    from semprobe.sae import SAE


@click.command(
    epilog="""\b
Examples:
  semprobe score acts.zarr --sae sae.pt -o scores.zarr
  semprobe score shards/ --images images/ --sae sae.pt -o scores.zarr
  semprobe score latents.zarr -o scores.zarr --threshold 0.5 --top 10
  semprobe score acts.zarr --sae sae.pt -o scores.zarr --json | jq '.concepts.wheel.top[0]'
"""
)
@click.argument("store")
@click.option("--sae", "sae_path", metavar="FILE", help="SAE checkpoint, or pilot; needed for activations only.")
@_common.sae_options
@_common.normalize
@_common.force
@click.option("--threshold", type=float, default=0.0, show_default=True, help="Prediction: patch sum > threshold.")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Latents to print a concept.")
@click.option(
    "--random", type=click.IntRange(1), default=1000, show_default=True, help="Latents drawn at random as the baseline."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of that draw.")
@_common.shards
@_common.output("Store of scores to make")
def command(as_json: bool, top: int, **options: Any) -> None:
    """Score every latent of a STORE of activations or latents, or of saev shards, for every concept.

    An image is predicted positive if the latent's sum over patches is above the threshold. Printed beside the best
    latents are the floor (F1 of firing on every image) and the F1 of random latents. The best of thousands looks good
    by chance alone: a high F1 is a candidate, not a finding.

    Latents are ordered by F1, at equal F1 by precision, at equal precision by number.
    """  # fmt: skip
    scores, result = run(as_json=as_json, **options)
    if scores is None:
        return
    if as_json:
        _common.print_json(
            {**result, "concepts": {str(c): describe(scores, str(c), top) for c in scores["concept"].values}}
        )
        return
    for concept in scores["concept"].values:
        click.echo(table(scores, str(concept), top))
    click.echo(f"{result['store']}: {result['concepts']} concepts x {result['latents']} latents")


def run(
    store: str, *, output: str, sae_path: str | None = None, threshold: float = 0.0, random: int = 1000, seed: int = 0,
    overwrite: bool = False, dry_run: bool = False, workers: int | None = None, as_json: bool = False,
    quiet: bool = False, normalize: str = "none", force: bool = False, layer: int | None = None,
    images: str | None = None, **options: Any,
) -> tuple[xr.Dataset | None, dict[str, Any]]:  # fmt: skip
    """The command without click; returns the scores and what was done, or None for a dry run."""
    from semprobe import stores
    from semprobe.scoring import score

    clock = _common.Clock()
    _common.check_apart(store, output)
    stores.check_output(output, overwrite)
    normalisation = _common.Normalisation(normalize)
    if sae_path is None and (force or normalize != "none" or any(value is not None for value in options.values())):
        raise click.UsageError("--normalize, --force and the --sae options are for activations and need --sae")
    data, sae, guess, settings = _inputs(store, sae_path, workers, force, {"layer": layer, "images": images, **options})
    if sae is not None:
        normalisation.check(data)
    place = stores.Place(output)
    size = score(data, sae=sae, threshold=threshold, random=random, seed=seed).nbytes
    if _common.forecast(place, size, guess, "scores", dry_run=dry_run, as_json=as_json, quiet=quiet):
        return None, {}
    if sae is not None:
        data, settings["normalisation"] = normalisation.apply(data, workers, quiet)
    lazy = score(data, sae=sae, threshold=threshold, random=random, seed=seed)
    number = data.sizes["image"]
    with _common.progress(number, "scoring", quiet) as update, _common.dask_threads(number, update, workers):
        scores = lazy.compute()
    settings |= {"threshold": threshold, "random": random, "seed": seed}
    stores.write_whole(output, scores, kind="scores", provenance=_common.provenance(**settings), overwrite=overwrite)
    return scores, {
        "store": output, "concepts": scores.sizes["concept"], "latents": scores.sizes["latent"],
        "threshold": threshold, "seed": seed, "seconds": clock.seconds,
    }  # fmt: skip


def _inputs(
    store: str, sae_path: str | None, workers: int | None, force: bool, options: dict[str, Any]
) -> tuple[xr.Dataset, SAE | None, float, dict[str, Any]]:
    """The store, the SAE, the seconds that one pass may take, and where it all came from."""
    from semprobe.cli.encode import open_activations, seconds
    from semprobe.errors import StoreError

    if sae_path is not None:
        data, sae, settings = open_activations(store, sae_path, force, options)
        return data, sae, seconds(data, sae, workers), settings
    data = _common.open_input(store, options)
    if "activations" in data:
        raise click.UsageError(f"{store} is a store of activations, so --sae is needed")
    if "patch_sum" not in data:
        kind = data.attrs["semprobe_format"]["kind"]
        raise StoreError(f"{store}: this is a store of {kind}, expected one of activations or of latents")
    return data, None, 0.0, _common.without_run(data.attrs["provenance"])


def describe(scores: xr.Dataset, concept: str, top: int) -> dict[str, Any]:
    """A concept's best latents beside floor and baseline."""
    from semprobe.scoring import rank

    here = scores.sel(concept=concept)
    drawn = here["random_f1"]
    first = here.isel(latent=0)
    best = here.isel(latent=rank(scores, concept, top))
    columns = ("f1", "precision", "recall", "support", "tp", "fp", "fn", "tn")
    rows = [
        {"latent": int(best["latent"][at]), **{name: best[name].values[at].item() for name in columns}}
        for at in range(best.sizes["latent"])
    ]
    return {
        "positives": int(first["tp"] + first["fn"]), "negatives": int(first["fp"] + first["tn"]),
        "floor_f1": float(here["floor_f1"]),
        "random": {"draws": drawn.sizes["draw"], "mean": float(drawn.mean()), "p95": float(drawn.quantile(0.95))},
        "dead_latents": int((here["support"] == 0).sum()), "always_on_latents": int((here["support"] == 1).sum()),
        "top": rows,
    }  # fmt: skip


def table(scores: xr.Dataset, concept: str, top: int) -> str:
    """A concept's best latents as text."""
    found = describe(scores, concept, top)
    random = found["random"]
    lines = [
        f"{concept}: {found['positives']} positive, {found['negatives']} negative; floor (fires on every image) "
        f"{found['floor_f1']:.3f}; {random['draws']} random latents: mean {random['mean']:.3f}, 95th percentile "
        f"{random['p95']:.3f}; {found['dead_latents']} latents never fire here, {found['always_on_latents']} always",
        f"{'latent':>9} {'F1':>6} {'precision':>9} {'recall':>6} {'support':>7} "
        f"{'tp':>5} {'fp':>5} {'fn':>5} {'tn':>5}",
    ]
    for row in found["top"]:
        exact = "-" if row["precision"] != row["precision"] else f"{row['precision']:.3f}"
        lines.append(
            f"{row['latent']:>9} {row['f1']:>6.3f} {exact:>9} {row['recall']:>6.3f} {row['support']:>7.3f} "
            f"{row['tp']:>5} {row['fp']:>5} {row['fn']:>5} {row['tn']:>5}"
        )
    return "\n".join(lines) + "\n"
