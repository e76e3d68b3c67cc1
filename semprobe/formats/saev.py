"""saev: a line of JSON, then torch.save(state_dict); and semprobe's own safetensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from semprobe.errors import SAEError
from semprobe.formats._common import declared, rows, settings_in, whole
from semprobe.sae import SAE, Activation, Threshold, TopK

if TYPE_CHECKING:
    from semprobe.checkpoints import Options, Raw


# saev: a line of JSON, then torch.save(state_dict)


def is_saev(raw: Raw) -> bool:
    return raw.header is not None


def _saev_activation(header: dict[str, Any], raw: Raw, options: Options) -> Activation:
    schema, cfg = header.get("schema"), settings_in(header.get("cfg", header), "cfg")
    declared = cfg.get("activation") or {"cls": header.get("cls", None if schema else "Relu"), "params": cfg}
    name, params = settings_in(declared, "activation").get("cls"), declared.get("params") or {}
    if name == "Relu":
        return Threshold()
    if name not in ("TopK", "BatchTopK"):
        raise SAEError(f"unknown activation {name!r} of saev; known are Relu, TopK and BatchTopK")
    if name == "BatchTopK" and "activation.threshold" in raw.tensors:
        return Threshold(float(raw.tensors["activation.threshold"]))
    if name == "BatchTopK" and schema not in (3, 4):
        threshold = options.take("threshold")
        if threshold is not None:
            return Threshold(threshold)
        raise SAEError(
            f"BatchTopK of {'no schema' if schema is None else f'schema {schema}'} without a threshold: the code of a "
            "patch depended on the other patches of its batch, so it can't be encoded faithfully, unless you give a "
            "threshold (--sae-threshold)"
        )
    k = whole(settings_in(params, "params").get("top_k"), f"top_k of this {name} SAE")
    return TopK(min(k, raw.tensors["W_enc"].shape[1]) if name == "BatchTopK" else k)  # which saev cuts off so


def read_saev(raw: Raw, options: Options) -> SAE:
    header = raw.header or {}
    schema = header.get("schema")
    if schema is not None and (type(schema) is not int or not 1 <= schema <= 5):
        raise SAEError(f"saev schema {schema!r} is not known; this semprobe reads none and 1 to 5")
    cfg = settings_in(header.get("cfg", header), "cfg")
    subtracts = schema is None or (schema == 1 and "activation" not in cfg)
    return SAE(
        encoder=rows(raw.tensors["W_enc"]),
        bias=raw.tensors["b_enc"].numpy(),
        activation=_saev_activation(header, raw, options),
        centre=raw.tensors["b_dec"].numpy() if subtracts else None,
        decoder=raw.tensors["W_dec"].numpy() if options.decoder else None,
        decoder_bias=raw.tensors["b_dec"].numpy(),
        origin=f"saev, {'no schema' if schema is None else f'schema {schema}'}",
        path=str(raw.path),
    )


# semprobe's own: safetensors with the formula in its metadata


def is_semprobe(raw: Raw) -> bool:
    return raw.metadata.get("format") == "semprobe-sae"


def read_semprobe(raw: Raw, options: Options) -> SAE:
    about = raw.metadata
    if about.get("version") != "1":
        raise SAEError(f"semprobe-sae version {about.get('version')!r}; this semprobe reads version 1: upgrade")
    kind, subtracts = about.get("activation"), about.get("subtract_b_dec")
    if subtracts not in ("true", "false"):
        raise SAEError(f"subtract_b_dec is {subtracts!r}, expected 'true' or 'false'")
    if kind not in ("relu", "threshold", "topk"):
        raise SAEError(f"unknown activation {kind!r}; known are relu, threshold and topk")
    kinds: dict[str, Callable[[], Activation]] = {
        "relu": Threshold,
        "threshold": lambda: Threshold(float(about["threshold"])),
        "topk": lambda: TopK(int(about["k"])),
    }
    with_decoder = options.decoder and "W_dec" in raw.tensors
    layer = about.get("layer", "")
    return SAE(
        encoder=rows(raw.tensors["W_enc"]),
        bias=raw.tensors["b_enc"].numpy(),
        activation=kinds[kind](),
        centre=raw.tensors["b_dec"].numpy() if subtracts == "true" else None,
        decoder=raw.tensors["W_dec"].numpy() if with_decoder else None,
        decoder_bias=raw.tensors["b_dec"].numpy(),
        origin="semprobe, version 1",
        path=str(raw.path),
        declared=declared(about.get("backbone"), layer=int(layer) if layer.isdecimal() else None),
    )
