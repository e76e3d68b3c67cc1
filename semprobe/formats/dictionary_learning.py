"""dictionary_learning: ae.pt and config.json {"trainer": {"dict_class", ...}}."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from semprobe.errors import SAEError
from semprobe.formats._common import declared, whole
from semprobe.sae import SAE, Activation, Gated, Threshold, TopK

if TYPE_CHECKING:
    import torch

    from semprobe.checkpoints import Options, Raw


def is_dictionary(raw: Raw) -> bool:
    trainer = raw.config.get("trainer")
    held = {"encoder.weight", "W_enc"} & set(raw.tensors)
    return isinstance(trainer, dict) and "dict_class" in trainer and bool(held)


def _unfinished(raw: Raw) -> float:
    """What an unfinished run's biases are multiplied by: it trained on activations divided by it."""
    if raw.extra.get("nested") != "ae":
        return 1.0
    if "norm_factor" not in raw.extra:
        raise SAEError("an unfinished run without norm_factor, by which its biases would have to be multiplied")
    factor = raw.extra["norm_factor"]
    if factor is None:  # the run did not normalise
        return 1.0
    if getattr(factor, "numel", lambda: 1)() != 1 or isinstance(factor, str | bool | list | dict):
        raise SAEError(f"norm_factor is {factor!r}, expected a positive number")
    if not 0 < float(factor) < float("inf"):
        raise SAEError(f"norm_factor is {float(factor)}, expected a positive number")
    return float(factor)


class _Dictionary(NamedTuple):
    """Parts of a class of dictionary_learning: names of its tensors, and what is kept."""

    encoder: torch.Tensor
    """(latent, feature)."""
    bias: torch.Tensor
    centre: torch.Tensor | None
    activation: Activation
    decoder: torch.Tensor
    """(latent, feature)."""
    decoder_bias: torch.Tensor


def _auto_encoder(raw: Raw, trainer: dict[str, Any], factor: float) -> _Dictionary:
    """AutoEncoder: its loader moves the decoder's norms into the encoder, unless all are about 1."""
    import torch

    tensors = raw.tensors
    encoder, bias, decoder = tensors["encoder.weight"], tensors["encoder.bias"] * factor, tensors["decoder.weight"].T
    norms = decoder.norm(dim=1)
    if not torch.allclose(norms, torch.ones_like(norms)):
        unit = decoder / norms.where(norms > 0, 1)[:, None]  # a column of zeros stays one
        encoder, bias, decoder = encoder * norms[:, None], bias * norms, unit
    centre = tensors["bias"] * factor
    return _Dictionary(encoder, bias, centre, Threshold(), decoder, centre)


def _auto_encoder_new(raw: Raw, trainer: dict[str, Any], factor: float) -> _Dictionary:
    tensors = raw.tensors
    if factor != 1:
        raise SAEError("an unfinished AutoEncoderNew with a norm_factor, which its library can't scale either")
    decoder = tensors["decoder.weight"].T
    return _Dictionary(
        tensors["encoder.weight"], tensors["encoder.bias"], None, Threshold(), decoder, tensors["decoder.bias"]
    )


def _gated(raw: Raw, trainer: dict[str, Any], factor: float) -> _Dictionary:
    tensors = raw.tensors
    kept = Gated((tensors["gate_bias"] * factor).numpy(), tensors["r_mag"].exp().numpy())
    centre = tensors["decoder_bias"] * factor
    decoder = tensors["decoder.weight"].T
    return _Dictionary(tensors["encoder.weight"], tensors["mag_bias"] * factor, centre, kept, decoder, centre)


def _jump_relu(raw: Raw, trainer: dict[str, Any], factor: float) -> _Dictionary:
    """JumpReluAutoEncoder: b_dec is not subtracted from the input."""
    tensors = raw.tensors
    kept = Threshold((tensors["threshold"] * factor).numpy())
    bias = tensors["b_enc"] * factor
    return _Dictionary(tensors["W_enc"].T, bias, None, kept, tensors["W_dec"], tensors["b_dec"] * factor)


def _top_k(raw: Raw, trainer: dict[str, Any], factor: float) -> _Dictionary:
    """AutoEncoderTopK: a threshold in the file is ignored, as its encoder does by default."""
    held = int(raw.tensors["k"]) if "k" in raw.tensors else None
    k = whole(trainer.get("k", held), "k of the trainer")
    if held not in (None, k):
        raise SAEError(f"config.json says k = {k}, the weights say {held}; they do not belong together")
    return _with_b_dec(raw, factor, TopK(k, relu=True))


def _batch_top_k(raw: Raw, trainer: dict[str, Any], factor: float) -> _Dictionary:
    """BatchTopKSAE and its Matryoshka kind: one threshold; below 0, before it was estimated, a plain ReLU."""
    return _with_b_dec(raw, factor, Threshold(float(raw.tensors["threshold"] * factor)))


def _with_b_dec(raw: Raw, factor: float, kept: Activation) -> _Dictionary:
    tensors = raw.tensors
    nested = "decoder.weight" in tensors
    encoder = tensors["encoder.weight"] if "encoder.weight" in tensors else tensors["W_enc"].T
    bias = tensors["encoder.bias"] if "encoder.bias" in tensors else tensors["b_enc"]
    decoder = tensors["decoder.weight"].T if nested else tensors["W_dec"]
    centre = tensors["b_dec"] * factor
    return _Dictionary(encoder, bias * factor, centre, kept, decoder, centre)


_DICTIONARIES: dict[str, Callable[[Raw, dict[str, Any], float], _Dictionary]] = {
    "AutoEncoder": _auto_encoder,
    "AutoEncoderNew": _auto_encoder_new,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jump_relu,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _batch_top_k,
    "MatroyshkaBatchTopKSAE": _batch_top_k,
}


def _site(trainer: dict[str, Any]) -> str | None:
    """Where in the block, such as attn_out or mlp_out, from ``resid_post_layer_10`` and its like."""
    name = trainer.get("submodule_name")
    return name.partition("_layer_")[0] if isinstance(name, str) else None


def read_dictionary(raw: Raw, options: Options) -> SAE:
    trainer = raw.config["trainer"]
    name = trainer["dict_class"]
    if not isinstance(name, str) or name not in _DICTIONARIES:
        raise SAEError(f"unknown dict_class {name!r}; known are {', '.join(_DICTIONARIES)}")
    factor = _unfinished(raw)
    found = _DICTIONARIES[name](raw, trainer, factor)
    left = f" of an unfinished run, biases times {factor:.6g}" if raw.extra.get("nested") == "ae" else ""
    left += ", decoder norms folded in as its loader does" if name == "AutoEncoder" else ""
    return SAE(
        encoder=found.encoder.numpy(),
        bias=found.bias.numpy(),
        activation=found.activation,
        centre=None if found.centre is None else found.centre.numpy(),
        decoder=found.decoder.numpy() if options.decoder else None,
        decoder_bias=found.decoder_bias.numpy(),
        origin=f"dictionary_learning, {name}{left}",
        path=str(raw.path),
        declared=declared(trainer.get("lm_name"), _site(trainer), trainer.get("layer")),
    )
