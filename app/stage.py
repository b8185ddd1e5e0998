"""The race as the page shows it: collects the stream of steps into one plain value (JSON) for the stage
component.

Every snapshot is complete (both canvases, both clocks, every step's time), so a browser that skips one still
shows the truth; `steps` alone is the difference to the snapshot before and holds each step of the run exactly
once over the whole stream. Steps are counted from 1 here, as on the page.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from app.canvas import Canvas
from app.race import Update
from app.words import ALL_TOGETHER, BOTH_TOGETHER, IN_TURNS, OTHERS_IN_TURNS
from sparsed.answer_text import agreement, answer_length
from sparsed.config import PATTERN_LABELS

Snapshot = dict[str, Any]

DENSE, SPARSE, BASELINE = "dense", "sparse", "baseline"
# Two runs of the same thing differ by as much.
SAME = 0.02
LABELS = {DENSE: "Full attention", SPARSE: PATTERN_LABELS["sparsed"]}


def lane_label(key: str, pattern: str | None = None) -> str:
    """What a lane is called. pattern: which one the lane of a baseline uses (`sparsed.config.PATTERNS`)."""
    return PATTERN_LABELS.get(pattern or "", key) if key == BASELINE else LABELS.get(key, key)


def mode(lanes: int, devices: int, why: str = "") -> Snapshot | None:
    """How so many lanes share so many devices: {"name": "turns" or "together", "text": that in a sentence}; None for a
    lane alone. why: the sentence for lanes that take turns although there is more than one device.
    """
    if lanes < 2:
        return None
    if devices < 2:
        return {"name": "turns", "text": why or IN_TURNS}
    alone = BOTH_TOGETHER if lanes == 2 else ALL_TOGETHER
    return {"name": "together", "text": alone if devices >= lanes else OTHERS_IN_TURNS}


class LaneView:
    """One lane: its canvas, its clock and its phase.

    total: denoising steps of the whole run. switch_step: the engine's first sparse step counted from 0, or
    None. backend: what computes the attention, in words. parallel: length of one semi-autoregressive block.
    at_most: the run may end before its last step. pattern: which one a baseline uses.
    """

    def __init__(
        self,
        key: str,
        canvas: Canvas,
        *,
        total: int,
        switch_step: int | None,
        backend: str,
        parallel: int,
        at_most: bool = False,
        pattern: str | None = None,
    ) -> None:
        self.key = key
        self.label = lane_label(key, pattern)
        self.canvas = canvas
        self.total = total
        self.switch_step = switch_step
        self.backend = backend
        self.parallel = parallel
        self.at_most = at_most
        self.phase = "dense"
        self.finished = False
        self.times: list[float] = []
        self.phases: list[str] = []
        self.text: str | None = None
        self.verdict: tuple[bool, str] | None = None

    def apply(self, step: Any) -> None:
        """Take over one step of this lane."""
        self.canvas.apply(step)
        self.phase = step.phase
        self.times.append(float(step.seconds))
        self.phases.append(step.phase)

    def finish(self) -> None:
        """The lane has reached its end, perhaps before it became sparse."""
        self.finished = True
        if self.switch_step is not None and len(self.times) <= self.switch_step:
            self.switch_step = None

    @property
    def seconds(self) -> float:
        """The lane's own compute so far, in seconds."""
        return sum(self.times)

    @property
    def progress(self) -> float:
        """The share of the run that is done, 0 … 1: of its steps, or of its tokens where the steps are not known."""
        if self.at_most:
            return self.canvas.committed / self.canvas.length
        return len(self.times) / self.total

    def _answered(self) -> int:
        """Tokens of the answer so far, up to its end token: what follows is padding."""
        tokens = self.canvas.tokens
        return sum(token is not None for token in tokens[: answer_length(tokens, self.canvas.end_ids)])

    def ranges(self) -> list[list[Any]]:
        """The lane's phases as `phase_ranges`: as planned, and as they were once it has ended."""
        if self.finished and self.phases:
            return made_ranges(self.phases)
        return phase_ranges(self.total, self.switch_step, at_most=self.at_most)

    def snapshot(self, state: str) -> Snapshot:
        done = len(self.times)
        seconds = self.seconds
        return {
            "key": self.key,
            "label": self.label,
            "state": "done" if self.finished else state,
            "phase": self.phase,
            "phases": self.ranges(),
            "step": done,
            "total": self.total,
            "at_most": self.at_most,
            "progress": round(self.progress, 4),
            "seconds": round(seconds, 6),
            "ms_per_step": round(1000 * seconds / done, 1) if done else None,
            "tokens_per_second": round(self._answered() / seconds, 3) if seconds > 0 else None,
            "backend": self.backend,
            "parallel": self.parallel,
            "cells": self.canvas.cells(),
            "text": self.text,
            "right": None if self.verdict is None else self.verdict[0],
            "verdict": None if self.verdict is None else self.verdict[1],
            "same": None,
        }


