"""semprobe score: F1 of every latent for every concept, and what speaks for it."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from semprobe.cli import _common, _studies

if TYPE_CHECKING:
    import xarray as xr

    from semprobe.sae import SAE
    from semprobe.stores import Place

_SWEPT = 200_000_000
"""Bytes of patch sums up to which thresholds are swept: they are held two or three times over."""


@click.command(
    epilog="""\b
Examples:
  semprobe score acts.zarr --sae sae.pt -o scores.zarr
  semprobe score my-study/
  semprobe score shards/ --images images/ --sae sae.pt -o scores.zarr
  semprobe score latents.zarr -o scores.zarr --threshold-sweep --csv scores.csv
  semprobe score acts.zarr --sae sae.pt -o scores.zarr --baseline channels --baseline random-sae
  semprobe score scores.zarr -o stricter.zarr --alpha 0.01 --family study
  semprobe score acts.zarr --sae sae.pt -o scores.zarr --json | jq '.concepts.wheel.top[0]'
"""
)
@click.argument("store")
@click.option("--sae", "sae_path", metavar="FILE", help="SAE checkpoint, or pilot; needed for activations only.")
@_common.sae_options
@_common.normalize
@_common.force
@click.option("--threshold", type=float, default=0.0, show_default=True, help="Prediction: patch sum > threshold.")
@click.option(
    "--threshold-sweep",
    "sweep",
    is_flag=True,
    help="Give each latent its best threshold of some twenty; the test pays for the choice.",
)
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Latents to print a concept.")
@click.option(
    "--random", type=click.IntRange(1), default=1000, show_default=True, help="Latents drawn at random as the baseline."
)
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    type=click.Choice(["channels", "random-sae"]),
    help="Score the backbone's channels, or random directions that fire as often, too; of activations only.",
)
@click.option(
    "--permutations", type=click.IntRange(1), default=10_000, show_default=True, help="Of the labels, for the test."
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="Chance of any false finding in a family.",
)
@click.option(
    "--family",
    type=click.Choice(["concept", "study"]),
    default="concept",
    show_default=True,
    help="What the test corrects for: all latents of a concept, or of all concepts (p times their number).",
)
@click.option("--splits", type=click.IntRange(1), default=100, show_default=True, help="Halvings for the held-out F1.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all that is drawn.")
@click.option(
    "--csv", "csv_path", type=click.Path(dir_okay=False, path_type=Path), help="Write all latents as a table, too."
)
@_common.shards
@_common.output("Store of scores to make", study=True)
def command(store: str, output: str | None, as_json: bool, top: int, **options: Any) -> None:
    """Score every latent of a STORE of activations or latents, of saev shards or of a study, for every concept.

    An image is predicted positive if the latent's sum over patches is above the threshold. The best of thousands of
    latents looks good by chance alone, so its F1 stands beside the floor (firing on every image), random latents, and
    the best that all latents reach when labels are shuffled: a latent is significant if that happens at most in a share
    --alpha of shuffles. Of a store of scores the tests are made anew, with other settings if you like; threshold
    and random latents stay what they are.

    Latents are ordered by F1, at equal F1 by precision, at equal precision by number.
    """  # fmt: skip
    from semprobe.assessment import describe

    reads = "activations" if options["sae_path"] else "latents"
    opened, output = _studies.in_study(store, output, makes="scores", reads=reads)
    source = click.get_current_context().get_parameter_source
    asked = frozenset(name for name in ("threshold", "random") if source(name) is ParameterSource.COMMANDLINE)
    scores, result = run(opened, output=output, as_json=as_json, asked=asked, **options)
    if scores is None:
        return
    result |= _studies.say_unverified(store)
    settings = {name: options[name] for name in ("alpha", "family")}
    concepts = {str(c): describe(scores, str(c), top) for c in scores["concept"].values}
    if as_json:
        _common.print_json({**result, "concepts": concepts})
        return
    for concept, found in concepts.items():
        click.echo(table(concept, found, **settings))
    click.echo(_legend(len(concepts) if options["family"] == "study" else 1))
    click.echo(f"{result['store']}: {result['concepts']} concepts x {result['latents']} latents")


def run(
    store: str, *, output: str, sae_path: str | None = None, threshold: float = 0.0, sweep: bool = False,
    random: int = 1000, baselines: tuple[str, ...] = (), permutations: int = 10_000, alpha: float = 0.05,
    family: str = "concept", splits: int = 100, seed: int = 0, csv_path: Path | None = None, overwrite: bool = False,
    dry_run: bool = False, workers: int | None = None, as_json: bool = False, quiet: bool = False,
    normalize: str = "none", force: bool = False, layer: int | None = None, images: str | None = None,
    asked: frozenset[str] = frozenset(), **options: Any,
) -> tuple[xr.Dataset | None, dict[str, Any]]:  # fmt: skip
    """The command without click; returns the scores and what was done, or None for a dry run.

    What was `asked` for, and is no default, is refused where a store of scores can't give it any more.
    """
    from semprobe import stores
    from semprobe.assessment import assess
    from semprobe.scoring import labelled

    clock = _common.Clock()
    _common.check_apart(store, output)
    stores.check_output(output, overwrite)
    if csv_path is not None and csv_path.exists() and not overwrite:
        raise click.UsageError(f"{csv_path} is there already; --overwrite replaces it")
    if csv_path is not None and not csv_path.absolute().parent.is_dir():
        raise click.UsageError(f"{csv_path}: there is no folder {csv_path.absolute().parent}; make it first")
    if not math.isfinite(threshold):
        raise click.UsageError(f"--threshold {threshold}: expected a finite number")
    if sweep and threshold != 0:
        raise click.UsageError("--threshold and --threshold-sweep exclude each other")
    for_activations = baselines or force or normalize != "none" or any(v is not None for v in options.values())
    if sae_path is None and for_activations:
        raise click.UsageError(
            "--normalize, --force, --baseline and the --sae options are for activations and need --sae"
        )
    normalisation = _common.Normalisation(normalize)
    whole, sae, guess, settings = _inputs(
        store, sae_path, workers, force, {"layer": layer, "images": images, **options}
    )
    data = whole if "tp" in whole else labelled(whole)
    if sae is not None:
        normalisation.check(data)
    _check_permutations(permutations, alpha, data.sizes["concept"] if family == "study" else 1)
    how = {"threshold": threshold, "sweep": sweep, "random": random, "seed": seed}
    tests: dict[str, Any] = {"permutations": permutations, "alpha": alpha, "family": family, "splits": splits}
    _check_fits(data, sae, sweep)
    place, size = stores.Place(output), _bytes(data, sae, permutations, sweep)
    aside = 0 if sweep or "tp" in data else _sums_bytes(data, sae)
    if "channels" in baselines and aside:  # and their negatives
        aside = max(aside, 2 * 4 * data.sizes["image"] * data.sizes["feature"])
    if _common.forecast(place, size, guess, "scores", aside=aside, dry_run=dry_run, as_json=as_json, quiet=quiet):
        return None, {}
    if "tp" in data:
        scores = _again(store, data, {name: value for name, value in how.items() if name in asked}, sweep)
    else:
        if sae is not None:
            shifted, settings["normalisation"] = normalisation.apply(whole, workers, quiet)
            data = labelled(shifted)
        found = data.drop_vars(["patch_max", "patch_argmax"], errors="ignore") if sae is None else _encoded(data, sae)
        scores = _measured(found, how, "scoring", place, workers, quiet)
        for name in baselines:
            scores = scores.assign(_baseline(name, data, sae, how, place, workers, quiet))
        settings |= {**how, "threshold": "sweep" if sweep else threshold, "baselines": list(baselines)}
    _common.say("testing", quiet)
    scores = scores.assign(assess(scores, seed=seed, **tests))
    settings = _common.provenance(**{**settings, "tests": {**tests, "seed": seed}})
    stores.write_whole(output, scores, kind="scores", provenance=settings, overwrite=overwrite)
    if csv_path is not None:
        _write_csv(csv_path, scores)
    return scores, {
        "store": output, "concepts": scores.sizes["concept"], "latents": scores.sizes["latent"],
        "threshold": settings["threshold"], "seed": seed, **tests, "seconds": clock.seconds,
    }  # fmt: skip


def _inputs(
    store: str, sae_path: str | None, workers: int | None, force: bool, options: dict[str, Any]
) -> tuple[xr.Dataset, SAE | None, float, dict[str, Any]]:
    """All that a store holds; the SAE, the seconds that one pass may take, and where it all came from."""
    from semprobe.cli.encode import open_activations, seconds
    from semprobe.scoring import labelled

    if sae_path is not None:
        data, sae, settings = open_activations(store, sae_path, force, options)
        return data, sae, seconds(labelled(data), sae, workers), settings
    data = _common.open_input(store, options)
    if "activations" in data:
        raise click.UsageError(f"{store} is a store of activations, so --sae is needed")
    return data, None, 0.0, _common.without_run(data.attrs["provenance"])


def _check_permutations(permutations: int, alpha: float, concepts: int) -> None:
    """Before anything long: so few that not even the best p is low enough."""
    if (least := concepts / (permutations + 1)) > alpha:
        many = f" times {concepts} concepts" if concepts > 1 else ""
        raise click.UsageError(
            f"with {permutations} permutations p is at least {least:.2g} (1 / {permutations + 1}{many}), above --alpha "
            f"{alpha:g}, so nothing could be significant; give at least {math.ceil(concepts / alpha - 1e-9) - 1}"
        )


def _again(store: str, data: xr.Dataset, asked: dict[str, Any], sweep: bool) -> xr.Dataset:
    """A store of scores, to be tested anew."""
    came = data.attrs["provenance"]
    then = {"threshold": "sweep" if "threshold" in data else came.get("threshold", 0.0),
            "random": came.get("random", data.sizes["draw"])}  # fmt: skip
    wanted = asked | ({"threshold": "sweep"} if sweep else {})
    for name, value in wanted.items():
        if value != then[name]:
            raise click.UsageError(
                f"{store} holds scores with --{name} {then[name]}, which can't be changed to {value}; score "
                "activations or latents again"
            )
    return data.drop_dims(["permutation", "choice"], errors="ignore").compute().drop_attrs(deep=False)


# measuring


def _sums_bytes(data: xr.Dataset, sae: SAE | None) -> int:
    return 4 * data.sizes["image"] * (sae.latents if sae is not None else data.sizes["latent"])


def _check_fits(data: xr.Dataset, sae: SAE | None, sweep: bool) -> None:
    if sweep and "tp" not in data and _sums_bytes(data, sae) > _SWEPT:
        raise click.UsageError(
            f"--threshold-sweep needs all patch sums in memory, {_common.human_bytes(_sums_bytes(data, sae))} here; it "
            f"is for up to {_common.human_bytes(_SWEPT)}: score fewer images or a fixed --threshold"
        )


def _bytes(data: xr.Dataset, sae: SAE | None, permutations: int, sweep: bool) -> int:
    """Size of the store: some 110 bytes a latent and concept, the null, and predictions."""
    if "tp" in data:
        return int(data.nbytes)
    latents = sae.latents if sae is not None else data.sizes["latent"]
    kept = 4 * latents if sweep else latents // 8
    return data.sizes["concept"] * (110 * latents + 8 * permutations) + kept * data.sizes["image"]


def _measured(
    lazy: xr.Dataset, how: dict[str, Any], what: str, place: Place, workers: int | None, quiet: bool
) -> xr.Dataset:
    """Scores of every latent of lazy patch sums: computed image by image, and then looked at latent by latent."""
    import dask.array as da

    from semprobe.assessment import score_sums
    from semprobe.effects import latents_at_once
    from semprobe.stores import Turned

    sums = lazy["patch_sum"].transpose("image", "latent")
    images, latents = sums.shape
    if how["sweep"]:
        with _common.computing(images, what, workers, quiet):
            found = lazy.compute()
        return score_sums(found, **how)
    with Turned(place, (images, latents), sums.dtype, latents_at_once(images, sums.dtype.itemsize)) as turned:
        with _common.computing(images, what, workers, quiet):
            da.store(da.asarray(sums.data).rechunk({1: -1}), turned, lock=False)
        again = score_sums(lazy.assign(patch_sum=(sums.dims, turned.lazy())), **how)
        with _common.computing(latents, "ranking", workers, quiet, "latent"):
            return again.compute()


def _encoded(data: xr.Dataset, sae: SAE) -> xr.Dataset:
    from semprobe.encoding import latents  # with torch, which patch sums do without

    return latents(data, sae)


def _baseline(
    name: str, data: xr.Dataset, sae: SAE | None, how: dict[str, Any], place: Place, workers: int | None, quiet: bool
) -> dict[str, xr.DataArray]:
    """F1 of what else might have been the latents."""
    from semprobe.baselines import best_of_both, channel_sums, random_sae
    from semprobe.encoding import patch_sum
    from semprobe.vocabulary import attrs

    assert sae is not None
    acts = data["activations"]
    if name == "channels":
        sums = channel_sums(acts)
    else:
        with _common.computing(data.sizes["image"], "drawing directions", workers, quiet):
            drawn = random_sae(acts, sae, seed=how["seed"])
        sums = patch_sum(acts, drawn)
    lazy = sums.to_dataset(name="patch_sum").assign_coords(label=data["label"])
    found = _measured(lazy, how, name, place, workers, quiet)
    if name == "random-sae":
        return {"random_sae_f1": found["f1"].drop_vars("latent").assign_attrs(attrs("random_sae_f1"))}
    return {f"channel_{one}": best_of_both(f"channel_{one}", found[one]) for one in ("f1", "auroc")}


def _write_csv(path: Path, scores: xr.Dataset) -> None:
    """Every latent of every concept, best first."""
    import os

    from semprobe.manifest import neutralise
    from semprobe.scoring import rank

    names = [str(name) for name, one in scores.data_vars.items() if set(one.dims) == {"concept", "latent"}]
    aside = path.with_name(f".{path.name}.part")
    try:
        with aside.open("w", newline="", encoding="utf-8") as file:
            for at, concept in enumerate(scores["concept"].values):
                order = rank(scores, str(concept), scores.sizes["latent"])
                rows = scores[names].sel(concept=concept).isel(latent=order).to_dataframe().reset_index()
                rows = rows.assign(concept=neutralise(str(concept)))
                rows.to_csv(file, columns=["concept", "latent", *names], index=False, header=at == 0)
        os.replace(aside, path)
    except OSError as error:
        raise click.FileError(
            str(path), f"the table can't be written, the store is: {error.strerror or error}"
        ) from error
    finally:
        with suppress(OSError):
            aside.unlink()


# telling


def _legend(concepts: int) -> str:
    times = f", times {concepts} concepts" if concepts > 1 else ""
    return (
        "F1 interval: 95 % bootstrap, of the latent as chosen. p: share of shuffles of the labels after which the best "
        f"of all\nlatents of the concept is as good{times}. q: false discovery rate. AUROC: how often a positive's "
        "patch sum is\nabove a negative's. All of it: docs/statistics.md\n"
    )


def table(concept: str, found: dict[str, Any], *, alpha: float, family: str) -> str:
    """A concept's best latents as text."""
    random, null = found["random"], found["null_max_f1"]
    swept = "threshold" in found["top"][0]
    lines = [
        f"{concept}: {found['positives']} positive, {found['negatives']} negative; {found['latents']} latents, "
        f"of which {found['dead_latents']} never fire here and {found['always_on_latents']} always (not tested)",
        f"  F1 by chance: floor {found['floor_f1']:.3f} (fires on every image); {random['draws']} random latents "
        f"{random['mean']:.3f} in the mean, {random['p95']:.3f} at the 95th percentile;",
        f"  best of all latents after {null['permutations']} shuffles of the labels {null['mean']:.3f} in the mean, "
        f"{null['p95']:.3f} at the 95th percentile",
        f"{'latent':>9} {'F1':>6} {'F1 interval':>14} {'p':>7} {'q':>8} {'AUROC':>6} {'precision':>9} {'recall':>6} "
        f"{'tp':>4} {'fp':>4} {'fn':>4} {'tn':>4}" + (f" {'threshold':>9}" if swept else ""),
        *(_row(row) for row in found["top"]),
        f"  {_verdict(found, alpha, family)}",
        *(f"  {line}" for line in _others(found)),
        f"  {'' if found['source']['permuted_within_source'] else 'CONFOUNDED: '}{found['source']['words']}",
    ]
    return "\n".join(lines) + "\n"


