"""semprobe pilot: the whole experiment on drawn scenes, with an embedded backbone and SAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from semprobe.cli import _common


@click.command(
    epilog="""\b
Examples:
  semprobe pilot out/
  semprobe pilot out/ --report
  semprobe pilot out/ --seed 1 --overwrite --json
"""
)
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--each", type=click.IntRange(2), default=20, show_default=True, help="Positives and negatives a concept."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the scenes and of the baseline.")
@click.option(
    "--report", is_flag=True, help="Make a study of it in OUT/study, too, and that one's report in OUT/report."
)
@click.option("--overwrite", is_flag=True, help="Replace what an earlier pilot left in OUT.")
@_common.workers
@_common.as_json
@_common.quiet
def command(
    out: Path, each: int, seed: int, report: bool, overwrite: bool, workers: int | None, as_json: bool, quiet: bool
) -> None:
    """Run the whole experiment in OUT on drawn scenes whose answers are known.

    Draws positives and negatives for wheel, window, fur and others, with masks; extracts, encodes and scores them with
    a small backbone and SAE that come with semprobe; and checks the method against known answers. The spiral is a
    concept that backbone and SAE were never trained on: not finding it is the right answer. The report of --report has
    no verdicts: nobody has looked.
    """
    from semprobe import pilot, stores
    from semprobe.checkpoints import load_sae
    from semprobe.cli import encode, extract, score
    from semprobe.scenes import PARTS

    clock = _common.Clock()
    paths = {name: str(out / f"{name}.zarr") for name in ("activations", "latents", "scores")}
    for path in paths.values():
        stores.check_output(path, overwrite)
    if report:
        _check_study(out, overwrite)
    verified = pilot.check_planted()
    with _common.progress(2 * each * len(PARTS), "drawing", quiet) as update:
        manifest = pilot.draw_set(out, each=each, seed=seed, done=update)
    shared: dict[str, Any] = {"overwrite": overwrite, "workers": workers, "quiet": quiet}
    extract.run(str(manifest), output=paths["activations"], model="pilot", **shared)
    encode.run(paths["activations"], sae_path="pilot", output=paths["latents"], maxima=True, **shared)
    scores, _ = score.run(paths["latents"], output=paths["scores"], seed=seed, **shared)
    assert scores is not None  # no dry run
    data, sae = stores.open_store(paths["activations"]), load_sae("pilot")
    verified.append(_check_ways(data, sae, scores))
    verified.append(pilot.check_random_labels(stores.open_store(paths["latents"]).compute(), each=each, seed=seed))
    findings, heats = pilot.look(out, data, scores, sae)
    pilot.sheet(out, findings, heats).save(out / "best-latents.png")
    made = _report(out, seed, shared) if report else {}
    if as_json:
        found = [pilot.describe(one) for one in findings]
        _common.print_json({
            "verified": verified, "findings": found, "power": _power(each, scores), "stores": paths,
            **made, "seconds": clock.seconds,
        })  # fmt: skip
        return
    click.echo("verified:\n" + "\n".join(f"  {one}" for one in verified))
    click.echo(f"\nbest latent of {scores.sizes['latent']} a concept, {each} positive and {each} negative scenes:")
    click.echo(pilot.table(findings))
    click.echo(_legend(findings))
    click.echo(_power_in_words(each, _power(each, scores)))
    for path in made.values():
        click.echo(f"{path}: made of the pilot")
    click.echo(f"\n{out}: images, masks, manifest.csv, stores, best-latents.png; {clock.seconds:.0f} s")


def _check_study(out: Path, overwrite: bool) -> None:
    """Make room for the study, unless somebody has worked on it."""
    import shutil

    from semprobe.errors import StoreExists
    from semprobe.study import Study, is_study

    path = out / "study"
    if not path.exists():
        return
    if not overwrite or not is_study(path):
        raise StoreExists(f"{path}: is there already; --overwrite replaces a study that a pilot made")
    study = Study(path)
    if study.reviews.exists() or any(row["verdict"] for row in study.rows()):
        raise StoreExists(f"{path}: has verdicts or answers of reviewers, which no pilot replaces; move it elsewhere")
    shutil.rmtree(path)


def _report(out: Path, seed: int, shared: dict[str, Any]) -> dict[str, str]:
    """A study of the pilot set, its stores and its report; returns where the study and the report's page are.

    Scored anew: names of images in a study are the hashes of their bytes.
    """
    from semprobe import pilot
    from semprobe.cli import encode, extract, report, score

    study = pilot.as_study(out, out / "study")
    extract.run(str(study.folder), output=str(study.activations), model="pilot", **shared)
    encode.run(str(study.activations), sae_path="pilot", output=str(study.latents), **shared)
    score.run(str(study.latents), output=str(study.scores), seed=seed, **shared)
    options = {name: shared[name] for name in ("overwrite", "workers", "quiet")}
    report.run(str(study.folder), output=out / "report", **options)
    return {"study": str(study.folder), "report": str(out / "report" / "report.html")}


def _check_ways(data: Any, sae: Any, scores: Any) -> str:
    """That scoring activations directly gives the very scores that came by way of the latents."""
    from semprobe.errors import DataError
    from semprobe.scoring import score

    direct = score(data, sae=sae).compute()
    for name in ("tp", "fp", "fn", "tn"):
        if not (direct[name].values == scores[name].values).all():
            raise DataError(f"{name} differs between scoring activations and scoring latents: the arithmetic is broken")
    return "scores straight from activations and by way of stored latents are identical"


def _power(each: int, scores: Any) -> dict[str, Any]:
    """What is significant and what is found, concept by concept: of latents that fire as often as the store's."""
    from semprobe.power import critical_f1, detection
    from semprobe.scoring import support

    size, found = (each, each, scores.sizes["latent"]), {}
    for concept, shares in zip(scores["concept"].values, support(scores).transpose("concept", "latent"), strict=True):
        given: dict[str, Any] = {"support": shares.values}
        found[str(concept)] = {"critical_f1": critical_f1(*size, **given),
                               "detection": detection(*size, 0.9, 0.05, **given)}  # fmt: skip
    return {"latents": size[2], "concepts": found}


def _power_in_words(each: int, power: dict[str, Any]) -> str:
    critical, chance = ([one[name] for one in power["concepts"].values()] for name in ("critical_f1", "detection"))
    least = "none" if min(critical) > 1 else f"{min(critical):.3f}"
    most = "none" if max(critical) > 1 else f"{max(critical):.3f}"
    return (
        f"power: with {each} + {each} images and {power['latents']} latents that fire as often as these, but "
        f"independently of each other, the\nsmallest significant F1 is {least} to {most} by concept; a latent that "
        "fires on 90 % of positives and 5 % of\nnegatives is found with a chance of "
        f"{min(chance):.0%} to {max(chance):.0%}"
    )


def _legend(findings: list[Any]) -> str:
    missed = [one.concept for one in findings if not one.found]
    lines = [
        "code on it: share of the latent's code on the positives that lies on the concept's own pixels;",
        "its area: these pixels' share of the pictures; on its patches: share of the code on patches that show",
        "the concept at all. p: share of 10,000 shuffles of the labels after which the best of all latents is as",
        "good (*: at most 0.05). found: that, and more than half of the code on its patches. The same images chose",
        "the latent and report its F1.",
    ]
    if missed:
        lines.append(f"not found: {', '.join(missed)} (a spiral was never shown to the embedded backbone or SAE)")
    return "\n".join(lines)
