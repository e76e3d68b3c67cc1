"""SAEs on the Hugging Face hub: addresses, the cache, and what is fetched."""

from __future__ import annotations

import pickle
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

import semprobe
from semprobe import hub
from semprobe.errors import SAEError
from tests.conftest import DATA

HASH = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache, as huggingface_hub lays it out, with one model in it; the hub can't be reached."""
    cache = tmp_path / "cache"
    model = cache / "models--owner--name"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(HASH)
    shutil.copytree(DATA / "sae" / "sae-lens-standard", model / "snapshots" / HASH / "layer_10")

    def unreachable(*arguments: Any, **options: Any) -> None:
        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **o: real(repo, cache_dir=cache, **o))
    return cache


@pytest.mark.parametrize("inside", ["", "/layer_10", "/layer_10/sae_weights.safetensors", "@main/layer_10"])
def test_the_cache_is_enough(offline: Path, inside: str) -> None:
    sae = semprobe.load_sae(f"hf://owner/name{inside}")
    assert sae.origin == "SAELens 6.54.12, standard"
    assert pickle.loads(pickle.dumps(sae)).sha256 == sae.sha256


def test_a_hub_that_can_not_be_reached_is_not_waited_for(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the true call, to a port where nothing listens
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    start = time.perf_counter()
    assert hub._list("hf://owner/name", "owner/name", None) is None
    assert time.perf_counter() - start < 2 * hub._PATIENCE


def test_what_the_cache_lacks_is_told(offline: Path) -> None:
    with pytest.raises(SAEError, match=r"hf://other/name: the hub can't be reached .* lacks it. Run `hf download"):
        semprobe.load_sae("hf://other/name")
    with pytest.raises(SAEError, match=r"hf://owner/name/layer_11: the hub can't be reached .* lacks it"):
        semprobe.load_sae("hf://owner/name/layer_11")
    with pytest.raises(SAEError, match="the hub can't be reached"):
        semprobe.load_sae("saev-clip-vit-b16")
    for wrong in ("hf://owner", "hf://", "hf:///x"):
        with pytest.raises(SAEError, match="expected hf://owner/name"):
            semprobe.load_sae(wrong)


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub with some models; returns the list of what was fetched."""
    cases = {
        "a/README.md": "", "a/layer_10/cfg.json": "sae-lens-gated",
        "a/layer_10/sae_weights.safetensors": "sae-lens-gated",
        "a/layer_11/cfg.json": "sae-lens-topk", "a/layer_11/sae_weights.safetensors": "sae-lens-topk",
        "a/layer_11/optimizer.bin": "", "b/run/ae.pt": "dictionary-learning-standard",
        "b/run/config.json": "dictionary-learning-standard", "c/run/checkpoints/ae.pt": "dictionary-learning-standard",
        "c/run/config.json": "dictionary-learning-standard",
    }  # fmt: skip
    fetched: list[str] = []

    def listing(self: Any, repo: str, revision: str | None = None, timeout: float | None = None) -> Any:
        assert revision in (None, "refs/pr/1")
        names = [name.split("/", 1)[1] for name in cases if name.startswith(repo.split("/")[1] + "/")]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    def download(repo: str, name: str, revision: str | None = None) -> str:
        assert revision == ("refs/pr/1" if repo.endswith("b") else None)
        fetched.append(name)
        key = f"{repo.split('/')[1]}/{name}"
        target = tmp_path / key
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(DATA / "sae" / cases[key] / target.name, target)
        return str(target)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", listing)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return fetched


def test_only_what_is_needed_is_fetched(online: list[str]) -> None:
    assert semprobe.load_sae("hf://owner/a/layer_10").origin == "SAELens 6.54.12, gated"
    assert sorted(online) == ["layer_10/cfg.json", "layer_10/sae_weights.safetensors"]
    online.clear()
    assert semprobe.load_sae("hf://owner/a/layer_11/sae_weights.safetensors").origin == "SAELens 6.54.12, topk"
    assert sorted(online) == ["layer_11/cfg.json", "layer_11/sae_weights.safetensors"]
    assert semprobe.load_sae("hf://owner/b@refs%2Fpr%2F1").origin.startswith("dictionary_learning, AutoEncoder")
    online.clear()
    assert semprobe.load_sae("hf://owner/c/run/checkpoints/ae.pt").origin.startswith("dictionary_learning, AutoEncoder")
    assert sorted(online) == ["run/checkpoints/ae.pt", "run/config.json"]
    with pytest.raises(SAEError, match="several folders, name one: layer_10, layer_11"):
        semprobe.load_sae("hf://owner/a")
    with pytest.raises(SAEError, match="no such file or folder"):
        semprobe.load_sae("hf://owner/a/layer_12")


def test_published_saes_have_addresses_that_can_be_read() -> None:
    for name, one in hub.PUBLISHED.items():
        assert hub._ADDRESS.fullmatch(one.address), name
        assert one.uncertain
        assert name in (Path(__file__).parent.parent / "docs" / "what-loads.md").read_text()
