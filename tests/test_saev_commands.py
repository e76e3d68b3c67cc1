"""saev's shards at the command line, and everything that can be wrong with them."""

from __future__ import annotations

import base64
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
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
from semprobe import stores
from semprobe.errors import DataError, SemprobeError, StoreCorrupt, StoreError
from tests.conftest import write_saev
from tests.test_saev_shards import NEWEST, RAW, values, write_shards

Run = Callable[..., Result]
ACTS = RAW / "shards" / "acts"
IMAGES = ("--images", RAW / "images")
SAE = ("--sae", RAW / "sae.pt")


def _fails(run: Run, *command: object, message: str, code: int = 1) -> None:
    result = run(*command, code=code)
    told = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert len(told) == 1
    assert message in told[0], told
    assert code == 2 or len(result.stderr.strip().splitlines()) == 1, result.stderr


# commands


def test_scores_of_shards_equal_the_original_tool(tmp_path: Path, run: Run) -> None:
    run("score", ACTS, *IMAGES, *SAE, "-o", tmp_path / "direct.zarr", "--random", 20)
    run("encode", ACTS, *IMAGES, *SAE, "-o", tmp_path / "l.zarr", "--layer", -2, "--max")
    run("score", tmp_path / "l.zarr", "-o", tmp_path / "latents.zarr", "--random", 20)
    run("import", ACTS, *IMAGES, "-o", tmp_path / "a.zarr", "--cls")
    run("score", tmp_path / "a.zarr", *SAE, "-o", tmp_path / "imported.zarr", "--random", 20)
    direct, latents, imported = (
        stores.open_store(tmp_path / f"{name}.zarr") for name in ("direct", "latents", "imported")
    )
    with np.load(RAW / "expected.npz") as file:
        expected = dict(file)
    found = direct["f1"].sel(concept=expected["concepts"].tolist())
    np.testing.assert_allclose(found, expected["f1"], rtol=0, atol=1e-6)
    xr.testing.assert_identical(direct.drop_attrs(), latents.drop_attrs())
    known = [name for name in imported.variables if name not in direct.variables]
    assert set(known) <= {"sha256", "width", "height", "alpha", "crop", "edge"}
    xr.testing.assert_identical(direct.drop_attrs(), imported.drop_vars(known).drop_attrs())
    for came in (direct.attrs["provenance"], latents.attrs["provenance"], imported.attrs["provenance"]):
        assert came["activations"]["backbone"]["layer"] == -2
        assert came["activations"]["shards"]["metadata_sha256"].startswith("2af4a93eafdd")
        assert came["activations"]["images"] == {"root": str(RAW / "images"), "order": "ImageFolder"}


def test_scores_of_normalised_shards_equal_the_original_tool(tmp_path: Path, run: Run) -> None:
    folder, out = RAW.parent / "score-normalised", tmp_path / "s.zarr"
    options = ("--images", folder / "images", "--sae", folder / "sae.pt", "--normalize", "probe", "--quiet")
    run("score", folder / "shards" / "acts", *options, "-o", out)
    with np.load(folder / "expected.npz") as file:
        expected = dict(file)
    found = stores.open_store(out)["f1"].sel(concept=expected["concepts"].tolist())
    np.testing.assert_allclose(found, expected["f1"], rtol=0, atol=1e-6)


def test_an_sae_is_tried_on_shards(tmp_path: Path, run: Run) -> None:
    found = json.loads(run("sae", RAW / "sae.pt", "--on", ACTS, "--layer", -2, *IMAGES, "--json").stdout)
    assert found["on"]["images"] == 24
    _fails(run, "sae", RAW / "sae.pt", "--layer", -2, message="needs --on", code=2)
    _fails(run, "sae", RAW / "sae.pt", "--on", ACTS, "--layer", 3, message="layer 3 is not here; found -2")


