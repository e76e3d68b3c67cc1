"""semprobe review: a page on this machine, at which people verify negatives and judge latents."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from semprobe.cli import _common
from semprobe.errors import StoreExists, StudyError

if TYPE_CHECKING:
    import xarray as xr
    from starlette.applications import Starlette

    from semprobe.review_page import Scored
    from semprobe.study import Study

HOST = "127.0.0.1"


@click.command(
    epilog="""\b
Examples:
  semprobe review my-study/
  semprobe review my-study/ --by Ada --port 8765 --no-browser
  semprobe review my-study/ --export answers.json
  semprobe review my-study/ --export - | jq '.answers[] | select(.verdict == "validated")'
"""
)
@click.argument("study")
@click.option("--export", metavar="FILE", help="Write all answers with their history as JSON, - for stdout, and stop.")
@click.option("--overwrite", is_flag=True, help="Replace an exported file that is there.")
@click.option("--by", metavar="NAME", default="", help="Whom the page suggests as the reviewer.")
@click.option("--port", type=click.IntRange(1, 65535), help="Of the page.  [default: that of last time, or a free one]")
@click.option("--no-browser", is_flag=True, help="Print the address, open nothing.")
@click.option("--sae", "sae_path", metavar="FILE", help="SAE checkpoint, where it is not in its old place.")
@_common.sae_options
@_common.normalize
@_common.workers
@_common.as_json
@_common.quiet
def command(study: str, export: str | None, overwrite: bool, **options: Any) -> None:
    """Open a page at which people verify a STUDY's negatives and judge its latents.

    Two desks. Negatives: one picture at a time, to be accepted or rejected by key; a rejected one is replaced by the
    next of the random order. Latents: for each concept the best ones, or any by its number, with their pictures, where
    they fire, what chance reaches, and a form for verdict and evidence; and the best ones among random ones, blinded.

    The page is for this machine only (127.0.0.1) and needs the address that is printed, with its random token. Answers
    are saved as they are typed, every change as a row of review.sqlite. Several people may work on one study. The
    address stays the same when the page is opened again, so that a window that was left open goes on.
    """
    from semprobe.study import Study

    opened = Study(study)
    if export is None:
        _serve(study, opened, **options)
    else:
        _export(opened, export, overwrite)


# answers as JSON


def _export(study: Study, to: str, overwrite: bool) -> None:
    from semprobe.reviews import Reviews
    from semprobe.study import write_atomically

    if not study.reviews.exists():
        raise StudyError(
            f"{study.folder}: nobody has answered anything yet; semprobe review {study.folder} opens the page"
        )
    with Reviews(study.reviews) as reviews:
        text = json.dumps(reviews.export(), indent=2) + "\n"
    if to == "-":
        click.echo(text, nl=False)
        return
    path = Path(to)
    if study.owns(path):
        raise StudyError(f"{to}: belongs to the study itself, which would be damaged; choose another file")
    if os.path.lexists(path) and not overwrite:
        raise StoreExists(f"{to}: is here already; choose another file, or replace it with --overwrite")
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise StudyError(f"{to}: can't be a file here; choose another one, in a folder that is there")
    write_atomically(path, text.encode())
    click.echo(to)


# the page


def _serve(
    given: str, study: Study, *, by: str, port: int | None, no_browser: bool, as_json: bool, quiet: bool, **options: Any
) -> None:  # fmt: skip
    from semprobe.review_page import Page
    from semprobe.review_server import make_app
    from semprobe.reviews import Reviews

    place = _Place(study)
    with place.claimed(), Reviews(study.reviews) as reviews, place.listen(port) as listening:
        page = Page(study, reviews, _scores(study, **options), by)
        place.remember()
        if as_json:
            _common.print_json({"study": given, "url": place.url, "answers": str(study.reviews)})
        else:
            click.echo(place.url)
        _common.say("Open it in a browser on this machine. Answers are saved as they are typed; Ctrl-C ends it.", quiet)
        if not no_browser and not as_json and _has_screen():
            click.launch(place.url)
        _run(make_app(page, token=place.token, hosts=(f"{HOST}:{place.port}", f"localhost:{place.port}")), listening)


def _run(app: Starlette, listening: socket.socket) -> None:
    """Serve until the process is told to stop."""
    import uvicorn

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the answers' file is closed

    config = uvicorn.Config(
        app, http="h11", ws="none", lifespan="off", log_level="warning", access_log=False, server_header=False,
        proxy_headers=False, timeout_graceful_shutdown=2,
    )  # fmt: skip
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        _common.say("ended")


def _has_screen() -> bool:
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


class _Place:
    """Port and token of a study's page, which this user's settings remember and the study does not: it is shared."""

    def __init__(self, study: Study) -> None:
        name = hashlib.sha256(os.path.realpath(study.folder).encode("utf-8", "surrogateescape")).hexdigest()[:32]
        self._study = study.folder
        self._file = Path(click.get_app_dir("semprobe")) / "review" / f"{name}.json"
        self.token, self.port = secrets.token_urlsafe(24), 0
        try:
            found = json.loads(self._file.read_text())
            self.token, self.port = str(found["token"]), int(found["port"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # never opened before

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.port}/{self.token}/"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other processes of this user from opening the same page.

        Raises
        ------
        StudyError
            One has it open; says where.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self._file.with_suffix(".lock"), timeout=0)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock.acquire()
        except Timeout as error:
            raise StudyError(f"{self._study}: is open already at {self.url}") from error
        except OSError:  # settings can't be written: nothing is remembered then either
            pass
        try:
            yield
        finally:
            lock.release()

    def listen(self, port: int | None) -> socket.socket:
        """A socket at the port wanted, at that of last time, or at a free one.

        Raises
        ------
        StudyError
            The port wanted is in use.
        """
        for one in [port] if port else [self.port, 0]:
            listening = socket.socket()
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listening.bind((HOST, one))
                listening.listen()
            except OSError as error:
                listening.close()
                reason = error
                continue
            self.port = listening.getsockname()[1]
            return listening
        raise StudyError(f"port {port} can't be used ({reason.strerror}); choose another --port, or none") from reason

    def remember(self) -> None:
        """Keep it for the next time, readable for this user only; where that can't be, the address is another then."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(file, "w") as out:
                json.dump({"token": self.token, "port": self.port}, out)
        except OSError:
            _common.say("the address can't be remembered; it will be another one the next time")


def _scores(
    study: Study, *, sae_path: str | None, normalize: str, workers: int | None, **options: Any
) -> Callable[[], Scored]:  # fmt: skip
    """Opens the study's scores, again when they were made anew."""
    from semprobe.cli._looks import Looks, tested_scores
    from semprobe.review_page import Scored

    there: dict[tuple[int, int] | None, Scored] = {}

    def opened() -> Scored:
        try:
            found = os.stat(study.scores / "zarr.json")
            stamp = found.st_mtime_ns, found.st_ino
        except OSError:
            stamp = None
        if stamp not in there:
            scores = tested_scores(study)
            looks = Looks(study, scores, sae_path, normalize, dict(options), workers, quiet=True)
            there.clear()
            there[stamp] = Scored(
                scores, lambda concept, latent: next(looks.of([(concept, latent)])), looks.notices,
                lambda: _stale(study, scores),
            )  # fmt: skip
        return there[stamp]

    return opened


def _stale(study: Study, scores: xr.Dataset) -> str:
    from semprobe.cli import _studies

    told = _studies.stale(study, scores, "scores")
    return told and f"The store of scores {told}"
