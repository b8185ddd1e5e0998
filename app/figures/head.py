"""The block-mask heatmap: what one head keeps, over what mattered to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from app.figures.base import Figure, base_layout, block_labels, block_ranges
from app.figures.palette import CLEAR, HATCH, INK, KEPT, KEPT_GENERATION, SKIPPED, STRONG
from app.figures.shared import View, boundary, percent, quoted, sees_all, step_ticks, ticks_of, title_of, typed
from app.texts import Shades

# A head with importance: 0 … 127 are the levels of skipped cells, 128 … 255 the same levels of kept ones.
LEVELS = 128
# Importances below the largest by more than this factor share the lowest level.
SPAN = 2.0**16
# Up to here kept cells are outlined; beyond, a cell is about a pixel and lightness alone tells them apart.
OUTLINED = 64
# Up to here the share of every single cell goes to the browser: four bytes each, four times all else.
TOLD = 640
SHARE_SCALE = [[0.0, SKIPPED], [1.0, KEPT]]


def scale_words(blocks_per_cell: int, block_size: int) -> str:
    """How much of the sequence a cell of a thumbnail stands for."""
    if blocks_per_cell == 1:
        return f"1 cell = 1 block of {block_size} tokens"
    return f"1 cell = {blocks_per_cell} × {blocks_per_cell} blocks of {block_size} tokens"


def head_detail(
    mask: np.ndarray,
    *,
    layer: int,
    head: int,
    length: int,
    prompt_length: int,
    block_size: int,
    prompt_blocks: int,
    importance: np.ndarray | None = None,
    kept_mass: float | None = None,
    full_blocks: int = 0,
    words: Sequence[str] = (),
    show: Shades = "both",
    lane: str = "",
    what_if: float | None = None,
) -> View:
    """What one head keeps for every query block, over how important each key block was to it.

    mask: bool [n, n], True where kept; n = ceil(length / block_size). importance: float [n, n], attention
    weights averaged over the block pair, in any unit that is the same along a row; it is shown as the share
    of the query block's attention, on a logarithmic scale of LEVELS levels. Without it, or with show
    "kept", only the mask is drawn; with "importance", kept cells are not marked by their shade. words: the
    first words of every block, or nothing. kept_mass: share of attention mass kept, for the title. full_blocks: the
    last query blocks, which see every key without having selected it.

    lane: the key of the lane whose mask it is, "" for the headline's. what_if: the select at which the lane would have
    kept these blocks; None: it has kept them.

    The layout's meta is {"layer", "head", "map"}, to which the page adds (`app.finished.evidence`); "map" is what the
    browser needs to mark rows (assets/page/map.js): {"lane", "blocks", "generation": the first query block that holds
    a generated token, "full": full_blocks, "select": what_if}. A cell is kept exactly where z ≥ meta.kept_from of its
    trace, whatever is shown. Cells are never merged. Where there is importance, customdata is the share of attention,
    negative for cells that are skipped (up to TOLD blocks a side). What is said of a cell that is pointed at the
    browser makes of it: a sentence for each of 513 × 513 cells would be megabytes.
    """
    blocks = len(mask)
    ranges = block_ranges(length, block_size)
    if mask.shape != (blocks, blocks) or len(ranges) != blocks:
        raise ValueError(f"mask must be {len(ranges)} × {len(ranges)} for this length, not {mask.shape}.")
    if importance is not None and importance.shape != mask.shape:
        raise ValueError(f"importance must be of the mask's shape {mask.shape}, not {importance.shape}.")
    if words and len(words) != blocks:
        raise ValueError(f"words must hold {blocks} entries, not {len(words)}.")
    mask = mask.astype(bool)
    labels = block_labels(length, prompt_length, block_size, prompt_blocks)
    if words:
        labels = [f"{label}{quoted(text)}" for label, text in zip(labels, words)]
    rows = [f"{label}<br>sees every key" if row >= blocks - full_blocks else label for row, label in enumerate(labels)]
    trace: Figure = {
        "type": "heatmap",
        "x": labels,
        "y": rows,
        "xgap": 1 if blocks <= OUTLINED else 0,
        "ygap": 1 if blocks <= OUTLINED else 0,
        "showscale": False,
        "hoverinfo": "none",  # assets/page/map.js says it below: a label would cover what it is of
    }
    shapes = boundary(blocks, prompt_blocks, "x", "y", width=1.5)
    kept = f"{100 * mask.mean():.1f} % of blocks kept"
    if kept_mass is not None:
        kept += f", {percent(kept_mass)} of attention"
    lines = [kept]
    if importance is None or show == "kept":
        lines.append("coloured: kept, the answer's keys in the second colour")
        codes = mask.astype(np.uint8)
        codes[:, prompt_blocks:] *= 2
        trace |= {"z": typed(codes), "zmin": 0, "zmax": 2, "meta": {"kept_from": 1}}
        trace["colorscale"] = step_ticks(SKIPPED, KEPT, KEPT_GENERATION)
    if importance is not None:
        share = _attention_share(importance, ranges)
        if blocks <= TOLD:
            trace["customdata"] = typed(np.where(mask, share, -np.maximum(share, 1e-9)).astype(np.float32))
        if show != "kept":
            marked = show == "both"
            parts = [level_edges(share, ~mask if marked else None), level_edges(share, mask if marked else None)]
            levels = np.where(mask, parts[1][0] + LEVELS, parts[0][0]).astype(np.uint8)
            trace |= {"z": typed(levels), "zmin": 0, "zmax": 2 * LEVELS - 1, "meta": {"kept_from": LEVELS}}
            trace["colorscale"] = _level_colours(marked)
            if marked:
                most_skipped, most_kept = (percent(highest) for _, highest in parts)
                outlined = ", outlined" if blocks <= OUTLINED else ""
                lines.append(f"skipped: grey, up to {most_skipped} of a row's attention")
                lines.append(f"kept: coloured{outlined}, up to {most_kept}")
            else:
                lines.append("shade: share of a row's attention, logarithmic")
            if marked and blocks <= OUTLINED:
                shapes.append(_outline(mask))
    if importance is not None and blocks > TOLD:
        lines.append(f"more than {TOLD} × {TOLD} cells: shades alone, without the number of each")
    unselected = sees_all(full_blocks, blocks)
    lines += unselected
    axis = {
        "type": "category",
        "tickmode": "array",
        "tickvals": ticks_of(blocks),
        "ticktext": [str(tick) for tick in ticks_of(blocks)],
        "tickangle": 0,
        "showgrid": False,
        "constrain": "domain",
    }
    about = {
        "lane": lane,
        "blocks": blocks,
        "generation": prompt_length // block_size,
        "full": full_blocks,
        "select": what_if,
    }
    named = f"ayer {layer}, head {head}" + ("" if what_if is None else f", if select were {what_if:g}")
    layout = base_layout(
        title=title_of(f"L{named}", *lines),
        xaxis={**axis, "title": {"text": f"key block ({block_size} tokens each)"}},
        yaxis={
            **axis,
            "title": {"text": "query block"},
            "autorange": "reversed",
            "scaleanchor": "x",
            "constraintoward": "top",
        },
        margin={"l": 56, "r": 14, "t": 46 + 16 * len(lines), "b": 56},
        shapes=shapes,
        hovermode="closest",
        meta={"layer": layer, "head": head, "map": about},
    )
    said = ". ".join((f"Block mask of l{named}: {kept}", *unselected))
    return View({"data": [trace], "layout": layout}, f"{said}.")


def _attention_share(importance: np.ndarray, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    """Mean weights per token → float32 shares of a row's attention; rows sum to 1 (or are 0 throughout)."""
    columns = np.array([last + 1 - first for first, last in ranges], dtype=np.float32)
    share = importance.astype(np.float32) * columns
    totals = share.sum(1, keepdims=True)
    share /= np.where(totals > 0, totals, 1)
    return share


