"""The image files that a store of activations is of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from semprobe.cli import _common
from semprobe.transforms import LIKE

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from PIL import Image

_WORDS = {1: "positive", 0: "negative"}
_MOVED = "there is no such image file; if the images were moved, say where they are with --images-root"


class Pictures:
    """The image files of a store: where they are, and what part of each the model saw."""

    def __init__(self, store: str, data: xr.Dataset, root: str | None, like: str | None) -> None:
        from semprobe.errors import ImagesError

        self.names = data["image"].values
        self.label = data["label"].transpose("image", "concept").values
        self.concepts = [str(one) for one in data["concept"].values]
        self._hashes = data["sha256"].values if "sha256" in data.coords else None
        self.hashed = self._hashes is not None and all(self._hashes)
        found = root if root is not None else data.attrs.get("root")
        if not found:
            raise ImagesError(f"{store}: does not say which image files it is of; shards of saev need --images")
        self.root = os.fspath(found)
        if not Path(self.root).is_dir():
            raise ImagesError(f"{self.file(0)}: {_MOVED}")
        self._crops = self._check_crop(store, data, like)
        came = data.attrs.get("provenance", {}).get("backbone", {})
        self._like, self._model = like, f"{came.get('family', '')} {came.get('model', '')}"
        if not self.hashed:
            _common.say("this store has no hash of every image: nothing tells a file that was changed since")

    @staticmethod
    def _check_crop(store: str, data: xr.Dataset, like: str | None) -> np.ndarray | None:
        import numpy as np

        from semprobe.errors import DataError

        known = "crop" in data.coords and bool(np.isfinite(data["crop"].values).all())
        if known and like is not None:
            raise click.UsageError(f"{store} says itself what part of each picture the model saw; --like is for shards")
        if not known and like is None:
            raise DataError(
                f"{store}: does not say what part of each picture the model saw, as shards of saev do not; say whose "
                f"transform made them with --like {'|'.join(LIKE)}"
            )
        return data["crop"].values if known else None

    def file(self, at: int) -> Path:
        return Path(self.root) / str(self.names[at])

    def check_apart(self, output: str) -> None:
        """Refuse to overwrite one of the images."""
        if os.path.exists(output) and any(
            os.path.realpath(output) == os.path.realpath(self.file(at)) for at in range(len(self.names))
        ):
            raise click.UsageError(f"the output {output} is one of the images; choose another output")

    def check_there(self, positions: list[int]) -> None:
        """Name the first image that is gone."""
        from semprobe.errors import ImagesError

        gone = [at for at in positions if not self.file(at).is_file()]
        if gone:
            raise ImagesError(f"{self.file(gone[0])}: {_MOVED} ({len(gone)} of {len(positions)} to be shown are gone)")

    def read(self, at: int) -> tuple[Image.Image, Any]:
        """A picture, upright, and its crop."""
        from semprobe.images import read_image
        from semprobe.transforms import crop_like

        sha256 = str(self._hashes[at]) if self._hashes is not None else ""
        picture = read_image(self.file(at), sha256 or None)
        if self._crops is not None:
            return picture, self._crops[at]
        self._check_not_turned(at)
        return picture, crop_like(str(self._like), self._model, picture.size)

    def _check_not_turned(self, at: int) -> None:
        from PIL import Image

        from semprobe.errors import DataError

        with Image.open(self.file(at)) as image:
            if image.format != "TIFF" and image.getexif().get(0x0112, 1) != 1:  # Pillow turns TIFF itself
                raise DataError(
                    f"{self.file(at)}: is turned by its EXIF data, and saev's loader did not turn it; its heatmap "
                    "would lie on its side"
                )

    def said(self, at: int) -> str:
        """Its labels in words."""
        words = [
            (concept, _WORDS[value])
            for concept, value in zip(self.concepts, self.label[at].tolist(), strict=True)
            if value in _WORDS
        ]
        if len(self.concepts) == 1 and words:
            return words[0][1]
        return ", ".join(f"{concept} {word}" for concept, word in words) or "no label"
