"""How each kind of store is cut: chunks, shards, checksums, versions. `docs/store-format.md` is the norm."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr
from zarr.codecs import Crc32cCodec, ZstdCodec

FORMAT_VERSION = 1
"""Version that is written; every version up to it is read."""

REQUIRED = {
    "activations": {"image", "concept", "label", "source", "sha256", "width", "height", "crop", "row", "column",
                    "activations"},
    "latents": {"image", "concept", "label", "latent", "patch_sum"},
    "scores": {"concept", "latent", "tp", "fp", "fn", "tn", "f1", "precision", "recall", "support", "floor_f1",
               "random_latent", "random_f1"},
}  # fmt: skip
"""Variables without which a store of that kind is not valid."""

SHARD_BYTES = 32_000_000
"""A shard is one file and the smallest unit that can be written safely: few files, yet little lost by a kill."""

_BLOCK_BYTES = 10_000_000  # a task reads about this much

_MULTIPLE = 16  # images a shard comes in: whole batches, whole tiles


def images_per_shard(bytes_per_image: int, images: int) -> int:
    """How many images one shard holds: about 32 MB, a multiple of 16, no more than needed."""
    wanted = max(1, SHARD_BYTES // max(1, bytes_per_image * _MULTIPLE)) * _MULTIPLE
    needed = -(-max(1, images) // _MULTIPLE) * _MULTIPLE
    return int(min(wanted, needed))


def images_per_block(bytes_per_image: int) -> int:
    """How many images one task reads: about 10 MB, whole tiles of the encoder."""
    return max(1, _BLOCK_BYTES // max(1, bytes_per_image * _MULTIPLE)) * _MULTIPLE


def nothing_written(dtype: np.dtype) -> Any:
    """The value that stands where nothing was written: one that can't be taken for a result."""
    if dtype.kind == "u":
        return np.iinfo(dtype).max
    return np.array(np.nan if dtype.kind == "f" else -1, dtype)[()]


def encoding(template: xr.Dataset, streamed: set[str], shard: int) -> dict[Hashable, dict[str, Any]]:
    """Zarr settings of every variable.

    Streamed variables (those written region by region) have one image a chunk and `shard` images a shard, raw with a
    checksum. All others are one chunk each, compressed, with a checksum: xarray loads coordinates whole.
    """
    found: dict[Hashable, dict[str, Any]] = {}
    for name, variable in template.variables.items():
        if name in streamed:
            inner = variable.shape[1:]
            found[name] = {
                "chunks": (1, *inner),
                "shards": (shard, *inner),
                "compressors": [Crc32cCodec()],
                "fill_value": nothing_written(variable.dtype),
            }
        else:
            whole = tuple(max(1, n) for n in variable.shape)
            found[name] = {"chunks": whole, "compressors": [ZstdCodec(), Crc32cCodec()]}
    return found
