"""SAELens: cfg.json and sae_weights.safetensors; and ViT-Prisma, which began as a copy of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from semprobe.errors import SAEError
from semprobe.formats._common import declared, flag, printable, rows, settings_in, whole
from semprobe.sae import SAE, Activation, Gated, Threshold, TopK

if TYPE_CHECKING:
    import torch

    from semprobe.checkpoints import Options, Raw


# SAELens: cfg.json and sae_weights.safetensors


_LENS_NOTHING = ("none", "expected_average_only_in", "covariance_whitening", None, False, True)
"""Normalisations that SAELens' loader does nothing about: folded in before, or meant for training."""


def _normalisation(value: Any) -> str | None:
    if value in ("layer_norm", "constant_norm_rescale"):
        return str(value)
    if any(value is one or (isinstance(one, str) and value == one) for one in _LENS_NOTHING):
        return None
    raise SAEError(f"unknown normalize_activations {value!r}")


def is_lens(raw: Raw) -> bool:
    named = {"architecture", "activation_fn_str", "hook_point", "hook_name"} & raw.config.keys()
    return bool(named) and "W_enc" in raw.tensors and not is_prisma(raw)


def _lens_version(config: dict[str, Any]) -> str | None:
    """The version of SAELens, None before 6, when files did not say it."""
    metadata = config.get("metadata")
    version = config.get("sae_lens_version") or (isinstance(metadata, dict) and metadata.get("sae_lens_version"))
    if not isinstance(version, str) or not version.split(".")[0].isdecimal():
        return None
    return printable(version) if int(version.split(".")[0]) >= 6 else None


def _lens_architecture(config: dict[str, Any]) -> tuple[str, Any]:
    """Name, and k where there is one; files from before version 6 say topk as an activation function."""
    name = config.get("architecture", "standard")
    if _lens_version(config):
        return str(name), config.get("k")
    function = config.get("activation_fn_str", config.get("activation_fn", "relu"))
    settings = settings_in(config.get("activation_fn_kwargs") or {}, "activation_fn_kwargs")
    if function == "topk":
        return "topk", settings.get("k")
    if function != "relu":
        raise SAEError(f"activation function {function!r}; known are relu and topk")
    return str(name), settings.get("k", config.get("k"))


def _norms(raw: Raw) -> torch.Tensor:
    return raw.tensors["W_dec"].norm(dim=-1)


_LENS_BATCH = ("batchtopk", "matryoshka_batchtopk", "matryoshka")


def _lens_activation(name: str, k: Any, raw: Raw, options: Options) -> tuple[Activation, str]:
    """What is kept, and the tensor that is the bias."""
    tensors = raw.tensors
    if name in ("standard", "transcoder", "skip_transcoder"):
        return Threshold(), "b_enc"
    if name in ("jumprelu", "jumprelu_transcoder", "jumprelu_skip_transcoder"):
        older = "threshold" not in tensors and "log_threshold" in tensors
        return Threshold((tensors["log_threshold"].exp() if older else tensors["threshold"]).numpy()), "b_enc"
    if name == "topk":
        return TopK(whole(k, "k"), relu=True), "b_enc"
    if name == "abstopk":
        return TopK(whole(k, "k"), by="magnitude"), "b_enc"
    if name == "gated":
        return Gated(tensors["b_gate"].numpy(), tensors["r_mag"].exp().numpy()), "b_mag"
    if name not in _LENS_BATCH:
        raise SAEError(f"unknown architecture {name!r} of SAELens, so how it encodes is not known")
    threshold = options.take("threshold")
    if threshold is None:
        running = f"; training had got to {float(tensors['topk_threshold']):.4g}" if "topk_threshold" in tensors else ""
        raise SAEError(
            f"a training checkpoint of architecture {name}: a code depends on the other patches of its batch. Save it "
            f"for inference with SAELens, or give the threshold of its codes (--sae-threshold{running})"
        )
    return Threshold(threshold), "b_enc"


