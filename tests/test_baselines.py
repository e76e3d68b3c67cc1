"""The backbone's channels, and random directions that fire as often."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from semprobe import baselines, kernel
from semprobe.assessment import score_sums
from semprobe.errors import DataError
from semprobe.fit import sample
from tests.conftest import make_activations, sae_of


@pytest.mark.parametrize("kind", ["relu", "topk"])
def test_random_directions_fire_on_as_many_patches(kind: str) -> None:
    data = make_activations(images=40, patches=7)["activations"]
    sae = sae_of(kind)
    random = baselines.random_sae(data, sae, patches=100, seed=3)
    drawn = sample(data, patches=100, seed=3).values
    assert len(drawn) == 15
    wanted, found = ((kernel.codes(drawn, one) > 0).sum((0, 1)) for one in (sae, random))
    np.testing.assert_array_equal(found, wanted)
    assert wanted[0] == 0
    assert wanted[2:].any()
    assert kind == "topk" or wanted[1] == 105
    again = baselines.random_sae(data, sae, patches=100, seed=3)
    assert (again.encoder == random.encoder).all()
    assert (again.bias == random.bias).all()
    assert not np.allclose(random.encoder, baselines.random_sae(data, sae, patches=100, seed=4).encoder)
    np.testing.assert_allclose(np.linalg.norm(random.encoder, axis=1), 1, rtol=1e-6)


def test_channels_equal_a_plain_computation() -> None:
    data = make_activations()
    sums = baselines.channel_sums(data["activations"].chunk(image=5))
    assert sums.chunks is not None
    found = score_sums(sums.to_dataset(name="patch_sum").assign_coords(label=data["label"]).compute())
    best = {name: baselines.best_of_both(name, found[name[8:]]) for name in ("channel_f1", "channel_auroc")}
    x, label = data["activations"].values.astype(np.float64).sum(1), data["label"].values
    for concept, channel in np.ndindex(2, 8):
        positive, negative = (x[label[:, concept] == value, channel] for value in (1, 0))
        f1, auroc = [], []
        for sign in (1, -1):
            tp, fp = (sign * positive > 0).sum(), (sign * negative > 0).sum()
            f1.append(2 * tp / (tp + fp + len(positive)))
            auroc.append((sign * positive[:, None] > sign * negative).mean())
        assert best["channel_f1"][concept, channel] == max(f1)
        assert best["channel_auroc"][concept, channel] == pytest.approx(max(auroc))
    assert best["channel_f1"].dims == ("concept", "feature")


def test_a_channel_that_is_not_a_number_is_not_passed_over() -> None:
    data = make_activations()
    data["activations"].values[0, 2, 1] = np.nan
    sums = baselines.channel_sums(data["activations"])
    assert np.isnan(sums.values[0, [1, 9]]).all()
    with pytest.raises(DataError, match="patch sum is NaN"):
        score_sums(xr.Dataset({"patch_sum": sums}, coords={"label": data["label"]})).compute()
