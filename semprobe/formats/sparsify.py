"""sparsify: cfg.json and sae.safetensors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from semprobe.errors import SAEError
from semprobe.formats._common import declared, flag, whole
from semprobe.sae import SAE, TopK

if TYPE_CHECKING:
    from semprobe.checkpoints import Options, Raw


def is_sparsify(raw: Raw) -> bool:
    return {"d_in", "k"} <= raw.config.keys() and {"encoder.weight", "b_dec"} <= set(raw.tensors)


def _hook_of(folder: str) -> str | None:
    """sparsify names the folder of an SAE by its hook, such as layers.10 or layers.10.mlp."""
    return folder if re.match(r"(layers|h|blocks)\.\d+(\.[a-z_]+)*$", folder) else None


def read_sparsify(raw: Raw, options: Options) -> SAE:
    config, tensors = raw.config, raw.tensors
    how = config.get("activation", "topk")
    if how not in ("topk", "groupmax"):
        raise SAEError(f"unknown activation {how!r} of sparsify; known are topk and groupmax")
    if flag(config, "signed", False):
        raise SAEError("signed codes of an early sparsify, which its present version no longer encodes that way")
    transcodes = flag(config, "transcode", False)
    by = "group" if how == "groupmax" else "value"
    keep = options.decoder and not transcodes
    return SAE(
        encoder=tensors["encoder.weight"].numpy(),
        bias=tensors["encoder.bias"].numpy(),
        activation=TopK(whole(config["k"], "k"), by=by, relu=True),
        centre=None if transcodes else tensors["b_dec"].numpy(),
        decoder=tensors["W_dec"].numpy() if keep else None,
        decoder_bias=tensors["b_dec"].numpy() if keep else None,
        origin=f"sparsify, {how}{' transcoder' if transcodes else ''}",
        path=str(raw.path),
        declared=declared(None, _hook_of(raw.path.parent.name)),
    )
