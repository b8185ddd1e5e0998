"""Speed-up against prompt length: lines that were recorded, and what the visitor has run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.figures import base, palette
from app.lanes import PAIR
from app.lengths.chart import PIN_SYMBOLS, thin
from app.lengths.pins import Pin
from app.lengths.recorded import MARKS, RECORDED, Recorded
from app.lengths.table import Lane, Row, done, lanes_in, of
from app.race.lane_view import Snapshot

HEADLINE = PAIR[-1].key
_RATIOS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
# Tokens of the lengths at which something was recorded.
_TICKS = {"256": 256, **{f"{2**power}k": 1024 * 2**power for power in range(7)}}
# Of single runs the newest stay.
MOST_POINTS = 60


@dataclass(frozen=True)
class Point:
    """One lane of a single run: how many times faster than full attention it was."""

    key: str
    label: str
    style: int
    tokens: int  # of the prompt
    ratio: float
    text: str  # in words


def points_of(stage: Snapshot) -> tuple[Point, ...]:
    """What a run's last snapshot says; nothing where it did not reach its end. Lanes without a factor are left out."""
    if stage["state"] != "done":
        return ()
    return tuple(
        Point(
            lane["key"], lane["label"], lane["style"], lane["info"]["prompt_tokens"], lane["speedup"]["ratio"],
            f"{lane['speedup']['text']} {lane['speedup']['words']}",
        )
        for lane in stage["lanes"]
        if lane["speedup"] is not None and lane["info"] is not None
    )  # fmt: skip


def gains(rows: Sequence[Row] = (), pinned: Sequence[Pin] = (), points: Sequence[Point] = ()) -> base.Figure:
    """Speed-up over the prompt length, both axes logarithmic.

    The recorded lines are there always; in the colours of their lanes those of a comparison (rows that are done), the
    pinned ones, and the points of single runs.
    """
    current, every = done(rows), [row for one in pinned for row in one.rows]
    traces = [trace for one in RECORDED for trace in _recorded(one)]
    for number, one in enumerate(pinned):
        traces += _pinned(one, number)
    traces += [*_lines(current), *_points(points)]
    shown = [trace for trace in traces if trace["x"]]
    ratios = [ratio for trace in shown for ratio in trace["y"]]
    tokens = [row["budget"] for row in (*rows, *every)] + [at for trace in shown for at in trace["x"]]
    return {
        "data": shown,
        "layout": base.base_layout(
            xaxis={
                "title": {"text": "prompt length (tokens)"},
                **_logarithmic(min(tokens), max(tokens), {name: float(at) for name, at in _TICKS.items()}),
                "showgrid": False,
            },
            yaxis={
                "title": {"text": "speed-up over full attention"},
                **_logarithmic(min([0.8, *ratios]), max(ratios), {f"{mark:g}×": mark for mark in _RATIOS}),
            },
            shapes=[
                {
                    "type": "line",
                    "name": "as fast",
                    "xref": "paper",
                    "x0": 0,
                    "x1": 1,
                    "y0": 1,
                    "y1": 1,
                    "line": {"color": palette.MUTED, "width": 1, "dash": "dot"},
                }
            ],
            showlegend=bool(current or pinned or points),
            legend=base.LEGEND_ABOVE,
            margin={"l": 56, "r": 14, "t": 44, "b": 48},
            hovermode="closest",
        ),
    }


def _logarithmic(low: float, high: float, marks: Mapping[str, float]) -> base.Figure:
    """An axis from below `low` to above `high`, with the marks that lie on it."""
    low, high = low / 1.25, high * 1.25
    inside = {name: at for name, at in marks.items() if low <= at <= high}
    return {
        "type": "log",
        "range": [round(math.log10(low), 4), round(math.log10(high), 4)],
        "tickvals": list(inside.values()),
        "ticktext": list(inside),
    }


def _recorded(one: Recorded) -> list[base.Figure]:
    """The lines of one machine: quiet, told apart by their strokes and their marks."""
    return [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": f"{name} · {one.machine}",
            "x": [_TICKS[length] for length in line],
            "y": [round(gain, 4) for gain in line.values()],
            "text": list(line),
            "line": {"color": palette.MUTED, "width": 1, "dash": one.dash},
            "marker": {"symbol": MARKS[name][0], "size": 7, "color": palette.MUTED},
            "opacity": 0.75,
            "hovertemplate": "%{text}<br>%{y:.2f}×<extra>%{fullData.name}</extra>",
            "showlegend": False,
        }
        for name, line in one.lines.items()
    ]


