"""What the review page shows and takes: the two desks, with the answers and verdicts of those who sit at them."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from threading import RLock
from typing import Any

import xarray as xr
from PIL import Image

from semprobe import desks
from semprobe.assessment import describe, numbers
from semprobe.errors import DataError, SemprobeError, StudyError
from semprobe.heatmaps import patch_crop
from semprobe.images import read_image
from semprobe.report import filled, older, wanted
from semprobe.report_pages import environment
from semprobe.report_pictures import Look
from semprobe.reviews import FIELDS, PICTURES, Answer, Change, Reviews, check_reviewer
from semprobe.sampling import resample
from semprobe.study import Study

_LOOKS = 24  # of latents that are kept
_PICTURES = 256  # encoded pictures that are kept
_QUALITY = 90
_HISTORY = 300  # changes of a latent that a page is told
_SENDER = {"window": str, "order": int}  # of a text: which window sent it, and its number there
_WHOLE, _SHORT = 20, 300  # of them the last ones whole, and characters of the others


@dataclass
class Scored:
    """A study's scores, and where its latents fire."""

    scores: xr.Dataset
    look: Callable[[str, int], Look]
    notices: list[str] = field(default_factory=list)
    """Why there is no heat, and what else a reviewer has to know, in sentences."""

    stale: Callable[[], str] = str
    """Says that the scores are of other images than the study uses now; empty if they are not."""

    @property
    def id(self) -> str:
        """Tells these scores from any others of the study."""
        came = json.dumps(self.scores.attrs["provenance"], sort_keys=True, default=str)
        return hashlib.sha256(came.encode()).hexdigest()[:16]

    @property
    def concepts(self) -> list[str]:
        """Names of those that were scored."""
        return [str(name) for name in self.scores["concept"].values]


