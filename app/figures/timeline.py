"""The figure of the time per step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from app.figures.base import LEGEND_ABOVE, Figure, base_layout
from app.figures.palette import INK, style_of
from app.lanes import headline, reference
from app.phrases import gain
from app.race.lane_view import FEW_ROWS
from app.race.snapshot import StepTimes


def timeline(made: StepTimes) -> Figure:
    """Milliseconds per denoising step of each lane, with a line where full attention ends, and below each lane's clock.

    On the page steps count from 1, so the line stands at switch_step + 0.5, between the select step and the first
    sparse one. Where runs may end before `total`, the axis reaches only a little beyond the steps that were made.
    """
    lanes, times, phases, total, switch_step = made.lanes, made.seconds, made.phases, made.total, made.switch_step
    first, large = reference(lanes), headline(lanes)
    if made.at_most:
        longest = max(map(len, times.values()), default=0)
        total = min(total, max(longest + longest // 4, (switch_step or 0) + 2, 8))
    steps_made, whole = [], []
    for lane in lanes:
        style, seconds = style_of(lane), times[lane.key]
        # A step that also selects stands out; it is larger, not only of another shape.
        sizes = [11 if phase == "select" else 6 for phase in phases[lane.key]]
        said = list(phases[lane.key])
        if made.positions is not None:
            # Of some rows, it is smaller.
            few = [rows < made.positions for rows in made.rows[lane.key]]
            sizes = [4 if some else size for some, size in zip(few, sizes, strict=True)]
            said = [
                f"{FEW_ROWS}: {rows:,} of {made.positions:,}" if some else f"{phase}, all {rows:,} rows"
                for some, phase, rows in zip(few, said, made.rows[lane.key], strict=True)
            ]
        common: Figure = {
            "type": "scatter",
            "name": lane.label,
            "x": list(range(1, len(seconds) + 1)),
            "legendgroup": lane.key,
            "line": {"color": style.colour, "width": 2, "dash": style.dash},
        }
        steps_made.append(
            {
                **common,
                "mode": "lines+markers",
                "y": [round(1000 * value, 2) for value in seconds],
                "text": said,
                "marker": {"symbol": style.symbol, "size": sizes, "color": style.colour},
                "hovertemplate": "step %{x} · %{text}<br>%{y:.1f} ms<extra>%{fullData.name}</extra>",
            }
        )
        whole.append(
            {
                **common,
                "mode": "lines",
                "y": [round(value, 4) for value in accumulate(seconds)],
                "xaxis": "x",
                "yaxis": "y2",
                "showlegend": False,
                "hovertemplate": "%{y:.2f} s after step %{x}<extra>%{fullData.name}</extra>",
            }
        )
    shapes, annotations = _phases(total, made, "" if large is None else large.method)
    apart = first and large and _gain_so_far(times[first.key], times[large.key], phases[large.key])
    if apart and switch_step is not None:
        # By the last step, or beside the switch line, which a long text would cross.
        long = apart["x"] - switch_step <= total / 2
        annotations.append(apart | _beside(switch_step, total) if long else apart)
    slowest = max((max(seconds) for seconds in times.values() if seconds), default=0.0)
    most = max((sum(seconds) for seconds in times.values()), default=0.0)
    return {
        "data": [*steps_made, *whole],
        "layout": base_layout(
            xaxis={
                "title": {"text": "denoising step"},
                "range": [0, total + 1],
                "showgrid": False,
                "anchor": "y2",
                "fixedrange": True,
            },
            yaxis={
                "title": {"text": "ms per step"},
                "range": [0, 1100 * slowest if slowest else 1],
                "rangemode": "tozero",
                "domain": [0.44, 1],
                "fixedrange": True,
            },
            yaxis2={
                "title": {"text": "seconds so far"},
                "range": [0, 1.1 * most if most else 1],
                "rangemode": "tozero",
                "domain": [0, 0.32],
                "nticks": 4,
                "fixedrange": True,
            },
            showlegend=True,
            legend=LEGEND_ABOVE,
            margin={"l": 56, "r": 14, "t": 62, "b": 52},
            shapes=shapes,
            annotations=annotations,
            hovermode="closest",
            # In the browser a line goes along the steps of this lane, and a click asks for a step, so that it must not
            # zoom (assets/page/cursor.js).
            dragmode=False,
            meta={"playhead": (large or lanes[0]).key},
        ),
    }


def switch_line(switch_step: int) -> Figure:
    """Stands between the select step and the first sparse one, where steps count from 1; switch_step from 0."""
    return {
        "type": "line",
        "name": "switch",
        "x0": switch_step + 0.5,
        "x1": switch_step + 0.5,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": {"color": INK, "width": 1.5, "dash": "dot"},
    }


def _beside(switch_step: int, total: int) -> Figure:
    """Where a text stands beside the switch line: on the side that has room, at the left with the axis's numbers."""
    return {"x": switch_step + 0.5, "xanchor": "left" if switch_step <= 0.4 * total else "right"}


def _phases(total: int, made: StepTimes, name: str) -> tuple[list[Figure], list[Figure]]:
    """The switch line, the phases of the headline's lane behind it up to step `total`, and what is said of them. name:
    what that lane's method is called.
    """
    switch_step = made.switch_step
    if switch_step is None:
        return [], []
    said: Figure = {
        **_beside(switch_step, total),
        "y": 1,
        "yref": "paper",
        "yanchor": "bottom",
        "showarrow": False,
        "text": f"{name} turns sparse after step {switch_step}",
        "font": {"color": INK, "size": 12},
    }
    shapes = [switch_line(switch_step)]
    for phase, first, last in made.ranges:
        if first > total:
            continue
        shapes.append(
            {
                "type": "rect",
                "name": phase,
                "x0": first - 0.5,
                "x1": min(total, last or total) + 0.5,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "layer": "below",
                "line": {"width": 0},
                "fillcolor": f"var(--sd-phase-{phase})",
            }
        )
    return shapes, [said]


def _gain_so_far(one: Sequence[float], other: Sequence[float], phases: Sequence[str]) -> Figure | None:
    """How far apart the clocks of two lanes are over the steps that both have made, once the other one is sparse."""
    made = min(len(one), len(other))
    if "sparse" not in phases[:made]:
        return None
    first, second = sum(one[:made]), sum(other[:made])
    if first <= 0 or second <= 0:
        return None
    factor, said = gain(first / second)
    return {
        "text": f"{factor}{' slower' if said == 'slower' else ''} after {made} steps",
        "x": made,
        "y": max(first, second),
        "xref": "x",
        "yref": "y2",
        "xanchor": "right",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"color": INK, "size": 12},
    }
