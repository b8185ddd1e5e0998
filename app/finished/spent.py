"""Where the time of a step goes: attention and the rest, as the steps of a run that is over have measured it."""

from __future__ import annotations

from statistics import median
from typing import Any

from app import texts
from app.finished.replay import lane_view
from app.finished.run import Kept, recorded
from app.lanes import reference
from app.phrases import milliseconds
from app.race.lane_view import LaneView
from sparsed import trace as traces
from sparsed.trace.types import Trace


def spent(run: Kept | None) -> dict[str, Any]:
    """What assets/page/spent.js draws, of the lanes whose steps tell their attention apart.

    {"said": [sentences], "lanes": [{"key", "label", "style", "kinds": [{"name": what the page calls such steps,
    "steps": how many, "seconds", "attention": medians over them, "said": both in words}]}], "most": the longest of the
    medians}. Of a record without such steps "lanes" is empty.
    """
    if run is None:
        return {"said": [texts.NO_STEPS], "lanes": [], "most": 0.0}
    return of_trace(run.trace)


def of_trace(trace: Trace) -> dict[str, Any]:
    """The same, from a record."""
    names = recorded(trace)
    full = reference(tuple(names))
    lanes: list[dict[str, Any]] = []
    said: list[str] = []
    for lane, name in names.items():
        kinds = _kinds(trace, name, lane_view(trace, lane, name))
        if not kinds:
            continue
        lanes.append({"key": lane.key, "label": lane.label, "style": lane.style, "kinds": kinds})
        if lane is full:
            said.append(_ceiling(kinds[0]["seconds"], kinds[0]["attention"]))
    most = max((kind["seconds"] for one in lanes for kind in one["kinds"]), default=0.0)
    return {"said": said if lanes else [texts.NOT_APART], "lanes": lanes, "most": most}


def _kinds(trace: Trace, name: str, view: LaneView) -> list[dict[str, Any]]:
    """The steps of a lane by what the page calls them, in the order in which they come."""
    for step in traces.replay(trace, name):
        view.apply(step)
    found: dict[str, list[tuple[float, float]]] = {}
    for kind, made in zip(view.kinds, trace.lanes[name].steps, strict=True):
        if made.attention_seconds is not None:
            found.setdefault(kind, []).append((made.seconds, made.attention_seconds))
    kinds = []
    for kind, both in found.items():
        # Each step's attention is at most the step, so the medians are in that order too.
        seconds, attention = median(one for one, _ in both), median(one for _, one in both)
        rest = milliseconds(seconds - attention)
        told = f"{milliseconds(seconds)}: {milliseconds(attention)} attention, {rest} the rest"
        kinds.append({"name": kind, "steps": len(both), "seconds": seconds, "attention": attention, "said": told})
    return kinds


def _ceiling(seconds: float, attention: float) -> str:
    """What can be gained at most where attention is this much of a step."""
    rest = max(seconds - attention, 1e-9)
    return (
        f"Even with attention for free a step would take {milliseconds(rest)}, so skipping blocks can make it at most "
        f"{seconds / rest:.2f}× as fast at this length. (A cache skips rows as well, which is more than attention.)"
    )
