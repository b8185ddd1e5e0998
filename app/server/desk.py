"""What the visitors of one page share: the loaded models, the device and its queue; and what belongs to each
visit.

No gradio here. A visit is named by a string (the session), and holds at most one running race and one last
pattern.
"""

from __future__ import annotations

import gc
import itertools
import secrets
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any
from weakref import WeakSet

import sparsed
from app.engine.cost import SHORTEST_TOGETHER, Estimate, Speed, estimate, fit_speed
from app.engine.interface import Engine
from app.finished.run import MOST_IMPORTANCE, Kept, opening
from app.race.line import DeviceQueue
from app.race.race import Race
from app.race.request import Request
from app.server.health import Metrics, State, Status
from app.server.journal import Journal, RunReport
from app.server.limits import Limits
from app.server.models import GB, Loaded, Loading, load_error
from app.server.speed import Places
from app.server.visits import KEPT_VISITS, Visit
from app.texts import NO_ROOM, NOT_MEASURED, TOO_SHORT, held_together
from sparsed.config import FULL_ATTENTION, SamplerConfig
from sparsed.machine import give_back
from sparsed.models import LoadError
from sparsed.models.catalogue import ModelSpec
from sparsed.parallel.launch import TeamLost

# What the last runs of all visits may take of memory, importances apart.
KEPT_BYTES = 512 * 2**20
# Runs of programs, which have no page that closes: so many, for so long.
KEPT_CALLS = 16
KEPT_CALL_SECONDS = 900.0
CLOSING = "This server is being stopped or started anew. Please try again in a minute."
KEPT_PROMPTS = 16
# Tokens of the short runs that measure this machine, as far as no step takes longer than SLOW_STEP seconds. Attention
# over a few thousand keys costs more for each of them than over a few hundred, so the longest tells most.
MEASURED_TOKENS = (224, 2016, 4064)
SLOW_STEP = 2.0
# What a race shows of the machine counts when its steps take less than this share of what was expected.
FASTER = 0.8


