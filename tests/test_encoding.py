"""Codes and patch sums: right, lazy, and the same bits however the work is cut."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import semprobe
from semprobe import kernel
from semprobe.errors import DataError, SAEError
from semprobe.sae import TopK, _opened
from tests.conftest import KINDS, dense, make_activations, make_sae, sae_of, write_saev


@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_reductions_against_an_independent_product(kind: str) -> None:
    data, sae = make_activations(), sae_of(kind)
    expected = dense(data["activations"].values, sae)
    codes = semprobe.encode(data["activations"], sae).compute()
    np.testing.assert_allclose(codes.values, expected, atol=2e-4)
    found = semprobe.latents(data, sae, maxima=True).compute()
    np.testing.assert_allclose(found["patch_sum"], expected.sum(1), atol=1e-3, rtol=1e-5)
    np.testing.assert_allclose(found["patch_max"], expected.max(1), atol=2e-4)
    fires = expected.max(1) > 0
    assert (found["patch_argmax"].values[fires] == expected.argmax(1)[fires]).all()
    assert (found["patch_argmax"].values[~fires] == -1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_patch_sum_is_the_sum_of_the_codes(kind: str) -> None:
    data, sae = make_activations(), sae_of(kind)
    summed = semprobe.encode(data["activations"], sae).sum("patch").compute()
    fused = semprobe.patch_sum(data["activations"], sae).compute()
    np.testing.assert_allclose(fused, summed, rtol=1e-5, atol=1e-5)
    if not sae.signed:
        assert ((fused > 0) == (summed > 0)).all()


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    start=st.integers(0, 5),
    workers=st.sampled_from([1, 2, 3, 8]),
    kind=st.sampled_from(KINDS),
    patches=st.sampled_from([1, 7, 49, 100, 196]),
)
def test_patch_sums_are_the_same_bits_for_every_chunking(
    cuts: list[int], start: int, workers: int, kind: str, patches: int
) -> None:
    """A float32 matmul's last bit can change with its shape, and a last bit decides at threshold 0."""
    images = start + sum(cuts)
    data, sae = make_activations(images, patches=patches, features=33), sae_of(kind, 1100, 33)
    x = data["activations"]
    whole = semprobe.patch_sum(x.chunk(image=-1), sae).compute(scheduler="sync").values
    cut = x.isel(image=slice(start, None)).chunk(image=tuple(cuts))
    with dask.config.set(scheduler="threads", num_workers=workers):
        again = semprobe.patch_sum(cut, sae).compute().values
        codes = semprobe.encode(cut, sae).compute()
    assert (again.view(np.int32) == whole[start:].view(np.int32)).all()
    one = semprobe.encode(x, sae).isel(image=slice(start, None)).compute(scheduler="sync")
    assert (codes.values.view(np.int32) == one.values.view(np.int32)).all()


