"""How SparseD works, in the five scenes of `app.texts.SCENES`, each drawn from a run that is over."""

from __future__ import annotations

from typing import Any

import numpy as np

from app import texts
from app.figures.head import LEVELS, level_edges
from app.figures.shared import cell_sizes
from app.finished.run import Kept, recorded
from app.lanes import LaneSpec, headline
from app.phrases import PERCENT
from app.race.canvas import Canvas
from sparsed import trace as traces
from sparsed.answer_text import answer_length
from sparsed.attention.masks import Masks
from sparsed.trace.types import Lane

# Cells a side of a small map, each of which must be seen on a phone; levels of a cell's shade above none.
CELLS, SHADES = 24, 8


def story(run: Kept | None, layer: int, head: int) -> dict[str, Any]:
    """What assets/page/story.js draws; layer, head: whose blocks, the nearest ones that the run has.

    {"of": a sentence on which run it is, "scenes": [{"key", "title", "words", "said": what is drawn, in a sentence,
    "lane", "step": where the playhead goes, counted from 1, or None, "drawing": None or {"kind"} and
    "canvas": "cells": [[text, "masked", "settled", "fresh" or "end"]];
    "map": "rows": a text for each row of cells, a digit 0 … SHADES for each, "tone": "kept" or "importance", "edge":
    where the answer begins, 0 … 1;
    "rows": "shares": the rows that each step computed, in percent of all}]}.
    """
    made = {} if run is None else _scenes(run, layer, head)
    told = [
        {"key": key, "title": scene.title, "words": scene.words, **made.get(key, _absent(texts.NO_SCENE))}
        for key, scene in texts.SCENES.items()
    ]
    of = texts.NO_STORY if run is None else texts.OWN_STORY if run.live else texts.RECORDED_STORY
    return {"of": of, "scenes": told}


def _scenes(run: Kept, layer: int, head: int) -> dict[str, dict[str, Any]]:
    lanes = recorded(run.trace)
    large = headline(lanes) or next(iter(lanes))
    lane = run.trace.lanes[lanes[large]]
    pattern = run.showing(large.key).pattern
    selecting = next((step.index for step in lane.steps if step.phase == "select"), None)
    sparse = next((step.index for step in lane.steps if step.phase == "sparse"), None)
    found = {"masks": _masks(run, large.key, lanes[large]), "cache": _cache(run)}
    if pattern is None or selecting is None:
        ended = _absent(texts.NO_SELECTION)
        return {**found, "dense": ended, "select": ended, "sparse": ended}
    layer, head = min(layer, pattern.layers - 1), min(head, pattern.heads - 1)
    mask, weights = pattern.mask(layer)[0, head].astype(np.float32), pattern.importance(layer, head)
    where = f"layer {layer}, head {head}"
    pairs = f"all {pattern.layout.blocks**2:,} pairs of blocks"
    found["dense"] = {
        "said": f"Steps 1 to {selecting} ({where}): {pairs}." if selecting else f"This run selected at once: {pairs}.",
        "lane": large.key,
        "step": selecting or None,
        "drawing": _map(np.ones_like(mask), pattern, "kept"),
    }
    measured = "the darker, the more attention a pair of blocks got"
    found["select"] = {
        "said": f"Step {selecting + 1} ({where}): {measured if weights is not None else 'the pairs that are chosen'}.",
        "lane": large.key,
        "step": selecting + 1,
        "drawing": _map(mask if weights is None else weights, pattern, "kept" if weights is None else "importance"),
    }
    chosen = f"{100 * mask.mean():.1f}{PERCENT} of the pairs"
    since = "Chosen, and not used" if sparse is None else f"From step {sparse + 1} on"
    found["sparse"] = {
        "said": f"{since} ({where}): {chosen}.",
        "lane": large.key,
        "step": None if sparse is None else sparse + 1,
        "drawing": _map(mask, pattern, "kept"),
    }
    return found


def _absent(said: str) -> dict[str, Any]:
    return {"said": said, "lane": "", "step": None, "drawing": None}


def _masks(run: Kept, key: str, name: str) -> dict[str, Any]:
    """The canvas of a lane when half of its answer is written."""
    trace = run.trace
    steps = list(traces.replay(trace, name))
    length = answer_length(steps[-1].tokens[0].tolist(), trace.end_ids)
    canvas = Canvas(trace.gen_length, trace.decode, trace.end_ids)
    done = written = 0
    for step in steps:
        canvas.apply(step)
        done, written = step.index + 1, sum(token is not None for token in canvas.tokens[:length])
        if 2 * written >= length:
            break
    states = [
        (text, "masked" if not at else "end" if end else "fresh" if at == done else "settled")
        for text, at, _, end in canvas.cells()
    ]
    total = trace.lanes[name].total
    return {
        "said": f"After step {done} of {total}: {written} of the answer’s {length} tokens are written.",
        "lane": key,
        "step": done,
        "drawing": {"kind": "canvas", "cells": states},
    }


def _cache(run: Kept) -> dict[str, Any]:
    """The rows that each step computed: of the first lane with a cache, SparseD's before others."""
    cached = [(lane, made) for lane, made in run.lanes.items() if lane.cache is not None]
    if not cached:
        return _absent(texts.NO_CACHE)
    lane, made = min(cached, key=lambda one: one[0].attention.method != "sparsed")
    return _rows(run, lane, made)


def _rows(run: Kept, lane: LaneSpec, made: Lane) -> dict[str, Any]:
    positions = run.trace.prompt.tokens + run.trace.gen_length
    rows = [step.rows or positions for step in made.steps]
    share = 100 * sum(rows) / (positions * len(rows))
    return {
        "said": f"{lane.label}, a bar a step: {share:.0f}{PERCENT} of the rows that {len(rows)} full steps compute.",
        "lane": lane.key,
        "step": len(rows),
        "drawing": {"kind": "rows", "shares": [round(100 * one / positions, 1) for one in rows]},
    }


def _map(values: np.ndarray, pattern: Masks, tone: str) -> dict[str, Any]:
    """A small picture of [n, n], not a reading: cells are averaged, importances on a logarithmic scale."""
    per_cell = -(-pattern.layout.blocks // CELLS)
    cells = shrunk(values, per_cell)
    if tone == "importance":
        cells = level_edges(cells)[0] / (LEVELS - 1)
    shades = np.rint(SHADES * cells).astype(int)
    edge = round(pattern.layout.prompt_blocks / (per_cell * len(cells)), 4)
    return {"kind": "map", "rows": ["".join(map(str, row)) for row in shades.tolist()], "tone": tone, "edge": edge}


def shrunk(values: np.ndarray, per_cell: int) -> np.ndarray:
    """[n, n] → the mean of every per_cell × per_cell square; the last ones average what there is."""
    starts = np.arange(0, len(values), per_cell)
    sums = np.add.reduceat(np.add.reduceat(values.astype(np.float32), starts, 0), starts, 1)
    sizes = cell_sizes(len(starts), per_cell, len(values))
    made: np.ndarray = sums / np.outer(sizes, sizes)
    return made
