"""Pictures of what chance reaches, beside what the best latents reach.

The numbers are those of :func:`semprobe.panels.panels`; here they are drawn, and nothing else. Figures are made without
pyplot, so no window opens, and the user's own settings of matplotlib are neither followed nor changed.
"""

from __future__ import annotations

import html
import io
import re
import unicodedata
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from semprobe.panels import Panel, chance_in_words, in_words, panels

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
"""That :func:`render` makes."""

# Okabe and Ito's colours, which people with any common colour blindness tell apart
_NULL, _EDGE, _RANDOM, _FLOOR, _CRITICAL = "#56B4E9", "#0072B2", "#BBBBBB", "#CC79A7", "#000000"
_YES, _NO = ("#D55E00", "D", "#D55E00"), ("#555555", "o", "#FFFFFF")  # line, marker, filling

_LEFT, _WIDE, _RIGHT = 1.0, 3.5, 1.85  # inches of a panel, from left to right
_TITLE, _HIGH, _ROW, _BELOW = 0.66, 1.5, 0.22, 0.5  # and from top to bottom
_HEAD, _LINE, _NAME = 0.62, 0.2, 44  # inches above all panels, of a line of the legend; letters of a name

_STYLE: Any = ["default", {
    "font.size": 8, "axes.spines.top": False, "axes.spines.right": False,
    "svg.hashsalt": "semprobe", "svg.fonttype": "none", "pdf.fonttype": 42,
}]  # fmt: skip
_WIDTHS = (0.005, 0.01, 0.02, 0.025, 0.04, 0.05, 0.1)
_FONTS = "Noto Sans CJK JP", "Hiragino Sans", "Yu Gothic", "Microsoft YaHei", "Droid Sans Fallback", "Nirmala UI"
_CONFOUNDED = "CONFOUNDED: significant may mean the source, not the concept"
_COLUMNS = 1.03, 1.15, 1.36  # beside the best latents, in widths of the axes


def _edges(width: float) -> np.ndarray:
    """Edges of bins over F1, of which 0 and 1 are middles."""
    return (np.arange(round(1 / width) + 2) - 0.5) * width


def _shares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.histogram(values + 1e-9, edges)[0] / len(values)  # a value on an edge is above it, rounded or not


def _null_edges(null: np.ndarray) -> np.ndarray:
    """The narrowest bins whose shares rise to one peak and fall.

    F1 takes few values, unevenly spaced: bins as narrow as their gaps show a comb that says nothing of chance.
    """
    for width in _WIDTHS:
        steps = np.diff(_shares(null, _edges(width)), prepend=0)
        peak = steps.cumsum().argmax()
        if (steps[: peak + 1] > -0.005).all() and (steps[peak + 1 :] < 0.005).all():
            break
    return _edges(width)


# drawing


def plot_null(
    scores: xr.Dataset, *, concepts: Sequence[str] | None = None, top: int = 5, alpha: float | None = None
) -> Figure:
    """What chance reaches, and the best latents: a panel a concept.

    Above, the null: the largest F1 of all latents under each permutation of the labels, as a share of permutations,
    beside the F1 of random latents. Below, on the same axis, the best latents, a row each, with their interval. Lines
    through both are the floor and the critical F1, the smallest that is significant.

    Parameters
    ----------
    scores
        A store of scores: ``tp fp fn tn f1`` (concept, latent) and ``null_max_f1`` (concept, permutation). Drawn if
        there: ``random_f1`` (concept, draw), ``f1_low f1_high`` (concept, latent); and said if there:
        ``within_source source_words`` (concept,). ``p_max`` is computed if it is not
        there. All concepts of the study have to be in it if the provenance says that the family is the study.
    concepts
        To draw, in this order; all if None or empty.
    top
        Latents a concept, best first, as :func:`semprobe.rank` orders them.
    alpha
        Chance of any false finding; that of the provenance, or else 0.05, if None.

    Returns
    -------
    matplotlib.figure.Figure
        Its label says the result in words. :func:`render` and :func:`as_svg` make a file of it.

    Raises
    ------
    DataError
        No null, an unknown concept, or settings out of range.
    """
    return draw(panels(scores, concepts=concepts, top=top, alpha=alpha))


