"""The SAE object: what every checkpoint becomes, whatever wrote it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np

from semprobe.errors import SAEError


def _per_latent(value: object, name: str) -> np.ndarray:
    found = np.ascontiguousarray(value, dtype=np.float32)
    if found.ndim != 1 or not np.isfinite(found).all():
        raise SAEError(f"{name} has shape {found.shape}, expected (latent,), all finite")
    return found


@dataclass(frozen=True, eq=False)
class Threshold:
    """Keep pre-activations above a threshold (``>``), 0 elsewhere.

    ReLU is the threshold 0; BatchTopK at inference is one positive threshold, JumpReLU one a latent. The value itself
    is kept, not what exceeds the threshold. A negative threshold acts as 0: a ReLU comes first wherever one occurs.
    """

    threshold: float | np.ndarray = 0.0

    def __post_init__(self) -> None:
        if np.ndim(self.threshold):
            kept: float | np.ndarray = np.maximum(_per_latent(self.threshold, "the threshold"), 0)
        elif not np.isfinite(self.threshold):
            raise SAEError(f"the threshold is {self.threshold}, expected a finite number")
        else:
            kept = max(0.0, float(self.threshold))
        object.__setattr__(self, "threshold", kept)

    def __str__(self) -> str:
        if isinstance(self.threshold, np.ndarray):
            low, high = self.threshold.min(), self.threshold.max()
            return f"h where h > threshold of the latent ({low:.4g} to {high:.4g}), else 0"
        return "relu(h)" if self.threshold == 0 else f"h where h > {self.threshold:g}, else 0"

    def arrays(self) -> tuple[np.ndarray, ...]:
        return (self.threshold,) if isinstance(self.threshold, np.ndarray) else ()

    def take(self, columns: np.ndarray | slice) -> Threshold:
        """The same of some latents."""
        return Threshold(self.threshold[columns]) if isinstance(self.threshold, np.ndarray) else self


@dataclass(frozen=True, eq=False)
class Gated:
    """Gate and magnitude share the product h: ``h * scale + bias`` above 0 where ``h + gate`` is above 0, else 0.

    References
    ----------
    Rajamanoharan et al. 2024, Improving Dictionary Learning with Gated Sparse Autoencoders, equations 6 and 7.
    """

    gate: np.ndarray
    scale: np.ndarray

    def __post_init__(self) -> None:
        for name in ("gate", "scale"):
            object.__setattr__(self, name, _per_latent(getattr(self, name), f"the {name} of a gated SAE"))

    def __str__(self) -> str:
        return "relu(p exp(r_mag) + b_mag) where p + b_gate > 0, else 0, with p the product"

    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.gate, self.scale

    def take(self, columns: np.ndarray | slice) -> Gated:
        """The same of some latents."""
        return Gated(self.gate[columns], self.scale[columns])


@dataclass(frozen=True)
class TopK:
    """Keep k pre-activations of each patch, 0 elsewhere.

    ``by`` says which: ``value``, the k largest; ``magnitude``, the k largest in magnitude; ``group``, the largest of
    each of k equal groups of neighbouring latents. With ``relu`` those below 0 become 0 too; else codes are signed. Of
    several that are equal to the last bit, which is kept is not specified.
    """

    k: int
    by: str = "value"
    relu: bool = False

    def __post_init__(self) -> None:
        if self.by not in ("value", "magnitude", "group"):
            raise SAEError(f"top k by {self.by!r}; known are value, magnitude and group")

    def __str__(self) -> str:
        which = {
            "value": f"among the {self.k} largest of its patch",
            "magnitude": f"among the {self.k} largest in magnitude of its patch",
            "group": f"the largest of its group, {self.k} groups of neighbouring latents",
        }
        return f"{'relu(h)' if self.relu else 'h'} where h is {which[self.by]}, else 0"


Activation = Threshold | Gated | TopK

NORMALISATIONS = {
    "layer_norm": "x = (x - mean x) / (std x + 1e-5) of each patch, std with n - 1",
    "constant_norm_rescale": "x = x sqrt(d) / |x| of each patch",
}
"""What an SAE may do to a patch first, in SAELens' and ViT-Prisma's names."""

_ARRAYS = ("encoder", "bias", "centre", "decoder", "decoder_bias")


@dataclass(frozen=True, eq=False)
class SAE:
    """The encoder of a sparse autoencoder; the decoder too, where it was asked for.

    Parameters
    ----------
    encoder
        (latent, feature) float32, C order: one row a latent, the layout in which the product is fastest.
    bias
        (latent,) float32.
    activation
        What is kept of a pre-activation.
    centre
        (feature,) float32 subtracted from the input first (b_dec, in files of that convention); None if nothing is.
    normalisation
        One of `NORMALISATIONS`, done to each patch before that; None if nothing is.
    decoder, decoder_bias
        (latent, feature) and (feature,) float32, which rebuild the input from its codes; never needed to encode.
    origin
        Format and version of the file, in words.
    path
        Where it was read from; None if it was made in memory.
    declared
        What the file says of its backbone and layer.

    Raises
    ------
    SAEError
        Shapes that do not fit each other, or values that are not finite.
    """

    encoder: np.ndarray
    bias: np.ndarray
    activation: Activation = Threshold()
    centre: np.ndarray | None = None
    normalisation: str | None = None
    decoder: np.ndarray | None = None
    decoder_bias: np.ndarray | None = None
    origin: str = "in memory"
    path: str | None = None
    declared: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _ARRAYS:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, np.ascontiguousarray(value, dtype=np.float32))
        where = self.path or "SAE"
        if self.encoder.ndim != 2 or 0 in self.encoder.shape:
            raise SAEError(f"{where}: the encoder has shape {self.encoder.shape}, expected (latent, feature)")
        expected = {"bias": (self.latents,), "centre": (self.width,), "decoder": self.encoder.shape,
                    "decoder_bias": (self.width,)}  # fmt: skip
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise SAEError(f"{where}: {name} has shape {value.shape}, the encoder wants {shape}")
        if not all(np.isfinite(getattr(self, name)).all() for name in _ARRAYS if getattr(self, name) is not None):
            raise SAEError(f"{where}: some weights are NaN or infinite")
        if self.normalisation not in (None, *NORMALISATIONS):
            raise SAEError(f"{where}: normalisation {self.normalisation!r}; known are {', '.join(NORMALISATIONS)}")
        self._check_activation(where)

    def _check_activation(self, where: str) -> None:
        if isinstance(self.activation, TopK):
            k = self.activation.k
            if type(k) is not int or not 1 <= k <= self.latents:
                raise SAEError(f"{where}: k is {k}, expected 1 to {self.latents}, the number of latents")
            if self.activation.by == "group" and self.latents % k:
                raise SAEError(f"{where}: {self.latents} latents can't be cut into {k} equal groups")
        elif any(value.shape != (self.latents,) for value in self.activation.arrays()):
            raise SAEError(f"{where}: thresholds or gates are not one a latent, of which there are {self.latents}")

    @property
    def width(self) -> int:
        """Number of features that it reads."""
        return int(self.encoder.shape[1])

    @property
    def latents(self) -> int:
        """Number of latents."""
        return int(self.encoder.shape[0])

    @property
    def signed(self) -> bool:
        """Whether a code can be negative, so that "the sum is positive" is more than "some patch fires"."""
        return isinstance(self.activation, TopK) and not self.activation.relu

    @property
    def formula(self) -> str:
        """The encoder in words."""
        first = f"{NORMALISATIONS[self.normalisation]}; " if self.normalisation else ""
        inner = "x" if self.centre is None else "(x - b_dec)"
        product = f"p = {inner} W_enc" if isinstance(self.activation, Gated) else f"h = {inner} W_enc + b_enc"
        return f"{first}{product}; code = {self.activation}"

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that decides a code: the same SAE in two files has the same one."""
        arrays = () if isinstance(self.activation, TopK) else self.activation.arrays()
        kept = self.activation if not arrays else type(self.activation).__name__
        digest = hashlib.sha256(repr((self.encoder.shape, kept, self.centre is None, self.normalisation)).encode())
        for value in (self.encoder, self.bias, self.centre, *arrays):
            if value is not None:
                digest.update(value.data)
        return digest.hexdigest()

    def encode(self, block: np.ndarray) -> np.ndarray:
        """Codes of a block in memory.

        Parameters
        ----------
        block
            (..., feature) activations.

        Returns
        -------
        numpy.ndarray
            (..., latent) float32.

        Raises
        ------
        SAEError
            Another number of features.
        """
        from semprobe.kernel import codes

        rows = np.asarray(block, dtype=np.float32)
        if rows.ndim == 0 or rows.shape[-1] != self.width:
            raise SAEError(
                f"{self.path or 'the SAE'} reads {self.width} features, and this block has shape {rows.shape}"
            )
        flat = rows.reshape(-1, 1, rows.shape[-1])
        return codes(flat, self).reshape(*rows.shape[:-1], self.latents)

    def decode(self, codes: np.ndarray, block: np.ndarray) -> np.ndarray:
        """Rebuild activations from their codes.

        Parameters
        ----------
        codes
            (..., latent), as `encode` gives them.
        block
            (..., feature) activations that were encoded, whose mean and scale a normalisation put aside.

        Returns
        -------
        numpy.ndarray
            (..., feature) float32.

        Raises
        ------
        SAEError
            The decoder was not loaded, or rebuilds something else than its input.
        """
        if self.decoder is None or self.decoder_bias is None:
            raise SAEError(f"{self.path or 'the SAE'}: has no decoder that rebuilds its input")
        found = codes @ self.decoder + self.decoder_bias
        if self.normalisation == "layer_norm":
            found = found * block.std(-1, ddof=1, keepdims=True) + block.mean(-1, keepdims=True)
        elif self.normalisation == "constant_norm_rescale":
            found = found * np.linalg.norm(block, axis=-1, keepdims=True) / np.float32(self.width**0.5)
        return np.asarray(found, dtype=np.float32)

    def describe(self) -> dict[str, Any]:
        """What stores record of it."""
        return {
            "path": self.path, "sha256": self.sha256, "origin": self.origin, "features": self.width,
            "latents": self.latents, "formula": self.formula, "normalisation": self.normalisation or "none",
            "declared": self.declared,
        }  # fmt: skip

    def __dask_tokenize__(self) -> str:
        return self.sha256

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as path and hash, not as weights: a task stays small, and a worker loads them once."""
        source: tuple[str, dict[str, Any]] | None = getattr(self, "_source", None)
        if source is not None:
            return _reopen, (*source, self.sha256)
        return SAE, tuple(getattr(self, one.name) for one in fields(self))


_opened: dict[str, SAE] = {}


def _reopen(path: str, options: dict[str, Any], sha256: str) -> SAE:
    if sha256 not in _opened:
        from semprobe.checkpoints import load_sae

        found = load_sae(path, **options)
        if found.sha256 != sha256:
            raise SAEError(f"{path}: the SAE changed since it was opened; go back to the old file or start again")
        _opened.clear()  # one at a time: weights are large
        _opened[sha256] = found
        return found
    return _opened[sha256]
