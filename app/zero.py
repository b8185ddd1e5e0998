"""Races on a GPU that a Hugging Face ZeroGPU Space lends for one race at a time.

There the GPU lives in another process, forked for the race: what comes in and goes out is pickled, and this process
never touches CUDA. So the models are placed before the page is served (`ZeroEngine.load`, in the main thread), the
whole race runs over there as one generator under `spaces.GPU`, and its steps come back as numpy arrays, patterns as
packed bits. Here they become runs again (`BorrowedRun`), which the race, the page and the record take for the engine's
own.
"""

from __future__ import annotations

import html
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

import sparsed
from app.desk import out_of_memory
from app.engine import Listener, SparsedEngine, Wanted, line_up
from app.limits import Speed
from sparsed.config import SamplerConfig
from sparsed.machine import device_memory, dtype_name, machine
from sparsed.models import LoadError
from sparsed.models.catalogue import ModelSpec
from sparsed.trace import Trace, pack_masks
from sparsed.turns import whose_turn

# Operations a second of the half of an H200 that ZeroGPU lends: LLaDA-8B's dense steps reach 5.7e14 on the whole one.
BORROWED_FLOPS = 2.4e14
# Until a borrowed GPU has the weights, and its kernels for this length.
START_SECONDS = 25.0
# Importances go through a pipe: of longer prompts they stay behind.
MOST_IMPORTANCES = 2**25
AT_ONCE = 4


def placed(environment: Mapping[str, str] | None = None, default: str = "mini") -> list[str]:
    """The models that are placed at the start: SPARSED_MODELS, names with commas."""
    values = os.environ if environment is None else environment
    listed = [name.strip() for name in values.get("SPARSED_MODELS", "").split(",")]
    return list(dict.fromkeys(name for name in listed if name)) or [default]


@dataclass(frozen=True)
class Bits:
    """A `sparsed` Pattern on its way between two processes: its masks as a record packs them, and its importances,
    float16 [batch, heads, query blocks, key blocks] for each layer, or None.
    """

    masks: Any
    importance: tuple[np.ndarray, ...] | None = None

    @classmethod
    def of(cls, pattern: Any) -> Bits:
        """Packs a pattern; its tensors may be on a GPU."""
        weights = pattern.importance or ()
        if not weights or sum(layer.numel() for layer in weights) > MOST_IMPORTANCES:
            return cls(pack_masks(pattern))
        return cls(pack_masks(pattern), tuple(layer.cpu().numpy() for layer in weights))

    def pattern(self) -> Any:
        """The same pattern, on the CPU."""
        import torch

        weights = self.importance
        importance = None if weights is None else tuple(torch.from_numpy(layer) for layer in weights)
        return replace(self.masks.to_pattern(), importance=importance)


@dataclass(frozen=True)
class Facts:
    """What a run says of itself, at this moment."""

    sampler: SamplerConfig
    attention: Any
    total: int
    switch_step: int | None
    backend: str
    notes: tuple[str, ...]
    finished: bool

    @classmethod
    def of(cls, run: Any) -> Facts:
        return cls(run.sampler, run.attention, run.total, run.switch_step, run.backend, tuple(run.notes), run.finished)


@dataclass(frozen=True)
class Opened:
    """The GPU is here and warm. prompt: its token ids, int64 [1, length]. machine: as `sparsed.machine.machine`."""

    facts: dict[str, Facts]
    prompt: np.ndarray
    machine: dict[str, Any]


@dataclass(frozen=True)
class Made:
    """A step of a lane: the fields of `sparsed.Step`, arrays in place of tensors. pattern, probes: what is new."""

    lane: str
    facts: Facts
    step: dict[str, Any]
    pattern: Bits | None
    probes: dict[int, Bits]


@dataclass(frozen=True)
class Broke:
    """A lane raised an error; the other process would only tell its class."""

    lane: str | None
    kind: Literal["value", "memory", "other"]
    said: str


