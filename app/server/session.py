"""One race from request to last snapshot, as an asynchronous stream of plain values. Knows the desk, not
gradio.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from app.engine import cost
from app.engine.copies import line_up
from app.engine.peak import Peak
from app.engine.sentences import error_sentence
from app.figures import timeline
from app.finished.run import fits, keep, probe_steps
from app.lanes import watched
from app.race.canvas import Canvas
from app.race.lane_view import LaneView
from app.race.line import LineFull, Ticket
from app.race.race import Lane, Race, Update
from app.race.request import Request
from app.race.snapshot import Stage, mode
from app.server.account import Account
from app.server.desk import CLOSING, Desk
from app.server.journal import Via
from app.server.material import BACKEND_WORDS, NOT_KEPT, Material, gather
from app.server.models import Loaded, Loading
from app.server.shown import Shown, shown_as
from app.server.visits import Visit
from sparsed.attention.masks import Masks
from sparsed.parallel.launch import TeamLost
from sparsed.turns import seat

WAIT_SECONDS = 0.25
LOADING_SECONDS = 0.1
STOPPED = "Stopped. What was written so far stays here."
BUSY = "A run of this page is going on: stop it, or wait for its end."
OWN_QUESTION = "your own text"
WARMING_UP = "Warming up: kernels are compiled and chosen for this length. No clock runs yet."


@dataclass
class Measured:
    """What a race that is one of several leaves: its numbers alone. The visit's last run, which the visitor looks at,
    stays; so does a Stop that was pressed before this race began.

    tokens: of the prompt, once it is made. peak: the memory that was needed while the device was this race's.
    """

    tokens: int | None = None
    peak: Peak | None = None

    def begin(self, copies: Sequence[Any]) -> None:
        """The devices of these copies of the model are this race's now."""
        # What the race before left behind in cycles would count as this one's.
        gc.collect()
        self.peak = Peak(*copies)
        self.peak.begin()

    def end(self) -> None:
        """It is so no longer; from any thread."""
        if self.peak is not None:
            self.peak.note()


async def follow(job: Loading) -> AsyncIterator[tuple[str, bool]]:
    """(how far a loading is, in words; whether that is new), ten times a second; ends with the loading."""
    before = ""
    while not job.over:
        message = job.message
        yield message, message != before
        before = message
        await asyncio.sleep(LOADING_SECONDS)


