"""Patterns → plotly figures: what the heads of a model keep, seen from far and from near.

Every function returns a `View`: the figure, a plain dictionary as in app/charts.py, and a sentence that says
the same to a screen reader. `view._asdict()` is the value of the page's "chart" view. Large arrays travel as
plotly's typed arrays, base64 text of their bytes, so that building and sending one layer of a long prompt
stays cheap. `layout.height` is the height in pixels that the figure was made for.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from app.charts import Figure, base_layout, block_labels, block_ranges, switch_line
from app.figures.palette import CLEAR, HATCH, INK, KEPT, KEPT_GENERATION, LANES, MUTED, PANEL, SKIPPED, STRONG
from app.words import Shades

# A head with importance: 0 … 127 are the levels of skipped cells, 128 … 255 the same levels of kept ones.
LEVELS = 128
# Importances below the largest by more than this factor share the lowest level.
SPAN = 2.0**16
# Up to here kept cells are outlined; beyond, a cell is about a pixel and lightness alone tells them apart.
OUTLINED = 64
# Cells of a tile of the whole model, and the code of the gaps between tiles (shares are 0 … 100 percent).
ATLAS_CELLS, GAP = 20, 101
# Cells a side of a panel of the small picture: each must be seen on a phone.
PICTURE_CELLS = 24
LONGEST_WORDS = 40

_SHARE_SCALE = [[0.0, SKIPPED], [1.0, KEPT]]


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


# ---------------------------------------------------------------- all heads of a layer


def overview(
    thumbs: np.ndarray,
    blocks_per_cell: int,
    layer: int,
    kept_mass: Sequence[float] | None = None,
    *,
    blocks: int,
    block_size: int,
    prompt_blocks: int,
    columns: int = 8,
    width: int = 1100,
) -> View:
    """The block masks of all heads of one layer, a small heatmap each.

    thumbs: [heads, cells, cells], the share of block pairs kept in each cell (rows are queries), 0 … 1.
    blocks_per_cell: attention blocks a cell covers each way; the last cell may cover fewer. kept_mass: for
    each head the share of attention mass kept; without it a head's share of blocks kept is written above
    it. blocks, block_size, prompt_blocks: of the sequence. columns: at most so many heads in a row. width:
    the pixels the figure will probably get; its height follows.

    The trace of a head has meta {"layer", "head"}, the layout {"layer", "heads"}; a trace's z are whole percents, its
    x and y block indices.
    """
    heads, cells = _heads_and_cells(thumbs)
    across, down = grid(heads, columns)
    tile = min(180.0, width / across)
    top, label_height = 66, 20
    height = round(top + down * (tile + label_height) + 8)
    inner = height - top - 4
    # Shares of the plotting area: room for the label above every tile, and a little between the columns.
    step_x, step_y = 1 / across, 1 / down
    gap_x, gap_y = 0.05 * step_x, label_height / inner
    weights = _cell_sizes(cells, blocks_per_cell, blocks)
    density = np.einsum("q,hqk,k->h", weights, thumbs, weights) / blocks**2
    shown = density if kept_mass is None else np.asarray(kept_mass, dtype=float)
    middle = (blocks_per_cell - 1) / 2
    percents = np.rint(100 * thumbs).astype(np.uint8)
    where = (
        "query block %{y:.0f}, key block %{x:.0f}"
        if blocks_per_cell == 1
        else "around query block %{y:.0f}, key block %{x:.0f}"
    )
    data, shapes, annotations = [], [], []
    layout: Figure = {}
    for head in range(heads):
        row, column = divmod(head, across)
        suffix = "" if head == 0 else str(head + 1)
        x, y = f"x{suffix}", f"y{suffix}"
        axis = {
            "range": [-0.5, blocks - 0.5],
            "visible": False,
            "fixedrange": True,
            "constrain": "domain",
        }
        layout[f"xaxis{suffix}"] = {
            **axis,
            "anchor": y,
            "domain": [_place(column * step_x), _place((column + 1) * step_x - gap_x)],
        }
        layout[f"yaxis{suffix}"] = {
            **axis,
            "anchor": x,
            "range": [blocks - 0.5, -0.5],
            "scaleanchor": x,
            "constraintoward": "top",
            "domain": [_place(1 - (row + 1) * step_y), _place(1 - row * step_y - gap_y)],
        }
        data.append(
            {
                "type": "heatmap",
                "name": f"head {head}",
                "meta": {"layer": layer, "head": head},
                "z": typed(percents[head]),
                "x0": middle,
                "dx": blocks_per_cell,
                "y0": middle,
                "dy": blocks_per_cell,
                "xaxis": x,
                "yaxis": y,
                "zmin": 0,
                "zmax": 100,
                "showscale": False,
                "colorscale": _SHARE_SCALE,
                "hovertemplate": f"head {head}<br>{where}<br>%{{z}} % kept<extra></extra>",
            }
        )
        shapes += _boundary(blocks, prompt_blocks, x, y, width=1)
        annotations.append(
            {
                "text": f"<b>{head}</b> · {_percent(shown[head])}",
                "x": 0,
                "xref": f"{x} domain",
                "xanchor": "left",
                "y": 1,
                "yref": f"{y} domain",
                "yanchor": "bottom",
                "showarrow": False,
                "borderpad": 0,
                "font": {"size": 11, "color": INK},
            }
        )
    what = "share of blocks kept" if kept_mass is None else "share of attention kept"
    scale = scale_words(blocks_per_cell, block_size)
    base = base_layout(
        title=_title(f"Layer {layer}, all {heads} heads", scale, f"above each: <b>head</b> · {what}"),
        margin={"l": 2, "r": 2, "t": top, "b": 4},
        height=height,
        shapes=shapes,
        annotations=annotations,
        hovermode="closest",
        meta={"layer": layer, "heads": heads},
    )
    label = (
        f"Block masks of the {heads} heads of layer {layer}, {scale}. By head, the {what}: "
        + ", ".join(f"{head}: {_percent(value)}" for head, value in enumerate(shown))
        + "."
    )
    return View({"data": data, "layout": {**base, **layout}}, label)


def scale_words(blocks_per_cell: int, block_size: int) -> str:
    """How much of the sequence a cell of a thumbnail stands for."""
    if blocks_per_cell == 1:
        return f"1 cell = 1 block of {block_size} tokens"
    return f"1 cell = {blocks_per_cell} × {blocks_per_cell} blocks of {block_size} tokens"


def grid(heads: int, columns: int) -> tuple[int, int]:
    """(columns, rows) for so many heads: at most `columns` across, the rows as even as can be."""
    if heads < 1 or columns < 1:
        raise ValueError(f"heads and columns must be at least 1, not {heads} and {columns}.")
    down = -(-heads // columns)
    return -(-heads // down), down


# ---------------------------------------------------------------- the whole model


def atlas(
    thumbs: Sequence[np.ndarray],
    blocks_per_cell: int,
    *,
    blocks: int,
    block_size: int,
    prompt_blocks: int,
    first_layer: int = 0,
    width: int = 1100,
) -> View:
    """All heads of all given layers as thumbnails in one image: layers downwards, heads to the right.

    thumbs: for each layer [heads, cells, cells], the share of pairs kept, 0 … 1; ATLAS_CELLS cells a side or
    fewer keep 32 × 32 heads below a megabyte. first_layer: the index of the first one, for showing a long
    model page by page. The rest as in `overview`.

    The single trace has one column of gaps after every tile and one row below it. Its coordinates are such
    that round(x) is the head and round(y) the layer of any point, which is how a click tells them.
    """
    if not len(thumbs):
        raise ValueError("thumbs must hold at least one layer.")
    heads, cells = _heads_and_cells(thumbs[0])
    if any(layer.shape != thumbs[0].shape for layer in thumbs):
        raise ValueError("thumbs must be of the same shape in every layer.")
    layers, side = len(thumbs), cells + 1
    image = np.full((layers, side, heads, side), GAP, dtype=np.uint8)
    for index, layer in enumerate(thumbs):
        image[index, :cells, :, :cells] = np.rint(100 * layer).astype(np.uint8).transpose(1, 0, 2)
    # From −0.5: a tile is one unit wide, its gap included, and its middle is the head's number.
    start = -0.5 + 0.5 / side
    axis = {"showgrid": False, "tickmode": "array", "fixedrange": True, "ticks": "", "constrain": "domain"}
    numbers = list(range(first_layer, first_layer + layers))
    tick_heads = _ticks(heads)
    tick_layers = [first_layer + tick for tick in _ticks(layers)]
    scale = scale_words(blocks_per_cell, block_size)
    last = first_layer + layers - 1
    which = f"layer {first_layer}" if layers == 1 else f"layers {first_layer}–{last}"
    top = 64
    height = round(top + 48 + (width - 60) * min(1.0, layers / heads))
    trace = {
        "type": "heatmap",
        "meta": {"layers": numbers, "heads": heads, "cells": cells},
        "z": typed(image.reshape(layers * side, heads * side)),
        "x0": start,
        "dx": 1 / side,
        "y0": first_layer + start,
        "dy": 1 / side,
        "zmin": 0,
        "zmax": GAP,
        "showscale": False,
        "colorscale": [[0.0, SKIPPED], [100 / GAP, KEPT], [100.5 / GAP, CLEAR], [1.0, CLEAR]],
        "hovertemplate": "layer %{y:.0f}, head %{x:.0f}<extra></extra>",
    }
    layout = base_layout(
        title=_title(f"Every head of {which}", scale, "Rows of a tile are queries, columns are keys."),
        xaxis={**axis, "title": {"text": "head"}, "tickvals": tick_heads, "range": [-0.5, heads - 0.5]},
        yaxis={
            **axis,
            "title": {"text": "layer"},
            "tickvals": tick_layers,
            "range": [last + 0.5, first_layer - 0.5],
            "scaleanchor": "x",
            "constraintoward": "top",
        },
        margin={"l": 48, "r": 6, "t": top, "b": 48},
        height=height,
        shapes=_atlas_boundaries(layers, heads, cells, first_layer, blocks, blocks_per_cell, prompt_blocks),
        hovermode="closest",
    )
    weights = _cell_sizes(cells, blocks_per_cell, blocks)
    density = [float(np.einsum("q,hqk,k->", weights, layer, weights)) / (heads * blocks**2) for layer in thumbs]
    label = (
        f"Thumbnails of the block masks of every head of {which}, {heads} heads each. Mean share of blocks kept by "
        "layer: " + ", ".join(f"{number}: {_percent(value)}" for number, value in zip(numbers, density)) + "."
    )
    return View({"data": [trace], "layout": layout}, label)


def _atlas_boundaries(
    layers: int, heads: int, cells: int, first_layer: int, blocks: int, per_cell: int, prompt_blocks: int
) -> list[Figure]:
    """One path for all tiles: where the answer begins, among keys (upright) and among queries (level)."""
    if not 0 < prompt_blocks < blocks:
        return []
    side = cells + 1
    # Every cell is drawn as wide as the others; the last one may cover fewer blocks.
    sizes = _cell_sizes(cells, per_cell, blocks)
    cell, inside = divmod(prompt_blocks, per_cell)
    edge = -0.5 + (cell + inside / sizes[cell]) / side
    end = -0.5 + cells / side
    parts = []
    for layer in range(first_layer, first_layer + layers):
        for head in range(heads):
            x, y = _place(head + edge), _place(layer + edge)
            low, high = _place(head - 0.5), _place(head + end)
            upper, lower = _place(layer - 0.5), _place(layer + end)
            parts.append(f"M{x},{upper}L{x},{lower}M{low},{y}L{high},{y}")
    return [
        {
            "type": "path",
            "name": "boundary",
            "path": "".join(parts),
            "line": {"color": INK, "width": 0.5},
            "fillcolor": CLEAR,
        }
    ]


# ---------------------------------------------------------------- one head


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
    words: Sequence[str] = (),
    show: Shades = "both",
) -> View:
    """What one head keeps for every query block, over how important each key block was to it.

    mask: bool [n, n], True where kept; n = ceil(length / block_size). importance: float [n, n], attention
    weights averaged over the block pair, in any unit that is the same along a row; it is shown as the share
    of the query block's attention, on a logarithmic scale of LEVELS levels. Without it, or with show
    "kept", only the mask is drawn; with "importance", kept cells are not marked by their shade. words: the
    first words of every block, or nothing. kept_mass: share of attention mass kept, for the title.

    The layout's meta is {"layer", "head"}. A cell is kept exactly where z ≥ meta.kept_from of its trace, whatever
    is shown. Cells are never merged. Where there
    is importance, customdata is the share of attention, negative for cells that are skipped; the hover puts
    these into brackets, because a sentence for each of 513 × 513 cells would be megabytes.
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
        labels = [f"{label}{_quoted(text)}" for label, text in zip(labels, words)]
    hover = "query block %{y}<br>key block %{x}"
    trace: Figure = {
        "type": "heatmap",
        "x": labels,
        "y": labels,
        "xgap": 1 if blocks <= OUTLINED else 0,
        "ygap": 1 if blocks <= OUTLINED else 0,
        "showscale": False,
    }
    shapes = _boundary(blocks, prompt_blocks, "x", "y", width=1.5)
    kept = f"{100 * mask.mean():.1f} % of blocks kept"
    if kept_mass is not None:
        kept += f", {_percent(kept_mass)} of attention"
    lines = [kept]
    if importance is None or show == "kept":
        lines.append("coloured: kept, the answer's keys in the second colour")
        codes = mask.astype(np.uint8)
        codes[:, prompt_blocks:] *= 2
        trace |= {"z": typed(codes), "zmin": 0, "zmax": 2, "meta": {"kept_from": 1}}
        trace["colorscale"] = _steps(SKIPPED, KEPT, KEPT_GENERATION)
    if importance is not None:
        share = _attention_share(importance, ranges)
        hover += "<br>share of attention %{customdata:(.2p}<br>(in brackets: skipped)"
        trace["customdata"] = typed(np.where(mask, share, -np.maximum(share, 1e-9)).astype(np.float32))
        if show != "kept":
            marked = show == "both"
            parts = [_levels(share, ~mask if marked else None), _levels(share, mask if marked else None)]
            levels = np.where(mask, parts[1][0] + LEVELS, parts[0][0]).astype(np.uint8)
            trace |= {"z": typed(levels), "zmin": 0, "zmax": 2 * LEVELS - 1, "meta": {"kept_from": LEVELS}}
            trace["colorscale"] = _level_colours(marked)
            if marked:
                most_skipped, most_kept = (_percent(highest) for _, highest in parts)
                outlined = ", outlined" if blocks <= OUTLINED else ""
                lines.append(f"skipped: grey, up to {most_skipped} of a row's attention")
                lines.append(f"kept: coloured{outlined}, up to {most_kept}")
            else:
                lines.append("shade: share of a row's attention, logarithmic")
            if marked and blocks <= OUTLINED:
                shapes.append(_outline(mask))
    trace["hovertemplate"] = f"{hover}<extra></extra>"
    axis = {
        "type": "category",
        "tickmode": "array",
        "tickvals": _ticks(blocks),
        "ticktext": [str(tick) for tick in _ticks(blocks)],
        "tickangle": 0,
        "showgrid": False,
        "constrain": "domain",
    }
    layout = base_layout(
        title=_title(f"Layer {layer}, head {head}", *lines),
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
        meta={"layer": layer, "head": head},
    )
    return View({"data": [trace], "layout": layout}, f"Block mask of layer {layer}, head {head}: {kept}.")


