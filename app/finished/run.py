"""A run that is over."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from app.finished.patterns import Look, Recorded
from app.lanes import BASELINE, DENSE, SPARSE
from sparsed import trace as traces
from sparsed.config import same_importances
from sparsed.trace.patterns import TracePattern
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
    shown: the lane whose pattern is looked at, as the stage calls it.
    """

    trace: Trace
    live: bool
    importance: tuple[Any, ...] | None = None
    key: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    shown: str = SPARSE

    @property
    def sparse(self) -> Lane | None:
        """The lane of SparseD, whatever it is called."""
        return self.lane(SPARSE)

    def lane(self, key: str) -> Lane | None:
        """The lane that the stage calls so; None where the run had none."""
        return next((lane for lane in self.trace.lanes.values() if lane_key(lane) == key), None)

    def showing(self, key: str) -> Kept:
        """The same run, to look at the pattern of this lane."""
        return self if key == self.shown else replace(self, shown=key)

    @property
    def pattern(self) -> TracePattern | None:
        """Of the lane that is shown, or of the other one where there is no such lane; None where it ended before its
        select step.
        """
        lane = self.lane(self.shown) or self.lane(SPARSE) or self.lane(BASELINE)
        return None if lane is None else lane.pattern

    @property
    def importance_bytes(self) -> int:
        """What `importance` takes of memory."""
        return sum(layer.numel() * layer.element_size() for layer in self.importance or ())

    @property
    def bytes(self) -> int:
        """What the patterns of the record take of memory, about."""
        patterns = [lane.pattern for lane in self.trace.lanes.values() if lane.pattern is not None]
        return sum(len(text) for pattern in patterns for text in (*pattern.layers, *pattern.importance))

    @property
    def layers(self) -> int:
        """Layers of the pattern; 0 without one."""
        return 0 if self.pattern is None else len(self.pattern.layers)

    @property
    def heads(self) -> int:
        """Query heads of a layer; 0 without a pattern."""
        return 0 if self.pattern is None else self.pattern.heads

    @property
    def look(self) -> Look | None:
        """Its pattern to look at; None without one. A baseline's with the importances of SparseD's select step, where
        both made it at the same: until then they do the same.
        """
        ours, theirs = self.sparse, self.lane(self.shown) or self.lane(BASELINE)
        if self.pattern is None:
            return None
        if ours is None or theirs is None or not same_importances(ours.attention, theirs.attention):
            return Recorded(self.pattern, self.pattern, None)
        return Recorded(self.pattern, ours.pattern or self.pattern, self.importance)


def keep(
    runs: dict[str, Any], prompt: Any, record: Callable[..., Trace | None] = traces.record
) -> Kept | None:
    """What stays of live runs by lane, finished or stopped; None where none has a step. record: `Engine.record`."""
    made = {key: run for key, run in runs.items() if run.steps}
    if not made:
        return None
    patterns = [run.pattern for run in made.values() if run.pattern is not None]
    importance = next((pattern.importance for pattern in patterns if pattern.importance is not None), None)
    # Lanes that ran at the same time had copies of the model, one for each device.
    copies = list({id(run.model): None for run in made.values()})
    devices = {key: copies.index(id(run.model)) for key, run in made.items()}
    trace = record(made, prompt=prompt, devices=devices)
    return None if trace is None else Kept(trace, True, importance)


def lane_key(lane: Lane) -> str:
    """What the stage calls a lane of a record."""
    if lane.attention.dense:
        return DENSE
    return SPARSE if lane.attention.method == "sparsed" else BASELINE


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
