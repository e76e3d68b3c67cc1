"""semprobe power: how many images it takes to see a latent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from semprobe.cli import _common

if TYPE_CHECKING:
    from semprobe.power import Support

TPRS, FPRS = (0.6, 0.8, 0.9, 1.0), (0.0, 0.05, 0.1)
POWER = 0.8


@click.command(
    epilog="""\b
Examples:
  semprobe power --positives 20 --negatives 20 --latents 24576
  semprobe power --positives 50 --negatives 50 --latents 24576 --tpr 0.7 --fpr 0.1 --alpha 0.01
  semprobe power --support scores.zarr --concept wheel
  semprobe power --support scores.zarr --positives 40 --negatives 40 --json | jq .critical_f1
"""
)
@click.option("--positives", type=click.IntRange(1), help="Images that show the concept.")
@click.option("--negatives", type=click.IntRange(1), help="Images that do not.")
@click.option("--latents", type=click.IntRange(1), help="Latents of the SAE.")
@click.option(
    "--tpr", type=click.FloatRange(0, 1), default=0.9, show_default=True, help="Share of positives it fires on."
)
@click.option(
    "--fpr", type=click.FloatRange(0, 1), default=0.05, show_default=True, help="Share of negatives it fires on."
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="Chance of any false finding among all latents.",
)
@click.option("--support", "store", metavar="STORE", help="Store of scores that tells how often latents fire.")
@click.option("--concept", help="Of that store; needed where it has several.")
@_common.as_json
def command(store: str | None, concept: str | None, as_json: bool, tpr: float, fpr: float, **options: Any) -> None:
    """Say how high an F1 must be to mean something, and how many images it takes.

    The best of thousands of latents has a high F1 by chance alone. The critical F1 is the one that the best of latents
    without any relation to the concept reaches with a chance of at most alpha. Printed beside it are the floor, the
    chance that a latent with rates --tpr and --fpr reaches it, and the images of each class for a chance of 80 %.

    How often such latents fire is assumed, or with --support taken from a concept of a store of scores; then
    --positives, --negatives and --latents are the store's unless given.
    """
    if store is None and concept is not None:
        raise click.UsageError("--concept is of a store and needs --support")
    support, assumption = None, (
        "latents spread evenly over how many images they fire on, from 1 to all but 1, and are independent of each "
        "other; how often yours fire is told by --support SCORES"
    )  # fmt: skip
    if store is not None:
        support, assumption, sizes = _from_store(store, concept)
        options = {name: value or sizes[name] for name, value in options.items()}
    if missing := [f"--{name}" for name, value in options.items() if value is None]:
        raise click.UsageError(f"Missing {', '.join(missing)}; or give a store of scores with --support.")
    found = {**options, "tpr": tpr, "fpr": fpr, **_numbers(support=support, tpr=tpr, fpr=fpr, **options)}
    if as_json:
        _common.print_json({**found, "assumption": assumption})
    else:
        _tell(found, assumption)


def _from_store(store: str, concept: str | None) -> tuple[Support, str, dict[str, int]]:
    """How often a concept's latents fire, where that is from, and the numbers of images and latents."""
    from semprobe import scoring
    from semprobe.errors import DataError, StoreError
    from semprobe.stores import open_store

    data = open_store(store)
    if "tp" not in data:
        kind = data.attrs["semprobe_format"]["kind"]
        raise StoreError(f"{store}: this is a store of {kind}, expected one of scores, as semprobe score makes")
    if "threshold" in data:
        raise DataError(
            f"{store}: these are scores of a threshold sweep, whose thresholds the labels chose, expected some of a "
            "fixed threshold; score without --threshold-sweep"
        )
    names = [str(name) for name in data["concept"].values]
    if concept is None and len(names) > 1:
        raise click.UsageError(f"{store} holds the concepts {', '.join(names)}; choose one with --concept")
    if concept is not None and concept not in names:
        raise DataError(f"{store}: there is no concept {concept}, expected one of {', '.join(names)}")
    counts = data[["tp", "fp", "fn", "tn"]].sel(concept=concept or names[0]).compute()
    shares = scoring.support(counts).values
    first = counts.isel(latent=0)
    sizes = {
        "positives": int(first["tp"] + first["fn"]), "negatives": int(first["fp"] + first["tn"]),
        "latents": shares.size,
    }  # fmt: skip
    return shares, (
        f"latents fire as often as those of {concept or names[0]} in {store}, {(shares == 0).sum()} of which never "
        f"fire there and {(shares == 1).sum()} always (both are left out), and are independent of each other"
    ), sizes  # fmt: skip


