"""The chart of a comparison: seconds against prompt length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from app.figures import base, palette
from app.lanes import PAIR
from app.lengths.pins import Pin
from app.lengths.table import Lane, Row, done, lanes_in, of, seconds_of, times_of
from app.phrases import clock

# How each pinned comparison is marked: hollow for full attention, filled for the other lanes.
PIN_SYMBOLS = ("square", "triangle-up", "star", "hexagon")
HEADLINE = PAIR[-1].key
_RATIOS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def chart(rows: Sequence[Row], pinned: Sequence[Pin] = ()) -> base.Figure:
    """Seconds of every lane over the prompt length, and below their speed-ups beside the published one.

    Shows the rows that are done; `pinned` ones with marks of their own. Published speed-ups stand at every length asked
    for.
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
    data += _gains(current)
    data.append(_paper([*rows, *every]))
    gains = [gain["ratio"] for row in (*current, *every) for lane in row["lanes"] if (gain := _gain(row, lane))]
    gains += [row["published"]["ratio"] for row in (*rows, *every) if row["published"]]
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
                "anchor": "y2",
                "showgrid": False,
            },
            yaxis={"title": {"text": "time (log scale)"}, "domain": [0.46, 1], **times_of(every_time)},
            yaxis2={
                "title": {"text": "speed-up"},
                "domain": [0, 0.36],
                **_ratios_of(gains, wide=any(len(row["lanes"]) > len(PAIR) for row in (*current, *every))),
            },
            shapes=[
                {
                    "type": "line",
                    "name": "as fast",
                    "xref": "paper",
                    "x0": 0,
                    "x1": 1,
                    "yref": "y2",
                    "y0": 1,
                    "y1": 1,
                    "line": {"color": palette.MUTED, "width": 1, "dash": "dot"},
                }
            ],
            showlegend=True,
            legend=base.LEGEND_ABOVE,
            margin={"l": 60, "r": 14, "t": 62, "b": 52},
            hovermode="closest",
        ),
    }


def _ratios_of(gains: Sequence[float], wide: bool) -> base.Figure:
    """An axis for these speed-ups. wide: those of caches may be among them, ten times as large as SparseD's, so that it
    is logarithmic.
    """
    low, high = min([0.95, *gains]), max([1.05, *gains])
    if not wide:
        room = 0.3 * (high - low)
        return {"range": [low - room, high + room], "ticksuffix": "×", "nticks": 5}
    marks = [mark for mark in _RATIOS if 0.7 * low <= mark <= 1.4 * high]
    span = [round(math.log10(0.7 * low), 4), round(math.log10(1.4 * high), 4)]
    return {"type": "log", "range": span, "tickvals": marks, "ticktext": [f"{mark:g}×" for mark in marks]}


def _gain(row: Row, lane: Lane) -> dict[str, Any] | None:
    """A lane's speed-up; None where there is none, as of full attention and of a run that never became sparse."""
    gain: dict[str, Any] | None = row["speedup"] if lane["key"] == HEADLINE else of(row, lane, "speedup")
    return gain


def _gains(rows: Sequence[Row], **more: Any) -> list[base.Figure]:
    """The measured speed-up of each lane over the prompt length; SparseD's is the one that is written at its points."""
    drawn = []
    for lane in lanes_in(rows):
        found = [(row["name"], gain["ratio"]) for row in rows if (gain := _gain(row, lane))]
        colour, dash, symbol = palette.LANES[lane["style"] - 1]
        trace: base.Figure = {
            "type": "scatter",
            "mode": "lines+markers",
            "name": f"speed-up here: {lane['label']}",
            "x": [name for name, _ in found],
            "y": [ratio for _, ratio in found],
            "cliponaxis": False,
            "yaxis": "y2",
            "line": {"color": colour, "width": 2, "dash": dash},
            "marker": {"symbol": symbol, "size": 9, "color": colour},
            "hovertemplate": "%{x}<br>%{y:.2f}×<extra>%{fullData.name}</extra>",
            # Its line above has the same looks.
            "showlegend": False,
        }
        if lane["key"] == HEADLINE:
            trace |= {
                "mode": "lines+markers+text",
                "name": "speed-up here",
                "text": [f"{ratio:.2f}×" for _, ratio in found],
                "textposition": [f"{'top' if ratio >= 1 else 'bottom'} center" for _, ratio in found],
                "textfont": {"color": palette.INK, "size": 12},
                "line": {"color": colour, "width": 2, "dash": "solid"},
                "marker": {"symbol": "diamond", "size": 9, "color": colour},
                "showlegend": True,
            }
        if found:
            drawn.append({**trace, **more})
    return drawn


def _paper(rows: Iterable[Row]) -> base.Figure:
    """The published speed-ups at the lengths of the rows."""
    known = {row["name"]: row for row in rows if row["published"]}
    found = sorted(known.values(), key=lambda row: int(row["budget"]))
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "speed-up in the paper",
        "x": [row["name"] for row in found],
        "y": [row["published"]["ratio"] for row in found],
        "text": [
            f"{clock(row['published']['dense_seconds'])} → {clock(row['published']['sparse_seconds'])}" for row in found
        ],
        "yaxis": "y2",
        "line": {"color": palette.INK, "width": 1.5, "dash": "dash"},
        "marker": {"symbol": "x-thin-open", "size": 10, "color": palette.INK, "line": {"width": 2}},
        "hovertemplate": "%{x}<br>%{y:.2f}× (%{text})<extra>%{fullData.name}</extra>",
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
        drawn.append(_thin(trace, mark) | {"name": named, "showlegend": lane["key"] == HEADLINE})
    for trace in _gains(one.rows, **shared, mode="lines+markers"):
        drawn.append(_thin(trace, symbol) | {"name": f"{one.label}: {trace['name'].replace(' here', '')}"})
    return drawn


def _thin(trace: base.Figure, symbol: str) -> base.Figure:
    return trace | {"line": {**trace["line"], "width": 1}, "marker": {**trace["marker"], "symbol": symbol, "size": 8}}


def chart_label(rows: Sequence[Row], pinned: Sequence[Pin] = ()) -> str:
    """The chart in words."""
    parts = []
    for row in done(rows):
        said = []
        for lane in row["lanes"]:
            said.append(f"{clock(of(row, lane, 'seconds'))} with {lane['name']}")
            if gain := _gain(row, lane):
                said.append(f"{gain['text']} {gain['words']}")
            elif of(row, lane, "never_sparse"):
                said.append("never sparse")
        parts.append(f"{row['name']}: {', '.join(said)}")
    if pinned:
        parts.append(f"pinned beside it: {', '.join(one.label for one in pinned)}")
    return "Line chart of the seconds at each prompt length. " + ("; ".join(parts) or "Nothing is measured yet")
