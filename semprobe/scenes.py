"""Draw small scenes whose parts are known pixel by pixel.

The pilot set needs images for which the right answer is known: where the wheel is, and that there is none. A
scene is painted back to front on two canvases at once, the picture and a map of part numbers, so that what is
covered in the picture is covered in the map too and a mask can never disagree with its image.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

SIZE = 96
"""Edge of a scene in pixels; the pilot backbone sees it whole, in patches of 8."""

_SCALE = 2  # drawn larger and reduced, so that edges are smooth

PARTS = ("wheel", "window", "fur", "stripes", "leaves", "eye", "bricks", "spiral")
"""Names of the parts; a part's number in the map is its position here plus one, 0 is none of them."""

Colour = tuple[int, int, int]
Points = list[tuple[float, float]]


class _Canvas:
    """A picture and its map of parts, drawn with the same strokes."""

    def __init__(self, rng: random.Random) -> None:
        edge = SIZE * _SCALE
        self.rng = rng
        self.image = Image.new("RGB", (edge, edge))
        self.parts = Image.new("L", (edge, edge))
        self._draw = ImageDraw.Draw(self.image)
        self._mark = ImageDraw.Draw(self.parts)

    def colour(self, low: int = 30, high: int = 235) -> Colour:
        return (self.rng.randint(low, high), self.rng.randint(low, high), self.rng.randint(low, high))

    def near(self, colour: Colour, spread: int = 30) -> Colour:
        r, g, b = (min(255, max(0, c + self.rng.randint(-spread, spread))) for c in colour)
        return (r, g, b)

    def _number(self, part: str | None) -> int:
        return PARTS.index(part) + 1 if part else 0

    def polygon(self, points: Points, fill: Colour, part: str | None = None) -> None:
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        self._draw.polygon(scaled, fill=fill)
        self._mark.polygon(scaled, fill=self._number(part))

    def box(self, x: float, y: float, w: float, h: float, fill: Colour, part: str | None = None) -> None:
        self.polygon([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], fill, part)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour, part: str | None = None) -> None:
        corners = [v * _SCALE for v in (x - rx, y - ry, x + rx, y + ry)]
        self._draw.ellipse(corners, fill=fill)
        self._mark.ellipse(corners, fill=self._number(part))

    def line(self, points: Points, fill: Colour, width: float = 1, part: str | None = None) -> None:
        scaled, thick = [(x * _SCALE, y * _SCALE) for x, y in points], max(1, round(width * _SCALE))
        self._draw.line(scaled, fill=fill, width=thick)
        self._mark.line(scaled, fill=self._number(part), width=thick)


def _wheel(c: _Canvas, x: float, y: float, r: float) -> None:
    rim, spoke = c.near((40, 40, 40), 25), c.near((190, 190, 190), 40)
    c.ellipse(x, y, r, r, rim, "wheel")
    c.ellipse(x, y, r * 0.72, r * 0.72, c.near((110, 110, 115), 50), "wheel")
    turn, spokes = c.rng.uniform(0, math.pi), c.rng.choice((4, 5, 6))
    for k in range(spokes):
        angle = turn + 2 * math.pi * k / spokes
        c.line([(x, y), (x + r * 0.75 * math.cos(angle), y + r * 0.75 * math.sin(angle))], spoke, 1, "wheel")
    c.ellipse(x, y, r * 0.2, r * 0.2, spoke, "wheel")


def _window(c: _Canvas, x: float, y: float, w: float, h: float) -> None:
    frame, glass = c.near((235, 235, 225), 20), c.near((120, 170, 215), 40)
    c.box(x, y, w, h, frame, "window")
    c.box(x + 1.5, y + 1.5, w - 3, h - 3, glass, "window")
    c.line([(x + w / 2, y), (x + w / 2, y + h)], frame, 1, "window")
    c.line([(x, y + h / 2), (x + w, y + h / 2)], frame, 1, "window")


def _fur(c: _Canvas, x: float, y: float, rx: float, ry: float, base: Colour) -> None:
    c.ellipse(x, y, rx, ry, base, "fur")
    for _ in range(int(rx * ry * 0.9)):
        angle, radius = c.rng.uniform(0, 2 * math.pi), math.sqrt(c.rng.random())
        px, py = x + rx * radius * math.cos(angle), y + ry * radius * math.sin(angle)
        c.line([(px, py), (px + c.rng.uniform(-1.5, 1.5), py + c.rng.uniform(2, 4))], c.near(base, 55), 0.5, "fur")


