"""ZeroGPU: an engine whose GPU is borrowed for one race at a time."""

from __future__ import annotations

import html
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import sparsed
from app.engine.cost import Speed
from app.engine.fewer_bits import bits_of, without_bits
from app.engine.interface import Given, Listener
from app.engine.local import SparsedEngine
from app.engine.remote import AT_ONCE, BORROWED_FLOPS, START_SECONDS, Broke, Facts, Made, Opened, lent_race
from app.lanes import LaneSpec
from sparsed.config import ResolvedCache, SamplerConfig
from sparsed.machine import device_memory
from sparsed.models import LoadError
from sparsed.models.catalogue import ModelSpec
from sparsed.trace.types import Trace


def placed(environment: Mapping[str, str] | None = None, default: str = "mini") -> list[str]:
    """The models that are placed at the start: SPARSED_MODELS, names with commas."""
    values = os.environ if environment is None else environment
    listed = [name.strip() for name in values.get("SPARSED_MODELS", "").split(",")]
    return list(dict.fromkeys(name for name in listed if name)) or [default]


class _Stream:
    """What comes back from the other process, for all lanes of a race."""

    def __init__(self, events: Any) -> None:
        self._events = events
        self._waiting: dict[str, list[Made]] = {}
        self.over = False

    def open(self) -> Opened:
        """Waits for the GPU. Raises ValueError with what the pool says where it lends none, or the run's own error."""
        event = self._next()
        if isinstance(event, Opened):
            return event
        raise RuntimeError("The borrowed GPU ended before it began.")

    def of(self, lane: str) -> Made | None:
        """The next step of a lane; None after its last. Raises what the lane raised over there."""
        while not self._waiting.get(lane):
            event = self._next()
            if event is None:
                return None
            assert isinstance(event, Made), "a race is opened once"
            self._waiting.setdefault(event.lane, []).append(event)
        return self._waiting[lane].pop(0)

    def _next(self) -> Opened | Made | None:
        if self.over:
            return None
        try:
            event = next(self._events, None)
        except Exception as error:
            self.over = True
            # What the pool itself says (its quota, an aborted task) is an error of gradio's, and may hold HTML.
            message = getattr(error, "message", None)
            if not isinstance(message, str):
                raise
            said = html.unescape(re.sub(r"<[^>]*>", "", message)).strip().rstrip(".")
            raise ValueError(f"The pool of GPUs says: {said}.") from error
        if event is None:
            self.over = True
        if isinstance(event, Broke):
            self.over = True
            raise {"value": ValueError, "memory": MemoryError, "other": RuntimeError}[event.kind](event.said)
        return event

    def close(self) -> None:
        """Gives the GPU back; waits for the step that goes on."""
        self.over = True
        self._events.close()


class BorrowedRun:
    """A run that is made elsewhere: what the race, the page and `sparsed.trace.recording.record` read of a `sparsed`
    Run."""

    def __init__(self, lane: str, stream: _Stream, opened: Opened, model: Any) -> None:
        import torch

        self._lane, self._stream = lane, stream
        self.model, self.machine = model, opened.machine
        self.prompt = torch.from_numpy(opened.prompt)
        self.prompt_length = int(self.prompt.shape[1])
        self.steps: list[Any] = []
        self.pattern: Any = None
        self.probes: dict[int, Any] = {}
        self.probed: dict[int, Any] = {}
        self._take(opened.facts[lane])

    def _take(self, facts: Facts) -> None:
        self.info = info = facts.info
        self.sampler, self.attention, self.cache = info.sampler, info.attention, info.cache
        self.backend = info.backend
        self.total, self.switch_step = info.total, facts.switch_step
        self.notes, self.finished = list(info.notes), info.finished

    def __iter__(self) -> BorrowedRun:
        return self

    def __next__(self) -> Any:
        import torch

        made = None if self.finished else self._stream.of(self._lane)
        if made is None:
            raise StopIteration
        arrays = {
            name: torch.from_numpy(value) for name, value in made.step.items() if isinstance(value, np.ndarray)
        }
        step = sparsed.Step(**{**made.step, **arrays})
        self.steps.append(step)
        self._take(made.facts)
        if made.pattern is not None:
            self.pattern = made.pattern.to_pattern()
        self.probes |= {at: masks.to_pattern() for at, masks in made.probes.items()}
        if self.pattern is not None:
            self.probed |= {at: self.pattern for at in self.probes.keys() - self.probed.keys()}
        return step

    def close(self) -> None:
        """Ends the whole race: its lanes share one GPU. Any number of times."""
        self._stream.close()