def _row(row: dict[str, Any]) -> str:
    interval = "-" if row["f1_low"] != row["f1_low"] else f"{row['f1_low']:.3f}-{row['f1_high']:.3f}"
    auroc = f"{row['auroc']:.3f}" if "auroc" in row else "-"
    exact = "-" if row["precision"] != row["precision"] else f"{row['precision']:.3f}"
    return (
        f"{row['latent']:>9} {row['f1']:>6.3f} {interval:>14} {row['p_max']:>6.4f}{'*' if row['significant'] else ' '} "
        f"{row['q_value']:>8.2g} {auroc:>6} {exact:>9} {row['recall']:>6.3f} "
        f"{row['tp']:>4} {row['fp']:>4} {row['fn']:>4} {row['tn']:>4}"
        + (f" {row['threshold']:>9.3g}" if "threshold" in row else "")
    )


def _verdict(found: dict[str, Any], alpha: float, family: str) -> str:
    number = found["significant_latents"]
    count = "no latent is" if number == 0 else "1 latent is" if number == 1 else f"{number} latents are"
    over = "" if family == "concept" else ", corrected for all concepts"
    source = found["source"]  # V of separate sources may be a last bit below 1
    where = (
        "; labels were shuffled within sources" if source["permuted_within_source"] and source["cramers_v"] > 0 else ""
    )
    least = found.get("smallest_p", 0)
    why = f": the labels can be dealt out in so few ways that p is at least {least:.2g}, so nothing can be"
    return f"{count} significant{why if number == 0 and least > alpha else ''} (*: p at most {alpha:g}{over}{where})"


def _others(found: dict[str, Any]) -> list[str]:
    held = found["held_out_f1"]
    lines = []
    if held["mean"] == held["mean"]:
        lines.append(
            f"chosen on one half of the images, the best latent has F1 {held['mean']:.3f} on the other half (5 to 95 % "
            f"of splits: {held['p5']:.3f} to {held['p95']:.3f})"
        )
    if "channels" in found:
        one = found["channels"]
        lines.append(f"the best channel of the backbone has F1 {one['f1']:.3f}; the best AUROC is {one['auroc']:.3f}")
    if "random_sae" in found:
        one = found["random_sae"]
        lines.append(
            f"the best random direction that fires as often has F1 {one['f1']:.3f}; their 95th percentile is "
            f"{one['p95']:.3f}"
        )
    return lines
