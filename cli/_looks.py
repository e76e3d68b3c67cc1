"""Codes and pictures of a study's latents, as far as SAE and activations are still there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semprobe.cli import _common, _studies
from semprobe.errors import SemprobeError

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from PIL import Image

    from semprobe.report_pictures import Look
    from semprobe.sae import SAE
    from semprobe.study import Study

_AT_ONCE = 500_000_000
"""Bytes of codes that are in memory at a time."""

_OF_AN_SAE = ("sha256", "formula")
"""What tells one SAE from another in provenance."""

_NAME = 28  # letters of a picture's origin


class Looks:
    """Where latents fire on a study's images.

    Attributes
    ----------
    notices
        Why no latent has heat, in sentences; empty where they have. Of a single latent its look says it.
    provenance
        Of the stores of activations, latents and scores, as far as they are there.
    """

    def __init__(
        self, study: Study, scores: xr.Dataset, sae_path: str | None, normalize: str, options: dict[str, Any],
        workers: int | None, quiet: bool,
    ) -> None:  # fmt: skip
        self._study, self._scores, self._workers, self._quiet = study, scores, workers, quiet
        self._names = [str(name) for name in scores["image"].values]
        self._at = {name: at for at, name in enumerate(self._names)}
        self._urls = {row["path"]: row["url"] for row in study.used()}
        self.notices: list[str] = []
        stores = {name: _opened(getattr(study, name)) for name in ("activations", "latents")}
        came = [one.attrs["provenance"] for one in stores.values() if one is not None]
        self.provenance = [*came, scores.attrs["provenance"]]
        self._latents = stores["latents"] if _same_codes(stores["latents"], scores) else None
        self._data, self._sae = self._codes(stores["activations"], sae_path, normalize, options)

    def _codes(
        self, data: xr.Dataset | None, sae_path: str | None, normalize: str, options: dict[str, Any]
    ) -> tuple[xr.Dataset | None, SAE | None]:
        """Activations and SAE, if they are those that were scored; else nothing, and a notice."""
        recorded = self._scores.attrs["provenance"]
        try:
            if data is None:
                raise SemprobeError(f"the store of activations {self._study.activations.name} is not there")
            _check_same_activations(data, recorded.get("activations") or {})
            sae = _common.load_sae(_place(sae_path, recorded), options)
            _check_same(sae, recorded.get("sae") or {})
            return self._normalised(data, normalize, recorded.get("normalisation", "none")), sae
        except (SemprobeError, OSError) as error:
            told = " ".join(str(error).split())
            self.notices.append(f"Pictures are shown without heat, since where latents fire can't be computed: {told}")
            return None, None

    def _normalised(self, data: xr.Dataset, normalize: str, recorded: Any) -> xr.Dataset:
        kind = recorded.get("kind") if isinstance(recorded, dict) else "none"
        how = "probe" if kind == "probe" and normalize == "none" else normalize
        if kind == "file" and how == "none":
            raise SemprobeError("activations were normalised by a file; give it with --normalize")
        found, now = _common.Normalisation(how).apply(data, self._workers, self._quiet)
        if (now.get("mean_sha256") if isinstance(now, dict) else None) != (
            recorded.get("mean_sha256") if isinstance(recorded, dict) else None
        ):
            raise SemprobeError(f"--normalize {how} is not what the scores were made with")
        return found

    def of(self, wanted: Sequence[tuple[str, int]]) -> Iterator[Look]:
        """Concepts and latents, a look each; some at a time, so that memory is bounded.

        Raises
        ------
        DataError
            Codes do not agree with the stored predictions.
        """
        latents = sorted({latent for _, latent in wanted})
        group = len(latents) if self._data is None else max(1, _AT_ONCE // (4 * _cells(self._data)))
        for start in range(0, len(latents), max(1, group)):
            some = latents[start : start + group]
            heat = self._heat(some)
            for concept, latent in wanted:
                if latent in some:
                    yield self._look(concept, latent, heat)

    def _heat(self, latents: list[int]) -> xr.DataArray | None:
        from semprobe.heatmaps import heatmap

        if self._data is None or self._sae is None:
            return None
        lazy = heatmap(self._data, self._sae, latents)["code"].sel(image=self._names)
        number = lazy.sizes["image"]
        with _common.computing(number, "looking", self._workers, self._quiet):
            return lazy.compute()

    def _look(self, concept: str, latent: int, heat: xr.DataArray | None) -> Look:
        from semprobe.report_pictures import Look

        mine = None if heat is None else heat.sel(latent=latent, drop=True)
        sums = self._sums(latent) if mine is None else mine.sum(("row", "column")).values
        notice = ""
        if mine is not None and self._differs(concept, latent, sums):
            notice = f"Pictures of latent {latent} are shown without heat, since its codes do not agree with the scores"
            mine, sums = None, self._sums(latent)
        place = [str(name) for name in self._scores["concept"].values].index(concept) + 1
        return Look(concept, latent, self._names, sums, mine, self._read, self._told, f"{place}-", notice)

    def _differs(self, concept: str, latent: int, sums: np.ndarray) -> bool:
        """Whether predictions now and then differ on more images than rounding explains."""
        import numpy as np

        from semprobe.assessment import outcomes

        became = outcomes(self._scores, concept, latent)
        threshold = self._scores.attrs["provenance"].get("threshold", 0.0)
        if threshold == "sweep":
            threshold = float(self._scores["threshold"].sel(concept=concept, latent=latent))
        now = sums[[self._at[str(name)] for name in became["image"].values]] > threshold
        differ = int((now != np.isin(became.values, ("tp", "fp"))).sum())
        return differ > max(1, len(now) // 100)

    def _sums(self, latent: int) -> np.ndarray:
        """Patch sums of the stores, NaN if there are none of what was scored."""
        import numpy as np

        for store in (self._scores, self._latents):
            if store is not None and "patch_sum" in store:
                found = store["patch_sum"].sel(image=self._names, latent=latent)
                return found.compute(scheduler="synchronous").values.astype(np.float64)
        return np.full(len(self._names), np.nan)

    def _read(self, name: str) -> tuple[Image.Image, np.ndarray | None]:
        import numpy as np

        from semprobe.images import read_image

        at = self._at[name]
        sha256 = str(self._scores["sha256"].values[at]) if "sha256" in self._scores.coords else ""
        picture = read_image(self._study.image(name), sha256 or None)
        crop = self._scores["crop"].values[at] if "crop" in self._scores.coords else np.full(4, np.nan)
        return picture, crop if np.isfinite(crop).all() else None

    def _told(self, name: str) -> str:
        """The end of where a picture came from, in the manifest's words."""
        url = self._urls.get(name, "").rstrip("/").rsplit("/", 1)[-1] or name.rsplit("/", 1)[-1]
        return url if len(url) <= _NAME else f"…{url[1 - _NAME :]}"


