"""/pattern: the kept blocks of one head, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypedDict

from app.lanes import OFFERED
from app.server.desk import Desk
from sparsed.trace.patterns import TracePattern

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
    many. The first prompt_blocks key blocks are the prompt's. importance: the mean attention weight of every (query
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
    kept: list[list[int]]
    counts: list[int]
    density: Density
    importance: list[list[float]] | None


def blocks_of(desk: Desk, given: Mapping[str, Any]) -> Blocks:
    """One head of a run that is kept. Raises ValueError, one sentence, for what is not there."""
    key, lane = given["run"], given["lane"]
    if lane not in OFFERED[1:]:
        raise ValueError(f"The lane {lane!r} has no pattern: it must be {' or '.join(OFFERED[1:])}.")
    kept = desk.visits.kept(key) if isinstance(key, str) else None
    if kept is None:
        raise ValueError(UNKNOWN_RUN)
    lanes = {one.key: one for one in kept.lanes if not one.full}
    if lane not in lanes:
        raise ValueError(f"This run has no lane {lane!r}; it has {', '.join(lanes) or 'none with a pattern'}.")
    found = kept.lanes[lanes[lane]]
    pattern, look = found.pattern, kept.showing(lane).look
    if pattern is None or look is None:
        raise ValueError("This run has no pattern: it ended before its select step.")
    layer = _index("layer", given["layer"], look.layers)
    head = _index("head", given["head"], look.heads)
    mask = look.mask(layer)[head]
    if given["importance"] not in (None, True, False):
        raise ValueError("The value of importance must be true or false.")
    weights = None if given["importance"] is False else look.importance_of(layer, head)
    return {
        "run": kept.key,
        "lane": lane,
        "label": lanes[lane].label,
        "layer": layer,
        "head": head,
        "layers": look.layers,
        "heads": look.heads,
        "tokens": look.length,
        "block_size": look.block_size,
        "blocks": len(mask),
        "prompt_blocks": look.prompt_blocks,
        "select": pattern.select,
        "kept": [row.nonzero()[0].tolist() for row in mask],
        "counts": mask.sum(1).tolist(),
        "density": _density(pattern, found.backend, layer, head),
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


def _density(pattern: TracePattern, backend: str, layer: int, head: int) -> Density:
    # torch is loaded by now: there was a run.
    from sparsed.attention.backends.registry import executed_density
    from sparsed.attention.pattern import LayerPattern

    only = {"layers": (pattern.layers[layer],), "kept": (pattern.kept[layer],), "kept_mass": (), "importance": ()}
    made = replace(pattern, **only).to_pattern()  # type: ignore[arg-type]
    of_all = made.layers[0]
    one = LayerPattern(of_all.indices[:1, head : head + 1], of_all.counts[:1, head : head + 1])
    made = replace(made, layers=(one,))
    return {"requested": made.requested_density, "executed": executed_density(backend, made)}
