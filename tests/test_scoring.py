"""Counts and F1: by hand, by laws, and against the original tool."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import semprobe
from semprobe.errors import DataError
from semprobe.scoring import draw_latents
from tests.conftest import DATA, make_activations, make_sae

NAN = float("nan")

# tp, fp, fn, tn: F1, precision, recall, support, and why
BY_HAND: list[tuple[tuple[int, int, int, int], tuple[float, float, float, float], str]] = [
    ((20, 0, 0, 20), (1, 1, 1, 0.5), "perfect"),
    ((0, 20, 20, 0), (0, 0, 0, 0.5), "exactly wrong"),
    ((20, 20, 0, 0), (2 / 3, 0.5, 1, 1), "fires on every image: the floor"),
    ((0, 0, 20, 20), (0, NAN, 0, 0), "never fires: no precision, F1 is 0"),
    ((3, 1, 2, 4), (6 / 9, 3 / 4, 3 / 5, 4 / 10), "some of each"),
    ((1, 0, 4, 1), (2 / 6, 1, 1 / 5, 1 / 6), "unequal classes"),
]


@pytest.mark.parametrize(("counts", "expected", "why"), BY_HAND, ids=[row[2] for row in BY_HAND])
def test_ratios_by_hand(counts: tuple[int, ...], expected: tuple[float, ...], why: str) -> None:
    data = xr.Dataset(dict(zip(("tp", "fp", "fn", "tn"), counts, strict=True)))
    found = [getattr(semprobe, name)(data) for name in ("f1", "precision", "recall", "support")]
    np.testing.assert_allclose(found, expected, rtol=1e-15, err_msg=why)
    assert all(one.dtype == np.float64 for one in found)


def test_a_sum_equal_to_the_threshold_is_negative() -> None:
    sums = xr.DataArray([[0.0, -0.0, 1e-45, -1.0, 2.0, np.inf]], dims=("image", "latent"))
    assert semprobe.predict(sums).values.tolist() == [[False, False, True, False, True, True]]
    assert semprobe.predict(sums, 2.0).values.tolist() == [[False, False, False, False, False, True]]
    with pytest.raises(DataError, match="NaN"):
        semprobe.predict(sums * np.nan)


@pytest.mark.parametrize("dims", [("image", "latent"), ("latent", "image")])
@pytest.mark.parametrize("chunk", [None, 2])
def test_a_nan_sum_names_image_and_latent(dims: tuple[str, ...], chunk: int | None) -> None:
    sums = semprobe.patch_sum(make_activations()["activations"], make_sae()).compute()[:, 30:].transpose(*dims)
    sums.loc[{"image": "017.png", "latent": 44}] = np.nan
    cut = sums.chunk(image=chunk, latent=7) if chunk else sums
    with pytest.raises(DataError, match=r"image 017\.png, latent 44: a patch sum is NaN"):
        semprobe.predict(cut).compute()
    plain = sums.drop_vars(["image", "latent"])
    with pytest.raises(DataError, match="image 17, latent 14: a patch sum"):
        semprobe.predict(plain).compute()


def _by_loops(predictions: np.ndarray, label: np.ndarray) -> np.ndarray:
    out = np.zeros((4, label.shape[1], predictions.shape[1]), int)
    for image, row in enumerate(label):
        for concept, value in enumerate(row):
            if value >= 0:
                for latent, said in enumerate(predictions[image]):
                    out[{(1, 1): 0, (1, 0): 1, (0, 1): 2, (0, 0): 3}[int(said), int(value)], concept, latent] += 1
    return out


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_counts_for_every_chunking(data: st.DataObject) -> None:
    images, latents, concepts = (data.draw(st.integers(1, n)) for n in (12, 6, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    predictions = xr.DataArray(rng.random((images, latents)) < 0.5, dims=("image", "latent"))
    label = xr.DataArray(rng.integers(-1, 2, (images, concepts)).astype(np.int8), dims=("image", "concept"))
    expected = _by_loops(predictions.values, label.values)
    size = data.draw(st.integers(1, 12))
    for one, two in [
        (predictions, label),
        (predictions.chunk(image=size), label),
        (predictions.chunk(image=size, latent=2), label.chunk(image=3)),
    ]:
        found = semprobe.confusion(one, two).compute()
        np.testing.assert_array_equal(np.stack([found[k] for k in ("tp", "fp", "fn", "tn")]), expected)
        assert all(v.dtype == np.int32 for v in found.values())
    total = sum(found[k] for k in found)
    np.testing.assert_array_equal(total, np.broadcast_to((label >= 0).sum("image").values[:, None], total.shape))


def _golden() -> tuple[xr.Dataset, semprobe.SAE, Any]:
    folder = DATA / "saev" / "score-raw"
    parts = [np.fromfile(folder / f"shards/acts/acts{at:06}.bin", "<f4").reshape(7, 1, 10, 16) for at in range(4)]
    images = semprobe.find_images(folder / "images")
    acts = np.concatenate(parts)[: images.sizes["image"], 0, 1:]
    data = images.assign(activations=(("image", "patch", "feature"), acts))
    with np.load(folder / "expected.npz") as file:
        return data, semprobe.load_sae(folder / "sae.pt"), dict(file)


@pytest.mark.parametrize("chunk", [None, 1, 5, 24])
def test_f1_equals_the_original_tool(chunk: int | None) -> None:
    data, sae, expected = _golden()
    if chunk:
        data = data.assign(activations=data["activations"].chunk(image=chunk))
    scores = semprobe.score(data, sae=sae, random=10).compute()
    found = scores["f1"].sel(concept=expected["concepts"].tolist())
    np.testing.assert_allclose(found, expected["f1"], atol=1e-6)
    latents = semprobe.score(semprobe.latents(data, sae), random=10).compute()
    xr.testing.assert_identical(scores, latents)


def test_directly_and_by_latents_at_other_thresholds() -> None:
    data, sae = make_activations(40), make_sae()
    for threshold in (0.0, 0.5, 3.0):
        direct = semprobe.score(data, sae=sae, threshold=threshold).compute()
        xr.testing.assert_identical(direct, semprobe.score(semprobe.latents(data, sae), threshold=threshold).compute())


def test_floor_baseline_and_what_is_recorded() -> None:
    data, sae = make_activations(40), make_sae()
    scores = semprobe.score(data, sae=sae, random=30, seed=3).compute()
    np.testing.assert_allclose(scores["floor_f1"], scores["f1"].sel(latent=1), rtol=1e-15)  # latent 1 fires always
    assert (scores["f1"].sel(latent=0) == 0).all()
    for concept in range(2):
        drawn = scores["random_latent"].values[concept]
        assert len(set(drawn)) == 30
        np.testing.assert_array_equal(scores["random_f1"].values[concept], scores["f1"].values[concept][drawn])


def test_random_latents_depend_on_seed_and_concept_alone() -> None:
    both, alone = draw_latents(["fur", "wheel"], 100, 20, 0), draw_latents(["wheel"], 100, 20, 0)
    np.testing.assert_array_equal(both[1], alone[0])
    assert (both[0] != both[1]).any()
    assert (draw_latents(["wheel"], 100, 20, 1) != alone).any()
    assert sorted(draw_latents(["wheel"], 7, 1000, 0)[0]) == list(range(7))


def test_ranking_breaks_ties_by_precision_then_number() -> None:
    f1, exact = [0.5, 0.8, 0.8, 0.8, 0.5, 0.0, 0.0], [0.6, 0.7, 0.9, 0.9, 0.7, NAN, 0.0]
    scores = xr.Dataset(
        {"f1": (("concept", "latent"), [f1]), "precision": (("concept", "latent"), [exact])}, coords={"concept": ["a"]}
    )
    assert semprobe.rank(scores, "a", 7).tolist() == [2, 3, 1, 4, 0, 6, 5]


def test_missing_labels_are_in_no_set() -> None:
    """Selecting and concatenating leave NaN behind, which must not turn into negatives."""
    data, sae = make_activations(), make_sae()
    predictions = semprobe.predict(semprobe.patch_sum(data["activations"], sae)).compute()
    some = data["label"].where(data["image"] < "010.png")
    expected = semprobe.confusion(predictions[:10], data["label"][:10])
    xr.testing.assert_identical(semprobe.confusion(predictions, some), expected)
    xr.testing.assert_identical(semprobe.floor_f1(some), semprobe.floor_f1(data["label"][:10]))
    with pytest.raises(DataError, match="expected only 1, 0 and -1"):
        semprobe.confusion(predictions, data["label"] * 2)
    with pytest.raises(DataError, match="same order"):
        semprobe.confusion(predictions, data["label"][::-1])


def test_random_latents_are_latents_of_the_store() -> None:
    data = semprobe.latents(make_activations(), make_sae()).isel(latent=slice(30, 60))
    scores = semprobe.score(data, random=7).compute()
    picked = scores["f1"].sel(concept="fur", latent=scores["random_latent"].sel(concept="fur"))
    np.testing.assert_array_equal(picked, scores["random_f1"].sel(concept="fur"))


def test_what_cannot_be_scored() -> None:
    data, sae = make_activations(), make_sae()
    with pytest.raises(DataError, match="concept fur has no negative images"):
        semprobe.score(data.assign_coords(label=data["label"].where(data["label"] != 0, 1)), sae=sae)
    with pytest.raises(DataError, match="concept fur has no positive images"):
        semprobe.score(data.assign_coords(label=data["label"].where(data["label"] != 1, 0)), sae=sae)
    with pytest.raises(DataError, match="no concept is labelled"):
        semprobe.score(data.isel(concept=[]), sae=sae)
    with pytest.raises(DataError, match="needs an SAE"):
        semprobe.score(data)
    with pytest.raises(DataError, match="patch sums already"):
        semprobe.score(semprobe.latents(data, sae), sae=sae)
    with pytest.raises(DataError, match="label is lazy"):
        semprobe.score(data.chunk(image=3), sae=sae)
    with pytest.raises(DataError, match="expected at least 1"):
        semprobe.score(data, sae=sae, random=0)
    with pytest.raises(DataError, match="23 images have predictions and 5 are labelled"):
        semprobe.confusion(semprobe.predict(semprobe.latents(data, sae)["patch_sum"]), data["label"][:5])