def _stripes(c: _Canvas, x: float, y: float, w: float, h: float) -> None:
    first, second = c.colour(130, 255), c.colour(0, 110)
    band, upright = c.rng.uniform(2.5, 4.5), c.rng.random() < 0.5
    c.box(x, y, w, h, first, "stripes")
    at = band / 2
    while at < (w if upright else h):
        thick = min(band, (w if upright else h) - at)
        if upright:
            c.box(x + at, y, thick, h, second, "stripes")
        else:
            c.box(x, y + at, w, thick, second, "stripes")
        at += 2 * band


def _leaves(c: _Canvas, x: float, y: float, rx: float, ry: float) -> None:
    base: Colour = (c.rng.randint(30, 110), c.rng.randint(110, 190), c.rng.randint(20, 80))
    for _ in range(int(rx * ry * 0.35) + 12):
        angle, radius = c.rng.uniform(0, 2 * math.pi), math.sqrt(c.rng.random())
        px, py = x + rx * radius * math.cos(angle), y + ry * radius * math.sin(angle)
        c.ellipse(px, py, c.rng.uniform(1.5, 3.5), c.rng.uniform(1.2, 2.4), c.near(base, 40), "leaves")


def _eye(c: _Canvas, x: float, y: float, r: float) -> None:
    c.ellipse(x, y, r, r * 0.85, (245, 245, 240), "eye")
    c.ellipse(x, y, r * 0.5, r * 0.5, c.near((60, 90, 60), 50), "eye")
    c.ellipse(x, y, r * 0.25, r * 0.25, (5, 5, 5), "eye")


def _bricks(c: _Canvas, x: float, y: float, w: float, h: float) -> None:
    base, mortar = c.near((165, 75, 55), 25), c.near((205, 200, 190), 15)
    c.box(x, y, w, h, mortar, "bricks")
    row, top = 0, 0.0
    while top < h - 1:
        left = -4.0 if row % 2 else 0.0
        while left < w:
            a, b = max(0.0, left), min(w, left + 7)
            if b - a > 0.5:
                c.box(x + a, y + top, b - a, min(3.0, h - top), c.near(base, 20), "bricks")
            left += 8
        row, top = row + 1, top + 4


def _spiral(c: _Canvas) -> None:
    x, y, r = c.rng.uniform(14, 82), c.rng.uniform(14, 82), c.rng.uniform(6, 10)
    turns = c.rng.uniform(1.8, 2.6)
    steps = [k / 80 for k in range(81)]
    path = [
        (x + r * t * math.cos(2 * math.pi * turns * t), y + r * t * math.sin(2 * math.pi * turns * t)) for t in steps
    ]
    c.line(path, c.colour(), 1, "spiral")


def _car(c: _Canvas) -> None:
    w, x, y = c.rng.uniform(34, 52), c.rng.uniform(0, 46), c.rng.uniform(40, 74)
    h, body = w * 0.24, c.colour()
    cabin = [(x + w * 0.18, y), (x + w * 0.3, y - h), (x + w * 0.72, y - h), (x + w * 0.86, y)]
    c.polygon(cabin, body)
    if c.rng.random() < 0.7:
        _window(c, x + w * 0.32, y - h * 0.9, w * 0.17, h * 0.85)
        _window(c, x + w * 0.53, y - h * 0.9, w * 0.17, h * 0.85)
    c.box(x, y, w, h, body)
    if c.rng.random() < 0.8:  # otherwise a sledge or a boat
        for share in (0.22, 0.78):
            _wheel(c, x + w * share, y + h, w * c.rng.uniform(0.12, 0.15))


def _cart(c: _Canvas) -> None:
    x, y, r = c.rng.uniform(14, 80), c.rng.uniform(40, 78), c.rng.uniform(7, 12)
    if c.rng.random() < 0.5:
        _stripes(c, x - r * 1.4, y - r * 2.2, r * 2.8, r * 1.6)
    else:
        c.box(x - r * 1.4, y - r * 2.2, r * 2.8, r * 1.6, c.colour())
    c.line([(x, y - r), (x + r * 2.4, y - r * 1.2)], c.colour(0, 90), 1.5)
    _wheel(c, x, y, r)


