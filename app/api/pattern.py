"""/pattern: the kept blocks of one head, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from app.server.desk import Desk
from sparsed.attention.masks import Masks

UNKNOWN_RUN = (
    "No run of that key is kept any more: a call's run is kept for some minutes, and the last few only. Run /compare "
    "again and use the key in its last value."
)


class Density(TypedDict):
    """requested: kept pairs of blocks, of all. executed: scores that the run's backend computes for them, of all."""

    requested: float
    executed: float


class Blocks(TypedDict):
    """What one head keeps. kept: for each query block the key blocks that are computed, counted from 0; counts: how
    many. The first prompt_blocks key blocks are the prompt's. full_blocks: the last query blocks, which see every key
    (generation_rows full): nothing was selected for them. selected_in: the step that made the pattern, counted from 1;
    with refresh it is the run's last one. importance: the mean attention weight of every (query
    block, key block), None where it was not kept.
    """

    run: str
    lane: str
    label: str
    layer: int
    head: int
    layers: int
    heads: int
    tokens: int
    block_size: int
    blocks: int
    prompt_blocks: int
    select: float
    full_blocks: int
    selected_in: int | None
    kept: list[list[int]]
    counts: list[int]
    density: Density
    importance: list[list[float]] | None


def blocks_of(desk: Desk, given: Mapping[str, Any]) -> Blocks:
    """One head of a run that is kept. Raises ValueError, one sentence, for what is not there."""
    key, lane = given["run"], given["lane"]
    kept = desk.visits.kept(key) if isinstance(key, str) else None
    if kept is None:
        raise ValueError(UNKNOWN_RUN)
    lanes = {one.key: one for one in kept.lanes if not one.attention.dense}
    if lane not in lanes:
        raise ValueError(f"This run has no lane {lane!r} with a pattern; it has {', '.join(lanes) or 'none'}.")
    found = kept.lanes[lanes[lane]]
    pattern = kept.showing(lane).pattern
    if pattern is None or found.pattern is None:
        raise ValueError("This run has no pattern: it ended before its select step.")
    layer = _index("layer", given["layer"], pattern.layers)
    head = _index("head", given["head"], pattern.heads)
    mask = pattern.mask(layer)[0, head]
    if given["importance"] not in (None, True, False):
        raise ValueError("The value of importance must be true or false.")
    weights = None if given["importance"] is False else pattern.importance(layer, head)
    return {
        "run": kept.key,
        "lane": lane,
        "label": lanes[lane].label,
        "layer": layer,
        "head": head,
        "layers": pattern.layers,
        "heads": pattern.heads,
        "tokens": pattern.layout.length,
        "block_size": pattern.layout.block_size,
        "blocks": len(mask),
        "prompt_blocks": pattern.layout.prompt_blocks,
        "select": pattern.select,
        "full_blocks": pattern.full_blocks,
        "selected_in": max(kept.showing(lane).selected, default=None),
        "kept": [row.nonzero()[0].tolist() for row in mask],
        "counts": mask.sum(1).tolist(),
        "density": _density(pattern.of_head(layer, head), found.backend),
        "importance": None if weights is None else [[round(w, 6) for w in row] for row in weights.tolist()],
    }


def _index(name: str, value: Any, count: int) -> int:
    """Raises ValueError where it is none of 0 … count − 1."""
    number = 0 if value is None else value
    whole = isinstance(number, (int, float)) and not isinstance(number, bool) and number in range(count)
    if not whole:
        shown = f"{number!r}"[:80]
        raise ValueError(f"The {name} {shown} is not there: this run's are 0 to {count - 1}.")
    return int(number)


def _density(head: Masks, backend: str) -> Density:
    # torch is loaded by now: there was a run.
    from sparsed.attention.backends.registry import executed_density

    return {"requested": head.requested_density, "executed": executed_density(backend, head.to_pattern())}