class ZeroEngine(SparsedEngine):
    """The engine where a GPU is borrowed. names: the models of this Space; `load` places each of them, before the page
    is served and in the main thread. gpu: `spaces.GPU`.
    """

    at_once = AT_ONCE

    def __init__(self, names: Sequence[str], gpu: Callable[..., Any]) -> None:
        super().__init__()
        self._names = tuple(names)
        self._placed: dict[str, Any] = {}
        # The other process is forked from this one: it finds the models where they were placed.
        self._lent = gpu(duration=_duration)(self._race)

    def _race(
        self,
        name: str,
        prompt: Given,
        sampler: SamplerConfig,
        lanes: Sequence[LaneSpec],
        backend: str,
        first: int,
        chat: bool | None,
        seconds: float,
    ) -> Iterator[Any]:
        yield from lent_race(self._placed, name, prompt, sampler, lanes, backend, first, chat)

    def models(self) -> Mapping[str, ModelSpec]:
        known = super().models()
        # They are all here: nothing is downloaded, and none is given up for another.
        return {name: replace(known.get(name) or self.spec_of(name), bundled=True) for name in self._names}

    def admit(self, name: str) -> None:
        raise ValueError(f"The model {name[:80]!r} is not one of {', '.join(self._names)}, which this Space has.")

    def load(self, name: str, progress: Listener) -> Any:
        import torch

        if bits_of(name) is not None:
            raise LoadError(f"A ZeroGPU Space has no quantised weights: list {without_bits(name)} in SPARSED_MODELS.")
        # transformers reads weights in threads of its own, where no GPU is pretended: first the CPU, then all at once.
        model = sparsed.load(name, device="cpu", dtype="bfloat16", progress=progress)
        network: Any = model.network
        try:
            network.to("cuda")
        except (RuntimeError, AssertionError) as error:
            raise LoadError(f"{model.label} could not be placed on the GPU: {str(error).splitlines()[0]}.") from error
        self._placed[name] = replace(model, device=torch.device("cuda", 0))
        return model

    def speed(self, model: Any) -> Speed | None:
        shape = self.shape(model)
        return Speed(shape.linear_flops / BORROWED_FLOPS, shape.pair_flops / BORROWED_FLOPS)

    def memory(self, model: Any = None) -> int | None:
        free = device_memory("cuda", 0)
        taken = sum(self.shape(one).weight_bytes for one in self._placed.values())
        return None if free is None else max(0, free - taken)

    def place(self, model: Any) -> str:
        return f"ZeroGPU · {model.numbers}"

    def backend(self, model: Any) -> str:
        return "auto"

    def denoise(
        self,
        model: Any,
        prompt: Given,
        sampler: SamplerConfig,
        attention: Any,
        backend: str,
        probe_steps: Sequence[int] = (),
        chat: bool | None = None,
        cache: ResolvedCache | None = None,
    ) -> Any:
        # Here it is only asked for what it says before its first step; which backends there are, is known over there.
        return super().denoise(model, prompt, sampler, attention, "auto", probe_steps, chat, cache)

    def lend(
        self,
        model: Any,
        prompt: Given,
        sampler: SamplerConfig,
        lanes: Sequence[LaneSpec],
        backend: str,
        first: int,
        seconds: float,
        chat: bool | None = None,
    ) -> dict[str, Any] | None:
        name = next(name for name, one in self._placed.items() if one.network is model.network)
        stream = _Stream(self._lent(name, prompt, sampler, tuple(lanes), backend, first, chat, seconds))
        opened = stream.open()
        return {lane.key: BorrowedRun(lane.key, stream, opened, model) for lane in lanes}

    def record(self, runs: Mapping[str, Any], **about: Any) -> Trace | None:
        made = super().record(runs, **about)
        if made is None:
            return None
        there = next(iter(runs.values())).machine
        about = {key: value for key, value in there.items() if key in made.machine or key == "gpu"}
        return replace(made, machine=about, model=replace(made.model, device="cuda"))


def _duration(*given: Any) -> int:
    """Seconds of the GPU that a race asks for, from the arguments of `ZeroEngine._race`: the last is its estimate."""
    seconds: float = given[-1]
    return math.ceil(START_SECONDS + 1.5 * seconds)