class Page:
    """What the page shows and takes.

    Parameters
    ----------
    study
        Of which.
    reviews
        Where answers go.
    scored
        Opens the scores; an error says why there are none, and is shown. Called whenever latents are asked for.
    by
        Whom to suggest as the reviewer.
    """

    def __init__(self, study: Study, reviews: Reviews, scored: Callable[[], Scored], by: str = "") -> None:
        self.study, self.reviews, self.by = study, reviews, by
        self.name = os.path.basename(os.path.abspath(study.folder))
        self._open = scored
        self._scored: Scored | None = None
        self._drawing, self._ordering = RLock(), RLock()
        self._sent: dict[tuple[Any, ...], int] = {}  # number of the last text of each window and field
        self._opening, self._working = RLock(), RLock()  # dask and matplotlib, too, are for one thread at a time
        self._templates = environment(html=True)
        self._looks: dict[tuple[str, str, int], Look] = {}
        self.picture, self.null = lru_cache(_PICTURES)(self._picture), lru_cache(64)(self._null)

    def scored(self) -> Scored:
        """Scores as they are now; those that were made anew are opened anew."""
        with self._opening:
            found = self._open()
            if found is not self._scored:
                self._scored = found
                self.null.cache_clear()
            return found

    def notices(self, scored: Scored, answers: list[Answer]) -> list[str]:
        """What a reviewer has to know of the scores, in sentences."""
        old = older(answers, scored.scores.attrs["provenance"]["created"])
        return [one for one in (*scored.notices, scored.stale(), old) if one]

    def render(self, name: str, **values: Any) -> str:
        """A page of HTML."""
        return self._templates.get_template(f"review/{name}").render(study=self.name, by=self.by, **values)

    # overview

    def overview(self) -> dict[str, Any]:
        """Every concept with what was done of it, agreement, and why latents can't be looked at, if they can't."""
        answers = filled(self.reviews.answers())
        try:
            scored, why = self.scored(), ""
        except SemprobeError as error:
            scored, why = None, str(error)
        rows, used = self.study.rows(), self.study.used()
        concepts = [
            {"name": name, **_progress(desks.negatives(self.study, name, rows, used)),
             "latents": self._best(scored, name, answers) if scored and name in scored.concepts else []}
            for name in self.study.concepts
        ]  # fmt: skip
        return {
            "concepts": concepts, "why": why, "notices": self.notices(scored, answers) if scored else [],
            "agreement": self.reviews.kappa(), "blinded_agreement": self.reviews.kappa(blinded=True),
        }  # fmt: skip

    def _best(self, scored: Scored, concept: str, answers: list[Answer]) -> list[dict[str, Any]]:
        said = wanted(answers, concept, set(scored.scores["latent"].values.tolist()))
        return [
            {**row, "verdicts": sum(bool(one.verdict) for one in said.get(row["latent"], ()))}
            for row in numbers(scored.scores, concept, {*self.best(scored, concept), *said})
        ]

    # negatives

    def judge(self, body: dict[str, Any]) -> dict[str, Any]:
        """Give a picture a verdict, unless it has another one by now than the page knows of.

        Where one is undone, the one before comes back with its name, its time and its criteria.
        """
        given, path, verdict, was = (taken(body, name, str) for name in ("concept", "path", "verdict", "was"))
        by, concept = check_reviewer(taken(body, "by", str)), self.study.check_concept(given)
        before = {name: taken(body, name, str) for name in ("at", "criteria", "was_by") if name in body}
        if before.get("at") and not _is_time(before["at"]):
            raise DataError(f"{before['at'][:40]!r} is no time as the manifest has it")
        self.study.set_verdict(path, concept, verdict, by, was=was, label="negative", **before)
        return desks.negatives(self.study, concept)

    def replace(self, body: dict[str, Any]) -> dict[str, Any]:
        """Draw pictures in place of rejected ones."""
        concept, notes = self.study.check_concept(taken(body, "concept", str)), []
        if any(one["concept"] == concept for one in self.study.about()["samplings"]):
            with self._drawing:
                drawn = resample(self.study, concept)
            notes = [*drawn.notes, *drawn.unreadable]
        return {**desks.negatives(self.study, concept), "notes": notes}

    # latents

    def which(self, concept: str, which: str) -> tuple[Scored, int, bool]:
        """The latent of an address, a number or ``blind-`` and a place from 1, and whether it is blinded.

        Raises
        ------
        DataError
            The scores have no such concept or latent.
        """
        scored = self.scored()
        if concept not in scored.concepts:
            raise DataError(f"{concept[:100]!r} was not scored, only {', '.join(scored.concepts)}")
        blinded, number = which.startswith("blind-"), which.removeprefix("blind-")
        known = self.blind(scored, concept) if blinded else scored.scores["latent"].values.tolist()
        at = int(number) if number.isascii() and number.isdecimal() and len(number) < 10 else -1
        if blinded and 1 <= at <= len(known):
            return scored, known[at - 1], True
        if blinded or at not in known:
            raise DataError(f"there is no latent {which[:20]!r}, only 0 to {max(known)}")
        return scored, at, False

    def best(self, scored: Scored, concept: str) -> list[int]:
        """The best latents of a concept, best first."""
        return [row["latent"] for row in describe(scored.scores, concept, desks.BEST)["top"]]

    def blind(self, scored: Scored, concept: str) -> list[int]:
        """Latents to be judged blinded, in order."""
        return desks.blind_latents(scored.scores, concept, seed=scored.scores.attrs["provenance"].get("seed", 0))

    def latent(self, concept: str, which: str) -> dict[str, Any]:
        """Everything that the desk shows of a latent."""
        scored, latent, blinded = self.which(concept, which)
        with self._working:
            look = self._look(scored, concept, latent)
            shown = {
                **desks.latent(look, scored.scores, blinded=blinded),
                "notice": _notice(look, blinded),
            }
            if blinded:
                return shown
            told = describe(scored.scores, concept, 1)
            row = numbers(scored.scores, concept, {latent})[0]
        return {**shown, "numbers": row, "beside": {name: one for name, one in told.items() if name != "top"}}

    def _look(self, scored: Scored, concept: str, latent: int) -> Look:
        key = scored.id, concept, latent
        if key not in self._looks:
            found = scored.look(concept, latent)
            while len(self._looks) >= _LOOKS:
                del self._looks[next(iter(self._looks))]
            self._looks[key] = found
        return self._looks[key]

    def _null(self, concept: str) -> str:
        """The picture of what chance reaches."""
        from semprobe.plots import as_svg, plot_null

        with self._working:
            return as_svg(plot_null(self.scored().scores, concepts=[concept], top=desks.BEST))

    # answers

    def answers(self, concept: str, latent: int, blinded: bool) -> list[Answer]:
        """What everybody says of a latent."""
        return [one for one in self.reviews.answers(concept, latent) if one.blinded == blinded]

    def form(self, concept: str, which: str, by: str) -> dict[str, Any]:
        """What a reviewer said of a latent, and what others said once this one has given a verdict."""
        scored, latent, blinded = self.which(concept, which)
        who = check_reviewer(by)
        changes = [one for one in self.reviews.history(concept, latent) if one.blinded == blinded]
        all_ = self.answers(concept, latent, blinded)
        mine = next((one for one in all_ if one.reviewer == who), None) or Answer(who, concept, latent, blinded)
        others = filled(one for one in all_ if one.reviewer != who)
        shown = {name: getattr(mine, name) for name in FIELDS}
        return {
            "scored": scored.id, "mine": shown, "seen": {one.field: one.id for one in changes if one.reviewer == who},
            "others": [_answer(one) for one in others if mine.verdict], "hidden": 0 if mine.verdict else len(others),
            "history": _history([one for one in changes if mine.verdict or one.reviewer == who]),
            "agreement": [one._asdict() for one in self.reviews.kappa(concept, blinded=blinded) if mine.verdict],
            "unblinded": self._unblinded(scored, concept, who) if blinded else None,
        }  # fmt: skip

    def _unblinded(self, scored: Scored, concept: str, who: str) -> dict[str, Any] | None:
        """What the latents were, once this reviewer has judged them all."""
        latents = self.blind(scored, concept)
        said = {one.latent: one.verdict for one in self.reviews.answers(concept)
                if one.blinded and one.verdict and one.reviewer == who}  # fmt: skip
        if not set(latents) <= said.keys():
            return None
        return desks.unblinded(scored.scores, concept, latents, said)

    def answer(self, concept: str, which: str, body: dict[str, Any]) -> dict[str, Any]:
        """Save a change of one field; tells what came in between.

        A text that arrives after a later one of the same window is left out: its ``id`` is 0.
        """
        scored, latent, blinded = self.which(concept, which)
        if taken(body, "scored", str) != scored.id:
            raise DataError(
                "this study was scored anew since the page was loaded, so its latents may be others; what you typed "
                "stays in this browser: load the page again"
            )
        by, name, seen = (taken(body, key, kind) for key, kind in (("by", str), ("field", str), ("seen", int)))
        if not 0 <= seen < 1 << 62:
            raise DataError("there is no such change")
        final = self._unblinded(scored, concept, check_reviewer(by)) if blinded and name == "verdict" else None
        if final and not any(row["verdict"] == body.get("value") for row in final["rows"] if row["latent"] == latent):
            raise DataError("blinded verdicts are final once all are given: what the latents are has been told")
        if name in PICTURES:
            image, picked = taken(body, "image", str), taken(body, "picked", bool)
            self.study.image(image)
            saved = self.reviews.pick(by, concept, latent, name, image, picked=picked, blinded=blinded, seen=seen)
        else:
            value = taken(body, "value", str)
            window, order = (taken(body, key, kind) if key in body else kind() for key, kind in _SENDER.items())
            sender = (window, check_reviewer(by), concept, latent, blinded, name)
            with self._ordering:
                if self._sent.get(sender, 0) > order:  # a window that is left sends beside what is on its way
                    return {"id": 0, "at": None, "others": []}
                saved = self.reviews.set(by, concept, latent, name, value, blinded=blinded, seen=seen)
                self._sent[sender] = order
        return {"id": saved.change.id, "at": saved.change.at, "others": [_change(one) for one in saved.others]}

    # pictures

    def _picture(self, name: str, edge: int) -> bytes:
        """A picture of the study, upright, as JPEG; its name is the hash of its bytes, which are checked."""
        path = self.study.image(desks.picture_path(name))
        picture = read_image(path, path.stem).convert("RGB")
        picture.thumbnail((edge, edge))
        return _jpeg(picture)

    def patch(self, concept: str, which: str, name: str, row: int, column: int) -> bytes:
        """A patch with what is around it, as JPEG."""
        scored, latent, _ = self.which(concept, which)
        with self._working:
            look = self._look(scored, concept, latent)
        image = desks.picture_path(name)
        if look.heat is None or image not in look.names:
            raise StudyError(f"{name[:100]!r}: nothing says where its patches are")
        grid = look.heat.sizes["row"], look.heat.sizes["column"]
        if not (0 <= row < grid[0] and 0 <= column < grid[1]):
            raise StudyError(f"there is no patch ({row}, {column}) in a grid of {grid[0]} x {grid[1]}")
        picture, crop = look.read(image)
        if crop is None:
            raise StudyError(f"{name[:100]!r}: nothing says what part of it the model saw")
        return _jpeg(patch_crop(picture, crop, row, column, grid, edge=240))


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def taken(body: dict[str, Any], name: str, kind: type[Any]) -> Any:
    """A value of a request, of the type that it has to have.

    Raises
    ------
    DataError
        It is not there, or of another type.
    """
    if type(body.get(name)) is not kind:
        raise DataError(f"expected {name} of type {kind.__name__}")
    return body[name]


