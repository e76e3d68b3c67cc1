"""The review page as a person sees it: a real browser, a real server in a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, Route, expect, sync_playwright

import semprobe
from semprobe import manifest
from semprobe.cli import main
from semprobe.collecting import Item, collect
from semprobe.heatmaps import overlay
from semprobe.images import read_image
from semprobe.reviews import Answer, Reviews
from semprobe.sampling import negatives
from semprobe.study import Study, create
from tests.conftest import HOSTILE, answer, best, draw, measure, write_saev

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SIZES = ((64, 64), (120, 48), (48, 120))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


class Desk:
    """A server of a study that can be killed and started again, and windows onto it."""

    def __init__(self, study: Study, context: BrowserContext, home: Path) -> None:
        self.study, self.context, self.home = study, context, home
        self.complaints: list[str] = []
        self.asked: list[str] = []
        context.set_default_timeout(15_000)
        context.on("request", self._asked)
        context.on("console", self._said)
        context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        self.start()

    def _asked(self, request: Request) -> None:
        self.asked.append(request.url)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def start(self) -> None:
        command = [sys.executable, "-m", "semprobe.cli", "review", str(self.study.folder), "--no-browser", "--json"]
        env = {**os.environ, "XDG_CONFIG_HOME": str(self.home), "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.url = json.loads("".join(iter(lambda: self.process.stdout.readline(), "}\n")) + "}")["url"]

    def forgive(self) -> None:
        """What a browser says of a server that was killed is no fault of the page."""
        gone = ("ERR_CONNECTION", "ERR_EMPTY_RESPONSE", "ERR_INCOMPLETE", "ERR_CONTENT_LENGTH")
        self.complaints = [one for one in self.complaints if not any(word in one for word in gone)]

    def stop(self, how: int = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def open(self, path: str, by: str = "Ada") -> Page:
        page = self.context.new_page()
        page.goto(self.url + path)
        if by:
            page.locator("#reviewer").fill(by)
            page.locator("#reviewer").blur()
        return page

    def latent(self, at: int = 0) -> tuple[int, Page]:
        latent = best(self.study, "ball", at)
        page = self.open(f"latents/ball/{latent}")
        expect(page.locator("#caveats")).to_be_enabled()
        expect(page.locator("#loading")).to_be_hidden()
        return latent, page

    def answers(self, latent: int) -> Answer:
        with Reviews(self.study.reviews) as reviews:
            nothing = Answer("", "", latent, False)
            return next((one for one in reviews.answers() if one.latent == latent), nothing)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with six positives, and six negatives drawn from a pool of nine."""
    folder = tmp_path_factory.mktemp("browser")
    for at in range(6):
        draw(folder / "balls" / f"ball {at}.png", (200, 20 * at, 60), SIZES[at % 3])
    for at in range(9):
        draw(folder / "pool" / f"{at}.png", (20 * at, 90, 200), SIZES[at % 3])
    study = create(folder / "study", ["ball"])
    items = [Item(str(one), {"reason": "round"}) for one in sorted((folder / "balls").iterdir())]
    assert {one.state for one in collect(study, "ball", items)} == {"added"}
    negatives(study, "ball", folder / "pool", number=6, criteria="no ball, not even partly", by="Ada")
    measure(study, write_saev(folder / "sae.pt"))
    return folder / "study"


@contextmanager
def desk_of(study: Study, browser: Browser, home: Path, **options: Any) -> Iterator[Desk]:
    context = browser.new_context(**options)
    made = Desk(study, context, home)
    try:
        yield made
        assert made.complaints == []
        assert {re.match("[a-z]+://[^/]+", url)[0] for url in made.asked} == {made.url[: made.url.index("/", 8)]}  # type: ignore[index]
    finally:
        context.close()
        made.stop()


@pytest.fixture
def desk(whole: Path, tmp_path: Path, browser: Browser) -> Iterator[Desk]:
    shutil.copytree(whole, tmp_path / "study")
    with desk_of(Study(tmp_path / "study"), browser, tmp_path / "home") as made:
        yield made


def verdicts(study: Study) -> list[str]:
    return [row["verdict"] for row in study.rows() if row["label"] == "negative"]


def until(found: Callable[[], Any], wanted: Any) -> None:
    for _ in range(100):
        if found() == wanted:
            return
        time.sleep(0.05)
    assert found() == wanted


def said(desk: Desk) -> list[str]:
    with Reviews(desk.study.reviews) as reviews:
        return [one.value for one in reviews.history()]


def leave_draft(page: Page, field: str, text: str) -> None:
    """Words of Ada as a window leaves them that died before it had seen any change of them."""
    leave = """([field, value]) => localStorage.setItem(
        'semprobe draft ' + JSON.stringify([location.pathname, 'Ada', field]),
        JSON.stringify({value, seen: 0, scored: document.body.dataset.scored}))"""
    page.evaluate(leave, [field, text])


# negatives


def seen(page: Page) -> None:
    """The picture is there; without that, there is no verdict."""
    until(lambda: page.evaluate("(p => p.complete && p.naturalWidth > 0)(document.querySelector('#picture'))"), True)


class Held:
    """Requests that change something and wait to be let go."""

    def __init__(self, page: Page, path: str) -> None:
        self.page, self.path, self.routes = page, path, list[Route]()
        page.route(path, lambda one: self.routes.append(one) if one.request.method == "POST" else one.continue_())

    def wait(self, number: int) -> None:
        """Until so many are waiting; the browser is heard only while it is asked something."""
        until(lambda: self.page.evaluate("1") and len(self.routes), number)

    def release(self) -> None:
        """Let go of those that wait, and of all that come."""
        for one in self.routes:
            one.continue_()
        self.page.unroute(self.path)


def press(page: Page, key: str) -> None:
    seen(page)
    page.keyboard.press(key)


