"""The command line. Commands are loaded when asked for, and their libraries when they run."""

from __future__ import annotations

import keyword
import os
from importlib import import_module
from typing import Any

import click

from semprobe.errors import SemprobeError

COMMANDS = (
    "pilot", "init", "collect", "negatives", "extract", "import", "encode", "score", "plot", "show", "review", "report",
    "power", "info", "sae",
)  # fmt: skip
"""In the order of the pipeline; each is a module of this package with a `command`, `import_` for import."""


def module_of(name: str) -> str:
    """Name of a command's module: Python's own words can't be one."""
    return f"{name}_" if keyword.iskeyword(name) else name


class Failure(click.ClickException):
    """A run that failed: one line on stderr, exit code 1."""

    exit_code = 1


class _Commands(click.Group):
    """Loads a command's module on demand, and turns the library's errors into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"semprobe.cli.{module_of(name)}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if os.environ.get("SEMPROBE_TRACEBACK"):
                raise
            raise Failure(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, SemprobeError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    told = " ".join(str(error).split())
    if isinstance(error, SemprobeError):
        return told
    return f"{type(error).__name__}: {told} (not foreseen: SEMPROBE_TRACEBACK=1 shows where; please report it)"


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="semprobe")
def main() -> None:
    """Which SAE latent, if any, is wheel? Experiments on vision transformers that can be defended.

    \b
    semprobe pilot out/                                              the whole experiment, embedded
    semprobe extract images/ -o acts.zarr --model clip-vit-b16       patch activations
    semprobe score acts.zarr --sae sae.pt -o scores.zarr             F1 of every latent

    Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage. With
    SEMPROBE_TRACEBACK=1 in the environment an error shows where it came from.
    """
