"""Steps of few rows that are captured once and replayed: the same tokens, by the same work in the same places.

A stand-in captures here what CUDA graphs capture on a GPU (tests/gpu): it does the work again, on the tensors that the
work was given when it was captured, into the result of that time. As a graph it holds none of them itself.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsed
from sparsed import CacheConfig, SamplerConfig, SparseDConfig
from sparsed.denoising.graphs import StepGraphs, step_graphs

PROMPT = torch.randint(2, 250, (2, 37), generator=torch.Generator().manual_seed(5))
SPARSE = SparseDConfig(skip=0.3, select=0.4, block_size=32)


def tokens_of(model: Any, cache: CacheConfig) -> tuple[list[Any], list[int]]:
    """A run's tokens after each step, and the rows of each step."""
    block_length = 16 if model.family == "llada" else None  # Dream's algorithms have one block
    sampler = SamplerConfig(steps=20, gen_length=32, block_length=block_length, temperature=0.0)
    steps = list(sparsed.denoise(model, PROMPT, sampler=sampler, attention=SPARSE, cache=cache))
    return [step.tokens.tolist() for step in steps], [step.rows for step in steps]


class Replays:
    """The stand-in, and how often it did its work."""

    def __init__(self) -> None:
        self.captured, self.replayed = 0, 0

    def __call__(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.captured += 1
        out, held = work().clone(), weakref.ref(work)

        def again() -> Tensor:
            self.replayed += 1
            kept = held()
            assert kept is not None, "what the graph reads is gone"
            return out.copy_(kept())

        return again


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("cache", [CacheConfig("prefix"), CacheConfig("dual"), CacheConfig("refresh", 4),
                                   CacheConfig("refresh", 4, keys="pattern"), CacheConfig("delayed", 4)],
                         ids=["prefix", "dual", "refresh", "pattern", "delayed"])  # fmt: skip
def test_replayed_steps_give_the_same_tokens(
    model_of: Any, monkeypatch: pytest.MonkeyPatch, family: str, cache: CacheConfig
) -> None:
    model = model_of(family)
    wanted, rows = tokens_of(model, cache)
    made = Replays()
    monkeypatch.setattr("sparsed.denoising.run.step_graphs", lambda model: StepGraphs(made))
    assert tokens_of(model, cache) == (wanted, rows)
    if cache.keys == "pattern" or cache.method == "delayed":
        # A step that keeps to the pattern is not captured, and hardly one of sequences that go alone.
        assert made.replayed < len(rows)
        return
    # The third forward with its number of rows is captured, and it and each later one replayed.
    few = Counter(count for count in rows if count < PROMPT.shape[1] + 32)
    assert made.captured == sum(times > 2 for times in few.values()) >= 1
    assert made.replayed == sum(max(0, times - 2) for times in few.values())


def test_what_cannot_be_captured_goes_on_without(model_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tries = model_of("llada"), []

    def capture(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        tries.append(1)
        raise RuntimeError("operation not permitted when stream is capturing\nin a long text")

    wanted = tokens_of(model, CacheConfig("dual"))
    monkeypatch.setattr("sparsed.denoising.run.step_graphs", lambda model: StepGraphs(capture))
    with pytest.warns(UserWarning, match="go without CUDA graphs: operation not permitted when stream is capturing$"):
        assert tokens_of(model, CacheConfig("dual")) == wanted
    assert tries == [1]


def test_graphs_go_with_the_run(model_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = model_of("llada"), list[Any]()

    def graphs(model: Any) -> StepGraphs:
        one = StepGraphs(Replays())
        made.append(weakref.ref(one))
        return one

    monkeypatch.setattr("sparsed.denoising.run.step_graphs", graphs)
    sampler = SamplerConfig(steps=20, gen_length=32, block_length=16)
    run = sparsed.denoise(model, PROMPT, sampler=sampler, attention="dense", cache=CacheConfig("dual"))
    for _ in range(6):
        next(run)
    assert made[0]() is not None
    run.close()
    gc.collect()
    assert made[0]() is None


def test_a_cpu_has_none(model_of: Any) -> None:
    assert step_graphs(model_of("llada")) is None