def test_an_imported_store_holds_what_the_shards_hold(tmp_path: Path, run: Run) -> None:
    result = run("import", ACTS, *IMAGES, "-o", tmp_path / "a.zarr", "--cls", "--json")
    assert json.loads(result.stdout)["images"] == 24
    assert "importing" in result.stderr
    found = stores.open_store(tmp_path / "a.zarr")
    direct = stores.open_store(ACTS, images=semprobe.find_images(RAW / "images", order="saev"))
    for name in ("activations", "cls", "label", "image", "row", "column"):
        np.testing.assert_array_equal(found[name], direct[name])
    looked = semprobe.images.inspect(RAW / "images" / str(found["image"].values[7]))
    assert found["sha256"].values[7] == looked.sha256
    assert found["width"].values[7] == looked.width
    assert found["crop"].isnull().all()
    assert "every chunk was read" in run("info", tmp_path / "a.zarr", "--verify").stdout
    assert xr.open_zarr(tmp_path / "a.zarr").sizes == found.sizes


def test_import_without_images_in_half_the_size(tmp_path: Path, run: Run) -> None:
    run("import", NEWEST, "-o", tmp_path / "a.zarr", "--dtype", "float16", "--quiet")
    found, direct = stores.open_store(tmp_path / "a.zarr"), stores.open_store(NEWEST)
    assert found["activations"].dtype == np.float16
    np.testing.assert_array_equal(found["activations"], direct["activations"].astype(np.float16))
    np.testing.assert_array_equal(found["patch_label"], direct["patch_label"])
    assert found["patch_label"].dtype == np.uint8
    assert "cls" not in found
    assert (found["sha256"] == "").all()
    assert not found["width"].any()
    uneven = write_shards(tmp_path / "s", values())
    run("import", uneven, "-o", tmp_path / "b.zarr", "--quiet")
    assert stores.open_store(tmp_path / "b.zarr")["row"].values.tolist() == [0, 0, 1, 1]
    run("import", write_shards(tmp_path / "t", values(tokens=4)), "-o", tmp_path / "c.zarr", "--quiet")
    assert stores.open_store(tmp_path / "c.zarr")["row"].values.tolist() == [-1, -1, -1]


