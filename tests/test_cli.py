"""Commands, as a person at a terminal or a program would run them."""

from __future__ import annotations

import errno
import json
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import dask
import dask.array as da
import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from click.testing import Result
from PIL import Image

import semprobe
from semprobe import baselines, stores
from semprobe.assessment import score_sums
from semprobe.cli import _common
from semprobe.scoring import labelled
from tests.conftest import MODEL, draw, write_saev

Run = Callable[..., Result]
RANDOM = ("--model", MODEL, "--random-weights", 0)


def test_extract_encode_score_both_ways(acts: Path, sae_file: Path, tmp_path: Path, run: Run) -> None:
    run("encode", acts, "--sae", sae_file, "-o", tmp_path / "latents.zarr", "--max")
    direct = run("score", acts, "--sae", sae_file, "-o", tmp_path / "one.zarr", "--random", 50)
    stored = run("score", tmp_path / "latents.zarr", "-o", tmp_path / "two.zarr", "--random", 50)
    assert "t-shirt: 3 positive, 4 negative; " in direct.stdout
    assert "floor 0.600 (fires on every image); 50 random latents" in direct.stdout
    assert direct.stdout.splitlines()[:-1] == stored.stdout.splitlines()[:-1]
    one, two = (stores.open_store(tmp_path / f"{name}.zarr") for name in ("one", "two"))
    xr.testing.assert_identical(one.drop_attrs(), two.drop_attrs())
    latents = stores.open_store(tmp_path / "latents.zarr")
    assert set(latents.data_vars) == {"patch_sum", "patch_max", "patch_argmax"}
    assert latents["label"].dims == ("image", "concept")
    assert "row" not in latents.variables


def test_stores_say_where_their_numbers_come_from(acts: Path, sae_file: Path, tmp_path: Path, run: Run) -> None:
    run("score", acts, "--sae", sae_file, "-o", tmp_path / "s.zarr", "--threshold", 0.5, "--seed", 3)
    found = json.loads(run("info", tmp_path / "s.zarr", "--json").stdout)
    came = found["provenance"]
    assert came["threshold"] == 0.5
    assert came["seed"] == 3
    assert len(came["sae"]["sha256"]) == len(came["activations"]["backbone"]["weights_sha256"]) == 64
    assert came["activations"]["backbone"]["weights"] == "random, seed 0"
    assert came["activations"]["backbone"]["layer"] == 4
    assert came["activations"]["backbone"]["transform"]["size"] == [160, 160]
    assert {"torch", "timm", "zarr", "semprobe"} <= set(came["versions"])
    text = run("info", acts, "--verify").stdout
    assert "t-shirt: 3 positive, 4 negative" in text
    assert "RANDOM WEIGHTS" in text
    assert "every chunk was read" in text


def test_json_goes_to_stdout_and_progress_to_stderr(acts: Path, sae_file: Path, tmp_path: Path, run: Run) -> None:
    result = run("score", acts, "--sae", sae_file, "-o", tmp_path / "s.zarr", "--json", "--top", 3)
    found = json.loads(result.stdout)
    best = found["concepts"]["t-shirt"]
    assert len(best["top"]) == 3
    assert best["positives"] == 3
    assert "scoring" in result.stderr
    assert "image" in result.stderr
    again = run("score", acts, "--sae", sae_file, "-o", tmp_path / "s2.zarr", "--json", "--quiet", "--workers", 1)
    assert again.stderr == ""
    assert json.loads(again.stdout)["concepts"]["t-shirt"]["top"][:3] == best["top"]


