"""What comes out of a session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.finished.run import Kept
from app.race.lane_view import Snapshot
from app.race.request import Request
from app.race.snapshot import StepTimes, before_run
from app.server.models import Loaded
from sparsed.attention.masks import Masks


@dataclass(frozen=True)
class Shown:
    """What the page shows next."""

    stage: Snapshot
    times: StepTimes | None = None  # None before the race
    selected: Masks | None = None  # SparseD's pattern, when there is a new one to look at
    kept: Kept | None = None  # what stays of the run, with its last value
    over: bool = False  # the last value
    loading: str = ""  # how far the model is, in words, while it is being loaded
    loaded: Loaded | None = None  # the model, once, where this run had to wait for it
    position: int = 0  # runs before this one, while it waits for the device
    wait: float | None = None  # seconds until then, about; None where nobody knows


def shown_as(asked: Request, state: str, message: str, **more: Any) -> Shown:
    """The stage without a step: masks, and a sentence."""
    value = before_run(
        asked.lanes,
        asked.gen_length,
        asked.sampler.block_length,
        total=asked.steps,
        at_most=asked.at_most,
        grows=asked.sampler.grows,
        state=state,
        message=message,
    )
    return Shown(value, **more)
