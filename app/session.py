"""One race from request to last snapshot, as an asynchronous stream of plain values. Knows the desk, not
gradio.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app import charts, limits
from app.canvas import Canvas
from app.desk import Desk, Loaded, Loading, Visit, error_sentence, log_error
from app.kept import Kept, Selected, fits, probe_steps
from app.peak import Peak
from app.race import Lane, Race, Ticket
from app.request import OWN_TEXT, Request
from app.stage import BASELINE, DENSE, SPARSE, LaneView, Snapshot, Stage, opening

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
OWN_QUESTION = "your own text"
WARMING_UP = "Warming up: kernels are compiled and chosen for this length. No clock runs yet."


@dataclass(frozen=True)
class Shown:
    """What the page shows next. timeline: None while there is no step. selected: set once, at the select
    step. kept: what stays of the run, with its last value. loading: how far the model is, in words, while it is being
    loaded. loaded: the model, once, where this run had to wait for it.
    """

    stage: Snapshot
    timeline: charts.Figure | None = None
    selected: Selected | None = None
    kept: Kept | None = None
    over: bool = False
    loading: str = ""
    loaded: Loaded | None = None


@dataclass
class Measured:
    """What a race that is one of several leaves: its numbers alone. The visit's last run, which the visitor looks at,
    stays; so does a Stop that was pressed before this race began.

    tokens: of the prompt, once it is made. peak: the memory that was needed while the device was this race's.
    """

    tokens: int | None = None
    peak: Peak | None = None

    def begin(self, model: Any) -> None:
        """The device is this race's now."""
        # What the race before left behind in cycles would count as this one's.
        gc.collect()
        self.peak = Peak(model)
        self.peak.begin()

    def end(self) -> None:
        """It is so no longer; from any thread."""
        if self.peak is not None:
            self.peak.note()


@dataclass(frozen=True)
class Material:
    """The prompt of a request, and what it will cost. gold: None for a visitor's own text. prompt: what the engine
    built, or that text.
    """

    text: str
    question: str
    tokens: int
    gold: str | None
    prompt: Any
    asked: Request
    estimated: limits.Estimate | None
    refused: str | None


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
    estimated = desk.estimate(loaded, asked, tokens)
    room = desk.room(loaded)
    refused = limits.refusal(estimated, room, length=tokens + asked.gen_length, steps=asked.steps)
    return Material(text, question, tokens, gold, prompt, asked, estimated, refused)


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
    desk: Desk, visit: Visit, asked: Request, measured: Measured | None = None
) -> AsyncGenerator[Shown, None]:
    """Runs the race for `visit`. Ends within one step after `visit.stop()`; closing the stream stops the race
    too.

    measured: this is one race of several, whose caller keeps `visit.running`; its numbers go there, and nothing is kept
    or computed that only a look at the run needs.
    """
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
                yield _shown(asked, "stopped", said, over=True)
                return
            if new:
                yield _shown(asked, "loading", f"{job.label} · {message}", loading=message)
        loaded = job.result()
        yield _shown(asked, "preparing", "Preparing the prompt …", loaded=loaded if waited else None)
        material = await asyncio.to_thread(gather, desk, asked, loaded)
        asked = material.asked
        if measured is not None:
            measured.tokens = material.tokens
        if material.refused:
            yield _shown(asked, "refused", material.refused, over=True)
            return
        ticket = desk.queue.join()
        waiting = 0
        while (position := ticket.position) and not visit.stopping:
            if position != waiting:
                runs = "one run is" if position == 1 else f"{position} runs are"
                yield _shown(asked, "waiting", f"Waiting for the device: {runs} before yours.")
                waiting = position
            await asyncio.sleep(WAIT_SECONDS)
        if visit.stopping:
            yield _shown(asked, "stopped", "Stopped before it began.", over=True)
            return
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
            started = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The tab is closed, but the thread still warms the device up: the place is free when it is done.
            handed_on = True
            starting.add_done_callback(lambda done: _abandon(done, free))
            raise
        visit.race = race = started.race
        if measured is None:
            visit.selected = None
        if visit.stopping:
            race.stop()
        async for shown in _stream(desk, started, visit if measured is None else None):
            yield shown
    except EXPECTED as error:
        if not isinstance(error, ValueError):
            log_error(error)
        state = "refused" if isinstance(error, ValueError) else "failed"
        yield _shown(asked, state, error_sentence(error), over=True)
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
    engine, model = desk.engine, loaded.model
    runs: dict[str, Any] = {}
    sparse = asked.attention
    probes: Sequence[int] = ()
    if measured is not None:
        measured.begin(model)
    else:
        length, block = material.tokens + asked.gen_length, sparse.block_size or 128
        sparse = replace(sparse, keep_importance=fits(loaded.shape.layers, loaded.shape.heads, length, block))
        probes = probe_steps(asked.steps, asked.switch_step) if asked.track else ()
    wanted = [(DENSE, None, ()), (SPARSE, sparse, probes)]
    if asked.baseline is not None:
        wanted.append((BASELINE, asked.baseline, ()))
    try:
        for key, attention, fresh in wanted:
            runs[key] = engine.denoise(model, material.text, asked.sampler, attention, asked.backend, fresh)
            # Kernels that compile or tune themselves do it here, before the clocks start (nothing on a CPU).
            warm_up = getattr(runs[key], "warm_up", None)
            if warm_up is not None:
                warm_up()
    except BaseException:
        for run in runs.values():
            run.close()
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
    )
    race = Race([Lane(key, run) for key, run in runs.items()], first=desk.queue.next_turn(), on_end=on_end)
    return _Started(race, stage, runs, material.prompt)


async def _stream(desk: Desk, started: _Started, visit: Visit | None) -> AsyncIterator[Shown]:
    """visit: who looks at the run, at its pattern from the select step on; None if nobody does."""
    stage, sparse = started.stage, started.stage.lanes[SPARSE]
    run = started.runs[SPARSE]
    found = False
    async for update in started.race.updates():
        new: Selected | None = None
        if not found and visit is not None and run.pattern is not None:
            found = True
            new = visit.selected = Selected(run.pattern)
        stage.message = _message(update.state, update.error, stage.lanes.get(update.error_lane or ""))
        if update.error is not None:
            log_error(update.error)
        snapshot = stage.apply(update)
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
            kept = await asyncio.to_thread(desk.engine.keep, started.runs, started.prompt)
            if kept is not None:
                desk.remember(visit, kept)
        yield Shown(snapshot, figure, new, kept, over)


def _message(state: str, error: Exception | None, lane: LaneView | None) -> str:
    if state == "failed" and error is not None:
        return error_sentence(error, None if lane is None else lane.label)
    return {"stopped": STOPPED, "done": "", "running": ""}[state]
