"""One lane as the page shows it: canvas, clock, phase."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, quantiles
from typing import Any, Protocol

from app.engine.interface import InfoLike, StepLike
from app.lanes import LaneSpec, PlannedStep
from app.race.canvas import Canvas
from sparsed.answer_text import answer_length
from sparsed.config import Phase
from sparsed.runs import RunRecord

Snapshot = dict[str, Any]
# What a step is called that computes some of the rows; one that computes all is called by its phase.
FEW_ROWS = "few rows"
# Methods whose pattern follows from where a block stands, not from what attention gave it.
RULES = ("sliding_window", "streaming_llm")


class PatternLike(Protocol):
    """Which pairs of blocks a run keeps: `sparsed.Pattern`, or the same packed, `sparsed.attention.masks.Masks`."""

    @property
    def requested_density(self) -> float:
        """Kept pairs of blocks as a share of all pairs, over layers and heads."""


class Source(Protocol):
    """What a lane's view asks of its run, be it one that goes on or one of a record."""

    @property
    def notes(self) -> Sequence[str]:
        """Sentences a user should see; they may become more."""

    @property
    def info(self) -> InfoLike: ...

    @property
    def pattern(self) -> PatternLike | None:
        """The last one that was made; None before the select step."""


class LaneView:
    """One lane: its canvas, its clock and its phase.

    planned: each denoising step of the whole run. backend: what computes the attention, in words. parallel: length of
    one semi-autoregressive block. positions: of the sequence, prompt and generation; None before the prompt is known.
    at_most: the run may end before its last step. grows: of the canvas one block is there, and each of the others is
    appended when the one before is done. source: what the run says of itself, asked anew for each snapshot;
    None before there is one.
    """

    def __init__(
        self,
        lane: LaneSpec,
        canvas: Canvas,
        *,
        planned: Sequence[PlannedStep],
        backend: str,
        parallel: int,
        positions: int | None = None,
        at_most: bool = False,
        grows: bool = False,
        source: Source | None = None,
    ) -> None:
        self.lane = lane
        self.key, self.label = lane.key, lane.label
        self.canvas = canvas
        self.planned = [self._phase(step.phase) for step in planned]
        self.total = len(planned)
        self.positions = positions
        self.backend = backend
        self.parallel = parallel
        self.at_most = at_most
        self.there = parallel if grows else canvas.length  # cells that are there; the others are not masked yet
        self._source = source
        self.phase = "dense"
        self.finished = False
        self.times: list[float] = []
        self.phases: list[str] = []
        self.rows: list[int] = []  # computed in each step; one that computed all that were there counts with all
        self.work: list[tuple[str, int, int]] = []  # of each step: steps that are alike here do the same work
        # Of each step the share of a head's pairs of blocks that it computed; None where the record does not say.
        self.shares: list[float | None] = []
        self._density: tuple[PatternLike, float] | None = None  # of the last pattern seen
        # What the page calls each step, those made and those planned.
        self.kinds: list[str] = []
        self._planned_kinds = [
            FEW_ROWS if step.rows is not None else phase for step, phase in zip(planned, self.planned, strict=True)
        ]
        self.text: str | None = None
        self.verdict: tuple[bool, str] | None = None

    def _phase(self, phase: Phase) -> Phase:
        """What a step of this lane is called: one whose pattern is a rule has nothing to select."""
        return "dense" if phase == "select" and self.lane.attention.method in RULES else phase

    def apply(self, step: StepLike) -> None:
        """Take over one step of this lane."""
        self.canvas.apply(step)
        self.phase = self._phase(step.phase)
        self.times.append(float(step.seconds))
        self.phases.append(self.phase)
        self.work.append((self.phase, step.rows, step.length))
        some = step.rows < step.length
        self.rows.append(step.rows if some or self.positions is None else self.positions)
        if self.positions is not None:
            self.there = self.canvas.length - (self.positions - step.length)
        self.kinds.append(FEW_ROWS if some else self.phase)
        # Which rows a step of few rows computed is not told, so its pairs are not known.
        self.shares.append(None if some else self._share(step.phase))

    def _share(self, phase: str) -> float | None:
        """The share of the pairs of blocks that a step over all rows computes, the mean over heads and layers."""
        if phase != "sparse":
            return 1.0
        pattern = None if self._source is None else self._source.pattern
        if pattern is None:
            return None
        if self._density is None or self._density[0] is not pattern:
            self._density = pattern, pattern.requested_density
        return self._density[1]

    def finish(self) -> None:
        """The lane has reached its end, perhaps before it became sparse."""
        self.finished = True

    @property
    def expected(self) -> list[str]:
        """The phase of each step: as it was made, and as it is planned for those still to come."""
        return self.phases if self.finished else [*self.phases, *self.planned[len(self.phases) :]]

    @property
    def switch_step(self) -> int | None:
        """The first sparse step, made or still to come, counted from 0; None if there is none."""
        return self.expected.index("sparse") if "sparse" in self.expected else None

    @property
    def apart(self) -> bool:
        """Has it done anything yet that full attention does not do? Before, a factor between them would be noise."""
        return self.lane.cache is not None or "sparse" in self.phases

    @property
    def notes(self) -> Sequence[str]:
        """What the run says."""
        return () if self._source is None else self._source.notes

    @property
    def info(self) -> RunRecord | None:
        """What the run is, as it was resolved, and what it has made so far; None before there is one."""
        return None if self._source is None else self._source.info.record()

    @property
    def never_sparse(self) -> bool:
        """Does a lane that has a pattern to use not use it at all: by its settings, or because it was done before?"""
        return not self.lane.attention.dense and self.switch_step is None and "sparse" not in self.phases

    @property
    def ended_early(self) -> bool:
        """Was it done with its answer before its steps were, so that what comes after is left out? (Masks may also be
        left after all steps, where the model predicted the mask token.)
        """
        return self.finished and len(self.times) < self.total and self.canvas.committed < self.canvas.length

    @property
    def seconds(self) -> float:
        """The lane's own compute so far, in seconds."""
        return sum(self.times)

    @property
    def progress(self) -> float:
        """The share of the run that is done, 0 … 1: of its steps, or of its tokens where the steps are not known."""
        if self.finished:
            return 1.0
        if self.at_most:
            return self.canvas.committed / self.canvas.length
        return len(self.times) / self.total

    def _answered(self) -> int:
        """Tokens of the answer so far, up to its end token: what follows is padding."""
        tokens = self.canvas.tokens
        return sum(token is not None for token in tokens[: answer_length(tokens, self.canvas.end_ids)])

    def ranges(self) -> list[list[Any]]:
        """What the lane's steps are called, made and still to come, as `ranges_of`."""
        kinds = self.kinds if self.finished else [*self.kinds, *self._planned_kinds[len(self.kinds) :]]
        return ranges_of(kinds, at_most=self.at_most and not self.finished)

    @property
    def counted(self) -> Snapshot | None:
        """What the steps so far computed, and what full attention does in as many: {"pairs": [computed, all] of a
        head's pairs of blocks, the mean over heads and layers, None where that is not known; "rows": [computed, all]}.
        None for full attention, and before the prompt is known.
        """
        if self.positions is None or self.lane.full:
            return None
        blocks = -(-self.positions // self.lane.attention.resolve(self.positions).block_size)
        known = [share for share in self.shares if share is not None]
        pairs = [round(sum(known) * blocks**2, 3), len(known) * blocks**2]
        return {
            "pairs": pairs if len(known) == len(self.shares) else None,
            "rows": [sum(self.rows), len(self.rows) * self.positions],
        }

    def snapshot(self, state: str) -> Snapshot:
        done = len(self.times)
        seconds = self.seconds
        return {
            "key": self.key,
            "label": self.label,
            "whose": self.lane.whose,
            "style": self.lane.style,
            "state": "done" if self.finished else state,
            "phase": self.phase,
            "kind": self.kinds[-1] if self.kinds else self.phase,
            "phases": self.ranges(),
            "rows": self.rows[-1] if self.rows else None,
            "positions": self.positions,
            "counted": self.counted,
            # Of each step, where they are not all the same.
            "step_rows": None if self.lane.cache is None else list(self.rows),
            "never_sparse": self.never_sparse,
            "ended_early": self.ended_early,
            "step": done,
            "total": self.total,
            "at_most": self.at_most,
            "progress": round(self.progress, 4),
            "seconds": round(seconds, 6),
            "ms_per_step": round(1000 * median(self.times), 1) if done else None,
            "ms_spread": _middle_half(self.times),
            "tokens_per_second": round(self._answered() / seconds, 3) if seconds > 0 else None,
            "backend": self.backend,
            "info": self.info,
            "parallel": self.parallel,
            "there": self.there,
            "cells": self.canvas.cells(),
            "text": self.text,
            "right": None if self.verdict is None else self.verdict[0],
            "verdict": None if self.verdict is None else self.verdict[1],
            "speedup": None,
            "same": None,
        }


def _middle_half(seconds: Sequence[float]) -> list[float] | None:
    """What steps of so many seconds took without the quickest and the slowest quarter: milliseconds, from and to; None
    of a single one.
    """
    if len(seconds) < 2:
        return None
    first, _, last = quantiles(seconds, n=4, method="inclusive")
    return [round(1000 * first, 1), round(1000 * last, 1)]


def ranges_of(phases: Sequence[str], *, at_most: bool = False) -> list[list[Any]]:
    """[phase, first step, last step], counted from 1, of steps with these phases, or kinds.

    at_most: nobody knows the last step of the last phase; it is None.
    """
    ranges: list[list[Any]] = []
    for step, phase in enumerate(phases, start=1):
        if not ranges or ranges[-1][0] != phase:
            ranges.append([phase, step, step])
        ranges[-1][2] = step
    if at_most and ranges:
        ranges[-1][2] = None
    return ranges
