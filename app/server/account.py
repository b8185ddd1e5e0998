"""The log line of one race."""

from __future__ import annotations

import time
from dataclasses import dataclass

from app.race.lane_view import Snapshot
from app.race.request import Request
from app.server.journal import Ending, RunReport, Via
from app.server.material import Material


@dataclass
class Account:
    """What the journal will say of one run. Moments are those of time.monotonic."""

    asked: Request
    via: Via
    material: Material | None = None  # once the prompt is made
    joined: float | None = None  # when it stood in line for the device
    began: float | None = None  # when the device was this run's
    stage: Snapshot | None = None  # how far it was, last
    state: Ending = "stopped"  # how it ended
    error: str = ""  # the exception's class name

    def end(self, state: Ending, error: BaseException | None = None) -> None:
        """How it ended; without a call, it was stopped."""
        self.state = state
        self.error = "" if error is None or state in ("refused", "full") else type(error).__name__

    def report(self) -> RunReport:
        """The line, now that it is over."""
        now = time.monotonic()
        began = now if self.began is None else self.began
        lanes = () if self.stage is None else self.stage["lanes"]
        gain = None if self.stage is None else self.stage["speedup"]
        return RunReport(
            run=0 if self.stage is None else self.stage["run"],
            via=self.via,
            model=self.asked.model,
            kind=self.asked.kind,
            tokens=None if self.material is None else self.material.tokens,
            gen_length=self.asked.gen_length,
            steps=self.asked.steps,
            state=self.state,
            waited=0.0 if self.joined is None else began - self.joined,
            seconds=now - began,
            lane_seconds={lane["key"]: lane["seconds"] for lane in lanes},
            speedup=None if gain is None else gain["ratio"],
            right=tuple(lane["right"] for lane in lanes),
            error=self.error,
            prompt=self.asked.text if self.material is None else self.material.text,
        )
