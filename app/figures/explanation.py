"""What selection is, drawn from a run."""

from __future__ import annotations

from typing import Any

import numpy as np

from app.figures.base import Figure, base_layout
from app.figures.head import LEVELS, SHARE_SCALE, level_edges
from app.figures.palette import SKIPPED, STRONG
from app.figures.shared import View, boundary, cell_sizes, note, place_of, sees_all, typed

# Cells a side of a panel of the small picture: each must be seen on a phone.
PICTURE_CELLS = 24


def picture(
    mask: np.ndarray,
    *,
    layer: int,
    head: int,
    prompt_blocks: int,
    full_blocks: int = 0,
    importance: np.ndarray | None = None,
    other: int | None = None,
) -> View:
    """Three small panels: how important blocks are to one head → which it keeps → another head keeps others.

    mask: bool [heads, n, n] of one layer. importance: [n, n] of `head`, any unit; without it there are two
    panels. full_blocks: the last query blocks, which see every key in all heads. other: the head to compare with; by
    default the one that shares least with `head`. Panels are averaged down to PICTURE_CELLS cells a side at most: a
    picture, not a reading.
    """
    heads, blocks = mask.shape[:2]
    if heads > 1 and other is None:
        selected = mask[:, : blocks - full_blocks]
        both = (selected & selected[head]).sum((1, 2)).astype(float)
        either = (selected | selected[head]).sum((1, 2))
        overlap = both / np.maximum(either, 1)
        overlap[head] = np.inf
        other = int(overlap.argmin())
    per_cell = -(-blocks // PICTURE_CELLS)
    panels: list[tuple[str, np.ndarray, list[list[Any]]]] = []
    if importance is not None:
        levels, _ = level_edges(_shrink(importance.astype(np.float32), per_cell))
        panels.append((f"head {head}:<br>importance", levels / (LEVELS - 1), [[0.0, SKIPPED], [1.0, STRONG]]))
    panels.append((f"head {head}:<br>kept", _shrink(mask[head], per_cell), SHARE_SCALE))
    if other is not None:
        panels.append((f"head {other}:<br>kept", _shrink(mask[other], per_cell), SHARE_SCALE))
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
            "domain": [place_of(left), place_of(left + size)],
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
        shapes += boundary(blocks, prompt_blocks, x, y, width=1)
        annotations.append(note(name, f"{x} domain", 0, "left", f"{y} domain", 1, "bottom", size=12))
        if index:
            arrow = "→" if index == across - 2 and importance is not None else "≠"
            annotations.append(note(arrow, "paper", left - gap / 2, "center", f"{y} domain", 0.5, "middle", size=18))
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
    label += f"; head {other} keeps others" if other is not None else ""
    label += ". ".join(("", *sees_all(full_blocks, blocks))) + "."
    return View({"data": data, "layout": {**base, **axes}}, label)


def _shrink(values: np.ndarray, per_cell: int) -> np.ndarray:
    """[n, n] → the mean of every per_cell × per_cell square; the last ones average what there is."""
    starts = np.arange(0, len(values), per_cell)
    sums = np.add.reduceat(np.add.reduceat(values.astype(np.float32), starts, 0), starts, 1)
    sizes = cell_sizes(len(starts), per_cell, len(values))
    shrunk: np.ndarray = sums / np.outer(sizes, sizes)
    return shrunk
