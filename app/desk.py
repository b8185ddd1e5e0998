"""What the visitors of one page share: the loaded models, the device and its queue; and what belongs to each
visit.

No gradio here. A visit is named by a string (the session), and holds at most one running race and one last
pattern.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
import traceback
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from app.engine import Engine
from app.limits import Estimate, Limits, Shape, Speed, estimate, fit_speed
from app.race import DeviceQueue, Race
from app.request import Request
from sparsed.config import SamplerConfig

KEPT_VISITS = 64
KEPT_PROMPTS = 16
# Lengths of the two short runs that measure this machine; the longer one is left out where the first is slow
# already.
MEASURED_LENGTHS = ("short_context", "2k")
SLOW_STEP = 1.0


@dataclass(frozen=True)
class Loaded:
    """A model in memory and what is known of its speed here. label, place: for people."""

    name: str
    label: str
    place: str
    model: Any
    shape: Shape
    speed: Speed | None


@dataclass(frozen=True)
class SelectedPattern:
    """The pattern of a visit's last run (a `sparsed` Pattern) and what the page asks of it."""

    pattern: Any

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return len(self.pattern.layers)

    @property
    def heads(self) -> int:
        """Query heads of a layer."""
        return int(self.pattern.layers[0].counts.shape[1])


class Visit:
    """What belongs to one open page. stopping: Stop was pressed (or the tab closed) during the current run.
    """

    def __init__(self) -> None:
        self.race: Race | None = None
        self.selected: SelectedPattern | None = None
        self.running = False
        self.stopping = False

    def stop(self) -> None:
        """End the current run within the step that runs now, or before it gets the device."""
        self.stopping = True
        if self.race is not None:
            self.race.stop()