def _finetuning(raw: Raw) -> torch.Tensor | None:
    """What files from before version 6 multiply codes by before they decode; never to encode."""
    import torch

    name = next((one for one in ("scaling_factor", "finetuning_scaling_factor") if one in raw.tensors), None)
    if name is None or torch.allclose(raw.tensors[name], torch.ones_like(raw.tensors[name])):
        return None
    if raw.config.get("finetuning_scaling_factor") is not True:
        raise SAEError(f"holds {name} that is not 1, and the configuration does not say finetuning_scaling_factor")
    return raw.tensors[name]


def read_lens(raw: Raw, options: Options) -> SAE:
    config, version = raw.config, _lens_version(raw.config)
    name, k = _lens_architecture(config)
    activation, bias_name = _lens_activation(name, k, raw, options)
    encoder, bias = raw.tensors["W_enc"], raw.tensors[bias_name]
    crosses = "transcoder" in name  # the decoder writes elsewhere, and b_dec has its width
    rescales = name in ("topk", "abstopk", *_LENS_BATCH) and flag(config, "rescale_acts_by_decoder_norm", False)
    norms = _norms(raw) if rescales else None
    if norms is not None:
        encoder, bias = encoder * norms, bias * norms
    about = settings_in(config.get("metadata") or {}, "metadata") if version else config
    hook = about.get("hook_name", about.get("hook_point"))
    keep = options.decoder and not crosses
    finetuned = _finetuning(raw)
    decoder = raw.tensors["W_dec"] if keep else None
    if decoder is not None and norms is not None:
        decoder = decoder / norms[:, None]
    if decoder is not None and finetuned is not None:
        decoder = decoder * finetuned[:, None]
    subtracts = not crosses and flag(config, "apply_b_dec_to_input", True)
    return SAE(
        encoder=rows(encoder),
        bias=bias.numpy(),
        activation=activation,
        centre=raw.tensors["b_dec"].numpy() if subtracts else None,
        normalisation=_normalisation(config.get("normalize_activations")),
        decoder=None if decoder is None else decoder.numpy(),
        decoder_bias=raw.tensors["b_dec"].numpy() if keep else None,
        origin=f"SAELens {version or 'before 6'}, {name}{'' if norms is None else ', decoder norms folded in'}",
        path=str(raw.path),
        declared=declared(about.get("model_name"), hook),
    )


# ViT-Prisma: {"cfg", "state_dict"} in a .pt, and config.json


def is_prisma(raw: Raw) -> bool:
    known = raw.extra.get("prisma") or ("hook_point_layer" in raw.config and "layer_subtype" in raw.config)
    return bool(known) and "W_enc" in raw.tensors


def read_prisma(raw: Raw, options: Options) -> SAE:
    config, name = raw.config, raw.config.get("architecture", "standard")
    function = config.get("activation_fn_str", "topk")
    settings = settings_in(config.get("activation_fn_kwargs") or {}, "activation_fn_kwargs")
    if flag(config, "is_transcoder", False):
        raise SAEError("a transcoder of ViT-Prisma, whose encoder semprobe has not been able to check")
    if name not in ("standard", "gated", "vanilla"):
        raise SAEError(f"unknown architecture {name!r} of ViT-Prisma; known are standard and gated")
    if function not in ("relu", "topk") or (name == "gated" and function != "relu"):
        raise SAEError(f"activation function {function!r} of a {name} SAE; known are relu and topk")
    tensors, bias = raw.tensors, raw.tensors["b_mag" if name == "gated" else "b_enc"]
    activation: Activation = Threshold()
    if function == "topk":
        activation = TopK(whole(settings.get("k"), "k of activation_fn_kwargs"), relu=True)
    if name == "gated":
        activation = Gated(tensors["b_gate"].numpy(), tensors["r_mag"].exp().numpy())
    return SAE(
        encoder=rows(tensors["W_enc"]),
        bias=bias.numpy(),
        activation=activation,
        centre=tensors["b_dec"].numpy(),
        normalisation=_normalisation(config.get("normalize_activations", "layer_norm")),
        decoder=tensors["W_dec"].numpy() if options.decoder else None,
        decoder_bias=tensors["b_dec"].numpy(),
        origin=f"ViT-Prisma, {name}",
        path=str(raw.path),
        declared=declared(
            config.get("model_name"), f"blocks.{config.get('hook_point_layer')}.{config.get('layer_subtype', '')}"
        ),
    )
