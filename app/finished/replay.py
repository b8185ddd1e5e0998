"""A recorded run as the plain value (JSON) that assets/page/playback.js plays: what changed in each lane's canvas
and what the lane showed, step by step, and what the stage showed at the end.

The trace goes through the same canvas and the same stage as a live run, so that nothing is told twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from app.engine.interface import StepLike
from app.finished.run import recorded
from app.lanes import LaneSpec, PlannedStep
from app.race.canvas import Canvas
from app.race.lane_view import LaneView, Snapshot, ranges_of
from app.race.race import Update
from app.race.snapshot import Stage, mode, speedup
from app.texts import BACKEND_WORDS, OWN_QUESTION, STOPPED, held_together, straight
from sparsed import trace as traces
from sparsed.attention.masks import Masks
from sparsed.trace.check import read_time

Judge = Callable[[str, str], tuple[bool, str]]
# What a lane shows after each step, beside its canvas and its phase.
FRAME = ("progress", "seconds", "ms_per_step", "tokens_per_second", "rows", "counted", "ms_spread", "there")
# What it shows at its end alone; before, as it was planned.
ENDING = ("text", "right", "verdict", "speedup", "same", "never_sparse", "ended_early")


def replay_value(
    trace: traces.Trace,
    *,
    run: int = 0,
    of_record: bool = False,
    autoplay: bool = False,
    way: Literal["step", "clock"] = "step",
    judge: Judge | None = None,
) -> dict[str, Any]:
    """What the replay view draws, from row 0 of a trace.

    run: the stage's number of this run. of_record: say on the page that this is a record, of which machine, day and
    model. autoplay: begin to play at once. way: all lanes at the same step, or each by its own clock, until the
    visitor chooses. judge: (text, gold) → (right or not, in words).

    "lanes" holds for each: "changes", per step a list of [cell, text, confidence or None, end 0 or 1]: a cell named
    for the first time is committed in that step; applying the first k lists gives `Canvas.cells()` after k steps.
    "frames": what FRAME names, after 0, 1, … steps. "ms": milliseconds per step; "kinds": what each is called.
    "ranges": the kinds as planned, "made": as they were, both as `app.race.lane_view.ranges_of`. "text", "right",
    "verdict": None unless the lane reached its end; "never_sparse", "ended_early": as they were then; "same", its
    agreement with full attention, and the gold answer: None unless every lane did. "speedups":
    `app.race.snapshot.speedup` over the first 0, 1, …
    steps of full attention and this lane, empty without the two.

    "state": "done" or "stopped".

    Raises ValueError for a trace with more lanes than can be shown.
    """
    played = _play(trace, run, judge)
    final = played.stage.snapshot()
    return {
        "run": run,
        "recorded": origin(trace) if of_record else None,
        "autoplay": autoplay,
        "way": way,
        "question": final["question"],
        "gold": final["gold"],
        "notes": final["notes"],
        "mode": final["mode"],
        "state": final["state"],
        "message": final["message"],
        "cells": trace.gen_length,
        "lanes": [_lane(played, shown) for shown in final["lanes"]],
        **{name: final[name] for name in ("reference", "headline", "speedup", "agreement", "selected")},
    }


def final_snapshot(trace: traces.Trace, *, run: int = 0, judge: Judge | None = None) -> Snapshot:
    """What the stage shows when the whole trace has been played. Arguments and errors as for `replay_value`."""
    return _play(trace, run, judge).stage.snapshot()


def origin(trace: traces.Trace) -> dict[str, str]:
    """{"machine", "date", "model"} of a trace, in words; the date is that of UTC, as 2026-11-22."""
    about = trace.machine
    name = about.get("gpu") if trace.model.device == "cuda" else None
    if name and trace.model.processes > 1:
        name = f"{trace.model.processes} × {name}"
    machine = str(name or about.get("cpu") or trace.model.device)
    if not name and about.get("cores"):
        machine += f", {about['cores']} cores"
    model = trace.model.label or trace.model.name
    return {"machine": straight(machine), "date": read_time(trace.created).date().isoformat(), "model": straight(model)}


def lane_view(trace: traces.Trace, lane: LaneSpec, name: str) -> LaneView:
    """A lane of the stage before its first step. name: what the trace calls it (`app.finished.run.recorded`)."""
    made, sampler = trace.lanes[name], trace.sampler
    if lane.cache is None:
        planned = lane.plan(made.total, sampler.blocks, grows=sampler.grows)
    else:
        # Planning needs torch, which nothing else of a record does: its steps are as they were made.
        rest = [PlannedStep("dense")] * (made.total - len(made.steps))
        planned = (*(PlannedStep(step.phase, step.rows) for step in made.steps), *rest)
    return LaneView(
        lane,
        Canvas(trace.gen_length, trace.decode, trace.end_ids),
        planned=planned,
        backend=BACKEND_WORDS.get(made.backend, made.backend),
        parallel=sampler.block_length,
        positions=trace.length,
        at_most=sampler.at_most,
        grows=sampler.grows,
        source=_Recorded(made.notes, traces.LaneInfo(trace, made), made.pattern),
    )


@dataclass(frozen=True)
class _Recorded:
    """What a run that is over said of itself."""

    notes: Sequence[str]
    info: traces.LaneInfo
    pattern: Masks | None


@dataclass(frozen=True)
class _Played:
    """The stage after the last step; by lane: the phases as planned, and what each step changed and showed."""

    stage: Stage
    planned: dict[str, list[list[Any]]]
    steps: dict[str, dict[str, list[Any]]]


def _play(trace: traces.Trace, run: int, judge: Judge | None) -> _Played:
    lanes = recorded(trace)
    names = {lane.key: name for lane, name in lanes.items()}
    views = [lane_view(trace, lane, name) for lane, name in lanes.items()]
    stage = Stage(
        views,
        run_id=run,
        end_ids=trace.end_ids,
        gold=trace.prompt.gold,
        others=trace.prompt.others,
        judge=judge,
        question=trace.prompt.asked or OWN_QUESTION,
        mode=mode(
            len(names),
            len({trace.lanes[name].device for name in names.values()}),
            held_together(trace.model.processes) if trace.model.processes > 1 else "",
        ),
    )
    planned = {key: view.ranges() for key, view in stage.lanes.items()}
    steps = {key: _steps(stage.lanes[key], traces.replay(trace, name)) for key, name in names.items()}
    for key, name in names.items():
        if trace.lanes[name].finished:
            stage.read = _reader(trace.lanes[name].text[0])
            stage.apply(Update((), "running", (key,)))
    stage.state = "done" if stage.finished else "stopped"
    stage.message = "" if stage.finished else STOPPED
    return _Played(stage, planned, steps)


def _reader(text: str) -> Callable[[Sequence[int]], str]:
    """The answer as the run itself has read it from its tokens."""
    return lambda _: text


def _steps(lane: LaneView, steps: Iterable[StepLike]) -> dict[str, list[Any]]:
    """Gives the lane every step; what each of them changed in its canvas, and the lane's frames."""
    shown = lane.snapshot("running")
    changes, frames = [], [shown]
    for step in steps:
        lane.apply(step)
        before, shown = shown, lane.snapshot("running")
        pairs = enumerate(zip(before["cells"], shown["cells"], strict=True))
        changes.append([[cell, new[0], new[2], new[3]] for cell, (old, new) in pairs if old != new])
        frames.append(shown)
    return {"changes": changes, "frames": [[frame[name] for name in FRAME] for frame in frames]}


def _speedups(reference: LaneView | None, lane: LaneView) -> list[Snapshot | None]:
    """Over the first 0, 1, … steps that the reference and another lane have both done; empty without both."""
    if reference is None or lane is reference:
        return []
    one, other, names = reference.times, lane.times, (reference.lane.name, lane.lane.name)
    made = range(min(len(one), len(other)) + 1)
    return [speedup(one[:steps], other[:steps], names=names, finished=False) for steps in made]


def _lane(played: _Played, shown: Snapshot) -> dict[str, Any]:
    lane = played.stage.lanes[shown["key"]]
    return {
        **{name: shown[name] for name in ("key", "label", "whose", "style", "backend")},
        **{name: shown[name] for name in ("info", "parallel", "total", "at_most", "positions", "step_rows")},
        "finished": lane.finished,
        "ranges": played.planned[lane.key],
        "made": ranges_of(lane.kinds),
        "ms": [round(1000 * seconds, 6) for seconds in lane.times],
        "phases": list(lane.phases),
        "kinds": list(lane.kinds),
        **played.steps[lane.key],
        "speedups": _speedups(played.stage.reference, lane),
        **{name: shown[name] for name in ENDING},
    }
