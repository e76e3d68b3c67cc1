"""The pilot set: drawn scenes with known parts, checks with known answers, and where latents look.

Step 1 of the experiment: before a method is believed on photographs it must find what is known to be there, and must
not find what is not.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from PIL import Image

from semprobe.errors import DataError
from semprobe.heatmaps import heatmap, overlay
from semprobe.images import read_image
from semprobe.manifest import Row
from semprobe.sae import SAE
from semprobe.scenes import PARTS, draw_scene
from semprobe.scoring import rank, score
from semprobe.significance import significance
from semprobe.study import Study, create, now
from semprobe.vocabulary import NEGATIVE, POSITIVE, UNLABELLED

CLEAR = 0.003
"""A positive shows its concept on at least this share of its pixels: small, but there."""

UNSEEN = "spiral"
"""The part that neither the embedded backbone nor the SAE was trained on."""

COLUMNS = ("path", "concept", "label", "source", "reason", "scene")


def claim(folder: Path) -> None:
    """Make a folder the pilot's own, so that it may overwrite there.

    Raises
    ------
    DataError
        Something that no pilot made is in it.
    """
    mark = folder / ".semprobe-pilot"
    if folder.exists() and any(folder.iterdir()) and not mark.exists():
        raise DataError(f"{folder}: is not empty and was not made by semprobe pilot; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text("Made by semprobe pilot, which may overwrite what is in this folder.\n")


def draw_set(folder: Path, *, each: int = 20, seed: int = 0, done: Callable[[int], None] = lambda n: None) -> Path:
    """Draw the pilot set: for every part, `each` scenes that show it and `each` random ones that do not.

    Parameters
    ----------
    folder
        Gets ``manifest.csv``, ``images/`` and ``masks/`` with a mask of the concept for every image.
    each
        Positives and negatives a concept.
    seed
        Of the scenes; the scenes that the embedded models were trained on come from other seeds.
    done
        Called with the number of images just drawn.

    Returns
    -------
    pathlib.Path
        The manifest.

    Raises
    ------
    DataError
        Something that no pilot made is in the folder.
    """
    claim(folder)
    for name in ("images", "masks"):
        shutil.rmtree(folder / name, ignore_errors=True)  # of an earlier pilot, which may have drawn more
    rows = []
    for concept in PARTS:
        wanted = {"positive": each, "negative": each}
        number = 0
        while any(wanted.values()):
            name = f"pilot-{seed}-{concept}-{number}"
            number += 1
            image, parts = draw_scene(name, spiral=0.5 if concept == UNSEEN else 0.15)
            mask = parts == PARTS.index(concept) + 1
            label = "positive" if mask.mean() >= CLEAR else "negative" if not mask.any() else ""
            if not label or not wanted[label]:
                continue
            wanted[label] -= 1
            path = Path("images") / f"{concept}-{label}" / f"{each - wanted[label] - 1:03}.png"
            for where, picture in ((path, image), (mask_path(path), Image.fromarray(mask))):
                (folder / where).parent.mkdir(parents=True, exist_ok=True)
                picture.save(folder / where)
            reason = f"{concept} on {mask.mean():.1%} of the pixels" if label == "positive" else f"no {concept} drawn"
            rows.append((path.as_posix(), concept, label, "drawn by semprobe pilot", reason, name))
            done(1)
    manifest = folder / "manifest.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return manifest


def mask_path(image: Path) -> Path:
    """Where the mask of a pilot image is."""
    return Path("masks", *image.parts[1:])


def as_study(folder: Path, out: Path) -> Study:
    """Make a study of the pilot set: the same pictures, with sources and reasons, and no verdicts.

    Parameters
    ----------
    folder
        Where :func:`draw_set` drew.
    out
        The study to make; nothing may be there.
    """
    study = create(out, PARTS)
    rows: list[Row] = []
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            path, digest = study.keep((folder / row["path"]).read_bytes(), ".png")
            given = {name: row[name] for name in ("concept", "label", "source", "reason")}
            rows.append({**given, "path": path, "sha256": digest, "url": row["path"], "query": row["scene"],
                         "added_by": "semprobe pilot", "added_at": now()})  # fmt: skip
    for concept in PARTS:
        study.set_criteria(concept, f"no {concept} drawn, by the mask")
    study.append(rows)
    return study


# known answers


def planted(*, permuted: bool = False, seed: int = 0) -> tuple[xr.Dataset, int]:
    """Scores of synthetic activations into which one latent was planted, and its number.

    Every positive image carries the latent's direction on one patch, no negative does. With `permuted` the labels are
    shuffled afterwards, so that nothing is there to be found.
    """
    rng = np.random.default_rng(seed)
    images, patches, features, latents, secret = 40, 16, 64, 512, 137
    encoder = rng.standard_normal((latents, features), dtype=np.float32)
    direction = encoder[secret] / np.linalg.norm(encoder[secret])
    encoder -= np.outer(encoder @ direction, direction)  # no other latent sees it, even in part
    encoder[secret] = direction
    encoder /= np.linalg.norm(encoder, axis=1, keepdims=True)
    bias = rng.uniform(-4, -1.5, latents).astype(np.float32)
    bias[secret] = -8
    x = rng.standard_normal((images, patches, features), dtype=np.float32)
    label = np.repeat([POSITIVE, NEGATIVE], images // 2).astype(np.int8)[:, None]
    x[np.arange(images // 2), rng.integers(0, patches, images // 2)] += 16 * direction
    if permuted:
        label = rng.permutation(label)
    data = xr.Dataset(
        {"activations": (("image", "patch", "feature"), x)},
        coords={"concept": ["planted"], "label": (("image", "concept"), label)},
    )
    return score(data, sae=SAE(encoder=encoder, bias=bias), random=100, seed=seed).compute(), secret


def check_planted() -> list[str]:
    """Check the method against known answers; returns what was verified, in words.

    Raises
    ------
    DataError
        A known answer does not come out: the installation computes wrongly.
    """
    scores, secret = planted()
    first = int(rank(scores, "planted", 1)[0])
    value = float(scores["f1"].sel(concept="planted", latent=secret))
    if first != secret or value != 1.0:
        raise DataError(f"the planted latent {secret} has F1 {value} and latent {first} ranks first, expected 1 and it")
    shuffled, _ = planted(permuted=True)
    after = float(shuffled["f1"].sel(concept="planted", latent=secret))
    if after >= 0.8:
        raise DataError(f"with permuted labels the planted latent still has F1 {after}: scores do not follow labels")
    return [
        f"a latent planted in synthetic activations scores F1 {value:.3f} and ranks first of {scores.sizes['latent']}",
        f"with permuted labels the same latent scores F1 {after:.3f}",
    ]


def check_random_labels(latents: xr.Dataset, *, each: int, seed: int = 0) -> str:
    """What the test says of a concept that is none: labels drawn at random over the pilot's images; in words.

    Parameters
    ----------
    latents
        ``patch_sum`` (image, latent), in memory.
    each
        Positives, and as many negatives.
    seed
        Of the labels and of the test.
    """
    rng = np.random.default_rng([seed, 1])
    label = np.full((latents.sizes["image"], 1), UNLABELLED, np.int8)
    label[rng.choice(len(label), 2 * each, replace=False), 0] = np.repeat([POSITIVE, NEGATIVE], each)
    name = np.array(["random labels"], dtype=object)
    drawn = xr.Dataset(
        {"patch_sum": (("image", "latent"), latents["patch_sum"].values)},
        coords={"image": latents["image"], "concept": name, "label": (("image", "concept"), label)},
    )
    scores = score(drawn, seed=seed)
    tests = significance(scores, seed=seed)
    best = int(rank(scores, "random labels", 1)[0])
    number = int(tests["significant"].sum())
    return (
        f"of a concept made of random labels the best latent has F1 {float(scores['f1'][0, best]):.3f}, "
        f"p {float(tests['p_max'][0, best]):.3f}; significant latents: {number}"
        + (" (one seed in twenty is expected to have some)" if number else "")
    )


# where a latent looks


class Finding(NamedTuple):
    """The best latent of one concept, and where its code on the positives lies.

    ``inside`` is the share of the code on the concept's own pixels, ``area`` these pixels' share of the pictures, and
    ``touching`` the share of the code on patches that show the concept at all: a small thing never fills a patch.
    """

    concept: str
    latent: int
    f1: float
    floor_f1: float
    random_p95: float
    p_max: float
    significant: bool
    inside: float
    area: float
    touching: float

    @property
    def found(self) -> bool:
        """Whether F1 is significant among all latents, and most of the code is where the concept is."""
        return self.significant and self.touching > 0.5

    @property
    def verdict(self) -> str:
        """The same in words."""
        if not self.significant:
            return "not found: could be chance"
        return "found" if self.found else "not found: fires elsewhere"


def coverage(folder: Path, images: list[str], grid: tuple[int, int]) -> np.ndarray:
    """Share of each patch that the concept's mask covers, (image, patch)."""
    rows = []
    for name in images:
        mask = np.asarray(Image.open(folder / mask_path(Path(name))), dtype=np.float64)
        height, width = mask.shape[0] // grid[0], mask.shape[1] // grid[1]
        rows.append(mask.reshape(grid[0], height, grid[1], width).mean((1, 3)).ravel() / mask.max(initial=1))
    return np.stack(rows)


