"""Are these the activations that an SAE says it was trained on? Names of one backbone differ between libraries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_QUICK, _GELU = "vit_base_patch16_clip_quickgelu_224.openai", "vit_base_patch16_clip_224.openai"

ALIASES: dict[str, tuple[str, ...]] = {
    "clip-vit-b16": (_QUICK,),
    "vit-b-16/openai": (_QUICK, _GELU),  # open_clip ran it with QuickGELU before 2.29 and with GELU since
    "vit-b-16-quickgelu/openai": (_QUICK,),
    "vit-b-32/openai": ("vit_base_patch32_clip_quickgelu_224.openai", "vit_base_patch32_clip_224.openai"),
    "vit-l-14/openai": ("vit_large_patch14_clip_quickgelu_224.openai", "vit_large_patch14_clip_224.openai"),
    "laion/clip-vit-b-32-datacomp.xl-s13b-b90k": ("vit_base_patch32_clip_224.datacompxl",),
    "laion/clip-vit-b-16-datacomp.xl-s13b-b90k": ("vit_base_patch16_clip_224.datacompxl",),
    "laion/clip-vit-b-32-laion2b-s34b-b79k": ("vit_base_patch32_clip_224.laion2b",),
    "laion/clip-vit-b-16-laion2b-s34b-b88k": ("vit_base_patch16_clip_224.laion2b",),
    "openai/clip-vit-base-patch16": (_QUICK,),
    "openai/clip-vit-base-patch32": ("vit_base_patch32_clip_quickgelu_224.openai",),
    "openai/clip-vit-large-patch14": ("vit_large_patch14_clip_quickgelu_224.openai",),
    "clip-vit-b16-gelu": (_GELU,),
    "dinov2-vit-b14-reg": ("vit_base_patch14_reg4_dinov2.lvd142m",),
    **{
        f"dinov2_vit{letter}14{'_reg' if registers else ''}": (
            f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2.lvd142m",
        )
        for letter, size in (("s", "small"), ("b", "base"), ("l", "large"), ("g", "giant"))
        for registers in (True, False)
    },
    **{
        f"facebook/dinov2-{'with-registers-' if registers else ''}{size}": (
            f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2.lvd142m",
        )
        for size in ("small", "base", "large", "giant")
        for registers in (True, False)
    },
}
"""A name in other libraries, in lower case: the models of timm that it may stand for."""

_DINOV3 = re.compile(
    r"dinov3[-_]vit(?P<size>s|b|l|h|7b)16(?P<plus>plus)?([-_]pretrain[-_](?P<tag>lvd1689m|sat493m))?(-[0-9a-f]{8})?(\.pth)?"
)
"""Names of DINOv3's own files and of its hub models, such as dinov3_vits16plus_pretrain_lvd1689m-4057cbaa.pth."""

_SIZES = {"s": "small", "b": "base", "l": "large", "h": "huge", "7b": "7b"}

_PREFIXES = ("open-clip:", "hf-hub:", "hf_hub:", "timm/")


def _models(name: str) -> set[str]:
    """What a name may stand for in timm's names, or itself in lower case."""
    plain = name.strip().lower()
    for prefix in _PREFIXES:
        plain = plain.removeprefix(prefix)
    if match := _DINOV3.fullmatch(plain.rpartition("/")[2]):
        size = _SIZES[match["size"]] + ("_plus" if match["plus"] else "")
        return {f"vit_{size}_patch16_dinov3" + (f".{match['tag']}" if match["tag"] else "")}
    return set(ALIASES.get(plain, (plain,)))


_DEPTHS = {"tiny": 12, "small": 12, "base": 12, "large": 24, "giant": 40}


def _layer(layer: Any, model: Any) -> int | None:
    """A block counted from 0; old files of saev count from the end, -2 for block 10 of 12. None if it can't be told."""
    if type(layer) is not int or layer >= 0:
        return layer if type(layer) is int else None
    sizes = {size for name in _models(str(model)) for size in _DEPTHS if f"_{size}_" in name}
    return _DEPTHS[sizes.pop()] + layer if len(sizes) == 1 else None


def _same_model(one: str, other: str) -> bool:
    """Whether two names may be of one model; a name without the tag of its weights stands for all of them."""
    return any(
        a == b or a == b.partition(".")[0] or b == a.partition(".")[0] for a in _models(one) for b in _models(other)
    )


def mismatches(backbone: Mapping[str, Any], declared: Mapping[str, Any]) -> list[str]:
    """What the activations' backbone and an SAE's declaration disagree on, one phrase each.

    Parameters
    ----------
    backbone
        Of a store's provenance: ``model`` and ``layer``, a block from 0. A negative layer, in old shards of saev,
        counts from the end, where the model's name tells how many blocks it has; else it is not compared.
    declared
        Of the SAE: ``backbone``, ``layer`` and, if it is not the output of that block, ``site``; what it does not say
        is not compared.
    """
    found = []
    model, wanted = backbone.get("model"), declared.get("backbone")
    if model and wanted and not _same_model(str(model), str(wanted)):
        found.append(f"the activations are of {model}, the SAE declares {wanted}")
    layer, wanted_layer = _layer(backbone.get("layer"), model), _layer(declared.get("layer"), wanted)
    if None not in (layer, wanted_layer) and layer != wanted_layer:
        found.append(f"the activations are of block {layer}, the SAE declares block {wanted_layer}")
    if declared.get("site"):
        found.append(f"the activations are what leaves a block, the SAE declares {declared['site']}")
    return found