def test_import_goes_on_where_it_was_killed(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "images_per_shard", lambda size, images: 16)
    shards, out = write_shards(tmp_path / "s", values(40)), tmp_path / "a.zarr"
    written: list[int] = []
    write = stores.Writer.write

    def killed(self: stores.Writer, start: int, found: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(start)
        write(self, start, found)

    with monkeypatch.context() as patch:
        patch.setattr(stores.Writer, "write", killed)
        run("import", shards, "-o", out, code=None)
    _fails(run, "info", out, message="not complete; run the same command again")
    _fails(
        run,
        "import",
        shards,
        "-o",
        out,
        "--dtype",
        "float16",
        "--quiet",
        message="dtype: float32 in the store, float16 now",
    )
    monkeypatch.setattr(stores.Writer, "write", lambda self, start, v: written.append(start) or write(self, start, v))
    first, before = shards / "acts000000.bin", (shards / "acts000000.bin").stat().st_mtime_ns
    os.utime(first, ns=(before, before + 1))  # written again: the rest would be of other activations
    _fails(run, "import", shards, "-o", out, "--quiet", message="shards.files_sha256")
    os.utime(first, ns=(before, before))
    run("import", shards, "-o", out)
    assert written == [0, 16, 32]
    np.testing.assert_array_equal(stores.open_store(out)["activations"], values(40)[:, 0, 1:])
    _fails(run, "import", shards, "-o", out, message="--overwrite replaces it")
    run("import", shards, "-o", out, "--overwrite", "--quiet")


def test_pictures_that_are_gone_still_label(tmp_path: Path, run: Run) -> None:
    shutil.copytree(RAW / "images", tmp_path / "images")
    gone = sorted((tmp_path / "images").rglob("*.png"))[0]
    gone.write_bytes(b"")
    result = run("import", ACTS, "--images", tmp_path / "images", "-o", tmp_path / "a.zarr")
    assert "1 images can't be read, their hash and size stay unknown" in result.stderr
    found = stores.open_store(tmp_path / "a.zarr")
    assert (found["sha256"] == "").sum() == 1
    assert (found["width"] == 0).sum() == 1


def _peak(shards: Path, sae: Path) -> int:
    """Peak memory of scoring all patch sums, in bytes, in a process of its own."""
    code = (
        "import resource, sys, semprobe\n"
        "data, sae = semprobe.open_store(sys.argv[1]), semprobe.load_sae(sys.argv[2])\n"
        "semprobe.predict(semprobe.patch_sum(data['activations'], sae)).sum('image').compute(num_workers=2)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    words = [sys.executable, "-c", code, str(shards), str(sae)]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def test_memory_stays_flat_as_shards_grow(tmp_path: Path) -> None:
    """Sparse files: nothing is on disk, and all of it is read."""
    sae = write_saev(tmp_path / "sae.pt", 256, 32)
    peaks = []
    for files in (1, 6):
        images, tokens = 400 * files, 197
        shards = write_shards(tmp_path / f"s{files}", np.zeros((0, 1, tokens, 256), np.float32), per_file=400)
        about = json.loads((shards / "metadata.json").read_text())
        (shards / "metadata.json").write_text(json.dumps({**about, "n_examples": images}))
        for at in range(files):
            with (shards / f"acts{at:06}.bin").open("wb") as file:
                file.truncate(400 * tokens * 256 * 4)
        peaks.append(_peak(shards, sae))
    assert peaks[1] < peaks[0] + 60e6, "485 MB of shards instead of 81"


def test_memory_of_the_command_is_flat_too(tmp_path: Path) -> None:
    sae, peaks = write_saev(tmp_path / "sae.pt", 8, 8192), []
    code = (
        "import resource, sys; from semprobe.cli import main; main(sys.argv[1:], standalone_mode=False); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    for images in (100, 4000):
        shards = write_shards(tmp_path / f"s{images}", values(images), per_file=1000)
        rows = [f"{at}.png,w,{('negative', 'positive')[at % 2]}" for at in range(images)]
        (tmp_path / "m.csv").write_text("\n".join(["path,concept,label", *rows]))
        words = ["score", shards, "--sae", sae, "--images", tmp_path / "m.csv", "-o", tmp_path / f"{images}.zarr",
                 "--permutations", 20, "--splits", 2, "--random", 20, "--quiet"]  # fmt: skip
        command = [sys.executable, "-c", code, *map(str, words)]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]))
        assert np.isfinite(stores.open_store(tmp_path / f"{images}.zarr")["auroc"]).all()
    assert peaks[1] < 1.1 * peaks[0], "of 131 MB of patch sums, and as many predictions in bytes, instead of 3 and 1"


def test_dry_runs_and_info(tmp_path: Path, run: Run) -> None:
    for command in (("import", ACTS), ("score", ACTS, *IMAGES, *SAE), ("encode", ACTS, *SAE)):
        found = json.loads(run(*command, "-o", tmp_path / "x.zarr", "--dry-run", "--json").stdout)
        assert found["bytes"] > 0
        assert not (tmp_path / "x.zarr").exists()
    text = run("info", ACTS, *IMAGES).stdout
    assert "activations, saev shards, protocol none, 18.2 kB" in text
    assert "fur: 6 positive, 6 negative" in text
    assert json.loads(run("info", NEWEST, "--json").stdout)["saev_protocol"] == "2.1"


