"""semprobe negatives: draw negatives at random from a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from semprobe.cli import _common

if TYPE_CHECKING:
    from semprobe.sampling import Drawn


@click.command(
    epilog="""\b
Examples:
  semprobe negatives my-study/ wheel --from photos/ --number 20 --seed 0 --criteria "no wheel visible, not even partly"
  semprobe negatives my-study/ fur --from imagenet.csv --criteria "no fur" --source imagenet
  semprobe negatives my-study/ wheel
"""
)
@click.argument("study")
@click.argument("concept")
@click.option(
    "--from",
    "pool",
    metavar="POOL",
    help="A folder, a CSV with a column path, a store of activations, or a study.  [default: replace rejected ones]",
)
@click.option("--number", type=click.IntRange(1), help="Of negatives that are not rejected.  [default: 20]")
@click.option("--seed", type=click.IntRange(0), help="Of the random order.  [default: 0]")
@click.option("--criteria", help="What a negative is judged by; needed the first time.")
@click.option("--source", help="Where such pictures come from.  [default: the pool's name]")
@_common.by
@_common.as_json
@_common.quiet
def command(as_json: bool, **options: Any) -> None:
    """Draw negatives of a CONCEPT at random from a pool into a STUDY.

    The order is fixed by the seed and the names in the pool. The concept's positives are passed over. The same command
    again, or one without --from, replaces those that were rejected meanwhile by the next in the order, so that the
    sample is reproducible from seed and verdicts.
    """
    found = run(**options)
    if as_json:
        _common.print_json({"study": options["study"], "concept": options["concept"], **found._asdict()})
        return
    over = f"; {len(found.unreadable)} can't be read and were passed over" if found.unreadable else ""
    lacks = f"; the pool has no more, {found.missing} are missing" if found.missing else ""
    click.echo(f"{options['study']}: {options['concept']}: {len(found.added)} negatives drawn{over}{lacks}")


def run(
    study: str, concept: str, *, pool: str | None = None, number: int | None = None, seed: int | None = None,
    criteria: str | None = None, source: str | None = None, by: str = "", quiet: bool = False,
) -> Drawn:  # fmt: skip
    """The command without click; returns what was drawn."""
    from semprobe.sampling import negatives, resample
    from semprobe.study import Study

    into = Study(study)
    if pool is None and any(one is not None for one in (number, seed, criteria, source)):
        raise click.UsageError("--number, --seed, --criteria and --source are for a draw and need --from")
    wanted = 20 if number is None else number
    if pool is None:
        found = resample(into, concept, by=_common.user(by))
    else:
        with _common.progress(wanted, "drawing", quiet) as update:
            found = negatives(
                into, concept, pool, number=wanted, seed=seed or 0, criteria=criteria or "", source=source,
                by=_common.user(by), done=update,
            )  # fmt: skip
    for message in [*found.notes, *found.unreadable]:
        _common.say(message)
    return found
