"""Points of accuracy against speed: each with its interval and its name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from app.figures.base import Figure
from app.figures.labels import Spot, place
from app.figures.palette import MUTED, STRONG
from sparsed.evaluation.tables import method_label

# Pixels of the figure, and of its margins.
WIDTH, HEIGHT = 980, 668
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 84, 136  # below, three lines of the legend
# Of more points than that only those that have room beside them have their names, but for those that stand out.
CROWDED = 40
_BESIDE = 45.0


class Point(NamedTuple):
    """A method at one prompt length."""

    row: Mapping[str, Any]  # of `sparsed.evaluation.scores.summarise`
    speed: float
    name: str  # what stands beside it; "": nothing
    colour: str
    symbol: str
    rank: int = 2  # names of low rank get their places first
    strong: bool = False  # its name stands out
    dense: Mapping[str, Any] | None = None  # full attention's row at that length

    @property
    def moved(self) -> float:
        """Of a method that was asked fewer questions than full attention, harder or easier ones perhaps: how far it is
        moved, in percent, to stand by its paired difference to full attention.
        """
        if self.dense is None or self.row["questions"] == self.dense["questions"] or self.row["difference"] is None:
            return 0.0
        return 100 * float(self.dense["accuracy"] + self.row["difference"] - self.row["accuracy"])

    @property
    def right(self) -> float:
        """Of its answers, in percent; `moved`."""
        return 100 * float(self.row["accuracy"]) + self.moved

    @property
    def interval(self) -> tuple[float, float]:
        """The Wilson interval of its answers, in percent; `moved`."""
        low, high = self.row["interval"]
        return 100 * low + self.moved, 100 * high + self.moved


class Ranges(NamedTuple):
    """What the axes show: powers of ten of the speed-up, percent of right answers."""

    x: list[float]
    y: list[float]

    @classmethod
    def of(cls, points: Sequence[Point]) -> Ranges:
        """A little more than the points need: names stand above and below them."""
        speeds = [point.speed for point in points]
        low = min(point.interval[0] for point in points)
        return cls([math.log10(min(speeds) / 1.25), math.log10(max(speeds) * 1.4)], [max(-3.0, low - 6), 104.0])

    @property
    def axes(self) -> tuple[Figure, Figure]:
        ticks = [2.0**power for power in range(-4, 12) if self.x[0] <= power * math.log10(2) <= self.x[1]]
        labels = [f"{tick:g}×" for tick in ticks]
        across: Figure = {"type": "log", "range": self.x, "tickvals": ticks, "ticktext": labels}
        upwards: Figure = {"range": self.y, "tickvals": list(range(0, 101, 10))}
        return across, upwards | {"title": {"text": "right answers (percent)"}}


def markers(points: Sequence[Point], name: str, **more: Any) -> Figure:
    """A trace of points of one colour, with their intervals."""
    colour, symbols = points[0].colour, [point.symbol for point in points]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [round(point.speed, 4) for point in points],
        "y": [round(point.right, 3) for point in points],
        "text": [_hover(point.row) for point in points],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"symbol": symbols if len({*symbols}) > 1 else symbols[0], "size": 9, "color": colour},
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [round(point.interval[1] - point.right, 3) for point in points],
            "arrayminus": [round(point.right - point.interval[0], 3) for point in points],
            "color": colour,
            "thickness": 1,
            "width": 3,
        },
        **more,
    }


def names(points: Sequence[Point], ranges: Ranges, width: int, levels: Sequence[float] = ()) -> list[Figure]:
    """The points' names where they cover nothing, as annotations; one that has no place there is left to the hover.

    width: of the figure in pixels. levels: percent at which a line crosses the axes.
    """
    across, upwards = width - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    a_power, a_percent = across / (ranges.x[1] - ranges.x[0]), upwards / (ranges.y[1] - ranges.y[0])
    crowded = sum(bool(point.name) for point in points) > CROWDED
    order = sorted(points, key=lambda point: (point.rank, -point.right, -point.speed))
    spots = [
        Spot(
            text=point.name,
            x=(math.log10(point.speed) - ranges.x[0]) * a_power,
            y=(point.right - ranges.y[0]) * a_percent,
            below=(point.right - point.interval[0]) * a_percent,
            above=(point.interval[1] - point.right) * a_percent,
            most=_BESIDE if crowded and not point.strong else math.inf,
        )
        for point in order
    ]
    placed = place(spots, across, upwards, [(level - ranges.y[0]) * a_percent for level in levels])
    return [_name(point, offset) for point, offset in zip(order, placed, strict=True) if offset is not None]


def _name(point: Point, offset: tuple[float, float]) -> Figure:
    """A name; where it is not beside its point, a line leads to it. Offsets are pixels, up being positive."""
    right, up = offset
    colour = STRONG if point.strong else point.colour
    return {
        "x": math.log10(point.speed), "y": point.right, "xref": "x", "yref": "y", "text": point.name,
        "name": point.row["method"], "xanchor": "center", "yanchor": "middle",
        "font": {"size": 12 if point.strong else 11, "color": colour}, "showarrow": True, "ax": round(right, 1),
        "ay": round(-up, 1), "arrowhead": 0, "arrowwidth": 0.8, "arrowcolor": MUTED, "standoff": 6, "borderpad": 0,
    }  # fmt: skip


def in_words(method: str) -> str:
    """A method of an evaluation as the page says it."""
    return method_label(method).replace("_", " ")


def _hover(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    lines = [
        f"<b>{in_words(row['method'])}</b>, {row['length']}",
        f"{100 * row['accuracy']:.1f} % right ({100 * low:.1f}–{100 * high:.1f}), {row['questions']} questions",
    ]
    if row.get("difference") is not None:
        low, high = row["difference_interval"]
        lines.append(f"{100 * row['difference']:+.1f} points to full attention ({100 * low:+.1f} … {100 * high:+.1f})")
    speeds = [(row.get("speed"), "by operations"), (row.get("measured_speed"), "as measured")]
    lines.append("; ".join(f"{speed:.2f}× {how}" for speed, how in speeds if speed is not None))
    if row.get("forwards") is not None:
        lines.append(f"{row['forwards']:.1f} forwards an answer")
    if row.get("rows") is not None and row["rows"] < 1:
        lines.append(f"{100 * row['rows']:.1f} % of the rows computed")
    return "<br>".join(lines)
