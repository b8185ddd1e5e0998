"""run → plotly figures, as the JSON that plotly.js draws.

The figures are plain dictionaries: building one costs well under a millisecond, so it can be done eight times
a second beside a running engine (plotly's Python classes validate every attribute; the tests do that
instead). Colours are written as CSS variables of assets/page.css; the page's script puts the values of the
light or dark design in their place when it draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Figure = dict[str, Any]

INK, MUTED, GRID = "var(--sd-ink)", "var(--sd-muted)", "var(--sd-grid)"
COLOURS = {"dense": "var(--sd-dense)", "sparse": "var(--sd-sparse)"}
LABELS = {"dense": "Full attention", "sparse": "SparseD"}
# Not by colour alone: the lanes differ in line style and marker too.
STYLES = {"dense": ("solid", "circle"), "sparse": ("dash", "diamond")}
SKIPPED, KEPT_PROMPT, KEPT_GENERATION = 0, 1, 2


def _layout(**layout: Any) -> Figure:
    axis = {"gridcolor": GRID, "linecolor": GRID, "zeroline": False, "color": MUTED, "automargin": True}
    base: Figure = {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": INK, "size": 13},
        "hoverlabel": {"bgcolor": "var(--sd-panel)", "bordercolor": GRID, "font": {"color": INK}},
        "showlegend": False,
        "autosize": True,
    }
    for name in ("xaxis", "yaxis"):
        given = layout.get(name, {})
        if "title" in given:
            given = {
                **given,
                "title": {**given["title"], "font": {"size": 13, "color": MUTED}, "standoff": 10},
            }
        layout[name] = {**axis, "tickfont": {"size": 12}, **given}
    return {**base, **layout}


def timeline(
    times: dict[str, Sequence[float]],
    phases: dict[str, Sequence[str]],
    *,
    total: int,
    switch_step: int | None,
    at_most: bool = False,
) -> Figure:
    """Milliseconds per denoising step of each lane, with a line where full attention ends.

    times: lane → seconds of each step so far. phases: lane → phase of each step so far. total: steps of a
    run. switch_step: the engine's first sparse step, counted from 0, or None. On the page steps count from 1,
    so the line stands at switch_step + 0.5, between the select step and the first sparse one. at_most: the
    runs may end before `total`, so the axis reaches only a little beyond the steps that were made.
    """
    if at_most:
        made = max(map(len, times.values()), default=0)
        total = min(total, max(made + made // 4, (switch_step or 0) + 2, 8))
    data = []
    for lane, seconds in times.items():
        dash, symbol = STYLES.get(lane, ("dot", "square"))
        # The one step that also selects stands out; it is larger, not only of another shape.
        sizes = [11 if phase == "select" else 6 for phase in phases[lane]]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": LABELS.get(lane, lane),
                "x": list(range(1, len(seconds) + 1)),
                "y": [round(1000 * value, 2) for value in seconds],
                "text": list(phases[lane]),
                "line": {"color": COLOURS.get(lane, INK), "width": 2, "dash": dash},
                "marker": {"symbol": symbol, "size": sizes, "color": COLOURS.get(lane, INK)},
                "hovertemplate": "step %{x} · %{text}<br>%{y:.1f} ms<extra>%{fullData.name}</extra>",
            }
        )
    shapes, annotations = [], []
    if switch_step is not None:
        shapes.append(
            {
                "type": "line",
                "name": "switch",
                "x0": switch_step + 0.5,
                "x1": switch_step + 0.5,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "line": {"color": INK, "width": 1.5, "dash": "dot"},
            }
        )
        right = switch_step <= total / 2
        annotations.append(
            {
                "x": switch_step + 0.5,
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "xanchor": "left" if right else "right",
                "showarrow": False,
                "text": f"SparseD turns sparse after step {switch_step}",
                "font": {"color": INK, "size": 12},
            }
        )
    longest = max((max(seconds) for seconds in times.values() if seconds), default=0.0)
    return {
        "data": data,
        "layout": _layout(
            xaxis={"title": {"text": "denoising step"}, "range": [0, total + 1], "showgrid": False},
            yaxis={
                "title": {"text": "milliseconds per step"},
                "range": [0, 1100 * longest if longest else 1],
                "rangemode": "tozero",
            },
            showlegend=True,
            legend={
                "orientation": "h",
                "x": 0,
                "xanchor": "left",
                "xref": "paper",
                "y": 1,
                "yref": "container",
                "yanchor": "top",
            },
            margin={"l": 56, "r": 14, "t": 62, "b": 52},
            shapes=shapes,
            annotations=annotations,
            hovermode="closest",
        ),
    }


def block_ranges(length: int, block_size: int) -> list[tuple[int, int]]:
    """(first token, last token) of every attention block, positions counted from 0; the last may be partial.
    """
    return [(start, min(start + block_size, length) - 1) for start in range(0, length, block_size)]


def block_labels(length: int, prompt_length: int, block_size: int, prompt_blocks: int) -> list[str]:
    """What the hover says of each block: its index, its tokens and its side."""
    labels = []
    for index, (start, end) in enumerate(block_ranges(length, block_size)):
        side = "prompt" if index < prompt_blocks else "generation"
        if index < prompt_blocks and end >= prompt_length:
            side = "prompt and the first generated tokens"
        labels.append(f"{index} · tokens {start}–{end} · {side}")
    return labels


def heatmap(
    mask: Sequence[Sequence[bool]],
    *,
    layer: int,
    head: int,
    length: int,
    prompt_length: int,
    block_size: int,
    prompt_blocks: int,
) -> Figure:
    """The key blocks one head keeps for every query block.

    mask: [query blocks][key blocks], True where kept. In the figure a cell is 0 (skipped), 1 (kept, a prompt
    block) or 2 (kept, a generation block). prompt_blocks: how many blocks belong to the prompt's side. The
    hover names the block indices and their tokens; the title the share of blocks kept.
    """
    rows = [[bool(value) for value in row] for row in mask]
    blocks = len(rows)
    cells = [
        [
            (KEPT_PROMPT if key < prompt_blocks else KEPT_GENERATION) if kept else SKIPPED
            for key, kept in enumerate(row)
        ]
        for row in rows
    ]
    density = sum(map(sum, rows)) / max(1, sum(map(len, rows)))
    labels = block_labels(length, prompt_length, block_size, prompt_blocks)
    every = max(1, -(-blocks // 8))
    ticks = list(range(0, blocks, every))
    axis = {
        "type": "category",
        "tickmode": "array",
        "tickvals": [labels[tick] for tick in ticks],
        "ticktext": [str(tick) for tick in ticks],
        "tickangle": 0,
        "showgrid": False,
        "constrain": "domain",
    }
    shapes = []
    if 0 < prompt_blocks < blocks:
        edge = prompt_blocks - 0.5
        low, high = -0.5, blocks - 0.5
        line = {"color": INK, "width": 1.5, "dash": "dot"}
        shapes = [
            {"type": "line", "x0": edge, "x1": edge, "y0": low, "y1": high, "line": line},
            {"type": "line", "x0": low, "x1": high, "y0": edge, "y1": edge, "line": line},
        ]
    gap = 1 if blocks <= 64 else 0
    return {
        "data": [
            {
                "type": "heatmap",
                "z": cells,
                "x": labels,
                "y": labels,
                "zmin": SKIPPED,
                "zmax": KEPT_GENERATION,
                "xgap": gap,
                "ygap": gap,
                "showscale": False,
                "colorscale": [
                    [0.0, "var(--sd-skipped)"],
                    [0.3333, "var(--sd-skipped)"],
                    [0.3333, "var(--sd-kept)"],
                    [0.6667, "var(--sd-kept)"],
                    [0.6667, "var(--sd-kept-generation)"],
                    [1.0, "var(--sd-kept-generation)"],
                ],
                "hovertemplate": "query block %{y}<br>key block %{x}<extra></extra>",
            }
        ],
        "layout": _layout(
            title={
                "text": f"Layer {layer}, head {head}: {100 * density:.1f} % of blocks kept",
                "font": {"size": 14, "color": INK},
                "x": 0,
                "xref": "container",
                "xanchor": "left",
                "y": 0.98,
                "yanchor": "top",
            },
            xaxis={**axis, "title": {"text": f"key block ({block_size} tokens each)"}},
            yaxis={**axis, "title": {"text": "query block"}, "autorange": "reversed", "scaleanchor": "x"},
            margin={"l": 56, "r": 14, "t": 44, "b": 56},
            shapes=shapes,
        ),
    }


def empty(sentence: str) -> Figure:
    """A figure that says why there is nothing to draw yet."""
    hidden = {"visible": False}
    return {
        "data": [],
        "layout": _layout(
            xaxis=hidden,
            yaxis=hidden,
            margin={"l": 8, "r": 8, "t": 8, "b": 8},
            annotations=[
                {
                    "text": sentence,
                    "showarrow": False,
                    "x": 0.5,
                    "y": 0.5,
                    "xref": "paper",
                    "yref": "paper",
                    "font": {"color": MUTED, "size": 14},
                }
            ],
        ),
    }
