"""What commands share: options, forecasts, progress, provenance, output."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, TypeVar

import click

from semprobe.errors import StoreError
from semprobe.jsonable import jsonable

if TYPE_CHECKING:
    import xarray as xr

    from semprobe.sae import SAE
    from semprobe.stores import Place, Writer

F = TypeVar("F", bound=Callable[..., Any])

_PACKAGES = ("semprobe", "torch", "timm", "numpy", "xarray", "zarr", "dask", "pillow")


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def output(what: str, *, study: bool = False) -> Callable[[F], F]:
    """Options of every command that makes a store; with `study` the output may be left to `in_study`."""
    default = "  [default: a study's own]" if study else ""
    return _options(
        click.option(
            "-o", "--output", required=not study, metavar="PATH", help=f"{what}: a path or an fsspec URL.{default}"
        ),
        click.option("--overwrite", is_flag=True, help="Replace a store that is there, once the new one is complete."),
        click.option("--dry-run", is_flag=True, help="Forecast size and time, and stop."),
        workers,
        as_json,
        quiet,
    )


sae_options = _options(
    click.option("--sae-kind", help="Class of an SAE whose file does not say it: relu, topk or batchtopk."),
    click.option("--sae-k", type=click.IntRange(1), help="Codes kept a patch, where the file does not say it."),
    click.option("--sae-threshold", type=float, help="Threshold of the codes, where the file does not say it."),
)


def normalize(command: F) -> F:
    """Option of every command that shows activations to an SAE."""
    return click.option(
        "--normalize",
        default="none",
        show_default=True,
        metavar="none|probe|FILE",
        help="Shift and scale activations first: by their own statistics, or those of an .npz with mean and scale.",
    )(command)


force = click.option("--force", is_flag=True, help="Use an SAE that declares another backbone or block; recorded.")

shards = _options(
    click.option("--layer", type=int, help="Of saev shards: the layer, as their metadata.json writes it."),
    click.option(
        "--images",
        type=click.Path(exists=True),
        help="Of saev shards: the folder that they were made from, in ImageFolder's order, or a CSV in theirs.",
    ),
)
"""Options of every command that reads a store of activations, for saev shards in its place."""

cls = click.option("--cls", is_flag=True, help="Keep the class token too.")
dtype = click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="On disk; float16 is half the size and flips about 5 predictions in 100,000.",
)

workers = click.option("--workers", type=click.IntRange(1), help="Threads.  [default: one a core]")
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
by = click.option("--by", metavar="NAME", default="", help="Who adds them.  [default: the name of the system's user]")
quiet = click.option("--quiet", is_flag=True, help="No progress on stderr.")


def say(message: str, quiet: bool = False) -> None:
    """A message to the person at the terminal: stderr."""
    if not quiet:
        click.echo(message, err=True)


def user(by: str) -> str:
    """Who does this: the name given, else the system's user."""
    import getpass

    try:
        return by or getpass.getuser()
    except (OSError, KeyError):  # a container may run as a user without a name
        return ""


def print_json(value: Any) -> None:
    """A result for a program: stdout. NaN and infinity become null, since JSON has none."""
    click.echo(json.dumps(jsonable(value), indent=2, allow_nan=False))


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


# activations and the SAE that reads them


def open_input(store: str, options: dict[str, Any]) -> xr.Dataset:
    """A store, or saev shards by the options of `shards`, which are taken out of `options`."""
    from semprobe.images import find_images
    from semprobe.stores import is_shards, open_store

    layer, images = options.pop("layer", None), options.pop("images", None)
    if is_shards(store):
        return open_store(store, layer=layer, images=None if images is None else find_images(images, order="saev"))
    found = open_store(store)
    if layer is not None or images is not None:
        raise click.UsageError(
            f"{store} is a semprobe store, which says itself which layer and images it holds; --layer and --images are "
            "for saev shards"
        )
    return found


def open_activations(store: str, options: dict[str, Any]) -> xr.Dataset:
    """A store of activations, or saev shards; see `open_input`.

    Raises
    ------
    StoreError
        It is one of something else.
    """
    data = open_input(store, options)
    if "activations" not in data:
        kind = data.attrs["semprobe_format"]["kind"]
        raise StoreError(f"{store}: this is a store of {kind}, expected one of activations, as semprobe extract makes")
    return data


def load_sae(path: str, options: dict[str, Any], *, decoder: bool = False) -> SAE:
    """An SAE, by the options of `sae_options`, which are taken out of `options`."""
    from semprobe.checkpoints import load_sae

    said = {name: options.pop(f"sae_{name}", None) for name in ("kind", "k", "threshold")}
    return load_sae(path, decoder=decoder, **said)


def check_declared(store: str, data: xr.Dataset, sae: SAE, force: bool) -> dict[str, Any]:
    """Stop where the SAE declares another backbone or block; with `force` what is to be recorded of it.

    Raises
    ------
    SAEError
        Names both sides.
    """
    from semprobe.errors import SAEError
    from semprobe.identity import mismatches

    came = data.attrs.get("provenance", {})
    differs = mismatches(came.get("backbone", {}), sae.declared)
    if differs and not force:
        raise SAEError(f"{store} and {sae.path} do not belong together: {'; '.join(differs)}. --force goes on")
    for one in differs:
        say(f"FORCED: {one}")
    return {"forced": differs} if differs else {}