def _house(c: _Canvas) -> None:
    w, h = c.rng.uniform(26, 44), c.rng.uniform(24, 38)
    x, y = c.rng.uniform(0, SIZE - w), c.rng.uniform(18, 50)
    if c.rng.random() < 0.5:
        _bricks(c, x, y, w, h)
    else:
        c.box(x, y, w, h, c.colour(110, 240))
    c.polygon([(x - 3, y), (x + w / 2, y - h * 0.5), (x + w + 3, y)], c.near((120, 60, 50), 50))
    if c.rng.random() < 0.75:
        for share in (0.12, 0.6):
            _window(c, x + w * share, y + h * 0.15, w * 0.28, h * 0.32)
    c.box(x + w * 0.4, y + h * 0.6, w * 0.2, h * 0.4, c.colour(30, 130))


def _tree(c: _Canvas) -> None:
    x, y, h = c.rng.uniform(8, 88), c.rng.uniform(30, 60), c.rng.uniform(18, 34)
    c.box(x - 2.5, y, 5, h, c.near((105, 75, 45), 20))
    if c.rng.random() < 0.75:
        _leaves(c, x, y, c.rng.uniform(9, 15), c.rng.uniform(9, 15))
    else:  # a bare tree
        for _ in range(6):
            tip = (x + c.rng.uniform(-12, 12), y - c.rng.uniform(4, 14))
            c.line([(x, y + c.rng.uniform(0, 6)), tip], c.near((105, 75, 45), 20), 1.2)


def _bush(c: _Canvas) -> None:
    _leaves(c, c.rng.uniform(6, 90), c.rng.uniform(60, 88), c.rng.uniform(8, 15), c.rng.uniform(5, 9))


def _animal(c: _Canvas) -> None:
    x, y, rx = c.rng.uniform(18, 72), c.rng.uniform(40, 74), c.rng.uniform(11, 18)
    ry, side = rx * c.rng.uniform(0.55, 0.7), c.rng.choice((-1, 1))
    coat, kind = c.near(c.rng.choice(((150, 105, 60), (90, 80, 75), (205, 180, 140))), 25), c.rng.random()
    for share in (-0.6, -0.3, 0.3, 0.6):
        c.box(x + rx * share - 1.5, y + ry * 0.5, 3, ry * 1.3, coat)
    head = (x + side * rx * 0.95, y - ry * 0.8, rx * 0.45)
    if kind < 0.55:
        _fur(c, x, y, rx, ry, coat)
        _fur(c, *head, head[2], coat)
    else:  # smooth, or striped like a zebra
        c.ellipse(x, y, rx, ry, coat)
        if kind < 0.75:
            _stripes(c, x - rx * 0.65, y - ry * 0.6, rx * 1.3, ry * 1.2)
        c.ellipse(*head, head[2], coat)
    if c.rng.random() < 0.75:
        _eye(c, head[0] + side * 1.5, head[1] - 1, c.rng.uniform(2.4, 3.6))


def _person(c: _Canvas) -> None:
    x, y, s = c.rng.uniform(10, 86), c.rng.uniform(26, 52), c.rng.uniform(0.8, 1.25)
    for side in (-4.5, 0.5):
        c.box(x + side * s, y + 22 * s, 4 * s, 14 * s, c.colour(20, 120))
    if c.rng.random() < 0.5:
        _stripes(c, x - 7 * s, y + 6 * s, 14 * s, 17 * s)
    else:
        c.box(x - 7 * s, y + 6 * s, 14 * s, 17 * s, c.colour())
    c.ellipse(x, y, 7 * s, 7.5 * s, c.near((215, 170, 135), 35))
    if c.rng.random() < 0.75:
        for side in (-2.8, 2.8):
            _eye(c, x + side * s, y - s, 2.3 * s)


def _flag(c: _Canvas) -> None:
    x, y = c.rng.uniform(6, 62), c.rng.uniform(8, 40)
    w, h = c.rng.uniform(18, 30), c.rng.uniform(12, 20)
    c.box(x - 2, y, 2, 50, c.colour(60, 160))
    if c.rng.random() < 0.65:
        _stripes(c, x, y, w, h)
    else:
        c.box(x, y, w, h, c.colour())