def draw(found: list[Panel]) -> Figure:
    """The picture of :func:`plot_null`, from its numbers."""
    from matplotlib import style
    from matplotlib.figure import Figure

    columns = 1 if len(found) == 1 else 2 if len(found) <= 4 else 3
    rows = -(-len(found) // columns)
    lists = max(len(one.top) for one in found) * _ROW + 0.12
    each = _TITLE + _HIGH + lists + _BELOW
    with style.context(_STYLE):
        legend = _entries(found)
        below = -(-len(legend) // columns) * _LINE + 0.2
        size = columns * (_LEFT + _WIDE + _RIGHT), _HEAD + rows * each + below
        figure = Figure(figsize=size, dpi=150, facecolor="white")
        for at, panel in enumerate(found):
            left = at % columns * (_LEFT + _WIDE + _RIGHT) + _LEFT
            base = size[1] - _HEAD - at // columns * each - _TITLE - _HIGH
            boxes = ((left, base, _WIDE, _HIGH), (left, base - lists, _WIDE, lists))
            above, under = (figure.add_axes((x / size[0], y / size[1], w / size[0], h / size[1]))
                            for x, y, w, h in boxes)  # fmt: skip
            _draw_null(above, panel)
            _draw_top(under, panel)
            _draw_lines(above, under, panel)
        _draw_head(figure, found[0])
        figure.legend(handles=legend, loc="lower left", bbox_to_anchor=(_LINE / size[0], 0.05 / size[1]),
                      ncols=columns, frameon=False, borderaxespad=0)  # fmt: skip
    figure.set_label("\n".join(["Largest F1 by chance, and the best latents.", *map(in_words, found)]))
    return figure


def _draw_head(figure: Figure, first: Panel) -> None:
    wide, high = figure.get_size_inches()
    whole = f"all latents of all {first.concepts} concepts (family: study)"
    over = whole if first.family == "study" else "all latents of the concept"
    told = (
        f"Significant: p ≤ {first.alpha:g}, corrected for having looked at {over}. Permutations: {len(first.null):,}."
    )
    figure.text(_LINE / wide, 1 - 0.24 / high, "Are the best latents better than chance?", fontsize=11, weight="bold")
    figure.text(_LINE / wide, 1 - 0.46 / high, told)


def _draw_null(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    shown: list[tuple[np.ndarray, np.ndarray, dict[str, Any]]] = [
        (panel.random, _edges(0.05), {"facecolor": _RANDOM, "alpha": 0.6}),
        (panel.null, _null_edges(panel.null), {"facecolor": _NULL, "edgecolor": _EDGE, "linewidth": 0.8}),
    ]
    for values, edges, options in shown:
        if len(values):
            axes.stairs(_shares(values, edges), edges, fill=True, **options)
    high = axes.dataLim.y1
    axes.set_yticks([at for at in MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(0, high) if 0 <= at <= 1])
    axes.set_ylim(0, high * 1.25)  # room for the words beside the lines
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylabel("share of permutations")
    axes.tick_params(axis="x", labelbottom=False, length=0)
    sizes = f"{panel.positives:,} positive, {panel.negatives:,} negative images; {panel.latents:,} latents"
    # mathematics off: a concept's name is the user's, and may hold dollars
    axes.set_title(_short(panel.concept), loc="left", fontsize=10, pad=29 if panel.confounded else 17, parse_math=False,
                   weight="bold" if panel.concept.isascii() else "normal",  # few fonts of other scripts have bold
                   fontfamily=_fonts(panel.concept))  # fmt: skip
    axes.annotate(sizes, (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points")
    if panel.confounded:
        axes.annotate(_CONFOUNDED, (0, 1), (0, 17), xycoords="axes fraction", textcoords="offset points",
                      weight="bold")  # fmt: skip


def _draw_top(axes: Axes, panel: Panel) -> None:
    places = np.arange(len(panel.top))
    axes.set_ylim(len(places) - 0.4, -0.9)
    axes.set_xlim(-0.02, 1.02)
    axes.set_yticks(places, [f"latent {one.latent}" for one in panel.top])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("F1 (no unit)")
    axes.axhline(-0.9, color="#DDDDDD", linewidth=0.8)
    for y, one in zip(places, panel.top, strict=True):
        line, marker, filling = _YES if one.significant else _NO
        if np.isfinite(one.low) and np.isfinite(one.high):
            axes.plot([one.low, one.high], [y, y], color=line, linewidth=1.6, solid_capstyle="butt", zorder=3)
        axes.plot(one.f1, y, marker, color=line, markerfacecolor=filling, markersize=5.5, clip_on=False, zorder=4)
        interval = f"{one.low:.2f}–{one.high:.2f}" if np.isfinite(one.low) else ""
        for x, told in zip(_COLUMNS, (f"{one.f1:.3f}", interval, chance_in_words(one.p_max)), strict=True):
            axes.annotate(told, (x, y), xycoords=("axes fraction", "data"), va="center",
                          weight="bold" if one.significant else "normal")  # fmt: skip
    bars = any(np.isfinite(one.low) for one in panel.top)
    for x, told in zip(_COLUMNS, ("F1", "interval" if bars else "", "p"), strict=True):
        axes.annotate(told, (x, 1), xycoords="axes fraction", va="bottom", color="#555555")


def _draw_lines(above: Axes, under: Axes, panel: Panel) -> None:
    """Floor and critical F1 through both parts, each with its words on the side away from the other."""
    finite = np.isfinite(panel.critical)
    apart = not finite or panel.floor <= panel.critical
    lines = [(panel.floor, "floor", _FLOOR, ":", not apart)]
    if finite:
        lines.append((panel.critical, "critical", _CRITICAL, "--", apart))
    else:
        above.text(0.34, 0.5, "no F1 is high enough:\nnothing can be significant", transform=above.transAxes,
                   ha="center", weight="bold", bbox={"facecolor": "white", "edgecolor": "none"})  # fmt: skip
    for at, what, colour, dashes, rightwards in lines:
        for axes in (above, under):
            axes.axvline(at, color=colour, linestyle=dashes, linewidth=1.3, zorder=2)
        above.annotate(f"{what} {at:.3f}", (at, 0.98), (4 if rightwards else -4, 0), textcoords="offset points",
                       xycoords=("data", "axes fraction"), ha="left" if rightwards else "right", va="top")  # fmt: skip


def _entries(found: list[Panel]) -> list[Any]:
    """The legend: what each thing is, in plain words."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Any] = [
        Patch(facecolor=_NULL, edgecolor=_EDGE, label="chance: the largest F1 of all latents, labels shuffled")
    ]
    if any(len(one.random) for one in found):
        entries.append(
            Patch(facecolor=_RANDOM, alpha=0.6, label="latents drawn at random (share of these, wider bins)")
        )
    if any(np.isfinite(one.critical) for one in found):
        entries.append(
            Line2D([], [], color=_CRITICAL, linestyle="--", label="critical F1: the smallest that is significant")
        )
    entries.append(Line2D([], [], color=_FLOOR, linestyle=":", label="floor: F1 of firing on every image"))
    tops = [one for panel in found for one in panel.top]
    bar = " and bootstrap interval" if any(np.isfinite(one.low) for one in tops) else ""
    for wanted, (line, marker, filling) in ((True, _YES), (False, _NO)):
        if any(one.significant is wanted for one in tops):
            label = f"best latents, {'' if wanted else 'not '}significant: F1{bar}"
            entries.append(Line2D([], [], color=line, marker=marker, markerfacecolor=filling, markersize=5.5,
                                  linewidth=1.6 if bar else 0, label=label))  # fmt: skip
    return entries


def _fonts(name: str) -> list[str]:
    """Fonts for a name: the one that comes with matplotlib, and any for other scripts that this computer has."""
    from matplotlib.font_manager import fontManager

    known = set() if name.isascii() else set(fontManager.get_font_names())
    return ["DejaVu Sans", *(one for one in _FONTS if one in known)]


def _short(name: str) -> str:
    """A name on one line that fits a panel; East Asian letters and capitals count twice."""
    name, wide = " ".join(_printable(name).split()), 0
    for at, letter in enumerate(name):
        wide += 2 if unicodedata.east_asian_width(letter) in "WF" or letter.isupper() else 1
        if wide > _NAME:
            return name[: at - 1] + "…"
    return name


def _printable(text: str) -> str:
    """Without control characters, which XML can't hold."""
    return "".join(one if one == "\n" or unicodedata.category(one) != "Cc" else " " for one in text)


# files


def render(figure: Figure, form: str) -> bytes:
    """A figure as the bytes of a file, the same bytes whenever it is made.

    Text of SVG and PDF stays text. Letters that matplotlib's font lacks are boxes in PNG and PDF; a browser finds them.

    Parameters
    ----------
    form
        One of ``FORMATS``.
    """
    from matplotlib import style

    undated = {"svg": dict.fromkeys(("Date", "Creator", "Format", "Type")), "pdf": {"CreationDate": None}}
    out = io.BytesIO()
    with style.context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(out, format=form, metadata=undated.get(form, {}))
    return out.getvalue()


def as_svg(figure: Figure) -> str:
    """A figure as one ``<svg>`` element for a page of HTML, its label being the text for those who can't see it.

    Groups lose their ids, which several figures on a page would share and nothing refers to.
    """
    _, _, body = render(figure, "svg").decode().partition("<svg ")
    start, _, rest = body.partition(">")
    told = html.escape(_printable(str(figure.get_label())))
    return f'<svg role="img" aria-label="{told}" {start}><title>{told}</title>' + re.sub(r'<g id="[^"]*"', "<g", rest)
