"""A run that is over."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from app.engine.interface import PromptLike, RunLike
from app.lanes import LaneSpec, headline, lanes_of
from sparsed import trace as traces
from sparsed.attention.masks import Masks
from sparsed.config import same_importances
from sparsed.trace.types import Lane, Trace

# Importances are kept beside the patterns up to this many bytes, of all visits together: LLaDA-8B at 64k has 539 MB.
MOST_IMPORTANCE = 600_000_000
# The trace that a fresh page plays.
OPENING = Path(__file__).resolve().parents[2] / "assets" / "opening.json.gz"
# A trace of 64 steps at 64k has some MB.
MOST_FILE = 64 * 2**20


@dataclass(frozen=True, eq=False)
class Kept:
    """A run that is over. live: made on this page. importance: of a live run, for each layer float16 [batch, heads,
    query blocks, key blocks] on the CPU, or None. key: what its downloads are asked for by; nobody can guess it.
    shown: the key of the lane whose pattern is looked at, "" for the headline's.
    """

    trace: Trace
    live: bool
    importance: tuple[np.ndarray, ...] | None = None
    key: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    shown: str = ""

    @property
    def lanes(self) -> dict[LaneSpec, Lane]:
        """Its lanes as the stage has them, and what they did."""
        return {lane: self.trace.lanes[name] for lane, name in recorded(self.trace).items()}

    @property
    def sparse(self) -> Lane | None:
        """The headline's lane, SparseD's."""
        large = headline(self.lanes)
        return None if large is None else self.lanes[large]

    def lane(self, key: str) -> Lane | None:
        """The lane of this key; None where the run had none."""
        return next((made for lane, made in self.lanes.items() if lane.key == key), None)

    @property
    def seen(self) -> Lane | None:
        """The lane whose pattern is looked at: the one shown, or the headline's, or whichever there is."""
        others = (made for lane, made in self.lanes.items() if not lane.full)
        return self.lane(self.shown) or self.sparse or next(others, None)

    @property
    def seen_key(self) -> str:
        """The key of that lane; "" where there is none."""
        return next((lane.key for lane, made in self.lanes.items() if made is self.seen), "")

    def showing(self, key: str) -> Kept:
        """The same run, to look at the pattern of this lane."""
        return self if self.lane(key) is self.seen else replace(self, shown=key)

    @property
    def pattern(self) -> Masks | None:
        """Of the lane that is looked at; None where it ended before its select step. Another lane's with the
        importances of SparseD's select step, where both made it at the same: until then they do the same.
        """
        ours, theirs = self.sparse, self.seen
        pattern = None if theirs is None else theirs.pattern
        if pattern is None or ours is None or theirs is None:
            return pattern
        alike = theirs.cache.none and same_importances(ours.attention, theirs.attention)
        if theirs is not ours and (self.trace.sampler.grows or not alike):
            return pattern
        return replace(pattern, importances=self.importance or (ours.pattern or pattern).importances)

    @property
    def selected(self) -> tuple[int, ...]:
        """The steps, counted from 1, in which the lane that is looked at made a pattern: the last one's is kept."""
        steps = () if self.seen is None else self.seen.steps
        return tuple(step.index + 1 for step in steps if step.phase == "select")

    @property
    def importance_bytes(self) -> int:
        """What `importance` takes of memory."""
        return sum(layer.nbytes for layer in self.importance or ())

    @property
    def bytes(self) -> int:
        """What the patterns of the record take of memory."""
        return sum(lane.pattern.nbytes for lane in self.trace.lanes.values() if lane.pattern is not None)

    @property
    def layers(self) -> int:
        """Layers of the pattern; 0 without one."""
        return 0 if self.pattern is None else self.pattern.layers

    @property
    def heads(self) -> int:
        """Query heads of a layer; 0 without a pattern."""
        return 0 if self.pattern is None else self.pattern.heads


def keep(
    runs: Mapping[str, RunLike], prompt: PromptLike | str, record: Callable[..., Trace | None] = traces.record
) -> Kept | None:
    """What stays of live runs by lane, finished or stopped; None where none has a step. record: `Engine.record`."""
    made = {key: run for key, run in runs.items() if run.steps}
    if not made:
        return None
    patterns = [run.pattern for run in made.values() if run.pattern is not None]
    weights = next((pattern.importance for pattern in patterns if pattern.importance is not None), None)
    importance = None if weights is None else tuple(np.asarray(layer) for layer in weights)
    # Lanes that ran at the same time had copies of the model, one for each device.
    copies = list({id(run.model): None for run in made.values()})
    devices = {key: copies.index(id(run.model)) for key, run in made.items()}
    trace = record(made, prompt=prompt, devices=devices)
    return None if trace is None else Kept(trace, True, importance)


def recorded(trace: Trace) -> dict[LaneSpec, str]:
    """The lanes of a record as the stage has them → their names in the record: full attention, SparseD, others.

    Raises ValueError for more than can be told apart (`app.lanes.MOST_LANES`).
    """
    found = trace.lanes

    def order(name: str) -> tuple[bool, int]:
        method = found[name].attention.method
        return not found[name].cache.none, ("dense", "sparsed", method).index(method)

    names = sorted(found, key=order)
    lanes = lanes_of((found[name].attention for name in names), (found[name].cache for name in names))
    return dict(zip(lanes, names, strict=True))


def fits(layers: int, heads: int, length: int, block_size: int) -> bool:
    """Are the importances of such a run small enough to be kept?"""
    return layers * heads * (-(-length // block_size)) ** 2 * 2 <= MOST_IMPORTANCE


def opened(path: str | Path) -> Kept:
    """A trace from a file. Raises ValueError, in one sentence, for a file that is none or too large."""
    path = Path(path)
    if path.stat().st_size > MOST_FILE:
        raise ValueError(f"{path.name} is too large for this page: at most {MOST_FILE // 2**20} MB.")
    return Kept(traces.load(path), False)


@lru_cache(maxsize=1)
def opening() -> Kept | None:
    """The recorded run that a fresh page plays; None where the file is not there."""
    return opened(OPENING) if OPENING.is_file() else None


def probe_steps(total: int, switch_step: int | None, count: int = 4) -> Sequence[int]:
    """Steps of the sparse phase, counted from 0, at which tracking selects afresh: evenly apart, the last one last."""
    if switch_step is None:
        return ()
    room = total - switch_step
    return sorted({switch_step + (i + 1) * room // count - 1 for i in range(count)} - {switch_step - 1})