def tested_scores(study: Study) -> xr.Dataset:
    """A study's scores, in memory, with everything that a report or a review tells of them.

    Raises
    ------
    StoreNotFound, DataError
        There are none, or they were not tested.
    """
    from semprobe.errors import DataError

    scores = _studies.made(study, "scores")
    predictions = "patch_sum" if "patch_sum" in scores else "prediction_bits"  # a sweep keeps the sums
    needed = ("null_max_f1", "held_out_f1", "f1_low", predictions)
    if missing := [name for name in needed if name not in scores]:
        raise DataError(
            f"{study.scores}: has no {', '.join(missing)}, so it was not tested; semprobe score {study.folder} does it"
        )
    return scores.compute(scheduler="synchronous")  # not on a thread's pool, which may end


def _opened(path: Path) -> xr.Dataset | None:
    from semprobe.errors import StoreNotFound
    from semprobe.stores import open_store

    try:
        return open_store(str(path))
    except StoreNotFound:
        return None


def _same_codes(latents: xr.Dataset | None, scores: xr.Dataset) -> bool:
    """Whether a store of latents is of the SAE, the activations and the images that were scored."""
    if latents is None or not set(scores["image"].values) <= set(latents["image"].values):
        return False
    then, now = scores.attrs["provenance"], latents.attrs["provenance"]
    saes = [one.get("sae") or {} for one in (then, now)]
    same_sae = bool(saes[0].get("sha256")) and all(saes[0].get(name) == saes[1].get(name) for name in _OF_AN_SAE)
    return same_sae and all(then.get(name) == now.get(name) for name in ("normalisation", "activations"))


def _place(given: str | None, recorded: dict[str, Any]) -> str:
    """Where the SAE is: as given, or as recorded; the embedded one is wherever semprobe is now."""
    from semprobe.checkpoints import pilot_sae_path

    path = given or str((recorded.get("sae") or {}).get("path") or "")
    if not path:
        raise SemprobeError("the scores do not say of which SAE they are; give it with --sae")
    embedded = given is None and os.path.basename(path) == pilot_sae_path().name and not os.path.exists(path)
    return "pilot" if embedded else path


def _check_same(sae: SAE, recorded: dict[str, Any]) -> None:
    now = sae.describe()
    for name in _OF_AN_SAE:
        if recorded.get(name) and recorded[name] != now[name]:
            raise SemprobeError(f"{sae.path} is another SAE than was scored: {name} {now[name]}, then {recorded[name]}")


def _check_same_activations(data: xr.Dataset, recorded: dict[str, Any]) -> None:
    """Stores of different identity never mix: heat of one on scores of another would look right and be wrong."""
    from semprobe.stores import differences

    now = _common.without_run(data.attrs["provenance"])
    then, now = ({key: one for key, one in came.items() if key != "versions"} for came in (recorded, now))
    other = differences(then, now) if recorded else []
    if other:
        raise SemprobeError(
            f"the store of activations has changed since it was scored ({'; '.join(other[:3])}); score it again"
        )


def _cells(data: xr.Dataset) -> int:
    return data.sizes["image"] * data.sizes["patch"]
