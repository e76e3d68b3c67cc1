"""The SAE object: what every checkpoint becomes, whatever wrote it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from semprobe.errors import SAEError


@dataclass(frozen=True)
class Threshold:
    """Keep pre-activations above a threshold (``>``), 0 elsewhere.

    ReLU is the threshold 0. BatchTopK at inference is a positive one: the value itself is kept, not what exceeds it.
    """

    threshold: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < float("inf"):
            raise SAEError(f"the threshold is {self.threshold}, expected a finite number of at least 0")

    def __str__(self) -> str:
        return "relu(h)" if self.threshold == 0 else f"h where h > {self.threshold:g}, else 0"


@dataclass(frozen=True)
class TopK:
    """Keep the k largest pre-activations of each patch, signed: a code may be negative.

    Of several that are equal to the last bit at the k-th place, which is kept is not specified.
    """

    k: int

    def __str__(self) -> str:
        return f"h where h is among the {self.k} largest of its patch, else 0"


Activation = Threshold | TopK


@dataclass(frozen=True, eq=False)
class SAE:
    """The encoder of a sparse autoencoder.

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
    origin: str = "in memory"
    path: str | None = None
    declared: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("encoder", "bias", "centre"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, np.ascontiguousarray(value, dtype=np.float32))
        where = self.path or "SAE"
        if self.encoder.ndim != 2 or 0 in self.encoder.shape:
            raise SAEError(f"{where}: the encoder has shape {self.encoder.shape}, expected (latent, feature)")
        expected = {"bias": (self.latents,), "centre": (self.width,)}
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise SAEError(f"{where}: {name} has shape {value.shape}, the encoder wants {shape}")
        if not all(np.isfinite(v).all() for v in (self.encoder, self.bias, self.centre) if v is not None):
            raise SAEError(f"{where}: some weights are NaN or infinite")
        if isinstance(self.activation, TopK) and not 1 <= self.activation.k <= self.latents:
            raise SAEError(f"{where}: k is {self.activation.k}, expected 1 to {self.latents}, the number of latents")

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
        return isinstance(self.activation, TopK)

    @property
    def formula(self) -> str:
        """The encoder in words."""
        inner = "x" if self.centre is None else "(x - b_dec)"
        return f"h = {inner} W_enc + b_enc; code = {self.activation}"

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that decides a code: the same SAE in two files has the same one."""
        digest = hashlib.sha256(repr((self.encoder.shape, self.activation, self.centre is None)).encode())
        for value in (self.encoder, self.bias, self.centre):
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
        """
        from semprobe.kernel import codes

        rows = np.asarray(block, dtype=np.float32)
        flat = rows.reshape(-1, 1, rows.shape[-1])
        return codes(flat, self).reshape(*rows.shape[:-1], self.latents)

    def describe(self) -> dict[str, Any]:
        """What stores record of it."""
        return {
            "path": self.path, "sha256": self.sha256, "origin": self.origin, "features": self.width,
            "latents": self.latents, "formula": self.formula, "declared": self.declared,
        }  # fmt: skip

    def __dask_tokenize__(self) -> str:
        return self.sha256

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as path and hash, not as weights: a task stays small, and a worker loads them once."""
        if self.path is not None and getattr(self, "_as_in_file", False):
            return _reopen, (os.path.abspath(self.path), self.sha256)
        values = (self.encoder, self.bias, self.activation, self.centre, self.origin, self.path, self.declared)
        return SAE, values


_opened: dict[str, SAE] = {}


def _reopen(path: str, sha256: str) -> SAE:
    if sha256 not in _opened:
        from semprobe.checkpoints import load_sae

        found = load_sae(path)
        if found.sha256 != sha256:
            raise SAEError(f"{path}: the SAE changed since it was opened; go back to the old file or start again")
        _opened.clear()  # one at a time: weights are large
        _opened[sha256] = found
        return found
    return _opened[sha256]