def _numbers(
    *, positives: int, negatives: int, latents: int, tpr: float, fpr: float, alpha: float, support: Support
) -> dict[str, Any]:
    from semprobe.power import critical_f1, detection, floor

    def at(tpr: float, fpr: float, support: Support = support) -> dict[str, Any]:
        given: dict[str, Any] = {"alpha": alpha, "support": support}
        return {
            "detection": detection(positives, negatives, latents, tpr, fpr, **given),
            "images_needed": _needed(latents, tpr, fpr, **given),
        }

    def critical(support: Support) -> float | None:
        value = critical_f1(positives, negatives, latents, alpha=alpha, support=support)
        return value if value <= 1 else None  # JSON has no infinity

    return {
        "critical_f1": critical(support), "floor_f1": floor(positives, negatives), **at(tpr, fpr), "power": POWER,
        "worst_case": {"critical_f1": critical("worst"), **at(tpr, fpr, "worst")},
        "table": [{"tpr": one, "fpr": other, **at(one, other)} for one in TPRS for other in FPRS],
    }  # fmt: skip


def _needed(latents: int, tpr: float, fpr: float, **given: Any) -> int | None:
    """Images of each class, or None where the library's limit is not enough."""
    from semprobe.errors import DataError
    from semprobe.power import images_needed

    try:
        return images_needed(latents, tpr, fpr, power=POWER, **given)
    except DataError:  # every other cause has stopped `detection` before
        return None


def _tell(found: dict[str, Any], assumption: str) -> None:
    latents, critical, worst = f"{found['latents']:,}", found["critical_f1"], found["worst_case"]
    rates = f"fires on {_rate(found['tpr'])} of the positives and on {_rate(found['fpr'])} of the negatives"
    reached = (
        f"If no latent had anything to do with the concept, the best of {latents} would still get there in at most "
        f"{_rate(found['alpha'])} of all experiments. A latent at or above it is significant."
        if critical is not None
        else f"With so few images the best of {latents} has an F1 of 1 by chance too often: nothing can be significant."
    )
    for line in (
        f"{found['positives']} positive and {found['negatives']} negative images, {latents} latents, "
        f"alpha {found['alpha']:g}\n",
        f"Critical F1: {_f1(critical)}\n  {reached}",
        f"Floor F1: {_f1(found['floor_f1'])}\n  A latent that fires on every image has it. One below is "
        "worse than not looking, significant or not.",
        f"Chance to detect: {_chance(found['detection'])}\n  That a latent which {rates} is significant.",
        f"Images needed: {_images(found['images_needed'])}\n  Positives, and as many negatives, for a chance to detect "
        f"that latent of {_rate(POWER)} or more.",
        f"Assumed: {assumption}.",
        f"Worst case, all latents firing as often as helps chance most: critical F1 {_f1(worst['critical_f1'])}, "
        f"chance to detect {_chance(worst['detection'])}, images needed {_images(worst['images_needed'])}.\n",
        _table(found["table"]),
    ):
        click.echo(line)


def _f1(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _rate(share: float) -> str:
    return f"{100 * share:g} %"


def _chance(chance: float) -> str:
    """Whole percents that never round to certainty."""
    if 0 < chance < 0.01:
        return "under 1 %"
    return "over 99 %" if 0.99 < chance < 1 else f"{100 * chance:.0f} %"


def _images(number: int | None) -> str:
    from semprobe.power import CAP

    return f"more than {CAP}" if number is None else str(number)


def _table(rows: list[dict[str, Any]]) -> str:
    """Chances and images for a few rates."""
    cells = {(one["tpr"], one["fpr"]): f"{_chance(one['detection'])}; {_images(one['images_needed'])}" for one in rows}
    lines = [
        "Chance to detect, and images of each class needed, by the share of positives and of negatives it fires on:",
        f"{'positives':>9}" + "".join(f"{'negatives ' + _rate(fpr):>26}" for fpr in FPRS),
    ]
    lines += [f"{_rate(tpr):>9}" + "".join(f"{cells[tpr, fpr]:>26}" for fpr in FPRS) for tpr in TPRS]
    return "\n".join(lines)
