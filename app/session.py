"""One race from request to last snapshot, as an asynchronous stream of plain values. Knows the desk, not
gradio.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app import charts, limits
from app.canvas import Canvas
from app.desk import CLOSING, Desk, Loaded, Loading, Places, Visit, error_sentence
from app.engine import Wanted, line_up
from app.kept import Kept, Selected, fits, keep, probe_steps
from app.peak import Peak
from app.race import Lane, LineFull, Race, Ticket, Update
from app.request import OWN_TEXT, Request
from app.server.journal import Ending, RunReport, Via
from app.stage import BASELINE, DENSE, SPARSE, LaneView, Snapshot, Stage, mode, opening
from sparsed.launch import TeamLost
from sparsed.turns import seat

WAIT_SECONDS = 0.25
LOADING_SECONDS = 0.1
EXPECTED = (ValueError, OSError, RuntimeError, ImportError, MemoryError)
# What runs a lane, in words. torch SDPA: scaled_dot_product_attention, whichever kernel it picks.
BACKEND_WORDS = {
    "sdpa": "torch SDPA",
    "cudnn": "cuDNN",
    "flash": "FlashAttention-2",
    "flash4": "flash-attn-4",
    "flex": "FlexAttention",
    "triton": "Triton",
}
STOPPED = "Stopped. What was written so far stays here."
BUSY = "A run of this page is going on: stop it, or wait for its end."
OWN_QUESTION = "your own text"
NOT_KEPT = "This run could not be recorded: it cannot be played again."
WARMING_UP = "Warming up: kernels are compiled and chosen for this length. No clock runs yet."


@dataclass(frozen=True)
class Shown:
    """What the page shows next. timeline: None while there is no step. selected: set once, at the select
    step. kept: what stays of the run, with its last value. loading: how far the model is, in words, while it is being
    loaded. loaded: the model, once, where this run had to wait for it. position, wait: runs before this one while it
    waits for the device, and about how many seconds, None where nobody knows.
    """

    stage: Snapshot
    timeline: charts.Figure | None = None
    selected: Selected | None = None
    kept: Kept | None = None
    over: bool = False
    loading: str = ""
    loaded: Loaded | None = None
    position: int = 0
    wait: float | None = None


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


@dataclass(frozen=True)
class Material:
    """The prompt of a request, and what it will cost. gold: None for a visitor's own text. prompt: what the engine
    built, or that text. most_seconds: a watchdog ends the race then. places: where the lanes run.
    """

    text: str
    question: str
    tokens: int
    gold: str | None
    prompt: Any
    asked: Request
    estimated: limits.Estimate | None
    refused: str | None
    most_seconds: float
    places: Places


def gather(desk: Desk, asked: Request, loaded: Loaded) -> Material:
    """Builds the prompt and checks it against the limits of this machine. Raises what the engine raises."""
    if asked.kind == OWN_TEXT:
        prompt: Any = asked.text
        text, question, gold = asked.text, "", None
        tokens = desk.engine.count(loaded.model, text)
    else:
        prompt = desk.prompt(loaded, asked.length, asked.kind, asked.question)
        text, question, gold, tokens = prompt.text, prompt.question, prompt.answer, prompt.tokens
    asked = asked.resolve(tokens)
    places = desk.places(loaded, asked, tokens)
    estimated = desk.estimate(loaded, asked, tokens, places)
    room = desk.room(loaded)
    refused = limits.refusal(estimated, room, length=tokens + asked.gen_length, steps=asked.steps)
    most = desk.limits.announced(estimated)
    return Material(text, question, tokens, gold, prompt, asked, estimated, refused, most, places)


def notes(desk: Desk, material: Material, loaded: Loaded) -> list[str]:
    """What the engine says before the first step. Raises ValueError for what it refuses."""
    asked = material.asked
    run = desk.engine.denoise(loaded.model, material.text, asked.sampler, asked.attention, asked.backend)
    run.close()
    return list(run.notes)


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
    account = _Account(desk, asked, via)
    if measured is None and visit.running:
        # A page has buttons for that; two tabs of one session, or a program, may not look at them.
        yield _shown(asked, "refused", BUSY, over=True)
        return
    try:
        desk.enter(visit)
    except ValueError as error:
        account.end("refused", error)
        account.close()
        yield _shown(asked, "refused", str(error), over=True)
        return
    if measured is None:
        visit.running = True
    ticket: Ticket | None = None
    race: Race | None = None
    handed_on = False
    release = desk.hold(asked.model)
    try:
        job = desk.loading(asked.model)
        waited = not job.over
        async for message, new in follow(job):
            if visit.stopping:
                said = f"Stopped waiting. {job.label} goes on loading; press Run to wait for it again."
                yield _shown(asked, "stopped", _stopped(desk, said), over=True)
                return
            if new:
                yield _shown(asked, "loading", f"{job.label} · {message}", loading=message)
        loaded = job.result()
        yield _shown(asked, "preparing", "Preparing the prompt …", loaded=loaded if waited else None)
        material = await asyncio.to_thread(gather, desk, asked, loaded)
        asked = material.asked
        account.prepared(material)
        if measured is not None:
            measured.tokens = material.tokens
        if material.refused:
            account.end("refused")
            yield _shown(asked, "refused", material.refused, over=True)
            return
        expected = None if material.estimated is None else material.estimated.seconds
        ticket = desk.queue.join(expected, visit.owner)
        account.joined()
        told = ""
        while (position := ticket.position) and not visit.stopping:
            line = _in_line(position, ticket.wait)
            if line != told:
                yield _shown(asked, "waiting", line, position=position, wait=ticket.wait)
                told = line
            await asyncio.sleep(WAIT_SECONDS)
        if visit.stopping:
            yield _shown(asked, "stopped", _stopped(desk, "Stopped before it began."), over=True)
            return
        account.began()
        place = ticket

        def free() -> None:
            if measured is not None:
                measured.end()
            place.leave()
            release()

        if not loaded.place.startswith("CPU"):
            yield _shown(asked, "preparing", WARMING_UP)
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
        yield _shown(asked, "refused" if _is_said(error) else "failed", error_sentence(error), over=True)
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
    when = "" if wait is None else f", {limits.about(wait)}" if wait >= 1 else ", a moment"
    return f"Waiting for the device: {runs} before yours{when}."


def _stopped(desk: Desk, said: str) -> str:
    """Why a run ended that was told to: its visitor wanted it, or the server is being stopped."""
    return f"{CLOSING} What was written so far stays here." if desk.closing else said


class _Account:
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
        lanes = {lane["key"]: lane for lane in stage["lanes"]} if stage is not None else {}
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
                dense_seconds=lanes[DENSE]["seconds"] if DENSE in lanes else 0.0,
                sparse_seconds=lanes[SPARSE]["seconds"] if SPARSE in lanes else 0.0,
                speedup=None if gain is None else gain["ratio"],
                right=tuple(lane["right"] for lane in lanes.values()),
                error=self._error,
                prompt=material.text if material is not None else asked.text,
            )
        )


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


def _shown(asked: Request, state: str, message: str, **more: Any) -> Shown:
    """The stage without a step: masks, and a sentence."""
    value = opening(
        asked.gen_length,
        asked.sampler.block_length or asked.gen_length,
        total=asked.steps,
        switch_step=asked.switch_step,
        at_most=asked.at_most,
        state=state,
        message=message,
        baseline=asked.third,
    )
    return Shown(value, **more)


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
    sparse = asked.attention
    probes: tuple[int, ...] = ()
    if measured is None:
        length, block = material.tokens + asked.gen_length, sparse.block_size or 128
        sparse = replace(sparse, keep_importance=fits(loaded.shape.layers, loaded.shape.heads, length, block))
        probes = tuple(probe_steps(asked.steps, asked.switch_step)) if asked.track else ()
    wanted = [Wanted(DENSE, None), Wanted(SPARSE, sparse, probes)]
    if asked.baseline is not None:
        wanted.append(Wanted(BASELINE, asked.baseline))
    first = desk.queue.next_turn()
    seconds = desk.limits.max_seconds if material.estimated is None else material.estimated.seconds
    try:
        lent = engine.lend(model, material.text, asked.sampler, wanted, asked.backend, first, seconds)
        if measured is not None and lent is None:
            # The memory of a device that is elsewhere is not known here.
            measured.begin(copies)
        runs = lent or line_up(engine, copies, material.text, asked.sampler, wanted, asked.backend)
    except BaseException:
        if measured is not None:
            measured.end()
        raise
    end_ids = frozenset(model.end_ids)
    lanes = [
        LaneView(
            key,
            Canvas(asked.gen_length, lambda tokens: engine.decode_tokens(model, tokens), end_ids),
            total=run.total,
            switch_step=run.switch_step,
            at_most=asked.at_most,
            backend=BACKEND_WORDS.get(run.backend, run.backend),
            parallel=asked.sampler.block_length or asked.gen_length,
            pattern=asked.third,
        )
        for key, run in runs.items()
    ]
    stage = Stage(
        lanes,
        run_id=desk.next_run(),
        end_ids=end_ids,
        gold=material.gold,
        judge=engine.verdict,
        read=lambda tokens: engine.read_answer(model, tokens),
        notes=runs[SPARSE].notes,
        question=material.question or OWN_QUESTION,
        mode=mode(len(lanes), len(copies), material.places.why),
    )
    lines = [Lane(key, run, seat(number, len(copies))) for number, (key, run) in enumerate(runs.items())]
    race = Race(lines, first=first, on_end=on_end, most_seconds=material.most_seconds)
    return _Started(race, stage, runs, material.prompt)


async def _stream(
    desk: Desk, started: _Started, material: Material, visit: Visit | None, account: _Account
) -> AsyncIterator[Shown]:
    """visit: who looks at the run, at its pattern from the select step on; None if nobody does."""
    stage, sparse = started.stage, started.stage.lanes[SPARSE]
    run = started.runs[SPARSE]
    found = False
    async for update in started.race.updates():
        new: Selected | None = None
        if not found and visit is not None and run.pattern is not None:
            found = True
            new = visit.selected = Selected(run.pattern)
        stage.message = _message(desk, material, update, stage.lanes.get(update.error_lane or ""))
        if update.error is not None:
            desk.journal.error(update.error, lane=update.error_lane)
        snapshot = stage.apply(update)
        account.seen(snapshot)
        if update.state != "running":
            account.end(update.state, update.error)
            asked = material.asked
            alone = [seconds / asked.rows for seconds in stage.lanes[DENSE].times]
            desk.learn(asked.model, material.tokens + asked.gen_length, alone)
        figure = charts.timeline(
            {key: lane.times for key, lane in stage.lanes.items()},
            {key: lane.phases for key, lane in stage.lanes.items()},
            total=sparse.total,
            switch_step=sparse.switch_step,
            at_most=sparse.at_most,
            labels={key: lane.label for key, lane in stage.lanes.items()},
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
                desk.remember(visit, kept)
        yield Shown(snapshot, figure, new, kept, over)


def _message(desk: Desk, material: Material, update: Update, lane: LaneView | None) -> str:
    if update.error is not None:
        return error_sentence(update.error, None if lane is None else lane.label)
    if update.state == "overdue":
        expected = material.estimated
        took = "" if expected is None else f" ({limits.about(expected.seconds)} were expected)"
        return (
            f"Ended: it took longer than the {limits.span(material.most_seconds)} that a run like this may take{took}. "
            "What was written so far stays here. Choose a shorter prompt length, or fewer steps."
        )
    return _stopped(desk, STOPPED) if update.state == "stopped" else ""
