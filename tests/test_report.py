"""The report: what it says, that nothing that people wrote does harm, and that it is whole or not there."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

import semprobe
import semprobe.heatmaps
from semprobe import report, report_pages
from semprobe.cli import _looks, main
from semprobe.report_pages import fenced, in_markdown, visible
from semprobe.reviews import Answer, Reviews
from semprobe.study import Study
from tests.conftest import CONCEPTS, HOSTILE, MODEL, answer, best, draw, make_study, measure, write_saev

Run = Callable[..., Result]


def pick(made: Study, who: str, concept: str, latent: int, field: str, image: str) -> None:
    with Reviews(made.reviews) as reviews:
        reviews.pick(who, concept, latent, field, image)


# reading a page


class Page(HTMLParser):
    """Every tag with its attributes, the text, and whether tags are nested as they should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "link", "br"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def check_harmless(html: str) -> Page:
    """No script, nothing from elsewhere, every picture with words."""
    page = Page(html)
    assert {tag for tag, _ in page.tags} <= {
        "html", "head", "meta", "title", "style", "body", "header", "main", "nav", "section", "div", "p", "h1", "h2",
        "h3", "h4", "h5", "a", "ol", "ul", "li", "dl", "dt", "dd", "table", "caption", "thead", "tbody", "tr", "th",
        "td", "figure", "figcaption", "img", "span", "strong", "code", "pre", "time", "svg", "defs", "g", "path",
        "clippath", "rect", "use", "text", "metadata", "rdf:rdf", "cc:work",
    }  # fmt: skip
    for tag, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            if name in attrs:
                assert str(attrs[name]).startswith(("data:image/jpeg;base64,", "#")), (tag, attrs)
        assert "url(" not in str(attrs.get("style")) or "url(#" in str(attrs.get("style"))
        if tag == "img":
            assert str(attrs["alt"]).strip()
    targets = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert all(str(attrs["href"])[1:] in targets for tag, attrs in page.tags if tag == "a")
    assert "@import" not in html
    assert not re.search(r"url\(['\"]?(?!#)", html)
    return page


def read(folder: Path) -> tuple[Page, str]:
    return check_harmless((folder / "report.html").read_text("utf-8")), (folder / "report.md").read_text("utf-8")