def test_negatives_are_judged_by_keys_alone(desk: Desk) -> None:
    page = desk.open("negatives/ball")
    expect(page.locator("#criteria")).to_have_text("no ball, not even partly")
    expect(page.locator("#progress")).to_have_text("0 of 6 looked at; 0 rejected")
    expect(page.locator("#about")).to_contain_text("1 of 6:")
    press(page, "j")
    expect(page.locator("#progress")).to_have_text("1 of 6 looked at; 0 rejected")
    press(page, "k")  # replaced by the next of the order
    expect(page.locator("#strip li")).to_have_count(7)
    expect(page.locator("#progress")).to_have_text("1 of 6 looked at; 1 rejected")
    expect(page.locator("#notes")).not_to_contain_text("missing")
    press(page, "u")
    until(lambda: sorted(verdicts(desk.study)), ["", "", "", "", "accepted", "rejected", "unsure"])
    page.keyboard.press("z")
    until(lambda: sorted(verdicts(desk.study)), ["", "", "", "", "", "accepted", "rejected"])
    page.keyboard.press("z")  # the rejection: the replacement is spare now
    until(lambda: sorted(verdicts(desk.study)), ["", "", "", "", "", "", "accepted"])
    expect(page.locator("#strip button[aria-label*=spare]")).to_have_count(1)
    for _ in range(6):
        press(page, "j")
    expect(page.locator("#finished")).to_be_visible()
    until(lambda: verdicts(desk.study).count("accepted"), 6)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#about")).to_contain_text("accepted by Ada")
    rows = [row for row in desk.study.rows() if row["verdict"]]
    assert {row["verified_by"] for row in rows} == {"Ada"}
    assert {row["criteria"] for row in rows} == {"no ball, not even partly"}


def test_a_key_that_is_held_is_one_verdict(desk: Desk) -> None:
    page = desk.open("negatives/ball")
    press(page, "j")
    seen(page)
    for _ in range(6):
        page.keyboard.down("j")
        page.wait_for_timeout(50)
    page.keyboard.up("j")
    until(lambda: verdicts(desk.study).count("accepted"), 2)
    expect(page.locator("#status")).to_have_text("Saved: accepted")
    assert verdicts(desk.study).count("accepted") == 2


def test_verdicts_do_not_wait_for_a_slow_pool(desk: Desk) -> None:
    page = desk.open("negatives/ball")
    page.route("**/api/replace", lambda route: None)  # never answered
    press(page, "k")
    press(page, "j")
    press(page, "j")
    until(lambda: sorted(verdicts(desk.study)), ["", "", "", "accepted", "accepted", "rejected"])


def test_a_verdict_of_another_window_is_not_overwritten(desk: Desk) -> None:
    first, second = desk.open("negatives/ball", "Ada"), desk.open("negatives/ball", "Ben")
    expect(second.locator("#about")).to_contain_text("1 of 6:")
    press(first, "u")
    until(lambda: verdicts(desk.study).count("unsure"), 1)
    press(second, "j")
    expect(second.locator("#status")).to_contain_text("Ada made it unsure meanwhile")
    expect(second.locator("#about")).to_contain_text("unsure by Ada")
    assert verdicts(desk.study).count("accepted") == 0
    expect(second.locator("#undo")).to_be_disabled()  # of what was refused nothing can be undone
    second.keyboard.press("z")
    second.wait_for_timeout(300)
    assert verdicts(desk.study).count("unsure") == 1
    desk.complaints = [one for one in desk.complaints if "409" not in one]


def test_nothing_is_judged_without_a_name_or_while_typing(desk: Desk) -> None:
    page = desk.open("negatives/ball", by="")
    expect(page.locator("#about")).to_contain_text("1 of 6:")
    page.locator("#reviewer").press_sequentially("jku")
    page.locator("#reviewer").fill("")
    page.locator("#reviewer").blur()
    page.keyboard.press("j")
    expect(page.locator("#status")).to_have_text("Say who you are first.")
    expect(page.locator("#reviewer")).to_be_focused()
    assert set(verdicts(desk.study)) == {""}


def test_a_verdict_that_can_not_be_saved_is_taken_back(desk: Desk) -> None:
    page = desk.open("negatives/ball")
    expect(page.locator("#about")).to_contain_text("1 of 6:")
    page.wait_for_load_state("networkidle")
    desk.stop(signal.SIGKILL)
    press(page, "j")
    expect(page.locator("#status")).to_contain_text("NOT saved: semprobe review does not answer")
    expect(page.locator("#progress")).to_have_text("0 of 6 looked at; 0 rejected")
    expect(page.locator("#about")).not_to_contain_text("accepted")
    expect(page.locator("#undo")).to_be_disabled()
    desk.start()
    press(page, "j")  # in the same window
    expect(page.locator("#status")).to_have_text("Saved: accepted")
    assert verdicts(desk.study).count("accepted") == 1
    desk.stop(signal.SIGKILL)
    page.keyboard.press("z")
    expect(page.locator("#status")).to_contain_text("NOT saved: semprobe review does not answer")
    expect(page.locator("#progress")).to_have_text("1 of 6 looked at; 0 rejected")
    desk.start()
    page.keyboard.press("z")  # once more
    until(lambda: verdicts(desk.study).count("accepted"), 0)
    desk.forgive()


