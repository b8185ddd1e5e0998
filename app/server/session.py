"""One race from request to record, as an asynchronous stream of plain values. Knows the desk, not gradio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from typing import Literal

from app.engine import cost
from app.engine.interface import RunLike
from app.engine.sentences import error_sentence
from app.finished.run import Kept, keep
from app.race.checks import as_messages
from app.race.lane_view import LaneView
from app.race.line import LineFull, Ticket
from app.race.race import Race, Update
from app.race.request import Request
from app.race.snapshot import Stage
from app.server.account import Account
from app.server.desk import CLOSING, Desk
from app.server.journal import Via
from app.server.material import Material, afterwards, gather
from app.server.models import Loaded, Loading
from app.server.observer import Observer, Visitor
from app.server.shown import Shown, shown_as
from app.server.start import Started, start
from app.server.visits import Visit
from app.texts import NOT_KEPT, STOPPED
from sparsed.attention.masks import Masks
from sparsed.parallel.launch import TeamLost

WAIT_SECONDS = 0.25
LOADING_SECONDS = 0.1
# Of a run that selects again and again a newer pattern is shown so much after the one before, at the earliest.
SELECTED_SECONDS = 1.0
BUSY = "A run of this page is going on: stop it, or wait for its end."
PREPARING = "Preparing the prompt …"
WARMING_UP = "Warming up: kernels are compiled and chosen for this length. No clock runs yet."
VISITOR = Visitor()


async def perform(
    desk: Desk, visit: Visit, asked: Request, observer: Observer = VISITOR, *, via: Via = "page"
) -> AsyncGenerator[Shown, None]:
    """Runs the race for `visit`. Ends within one step after `visit.stop()`; closing the stream stops the race
    too. However it ends, one line of the journal says so.

    observer: who it is made for; where that keeps nothing, the caller keeps `visit.running`. via: who asked for it, for
    the journal.
    """
    if observer.keeps and visit.running:
        # A page has buttons for that; two tabs of one session, or a program, may not look at them.
        yield shown_as(asked, "refused", BUSY, over=True)
        return
    session = _Session(desk, visit, asked, observer, via)
    try:
        async for shown in session.stream():
            yield shown
    except _Over as over:
        session.account.end(over.state)
        yield shown_as(session.asked, over.state, over.message, over=True)
    # Whatever it is: the visitor gets a sentence, and whoever runs the page the whole story.
    except Exception as error:  # noqa: BLE001
        # Is it a sentence for whoever asked, about what was asked for?
        said = isinstance(error, ValueError)
        session.account.end("full" if isinstance(error, LineFull) else "refused" if said else "failed", error)
        if not said:
            desk.journal.error(error)
        yield shown_as(session.asked, "refused" if said else "failed", error_sentence(error), over=True)
    finally:
        session.close()


async def follow(job: Loading) -> AsyncIterator[tuple[str, bool]]:
    """(how far a loading is, in words; whether that is new), ten times a second; ends with the loading."""
    before = ""
    while not job.over:
        message = job.message
        yield message, message != before
        before = message
        await asyncio.sleep(LOADING_SECONDS)


class _Over(Exception):
    """It is over before it began: nobody wants it any more, or it may not be. message: a sentence for the visitor."""

    def __init__(self, state: Literal["stopped", "refused"], message: str) -> None:
        super().__init__(message)
        self.state, self.message = state, message


class _Session:
    """Owns one run: the hold on its model, its place in the line, its race and what is written of it. `close` gives all
    of it back; a race that has begun gives the device and the model back itself, after its last step.
    """

    def __init__(self, desk: Desk, visit: Visit, asked: Request, observer: Observer, via: Via) -> None:
        self.desk, self.visit, self.observer = desk, visit, observer
        self.asked = asked  # resolved, once the prompt is made
        self.account = Account(asked, via)
        self._ticket: Ticket | None = None
        self._race: Race | None = None
        self._left = False  # a thread still lines the lanes up, and gives everything back when it is done
        if observer.keeps:
            visit.running = True
        self._release = desk.models.hold(asked.model)

    def close(self) -> None:
        """The stream is over, or nobody listens any more."""
        if self.observer.keeps:
            self.visit.running = self.visit.stopping = False
        self.visit.race = None  # it holds the model
        if self._race is not None:
            self._race.stop()
        elif not self._left:
            self._free()
        self.desk.exit(self.visit)
        self.desk.report(self.account.report())

    def _free(self) -> None:
        """The device and the model are not needed any more. Any number of times, from any thread."""
        self.observer.end()
        if self._ticket is not None:
            self._ticket.leave()
        self._release()

    async def stream(self) -> AsyncIterator[Shown]:
        """Everything that there is to see: the loading, the waiting, the race. Raises what ends it before its time."""
        try:
            self.desk.enter(self.visit)
        except ValueError as error:
            raise _Over("refused", str(error)) from error
        job = self.desk.models.loading(self.asked.model)
        waited = not job.over
        async for message, new in follow(job):
            self._check(f"Stopped waiting. {job.label} goes on loading; press Run to wait for it again.")
            if new:
                yield shown_as(self.asked, "loading", f"{job.label} · {message}", loading=message)
        loaded = job.result()
        yield shown_as(self.asked, "preparing", PREPARING, loaded=loaded if waited else None)
        material = await self._prepare(loaded)
        async for shown in self._wait(material):
            yield shown
        self._check("Stopped before it began.")
        self.account.began = time.monotonic()
        if not loaded.place.startswith("CPU"):
            yield shown_as(self.asked, "preparing", WARMING_UP)
        started = await self._line_up(loaded, material)
        async for shown in self._run(started, material, loaded):
            yield shown

    def _check(self, said: str) -> None:
        """Raises _Over with this sentence where a Stop was pressed."""
        if self.visit.stopping:
            raise _Over("stopped", self._stopped(said))

    def _stopped(self, said: str) -> str:
        """Why a run ended that was told to: its visitor wanted it, or the server is being stopped."""
        return f"{CLOSING} What was written so far stays here." if self.desk.closing else said

    async def _prepare(self, loaded: Loaded) -> Material:
        material = await asyncio.to_thread(gather, self.desk, self.asked, loaded)
        self.asked = material.asked
        self.account.material = material
        self.observer.prepared(material.tokens)
        if material.refused:
            raise _Over("refused", material.refused)
        return material

    async def _wait(self, material: Material) -> AsyncIterator[Shown]:
        """In line for the device, until it is this run's, or a Stop is pressed."""
        ticket = self._ticket = self.desk.queue.join(material.expected, self.visit.owner)
        self.account.joined = time.monotonic()
        told = ""
        while (position := ticket.position) and not self.visit.stopping:
            line = _in_line(position, ticket.wait)
            if line != told:
                yield shown_as(self.asked, "waiting", line, position=position, wait=ticket.wait)
                told = line
            await asyncio.sleep(WAIT_SECONDS)

    async def _line_up(self, loaded: Loaded, material: Material) -> Started:
        """The race, once its lanes are warm. Raises TeamLost where what they wait for is gone."""
        starting = asyncio.create_task(
            asyncio.to_thread(start, self.desk, loaded, material, self.observer, self._free)
        )
        try:
            while not (await asyncio.wait({starting}, timeout=WAIT_SECONDS))[0]:
                if self.desk.lost:
                    raise TeamLost(self.desk.lost)
        except asyncio.CancelledError:
            # The tab is closed, but the thread still warms the device up: the place is free when it is done.
            self._left = True
            starting.add_done_callback(self._abandon)
            raise
        started = starting.result()
        self.visit.race = self._race = started.race
        self.desk.watch(started.race)
        if self.visit.stopping:
            started.race.stop()
        return started

    def _abandon(self, done: asyncio.Task[Started]) -> None:
        """Lets go of a race that nobody waits for any more."""
        if not done.cancelled() and done.exception() is None:
            done.result().race.stop()
        self._free()

    async def _run(self, started: Started, material: Material, loaded: Loaded) -> AsyncIterator[Shown]:
        """The race itself, and the record that it leaves."""
        stage, run = started.stage, started.runs[self.asked.headline.key]
        looks = self.observer.wants_pattern
        began = time.monotonic()
        made, packed = 0, 0.0  # the newest step shown that selects, counted from 1; when a pattern was packed
        if looks:
            self.visit.selected, self.visit.selected_in = None, 0
        async for update in started.race.updates():
            selected: Masks | None = None
            for lane_step in update.steps:
                if lane_step.lane == self.asked.headline.key and lane_step.step.phase == "select":
                    made = lane_step.step.index + 1
            if looks and made > self.visit.selected_in and time.monotonic() - packed >= SELECTED_SECONDS:
                pattern = run.pattern
                # A run goes on meanwhile, and notes a step before its pattern: this is the one of the step shown, or
                # there is a newer one, which an update to come will show.
                if pattern is not None and made == _last_selecting(run):
                    selected = self.visit.selected = await asyncio.to_thread(Masks.of, pattern)
                    stage.selected = self.visit.selected_in = made
                    packed = time.monotonic()
            stage.message = self._message(update, material, stage.lanes.get(update.error_lane or ""))
            if update.error is not None:
                self.desk.journal.error(update.error, lane=update.error_lane)
            snapshot = self.account.stage = stage.apply(update)
            kept = None
            if update.state != "running":
                self.account.end(update.state, update.error)
                self._learn(stage, material)
                times = {key: lane.times for key, lane in stage.lanes.items()}
                self.visit.measured.learn(loaded, material.asked, material.tokens, times, time.monotonic() - began)
                try:
                    kept = await self._record(started, material)
                # A race that is over stays what it was, whatever happens to its record.
                except Exception as error:  # noqa: BLE001
                    self.desk.journal.error(error)
                    snapshot["notes"].append(NOT_KEPT)
                snapshot["notes"] += await asyncio.to_thread(afterwards, self.desk, material, loaded)
            yield Shown(snapshot, stage.step_times(), selected, kept, update.state != "running")

    def _learn(self, stage: Stage, material: Material) -> None:
        """What the race shows of this machine's speed."""
        if stage.reference is not None:
            alone = [seconds / self.asked.rows for seconds in stage.reference.times]
            self.desk.speed.learn(self.asked.model, material.tokens + self.asked.gen_length, alone)

    async def _record(self, started: Started, material: Material) -> Kept | None:
        """The record of the race, which is its visit's last one now; None where none is kept, or no step was made."""
        if not self.observer.keeps:
            return None
        kept = await asyncio.to_thread(self._keep, started, material)
        if kept is not None:
            self.desk.visits.remember(self.visit, kept)
        return kept

    def _keep(self, started: Started, material: Material) -> Kept | None:
        record, asked = self.desk.engine.record, material.asked
        history = as_messages(asked.history)
        told = partial(record, system=asked.system, chat=asked.chat, history=history)
        return keep(started.runs, material.prompt, told)

    def _message(self, update: Update, material: Material, lane: LaneView | None) -> str:
        """What the page says below the lanes. lane: the one with the error."""
        if update.error is not None:
            return error_sentence(update.error, None if lane is None else lane.label)
        if update.state == "overdue":
            took = "" if material.expected is None else f" ({cost.about(material.expected)} were expected)"
            return (
                f"Ended: it took longer than the {cost.span(material.most_seconds)} that a run like this may take"
                f"{took}. What was written so far stays here. Choose a shorter prompt length, or fewer steps."
            )
        return self._stopped(STOPPED) if update.state == "stopped" else ""


def _last_selecting(run: RunLike) -> int:
    """The last step that selected, counted from 1; 0 if none did."""
    return next((step.index + 1 for step in reversed(run.steps) if step.phase == "select"), 0)


def _in_line(position: int, wait: float | None) -> str:
    """What is said to whoever waits for the device."""
    runs = "one run is" if position == 1 else f"{position} runs are"
    when = "" if wait is None else f", {cost.about(wait)}" if wait >= 1 else ", a moment"
    return f"Waiting for the device: {runs} before yours{when}."
