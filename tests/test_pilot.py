"""The pilot: scenes with true masks, known answers, and the whole experiment on the embedded models."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from click.testing import Result
from PIL import Image

import semprobe
from semprobe import pilot
from semprobe.backbones import PILOT, load_backbone
from semprobe.checkpoints import pilot_sae_path
from semprobe.cli.pilot import _power_in_words
from semprobe.errors import DataError
from semprobe.power import critical_f1, detection
from semprobe.scenes import PARTS, SIZE, draw_scene
from tests.conftest import draw


def test_scenes_repeat_and_masks_are_the_parts() -> None:
    one, parts = draw_scene("a")
    two, again = draw_scene("a")
    assert (np.asarray(one) == np.asarray(two)).all()
    assert (parts == again).all()
    assert one.size == (SIZE, SIZE)
    assert parts.shape == (SIZE, SIZE)
    assert parts.max() <= len(PARTS)
    assert not any((draw_scene(f"s{at}")[1] == PARTS.index("spiral") + 1).any() for at in range(30))
    assert any((draw_scene(f"s{at}", spiral=1.0)[1] == PARTS.index("spiral") + 1).any() for at in range(3))


def test_the_set_has_what_it_says(tmp_path: Path) -> None:
    manifest = pilot.draw_set(tmp_path, each=3)
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * len(PARTS) >= 6
    for row in rows:
        mask = np.asarray(Image.open(tmp_path / pilot.mask_path(Path(row["path"]))))
        assert mask.mean() >= pilot.CLEAR if row["label"] == "positive" else not mask.any()
        assert row["scene"].startswith("pilot-0-")
        assert row["reason"]
    found = semprobe.find_images(manifest)
    assert found["concept"].values.tolist() == sorted(PARTS)
    assert ((found["label"].values == 1).sum(0) == 3).all()


def test_no_critical_f1_is_no_number() -> None:
    told = _power_in_words(2, {"latents": 9, "concepts": {"fur": {"critical_f1": float("inf"), "detection": 0.0}}})
    assert "smallest significant F1 is none to none by concept" in told


def test_planted_latents_are_found_and_permuted_ones_not() -> None:
    assert len(pilot.check_planted()) == 2
    for seed in range(5):
        scores, secret = pilot.planted(seed=seed)
        assert semprobe.rank(scores, "planted", 1)[0] == secret
        assert scores["f1"].sel(concept="planted", latent=secret) == 1
        shuffled, _ = pilot.planted(permuted=True, seed=seed)
        assert shuffled["f1"].sel(concept="planted", latent=secret) < 0.9


def test_a_wrong_arithmetic_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = pilot.planted
    monkeypatch.setattr(pilot, "planted", lambda **o: right(permuted=True))
    with pytest.raises(DataError, match="planted latent"):
        pilot.check_planted()
    monkeypatch.setattr(pilot, "planted", lambda **o: right())
    with pytest.raises(DataError, match="permuted labels"):
        pilot.check_planted()


def test_only_its_own_folder_is_overwritten(tmp_path: Path) -> None:
    pilot.claim(tmp_path / "new")
    pilot.claim(tmp_path / "new")
    (tmp_path / "manifest.csv").write_text("mine")
    with pytest.raises(DataError, match="not made by semprobe pilot"):
        pilot.claim(tmp_path)


def test_coverage_is_patch_by_patch(tmp_path: Path) -> None:
    mask = np.zeros((96, 96), bool)
    mask[8:16, 80:92] = True  # all of row 1, column 10, half of column 11
    (tmp_path / "masks" / "x").mkdir(parents=True)
    Image.fromarray(mask).save(tmp_path / "masks" / "x" / "a.png")
    found = pilot.coverage(tmp_path, ["images/x/a.png"], (12, 12)).reshape(12, 12)
    assert found[1, 10] == 1
    assert found[1, 11] == 0.5
    assert found.sum() == 1.5


def test_random_labels_are_no_concept() -> None:
    """A test that called everything significant, or saw through to the first seed alone, would show here."""
    rng = np.random.default_rng(0)
    sums = rng.random((60, 200)) * (rng.random((60, 200)) < rng.random(200))
    latents = xr.Dataset({"patch_sum": (("image", "latent"), sums)}, coords={"image": np.arange(60).astype(str)})
    told = [pilot.check_random_labels(latents, each=20, seed=seed) for seed in range(8)]
    assert sum(one.endswith("significant latents: 0") for one in told) >= 7
    assert len(set(told)) > 1


def test_embedded_weights_are_small_and_fit() -> None:
    files = list(pilot_sae_path().parent.glob("*.safetensors"))
    assert len(files) == 2
    assert sum(file.stat().st_size for file in files) <= 4_000_000
    sae, backbone = semprobe.load_sae("pilot"), load_backbone("pilot")
    assert sae.width == PILOT["embed_dim"] == backbone.features
    assert sum(p.numel() for p in backbone.model.parameters()) < 1_500_000
    assert backbone.crop(96, 96) == (0, 0, 96, 96)


def test_the_whole_experiment(tmp_path: Path, run: Callable[..., Result]) -> None:
    result = run("pilot", tmp_path / "out", "--each", 12, "--json", "--quiet")
    found = json.loads(result.stdout)
    assert len(found["verified"]) == 4
    assert found["verified"][3].endswith("significant latents: 0")
    assert found["power"]["latents"] == 1024
    scores = semprobe.open_store(tmp_path / "out" / "scores.zarr").compute()
    for name, one in found["power"]["concepts"].items():
        shares = semprobe.support(scores.sel(concept=name)).values
        assert one["critical_f1"] == critical_f1(12, 12, 1024, support=shares)
        assert one["detection"] == detection(12, 12, 1024, 0.9, 0.05, support=shares)
    said = _power_in_words(12, found["power"])
    bars = [one["critical_f1"] for one in found["power"]["concepts"].values()]
    assert f"{min(bars):.3f} to {max(bars):.3f} by concept" in said
    by_concept = {one["concept"]: one for one in found["findings"]}
    assert set(by_concept) == set(PARTS)
    sound = [name for name, one in by_concept.items() if one["found"]]
    assert "spiral" not in sound
    assert len(sound) >= 3
    for name in sound:
        assert by_concept[name]["inside"] > 5 * by_concept[name]["area"], name
    assert (tmp_path / "out" / "best-latents.png").stat().st_size > 1000
    assert semprobe.open_store(tmp_path / "out" / "scores.zarr").sizes["concept"] == len(PARTS)
    again = run("pilot", tmp_path / "out", "--quiet", code=1)
    assert "--overwrite" in again.stderr
    stray = tmp_path / "out" / "images" / "wheel-positive" / "999.png"
    shutil.copy(next(stray.parent.iterdir()), stray)  # of an earlier, larger one
    pilot.draw_set(tmp_path / "out", each=1)
    assert not stray.exists()


def test_nothing_of_others_is_deleted(tmp_path: Path) -> None:
    draw(tmp_path / "images" / "holiday" / "a.png")
    with pytest.raises(DataError, match="is not empty and was not made by semprobe pilot"):
        pilot.draw_set(tmp_path, each=1)
    assert (tmp_path / "images" / "holiday" / "a.png").exists()