def test_several_layers_and_cls(pictures: Path, tmp_path: Path, run: Run) -> None:
    layers = ("--layer", 1, "--layer", -1)
    refused = run("extract", pictures, "-o", tmp_path / "a.zarr", *RANDOM, *layers, code=2)
    assert "{layer}" in refused.stderr
    found = run("extract", pictures, "-o", tmp_path / "a-{layer}.zarr", *RANDOM, *layers, "--cls", "--json")
    assert json.loads(found.stdout)["layers"] == [1, 5]
    for layer in (1, 5):
        data = stores.open_store(tmp_path / f"a-{layer}.zarr")
        assert data["cls"].shape == (7, 64)
        assert data.attrs["provenance"]["backbone"]["layer"] == layer
    again = ("extract", pictures, "-o", tmp_path / "a-{layer}.zarr", *RANDOM, *layers)
    _fails(run, *again, "--cls", message="is complete; --overwrite replaces it")
    shutil.rmtree(tmp_path / "a-5.zarr")  # as if it had been killed between the two
    _fails(run, *again, message="settings is here: cls: True in the store, False now")
    before = (tmp_path / "a-1.zarr" / "zarr.json").stat().st_mtime_ns
    run(*again, "--cls")
    assert stores.open_store(tmp_path / "a-5.zarr")["cls"].shape == (7, 64)
    assert (tmp_path / "a-1.zarr" / "zarr.json").stat().st_mtime_ns == before
    next((tmp_path / "a-1.zarr" / "activations" / "c").rglob("0")).rename(tmp_path / "lost")
    _fails(run, *again, "--cls", message="is complete; --overwrite replaces it")
    shutil.rmtree(tmp_path / "a-5.zarr")
    _fails(run, *again, "--cls", message="a-1.zarr: 1 file(s) are missing")


@pytest.mark.parametrize("workers", [1, 2])
def test_baselines_of_the_command_are_those_of_the_library(
    workers: int, acts: Path, sae_file: Path, tmp_path: Path, run: Run
) -> None:
    asked = ("--baseline", "channels", "--baseline", "random-sae", "--workers", workers)
    run("score", acts, "--sae", sae_file, "-o", tmp_path / "s.zarr", *asked)
    found, data = stores.open_store(tmp_path / "s.zarr"), labelled(stores.open_store(acts))
    sae, values = semprobe.load_sae(sae_file), data["activations"]
    drawn = semprobe.patch_sum(values, baselines.random_sae(values, sae, seed=0))
    channels, random = (
        score_sums(sums.to_dataset(name="patch_sum").assign_coords(label=data["label"]).compute())
        for sums in (baselines.channel_sums(values), drawn)
    )
    for name in ("f1", "auroc"):
        expected = baselines.best_of_both(f"channel_{name}", channels[name])
        np.testing.assert_array_equal(found[f"channel_{name}"], expected)
    np.testing.assert_array_equal(found["random_sae_f1"], random["f1"])


def test_manifest_columns_reach_the_scores_input(pictures: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "study.csv").write_text(
        "path,concept,label,source,reason\n"
        "pictures/t-shirt-positive/0.png,shirt,positive,web,clear\n"
        "pictures/t-shirt-negative/1.jpg,shirt,negative,imagenet,none\n"
    )
    run("extract", tmp_path / "study.csv", "-o", tmp_path / "a.zarr", *RANDOM)
    data = xr.open_zarr(tmp_path / "a.zarr")
    assert data["source"].values.tolist() == ["imagenet", "web"]
    assert data["reason"].values.tolist() == ["none", "clear"]


def test_dry_runs_forecast_and_write_nothing(
    pictures: Path, acts: Path, sae_file: Path, tmp_path: Path, run: Run
) -> None:
    before = sorted(tmp_path.iterdir())
    for command in (
        ("extract", pictures, *RANDOM),
        ("encode", acts, "--sae", sae_file),
        ("score", acts, "--sae", sae_file),
    ):
        text = run(*command, "-o", tmp_path / "x.zarr", "--dry-run")
        assert " in " in text.stderr
        found = json.loads(run(*command, "-o", tmp_path / "x.zarr", "--dry-run", "--json").stdout)
        assert found["bytes"] > 0
    assert sorted(tmp_path.iterdir()) == before
    stored = stores.open_store(acts)
    assert json.loads(run("extract", pictures, *RANDOM, "-o", tmp_path / "x.zarr", "--dry-run", "--json").stdout)[
        "bytes"
    ] == (stored["activations"].nbytes)