def _attention_share(importance: np.ndarray, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    """Mean weights per token → float32 shares of a row's attention; rows sum to 1 (or are 0 throughout)."""
    columns = np.array([last + 1 - first for first, last in ranges], dtype=np.float32)
    share = importance.astype(np.float32) * columns
    totals = share.sum(1, keepdims=True)
    share /= np.where(totals > 0, totals, 1)
    return share


def _levels(share: np.ndarray, among: np.ndarray | None = None) -> tuple[np.ndarray, float]:
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


# ---------------------------------------------------------------- numbers of a layer's heads


def overlap_matrix(overlap: np.ndarray, layer: int) -> View:
    """How much of what two heads keep is the same.

    overlap: [heads, heads], intersection over union of their kept block pairs, 0 … 1. A head with itself is
    always 1, so the diagonal is left empty.
    """
    heads = len(overlap)
    if overlap.shape != (heads, heads):
        raise ValueError(f"overlap must be square, not {overlap.shape}.")
    cells = [
        [None if row == column else round(float(value), 3) for column, value in enumerate(values)]
        for row, values in enumerate(overlap)
    ]
    between = overlap[~np.eye(heads, dtype=bool)]
    said = f"two heads share {_percent(between.mean())} on average" if heads > 1 else "one head only"
    axis = {
        "showgrid": False,
        "tickmode": "array",
        "tickvals": _ticks(heads),
        "constrain": "domain",
        "fixedrange": True,
        "range": [-0.5, heads - 0.5],
    }
    trace = {
        "type": "heatmap",
        "meta": {"layer": layer},
        "z": cells,
        "zmin": 0,
        "zmax": 1,
        "hoverongaps": False,
        "xgap": 1,
        "ygap": 1,
        "colorscale": [[0.0, SKIPPED], [1.0, LANES[0].colour]],
        "colorbar": {
            "thickness": 12,
            "outlinewidth": 0,
            "tickvals": [0, 0.5, 1],
            "ticktext": ["none", "half", "all"],
            "tickfont": {"size": 11, "color": MUTED},
        },
        "hovertemplate": "head %{y} and head %{x}<br>%{z:.1%} of what either keeps<extra></extra>",
    }
    layout = base_layout(
        title=_title(f"Layer {layer}: {said}", "of the block pairs that either keeps"),
        xaxis={**axis, "title": {"text": "head"}, "constraintoward": "right"},
        yaxis={
            **axis,
            "title": {"text": "head"},
            "range": [heads - 0.5, -0.5],
            "scaleanchor": "x",
            "constraintoward": "top",
        },
        margin={"l": 48, "r": 8, "t": 64, "b": 50},
    )
    label = f"Overlap of the heads of layer {layer}: {said}"
    if heads > 1:
        label += f", at least {_percent(between.min())}, at most {_percent(between.max())}"
    return View({"data": [trace], "layout": layout}, f"{label}.")


def kept_mass_bars(kept_mass: Sequence[float], density: Sequence[float], layer: int) -> View:
    """For each head of a layer the share of attention mass that its kept blocks hold.

    density: for each head the share of blocks kept, drawn as a mark on the bar: what a choice that knows
    nothing would hold. Both 0 … 1.
    """
    if len(kept_mass) != len(density) or not len(kept_mass):
        raise ValueError(f"kept_mass and density must hold the same heads, not {len(kept_mass)} and {len(density)}.")
    heads = list(range(len(kept_mass)))
    mass = [round(100 * float(value), 2) for value in kept_mass]
    blocks = [round(100 * float(value), 2) for value in density]
    data = [
        {
            "type": "bar",
            "name": "attention kept",
            "x": heads,
            "y": mass,
            "marker": {"color": KEPT},
            "hovertemplate": "head %{x}<br>%{y:.1f} % of attention kept<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "blocks kept",
            "x": heads,
            "y": blocks,
            "marker": {
                "symbol": "diamond",
                "size": 9,
                "color": PANEL,
                "line": {"color": INK, "width": 1.5},
            },
            "hovertemplate": "head %{x}<br>%{y:.1f} % of blocks kept<extra></extra>",
        },
    ]
    mean, least = sum(mass) / len(mass), min(mass)
    said = f"{mean:.1f} % of attention in {sum(blocks) / len(blocks):.1f} % of blocks"
    layout = base_layout(
        title=_title(f"Layer {layer}: {said}"),
        xaxis={
            "title": {"text": "head"},
            "tickmode": "array",
            "tickvals": _ticks(len(heads)),
            "showgrid": False,
            "range": [-0.6, len(heads) - 0.4],
        },
        yaxis={"title": {"text": "percent"}, "range": [0, 105]},
        showlegend=True,
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"},
        margin={"l": 50, "r": 10, "t": 64, "b": 50},
        bargap=0.25,
    )
    label = f"Attention kept by the heads of layer {layer}: {said}; least in head {mass.index(least)}, {least:.1f} %."
    return View({"data": data, "layout": layout}, label)


# ---------------------------------------------------------------- from step to step


def tracking(steps: Sequence[int], overlap: np.ndarray, switch_step: int | None) -> View:
    """How much of the reused pattern a fresh selection after later steps would choose again.

    steps: the engine's step indices, from 0, ascending. overlap: [steps, layers, heads], intersection over
    union with the pattern in use, 0 … 1. Drawn are the mean over all heads, and the range of the layers'
    means and of all heads. switch_step: the first sparse step, from 0, or None. As elsewhere on the page,
    steps count from 1 and the line stands between the select step and the first sparse one.
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
    first = min([at[0], *([switch_step + 0.5] if switch_step is not None else [])])
    pad = max(0.5, 0.03 * (at[-1] - first))
    said = f"{flat[-1].mean():.1f} % of the selected blocks would be selected again after step {at[-1]}"
    layout = base_layout(
        title=_title("Does the choice stay right?", "a fresh selection against the one in use"),
        xaxis={"title": {"text": "denoising step"}, "range": [first - pad, at[-1] + pad], "showgrid": False},
        yaxis={"title": {"text": "overlap (percent)"}, "range": [0, 103]},
        showlegend=True,
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": -0.22, "yanchor": "top"},
        margin={"l": 54, "r": 12, "t": 56, "b": 96},
        shapes=shapes,
        annotations=annotations,
        hovermode="closest",
    )
    label = (
        f"Overlap of a fresh selection with the one in use, {len(at)} steps: {said}, "
        f"counted as intersection over union; {flat[-1].min():.1f} % in the worst head."
    )
    return View({"data": data, "layout": layout}, label)


# ---------------------------------------------------------------- a small picture for the explanation


def picture(
    mask: np.ndarray,
    *,
    layer: int,
    head: int,
    prompt_blocks: int,
    importance: np.ndarray | None = None,
    other: int | None = None,
) -> View:
    """Three small panels: how important blocks are to one head → which it keeps → another head keeps others.

    mask: bool [heads, n, n] of one layer. importance: [n, n] of `head`, any unit; without it there are two
    panels. other: the head to compare with; by default the one that shares least with `head`. Panels are
    averaged down to PICTURE_CELLS cells a side at most: a picture, not a reading.
    """
    heads, blocks = mask.shape[:2]
    if heads > 1 and other is None:
        both = (mask & mask[head]).sum((1, 2)).astype(float)
        either = (mask | mask[head]).sum((1, 2))
        overlap = both / np.maximum(either, 1)
        overlap[head] = np.inf
        other = int(overlap.argmin())
    per_cell = -(-blocks // PICTURE_CELLS)
    panels: list[tuple[str, np.ndarray, list[list[Any]]]] = []
    if importance is not None:
        levels, _ = _levels(_shrink(importance.astype(np.float32), per_cell))
        panels.append((f"head {head}:<br>importance", levels / (LEVELS - 1), [[0.0, SKIPPED], [1.0, STRONG]]))
    panels.append((f"head {head}:<br>kept", _shrink(mask[head], per_cell), _SHARE_SCALE))
    if other is not None:
        panels.append((f"head {other}:<br>kept", _shrink(mask[other], per_cell), _SHARE_SCALE))
    across = len(panels)
    gap = 0.07
    size = (1 - gap * (across - 1)) / across
    data, shapes, annotations = [], [], []
    axes: Figure = {}
    middle = (per_cell - 1) / 2
    for index, (name, cells, scale) in enumerate(panels):
        suffix = "" if index == 0 else str(index + 1)
        x, y = f"x{suffix}", f"y{suffix}"
        axis = {"visible": False, "fixedrange": True, "constrain": "domain"}
        left = index * (size + gap)
        axes[f"xaxis{suffix}"] = {
            **axis,
            "anchor": y,
            "domain": [_place(left), _place(left + size)],
            "range": [-0.5, blocks - 0.5],
        }
        axes[f"yaxis{suffix}"] = {
            **axis,
            "anchor": x,
            "range": [blocks - 0.5, -0.5],
            "scaleanchor": x,
            "constraintoward": "top",
        }
        data.append(
            {
                "type": "heatmap",
                "name": name.replace("<br>", " "),
                "z": typed(np.rint(100 * cells).astype(np.uint8)),
                "x0": middle,
                "dx": per_cell,
                "y0": middle,
                "dy": per_cell,
                "xaxis": x,
                "yaxis": y,
                "zmin": 0,
                "zmax": 100,
                "xgap": 1,
                "ygap": 1,
                "showscale": False,
                "colorscale": scale,
                "hoverinfo": "skip",
            }
        )
        shapes += _boundary(blocks, prompt_blocks, x, y, width=1)
        annotations.append(_note(name, f"{x} domain", 0, "left", f"{y} domain", 1, "bottom", size=12))
        if index:
            arrow = "→" if index == across - 2 and importance is not None else "≠"
            annotations.append(_note(arrow, "paper", left - gap / 2, "center", f"{y} domain", 0.5, "middle", size=18))
    base = base_layout(
        margin={"l": 4, "r": 4, "t": 40, "b": 4},
        height=round(44 + 320 / across),
        shapes=shapes,
        annotations=annotations,
        dragmode=False,
    )
    label = f"Layer {layer} of your last run, queries downwards, keys to the right. "
    if importance is not None:
        label += f"How important each block is to head {head}; from that, "
    label += f"{'t' if importance is not None else 'T'}he blocks that head {head} keeps"
    label += f"; head {other} keeps others." if other is not None else "."
    return View({"data": data, "layout": {**base, **axes}}, label)


def _shrink(values: np.ndarray, per_cell: int) -> np.ndarray:
    """[n, n] → the mean of every per_cell × per_cell square; the last ones average what there is."""
    starts = np.arange(0, len(values), per_cell)
    sums = np.add.reduceat(np.add.reduceat(values.astype(np.float32), starts, 0), starts, 1)
    sizes = _cell_sizes(len(starts), per_cell, len(values))
    shrunk: np.ndarray = sums / np.outer(sizes, sizes)
    return shrunk


# ---------------------------------------------------------------- shared


def _heads_and_cells(thumbs: np.ndarray) -> tuple[int, int]:
    if thumbs.ndim != 3 or thumbs.shape[1] != thumbs.shape[2] or not thumbs.size:
        raise ValueError(f"thumbs must be [heads, cells, cells], not {thumbs.shape}.")
    return thumbs.shape[0], thumbs.shape[1]


def _cell_sizes(cells: int, per_cell: int, blocks: int) -> np.ndarray:
    """How many attention blocks each cell of a thumbnail covers."""
    if not (cells - 1) * per_cell < blocks <= cells * per_cell:
        raise ValueError(f"{cells} cells of {per_cell} blocks do not cover {blocks} blocks.")
    sizes = np.full(cells, per_cell, dtype=float)
    sizes[-1] = blocks - (cells - 1) * per_cell
    return sizes


def _boundary(blocks: int, prompt_blocks: int, x: str, y: str, *, width: float) -> list[Figure]:
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


def _title(text: str, *lines: str) -> Figure:
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


def _note(text: str, xref: str, x: float, xanchor: str, yref: str, y: float, yanchor: str, *, size: int) -> Figure:
    return {
        "text": text,
        "xref": xref,
        "x": _place(x),
        "xanchor": xanchor,
        "yref": yref,
        "y": y,
        "yanchor": yanchor,
        "align": "left",
        "showarrow": False,
        "borderpad": 0,
        "font": {"size": size, "color": INK},
    }


def _steps(*colours: str) -> list[list[Any]]:
    """A colour scale without transitions: the n colours stand for 0 … n − 1."""
    count = len(colours)
    edges = [round(i / count, 4) for i in range(count + 1)]
    return [[edge, colour] for i, colour in enumerate(colours) for edge in edges[i : i + 2]]


def _ticks(count: int) -> list[int]:
    """Round numbers from 0 to count − 1, about eight of them."""
    step = next(
        multiple * 10**power for power in range(9) for multiple in (1, 2, 5) if count <= 9 * multiple * 10**power
    )
    return list(range(0, count, step))


def _place(value: float) -> float:
    return round(min(value, 1.0) if -1e-9 < value - 1 < 1e-9 else value, 5)


def _percent(share: float) -> str:
    """A share, 0 … 1, in percent with as many digits as are of use."""
    value = 100 * float(share)
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.2g} %"


def _quoted(text: str) -> str:
    """The first words of a block for plotly's hover, which understands some HTML: a line of its own."""
    line = " ".join(text.split())
    if len(line) > LONGEST_WORDS:
        line = f"{line[:LONGEST_WORDS].rstrip()}…"
    return f"<br>“{html.escape(line, quote=False)}”" if line else ""
