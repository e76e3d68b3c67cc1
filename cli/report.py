"""semprobe report: a study as pages to hand over."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from semprobe.cli import _common, _studies

if TYPE_CHECKING:
    import xarray as xr

    from semprobe.cli._looks import Looks
    from semprobe.report import ConceptPart, LatentPart, Report
    from semprobe.report_pictures import Gallery, Look
    from semprobe.reviews import Answer
    from semprobe.study import Study

FILES = ("report.html", "report.md", "latents.csv", "images.csv", "pictures")
"""What is in a report's folder."""


@click.command(
    epilog="""\b
Examples:
  semprobe report my-study/
  semprobe report my-study/ -o report/ --top 10 --overwrite
  semprobe report my-study/ --sae /new/place/sae.pt -o report/ --json | jq .standings
"""
)
@click.argument("study")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to make.  [default: a study's own]")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Best latents to tell of a concept.")
@click.option("--sae", "sae_path", metavar="FILE", help="SAE checkpoint, where it is not in its old place.")
@_common.sae_options
@_common.normalize
@click.option("--overwrite", is_flag=True, help="Replace a report that is there, once the new one is complete.")
@_common.workers
@_common.as_json
@_common.quiet
def command(study: str, as_json: bool, **options: Any) -> None:
    """Make the report of a STUDY: one page of HTML that needs nothing else, the same in Markdown, and tables.

    It says how the images were chosen and how the numbers were made; for each concept what chance reaches and the best
    latents; of validated ones where they fire, the reviewers' words and the evidence picked. Latents without a verdict
    are listed as such.

    Pictures are painted with the SAE's codes. Where the SAE or the activations are gone they are plain, and the report
    says so. --normalize is needed where scores came of activations that a file normalised.
    """
    result = run(study, **options)
    if as_json:
        _common.print_json(result)
        return
    for sentence in result["summary"]:
        click.echo(sentence)
    click.echo(f"{result['report']}: report.html, report.md, latents.csv, images.csv, {result['pictures']} pictures; "
               f"{_common.human_bytes(result['bytes'])}")  # fmt: skip


def run(
    study: str, *, output: Path | None = None, top: int = 5, overwrite: bool = False, sae_path: str | None = None,
    workers: int | None = None, quiet: bool = False, normalize: str = "none", **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """The command without click; returns what it made."""
    from semprobe import report_pages as pages
    from semprobe.cli._looks import Looks, tested_scores
    from semprobe.study import Study

    clock, here = _common.Clock(), Study(study)
    out = output or here.report
    _check_output(here, out, overwrite)
    _studies.in_study(study, "", makes="report", reads="scores")
    scores = tested_scores(here)
    looks = Looks(here, scores, sae_path, normalize, options, workers, quiet)
    told = _report(study, here, scores, looks, top)
    for one in told.notices:
        _common.say(f"NOTE: {one}")
    html = pages.as_html(told).encode()
    pictures = pages.files(told)
    made = {
        "report.html": html, "report.md": pages.as_markdown(told).encode(), **_tables(here, told),
        **{f"pictures/{name}": data for name, data in pictures.items()},
    }  # fmt: skip
    _write(here, out, made, overwrite)
    standings = {one.name: {str(latent.latent): latent.standing for latent in one.latents} for one in told.concepts}
    return {"report": str(out), "summary": list(told.summary), "notices": list(told.notices), "standings": standings,
            "pictures": len(pictures), "bytes": len(html), "seconds": clock.seconds}  # fmt: skip


# what it is made of


def _report(given: str, study: Study, scores: xr.Dataset, looks: Looks, top: int) -> Report:
    from semprobe import report
    from semprobe import study as studies

    about, answers = study.about(), _answers(study)
    came = scores.attrs["provenance"]
    scored, known = [str(name) for name in scores["concept"].values], set(scores["latent"].values.tolist())
    order = study.concepts
    names = sorted(scored, key=lambda name: order.index(name) if name in order else len(order))
    parts = [_concept(scores, name, report.wanted(answers["open"], name, known), top) for name in names]
    concepts, plain = _drawn(parts, scores, looks)
    old = report.older((*answers["open"], *answers["blinded"]), came["created"])
    unverified = sum(open_ for open_, _ in studies.unverified(study).values())
    return report.Report(
        study=os.path.basename(os.path.abspath(study.folder)), made=studies.now(), concepts=concepts,
        design=report.design(about, study.rows(), study.used()), samplings=tuple(about["samplings"]),
        processing=report.processing(came),
        tests={"alpha": 0.05, "family": "concept", **came.get("tests", {}), "top": top},
        commands=report.commands(given, about, looks.provenance),
        unscored=tuple(one for one in study.concepts if one not in names),
        agreement=answers["agreement"], blinded=answers["blinded"], blinded_agreement=answers["blinded_agreement"],
        elsewhere=tuple(one for one in answers["open"] if one.concept not in names or one.latent not in known),
        notices=tuple(one for one in (*looks.notices, *plain, old) if one),
        summary=report.summarise(concepts, unverified),
    )  # fmt: skip


def _answers(study: Study) -> dict[str, tuple[Any, ...]]:
    """Open and blinded answers, and how far reviewers agree; the file is not made if it is not there."""
    from semprobe.report import filled
    from semprobe.reviews import Reviews

    if not study.reviews.exists():
        return dict.fromkeys(("open", "blinded", "agreement", "blinded_agreement"), ())
    with Reviews(study.reviews) as reviews:
        all_ = filled(reviews.answers())
        return {
            "open": tuple(one for one in all_ if not one.blinded), "blinded": tuple(one for one in all_ if one.blinded),
            "agreement": tuple(reviews.kappa()), "blinded_agreement": tuple(reviews.kappa(blinded=True)),
        }  # fmt: skip


def _concept(scores: xr.Dataset, name: str, answers: dict[int, tuple[Answer, ...]], top: int) -> ConceptPart:
    """Its best latents and those reviewed, in order, without pictures."""
    from semprobe.assessment import describe, numbers
    from semprobe.plots import as_svg, plot_null
    from semprobe.report import ConceptPart, LatentPart
    from semprobe.scoring import rank

    shown = {*scores["latent"].values[rank(scores, name, top)].tolist(), *answers}
    parts = tuple(
        LatentPart(latent := row.pop("latent"), row.pop("rank"), row, answers.get(latent, ()))
        for row in numbers(scores, name, shown)
    )
    svg = as_svg(plot_null(scores, concepts=[name], top=top))
    return ConceptPart(name, describe(scores, name, 1), parts, svg)


def _drawn(concepts: list[ConceptPart], scores: xr.Dataset, looks: Looks) -> tuple[tuple[ConceptPart, ...], list[str]]:
    """The concepts with pictures of validated and disputed latents, or of the best one; and what looks had to say."""
    from dataclasses import replace

    wanted = {(one.name, part.latent): part for one in concepts for part in one.shown or one.latents[:1]}
    drawn, notices = {}, []
    for look in looks.of(list(wanted)):
        key = look.concept, look.latent
        galleries = _galleries(look, wanted[key], scores)
        drawn[key] = replace(wanted[key], galleries=galleries, largest_code=look.maximum)
        notices.append(look.notice)
    with_pictures = tuple(
        replace(one, latents=tuple(drawn.get((one.name, part.latent), part) for part in one.latents))
        for one in concepts
    )
    return with_pictures, notices


def _galleries(look: Look, part: LatentPart, scores: xr.Dataset) -> tuple[Gallery, ...]:
    from semprobe.report_pictures import galleries, picked

    found = list(galleries(look, scores))
    if part.standing not in ("validated", "disputed"):
        return tuple(one for one in found if one.kind in ("tp", "fp"))
    for at, answer in enumerate(part.answers):
        for kind, names in (("for", answer.pictures_for), ("against", answer.pictures_against)):
            if names:
                title = f"Picked by {answer.reviewer} as evidence {kind}"
                found.append(picked(look, names, f"{kind}-{at}", title))
    return tuple(found)


def _tables(study: Study, told: Report) -> dict[str, bytes]:
    from semprobe import manifest
    from semprobe.report import LATENT_COLUMNS, latent_rows

    columns = manifest.read(study.manifest)[0]
    return {
        "latents.csv": manifest.to_csv(LATENT_COLUMNS, latent_rows(told.concepts)).encode(),
        "images.csv": manifest.to_csv(columns, study.used()).encode(),
    }


# the folder


def _check_output(study: Study, out: Path, overwrite: bool) -> None:
    """Refuse what can't be a report's folder, and whatever else is there. Call it before long work, and once more."""
    from semprobe.errors import StoreError, StoreExists

    if not out.absolute().parent.is_dir():
        raise StoreError(f"{out}: there is no folder {out.absolute().parent}; make it first")
    if os.path.realpath(out).startswith(os.path.join(os.path.realpath(study.images), "")):
        raise click.UsageError(f"{out}: images/ is for the study's pictures; choose another folder")
    if not os.path.lexists(out):
        return
    if out.is_symlink() or not out.is_dir():
        raise StoreExists(f"{out}: is no folder; choose another one")
    if foreign := _foreign(out):
        raise StoreExists(f"{out}: has something else than a report in it, such as {foreign}; choose another folder")
    if not any(out.iterdir()):
        return
    if not (out / "report.html").exists():
        raise StoreExists(f"{out}: is not empty and has no report.html, so it is no report; choose another folder")
    if not overwrite:
        raise StoreExists(f"{out}: there is a report already; --overwrite replaces it")


def _foreign(out: Path) -> str | None:
    """Something in a folder that no report makes, the first by name."""
    from semprobe.report_pages import PICTURE_NAME

    pictures = out / "pictures"
    found = [
        one.name for one in out.iterdir()
        if one.name not in FILES or one.is_symlink() or one.is_dir() != (one == pictures)
    ]  # fmt: skip
    if not found and pictures.exists():
        found = [
            f"pictures/{one.name}" for one in pictures.iterdir()
            if not PICTURE_NAME.fullmatch(one.name) or one.is_symlink() or one.is_dir()
        ]  # fmt: skip
    return min(found, default=None)


def _write(study: Study, out: Path, made: dict[str, bytes], overwrite: bool) -> None:
    """All files or none: they are written aside, and what was there goes when they are complete."""
    start = f".{out.absolute().name}-"
    part, old = (out.absolute().with_name(f"{start}{uuid.uuid4().hex}.{word}") for word in ("new", "old"))
    with study.locked():
        _check_output(study, out, overwrite)
        for left in out.absolute().parent.glob(f"{start}{'[0-9a-f]' * 32}.*"):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        try:
            for name, data in made.items():
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                (part / name).write_bytes(data)
            _replace(part, out, old)
        finally:
            for left in (part, old):
                shutil.rmtree(left, ignore_errors=True)


def _replace(part: Path, out: Path, old: Path) -> None:
    if not out.exists():
        part.rename(out)
        return
    out.rename(old)
    try:
        part.rename(out)
    except BaseException:
        old.rename(out)
        raise
