"""What the evaluation that comes with the app found for questions like these."""

from __future__ import annotations

from dataclasses import asdict, replace

from app.accuracy.shipped import SHIPPED, shipped
from app.lanes import LaneSpec
from app.phrases import PERCENT
from app.race.request import Request
from sparsed.config import NO_CACHE, AttentionConfig
from sparsed.evaluation.methods import VARIED, parse_method
from sparsed.evaluation.plan import TYPES


def found(asked: Request, tokens: int) -> dict[str, str] | None:
    """Lane's key → its right answers there and their 95 % interval, in words: of the questions of this type, of this
    length, with these settings. Lanes that were not evaluated so are left out. None where the app came without an
    evaluation, or it has no such question or another sampler. tokens: of the prompt.
    """
    if not SHIPPED.is_file():
        return None
    summary = shipped()
    made = summary["key"]["sampler"]
    given = asdict(asked.sampler)
    sampler = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    type_ = next((name for name, kinds in TYPES.items() if asked.kind in kinds), "")
    cells = [cell for cell in summary["cells"] if (cell["length"], cell["type"]) == (asked.length, type_)]
    # The seed moves nothing where no token is drawn.
    counts = [name for name in made if name != "seed" or sampler["temperature"]]
    if not cells or asked.model != summary["model"] or any(sampler[name] != made[name] for name in counts):
        return None
    length = tokens + asked.gen_length
    at = {}
    for lane in asked.lanes:
        cell = next((cell for cell in cells if _same(cell["method"], lane, length)), None)
        if cell is not None:
            low, high = cell["interval"]
            at[lane.key] = f"{cell['right']} of {cell['questions']}, {100 * low:.0f}–{100 * high:.0f}{PERCENT}"
    return at


def _same(name: str, lane: LaneSpec, length: int) -> bool:
    """Does an evaluation's method of this name do what the lane does, over a sequence of so many tokens?"""
    method = parse_method(name, AttentionConfig())
    if any(getattr(method.sampler, name) is not None for name in VARIED):
        return False
    one, other = (
        replace(attention.resolve(length), keep_importance=False) for attention in (method.attention, lane.attention)
    )
    return one == other and method.cache.resolve() == (lane.cache or NO_CACHE)
