"""A report as pages: one of HTML that needs no other file, no script and no network, and one of Markdown.

Everything that people wrote is escaped by the templates' environments, not by whoever fills them in: in HTML by Jinja's
own autoescape, in Markdown by :func:`in_markdown`; in both, characters that steer text are made visible.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import jinja2
from markupsafe import Markup

from semprobe.panels import chance_in_words
from semprobe.report import Report, counted, words

LIMITS = """\
F1 measures an association between a latent and a label on these images. It is no evidence that the model uses the \
latent, nor that the latent causes anything. All tests and intervals are conditional on these images and on how they \
were chosen: positives and negatives that differ in more than the concept, such as source, style or background, can be \
told apart by that difference. The images that chose a latent also report its F1, which is therefore too high; the F1 \
on held-out halves says what the choice is worth, not what one latent is. p guards against having looked at all \
latents, not against trying several SAEs, blocks or thresholds. A verdict is the judgement of the people named. \
Formulas and sources are in semprobe's docs/statistics.md."""
"""What no report of this kind can show."""

PICTURE_NAME = re.compile(r"null-\d+\.svg|\d+-\d+-(tp|fp|fn|tn|patch|(for|against)-\d+)-\d+\.jpg")
"""Every name that a report gives to a file in ``pictures/``, and no other."""

_MARKS = re.compile(r"([\\`*_\[\]|#~$!])")


def visible(text: str) -> str:
    """Text in which nothing steers: control characters and marks that turn its direction become words.

    Line breaks and tabs stay.

    Examples
    --------
    >>> visible("a\u202eb")
    'a⟨U+202E⟩b'
    """
    bad = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(
        f"⟨U+{ord(one):04X}⟩" if unicodedata.category(one) in bad and one not in "\n\t\u200c\u200d" else one
        for one in text.replace("\r\n", "\n")
    )


def in_markdown(text: str) -> Markup:
    """Text that is only ever text in Markdown, also in a cell of a table.

    Examples
    --------
    >>> print(in_markdown("<b>|`x`"))
    &lt;b&gt;\\|\\`x\\`
    """
    escaped = visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    marked = _MARKS.sub(r"\\\1", escaped).replace("://", ":&#47;&#47;")
    return Markup(re.sub(r"\s*\n\s*", "<br>", marked.strip()).replace("\t", " "))


def fenced(text: str) -> Markup:
    """Text in Markdown as a block of code that it can't end.

    Examples
    --------
    >>> print(fenced("a ``` b"))
    ````
    a ``` b
    ````
    """
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text) or [""]))
    return Markup(f"{fence}\n{visible(text)}\n{fence}")


# numbers


def number(value: Any, digits: int = 3) -> str:
    """A number with so many digits after the point; a dash where there is none."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def interval(low: float, high: float, digits: int = 3) -> str:
    """Two ends of an interval; a dash where they are not known."""
    return "–" if low != low or high != high else f"{low:.{digits}f}–{high:.{digits}f}"


def _short(value: float) -> str:
    """A false discovery rate."""
    return "–" if value != value else f"{value:.2g}"


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."


def _stop(text: str) -> str:
    """A reviewer's words with a full stop, unless they end with one or the like."""
    text = text.strip()
    return text if text.endswith((".", "!", "?", "…", ":", ";")) else f"{text}."


def _day(at: str) -> str:
    """Date and minute of a time as manifests and answers have it."""
    return at[:16].replace("T", " ")


# pages


def environment(html: bool) -> jinja2.Environment:
    """Templates in which everything that people wrote is escaped, of HTML or of Markdown."""

    def shown(value: Any) -> Any:
        if isinstance(value, Markup) or not isinstance(value, str):
            return value
        return visible(value) if html else in_markdown(value)

    found = jinja2.Environment(
        loader=jinja2.PackageLoader("semprobe"), autoescape=html, finalize=shown, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    found.filters |= {"number": number, "chance": chance_in_words, "short": _short, "day": _day, "fenced": fenced,
                      "sentence": _sentence, "stop": _stop}  # fmt: skip
    found.globals |= {"interval": interval, "counted": counted, "svg": Markup, "limits": LIMITS, "words": words}
    return found


def as_html(report: Report) -> str:
    """The report as one page of HTML, pictures inside."""
    return environment(html=True).get_template("report.html").render(report=report)


def as_markdown(report: Report) -> str:
    """The report as Markdown, for the files of :func:`files` beside it."""
    text = environment(html=False).get_template("report.md").render(report=report)
    return re.sub(r"\n{3,}", "\n\n", text)


def files(report: Report) -> dict[str, bytes]:
    """The pictures of the page of Markdown, by their names in ``pictures/``."""
    found = {f"null-{at}.svg": one.svg.encode() for at, one in enumerate(report.concepts, 1) if one.svg}
    for concept in report.concepts:
        for latent in concept.latents:
            found |= {picture.name: picture.data for gallery in latent.galleries for picture in gallery.pictures}
    return found
