"""Checkpoints encode exactly as the project that wrote them, and what can't is refused with the reason."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file, save_file

import semprobe
from semprobe import checkpoints
from semprobe.errors import SAEError
from semprobe.sae import SAE, Threshold, TopK
from tests.conftest import DATA, write_saev

OPTIONS: dict[str, dict[str, Any]] = {
    "overcomplete-relu": {"kind": "relu"},
    "overcomplete-batchtopk": {"kind": "batchtopk", "threshold": 0.62},
    "overcomplete-topk-untied": {"kind": "topk", "k": 14},
}
"""What the files of a library that writes no configuration do not say."""

CASES = sorted([*(DATA / "saev").glob("sae-*"), *(DATA / "sae").iterdir()])
ENCODED = [case for case in CASES if (case / "f_x.npy").exists()]


@pytest.mark.parametrize("case", ENCODED, ids=lambda case: case.name)
def test_golden_codes(case: Path) -> None:
    sae = semprobe.load_sae(case, **OPTIONS.get(case.name, {}))
    x, expected = np.load(case / "x.npy"), np.load(case / "f_x.npy")
    blocks = xr.DataArray(x.reshape(8, 5, 16), dims=("image", "patch", "feature")).chunk(image=3)
    lazy = semprobe.encode(blocks, sae).compute().values.reshape(expected.shape)
    for codes in (sae.encode(x), lazy):
        np.testing.assert_allclose(codes, expected, atol=1e-5)
        assert ((codes != 0) == (expected != 0)).all()


def test_files_that_depended_on_the_batch_are_refused_unless_a_threshold_is_given() -> None:
    refused = sorted(set(CASES) - set(ENCODED))
    assert len(refused) == 3
    for case in refused:
        with pytest.raises(SAEError, match=r"the other patches of its batch.*--sae-threshold"):
            semprobe.load_sae(case)
        assert "h > 0.5" in semprobe.load_sae(case, threshold=0.5).formula


def test_old_and_new_headers_on_the_same_weights_are_two_encoders(tmp_path: Path) -> None:
    data = (DATA / "saev" / "sae-noschema-relu" / "sae.pt").read_bytes()
    header, _, weights = data.partition(b"\n")
    new = {"schema": 5, "cfg": {"activation": {"cls": "Relu", "params": {}}}}
    (tmp_path / "new.pt").write_bytes(json.dumps(new).encode() + b"\n" + weights)
    old, other = (
        semprobe.load_sae(DATA / "saev" / "sae-noschema-relu" / "sae.pt"),
        semprobe.load_sae(tmp_path / "new.pt"),
    )
    assert "(x - b_dec)" in old.formula
    assert "b_dec" not in other.formula
    assert old.sha256 != other.sha256
    assert b"schema" not in header


def test_negative_thresholds_become_relu(tmp_path: Path) -> None:
    header = {"schema": 5, "cfg": {"activation": {"cls": "BatchTopK", "params": {"top_k": 2}}}}
    tensors = {"W_enc": torch.eye(3), "b_enc": torch.zeros(3), "b_dec": torch.zeros(3), "W_dec": torch.eye(3)}
    for value, expected in ((-0.5, 0.0), (0.25, 0.25)):
        with (tmp_path / "sae.pt").open("wb") as file:
            file.write(json.dumps(header).encode() + b"\n")
            torch.save({**tensors, "activation.threshold": torch.tensor(value)}, file)
        found = semprobe.load_sae(tmp_path / "sae.pt").activation
        assert isinstance(found, Threshold)
        assert found.threshold == expected


def _native(path: Path, **about: str) -> Path:
    tensors = {"W_enc": torch.randn(4, 6), "b_enc": torch.randn(6), "b_dec": torch.randn(4), "W_dec": torch.randn(6, 4)}
    metadata = {"format": "semprobe-sae", "version": "1", "subtract_b_dec": "false", **about}
    save_file(tensors, path, metadata=metadata)
    return path


def test_own_format(tmp_path: Path) -> None:
    path = _native(
        tmp_path / "a.safetensors", activation="threshold", threshold="0.5", subtract_b_dec="true", layer="10"
    )
    found = semprobe.load_sae(path)
    assert (found.width, found.latents, str(found.activation)) == (4, 6, "h where h > 0.5, else 0")
    assert found.centre is not None
    assert found.declared == {"layer": 10}
    assert semprobe.load_sae(_native(tmp_path / "b.safetensors", activation="topk", k="2")).activation == TopK(2)
    with pytest.raises(SAEError, match="unknown activation 'gelu'"):
        semprobe.load_sae(_native(tmp_path / "c.safetensors", activation="gelu"))
    with pytest.raises(SAEError, match="expected 'true' or 'false'"):
        semprobe.load_sae(_native(tmp_path / "e.safetensors", activation="relu", subtract_b_dec="True"))
    with pytest.raises(SAEError, match="not as that is written.*KeyError"):
        semprobe.load_sae(_native(tmp_path / "f.safetensors", activation="topk"))
    with pytest.raises(SAEError, match=r"g\.safetensors: the threshold is nan"):
        semprobe.load_sae(_native(tmp_path / "g.safetensors", activation="threshold", threshold="nan"))
    with pytest.raises(SAEError, match="version '7'.*upgrade"):
        semprobe.load_sae(_native(tmp_path / "d.safetensors", activation="relu", version="7"))


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    header = json.dumps({"schema": 5, "cfg": {"activation": {"cls": "Relu", "params": {}}}}).encode() + b"\n"
    bomb = _Bomb(tmp_path / "was-unpickled")
    torch.save({"W_enc": bomb}, tmp_path / "torch.pt")
    (tmp_path / "saev.pt").write_bytes(header + (tmp_path / "torch.pt").read_bytes())
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(bomb))
    for name in ("torch.pt", "saev.pt", "plain.pkl"):
        with pytest.raises(SAEError, match="pickle"):
            semprobe.load_sae(tmp_path / name)
    assert not bomb.mark.exists()
    pickle.loads((tmp_path / "plain.pkl").read_bytes())  # it would have left its mark
    assert bomb.mark.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-500], "can't be read"),
        (lambda data: data.replace(b'"schema": 5', b'"schema": 6', 1), "schema 6 is not known"),
        (lambda data: data.replace(b"Relu", b"Gelu", 1), "unknown activation 'Gelu'"),
        (lambda data: data.replace(b'"activation"', b'"activatiom"', 1), "unknown activation None"),
        (lambda data: data.replace(b'{"cls": "Relu", "params": {}}', b'"Relu"', 1), "expected settings in braces"),
        (lambda data: b"hello", "not a checkpoint that semprobe knows"),
        (lambda data: b"", "not a checkpoint that semprobe knows"),
        (lambda data: b"{not json\n" + data, "not the JSON header"),
    ],
)
def test_damaged_and_unknown_files(tmp_path: Path, change: Any, message: str) -> None:
    path = write_saev(tmp_path / "sae.pt")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(SAEError, match=message):
        semprobe.load_sae(path)


def test_missing_and_folders(tmp_path: Path) -> None:
    with pytest.raises(SAEError, match="no such file"):
        semprobe.load_sae(tmp_path / "nowhere.pt")
    with pytest.raises(SAEError, match="holds no file that can be an SAE"):
        semprobe.load_sae(tmp_path)


def test_a_changed_copy_does_not_travel_as_its_file(tmp_path: Path) -> None:
    sae = semprobe.load_sae(write_saev(tmp_path / "sae.pt"))
    changed = pickle.loads(pickle.dumps(replace(sae, activation=Threshold(0.5))))
    assert str(changed.activation) == "h where h > 0.5, else 0"


def test_shapes_and_values_are_checked() -> None:
    with pytest.raises(SAEError, match="bias has shape"):
        SAE(encoder=np.eye(3), bias=np.zeros(4))
    with pytest.raises(SAEError, match="NaN or infinite"):
        SAE(encoder=np.eye(3) * np.nan, bias=np.zeros(3))
    with pytest.raises(SAEError, match="k is 4, expected 1 to 3"):
        SAE(encoder=np.eye(3), bias=np.zeros(3), activation=TopK(4))


# folders, options and what is beside a file


def test_what_lies_beside_a_file_says_how_it_encodes(tmp_path: Path) -> None:
    case = DATA / "sae" / "sae-lens-standard"
    for given in (case, case / "cfg.json", case / "sae_weights.safetensors"):
        assert semprobe.load_sae(given).origin == "SAELens 6.54.12, standard"
    shutil.copy(case / "sae_weights.safetensors", tmp_path / "renamed.bin")
    with pytest.raises(SAEError, match=r"no cfg\.json or config\.json is beside it"):
        semprobe.load_sae(tmp_path / "renamed.bin")
    shutil.copy(case / "cfg.json", tmp_path / "config.json")  # by content, not by name
    assert semprobe.load_sae(tmp_path).sha256 == semprobe.load_sae(case).sha256


def test_a_folder_of_several_is_not_guessed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(DATA / "sae" / "eai-sparsify-topk", tmp_path / "all" / name)
    with pytest.raises(SAEError, match="name one of them: a, b"):
        semprobe.load_sae(tmp_path / "all")
    shutil.rmtree(tmp_path / "all" / "b")
    assert semprobe.load_sae(tmp_path / "all").origin == "sparsify, topk"
    case = tmp_path / "all" / "a"
    shutil.copy(case / "sae.safetensors", case / "other.safetensors")
    with pytest.raises(SAEError, match=r"2 files.*other\.safetensors, sae\.safetensors"):
        semprobe.load_sae(case)


def test_options_are_for_files_that_do_not_say_it(tmp_path: Path) -> None:
    case = DATA / "sae" / "overcomplete-topk-untied"
    with pytest.raises(SAEError, match="does not say its class: give it as --sae-kind"):
        semprobe.load_sae(case)
    with pytest.raises(SAEError, match="does not say its k in the file: give --sae-k"):
        semprobe.load_sae(case, kind="topk")
    with pytest.raises(SAEError, match="k is 65, expected 1 to 64"):
        semprobe.load_sae(case, kind="topk", k=65)
    with pytest.raises(SAEError, match="has no use for k"):
        semprobe.load_sae(DATA / "sae" / "sae-lens-topk", k=14)
    sae = semprobe.load_sae(case, kind="topk", k=14)
    assert pickle.loads(pickle.dumps(sae)).sha256 == sae.sha256
    assert len(pickle.dumps(sae)) < 1000


def test_other_files_of_the_same_formats(tmp_path: Path) -> None:
    """What the golden files do not show, from the libraries' own sources."""
    x = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)
    tensors = {"W_enc": torch.randn(4, 6), "b_enc": torch.randn(6), "b_dec": torch.randn(4), "W_dec": torch.randn(6, 4)}
    product = (torch.from_numpy(x) - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]

    def lens(**config: Any) -> np.ndarray:
        (tmp_path / "cfg.json").write_text(json.dumps({"metadata": {"sae_lens_version": "6.0.0"}, **config}))
        return semprobe.load_sae(tmp_path).encode(x)

    save_file(tensors, tmp_path / "sae_weights.safetensors")
    top = product.abs().topk(2).indices
    signed = torch.zeros_like(product).scatter(1, top, product.gather(1, top))
    np.testing.assert_allclose(lens(architecture="abstopk", k=2), signed, atol=1e-5)
    unit = torch.from_numpy(x)
    unit = unit * 2 / unit.norm(dim=1, keepdim=True)
    scaled = torch.relu((unit - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"])
    found = lens(architecture="standard", normalize_activations="constant_norm_rescale")
    np.testing.assert_allclose(found, scaled, atol=1e-5)
    with pytest.raises(SAEError, match="unknown architecture 'temporal'"):
        lens(architecture="temporal")
    with pytest.raises(SAEError, match="apply_b_dec_to_input is 1, expected true or false"):
        lens(architecture="standard", apply_b_dec_to_input=1)

    folder = tmp_path / "groupmax"
    folder.mkdir()
    (folder / "cfg.json").write_text(json.dumps({"activation": "groupmax", "k": 3, "d_in": 4, "num_latents": 6}))
    encoder = {"encoder.weight": tensors["W_enc"].T.contiguous(), "encoder.bias": tensors["b_enc"]}
    save_file({**encoder, "W_dec": tensors["W_dec"], "b_dec": tensors["b_dec"]}, folder / "sae.safetensors")
    values, at = torch.relu(product).unflatten(-1, (3, -1)).max(-1)
    expected = torch.zeros_like(product).scatter(1, at + torch.arange(0, 6, 2), values)
    np.testing.assert_allclose(semprobe.load_sae(folder).encode(x), expected, atol=1e-5)

    torch.save({**encoder, "thresholds": torch.full((6,), -0.5)}, tmp_path / "jump.pt")
    (tmp_path / "cfg.json").unlink()
    pre = torch.relu(torch.from_numpy(x) @ tensors["W_enc"] + tensors["b_enc"])
    with pytest.raises(SAEError, match="how it encodes is not known"):
        semprobe.load_sae(tmp_path / "jump.pt")
    torch.save({**encoder, "thresholds": torch.full((6,), -0.5), "dictionary._weights": torch.eye(6)[:, :4]},
               tmp_path / "jump.pt")  # fmt: skip
    found = semprobe.load_sae(tmp_path / "jump.pt").encode(x)
    np.testing.assert_allclose(found, torch.where(pre >= np.exp(-0.5), pre, 0), atol=1e-5)


@pytest.mark.parametrize("name", ["standard", "gated", "jumprelu", "batchtopk"])
def test_unfinished_runs_of_dictionary_learning(name: str, tmp_path: Path) -> None:
    """Biases, gates and thresholds times norm_factor, as its scale_biases does; without the factor none is guessed."""
    folder, w = tmp_path / "sae", _weights(f"dictionary-learning-{name}")
    shutil.copytree(DATA / "sae" / f"dictionary-learning-{name}", folder)
    biases = ("bias", "encoder.bias", "decoder_bias", "mag_bias", "gate_bias", "b_dec", "b_enc", "threshold")
    scaled = {key: torch.from_numpy(np.asarray(value * 3 if key in biases else value)) for key, value in w.items()}
    torch.save(scaled, folder / "ae.pt")
    finished = semprobe.load_sae(folder)
    state = {key: torch.from_numpy(np.asarray(value)) for key, value in w.items()}
    for factor in (3.0, torch.tensor(3.0)):
        torch.save({"ae": state, "norm_factor": factor, "step": 1}, folder / "ae.pt")
        assert semprobe.load_sae(folder).sha256 == finished.sha256
    torch.save({"ae": state, "norm_factor": None}, folder / "ae.pt")
    plain = semprobe.load_sae(DATA / "sae" / f"dictionary-learning-{name}")
    assert semprobe.load_sae(folder).sha256 == plain.sha256
    for wrong in ({"ae": state}, {"ae": state, "norm_factor": -1}, {"ae": {"ae": state}, "norm_factor": 1.0}):
        torch.save(wrong, folder / "ae.pt")
        with pytest.raises(SAEError):
            semprobe.load_sae(folder)


def test_checkpoints_of_a_run_find_the_configuration_above_them(tmp_path: Path) -> None:
    case = DATA / "sae" / "dictionary-learning-gated"
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(case / "config.json", tmp_path)
    shutil.copy(case / "ae.pt", tmp_path / "checkpoints" / "ae_500.pt")
    assert semprobe.load_sae(tmp_path / "checkpoints" / "ae_500.pt").sha256 == semprobe.load_sae(case).sha256


def test_top_k_of_dictionary_learning_takes_k_from_the_weights(tmp_path: Path) -> None:
    w = _weights("dictionary-learning-batchtopk")
    torch.save({key: torch.from_numpy(np.asarray(value)) for key, value in w.items()}, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoderTopK"}}))
    assert semprobe.load_sae(tmp_path).activation == TopK(14, relu=True)
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoderTopK", "k": 5}}))
    with pytest.raises(SAEError, match="do not belong together"):
        semprobe.load_sae(tmp_path)


@pytest.mark.parametrize(
    ("hook", "declared"),
    [
        ("blocks.10.hook_resid_post", {"layer": 10}),
        ("blocks.10.hook_resid_pre", {"layer": 9}),
        ("blocks.10.hook_mlp_out", {"layer": 10, "site": "mlp_out"}),
        ("blocks.2.attn.hook_z", {"layer": 2, "site": "attn.hook_z"}),
        ("vision_model.encoder.layers.7", {"layer": 7}),
        (None, {}),
    ],
)
def test_hooks_say_which_block_and_what_of_it(hook: str | None, declared: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(DATA / "sae" / "sae-lens-standard", tmp_path / "sae")
    config = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    config["metadata"] = {"sae_lens_version": "6.0.0", "hook_name": hook}
    (tmp_path / "sae" / "cfg.json").write_text(json.dumps(config))
    assert semprobe.load_sae(tmp_path / "sae").declared == declared


def test_folders_that_only_look_like_a_hook(tmp_path: Path) -> None:
    for name, declared in (
        ("model-v1.5", {}),
        ("layers.10", {"layer": 10}),
        ("layers.3.mlp", {"layer": 3, "site": "mlp"}),
    ):
        shutil.copytree(DATA / "sae" / "eai-sparsify-topk", tmp_path / name)
        assert semprobe.load_sae(tmp_path / name).declared == declared


def test_scaling_of_codes_that_only_decodes(tmp_path: Path) -> None:
    shutil.copytree(DATA / "sae" / "sae-lens-pre6-oldest", tmp_path / "sae")
    target, config = tmp_path / "sae" / "sae_weights.safetensors", tmp_path / "sae" / "cfg.json"
    before = semprobe.load_sae(tmp_path / "sae", decoder=True)
    save_file({**load_file(target), "scaling_factor": torch.full((64,), 2.0)}, target)
    with pytest.raises(SAEError, match="holds scaling_factor that is not 1"):
        semprobe.load_sae(tmp_path / "sae")
    config.write_text(json.dumps({**json.loads(config.read_text()), "finetuning_scaling_factor": True}))
    after = semprobe.load_sae(tmp_path / "sae", decoder=True)
    assert after.sha256 == before.sha256
    assert before.decoder is not None
    np.testing.assert_array_equal(after.decoder, 2 * before.decoder)


def test_batch_top_k_of_other_schemas_needs_its_threshold(tmp_path: Path) -> None:
    for schema in (5, None):
        cfg = {"activation": {"cls": "BatchTopK", "params": {"top_k": 2}}}
        header = {"schema": schema, "cfg": cfg} if schema else {"cls": "BatchTopK", "top_k": 2}
        write_saev(tmp_path / "sae.pt")
        tensors = (tmp_path / "sae.pt").read_bytes().partition(b"\n")[2]
        (tmp_path / "sae.pt").write_bytes(json.dumps(header).encode() + b"\n" + tensors)
        with pytest.raises(SAEError, match="--sae-threshold"):
            semprobe.load_sae(tmp_path / "sae.pt")


@pytest.mark.parametrize(
    "more",
    ["attention_blocks.0.qkv.weight", "resnet_blocks.0.conv1.weight", "mlp_blocks.0.weight", "final_block.1.weight"],
)
def test_encoders_of_overcomplete_with_more_layers_are_refused(more: str, tmp_path: Path) -> None:
    state = torch.load(DATA / "sae" / "overcomplete-relu" / "sae.pt", weights_only=True)
    torch.save({**state, f"encoder.{more}": torch.eye(16)}, tmp_path / "sae.pt")
    with pytest.raises(SAEError, match=rf"more than one linear layer \(encoder\.{more}"):
        semprobe.load_sae(tmp_path / "sae.pt", kind="relu")


def test_what_a_file_says_can_be_printed(tmp_path: Path) -> None:
    shutil.copytree(DATA / "sae" / "sae-lens-standard", tmp_path, dirs_exist_ok=True)
    about = json.loads((tmp_path / "cfg.json").read_text())
    strange = "\ud800odd\x1b[31m"
    about["metadata"] |= {"model_name": strange, "hook_name": f"blocks.1.{strange}", "sae_lens_version": f"6.{strange}"}
    (tmp_path / "cfg.json").write_text(json.dumps({**about, "model_name": strange, "hook_name": f"blocks.1.{strange}"}))
    sae = semprobe.load_sae(tmp_path)
    assert sae.declared == {"backbone": r"\ud800odd\x1b[31m", "layer": 1, "site": r"\ud800odd\x1b[31m"}
    assert (sae.origin + sae.describe()["formula"]).isprintable()


@pytest.mark.parametrize(
    "change", [{"schema": "x" * 400_000}, {"cfg": ["x" * 400_000]}, {"cfg": {"activation": {"cls": "x" * 400_000}}}]
)
def test_messages_do_not_repeat_all_of_a_strange_file(change: dict[str, Any], tmp_path: Path) -> None:
    path = write_saev(tmp_path / "sae.pt")
    header, _, tensors = path.read_bytes().partition(b"\n")
    path.write_bytes(json.dumps(json.loads(header) | change).encode() + b"\n" + tensors)
    with pytest.raises(SAEError, match="xxx") as told:
        semprobe.load_sae(path)
    assert str(path) in str(told.value)
    assert len(str(told.value)) <= 1001


def test_a_latent_that_writes_nothing_has_a_decoder_of_zeros(tmp_path: Path) -> None:
    shutil.copytree(DATA / "sae" / "dictionary-learning-standard-april", tmp_path, dirs_exist_ok=True)
    state = torch.load(tmp_path / "ae.pt", weights_only=True)
    state["decoder.weight"][:, 3] = 0
    torch.save(state, tmp_path / "ae.pt")
    sae = semprobe.load_sae(tmp_path, decoder=True)
    assert sae.decoder is not None
    assert not sae.decoder[3].any()
    assert not sae.encode(np.load(tmp_path / "x.npy"))[:, 3].any()


def test_batch_top_k_of_more_than_there_are_is_all(tmp_path: Path) -> None:
    tensors = write_saev(tmp_path / "sae.pt").read_bytes().partition(b"\n")[2]
    for kind in ("BatchTopK", "TopK"):
        header = {"schema": 3, "cfg": {"activation": {"cls": kind, "params": {"top_k": 97}}}}
        (tmp_path / "sae.pt").write_bytes(json.dumps(header).encode() + b"\n" + tensors)
        if kind == "BatchTopK":
            assert semprobe.load_sae(tmp_path / "sae.pt").activation == TopK(96)
    with pytest.raises(SAEError, match="k is 97, expected 1 to 96"):
        semprobe.load_sae(tmp_path / "sae.pt")


def test_settings_of_vit_prisma_may_hold_those_of_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = DATA / "sae" / "vit-prisma-standard-none"
    before = semprobe.load_sae(case)
    made = []
    for module, name in (("sae.config", "VisionModelSAERunnerConfig"), ("configs.HookedViTConfig", "HookedViTConfig")):
        parts = f"vit_prisma.{module}".split(".")
        for end in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
        kind = type(name, (), {"__module__": ".".join(parts)})
        setattr(sys.modules[".".join(parts)], name, kind)
        made.append(kind())
    made[0].vit_model_cfg = made[1]
    weights = next(case.glob("*.pt"))
    shutil.copy(case / "config.json", tmp_path)
    state = {name: value for name, value in checkpoints._load_torch(weights, weights).items() if name != "cfg"}
    torch.save({**state, "cfg": made[0]}, tmp_path / weights.name)
    assert semprobe.load_sae(tmp_path).sha256 == before.sha256


def test_a_threshold_that_counts_itself() -> None:
    """overcomplete compares with >=, all others with >."""
    from semprobe.formats._common import at_least

    value = np.float32(0.62)
    sae = SAE(encoder=np.eye(1), bias=np.zeros(1), activation=Threshold(at_least(0.62)))
    assert sae.encode(np.array([[value]], np.float32)) == value
    assert SAE(encoder=np.eye(1), bias=np.zeros(1), activation=Threshold(value)).encode(np.array([[value]])) == 0


def _weights(case: str) -> dict[str, np.ndarray]:
    folder = DATA / "sae" / case
    if (folder / "ae.pt").exists():
        return {name: value.numpy() for name, value in torch.load(folder / "ae.pt", weights_only=True).items()}
    return {name: value.numpy() for name, value in load_file(next(folder.glob("*.safetensors"))).items()}


def test_decoders_rebuild_what_was_encoded() -> None:
    """As each library's own decode has it."""
    x = np.load(DATA / "sae" / "sae-lens-standard" / "x.npy")
    for case in ("sae-lens-topk-rescale", "sae-lens-standard-layernorm", "dictionary-learning-standard-april"):
        sae, w = semprobe.load_sae(DATA / "sae" / case, decoder=True), _weights(case)
        assert semprobe.load_sae(DATA / "sae" / case).decoder is None
        codes = sae.encode(x)
        if "topk" in case:
            expected = codes / np.linalg.norm(w["W_dec"], axis=1) @ w["W_dec"] + w["b_dec"]
        elif "layernorm" in case:
            expected = (codes @ w["W_dec"] + w["b_dec"]) * x.std(1, ddof=1)[:, None] + x.mean(1)[:, None]
        else:  # the codes were multiplied by the norms that its loader took out of the decoder
            expected = codes / np.linalg.norm(w["decoder.weight"], axis=0) @ w["decoder.weight"].T + w["bias"]
        np.testing.assert_allclose(sae.decode(codes, x), expected, atol=1e-4)
    sae = semprobe.load_sae(DATA / "sae" / "sae-lens-standard", decoder=True)
    scaled = replace(sae, normalisation="constant_norm_rescale")
    codes, length = scaled.encode(x), np.linalg.norm(x, axis=1)[:, None]
    expected = (codes @ sae.decoder + sae.decoder_bias) * length / 4
    np.testing.assert_allclose(scaled.decode(codes, x), expected, atol=1e-4)
    with pytest.raises(SAEError, match="no decoder that rebuilds its input"):
        crossing = semprobe.load_sae(DATA / "sae" / "eai-sparsify-transcoder-skip", decoder=True)
        crossing.decode(crossing.encode(x), x)


# damaged on purpose


def _variants(data: bytes, number: int) -> Iterator[bytes]:
    """A JSON text cut short, with values of other types, huge sizes, unknown keys and flipped bytes."""
    rng = random.Random(0)
    settings = json.loads(data)
    strange: list[Any] = [None, True, -1, 0, 10**18, 1e400, "", "x" * 1000, [], {}, [[]], {"a": 1}, "-inf", 0.5]
    for at in range(number):
        if at % 3 == 0:
            yield data[: rng.randrange(len(data))]
        elif at % 3 == 1:
            changed = bytearray(data)
            for _ in range(rng.randrange(1, 5)):
                changed[rng.randrange(len(data))] = rng.randrange(256)
            yield bytes(changed)
        else:
            copy = json.loads(json.dumps(settings))
            inside = [copy, *(one for one in copy.values() if isinstance(one, dict))]
            for _ in range(rng.randrange(1, 4)):
                target = rng.choice(inside)
                key = rng.choice([*target, "unknown"])
                target[key] = rng.choice(strange)
            yield json.dumps(copy).encode()


FUZZED = [case for case in CASES if case.name.startswith(("sae-schema", "sae-noschema", "sae-lens", "eai", "dict"))] + [
    DATA / "sae" / "vit-prisma-gated"
]


@pytest.mark.parametrize("case", FUZZED, ids=lambda case: case.name)
def test_damaged_settings_end_in_a_clear_error(case: Path, tmp_path: Path) -> None:
    shutil.copytree(case, tmp_path / "sae")
    beside = next((tmp_path / "sae" / name for name in ("cfg.json", "config.json") if (case / name).exists()), None)
    weights = b"" if beside else (case / "sae.pt").read_bytes()
    header, _, tensors = weights.partition(b"\n")
    target = beside or tmp_path / "sae" / "sae.pt"
    outcomes = set()
    for variant in _variants(target.read_bytes() if beside else header, 500):
        target.write_bytes(variant if beside else variant + b"\n" + tensors)
        try:
            semprobe.load_sae(tmp_path / "sae" if beside else target)
            outcomes.add("read")
        except SAEError:
            outcomes.add("refused")
    assert "refused" in outcomes
    assert case not in ENCODED or "read" in outcomes


@pytest.mark.parametrize("name", ["sae-lens-gated", "dictionary-learning-jumprelu", "vit-prisma-gated"])
def test_damaged_weights_end_in_a_clear_error(name: str, tmp_path: Path) -> None:
    shutil.copytree(DATA / "sae" / name, tmp_path / "sae")
    target = next(p for p in (tmp_path / "sae").iterdir() if p.suffix in (".pt", ".safetensors"))
    data, rng = target.read_bytes(), random.Random(0)
    refused = 0
    for at in range(500):
        changed = bytearray(data if at % 2 else data[: rng.randrange(len(data))])
        for _ in range(rng.randrange(1, 5)):
            if changed:
                changed[rng.randrange(min(len(changed), 1500))] = rng.randrange(256)
        target.write_bytes(bytes(changed))
        try:
            semprobe.load_sae(target)
        except SAEError:
            refused += 1
    assert refused > 200


def test_files_that_are_packed_or_sparse(tmp_path: Path) -> None:
    torch.save({"encoder.final_block.0.weight": torch.zeros(1000, 1000)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "packed.pt", "w") as packed:
        for part in plain.infolist():
            packed.writestr(part.filename, plain.read(part), zipfile.ZIP_DEFLATED)
    with pytest.raises(SAEError, match="packed or claim more than the file holds"):
        semprobe.load_sae(tmp_path / "packed.pt", kind="relu")
    for name in ("a", "b"):
        torch.save({"dictionary._weights": torch.eye(3).to_sparse()}, tmp_path / f"{name}.pt")
    with pytest.raises(SAEError, match="expected a dense one|can't be read"):
        semprobe.load_sae(tmp_path / "a.pt")
    (tmp_path / "plain.pt").unlink()
    (tmp_path / "packed.pt").unlink()
    with pytest.raises(SAEError, match="2 files that may be the SAE"):
        semprobe.load_sae(tmp_path)
    deep = tmp_path / "deep" / "/".join("abcdefgh")
    shutil.copytree(DATA / "sae" / "sae-lens-standard", deep)
    with pytest.raises(SAEError, match="no file that can be an SAE"):
        semprobe.load_sae(tmp_path / "deep")


def test_sizes_that_a_file_only_claims(tmp_path: Path) -> None:
    huge = torch.zeros(1).expand(10**6, 10**6)
    torch.save({"encoder.final_block.0.weight": huge}, tmp_path / "sae.pt")
    with pytest.raises(SAEError, match=r"claims shape \(1000000, 1000000\), and the file has"):
        semprobe.load_sae(tmp_path / "sae.pt", kind="relu")
