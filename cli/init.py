"""semprobe init: make a study."""

from __future__ import annotations

import click

from semprobe.cli import _common


@click.command(
    epilog="""\b
Examples:
  semprobe init my-study/ --concept wheel --concept "t-shirt"
  semprobe init my-study/ --concept fur
"""
)
@click.argument("study")
@click.option("--concept", "concepts", multiple=True, required=True, help="Name of a concept; give several.")
@_common.as_json
def command(study: str, concepts: tuple[str, ...], as_json: bool) -> None:
    """Make a STUDY: one folder for pictures, their provenance, verdicts, stores and report.

    A study that is there gets the concepts that it does not have yet; nothing else in it changes. A name has letters
    and digits of any script, single spaces, and - _ . inside.
    """
    from semprobe.study import create

    made = create(study, concepts)
    if as_json:
        _common.print_json({"study": study, "concepts": made.concepts})
    else:
        click.echo(f"{study}: concepts {', '.join(made.concepts)}")