def test_bad_arguments(tmp_path: Path, acts: Path, run: Run) -> None:
    out = ("-o", tmp_path / "x.zarr")
    several = write_shards(tmp_path / "s", values(layers=2), layers=(3, -2))
    for options in (("--layer", 4), IMAGES):
        for command in (("info", acts), ("score", acts, *SAE, *out), ("encode", acts, *SAE, *out)):
            _fails(run, *command, *options, message="is a semprobe store, which says itself", code=2)
    for command in (("import", several), ("info", several), ("encode", several, *SAE), ("score", several, *SAE)):
        to = () if command[0] == "info" else out
        _fails(run, *command, *to, message="choose one with layer; found 3, -2")
        _fails(run, *command, *to, "--layer", 10, message="layer 10 is not here; found 3, -2")
    _fails(run, "import", acts, *out, message="is no directory of saev shards")
    _fails(run, "import", several, "-o", several / "a.zarr", message="overlaps", code=2)
    _fails(run, "score", ACTS, *SAE, "-o", ACTS, message="overlaps", code=2)
    _fails(run, "score", ACTS, *out, message="--sae is needed", code=2)
    _fails(run, "score", ACTS, *SAE, *out, message="no concept is labelled")
    _fails(run, "encode", several, "--layer", 3, *SAE, *out, message="reads 16 features")
    _fails(run, "score", ACTS, *SAE, *out, "--images", tmp_path / "nowhere", message="does not exist", code=2)
    _fails(run, "info", ACTS, "--verify", message="no checksums to compare")
    plain = write_shards(tmp_path / "p", values(), cls=False)
    _fails(run, "import", plain, "--cls", *out, message="leave --cls out")
    with pytest.raises(StoreError, match="leave layer and images out"):
        stores.open_store(acts, layer=4)
    assert not (tmp_path / "x.zarr").exists()


@pytest.mark.parametrize(("value", "dtype", "message"), [
    (np.nan, "float32", "image 000009: some activations are not finite; these shards are not sound"),
    (1e6, "float16", "image 000009: some activations are not finite in float16; use float32"),
])  # fmt: skip
def test_values_that_are_not_finite(tmp_path: Path, run: Run, value: float, dtype: str, message: str) -> None:
    acts = values()
    acts[9, 0, 2, 3] = value
    shards, out = write_shards(tmp_path / "s", acts), tmp_path / "a.zarr"
    result = run("import", shards, "-o", out, "--dtype", dtype, "--quiet", code=1)
    assert message in result.stderr
    _fails(run, "info", out, message="there is no store here")
    if value != value:
        data = stores.open_store(shards)
        with pytest.raises(DataError, match="image 000009, patch 1"):
            semprobe.patch_sum(data["activations"], semprobe.load_sae(write_saev(tmp_path / "f.pt", 8))).compute()


# directories that are not as saev writes them


def _metadata(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "metadata.json"
        found = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in found.items() if value != "gone"}))

    return spoil


def _cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size)