def _unfinish(store: Path) -> None:
    """Put a store back to where it was before it was completed."""
    root = json.loads((store / "zarr.json").read_text())
    waiting = {"attributes": root["attributes"] | {"state": "writing"}, "run": "x", "replaces": False, "ready": True}
    (store / "incomplete.json").write_text(json.dumps(waiting))
    (store / "zarr.json").unlink()


def test_overwrite(pictures: Path, acts: Path, run: Run) -> None:
    refused = run("extract", pictures, "-o", acts, *RANDOM, code=1)
    assert "--overwrite" in refused.stderr
    run("extract", pictures, "-o", acts, *RANDOM, "--layer", 0, "--overwrite")
    assert stores.open_store(acts).attrs["provenance"]["backbone"]["layer"] == 0


def test_rerun_with_another_layer_is_refused_by_name(pictures: Path, acts: Path, run: Run) -> None:
    _unfinish(acts)
    refused = run("extract", pictures, "-o", acts, *RANDOM, "--layer", 1, code=1)
    assert "backbone.layer: 4 in the store, 1 now" in refused.stderr
    run("extract", pictures, "-o", acts, *RANDOM)
    assert stores.open_store(acts).sizes["image"] == 7


def test_skip_lists_what_was_left_out(pictures: Path, tmp_path: Path, run: Run) -> None:
    (pictures / "t-shirt-negative" / "empty.png").touch()
    result = run("extract", pictures, "-o", tmp_path / "a.zarr", *RANDOM, "--on-error", "skip", "--json")
    assert [one["image"] for one in json.loads(result.stdout)["skipped"]] == ["t-shirt-negative/empty.png"]
    assert "empty.png" in run("info", tmp_path / "a.zarr").stdout


# what goes wrong: one line that says what, an exit code, and nothing left behind


def _bad_image(name: str, data: bytes) -> Callable[[Path], None]:
    def add(pictures: Path) -> None:
        (pictures / "t-shirt-positive" / name).write_bytes(data)

    return add


def _truncated_jpeg(pictures: Path) -> None:
    path = draw(pictures / "t-shirt-positive" / "torn.jpg", size=(300, 300))
    path.write_bytes(path.read_bytes()[:2000])


