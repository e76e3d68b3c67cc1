"""What is shown of a concept: what chance reaches, the floor, the critical F1 and the best latents, as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr

from semprobe.errors import DataError
from semprobe.scoring import precision, rank
from semprobe.significance import in_family, p_max

_QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class Top:
    """One of a concept's best latents."""

    latent: int
    f1: float
    low: float
    high: float
    p_max: float
    significant: bool


@dataclass(frozen=True)
class Panel:
    """What is drawn of one concept."""

    concept: str
    positives: int
    negatives: int
    latents: int
    alpha: float
    family: str
    concepts: int  # that the family spans
    null: np.ndarray
    random: np.ndarray
    floor: float
    critical: float  # infinite where not even F1 = 1 is rare enough
    top: tuple[Top, ...]
    within_source: bool | None  # whether labels were permuted so; None where it is not known
    source_words: str

    @property
    def confounded(self) -> bool:
        """Whether a significant latent may as well be one for the source."""
        return self.within_source is False

    def describe(self) -> dict[str, Any]:
        """The numbers, with quantiles in place of the distributions."""
        kept = ("concept", "positives", "negatives", "latents", "alpha", "family", "within_source", "source_words")
        return {
            **{name: getattr(self, name) for name in kept}, "critical_f1": self.critical, "floor_f1": self.floor,
            "null": _quantiles(self.null, "permutations"), "random": _quantiles(self.random, "draws"),
            "top": [asdict(one) for one in self.top],
        }  # fmt: skip


def _quantiles(values: np.ndarray, what: str) -> dict[str, Any]:
    found = np.quantile(values, _QUANTILES) if len(values) else np.full(len(_QUANTILES), np.nan)
    return {what: len(values), **{f"p{100 * q:02.0f}": float(at) for q, at in zip(_QUANTILES, found, strict=True)}}


def critical_f1_of_null(
    null: np.ndarray, positives: int, negatives: int, *, alpha: float = 0.05, concepts: int = 1
) -> float:
    """Smallest F1 that can occur and whose ``p_max`` is at most alpha.

    An F1 that can occur is ``2 tp / (P + n+)`` of a latent that fires on P images, some and not all. Infinity where not
    even the largest of them is rare enough.

    Parameters
    ----------
    null
        (permutation,) largest F1 of all latents under permuted labels.
    positives, negatives
        Images of the concept, n+ and n-.
    alpha
        Chance of any false finding.
    concepts
        That the family spans.

    Examples
    --------
    >>> import numpy as np
    >>> critical_f1_of_null(np.array([0.5] * 98 + [0.8]), 2, 2)  # 0.8 has p 2 / 100, 0.667 too
    0.6666666666666666
    """
    often = int(alpha * (len(null) + 1) / concepts + 1e-9)  # permutations, itself among them, that may reach it
    beyond = np.sort(null)[::-1][often - 1] if 0 < often <= len(null) else float(often == 0)
    fires = np.arange(1, positives + negatives)
    tp = np.floor(beyond * (fires + positives) / 2) + np.arange(3)[:, None]  # one more than needed, for rounding
    tp = np.clip(tp, np.maximum(0, fires - negatives), np.minimum(fires, positives))
    possible = np.unique(2 * tp / (fires + positives))
    rare = possible[p_max(possible, null, concepts=concepts) <= alpha]
    return float(rare[0]) if len(rare) else float("inf")


def panels(
    scores: xr.Dataset, *, concepts: Sequence[str] | None = None, top: int = 5, alpha: float | None = None
) -> list[Panel]:
    """The numbers of :func:`semprobe.plots.plot_null`, concept by concept; computes.

    Parameters, and errors, are those of :func:`semprobe.plots.plot_null`.
    """
    if "null_max_f1" not in scores:
        raise DataError(
            "found no null_max_f1, so these scores do not say what chance reaches; an older semprobe made them, or one "
            "that was told not to test: score again"
        )
    known = [str(name) for name in scores["concept"].values]
    wanted = known if not concepts else list(dict.fromkeys(concepts))
    if unknown := [name for name in wanted if name not in known]:
        raise DataError(f"no concept {', '.join(unknown)}, expected some of {', '.join(known)}")
    came = scores.attrs.get("provenance") or {}
    came = came.get("tests", came)  # score keeps how it tested there
    alpha = came.get("alpha", 0.05) if alpha is None else alpha
    if top < 1 or not 0 < alpha < 1:
        raise DataError(f"top {top}, alpha {alpha}: expected at least 1, and between 0 and 1")
    null = scores["null_max_f1"].transpose("concept", "permutation").values
    family = str(came.get("family", "concept"))
    spanned = len(known) if family == "study" else 1
    return [
        _panel(scores.sel(concept=[name]).compute(), null[known.index(name)], top, alpha, family, spanned)
        for name in wanted
    ]


def _panel(here: xr.Dataset, null: np.ndarray, top: int, alpha: float, family: str, concepts: int) -> Panel:
    """Of a single concept, still a dim."""
    name, one = str(here["concept"].values[0]), here.isel(concept=0)
    positives, negatives = int(one["tp"][0] + one["fn"][0]), int(one["fp"][0] + one["tn"][0])
    if "precision" not in here:
        here = here.assign(precision=precision(here))
    return Panel(
        name, positives, negatives, one.sizes["latent"], alpha, family, concepts, null,
        random=one["random_f1"].values if "random_f1" in one else np.empty(0),
        floor=2 * positives / (2 * positives + negatives),
        critical=critical_f1_of_null(null, positives, negatives, alpha=alpha, concepts=concepts),
        top=_top(one, rank(here, name, top), null, alpha, concepts),
        within_source=bool(one["within_source"]) if "within_source" in one else None,
        source_words=str(one["source_words"].item()) if "source_words" in one else "",
    )  # fmt: skip


def _top(one: xr.Dataset, best: np.ndarray, null: np.ndarray, alpha: float, concepts: int) -> tuple[Top, ...]:
    numbers = one["latent"].values if "latent" in one.coords else np.arange(one.sizes["latent"])
    kept = one.isel(latent=best)
    chances = p_max(kept["f1"].values, null, concepts=concepts)
    p = kept["p_max"].values if "p_max" in kept else np.where(in_family(kept), chances, 1.0)
    low, high = (kept[name].values if name in kept else np.full(len(best), np.nan) for name in ("f1_low", "f1_high"))
    return tuple(
        Top(int(numbers[at]), float(f1), float(a), float(b), float(chance), bool(chance <= alpha))
        for at, f1, a, b, chance in zip(best, kept["f1"].values, low, high, p, strict=True)
    )


def in_words(panel: Panel) -> str:
    """A panel as a sentence."""
    hits = [one for one in panel.top if one.significant]
    critical = f"critical F1 {panel.critical:.3f}" if np.isfinite(panel.critical) else "no F1 can be significant"
    best = panel.top[0]
    source = f"; {'CONFOUNDED: ' if panel.confounded else ''}{panel.source_words}" if panel.source_words else ""
    return (
        f"{panel.concept}: {critical}, floor {panel.floor:.3f}, best latent {best.latent} with F1 {best.f1:.3f} "
        f"(p {chance_in_words(best.p_max)}); {len(hits)} of the best {len(panel.top)} significant"
        f"{source}"
    )


def chance_in_words(p: float) -> str:
    """A p with the digits that matter."""
    return f"{p:.4f}" if p < 0.01 else f"{p:.3f}"