async def perform(
    desk: Desk, visit: Visit, asked: Request, measured: Measured | None = None, *, via: Via = "page"
) -> AsyncGenerator[Shown, None]:
    """Runs the race for `visit`. Ends within one step after `visit.stop()`; closing the stream stops the race
    too. However it ends, one line of the journal says so.

    measured: this is one race of several, whose caller keeps `visit.running`; its numbers go there, and nothing is kept
    or computed that only a look at the run needs. via: who asked for it, for the journal.
    """
    account = Account(desk, asked, via)
    if measured is None and visit.running:
        # A page has buttons for that; two tabs of one session, or a program, may not look at them.
        yield shown_as(asked, "refused", BUSY, over=True)
        return
    try:
        desk.enter(visit)
    except ValueError as error:
        account.end("refused", error)
        account.close()
        yield shown_as(asked, "refused", str(error), over=True)
        return
    if measured is None:
        visit.running = True
    ticket: Ticket | None = None
    race: Race | None = None
    handed_on = False
    release = desk.models.hold(asked.model)
    try:
        job = desk.models.loading(asked.model)
        waited = not job.over
        async for message, new in follow(job):
            if visit.stopping:
                said = f"Stopped waiting. {job.label} goes on loading; press Run to wait for it again."
                yield shown_as(asked, "stopped", _stopped(desk, said), over=True)
                return
            if new:
                yield shown_as(asked, "loading", f"{job.label} · {message}", loading=message)
        loaded = job.result()
        yield shown_as(asked, "preparing", "Preparing the prompt …", loaded=loaded if waited else None)
        material = await asyncio.to_thread(gather, desk, asked, loaded)
        asked = material.asked
        account.prepared(material)
        if measured is not None:
            measured.tokens = material.tokens
        if material.refused:
            account.end("refused")
            yield shown_as(asked, "refused", material.refused, over=True)
            return
        expected = None if material.estimated is None else material.estimated.seconds
        ticket = desk.queue.join(expected, visit.owner)
        account.joined()
        told = ""
        while (position := ticket.position) and not visit.stopping:
            line = _in_line(position, ticket.wait)
            if line != told:
                yield shown_as(asked, "waiting", line, position=position, wait=ticket.wait)
                told = line
            await asyncio.sleep(WAIT_SECONDS)
        if visit.stopping:
            yield shown_as(asked, "stopped", _stopped(desk, "Stopped before it began."), over=True)
            return
        account.began()
        place = ticket

        def free() -> None:
            if measured is not None:
                measured.end()
            place.leave()
            release()

        if not loaded.place.startswith("CPU"):
            yield shown_as(asked, "preparing", WARMING_UP)
        starting = asyncio.create_task(asyncio.to_thread(_start, desk, asked, loaded, material, free, measured))
        try:
            started = await _ready(starting, desk)
        except asyncio.CancelledError:
            # The tab is closed, but the thread still warms the device up: the place is free when it is done.
            handed_on = True
            starting.add_done_callback(lambda done: _abandon(done, free))
            raise
        visit.race = race = started.race
        desk.watch(race)
        if measured is None:
            visit.selected = None
        if visit.stopping:
            race.stop()
        async for shown in _stream(desk, started, material, visit if measured is None else None, account):
            yield shown
    # Whatever it is: the visitor gets a sentence, and whoever runs the page the whole story.
    except Exception as error:  # noqa: BLE001
        account.end("full" if isinstance(error, LineFull) else "refused" if _is_said(error) else "failed", error)
        if not _is_said(error):
            desk.journal.error(error)
        yield shown_as(asked, "refused" if _is_said(error) else "failed", error_sentence(error), over=True)
    finally:
        if measured is None:
            visit.running = visit.stopping = False
        visit.race = None  # it holds the model
        if race is not None:
            race.stop()
        elif not handed_on:
            release()
            if ticket is not None:
                ticket.leave()
        desk.exit(visit)
        account.close()


def _is_said(error: BaseException) -> bool:
    """Is it a sentence for whoever asked, about what was asked for?"""
    return isinstance(error, ValueError)


def _in_line(position: int, wait: float | None) -> str:
    """What is said to whoever waits for the device."""
    runs = "one run is" if position == 1 else f"{position} runs are"
    when = "" if wait is None else f", {cost.about(wait)}" if wait >= 1 else ", a moment"
    return f"Waiting for the device: {runs} before yours{when}."


def _stopped(desk: Desk, said: str) -> str:
    """Why a run ended that was told to: its visitor wanted it, or the server is being stopped."""
    return f"{CLOSING} What was written so far stays here." if desk.closing else said


async def _ready(starting: asyncio.Task[_Started], desk: Desk) -> _Started:
    """The race, once its lanes are lined up; or TeamLost, where what they wait for is gone."""
    while not (await asyncio.wait({starting}, timeout=WAIT_SECONDS))[0]:
        if desk.lost:
            raise TeamLost(desk.lost)
    return starting.result()


def _abandon(done: asyncio.Task[_Started], free: Callable[[], None]) -> None:
    """Lets go of a race that nobody waits for any more."""
    if not done.cancelled() and done.exception() is None:
        done.result().race.stop()
    free()


@dataclass(frozen=True)
class _Started:
    race: Race
    stage: Stage
    runs: dict[str, Any]
    prompt: Any


