"""The same numbers as the originals: their transforms and their checkpoints, next to their own code."""

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
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional
from torchvision.transforms import v2

from semprobe import extraction, stores
from semprobe.backbones import Backbone, load_backbone
from semprobe.errors import BackboneError
from semprobe.images import find_images
from semprobe.transforms import VARIANTS, like_settings, make_transform
from tests.conftest import draw

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


# open_clip


def _clip(quick: bool, **vision: Any) -> open_clip.CLIP:
    """A small CLIP of open_clip, with weights large enough that its activations matter."""
    torch.manual_seed(3)
    seen = {"layers": 3, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 224, **vision}
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    model = open_clip.CLIP(32, seen, text, quick_gelu=quick)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model.eval()


@torch.inference_mode()
def _hooked(model: open_clip.CLIP, files: list[str]) -> list[torch.Tensor]:
    """What every block of open_clip gives for pictures that open_clip's own transform prepared."""
    found: list[torch.Tensor] = []
    blocks = model.visual.transformer.resblocks
    hooks = [block.register_forward_hook(lambda module, given, out: found.append(out)) for block in blocks]
    prepare = open_clip.image_transform(224, is_train=False, mean=OPENAI_MEAN, std=OPENAI_STD)
    model.encode_image(torch.stack([prepare(Image.open(file)) for file in files]))
    for hook in hooks:
        hook.remove()
    return found


def _difference(one: Backbone, model: open_clip.CLIP, folder: Path) -> float:
    """Largest difference of all blocks, relative to the largest value of each."""
    for at, size in enumerate([(301, 200), (99, 140), (224, 225)]):
        draw(folder / f"{at}.{'jpg' if at else 'png'}", (90 * at, 40, 200), size)
    images = extraction.inspect_images(find_images(folder))
    ours = extraction.run_batch(one, images, 0, 3)
    theirs = _hooked(model, images["file"].values.tolist())
    worst = 0.0
    for layer, expected in enumerate(theirs):
        patches, cls = ours[layer]
        assert cls is not None
        found = np.concatenate([cls[:, None], patches], 1)
        worst = max(worst, float(abs(found - expected.numpy()).max() / abs(expected).max()))
    return worst


def _save_plain(state: dict[str, Any], folder: Path) -> Path:
    torch.save(state, folder / "weights.pt")
    return folder / "weights.pt"


def _save_training(state: dict[str, Any], folder: Path) -> Path:
    wrapped = {"epoch": 3, "name": "run", "state_dict": {f"module.{name}": value for name, value in state.items()}}
    torch.save(wrapped, folder / "epoch_3.safetensors")  # a name that lies: only the content counts
    return folder / "epoch_3.safetensors"


def _save_safetensors(state: dict[str, Any], folder: Path) -> Path:
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "open_clip_model.bin")
    return folder / "open_clip_model.bin"


@pytest.mark.parametrize("save", [_save_plain, _save_training, _save_safetensors])
@pytest.mark.parametrize(("name", "quick"), [(GELU, False), (QUICKGELU, True)])
def test_blocks_of_open_clip(save: Callable[..., Path], name: str, quick: bool, tmp_path: Path) -> None:
    model = _clip(quick)
    state = model.state_dict()
    assert {"logit_scale", "text_projection", "visual.proj", "token_embedding.weight"} <= set(state)
    one = load_backbone(name, weights=save(state, tmp_path), like="saev", layers=(0, 1, 2))
    assert _difference(one, model, tmp_path / "pictures") < 1e-4


