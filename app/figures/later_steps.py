"""How long a head stays with its choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from app.figures.base import Figure, base_layout
from app.figures.palette import INK, KEPT, MUTED
from app.figures.shared import View, title_of
from app.figures.timeline import switch_line

FRESH = "a fresh selection against the one in use"


def tracking(
    steps: Sequence[int],
    overlap: np.ndarray,
    switch_step: int | None,
    selected: Sequence[int] = (),
    cost: str = "",
) -> View:
    """How much of the reused pattern a fresh selection after later steps would choose again.

    steps: the engine's step indices, from 0, ascending. overlap: [steps, layers, heads], intersection over
    union with the pattern in use then, 0 … 1. Drawn are the mean over all heads, and the range of the layers'
    means and of all heads. switch_step: the step after the one that made the first pattern, from 0, or None. As
    elsewhere on the page, steps count from 1 and the line stands between the select step and the next one. selected:
    the run's other select steps, from 0, ascending; each has a line as well. cost: what its selections cost, in words.
    """
    if overlap.ndim != 3 or len(overlap) != len(steps) or not overlap.size:
        raise ValueError(f"overlap must be [{len(steps)} steps, layers, heads], not {overlap.shape}.")
    at = [step + 1 for step in steps]
    flat = 100 * overlap.reshape(len(at), -1)
    by_layer = 100 * overlap.mean(2)

    def line(name: str, values: np.ndarray, **more: Any) -> Figure:
        hover = f"after step %{{x}}<br>{name}: %{{y:.1f}} %<extra></extra>"
        return {
            "type": "scatter",
            "name": name,
            "x": at,
            "y": [round(float(value), 2) for value in values],
            "hovertemplate": hover,
            **more,
        }

    edge = {"mode": "lines+markers", "marker": {"size": 5, "color": MUTED}}
    data = [
        line("best head", flat.max(1), line={"color": MUTED, "width": 1, "dash": "dot"}, **edge),
        line("best layer", by_layer.max(1), line={"color": KEPT, "width": 1, "dash": "dash"}, mode="lines"),
        line(
            "mean of all heads",
            flat.mean(1),
            mode="lines+markers",
            line={"color": KEPT, "width": 2.5},
            marker={"symbol": "diamond", "size": 8, "color": KEPT},
        ),
        line("worst layer", by_layer.min(1), line={"color": KEPT, "width": 1, "dash": "dash"}, mode="lines"),
        line("worst head", flat.min(1), line={"color": MUTED, "width": 1, "dash": "dot"}, **edge),
    ]
    shapes, annotations = [], []
    if switch_step is not None:
        shapes.append(switch_line(switch_step))
        annotations.append(
            {
                "x": switch_step + 0.5,
                "y": 0,
                "yref": "paper",
                "yanchor": "bottom",
                "xanchor": "left",
                "xshift": 4,
                "showarrow": False,
                "text": "blocks selected here",
                "font": {"color": INK, "size": 12},
            }
        )
    for step in selected:
        again = switch_line(step + 1)
        shapes.append({**again, "name": "selected again", "line": {**again["line"], "width": 1}})
    first = min([at[0], *([switch_step + 0.5] if switch_step is not None else [])])
    pad = max(0.5, 0.03 * (at[-1] - first))
    said = f"{flat[-1].mean():.1f} % of the selected blocks would be selected again after step {at[-1]}"
    layout = base_layout(
        title=title_of("Does the choice stay right?", *filter(None, (FRESH, cost))),
        xaxis={"title": {"text": "denoising step"}, "range": [first - pad, at[-1] + pad], "showgrid": False},
        yaxis={"title": {"text": "overlap (percent)"}, "range": [0, 103]},
        showlegend=True,
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": -0.22, "yanchor": "top"},
        margin={"l": 54, "r": 12, "t": 72 if cost else 56, "b": 96},
        shapes=shapes,
        annotations=annotations,
        hovermode="closest",
    )
    label = (
        f"Overlap of a fresh selection with the one in use, {len(at)} steps: {said}, "
        f"counted as intersection over union; {flat[-1].min():.1f} % in the worst head."
        f"{f' {cost}.' if cost else ''}"
    )
    return View({"data": data, "layout": layout}, label)
