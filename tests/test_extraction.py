"""Backbones, geometry and extraction."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image
from safetensors.torch import save_file

from semprobe import backbones, extraction, stores
from semprobe.backbones import Backbone, load_backbone
from semprobe.errors import BackboneError, DataError, ImagesError, StoreIncomplete, UnreadableImage
from semprobe.images import find_images
from semprobe.transforms import Transform
from tests.conftest import MODEL, draw


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(MODEL, random_weights=0, layers=(-2, 0))


def _extract(pictures: Path, backbone: Backbone, path: Path, **options: object) -> xr.Dataset:
    good = extraction.inspect_images(find_images(pictures))
    writers = {}
    for layer in dict.fromkeys(backbone.layers):
        kept = {key: options[key] for key in ("dtype", "cls") if key in options}
        filled = extraction.template(good, backbone, **kept)  # type: ignore[arg-type]
        place = Path(str(path).replace("{layer}", str(layer)))
        writers[layer] = stores.create(place, filled, kind="activations", shard=16, provenance={"layer": layer})
    extraction.extract(good, backbone, writers, **options)  # type: ignore[arg-type]
    return stores.open_store(str(path).replace("{layer}", str(backbone.layers[0]))).load()


def test_tokens_are_the_block_outputs(backbone: Backbone, pictures: Path, tmp_path: Path) -> None:
    """Against a plain loop over the model's blocks, and the model's own transform."""
    found = _extract(pictures, backbone, tmp_path / "a{layer}.zarr", cls=True)
    model = backbone.model
    prepare = backbone.transform.pipeline()
    for at, name in enumerate(found["image"].values):
        x = model._pos_embed(model.patch_embed(prepare(Image.open(pictures / name).convert("RGB"))[None]))  # type: ignore[operator]
        x = model.norm_pre(x)  # type: ignore[operator]
        with torch.inference_mode():
            for block in list(model.blocks)[:5]:  # type: ignore[arg-type]
                x = block(x)
        np.testing.assert_allclose(found["activations"][at], x[0, 1:], atol=1e-4)
        np.testing.assert_allclose(found["cls"][at], x[0, 0], atol=1e-4)
    assert found["row"].values.tolist() == [at // 10 for at in range(100)]
    assert found["column"].values.tolist() == [at % 10 for at in range(100)]


def test_several_layers_in_one_pass_equal_one_at_a_time(backbone: Backbone, pictures: Path, tmp_path: Path) -> None:
    _extract(pictures, backbone, tmp_path / "a{layer}.zarr")
    for layer in (4, 0):
        alone = load_backbone(MODEL, random_weights=0, layers=(layer,))
        single = _extract(pictures, alone, tmp_path / f"one{layer}.zarr")
        both = stores.open_store(tmp_path / f"a{layer}.zarr")
        np.testing.assert_array_equal(single["activations"], both["activations"])


def test_workers_do_not_matter_and_float16_is_the_rounded_float32(
    backbone: Backbone, pictures: Path, tmp_path: Path
) -> None:
    one = _extract(pictures, backbone, tmp_path / "1{layer}.zarr", workers=1, batch=2)
    many = _extract(pictures, backbone, tmp_path / "2{layer}.zarr", workers=4, batch=2)
    xr.testing.assert_identical(one.drop_attrs(), many.drop_attrs())
    half = _extract(pictures, backbone, tmp_path / "h{layer}.zarr", workers=1, batch=2, dtype="float16")
    np.testing.assert_array_equal(half["activations"], one["activations"].astype(np.float16))


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("vit_tiny_patch16_224", True), ("deit_tiny_distilled_patch16_224", True),
        ("vit_pwee_patch16_reg1_gap_256", False), ("eva02_tiny_patch14_224", True),
        ("vit_small_patch14_reg4_dinov2", True), ("vit_small_patch16_dinov3", True),
        ("vit_base_patch16_siglip_224", False), ("vit_base_patch16_clip_quickgelu_224", True),
        ("beit_base_patch16_224", True),
    ],
)  # fmt: skip
def test_families(name: str, prefix: bool) -> None:
    size = 112 if "patch14" in name else 128 if "256" in name else 112
    one = load_backbone(name, random_weights=0, layers=(0,), size=size)
    patches, cls = one.tokens(torch.zeros(2, 3, size, size))[0]
    assert patches.shape == (2, one.patches, one.features)
    assert one.has_cls == prefix
    assert (cls is not None) == prefix


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_smal_patch16_224", {}, "not known to timm.*did you mean vit_small_patch16_224"),
        ("resnet18", {}, "is a ResNet; semprobe reads plain vision transformers"),
        (MODEL, {"layers": (6,)}, "has 6 blocks; layer 6 is none of -6 to 5"),
        ("vit_tiny_r_s16_p8_224", {}, "plain vision transformers"),
        (MODEL, {"size": 100}, "patches of 16 pixels.*no multiple"),
        (MODEL, {"device": "nonsense"}, "device 'nonsense' can't be used"),
        (MODEL, {"crop_pct": 1.5}, "crop_pct is 1.5"),
        ("pilot", {"size": 64}, "reads 96 pixels, not 64"),
    ],
)
def test_what_can_not_be_a_backbone(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        load_backbone(name, random_weights=0, **options)  # type: ignore[arg-type]


def test_hub_weights_that_can_not_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    real = timm.create_model

    def offline(*args: object, pretrained: bool = False, **options: object) -> torch.nn.Module:
        if pretrained:
            raise OSError("no network")
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("timm.create_model", offline)
    for name in (MODEL, "hf-hub:someone/some-vit"):
        with pytest.raises(BackboneError, match="no network.*--weights.*--random-weights"):
            load_backbone(name)
    with pytest.raises(BackboneError, match="is a ResNet"):  # before anything is fetched
        load_backbone("resnet18")
    with pytest.raises(BackboneError, match="has 6 blocks; layer 6"):
        load_backbone(MODEL, layers=(6,))


def test_local_weights(tmp_path: Path, backbone: Backbone) -> None:
    state = {name: value + 0.01 for name, value in backbone.model.state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "a.pt")
    found = [load_backbone(MODEL, weights=tmp_path / name) for name in ("a.safetensors", "a.pt")]
    assert found[0].sha256 == found[1].sha256 != backbone.sha256
    del state["norm.weight"]
    save_file(state, tmp_path / "b.safetensors")
    with pytest.raises(BackboneError, match=r"do not fit the model: 1 are missing \(norm.weight"):
        load_backbone(MODEL, weights=tmp_path / "b.safetensors")
    torch.save({"model": object}, tmp_path / "c.pt")
    with pytest.raises(BackboneError, match="refused|holds no tensors"):
        load_backbone(MODEL, weights=tmp_path / "c.pt")
    with pytest.raises(BackboneError, match="no such weights file"):
        load_backbone(MODEL, weights=tmp_path / "nowhere.pt")


def test_random_weights_repeat_and_leave_the_callers_randomness_alone() -> None:
    torch.manual_seed(7)
    before = torch.rand(1)
    torch.manual_seed(7)
    one, two, other = (load_backbone(MODEL, random_weights=seed).sha256 for seed in (3, 3, 4))
    assert one == two != other
    assert torch.rand(1) == before


# geometry: a picture whose pixels tell where they are


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(400, 300), (300, 401), (257, 1000), (224, 224), (100, 60)])
@pytest.mark.parametrize("pct", [1.0, 0.9, 0.875])
@pytest.mark.parametrize("edges", [(224, 224), (224, 160)])
def test_crop_is_where_the_model_looks(mode: str, size: tuple[int, int], pct: float, edges: tuple[int, int]) -> None:
    width, height = size
    transform = Transform(edges, pct, mode, "bilinear", (0.0,) * 3, (1.0,) * 3)
    across = np.broadcast_to((np.arange(width) + 0.5) / width * 255, (height, width))
    down = np.broadcast_to(((np.arange(height) + 0.5) / height * 255)[:, None], (height, width))
    axes = [transform.pipeline()(Image.fromarray(np.uint8(a)).convert("RGB"))[0].numpy() * 255 for a in (across, down)]
    left, top, right, bottom = transform.crop(width, height, edges)
    x = left + (np.arange(edges[1]) + 0.5) / edges[1] * (right - left)
    y = top + (np.arange(edges[0]) + 0.5) / edges[0] * (bottom - top)
    inside_x = (x > width * 0.03) & (x < width * 0.97)
    inside_y = (y > height * 0.03) & (y < height * 0.97)
    seen_x = axes[0][np.argmax(inside_y)][inside_x] / 255 * width
    seen_y = axes[1][:, np.argmax(inside_x)][inside_y] / 255 * height
    pixel_x, pixel_y = (right - left) / edges[1], (bottom - top) / edges[0]
    assert abs(seen_x - x[inside_x]).max() < 0.6 * pixel_x + width / 255
    assert abs(seen_y - y[inside_y]).max() < 0.6 * pixel_y + height / 255


def test_crop_of_a_rotated_picture_is_in_upright_pixels(backbone: Backbone, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    draw(tmp_path / "a.jpg", size=(400, 200), exif=exif)
    good = extraction.inspect_images(find_images(tmp_path))
    assert (good["width"].item(), good["height"].item()) == (200, 400)
    filled = extraction.template(good, backbone)
    left, top, right, bottom = filled["crop"].values[0]
    assert right - left == pytest.approx(bottom - top, rel=0.01)
    assert 0 <= left < right <= 200
    assert top == pytest.approx(400 - bottom, abs=2)


# what goes wrong


def test_unreadable_images_stop_or_are_listed(pictures: Path) -> None:
    (pictures / "t-shirt-positive" / "broken.jpg").write_bytes(b"\xff\xd8\xff no")
    found = find_images(pictures)
    with pytest.raises(UnreadableImage, match=r"broken\.jpg.*--on-error skip"):
        extraction.inspect_images(found)
    good = extraction.inspect_images(found, skip=True)
    assert good.sizes["image"] == 7
    assert [one["image"] for one in good.attrs["skipped"]] == ["t-shirt-positive/broken.jpg"]


def test_a_picture_that_changes_meanwhile(backbone: Backbone, pictures: Path, tmp_path: Path) -> None:
    good = extraction.inspect_images(find_images(pictures))
    draw(pictures / "t-shirt-positive" / "1.png", (0, 0, 0))
    writer = stores.create(
        tmp_path / "a.zarr", extraction.template(good, backbone), kind="activations", shard=16, provenance={}
    )
    with pytest.raises(UnreadableImage, match=r"1\.png.*changed"):
        extraction.extract(good, backbone, {4: writer})


def test_overflow_in_float16_is_named(
    monkeypatch: pytest.MonkeyPatch, backbone: Backbone, pictures: Path, tmp_path: Path
) -> None:
    def huge(self: Backbone, batch: torch.Tensor) -> extraction.Tokens:
        tokens = np.ones((len(batch), 100, 64), np.float32)
        tokens[-1, 3, 5] = 1e6
        return {4: (tokens, None), 0: (tokens, None)}

    monkeypatch.setattr(Backbone, "tokens", huge)
    with pytest.raises(DataError, match=r"t-shirt-positive/2\.png: .*not finite in float16"):
        _extract(pictures, backbone, tmp_path / "a{layer}.zarr", dtype="float16")


def test_no_class_token_to_keep(pictures: Path) -> None:
    one = load_backbone("vit_base_patch16_siglip_224", random_weights=0, layers=(0,), size=32)
    with pytest.raises(DataError, match="no class token"):
        extraction.template(extraction.inspect_images(find_images(pictures)), one, cls=True)


def test_a_size_that_is_no_multiple_of_the_patch_covers_less() -> None:
    """As SigLIP at 384 pixels with patches of 14."""
    one = load_backbone("vit_tiny_patch16_224", random_weights=0, size=100, crop_pct=1.0, layers=(0,))
    assert one.grid == (6, 6)
    assert one.tokens(torch.zeros(1, 3, 100, 100))[0][0].shape == (1, 36, 192)
    assert one.crop(200, 200) == (0, 0, 192, 192)


def test_a_picture_too_long_to_resize_is_named(backbone: Backbone, tmp_path: Path) -> None:
    draw(tmp_path / "long.png", size=(90_000, 1))
    good = extraction.inspect_images(find_images(tmp_path))
    with pytest.raises(ImagesError, match=r"long\.png: 90000 x 1 pixels"):
        extraction.template(good, backbone)


def test_killed_at_random_moments_and_rerun_gives_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL while it writes; the rerun's arrays equal an undisturbed run's, bit for bit."""
    for at in range(96):
        draw(tmp_path / "images" / f"{at:02}.png", (at, 90, 255 - at))
    rng = np.random.default_rng(int.from_bytes(os.urandom(4), "big"))
    code = (
        "import semprobe.stores._layout as layout; layout.SHARD_BYTES = 450_000\n"
        "from semprobe.cli import main; main()"
    )  # six shards

    def command(output: Path) -> list[str]:
        options = ["--model", MODEL, "--random-weights", "0", "--workers", "1", "--batch", "2"]
        return [sys.executable, "-c", code, "extract", str(tmp_path / "images"), "-o", str(output), *options]

    def shards() -> int:
        return len(list((tmp_path / "torn.zarr" / "activations" / "c").glob("*/0/0")))

    subprocess.run(command(tmp_path / "calm.zarr"), check=True, capture_output=True)
    for there in (0, 2):
        process = subprocess.Popen(
            command(tmp_path / "torn.zarr"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while shards() <= there and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        with pytest.raises(StoreIncomplete):
            stores.open_store(tmp_path / "torn.zarr")
    assert 2 < shards() < 6
    subprocess.run(command(tmp_path / "torn.zarr"), check=True, capture_output=True)
    calm, torn = (stores.open_store(tmp_path / name) for name in ("calm.zarr", "torn.zarr"))
    xr.testing.assert_identical(calm.load().drop_attrs(), torn.load().drop_attrs())


def test_short_names_are_timm_models() -> None:
    import timm

    for name, (full, _) in backbones.SHORT_NAMES.items():
        assert name == "pilot" or full in timm.list_pretrained()