def test_a_verdict_is_of_whoever_gave_it(desk: Desk) -> None:
    def given() -> list[tuple[str, str]]:
        return [(row["verdict"], row["verified_by"]) for row in desk.study.rows() if row["verdict"]]

    page = desk.open("negatives/ball")
    held = Held(page, "**/api/verdict")
    press(page, "j")
    press(page, "u")
    held.wait(1)
    page.locator("#reviewer").fill("Ben")
    page.locator("#reviewer").blur()
    page.locator("#strip button").nth(4).focus()
    held.release()
    until(lambda: sorted(given()), [("accepted", "Ada"), ("unsure", "Ada")])
    expect(page.locator("#status")).to_have_text("Saved: unsure")
    expect(page.locator("#strip button").nth(4)).to_be_focused()  # though the pictures were drawn anew
    page.locator("#strip button.accepted").click()
    press(page, "j")
    until(lambda: sorted(given()), [("accepted", "Ben"), ("unsure", "Ada")])
    other = desk.open("negatives/ball", "Cleo")
    other.locator("#strip button.accepted").click()
    press(other, "j")
    until(lambda: sorted(given()), [("accepted", "Cleo"), ("unsure", "Ada")])
    page.keyboard.press("z")  # of Ben's window, whose verdict is Cleo's by now
    expect(page.locator("#status")).to_contain_text("NOT saved: Cleo made it accepted meanwhile")
    assert sorted(given()) == [("accepted", "Cleo"), ("unsure", "Ada")]
    desk.complaints = [one for one in desk.complaints if "409" not in one]


def test_undone_verdicts_have_their_own_name_again(desk: Desk) -> None:
    page = desk.open("negatives/ball")
    held = Held(page, "**/api/verdict")
    press(page, "j")
    press(page, "j")
    held.wait(1)
    held.routes.pop().continue_()
    held.wait(1)  # the first is saved, the second on its way
    page.locator("#reviewer").fill("Ben")
    page.locator("#reviewer").blur()
    page.locator("#strip button.accepted").nth(1).click()
    expect(page.locator("#about")).to_contain_text("accepted by Ada")
    press(page, "u")
    page.keyboard.press("z")
    held.release()
    expect(page.locator("#status")).to_have_text("Saved: accepted")
    until(lambda: [(row["verdict"], row["verified_by"]) for row in desk.study.rows() if row["verdict"]],
          [("accepted", "Ada")] * 2)  # fmt: skip


def test_undos_that_failed_are_done_in_their_order(desk: Desk) -> None:
    page = desk.open("negatives/ball")
    press(page, "j")
    expect(page.locator("#status")).to_have_text("Saved: accepted")
    page.keyboard.press("ArrowLeft")
    press(page, "u")
    expect(page.locator("#status")).to_have_text("Saved: unsure")
    page.wait_for_load_state("networkidle")
    desk.stop(signal.SIGKILL)
    page.keyboard.press("z")
    page.keyboard.press("z")
    expect(page.locator("#status")).to_contain_text("NOT saved")
    page.wait_for_timeout(500)
    desk.start()
    page.keyboard.press("z")
    until(lambda: sorted(verdicts(desk.study))[-1], "accepted")
    page.keyboard.press("z")
    until(lambda: set(verdicts(desk.study)), {""})
    page.locator("button[data-verdict=accepted]").focus()
    for _ in range(5):  # held down
        page.keyboard.down("Enter")
        page.wait_for_timeout(50)
    page.keyboard.up("Enter")
    expect(page.locator("#status")).to_have_text("Saved: accepted")
    assert verdicts(desk.study).count("accepted") == 1
    desk.forgive()


def test_what_is_missing_is_replaced_and_told_as_long_as_it_is(desk: Desk) -> None:
    page = desk.open("negatives/ball")
    page.route("**/api/replace", lambda route: route.fulfill(status=503, json={"error": "killed just then"}))
    press(page, "k")
    until(lambda: verdicts(desk.study).count("rejected"), 1)
    expect(page.locator("#missing")).to_contain_text("No replacement yet: killed just then")
    page.unroute("**/api/replace")
    page.reload()
    expect(page.locator("#strip li")).to_have_count(7)
    expect(page.locator("#missing")).to_be_hidden()
    for number in (8, 9, 9):  # the pool has nine
        press(page, "k")
        expect(page.locator("#strip li")).to_have_count(number)
    expect(page.locator("#missing")).to_contain_text("missing: 1")
    page.keyboard.press("z")
    expect(page.locator("#missing")).to_be_hidden()
    page.locator("#undo").focus()
    for _ in range(2):
        page.keyboard.press("Enter")
    expect(page.locator("#undo")).to_be_disabled()
    expect(page.locator("#previous")).to_be_focused()
    desk.complaints = [one for one in desk.complaints if "503" not in one]


# latents


def test_what_is_typed_is_saved_and_survives_a_kill(desk: Desk) -> None:
    latent, page = desk.latent()
    box = page.get_by_label("Hypothesis")
    box.fill("round things")
    expect(page.locator("#status")).to_contain_text("Saved")
    until(lambda: desk.answers(latent).hypothesis, "round things")
    desk.stop(signal.SIGKILL)
    assert desk.answers(latent).hypothesis == "round things"
    box.fill("round things, also wheels")  # nobody hears that
    expect(page.locator("#status")).to_contain_text("NOT saved")
    desk.start()
    until(lambda: desk.answers(latent).hypothesis, "round things, also wheels")
    expect(page.locator("#status")).to_contain_text("Saved")
    page.get_by_label("Caveats").fill("typed while nobody listened")
    expect(page.locator("#status")).to_contain_text("Saved")
    page.reload()
    expect(page.get_by_label("Hypothesis")).to_have_value("round things, also wheels")
    expect(page.get_by_label("Caveats")).to_have_value("typed while nobody listened")
    desk.forgive()


def test_a_window_that_died_too_loses_nothing(desk: Desk) -> None:
    latent, page = desk.latent()
    desk.stop(signal.SIGKILL)
    page.get_by_label("Hypothesis").fill("typed into the void")
    page.close()
    desk.start()
    again = desk.open(f"latents/ball/{latent}")
    expect(again.get_by_label("Hypothesis")).to_have_value("typed into the void")
    until(lambda: desk.answers(latent).hypothesis, "typed into the void")
    desk.forgive()


