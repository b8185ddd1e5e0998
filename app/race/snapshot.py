"""The race as the page shows it: complete snapshots in JSON."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from app.lanes import BASELINE, DENSE, SPARSE
from app.phrases import clock, gain, steps_in_words
from app.race.canvas import Canvas
from app.race.lane_view import LaneView, Snapshot
from app.race.race import Update
from app.texts import ALL_TOGETHER, BOTH_TOGETHER, IN_TURNS, OTHERS_IN_TURNS
from sparsed.answer_text import agreement


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
    over = "whole runs" if finished else f"first {steps_in_words(steps)}" if steps > 1 else "first step"
    uneven = finished and len(dense) != len(sparse)
    made = [f" in {steps_in_words(len(lane))}" if uneven else "" for lane in (dense, sparse)]
    return {
        "ratio": round(ratio, 4),
        "text": shown,
        "words": words if finished else f"{words} so far",
        "detail": f"{over}: {clock(a)}{made[0]} with full attention, {clock(b)}{made[1]} with SparseD",
    }


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


def before_run(
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