def _bomb(pictures: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(pictures / "t-shirt-positive" / "bomb.png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_truncated_jpeg, "torn.jpg: can't be read as an image"),
        (_bad_image("zero.png", b""), "zero.png: can't be read as an image: the file is empty"),
        (_bad_image("text.jpg", b"hello"), "text.jpg: can't be read as an image: its bytes are no image"),
        (_bomb, "bomb.png: can't be read as an image"),
        (lambda pictures: shutil.rmtree(pictures / "t-shirt-positive") or shutil.rmtree(pictures / "t-shirt-negative"),
         "no images in here"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_images(pictures: Path, tmp_path: Path, run: Run, spoil: Callable[[Path], None], message: str) -> None:
    spoil(pictures)
    result = run("extract", pictures, "-o", tmp_path / "a.zarr", *RANDOM, "--quiet", code=1)
    assert message in result.stderr
    error = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert len(error) == 1
    assert result.stderr.splitlines()[-1] == error[0]
    assert not (tmp_path / "a.zarr").exists()


def _fails(run: Run, *command: object, message: str, code: int = 1) -> None:
    result = run(*command, code=code)
    assert message in result.stderr.replace("\n", " "), result.stderr
    assert "Traceback" not in result.stderr


def test_bad_arguments(pictures: Path, acts: Path, sae_file: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "x.zarr"
    extract, score, encode = ("extract", pictures, "-o", out), ("score", acts, "-o", out), ("encode", acts, "-o", out)
    _fails(run, "extract", tmp_path / "nowhere", "-o", out, *RANDOM, message="does not exist", code=2)
    _fails(run, *extract, "--model", "vit_smal", "--random-weights", 0, message="not known to timm")
    _fails(run, *extract, "--model", "resnet18", "--random-weights", 0, message="plain vision transformers")
    _fails(run, *extract, *RANDOM, "--layer", 77, message="has 6 blocks")
    _fails(run, *extract, *RANDOM, "--weights", sae_file, message="exclude each other", code=2)
    _fails(run, *extract, "--model", MODEL, "--weights", sae_file, message="sae.pt")
    _fails(run, "extract", pictures, "-o", pictures, *RANDOM, message="not a semprobe store is here already")
    _fails(run, "extract", pictures, "-o", sae_file / "x.zarr", *RANDOM, message="is a file, expected a folder")
    _fails(run, *score, message="--sae is needed", code=2)
    _fails(run, *score, "--sae", tmp_path / "nowhere.pt", message="no such file")
    _fails(run, *score, "--sae", write_saev(tmp_path / "wide.pt", 65), message="reads 65 features")
    _fails(run, *encode, "--sae", write_saev(tmp_path / "wide.pt", 65), message="reads 65 features")
    torch.save({"sae": object}, tmp_path / "pickle.pt")
    _fails(run, *encode, "--sae", tmp_path / "pickle.pt", message="pickle")
    _fails(run, "encode", tmp_path / "nowhere.zarr", "--sae", sae_file, "-o", out, message="no store here")
    _fails(run, *score, "--sae", sae_file, "--threshold", "nan", message="threshold nan: expected a finite", code=2)
    _fails(run, "info", tmp_path, message="not a semprobe store")
    _fails(run, "info", message="Missing argument", code=2)
    _fails(run, "infos", message="No such command", code=2)
    assert not out.exists()


def test_a_table_that_can_not_be_written_is_told_by_name(
    acts: Path, sae_file: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pandas.DataFrame.to_csv", full)
    (tmp_path / "tables").mkdir()
    table = tmp_path / "tables" / "x.csv"
    command = ("score", acts, "--sae", sae_file, "-o", tmp_path / "s.zarr", "--permutations", 100)
    _fails(run, *command, "--csv", table, message="x.csv': the table can't be written, the store is: No space left")
    assert list(table.parent.iterdir()) == []
    stores.open_store(tmp_path / "s.zarr")


def test_room_for_what_is_on_disk_meanwhile_is_looked_at_where_it_goes(
    acts: Path, sae_file: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    command = ("score", acts, "--sae", sae_file, "-o", "memory://s.zarr")
    _fails(run, *command, message=f"{tempfile.gettempdir()}: 2.7 kB are needed here meanwhile")


def test_threads_take_turns_with_dasks_settings() -> None:
    """Settings are the process's: of two that overlap, one would restore the pool of the other, which has ended."""
    entered = threading.Barrier(3)

    def compute() -> int:
        entered.wait(10)
        found = []
        for _ in range(20):
            with _common.dask_threads(1, lambda n: None, 1):
                found.append(int(da.ones(10, chunks=1).sum().compute()))
        return sum(found)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda _: compute(), range(3))) == [200] * 3
    assert dask.config.get("pool", None) is None


def test_an_output_that_is_the_input_is_refused(acts: Path, sae_file: Path, run: Run) -> None:
    for command in ("score", "encode"):
        for out in (acts, acts / "inside.zarr", f"file://{acts}"):
            _fails(run, command, acts, "--sae", sae_file, "-o", out, "--overwrite", message="overlaps", code=2)
    assert stores.open_store(acts).sizes["image"] == 7


def test_scores_are_tested_anew_and_not_encoded(acts: Path, sae_file: Path, tmp_path: Path, run: Run) -> None:
    run("score", acts, "--sae", sae_file, "-o", tmp_path / "s.zarr", "--permutations", 300)
    run("score", tmp_path / "s.zarr", "-o", tmp_path / "t.zarr", "--permutations", 300)
    again = ("--permutations", 200, "--alpha", 0.5, "--family", "study")
    run("score", tmp_path / "s.zarr", "-o", tmp_path / "u.zarr", *again)
    run("score", acts, "--sae", sae_file, "-o", tmp_path / "v.zarr", *again)
    first, same, anew, direct = (stores.open_store(tmp_path / f"{name}.zarr") for name in "stuv")
    xr.testing.assert_identical(first.drop_attrs(), same.drop_attrs())
    xr.testing.assert_identical(anew.drop_attrs(), direct.drop_attrs())
    assert anew.attrs["provenance"]["tests"]["alpha"] == 0.5
    assert anew.attrs["provenance"]["sae"] == first.attrs["provenance"]["sae"]
    for wrong in (("--threshold", 1), ("--threshold-sweep",), ("--random", 400)):
        told = run("score", tmp_path / "s.zarr", "-o", tmp_path / "w.zarr", *wrong, code=2)
        assert "can't be changed" in told.stderr
    _fails(run, "encode", tmp_path / "s.zarr", "--sae", sae_file, "-o", tmp_path / "w.zarr", message="store of scores")


def test_scores_keep_their_threshold_and_random_latents(acts: Path, sae_file: Path, tmp_path: Path, run: Run) -> None:
    made = ("score", acts, "--sae", sae_file, "--permutations", 99, "-o")
    run(*made, tmp_path / "some.zarr", "--threshold", 0.5, "--random", 50)
    run(*made, tmp_path / "swept.zarr", "--threshold-sweep")
    again = ("-o", tmp_path / "t.zarr", "--permutations", 99, "--overwrite")
    for name, wrong, message in (
        ("some", ("--threshold", 0), "--threshold 0.5, which can't be changed to 0.0"),
        ("some", ("--random", 1000), "--random 50, which can't be changed to 1000"),
        ("some", ("--threshold-sweep",), "--threshold 0.5, which can't be changed to sweep"),
        ("swept", ("--threshold", 0), "--threshold sweep, which can't be changed to 0.0"),
    ):
        told = run("score", tmp_path / f"{name}.zarr", *again, *wrong, code=2)
        assert message in " ".join(told.stderr.split())
    for name, right in (("some", ()), ("some", ("--threshold", 0.5, "--random", 50)), ("swept", ("--threshold-sweep",)),
                        ("swept", ())):  # fmt: skip
        run("score", tmp_path / f"{name}.zarr", *again, *right)
        then, now = (stores.open_store(tmp_path / f"{one}.zarr") for one in (name, "t"))
        xr.testing.assert_identical(then.drop_attrs(), now.drop_attrs())
        assert then.attrs["provenance"]["threshold"] == now.attrs["provenance"]["threshold"]


def test_what_nobody_foresaw_is_one_line_too(acts: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("semprobe.stores.open_store", broken)
    _fails(run, "info", acts, message="KeyError: 'oops' (not foreseen: SEMPROBE_TRACEBACK=1")


def test_one_class_only(pictures: Path, sae_file: Path, tmp_path: Path, run: Run) -> None:
    shutil.rmtree(pictures / "t-shirt-negative")
    run("extract", pictures, "-o", tmp_path / "a.zarr", *RANDOM)
    _fails(
        run,
        "score",
        tmp_path / "a.zarr",
        "--sae",
        sae_file,
        "-o",
        tmp_path / "s.zarr",
        message="t-shirt has no negative",
    )
    plain = tmp_path / "plain"
    draw(plain / "a.png")
    run("extract", plain, "-o", tmp_path / "b.zarr", *RANDOM)
    _fails(
        run,
        "score",
        tmp_path / "b.zarr",
        "--sae",
        sae_file,
        "-o",
        tmp_path / "s.zarr",
        message="no concept is labelled",
    )
    assert not (tmp_path / "s.zarr").exists()


def test_damaged_and_newer_stores(acts: Path, sae_file: Path, tmp_path: Path, run: Run) -> None:
    out = ("--sae", sae_file, "-o", tmp_path / "s.zarr")
    file = acts / "activations" / "c" / "0" / "0" / "0"
    good = file.read_bytes()
    file.write_bytes(good[:-1000])
    _fails(run, "score", acts, *out, message="file activations/c/0/0/0 can't be read")
    _fails(run, "info", acts, "--verify", message="file activations/c/0/0/0 can't be read")
    file.write_bytes(good)
    root = (acts / "zarr.json").read_text()
    (acts / "zarr.json").write_text(root.replace('"version": 1', '"version": 2'))
    _fails(run, "score", acts, *out, message="format version 2")
    (acts / "zarr.json").write_text(root)
    _unfinish(acts)
    _fails(run, "score", acts, *out, message="not complete; run the same command again")
    assert not (tmp_path / "s.zarr").exists()


def test_a_full_disk_is_told_before_and_meanwhile(
    pictures: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.zarr"
    with monkeypatch.context() as patch:
        patch.setattr("semprobe.stores._paths.Place.free", lambda self: 1000)
        _fails(run, "extract", pictures, "-o", out, *RANDOM, message="no space")
    assert not out.exists()

    real = zarr.Array.__setitem__

    def full(self: zarr.Array, *values: object) -> None:
        if self.name == "/activations":
            raise OSError(28, "No space left on device", str(out))
        real(self, *values)  # type: ignore[arg-type]

    monkeypatch.setattr("zarr.Array.__setitem__", full)
    message = "a.zarr: images 0 to 6 can't be written: No space left on device"
    _fails(run, "extract", pictures, "-o", out, *RANDOM, message=message)
    assert not out.exists()
    monkeypatch.undo()
    run("extract", pictures, "-o", out, *RANDOM)


def test_an_input_is_never_changed(acts: Path, sae_file: Path, pictures: Path, tmp_path: Path, run: Run) -> None:
    def state() -> dict[str, bytes]:
        files = [*acts.rglob("*"), *pictures.rglob("*"), sae_file]
        return {str(file): file.read_bytes() for file in files if file.is_file()}

    before = state()
    run("encode", acts, "--sae", sae_file, "-o", tmp_path / "l.zarr")
    run("score", acts, "--sae", sae_file, "-o", tmp_path / "s.zarr")
    run("info", acts, "--verify")
    assert state() == before


def test_encode_goes_on_where_it_stopped(acts: Path, sae_file: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "l.zarr"
    run("encode", acts, "--sae", sae_file, "-o", out)
    whole = stores.open_store(out).load()
    _unfinish(out)
    (out / "patch_sum" / "c" / "0" / "0").unlink()
    other = write_saev(tmp_path / "other.pt", seed=1)
    _fails(run, "encode", acts, "--sae", other, "-o", out, message="sae.sha256")
    run("encode", acts, "--sae", sae_file, "-o", out)
    np.testing.assert_array_equal(stores.open_store(out)["patch_sum"], whole["patch_sum"])


def test_errors_can_show_where_they_come_from(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMPROBE_TRACEBACK", "1")
    with pytest.raises(AssertionError, match="there is no store here"):
        run("info", tmp_path / "nowhere.zarr")


def test_command_line_is_recorded(acts: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Run) -> None:
    monkeypatch.setattr(sys, "argv", ["semprobe", "extract", "my images", "-o", "a.zarr"])
    draw(tmp_path / "plain" / "a.png")
    run("extract", tmp_path / "plain", "-o", tmp_path / "b.zarr", *RANDOM)
    assert (
        stores.open_store(tmp_path / "b.zarr").attrs["provenance"]["command"]
        == "semprobe extract 'my images' -o a.zarr"
    )