def test_two_windows_on_one_latent_lose_nothing(desk: Desk) -> None:
    latent, first = desk.latent()
    _, second = desk.latent()
    first.get_by_label("Failure modes").fill("at night")
    expect(first.locator("#status")).to_contain_text("Saved")
    second.get_by_label("Failure modes").fill("in snow")
    expect(second.locator("#failure_modes-conflict")).to_contain_text("at night")
    second.get_by_label("Failure modes").fill("in snow, too")
    second.get_by_role("button", name="Add it below").click()
    until(lambda: desk.answers(latent).failure_modes, "in snow, too\nat night")
    first.bring_to_front()
    first.evaluate("window.dispatchEvent(new Event('focus'))")
    expect(first.get_by_label("Failure modes")).to_have_value("in snow, too\nat night")
    with Reviews(desk.study.reviews) as reviews:
        said = [one.value for one in reviews.history()]
    assert said[:2] == ["at night", "in snow"]
    assert said[-1] == "in snow, too\nat night"


def test_leaving_saves_every_field(desk: Desk) -> None:
    latent, page = desk.latent()
    page.get_by_label("validated", exact=True).check()
    page.get_by_label("Caveats").fill("one")
    page.get_by_label("Hypothesis").fill("two")
    page.locator(".chooser a").nth(1).click()
    page.wait_for_url(f"**/{best(desk.study, 'ball', 1)}")
    until(lambda: [getattr(desk.answers(latent), name) for name in ("verdict", "caveats", "hypothesis")],
          ["validated", "one", "two"])  # fmt: skip
    expect(page.locator("#unsaved")).to_be_hidden()
    _, other = desk.latent()
    for name, text in (("Caveats", "three"), ("Hypothesis", "four"), ("Edge cases", "five")):
        other.get_by_label(name).fill(text)
    other.close()
    until(lambda: [getattr(desk.answers(latent), name) for name in ("caveats", "hypothesis", "edge_cases")],
          ["three", "four", "five"])  # fmt: skip


