"""All heads of one layer: masks, overlap, attention kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from app.figures.base import Figure, base_layout
from app.figures.head import SHARE_SCALE, scale_words
from app.figures.palette import INK, KEPT, LANES, MUTED, PANEL, SKIPPED
from app.figures.shared import (
    View,
    boundary,
    cell_sizes,
    heads_and_cells,
    percent,
    place_of,
    sees_all,
    ticks_of,
    title_of,
    typed,
)


def overview(
    thumbs: np.ndarray,
    blocks_per_cell: int,
    layer: int,
    kept_mass: Sequence[float] | None = None,
    *,
    blocks: int,
    block_size: int,
    prompt_blocks: int,
    full_blocks: int = 0,
    columns: int = 8,
    width: int = 1100,
) -> View:
    """The block masks of all heads of one layer, a small heatmap each.

    thumbs: [heads, cells, cells], the share of block pairs kept in each cell (rows are queries), 0 … 1.
    blocks_per_cell: attention blocks a cell covers each way; the last cell may cover fewer. kept_mass: for
    each head the share of attention mass kept; without it a head's share of blocks kept is written above
    it. blocks, block_size, prompt_blocks: of the sequence. full_blocks: the last query blocks, which see every key
    without having selected it. columns: at most so many heads in a row. width: the pixels the figure will probably get;
    its height follows.

    The trace of a head has meta {"layer", "head"}, the layout {"layer", "heads"}; a trace's z are whole percents, its
    x and y block indices.
    """
    heads, cells = heads_and_cells(thumbs)
    across, down = grid(heads, columns)
    tile = min(180.0, width / across)
    unselected = sees_all(full_blocks, blocks)
    top, label_height = 66 + 16 * len(unselected), 20
    height = round(top + down * (tile + label_height) + 8)
    inner = height - top - 4
    # Shares of the plotting area: room for the label above every tile, and a little between the columns.
    step_x, step_y = 1 / across, 1 / down
    gap_x, gap_y = 0.05 * step_x, label_height / inner
    weights = cell_sizes(cells, blocks_per_cell, blocks)
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
            "domain": [place_of(column * step_x), place_of((column + 1) * step_x - gap_x)],
        }
        layout[f"yaxis{suffix}"] = {
            **axis,
            "anchor": x,
            "range": [blocks - 0.5, -0.5],
            "scaleanchor": x,
            "constraintoward": "top",
            "domain": [place_of(1 - (row + 1) * step_y), place_of(1 - row * step_y - gap_y)],
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
                "colorscale": SHARE_SCALE,
                "hovertemplate": f"head {head}<br>{where}<br>%{{z}} % kept<extra></extra>",
            }
        )
        shapes += boundary(blocks, prompt_blocks, x, y, width=1)
        annotations.append(
            {
                "text": f"<b>{head}</b> · {percent(shown[head])}",
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
        title=title_of(f"Layer {layer}, all {heads} heads", scale, f"above each: <b>head</b> · {what}", *unselected),
        margin={"l": 2, "r": 2, "t": top, "b": 4},
        height=height,
        shapes=shapes,
        annotations=annotations,
        hovermode="closest",
        meta={"layer": layer, "heads": heads},
    )
    label = (
        f"Block masks of the {heads} heads of layer {layer}, {scale}. By head, the {what}: "
        + ", ".join(f"{head}: {percent(value)}" for head, value in enumerate(shown))
        + ". ".join(("", *unselected))
        + "."
    )
    return View({"data": data, "layout": {**base, **layout}}, label)


def grid(heads: int, columns: int) -> tuple[int, int]:
    """(columns, rows) for so many heads: at most `columns` across, the rows as even as can be."""
    if heads < 1 or columns < 1:
        raise ValueError(f"heads and columns must be at least 1, not {heads} and {columns}.")
    down = -(-heads // columns)
    return -(-heads // down), down


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
    said = f"two heads share {percent(between.mean())} on average" if heads > 1 else "one head only"
    axis = {
        "showgrid": False,
        "tickmode": "array",
        "tickvals": ticks_of(heads),
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
        title=title_of(f"Layer {layer}: {said}", "of the block pairs that either keeps"),
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
        label += f", at least {percent(between.min())}, at most {percent(between.max())}"
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
        title=title_of(f"Layer {layer}: {said}"),
        xaxis={
            "title": {"text": "head"},
            "tickmode": "array",
            "tickvals": ticks_of(len(heads)),
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