def phase_ranges(total: int, switch_step: int | None, *, at_most: bool = False) -> list[list[Any]]:
    """[phase, first step, last step], counted from 1: what the lane will do, known before it starts.

    at_most: nobody knows the last step of the last phase; it is None.
    """
    last = None if at_most else total
    if switch_step is None:
        return [["dense", 1, last]]
    ranges: list[list[Any]] = [["dense", 1, switch_step - 1]] if switch_step > 1 else []
    return [*ranges, ["select", switch_step, switch_step], ["sparse", switch_step + 1, last]]


def made_ranges(phases: Sequence[str]) -> list[list[Any]]:
    """[phase, first step, last step], counted from 1, of the steps that were made."""
    ranges: list[list[Any]] = []
    for step, phase in enumerate(phases, start=1):
        if not ranges or ranges[-1][0] != phase:
            ranges.append([phase, step, step])
        ranges[-1][2] = step
    return ranges


def speedup(dense: Sequence[float], sparse: Sequence[float], *, finished: bool) -> Snapshot | None:
    """How much faster the sparse lane is, from the seconds of each lane's steps; None before both have a
    step.

    While the race runs, both lanes are compared over the steps that both have done. At the end: whole runs.
    """
    steps = min(len(dense), len(sparse))
    a = sum(dense) if finished else sum(dense[:steps])
    b = sum(sparse) if finished else sum(sparse[:steps])
    if not steps or a <= 0 or b <= 0:
        return None
    ratio = a / b
    shown, words = gain(ratio)
    over = "whole runs" if finished else f"first {_steps(steps)}" if steps > 1 else "first step"
    uneven = finished and len(dense) != len(sparse)
    made = [f" in {_steps(len(lane))}" if uneven else "" for lane in (dense, sparse)]
    return {
        "ratio": round(ratio, 4),
        "text": shown,
        "words": words if finished else f"{words} so far",
        "detail": f"{over}: {clock(a)}{made[0]} with full attention, {clock(b)}{made[1]} with SparseD",
    }