def cells(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# what it says


def test_without_reviews_it_says_so(made: Study, run: Run) -> None:
    told = run("report", made.folder, "--quiet").stdout
    page, text = read(made.report)
    for one in (told, page.text, text):
        assert "No latent has been reviewed yet: nothing in this report is validated." in one
    assert not made.reviews.exists()
    assert page.text.count("Not reviewed") == len(CONCEPTS)
    assert "12 negative images that the scores rest on nobody has accepted" in page.text
    assert [row["standing"] for row in cells(made.report / "latents.csv")] == ["not reviewed"] * 10
    assert [tag for tag, _ in page.tags].count("img") > 0
    assert sorted(path.name for path in made.report.iterdir()) == [
        "images.csv", "latents.csv", "pictures", "report.html", "report.md"
    ]  # fmt: skip


def test_what_reviewers_said_is_there(made: Study, run: Run) -> None:
    first, second, third = (best(made, "t-shirt", at) for at in range(3))
    far = best(made, "t-shirt", 60)
    image = made.used()[0]["path"]
    answer(made, "Ada", "t-shirt", first, verdict="validated", hypothesis="collars", evidence_for="7 of 10",
           evidence_against="one sock", failure_modes="at night", edge_cases="a poncho", caveats="blurred")  # fmt: skip
    pick(made, "Ada", "t-shirt", first, "pictures_for", image)
    pick(made, "Ada", "t-shirt", first, "pictures_against", "images/../../secret.png")
    answer(made, "Ben", "t-shirt", first, verdict="validated")
    answer(made, "Ada", "t-shirt", second, verdict="rejected", evidence_against="fires on grass")
    answer(made, "Ben", "t-shirt", second, verdict="validated")
    answer(made, "Ben", "t-shirt", far, verdict="rejected", caveats="all noise")
    answer(made, "Ada", "t-shirt", third, hypothesis="to be seen")
    answer(made, "Ada", "колесо", 5, blinded=True, verdict="unclear", hypothesis="a spoke")
    answer(made, "Ada", "boat", 5, verdict="rejected")
    result = json.loads(run("report", made.folder, "--quiet", "--json").stdout)
    assert {k: result["standings"]["t-shirt"][str(k)] for k in (first, second, third, far)} == {
        first: "validated", second: "disputed", third: "no verdict", far: "rejected"
    }  # fmt: skip
    page, text = read(made.report)
    scores = semprobe.open_store(made.scores).load().sel(concept="t-shirt")
    for one in (page.text, text):
        assert f"1 was validated: latent {first} for t-shirt (by Ada and Ben" in one
        for words in ("collars", "7 of 10", "one sock", "at night", "a poncho", "blurred", "all noise",
                      "a spoke", "Picked by Ada as evidence for", "no image of this study: images/../../secret.png",
                      f"F1 {float(scores['f1'][first]):.3f}", f"a floor of {float(scores['floor_f1']):.3f}",
                      f"reaches {float(scores['held_out_f1']):.3f} on the other half", "boat, latent 5",
                      "Cohen's kappa is" if one is text else "Cohen’s kappa is"):  # fmt: skip
            assert words in one.replace("\\", ""), words
    assert "all noise.." not in page.text
    rows = {row["latent"]: row for row in cells(made.report / "latents.csv") if row["concept"] == "t-shirt"}
    assert rows[str(first)]["verdicts"] == "validated (Ada), validated (Ben)"
    assert float(rows[str(far)]["f1"]) == float(scores["f1"][far])
    assert rows[str(far)]["rank"] == "61"
    assert len(rows) == 6


def test_nothing_that_was_said_is_left_out(made: Study, run: Run) -> None:
    fields = ("hypothesis", "evidence_for", "evidence_against", "failure_modes", "edge_cases", "caveats")
    kinds: list[tuple[str, bool]] = [("rejected", False), ("unclear", False), ("", False), ("unclear", True)]
    for at, (verdict, blinded) in enumerate(kinds):
        said = {name: f"{name}-{at}" for name in fields} | ({"verdict": verdict} if verdict else {})
        answer(made, "Ada", "t-shirt", best(made, "t-shirt", at), blinded=blinded, **said)
    for image in made.used()[:2]:
        pick(made, "Ada", "t-shirt", best(made, "t-shirt"), "pictures_for", image["path"])
    pick(made, "Ada", "t-shirt", best(made, "t-shirt"), "pictures_against", made.used()[2]["path"])
    run("report", made.folder, "--quiet")
    page, text = read(made.report)
    for one in (page.text, text.replace("\\", "")):
        assert "Pictures picked: 2 for it, 1 against it." in one
        assert "What was said without a verdict" in one
        for name in fields:
            assert [f"{name}-{at}" for at in range(len(kinds)) if f"{name}-{at}" not in one] == [], name


def test_design_commands_and_hashes_are_there(made: Study, run: Run) -> None:
    run("report", made.folder, "--quiet")
    page, text = read(made.report)
    came = semprobe.open_store(made.scores).attrs["provenance"]
    for one in (page.text, text.replace("\\", "")):
        assert came["sae"]["sha256"] in one
        assert came["versions"]["torch"] in one
        assert "--concept t-shirt" in one
    rows = [[one.strip() for one in line.split("|")] for line in text.splitlines() if line.startswith("| t-shirt |")]
    assert rows[0][2:11] == ["6", "0", "0", "6", "6", "0", "0", "6", "1"]
    images = cells(made.report / "images.csv")
    assert len(images) == 24
    assert not [row for row in images if row["verdict"] == "rejected"]


def test_pictures_have_heat_only_with_the_sae_that_was_scored(made: Study, run: Run, tmp_path: Path) -> None:
    with_heat = run("report", made.folder, "--quiet", "--json").stdout
    assert json.loads(with_heat)["notices"] == []
    assert "heat where it fires" in (made.report / "report.html").read_text()
    other = write_saev(tmp_path / "other.pt", seed=1)
    for words in (["--sae", other], ["--sae", tmp_path / "gone.pt"]):
        result = run("report", made.folder, "--overwrite", "--quiet", *words)
        assert "NOTE: Pictures are shown without heat" in result.stderr
        page, text = read(made.report)
        assert "without heat" in page.text
        assert "> **Note.**" in text
        assert "heat where it fires" not in text
        assert "True positives: 4 of" in page.text
        assert [tag for tag, _ in page.tags].count("img") > 0
    shutil.rmtree(made.activations)
    assert "activations.zarr is not there" in run("report", made.folder, "--overwrite", "--quiet").stderr


def test_activations_that_were_extracted_otherwise_give_no_heat(made: Study, run: Run) -> None:
    again = ("extract", made.folder, "--model", MODEL, "--random-weights", "0", "--overwrite", "--quiet")
    for option, told in ((("--crop-pct", "0.97"), "crop"), (("--dtype", "float16"), "dtype: float32"), ((), "")):
        run(*again, *option)
        result = run("report", made.folder, "--overwrite", "--quiet", "--json")
        notices = json.loads(result.stdout)["notices"]
        assert len(notices) == bool(told)
        assert not told or re.search(f"has changed since it was scored .*{told}", notices[0])


def test_normalised_activations_and_swept_thresholds_have_heat_too(made: Study, run: Run, measured: Path) -> None:
    sae = measured / "sae.pt"
    run("encode", made.folder, "--sae", sae, "--normalize", "probe", "--overwrite", "--quiet")
    run("score", made.folder, "--threshold-sweep", "--permutations", 100, "--overwrite", "--quiet")
    assert json.loads(run("report", made.folder, "--quiet", "--json").stdout)["notices"] == []
    page, text = read(made.report)
    assert "heat where it fires" in text
    assert "Threshold" in page.text
    assert all(row["threshold"] for row in cells(made.report / "latents.csv"))


def test_patch_sums_are_of_what_was_scored_or_not_told(made: Study, run: Run, tmp_path: Path, measured: Path) -> None:
    away = tmp_path / "activations.zarr"

    def told(*words: object) -> bool:
        run("encode", made.folder, *words, "--overwrite", "--quiet")
        made.activations.rename(away)
        run("report", made.folder, "--overwrite", "--quiet")
        away.rename(made.activations)
        return re.search(r"patch sum \d", read(made.report)[1]) is not None

    sae = measured / "sae.pt"
    assert told("--sae", sae)
    assert not told("--sae", write_saev(tmp_path / "other.pt", seed=1))
    assert not told("--sae", sae, "--normalize", "probe")
    assert told("--sae", sae)


def test_codes_that_do_not_agree_with_the_scores_are_not_painted(
    made: Study, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = semprobe.heatmaps.heatmap
    monkeypatch.setattr(semprobe.heatmaps, "heatmap", lambda *given: right(*given) * 0)
    notices = json.loads(run("report", made.folder, "--quiet", "--json").stdout)["notices"]
    assert len(notices) == len(CONCEPTS)
    assert all("its codes do not agree with the scores" in one for one in notices)
    assert "heat where it fires" not in read(made.report)[1]


def test_a_look_says_of_its_latent_why_there_is_no_heat(made: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    right = semprobe.heatmaps.heatmap
    monkeypatch.setattr(semprobe.heatmaps, "heatmap", lambda *given: right(*given) * 0)
    scores = _looks.tested_scores(made)
    looks = _looks.Looks(made, scores, None, "none", {}, None, True)
    latent = best(made, "t-shirt")
    first, again = (next(looks.of([("t-shirt", latent)])) for _ in range(2))
    assert f"Pictures of latent {latent} are shown without heat" in first.notice
    assert first.notice == again.notice
    assert looks.notices == []


def test_long_sources_are_told_in_brief() -> None:
    told = report._counts(["x" * 10_000, "web", "web", *map(str, range(20))])
    assert told.startswith("web 2, ")
    assert told.endswith(", 14 more")
    assert "x" * 59 + "… 1" in told


def test_examples_are_ordered_by_patch_sum_and_are_what_they_say(made: Study, run: Run) -> None:
    latent = best(made, "t-shirt")
    answer(made, "Ada", "t-shirt", latent, verdict="validated")
    run("report", made.folder, "--quiet")
    became = semprobe.outcomes(semprobe.open_store(made.scores).load(), "t-shirt", latent)
    page, _ = read(made.report)
    for kind, words in (("tp", "True positives"), ("fp", "False positives"), ("tn", "True negatives")):
        number = int((became.values == kind).sum())
        shown = f"{words}: {min(4, number)} of {number}" if number else f"{words}: none"
        assert shown in page.text
    sums = [float(one["alt"].split("patch sum ")[1].split(",")[0]) for tag, one in page.tags
            if tag == "img" and f"true positive of latent {latent} for t-shirt" in str(one["alt"])]  # fmt: skip
    assert len(sums) >= 2
    assert sums == sorted(sums, reverse=True)
    for path in (made.report / "pictures").glob("*.jpg"):
        with Image.open(path) as image:
            assert max(image.size) <= 200
    names = set(re.findall(r"\]\(pictures/([^)]+)\)", (made.report / "report.md").read_text()))
    assert names == {path.name for path in (made.report / "pictures").iterdir()}


# what people wrote does no harm


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("hostile")
    made = make_study(folder, HOSTILE, concepts=("x" * 100, "हिन्दी"))
    measure(made, write_saev(folder / "sae.pt"))
    first = best(made, "हिन्दी")
    fields = ("hypothesis", "evidence_for", "evidence_against", "failure_modes", "edge_cases", "caveats")
    for at in range(0, len(HOSTILE), 6):
        who = f"<b>{at}</b> | =1+1"
        words = dict(zip(fields, HOSTILE[at : at + 6], strict=False))
        answer(made, who, "हिन्दी", first, verdict="validated", **words)
        answer(made, who, "हिन्दी", 3, verdict="rejected", **words)
        answer(made, who, "हिन्दी", 7, blinded=True, hypothesis=HOSTILE[at])
        pick(made, who, "हिन्दी", first, "pictures_for", HOSTILE[at])
    assert CliRunner().invoke(main, ["report", str(made.folder), "--quiet"]).exit_code == 0
    return made


def test_no_word_becomes_a_tag_or_steers_the_text(hostile: Study) -> None:
    page, text = read(hostile.report)
    for words in ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "{{ 7 * 7 }}", "x" * 10_000,
                  "</dd></section></main>", "../../etc/passwd", "a⟨U+202E⟩gpj.exe", "&lt;b&gt;"):  # fmt: skip
        assert words in page.text, words
    for one in ((hostile.report / "report.html").read_text("utf-8"), text):
        assert not re.search("[\u202a-\u202e\u2066-\u2069\0\x1b]", one)


def test_markdown_has_no_tag_link_or_cell_of_theirs(hostile: Study) -> None:
    _, text = read(hostile.report)
    outside = re.sub(r"(?ms)^(`{3,})\n.*?^\1$", "", text)
    assert set(re.findall(r"<[^>]*>", outside)) <= {"<br>"}
    links = set(re.findall(r"(?<!\\)\]\(([^)]*)\)", outside))
    assert all(re.fullmatch(r"(images|latents)\.csv|pictures/[\w.-]+", one) for one in links), links
    tables = re.findall(r"(?m)(?:^\|.*\n)+", outside)
    assert len(tables) >= 7
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table[:300]
    assert "://evil" not in outside


def test_no_cell_is_a_formula(hostile: Study) -> None:
    for name in ("latents.csv", "images.csv"):
        text = (hostile.report / name).read_text("utf-8")
        found = [cell for line in csv.reader(io.StringIO(text, newline="")) for cell in line]
        assert not [cell for cell in found if cell.startswith(tuple("=+-@\t\r\n"))]
    assert any("HYPERLINK" in row["reason"] for row in cells(hostile.report / "images.csv"))


@pytest.mark.parametrize("text", HOSTILE)
def test_escapes_lose_nothing_that_can_be_seen(text: str) -> None:
    shown = str(in_markdown(text))
    assert "<" not in shown.replace("<br>", "")
    assert "\n" not in shown
    block = str(fenced(text)).splitlines()
    assert block[0] == block[-1] == "`" * len(block[0])
    assert not [line for line in block[1:-1] if line.strip().startswith(block[0])]
    assert visible("a\u200d") == "a\u200d"


@pytest.mark.parametrize(
    ("verdicts", "found"),
    [((), "not reviewed"), (("",), "no verdict"), (("validated",), "validated"), (("validated", ""), "validated"),
     (("validated", "rejected"), "disputed"), (("validated", "unclear"), "disputed"), (("unclear",), "unclear"),
     (("rejected", "unclear"), "unclear"), (("rejected", "rejected"), "rejected")],
)  # fmt: skip
def test_what_verdicts_come_to(verdicts: tuple[str, ...], found: str) -> None:
    assert report.standing(Answer(str(at), "fur", 1, False, verdict=one) for at, one in enumerate(verdicts)) == found
    assert found in report.STANDINGS


# the folder


def test_what_is_there_stays_unless_asked(made: Study, run: Run, tmp_path: Path) -> None:
    run("report", made.folder, "--quiet")
    before = (made.report / "report.html").read_bytes()
    assert "--overwrite replaces it" in run("report", made.folder, "--quiet", code=1).stderr
    assert (made.report / "report.html").read_bytes() == before
    answer(made, "Ada", "t-shirt", best(made, "t-shirt"), verdict="rejected")
    run("report", made.folder, "--quiet", "--overwrite")
    assert (made.report / "report.html").read_bytes() != before
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    result = run("report", made.folder, "-o", mine, "--overwrite", "--quiet", code=1)
    assert "thesis.tex" in result.stderr
    assert (mine / "thesis.tex").read_text() == "years of work"
    (tmp_path / "link").symlink_to(made.report)
    run("report", made.folder, "-o", tmp_path / "link", "--overwrite", "--quiet", code=1)
    run("report", made.folder, "-o", made.images / "report", "--quiet", code=2)
    run("report", made.folder, "-o", tmp_path / "no" / "report", "--quiet", code=1)


@pytest.mark.parametrize(
    ("made_by_hand", "of_a_report", "said"),
    [("pictures/holiday.jpg", False, "pictures/holiday.jpg"), ("pictures/holiday.jpg", True, "pictures/holiday.jpg"),
     ("pictures/1-3-tp-0.jpg", False, "no report.html"), ("latents.csv", False, "no report.html"),
     ("pictures/1-3-tp-0.jpg/holiday.jpg", True, "pictures/1-3-tp-0.jpg"), ("report.md/me.tex", True, "report.md")],
)  # fmt: skip
def test_nothing_that_no_report_makes_is_replaced(
    made: Study, run: Run, tmp_path: Path, made_by_hand: str, of_a_report: bool, said: str
) -> None:
    mine = tmp_path / "mine"
    file = mine / made_by_hand
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    if of_a_report:
        (mine / "report.html").touch()
    told = run("report", made.folder, "-o", mine, "--overwrite", "--quiet", code=1).stderr
    assert said in told
    assert file.read_text() == "mine"


def test_every_picture_has_a_name_that_reports_give(made: Study, run: Run) -> None:
    latent = best(made, "t-shirt")
    answer(made, "Ada", "t-shirt", latent, verdict="validated")
    for field in ("pictures_for", "pictures_against"):
        pick(made, "Ada", "t-shirt", latent, field, made.used()[0]["path"])
    run("report", made.folder, "--quiet")
    names = {path.name for path in (made.report / "pictures").iterdir()}
    assert all(report_pages.PICTURE_NAME.fullmatch(name) for name in names), names
    assert {f"1-{latent}-{kind}-0-0.jpg" for kind in ("for", "against")} <= names
    run("report", made.folder, "--quiet", "--overwrite")


@pytest.mark.parametrize("where", ["pathlib.Path.write_bytes", "semprobe.cli.report._replace"])
def test_a_killed_run_leaves_no_half_report(made: Study, run: Run, where: str) -> None:
    run("report", made.folder, "--quiet")
    before = {path.name: path.read_bytes() for path in made.report.iterdir() if path.is_file()}
    module, _, name = where.rpartition(".")
    owner = "pathlib.Path" if module == "pathlib.Path" else "sys.modules['semprobe.cli.report']"
    code = (
        "import os, sys, pathlib, signal\nfrom semprobe.cli import main, report\ncalls = []\n"
        f"whole = {owner}.{name}\n"
        "def die(*given):\n    calls.append(1)\n"
        f"    if len(calls) > {2 if 'write' in name else 0}: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"    return whole(*given)\n{owner}.{name} = die\nmain(sys.argv[1:])"
    )
    words = ["report", str(made.folder), "--overwrite", "--quiet"]
    died = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, check=False)
    assert died.returncode == -9, died.stderr
    assert {path.name: path.read_bytes() for path in made.report.iterdir() if path.is_file()} == before
    assert len([path for path in made.folder.iterdir() if path.name.startswith(".report-")]) == 1
    made.tidy()
    run("report", made.folder, "--overwrite", "--quiet")
    assert not [path for path in made.folder.iterdir() if path.name.startswith(".report-")]


def test_answers_from_before_the_scores_are_told(made: Study, run: Run) -> None:
    answer(made, "Ada", "t-shirt", 3, verdict="rejected")
    assert "before these scores" not in run("report", made.folder, "--quiet").stderr
    time.sleep(1.1)  # stores record seconds
    run("score", made.folder, "--overwrite", "--quiet", "--permutations", 100)
    told = run("report", made.folder, "--quiet", "--overwrite").stderr
    assert "NOTE: 1 answer was given before these scores were made" in told
    assert "1 answer was given before" in read(made.report)[0].text


def test_stores_of_other_images_are_refused(made: Study, run: Run) -> None:
    row = made.used()[0]
    made.set_verdict(row["path"], row["concept"], "rejected", "Ada")
    told = run("report", made.folder, "--quiet", code=1).stderr
    assert "was made of other images than the study uses now" in told
    assert f"semprobe score {made.folder} --overwrite" in told
    shutil.rmtree(made.scores)
    assert "semprobe score" in run("report", made.folder, "--quiet", code=1).stderr
    assert "is no study" in run("report", made.images, "--quiet", code=1).stderr


def test_a_picture_that_was_changed_is_an_error(made: Study, run: Run) -> None:
    for row in made.used():
        draw(made.folder / row["path"], (1, 2, 3))
    assert "images/" in run("report", made.folder, "--quiet", code=1).stderr
    assert not made.report.exists()


def test_the_pilot_ends_in_a_report(tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    made = json.loads(run("pilot", out, "--each", 8, "--report", "--json", "--quiet").stdout)
    assert made["report"] == str(out / "report" / "report.html")
    page, _ = read(out / "report")
    assert "nothing in this report is validated" in page.text
    assert os.path.getsize(made["report"]) < 10_000_000
    here = Study(made["study"])
    assert len(here.used()) == 128
    assert {row["source"] for row in here.used()} == {"drawn by semprobe pilot"}
    assert not [row for row in here.rows() if row["verdict"] or not row["reason"]]
    assert not here.reviews.exists()
    answer(here, "Ada", "wheel", 1, verdict="rejected")
    told = run("pilot", out, "--each", 8, "--report", "--overwrite", "--quiet", code=1).stderr
    assert "answers of reviewers, which no pilot replaces" in told
    assert here.reviews.exists()


def test_numbers_that_are_not_known_are_dashes() -> None:
    nan = float("nan")
    assert report_pages.number(nan) == report_pages.interval(nan, 1) == "–"
    assert report_pages.number(0.12345) == "0.123"
    assert report_pages.interval(0.1, 0.25, 2) == "0.10–0.25"
