"""Where the names of points can stand without covering each other."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

# Pixels, of names in a font of 11 or 12: about.
LETTER, LINE = 6.3, 14.0
MARKER = 7.0
_NEAR, _FAR = 9.0, 100.0
_CROSSED = 25


class Spot(NamedTuple):
    """A point with a name, in pixels from the left and the bottom of the axes; its error bar reaches so many pixels
    below and above it. most: how far away its name may stand, in pixels, every line that it crosses counting as
    _CROSSED more; else it has none.
    """

    text: str
    x: float
    y: float
    below: float = 0.0
    above: float = 0.0
    most: float = math.inf


class _Box(NamedTuple):
    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: _Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.bottom < other.top
            and other.bottom < self.top
        )


def size_of(text: str) -> tuple[float, float]:
    """Width and height of a name, about; HTML tags take no place."""
    return LETTER * len(re.sub(r"<[^>]*>", "", text)) + 4, LINE


def place(
    spots: Sequence[Spot], width: float, height: float, levels: Sequence[float] = ()
) -> list[tuple[float, float] | None]:
    """For each spot, from its point to the middle of its name: (right, up) in pixels; None where no free place is near,
    and for an empty name.

    The first spots choose first. No name covers another one or a point, or leaves axes of this size; one that crosses
    no error bar, no leading line and no line across the axes at one of the `levels` is preferred, then the nearest.
    """
    markers = [_Box(s.x - MARKER, s.y - MARKER, s.x + MARKER, s.y + MARKER) for s in spots]
    bars = [_Box(s.x - 2, s.y - s.below, s.x + 2, s.y + s.above) for s in spots]
    bars += [_Box(0, level - 1, width, level + 1) for level in levels]
    taken: list[_Box] = []
    lines: list[tuple[float, float, float, float]] = []
    found: list[tuple[float, float] | None] = []
    for spot in spots:
        if not spot.text:
            found.append(None)
            continue
        wide, high = size_of(spot.text)
        best: tuple[float, tuple[float, float], _Box] | None = None
        for right, up, distance in _offsets(wide, high):
            if best is not None and best[0] <= distance:
                break  # what follows is farther away
            x, y = spot.x + right, spot.y + up
            box = _Box(x - wide / 2, y - high / 2, x + wide / 2, y + high / 2)
            if box.left < 0 or box.bottom < 0 or box.right > width or box.top > height:
                continue
            if any(box.meets(other) for other in (*taken, *markers)):
                continue
            line = (spot.x, spot.y, x, y)
            crossed = sum(box.meets(bar) for bar in bars)
            crossed += sum(_cuts(other, box) + _cross(line, other) for other in lines)
            crossed += sum(_cuts(line, other) for other in taken)
            cost = distance + _CROSSED * crossed
            if cost <= spot.most and (best is None or cost < best[0]):
                best = cost, (right, up), box
        found.append(None if best is None else best[1])
        if best is not None:
            taken.append(best[2])
            lines.append((spot.x, spot.y, spot.x + best[1][0], spot.y + best[1][1]))
    return found


def _offsets(wide: float, high: float) -> Iterator[tuple[float, float, float]]:
    """Places of a name around its point: (right, up) of its middle, and how far its edge is from the point."""
    gap = _NEAR
    while gap <= _FAR:
        for turn in range(24):
            angle = 2 * math.pi * turn / 24
            across, upwards = math.cos(angle), math.sin(angle)
            yield across * (gap + wide / 2), upwards * (gap + high / 2), gap
        gap *= 1.3


def _cuts(line: tuple[float, float, float, float], box: _Box) -> bool:
    """Does a line touch a box? Looked at in points of it."""
    x0, y0, x1, y1 = line
    if not box.meets(_Box(min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1)):
        return False
    for part in range(21):
        x, y = x0 + (x1 - x0) * part / 20, y0 + (y1 - y0) * part / 20
        if box.left < x < box.right and box.bottom < y < box.top:
            return True
    return False


def _cross(one: tuple[float, float, float, float], two: tuple[float, float, float, float]) -> bool:
    """Do two lines cross?"""

    def side(line: tuple[float, float, float, float], x: float, y: float) -> float:
        return (line[2] - line[0]) * (y - line[1]) - (line[3] - line[1]) * (x - line[0])

    return (
        side(one, two[0], two[1]) * side(one, two[2], two[3]) < 0
        and side(two, one[0], one[1]) * side(two, one[2], one[3]) < 0
    )