def gain(ratio: float) -> tuple[str, str]:
    """How many times faster something is, above 0 → (the factor that is shown, what it says): ("1.50×", "slower")."""
    words = "about the same speed" if abs(ratio - 1) < SAME else "faster" if ratio > 1 else "slower"
    return f"{1 / ratio if words == 'slower' else ratio:.2f}×", words


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def clock(seconds: float) -> str:
    """Seconds as people read them: "0.84 s", "12.4 s", "3 min 05 s", "2 h 10 min"."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class Stage:
    """The lanes, the speed-up, the agreement and the message line. One per run; nothing of it is shared.

    The speed-up and the agreement are SparseD's with full attention; a baseline's agreement stands in its lane, as
    "same".

    decode: token ids → text. end_ids: tokens that end an answer. gold: the expected answer, or None. judge:
    (text, gold) → (right or not, in words), asked when a lane has reached its end. read: token ids → the answer's
    text. question: what this run answers, which may not be what the controls say by now. notes: read anew for each
    snapshot, because a run adds to its own. mode: what `mode` gives, None before a run. The gold answer is in no
    snapshot before every lane has ended.
    """

    def __init__(
        self,
        lanes: Sequence[LaneView],
        *,
        run_id: int = 0,
        end_ids: Collection[int],
        gold: str | None = None,
        judge: Callable[[str, str], tuple[bool, str]] | None = None,
        read: Callable[[Sequence[int]], str] | None = None,
        notes: Sequence[str] = (),
        question: str = "",
        mode: Snapshot | None = None,
    ) -> None:
        self.lanes = {lane.key: lane for lane in lanes}
        self.run_id = run_id
        self.end_ids = end_ids
        self.gold = gold
        self.judge = judge
        self.read = read
        self.notes = notes
        self.question = question
        self.mode = mode
        self.state = "running"
        self.message = ""
        self._sequence = 0

    def apply(self, update: Update) -> Snapshot:
        """The snapshot after `update`."""
        for lane_step in update.steps:
            self.lanes[lane_step.lane].apply(lane_step.step)
        for key in update.finished:
            self._finish(self.lanes[key])
        # To the page a race that took too long is one that was stopped; the message says by whom.
        self.state = "stopped" if update.state == "overdue" else update.state
        return self.snapshot(update)

    def _finish(self, lane: LaneView) -> None:
        if lane.finished:
            return
        lane.finish()
        tokens = [token for token in lane.canvas.tokens if token is not None]
        if self.read is not None:
            lane.text = self.read(tokens)
        if self.gold is not None and self.judge is not None and lane.text is not None:
            lane.verdict = self.judge(lane.text, self.gold)

    @property
    def finished(self) -> bool:
        """True when every lane has reached its end."""
        return all(lane.finished for lane in self.lanes.values())

    def agreement(self, key: str = SPARSE) -> Snapshot | None:
        """How much of a lane's text is that of full attention, token by token; None until every lane has ended."""
        first, second = self.lanes.get(DENSE), self.lanes.get(key)
        if first is None or second is None or not self.finished:
            return None
        counted = agreement(first.canvas.tokens, second.canvas.tokens, self.end_ids)
        if counted is None:
            return None
        same, compared = counted
        percent = 100 * same / compared
        shown = "100" if same == compared else f"{min(percent, 99.9):.1f}"
        return {
            "same": same,
            "compared": compared,
            "text": f"{shown} %",
            "words": "same text",
            "detail": f"{same} of {compared} tokens are the same, the end token included",
        }

    def snapshot(self, update: Update | None = None) -> Snapshot:
        """The whole stage as JSON; a new value each time."""
        dense, sparse = self.lanes.get(DENSE), self.lanes.get(SPARSE)
        ratio = None
        # Before it is sparse the second lane does what the first does: a factor would be noise.
        if dense and sparse and "sparse" in sparse.phases:
            ratio = speedup(dense.times, sparse.times, finished=self.finished)
        self._sequence += 1
        lanes = [lane.snapshot(self.state) for lane in self.lanes.values()]
        for lane in lanes:
            if lane["key"] == BASELINE:
                same = self.agreement(BASELINE)
                lane["same"] = same and {**same, "words": f"{same['words']} as full attention"}
        return {
            "run": self.run_id,
            "sequence": self._sequence,
            "state": self.state,
            "message": self.message,
            "question": self.question,
            "notes": list(self.notes),
            "mode": self.mode,
            "speedup": ratio,
            "agreement": self.agreement(),
            "gold": self.gold if self.finished else None,
            "lanes": lanes,
            "steps": [
                {
                    "lane": item.lane,
                    "step": item.step.index + 1,
                    "phase": item.step.phase,
                    "ms": round(1000 * item.step.seconds, 3),
                }
                for item in (update.steps if update else ())
            ],
        }


def opening(
    gen_length: int,
    parallel: int,
    *,
    total: int,
    switch_step: int | None,
    at_most: bool = False,
    state: str = "idle",
    message: str = "",
    baseline: str | None = None,
) -> Snapshot:
    """The stage before a run: canvases full of masks, two of them, or three with the pattern of a baseline."""
    lanes = [
        LaneView(
            key,
            Canvas(gen_length, lambda _: "", ()),
            total=total,
            switch_step=None if key == DENSE else switch_step,
            backend="",
            parallel=parallel,
            at_most=at_most,
            pattern=baseline,
        )
        for key in (DENSE, SPARSE, *([BASELINE] if baseline else []))
    ]
    stage = Stage(lanes, end_ids=())
    stage.state, stage.message = state, message
    return stage.snapshot()
