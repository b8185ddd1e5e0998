"""What comes out of a session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.figures import base
from app.finished.run import Kept
from app.race.lane_view import Snapshot
from app.race.request import Request
from app.race.snapshot import before_run
from app.server.models import Loaded
from sparsed.attention.masks import Masks


@dataclass(frozen=True)
class Shown:
    """What the page shows next. timeline: None while there is no step. selected: set once, at the select
    step. kept: what stays of the run, with its last value. loading: how far the model is, in words, while it is being
    loaded. loaded: the model, once, where this run had to wait for it. position, wait: runs before this one while it
    waits for the device, and about how many seconds, None where nobody knows.
    """

    stage: Snapshot
    timeline: base.Figure | None = None
    selected: Masks | None = None
    kept: Kept | None = None
    over: bool = False
    loading: str = ""
    loaded: Loaded | None = None
    position: int = 0
    wait: float | None = None


def shown_as(asked: Request, state: str, message: str, **more: Any) -> Shown:
    """The stage without a step: masks, and a sentence."""
    value = before_run(
        asked.lanes,
        asked.gen_length,
        asked.sampler.block_length,
        total=asked.steps,
        at_most=asked.at_most,
        state=state,
        message=message,
    )
    return Shown(value, **more)
