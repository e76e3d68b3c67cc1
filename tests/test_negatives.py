"""Drawing negatives: reproducible from seed and verdicts, and from a million names in little memory."""

from __future__ import annotations

import csv
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result

from semprobe import sampling
from semprobe.collecting import Item, collect
from semprobe.errors import StudyError
from semprobe.sampling import first_in_order, negatives, open_pool, resample
from semprobe.study import Study, create, order_key
from tests.conftest import draw
from tests.test_collect import files

Run = Callable[..., Result]

CRITERIA = "no wheel visible, not even partly"


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Thirty pictures in folders."""
    for at in range(30):
        draw(tmp_path / "pool" / f"folder{at % 3}" / f"{at}.png", (at * 8, 255 - at * 8, at), (40 + at, 60 - at))
    return tmp_path / "pool"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return create(tmp_path / "study", ["wheel", "fur"])


def drawn(study: Study, *, used: bool = True) -> list[str]:
    rows = study.used() if used else study.rows()
    return [row["url"] for row in rows if (row["label"], row["concept"]) == ("negative", "wheel")]


def reject(study: Study, entry: str, verdict: str = "rejected") -> None:
    path = next(row["path"] for row in study.rows() if row["url"] == entry)
    study.set_verdict(path, "wheel", verdict, "Ada")


def expected(pool: Path, seed: int, without: tuple[str, ...] = ()) -> list[str]:
    """The order, written independently of the sampling."""
    names = [path.relative_to(pool).as_posix() for path in pool.rglob("*.png")]
    return [name for name in sorted(names, key=lambda name: order_key(seed, name)) if name not in without]


def test_the_first_in_the_order_of_the_seed(study: Study, pool: Path, run: Run) -> None:
    (pool / "notes.txt").write_text("no image")
    draw(pool / ".hidden" / "a.png")
    result = run("negatives", study.folder, "wheel", "--from", pool, "--number", 6, "--seed", 3, "--criteria", CRITERIA,
                 "--by", "Ada", "--quiet")  # fmt: skip
    assert "6 negatives drawn" in result.stdout
    (pool / ".hidden" / "a.png").unlink()
    assert drawn(study) == expected(pool, 3)[:6]
    (one,) = study.about()["samplings"]
    assert (one["pool"], one["kind"], one["seed"], one["number"]) == (str(pool), "folder", 3, 6)
    assert one["images"] == 30
    row = study.rows()[0]
    assert (row["verdict"], row["criteria"], row["source"], row["query"]) == ("", CRITERIA, "pool", "sampling 1")
    assert row["added_by"] == "Ada"
    assert files(study) == {row["path"] for row in study.rows()}


def test_seeds_differ_and_the_same_command_again_draws_nothing(study: Study, pool: Path) -> None:
    assert expected(pool, 0)[:6] != expected(pool, 1)[:6]
    assert len(negatives(study, "wheel", pool, number=6, criteria=CRITERIA).added) == 6
    before = study.manifest.read_bytes()
    assert negatives(study, "wheel", pool, number=6).added == []
    assert study.manifest.read_bytes() == before
    assert len(negatives(study, "wheel", pool, number=8).added) == 2
    assert drawn(study) == expected(pool, 0)[:8]


def test_rejected_ones_are_replaced_by_the_next(study: Study, pool: Path, run: Run) -> None:
    negatives(study, "wheel", pool, number=6, criteria=CRITERIA)
    order = expected(pool, 0)
    reject(study, order[1])
    reject(study, order[4])
    reject(study, order[2], "unsure")
    assert "2 negatives drawn" in run("negatives", study.folder, "wheel", "--quiet").stdout
    assert drawn(study) == expected(pool, 0, (order[1], order[4]))[:6]
    reject(study, order[6])
    assert len(resample(study, "wheel").added) == 1
    assert sorted(drawn(study)) == sorted(expected(pool, 0, (order[1], order[4], order[6]))[:6])
    assert len(drawn(study, used=False)) == 9


def test_the_sample_is_a_function_of_seed_and_verdicts_alone(pool: Path, tmp_path: Path) -> None:
    order, samples = expected(pool, 5), []
    histories = {
        "at once": [(1, "rejected"), (3, "rejected"), (None, "")],
        "one by one": [(3, "rejected"), (None, ""), (1, "rejected"), (None, "")],
        "with one taken back": [(0, "rejected"), (1, "rejected"), (3, "rejected"), (None, ""), (0, "accepted")],
    }
    for name, history in histories.items():
        study = create(tmp_path / name, ["wheel"])
        negatives(study, "wheel", pool, number=5, seed=5, criteria=CRITERIA)
        for at, verdict in history:
            if at is None:
                resample(study, "wheel")
            else:
                reject(study, order[at], verdict)
        samples.append(sorted(drawn(study)))
    assert samples == [sorted(expected(pool, 5, (order[1], order[3]))[:5])] * 3


def test_positives_are_passed_over_by_bytes_pixels_and_file(study: Study, pool: Path, tmp_path: Path) -> None:
    order = expected(pool, 0)
    copy, other = tmp_path / "copy.png", tmp_path / "pixels.bmp"
    copy.write_bytes((pool / order[0]).read_bytes())
    from PIL import Image

    Image.open(pool / order[1]).save(other)
    origins = [copy, other, pool / order[2]]
    assert {one.state for one in collect(study, "wheel", [Item(str(o), {"reason": "r"}) for o in origins])} == {"added"}
    draw(pool / order[2], (1, 2, 3))  # the file of a positive, with other bytes by now
    found = negatives(study, "wheel", pool, number=4, criteria=CRITERIA)
    assert drawn(study) == order[3:7]
    assert len([note for note in found.notes if "passed over" in note]) == 2


def test_what_was_drawn_before_is_not_drawn_again(study: Study, pool: Path) -> None:
    negatives(study, "wheel", pool, number=6, criteria=CRITERIA)
    negatives(study, "wheel", pool, number=6, seed=1)
    assert len(set(drawn(study))) == len(drawn(study)) == 12
    assert len(negatives(study, "fur", pool, number=6, criteria="no fur").added) == 6
    assert len(files(study)) == 12


def test_unreadable_pictures_are_passed_over_and_recorded(study: Study, pool: Path) -> None:
    order = expected(pool, 0)
    (pool / order[0]).write_bytes(b"no picture")
    found = negatives(study, "wheel", pool, number=4, criteria=CRITERIA)
    assert drawn(study) == order[1:5]
    assert len(found.unreadable) == 1
    assert study.about()["samplings"][0]["passed_over"] == [{"entry": order[0], "reason": found.unreadable[0]}]


def test_a_pool_that_is_too_small_or_gone_or_another_says_so(
    study: Study, pool: Path, run: Run, tmp_path: Path
) -> None:
    result = run("negatives", study.folder, "wheel", "--from", pool, "--number", 40, "--criteria", CRITERIA, "--json",
                 "--quiet")  # fmt: skip
    assert json.loads(result.stdout)["missing"] == 10
    assert len(drawn(study)) == 30
    draw(pool / "new.png", (7, 77, 7), (20, 90))
    again = run("negatives", study.folder, "wheel")
    assert "had 30 pictures and now has 31" in again.stderr
    pool.rename(tmp_path / "away")
    assert "there is no such folder" in run("negatives", study.folder, "wheel", code=1).stderr


def test_usage(study: Study, pool: Path, run: Run) -> None:
    assert "no criteria" in run("negatives", study.folder, "wheel", "--from", pool, code=1).stderr
    assert study.about()["samplings"] == []
    assert "need --from" in run("negatives", study.folder, "wheel", "--number", 3, code=2).stderr
    assert "say from where" in run("negatives", study.folder, "wheel", code=1).stderr


# other pools


def test_a_csv_as_pool_with_positives_of_its_own(study: Study, pool: Path) -> None:
    order = expected(pool, 0)
    with (pool / "pool.csv").open("w", newline="") as file:
        lines = [[name, "wheel" if at == 0 else "fur", "positive"] for at, name in enumerate(order)]
        csv.writer(file).writerows([["path", "concept", "label"], *reversed(lines)])
    negatives(study, "wheel", pool / "pool.csv", number=4, criteria=CRITERIA)
    assert drawn(study) == order[1:5]


def test_a_store_of_activations_as_pool(study: Study, acts: Path, pictures: Path) -> None:
    negatives(study, "wheel", acts, number=4, criteria=CRITERIA)
    names = [f"t-shirt-negative/{at}.jpg" for at in range(4)] + [f"t-shirt-positive/{at}.png" for at in range(3)]
    assert drawn(study) == sorted(names, key=lambda name: order_key(0, name))[:4]
    assert dict(open_pool(acts, "t-shirt").entries())["t-shirt-positive/0.png"]
    assert not dict(open_pool(acts, "t-shirt").entries())["t-shirt-negative/0.jpg"]


def test_another_study_as_pool_and_a_loop_of_links(study: Study, pool: Path, tmp_path: Path) -> None:
    (pool / "loop").symlink_to(pool, target_is_directory=True)
    other = create(tmp_path / "other", ["wheel"])
    negatives(other, "wheel", pool, number=5, criteria=CRITERIA)
    assert other.about()["samplings"][0]["images"] == 30
    negatives(study, "wheel", other.folder, number=5, criteria=CRITERIA)
    assert {row["sha256"] for row in study.rows()} == {row["sha256"] for row in other.rows()}


# a million


def _names(number: int, step: int = 1) -> Iterator[tuple[str, bool]]:
    return ((f"n{at % 1000:08}/image_{at:09}.JPEG", False) for at in range(number)[::step])


def test_a_million_names_in_little_time_and_flat_memory() -> None:
    peaks = []
    for number in (10_000, 1_000_000):
        if number > 10_000:
            start = time.perf_counter()
            order = first_in_order(_names(number), seed=0, number=100)
            took = time.perf_counter() - start
        tracemalloc.start()
        first_in_order(_names(number if number == 10_000 else 200_000), seed=0, number=100)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert took < 10
    assert order.images == 1_000_000
    assert peaks[1] < 1.5 * peaks[0] < 1_000_000
    assert order == first_in_order(_names(1_000_000, -1), seed=0, number=100)


def test_a_manifest_of_a_million_names_to_the_end(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "pool.csv").open("w") as file:
        file.write("path\n")
        file.writelines(f"{name}\n" for name, _ in _names(1_000_000))

    def fake(file: str) -> bytes:
        number = int(file[-14:-5])
        return draw(tmp_path / "fake.png", (number % 256, number // 256 % 256, number // 65536)).read_bytes()

    monkeypatch.setattr(sampling, "fetch", fake)
    start = time.perf_counter()
    found = negatives(study, "wheel", tmp_path / "pool.csv", number=20, criteria=CRITERIA)
    assert time.perf_counter() - start < 10
    assert len(found.added) == 20
    assert drawn(study) == first_in_order(_names(1_000_000), seed=0, number=20).first


def test_a_pool_that_is_not_there_is_given_up(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MAX_UNREADABLE", 20)
    (tmp_path / "pool.csv").write_text("path\n" + "".join(f"{at}.png\n" for at in range(200)))
    with pytest.raises(StudyError, match="20 pictures can't be read"):
        negatives(study, "wheel", tmp_path / "pool.csv", criteria=CRITERIA)
