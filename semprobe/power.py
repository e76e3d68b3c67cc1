"""How many images it takes: the F1 that the best of thousands of latents reaches by chance, and the chance to beat it.

A null latent fires on P of the n = n+ + n- images, whichever they are: tp ~ Hypergeometric(n, n+, P) and
F1 = 2 tp / (P + n+). A latent is significant if its F1 is **at or above** the critical F1: the smallest F1 value that
can occur with n+ and n- images and that the best of all null latents reaches with probability at most alpha. A
probability equal to alpha is rare enough. Where not even F1 = 1 is, the critical F1 is infinite, and nothing can be
detected. Latents are taken as independent.

How often the null latents fire is `support` of every function here: the share of the images that each latent fires on.

- None: an assumption, that as many latents fire on 1 image as on 2, on 3, ..., on n - 1 images.
- ``"worst"``: all of them fire on the one number of images, from 1 to n - 1, with the heaviest tail.
- an array, such as :func:`semprobe.support` of a concept: its latents stand for all `latents`. A share of 0 never fires
  and a share of 1 always: both are left out, as they are of the family of the test; for another number of images other
  shares are rounded to whole images, at least 1 and at most n - 1.

Ties are exact: F1 is the correctly rounded quotient of two small integers, so equal fractions are equal floats, and
unequal ones, at least 1 / (4 n^2) apart, are not.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from numbers import Integral
from typing import Literal, TypeAlias

import numpy as np
from scipy import special

from semprobe.errors import DataError

Support: TypeAlias = np.ndarray | Literal["worst"] | None
_Family: TypeAlias = tuple[tuple[float, float], ...] | Literal["uniform", "worst"]
"""What `support` says, hashable: pairs of a share of the images and the share of the latents that have it."""

CAP = 500
"""Images of each class that :func:`images_needed` tries."""

_SETTLED = 10
_LARGEST = 20_000_000  # numbers in one array; at most some 1 GB in all
_TIE = 1e-9  # far above rounding, far below what could matter to anybody


def floor(positives: int, negatives: int) -> float:
    """F1 of a latent that fires on every image: 2 n+ / (2 n+ + n-), as :func:`semprobe.floor_f1` of labels.

    Examples
    --------
    >>> floor(20, 20)
    0.6666666666666666
    """
    return 2 * positives / (2 * positives + negatives)


def critical_f1(positives: int, negatives: int, latents: int, *, alpha: float = 0.05, support: Support = None) -> float:
    """Smallest possible F1 that the best of all null latents reaches with probability at most alpha.

    With N_P null latents that fire on P images, P(max F1 >= f) = 1 - prod_P (1 - P(2 tp / (P + n+) >= f))^N_P, where
    tp ~ Hypergeometric(n, n+, P).

    Parameters
    ----------
    positives, negatives
        Images of the concept, n+ and n-.
    latents
        Size of the SAE.
    alpha
        Chance of any false finding among all latents, between 0 and 1.
    support
        How often null latents fire, see :mod:`semprobe.power`; (latent,) shares of the images if an array.

    Returns
    -------
    float
        In (0, 1]; infinity where not even F1 = 1 is rare enough.

    Raises
    ------
    DataError
        No positives, no negatives, no latents, alpha outside (0, 1), or shares that are none or all 0 or 1.

    References
    ----------
    Fisher, The Design of Experiments, 1935, chapter 2 (the hypergeometric tail). Šidák, J. Amer. Statist. Assoc. 62,
    1967 (the maximum of independent tests).

    Examples
    --------
    >>> critical_f1(20, 20, 24576)
    0.8421052631578947
    >>> critical_f1(5, 5, 24576)
    inf
    """
    _check(positives, negatives, latents, alpha)
    return _critical(int(positives), int(negatives), int(latents), float(alpha), _family(support))


def detection(
    positives: int, negatives: int, latents: int, tpr: float, fpr: float, *, alpha: float = 0.05,
    support: Support = None,
) -> float:  # fmt: skip
    """Chance that a latent with these rates is significant: P(F1(tp, fp) >= critical F1), summed exactly.

    tp ~ Binomial(n+, tpr) and fp ~ Binomial(n-, fpr): images are independent of each other.

    Parameters
    ----------
    tpr, fpr
        Probability that the latent fires on a positive, and on a negative.

    The others, and errors, are those of :func:`critical_f1`.

    Returns
    -------
    float
        In [0, 1]; 0 where the critical F1 is infinite.

    Raises
    ------
    DataError
        A rate outside 0..1.

    Examples
    --------
    >>> round(detection(20, 20, 24576, 0.9, 0.05), 4)
    0.9577
    """
    critical = critical_f1(positives, negatives, latents, alpha=alpha, support=support)
    return _detection(positives, negatives, tpr, fpr, critical)


def images_needed(
    latents: int, tpr: float, fpr: float, *, power: float = 0.8, alpha: float = 0.05, support: Support = None,
    cap: int = CAP,
) -> int:  # fmt: skip
    """Images of each class, as many positives as negatives, to detect a latent with these rates.

    :func:`detection` goes up in a sawtooth, since F1 takes few values. The answer is the smallest n at which it is at
    least `power`, and still is with 1, 2, ..., 10 more images of each class. Some latents no number of images detects:
    those whose F1 tends to less than what latents that fire on nearly every image have, 2/3.

    Parameters
    ----------
    power
        The chance to detect that is wanted, between 0 and 1.
    cap
        Largest number of images of a class to try.

    The others are those of :func:`detection`.

    Returns
    -------
    int
        Images of one class.

    Raises
    ------
    DataError
        The cap is not enough; also as :func:`detection`.

    Examples
    --------
    >>> images_needed(24576, 0.9, 0.05)
    15
    """
    if not 0 < power < 1 or cap <= _SETTLED:
        raise DataError(f"power {power}, cap {cap}: expected a power between 0 and 1 and a cap above {_SETTLED}")

    def enough(images: int) -> bool:
        return detection(images, images, latents, tpr, fpr, alpha=alpha, support=support) >= power

    run = 0
    for images in range(1, cap + 1 if enough(cap) else 1):
        run = run + 1 if enough(images) else 0
        if run > _SETTLED:
            return images - _SETTLED
    raise DataError(
        f"{cap} positives and {cap} negatives are not enough to detect a latent with true positive rate {tpr} and "
        f"false positive rate {fpr} with a chance of {power}: its F1 tends to {2 * tpr / (1 + tpr + fpr):.3f}, and "
        f"firing on every image gives {floor(1, 1):.3f}; look for a stronger latent, or raise the cap if its F1 is "
        "well above that"
    )


def _check(positives: int, negatives: int, latents: int, alpha: float) -> None:
    for number, word in ((positives, "positive images"), (negatives, "negative images"), (latents, "latents")):
        if not isinstance(number, Integral) or number < 1:
            raise DataError(f"found {number} {word}, expected a whole number of at least 1")
    if not 0 < alpha < 1:
        raise DataError(f"alpha is {alpha}, expected a probability between 0 and 1, such as 0.05")
    if (size := (positives + negatives) * positives) > _LARGEST:
        raise DataError(
            f"{positives} positives and {negatives} negatives would take arrays of {size:,} numbers, expected at most "
            f"{_LARGEST:,}; ask for fewer images"
        )


def _family(support: Support) -> _Family:
    if support is None:
        return "uniform"
    if isinstance(support, str):
        if support != "worst":
            raise DataError(f'support is "{support}", expected None, "worst" or an array of shares')
        return "worst"
    shares = np.asarray(support, np.float64)
    if shares.size == 0 or not ((shares >= 0) & (shares <= 1)).all():
        raise DataError("support must be shares of the images between 0 and 1, one a latent; found others, or none")
    if not ((shares > 0) & (shares < 1)).any():
        raise DataError(
            "every share of support is 0 or 1: no latent fires on some images and not on all, so there is nothing to "
            "compare with"
        )
    found, counts = np.unique(shares, return_counts=True)
    return tuple((float(s), float(c)) for s, c in zip(found, counts / shares.size, strict=True) if 0 < s < 1)


def _expected(family: _Family, images: int, latents: int) -> np.ndarray:
    """(P,) number of null latents that fire on P = 0..n images."""
    if isinstance(family, str):
        inner = np.full(images + 1, float(latents) if family == "worst" else latents / (images - 1))
        inner[[0, -1]] = 0
        return inner
    shares, weights = np.array(family).T
    fired = np.clip(np.rint(shares * images), 1, images - 1).astype(np.int64)
    return np.bincount(fired, latents * weights, images + 1)


def _tails(positives: int, negatives: int, fired: np.ndarray) -> np.ndarray:
    """(P, tp) P(TP >= tp) of the hypergeometric for tp = 0..n+ + 1, the last of them 0."""
    tp, rest = np.arange(positives + 1), fired[:, None] - np.arange(positives + 1)
    possible = (rest >= 0) & (rest <= negatives)
    rest = np.where(possible, rest, 0)
    mass = _ways(positives, tp) + _ways(negatives, rest) - _ways(positives + negatives, fired)[:, None]
    upwards = np.where(possible, np.exp(mass), 0)[:, ::-1].cumsum(1)[:, ::-1]
    return np.pad(np.minimum(upwards, 1), ((0, 0), (0, 1)))


def _ways(number: int, chosen: np.ndarray) -> np.ndarray:
    """Logarithm of the binomial coefficients."""
    table = special.gammaln(np.arange(number + 1) + 1.0)
    return table[number] - table[chosen] - table[number - chosen]


def _f1(positives: int, negatives: int) -> np.ndarray:
    """(tp, fp) F1 of every table that can occur."""
    tp, fp = np.ogrid[: positives + 1, : negatives + 1]
    return 2 * tp / (tp + fp + positives)


@lru_cache(maxsize=4096)  # a table of rates asks for the same numbers of images again and again
def _critical(positives: int, negatives: int, latents: int, alpha: float, family: _Family) -> float:
    expected = _expected(family, positives + negatives, latents)
    fired = np.flatnonzero(expected)
    # -log(1 - chance) adds up over independent latents, and keeps chances far below 1e-16
    rates = -special.xlog1py(expected[fired][:, None], -_tails(positives, negatives, fired))
    budget = -special.log1p(-alpha) * (1 + _TIE)
    together = np.max if family == "worst" else np.sum

    def rare(value: float) -> bool:
        # a fraction that is not whole is at least 1 / (4 n) away from it, so 1e-8 only undoes rounding
        tp = np.ceil(value * (fired + positives) / 2 - 1e-8).astype(np.int64)
        return bool(together(rates[np.arange(fired.size), np.minimum(tp, positives + 1)]) <= budget)

    alone = (rates <= budget).argmax(1)  # what each P allows alone bounds what all of them do
    bound = (2 * (alone - 1) / (fired + positives)).max()
    values = _f1(positives, negatives)
    values = np.unique(values[values > bound])
    at = bisect_left(values, True, key=rare)
    return float(values[at]) if at < values.size else np.inf


def _detection(positives: int, negatives: int, tpr: float, fpr: float, critical: float) -> float:
    for rate, word in ((tpr, "true"), (fpr, "false")):
        if not 0 <= rate <= 1:
            raise DataError(f"the {word} positive rate is {rate}, expected a share between 0 and 1")
    found = _binomial(positives, tpr) @ (_f1(positives, negatives) >= critical) @ _binomial(negatives, fpr)
    return float(min(found, 1))


def _binomial(number: int, rate: float) -> np.ndarray:
    """(k,) probabilities of k = 0..number; scipy.stats has them too, and takes half a second to import."""
    k = np.arange(number + 1)
    return np.exp(_ways(number, k) + special.xlogy(k, rate) + special.xlog1py(number - k, -rate))
