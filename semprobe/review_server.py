"""The review page: a small web application on this machine, behind a random token in its address.

Every address begins with the token; requests without it, for another host or from another site are refused before
anything is read. Only pictures of the study are served, decoded and encoded anew, and only answers and verdicts are
written.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from semprobe import desks
from semprobe.errors import SemprobeError, StudyLocked
from semprobe.jsonable import jsonable
from semprobe.manifest import MAX_CELL
from semprobe.review_page import Page
from semprobe.reviews import FIELDS, TEXTS, VERDICTS

MAX_BODY = 8 * MAX_CELL
"""Bytes of a request: a text of the greatest length, escaped."""

_EDGES = (96, 360, 1200)  # pixels of the longer side that a page may ask for
_STATIC = Path(__file__).parent / "templates" / "review"

_SECURITY = {
    "content-security-policy": "default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


# what is refused


class Guard:
    """Lets through what has the token in its path, this host, and no other site's Origin."""

    def __init__(self, app: ASGIApp, token: str, hosts: tuple[str, ...]) -> None:
        self.app, self.token, self.hosts = app, token.encode(), hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 to everything else."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        refused = "only http is spoken here" if scope["type"] != "http" else self._refusal(scope)
        if refused:
            await PlainTextResponse(f"refused: {refused}\n", status_code=403)(scope, receive, send)
            return

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in {"cache-control": "no-store", **_SECURITY}.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, secured)

    def _refusal(self, scope: Scope) -> str:
        """Why a request is refused; empty if it is not."""
        headers = Headers(scope=scope)
        origin, token = headers.get("origin"), scope["path"].removeprefix("/").partition("/")[0]
        if headers.getlist("host") not in ([host] for host in self.hosts):
            return "another host than this page's"
        if origin is not None and origin not in {f"http://{host}" for host in self.hosts}:
            return "asked for by another site"
        if not secrets.compare_digest(token.encode("utf-8", "replace"), self.token):
            return "the address lacks the token that semprobe review printed"
        if scope["method"] not in ("GET", "HEAD") and origin is None:
            return "a change has to come from the page"
        return ""


async def _body(request: Request) -> dict[str, Any]:
    """A JSON object of limited size.

    Raises
    ------
    HTTPException
        It is something else, or too large.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "expected JSON")
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > MAX_BODY:
            raise HTTPException(413, f"a text has at most {MAX_CELL:,} characters")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "not JSON") from error
    if not isinstance(found, dict):
        raise HTTPException(400, "expected a JSON object")
    return found


# the application


def make_app(page: Page, *, token: str, hosts: tuple[str, ...]) -> Starlette:
    """The application, to be run by a server that listens on this machine only.

    Parameters
    ----------
    page
        What it shows.
    token
        First part of every address.
    hosts
        What a request may call this host, with the port.
    """
    start = f"/{token}"
    routes = [
        Route(start + "/", lambda request: HTMLResponse(page.render("index.html", root="", **page.overview()))),
        Route(start + "/static/{name}", _static),
        Route(start + "/negatives/{concept}", _negatives_page(page)),
        Route(start + "/latents/{concept}/{which}", _latent_page(page)),
        Route(start + "/picture/{name}", _picture_of(page)),
        Route(start + "/patch/{concept}/{which}/{name}/{row:int}/{column:int}", _patch_of(page)),
        Route(start + "/null/{concept}", _null_of(page)),
        Route(start + "/api/negatives/{concept}", lambda r: _json(desks.negatives(page.study, **r.path_params))),
        Route(start + "/api/latents/{concept}/{which}", lambda r: _json(page.latent(**r.path_params))),
        Route(start + "/api/answers/{concept}/{which}",
              lambda r: _json(page.form(**r.path_params, by=r.query_params.get("by", "")))),
        Route(start + "/api/verdict", _posted(page.judge), methods=["POST"]),
        Route(start + "/api/replace", _posted(page.replace), methods=["POST"]),
        Route(start + "/api/answers/{concept}/{which}", _posted(page.answer), methods=["POST"]),
    ]  # fmt: skip
    return Starlette(
        routes=routes, middleware=[Middleware(Guard, token=token, hosts=hosts)],
        exception_handlers={SemprobeError: _told, HTTPException: _told, OSError: _told},
    )  # fmt: skip


Endpoint = Callable[[Request], Response]


def _json(value: Any) -> JSONResponse:
    return JSONResponse(jsonable(value))


def _told(request: Request, error: Exception) -> Response:
    """What went wrong, as JSON to the page's script and as a page to a person."""
    if isinstance(error, HTTPException):
        status, text = error.status_code, error.detail
    elif isinstance(error, OSError) and not isinstance(error, SemprobeError):
        status, text = 503, f"{error.filename or 'the disk'}: {error.strerror or error}"
    else:
        status, text = 503 if isinstance(error, StudyLocked) else 409, str(error)
    if request.url.path.split("/")[2:3] == ["api"]:
        return JSONResponse({"error": text}, status_code=status)
    return PlainTextResponse(f"{text}\n", status_code=status)


def _posted(change: Callable[..., Any]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return _json(await run_in_threadpool(change, body=await _body(request), **request.path_params))

    return endpoint


def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in {one.name for one in _STATIC.iterdir() if one.suffix in (".js", ".css", ".svg")}:
        raise HTTPException(404, "no such file")
    kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    return FileResponse(_STATIC / name, media_type=kinds[Path(name).suffix])


def _negatives_page(page: Page) -> Endpoint:
    def endpoint(request: Request) -> Response:
        concept = page.study.check_concept(request.path_params["concept"])
        return HTMLResponse(page.render("negatives.html", root="../", concept=concept))

    return endpoint


def _latent_page(page: Page) -> Endpoint:
    def endpoint(request: Request) -> Response:
        concept, which = request.path_params["concept"], request.path_params["which"]
        scored, latent, blinded = page.which(concept, which)
        blind = page.blind(scored, concept)
        best, known = [] if blinded else page.best(scored, concept), scored.scores["latent"].values
        return HTMLResponse(page.render(
            "latent.html", root="../../", concept=concept, which=which, latent=None if blinded else latent, best=best,
            blind=len(blind), place=blind.index(latent) + 1 if blinded else 0, verdicts=VERDICTS,
            texts=[(name, FIELDS[name]) for name in TEXTS], scored=scored.id,
            notices=page.notices(scored, page.answers(concept, latent, blinded)),
            first=int(known.min()), last=int(known.max()),
        ))  # fmt: skip

    return endpoint


def _picture_of(page: Page) -> Endpoint:
    def endpoint(request: Request) -> Response:
        edge = request.query_params.get("edge", "360")
        if edge not in map(str, _EDGES):
            raise HTTPException(400, f"edge is one of {', '.join(map(str, _EDGES))}")
        return _image(page.picture(request.path_params["name"], int(edge)))

    return endpoint


def _patch_of(page: Page) -> Endpoint:
    return lambda request: _image(page.patch(**request.path_params))


def _image(data: bytes) -> Response:
    return Response(data, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})


def _null_of(page: Page) -> Endpoint:
    def endpoint(request: Request) -> Response:
        concept = request.path_params["concept"]
        if concept not in page.scored().concepts:
            raise HTTPException(404, "that concept was not scored")
        styled = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return Response(page.null(concept), media_type="image/svg+xml", headers=styled)

    return endpoint