def _share(code: np.ndarray, weight: np.ndarray) -> float:
    """Share of the code that falls on the weighted patches; 0 if there is no code."""
    total = float(code.sum())
    return float((code * weight).sum() / total) if total > 0 else 0.0


def look(folder: Path, data: xr.Dataset, scores: xr.Dataset, sae: SAE) -> tuple[list[Finding], dict[str, xr.Dataset]]:
    """Each concept's best latent, and where on the positives its code lies.

    Returns
    -------
    findings
        One a concept.
    heats
        Concept: heatmap of its best latent on its positives.
    """
    best = {str(c): int(rank(scores, str(c), 1)[0]) for c in scores["concept"].values}
    findings, heats = [], {}
    for concept, latent in best.items():
        positive = data.isel(image=np.flatnonzero(data["label"].sel(concept=concept).values == POSITIVE))
        heat = heatmap(positive, sae, [latent]).isel(latent=0).compute()
        cover = coverage(folder, positive["image"].values.tolist(), (heat.sizes["row"], heat.sizes["column"]))
        flat = heat["code"].values.reshape(cover.shape)
        here = scores.sel(concept=concept)
        heats[concept] = heat
        findings.append(
            Finding(
                concept,
                latent,
                float(here["f1"][latent]),
                float(here["floor_f1"]),
                float(here["random_f1"].quantile(0.95)),
                float(here["p_max"][latent]),
                bool(here["significant"][latent]),
                _share(flat, cover),
                float(cover.mean()),
                _share(flat, cover > 0),
            )
        )
    return findings, heats


