"""Contact sheets: pictures side by side under titles, with words below each and a bar that explains the colours."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from semprobe.heatmaps import colours

_GAP, _TITLE, _LINE = 12, 34, 17  # pixels
_BAR = (160, 14)


class Tile(NamedTuple):
    """A picture and the lines below it."""

    picture: Image.Image
    lines: tuple[str, ...]


class Strip(NamedTuple):
    """Tiles under a title; `maximum` is the code of the last colour."""

    title: str
    tiles: list[Tile]
    maximum: float


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def printable(text: str) -> str:
    """Text on one line, without characters that steer a terminal or turn the direction of writing."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def fitting(text: str, width: float, size: int = 13, *, end: bool = False) -> str:
    """Text shortened to a width in pixels; with `end` its end is kept, as of a path."""
    font, whole = _font(size), printable(text)
    few = len(whole) > 300
    kept = (whole[-300:] if end else whole[:300]) if few else whole
    if not few and font.getlength(kept) <= width:
        return kept
    while kept and font.getlength("…" + kept) > width:
        kept = kept[1:] if end else kept[:-1]
    return f"…{kept}" if end else f"{kept}…"


def _bar(draw: ImageDraw.ImageDraw, sheet: Image.Image, right: int, top: int, maximum: float) -> int:
    """The colours from 0 to the largest code; returns where it begins."""
    shades = np.broadcast_to(colours(np.linspace(0, 1, _BAR[0])), (_BAR[1], _BAR[0], 3))
    said, font = f"{maximum:.4g}", _font(13)
    left = right - _BAR[0] - round(font.getlength(said)) - 6
    sheet.paste(Image.fromarray(np.ascontiguousarray(shades)), (left, top + 3))
    draw.text((left - 6, top), "code 0", fill="black", font=font, anchor="ra")
    draw.text((right, top), said, fill="black", font=font, anchor="ra")
    return left - 6 - round(font.getlength("code 0"))


def _rows(tiles: list[Tile], columns: int) -> list[list[Tile]]:
    return [tiles[at : at + columns] for at in range(0, len(tiles), columns)]


def _high(row: list[Tile]) -> int:
    return max(tile.picture.height for tile in row) + max(len(tile.lines) for tile in row) * _LINE + _GAP


def contact_sheet(strips: list[Strip], *, edge: int, columns: int = 8) -> Image.Image:
    """Draw strips below each other.

    Parameters
    ----------
    strips
        Each with its tiles, none of them longer than `edge`; a strip without tiles says so.
    edge
        Pixels that a tile has at most.
    columns
        Tiles side by side; more go on in the next row.
    """
    columns = max(3, min(columns, max((len(strip.tiles) for strip in strips), default=1)))  # room for a title
    width = columns * (edge + _GAP) + _GAP
    heights = [_TITLE + (sum(map(_high, _rows(one.tiles, columns))) or _LINE + _GAP) for one in strips]
    sheet = Image.new("RGB", (width, sum(heights) + _GAP), "white")
    top = _GAP
    for strip, height in zip(strips, heights, strict=True):
        _draw_strip(sheet, strip, top, columns, edge)
        top += height
    return sheet


def _draw_strip(sheet: Image.Image, strip: Strip, top: int, columns: int, edge: int) -> None:
    draw = ImageDraw.Draw(sheet)
    begins = _bar(draw, sheet, sheet.width - _GAP, top, strip.maximum)
    draw.text((_GAP, top), fitting(strip.title, begins - 2 * _GAP, 17), fill="black", font=_font(17))
    top += _TITLE
    if not strip.tiles:
        draw.text((_GAP, top), "none", fill="black", font=_font(13))
    for row in _rows(strip.tiles, columns):
        below = top + max(tile.picture.height for tile in row) + 3
        for at, tile in enumerate(row):
            left = _GAP + at * (edge + _GAP)
            sheet.paste(tile.picture, (left, below - 3 - tile.picture.height))
            for number, line in enumerate(tile.lines):
                said = fitting(line, edge, end=number == 0)
                draw.text((left, below + number * _LINE), said, fill="black", font=_font(13))
        top += _high(row)