def _wall(c: _Canvas) -> None:
    w, h = c.rng.uniform(24, 50), c.rng.uniform(12, 24)
    _bricks(c, c.rng.uniform(0, SIZE - w), c.rng.uniform(50, SIZE - h), w, h)


def _clutter(c: _Canvas) -> None:
    """A shape that resembles some part without being it: plain discs, panes without bars, chequers, dots."""
    x, y, r = c.rng.uniform(6, 90), c.rng.uniform(6, 90), c.rng.uniform(4, 12)
    kind, fill = c.rng.randrange(6), c.colour()
    if kind == 0:
        c.ellipse(x, y, r, r, fill)
        if c.rng.random() < 0.5:
            c.ellipse(x, y, r * 0.55, r * 0.55, c.colour())
    elif kind == 1:
        c.box(x - r, y - r, r * 2, r * c.rng.uniform(1, 2), fill)
        c.box(x - r * 0.7, y - r * 0.7, r * 1.4, r * 0.7, c.colour())
    elif kind == 2:
        c.polygon([(x, y - r), (x + r, y + r), (x - r, y + r * 0.7)], fill)
    elif kind == 3:
        for i in range(4):
            for j in range(4):
                shade = fill if (i + j) % 2 else c.near((235, 235, 235), 15)
                c.box(x + (i - 2) * r / 2, y + (j - 2) * r / 2, r / 2, r / 2, shade)
    elif kind == 4:
        for _ in range(10):
            c.ellipse(x + c.rng.uniform(-r, r), y + c.rng.uniform(-r, r), 1.2, 1.2, fill)
    else:
        c.line([(x - r, y), (x + r, y + c.rng.uniform(-r, r))], fill, c.rng.uniform(0.7, 2))


_OBJECTS: tuple[Callable[[_Canvas], None], ...] = (
    _car, _cart, _house, _tree, _bush, _animal, _person, _flag, _wall,
)  # fmt: skip


def _ground(c: _Canvas) -> None:
    horizon, sky, earth = c.rng.uniform(30, 70), c.colour(90, 245), c.colour(60, 200)
    bands = 12
    for k in range(bands):
        shade = tuple(int(v * (0.85 + 0.15 * k / bands)) for v in sky)
        c.box(0, horizon * k / bands, SIZE, horizon / bands + 1, (shade[0], shade[1], shade[2]))
    c.box(0, horizon, SIZE, SIZE - horizon, earth)
    for _ in range(40):
        x, y = c.rng.uniform(0, SIZE), c.rng.uniform(horizon, SIZE)
        c.line([(x, y), (x + c.rng.uniform(1, 5), y)], c.near(earth, 25), 0.5)


def draw_scene(seed: int | str, *, spiral: float = 0.0) -> tuple[Image.Image, np.ndarray]:
    """Draw one scene: a ground, two to four things made of parts, and clutter.

    Parameters
    ----------
    seed
        The same seed gives the same scene.
    spiral
        Probability of a spiral, the part that the pilot backbone and SAE have never seen.

    Returns
    -------
    image
        RGB picture of ``SIZE`` x ``SIZE`` pixels.
    parts
        (``SIZE``, ``SIZE``) uint8: 0, or 1 plus the position in :data:`PARTS` of the part seen at that pixel.
    """
    rng = random.Random(seed)
    canvas = _Canvas(rng)
    _ground(canvas)
    for _ in range(rng.randint(1, 3)):
        _clutter(canvas)
    for paint in rng.sample(_OBJECTS, rng.randint(2, 4)):
        paint(canvas)
    if rng.random() < spiral:
        _spiral(canvas)
    for _ in range(rng.randint(0, 2)):
        _clutter(canvas)
    image = canvas.image.resize((SIZE, SIZE), Image.Resampling.BOX)
    pixels = np.asarray(image, dtype=np.int16)
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(1, 8), pixels.shape)
    noisy = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    parts = np.asarray(canvas.parts)[::_SCALE, ::_SCALE].copy()
    return Image.fromarray(noisy), parts
