"""The same numbers as the originals: their transforms, next to their own code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torchvision.transforms as v1
from click.testing import Result
from PIL import Image
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torchvision.transforms import v2

from semprobe import stores
from semprobe.backbones import load_backbone
from semprobe.errors import BackboneError
from semprobe.transforms import VARIANTS, like_settings, make_transform

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = [(401, 300), (300, 401), (257, 1000), (61, 47), (47, 61), (224, 224), (225, 227), (1, 5), (3001, 223)]


def _register(name: str, **architecture: Any) -> str:
    """A small model that timm makes by name."""

    def make(pretrained: bool = False, img_size: int = architecture["img_size"], **options: Any) -> VisionTransformer:
        return VisionTransformer(**architecture | {"img_size": img_size}, num_classes=0)

    make.__name__ = name
    register_model(make)
    return name


_CLIP: dict[str, Any] = {
    "img_size": 224, "patch_size": 16, "embed_dim": 64, "depth": 3, "num_heads": 2, "pre_norm": True,
    "norm_layer": partial(torch.nn.LayerNorm, eps=1e-5),
}  # fmt: skip
_DINOV2: dict[str, Any] = {
    "img_size": 518, "patch_size": 14, "embed_dim": 32, "depth": 2, "num_heads": 2, "init_values": 1.0,
    "reg_tokens": 4, "no_embed_class": True,
}  # fmt: skip

GELU = _register("tiny_clip_224", **_CLIP, act_layer="gelu")
QUICKGELU = _register("tiny_clip_quickgelu_224", **_CLIP, act_layer="quick_gelu")
DINOV2 = _register("tiny_reg4_dinov2", **_DINOV2)


# transforms


def _v2(resize: Any) -> v2.Compose:
    """saev's transform for DINOv2."""
    return v2.Compose(
        [v2.Resize(resize), v2.CenterCrop((224, 224)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
         v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    )  # fmt: skip


def _v1(resize: Any) -> v1.Compose:
    return v1.Compose([v1.Resize(resize), v1.CenterCrop(224), v1.ToTensor(), v1.Normalize(IMAGENET_MEAN, IMAGENET_STD)])


_ORIGINALS: list[tuple[str, Callable[[Image.Image], torch.Tensor], float]] = [
    ("saev-clip", open_clip.image_transform(224, is_train=False, mean=OPENAI_MEAN, std=OPENAI_STD), 0),
    ("saev-dinov2", _v1((256, 256)), 0),
    ("saev-dinov2-2025-05", _v1(256), 0),
    # v2 multiplies by 1/255 where v1 divides by 255: the same pixels, another last bit
    ("saev-dinov2", _v2((256, 256)), 1e-6),
    ("saev-dinov2-2025-05", _v2(256), 1e-6),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("like", "original", "tolerance"), _ORIGINALS)
def test_pixels_are_the_originals(
    like: str, original: Callable[[Image.Image], torch.Tensor], tolerance: float, size: tuple[int, int]
) -> None:
    config = {"input_size": (3, 224, 224), "interpolation": "nearest", "mean": (0,), "std": (1,), "crop_pct": 0.9}
    transform = make_transform(config, like_settings(like, "any", {}))
    noise = np.random.default_rng(size).integers(0, 256, (size[1], size[0], 3), np.uint8)
    picture = Image.fromarray(noise)
    torch.testing.assert_close(transform.pipeline()(picture), original(picture), atol=tolerance, rtol=0)


@pytest.mark.parametrize("like", VARIANTS)
@pytest.mark.parametrize("size", [(640, 360), (360, 641), (150, 100)])
def test_a_mark_is_found_where_the_crop_says(like: str, size: tuple[int, int]) -> None:
    """A white square a third from the left and two thirds from the top of what is kept."""
    one = load_backbone(DINOV2 if "dinov2" in like else GELU, random_weights=0, like=like)
    left, top, right, bottom = one.crop(*size)
    x, y = round(left + (right - left) / 3), round(top + (bottom - top) * 2 / 3)
    picture = Image.new("RGB", size)
    picture.paste((255, 255, 255), (x - 5, y - 5, x + 5, y + 5))
    light = one.transform.pipeline()(picture).sum(0).clamp(min=0).numpy()
    rows, columns = np.mgrid[:224, :224] + 0.5
    seen_x, seen_y = (light * columns).sum() / light.sum(), (light * rows).sum() / light.sum()
    assert left + seen_x * (right - left) / 224 == pytest.approx(x, abs=0.5)
    assert top + seen_y * (bottom - top) / 224 == pytest.approx(y, abs=0.5)


def test_squashing_keeps_more_of_a_long_picture() -> None:
    squashed, cut = (load_backbone(DINOV2, random_weights=0, like=like) for like in list(VARIANTS)[1:])
    assert squashed.crop(512, 256) == (32, 16, 480, 240)
    assert cut.crop(512, 256) == (144, 16, 368, 240)
    assert squashed.grid == cut.grid == (16, 16)


@pytest.mark.parametrize(
    ("model", "variant"),
    [
        (GELU, "saev-clip"), (DINOV2, "saev-dinov2"), ("vit_base_patch16_clip_quickgelu_224.openai", "saev-clip"),
        ("vit_base_patch14_reg4_dinov2.lvd142m", "saev-dinov2"), ("hf-hub:timm/vit_base_patch16_clip_224", "saev-clip"),
    ],
)  # fmt: skip
def test_saev_chooses_by_family(model: str, variant: str) -> None:
    assert like_settings("saev", model, {}) == {**VARIANTS[variant].settings, "like": variant}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_base_patch16_siglip_224", {"like": "saev"}, "neither a CLIP nor a DINOv2.*one of saev-clip, saev-dinov2"),
        (GELU, {"like": "saev-clips"}, "like is 'saev-clips', expected one of saev, saev-clip"),
        (GELU, {"like": "saev-clip", "crop_pct": 0.9}, "crop_pct is 0.9, but like 'saev-clip' stands for crop_pct 1.0"),
        (DINOV2, {"like": "saev", "size": 448}, "size is 448, but like 'saev-dinov2' stands for size 224"),
    ],
)
def test_likes_that_can_not_be(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        load_backbone(name, random_weights=0, **options)


def test_an_option_that_says_the_same_as_like_is_no_contradiction() -> None:
    one, other = (load_backbone(DINOV2, random_weights=0, like="saev", **o) for o in ({}, {"crop_mode": "squash"}))  # type: ignore[arg-type]
    assert one.transform == other.transform


def test_short_names_keep_the_models_own_transform_and_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semprobe.backbones.weights_sha256", lambda model: "none: no memory is taken for weights")
    for name, activation in (("clip-vit-b16", "QuickGELU"), ("clip-vit-b16-gelu", "GELU")):
        with torch.device("meta"):
            one = load_backbone(name, random_weights=0, device="meta")
        assert type(one.model.blocks[0].mlp.act).__name__ == activation  # type: ignore[index,union-attr]
        assert one.transform.crop_pct == 0.9
        assert "like" not in one.transform.describe()


def test_like_is_recorded(pictures: Path, tmp_path: Path, run: Callable[..., Result]) -> None:
    path = tmp_path / "a.zarr"
    run("extract", pictures, "-o", path, "--model", GELU, "--random-weights", 0, "--like", "saev")
    found = stores.open_store(path).attrs["provenance"]["backbone"]["transform"]
    assert found == {
        "like": "saev-clip", "size": [224, 224], "crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic",
        "mean": list(OPENAI_MEAN), "std": list(OPENAI_STD), "alpha": "on white",
    }  # fmt: skip
    refused = run(
        "extract", pictures, "-o", path, "--model", GELU, "--random-weights", 0, "--like", "saev", "--crop-pct", 0.5,
        code=1,
    )  # fmt: skip
    assert "leave one of the two out" in refused.stderr
