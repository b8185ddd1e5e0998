"""The race as the page shows it: complete snapshots in JSON."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.lanes import LaneSpec, headline, reference
from app.phrases import PERCENT, clock, gain, steps_in_words
from app.race.canvas import Canvas
from app.race.lane_view import LaneView, Snapshot
from app.race.notes import of_lanes
from app.race.race import Update
from app.race.steady import by_medians, unsteady
from app.texts import ALL_TOGETHER, BOTH_TOGETHER, IN_TURNS, others_in_turns
from sparsed.answer_text import agreement
from sparsed.questions.score import nearest


def mode(lanes: int, devices: int, why: str = "") -> Snapshot | None:
    """How so many lanes share so many devices: {"name": "turns" or "together", "text": that in a sentence}; None for a
    lane alone. why: the sentence for lanes that take turns although there is more than one device.
    """
    if lanes < 2:
        return None
    if devices < 2:
        return {"name": "turns", "text": why or IN_TURNS}
    alone = BOTH_TOGETHER if lanes == 2 else ALL_TOGETHER
    return {"name": "together", "text": alone if devices >= lanes else others_in_turns(devices)}


def speedup(
    one: Sequence[float], other: Sequence[float], *, names: tuple[str, str], finished: bool
) -> Snapshot | None:
    """How much faster the other lane is than the one, from the seconds of each lane's steps; None before both have a
    step. names: what the lanes are called within a sentence.

    While the race runs, both lanes are compared over the steps that both have done. At the end: whole runs.
    """
    steps = min(len(one), len(other))
    a = sum(one) if finished else sum(one[:steps])
    b = sum(other) if finished else sum(other[:steps])
    if not steps or a <= 0 or b <= 0:
        return None
    ratio = a / b
    shown, words = gain(ratio)
    over = "whole runs" if finished else f"first {steps_in_words(steps)}" if steps > 1 else "first step"
    uneven = finished and len(one) != len(other)
    made = [f" in {steps_in_words(len(lane))}" if uneven else "" for lane in (one, other)]
    return {
        "ratio": round(ratio, 4),
        "text": shown,
        "words": words if finished else f"{words} so far",
        "detail": f"{over}: {clock(a)}{made[0]} with {names[0]}, {clock(b)}{made[1]} with {names[1]}",
    }


@dataclass(frozen=True)
class StepTimes:
    """How long each step took so far: what the figure of the time per step is drawn from."""

    lanes: tuple[LaneSpec, ...]
    seconds: Mapping[str, Sequence[float]]  # lane's key → of each step so far
    phases: Mapping[str, Sequence[str]]  # lane's key → of each step so far
    total: int  # steps of a run
    ranges: Sequence[Sequence[Any]]  # the headline's phases, see `LaneView.ranges`
    at_most: bool = False  # the runs may end before `total`
    rows: Mapping[str, Sequence[int]] = field(default_factory=dict)  # lane's key → computed in each step so far
    positions: int | None = None  # of the sequence

    @property
    def switch_step(self) -> int | None:
        """The headline's first sparse step, counted from 0; None if there is none."""
        return next((first - 1 for phase, first, _ in self.ranges if phase == "sparse"), None)