class Desk:
    """Loads models in the background, keeps the line for the device, and remembers the visits.

    engine: see `app.engine`. default_model: loaded by `open()`. limits: what a request may ask for.
    """

    def __init__(self, engine: Engine, default_model: str, limits: Limits) -> None:
        self.engine = engine
        self.default_model = default_model
        self.limits = limits
        self.queue = DeviceQueue()
        self._loaded: dict[str, Loaded] = {}
        self._loading = threading.Lock()
        self._visits: OrderedDict[str, Visit] = OrderedDict()
        self._lock = threading.Lock()
        self._runs = itertools.count(1)
        self._prompts: OrderedDict[tuple[str, str, str, int], Any] = OrderedDict()

    # ---- models --------------------------------------------------------------------------------------------

    def open(self) -> threading.Thread:
        """Load the default model and measure this machine, in a background thread."""
        thread = threading.Thread(target=self._prepare, name="load", daemon=True)
        thread.start()
        return thread

    def _prepare(self) -> None:
        try:
            self.load(self.default_model)
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            # Said on the page too, to everyone who asks for the model; the next request tries again.
            print(f"The model {self.default_model!r} could not be loaded: {error}", file=sys.stderr)

    def loaded(self, name: str) -> Loaded | None:
        """The model if it is in memory."""
        with self._lock:
            return self._loaded.get(name)

    def load(self, name: str) -> Loaded:
        """The model, loaded now if it is not in memory; waits while another thread loads it.

        Raises what the engine raises: ValueError, OSError, RuntimeError or ImportError.
        """
        with self._loading:
            known = self.loaded(name)
            if known is not None:
                return known
            model = self.engine.load(name)
            label = self.engine.models().get(name, name)
            loaded = Loaded(name, label, self.engine.place(model), model, self.engine.shape(model), None)
            with self._lock:
                self._loaded[name] = loaded
            try:
                speed = self._measure(loaded)
            except (ValueError, OSError, RuntimeError) as error:
                # Without a measured speed the page shows no estimates; that is no reason not to run.
                print(f"This machine's speed could not be measured: {error}", file=sys.stderr)
                return loaded
            loaded = Loaded(loaded.name, loaded.label, loaded.place, model, loaded.shape, speed)
            with self._lock:
                self._loaded[name] = loaded
            return loaded

    def _measure(self, loaded: Loaded) -> Speed:
        """Two dense steps at a short and a middle length (the first step warms up and does not count)."""
        points = []
        lengths = self.engine.lengths()
        ticket = self.queue.join()
        try:
            while ticket.position:
                time.sleep(0.05)
            for length in MEASURED_LENGTHS:
                if length not in lengths:
                    continue
                prompt = self.engine.build_prompt(loaded.model, length, next(iter(self.engine.kinds())), 0)
                sampler = SamplerConfig(steps=32, gen_length=32, block_length=32, temperature=0.0, seed=0)
                run = self.engine.denoise(loaded.model, prompt.text, sampler, None, "auto")
                steps = list(itertools.islice(run, 2))
                run.close()
                points.append((prompt.tokens + 32, min(step.seconds for step in steps)))
                if points[-1][1] > SLOW_STEP:
                    break
        finally:
            ticket.leave()
        return fit_speed(points, loaded.shape)

    def prompt(self, loaded: Loaded, length: str, kind: str, seed: int) -> Any:
        """The engine's prompt; the last few are remembered, since a long one takes a second to build.

        Raises ValueError when there is no such question at this length.
        """
        key = (loaded.name, length, kind, seed)
        with self._lock:
            known = self._prompts.get(key)
        if known is None:
            known = self.engine.build_prompt(loaded.model, length, kind, seed)
        with self._lock:
            self._prompts[key] = known
            self._prompts.move_to_end(key)
            while len(self._prompts) > KEPT_PROMPTS:
                self._prompts.popitem(last=False)
        return known

    def estimate(self, loaded: Loaded, request: Request, tokens: int) -> Estimate | None:
        """Time and memory of a race over `tokens` prompt tokens; None while the speed is not known."""
        if loaded.speed is None:
            return None
        return estimate(
            loaded.shape,
            loaded.speed,
            length=tokens + request.gen_length,
            steps=request.steps,
            switch_step=request.switch_step,
            density=request.attention.select or 1.0,
            block_size=request.attention.block_size or 128,
        )

    def longest(self, loaded: Loaded, request: Request, seconds: float) -> str:
        """The longest prompt length whose race takes at most `seconds` here; the shortest when none does."""
        best = next(iter(self.engine.lengths()))
        for name, tokens in self.engine.lengths().items():
            estimated = self.estimate(loaded, request.resolve(tokens, loaded.model), tokens)
            if estimated is not None and estimated.seconds <= seconds:
                best = name
        return best

    # ---- visits --------------------------------------------------------------------------------------------

    def visit(self, name: str | None) -> Visit:
        """The visit of that name, made if it is new; the ones used longest ago are forgotten."""
        key = name or "api"
        with self._lock:
            visit = self._visits.setdefault(key, Visit())
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

    def next_run(self) -> int:
        """A number for a run, different for every run of this page."""
        return next(self._runs)


def error_sentence(error: BaseException, lane: str | None = None) -> str:
    """One sentence for the visitor about an error of the engine. Details go to the log, not to the page."""
    where = f" in the lane “{lane}”" if lane else ""
    name = type(error).__name__
    if isinstance(error, MemoryError) or "OutOfMemory" in name or "out of memory" in str(error).lower():
        return (
            f"This machine ran out of memory{where}. Choose a shorter prompt length or a shorter generation, and press "
            "Run again."
        )
    if isinstance(error, (ValueError, FileNotFoundError)):
        return str(error)
    first_line = (str(error).strip().splitlines() or [""])[0][:300]
    said = f": {first_line}" if first_line else ""
    return f"The run ended early{where} with an error of the engine ({name}{said}). You can press Run again."


def log_error(error: BaseException) -> None:
    """The whole story for the one who runs the page."""
    traceback.print_exception(type(error), error, error.__traceback__, file=sys.stderr)
