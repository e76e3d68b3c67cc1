"""Finding images and labels, and reading every kind of file right."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from semprobe.errors import ImagesError, UnreadableImage
from semprobe.images import find_images, inspect, read_image
from tests.conftest import draw


def test_concept_is_split_at_the_last_hyphen(pictures: Path) -> None:
    found = find_images(pictures)
    assert found["concept"].values.tolist() == ["t-shirt"]
    assert found["image"].values.tolist() == [
        *(f"t-shirt-negative/{at}.jpg" for at in range(4)),
        *(f"t-shirt-positive/{at}.png" for at in range(3)),
    ]
    assert found["label"].values[:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_nested_folders_and_both_layouts_together(tmp_path: Path) -> None:
    draw(tmp_path / "wheel" / "positive" / "deep" / "b.png")
    draw(tmp_path / "wheel" / "negative" / "a.PNG")
    draw(tmp_path / "fur-positive" / "c.png")
    found = find_images(tmp_path)
    assert found["concept"].values.tolist() == ["fur", "wheel"]
    assert found["label"].values.tolist() == [[1, -1], [-1, 0], [-1, 1]]


def test_order_is_folder_by_folder_like_imagefolder(tmp_path: Path) -> None:
    expected = ["a/negative/10.png", "a/negative/9.png", "a/positive/x.png", "a-b-negative/y.png", "a-b-positive/x.png"]
    for name in reversed(expected):
        draw(tmp_path / name)
    assert find_images(tmp_path)["image"].values.tolist() == expected


def test_a_plain_folder_has_no_labels_and_strays_are_counted(tmp_path: Path) -> None:
    draw(tmp_path / "one.png")
    draw(tmp_path / ".hidden.png")
    draw(tmp_path / ".cache" / "two.png")
    for stray in (".DS_Store", "notes.txt"):
        (tmp_path / stray).write_text("x")
    found = find_images(tmp_path)
    assert found["image"].values.tolist() == ["one.png"]
    assert found["label"].shape == (1, 0)
    assert found.attrs["ignored_files"] == 3


def test_a_misspelt_label_is_refused(pictures: Path) -> None:
    draw(pictures / "t-shirt-postive" / "x.png")
    with pytest.raises(ImagesError, match="t-shirt-postive"):
        find_images(pictures)


def test_manifest_keeps_columns_and_joins_rows_of_one_image(tmp_path: Path) -> None:
    for name in "abc":
        draw(tmp_path / f"{name}.png")
    (tmp_path / "study.csv").write_text(
        "path,concept,label,source,reason\n"
        "b.png,wheel,positive,web,a clear wheel\n"
        "./b.png,fur,negative,web,no animal\n"
        'a.png,wheel,negative,imagenet,"verified, twice"\n'
        "c.png,,,mine,\n",
        encoding="utf-8-sig",
    )
    found = find_images(tmp_path / "study.csv")
    assert found["image"].values.tolist() == ["a.png", "b.png", "c.png"]
    assert found["label"].values.tolist() == [[-1, 0], [0, 1], [-1, -1]]
    assert found["source"].values.tolist() == ["imagenet", "web", "mine"]
    assert found["reason"].values.tolist() == ["verified, twice", "fur: no animal; wheel: a clear wheel", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,concept,label\na.png,x,positive\n", "expected path, concept and label"),
        ("path,concept,label\na.png,x,maybe\n", "line 2: concept 'x' with label 'maybe'"),
        ("path,concept,label\na.png,x,positive\na.png,x,negative\n", "both positive and negative"),
        ("path,concept,label,width\na.png,x,positive,3\n", "'width'"),
        ("path,concept,label,a b\na.png,x,positive,y\n", "'a b' can't be kept"),
        ("path,concept,label,../x\na.png,x,positive,y\n", "can't be kept"),
        ("path,concept,label\n\udcff.png,x,positive\n", "not a CSV file in UTF-8"),
        ("path,concept,label\na.png,x\n", "another number of fields"),
        ("path,concept,label\n", "no images"),
    ],
)
def test_bad_manifests_say_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "study.csv").write_text(text, errors="surrogateescape")
    with pytest.raises(ImagesError, match=message):
        find_images(tmp_path / "study.csv")


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match="there is no such folder"):
        find_images(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ImagesError, match="no images in here .1 other files"):
        find_images(tmp_path)


# reading: one picture in every mode, all of which must come out as the same RGB


def _reference() -> Image.Image:
    left, right = (255, 0, 0), (0, 0, 255)
    image = Image.new("RGB", (16, 8), left)
    image.paste(right, (8, 0, 16, 8))
    return image


def _read(tmp_path: Path, name: str, image: Image.Image, **save: object) -> np.ndarray:
    image.save(tmp_path / name, **save)
    return np.asarray(read_image(tmp_path / name))


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.bmp", "a.tif"])
def test_lossless_formats(tmp_path: Path, name: str) -> None:
    save = {"lossless": True} if name.endswith("webp") else {}
    assert (_read(tmp_path, name, _reference(), **save) == np.asarray(_reference())).all()


def test_jpeg_and_cmyk_jpeg(tmp_path: Path) -> None:
    for mode in ("RGB", "CMYK"):
        found = _read(tmp_path, f"{mode}.jpg", _reference().convert(mode), quality=95).astype(int)
        assert abs(found - np.asarray(_reference()))[:, [2, 13]].max() < 12, mode


def test_palette_and_first_frame_of_gif(tmp_path: Path) -> None:
    assert (_read(tmp_path, "p.png", _reference().quantize(8)) == np.asarray(_reference())).all()
    second = Image.new("RGB", (16, 8), "lime")
    found = _read(tmp_path, "a.gif", _reference(), save_all=True, append_images=[second])
    assert (found == np.asarray(_reference())).all()


def test_grey_in_8_and_16_bits_agree(tmp_path: Path) -> None:
    grey = np.arange(0, 256, 2, dtype=np.uint8).reshape(8, 16)
    eight = _read(tmp_path, "8.png", Image.fromarray(grey))
    sixteen = _read(tmp_path, "16.png", Image.fromarray(grey.astype(np.uint16) * 256 + 255))
    assert (eight == sixteen).all()
    assert (eight == grey[..., None]).all()
    assert (_read(tmp_path, "32.tif", Image.fromarray(grey.astype(np.int32))) == eight).all(), "8 bits in 32"
    assert (_read(tmp_path, "33.tif", Image.fromarray(grey.astype(np.int32) * 256 + 255)) == eight).all(), "16 in 32"
    dark = tmp_path / "dark.pgm"  # 16 bits, which Pillow gives as 32
    dark.write_bytes(b"P5 2 1 65535\n" + np.array([0, 199], ">u2").tobytes())
    assert (np.asarray(read_image(dark)) == 0).all()


def test_alpha_is_composited_on_white_and_recorded(tmp_path: Path) -> None:
    clear = _reference().convert("RGBA")
    clear.putalpha(Image.new("L", clear.size, 0))
    assert (_read(tmp_path, "clear.png", clear) == 255).all()
    half = Image.new("LA", (4, 4), (0, 128))
    assert abs(_read(tmp_path, "half.png", half).astype(int) - 127).max() <= 1
    assert inspect(tmp_path / "clear.png").alpha
    palette = _reference().quantize(8)
    red = palette.getpixel((0, 0))
    found = _read(tmp_path, "palette.png", palette, transparency=red)
    assert (found[:, 0] == 255).all()
    assert (found[:, 15] == (0, 0, 255)).all()
    _reference().save(tmp_path / "opaque.png")
    assert not inspect(tmp_path / "opaque.png").alpha


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path: Path, orientation: int) -> None:
    """What is stored turned must come out upright, in pixels and in size."""
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that a viewer undoes
    upright = _reference()
    stored = upright.transpose(Image.Transpose(back[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    assert (np.asarray(read_image(tmp_path / "turned.png")) == np.asarray(upright)).all()
    found = inspect(tmp_path / "turned.png")
    assert (found.width, found.height) == (16, 8)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_rotated_tiff(tmp_path: Path, orientation: int) -> None:
    """Pillow turns TIFF itself, and nothing else."""
    back = {1: None, 3: 3, 6: 2, 8: 4}[orientation]
    stored = _reference() if back is None else _reference().transpose(Image.Transpose(back))
    stored.save(tmp_path / "turned.tif", tiffinfo={0x0112: orientation})
    assert (np.asarray(read_image(tmp_path / "turned.tif")) == np.asarray(_reference())).all()
    found = inspect(tmp_path / "turned.tif")
    assert (found.width, found.height) == (16, 8)


def test_linked_folders_count_once_each_and_loops_end(tmp_path: Path) -> None:
    root = tmp_path / "images"
    draw(tmp_path / "shared" / "none.png")
    draw(root / "wheel-positive" / "a.png")
    for concept in ("wheel", "fur"):
        (root / f"{concept}-negative").symlink_to(tmp_path / "shared")
    (root / "fur-positive").symlink_to(root / "wheel-positive")
    (root / "wheel-positive" / "loop").symlink_to(root)
    os.mkfifo(root / "wheel-positive" / "pipe.png")
    assert find_images(root)["image"].values.tolist() == [
        "fur-negative/none.png", "fur-positive/a.png", "wheel-negative/none.png", "wheel-positive/a.png",
    ]  # fmt: skip


def test_one_file_under_several_spellings_is_one_image(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    spellings = ["a.png", "./a.png", f"../{tmp_path.name}/a.png", str(tmp_path / "a.png")]
    rows = [f"{name},wheel,positive,because {at}" for at, name in enumerate(spellings)]
    (tmp_path / "study.csv").write_text("path,concept,label,reason\r\n" + "\r\n".join(rows))
    found = find_images(tmp_path / "study.csv")
    assert found["image"].values.tolist() == ["a.png"]
    assert found["reason"].item() == "; ".join(f"wheel: because {at}" for at in range(4))


def test_postscript_in_disguise_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    with pytest.raises(UnreadableImage, match="no image"):
        read_image(tmp_path / "a.png")


def test_inspect_hashes_the_bytes_and_tells_the_size(tmp_path: Path) -> None:
    path = draw(tmp_path / "a.jpg", size=(300, 200))
    found = inspect(path)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found.width, found.height) == (300, 200)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.webp"])
@pytest.mark.parametrize("keep", [0, 30, 0.5])
def test_truncated_files_are_errors_that_name_the_file(tmp_path: Path, name: str, keep: float) -> None:
    path = draw(tmp_path / name, size=(200, 150))
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    for read in (inspect, read_image):
        with pytest.raises(UnreadableImage, match=name):
            read(path)


def test_decompression_bombs_are_refused_unopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "large.png", size=(300, 300))
    monkeypatch.setattr("semprobe.images.MAX_PIXELS", 80_000)
    with pytest.raises(UnreadableImage, match=r"300 x 300 pixels, more than the limit"):
        inspect(tmp_path / "large.png")


def test_a_file_that_changed_is_noticed(tmp_path: Path) -> None:
    path = draw(tmp_path / "a.png")
    before = inspect(path).sha256
    draw(path, (1, 2, 3))
    with pytest.raises(UnreadableImage, match="changed since"):
        read_image(path, before)


def test_links_to_nothing_and_closed_folders_are_not_passed_over(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures / "t-shirt-positive" / "gone.png").symlink_to(pictures / "nowhere.png")
    found = find_images(pictures)
    assert "t-shirt-positive/gone.png" in found["image"].values
    with pytest.raises(UnreadableImage, match=r"gone\.png"):
        inspect(pictures / "t-shirt-positive" / "gone.png")
    scandir = os.scandir

    def closed(path: Any) -> Any:
        if str(path).endswith("t-shirt-negative"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(ImagesError, match="t-shirt-negative: this folder can't be read"):
        find_images(pictures)
