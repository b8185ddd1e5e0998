"""What all figures share: layout, colours, axes in blocks."""

from __future__ import annotations

from textwrap import wrap
from typing import Any

from app.figures.palette import CLEAR, GRID, INK, MUTED, PANEL

Figure = dict[str, Any]
LEGEND_ABOVE = {
    "orientation": "h", "x": 0, "xanchor": "left", "xref": "paper", "y": 1, "yref": "container", "yanchor": "top",
}  # fmt: skip
# Characters of a line of a sentence where there is no figure: as many as the narrowest figure has room for.
_LINE = 42


def base_layout(**layout: Any) -> Figure:
    """A figure's layout with what all figures have in common: colours, fonts, axes."""
    axis = {"gridcolor": GRID, "linecolor": GRID, "zeroline": False, "color": MUTED, "automargin": True}
    base: Figure = {
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "font": {"color": INK, "size": 13},
        "hoverlabel": {"bgcolor": PANEL, "bordercolor": GRID, "font": {"color": INK}},
        "showlegend": False,
        "autosize": True,
    }
    for name in sorted({"xaxis", "yaxis", *(key for key in layout if key.startswith(("xaxis", "yaxis")))}):
        given = layout.get(name, {})
        if "title" in given:
            given = {
                **given,
                "title": {**given["title"], "font": {"size": 13, "color": MUTED}, "standoff": 10},
            }
        layout[name] = {**axis, "tickfont": {"size": 12}, **given}
    return {**base, **layout}


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


def empty(sentence: str) -> Figure:
    """A figure that says why there is nothing to draw yet."""
    hidden = {"visible": False}
    return {
        "data": [],
        "layout": base_layout(
            xaxis=hidden,
            yaxis=hidden,
            margin={"l": 8, "r": 8, "t": 8, "b": 8},
            annotations=[
                {
                    "text": "<br>".join(wrap(sentence, _LINE)),
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