def level_edges(share: np.ndarray, among: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """uint8 levels 0 … LEVELS − 1 on a logarithmic scale, and the share of the highest (0 if there is none).

    among: bool, the cells that the scale must fit; the others are cut off at its ends. The least fiftieth of
    them share the lowest level, so that a few blocks of nearly nothing do not take all the shades.
    """
    values = share if among is None else share[among]
    positive = values[values > 0]
    if not len(positive):
        return np.zeros(share.shape, dtype=np.uint8), 0.0
    highest = float(positive.max())
    rank = len(positive) // 50
    lowest = max(float(np.partition(positive, rank)[rank]), highest / SPAN)
    if lowest >= highest:
        lowest = highest / 2
    place = np.log(np.clip(share, lowest, highest) / lowest) / math.log(highest / lowest)
    return np.rint((LEVELS - 1) * place).astype(np.uint8), highest


def _level_colours(marked: bool) -> list[list[Any]]:
    """The colours of the levels of skipped cells, then those of kept ones.

    marked: the palest kept cell differs from the darkest skipped one by a contrast of about 3 : 1, in both
    designs, so the mask can be told without seeing colours; otherwise both halves have the same colours.
    """
    low, high = ([SKIPPED, HATCH], [KEPT, STRONG]) if marked else ([SKIPPED, KEPT, STRONG],) * 2
    edge = (LEVELS - 0.5) / (2 * LEVELS - 1)
    colours = [[edge * i / (len(low) - 1), colour] for i, colour in enumerate(low)]
    return colours + [[edge + (1 - edge) * i / (len(high) - 1), colour] for i, colour in enumerate(high)]


def _outline(mask: np.ndarray) -> Figure:
    """The outline of the kept cells as one path, in block indices."""
    padded = np.pad(mask, 1)
    upright = padded[1:-1, 1:] != padded[1:-1, :-1]
    level = padded[1:, 1:-1] != padded[:-1, 1:-1]
    parts = [f"M{x - 0.5},{y - 0.5}V{y + 0.5}" for y, x in np.argwhere(upright).tolist()]
    parts += [f"M{x - 0.5},{y - 0.5}H{x + 0.5}" for y, x in np.argwhere(level).tolist()]
    line = {"color": INK, "width": 1.5}
    return {"type": "path", "name": "kept", "path": "".join(parts) or "M0,0", "line": line, "fillcolor": CLEAR}