def _text(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


BAD = [
    (lambda f: (f / "metadata.json").unlink(), "has acts files and no metadata.json"),
    (_text("metadata.json", "{"), "metadata.json: can't be read as JSON"),
    (_text("metadata.json", "[" * 100_000), "metadata.json: can't be read as JSON"),
    (_text("metadata.json", "[1]"), "holds a list, expected the fields"),
    (lambda f: (f / "metadata.json").write_bytes(b'{"a": "\xff"}'), "can't be read as JSON"),
    (_metadata(protocol="3.0"), "protocol is '3.0', expected none or 1.0.0, 1.1, 2.0, 2.1"),
    (_metadata(protocol=["2.1"]), "protocol is ['2.1'], expected none or"),
    (_metadata(dtype="bfloat16"), "dtype is 'bfloat16', expected float32"),
    (_metadata(d_model="gone"), "has no d_model (or d_vit)"),
    (_metadata(d_model="8"), "d_model is '8', expected a whole number"),
    (_metadata(d_model=True), "d_model is True, expected a whole number"),
    (_metadata(d_model=8.0), "d_model is 8.0, expected a whole number"),
    (_metadata(d_vit=9), "d_model and d_vit mean the same and differ"),
    (_metadata(n_examples=0), "n_examples is 0, expected a whole number from 1"),
    (_metadata(n_examples=10**18), "acts000003.bin is not there; found 3 acts files, expected 142857142857142858"),
    (_metadata(n_examples=10**400), "expected a whole number from 1"),
    (_metadata(n_examples=13), "acts000002.bin is one too many for 13 images, 7 a file"),
    (_metadata(d_model=10**18), "acts000000.bin: found 1,120 bytes, expected"),
    (_metadata(max_tokens_per_shard=3), "allows 3 tokens a file, less than one image"),
    (_metadata(layers=[-2, -2]), "layers is [-2, -2], the same one twice"),
    (_metadata(layers=[]), "layers is [], expected a list of whole numbers"),
    (_metadata(layers=["-2"]), "layers is ['-2'], expected"),
    (_metadata(cls_token=1), "cls_token is 1, expected true or false"),
    (_metadata(ckpt=None), "ckpt is None, expected a short text"),
    (_metadata(family="\ud800"), "family is '\\ud800', expected a short text"),
    (_cut("acts000001.bin", 1119), "acts000001.bin: found 1,119 bytes, expected 1,120"),
    (_cut("acts000000.bin", 0), "acts000000.bin: found 0 bytes, expected 1,120"),
    (_cut("acts000002.bin", 3000), "acts000002.bin: found 3,000 bytes, expected 1,120"),
    (lambda f: (f / "acts000001.bin").unlink(), "acts000001.bin is not there; found 2 acts files, expected 3 for 17"),
    (lambda f: (f / "acts000000.bin").unlink(), "acts000000.bin is not there"),
    (_text("labels.bin", "x" * 67), "labels.bin: found 67 bytes, expected 68"),
    (_text("shards.json", "{}"), "shards.json: expected a list"),
    (_text("shards.json", '[{"name": "../x"}]'), "entry 0 is named '../x', expected acts000000.bin"),
    (_text("shards.json", '[{"name": "acts000000.bin", "n_ex": -1}]'), "n_ex is -1"),
    (_text("shards.json", '[{"name": "acts000000.bin"}]'), "has no n_examples (or n_ex, n_imgs)"),
    (_text("shards.json", '[{"name": "acts000000.bin", "n_ex": 6}]'), "counts 6 images, and metadata.json says 17"),
    (_text("shards.json", '[{"name": "acts000000.bin", "n_ex": 17}]'), "expected 7 in each file but the last"),
    (lambda f: (f / "acts000000.bin").unlink() or (f / "acts000000.bin").mkdir(), "is no file"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_spoiled_shards(tmp_path: Path, run: Run, spoil: Callable[[Path], None], message: str) -> None:
    folder = write_shards(tmp_path / "s", values())
    spoil(folder)
    _fails(run, "info", folder, message=message)


def test_a_pickle_in_the_metadata_is_never_run(tmp_path: Path, run: Run) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "trapped"),)

    told = base64.b64encode(pickle.dumps(Trap())).decode()
    folder = write_shards(tmp_path / "s", values(), data=told, dataset="")
    found = run("info", folder, "--json").stdout
    assert told not in found
    assert not (tmp_path / "trapped").exists()
    pickle.loads(base64.b64decode(told))
    assert (tmp_path / "trapped").exists()


def test_elsewhere_and_nowhere(tmp_path: Path, run: Run) -> None:
    import fsspec

    with fsspec.open("memory://shards/metadata.json", "w") as file:
        file.write("{}")
    _fails(run, "info", "memory://shards", message="have to be on a local disk")
    folder = write_shards(tmp_path / "{odd} {number}", values())
    np.testing.assert_array_equal(stores.open_store(f"file://{folder}")["activations"], values()[:, 0, 1:])
    (tmp_path / "empty").mkdir()
    _fails(run, "info", tmp_path / "empty", message="nor a directory of saev shards")


ODD: tuple[Any, ...] = (None, True, -1, 0, 1, 8, 17, 2**31, 10**18, 10**400, 1.5, float("nan"), float("inf"), "", "7",
                        "x" * 5000, "\ud800", [], [-2, -2], [[1]], {}, {"a": {}}, list(range(1000)))  # fmt: skip


def _corrupted(rng: random.Random, text: str) -> bytes:
    """Truncated, with bytes changed, or with values that are missing, swapped, new or of another kind."""
    how = rng.choice(["cut", "bytes", "value", "value", "value", "swap", "gone", "unknown", "nested"])
    if how in ("cut", "bytes"):
        data = bytearray(text.encode())
        if how == "cut":
            return bytes(data[: rng.randrange(len(data))])
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data)
    found = json.loads(text)
    for _ in range(rng.randint(1, 3)):
        inside = rng.choice(found) if isinstance(found, list) else found
        one, two = rng.choice(list(inside)), rng.choice(list(inside))
        changes: dict[str, dict[str, Any]] = {
            "value": {one: rng.choice(ODD)}, "swap": {one: inside[two], two: inside[one]}, "gone": {one: "gone"},
            "unknown": {rng.choice(["n_imgs", "d_vit", "new", "dataset"]): rng.choice(ODD)},
            "nested": {one: json.loads("[" * 200 + "]" * 200)},
        }  # fmt: skip
        inside.update(changes[how])
    return json.dumps(found).replace(', "gone": "gone"', "").encode()


