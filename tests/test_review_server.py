"""The review page as a program sees it: what is refused, what is served, what is written."""

from __future__ import annotations

import http.client
import io
import json
import re
import socket
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from click.testing import Result
from PIL import Image

import semprobe
from semprobe import desks
from semprobe.cli import review
from semprobe.review_page import Page
from semprobe.review_server import MAX_BODY, make_app
from semprobe.reviews import Reviews
from semprobe.sampling import negatives
from semprobe.study import Study, create
from tests.conftest import CONCEPTS, HOSTILE, answer, best, draw

Run = Callable[..., Result]
TOKEN = "token-of-the-test"
OPTIONS: dict[str, Any] = {"sae_path": None, "normalize": "none", "workers": None}


class Site:
    """A page that is being served, and requests to it."""

    def __init__(self, study: Study) -> None:
        self.study, self.reviews = study, Reviews(study.reviews)
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        page = Page(study, self.reviews, review._scores(study, **OPTIONS), "Ada")
        app = make_app(page, token=TOKEN, hosts=(self.host,))
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
        self.thread = threading.Thread(target=self.server.run, args=([listening],))
        self.thread.start()

    @property
    def scored(self) -> str:
        """Of which scores the page is now."""
        page = self.ask(f"latents/t-shirt/{best(self.study, 't-shirt')}")[1].decode()
        return re.findall('data-scored="([0-9a-f]{16})"', page)[0]

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        self.reviews.close()

    def ask(self, path: str, value: Any = None, *, start: str = f"/{TOKEN}/", **headers: str) -> tuple[int, bytes, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        given = {"Host": self.host, **{name.replace("_", "-"): text for name, text in headers.items()}}
        body = None
        if value is not None:
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            given = {"Origin": f"http://{self.host}", "Content-Type": "application/json"} | given
        connection.request(
            "GET" if value is None else "POST", start + path, body, {k: v for k, v in given.items() if v}
        )
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, data, answer.headers

    def json(self, path: str, value: Any = None, status: int = 200) -> Any:
        if value is not None and path.startswith("answers/"):
            value = {"scored": self.scored, **value}
        found = self.ask(f"api/{path}", value)
        assert found[0] == status, found
        return json.loads(found[1])


def serve(study: Study) -> Iterator[Site]:
    site = Site(study)
    try:
        yield site
    finally:
        site.stop()


@pytest.fixture
def site(made: Study) -> Iterator[Site]:
    yield from serve(made)


@pytest.fixture
def drawn(tmp_path: Path) -> Study:
    """A study with three negatives drawn from a pool of five, and no scores."""
    for at in range(5):
        draw(tmp_path / "pool" / f"{at}.png", (40 * at, 90, 20))
    study = create(tmp_path / "study", ["wheel"])
    negatives(study, "wheel", tmp_path / "pool", number=3, criteria="no wheel", by="Ada")
    return study


@pytest.fixture
def pool(drawn: Study) -> Iterator[Site]:
    yield from serve(drawn)


def quoted(concept: str) -> str:
    return urllib.parse.quote(concept)


# what is refused


@pytest.mark.parametrize(
    ("start", "headers"),
    [
        ("/", {}),
        ("/wrong/", {}),
        (f"/{TOKEN[:-1]}/", {}),
        (f"//{TOKEN}/", {}),
        (f"/{TOKEN}/", {"Host": "evil.example"}),
        (f"/{TOKEN}/", {"Host": "127.0.0.1"}),
        (f"/{TOKEN}/", {"Host": "127.0.0.1:1"}),
        (f"/{TOKEN}/", {"Origin": "http://evil.example"}),
        (f"/{TOKEN}/", {"Origin": "null"}),
    ],
)
def test_strangers_are_refused(site: Site, start: str, headers: dict[str, str]) -> None:
    for path in ("", "static/review.js", "api/verdict"):
        status, data, _ = site.ask(path, start=start, **headers)
        assert status == 403
        assert data.startswith(b"refused: ")
    assert site.ask("api/verdict", {}, start=start, **headers)[0] == 403


def test_a_change_needs_the_pages_origin_and_json(site: Site) -> None:
    value = {"by": "Ada", "field": "caveats", "value": "x", "seen": 0, "scored": site.scored}
    path = f"api/answers/t-shirt/{best(site.study, 't-shirt')}"
    assert site.ask(path, value, Origin="")[0] == 403
    assert site.ask(path, value, Content_Type="text/plain")[0] == 415
    assert site.ask(path, b"x" * (MAX_BODY + 1))[0] == 413
    assert site.ask(path, b"[" * 100_000)[0] == 400
    assert site.ask(path, [1])[0] == 400
    assert site.reviews.history() == []
    assert site.ask(path, value)[0] == 200


@pytest.mark.parametrize(
    "name",
    ["../manifest.csv", "..%2fstudy.json", "%2e%2e%2freview.sqlite", "/etc/passwd", "%2fetc%2fpasswd", "study.json",
     "..", ".", "x" * 300, "a%00b", "images%2f..%2f..%2fsecret.png"],
)  # fmt: skip
def test_no_other_file_is_read(site: Site, name: str) -> None:
    Path(site.study.folder.parent / "secret.png").write_bytes(draw(site.study.folder.parent / "s.png").read_bytes())
    for path in (f"picture/{name}", f"static/{name}", f"patch/t-shirt/3/{name}/0/0"):
        status, data, _ = site.ask(path)
        assert status in (400, 403, 404, 409), (path, status, data[:99])
        assert b"\xff\xd8" not in data
        assert b"semprobe_study" not in data


def test_a_link_out_of_the_study_is_not_followed(site: Site, tmp_path: Path) -> None:
    name = Path(site.study.used()[0]["path"]).name
    (site.study.images / name).replace(tmp_path / "elsewhere.png")  # the very bytes, so that the hash agrees
    (site.study.images / name).symlink_to(tmp_path / "elsewhere.png")
    status, data, _ = site.ask(f"picture/{name}")
    assert (status, b"is no picture of this study" in data) == (409, True)


@pytest.mark.parametrize(
    "path", ["", "negatives/t-shirt", "latents/t-shirt/3", "static/review.js", "api/negatives/t-shirt"]
)
def test_headers_keep_scripts_and_frames_out(site: Site, path: str) -> None:
    status, data, headers = site.ask(path)
    assert status == 200, data
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"


def test_pages_load_nothing_from_elsewhere(site: Site) -> None:
    for path in ("", "negatives/t-shirt", "latents/t-shirt/3", "latents/t-shirt/blind-1"):
        text = site.ask(path)[1].decode()
        assert not re.findall(r"(?:src|href|action)=\"(?:[a-z]+:|//)", text)
        assert " style=" not in text
        assert not re.search(r"\son\w+=", text)


# what is served


def test_the_overview_tells_what_was_done(site: Site) -> None:
    latent = best(site.study, "t-shirt")
    answer(site.study, "Ada", "t-shirt", latent, verdict="validated")
    answer(site.study, "Ben", "t-shirt", latent, verdict="rejected")
    text = site.ask("")[1].decode()
    assert "6 used: 0 accepted, 0 unsure, 6 not looked at. 1 rejected" in text
    assert text.count('<td class="n">2</td></tr>') == 1, "how many gave a verdict, and not which"
    assert "disputed" not in text
    assert "Ada and Ben, open: 1 latent judged by both; Cohen’s kappa 0.00" in text
    for concept in CONCEPTS:
        assert f'href="latents/{quoted(concept)}/{best(site.study, concept)}"' in text


def test_galleries_are_the_outcomes_in_order(site: Site) -> None:
    latent = best(site.study, "t-shirt")
    found = site.json(f"latents/t-shirt/{latent}")
    scores = semprobe.open_store(site.study.scores).load()
    became = semprobe.outcomes(scores, "t-shirt", latent)
    shown = {one["kind"]: one for one in found["galleries"]}
    assert list(shown) == ["tp", "fp", "fn", "tn"]
    for kind, one in shown.items():
        assert {picture["image"] for picture in one["pictures"]} == set(became["image"].values[became.values == kind])
        sums = [picture["patch_sum"] for picture in one["pictures"]]
        assert sums == sorted(sums, reverse=True)
        for picture in one["pictures"]:
            assert np.sum(picture["heat"]) == pytest.approx(picture["patch_sum"], rel=1e-3, abs=1e-3)
            assert max(map(max, picture["heat"])) <= found["largest_code"] * 1.001
            left, top, right, bottom = picture["crop"]
            assert left < right
            assert top < bottom
    assert found["numbers"]["f1"] == float(scores["f1"].sel(concept="t-shirt")[latent])
    assert found["beside"]["floor_f1"] == float(scores["floor_f1"].sel(concept="t-shirt"))
    values = [one["value"] for one in found["patches"]]
    assert values == sorted(values, reverse=True)


def test_pictures_are_the_studys_upright_and_small(site: Site) -> None:
    row = site.study.used()[0]
    status, data, headers = site.ask(f"picture/{Path(row['path']).name}?edge=96")
    assert (status, headers["content-type"]) == (200, "image/jpeg")
    assert max(Image.open(io.BytesIO(data)).size) <= 96
    assert site.ask(f"picture/{Path(row['path']).name}?edge=5000")[0] == 400
    draw(site.study.folder / row["path"], (1, 2, 3))
    assert site.ask(f"picture/{Path(row['path']).name}?edge=360")[0] == 409


def test_patches_and_the_null_are_pictures(site: Site) -> None:
    latent = best(site.study, "t-shirt")
    one = site.json(f"latents/t-shirt/{latent}")["patches"][0]
    name = Path(one["image"]).name
    status, data, _ = site.ask(f"patch/t-shirt/{latent}/{name}/{one['row']}/{one['column']}")
    assert status == 200
    assert max(Image.open(io.BytesIO(data)).size) == 240
    assert site.ask(f"patch/t-shirt/{latent}/{name}/99/0")[0] == 409
    assert site.ask("null/t-shirt")[1].startswith(b"<svg ")
    assert site.ask("null/boat")[0] == 404


@pytest.mark.parametrize("which", ["-1", "99999", "x", "blind-0", "blind-99", "blind-", "1e3", "٣"])
def test_there_is_no_such_latent(site: Site, which: str) -> None:
    assert "no latent" in site.json(f"latents/t-shirt/{quoted(which)}", status=409)["error"]
    assert site.ask(f"latents/t-shirt/{quoted(which)}")[0] == 409


def test_without_scores_negatives_can_be_judged(pool: Site) -> None:
    text = pool.ask("")[1].decode()
    assert "semprobe score" in text
    assert "Verify negatives" in text
    assert "semprobe score" in pool.json("latents/wheel/3", status=409)["error"]


def test_scores_that_were_made_anew_are_read_anew(site: Site, run: Run) -> None:
    latent = best(site.study, "t-shirt")
    before, picture = site.json(f"latents/t-shirt/{latent}"), site.ask("null/t-shirt")[1]
    run("score", site.study.folder, "--overwrite", "--quiet", "--permutations", 99, "--threshold", 1e9)
    after = site.json(f"latents/t-shirt/{latent}")
    assert [one["beside"]["null_max_f1"]["permutations"] for one in (before, after)] == [200, 99]
    assert sum(one["total"] for one in after["galleries"] if one["kind"] in ("tp", "fp")) == 0
    assert site.ask("null/t-shirt")[1] != picture


# verdicts on negatives


def judged(pool: Site, row: dict[str, str], said: str, status: int = 200, **more: Any) -> Any:
    value = {"concept": "wheel", "path": row["path"], "was": row["verdict"], "by": "Ada", "at": "", "verdict": said}
    return pool.json("verdict", value | more, status)


def test_a_rejected_negative_is_replaced_and_can_come_back(pool: Site) -> None:
    first = pool.json("negatives/wheel")
    assert first["criteria"] == "no wheel"
    row = first["rows"][0]
    after = judged(pool, row, "rejected")
    assert (len(after["rows"]), after["missing"]) == (3, 1)
    after = pool.json("replace", {"concept": "wheel"})
    assert (len(after["rows"]), after["missing"]) == (4, 0)
    assert all("looks like" in one for one in after["notes"])
    assert [one["path"] for one in after["rows"]][:3] == [one["path"] for one in first["rows"]]
    assert sum(one["used"] for one in after["rows"]) == 3
    again = judged(pool, {**row, "verdict": "rejected"}, "")
    assert [one["used"] for one in again["rows"]] == [True, True, True, False]
    found = next(one for one in pool.study.rows() if one["path"] == row["path"])
    assert (found["verdict"], found["verified_by"]) == ("", "")
    judged(pool, row, "accepted")
    found = next(one for one in pool.study.rows() if one["path"] == row["path"])
    assert (found["verdict"], found["verified_by"], found["criteria"]) == ("accepted", "Ada", "no wheel")


def test_what_somebody_else_said_meanwhile_is_not_overwritten(pool: Site) -> None:
    row = pool.json("negatives/wheel")["rows"][0]
    judged(pool, row, "rejected")
    told = judged(pool, row, "accepted", 409, by="Ben")
    assert "Ada made it rejected meanwhile" in told["error"]
    found = next(one for one in pool.study.rows() if one["path"] == row["path"])
    assert (found["verdict"], found["verified_by"]) == ("rejected", "Ada")


def test_an_undone_verdict_has_its_own_name_time_and_criteria_again(pool: Site) -> None:
    pool.study.set_criteria("wheel", "no wheel\u00ad\u200f")
    row = pool.json("negatives/wheel")["rows"][0]
    before = judged(pool, row, "accepted", by="Ben")["rows"][0]
    assert before["criteria"] == "no wheel\u00ad\u200f", "as it is, since it comes back"
    pool.study.set_criteria("wheel", "no wheel, not even partly")
    assert judged(pool, before, "rejected")["rows"][0]["criteria"] == "no wheel, not even partly"
    came = {"by": "Ben", "at": before["verified_at"], "criteria": before["criteria"]}
    assert judged(pool, {**row, "verdict": "rejected"}, "accepted", **came)["rows"][0] == before
    judged(pool, before, "rejected")
    by_hand = {**came, "at": "2026-11-24"}  # as a person writes it into the manifest
    assert judged(pool, {**row, "verdict": "rejected"}, "accepted", **by_hand)["rows"][0]["verified_at"] == "2026-11-24"


def test_positives_are_not_judged(pool: Site) -> None:
    table = pool.study.manifest
    table.write_text(table.read_text().replace('"negative"', '"positive"'))
    body = {"concept": "wheel", "path": pool.study.rows()[0]["path"], "verdict": "rejected", "was": "", "by": "Ada"}
    assert "no negative row" in pool.json("verdict", body, 409)["error"]


def test_a_full_disk_is_told_and_tried_again(pool: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device", "manifest.csv")

    row = pool.json("negatives/wheel")["rows"][0]
    monkeypatch.setattr("semprobe.study.write_atomically", full)
    assert judged(pool, row, "accepted", 503) == {"error": "manifest.csv: No space left on device"}


def test_a_long_history_is_told_in_short(site: Site) -> None:
    path, seen = f"answers/t-shirt/{best(site.study, 't-shirt')}", 0
    for at in range(40):
        change = {"by": "Cay", "field": "caveats", "value": f"{at} " + "x" * 5000, "seen": seen}
        seen = site.json(path, change)["id"]
    told = [one["value"] for one in site.json(f"{path}?by=Cay")["history"]]
    assert [len(one) > 5000 for one in told] == [False] * 20 + [True] * 20
    assert told[0] == "0 " + "x" * 298 + " …"


def test_a_pool_that_is_gone_or_empty_loses_no_verdict(pool: Site) -> None:
    for at, row in enumerate(pool.json("negatives/wheel")["rows"]):
        judged(pool, row, "rejected")
        assert pool.json("replace", {"concept": "wheel"})["missing"] == max(0, at - 1)
    (pool.study.folder.parent / "pool").rename(pool.study.folder.parent / "moved")
    left = next(row for row in pool.json("negatives/wheel")["rows"] if row["used"])
    judged(pool, left, "rejected")
    assert "there is no such folder" in pool.json("replace", {"concept": "wheel"}, 409)["error"]
    assert [row["verdict"] for row in pool.study.rows()].count("rejected") == 4


@pytest.mark.parametrize(
    "change",
    [{"verdict": "maybe"}, {"path": "images/../study.json"}, {"path": 3}, {"concept": "boat"}, {"by": " "},
     {"by": "\u202e"}, {"verdict": None}, {"at": "yesterday"}, {"at": 3}, {"was": "accepted"}],
)  # fmt: skip
def test_verdicts_that_are_none_change_nothing(pool: Site, change: dict[str, Any]) -> None:
    before = pool.study.manifest.read_bytes()
    row = pool.json("negatives/wheel")["rows"][0]
    assert judged(pool, row, "accepted", 409, **change)["error"]
    assert pool.study.manifest.read_bytes() == before


# answers


def test_answers_are_saved_and_others_hidden_until_ones_own(site: Site) -> None:
    path = f"answers/t-shirt/{best(site.study, 't-shirt')}"
    answer(site.study, "Ben", "t-shirt", best(site.study, "t-shirt"), verdict="rejected", caveats="grass")
    saved = site.json(path, {"by": "Ada", "field": "hypothesis", "value": "collars", "seen": 0})
    found = site.json(f"{path}?by=Ada")
    assert found["mine"]["hypothesis"] == "collars"
    assert found["seen"] == {"hypothesis": saved["id"]}
    assert (found["others"], found["hidden"], len(found["history"])) == ([], 1, 1)
    site.json(path, {"by": "Ada", "field": "verdict", "value": "validated", "seen": 0})
    found = site.json(f"{path}?by=Ada")
    assert found["others"][0]["caveats"] == "grass"
    assert found["agreement"][0]["kappa"] == 0
    assert len(found["history"]) == 4
    other = site.json(path, {"by": "Ada", "field": "hypothesis", "value": "sleeves", "seen": 0})
    assert [one["value"] for one in other["others"]] == ["collars"]


def test_pictures_are_picked_from_the_study_only(site: Site) -> None:
    path, image = f"answers/t-shirt/{best(site.study, 't-shirt')}", site.study.used()[0]["path"]
    value = {"by": "Ada", "field": "pictures_for", "seen": 0, "picked": True}
    site.json(path, {**value, "image": image})
    assert site.json(f"{path}?by=Ada")["mine"]["pictures_for"] == [image]
    for wrong in ("images/../study.json", "../../etc/passwd", "images/none.png"):
        site.json(path, {**value, "image": wrong}, status=409)
    site.json(path, {**value, "image": image, "picked": False})
    assert site.json(f"{path}?by=Ada")["mine"]["pictures_for"] == []


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_words_come_back_as_typed_and_steer_no_page(site: Site, text: str) -> None:
    path = f"answers/t-shirt/{best(site.study, 't-shirt')}"
    site.json(path, {"by": "<b>Eve</b>", "field": "evidence_for", "value": text, "seen": 0})
    assert site.json(f"{path}?by={quoted('<b>Eve</b>')}")["mine"]["evidence_for"] == text
    site.json(path, {"by": "<b>Eve</b>", "field": "verdict", "value": "rejected", "seen": 0})
    answer(site.study, "Ben", "t-shirt", best(site.study, "t-shirt"), verdict="rejected")
    assert b"<b>Eve</b>" not in site.ask("")[1]


def test_an_older_text_of_a_window_does_not_overtake(site: Site) -> None:
    """A page that is left sends beside what is on its way, and the server may see them in any order."""
    path, text = "answers/t-shirt/3", {"by": "Ada", "field": "caveats", "seen": 0, "window": "a"}
    first = site.json(path, {**text, "value": "one two", "order": 2})["id"]
    late = site.json(path, {**text, "value": "one", "order": 1})
    assert (late["id"], late["others"]) == (0, [])
    for other in ({"window": "b"}, {"field": "hypothesis"}, {"by": "Ben"}):
        assert site.json(path, {**text, "value": "of another", "order": 1, **other})["id"] > first
    with Reviews(site.study.reviews) as reviews:
        assert "one" not in [one.value for one in reviews.history()]


def test_a_locked_file_is_told_and_nothing_lost(site: Site) -> None:
    import sqlite3

    site.reviews._base.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(site.study.reviews, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    value = {"by": "Ada", "field": "caveats", "value": "x", "seen": 0}
    path = f"answers/t-shirt/{best(site.study, 't-shirt')}"
    assert "locked by another program" in site.json(path, value, status=503)["error"], "503: the page tries again"
    other.execute("ROLLBACK")
    other.close()
    site.json(path, value)


def test_words_for_other_scores_are_refused(site: Site, run: Run) -> None:
    """A blinded place is another latent then, and another SAE's number means nothing."""
    value = {"by": "Ada", "field": "caveats", "value": "x", "seen": 0, "scored": site.scored}
    run("score", site.study.folder, "--overwrite", "--quiet", "--permutations", 200, "--seed", 1)
    for which in ("blind-3", "3"):
        assert "scored anew" in site.json(f"answers/t-shirt/{which}", value, 409)["error"]
    assert site.reviews.history() == []
    site.json("answers/t-shirt/3", value | {"scored": site.scored})


def test_scores_of_other_images_are_told_and_answers_still_saved(site: Site) -> None:
    row = next(row for row in site.study.used() if row["concept"] == "t-shirt")
    path, value = "answers/t-shirt/3", {"by": "Ada", "field": "caveats", "value": "x", "seen": 0}
    assert b"other images than the study uses now" not in site.ask("latents/t-shirt/3")[1]
    site.study.set_verdict(row["path"], "t-shirt", "rejected", "Ada")
    for page in ("", "latents/t-shirt/3"):
        assert b"other images than the study uses now" in site.ask(page)[1]
    site.json(path, value)
    for restarted in serve(site.study):
        assert b"other images than the study uses now" in restarted.ask("latents/t-shirt/3")[1]
        restarted.json(path, value)


@pytest.mark.parametrize("seen", [-1, 10**30, None, "0", True])
def test_what_is_no_number_of_a_change_is_refused(site: Site, seen: Any) -> None:
    value = {"by": "Ada", "field": "caveats", "value": "x", "seen": seen}
    assert site.json("answers/t-shirt/3", value, 409)["error"]
    assert site.reviews.history() == []


def test_without_activations_nothing_is_said_of_where_it_fires(site: Site) -> None:
    import shutil

    latent = best(site.study, "t-shirt")
    there = site.json(f"latents/t-shirt/{latent}")["galleries"]
    shutil.rmtree(site.study.activations)
    shutil.rmtree(site.study.latents)
    for alone in serve(site.study):
        found = alone.json(f"latents/t-shirt/{latent}")
        assert found["largest_code"] is None
        assert [one["total"] for one in found["galleries"]] == [one["total"] for one in there]
        at = desks.blind_latents(semprobe.open_store(site.study.scores).load(), "t-shirt").index(latent) + 1
        blinded = alone.json(f"latents/t-shirt/blind-{at}")["galleries"][0]
        assert blinded["total"] == there[0]["total"] + there[1]["total"]
        assert "without heat" in alone.ask("latents/t-shirt/3")[1].decode()


# blinded


def test_blinded_latents_tell_nothing_until_all_are_judged(site: Site) -> None:
    scores = semprobe.open_store(site.study.scores).load()
    latents = desks.blind_latents(scores, "t-shirt")
    assert latents == desks.blind_latents(scores, "t-shirt")
    assert latents != desks.blind_latents(scores, "t-shirt", seed=1)
    top = {best(site.study, "t-shirt", at) for at in range(5)}
    assert len(set(latents)) == len(latents) == 10
    assert top < set(latents)
    assert (scores["support"].sel(concept="t-shirt").values[latents] > 0).all()
    for at, latent in enumerate(latents, 1):
        page, data = site.ask(f"latents/t-shirt/blind-{at}")[1].decode(), site.json(f"latents/t-shirt/blind-{at}")
        assert set(data) == {"largest_code", "galleries", "patches", "notice"}
        assert [one["kind"] for one in data["galleries"]] == ["largest"]
        assert data["largest_code"] == pytest.approx(1)
        assert not re.search('positive|negative|"f1"', json.dumps(data).lower())
        assert {one["told"] for one in [*data["patches"], *data["galleries"][0]["pictures"]]} == {""}
        assert f"Latent {latent}" not in page
        assert f"latents/t-shirt/{latent}" not in page
    for at in range(1, 11):
        path = f"answers/t-shirt/blind-{at}"
        assert site.json(f"{path}?by=Ada")["unblinded"] is None
        word = "validated" if at == 1 else "rejected"
        site.json(path, {"by": "Ada", "field": "verdict", "value": word, "seen": 0})
    told = site.json("answers/t-shirt/blind-1?by=Ada")["unblinded"]
    assert [row["latent"] for row in told["rows"]] == latents
    first = latents[0] in top
    assert told["validated"] == {"best": [int(first), 5], "random": [int(not first), 5]}
    last = {"by": "Ada", "field": "verdict", "value": "validated", "seen": 0}
    assert "final" in site.json("answers/t-shirt/blind-2", last, 409)["error"]
    site.json("answers/t-shirt/blind-2", {**last, "field": "caveats"})
    assert {one.blinded for one in site.reviews.answers()} == {True}
    assert site.json("answers/t-shirt/blind-1?by=Ben")["unblinded"] is None


# the command


def test_the_address_is_remembered_outside_the_study(
    made: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Run
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    place = review._Place(made)
    with place.listen(None) as listening:
        place.remember()
        assert listening.getsockname()[0] == "127.0.0.1"
        assert (review._Place(made).port, review._Place(made).token) == (place.port, place.token)
        (file,) = (tmp_path / "config").rglob("*.json")
        assert file.stat().st_mode & 0o777 == 0o600
        assert place.token not in "".join(p.read_text("utf-8", "replace") for p in made.folder.glob("*") if p.is_file())
        told = run("review", made.folder, "--no-browser", "--port", place.port, code=1).stderr
        assert f"port {place.port} can't be used" in told
    assert review._Place(Study(made.folder.parent / "study")).port == place.port
    file.write_text("{")
    assert review._Place(made).port == 0


def test_a_page_that_is_open_already_is_told(
    made: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Run
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    first = review._Place(made)
    first.port = 1
    first.remember()
    with first.claimed():
        assert f"is open already at {first.url}" in run("review", made.folder, "--no-browser", code=1).stderr
    with review._Place(made).claimed():
        pass
