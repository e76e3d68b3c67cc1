"""Write the generated parts of the docs: the CLI reference, and the tables of other pages.

python tools/make_docs.py
"""

from __future__ import annotations

from pathlib import Path

import click

from semprobe.cli import COMMANDS, main
from semprobe.hub import PUBLISHED
from semprobe.manifest import COLUMNS
from semprobe.reviews import FIELDS
from semprobe.stores import REQUIRED
from semprobe.vocabulary import DIMS, VARIABLES

DOCS = Path(__file__).parent.parent / "docs"


def cli_page() -> str:
    """Every command's help, word for word."""
    parts = ["# Command line\n\nGenerated from the commands' own help by `python tools/make_docs.py`.\n"]
    context = click.Context(main, info_name="semprobe", terminal_width=100, **main.context_settings)
    parts.append(f"```\n{main.get_help(context)}\n```\n")
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context)
        parts.append(f"## semprobe {name}\n\n```\n{command.get_help(inner)}\n```\n")
    return "\n".join(parts)


def tables() -> str:
    """Dims and variables, with the kinds of store that must have them."""
    lines = ["| dim | meaning |", "|---|---|", *(f"| {name} | {text} |" for name, text in DIMS.items()), ""]
    lines += ["| variable | dims | dtype | units | required in | meaning |", "|---|---|---|---|---|---|"]
    for name, known in VARIABLES.items():
        kinds = ", ".join(kind for kind, names in REQUIRED.items() if name in names)
        lines.append(f"| {name} | {', '.join(known.dims)} | {known.kind} | {known.units} | {kinds} | {known.text} |")
    return "\n".join(lines)


def published() -> str:
    """SAEs with a short name."""
    lines = [
        "| name | address | backbone | block | tokens | normalisation | uncertain |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [f"| {name} | {' | '.join(map(str, one))} |" for name, one in PUBLISHED.items()]
    return "\n".join(lines)


def fields(what: str, meanings: dict[str, str]) -> str:
    """Columns of a manifest, or fields of an answer."""
    rows = [f"| {what} | meaning |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in meanings.items())]
    return "\n".join(rows)


def _filled(page: Path, *parts: str) -> str:
    """A page with its generated parts, in order, as they should be."""
    done, rest = "", page.read_text()
    for part in parts:
        head, begin, rest = rest.partition("<!-- generated -->\n")
        _, end, rest = rest.partition("<!-- end -->\n")
        assert begin, f"{page} has lost its marks"
        assert end, f"{page} has lost its marks"
        done += f"{head}{begin}{part}\n{end}"
    return done + rest


def pages() -> dict[Path, str]:
    """Every page with a generated part, as it should be."""
    parts = {
        "store-format.md": [tables()], "what-loads.md": [published()],
        "study.md": [fields("column", COLUMNS), fields("field", FIELDS)],
    }  # fmt: skip
    return {DOCS / "cli.md": cli_page(), **{DOCS / name: _filled(DOCS / name, *part) for name, part in parts.items()}}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
