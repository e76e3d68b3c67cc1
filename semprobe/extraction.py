"""Run images through a backbone: one worker a core, each reading, transforming and running whole batches.

A worker's torch uses one thread, so decoding one batch overlaps running another, and no thread pools multiply.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import dask.array as da
import numpy as np
import torch
import xarray as xr

from semprobe.backbones import Backbone
from semprobe.errors import DataError, ImagesError, UnreadableImage
from semprobe.images import MAX_PIXELS, Inspected, cores, inspect_all, read_image
from semprobe.importing import narrowed
from semprobe.stores import Writer
from semprobe.vocabulary import EDGES, attrs

Tokens = dict[int, tuple[np.ndarray, np.ndarray | None]]


def inspect_images(
    images: xr.Dataset, *, skip: bool = False, workers: int | None = None, done: Callable[[int], None] = lambda n: None
) -> xr.Dataset:
    """Hash and decode every image once, before any long work.

    Parameters
    ----------
    images
        As :func:`semprobe.find_images` gives them; where they have ``sha256``, a file with other bytes is unreadable.
    skip
        Leave unreadable images out and list them, instead of an error.
    done
        Called with the number of images just looked at.

    Returns
    -------
    xarray.Dataset
        The readable images, with ``sha256``, ``width``, ``height`` and ``alpha``; the others in ``attrs["skipped"]``.

    Raises
    ------
    UnreadableImage
        The first one that can't be read.
    ImagesError
        None can.
    """
    found = inspect_all(images["file"].values.tolist(), workers or cores(), done)
    if "sha256" in images.coords:
        found = [_as_hashed(*one) for one in zip(found, images["file"].values, images["sha256"].values, strict=True)]
    bad = [(at, result) for at, result in enumerate(found) if isinstance(result, UnreadableImage)]
    if bad and not skip:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise UnreadableImage(f"{bad[0][1]}{more}; repair or remove it, or leave such files out with --on-error skip")
    if len(bad) == len(found):
        raise ImagesError(
            f"{images.attrs['root']}: none of the {len(found)} images can be read; the first: {bad[0][1]}"
        )
    good = [result for result in found if isinstance(result, Inspected)]
    kept = images.isel(image=[at for at, result in enumerate(found) if isinstance(result, Inspected)])
    names = images["image"].values
    skipped = [{"image": str(names[at]), "reason": str(error)} for at, error in bad]
    return kept.assign_coords(coordinates(good)).assign_attrs(skipped=skipped)


def _as_hashed(found: Inspected | UnreadableImage, file: str, sha256: str) -> Inspected | UnreadableImage:
    if isinstance(found, UnreadableImage) or found.sha256 == sha256:
        return found
    return UnreadableImage(f"{file}: has other bytes than its name says, so it was changed; take it from a copy")


def coordinates(inspected: list[Inspected]) -> dict[str, Any]:
    """What a first look at images told, as coordinates: ``sha256``, ``width``, ``height`` and ``alpha``."""
    types = {"sha256": object, "width": np.int32, "height": np.int32, "alpha": bool}
    return {
        name: ("image", np.array([getattr(one, name) for one in inspected], dtype=dtype), attrs(name))
        for name, dtype in types.items()
    }


def template(images: xr.Dataset, backbone: Backbone, *, dtype: str = "float32", cls: bool = False) -> xr.Dataset:
    """The store to be filled: all coordinates, and lazy placeholders for the tokens.

    Raises
    ------
    DataError
        The class token is wanted and the model has none.
    ImagesError
        A picture is too long to be resized.
    """
    if cls and not backbone.has_cls:
        raise DataError(f"model {backbone.name} has no class token to keep")
    sizes = list(zip(images["width"].values.tolist(), images["height"].values.tolist(), strict=True))
    for name, size in zip(images["image"].values, sizes, strict=True):
        if backbone.transform.resized_pixels(*size) > MAX_PIXELS:
            raise ImagesError(
                f"{name}: {size[0]} x {size[1]} pixels is so long that resizing its short edge for the model would "
                "fill memory; remove it, or use --crop-mode squash"
            )
    crops = np.array([backbone.crop(*size) for size in sizes])
    rows, columns = np.divmod(np.arange(backbone.patches, dtype=np.int32), np.int32(backbone.grid[1]))
    number = images.sizes["image"]
    shape = (number, backbone.patches, backbone.features)
    found: dict[str, Any] = {
        "activations": (("image", "patch", "feature"), da.zeros(shape, dtype=dtype), attrs("activations"))
    }
    if cls:
        found["cls"] = (("image", "feature"), da.zeros((number, shape[2]), dtype=dtype), attrs("cls"))
    coords = images.drop_vars("file").assign_coords(
        crop=(("image", "edge"), crops, attrs("crop")),
        edge=("edge", np.array(EDGES, dtype=object), attrs("edge")),
        row=("patch", rows, attrs("row")),
        column=("patch", columns, attrs("column")),
    )
    kept = {key: images.attrs[key] for key in ("root", "ignored_files", "skipped") if key in images.attrs}
    return coords.assign(found).drop_attrs(deep=False).assign_attrs(kept)


def batches(regions: list[tuple[int, int]], batch: int) -> list[tuple[int, int]]:
    """First and last-plus-one image of every batch; a batch never crosses a region."""
    return [(at, min(at + batch, stop)) for start, stop in regions for at in range(start, stop, batch)]


def _in_order(
    pool: ThreadPoolExecutor, run: Callable[[tuple[int, int]], Tokens], work: list[tuple[int, int]], ahead: int
) -> Iterator[tuple[tuple[int, int], Tokens]]:
    """Results in the order of the work, with a bounded number under way."""
    waiting: deque[tuple[tuple[int, int], Future[Tokens]]] = deque()
    for item in work:
        waiting.append((item, pool.submit(run, item)))
        if len(waiting) > ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    while waiting:
        first, future = waiting.popleft()
        yield first, future.result()


def run_batch(backbone: Backbone, images: xr.Dataset, start: int, stop: int) -> Tokens:
    """Read images from disk and run them."""
    prepare = backbone.transform.pipeline()
    files, hashes = (images[name].values[start:stop].tolist() for name in ("file", "sha256"))
    pixels = [prepare(read_image(file, sha256)) for file, sha256 in zip(files, hashes, strict=True)]
    return backbone.tokens(torch.stack(pixels))


def extract(
    images: xr.Dataset,
    backbone: Backbone,
    writers: dict[int, Writer],
    *,
    batch: int = 8,
    workers: int | None = None,
    dtype: str = "float32",
    cls: bool = False,
    done: Callable[[int], None] = lambda n: None,
) -> None:
    """Write the tokens of every layer into its store, region by region, and complete the stores.

    Regions that all stores hold already are left alone. The batches are the same whatever is missing and however many
    workers there are, so a run that was stopped and gone on with gives the same bits.

    Parameters
    ----------
    images
        As :func:`inspect_images` gives them.
    writers
        Layer: its store, set up from :func:`template`.
    batch
        Images run at once.
    workers
        Threads; one a core by default.
    dtype
        ``float32`` or ``float16`` on disk.
    cls
        Whether the stores keep the class token.
    done
        Called with the number of images just finished.

    Raises
    ------
    UnreadableImage
        An image changed or vanished since it was inspected.
    DataError
        A token is not finite.
    """
    missing = {layer: set(writer.missing()) for layer, writer in writers.items()}
    regions = next(iter(writers.values())).regions()
    todo = [region for region in regions if any(region in some for some in missing.values())]
    done(sum(stop - start for start, stop in regions if (start, stop) not in todo))
    ends = {at: region for region in todo for at in range(*region)}
    held: dict[int, list[tuple[np.ndarray, np.ndarray | None]]] = {layer: [] for layer in writers}
    number = workers or cores()
    pool = ThreadPoolExecutor(number, initializer=torch.set_num_threads, initargs=(1,))
    try:
        work = batches(todo, batch)
        for (start, stop), tokens in _in_order(pool, lambda w: run_batch(backbone, images, *w), work, 2 * number):
            for layer in writers:
                held[layer].append(_stored(tokens[layer], dtype, cls, images["image"].values[start:stop]))
            done(stop - start)
            if stop == ends[start][1]:
                for layer, writer in writers.items():
                    if ends[start] in missing[layer]:
                        writer.write(ends[start][0], _joined(held[layer]))
                    held[layer].clear()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    for writer in writers.values():
        writer.complete()


def _stored(
    tokens: tuple[np.ndarray, np.ndarray | None], dtype: str, cls: bool, names: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    patches, prefix = tokens
    why = "the model or its weights are not sound"
    kept = narrowed(patches, names, kept_as=dtype, why=why)
    if not cls or prefix is None:
        return kept, None
    return kept, narrowed(prefix[:, None], names, kept_as=dtype, why=why)[:, 0]


def _joined(parts: list[tuple[np.ndarray, np.ndarray | None]]) -> dict[str, np.ndarray]:
    found = {"activations": np.concatenate([patches for patches, _ in parts])}
    tokens = [cls for _, cls in parts if cls is not None]
    return {**found, "cls": np.concatenate(tokens)} if tokens else found