def table(findings: list[Finding]) -> str:
    """The findings as text."""
    lines = [
        f"{'concept':>9} {'latent':>6} {'F1':>6} {'floor':>6} {'random 95 %':>11} {'p, all latents':>14} "
        f"{'code on it':>10} {'its area':>8} {'on its patches':>14}  verdict"
    ]
    for one in findings:
        lines.append(
            f"{one.concept:>9} {one.latent:>6} {one.f1:>6.3f} {one.floor_f1:>6.3f} {one.random_p95:>11.3f} "
            f"{one.p_max:>13.4f}{'*' if one.significant else ' '} {one.inside:>10.1%} {one.area:>8.1%} "
            f"{one.touching:>14.1%}  {one.verdict}"
        )
    return "\n".join(lines)


def sheet(folder: Path, findings: list[Finding], heats: dict[str, xr.Dataset], columns: int = 8) -> Image.Image:
    """A picture of the best latents: a row a concept, its positives in grey with the heatmap on them."""
    edge = 144
    out = Image.new("RGB", (columns * edge, len(findings) * edge), "white")
    for row, finding in enumerate(findings):
        heat = heats[finding.concept]
        maximum = float(heat["code"].max())
        for column, name in enumerate(heat["image"].values[:columns].tolist()):
            here = heat.isel(image=column)
            picture = read_image(folder / name).convert("L")  # scenes are so colourful that heat drowns
            tile = overlay(picture, here["code"], here["crop"].values, maximum=maximum, edge=edge)
            out.paste(tile, (column * edge, row * edge))
    return out


def describe(finding: Finding) -> dict[str, Any]:
    """A finding as plain values."""
    return {**finding._asdict(), "found": finding.found}