def test_corrupted_metadata_opens_or_says_so(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "s", values(), counts=True)
    good = {name: (folder / name).read_text() for name in ("metadata.json", "shards.json")}
    opened, told = 0, []
    semprobe.open_store(folder)
    tracemalloc.start()
    began = time.perf_counter()
    for seed in range(500):
        rng = random.Random(seed)
        spoilt = rng.choice(sorted(good))
        for name, text in good.items():
            (folder / name).write_bytes(_corrupted(rng, text) if name == spoilt else text.encode())
        try:
            assert semprobe.open_store(folder)["activations"].nbytes <= 4480
            opened += 1
        except SemprobeError as error:
            told.append(str(error))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 20 < opened < 400
    assert all(str(folder) in one and len(one) < 1000 for one in told)
    assert peak < 20e6
    assert time.perf_counter() - began < 30


def test_a_file_that_shrinks_later_is_named(tmp_path: Path) -> None:
    data = stores.open_store(write_shards(tmp_path / "s", values()))
    os.truncate(tmp_path / "s" / "acts000001.bin", 100)
    with pytest.raises(StoreCorrupt, match="acts000001.bin"):
        data["activations"].sum().compute()
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(StoreCorrupt, match="removed"):
        data["cls"].sum().compute()


def test_statistics_are_of_all_images_with_labels_or_without(tmp_path: Path, run: Run) -> None:
    x = values(24)
    x[:8] += 5
    rows = [f"{at}.png," + (f"w,{('negative', 'positive')[at % 2]}" if at >= 8 else ",") for at in range(24)]
    (tmp_path / "m.csv").write_text("\n".join(["path,concept,label", *rows]))
    sae = write_saev(tmp_path / "sae.pt", features=x.shape[-1], latents=16)
    options = ("--sae", sae, "--images", tmp_path / "m.csv", "--normalize", "probe", "--quiet")
    shards = write_shards(tmp_path / "s", x)
    run("score", shards, *options, "-o", tmp_path / "direct.zarr", "--random", 20)
    run("encode", shards, *options, "-o", tmp_path / "l.zarr")
    run("score", tmp_path / "l.zarr", "-o", tmp_path / "via.zarr", "--random", 20, "--quiet")
    direct, via = (stores.open_store(tmp_path / f"{name}.zarr") for name in ("direct", "via"))
    xr.testing.assert_identical(direct.drop_attrs(), via.drop_attrs())
    assert direct.sizes["image"] == 16
    scales = [one.attrs["provenance"]["normalisation"]["scale"] for one in (direct, via)]
    assert scales[0] == scales[1]
