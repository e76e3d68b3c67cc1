"""What the two desks of the review page show, as plain values: negatives to verify, and latents to judge."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from semprobe.assessment import outcomes
from semprobe.heatmaps import top_patches
from semprobe.manifest import Row
from semprobe.report_pages import visible
from semprobe.report_pictures import OUTCOMES, PATCHES, Look, label_of
from semprobe.scoring import concept_rng, rank
from semprobe.study import Study, is_drawn, order_key

EACH = 60
"""Pictures of a gallery, at most."""

BEST, RANDOM = 5, 5
"""Latents of a concept that are judged by default; random ones among which they are judged blinded."""

_DIGITS = 4  # of a code, which is for reading and colours only


# negatives


def negatives(
    study: Study, concept: str, rows: list[Row] | None = None, used: list[Row] | None = None
) -> dict[str, Any]:
    """The negatives of a concept in the order in which they were drawn, those added by hand first.

    Parameters
    ----------
    study, concept
        Of which.
    rows, used
        What the study's methods of these names give, where they were asked already.

    Returns
    -------
    dict
        ``criteria``; ``rows``, rejected ones too, each with ``used``; ``missing``, how many pictures samplings lack.
    """
    name, about = study.check_concept(concept), study.about()
    rows, used = study.rows() if rows is None else rows, study.used() if used is None else used
    mine = [row for row in rows if (row["concept"], row["label"]) == (name, "negative")]
    kept = {row["path"] for row in used if row["concept"] == name}
    missing, place = 0, dict[str, tuple[int, bytes]]()
    for number, sampling in enumerate(about["samplings"], 1):
        drawn = [row for row in mine if is_drawn(row, sampling, number)]
        place |= {row["path"]: (number, order_key(sampling["seed"], row["url"])) for row in drawn}
        if sampling["concept"] == name:
            missing += max(0, sampling["number"] - sum(row["verdict"] != "rejected" for row in drawn))
    mine.sort(key=lambda row: place.get(row["path"], (0, b"")))
    return {
        "concept": name, "criteria": study.criteria(name), "missing": missing,
        "rows": [{**_row(row), "used": row["path"] in kept} for row in mine],
    }  # fmt: skip


def _row(row: Row) -> dict[str, str]:
    """What is shown of it; path and criteria as they are, since they come back when a verdict is undone."""
    kept = ("path", "verdict", "verified_by", "verified_at", "criteria", "source", "url")
    return {name: row[name] if name in ("path", "criteria") else visible(row[name]) for name in kept}


# latents


def latent(look: Look, scores: xr.Dataset, *, blinded: bool = False) -> dict[str, Any]:
    """Where a latent fires: galleries of every outcome by patch sum, and the patches with the largest codes.

    Parameters
    ----------
    look
        The latent.
    scores
        A store of scores, in memory.
    blinded
        Whether to tell neither labels nor where pictures came from: one gallery, of the pictures on which it fires, and
        codes as shares of the largest.

    Returns
    -------
    dict
        ``largest_code``, None where it is not known; ``galleries`` and ``patches``. A picture has ``heat`` (row,
        column), None where it is not known, and ``crop``: left, top, right, bottom as shares of its width and height.
    """
    became = {str(name): str(kind) for name, kind in _pairs(outcomes(scores, look.concept, look.latent))}
    if blinded:
        look = _without_size(look)
        fires = [name for name in became if became[name] in ("tp", "fp")]
        found = [_gallery(look, scores, "largest", "Largest patch sums", fires, became, blinded)]
    else:
        found = [
            _gallery(look, scores, kind, title, [name for name in became if became[name] == kind], became, blinded)
            for kind, title in OUTCOMES.items()
        ]
    largest = None if look.heat is None else look.maximum
    return {"largest_code": largest, "galleries": found, "patches": _patches(look, became, blinded)}


def _without_size(look: Look) -> Look:
    """Codes as shares of the largest: their size alone would tell latents apart."""
    if look.heat is None or not look.maximum:
        return replace(look, sums=np.full(len(look.names), np.nan))
    return replace(look, sums=look.sums / look.maximum, heat=look.heat / look.maximum)


def _pairs(values: xr.DataArray) -> list[tuple[Any, Any]]:
    return list(zip(values["image"].values, values.values, strict=True))


def _gallery(
    look: Look, scores: xr.Dataset, kind: str, title: str, names: Sequence[str], became: dict[str, str], blinded: bool
) -> dict[str, Any]:
    sums = dict(zip(look.names, look.sums.tolist(), strict=True))
    best = sorted(names, key=lambda name: -sums[name] if sums[name] == sums[name] else 0.0)[:EACH]
    pictures = [_picture(look, scores, name, sums[name], became[name], blinded) for name in best]
    return {"kind": kind, "title": title, "total": len(names), "pictures": pictures}


def _picture(look: Look, scores: xr.Dataset, name: str, total: float, outcome: str, blinded: bool) -> dict[str, Any]:
    at = list(look.names).index(name)
    size = [int(scores[edge].values[at]) for edge in ("width", "height")] if "width" in scores.coords else None
    crop = None
    if size and "crop" in scores.coords and np.isfinite(scores["crop"].values[at]).all():
        crop = (scores["crop"].values[at] / (size * 2)).tolist()
    heat = None if look.heat is None or crop is None else look.heat.values[at]
    said = f"patch sum {total:.3g}" if total == total else "patch sum not known"
    told = "" if blinded else visible(look.told(name))
    what = "picture" if blinded else f"{told}: {OUTCOMES[outcome].lower()[:-1]} of latent {look.latent}"
    return {
        "image": name, "told": told, "patch_sum": total, "size": size, "crop": crop,
        "heat": None if heat is None else [[float(f"{code:.{_DIGITS}g}") for code in row] for row in heat.tolist()],
        "alt": f"{what}, {said}",
    }  # fmt: skip


def _patches(look: Look, became: dict[str, str], blinded: bool) -> list[dict[str, Any]]:
    """Where the codes are largest, one patch an image, on all images of the store."""
    if look.heat is None:
        return []
    return [
        {**one._asdict(), "told": "" if blinded else visible(look.told(one.image)),
         "label": "" if blinded else label_of(became.get(one.image))}
        for one in top_patches(look.heat, PATCHES)
    ]  # fmt: skip


# blinded


def blind_latents(scores: xr.Dataset, concept: str, *, seed: int = 0) -> list[int]:
    """The best latents of a concept and as many random ones, in an order that tells nothing.

    Random ones fire on some image and are not among the best. The order depends on the seed and the concept alone, so
    that every reviewer judges the same latents.
    """
    known = scores["latent"].values
    best = known[rank(scores, concept, BEST)]
    fires = known[(scores["support"].sel(concept=concept).values > 0) & ~np.isin(known, best)]
    rng = concept_rng(f"{concept}, blinded", seed)
    drawn = rng.choice(fires, min(RANDOM, len(fires)), replace=False)
    return [int(one) for one in rng.permutation(np.concatenate([best, drawn]))]


def unblinded(scores: xr.Dataset, concept: str, latents: Sequence[int], verdicts: dict[int, str]) -> dict[str, Any]:
    """What blinded verdicts were on, once all are given: what a reviewer's eye makes of the best and of random ones."""
    best = {int(one) for one in scores["latent"].values[rank(scores, concept, BEST)]}
    f1 = scores["f1"].sel(concept=concept)
    rows = [
        {"place": place, "latent": one, "best": one in best, "verdict": verdicts[one],
         "f1": float(f1.values[scores["latent"].values == one][0])}
        for place, one in enumerate(latents, 1)
    ]  # fmt: skip
    counts = {
        name: [sum(row["verdict"] == "validated" for row in rows if row["best"] == is_best),
               sum(row["best"] == is_best for row in rows)]
        for name, is_best in (("best", True), ("random", False))
    }  # fmt: skip
    return {"rows": rows, "validated": counts}


# pictures


def picture_path(name: str) -> str:
    """A row's path of a picture's file name, which is all that a page asks for."""
    return f"images/{os.path.basename(name)}"