def test_where_the_place_in_a_tile_matters_every_image_gets_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a BLAS exists (OpenBLAS): its products differ in the last bits with the row."""
    real = torch.mm

    def uneven(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        product = real(a, b, out=out)
        product[len(product) // 2 :] *= 1 + 2e-7
        return product

    assert kernel._places_agree(torch.mm, 6, 8, 4, 70)
    assert not kernel._places_agree(uneven, 6, 8, 4, 70)
    data, sae = make_activations(), make_sae()
    x = data["activations"]
    sound = semprobe.patch_sum(x, sae).compute().values
    kernel.images_per_tile.cache_clear()
    try:
        monkeypatch.setattr(torch, "mm", uneven)
        whole, cut = (semprobe.patch_sum(x.chunk(image=n), sae).compute().values for n in (-1, 3))
        assert kernel.images_per_tile(6, 8, 70) == 1
    finally:
        monkeypatch.undo()
        kernel.images_per_tile.cache_clear()
    assert (whole.view(np.int32) == cut.view(np.int32)).all()
    np.testing.assert_allclose(whole, sound, rtol=1e-5, atol=1e-5)


def test_nothing_computes_before_it_is_asked(never_computes: None) -> None:
    data = make_activations()
    lazy, sae = data["activations"].chunk(image=4), make_sae()
    codes = semprobe.encode(lazy, sae)
    sums = semprobe.patch_sum(lazy, sae)
    counts = semprobe.confusion(semprobe.predict(sums), data["label"])
    scores = semprobe.score(data.assign(activations=lazy), sae=sae, random=5)
    everything = [
        codes,
        codes.sel(latent=[3, 7]).max("patch"),
        sums,
        semprobe.f1(counts),
        scores["f1"],
        scores["random_f1"],
    ]
    assert all(isinstance(one.data, da.Array) for one in everything)
    with pytest.raises(AssertionError, match="something computed"):
        sums.compute()


@pytest.mark.parametrize("key", [[3, 7], 5, slice(60, 70), np.array([69])], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_few_latents_multiply_only_their_columns(key: object, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, sae = make_activations(), sae_of(kind)
    widths: list[int] = []
    product = torch.mm

    def counted(a: torch.Tensor, b: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
        widths.append(b.shape[1])
        return product(a, b, **options)

    x = data["activations"].chunk(image=4)
    whole = semprobe.encode(x, sae).compute().isel(image=slice(2, 9), latent=key)  # type: ignore[misc]
    kernel.images_per_tile(6, 8, 70, kernel._ROWS)
    kernel.images_per_tile(6, 8, 70, kernel._ROWS_WHOLE)
    monkeypatch.setattr(torch, "mm", counted)
    few = semprobe.encode(x, sae).isel(image=slice(2, 9)).isel(latent=key).compute()  # type: ignore[misc]
    assert few.dims == whole.dims
    np.testing.assert_allclose(few, whole, atol=1e-5)
    assert (few["latent"].values == whole["latent"].values).all()
    wanted = 1 if isinstance(key, int) else len(np.atleast_1d(np.arange(70)[key]))  # type: ignore[index]
    assert set(widths) == {70 if isinstance(sae.activation, TopK) else wanted}


def test_ordinary_xarray_on_codes() -> None:
    data, sae = make_activations(), make_sae()
    x = data["activations"].chunk(image=4)
    codes, eager = semprobe.encode(x, sae), semprobe.encode(x, sae).compute()
    one = codes.sel(image="003.png", latent=1)
    np.testing.assert_allclose(one.compute(), eager.sel(image="003.png", latent=1), atol=1e-5)
    picked = codes.isel(image=[5, 1], patch=[0, 2])
    np.testing.assert_array_equal(picked.compute(), eager.isel(image=[5, 1], patch=[0, 2]))
    both = codes.isel(image=3, latent=[0, 1, 69])
    np.testing.assert_allclose(both.compute(), eager.isel(image=3, latent=[0, 1, 69]), atol=1e-5)
    np.testing.assert_allclose(codes[-1, 2, -1].compute(), eager[-1, 2, -1], atol=1e-5)
    masked = codes.sel(latent=codes["latent"] % 9 == 0)
    np.testing.assert_allclose(masked.compute(), eager[..., ::9], atol=1e-5)
    changed = semprobe.encode(x, sae)
    changed[{"latent": 1}] = -99
    assert (changed.isel(latent=[1]).compute() == -99).all()
    np.testing.assert_array_equal((codes > 0).sum().compute(), (eager > 0).sum())
    np.testing.assert_allclose(codes.sel(latent=[4, 4]).isel(latent=1).compute(), eager.sel(latent=4).values, atol=1e-5)


def test_one_pass_for_several_reductions(monkeypatch: pytest.MonkeyPatch) -> None:
    data, sae = make_activations(12), make_sae()
    calls: list[int] = []
    real = kernel.reduce

    def counted(block: np.ndarray, *rest: object) -> object:
        calls.append(len(block))
        return real(block, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(kernel, "reduce", counted)
    semprobe.latents(data.chunk(image=4).assign_coords(label=data["label"]), sae, maxima=True).compute()
    assert calls == [4, 4, 4]


def test_other_inputs_float16_and_order_of_dims() -> None:
    data, sae = make_activations(), make_sae()
    x = data["activations"]
    turned = semprobe.patch_sum(x.transpose("feature", "image", "patch"), sae).compute()
    np.testing.assert_array_equal(turned, semprobe.patch_sum(x, sae).compute())
    half = semprobe.patch_sum(x.astype(np.float16), sae).compute()
    np.testing.assert_array_equal(half, semprobe.patch_sum(x.astype(np.float16).astype(np.float32), sae).compute())
    np.testing.assert_array_equal(
        semprobe.patch_sum(x.astype(">f8"), sae).compute(), semprobe.patch_sum(x, sae).compute()
    )
    split = x.chunk(image=5, feature=3, patch=2)
    np.testing.assert_array_equal(semprobe.patch_sum(split, sae).compute(), semprobe.patch_sum(x, sae).compute())


def test_what_does_not_fit_is_refused() -> None:
    data, sae = make_activations(), make_sae(features=9)
    with pytest.raises(SAEError, match="reads 9 features, and these activations have 8"):
        semprobe.patch_sum(data["activations"], sae)
    with pytest.raises(SAEError, match=r"reads 9 features, and this block has shape \(2, 8\)"):
        sae.encode(np.zeros((2, 8)))
    with pytest.raises(DataError, match="dims"):
        semprobe.encode(data["activations"].rename(patch="token"), make_sae())
    with pytest.raises(DataError, match="found Dataset, expected a DataArray"):
        semprobe.encode(data, make_sae())  # type: ignore[arg-type]
    with pytest.raises(DataError, match="nothing to encode"):
        semprobe.patch_sum(data["activations"][:, :0], make_sae())
    with pytest.raises(DataError, match="dtype int"):
        semprobe.encode(data["activations"].astype(int), make_sae())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_named(bad: float) -> None:
    data = make_activations()
    data["activations"].values[13, 4, 2] = bad
    with pytest.raises(DataError, match=r"image 013\.png, patch 4: the activation is not finite"):
        semprobe.patch_sum(data["activations"].chunk(image=5), make_sae()).compute()


def test_an_sae_travels_as_path_and_hash(tmp_path: Path) -> None:
    path = write_saev(tmp_path / "sae.pt", 400, 300)
    sae = semprobe.load_sae(path)
    sent = pickle.dumps(sae)
    assert len(sent) < 1000 < sae.encoder.nbytes
    assert (pickle.loads(sent).encoder == sae.encoder).all()
    _opened.clear()
    write_saev(path, 400, 300, seed=1)
    with pytest.raises(SAEError, match="changed since it was opened"):
        pickle.loads(sent)
    in_memory = make_sae()
    assert pickle.loads(pickle.dumps(in_memory)).sha256 == in_memory.sha256


def test_one_thread_even_while_a_machine_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of threads can change the last bits of a product."""
    seen = set()
    real = torch.mm

    def watched(*args: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
        seen.add(torch.get_num_threads())
        return real(*args, **options)

    monkeypatch.setattr(torch, "mm", watched)
    kernel.images_per_tile.cache_clear()
    semprobe.patch_sum(make_activations()["activations"], make_sae()).compute(scheduler="sync")
    assert seen == {1}


def test_torch_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    try:
        for number in (3, 1, 2):
            torch.set_num_threads(number)
            semprobe.patch_sum(make_activations()["activations"], make_sae()).compute(scheduler="sync")
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(before)


def test_distributed_gives_the_same_bits(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    sae = semprobe.load_sae(write_saev(tmp_path / "sae.pt", 8, 40))
    x = make_activations()["activations"].chunk(image=5)
    here = semprobe.patch_sum(x, sae).compute(scheduler="sync")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster),
    ):
        there = semprobe.patch_sum(x, sae).compute()
    xr.testing.assert_identical(here, there)


@pytest.mark.parametrize("key", [(..., 3), (..., [3, 4]), (..., slice(2, 4)), (slice(None), None, 3), (..., None)])
def test_codes_are_indexed_as_numpy_does(key: Any) -> None:
    codes = semprobe.encode(make_activations()["activations"].chunk(image=5), make_sae()).data
    np.testing.assert_array_equal(codes[key].compute(), codes.compute()[key])


def test_a_threshold_that_float32_does_not_hold_is_the_same_for_lazy_sums() -> None:
    sums = xr.DataArray(np.array([[np.float32(0.1)]]), dims=("image", "latent"), coords={"image": ["a"], "latent": [0]})
    assert not semprobe.predict(sums, 0.1).item()
    assert not semprobe.predict(sums.chunk(image=1), 0.1).compute().item()
