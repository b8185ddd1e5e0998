"""What the visitors of one page share: models, speed, visits, and the line for the device. No gradio here."""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict
from functools import partial
from weakref import WeakSet

import sparsed
from app.engine.interface import Engine, PromptLike
from app.race.line import DeviceQueue
from app.race.race import Race
from app.server.health import Metrics, State, Status
from app.server.journal import Journal, RunReport
from app.server.limits import Limits
from app.server.models import Loaded, ModelStore
from app.server.speed import Forecaster, measure
from app.server.visits import Visit, Visits
from sparsed.parallel.launch import TeamLost

CLOSING = "This server is being stopped or started anew. Please try again in a minute."
KEPT_PROMPTS = 16


class Desk:
    """Owns what the runs of all visitors share, and knows which of them go on.

    engine: see `app.engine`. default_model: the one that a fresh page chooses. limits: what a request may ask for.
    journal, metrics: what is said of each run to the one who runs the page. any_model: visitors may name models that
    are not listed.
    """

    def __init__(
        self,
        engine: Engine,
        default_model: str,
        limits: Limits,
        journal: Journal | None = None,
        metrics: Metrics | None = None,
        any_model: bool = False,
    ) -> None:
        self.engine = engine
        self.any_model = any_model
        self.journal = journal or Journal.here()
        self.metrics = metrics
        self.queue = DeviceQueue(limits.max_waiting, engine.at_once)
        self.models = ModelStore(engine, default_model, self.journal, partial(measure, engine, self.queue))
        self.speed = Forecaster(engine, self.models, limits)
        self.visits = Visits(lambda: self.quiet)
        self.closing = False  # the server is being stopped
        self.lost = ""  # why no run can be made any more, in a sentence
        self._started = time.monotonic()
        self._run_numbers = itertools.count(1)
        self._active: set[Visit] = set()
        self._races: WeakSet[Race] = WeakSet()
        self._lock = threading.Lock()
        self._prompts: OrderedDict[tuple[str, str, str, int, bool | None], PromptLike] = OrderedDict()
        self._building = threading.Lock()

    def prompt(
        self, loaded: Loaded, length: str, kind: str, seed: int, chat: bool | None = None
    ) -> PromptLike:
        """The engine's prompt; the last few are remembered, since a long one takes a second to build.

        Raises ValueError when there is no such question at this length.
        """
        key = (loaded.name, length, kind, seed, chat)
        # One at a time: a long one takes a second of a machine that may be running a race.
        with self._building:
            known = self._prompts.get(key)
            if known is None:
                known = self.engine.build_prompt(loaded.model, length, kind, seed, chat)
            self._prompts[key] = known
            self._prompts.move_to_end(key)
            while len(self._prompts) > KEPT_PROMPTS:
                self._prompts.popitem(last=False)
        return known

    def enter(self, visit: Visit) -> None:
        """A run of this visit begins, or its waiting does. Raises ValueError where no new run may."""
        with self._lock:
            if self.closing:
                raise ValueError(CLOSING)
            if self.lost:
                raise ValueError(self.lost)
            self._active.add(visit)

    def exit(self, visit: Visit) -> None:
        """It is over."""
        with self._lock:
            self._active.discard(visit)

    def watch(self, race: Race) -> None:
        """This race has the device, until it says that it does not."""
        with self._lock:
            self._races.add(race)

    def close(self) -> None:
        """From now on no run begins, and those that go on end within one step. Any number of times."""
        with self._lock:
            self.closing = True
            active = list(self._active)
        for visit in active:
            visit.stop()

    def lose(self, sentence: str) -> None:
        """What every run needs is gone for good, and steps wait for it in vain: runs end with this sentence, and no new
        one begins. From any thread.
        """
        with self._lock:
            self.lost = sentence
            races = list(self._races)
        self.journal.event("lost", message=sentence)
        for race in races:
            race.give_up(TeamLost(sentence))

    @property
    def quiet(self) -> bool:
        """No run goes on and none waits."""
        with self._lock:
            return not self._active

    def status(self) -> Status:
        """What the server does, in numbers, for whoever looks after it."""
        with self._lock:
            stuck = any(race.stuck for race in self._races)
        names, running = self.models.names, self.queue.running
        state: State = "stuck" if stuck else "loading" if self.models.default not in names else "ok"
        if self.closing or self.lost:
            state = "lost" if self.lost else "stopping"
        return Status(
            state=state,
            models=tuple(names),
            running=running,
            waiting=len(self.queue) - running,
            visits=len(self.visits),
            uptime=time.monotonic() - self._started,
            version=sparsed.__version__,
        )

    def report(self, report: RunReport) -> None:
        """A run has ended, however: one line for the one who runs the page."""
        self.journal.note(report)
        if self.metrics is not None:
            self.metrics.note(report)

    def next_run(self) -> int:
        """A number for a run, different for every run of this page."""
        return next(self._run_numbers)
