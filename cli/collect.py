"""semprobe collect: put pictures with their provenance into a study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from semprobe.cli import Failure, _common
from semprobe.fetching import LIMITS, Limits

if TYPE_CHECKING:
    from semprobe.collecting import Item, Outcome


@click.command(
    epilog="""\b
Examples:
  semprobe collect my-study/ wheel photos/*.jpg --reason "the whole wheel is in sight" --source own
  semprobe collect my-study/ wheel https://example.org/cart.jpg --reason "spokes" --query "cart wheel" --licence CC0
  semprobe collect my-study/ wheel --from-csv wheels.csv --source web
  semprobe collect my-study/ wheel sledge.jpg --negative --reason "a cart without wheels" --by Ada
"""
)
@click.argument("study")
@click.argument("concept")
@click.argument("origins", nargs=-1, metavar="[FILES_OR_URLS]...")
@click.option("--reason", default="", help="Why they were chosen; needed, here or in the CSV.")
@click.option("--query", default="", help="What was searched for to find them.")
@click.option("--source", default="", help="Where such pictures come from.  [default: web for addresses, else empty]")
@click.option("--licence", default="", help="Under which they may be shared.")
@click.option("--negative", is_flag=True, help="They do not show the concept.")
@click.option(
    "--from-csv",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A CSV with column url (an address, or a file relative to it), and any of reason, query, source, licence.",
)
@_common.by
@click.option(
    "--max-seconds",
    type=click.FloatRange(0, min_open=True),
    default=LIMITS.seconds,
    show_default=True,
    help="For one download.",
)
@click.option(
    "--max-mb",
    type=click.FloatRange(0, min_open=True),
    default=LIMITS.bytes / 1e6,
    show_default=True,
    help="Of one picture.",
)
@_common.as_json
@_common.quiet
def command(as_json: bool, **options: Any) -> None:
    """Copy or download pictures of a CONCEPT into a STUDY, with all that is known about them.

    Pictures are named by the hash of their bytes. Equal bytes are taken once; pictures that look alike are kept and
    reported. One that can't be had or read is told in a line, the others are collected, and the exit code is 1.
    """
    results, summary = run(**options)
    if as_json:
        _common.print_json({"summary": summary, "pictures": [one._asdict() for one in results]})
    else:
        click.echo(f"{options['study']}: {options['concept']}: {', '.join(f'{n} {s}' for s, n in summary.items())}")
    if summary["failed"]:
        raise Failure(f"{summary['failed']} of {len(results)} pictures could not be collected; the others were")


def run(
    study: str, concept: str, origins: tuple[str, ...] = (), *, reason: str = "", query: str = "", source: str = "",
    licence: str = "", negative: bool = False, from_csv: Path | None = None, by: str = "",
    max_seconds: float = LIMITS.seconds, max_mb: float = LIMITS.bytes / 1e6, quiet: bool = False,
) -> tuple[list[Outcome], dict[str, int]]:  # fmt: skip
    """The command without click; returns what became of each picture, and how many were added, skipped and failed."""
    from semprobe.collecting import Known, collect
    from semprobe.study import Study

    said = {"reason": reason, "query": query, "source": source, "licence": licence}
    items = _items(origins, from_csv, said)
    into = Study(study)
    name = into.check_concept(concept)
    limits = Limits(int(max_mb * 1e6), max_seconds, LIMITS.redirects)
    known = Known(into, name)
    outcomes = collect(
        into, name, items, label="negative" if negative else "positive", by=_common.user(by), limits=limits, known=known
    )
    results = []
    with _common.progress(len(items), "collecting", quiet) as update:
        for one in outcomes:
            results.append(one)
            update(1)
            for message in one.messages:
                _common.say(message if one.state != "failed" else f"not collected: {message}")
    return results, {state: sum(one.state == state for one in results) for state in ("added", "skipped", "failed")}


def _items(origins: tuple[str, ...], from_csv: Path | None, said: dict[str, str]) -> list[Item]:
    """What is to be collected; what a CSV leaves empty is as the options say."""
    from semprobe.collecting import Item, items_from_csv
    from semprobe.fetching import is_address

    items = [Item(origin, {}) for origin in origins] + (items_from_csv(from_csv) if from_csv else [])
    if not items:
        raise click.UsageError("nothing to collect: give files or addresses, or --from-csv")
    full = []
    for item in items:
        given = {key: item.given.get(key, "").strip() or value for key, value in said.items()}
        given["source"] = given["source"] or ("web" if is_address(item.origin) else "")
        full.append(Item(item.origin, given))
    if not all(item.given["reason"].strip() for item in full):
        raise click.UsageError("--reason says why these pictures were chosen; it is needed, here or in the CSV")
    return full
