"""The other process of ZeroGPU, which has the GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from app.engine.copies import line_up
from app.engine.interface import Given
from app.engine.local import SparsedEngine
from app.lanes import LaneSpec
from sparsed.attention.masks import Masks
from sparsed.config import SamplerConfig
from sparsed.machine import machine, out_of_memory
from sparsed.turns import whose_turn

if TYPE_CHECKING:
    from sparsed.denoising.info import RunInfo
    from sparsed.denoising.run import Run
    from sparsed.models.model import Model

# Operations a second of the half of an H200 that ZeroGPU lends: LLaDA-8B's dense steps reach 5.7e14 on the whole one.
BORROWED_FLOPS = 2.4e14
# Until a borrowed GPU has the weights, and its kernels for this length.
START_SECONDS = 25.0
# Importances go through a pipe: of longer prompts they stay behind.
MOST_IMPORTANCES = 2**25
AT_ONCE = 4


@dataclass(frozen=True)
class Facts:
    """What a run says of itself, at this moment. switch_step: the first sparse step, made or still to come."""

    info: RunInfo
    switch_step: int | None

    @classmethod
    def of(cls, run: Run) -> Facts:
        return cls(run.info, run.switch_step)


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
    pattern: Masks | None
    probes: dict[int, Masks]


@dataclass(frozen=True)
class Broke:
    """A lane raised an error; the other process would only tell its class."""

    lane: str | None
    kind: Literal["value", "memory", "other"]
    said: str


def lent_race(
    models: Mapping[str, Model],
    name: str,
    prompt: Given,
    sampler: SamplerConfig,
    lanes: Sequence[LaneSpec],
    backend: str,
    first: int,
    chat: bool | None,
) -> Iterator[Opened | Made | Broke]:
    """The race, where the GPU is: first what the runs are, then every step in the order in which the lanes take turns
    (`sparsed.turns.whose_turn`, as here). After a Broke nothing comes.
    """
    import torch

    # The threads that torch had on the CPU did not come along when this process was forked.
    torch.set_num_threads(1)
    runs: dict[str, Run] = {}
    lane: str | None = None
    try:
        model = models[name]
        runs = cast("dict[str, Run]", line_up(SparsedEngine(), (model,), prompt, sampler, lanes, backend, chat))
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
            new = {at: _sent(pattern) for at, pattern in run.probes.items() if at not in seen[lane]}
            seen[lane] |= set(new)
            arrays = {name: getattr(step, name).numpy() for name in ("tokens", "committed", "confidence")}
            facts = {name: getattr(step, name) for name in ("index", "total", "phase", "rows", "length", "seconds")}
            told = {**facts, **arrays}
            pattern = _sent(run.pattern) if run.pattern is not None and run.pattern is not before else None
            yield Made(lane, Facts.of(run), told, pattern, new)
    except Exception as error:  # noqa: BLE001 (whatever it is, it must come back as a sentence)
        yield _broke(lane, error)
    finally:
        for run in runs.values():
            run.close()


def _sent(pattern: Any) -> Masks:
    """A pattern as it goes through the pipe."""
    few = sum(layer.numel() for layer in pattern.importance or ()) <= MOST_IMPORTANCES
    return Masks.of(pattern if few else replace(pattern, importance=None))


def _broke(lane: str | None, error: Exception) -> Broke:
    said = (str(error).strip().splitlines() or [""])[0][:300]
    if out_of_memory(error):
        return Broke(lane, "memory", said)
    if isinstance(error, ValueError):
        return Broke(lane, "value", said)
    return Broke(lane, "other", f"{type(error).__name__}: {said}")
