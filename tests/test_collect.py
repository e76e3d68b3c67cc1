"""Collecting from files and from a server that misbehaves in every way."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError

import pytest
from click.testing import Result
from PIL import Image

from semprobe.collecting import Item, collect
from semprobe.errors import StudyError
from semprobe.fetching import LIMITS, Limits, _opener, fetch
from semprobe.study import Study, create
from tests.conftest import draw

Run = Callable[..., Result]


def picture(colour: int = 0, form: str = "PNG", size: tuple[int, int] = (40, 30), **save: object) -> bytes:
    """A gradient across, or down if the colour is odd: two looks."""
    image = Image.linear_gradient("L").rotate(90 * (colour % 2)).resize(size)
    file = io.BytesIO()
    Image.merge("RGB", [image, image, Image.new("L", size, colour)]).save(file, form, **save)
    return file.getvalue()


class _Server(BaseHTTPRequestHandler):
    """Every path a case."""

    def do_GET(self) -> None:
        try:
            getattr(self, f"on_{self.path.strip('/').partition('?')[0].partition('/')[0]}")()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self, code: int = 200, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def on_good(self) -> None:
        self.answer(body=picture(int(self.path.partition("?")[0].rpartition("/")[2] or 0)), Content_Type="image/png")

    def on_binary(self) -> None:
        self.answer(body=picture(3), Content_Type="application/octet-stream")

    def on_hops(self) -> None:
        left = int(self.path.rpartition("/")[2])
        self.answer(302, Location=f"/hops/{left - 1}" if left > 1 else "/good/2")

    def on_missing(self) -> None:
        self.answer(404, b"<html>nothing here</html>", Content_Type="text/html")

    def on_loop(self) -> None:
        self.answer(301, Location="/loop")

    def on_nowhere(self) -> None:
        self.answer(302)

    def on_tofile(self) -> None:
        self.answer(302, Location="file:///etc/passwd")

    def on_toftp(self) -> None:
        self.answer(307, Location="ftp://127.0.0.1/a.png")

    def on_uri(self) -> None:
        self.answer(302, URI=f"http://{self.headers['Host']}/good/3")

    def on_slow(self) -> None:
        time.sleep(1.5)

    def on_drip(self) -> None:
        self.answer(Content_Type="image/png")
        for _ in range(30):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.1)

    def on_headers(self) -> None:
        self.wfile.write(b"HTTP/1.0 200 OK\r\n")
        for at in range(30):
            self.wfile.write(f"X-{at}: x\r\n".encode())
            self.wfile.flush()
            time.sleep(0.1)

    def on_huge(self) -> None:
        self.answer(Content_Type="image/png", Content_Length="500000000")
        self._endless()

    def on_endless(self) -> None:
        self.answer(Content_Type="image/png")
        self._endless()

    def _endless(self) -> None:
        for _ in range(5000):
            self.wfile.write(b"x" * 100_000)

    def on_page(self) -> None:
        self.answer(body=b"<html>no picture</html>", Content_Type="text/html; charset=utf-8")

    def on_mistyped(self) -> None:
        self.answer(body=picture(), Content_Type="text/plain")

    def on_disguised(self) -> None:
        self.answer(body=b"<html>no picture</html>", Content_Type="image/png")

    def on_cut(self) -> None:
        self.answer(body=picture()[:100], Content_Type="image/png", Content_Length="5000")

    def on_half(self) -> None:
        self.answer(body=picture(4, "JPEG", (400, 300), quality=95)[:3000], Content_Type="image/jpeg")

    def on_empty(self) -> None:
        self.answer(Content_Type="image/png")

    def on_garbage(self) -> None:
        self.wfile.write(b"\0\1\2 this is no HTTP\r\n\r\n")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as one:
        one.daemon_threads = True
        one.block_on_close = False
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{one.server_address[1]}"
        one.shutdown()
        thread.join()


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return create(tmp_path / "study", ["wheel"])


def files(study: Study) -> set[str]:
    """Everything in images/, hidden or not."""
    return {f"images/{path.name}" for path in study.images.iterdir()}


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("missing", "the server answers 404 Not Found"),
        ("loop", "more often than the limit of 5 redirects"),
        ("hops/6", "more often than the limit of 5 redirects"),
        ("nowhere", "the server answers 302"),
        ("tofile", "leads on to file:///etc/passwd: scheme 'file'; only http and https"),
        ("toftp", "leads on to ftp://127.0.0.1/a.png: scheme 'ftp'; only http and https"),
        ("uri", "the server answers 302"),
        ("slow", "took longer than the limit of 0.5 s"),
        ("drip", "took longer than the limit of 0.5 s"),
        ("headers", "took longer than the limit of 0.5 s"),
        ("huge", "larger than the limit of 2 MB"),
        ("endless", "larger than the limit of 2 MB"),
        ("page", "says that it is 'text/html', expected an image"),
        ("mistyped", "says that it is 'text/plain', expected an image"),
        ("disguised", "no image that Pillow knows"),
        ("cut", "broke off after 100 of 5,000 bytes"),
        ("half", "can't be read as an image"),
        ("empty", "the file is empty"),
        ("garbage", "can't be fetched"),
    ],
)
def test_each_failure_is_a_line_and_leaves_no_half_file(
    server: str, study: Study, run: Run, path: str, said: str
) -> None:
    start = time.perf_counter()
    result = run(
        "collect", study.folder, "wheel", f"{server}/good/1", f"{server}/{path}", f"{server}/good/2", "--reason", "r",
        "--max-seconds", 0.5, "--max-mb", 2, "--quiet", code=1,
    )  # fmt: skip
    assert time.perf_counter() - start < 3
    *lines, last = result.stderr.splitlines()
    failures = [line for line in lines if line.startswith("not collected")]
    assert len(failures) == 1, result.stderr
    assert re.search(said, failures[0]), failures[0]
    assert f"{server}/{path}" in failures[0]
    assert last == "Error: 1 of 3 pictures could not be collected; the others were"
    assert "2 added, 0 skipped, 1 failed" in result.stdout
    assert files(study) == {row["path"] for row in study.rows()}
    assert len(files(study)) == 2


@pytest.mark.parametrize("path", ["hops/5", "binary", "good/7?q=a b ü"])
def test_redirects_binary_types_and_odd_addresses_within_limits(server: str, path: str) -> None:
    assert fetch(f"{server}/{path}").startswith(b"\x89PNG")


@pytest.mark.parametrize("address", ["ftp://127.0.0.1:9/a.png", "file:///etc/hostname", "data:image/png,x"])
def test_nothing_but_http_can_be_opened_at_all(address: str) -> None:
    with pytest.raises(URLError, match="unknown url type"):
        _opener(LIMITS).open(address)


def test_no_server_at_all(study: Study) -> None:
    (found,) = collect(study, "wheel", [Item("http://127.0.0.1:9/a.png", {"reason": "r"})])
    assert found.state == "failed"
    assert "Connection refused" in found.messages[0]


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        ("file:///etc/passwd", "scheme 'file'"),
        ("ftp://example.org/a.png", "scheme 'ftp'"),
        ("javascript://alert(1)", "scheme 'javascript'"),
        ("https://ada:secret@example.org/a.png", "would be recorded"),
        ("http://", "only http and https"),
        ("http://[bad/a.png", "http://\\[bad/a.png: can't be fetched"),
        ("data:image/png;base64,AAAA", "No such file"),
        ("nothing.png", "nothing.png: can't be read: No such file"),
        (".", "is a folder; give the files in it"),
        (os.devnull, "no ordinary file"),
    ],
)
def test_what_is_never_fetched(origin: str, said: str) -> None:
    with pytest.raises(StudyError, match=said) as caught:
        fetch(origin)
    assert "secret" not in str(caught.value)


def test_a_large_file_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x" * 1001)
    with pytest.raises(StudyError, match=r"a\.png: is larger than the limit"):
        fetch(str(tmp_path / "a.png"), Limits(bytes=1000))


def test_everything_is_recorded(server: str, study: Study, run: Run, tmp_path: Path) -> None:
    file = draw(tmp_path / "photo.webp", lossless=True)
    run("collect", study.folder, "wheel", file, f"{server}/good/5", "--reason", "round", "--query", "cart", "--licence",
        "CC0", "--by", "Ada", "--quiet")  # fmt: skip
    first, second = study.rows()
    assert first["url"] == str(file)
    assert (first["source"], second["source"]) == ("", "web")
    assert second["url"] == f"{server}/good/5"
    assert {(row["reason"], row["query"], row["licence"], row["added_by"], row["verdict"]) for row in study.rows()} == {
        ("round", "cart", "CC0", "Ada", "")
    }
    assert first["path"] == f"images/{first['sha256']}.webp"
    assert study.image(first["path"]).read_bytes() == file.read_bytes()
    assert all(row["added_at"].endswith("+00:00") for row in study.rows())


def test_the_suffix_is_that_of_the_format(study: Study, tmp_path: Path) -> None:
    (tmp_path / "lies.png").write_bytes(picture(form="JPEG"))
    (found,) = collect(study, "wheel", [Item(str(tmp_path / "lies.png"), {"reason": "r"})])
    assert found.path.endswith(".jpg")


def test_a_hostile_file_name_is_only_a_cell(study: Study, run: Run, tmp_path: Path) -> None:
    name = "=cmd|\"<b>\n\u202e;,'.png"
    (tmp_path / name).write_bytes(picture())
    run("collect", study.folder, "wheel", tmp_path / name, "--reason", "=1+1", "--quiet")
    (row,) = study.rows()
    assert row["url"] == str(tmp_path / name)
    assert files(study) == {row["path"]}


def test_a_hostile_name_that_fails_is_one_line(study: Study, run: Run, tmp_path: Path) -> None:
    name = "a\nnot collected: b\u202e\x1b[2J.png"
    (tmp_path / name).write_bytes(b"no picture")
    lines = run("collect", study.folder, "wheel", tmp_path / name, tmp_path / f"{name}2", "--reason", "r", "--quiet",
                code=1).stderr.splitlines()  # fmt: skip
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)


# duplicates


def _one(study: Study, path: Path, data: bytes, label: str = "positive") -> tuple[str, list[str]]:
    path.write_bytes(data)
    (found,) = collect(study, "wheel", [Item(str(path), {"reason": "r"})], label=label)
    assert files(study) == {row["path"] for row in study.rows()}
    return found.state, found.messages


def test_duplicates_are_told_with_both_origins(study: Study, tmp_path: Path) -> None:
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    assert _one(study, first, picture(6)) == ("added", [])
    cases = {
        "equal bytes": ("skipped", picture(6)),
        "the same pixels": ("added", picture(6, "BMP")),
        "looks like": ("added", picture(6, "JPEG", (80, 61), quality=60)),
    }
    for said, (state, data) in cases.items():
        found, messages = _one(study, second, data)
        assert found == state, said
        assert any(said in one and str(first) in one and str(second) in one for one in messages), (said, messages)
    assert _one(study, second, picture(7)) == ("added", [])


@pytest.mark.parametrize("form", ["PNG", "BMP"])
def test_one_picture_on_both_sides_is_an_error(study: Study, tmp_path: Path, form: str) -> None:
    _one(study, tmp_path / "first.png", picture(6))
    state, (message,) = _one(study, tmp_path / "second.png", picture(6, form), label="negative")
    assert state == "failed"
    assert "both sides of wheel" in message
    assert str(tmp_path / "first.png") in message
    assert len(study.rows()) == 1


def test_a_look_alike_on_the_other_side_is_kept_and_told(study: Study, tmp_path: Path) -> None:
    _one(study, tmp_path / "first.png", picture(6))
    state, (message,) = _one(study, tmp_path / "second.png", picture(6, "JPEG"), label="negative")
    assert state == "added"
    assert "(negative) looks like" in message


def test_one_picture_under_two_concepts_is_one_file(study: Study, tmp_path: Path) -> None:
    study.add_concepts(["spoke"])
    _one(study, tmp_path / "first.png", picture(6))
    (found,) = collect(study, "spoke", [Item(str(tmp_path / "first.png"), {"reason": "r"})], label="negative")
    assert (found.state, found.messages) == ("added", [])
    assert len(study.rows()) == 2
    assert len(files(study)) == 1


def test_collecting_again_changes_nothing(study: Study, tmp_path: Path) -> None:
    _one(study, tmp_path / "first.png", picture(6))
    before = study.manifest.read_bytes()
    assert _one(study, tmp_path / "first.png", picture(6))[0] == "skipped"
    assert study.manifest.read_bytes() == before


def test_what_a_killed_run_left_is_swept_away(study: Study, tmp_path: Path) -> None:
    for folder in (study.folder, study.images):
        (folder / ".0123.part").write_bytes(b"half")
    assert _one(study, tmp_path / "first.png", picture(6))[0] == "added"
    assert not (study.folder / ".0123.part").exists()


# from a CSV


def test_from_csv(study: Study, run: Run, tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.png")
    draw(tmp_path / "in" / "b.png", (9, 99, 9))
    with (tmp_path / "in" / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["url", "reason", "source"], ["a.png", "'=1", ""], ["b.png", "", "own"]])
    bare = run("collect", study.folder, "wheel", "--from-csv", tmp_path / "in" / "list.csv", code=2)
    assert "--reason" in bare.stderr
    assert study.rows() == []
    result = run("collect", study.folder, "wheel", "--from-csv", tmp_path / "in" / "list.csv", "--reason", "others",
                 "--source", "mine", "--json", "--quiet")  # fmt: skip
    assert json.loads(result.stdout)["summary"] == {"added": 2, "skipped": 0, "failed": 0}
    assert [(row["reason"], row["source"]) for row in study.rows()] == [("=1", "mine"), ("others", "own")]


@pytest.mark.parametrize(("text", "said"), [("path\na.png\n", "expected url"), ("url\n\nx,y\n", "number of cells"),
                                            ("url,reason\n,r\n", "line 2: the url is empty")])  # fmt: skip
def test_csv_files_that_can_not_be(study: Study, run: Run, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    result = run("collect", study.folder, "wheel", "--from-csv", tmp_path / "list.csv", "--reason", "r", code=1)
    assert said in result.stderr


def test_usage(study: Study, run: Run, tmp_path: Path) -> None:
    assert "nothing to collect" in run("collect", study.folder, "wheel", "--reason", "r", code=2).stderr
    assert "has no concept fur, only wheel" in run("collect", study.folder, "fur", "a", "--reason", "r", code=1).stderr
    assert "is no study" in run("collect", tmp_path, "wheel", "a", "--reason", "r", code=1).stderr
