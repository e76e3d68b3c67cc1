"""The commands of docs/reproduce.md, each run with random weights of the same shapes."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result

from semprobe import hub, stores
from tests.conftest import draw

PAGE = Path(__file__).parent.parent / "docs" / "reproduce.md"
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.S) for line in block.splitlines()]


def _sae(path: Path) -> None:
    """768 features, 24,576 latents, as old saev wrote it; the decoder is the encoder's transpose."""
    encoder = torch.randn(768, 24_576, generator=torch.Generator().manual_seed(0)) / 768**0.5
    tensors = {"W_enc": encoder, "b_enc": torch.full((24_576,), -2.0), "W_dec": encoder.T, "b_dec": torch.zeros(768)}
    with path.open("wb") as file:
        file.write(json.dumps({"d_vit": 768, "exp_factor": 32}).encode() + b"\n")
        torch.save(tensors, file)


def _shards(folder: Path, activations: np.ndarray) -> None:
    """What saev's `activations` command writes, before it had a protocol; with a class token."""
    images, patches, width = activations.shape
    folder.mkdir()
    about = {
        "vit_family": "clip", "vit_ckpt": "ViT-B-16/openai", "layers": [-2], "n_patches_per_img": patches,
        "cls_token": True, "d_vit": width, "seed": 42, "n_imgs": images,
        "n_patches_per_shard": images * (patches + 1), "data": "ImageFolderDataset(root='images')",
    }  # fmt: skip
    (folder / "metadata.json").write_text(json.dumps(about))
    with_cls = np.concatenate([np.zeros((images, 1, width), np.float32), activations], axis=1)
    with_cls.tofile(folder / "acts000000.bin")


def test_every_line_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Result]) -> None:
    for label in ("positive", "negative"):
        for at in range(2):
            colour = (90 * at, 60, 120 if label == "positive" else 20)
            draw(tmp_path / "images" / f"wheel-{label}" / f"{at}.png", colour, (260 + at, 250))
    _sae(tmp_path / "sae.pt")
    for name in ("saev-clip-vit-b16", "saev-dinov2-vit-b14-reg"):
        monkeypatch.setitem(hub.PUBLISHED, name, hub.PUBLISHED[name]._replace(address=str(tmp_path / "sae.pt")))
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) == 10
    for line in COMMANDS:
        program, *words = shlex.split(line)
        assert program == "semprobe"
        if "shards" in words:
            _shards(tmp_path / "shards", stores.open_store("clip.zarr")["activations"].values)
        run(*words, *(("--random-weights", 0) if words[0] == "extract" else ()))
    clip, dinov2 = stores.open_store("clip.zarr"), stores.open_store("dinov2.zarr")
    assert clip["activations"].shape == (4, 196, 768)
    assert dinov2["activations"].shape == (4, 256, 768)
    assert clip.attrs["provenance"]["backbone"]["layer"] == 10
    for name in ("clip", "dinov2", "shard"):
        scores = stores.open_store(f"{name}-scores.zarr")
        assert scores.sizes["latent"] == 24_576
        assert scores.attrs["provenance"]["normalisation"]["kind"] == "probe"
    same = [stores.open_store(f"{name}-scores.zarr")["f1"].sortby("latent").values for name in ("clip", "shard")]
    assert (same[0] == same[1]).all()
