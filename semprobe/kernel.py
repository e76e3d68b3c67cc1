"""The one place where patches meet the encoder: matmul, activation and reduction on blocks in memory.

A float32 matmul's last bit can depend on its shape, and at threshold 0 a last bit decides. So the product always runs
in one shape, a tile of a few images by 1,024 latents, padded with zeros at the end of a block, and a result depends
neither on how images were cut into blocks nor on the number of workers. That an image's place in the tile does not
matter is not a property of every BLAS (OpenBLAS, for one, lacks it): it is tried on each machine for each shape, and
where it fails every image gets a tile of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from semprobe.errors import DataError
from semprobe.sae import SAE, Gated, Threshold, TopK

LATENTS = 1024
"""Latents a tile."""

_ROWS = 784  # patches a tile holds at about its fastest: four images of 196
_ROWS_WHOLE = 392  # the same where all latents of each row are held at once: half the memory, 2 % slower

_local = threading.local()
_lock = threading.Lock()
_inside = 0  # threads that are in the kernel now
_threads = 1  # torch's number before the first of them came


@contextmanager
def one_thread() -> Iterator[None]:
    """Dask runs a task a core; torch's own threads would multiply with them, and wait for each other on a busy core."""
    global _inside, _threads
    if getattr(_local, "inside", False):
        yield
        return
    _local.inside = True
    with _lock:
        if _inside == 0:
            _threads = torch.get_num_threads()
        _inside += 1
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(_threads)
        _local.inside = False
        with _lock:
            _inside -= 1


def _scratch(name: str, *shape: int) -> torch.Tensor:
    """A buffer of this thread, kept between tasks: fresh pages cost up to 20 % of the product."""
    kept = _local.__dict__.setdefault("buffers", {})
    if name not in kept or kept[name].shape != shape:
        kept[name] = torch.empty(shape)
    return kept[name]


def _places_agree(product: Callable[..., Any], patches: int, features: int, images: int, latents: int) -> bool:
    """Whether an image's products are the same, bit for bit, wherever it stands in a tile."""
    rng = np.random.default_rng(0)
    weights = torch.from_numpy(rng.standard_normal((latents, features), dtype=np.float32))
    image = torch.from_numpy(rng.standard_normal((patches, features), dtype=np.float32))
    out = torch.empty(images * patches, latents)
    product(image.repeat(images, 1), weights.T, out=out)
    first, *others = out.view(images, patches, latents)
    return all(torch.equal(first, other) for other in others)


@lru_cache(maxsize=64)
def images_per_tile(patches: int, features: int, latents: int, rows: int = _ROWS) -> int:
    """Images in one matmul; 1 where this machine's BLAS makes an image's place in the tile matter."""
    images = max(1, min(16, round(rows / patches)))
    widths = {min(LATENTS, latents), latents % LATENTS or LATENTS}
    with one_thread():
        agree = all(_places_agree(torch.mm, patches, features, images, width) for width in widths)
    return images if agree else 1


def _check_finite(rows: torch.Tensor, start: int, names: np.ndarray | None, why: str) -> None:
    if torch.isfinite(rows).all():
        return
    image, patch = np.argwhere(~np.isfinite(rows.numpy()).all(2))[0]
    name = start + image if names is None else names[start + image]
    raise DataError(
        f"image {name}, patch {patch}: the activation is not finite (NaN or infinite), so nothing can be scored; {why}"
    )


def _normalise(rows: torch.Tensor, how: str) -> None:
    """What the SAE does to each patch first, in place: as SAELens and ViT-Prisma do it."""
    if how == "constant_norm_rescale":
        rows *= rows.shape[-1] ** 0.5 / rows.norm(dim=-1, keepdim=True)
        return
    rows -= rows.mean(-1, keepdim=True)
    rows /= rows.std(-1, keepdim=True) + 1e-5


