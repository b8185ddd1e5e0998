"""A visitor's own run in the figure of accuracy against speed: a line for each lane, at its measured speed-up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from app.figures.base import Figure
from app.figures.palette import PANEL, STRONG, LaneStyle
from app.figures.points import Ranges
from app.figures.shared import View

# Percent of the axis that a lane's mark and its words take, below the points.
_ROW = 4.5
# What a mark's symbol says of its answer.
_SYMBOLS = {True: "circle", False: "x", None: "circle-open"}
_WORDS = {True: "right", False: "wrong", None: "answer not judged"}


class Mark(NamedTuple):
    """A lane of a run that is over."""

    label: str
    speed: float  # seconds of full attention ÷ its own
    right: bool | None  # None where the right answer is not known
    style: LaneStyle

    @property
    def words(self) -> str:
        return f"{self.label}, {self.speed:.2f}×, {_WORDS[self.right]}"


def room_for(marks: Sequence[Mark], ranges: Ranges) -> Ranges:
    """Axes that reach as far as the marks, with a row below for each."""
    if not marks:
        return ranges
    speeds = [mark.speed for mark in marks]
    across = [min(ranges.x[0], math.log10(min(speeds) / 1.25)), max(ranges.x[1], math.log10(max(speeds) * 1.4))]
    return Ranges(across, [ranges.y[0] - _ROW * len(marks), ranges.y[1]])


def with_marks(view: View, marks: Sequence[Mark]) -> View:
    """The figure, whose axes have `room_for` the marks, with them: a line up from each lane's symbol, its words beside
    it.
    """
    if not marks:
        return view
    layout = view.figure["layout"]
    across, upwards = layout["xaxis"]["range"], layout["yaxis"]["range"]
    places = [upwards[0] + _ROW * (row + 0.5) for row in range(len(marks))]
    lines = [
        {
            "type": "line", "name": "your run", "layer": "below", "x0": mark.speed, "x1": mark.speed, "y0": place,
            "y1": upwards[1], "line": {"color": mark.style.colour, "width": 1.5, "dash": mark.style.dash},
        }
        for mark, place in zip(marks, places, strict=True)
    ]  # fmt: skip
    middle = sum(across) / 2
    drawn: Figure = {
        "type": "scatter", "mode": "markers+text", "name": "your run, by this machine’s clock",
        "x": [round(mark.speed, 4) for mark in marks], "y": [round(place, 3) for place in places],
        "text": [f"your run: {mark.words}" for mark in marks], "hovertemplate": "%{text}<extra></extra>",
        "textposition": [f"middle {'right' if math.log10(mark.speed) < middle else 'left'}" for mark in marks],
        "textfont": {"size": 12, "color": STRONG}, "cliponaxis": False,
        "marker": {
            "symbol": [_SYMBOLS[mark.right] for mark in marks], "size": 11,
            "color": [mark.style.colour for mark in marks], "line": {"color": PANEL, "width": 1},
        },
    }  # fmt: skip
    made = {**layout, "shapes": [*layout.get("shapes", ()), *lines]}
    said = f"{view.label} Your run: {'; '.join(mark.words for mark in marks)}."
    return View({"data": [*view.figure["data"], drawn], "layout": made}, said)
