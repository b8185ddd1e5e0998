"""Every head of every layer, as an atlas of small masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from app.figures.base import Figure, base_layout
from app.figures.head import scale_words
from app.figures.palette import CLEAR, INK, KEPT, SKIPPED
from app.figures.shared import View, cell_sizes, heads_and_cells, percent, place_of, sees_all, ticks_of, title_of, typed

# Cells of a tile of the whole model, and the code of the gaps between tiles (shares are 0 … 100 percent).
ATLAS_CELLS, GAP = 20, 101


def atlas(
    thumbs: Sequence[np.ndarray],
    blocks_per_cell: int,
    *,
    blocks: int,
    block_size: int,
    prompt_blocks: int,
    full_blocks: int = 0,
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
    heads, cells = heads_and_cells(thumbs[0])
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
    tick_heads = ticks_of(heads)
    tick_layers = [first_layer + tick for tick in ticks_of(layers)]
    scale = scale_words(blocks_per_cell, block_size)
    last = first_layer + layers - 1
    which = f"layer {first_layer}" if layers == 1 else f"layers {first_layer}–{last}"
    unselected = sees_all(full_blocks, blocks)
    top = 64 + 16 * len(unselected)
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
        title=title_of(f"Every head of {which}", scale, "Rows of a tile are queries, columns are keys.", *unselected),
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
    weights = cell_sizes(cells, blocks_per_cell, blocks)
    density = [float(np.einsum("q,hqk,k->", weights, layer, weights)) / (heads * blocks**2) for layer in thumbs]
    label = (
        f"Thumbnails of the block masks of every head of {which}, {heads} heads each. Mean share of blocks kept by "
        "layer: " + ", ".join(f"{number}: {percent(value)}" for number, value in zip(numbers, density))
        + ". ".join(("", *unselected))
        + "."
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
    sizes = cell_sizes(cells, per_cell, blocks)
    cell, inside = divmod(prompt_blocks, per_cell)
    edge = -0.5 + (cell + inside / sizes[cell]) / side
    end = -0.5 + cells / side
    parts = []
    for layer in range(first_layer, first_layer + layers):
        for head in range(heads):
            x, y = place_of(head + edge), place_of(layer + edge)
            low, high = place_of(head - 0.5), place_of(head + end)
            upper, lower = place_of(layer - 0.5), place_of(layer + end)
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