def test_gelu_for_quickgelu_is_another_model(tmp_path: Path) -> None:
    model = _clip(quick=True)
    one = load_backbone(GELU, weights=_save_plain(model.state_dict(), tmp_path), like="saev", layers=(0, 1, 2))
    assert _difference(one, model, tmp_path / "pictures") > 1e-3


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"patch_size": 32}, r"found visual.conv1.weight of shape \(64, 3, 32, 32\), expected \(64, 3, 16, 16\)"),
        ({"width": 96}, r"found visual.conv1.weight of shape \(96, 3, 16, 16\)"),
        ({"layers": 4}, r"0 are missing \(\), 12 are not known \(blocks.3"),
        ({"layers": 2}, r"12 are missing \(blocks.2"),
        ({"mlp_ratio": 3.0}, r"found blocks.0.mlp.fc1.weight of shape \(192, 64\), expected \(256, 64\)"),
    ],
)
def test_another_clip_is_refused(vision: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = _save_plain(_clip(False, **vision).state_dict(), tmp_path)
    with pytest.raises(BackboneError, match=rf"weights\.pt: .* do not fit the model: {message}.*choose the model"):
        load_backbone(GELU, weights=path)


# DINOv2


def _hub(model: VisionTransformer) -> dict[str, torch.Tensor]:
    """A state dict as DINOv2's hub names it: positions of 37 x 37 patches and of the class token."""
    state = {name: value for name, value in model.state_dict().items() if "reg_token" not in name}
    positions = torch.randn(1, 37 * 37 + 1, 32)
    more = {"register_tokens": torch.randn(1, 4, 32), "mask_token": torch.zeros(1, 32), "pos_embed": positions}
    return {**state, **more, "cls_token": torch.randn(1, 1, 32)}


@torch.inference_mode()
def _hub_forward(hub: dict[str, torch.Tensor], model: VisionTransformer, pixels: torch.Tensor) -> torch.Tensor:
    """DINOv2's own preparation of tokens, with antialiased positions as its models with registers have, and blocks."""
    weight, bias = hub["patch_embed.proj.weight"], hub["patch_embed.proj.bias"]
    patches = functional.conv2d(pixels, weight, bias, stride=14).flatten(2).transpose(1, 2)
    x = torch.cat([hub["cls_token"].expand(len(pixels), -1, -1), patches], 1)
    grid = hub["pos_embed"][:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    small = functional.interpolate(grid, size=(16, 16), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    x = x + torch.cat([hub["pos_embed"][:, :1], small], 1)
    x = torch.cat([x[:, :1], hub["register_tokens"].expand(len(pixels), -1, -1), x[:, 1:]], 1)
    for block in model.blocks:
        x = block(x)
    return x


def _teacher(hub: dict[str, torch.Tensor]) -> dict[str, Any]:
    head = {"dino_head.mlp.0.weight": torch.zeros(2, 2)}
    return {"teacher": {f"backbone.{name}": value for name, value in hub.items()} | head, "iteration": 7}


def _chunked(hub: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {"model": {name.replace("blocks.1.", "blocks.1.1.").replace("blocks.0.", "blocks.0.0."): value
                      for name, value in hub.items()}}  # fmt: skip


def _maskless(hub: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: value for name, value in hub.items() if name != "mask_token"}


@pytest.mark.parametrize("form", [dict, _teacher, _chunked, _maskless])
def test_blocks_of_dinov2(form: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = VisionTransformer(**_DINOV2, num_classes=0).eval()
    hub = _hub(model)
    torch.save(form(hub), tmp_path / "hub.pth")
    one = load_backbone(DINOV2, weights=tmp_path / "hub.pth", like="saev", layers=(-1,))
    pixels = torch.randn(2, 3, 224, 224)
    patches, cls = one.tokens(pixels)[1]
    expected = _hub_forward(hub, model, pixels).numpy()
    np.testing.assert_allclose(patches, expected[:, 5:], atol=1e-5 * abs(expected).max())
    np.testing.assert_allclose(cls, expected[:, 0], atol=1e-5 * abs(expected).max())


def test_dinov2_without_registers_is_another_model(tmp_path: Path) -> None:
    hub = _hub(VisionTransformer(**_DINOV2, num_classes=0))
    del hub["register_tokens"]
    torch.save(hub, tmp_path / "hub.pth")
    with pytest.raises(BackboneError, match=r"hub\.pth.*found 0 register tokens, expected 4"):
        load_backbone(DINOV2, weights=tmp_path / "hub.pth")


def test_what_is_no_state_dict(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(BackboneError, match=r"a\.pt: is no checkpoint"):
        load_backbone(GELU, weights=tmp_path / "a.pt")
    save_file({"x": torch.zeros(1)}, tmp_path / "b.pt")
    with pytest.raises(BackboneError, match=r"b\.pt: .* are missing"):
        load_backbone(GELU, weights=tmp_path / "b.pt")


@pytest.mark.filterwarnings("ignore")  # torch gives TorchScript up
def test_openais_own_archives_are_named(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(tmp_path / "ViT-B-16.pt"))
    with pytest.raises(BackboneError, match=r"ViT-B-16\.pt: found a TorchScript archive.*state_dict\(\)"):
        load_backbone(GELU, weights=tmp_path / "ViT-B-16.pt")
