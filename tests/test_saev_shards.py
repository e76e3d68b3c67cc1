"""saev's activation shards: every version, in place of a store, without copying and without belief."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import Result

import semprobe
from semprobe.errors import ImagesError, StoreCorrupt, StoreError
from tests.conftest import DATA, draw, write_saev

Run = Callable[..., Result]

GOLDEN = DATA / "saev" / "shards-2.1"
NEWEST = GOLDEN / "saev" / "shards" / "c55a789f"
RAW = DATA / "saev" / "score-raw"

_OLD = {"family": "vit_family", "ckpt": "vit_ckpt", "patches": "n_patches_per_img", "width": "d_vit",
        "number": "n_imgs", "tokens": "max_patches_per_shard"}  # fmt: skip
_NEW = {"family": "family", "ckpt": "ckpt", "patches": "content_tokens_per_example", "width": "d_model",
        "number": "n_examples", "tokens": "max_tokens_per_shard"}  # fmt: skip
_FIRST = {"family": "model_org", "ckpt": "model_ckpt", "tokens": "n_patches_per_shard"}
_EARLY_2 = {"patches": "patches_per_ex", "number": "n_ex", "tokens": "patches_per_shard"}
VERSIONS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "none, first": (_OLD | _FIRST, {"seed": 42, "data": "ImageFolder()"}),
    "none, second": (_OLD | _FIRST | {"family": "model_family"}, {"data": "ImageFolder()"}),
    "none, last": (_OLD, {"data": "ImageFolder()"}),
    "1.0.0": (_OLD, {"protocol": "1.0.0", "dtype": "float32", "data": "ImageFolder()"}),
    "1.1": (_OLD, {"protocol": "1.1", "dtype": "float32", "data": {"root": "images"}, "pixel_agg": None}),
    "2.0, first": (_NEW | _EARLY_2, {"protocol": "2.0", "dtype": "float32", "data": {"root": "images"}}),
    "2.0, second": (_NEW | {"patches": "n_content_tokens_per_example"}, {"protocol": "2.0", "data": {}}),
    "2.0, last": (_NEW, {"protocol": "2.0", "dtype": "float32", "data": {}, "dataset": "images"}),
    "2.1": (_NEW, {"protocol": "2.1", "dtype": "float32", "data": "gASVFAAAAA==", "dataset": "images"}),
}


def values(images: int = 17, layers: int = 1, tokens: int = 5, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((images, layers, tokens, width), dtype=np.float32)


def write_shards(
    folder: Path, acts: np.ndarray, *, version: str = "2.1", layers: tuple[int, ...] = (-2,), cls: bool = True,
    per_file: int = 7, next_file: bool = True, counts: bool = False, **changes: Any,
) -> Path:  # fmt: skip
    """Shards as saev writes them: full files, the tail zero, and a further file where the last one is just full."""
    folder.mkdir(parents=True, exist_ok=True)
    number, _, tokens, width = acts.shape
    names, others = VERSIONS[version]
    about = {"family": "clip", "ckpt": "ViT-B-16/openai", "patches": tokens - cls, "width": width, "number": number,
             "tokens": per_file * tokens * len(layers) + 3}  # fmt: skip
    fields = {names[key]: value for key, value in about.items()} | {"layers": list(layers), "cls_token": cls}
    (folder / "metadata.json").write_text(json.dumps(fields | others | changes))
    written = []
    for at in range(number // per_file + 1 if next_file else -(-number // per_file)):
        part = acts[at * per_file : (at + 1) * per_file]
        whole = np.zeros((per_file, *acts.shape[1:]), "<f4")
        whole[: len(part)] = part
        whole.tofile(folder / f"acts{at:06}.bin")
        written.append({"name": f"acts{at:06}.bin", names["number"]: len(part)})
    if counts:
        (folder / "shards.json").write_text(json.dumps(written))
    return folder


# opening


def test_golden_shards_of_the_newest_version(never_computes: None) -> None:
    found = semprobe.open_store(NEWEST)
    acts = np.load(GOLDEN / "acts.npy")
    assert found["activations"].chunks == ((7, 7, 7), (9,), (16,))
    np.testing.assert_array_equal(found["activations"].compute(scheduler="sync"), acts[:, 0, 1:])
    np.testing.assert_array_equal(found["cls"].compute(scheduler="sync"), acts[:, 0, 0])
    labels = np.fromfile(NEWEST / "labels.bin", np.uint8).reshape(21, 9)
    np.testing.assert_array_equal(found["patch_label"].compute(scheduler="sync"), labels)
    assert found["image"].values[[0, -1]].tolist() == ["000000", "000020"]
    assert found["label"].shape == (21, 0)
    assert found["row"].values.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    came = found.attrs["provenance"]
    assert came["backbone"] == {"model": "ViT-B-16/openai", "family": "clip", "layer": 10}
    assert came["shards"]["protocol"] == "2.1"
    assert len(came["shards"]["metadata_sha256"]) == 64
    assert "gASV" not in json.dumps(came), "the pickle is not even repeated"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("cls", [True, False])
def test_every_version(tmp_path: Path, version: str, cls: bool) -> None:
    acts = values(layers=3)
    write_shards(tmp_path / "s", acts, version=version, layers=(3, -2, 10), cls=cls, counts=version >= "2")
    for at, layer in enumerate((3, -2, 10)):
        found = semprobe.open_store(tmp_path / "s", layer=layer)
        np.testing.assert_array_equal(found["activations"], acts[:, at, int(cls) :])
        assert found.attrs["provenance"]["backbone"]["layer"] == layer
        assert ("cls" in found) == cls
        if cls:
            np.testing.assert_array_equal(found["cls"], acts[:, at, 0])
    for wrong in (None, 11, 2):
        with pytest.raises(StoreError, match="found 3, -2, 10, as metadata.json has them"):
            semprobe.open_store(tmp_path / "s", layer=wrong)


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("cls", [True, False])
def test_the_size_says_whether_there_is_a_cls_row(tmp_path: Path, cls: bool, declared: bool) -> None:
    acts = values()
    found = semprobe.open_store(write_shards(tmp_path / "s", acts, cls=cls, cls_token=declared))
    np.testing.assert_array_equal(found["activations"], acts[:, 0, int(cls) :])
    both = 4 * 5 * 3  # tokens with which files have the same size either way: 15 images of 4, 12 of 5
    (tmp_path / "even").mkdir()
    acts = values(27)
    write_shards(tmp_path / "even", acts[:, :, :4], cls=False, per_file=15, counts=True, max_tokens_per_shard=both,
                 cls_token=declared)  # fmt: skip
    found = semprobe.open_store(tmp_path / "even")
    np.testing.assert_array_equal(found["activations"], acts[:, 0, :4], "shards.json knows")


@pytest.mark.parametrize("images", [1, 6, 7, 8, 14, 20])
@pytest.mark.parametrize("counts", [True, False])
def test_tails_and_empty_files(tmp_path: Path, images: int, counts: bool) -> None:
    acts = values(images)
    write_shards(tmp_path / "s", acts, counts=counts)
    found = semprobe.open_store(tmp_path / "s")
    np.testing.assert_array_equal(found["activations"], acts[:, 0, 1:])
    write_shards(tmp_path / "t", acts, next_file=False, counts=counts)
    np.testing.assert_array_equal(semprobe.open_store(tmp_path / "t")["activations"], acts[:, 0, 1:])


def test_selections_cross_files_and_need_little(tmp_path: Path) -> None:
    acts = values(20, layers=2)
    data = semprobe.open_store(write_shards(tmp_path / "s", acts, layers=(1, 2)), layer=2)["activations"]
    for key in (slice(5, 16), slice(None, None, 3), slice(3, 3), 13, [2, 18, 9], slice(6, 8)):
        np.testing.assert_array_equal(data[key], acts[key, 1, 1:] if key != 13 else acts[13, 1, 1:])
        np.testing.assert_array_equal(data[key, 2, 3:5], acts[key, 1, 3, 3:5])
    from semprobe.stores._saev import Mapped

    mapped = Mapped(f"{tmp_path}/s/acts{{number:06}}.bin", "<f4", (2, 5, 8), (1, slice(1, None)), data.shape, 7)
    for key in ((slice(5, 16), 1), 13, slice(4, 4), slice(0, 20, 6), (slice(13, 14), slice(None), 2)):
        np.testing.assert_array_equal(mapped[key], acts[:, 1, 1:][key])
    mapped[:7][:] = 0  # torch wants what it may write to; the file stays as it is
    np.testing.assert_array_equal(data, acts[:, 1, 1:])
    assert all(len(pickle.dumps(task)) < 2000 for task in dict(data.data.dask).values())
    (tmp_path / "s" / "acts000000.bin").unlink()
    np.testing.assert_array_equal(data[14:], acts[14:, 1, 1:])
    with pytest.raises(StoreCorrupt, match=r"acts000000\.bin: was cut off or removed since it was opened"):
        data[:3].compute()


def test_blocks_are_about_ten_megabytes_within_files(tmp_path: Path) -> None:
    folder = _sparse(tmp_path / "s", files=2, per_file=100, tokens=197, width=768)
    assert semprobe.open_store(folder)["activations"].chunks[0] == (16,) * 6 + (4,) + (16,) * 6 + (4,)


def _sparse(folder: Path, files: int, per_file: int, tokens: int, width: int) -> Path:
    """Files that hold nothing and take no room."""
    write_shards(folder, np.zeros((1, 1, tokens, width), np.float32), per_file=1, next_file=False)
    about = json.loads((folder / "metadata.json").read_text())
    about |= {"n_examples": files * per_file, "max_tokens_per_shard": per_file * tokens}
    (folder / "metadata.json").write_text(json.dumps(about))
    for at in range(files):
        with (folder / f"acts{at:06}.bin").open("wb") as file:
            os.truncate(file.fileno(), per_file * tokens * width * 4)
    return folder


def test_four_gigabytes_open_at_once_and_only_what_is_asked_for_is_read(tmp_path: Path, never_computes: None) -> None:
    folder = _sparse(tmp_path / "s", files=4, per_file=1652, tokens=197, width=768)
    tracemalloc.start()
    began = time.perf_counter()
    data = semprobe.open_store(folder)
    took = time.perf_counter() - began
    some = data["activations"][5000:5003].max().compute(scheduler="sync")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert data["activations"].nbytes > 3.9e9
    assert took < 1
    assert some == 0
    assert peak < 30e6


def test_distributed(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    acts = values()
    data = semprobe.open_store(write_shards(tmp_path / "s", acts))
    sae = semprobe.load_sae(write_saev(tmp_path / "sae.pt", features=8))
    expected = semprobe.patch_sum(data["activations"], sae).compute().values
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster),
    ):
        np.testing.assert_array_equal(semprobe.patch_sum(data["activations"], sae).compute(), expected)


# images


def _folder(root: Path) -> Path:
    """A tree with everything that ImageFolder has an opinion on."""
    for name in ("b-positive/2.png", "b-positive/10.JPG", "b-positive/sub/x.png", "b-positive/sub-a/x.png",
                 "b-positive/sub/deep/y.png",
                 "b-positive/z.gif", "b-positive/a.avif", "b-positive/.hidden.png", "b-positive/notes.txt", "top.png",
                 "B-negative/1.webp", "B-negative/sub/.deep/0.tif", "a b-negative/1.pgm",
                 "b-negative/1.jfif"):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    (root / "a b-negative" / "linked").symlink_to(root / "b-positive" / "sub", target_is_directory=True)
    shutil.copytree(root / "a b-negative", root / "b-negative" / "more")
    return root


def test_order_is_that_of_torchvision(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    root = _folder(tmp_path / "images")
    expected = [os.path.relpath(path, root) for path, _ in ImageFolder(str(root)).samples]
    found = semprobe.find_images(root, order="saev")
    assert found["image"].values.tolist() == expected
    assert len(expected) == 14
    label = found["label"].sel(concept="b")
    assert label.sel(image="b-positive/10.JPG") == 1
    assert label.sel(image="b-negative/more/1.pgm") == 0
    assert label.sel(image="B-negative/1.webp") == -1
    assert found.attrs["ignored_files"] == 5
    (root / "top.png").unlink()
    assert semprobe.find_images(root)["image"].values.tolist() != expected
    (root / "b-positive" / "sub" / "round").symlink_to(root / "b-positive", target_is_directory=True)
    with pytest.raises(ImagesError, match="leads back to a folder above"):
        semprobe.find_images(root, order="saev")
    with pytest.raises(ImagesError, match="expected path or saev"):
        semprobe.find_images(root, order="name")


def test_a_manifest_keeps_its_lines(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(
        "path,concept,label,source\nz.png,fur,positive,web\na.png,fur,negative,\nz.png,wheel,negative,web\nm.png,,,\n"
    )
    found = semprobe.find_images(tmp_path / "m.csv", order="saev")
    assert found["image"].values.tolist() == ["z.png", "a.png", "m.png"]
    assert found["label"].values.tolist() == [[1, 0], [0, -1], [-1, -1]]
    data = semprobe.open_store(write_shards(tmp_path / "s", values(3)), images=found)
    assert data["image"].values.tolist() == ["z.png", "a.png", "m.png"]
    assert data["source"].values.tolist() == ["web", "", ""]
    sha256 = hashlib.sha256((tmp_path / "m.csv").read_bytes()).hexdigest()
    assert data.attrs["provenance"]["images"] == {
        "root": str(tmp_path), "order": "lines of the CSV file", "manifest_sha256": sha256,
    }  # fmt: skip
    assert "file" not in data.variables


def test_images_in_another_order_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path\nz.png\na.png\n")
    shards = write_shards(tmp_path / "s", values(2))
    with pytest.raises(ImagesError, match="in the order of their paths; shards need"):
        semprobe.open_store(shards, images=semprobe.find_images(tmp_path / "m.csv"))


def test_class_folders_without_a_label(tmp_path: Path) -> None:
    """ImageFolder counts them, so they keep their place and have no label."""
    for name in ("background/0.png", "wheel-negative/1.png", "wheel-positive/2.png"):
        draw(tmp_path / "images" / name)
    found = semprobe.find_images(tmp_path / "images", order="saev")
    assert found["label"].values.tolist() == [[-1], [0], [1]]


def test_the_class_token_is_told_by_the_number_of_files(tmp_path: Path) -> None:
    """12 images x 5 tokens and 15 x 4 make files of one size."""
    acts = values(27)
    shards = write_shards(tmp_path / "s", acts, per_file=12, max_tokens_per_shard=60, cls_token=False)
    assert len(list(shards.glob("acts*.bin"))) == 3
    np.testing.assert_array_equal(semprobe.open_store(shards)["activations"], acts[:, 0, 1:])


def test_another_number_of_images(tmp_path: Path, run: Run) -> None:
    images = tmp_path / "images"
    shutil.copytree(RAW / "images", images)
    shards = RAW / "shards" / "acts"
    for at in range(5):
        draw(images / "wheel-positive" / f"9{at}.png")
    (images / "wheel-positive" / "x.gif").write_bytes(b"x")
    message = (
        r"found 29 images, .* hold 24: 5 too many, past the end are wheel-positive/90.png, wheel-positive/91.png, "
    )
    with pytest.raises(ImagesError, match=message + r"wheel-positive/92.png and 2 more\. .* ignores others \(1 here\)"):
        semprobe.open_store(shards, images=semprobe.find_images(images, order="saev"))
    draw(images / "fur-negative" / ".stray.png")
    with pytest.raises(ImagesError, match=r"6 too many, of which may be fur-negative/\.stray\.png, hidden or"):
        semprobe.open_store(shards, images=semprobe.find_images(images, order="saev"))
    (images / "fur-positive" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ImagesError, match=r"may be fur-negative/\.stray\.png, fur-positive/0\.png, hidden or"):
        semprobe.open_store(shards, images=semprobe.find_images(images, order="saev"))
    for one in ("fur-negative/.stray.png", "fur-positive/0.png"):
        (images / one).unlink()
    shutil.rmtree(images / "wheel-positive")
    result = run("score", shards, "--images", images, "--sae", RAW / "sae.pt", "-o", tmp_path / "s.zarr", code=1)
    assert "found 18 images" in result.stderr
    assert "6 missing" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    for wrong in ([], xr.Dataset(), xr.Dataset(coords={"image": ["a"] * 24})):
        with pytest.raises(ImagesError, match="as find_images"):
            semprobe.open_store(shards, images=wrong)  # type: ignore[arg-type]
