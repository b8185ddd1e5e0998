"""The log line of one race."""

from __future__ import annotations

import time

from app.race.lane_view import Snapshot
from app.race.request import Request
from app.server.desk import Desk
from app.server.journal import Ending, RunReport, Via
from app.server.material import Material


class Account:
    """What the journal will say of one run."""

    def __init__(self, desk: Desk, asked: Request, via: Via) -> None:
        self._desk, self._asked, self._via = desk, asked, via
        self._since: float | None = None
        self._began: float | None = None
        self._material: Material | None = None
        self._run = 0
        self._state: Ending = "stopped"
        self._error = ""
        self._stage: Snapshot | None = None

    def prepared(self, material: Material) -> None:
        """What it is about is known."""
        self._material = material

    def seen(self, stage: Snapshot) -> None:
        """How far it is."""
        self._stage = stage

    def joined(self) -> None:
        """It stands in line for the device."""
        self._since = time.monotonic()

    def began(self) -> None:
        """The device is this run's now."""
        self._began = time.monotonic()

    def end(self, state: Ending, error: BaseException | None = None) -> None:
        """How it ended; without a call, it was stopped."""
        self._state = state
        self._error = "" if error is None or state in ("refused", "full") else type(error).__name__

    def close(self) -> None:
        """Writes the line."""
        now = time.monotonic()
        asked, material, stage = self._asked, self._material, self._stage
        lanes = stage["lanes"] if stage is not None else ()
        began = self._began
        gain = stage["speedup"] if stage is not None else None
        self._desk.report(
            RunReport(
                run=stage["run"] if stage is not None else 0,
                via=self._via,
                model=asked.model,
                kind=asked.kind,
                tokens=None if material is None else material.tokens,
                gen_length=asked.gen_length,
                steps=asked.steps,
                state=self._state,
                waited=0.0 if self._since is None else (began if began is not None else now) - self._since,
                seconds=0.0 if began is None else now - began,
                lane_seconds={lane["key"]: lane["seconds"] for lane in lanes},
                speedup=None if gain is None else gain["ratio"],
                right=tuple(lane["right"] for lane in lanes),
                error=self._error,
                prompt=material.text if material is not None else asked.text,
            )
        )