def lent_race(
    models: Mapping[str, Any],
    name: str,
    prompt: str,
    sampler: SamplerConfig,
    wanted: Sequence[Wanted],
    backend: str,
    first: int,
) -> Iterator[Opened | Made | Broke]:
    """The race, where the GPU is: first what the runs are, then every step in the order in which the lanes take turns
    (`sparsed.turns.whose_turn`, as here). After a Broke nothing comes.
    """
    import torch

    # The threads that torch had on the CPU did not come along when this process was forked.
    torch.set_num_threads(1)
    runs: dict[str, Any] = {}
    lane: str | None = None
    try:
        model = models[name]
        runs = line_up(SparsedEngine(), (model,), prompt, sampler, wanted, backend)
        one = next(iter(runs.values()))
        yield Opened({key: Facts.of(run) for key, run in runs.items()}, one.prompt.numpy(), machine())
        keys, clocks, running = list(runs), [0.0] * len(runs), set(range(len(runs)))
        seen: dict[str, set[int]] = {key: set() for key in runs}
        while running:
            turn = whose_turn(clocks, running, first)
            lane = keys[turn]
            run = runs[lane]
            before = run.pattern
            step = next(run, None)
            if step is None:
                running.discard(turn)
                continue
            clocks[turn] += step.seconds
            new = {at: Bits.of(pattern) for at, pattern in run.probes.items() if at not in seen[lane]}
            seen[lane] |= set(new)
            arrays = {name: getattr(step, name).numpy() for name in ("tokens", "committed", "confidence")}
            told = {"index": step.index, "total": step.total, "phase": step.phase, "seconds": step.seconds, **arrays}
            pattern = Bits.of(run.pattern) if before is None and run.pattern is not None else None
            yield Made(lane, Facts.of(run), told, pattern, new)
    except Exception as error:  # noqa: BLE001 (whatever it is, it must come back as a sentence)
        yield _broke(lane, error)
    finally:
        for run in runs.values():
            run.close()


def _broke(lane: str | None, error: Exception) -> Broke:
    said = (str(error).strip().splitlines() or [""])[0][:300]
    if out_of_memory(error):
        return Broke(lane, "memory", said)
    if isinstance(error, ValueError):
        return Broke(lane, "value", said)
    return Broke(lane, "other", f"{type(error).__name__}: {said}")


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
    """A run that is made elsewhere: what the race, the page and `sparsed.trace.record` read of a `sparsed` Run."""

    def __init__(self, lane: str, stream: _Stream, opened: Opened, model: Any) -> None:
        import torch

        self._lane, self._stream = lane, stream
        self.model, self.machine = model, opened.machine
        self.prompt = torch.from_numpy(opened.prompt)
        self.prompt_length = int(self.prompt.shape[1])
        self.steps: list[Any] = []
        self.pattern: Any = None
        self.probes: dict[int, Any] = {}
        self._take(opened.facts[lane])

    def _take(self, facts: Facts) -> None:
        self.sampler, self.attention = facts.sampler, facts.attention
        self.total, self.switch_step, self.backend = facts.total, facts.switch_step, facts.backend
        self.notes, self.finished = list(facts.notes), facts.finished

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
            self.pattern = made.pattern.pattern()
        self.probes |= {at: bits.pattern() for at, bits in made.probes.items()}
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
        prompt: str,
        sampler: SamplerConfig,
        wanted: Sequence[Wanted],
        backend: str,
        first: int,
        seconds: float,
    ) -> Iterator[Any]:
        yield from lent_race(self._placed, name, prompt, sampler, wanted, backend, first)

    def models(self) -> Mapping[str, ModelSpec]:
        known = super().models()
        # They are all here: nothing is downloaded, and none is given up for another.
        return {name: replace(known.get(name) or self.spec_of(name), bundled=True) for name in self._names}

    def admit(self, name: str) -> None:
        raise ValueError(f"The model {name[:80]!r} is not one of {', '.join(self._names)}, which this Space has.")

    def load(self, name: str, progress: Listener) -> Any:
        import torch

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
        return f"ZeroGPU · {dtype_name(model.dtype)}"

    def backend(self, model: Any) -> str:
        return "auto"

    def denoise(
        self,
        model: Any,
        prompt: str,
        sampler: SamplerConfig,
        attention: Any,
        backend: str,
        probe_steps: Sequence[int] = (),
    ) -> Any:
        # Here it is only asked for what it says before its first step; which backends there are, is known over there.
        return super().denoise(model, prompt, sampler, attention, "auto", probe_steps)

    def lend(
        self,
        model: Any,
        prompt: str,
        sampler: SamplerConfig,
        wanted: Sequence[Wanted],
        backend: str,
        first: int,
        seconds: float,
    ) -> dict[str, Any] | None:
        name = next(name for name, one in self._placed.items() if one.network is model.network)
        stream = _Stream(self._lent(name, prompt, sampler, tuple(wanted), backend, first, seconds))
        opened = stream.open()
        return {one.lane: BorrowedRun(one.lane, stream, opened, model) for one in wanted}

    def record(self, runs: Mapping[str, Any], *, prompt: Any, devices: Mapping[str, int]) -> Trace | None:
        made = super().record(runs, prompt=prompt, devices=devices)
        if made is None:
            return None
        there = next(iter(runs.values())).machine
        about = {key: value for key, value in there.items() if key in made.machine or key == "gpu"}
        return replace(made, machine=about, model=replace(made.model, device="cuda"))


def _duration(*given: Any) -> int:
    """Seconds of the GPU that a race asks for, from the arguments of `ZeroEngine._race`: the last is its estimate."""
    seconds: float = given[-1]
    return math.ceil(START_SECONDS + 1.5 * seconds)
