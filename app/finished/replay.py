"""A recorded run as the plain value (JSON) that assets/page/playback.js plays: what changed in each lane's canvas
and what the lane showed, step by step, and what the stage showed at the end.

The trace goes through the same canvas and the same stage as a live run, so that nothing is told twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from app.finished.run import lane_key
from app.lanes import BASELINE, DENSE, SPARSE
from app.race.canvas import Canvas
from app.race.lane_view import LaneView, Snapshot, made_ranges
from app.race.race import Update
from app.race.snapshot import Stage, mode, speedup
from app.server.material import BACKEND_WORDS
from app.server.session import OWN_QUESTION, STOPPED
from app.texts import held_together, straight
from sparsed import trace as traces
from sparsed.config import switch_step

Judge = Callable[[str, str], tuple[bool, str]]
# What a lane shows after each step, beside its canvas and its phase.
FRAME = ("progress", "seconds", "ms_per_step", "tokens_per_second")


def replay_value(
    trace: traces.Trace,
    *,
    run: int = 0,
    recorded: bool = False,
    autoplay: bool = False,
    way: Literal["step", "clock"] = "step",
    judge: Judge | None = None,
) -> dict[str, Any]:
    """What the replay view draws, from row 0 of a trace with lanes of full attention, SparseD and a baseline, at most
    one of each.

    run: the stage's number of this run. recorded: say on the page that this is a record, of which machine, day and
    model. autoplay: begin to play at once. way: all lanes at the same step, or each by its own clock, until the
    visitor chooses. judge: (text, gold) → (right or not, in words).

    "lanes" holds for each: "changes", per step a list of [cell, text, confidence or None, end 0 or 1]: a cell named
    for the first time is committed in that step; applying the first k lists gives `Canvas.cells()` after k steps.
    "frames": what FRAME names, after 0, 1, … steps. "ms": milliseconds per step. "ranges": the phases as planned,
    "made": as they were, both as `app.race.lane_view.phase_ranges`. "text", "right", "verdict": None unless the lane
    reached its
    end; "same", a baseline's agreement with full attention, and the gold answer: None unless every lane did.

    "state": "done" or "stopped". "speedups": `app.race.snapshot.speedup` over the first 0, 1, … steps of both lanes.

    Raises ValueError for a trace with two lanes of a kind.
    """
    played = _play(trace, run, judge)
    final = played.stage.snapshot()
    return {
        "run": run,
        "recorded": origin(trace) if recorded else None,
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
        "speedup": final["speedup"],
        "speedups": _speedups(played.stage),
        "agreement": final["agreement"],
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
    return {"machine": straight(machine), "date": trace.created[:10], "model": straight(model)}


def lane_names(trace: traces.Trace) -> dict[str, str]:
    """The stage's key of each lane → its name in the trace: full attention first, then SparseD, then a baseline.

    Raises ValueError where there are two of a kind.
    """
    names: dict[str, str] = {}
    for name, lane in trace.lanes.items():
        key = lane_key(lane)
        if key in names:
            listed = ", ".join(repr(one) for one in trace.lanes)
            raise ValueError(
                f"The trace has the lanes {listed}; a replay takes one run with full attention, one with SparseD and "
                "one with a baseline at most."
            )
        names[key] = name
    return {key: names[key] for key in (DENSE, SPARSE, BASELINE) if key in names}


def lane_view(trace: traces.Trace, name: str) -> LaneView:
    """A lane of the stage before its first step, for a lane of the trace."""
    lane, sampler = trace.lanes[name], trace.sampler
    attention, switch = lane.attention, lane.switch_step
    if switch is None:
        # A run that ends before it is sparse has no switch any more; it had one while it went on.
        switch = switch_step(lane.total, attention.skip, attention.selection)
    return LaneView(
        lane_key(lane),
        Canvas(trace.gen_length, trace.decode, trace.end_ids),
        total=lane.total,
        switch_step=switch,
        backend=BACKEND_WORDS.get(lane.backend, lane.backend),
        parallel=sampler.block_length,
        at_most=sampler.threshold is not None,
        pattern=None if attention.dense else attention.method,
    )


@dataclass(frozen=True)
class _Played:
    """The stage after the last step; by lane: the phases as planned, and what each step changed and showed."""

    stage: Stage
    planned: dict[str, list[list[Any]]]
    steps: dict[str, dict[str, list[Any]]]


def _play(trace: traces.Trace, run: int, judge: Judge | None) -> _Played:
    names = lane_names(trace)
    stage = Stage(
        [lane_view(trace, name) for name in names.values()],
        run_id=run,
        end_ids=trace.end_ids,
        gold=trace.prompt.gold,
        judge=judge,
        notes=trace.lanes[names.get(SPARSE) or next(iter(names.values()))].notes,
        question=trace.prompt.question or OWN_QUESTION,
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


def _steps(lane: LaneView, steps: Iterable[Any]) -> dict[str, list[Any]]:
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


def _speedups(stage: Stage) -> list[Snapshot | None]:
    """Over the first 0, 1, … steps that full attention and SparseD have both done; empty without both lanes."""
    if not {DENSE, SPARSE} <= set(stage.lanes):
        return []
    dense, sparse = stage.lanes[DENSE].times, stage.lanes[SPARSE].times
    made = range(min(len(dense), len(sparse)) + 1)
    return [speedup(dense[:steps], sparse[:steps], finished=False) for steps in made]


def _lane(played: _Played, shown: Snapshot) -> dict[str, Any]:
    lane = played.stage.lanes[shown["key"]]
    return {
        **{name: shown[name] for name in ("key", "label", "backend", "parallel", "total", "at_most")},
        "finished": lane.finished,
        "ranges": played.planned[lane.key],
        "made": made_ranges(lane.phases),
        "ms": [round(1000 * seconds, 6) for seconds in lane.times],
        "phases": list(lane.phases),
        **played.steps[lane.key],
        **{name: shown[name] for name in ("text", "right", "verdict", "same")},
    }