class Normalisation:
    """What --normalize asks for: read at once if it is a file, computed when it is needed."""

    def __init__(self, how: str) -> None:
        self.how = how
        self._by: xr.Dataset | None = None
        if how not in ("none", "probe"):
            from semprobe.normalisation import read_statistics  # with torch, which patch sums do without

            self._by = read_statistics(how)

    def check(self, data: xr.Dataset) -> None:
        """Make sure, before anything long, that statistics of a file are of these features."""
        if self._by is not None:
            from semprobe.normalisation import normalize

            normalize(data["activations"], self._by)

    def apply(self, data: xr.Dataset, workers: int | None, quiet: bool) -> tuple[xr.Dataset, Any]:
        """The activations normalised, lazily, and what stores record of it."""
        if self.how == "none":
            return data, "none"
        from semprobe import normalisation

        by = self._by
        if by is None:
            number = data.sizes["image"]
            with computing(2 * number, "statistics", workers, quiet):
                by = normalisation.statistics(data["activations"]).compute()
            normalisation.checked(by, "the activations")
        shifted = normalisation.normalize(data["activations"], by)
        return data.assign(activations=shifted), normalisation.describe(by, "probe" if self._by is None else "file")


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


def forecast(
    place: Place, size: int, seconds: float, what: str, *, dry_run: bool, as_json: bool, quiet: bool, aside: int = 0
) -> bool:
    """Say what is to come; True if that was all that was asked for. `aside` is what is on disk only meanwhile.

    Raises
    ------
    StoreError
        The disk has less room than the store needs.
    """
    free = place.free()
    if dry_run and as_json:
        found = {"bytes": size, "bytes_aside": aside, "seconds": round(seconds, 1), "bytes_free": free}
        print_json({"output": str(place), **found})
    else:
        meanwhile = f" ({human_bytes(aside)} more meanwhile)" if aside else ""
        say(f"{what}: {human_bytes(size)} in {place}{meanwhile}, {human_seconds(seconds)}", quiet and not dry_run)
    if dry_run:
        return True
    more = f" and {human_bytes(aside)} meanwhile" if aside else ""
    if free is not None and size + aside > free:
        raise StoreError(
            f"{place}: the store needs {human_bytes(size)}{more}, and the disk has {human_bytes(free)} left: no space; "
            "free some or choose another output"
        )
    if free is None and aside > (room := shutil.disk_usage(place.folder()).free):
        raise StoreError(
            f"{place.folder()}: {human_bytes(aside)} are needed here meanwhile, and the disk has {human_bytes(room)} "
            "left: no space; free some or set TMPDIR"
        )
    return False


# progress


@contextmanager
def progress(total: int, what: str, quiet: bool, unit: str = "image") -> Iterator[Callable[[int], None]]:
    """A bar on stderr, with rate and ETA."""
    from tqdm import tqdm

    every = 0.1 if sys.stderr.isatty() else 10.0
    width = min(100, shutil.get_terminal_size().columns)
    with tqdm(total=total, desc=what, unit=unit, disable=quiet, mininterval=every, ncols=width) as bar:
        yield bar.update


_COMPUTING = threading.RLock()
"""Dask's settings are the process's: two threads that set them would leave each other a pool that has ended."""


@contextmanager
def dask_threads(total: int, update: Callable[[int], None], workers: int | None) -> Iterator[None]:
    """Run dask on threads, and turn the share of tasks done into a bar's units, such as images."""
    import dask
    from dask.callbacks import Callback

    from semprobe.images import cores

    lock = threading.Lock()
    shown = 0

    def done(key: Any, result: Any, graph: Any, state: dict[str, Any], worker: Any) -> None:
        nonlocal shown
        finished = len(state["finished"])
        tasks = finished + sum(len(state[k]) for k in ("ready", "waiting", "running"))
        with lock:
            now = total * finished // max(1, tasks)
            update(max(0, now - shown))
            shown = max(shown, now)

    with (
        _COMPUTING,
        ThreadPoolExecutor(workers or cores()) as pool,  # dask's own would keep the kernel's buffers for ever
        dask.config.set(scheduler="threads", pool=pool),
        Callback(posttask=done),
    ):
        yield
    update(total - shown)


@contextmanager
def computing(total: int, what: str, workers: int | None, quiet: bool, unit: str = "image") -> Iterator[None]:
    """A bar over one dask computation on threads."""
    with progress(total, what, quiet, unit) as update, dask_threads(total, update, workers):
        yield


def fill(writer: Writer, lazy: xr.Dataset, what: str, *, workers: int | None, quiet: bool) -> None:
    """Compute and write the regions that a store still lacks, and complete it."""
    import dask.array as da
    import numpy as np

    images = lazy.sizes["image"]
    with writer, progress(images, what, quiet) as update:
        todo = writer.missing()
        update(images - sum(stop - start for start, stop in todo))
        for start, stop in todo:
            part = lazy.isel(image=slice(start, stop))
            found = {str(name): np.empty(one.shape, one.dtype) for name, one in part.items()}
            with dask_threads(stop - start, update, workers):  # straight to its place: putting together would double it
                da.store([one.data for one in part.values()], list(found.values()), lock=False)
            writer.write(start, found)
        writer.complete()


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Elapsed so far, to the hundredth."""
        return round(time.perf_counter() - self._start, 2)