def _notice(look: Look, blinded: bool) -> str:
    """Why a latent has no heat; without its number where that is hidden."""
    if look.notice and blinded:
        return "Its pictures are shown without heat, since its codes do not agree with the scores."
    return look.notice


def _progress(found: dict[str, Any]) -> dict[str, Any]:
    used = [row["verdict"] for row in found["rows"] if row["used"]]
    return {
        "criteria": found["criteria"], "negatives": len(used), "accepted": used.count("accepted"),
        "unsure": used.count("unsure"), "unseen": used.count(""), "missing": found["missing"],
        "rejected": sum(row["verdict"] == "rejected" for row in found["rows"]),
    }  # fmt: skip


def _answer(one: Answer) -> dict[str, Any]:
    return {"reviewer": one.reviewer, "at": one.at, **{name: getattr(one, name) for name in FIELDS}}


def _history(changes: list[Change]) -> list[dict[str, Any]]:
    """The last changes; older ones in short, since every second of typing is one."""
    told = [_change(one) for one in changes[-_HISTORY:]]
    for one in told[:-_WHOLE]:
        if len(one.get("value", "")) > _SHORT:
            one["value"] = one["value"][:_SHORT] + " …"
    return told


def _change(one: Change) -> dict[str, Any]:
    """A row of the history; of a picture, which one came or went."""
    kept = {"id": one.id, "at": one.at, "reviewer": one.reviewer, "field": one.field}
    return {**kept, **(json.loads(one.value) if one.field in PICTURES else {"value": one.value})}


def _jpeg(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=_QUALITY, subsampling=0)  # colours as sharp as the rest
    return out.getvalue()