def test_what_waits_for_another_field_is_saved_too(desk: Desk) -> None:
    latent, page = desk.latent()
    lock = sqlite3.connect(desk.study.reviews, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    page.get_by_label("Caveats").fill("one")
    page.wait_for_timeout(500)
    page.get_by_label("Hypothesis").fill("two")
    page.get_by_label("Edge cases").fill("three")
    page.wait_for_timeout(700)  # longer than they wait for more keys; the server can write none of them yet
    page.close()
    lock.execute("ROLLBACK")
    lock.close()
    until(lambda: [getattr(desk.answers(latent), name) for name in ("caveats", "hypothesis", "edge_cases")],
          ["one", "two", "three"])  # fmt: skip
    assert len(said(desk)) == 3


@pytest.mark.parametrize(("first", "rows"), [(0, ["one", "one two"]), (-1, ["one two"])])
def test_a_windows_own_words_are_no_others(desk: Desk, first: int, rows: list[str]) -> None:
    latent, page = desk.latent()
    held = Held(page, "**/api/answers/**")
    page.get_by_label("Caveats").fill("one")
    held.wait(1)
    page.get_by_label("Caveats").fill("one two")
    page.evaluate(
        "Object.defineProperty(document, 'hidden', {configurable: true, value: true});"
        "document.dispatchEvent(new Event('visibilitychange'));"
    )
    held.wait(2)
    held.routes.pop(first).continue_()  # if that is the newer one, the older comes too late
    until(lambda: desk.answers(latent).caveats, rows[0])
    page.wait_for_timeout(200)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # of what is on its way, nothing goes again
    held.release()
    until(lambda: said(desk), rows)
    expect(page.locator("#status")).to_contain_text("Saved")
    page.wait_for_timeout(500)
    assert said(desk) == rows
    expect(page.locator("#caveats-conflict")).to_be_hidden()
    expect(page.get_by_label("Caveats")).to_have_value("one two")


def test_what_is_typed_back_is_what_is_saved(desk: Desk) -> None:
    _, page = desk.latent()
    held = Held(page, "**/api/answers/**")
    box = page.get_by_label("Caveats")
    box.fill("a")
    held.wait(1)
    box.fill("ab")
    page.wait_for_timeout(1000)  # longer than it waits for more keys
    box.fill("a")
    held.release()
    expect(page.locator("#status")).to_contain_text("Saved")
    page.wait_for_timeout(1000)
    assert said(desk) == ["a"]
    box.fill("b")
    box.fill("a")  # nothing to save
    expect(page.locator("#status")).to_contain_text("Saved")
    assert said(desk) == ["a"]


def test_what_the_server_may_have_is_put_right(desk: Desk) -> None:
    """It wrote the words, and the answer was lost or broke off; meanwhile they were taken back."""
    _, page = desk.latent()
    held = Held(page, "**/api/answers/**")
    page.get_by_label("Caveats").fill("wrong words")
    held.wait(1)
    held.routes[0].fetch()
    page.get_by_label("Caveats").fill("")
    held.routes.pop().abort()
    held.release()
    until(lambda: said(desk), ["wrong words", ""])
    expect(page.locator("#status")).to_contain_text("Saved")
    held = Held(page, "**/api/answers/**")
    page.get_by_label("Caveats").fill("right words")
    held.wait(1)
    held.routes[0].fetch()
    held.routes.pop().fulfill(status=200, body='{"id": 3, "at"', content_type="application/json")
    held.release()
    expect(page.locator("#status")).to_contain_text("broke off its answer; is it still running? Trying again.")
    expect(page.locator("#status")).to_contain_text("Saved")
    assert said(desk) == ["wrong words", "", "right words"]
    desk.complaints = [one for one in desk.complaints if "ERR_FAILED" not in one]


def test_other_ends_of_lines_are_nobodys_change(desk: Desk) -> None:
    latent = best(desk.study, "ball")
    answer(desk.study, "Ada", "ball", latent, caveats="one\r\ntwo")
    _, page = desk.latent()
    expect(page.get_by_label("Caveats")).to_have_value("one\ntwo")
    page.locator(".chooser a").nth(1).click()
    page.wait_for_url(f"**/{best(desk.study, 'ball', 1)}")
    page.wait_for_timeout(300)
    assert said(desk) == ["one\r\ntwo"]


def test_a_form_of_before_is_not_taken(desk: Desk) -> None:
    latent = best(desk.study, "ball")
    answer(desk.study, "Ada", "ball", latent, caveats="of Ada")
    _, page = desk.latent()
    asked: list[Route] = []
    page.route("**/api/answers/**", lambda one: asked.append(one))
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    until(lambda: page.evaluate("1") and len(asked), 1)
    for name in ("Ben", "Ada"):
        page.locator("#reviewer").fill(name)
        page.locator("#reviewer").blur()
    asked.pop(0).continue_()
    page.wait_for_timeout(500)
    expect(page.locator("#caveats")).to_be_disabled()
    for one in asked:
        one.continue_()
    page.unroute("**/api/answers/**")
    expect(page.get_by_label("Caveats")).to_have_value("of Ada")
    expect(page.locator("#caveats")).to_be_enabled()


def test_an_old_draft_and_anothers_words_are_both_offered(desk: Desk) -> None:
    latent = best(desk.study, "ball")
    answer(desk.study, "Ada", "ball", latent, caveats="x")
    _, page = desk.latent()
    leave_draft(page, "caveats", "of old")
    page.reload()
    expect(page.locator("#caveats-conflict")).to_contain_text("of old")
    answer(desk.study, "Ada", "ball", latent, caveats="of another window")
    page.get_by_label("Caveats").fill("mine")
    for text in ("of old", "of another window"):
        expect(page.locator("#caveats-conflict")).to_contain_text(text)
    with page.expect_response("**/api/answers/**"):
        page.evaluate("window.dispatchEvent(new Event('focus'))")
    page.locator("#caveats-conflict .new").get_by_role("button", name="Add it below").click()
    page.locator("#caveats-conflict .old").get_by_role("button", name="Add it below").click()
    until(lambda: desk.answers(latent).caveats, "mine\nof another window\nof old")
    expect(page.locator("#caveats-conflict")).to_be_hidden()


def test_a_refusal_is_told_as_long_as_it_holds(desk: Desk) -> None:
    latent, page = desk.latent()
    page.get_by_label("Caveats").fill("x" * 100_001)
    expect(page.locator("#status")).to_contain_text("NOT saved (caveats): caveats has 100,001 characters")
    page.get_by_label("Hypothesis").fill("round")
    until(lambda: desk.answers(latent).hypothesis, "round")
    expect(page.locator("#status")).to_contain_text("NOT saved (caveats): caveats has 100,001 characters")
    desk.stop(signal.SIGKILL)
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    expect(page.locator("#status")).to_contain_text("semprobe review does not answer")
    desk.start()
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    expect(page.locator("#status")).to_contain_text("NOT saved (caveats): caveats has 100,001 characters")
    page.get_by_label("Caveats").fill("x")
    expect(page.locator("#status")).to_contain_text("Saved")
    assert said(desk) == ["round", "x"]
    page.get_by_label("rejected", exact=True).check()
    expect(page.locator("#status")).to_contain_text("Saved")
    page.get_by_label("validated", exact=True).check()
    page.get_by_label("rejected", exact=True).check()
    page.get_by_label("Caveats").click()  # nothing is to be saved
    expect(page.locator("#status")).to_contain_text("Saved")
    desk.complaints = [one for one in desk.complaints if "409" not in one]
    desk.forgive()


def test_a_form_waits_for_what_the_last_reviewer_said(desk: Desk) -> None:
    _, page = desk.latent()
    held = Held(page, "**/api/answers/**")
    page.get_by_label("Hypothesis").fill("of Ada")
    held.wait(1)
    page.locator("[name=verdict][value=validated]").check()
    page.locator("#reviewer").fill("Ben")
    page.locator("#reviewer").blur()
    held.wait(2)
    held.routes.pop().continue_()
    until(lambda: len(said(desk)), 1)
    page.wait_for_timeout(300)
    expect(page.locator("#caveats")).to_be_disabled()  # the other one is on its way still
    held.release()
    expect(page.locator("#caveats")).to_be_enabled()
    expect(page.get_by_label("Hypothesis")).to_have_value("")
    page.locator("[name=verdict][value=validated]").check()
    until(lambda: sorted(said(desk)), ["of Ada", "validated", "validated"])
    with Reviews(desk.study.reviews) as reviews:
        assert {one.reviewer for one in reviews.history() if one.field == "verdict"} == {"Ada", "Ben"}
    expect(page.locator("#unsaved")).to_be_hidden()


def test_a_verdict_by_keys_is_saved_once_and_only_if_meant(desk: Desk) -> None:
    _, page = desk.latent()
    held = Held(page, "**/api/answers/**")
    page.locator("[name=verdict]").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    held.wait(1)
    page.keyboard.press("Tab")
    page.wait_for_timeout(200)
    held.release()
    until(lambda: len(said(desk)), 1)
    expect(page.locator("#status")).to_contain_text("Saved")
    meant = said(desk)
    held = Held(page, "**/api/answers/**")
    page.locator(f"[name=verdict][value={meant[0]}]").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    held.wait(1)
    page.keyboard.press("ArrowDown")  # and looks at another
    held.routes.pop().fulfill(status=503, json={"error": "is locked"})
    held.release()
    expect(page.locator("#status")).to_contain_text("is locked")
    page.wait_for_timeout(2500)  # longer than it waits to try again
    assert said(desk) == meant
    desk.complaints = [one for one in desk.complaints if "503" not in one]


def test_refused_words_stay_and_old_drafts_bind_nobody_else(desk: Desk) -> None:
    latent = best(desk.study, "ball")
    answer(desk.study, "Ada", "ball", latent, caveats="x")
    _, page = desk.latent()
    leave_draft(page, "caveats", "of old")
    page.reload()
    expect(page.locator("#caveats-conflict")).to_contain_text("of old")
    page.route("**/api/answers/**", lambda route: route.fulfill(status=409, json={"error": "no"})
               if route.request.method == "POST" else route.continue_())  # fmt: skip
    page.get_by_label("Caveats").fill("x and more")
    expect(page.locator("#status")).to_contain_text("NOT saved (caveats): no")
    with page.expect_response("**/api/answers/**"):
        page.evaluate("window.dispatchEvent(new Event('focus'))")
    page.wait_for_timeout(200)
    expect(page.get_by_label("Caveats")).to_have_value("x and more")
    page.unroute("**/api/answers/**")
    page.locator("#reviewer").fill("Ben")
    page.locator("#reviewer").blur()
    expect(page.locator("#caveats")).to_be_enabled()
    desk.stop(signal.SIGKILL)
    page.get_by_label("Caveats").fill("Ben's words")
    page.close()
    desk.start()
    page = desk.open(f"latents/ball/{latent}", "Ben")
    expect(page.get_by_label("Caveats")).to_have_value("Ben's words")
    desk.complaints = [one for one in desk.complaints if "409" not in one]
    desk.forgive()


def test_arrow_keys_pass_over_verdicts(desk: Desk) -> None:
    latent, page = desk.latent()
    page.locator("[name=verdict]").first.focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_timeout(1500)
    assert desk.answers(latent).verdict == ""
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    until(lambda: desk.answers(latent).verdict, "unclear")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Tab")  # going on is a decision, too
    until(lambda: desk.answers(latent).verdict, "rejected")


def test_a_picture_that_is_gone_is_told(desk: Desk) -> None:
    page = desk.open("negatives/ball", by="")
    until(lambda: page.evaluate("document.querySelector('#picture').naturalWidth > 0"), True)
    path = page.evaluate("document.querySelectorAll('#strip img')[2].src").split("/")[-1].split("?")[0]
    (desk.study.folder / "images" / path).unlink()
    page.reload()
    expect(page.locator("#about")).to_contain_text("1 of 6:")
    for _ in range(2):
        page.locator("#next").click()
    expect(page.locator("#status")).to_contain_text("is in the manifest and not on the disk")
    desk.forgive()
    desk.complaints = [one for one in desk.complaints if "409" not in one]


def test_a_browser_without_storage_works(desk: Desk) -> None:
    forbid = "Object.defineProperty(window, '%s', {get() { throw new DOMException('no', 'SecurityError'); }});"
    page = desk.context.new_page()
    page.add_init_script("".join(forbid % name for name in ("localStorage", "sessionStorage")))
    latent = best(desk.study, "ball")
    page.goto(desk.url + f"latents/ball/{latent}")
    page.locator("#reviewer").fill("Ada")
    page.locator("#reviewer").blur()
    page.get_by_label("Caveats").fill("kept by the server alone")
    until(lambda: desk.answers(latent).caveats, "kept by the server alone")


def test_a_reviewer_who_leaves_while_typing_keeps_the_words(desk: Desk) -> None:
    latent, page = desk.latent()
    page.get_by_label("Caveats").fill("Ada's own")
    page.locator("#reviewer").fill("Ben")
    page.locator("#reviewer").blur()
    expect(page.get_by_label("Caveats")).to_have_value("")
    page.get_by_label("Caveats").fill("Ben's own")
    expect(page.locator("#status")).to_contain_text("Saved")
    with Reviews(desk.study.reviews) as reviews:
        until(
            lambda: {(one.reviewer, one.caveats) for one in reviews.answers()},
            {("Ada", "Ada's own"), ("Ben", "Ben's own")},
        )
    assert latent == best(desk.study, "ball")


def test_while_the_server_is_away_nobody_types_under_anothers_name(desk: Desk) -> None:
    latent, page = desk.latent()
    desk.stop(signal.SIGKILL)
    page.get_by_label("Caveats").fill("Ada's own")
    page.locator("#reviewer").fill("Ben")
    page.locator("#reviewer").blur()
    expect(page.locator("#caveats")).to_be_disabled()
    expect(page.get_by_label("Caveats")).to_have_value("")
    expect(page.locator("#unsaved")).to_contain_text("Words of Ada may not be saved yet (caveats)")
    desk.start()
    expect(page.locator("#caveats")).to_be_enabled()
    page.get_by_label("Caveats").fill("Ben's own")
    expect(page.locator("#status")).to_contain_text("Saved")
    page.locator("#reviewer").fill("Ada")
    page.locator("#reviewer").blur()
    expect(page.get_by_label("Caveats")).to_have_value("Ada's own")
    with Reviews(desk.study.reviews) as reviews:
        said = {("Ada", "Ada's own"), ("Ben", "Ben's own")}
        until(lambda: {(one.reviewer, one.caveats) for one in reviews.answers()}, said)
    expect(page.locator("#unsaved")).to_be_hidden()
    desk.forgive()
    assert latent == best(desk.study, "ball")


def test_old_drafts_never_overwrite_newer_words(desk: Desk) -> None:
    latent = best(desk.study, "ball")
    for text in ("first", "second"):
        answer(desk.study, "Ada", "ball", latent, hypothesis=text)
    _, page = desk.latent()
    leave_draft(page, "hypothesis", "first")  # saved, as the history says
    leave_draft(page, "caveats", "never saved")
    answer(desk.study, "Ada", "ball", latent, caveats="written elsewhere")
    page.reload()
    expect(page.get_by_label("Hypothesis")).to_have_value("second")
    expect(page.get_by_label("Caveats")).to_have_value("written elsewhere")
    expect(page.locator("#caveats-conflict")).to_contain_text("never saved")
    page.wait_for_timeout(500)
    assert (desk.answers(latent).hypothesis, desk.answers(latent).caveats) == ("second", "written elsewhere")
    page.locator("#caveats-conflict").get_by_role("button", name="Add it below").click()
    until(lambda: desk.answers(latent).caveats, "written elsewhere\nnever saved")


def test_long_words_of_any_script_are_saved(desk: Desk) -> None:
    latent, page = desk.latent()
    page.get_by_label("Evidence for", exact=True).first.fill("語" * 25_000)
    expect(page.locator("#status")).to_contain_text("Saved")
    until(lambda: len(desk.answers(latent).evidence_for), 25_000)


def test_words_are_on_the_disk_while_one_types_on(desk: Desk) -> None:
    latent, page = desk.latent()
    box = page.get_by_label("Hypothesis")
    for at in range(12):  # no pause is as long as 0.3 s
        box.press_sequentially(f"{at} ")
        page.wait_for_timeout(150)
    desk.stop(signal.SIGKILL)
    assert "6 " in desk.answers(latent).hypothesis
    desk.start()
    until(lambda: desk.answers(latent).hypothesis, "".join(f"{at} " for at in range(12)))
    desk.forgive()


def test_each_window_has_a_name_of_its_own(desk: Desk) -> None:
    first, second = desk.open("", "Ada"), desk.open("", "Ben")
    first.reload()
    second.reload()
    expect(first.locator("#reviewer")).to_have_value("Ada")
    expect(second.locator("#reviewer")).to_have_value("Ben")
    first.evaluate("window.dispatchEvent(new Event('focus'))")
    with desk.context.expect_page() as opened:
        first.locator("a[href*=latents]").first.click(modifiers=["Control"])
    expect(opened.value.locator("#reviewer")).to_have_value("Ada")


def test_a_page_of_other_scores_saves_nothing_and_loses_nothing(desk: Desk) -> None:
    latent, page = desk.latent()
    words = [str(desk.study.folder), "--overwrite", "--quiet", "--permutations", "200", "--seed", "1"]
    assert CliRunner().invoke(main, ["score", *words]).exit_code == 0
    page.get_by_label("Caveats").fill("on the old latent")
    expect(page.locator("#status")).to_contain_text("scored anew")
    page.reload()
    expect(page.locator("#caveats-conflict")).to_contain_text("on the old latent")
    assert desk.answers(latent).caveats == ""
    desk.complaints = [one for one in desk.complaints if "409" not in one]


def test_pictures_are_picked_as_evidence(desk: Desk) -> None:
    latent, page = desk.latent()
    tile = page.locator("#galleries .tile").first
    tile.get_by_role("button", name="Evidence for").click()
    expect(tile.get_by_role("button", name="Evidence for")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#pictures_for li")).to_have_count(1)
    page.locator("#galleries .tile").nth(1).get_by_role("button", name="Evidence against").press("Enter")
    expect(page.locator("#pictures_against li")).to_have_count(1)
    found = desk.answers(latent)
    assert len(found.pictures_for) == len(found.pictures_against) == 1
    page.locator("#pictures_for button").click()
    expect(page.locator("#pictures_for li")).to_have_count(0)
    until(lambda: desk.answers(latent).pictures_for, ())


def test_verdict_others_and_kappa(desk: Desk) -> None:
    latent = best(desk.study, "ball")
    answer(desk.study, "Ben", "ball", latent, verdict="rejected", caveats="only red ones")
    _, page = desk.latent()
    expect(page.locator("#others")).to_contain_text("1 has answered; what, is shown once you have given a verdict.")
    expect(page.locator("#others")).not_to_contain_text("only red ones")
    page.get_by_label("validated", exact=True).check()
    expect(page.locator("#others")).to_contain_text("only red ones")
    expect(page.locator("#others")).to_contain_text("Cohen’s kappa 0.00")
    page.locator("#history summary").click()
    expect(page.locator("#history li").first).to_contain_text("Ada")
    desk.open("", by="")
    expect(desk.context.pages[-1].locator("tbody tr").first.locator("td").last).to_have_text("2")


def test_numbers_and_any_latent(desk: Desk) -> None:
    latent, page = desk.latent()
    scores = semprobe.open_store(desk.study.scores).load().sel(concept="ball")
    expect(page.locator("#numbers")).to_contain_text(f"{float(scores['f1'][latent]):.3f}")
    expect(page.locator("#numbers")).to_contain_text(f"{float(scores['floor_f1']):.3f}: fires on every image")
    page.locator("#chance summary").click()
    image = page.locator("#chance img")
    expect(image).to_be_visible()
    until(lambda: image.evaluate("one => one.naturalWidth > 100"), True)
    page.get_by_label("Any latent").fill("7")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("Latent 7 for")


def test_heat_lies_where_the_report_paints_it(desk: Desk) -> None:
    """The canvas of every shape of picture against `overlay`, pixel by pixel."""
    latent, page = desk.latent()
    page.locator("#strength").fill("60")
    found = page.evaluate("path => fetch(path).then(answer => answer.json())", f"../../api/latents/ball/{latent}")
    scores = semprobe.open_store(desk.study.scores).load()
    shapes = set()
    for place, picture in enumerate(one for gallery in found["galleries"] for one in gallery["pictures"]):
        canvas = page.locator("#galleries .frame canvas").nth(place)
        canvas.scroll_into_view_if_needed()
        until(lambda canvas=canvas: canvas.evaluate("one => one.width > 0 && one.width !== 300"), True)
        given = canvas.evaluate("c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
        size = canvas.evaluate("c => [c.width, c.height]")
        shown = np.array(given, dtype=np.uint8).reshape(size[1], size[0], 4)[..., :3].astype(int)
        crop = scores["crop"].sel(image=picture["image"]).values
        whole = read_image(desk.study.image(picture["image"]))
        wanted = overlay(whole, np.array(picture["heat"]), crop, maximum=found["largest_code"], edge=max(size))
        differs = np.abs(shown - np.asarray(wanted)).max(-1)  # JPEG, and two ways to make a picture smaller
        assert differs.mean() < 3, picture["image"]
        assert (differs > 24).mean() < 0.002, picture["image"]
        shapes.add((whole.width > whole.height) - (whole.width < whole.height))
    assert shapes == {-1, 0, 1}
    box = page.locator("#galleries .frame").first.bounding_box()
    over = page.locator("#galleries .frame canvas").first.bounding_box()
    assert box == over


def test_values_by_mouse_and_by_keys(desk: Desk) -> None:
    _, page = desk.latent()
    tile = page.locator("#galleries .tile").first
    tile.locator(".frame").hover()
    expect(tile.locator("output")).to_contain_text(re.compile(r"row \d+, column \d+: code|not seen by the model"))
    tile.locator(".look").press("Enter")
    expect(page.locator("#zoom")).to_be_visible()
    page.keyboard.press("ArrowDown")
    first = page.locator("#zoom-value").text_content()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#zoom-value")).not_to_have_text(str(first))
    page.keyboard.press("Escape")
    expect(page.locator("#zoom")).to_be_hidden()
    page.keyboard.press("h")
    expect(page.locator("#heat")).not_to_be_checked()
    expect(page.locator("#galleries canvas").first).to_be_hidden()


def test_blinded_latents_are_told_apart_at_the_end(desk: Desk) -> None:
    page = desk.open("latents/ball/blind-1")
    number = page.locator(".chooser a").count()
    assert number == 10
    expect(page.locator("#loading")).to_be_hidden()
    assert page.locator("#numbers").count() == 0
    for at in range(1, number + 1):
        page.goto(f"{desk.url}latents/ball/blind-{at}")
        expect(page.locator("#caveats")).to_be_enabled()
        expect(page.locator("#unblinded")).to_be_hidden()
        if at < number:
            page.get_by_label("rejected", exact=True).check()
        else:  # by keys alone, and straight on
            page.locator("[name=verdict][value=validated]").focus()
            page.keyboard.press("ArrowDown")
            page.keyboard.press("Enter")
            page.keyboard.press("Tab")
        expect(page.locator("#status")).to_contain_text("Saved")
    expect(page.locator("#unblinded")).to_contain_text("You validated 0 of the 5 best latents and 0 of 5 random ones.")


# widths, keys, hostile words


@pytest.mark.parametrize("path", ["", "negatives/ball", "latents/ball/{best}", "latents/ball/blind-1"])
def test_a_telephone_is_wide_enough(whole: Path, tmp_path: Path, browser: Browser, path: str) -> None:
    shutil.copytree(whole, tmp_path / "study")
    study = Study(tmp_path / "study")
    with desk_of(study, browser, tmp_path / "home", viewport={"width": 375, "height": 700}) as desk:
        page = desk.open(path.format(best=best(study, "ball")))
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        for image in page.locator("img").all():
            assert image.get_attribute("alt") is not None
        unnamed = page.locator("button, a, input, textarea").evaluate_all(
            "all => all.filter(e => e.offsetParent && !(e.textContent.trim() || e.ariaLabel || e.labels?.length))"
            ".map(e => e.outerHTML)"
        )
        assert unnamed == []


def test_everything_is_reached_by_the_tab_key(desk: Desk) -> None:
    _, page = desk.latent()
    wanted = {"heat", "strength", "hypothesis", "caveats", "reviewer", "number"}
    page.evaluate("document.body.focus()")
    for _ in range(200):
        page.keyboard.press("Tab")
        wanted.discard(str(page.evaluate("document.activeElement.id")))
        if not wanted:
            break
    assert wanted == set()


def test_hostile_words_are_only_words(whole: Path, tmp_path: Path, browser: Browser) -> None:
    shutil.copytree(whole, tmp_path / "study")
    study = Study(tmp_path / "study")
    columns, rows = manifest.read(study.manifest)
    for at, row in enumerate(rows):
        row |= {
            "url": HOSTILE[at % len(HOSTILE)],
            "source": HOSTILE[(at + 3) % len(HOSTILE)],
            "reason": HOSTILE[at % 5],
        }
    study._write(columns, rows)
    study.change(lambda about: about["samplings"].clear())  # urls are names of the pool no more
    study.set_criteria("ball", HOSTILE[0] + HOSTILE[1])
    latent = best(study, "ball")
    for text in HOSTILE:
        answer(study, "<i>Eve</i>", "ball", latent, hypothesis=text, caveats=text, verdict="rejected")
    with desk_of(study, browser, tmp_path / "home") as desk:
        for path in ("", "negatives/ball", f"latents/ball/{latent}"):
            page = desk.open(path)
            page.on("dialog", lambda dialog: desk.complaints.append(dialog.message))
            page.wait_for_load_state("networkidle")
            if path.startswith("latents"):
                page.get_by_label("rejected", exact=True).check()
                expect(page.locator("#others")).to_contain_text("<i>Eve</i>")
            assert page.locator("script").count() == 1
            assert page.locator("i, [onerror], [onload], [onmouseover]").count() == 0
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
