"""The chart of a comparison: seconds against prompt length. Their speed-ups: `app.lengths.gains`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.figures import base
from app.lanes import PAIR
from app.lengths.pins import Pin
from app.lengths.table import Row, done, lanes_in, of, seconds_of, times_of
from app.phrases import clock

# How each pinned comparison is marked: hollow for full attention, filled for the other lanes.
PIN_SYMBOLS = ("square", "triangle-up", "star", "hexagon")
HEADLINE = PAIR[-1].key


def chart(rows: Sequence[Row], pinned: Sequence[Pin] = ()) -> base.Figure:
    """Seconds of every lane over the prompt length. Shows the rows that are done; `pinned` ones with marks of their
    own.
    """
    current = done(rows)
    if not current and not any(one.rows for one in pinned):
        return base.empty("The seconds at each prompt length appear here when the first race is done.")
    every = [row for one in pinned for row in one.rows]
    budgets = {row["name"]: row["budget"] for row in (*every, *rows)}
    data: list[base.Figure] = []
    for number, one in enumerate(pinned):
        data += _pinned(one, number)
    data += [seconds_of(current, lane) for lane in lanes_in(current)]
    every_time = [of(row, lane, "seconds") for row in (*current, *every) for lane in row["lanes"]]
    return {
        "data": [trace for trace in data if trace["x"]],
        "layout": base.base_layout(
            xaxis={
                "title": {"text": "prompt length"},
                "type": "category",
                "categoryorder": "array",
                "categoryarray": sorted(budgets, key=lambda name: budgets[name]),
                "range": [-0.5, len(budgets) - 0.5],
                "showgrid": False,
            },
            yaxis={"title": {"text": "time (log scale)"}, **times_of(every_time)},
            showlegend=True,
            legend=base.LEGEND_ABOVE,
            margin={"l": 60, "r": 14, "t": 44, "b": 48},
            hovermode="closest",
        ),
    }


def _pinned(one: Pin, number: int) -> list[base.Figure]:
    """An earlier comparison: thinner, with marks of its own, one entry in the legend."""
    symbol = PIN_SYMBOLS[number % len(PIN_SYMBOLS)]
    shared: dict[str, Any] = {"legendgroup": f"pin {number}", "opacity": 0.8, "showlegend": False}
    drawn = []
    for lane in lanes_in(one.rows):
        trace = seconds_of(one.rows, lane, **shared)
        named = f"pinned: {one.label}" if lane["key"] == HEADLINE else f"{one.label}: {lane['name']}"
        mark = f"{symbol}-open" if lane["full"] else symbol
        drawn.append(thin(trace, mark) | {"name": named, "showlegend": lane["key"] == HEADLINE})
    return drawn


def thin(trace: base.Figure, symbol: str) -> base.Figure:
    """A trace of an earlier comparison."""
    return trace | {"line": {**trace["line"], "width": 1}, "marker": {**trace["marker"], "symbol": symbol, "size": 8}}


def chart_label(rows: Sequence[Row], pinned: Sequence[Pin] = ()) -> str:
    """The chart in words."""
    parts = []
    for row in done(rows):
        said = []
        for lane in row["lanes"]:
            said.append(f"{clock(of(row, lane, 'seconds'))} with {lane['name']}")
            if of(row, lane, "never_sparse"):
                said.append("never sparse")
        parts.append(f"{row['name']}: {', '.join(said)}")
    if pinned:
        parts.append(f"pinned beside it: {', '.join(one.label for one in pinned)}")
    return "Line chart of the seconds at each prompt length. " + ("; ".join(parts) or "Nothing is measured yet")
