"""Small inputs that many tests share."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner, Result
from PIL import Image

import semprobe
from semprobe import study
from semprobe.cli import main
from semprobe.reviews import Reviews
from semprobe.sae import NORMALISATIONS, SAE, Activation, Gated, Threshold, TopK
from semprobe.study import Study

DATA = Path(__file__).parent / "data"
HOSTILE = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>', "' onmouseover='x",
    "=HYPERLINK(\"http://evil.example\")", "+1", "@SUM(A1)", "a | b\n| c |", "``` \n# head", "[x](javascript:alert(1))",
    "![x](http://evil.example/x.png)", "../../etc/passwd", "a\u202egpj.exe", "{{ 7 * 7 }}{% raw %}", "&lt;b&gt;",
    "</dd></section></main>", "x" * 10_000, "\0\x1b[31m",
)  # fmt: skip
CONCEPTS = ("t-shirt", "колесо")  # of a study
MODEL = "test_vit"  # of timm: three blocks of width 64, patches of 16 pixels


@pytest.fixture
def never_computes() -> Iterator[None]:
    """A scheduler that raises: nothing may compute inside."""

    def scheduler(graph: Any, keys: Any, **options: Any) -> Any:
        raise AssertionError("something computed")

    with dask.config.set(scheduler=scheduler):
        yield


def make_sae(latents: int = 70, features: int = 8, activation: Activation | None = None, seed: int = 0) -> SAE:
    rng = np.random.default_rng(seed)
    encoder = rng.standard_normal((latents, features), dtype=np.float32)
    bias = rng.uniform(-5, -2, latents).astype(np.float32)
    bias[0], bias[1] = -1000, 1000  # one never fires, one always
    return SAE(encoder=encoder, bias=bias, activation=activation or Threshold(), centre=rng.normal(0, 0.1, features))


def make_activations(images: int = 23, patches: int = 6, features: int = 8, seed: int = 1) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((images, patches, features), dtype=np.float32)
    label = rng.integers(-1, 2, (images, 2)).astype(np.int8)
    label[:2] = [[1], [0]][:images]
    return xr.Dataset(
        {"activations": (("image", "patch", "feature"), x)},
        coords={
            "image": np.array([f"{at:03}.png" for at in range(images)], dtype=object),
            "concept": np.array(["fur", "wheel"], dtype=object),
            "label": (("image", "concept"), label),
        },
    )


KINDS = (
    "relu", "threshold", "thresholds", "gated", "topk", "topk-relu", "magnitude", "groupmax", "layer_norm",
    "constant_norm_rescale",
)  # fmt: skip
"""Every way to encode that an SAE of any format may have."""


def sae_of(kind: str, latents: int = 70, features: int = 8) -> SAE:
    rng = np.random.default_rng(7)
    activations: dict[str, Activation] = {
        "threshold": Threshold(0.7),
        "thresholds": Threshold(rng.uniform(-1, 2, latents).astype(np.float32)),
        "gated": Gated(rng.uniform(-5, 0, latents), np.exp(rng.uniform(-1, 1, latents))),
        "topk": TopK(3),
        "topk-relu": TopK(3, relu=True),
        "magnitude": TopK(3, by="magnitude"),
        "groupmax": TopK(latents // 10, by="group", relu=True),
    }
    sae = make_sae(latents, features, activation=activations.get(kind))
    return replace(sae, normalisation=kind) if kind in NORMALISATIONS else sae


def dense(x: np.ndarray, sae: SAE) -> np.ndarray:
    """Codes in float64, written independently of the kernel."""
    x = x.astype(np.float64)
    if sae.normalisation == "layer_norm":
        x = (x - x.mean(-1, keepdims=True)) / (x.std(-1, ddof=1, keepdims=True) + 1e-5)
    elif sae.normalisation == "constant_norm_rescale":
        x = x * np.sqrt(x.shape[-1]) / np.linalg.norm(x, axis=-1, keepdims=True)
    product = (x - (0 if sae.centre is None else sae.centre)) @ sae.encoder.astype(np.float64).T
    pre, kept = product + sae.bias, sae.activation
    if isinstance(kept, Threshold):
        return np.where(pre > kept.threshold, pre, 0)
    if isinstance(kept, Gated):
        return np.where(product + kept.gate > 0, np.maximum(product * kept.scale + sae.bias, 0), 0)
    if kept.by == "group":
        groups = pre.reshape(*pre.shape[:-1], kept.k, -1)
        found = np.where(groups == groups.max(-1, keepdims=True), groups, 0).reshape(pre.shape)
    else:
        order = np.abs(pre) if kept.by == "magnitude" else pre
        found = np.where(order >= np.sort(order, -1)[..., -kept.k][..., None], pre, 0)
    return np.maximum(found, 0) if kept.relu else found


def draw(path: Path, colour: tuple[int, ...] = (200, 30, 30), size: tuple[int, int] = (40, 30), **save: Any) -> Path:
    """A picture with a gradient, so that no two places are alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    across = np.linspace(0, 60, size[0])[None, :, None]
    down = np.linspace(0, 60, size[1])[:, None, None]
    pixels = np.clip(np.array(colour)[None, None] * 0.7 + across + down, 0, 255).astype(np.uint8)
    Image.fromarray(np.broadcast_to(pixels, (size[1], size[0], len(colour))).copy()).save(path, **save)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of one concept, three positive and four negative pictures."""
    root = tmp_path / "pictures"
    for at in range(3):
        draw(root / "t-shirt-positive" / f"{at}.png", (20 + 60 * at, 40, 90))
    for at in range(4):
        draw(root / "t-shirt-negative" / f"{at}.jpg", (90, 20 + 50 * at, 40), (30 + at, 50))
    return root


@pytest.fixture
def run() -> Callable[..., Result]:
    """Run a command line as a user would; the result has stdout, stderr and the exit code."""

    def invoke(*arguments: object, code: int | None = 0) -> Result:
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        crashed = result.exception is not None and not isinstance(result.exception, SystemExit)
        assert not crashed, (arguments, result.exception, result.stderr)
        assert code is None or result.exit_code == code, (arguments, result.stdout, result.stderr)
        return result

    return invoke


@pytest.fixture
def acts(pictures: Path, tmp_path: Path, run: Callable[..., Result]) -> Path:
    """A store of activations of those pictures."""
    path = tmp_path / "acts.zarr"
    run("extract", pictures, "-o", path, "--model", MODEL, "--random-weights", 0, "--quiet")
    return path


def write_saev(path: Path, features: int = 64, latents: int = 96, kind: str = "Relu", seed: int = 0) -> Path:
    """An SAE in saev's format, schema 5."""
    import json

    import torch

    generator = torch.Generator().manual_seed(seed)
    encoder = torch.randn(features, latents, generator=generator)
    params = {"top_k": 5} if kind == "TopK" else {}
    header = {
        "schema": 5,
        "cfg": {"d_model": features, "d_sae": latents, "activation": {"cls": kind, "params": params}},
    }
    bias = -6 * torch.rand(latents, generator=generator)
    tensors = {"W_enc": encoder, "b_enc": bias, "W_dec": encoder.T.contiguous(), "b_dec": torch.zeros(features)}
    with path.open("wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        torch.save(tensors, file)
    return path


@pytest.fixture
def sae_file(tmp_path: Path) -> Path:
    return write_saev(tmp_path / "sae.pt")


# a study


def _picture(folder: Path, at: int, label: str) -> Path:
    colour = (20 + 8 * at, 40, 90) if label == "positive" else (90, 20 + 8 * at, 40)
    return draw(folder / f"{label}-{at}.png", colour, (40 + at, 30))


def make_study(folder: Path, said: tuple[str, ...] = ("because",), concepts: tuple[str, ...] = CONCEPTS) -> Study:
    """Six and six pictures a concept, one of them rejected; what people wrote is `said`, in turn."""
    made, number = study.create(folder / "study", concepts), 0
    for place, concept in enumerate(concepts):
        made.set_criteria(concept, said[place % len(said)])
        for at in range(13):
            label = "positive" if at < 6 else "negative"
            data = _picture(folder / "pictures", at + 13 * place, label).read_bytes()
            path, digest = made.keep(data, ".png")
            given = ("source", "url", "reason", "licence")
            words = {name: said[(number + k) % len(said)] for k, name in enumerate(given)}
            number += 1
            row = {"path": path, "sha256": digest, "concept": concept, "label": label, "added_by": "Ada"}
            made.append([{**row, **words}])
        made.set_verdict(path, concept, "rejected", "Ada")
    return made


def measure(made: Study, sae: Path) -> None:
    for words in (["extract", made.folder, "--model", MODEL, "--random-weights", "0"],
                  ["encode", made.folder, "--sae", sae], ["score", made.folder, "--permutations", "200"]):  # fmt: skip
        result = CliRunner().invoke(main, [*map(str, words), "--quiet"])
        assert result.exit_code == 0, result.stderr


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    measure(make_study(folder), write_saev(folder / "sae.pt"))
    return folder


@pytest.fixture
def made(measured: Path, tmp_path: Path) -> Study:
    shutil.copytree(measured / "study", tmp_path / "study")
    return Study(tmp_path / "study")


def best(made: Study, concept: str, at: int = 0) -> int:
    return int(semprobe.rank(semprobe.open_store(made.scores).load(), concept, at + 1)[at])


def answer(made: Study, who: str, concept: str, latent: int, blinded: bool = False, **fields: str) -> None:
    with Reviews(made.reviews) as reviews:
        for name, value in fields.items():
            reviews.set(who, concept, latent, name, value, blinded=blinded)