def gain_of(row: Row, lane: Lane) -> dict[str, Any] | None:
    """A lane's speed-up; None where there is none, as of full attention and of a run that never became sparse."""
    found: dict[str, Any] | None = row["speedup"] if lane["key"] == HEADLINE else of(row, lane, "speedup")
    return found


def _lines(rows: Sequence[Row], **more: Any) -> list[base.Figure]:
    """The measured speed-up of each lane over the prompt length; SparseD's is the one that is written at its points."""
    drawn = []
    for lane in lanes_in(rows):
        found = [(row, gain["ratio"]) for row in rows if (gain := gain_of(row, lane))]
        colour, dash, symbol = palette.LANES[lane["style"] - 1]
        trace: base.Figure = {
            "type": "scatter",
            "mode": "lines+markers",
            "name": lane["label"],
            "x": [row["budget"] for row, _ in found],
            "y": [ratio for _, ratio in found],
            "text": [row["name"] for row, _ in found],
            "cliponaxis": False,
            "line": {"color": colour, "width": 2, "dash": dash},
            "marker": {"symbol": symbol, "size": 10, "color": colour},
            "hovertemplate": "%{text}<br>%{y:.2f}×<extra>%{fullData.name}, here</extra>",
            "showlegend": True,
        }
        if lane["key"] == HEADLINE:
            trace |= {
                "mode": "lines+markers+text",
                "text": [f"{ratio:.2f}×" for _, ratio in found],
                "textposition": [f"{'top' if ratio >= 1 else 'bottom'} center" for _, ratio in found],
                "textfont": {"color": palette.INK, "size": 12},
                "hovertemplate": "%{x} tokens<br>%{y:.2f}×<extra>%{fullData.name}, here</extra>",
                "line": {"color": colour, "width": 2, "dash": "solid"},
            }
        drawn.append({**trace, **more})
    return drawn


def _pinned(one: Pin, number: int) -> list[base.Figure]:
    """An earlier comparison: thinner, with marks of its own, one entry in the legend."""
    made = []
    for lane, trace in zip(lanes_in(one.rows), _lines(one.rows), strict=True):
        named = f"pinned: {one.label}" if lane["key"] == HEADLINE else f"{one.label}: {trace['name']}"
        made.append(
            thin(trace, PIN_SYMBOLS[number % len(PIN_SYMBOLS)])
            | {
                "name": named,
                "mode": "lines+markers",
                "legendgroup": f"pin {number}",
                "opacity": 0.8,
                "showlegend": lane["key"] == HEADLINE,
            }
        )
    return made


def _points(points: Iterable[Point]) -> list[base.Figure]:
    """The single runs, a trace for each lane."""
    lanes: dict[tuple[str, int], list[Point]] = {}
    for point in points:
        lanes.setdefault((point.label, point.style), []).append(point)
    drawn = []
    for (label, style), found in lanes.items():
        colour, _, symbol = palette.LANES[style - 1]
        drawn.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"{label}, single runs",
                "x": [point.tokens for point in found],
                "y": [point.ratio for point in found],
                "text": [f"{point.tokens:,} tokens<br>{point.text}" for point in found],
                "cliponaxis": False,
                "marker": {"symbol": symbol, "size": 12, "color": colour, "line": {"color": palette.INK, "width": 1}},
                "hovertemplate": "%{text}<extra>%{fullData.name}, here</extra>",
                "showlegend": True,
            }
        )
    return drawn


def gains_label(rows: Sequence[Row] = (), pinned: Sequence[Pin] = (), points: Sequence[Point] = ()) -> str:
    """The chart in words."""
    recorded = []
    for one in RECORDED:
        for name, line in one.lines.items():
            (first, low), (last, high) = list(line.items())[0], list(line.items())[-1]
            recorded.append(f"{name}, {one.machine}: {low:.2f}× at {first} to {high:.2f}× at {last}")
    here = [
        f"{row['name']}: {lane['name']} {gain['text']} {gain['words']}"
        for row in done(rows)
        for lane in row["lanes"]
        if (gain := gain_of(row, lane))
    ]
    here += [f"{point.tokens:,} tokens: {point.label} {point.text}" for point in points]
    said = [f"Recorded: {'; '.join(recorded)}."]
    said += [f"Here: {'; '.join(here)}."] if here else []
    said += [f"Pinned beside it: {', '.join(one.label for one in pinned)}."] if pinned else []
    return "Line chart of the speed-up over full attention against the prompt length. " + " ".join(said)
