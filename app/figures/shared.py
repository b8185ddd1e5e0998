"""Small parts of several figures."""

from __future__ import annotations

import base64
import html
from typing import Any, NamedTuple

import numpy as np

from app.figures.base import Figure
from app.figures.palette import INK, MUTED

LONGEST_WORDS = 40


class View(NamedTuple):
    """A figure and what it shows, in words."""

    figure: Figure
    label: str


def typed(array: np.ndarray) -> dict[str, str]:
    """A numpy array as plotly's JSON takes it: type, base64 of the bytes (little endian), shape."""
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    name = f"{array.dtype.kind}{array.dtype.itemsize}"
    shape = ", ".join(map(str, array.shape))
    return {"dtype": name, "bdata": base64.b64encode(array.tobytes()).decode("ascii"), "shape": shape}


def heads_and_cells(thumbs: np.ndarray) -> tuple[int, int]:
    if thumbs.ndim != 3 or thumbs.shape[1] != thumbs.shape[2] or not thumbs.size:
        raise ValueError(f"thumbs must be [heads, cells, cells], not {thumbs.shape}.")
    return thumbs.shape[0], thumbs.shape[1]


def cell_sizes(cells: int, per_cell: int, blocks: int) -> np.ndarray:
    """How many attention blocks each cell of a thumbnail covers."""
    if not (cells - 1) * per_cell < blocks <= cells * per_cell:
        raise ValueError(f"{cells} cells of {per_cell} blocks do not cover {blocks} blocks.")
    sizes = np.full(cells, per_cell, dtype=float)
    sizes[-1] = blocks - (cells - 1) * per_cell
    return sizes


def boundary(blocks: int, prompt_blocks: int, x: str, y: str, *, width: float) -> list[Figure]:
    """Where the answer begins, among the keys and among the queries."""
    if not 0 < prompt_blocks < blocks:
        return []
    edge, low, high = prompt_blocks - 0.5, -0.5, blocks - 0.5
    line = {"color": INK, "width": width, "dash": "dot"}
    shared = {"type": "line", "name": "boundary", "xref": x, "yref": y, "line": line}
    return [
        {**shared, "x0": edge, "x1": edge, "y0": low, "y1": high},
        {**shared, "x0": low, "x1": high, "y0": edge, "y1": edge},
    ]


def title_of(text: str, *lines: str) -> Figure:
    """A title at the upper left, with smaller lines below it; short ones, because plotly breaks no lines."""
    return {
        "text": text,
        "subtitle": {"text": "<br>".join(lines), "font": {"size": 12, "color": MUTED}},
        "font": {"size": 14, "color": INK},
        "x": 0,
        "xref": "container",
        "xanchor": "left",
        "y": 1,
        "yref": "container",
        "yanchor": "top",
        "pad": {"t": 6},
    }


def note(text: str, xref: str, x: float, xanchor: str, yref: str, y: float, yanchor: str, *, size: int) -> Figure:
    return {
        "text": text,
        "xref": xref,
        "x": place_of(x),
        "xanchor": xanchor,
        "yref": yref,
        "y": y,
        "yanchor": yanchor,
        "align": "left",
        "showarrow": False,
        "borderpad": 0,
        "font": {"size": size, "color": INK},
    }


def step_ticks(*colours: str) -> list[list[Any]]:
    """A colour scale without transitions: the n colours stand for 0 … n − 1."""
    count = len(colours)
    edges = [round(i / count, 4) for i in range(count + 1)]
    return [[edge, colour] for i, colour in enumerate(colours) for edge in edges[i : i + 2]]


def ticks_of(count: int) -> list[int]:
    """Round numbers from 0 to count − 1, about eight of them."""
    step = next(
        multiple * 10**power for power in range(9) for multiple in (1, 2, 5) if count <= 9 * multiple * 10**power
    )
    return list(range(0, count, step))


def sees_all(full_blocks: int, blocks: int) -> tuple[str, ...]:
    """A line on the last query blocks where so many see every key; none where each has selected its own."""
    if not full_blocks:
        return ()
    first, last = blocks - full_blocks, blocks - 1
    which = f"query block {last} sees" if full_blocks == 1 else f"query blocks {first} to {last} see"
    return (f"{which} every key: not selected",)


def place_of(value: float) -> float:
    return round(min(value, 1.0) if -1e-9 < value - 1 < 1e-9 else value, 5)


def percent(share: float) -> str:
    """A share, 0 … 1, in percent with as many digits as are of use."""
    value = 100 * float(share)
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.2g} %"


def quoted(text: str) -> str:
    """The first words of a block for plotly's hover, which understands some HTML: a line of its own."""
    line = " ".join(text.split())
    if len(line) > LONGEST_WORDS:
        line = f"{line[:LONGEST_WORDS].rstrip()}…"
    return f"<br>“{html.escape(line, quote=False)}”" if line else ""
