"""overcomplete: a state dict, and what the user says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from semprobe.errors import SAEError
from semprobe.formats._common import at_least, whole
from semprobe.sae import SAE, Activation, Threshold, TopK

if TYPE_CHECKING:
    import torch

    from semprobe.checkpoints import Options, Raw


def is_overcomplete(raw: Raw) -> bool:
    return any(name.startswith(("encoder.final_block.", "dictionary.")) for name in raw.tensors)


_OVERCOMPLETE_KINDS = ("relu", "topk", "batchtopk")


def _overcomplete_activation(raw: Raw, options: Options) -> Activation:
    if "thresholds" in raw.tensors:
        return Threshold(at_least(raw.tensors["thresholds"].exp().numpy()))
    kind = options.take("kind")
    if kind not in _OVERCOMPLETE_KINDS:
        raise SAEError(
            f"a state dict of overcomplete does not say its class{f'; {kind!r} is none of it' if kind else ''}: give "
            "it as --sae-kind relu (SAE, RATopK's base), topk (with --sae-k) or batchtopk (with --sae-threshold)"
        )
    if kind == "relu":
        return Threshold()
    needed = "k" if kind == "topk" else "threshold"
    value = options.take(needed)
    if value is None:
        raise SAEError(f"a {kind} SAE of overcomplete does not say its {needed} in the file: give --sae-{needed}")
    return TopK(whole(value, "k"), relu=True) if kind == "topk" else Threshold(at_least(value))


def _overcomplete_encoder(raw: Raw) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    tensors = raw.tensors
    plain = "encoder.final_block.0.weight" in tensors
    weight = "encoder.final_block.0.weight" if plain else "encoder.weight"
    read = (weight, weight.replace("weight", "bias"))
    more = [name for name in tensors if name.startswith(("encoder.", "Q")) and name not in read]
    if more:
        raise SAEError(f"an encoder with more than one linear layer ({more[0]}), which semprobe does not read")
    if weight not in tensors:
        raise SAEError("an encoder tied to the dictionary, whose normalisation the file does not say; untie it first")
    encoder, bias = tensors[weight], read[1]
    return encoder, tensors[bias] if bias in tensors else torch.zeros(len(encoder))


def read_overcomplete(raw: Raw, options: Options) -> SAE:
    import torch

    encoder, bias = _overcomplete_encoder(raw)
    activation = _overcomplete_activation(raw, options)
    decoder = None
    if options.decoder and "dictionary._weights" in raw.tensors:
        weights = raw.tensors["dictionary._weights"]
        norms = weights.norm(dim=1)
        if torch.allclose(norms, torch.ones_like(norms), atol=1e-4):  # otherwise its normalisation is not known
            decoder = (weights * raw.tensors["dictionary.multiplier"].exp()).numpy()
    return SAE(
        encoder=encoder.numpy(),
        bias=bias.numpy(),
        activation=activation,
        decoder=decoder,
        decoder_bias=np.zeros(encoder.shape[1], np.float32),
        origin="overcomplete, state dict",
        path=str(raw.path),
    )