class Desk:
    """Loads models in the background, keeps the line for the device, and remembers the visits.

    engine: see `app.engine`. default_model: loaded by `open()`. limits: what a request may ask for. journal, metrics:
    what is said of each run to the one who runs the page. any_model: visitors may name models that are not listed.

    The default model and the bundled ones stay in memory once they are there; of the others the one loaded last
    does, and whatever a run is using.
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
        self.default_model = default_model
        self.limits = limits
        self.queue = DeviceQueue(limits.max_waiting, engine.at_once)
        self.journal = journal or Journal.here()
        self.metrics = metrics
        self.closing = False
        self.lost = ""
        self.started = time.monotonic()
        self._loaded: dict[str, Loaded] = {}
        self._jobs: dict[str, Loading] = {}
        self._held: Counter[str] = Counter()
        self._newest = ""
        self._one_at_a_time = threading.Lock()
        self._building = threading.Lock()
        self._visits: OrderedDict[str, Visit] = OrderedDict()
        self._lock = threading.Lock()
        self._runs = itertools.count(1)
        self._prompts: OrderedDict[tuple[str, str, str, int], Any] = OrderedDict()
        self._active: set[Visit] = set()
        self._races: WeakSet[Race] = WeakSet()
        self._calls: OrderedDict[str, tuple[float, Kept]] = OrderedDict()

    # ---- models --------------------------------------------------------------------------------------------

    def open(self) -> Loading:
        """Begin to load the default model and to measure this machine."""
        return self.loading(self.default_model)

    def place(self, names: Iterable[str]) -> None:
        """Loads these models one after another, in the thread that calls. Raises LoadError."""
        for name in names:
            job = Loading(self.spec(name).label)
            with self._lock:
                self._jobs[name] = job
            self._work(name, job)
            job.result()

    def spec(self, name: str) -> ModelSpec:
        """The model's row in the list."""
        return self.engine.models()[name]

    def at_once(self, name: str) -> bool:
        """Whether the model may be loaded without being asked for: nothing has to be downloaded."""
        return name == self.default_model or self.spec(name).bundled

    def loaded(self, name: str) -> Loaded | None:
        """The model if it is in memory."""
        with self._lock:
            return self._loaded.get(name)

    def defaults(self, name: str) -> SamplerConfig:
        """The sampler's settings of a model: its own, or what the list says while it is not in memory."""
        loaded = self.loaded(name)
        own = getattr(loaded.model, "defaults", None) if loaded is not None else None
        return own if own is not None else self.spec(name).defaults

    def under_way(self, name: str) -> Loading | None:
        """The loading of this model that goes on now."""
        with self._lock:
            return self._jobs.get(name)

    def loading(self, name: str) -> Loading:
        """The loading of this model; begins one, in a thread of its own, if it is neither in memory nor on its way.
        """
        with self._lock:
            job = self._jobs.get(name)
            if job is not None:
                return job
            job = Loading(self.spec(name).label)
            known = self._loaded.get(name)
            if known is not None:
                job.end(known)
                return job
            self._jobs[name] = job
        threading.Thread(target=self._work, args=(name, job), name="load", daemon=True).start()
        return job

    def load(self, name: str) -> Loaded:
        """The model; waits until it is there. Raises LoadError."""
        return self.loading(name).result()

    def _work(self, name: str, job: Loading) -> None:
        outcome: Loaded | Exception
        try:
            outcome = self._bring(name, job)
        # Whatever goes wrong while loading must end the waiting, with a sentence; this thread is the edge.
        except Exception as error:  # noqa: BLE001
            outcome = load_error(error, job.label)
            self.journal.event("model", model=name, state="failed", message=str(outcome))
            if outcome is not error:
                self.journal.error(error, model=name)
        with self._lock:
            del self._jobs[name]
        job.end(outcome)

    def _bring(self, name: str, job: Loading) -> Loaded:
        if self.at_once(name):
            return self._into_memory(name, job)
        if reason := self.too_large(name):
            raise LoadError(f"{job.label} does not fit into this machine: {reason}. Choose a smaller model.")
        self.engine.fetch(name, job.hear)
        job.message = "waiting until another model is loaded"
        with self._one_at_a_time:
            self._make_room(name, job.label)
            loaded = self._into_memory(name, job)
            with self._lock:
                self._newest = name
                self._free()
        return loaded

    def _into_memory(self, name: str, job: Loading) -> Loaded:
        job.message = "reading weights"
        model = self.engine.load(name, job.hear)
        loaded = Loaded(name, job.label, self.engine.place(model), model, self.engine.shape(model), None)
        with self._lock:
            self._loaded[name] = loaded
        job.message = "measuring this machine's speed"
        try:
            known = self.engine.speed(model)
            loaded = replace(loaded, speed=self._measure(loaded) if known is None else known)
        except (ValueError, OSError, RuntimeError) as error:
            # Without a measured speed the page shows no estimates; that is no reason not to run.
            self.journal.event("model", model=name, state="not measured", message=str(error))
        with self._lock:
            self._loaded[name] = loaded
        return loaded

    def learn(self, name: str, length: int, seconds: Sequence[float]) -> None:
        """Dense steps over `length` tokens took so long. A machine that was busy when it was measured is faster than it
        seemed, and nothing must be refused for that; one that is busy now is no slower.
        """
        with self._lock:
            loaded = self._loaded.get(name)
            if loaded is None or loaded.speed is None or len(seconds) < 3:
                return
            expected = loaded.speed.step(length)
            factor = median(seconds) / expected if expected > 0 else 1.0
            if 0 < factor < FASTER:
                speed = Speed(factor * loaded.speed.per_token, factor * loaded.speed.per_pair)
                self._loaded[name] = replace(loaded, speed=speed)

    def too_large(self, name: str) -> str:
        """Why the weights of this model cannot fit here, whatever else is given up; empty if they can."""
        needed, free = self.engine.weights(name), self.engine.memory()
        with self._lock:
            others = sum(one.shape.weight_bytes for one in self._loaded.values() if not self.at_once(one.name))
            if free is None or name in self._loaded or needed <= free + others:
                return ""
        return f"{needed / GB:.1f} GB of weights, {(free + others) / GB:.1f} GB of memory"

    def _make_room(self, name: str, label: str) -> None:
        """Frees the other models if the new one would not fit beside them. Raises LoadError where one is in use."""
        free = self.engine.memory()
        if free is None or self.engine.weights(name) <= free:
            return
        with self._lock:
            self._newest = name
            kept = self._free()
        if kept:
            raise LoadError(
                f"There is no room for {label} while a run uses {' and '.join(kept)}: press Run again when it is over."
            )

    def _free(self) -> list[str]:
        """Lets go of every model that need not stay; returns the labels of those that a run is using. Call with
        the lock held.
        """
        others = [name for name in self._loaded if name != self._newest and not self.at_once(name)]
        idle = [name for name in others if not self._held[name]]
        for name in idle:
            del self._loaded[name]
        if idle:
            gc.collect()
        return [self._loaded[name].label for name in others if name in self._loaded]

    def hold(self, name: str) -> Callable[[], None]:
        """Keeps a model in memory until what this returns is called (any number of times, from any thread)."""
        with self._lock:
            self._held[name] += 1
        held = [name]

        def release() -> None:
            with self._lock:
                if held:
                    self._held[held.pop()] -= 1
                    self._free()

        return release

    def _measure(self, loaded: Loaded) -> Speed:
        """Dense steps at a short and a longer length, the fastest of a few each: the first warms up, and a visitor's
        browser may be starting on the same cores.
        """
        points: list[tuple[int, float]] = []
        # Any text will do, and a model need not have a chat template.
        a_hundred = self.engine.count(loaded.model, "one " * 100)
        ticket = self.queue.join()
        try:
            while ticket.position:
                time.sleep(0.05)
            for tokens in MEASURED_TOKENS:
                text = "one " * max(1, 100 * tokens // a_hundred)
                length = self.engine.count(loaded.model, text) + 32
                # The first is too short to tell anything of the second.
                if points and points[-1][1] * (length / points[-1][0]) ** (2 if len(points) > 1 else 1) > SLOW_STEP:
                    break
                sampler = SamplerConfig(steps=32, gen_length=32, block_length=32, temperature=0.0, seed=0)
                run = self.engine.denoise(loaded.model, text, sampler, FULL_ATTENTION, "auto")
                made = [next(run).seconds]
                while len(made) < 4 and sum(made) < SLOW_STEP / 2:
                    made.append(next(run).seconds)
                run.close()
                points.append((length, min(made)))
        finally:
            ticket.leave()
        return fit_speed(points, loaded.shape)

    def prompt(self, loaded: Loaded, length: str, kind: str, seed: int) -> Any:
        """The engine's prompt; the last few are remembered, since a long one takes a second to build.

        Raises ValueError when there is no such question at this length.
        """
        key = (loaded.name, length, kind, seed)
        # One at a time: a long one takes a second of a machine that may be running a race.
        with self._building:
            known = self._prompts.get(key)
            if known is None:
                known = self.engine.build_prompt(loaded.model, length, kind, seed)
            self._prompts[key] = known
            self._prompts.move_to_end(key)
            while len(self._prompts) > KEPT_PROMPTS:
                self._prompts.popitem(last=False)
        return known

    def estimate(self, loaded: Loaded, request: Request, tokens: int, places: Places | None = None) -> Estimate | None:
        """Time and memory of a race over `tokens` prompt tokens; None while the speed is not known. places: where its
        lanes run, if that is decided.
        """
        places = places or self.places(loaded, request, tokens)
        return self._estimate(loaded, request, tokens, len(places.copies))

    def _estimate(self, loaded: Loaded, request: Request, tokens: int, devices: int) -> Estimate | None:
        if loaded.speed is None:
            return None
        attention = request.attention.resolve(tokens + request.gen_length)
        return estimate(
            loaded.shape,
            loaded.speed,
            length=tokens + request.gen_length,
            steps=request.steps,
            switch_step=request.switch_step,
            density=attention.select,
            block_size=attention.block_size,
            gen_length=request.gen_length,
            rows=request.rows,
            baseline=request.third is not None,
            devices=devices,
        )

    def places(self, loaded: Loaded, request: Request, tokens: int) -> Places:
        """Where the lanes of a race over `tokens` prompt tokens run: each on a device of its own where there are
        several, the race fits on them, and its steps are long enough to be timed honestly at the same time.
        """
        lanes = 2 if request.third is None else 3
        first, *others = self.engine.copies(loaded.model)
        if not others:
            return Places((first,), held_together(loaded.shape.processes) if loaded.shape.processes > 1 else "")
        alone = self._estimate(loaded, request, tokens, 1)
        if loaded.speed is None or alone is None:
            return Places((first,), NOT_MEASURED)
        if request.rows * loaded.speed.step(tokens + request.gen_length) < SHORTEST_TOGETHER:
            return Places((first,), TOO_SHORT)
        roomy = [copy for copy in others if self._fits(alone, copy)][: lanes - 1]
        return Places((first, *roomy), "" if roomy else NO_ROOM)

    def _fits(self, estimated: Estimate, model: Any) -> bool:
        """Is there room for a race on the device of this model?"""
        free = self.engine.memory(model)
        return free is None or estimated.memory <= self.limits.memory_share * free

    def room(self, loaded: Loaded) -> Limits:
        """The limits, with the memory that is free now on the device of this model. Other devices are used where a race
        fits on them only, so theirs limit nothing.
        """
        return replace(self.limits, memory=self.engine.memory(loaded.model))

    def longest(self, loaded: Loaded, request: Request, seconds: float) -> str:
        """The longest prompt length whose race takes at most `seconds` here; the shortest when none does."""
        best = next(iter(self.engine.lengths()))
        for name, tokens in self.engine.lengths().items():
            estimated = self.estimate(loaded, request.resolve(tokens), tokens)
            if estimated is not None and estimated.seconds <= seconds:
                best = name
        return best

    # ---- visits --------------------------------------------------------------------------------------------

    def visit(self, name: str | None) -> Visit:
        """The visit of that name, made if it is new; the ones used longest ago are forgotten."""
        key = name or "api"
        with self._lock:
            visit = self._visits.setdefault(key, Visit())
            visit.owner = key
            self._visits.move_to_end(key)
            idle = [k for k, v in self._visits.items() if k != key and not v.running]
            for old in idle[: max(0, len(self._visits) - KEPT_VISITS)]:
                del self._visits[old]
            return visit

    def stop(self, name: str | None) -> None:
        """End the visit's race within the step that runs now; nothing happens when there is none."""
        with self._lock:
            visit = self._visits.get(name or "api")
        if visit is not None:
            visit.stop()

    def leave(self, name: str | None) -> None:
        """The visit's tab was closed: its race ends and what it held is forgotten."""
        with self._lock:
            visit = self._visits.pop(name or "api", None)
        if visit is not None:
            visit.stop()
        # Beside a run it would cost that run's time.
        if self.quiet:
            del visit
            gc.collect()
            give_back()

    def kept(self, key: str) -> Kept | None:
        """The run of that key, as long as the visit it belongs to keeps it; the recorded one always."""
        with self._lock:
            self._forget_calls()
            runs = [visit.kept for visit in self._visits.values()]
            runs += [run for _, run in self._calls.values()]
        asked = key.encode("utf-8", "replace")
        for run in (*runs, opening()):
            if run is not None and secrets.compare_digest(run.key.encode("ascii"), asked):
                return run
        return None

    def remember(self, visit: Visit, run: Kept) -> None:
        """This is the visit's last run now. Of the importances, which are large, those of the visits longest ago go."""
        with self._lock:
            visit.kept, visit.unseen, visit.selected = run, True, None
            room = MOST_IMPORTANCE - run.importance_bytes
            for other in reversed(self._visits.values()):
                if other is visit or other.kept is None:
                    continue
                room -= other.kept.importance_bytes
                if room < 0:
                    other.kept = replace(other.kept, importance=None)
            room = KEPT_BYTES
            for other in reversed(self._visits.values()):
                room -= 0 if other.kept is None else other.kept.bytes
                if room < 0 and other is not visit:
                    other.kept = None

    def remember_call(self, run: Kept) -> None:
        """Keeps a run that a program made, so that it can ask for its pattern and its files: the last few, for a while.
        """
        with self._lock:
            self._calls[run.key] = time.monotonic(), replace(run, importance=None)
            while len(self._calls) > KEPT_CALLS:
                self._calls.popitem(last=False)
            self._forget_calls()

    def _forget_calls(self) -> None:
        """Call with the lock held."""
        now = time.monotonic()
        for key in [key for key, (since, _) in self._calls.items() if now - since > KEPT_CALL_SECONDS]:
            del self._calls[key]

    # ---- what goes on ----------------------------------------------------------------------------------------

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
            names, visits = sorted(self._loaded), len(self._visits)
            stuck, loading = any(race.stuck for race in self._races), self.default_model not in self._loaded
        running = self.queue.running
        state: State = "stuck" if stuck else "loading" if loading else "ok"
        if self.closing or self.lost:
            state = "lost" if self.lost else "stopping"
        return Status(
            state=state,
            models=tuple(names),
            running=running,
            waiting=len(self.queue) - running,
            visits=visits,
            uptime=time.monotonic() - self.started,
            version=sparsed.__version__,
        )

    def report(self, report: RunReport) -> None:
        """A run has ended, however: one line for the one who runs the page."""
        self.journal.note(report)
        if self.metrics is not None:
            self.metrics.note(report)

    def next_run(self) -> int:
        """A number for a run, different for every run of this page."""
        return next(self._runs)
