"""The chart of a comparison: seconds against prompt length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from app.figures import base, palette
from app.lanes import PAIR
from app.lengths.pins import Pin
from app.lengths.table import Row, done, seconds_of, times_of
from app.phrases import clock

# How each pinned comparison is marked: filled for SparseD, hollow for full attention.
PIN_SYMBOLS = ("square", "triangle-up", "star", "hexagon")


def chart(rows: Sequence[Row], pinned: Sequence[Pin] = ()) -> base.Figure:
    """Seconds of both lanes over the prompt length, and below the speed-up beside the published one.

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
    data += [seconds_of(current, lane) for lane in PAIR]
    data.append(_gains(current))
    data.append(_paper([*rows, *every]))
    gains = [row["speedup"]["ratio"] for row in (*current, *every) if row["speedup"]]
    gains += [row["published"]["ratio"] for row in (*rows, *every) if row["published"]]
    low, high = min([0.95, *gains]), max([1.05, *gains])
    room = 0.3 * (high - low)
    every_time = [row[f"{lane.key}_seconds"] for row in (*current, *every) for lane in PAIR]
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
                "range": [low - room, high + room],
                "domain": [0, 0.36],
                "ticksuffix": "×",
                "nticks": 5,
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


def _gains(rows: Sequence[Row], **more: Any) -> base.Figure:
    """The measured speed-up over the prompt length; nothing where a run never became sparse."""
    sparse = [row for row in rows if row["speedup"]]
    colour = palette.style_of(PAIR[-1]).colour
    return {
        "type": "scatter",
        "mode": "lines+markers+text",
        "name": "speed-up here",
        "x": [row["name"] for row in sparse],
        "y": [row["speedup"]["ratio"] for row in sparse],
        "text": [f"{row['speedup']['ratio']:.2f}×" for row in sparse],
        "textposition": [f"{'top' if row['speedup']['ratio'] >= 1 else 'bottom'} center" for row in sparse],
        "textfont": {"color": palette.INK, "size": 12},
        "cliponaxis": False,
        "yaxis": "y2",
        "line": {"color": colour, "width": 2, "dash": "solid"},
        "marker": {"symbol": "diamond", "size": 9, "color": colour},
        "hovertemplate": "%{x}<br>%{y:.2f}×<extra>%{fullData.name}</extra>",
        **more,
    }


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
    shared: dict[str, Any] = {"legendgroup": f"pin {number}", "opacity": 0.8}
    named = {lane.name: seconds_of(one.rows, lane, **shared) for lane in PAIR}
    named["speed-up"] = _gains(one.rows, **shared, mode="lines+markers")
    for what, trace in named.items():
        trace["name"] = f"{one.label}: {what}"
        trace["line"] = {**trace["line"], "width": 1}
        mark = f"{symbol}-open" if what == PAIR[0].name else symbol
        trace["marker"] = {**trace["marker"], "symbol": mark, "size": 8}
        trace["showlegend"] = False
    named[PAIR[-1].name] |= {"name": f"pinned: {one.label}", "showlegend": True}
    return list(named.values())


def chart_label(rows: Sequence[Row], pinned: Sequence[Pin] = ()) -> str:
    """The chart in words."""
    parts = []
    for row in done(rows):
        gain = f", {row['speedup']['text']} {row['speedup']['words']}" if row["speedup"] else ""
        gain = ", never sparse" if row["never_sparse"] else gain
        seconds = (f"{clock(row[f'{lane.key}_seconds'])} with {lane.name}" for lane in PAIR)
        parts.append(f"{row['name']}: {', '.join(seconds)}{gain}")
    if pinned:
        parts.append(f"pinned beside it: {', '.join(one.label for one in pinned)}")
    return "Line chart of the seconds at each prompt length. " + ("; ".join(parts) or "Nothing is measured yet")
