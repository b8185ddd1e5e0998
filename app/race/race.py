"""A fair race: runs the lanes one step at a time and merges their steps into one stream.

Lanes of one device never run at the same time. Each step is timed alone by the engine (`Step.seconds`), and the lane
that has used less time so far goes next: both clocks advance together, as if each lane had the machine to
itself. Lanes of different devices do have one each, and run at the same time, each by its own clock.

The lanes of a device run in one worker thread, so that drawing the page does not hold up the engine; the page
collects at most `updates_per_second` updates, and every update carries all steps since the last one, so no
step is lost or repeated.

Nothing here knows gradio, torch or the page.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from app.engine.interface import RunLike, StepLike
from sparsed.turns import whose_turn

UPDATES_PER_SECOND = 8.0
# How long a step that goes on when its race is overdue may still take before nobody waits for it any more.
GRACE_SECONDS = 30.0
State = Literal["running", "done", "stopped", "failed", "overdue"]
# How the lanes of one device ended, the one that tells most of the whole race last.
_WORST: tuple[State, ...] = ("done", "stopped", "overdue", "failed")


@dataclass(frozen=True)
class Lane:
    """One runner: `key` names it in the stream, `run` yields its steps. device: what runs them; lanes whose devices are
    equal take turns.
    """

    key: str
    run: RunLike
    device: Hashable = None


@dataclass(frozen=True)
class LaneStep:
    """One denoising step of one lane."""

    lane: str
    step: StepLike


@dataclass(frozen=True)
class Update:
    """What the page gets at once: every step since the last update, in the order in which they ran.

    state: "running", or how the race ended: "done", "stopped", "failed" or "overdue".
    finished: keys of the lanes that have reached their end.
    error, error_lane: set when state is "failed".
    """

    steps: tuple[LaneStep, ...]
    state: State
    finished: tuple[str, ...]
    error: Exception | None = None
    error_lane: str | None = None


class Race:
    """Runs `lanes` to their ends: those of one device in turns, in one worker thread; devices at the same time.

    lanes: at least one; of a device's lanes the one with the least seconds so far goes next, and among equals the one
        at or after `first` (so `first` = 0, 1, 0, … from race to race alternates who begins).
    on_end: called once, in the worker thread that ends last, when no step can run any more: every device is free again.
    most_seconds: a watchdog ends the race ("overdue") within the step that runs after so many seconds of real time. A
        step that does not end for `grace_seconds` after that is left alone: the stream ends, `stuck` is True, and
        on_end is called when that step ends after all.

    Collect the stream with `for update in race` or `async for update in race.updates()`; the last update is
    the only one whose state is not "running", and it carries no steps (a server may send its last value
    twice). `stop()` ends the race within the steps that are running, and so does an error in one lane.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        *,
        first: int = 0,
        updates_per_second: float = UPDATES_PER_SECOND,
        on_end: Callable[[], None] | None = None,
        most_seconds: float | None = None,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        if not lanes:
            raise ValueError("A race needs at least one lane.")
        if most_seconds is not None and not most_seconds > 0:
            raise ValueError(f"most_seconds is {most_seconds}; it must be above 0.")
        if not updates_per_second > 0:
            raise ValueError(f"updates_per_second is {updates_per_second}; it must be above 0.")
        self.lanes = tuple(lanes)
        self._first = first % len(self.lanes)
        self._pause = 1.0 / updates_per_second
        self._on_end = on_end
        self._most_seconds = most_seconds
        self._grace_seconds = grace_seconds
        self._overdue = False
        self._free = threading.Event()
        self._changed = threading.Condition()
        self._pending: list[LaneStep] = []
        self._finished: list[str] = []
        self._outcome: State = "done"
        self._ended: State | None = None
        self._delivered_end = False
        self._error: Exception | None = None
        self._error_lane: str | None = None
        self._stop = threading.Event()
        self._wake: Callable[[], None] | None = None
        self._workers: tuple[threading.Thread, ...] = ()
        self._at_work = 0

    # ---- the engine's side ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the workers; a second call does nothing."""
        with self._changed:
            if self._workers or self._ended is not None:
                return
            devices = list(dict.fromkeys(lane.device for lane in self.lanes))
            self._workers = tuple(
                threading.Thread(target=self._work, args=(device,), name="race", daemon=True) for device in devices
            )
            self._at_work = len(devices)
        for worker in self._workers:
            worker.start()
        if self._most_seconds is not None:
            threading.Thread(target=self._watch, args=(self._most_seconds,), name="watchdog", daemon=True).start()

    def _watch(self, most_seconds: float) -> None:
        """Ends the race when its time is up; and the stream, where even then a step does not end."""
        if self._free.wait(most_seconds):
            return
        self._overdue = True
        self._stop.set()
        if not self._free.wait(self._grace_seconds):
            with self._changed:
                self._ended = self._ended or "overdue"
            self._notify()

    def _work(self, device: Hashable) -> None:
        """Runs the lanes of one device to their ends, in turns."""
        clocks = [0.0] * len(self.lanes)
        running = {turn for turn, lane in enumerate(self.lanes) if lane.device == device}
        # Until it is known better: not even a panic of a library leaves a race "done".
        ended: State = "failed"
        try:
            while running:
                if self._stop.is_set():
                    ended = "overdue" if self._overdue else "stopped"
                    break
                turn = whose_turn(clocks, running, self._first)
                lane = self.lanes[turn]
                try:
                    step = next(lane.run)
                except StopIteration:
                    running.discard(turn)
                    with self._changed:
                        self._finished.append(lane.key)
                    continue
                # Whatever the engine raises (out of memory, a kernel's error) must reach the visitor as a
                # sentence and leave the device free for the next run: this thread is the edge where that is
                # decided.
                except Exception as error:  # noqa: BLE001
                    ended = "failed"
                    with self._changed:
                        # Lanes of two devices may both fail; what the first one says is told.
                        if self._error is None:
                            self._error, self._error_lane = error, lane.key
                    break
                clocks[turn] += step.seconds
                with self._changed:
                    self._pending.append(LaneStep(lane.key, step))
                self._notify()
            else:
                ended = "done"
        finally:
            if ended != "done":
                self._stop.set()
            with self._changed:
                self._outcome = max(self._outcome, ended, key=_WORST.index)
                self._at_work -= 1
                last = not self._at_work
            if last:
                self._end()

    def give_up(self, error: Exception) -> None:
        """Ends the stream now, as failed: the steps that run will not come back. Safe from any thread."""
        self._stop.set()
        with self._changed:
            if self._ended is None:
                self._ended, self._error = "failed", error
        self._notify()

    def _end(self) -> None:
        """No step runs any more, and none will."""
        for lane in self.lanes:
            # A run that failed may fail again while closing; the device must become free all the same.
            with contextlib.suppress(Exception):
                lane.run.close()
        try:
            if self._on_end is not None:
                self._on_end()
        finally:
            with self._changed:
                self._ended = self._ended or self._outcome
            self._free.set()
            self._notify()

    def _notify(self) -> None:
        with self._changed:
            wake = self._wake
            self._changed.notify_all()
        if wake is not None:
            wake()

    # ---- the page's side -----------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask the race to end after the steps that are running now. Safe from any thread, any number of times.
        """
        self._stop.set()
        with self._changed:
            never_started = not self._workers and self._ended is None
            if never_started:
                self._ended = "stopped"
        if never_started:
            for lane in self.lanes:
                lane.run.close()
            if self._on_end is not None:
                self._on_end()
        self._notify()

    def close(self, timeout: float | None = None) -> bool:
        """Stop, and wait up to `timeout` seconds (None: until the steps end) for every device to be free.

        Returns True when no step is running any more.
        """
        self.stop()
        until = None if timeout is None else time.monotonic() + timeout
        # A worker that asks does not wait for itself.
        others = [worker for worker in self._workers if worker is not threading.current_thread()]
        for worker in others:
            worker.join(None if until is None else max(0.0, until - time.monotonic()))
        return not any(worker.is_alive() for worker in others)

    @property
    def over(self) -> bool:
        """True once the stream has nothing more to give; no step can run any more, unless the race is `stuck`."""
        with self._changed:
            return self._ended is not None

    @property
    def stuck(self) -> bool:
        """True while a step runs on although its race was given up."""
        with self._changed:
            return self._ended is not None and bool(self._workers) and not self._free.is_set()

    def _ready(self) -> bool:
        return bool(self._pending) or self._ended is not None

    def _take(self) -> Update | None:
        """Everything since the last call, or None when there is nothing new. Call with the lock held."""
        if self._delivered_end or not self._ready():
            return None
        finished = tuple(self._finished)
        if self._pending:
            steps, self._pending = tuple(self._pending), []
            return Update(steps, "running", finished)
        assert self._ended is not None, "nothing is pending, so the race is over"
        self._delivered_end = True
        return Update((), self._ended, finished, self._error, self._error_lane)

    def __iter__(self) -> Iterator[Update]:
        self.start()
        next_at = 0.0
        try:
            while not self._delivered_end:
                time.sleep(max(0.0, next_at - time.monotonic()))
                with self._changed:
                    self._changed.wait_for(self._ready)
                    update = self._take()
                if update is not None:
                    next_at = time.monotonic() + self._pause
                    yield update
        finally:
            self.stop()

    async def updates(self) -> AsyncIterator[Update]:
        """The same stream for an event loop: no thread waits while nothing happens."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def wake() -> None:
            # The loop may be gone when a server shuts down in the middle of a step.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(changed.set)

        with self._changed:
            self._wake = wake
        self.start()
        next_at = 0.0
        try:
            while not self._delivered_end:
                await asyncio.sleep(max(0.0, next_at - loop.time()))
                changed.clear()
                with self._changed:
                    update = self._take()
                if update is None:
                    await changed.wait()
                    continue
                next_at = loop.time() + self._pause
                yield update
        finally:
            with self._changed:
                self._wake = None
            self.stop()
