"""Are these the activations that an SAE says it was trained on? Names of one backbone differ between libraries."""

from __future__ import annotations

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
    "dinov2-vit-b14-reg": ("vit_base_patch14_reg4_dinov2.lvd142m",),
    **{
        f"dinov2_vit{letter}14{'_reg' if registers else ''}": (
            f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2.lvd142m",
        )
        for letter, size in (("s", "small"), ("b", "base"), ("l", "large"), ("g", "giant"))
        for registers in (True, False)
    },
}
"""A name in other libraries, in lower case: the models of timm that it may stand for."""

_PREFIXES = ("open-clip:", "hf-hub:", "hf_hub:", "timm/")


def _models(name: str) -> set[str]:
    """What a name may stand for in timm's names, or itself in lower case."""
    plain = name.strip().lower()
    for prefix in _PREFIXES:
        plain = plain.removeprefix(prefix)
    return set(ALIASES.get(plain, (plain,)))


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
        Of a store's provenance: ``model`` and ``layer``, a block from 0. Negative layers, in old files of other
        projects, count from an end that is not recorded and are not compared.
    declared
        Of the SAE: ``backbone`` and ``layer``; what it does not say is not compared.
    """
    found = []
    model, wanted = backbone.get("model"), declared.get("backbone")
    if model and wanted and not _same_model(str(model), str(wanted)):
        found.append(f"the activations are of {model}, the SAE declares {wanted}")
    layer, wanted_layer = backbone.get("layer"), declared.get("layer")
    known = type(layer) is int and type(wanted_layer) is int and layer >= 0 and wanted_layer >= 0
    if known and layer != wanted_layer:
        found.append(f"the activations are of block {layer}, the SAE declares block {wanted_layer}")
    return found