def _groups(block: np.ndarray, sae: SAE, names: np.ndarray | None) -> Iterator[tuple[int, int, torch.Tensor]]:
    """First image, number of images, and their centred patches (rows, feature), padded to a whole tile."""
    images, patches, features = block.shape
    rows_wanted = _ROWS_WHOLE if isinstance(sae.activation, TopK) else _ROWS
    size = images_per_tile(patches, features, sae.latents, rows_wanted)
    rows = _scratch("rows", size, patches, features)
    centre = None if sae.centre is None else torch.from_numpy(sae.centre)
    for start in range(0, images, size):
        number = min(size, images - start)
        rows[:number] = torch.from_numpy(np.ascontiguousarray(block[start : start + number], dtype=np.float32))
        _check_finite(rows[:number], start, names, "extract it again, in float32 if it overflowed float16")
        if sae.normalisation is not None:
            _normalise(rows, sae.normalisation)
            _check_finite(rows[:number], start, names, f"the SAE's {sae.normalisation} divides by 0 there")
        if centre is not None:
            rows[:number] -= centre
        rows[number:] = 0
        yield start, number, rows.view(-1, features)


def _tiles(rows: torch.Tensor, weights: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
    """First and last-plus-one latent, and products (rows, latent) in a buffer that the next tile reuses."""
    for start in range(0, len(weights), LATENTS):
        stop = min(start + LATENTS, len(weights))
        out = _scratch(f"tile{stop - start}", len(rows), stop - start)
        yield start, stop, torch.mm(rows, weights[start:stop].T, out=out)


def _activate(tile: torch.Tensor, bias: torch.Tensor, kept: Threshold | Gated) -> torch.Tensor:
    """Products (..., latent) to codes, in place. Never falls as a product grows, also when rounded."""
    if isinstance(kept, Gated):
        closed = tile + torch.from_numpy(kept.gate) <= 0
        tile.mul_(torch.from_numpy(kept.scale)).add_(bias)
        return torch.threshold_(tile, 0.0, 0.0).masked_fill_(closed, 0.0)
    tile.add_(bias)
    if isinstance(kept.threshold, np.ndarray):
        return tile.masked_fill_(tile <= torch.from_numpy(kept.threshold), 0.0)
    return torch.threshold_(tile, kept.threshold, 0.0)


def _top(rows: torch.Tensor, sae: SAE, kept: TopK) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and latents (rows, k) of each patch's k codes that are kept."""
    bias = torch.from_numpy(sae.bias)
    whole = _scratch("whole", len(rows), sae.latents)
    for start, stop, tile in _tiles(rows, torch.from_numpy(sae.encoder)):
        torch.add(tile, bias[start:stop], out=whole[:, start:stop])
    if kept.by == "value":
        values, latents = whole.topk(kept.k, dim=1, sorted=False)
    elif kept.by == "magnitude":
        latents = whole.abs().topk(kept.k, dim=1, sorted=False).indices
        values = whole.gather(1, latents)
    else:
        values, latents = whole.view(len(rows), kept.k, -1).max(2)
        latents += torch.arange(0, sae.latents, sae.latents // kept.k)
    return (values.clamp_(min=0) if kept.relu else values), latents


def codes(
    block: np.ndarray, sae: SAE, columns: np.ndarray | None = None, names: np.ndarray | None = None
) -> np.ndarray:
    """Codes of a block.

    Parameters
    ----------
    block
        (image, patch, feature) activations, any float dtype.
    columns
        Latents wanted, all by default. Only their columns of the encoder are multiplied, unless the activation has to
        compare all latents of a patch.
    names
        (image,) names for messages.

    Returns
    -------
    numpy.ndarray
        (image, patch, latent) float32.
    """
    images, patches, _ = block.shape
    number = sae.latents if columns is None else len(columns)
    out = torch.empty(images, patches, number)
    chosen = slice(None) if columns is None else columns
    weights, bias = torch.from_numpy(sae.encoder[chosen]), torch.from_numpy(sae.bias[chosen])
    kept = sae.activation if isinstance(sae.activation, TopK) else sae.activation.take(chosen)
    with one_thread():
        for first, count, rows in _groups(block, sae, names):
            here = out[first : first + count]
            if isinstance(kept, TopK):
                values, latents = _top(rows, sae, kept)
                dense = torch.zeros(len(rows), sae.latents).scatter_(1, latents, values)
                here[:] = dense.view(-1, patches, sae.latents)[:count][..., chosen]
                continue
            for start, stop, tile in _tiles(rows, weights):
                found = _activate(tile, bias[start:stop], kept.take(slice(start, stop)))
                here[..., start:stop] = found.view(-1, patches, stop - start)[:count]
    return out.numpy()


def _reduce_tile(
    tile: torch.Tensor, bias: torch.Tensor, kept: Threshold | Gated, want: set[str]
) -> dict[str, torch.Tensor]:
    """Reductions of products (image, patch, latent) over patches."""
    if want == {"patch_max"}:  # codes never fall as products grow, so the maximum may come first
        return {"patch_max": _activate(tile.amax(1), bias, kept)}
    _activate(tile, bias, kept)
    found = {}
    if "patch_sum" in want:
        found["patch_sum"] = tile.sum(1)
    if want & {"patch_max", "patch_argmax"}:
        top = tile.max(1)
        found["patch_max"] = top.values
        found["patch_argmax"] = torch.where(top.values > 0, top.indices, -1)
    return found


def _reduce_top(
    values: torch.Tensor, latents: torch.Tensor, patches: int, number: int, want: set[str]
) -> dict[str, torch.Tensor]:
    """The same of the k kept codes a patch, (image, patch * k): what is not kept is 0."""
    images, k = len(values), values.shape[1] // patches
    found = {}
    if "patch_sum" in want:
        found["patch_sum"] = torch.zeros(images, number).scatter_add_(1, latents, values)
    if not want & {"patch_max", "patch_argmax"}:
        return found
    largest = torch.full((images, number), -torch.inf).scatter_reduce_(1, latents, values, "amax")
    kept = torch.zeros(images, number).scatter_add_(1, latents, torch.ones_like(values))
    found["patch_max"] = torch.where(kept == patches, largest, largest.clamp(min=0))
    if "patch_argmax" in want:
        patch = torch.arange(patches).repeat_interleave(k).expand(images, -1)
        here = torch.where(values == found["patch_max"].gather(1, latents), patch, patches)
        first = torch.full((images, number), patches).scatter_reduce_(1, latents, here, "amin")
        found["patch_argmax"] = torch.where(found["patch_max"] > 0, first, -1)
    return found


def reduce(block: np.ndarray, sae: SAE, want: set[str], names: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Reductions of the codes over patches, without ever building the codes.

    Parameters
    ----------
    block
        (image, patch, feature) activations, any float dtype.
    want
        Among ``patch_sum``, ``patch_max`` and ``patch_argmax``.
    names
        (image,) names for messages.

    Returns
    -------
    dict of str to numpy.ndarray
        (image, latent), float32, and int32 for ``patch_argmax``, which is the first patch with the largest code, or -1
        where no code is above 0.
    """
    images, patches, _ = block.shape
    types = {"patch_sum": torch.float32, "patch_max": torch.float32, "patch_argmax": torch.int32}
    out = {name: torch.empty(images, sae.latents, dtype=types[name]) for name in sorted(want)}
    weights, bias, kept = torch.from_numpy(sae.encoder), torch.from_numpy(sae.bias), sae.activation
    with one_thread():
        for first, count, rows in _groups(block, sae, names):
            if isinstance(kept, TopK):
                top = _top(rows, sae, kept)
                values, latents = (part.view(-1, patches * kept.k)[:count] for part in top)
                found = _reduce_top(values, latents, patches, sae.latents, want)
                for name in out:
                    out[name][first : first + count] = found[name]
                continue
            for start, stop, tile in _tiles(rows, weights):
                cube = tile.view(-1, patches, stop - start)
                found = _reduce_tile(cube, bias[start:stop], kept.take(slice(start, stop)), want)
                for name in out:
                    out[name][first : first + count, start:stop] = found[name][:count]
    return {name: value.numpy() for name, value in out.items()}


def seconds_per_image(sae: SAE, patches: int) -> float:
    """How long one core takes to reduce one image, from timing a sample of the encoder."""
    part = SAE(sae.encoder[:LATENTS], sae.bias[:LATENTS])
    block = np.ones((images_per_tile(patches, sae.width, part.latents), patches, sae.width), np.float32)
    took = []
    for _ in range(2):  # the first pays for memory and code that is not there yet
        start = time.perf_counter()
        reduce(block, part, {"patch_max"})
        took.append(time.perf_counter() - start)
    return min(took) / len(block) * sae.latents / part.latents
