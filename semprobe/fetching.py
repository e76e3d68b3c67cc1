"""Get the bytes of a file or of an address on the web, within limits."""

from __future__ import annotations

import http.client
import os
import queue
import stat
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from semprobe.errors import StudyError

_AGENT = "semprobe (research on vision transformers; one picture at a time)"

_BINARY = ("application/octet-stream", "binary/octet-stream")


class Limits(NamedTuple):
    """How much is fetched at most for one picture."""

    bytes: int = 50_000_000
    seconds: float = 30.0
    redirects: int = 5


LIMITS = Limits()


def is_address(origin: str) -> bool:
    """Whether this is an address on the web, of any scheme, and not a file."""
    return "://" in origin


def shown(origin: str) -> str:
    """A file or address for messages: on one line, not too long, and without a password."""
    scheme, mark, rest = origin.partition("://")
    place, slash, path = rest.partition("/")
    text = f"{scheme}://…@{place.rpartition('@')[2]}{slash}{path}" if mark and "@" in place else origin
    plain = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text[:300])
    return plain if len(text) <= 300 else f"{plain}…"


def check_address(address: str) -> None:
    """Refuse addresses other than http and https, and those with a password in them, which would be recorded.

    Raises
    ------
    StudyError
        Names the scheme, but not the address.
    """
    parts = urlsplit(address)
    if parts.username or parts.password:
        raise StudyError("has a name or password in it, which would be recorded; leave it out")
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise StudyError(f"scheme {parts.scheme[:20]!r}; only http and https are fetched")


def fetch(origin: str, limits: Limits = LIMITS) -> bytes:
    """Bytes of a file or of an address.

    Parameters
    ----------
    origin
        A file's path, or an address that begins with http:// or https://.
    limits
        Of size and, for addresses, of time and redirects.

    Raises
    ------
    StudyError
        It can't be had, or not within the limits, or an address says that it is no image. Begins with `origin`.
    """
    short = shown(origin)
    try:
        return _in_time(origin, limits) if is_address(origin) else _read(origin, limits)
    except urllib.error.HTTPError as error:
        error.close()
        raise StudyError(f"{short}: the server answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise StudyError(f"{short}: can't be fetched: {_why(error.reason, limits)}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, StudyError):
            raise StudyError(f"{short}: {error}") from error
        what = "fetched" if is_address(origin) else "read"
        raise StudyError(f"{short}: can't be {what}: {_why(error, limits)}") from error


def _why(reason: Any, limits: Limits) -> str:
    if isinstance(reason, TimeoutError):
        return f"took longer than the limit of {limits.seconds:g} s"
    text = reason.strerror if isinstance(reason, OSError) and reason.strerror else reason
    return " ".join(str(text).split()) or type(reason).__name__


def _large(limits: Limits) -> StudyError:
    return StudyError(f"is larger than the limit of {limits.bytes / 1e6:g} MB")


# files


def _read(path: str, limits: Limits) -> bytes:
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        what = "a folder; give the files in it" if stat.S_ISDIR(about.st_mode) else "no ordinary file"
        raise StudyError(f"is {what}")
    if about.st_size > limits.bytes:
        raise _large(limits)
    return Path(path).read_bytes()


# addresses


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Goes along with few redirects, and only to http and https."""

    max_redirections = max_repeats = 1000  # it is this class that counts, with a message of its own

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._limit = limit

    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage
    ) -> Any:
        self._left -= 1
        if self._left < 0:
            fp.close()
            raise StudyError(f"leads on more often than the limit of {self._limit} redirects")
        del headers["uri"]  # urllib would go there where there is no location
        target = urljoin(req.full_url, headers.get("location") or "")
        try:
            check_address(target)
        except StudyError as error:
            fp.close()
            raise StudyError(f"leads on to {shown(target)}: {error}") from error
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener(limits: Limits) -> urllib.request.OpenerDirector:
    """Opens http and https; that of urllib would also open files and FTP."""
    found = urllib.request.OpenerDirector()
    for one in (
        urllib.request.ProxyHandler(), urllib.request.HTTPHandler(), urllib.request.HTTPSHandler(),
        urllib.request.UnknownHandler(), urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(), _Redirects(limits.redirects),
    ):  # fmt: skip
        found.add_handler(one)
    return found


def _in_time(address: str, limits: Limits) -> bytes:
    """Download, and wait no longer than the limit: a socket's own timeout begins anew with every byte of a header."""
    results: queue.SimpleQueue[bytes | BaseException] = queue.SimpleQueue()

    def work() -> None:
        try:
            results.put(_download(address, limits))
        except BaseException as error:
            results.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        found = results.get(timeout=limits.seconds)
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(found, BaseException):
        raise found
    return found


def _download(address: str, limits: Limits) -> bytes:
    check_address(address)
    until = time.monotonic() + limits.seconds
    escaped = quote(address, safe="%/:=&?~#+!$,;'@()*[]")  # as browsers do; what is escaped already stays
    request = urllib.request.Request(escaped, headers={"User-Agent": _AGENT, "Accept": "image/*"})
    with _opener(limits).open(request, timeout=limits.seconds) as answer:
        kind = (answer.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
        if kind and kind not in _BINARY and not kind.startswith("image/"):
            raise StudyError(f"the server says that it is {kind[:100]!r}, expected an image")
        said = answer.headers.get("Content-Length") or ""
        if said.isdecimal() and int(said) > limits.bytes:
            raise _large(limits)
        data = _stream(answer, limits, until)
    if said.isdecimal() and len(data) < int(said):
        raise StudyError(f"broke off after {len(data):,} of {int(said):,} bytes; try again")
    return data


def _stream(answer: http.client.HTTPResponse, limits: Limits, until: float) -> bytes:
    parts, size = [], 0
    while part := answer.read1(1 << 16):  # what has come so far: read() would wait for more from a slow server
        size += len(part)
        parts.append(part)
        if size > limits.bytes:
            raise _large(limits)
        if time.monotonic() > until:
            raise TimeoutError
    return b"".join(parts)
