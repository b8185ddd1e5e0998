"""Further questions of the kind and length that was run, one race each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from app.engine.cost import about
from app.lengths.comparison import label
from app.lengths.table import is_shown
from app.race.fields import MAX_NUMBER, OWN_TEXT
from app.race.request import Request
from app.series.shipped import found
from app.series.tally import Answered, answered, rows
from app.server.desk import Desk
from app.server.observer import Counted
from app.server.several import Several
from app.server.visits import Visit

QUESTIONS = 20
# A value of the view; see `_Series.value`.
Series = dict[str, Any]

NOT_RUN = "Run one of the questions first; more like it can be asked then."
OWN_HAS_NONE = "Nobody knows the right answers to a text of your own: run one of the questions."
MINI_ALONE = "These questions are made for the model that is bundled: run one with it."
BUSY = "A run of this page is going on: stop it, or wait for its end."
# While a race goes on, the view follows at this pace.
UPDATE_SECONDS = 0.5


def refusal(desk: Desk, asked: Request | None) -> str:
    """Why there are no further questions like this run, in a sentence; "" where there are. asked: the last run's."""
    if asked is None:
        return NOT_RUN
    if asked.kind == OWN_TEXT:
        return OWN_HAS_NONE
    return "" if desk.engine.models()[asked.model].bundled else MINI_ALONE


def expected(desk: Desk, visit: Visit, asked: Request) -> float | None:
    """Seconds that one more such question takes here, by what the visit's runs took; None where nobody knows."""
    loaded = desk.models.loaded(asked.model)
    if loaded is None:
        return None
    tokens = desk.engine.lengths()[asked.length]
    resolved = asked.resolve(tokens)
    estimated = visit.measured.applied(desk.speed.estimate(loaded, resolved, tokens), loaded, resolved, tokens)
    return None if estimated is None else estimated.seconds


def outlook(desk: Desk, visit: Visit, asked: Request) -> str:
    """How long all of them take here, in words; "" where nobody knows."""
    seconds = expected(desk, visit, asked)
    return "" if seconds is None else about(QUESTIONS * seconds) + (" at most" if asked.at_most else "")


async def ask(desk: Desk, visit: Visit, asked: Request | None) -> AsyncGenerator[Series, None]:
    """Races the lanes of `asked`, which was run, over the QUESTIONS questions after its own, and yields the count after
    every change.

    A question that is refused or fails ends the series, and so does `visit.stop()`, within one step; the questions
    that every lane has answered stay counted. The last value is the only one whose state is not "running".
    """
    why = BUSY if visit.running else refusal(desk, asked)
    if why or asked is None:
        yield nothing("refused", why)
        return
    series = _Series(desk, visit, asked)
    with Several(desk, visit, asked.model, via="series") as several:
        yield series.value("running", f"{QUESTIONS} questions are asked, one after the other.")
        for number in range(1, QUESTIONS + 1):
            if several.over:
                break
            question = replace(asked, question=(asked.question + number) % (MAX_NUMBER + 1))
            series.begin()
            next_value = 0.0
            async with contextlib.aclosing(several.race(question, Counted())) as race:
                async for shown in race:
                    told = series.waiting
                    series.take(shown.stage)
                    if not shown.over and (series.waiting != told or time.monotonic() >= next_value):
                        yield series.value("running")
                        next_value = time.monotonic() + UPDATE_SECONDS
            if series.failed:
                break
            yield series.value("running")
        if visit.stopping:
            yield series.value("stopped", f"Stopped. {series.counted} counted; they stay here.")
        elif series.failed:
            yield series.value("failed", f"{series.failed} {series.counted} counted.")
        else:
            yield series.value("done", f"Done: {series.counted}, {_lanes(len(asked.lanes))}.")


def nothing(state: str = "idle", message: str = "") -> Series:
    """The value before the first series, or of one that cannot be made."""
    return {"state": state, "message": message, "label": "", "progress": 0.0, "progress_text": "", "lanes": []}


class _Series:
    """How far one series is."""

    def __init__(self, desk: Desk, visit: Visit, asked: Request) -> None:
        self._desk, self._visit, self._asked = desk, visit, asked
        kind = desk.engine.kinds().get(asked.kind, asked.kind)
        self._label = " · ".join((kind, is_shown(asked.length), label(desk, asked)))
        self._shipped = found(asked, desk.engine.lengths()[asked.length]) or {}
        self._questions: list[Answered] = []
        self._message = ""
        self._share = 0.0  # of the question that is being asked, 0 … 1
        self.waiting = ""  # why it is not yet, in a sentence
        self.failed = ""  # why a question could not be asked, in a sentence

    @property
    def counted(self) -> str:
        """How many questions count, in words."""
        count = len(self._questions)
        return "1 question" if count == 1 else f"{count} questions"

    def begin(self) -> None:
        """The next question."""
        self._share, self.waiting = 0.0, ""

    def take(self, stage: dict[str, Any]) -> None:
        """What a snapshot of this question's race says."""
        state = stage["state"]
        self._share = sum(lane["progress"] for lane in stage["lanes"]) / len(stage["lanes"])
        self.waiting = stage["message"] if state in ("loading", "waiting") else ""
        # One that took too long was stopped by the server.
        if state in ("refused", "failed") or state == "stopped" and not self._visit.stopping:
            self.failed = stage["message"]
        if (one := answered(stage)) is not None:
            self._questions.append(one)
            self._share = 0.0

    def _progress_text(self, running: bool) -> str:
        done = len(self._questions)
        parts = [f"{done} of {QUESTIONS} questions"]
        if running and done < QUESTIONS:
            if self.waiting:
                parts.append(self.waiting.rstrip("."))
            seconds = expected(self._desk, self._visit, self._asked)
            if seconds is not None:
                parts.append(f"{about((QUESTIONS - done - self._share) * seconds)} left")
        return " · ".join(parts)

    def value(self, state: str, message: str | None = None) -> Series:
        """All of it as JSON, a new value each time.

        state: "running", "done", "stopped", "refused" or "failed". message: changes at turning points only. progress:
        0 … 1. lanes: see `app.series.tally.rows`; and shipped: right answers in the evaluation that comes with the app
        and their interval, in words (`app.series.shipped`), or None.
        """
        if message is not None:
            self._message = message
        share = self._share if state == "running" else 0.0
        return {
            "state": state,
            "message": self._message,
            "label": self._label,
            "progress": round((len(self._questions) + share) / QUESTIONS, 4),
            "progress_text": self._progress_text(state == "running"),
            "lanes": [
                {**row, "shipped": self._shipped.get(row["key"])} for row in rows(self._asked.lanes, self._questions)
            ],
        }


def _lanes(count: int) -> str:
    return "both lanes" if count == 2 else f"all {count} lanes"