class Stage:
    """The lanes, the speed-up, the agreement and the message line. One per run; nothing of it is shared.

    Every lane but the reference, which is full attention, has its speed-up and its agreement with it ("same"); those of
    the headline's lane, SparseD's, stand above all lanes as well.

    decode: token ids → text. end_ids: tokens that end an answer. gold: the expected answer, or None. others: what is
    right as well. judge: (text, gold) → (right or not, in words), asked when a lane has reached its end, for the right
    answer that its text is nearest to. read: token ids → the answer's
    text. question: what this run answers, which may not be what the controls say by now. mode: what `mode` gives, None
    before a run. selected: while a run goes on, the step that made the pattern that can be looked at, counted from 1; 0
    before there is one. The gold answer is in no snapshot before every lane has ended.
    """

    def __init__(
        self,
        lanes: Sequence[LaneView],
        *,
        run_id: int = 0,
        end_ids: Collection[int],
        gold: str | None = None,
        others: Sequence[str] = (),
        judge: Callable[[str, str], tuple[bool, str]] | None = None,
        read: Callable[[Sequence[int]], str] | None = None,
        question: str = "",
        mode: Snapshot | None = None,
    ) -> None:
        self.lanes = {lane.key: lane for lane in lanes}
        first, large = reference([view.lane for view in lanes]), headline(view.lane for view in lanes)
        self.reference = None if first is None else self.lanes[first.key]
        self.headline = None if large is None else self.lanes[large.key]
        self.run_id = run_id
        self.end_ids = end_ids
        self.gold = gold
        self.others = others
        self.judge = judge
        self.read = read
        self.question = question
        self.mode = mode
        self.state = "running"
        self.message = ""
        self.selected = 0
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
        gold = self._gold_of(lane)
        if gold is not None and self.judge is not None and lane.text is not None:
            lane.verdict = self.judge(lane.text, gold)

    def _gold_of(self, lane: LaneView | None) -> str | None:
        """The right answer that the lane's is nearest to."""
        if self.gold is None or lane is None or lane.text is None:
            return self.gold
        return nearest(lane.text, (self.gold, *self.others))

    @property
    def finished(self) -> bool:
        """True when every lane has reached its end."""
        return all(lane.finished for lane in self.lanes.values())

    @property
    def notes(self) -> list[str]:
        """What the lanes have to say."""
        return of_lanes({lane.label: lane.notes for lane in self.lanes.values()})

    def step_times(self) -> StepTimes:
        """The seconds of every step so far; later steps do not change it."""
        views = self.lanes.values()
        large = self.headline or next(iter(views))
        return StepTimes(
            tuple(view.lane for view in views),
            {view.key: tuple(view.times) for view in views},
            {view.key: tuple(view.phases) for view in views},
            large.total,
            large.ranges(),
            large.at_most,
            {view.key: tuple(view.rows) for view in views},
            large.positions,
        )

    def speedup(self, lane: LaneView | None) -> Snapshot | None:
        """How much faster a lane is than the reference, once they do not do the same any more. At the end, where steps
        alike took so unequal times that the factor says little, it is "unsteady", and its detail has that by median
        steps.
        """
        first = self.reference
        if first is None or lane is None or not lane.apart:
            return None
        found = speedup(first.times, lane.times, names=(first.lane.name, lane.lane.name), finished=self.finished)
        if found is None or not self.finished:
            return found
        ratio = by_medians(first.times, first.work) / by_medians(lane.times, lane.work)
        if not unsteady(found["ratio"], ratio):
            return found
        said = f"{clock(first.seconds)} against {clock(lane.seconds)} on an unsteady machine"
        return {**found, "unsteady": True, "detail": f"{said}; {' '.join(gain(ratio))} by median steps"}

    def agreement(self, lane: LaneView | None) -> Snapshot | None:
        """How much of a lane's text is the reference's, token by token; None until every lane has ended."""
        if self.reference is None or lane is None or lane is self.reference or not self.finished:
            return None
        counted = agreement(self._tokens(self.reference), self._tokens(lane), self.end_ids)
        if counted is None:
            return None
        same, compared = counted
        percent = 100 * same / compared
        shown = "100" if same == compared else f"{min(percent, 99.9):.1f}"
        return {
            "same": same,
            "compared": compared,
            "text": f"{shown}{PERCENT}",
            "words": "same text",
            "detail": f"{same} of {compared} tokens are the same, the end token included"
            + (f"; {lane.label} was never sparse" if lane.never_sparse else ""),
        }

    def _tokens(self, lane: LaneView) -> list[int | None]:
        """The tokens of a lane that is done; what it left out counts as what comes after an end, which it is."""
        if not lane.ended_early:
            return lane.canvas.tokens
        end = next(iter(self.end_ids), None)
        return [end if token is None else token for token in lane.canvas.tokens]

    def snapshot(self, update: Update | None = None) -> Snapshot:
        """The whole stage as JSON; a new value each time."""
        self._sequence += 1
        lanes = []
        for lane in self.lanes.values():
            shown, same = lane.snapshot(self.state), self.agreement(lane)
            shown["speedup"] = self.speedup(lane)
            if same is not None and self.reference is not None:
                shown["same"] = {**same, "words": f"{same['words']} as {self.reference.lane.name}"}
            lanes.append(shown)
        return {
            "run": self.run_id,
            "sequence": self._sequence,
            "state": self.state,
            "message": self.message,
            "selected": self.selected,
            "question": self.question,
            "notes": self.notes,
            "mode": self.mode,
            "reference": None if self.reference is None else self.reference.key,
            "headline": None if self.headline is None else self.headline.key,
            "speedup": self.speedup(self.headline),
            "agreement": self.agreement(self.headline),
            "gold": self._gold_of(next(iter(self.lanes.values()), None)) if self.finished else None,
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
    lanes: Sequence[LaneSpec],
    gen_length: int,
    parallel: int,
    *,
    total: int,
    at_most: bool = False,
    grows: bool = False,
    state: str = "idle",
    message: str = "",
) -> Snapshot:
    """The stage before a run: canvases full of masks. grows: of a block, the others are not there yet."""
    views = [
        LaneView(
            lane,
            Canvas(gen_length, lambda _: "", ()),
            planned=lane.plan(total, gen_length // parallel, gen_length, grows),
            backend="",
            parallel=parallel,
            at_most=at_most,
            grows=grows,
        )
        for lane in lanes
    ]
    stage = Stage(views, end_ids=())
    stage.state, stage.message = state, message
    return stage.snapshot()
