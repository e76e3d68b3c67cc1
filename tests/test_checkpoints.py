"""Checkpoints encode exactly as the project that wrote them, and what can't is refused with the reason."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import save_file

import semprobe
from semprobe.errors import SAEError
from semprobe.sae import SAE, Threshold, TopK
from tests.conftest import DATA, write_saev

CASES = sorted(path.name for path in (DATA / "saev").glob("sae-*"))
ENCODED = [case for case in CASES if (DATA / "saev" / case / "f_x.npy").exists()]


@pytest.mark.parametrize("case", ENCODED)
def test_golden_codes(case: str) -> None:
    folder = DATA / "saev" / case
    sae = semprobe.load_sae(folder / "sae.pt")
    x, expected = np.load(folder / "x.npy"), np.load(folder / "f_x.npy")
    np.testing.assert_allclose(sae.encode(x), expected, atol=1e-5)
    assert ((sae.encode(x) != 0) == (expected != 0)).all()
    blocks = xr.DataArray(x.reshape(8, 5, 16), dims=("image", "patch", "feature")).chunk(image=3)
    codes = semprobe.encode(blocks, sae).compute().values.reshape(expected.shape)
    np.testing.assert_allclose(codes, expected, atol=1e-5)
    assert ((codes != 0) == (expected != 0)).all()


@pytest.mark.parametrize("case", sorted(set(CASES) - set(ENCODED)))
def test_batch_coupled_files_are_refused(case: str) -> None:
    with pytest.raises(SAEError, match="depended on the other patches of its batch"):
        semprobe.load_sae(DATA / "saev" / case / "sae.pt")


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
    for value, expected in ((-0.5, Threshold(0.0)), (0.25, Threshold(0.25))):
        with (tmp_path / "sae.pt").open("wb") as file:
            file.write(json.dumps(header).encode() + b"\n")
            torch.save({**tensors, "activation.threshold": torch.tensor(value)}, file)
        assert semprobe.load_sae(tmp_path / "sae.pt").activation == expected


def _native(path: Path, **about: str) -> Path:
    tensors = {"W_enc": torch.randn(4, 6), "b_enc": torch.randn(6), "b_dec": torch.randn(4), "W_dec": torch.randn(6, 4)}
    metadata = {"format": "semprobe-sae", "version": "1", "subtract_b_dec": "false", **about}
    save_file(tensors, path, metadata=metadata)
    return path


def test_own_format(tmp_path: Path) -> None:
    path = _native(
        tmp_path / "a.safetensors", activation="threshold", threshold="0.5", subtract_b_dec="true", layer="-2"
    )
    found = semprobe.load_sae(path)
    assert (found.width, found.latents, found.activation) == (4, 6, Threshold(0.5))
    assert found.centre is not None
    assert found.declared == {"layer": "-2"}
    assert semprobe.load_sae(_native(tmp_path / "b.safetensors", activation="topk", k="2")).activation == TopK(2)
    with pytest.raises(SAEError, match="unknown activation 'gelu'"):
        semprobe.load_sae(_native(tmp_path / "c.safetensors", activation="gelu"))
    with pytest.raises(SAEError, match="expected 'true' or 'false'"):
        semprobe.load_sae(_native(tmp_path / "e.safetensors", activation="relu", subtract_b_dec="True"))
    with pytest.raises(SAEError, match="not as that is written: KeyError"):
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
        (lambda data: data.replace(b'{"cls": "Relu", "params": {}}', b'"Relu"', 1), "not as that is written"),
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
    with pytest.raises(SAEError, match="is a folder"):
        semprobe.load_sae(tmp_path)


def test_a_changed_copy_does_not_travel_as_its_file(tmp_path: Path) -> None:
    sae = semprobe.load_sae(write_saev(tmp_path / "sae.pt"))
    changed = pickle.loads(pickle.dumps(replace(sae, activation=Threshold(0.5))))
    assert changed.activation == Threshold(0.5)


def test_shapes_and_values_are_checked() -> None:
    with pytest.raises(SAEError, match="bias has shape"):
        SAE(encoder=np.eye(3), bias=np.zeros(4))
    with pytest.raises(SAEError, match="NaN or infinite"):
        SAE(encoder=np.eye(3) * np.nan, bias=np.zeros(3))
    with pytest.raises(SAEError, match="k is 4, expected 1 to 3"):
        SAE(encoder=np.eye(3), bias=np.zeros(3), activation=TopK(4))
