"""Models: loading, keeping, evicting."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from app.engine.cost import Shape, Speed
from app.engine.interface import Engine, ModelLike
from app.server.journal import Journal
from sparsed.config import SamplerConfig
from sparsed.machine import out_of_memory
from sparsed.models import LoadError
from sparsed.models.catalogue import ModelSpec

GB = 10**9


@dataclass(frozen=True)
class Loaded:
    """A model in memory and what is known of its speed here."""

    name: str
    label: str  # for people
    place: str  # where it runs, for people
    model: ModelLike
    shape: Shape
    speed: Speed | None  # None while it is not known


class Loading:
    """A model on its way into memory, shared by all who wait for it."""

    def __init__(self, label: str) -> None:
        self.label = label  # for people
        self.message = "starting"  # how far it is, in words
        self._over = threading.Event()
        self._loaded: Loaded | None = None
        self._error: Exception | None = None

    def hear(self, progress: Any) -> None:
        """Takes the engine's progress; called from the loading thread."""
        self.message = str(progress)

    def end(self, outcome: Loaded | Exception) -> None:
        """The model is there, or there is a reason why not. Called once."""
        if isinstance(outcome, Loaded):
            self._loaded = outcome
        else:
            self._error = outcome
        self._over.set()

    @property
    def over(self) -> bool:
        """Whether `result` returns at once."""
        return self._over.is_set()

    def result(self) -> Loaded:
        """The model; waits for it. Raises LoadError, one sentence, if it could not be loaded."""
        self._over.wait()
        if self._error is not None:
            raise self._error
        assert self._loaded is not None, "a loading ends with a model or with an error"
        return self._loaded


def load_error(error: Exception, label: str) -> Exception:
    """An error of loading as one that carries a sentence."""
    if isinstance(error, (ValueError, FileNotFoundError)):
        return error
    if out_of_memory(error):
        return LoadError(f"{label} could not be loaded: this machine ran out of memory. Choose a smaller model.")
    first_line = (str(error).strip().splitlines() or [""])[0][:200].rstrip(".")
    return LoadError(f"{label} could not be loaded ({type(error).__name__}{first_line and ': '}{first_line}).")


class ModelStore:
    """Loads models in the background and keeps them.

    default: the name of the model that `open()` loads. It stays in memory once it is there, and so do the bundled
    ones; of the others the one loaded last does, and whatever a run is using. measure: the speed of a model that is in
    memory; called in the thread that loads.
    """

    def __init__(self, engine: Engine, default: str, journal: Journal, measure: Callable[[Loaded], Speed]) -> None:
        self.default = default
        self.measure = measure
        self._engine = engine
        self._journal = journal
        self._loaded: dict[str, Loaded] = {}
        self._jobs: dict[str, Loading] = {}
        self._held: Counter[str] = Counter()
        self._newest = ""
        self._one_at_a_time = threading.Lock()
        self._lock = threading.Lock()

    def open(self) -> Loading:
        """Begin to load the default model and to measure this machine."""
        return self.loading(self.default)

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
        return self._engine.models()[name]

    def at_once(self, name: str) -> bool:
        """Whether the model may be loaded without being asked for: nothing has to be downloaded."""
        return name == self.default or self.spec(name).bundled

    @property
    def names(self) -> list[str]:
        """The models in memory, in alphabetical order."""
        with self._lock:
            return sorted(self._loaded)

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
        """The loading of this model; begins one, in a thread of its own, if it is neither in memory nor on its way."""
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

    def set_speed(self, name: str, speed: Speed) -> None:
        """What is known of the model's speed, as long as it stays in memory."""
        with self._lock:
            if name in self._loaded:
                self._loaded[name] = replace(self._loaded[name], speed=speed)

    def too_large(self, name: str) -> str:
        """Why the weights of this model cannot fit here, whatever else is given up; empty if they can."""
        needed, room = self._engine.weights(name), self.room()
        if room is None or self.loaded(name) is not None or needed <= room:
            return ""
        return f"{needed / GB:.1f} GB of weights, {room / GB:.1f} GB of memory"

    def room(self) -> int | None:
        """Bytes that a model could have here, whatever else is given up; None where unknown."""
        free = self._engine.memory()
        with self._lock:
            others = sum(one.shape.weight_bytes for one in self._loaded.values() if not self.at_once(one.name))
        return None if free is None else free + others

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

    def held(self, name: str) -> int:
        """How many hold this model."""
        with self._lock:
            return self._held[name]

    def _work(self, name: str, job: Loading) -> None:
        outcome: Loaded | Exception
        try:
            outcome = self._bring(name, job)
        # Whatever goes wrong while loading must end the waiting, with a sentence; this thread is the edge.
        except Exception as error:  # noqa: BLE001
            outcome = load_error(error, job.label)
            self._journal.event("model", model=name, state="failed", message=str(outcome))
            if outcome is not error:
                self._journal.error(error, model=name)
        with self._lock:
            del self._jobs[name]
        job.end(outcome)

    def _bring(self, name: str, job: Loading) -> Loaded:
        if self.at_once(name):
            return self._into_memory(name, job)
        if reason := self.too_large(name):
            raise LoadError(f"{job.label} does not fit into this machine: {reason}. Choose a smaller model.")
        self._engine.fetch(name, job.hear)
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
        model = self._engine.load(name, job.hear)
        loaded = Loaded(name, job.label, self._engine.place(model), model, self._engine.shape(model), None)
        with self._lock:
            self._loaded[name] = loaded
        job.message = "measuring this machine's speed"
        try:
            known = self._engine.speed(model)
            loaded = replace(loaded, speed=self.measure(loaded) if known is None else known)
        except (ValueError, OSError, RuntimeError) as error:
            # Without a measured speed the page shows no estimates; that is no reason not to run.
            self._journal.event("model", model=name, state="not measured", message=str(error))
        with self._lock:
            self._loaded[name] = loaded
        return loaded

    def _make_room(self, name: str, label: str) -> None:
        """Frees the other models if the new one would not fit beside them. Raises LoadError where one is in use."""
        free = self._engine.memory()
        if free is None or self._engine.weights(name) <= free:
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
