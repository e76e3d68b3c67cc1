"""Does an SAE belong to these activations: normalisation, what it declares, and how well it rebuilds them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import torch
import xarray as xr
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import semprobe
from semprobe import normalisation, stores
from semprobe.errors import DataError, SAEError
from semprobe.fit import measure_fit, sample, words
from semprobe.formats._common import declared
from semprobe.identity import mismatches
from semprobe.sae import SAE
from tests.conftest import make_activations
from tests.test_saev_shards import values, write_shards

Run = Callable[..., Result]


# normalisation


def test_statistics_against_a_plain_computation() -> None:
    x = make_activations(31, 5, 8)["activations"] * 3 + 2
    x[0, 0, 0] = 1e9  # cut off at 1e5
    found = normalisation.statistics(x.chunk(image=4)).compute()
    rows = np.clip(x.values, -1e5, 1e5).reshape(-1, 8).astype(np.float64)
    np.testing.assert_allclose(found["mean"], rows.mean(0), rtol=1e-6)
    lengths = np.linalg.norm(rows - rows.mean(0), axis=1)
    np.testing.assert_allclose(found["scale"], lengths.mean() / np.sqrt(8), rtol=1e-6)
    again = normalisation.normalize(x.chunk(image=4), found)
    expected = (rows - found["mean"].values) / float(found["scale"])
    np.testing.assert_allclose(again.values.reshape(-1, 8), expected, rtol=1e-4, atol=1e-5)
    assert again.coords.keys() == x.coords.keys()


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 9), min_size=1, max_size=8), together=st.sampled_from([1, 5, 1024]))
def test_statistics_are_the_same_bits_for_every_chunking(cuts: list[int], together: int) -> None:
    x = make_activations(sum(cuts), 7, 33)["activations"] * 5 + 1
    old, normalisation._TOGETHER = normalisation._TOGETHER, together
    try:
        whole, cut = (normalisation.statistics(x.chunk(image=c)).compute() for c in (-1, tuple(cuts)))
    finally:
        normalisation._TOGETHER = old
    assert whole.identical(cut)


def test_statistics_of_selections_of_a_store_and_of_shards(acts: Path, tmp_path: Path) -> None:
    for path in (acts, write_shards(tmp_path / "shards", values(40))):
        x = stores.open_store(path)["activations"]
        every_third = np.arange(x.sizes["image"]) % 3 == 0
        for some in (x.isel(image=slice(0, 12)), x[::-1], x.chunk(image=5), x.isel(image=every_third)):
            assert (
                normalisation.statistics(some).compute().identical(normalisation.statistics(some.compute()).compute())
            )


def test_no_chunk_waits_in_memory_between_the_two_passes() -> None:
    x = make_activations()["activations"].chunk(image=4)
    read: list[int] = []
    x = x.copy(data=x.data.map_blocks(lambda block: read.append(len(block)) or block, meta=x.data._meta))  # type: ignore[func-returns-value]
    normalisation.statistics(x).compute()
    assert sum(read) == 2 * x.sizes["image"]


def test_a_nan_is_named_by_image_and_patch() -> None:
    data = make_activations()
    by = normalisation.statistics(data["activations"]).compute()
    data["activations"].values[17, 4, 2] = np.nan
    for lazy in (
        normalisation.statistics(data["activations"].chunk(image=5)),
        normalisation.normalize(data["activations"], by),
    ):
        with pytest.raises(DataError, match=r"image 017\.png, patch 4: an activation is not finite"):
            lazy.compute()


def test_normalising_is_lazy(never_computes: None) -> None:
    x = make_activations()["activations"].chunk(image=4)
    shifted = normalisation.normalize(x, normalisation.statistics(x))
    assert isinstance(shifted.data, da.Array)
    with pytest.raises(AssertionError, match="something computed"):
        shifted.compute()


def test_statistics_that_can_not_be_used(tmp_path: Path) -> None:
    x = make_activations()["activations"]
    mean = np.zeros(8, np.float32)
    np.savez(tmp_path / "zero.npz", mean=mean, scale=0.0)
    np.savez(tmp_path / "other.npz", scale=1.0)
    np.savez(tmp_path / "nan.npz", mean=mean * np.nan, scale=1.0)
    np.savez(tmp_path / "pickle.npz", mean=np.array([{}], object), scale=1.0)
    np.savez(tmp_path / "two.npz", mean=mean, scale=np.ones(2))
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.savez(tmp_path / "complex.npz", mean=mean + 1j, scale=1.0)
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, mean)
    np.savez_compressed(tmp_path / "damaged.npz", mean=np.arange(4000.0), scale=1.0)
    data = bytearray((tmp_path / "damaged.npz").read_bytes())
    data[150:400] = bytes(250)
    (tmp_path / "damaged.npz").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive, archive.open("mean.npy", "w") as part:
        np.lib.format.write_array_header_1_0(part, {"descr": "<f4", "fortran_order": False, "shape": (10**11,)})
    for name in (
        "zero",
        "other",
        "nan",
        "pickle",
        "two",
        "text",
        "nowhere",
        "empty",
        "complex",
        "array",
        "damaged",
        "huge",
    ):
        with pytest.raises(DataError, match=rf"{name}\.npz: ") as told:
            normalisation.read_statistics(tmp_path / f"{name}.npz")
        assert "allow_pickle" not in str(told.value)
    np.savez(tmp_path / "narrow.npz", mean=mean[:3], scale=1.0)
    with pytest.raises(DataError, match=r"narrow\.npz: mean is of 3 features, the activations have 8"):
        normalisation.normalize(x, normalisation.read_statistics(tmp_path / "narrow.npz"))


def test_the_command_normalises_and_records_it(acts: Path, sae_file: Path, tmp_path: Path, run: Run) -> None:
    x = stores.open_store(acts)["activations"]
    by = normalisation.statistics(x).compute()
    np.savez(tmp_path / "by.npz", mean=by["mean"].values, scale=by["scale"].values)
    run("encode", acts, "--sae", sae_file, "-o", tmp_path / "probe.zarr", "--normalize", "probe")
    run("encode", acts, "--sae", sae_file, "-o", tmp_path / "file.zarr", "--normalize", tmp_path / "by.npz")
    run("encode", acts, "--sae", sae_file, "-o", tmp_path / "none.zarr")
    probe, file, none = (stores.open_store(tmp_path / f"{name}.zarr") for name in ("probe", "file", "none"))
    expected = semprobe.patch_sum(normalisation.normalize(x, by), semprobe.load_sae(sae_file)).values
    assert (probe["patch_sum"].values == expected).all()
    assert (file["patch_sum"].values == expected).all()
    assert (none["patch_sum"].values != expected).any()
    said = [one.attrs["provenance"]["normalisation"] for one in (probe, file, none)]
    assert said[0]["kind"] == "probe"
    assert said[0]["scale"] == float(by["scale"])
    assert said[1]["mean_sha256"] == said[0]["mean_sha256"]
    assert said[2] == "none"
    direct = run("score", acts, "--sae", sae_file, "-o", tmp_path / "a.zarr", "--normalize", "probe")
    stored = run("score", tmp_path / "probe.zarr", "-o", tmp_path / "b.zarr")
    assert direct.stdout.splitlines()[:-1] == stored.stdout.splitlines()[:-1]
    refused = run("score", tmp_path / "probe.zarr", "-o", tmp_path / "c.zarr", "--normalize", "probe", code=2)
    assert "need --sae" in refused.stderr
    wrong = run("score", acts, "--sae", sae_file, "-o", tmp_path / "c.zarr", "--normalize", "prob", code=1)
    assert "prob: expected none, probe or an .npz file" in wrong.stderr


# what an SAE declares


@pytest.mark.parametrize(
    ("model", "layer", "backbone", "block", "number"),
    [
        ("pilot", 4, "pilot", 4, 0),
        ("pilot", 4, "pilot", 3, 1),
        ("pilot", 4, "tiny-vit", 3, 2),
        ("pilot", 4, None, None, 0),
        ("pilot", -2, "pilot", 4, 0),
        ("ViT-B-16/openai", -2, "ViT-B-16/openai", 10, 0),
        ("ViT-B-16/openai", -5, "ViT-B-16/openai", 10, 1),
        ("dinov3_vits16_pretrain_lvd1689m-08c60483.pth", 8, "vit_small_patch16_dinov3.lvd1689m", 8, 0),
        ("facebook/dinov3-vits16-pretrain-lvd1689m", 8, "vit_small_patch16_dinov3.lvd1689m", 8, 0),
        ("facebook/dinov3-vits16plus-pretrain-lvd1689m", 8, "vit_small_plus_patch16_dinov3.lvd1689m", 8, 0),
        ("facebook/dinov3-vits16plus-pretrain-lvd1689m", 8, "vit_small_patch16_dinov3.lvd1689m", 8, 1),
        ("/weights/dinov3_vits16plus_pretrain_lvd1689m-4057cbaa.pth", 8, "dinov3_vits16", 8, 1),
        ("facebook/dinov3-vitl16-pretrain-sat493m", 8, "vit_large_patch16_dinov3.sat493m", 8, 0),
        ("facebook/dinov3-vitl16-pretrain-sat493m", 8, "facebook/dinov3-vitl16-pretrain-lvd1689m", 8, 1),
        ("dinov3_vitl16", 8, "vit_large_patch16_dinov3.sat493m", 8, 0),
        ("facebook/dinov3-vit7b16-pretrain-lvd1689m", 8, "vit_7b_patch16_dinov3.lvd1689m", 8, 0),
        ("vit_base_patch16_clip_quickgelu_224.openai", 10, "openai/clip-vit-base-patch16", 10, 0),
        ("vit_base_patch16_clip_quickgelu_224.openai", 10, "ViT-B-16/openai", 10, 0),
        ("vit_base_patch16_clip_224.openai", 10, "ViT-B-16/openai", 10, 0),
        ("vit_base_patch16_clip_224.openai", 10, "ViT-B-16-quickgelu/openai", 10, 1),
        ("vit_base_patch14_reg4_dinov2.lvd142m", 10, "dinov2_vitb14_reg", 10, 0),
        ("vit_base_patch14_dinov2.lvd142m", 10, "dinov2_vitb14_reg", 10, 1),
        ("vit_base_patch32_clip_224.datacompxl", 10, "open-clip:laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K", 10, 0),
        ("vit_small_patch16_224", 10, "timm/vit_small_patch16_224.augreg_in1k", 10, 0),
        ("vit_small_patch16_224.dino", 10, "vit_small_patch16_224.augreg_in1k", 10, 1),
    ],
)
def test_one_backbone_has_several_names(
    model: str, layer: int, backbone: str | None, block: int | None, number: int
) -> None:
    said = {key: value for key, value in (("backbone", backbone), ("layer", block)) if value is not None}
    assert len(mismatches({"model": model, "layer": layer}, said)) == number


@pytest.mark.parametrize(
    "hook", ["blocks.10.hook_resid_post", "visual.transformer.resblocks.10", "vision_model.encoder.layers.10", "h.10"]
)
def test_a_hook_names_its_block(hook: str) -> None:
    assert declared(None, hook) == {"layer": 10}


def test_an_sae_of_another_block_is_refused_unless_forced(acts: Path, tmp_path: Path, run: Run) -> None:
    tensors = {"W_enc": torch.randn(64, 9), "b_enc": torch.randn(9), "b_dec": torch.zeros(64)}
    about = {"format": "semprobe-sae", "version": "1", "activation": "relu", "subtract_b_dec": "false"}
    save_file(tensors, tmp_path / "sae", metadata={**about, "backbone": "test_vit", "layer": "2"})
    for command in ("encode", "score"):
        refused = run(command, acts, "--sae", tmp_path / "sae", "-o", tmp_path / "x.zarr", code=1)
        assert "activations are of block 4, the SAE declares block 2. --force" in refused.stderr
        assert not (tmp_path / "x.zarr").exists()
        forced = run(command, acts, "--sae", tmp_path / "sae", "-o", tmp_path / f"{command}.zarr", "--force")
        assert "FORCED: the activations are of block 4" in forced.stderr
        came = stores.open_store(tmp_path / f"{command}.zarr").attrs["provenance"]
        assert came["forced"] == ["the activations are of block 4, the SAE declares block 2"]
    text = run("sae", tmp_path / "sae", "--on", acts).stdout
    assert "declared layer: 2" in text
    assert "the SAE declares block 2" in text
    assert "can't be told" in text


# how well it rebuilds


def test_a_perfect_sae_explains_everything() -> None:
    x = make_activations(20, 6, 8)["activations"]
    both = np.vstack([np.eye(8), -np.eye(8), np.zeros((2, 8))])
    sae = SAE(both, np.array([0.0] * 17 + [1.0]), decoder=both, decoder_bias=np.zeros(8))
    fit = measure_fit(x, sae)
    assert fit.explained_variance == pytest.approx(1)
    assert (fit.l0, fit.dead, fit.always_on) == (9, 1 / 18, 1 / 18)
    assert "fits these activations" in fit.verdict
    with pytest.raises(SAEError, match="reads 3 features"):
        measure_fit(x, SAE(np.eye(3), np.zeros(3)))


def test_activations_that_an_sae_was_not_trained_on_are_told() -> None:
    x = make_activations(20, 6, 8)["activations"]
    both = np.vstack([np.eye(8), -np.eye(8)])
    sae = SAE(both, -0.2 * np.ones(16), decoder=both, decoder_bias=np.zeros(8))
    strange = x * 1e-2 + 3
    by = normalisation.statistics(strange)
    raw = measure_fit(strange, replace(sae, bias=-10 * np.ones(16)))
    assert raw.explained_variance is not None
    assert raw.explained_variance < 0
    normalised = measure_fit(normalisation.normalize(strange, by), sae)
    assert "not what this SAE was trained on; with --normalize probe it is 0." in words(raw, normalised)


def test_activations_that_are_not_finite_name_their_image() -> None:
    x = make_activations(20, 6, 8)["activations"].copy()
    x[13, 2, 5] = np.inf
    for compute in (
        lambda: normalisation.statistics(x).compute(),
        lambda: normalisation.normalize(x, normalisation.statistics(x[:5])).compute(),
        lambda: measure_fit(x, SAE(np.eye(8), np.zeros(8))),
    ):
        with pytest.raises(DataError, match=r"image 013\.png"):
            compute()


def test_a_sample_is_seeded_and_whole_images() -> None:
    x = make_activations(50, 6, 8)["activations"].chunk(image=7)
    one, two, other = (sample(x, patches=60, seed=seed) for seed in (0, 0, 1))
    assert one.sizes["image"] == 10
    assert one.identical(two)
    assert not one["image"].identical(other["image"])
    assert sample(x, patches=10**6).sizes["image"] == 50


def test_the_command(acts: Path, sae_file: Path, tmp_path: Path, run: Run) -> None:
    found = json.loads(run("sae", sae_file, "--on", acts, "--json").stdout)
    assert (found["latents"], found["features"], found["origin"]) == (96, 64, "saev, schema 5")
    sae = semprobe.load_sae(sae_file, decoder=True)
    fit = measure_fit(stores.open_store(acts)["activations"], sae)
    assert found["on"]["explained_variance"] == pytest.approx(fit.explained_variance)
    assert found["on"]["l0"] == pytest.approx(fit.l0)
    assert "saev-clip-vit-b16" in run("sae", "--list").stdout
    assert "declared backbone: pilot" in run("sae", "pilot").stdout
    assert "Missing argument" in run("sae", code=2).stderr
    assert "no such file" in run("sae", tmp_path / "nowhere", code=1).stderr
    assert "needs --on" in run("sae", sae_file, "--normalize", "probe", code=2).stderr
    assert "store of latents" not in run("sae", sae_file, "--on", tmp_path / "nowhere", code=1).stderr


def test_nothing_to_rebuild_is_no_division() -> None:
    same = xr.DataArray(np.ones((3, 4, 8), np.float32), dims=("image", "patch", "feature"))
    sae = SAE(np.eye(8), np.zeros(8), decoder=np.eye(8), decoder_bias=np.zeros(8))
    assert measure_fit(same, sae).explained_variance is None