def _start(
    desk: Desk,
    asked: Request,
    loaded: Loaded,
    material: Material,
    on_end: Callable[[], None],
    measured: Measured | None,
) -> _Started:
    engine, model, copies = desk.engine, loaded.model, material.places.copies
    lanes = asked.lanes
    if measured is None:
        shape, length = loaded.shape, material.tokens + asked.gen_length
        kept = fits(shape.layers, shape.heads, length, asked.attention.resolve(length).block_size)
        lanes = watched(lanes, kept, probe_steps(asked.steps, asked.switch_step) if asked.track else ())
    first = desk.queue.next_turn()
    seconds = desk.speed.limits.max_seconds if material.estimated is None else material.estimated.seconds
    try:
        lent = engine.lend(model, material.text, asked.sampler, lanes, asked.backend, first, seconds)
        if measured is not None and lent is None:
            # The memory of a device that is elsewhere is not known here.
            measured.begin(copies)
        runs = lent or line_up(engine, copies, material.text, asked.sampler, lanes, asked.backend)
    except BaseException:
        if measured is not None:
            measured.end()
        raise
    end_ids = frozenset(model.end_ids)
    views = [
        LaneView(
            lane,
            Canvas(asked.gen_length, lambda tokens: engine.decode_tokens(model, tokens), end_ids),
            total=run.total,
            switch_step=run.switch_step,
            at_most=asked.at_most,
            backend=BACKEND_WORDS.get(run.backend, run.backend),
            parallel=asked.sampler.block_length,
        )
        for lane, run in zip(lanes, runs.values(), strict=True)
    ]
    stage = Stage(
        views,
        run_id=desk.next_run(),
        end_ids=end_ids,
        gold=material.gold,
        judge=engine.verdict,
        read=lambda tokens: engine.read_answer(model, tokens),
        notes=runs[asked.headline.key].notes,
        question=material.question or OWN_QUESTION,
        mode=mode(len(runs), len(copies), material.places.why),
    )
    lines = [Lane(key, run, seat(number, len(copies))) for number, (key, run) in enumerate(runs.items())]
    race = Race(lines, first=first, on_end=on_end, most_seconds=material.most_seconds)
    return _Started(race, stage, runs, material.prompt)


async def _stream(
    desk: Desk, started: _Started, material: Material, visit: Visit | None, account: Account
) -> AsyncIterator[Shown]:
    """visit: who looks at the run, at its pattern from the select step on; None if nobody does."""
    stage, large, reference = started.stage, started.stage.headline, started.stage.reference
    assert large is not None and reference is not None, "every request has both"
    run = started.runs[large.key]
    found = False
    async for update in started.race.updates():
        new: Masks | None = None
        if not found and visit is not None and run.pattern is not None:
            found = True
            new = visit.selected = await asyncio.to_thread(Masks.of, run.pattern)
        stage.message = _message(desk, material, update, stage.lanes.get(update.error_lane or ""))
        if update.error is not None:
            desk.journal.error(update.error, lane=update.error_lane)
        snapshot = stage.apply(update)
        account.seen(snapshot)
        if update.state != "running":
            account.end(update.state, update.error)
            asked = material.asked
            alone = [seconds / asked.rows for seconds in reference.times]
            desk.speed.learn(asked.model, material.tokens + asked.gen_length, alone)
        figure = timeline.timeline(
            [lane.lane for lane in stage.lanes.values()],
            {key: lane.times for key, lane in stage.lanes.items()},
            {key: lane.phases for key, lane in stage.lanes.items()},
            total=large.total,
            switch_step=large.switch_step,
            at_most=large.at_most,
        )
        over = update.state != "running"
        kept = None
        if over and visit is not None:
            try:
                kept = await asyncio.to_thread(keep, started.runs, started.prompt, desk.engine.record)
            # A race that is over stays what it was, whatever happens to its record.
            except Exception as error:  # noqa: BLE001
                desk.journal.error(error)
                snapshot["notes"].append(NOT_KEPT)
            if kept is not None:
                desk.visits.remember(visit, kept)
        yield Shown(snapshot, figure, new, kept, over)


def _message(desk: Desk, material: Material, update: Update, lane: LaneView | None) -> str:
    if update.error is not None:
        return error_sentence(update.error, None if lane is None else lane.label)
    if update.state == "overdue":
        expected = material.estimated
        took = "" if expected is None else f" ({cost.about(expected.seconds)} were expected)"
        return (
            f"Ended: it took longer than the {cost.span(material.most_seconds)} that a run like this may take{took}. "
            "What was written so far stays here. Choose a shorter prompt length, or fewer steps."
        )
    return _stopped(desk, STOPPED) if update.state == "stopped" else ""
