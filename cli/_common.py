"""What commands share: options, forecasts, progress, provenance, output."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, TypeVar

import click

from semprobe.errors import StoreError

if TYPE_CHECKING:
    from semprobe.stores import Place

F = TypeVar("F", bound=Callable[..., Any])

_PACKAGES = ("semprobe", "torch", "timm", "numpy", "xarray", "zarr", "dask", "pillow")


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def output(what: str) -> Callable[[F], F]:
    """Options of every command that makes a store."""
    return _options(
        click.option("-o", "--output", required=True, metavar="PATH", help=f"{what}: a path or an fsspec URL."),
        click.option("--overwrite", is_flag=True, help="Replace a store that is there, once the new one is complete."),
        click.option("--dry-run", is_flag=True, help="Forecast size and time, and stop."),
        workers,
        as_json,
        quiet,
    )


workers = click.option("--workers", type=click.IntRange(1), help="Threads.  [default: one a core]")
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
quiet = click.option("--quiet", is_flag=True, help="No progress on stderr.")


def say(message: str, quiet: bool = False) -> None:
    """A message to the person at the terminal: stderr."""
    if not quiet:
        click.echo(message, err=True)


def print_json(value: Any) -> None:
    """A result for a program: stdout. NaN becomes null, since JSON has none."""
    click.echo(json.dumps(_plain(value), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _plain(value.tolist())
    return None if isinstance(value, float) and value != value else value


def provenance(**settings: Any) -> dict[str, Any]:
    """Settings as stores record them, with versions, command and date."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {**settings, "versions": versions, "command": shlex.join(["semprobe", *sys.argv[1:]]), "created": now}


def without_run(provenance: dict[str, Any]) -> dict[str, Any]:
    """Provenance of an input store, without what only tells when it was made."""
    return {key: value for key, value in provenance.items() if key not in ("command", "created")}


def check_apart(source: str, output: str) -> None:
    """Refuse an output that is its own input, or lies inside of it or around it."""
    from semprobe.stores import Place

    if Place(source).overlaps(Place(output)):
        raise click.UsageError(f"the output {output} is the input {source} or overlaps it; choose another output")


# forecasts


def human_bytes(number: float) -> str:
    """Bytes in decimal units, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def human_seconds(seconds: float) -> str:
    """A duration with as much detail as a person wants."""
    if seconds < 1:
        return "less than a second"
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def forecast(place: Place, size: int, seconds: float, what: str, *, dry_run: bool, as_json: bool, quiet: bool) -> bool:
    """Say what is to come; True if that was all that was asked for.

    Raises
    ------
    StoreError
        The disk has less room than the store needs.
    """
    free = place.free()
    if dry_run and as_json:
        print_json({"output": str(place), "bytes": size, "seconds": round(seconds, 1), "bytes_free": free})
    else:
        say(f"{what}: {human_bytes(size)} in {place}, {human_seconds(seconds)}", quiet and not dry_run)
    if free is not None and size > free and not dry_run:
        raise StoreError(
            f"{place}: the store needs {human_bytes(size)} and the disk has {human_bytes(free)} left: no space; free "
            "some or choose another output"
        )
    return dry_run


# progress


@contextmanager
def progress(total: int, what: str, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar in images on stderr, with rate and ETA."""
    from tqdm import tqdm

    every = 0.1 if sys.stderr.isatty() else 10.0
    width = min(100, shutil.get_terminal_size().columns)
    with tqdm(total=total, desc=what, unit="image", disable=quiet, mininterval=every, ncols=width) as bar:
        yield bar.update


@contextmanager
def dask_threads(images: int, update: Callable[[int], None], workers: int | None) -> Iterator[None]:
    """Run dask on threads, and turn the share of tasks done into images for a bar."""
    import dask
    from dask.callbacks import Callback

    lock = threading.Lock()
    shown = 0

    def done(key: Any, result: Any, graph: Any, state: dict[str, Any], worker: Any) -> None:
        nonlocal shown
        finished = len(state["finished"])
        total = finished + sum(len(state[k]) for k in ("ready", "waiting", "running"))
        with lock:
            now = images * finished // max(1, total)
            update(max(0, now - shown))
            shown = max(shown, now)

    with dask.config.set(scheduler="threads", num_workers=workers), Callback(posttask=done):
        yield
    update(images - shown)


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Elapsed so far, to the hundredth."""
        return round(time.perf_counter() - self._start, 2)
