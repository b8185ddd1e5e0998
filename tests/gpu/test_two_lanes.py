"""Two lanes on two GPUs: the same tokens as alone, and what each lane's step takes alone and beside the other (-s).

SPARSED_TEST_LENGTHS: prompt lengths in tokens, with commas. Needs neither gradio nor plotly.
"""

from __future__ import annotations

import gc
import os
from collections import defaultdict
from collections.abc import Iterator
from statistics import median
from time import perf_counter
from typing import Any

import pytest
import torch

import sparsed
from app.engine.copies import line_up
from app.engine.local import SparsedEngine
from app.lanes import lanes_for
from app.race.race import Lane, Race
from sparsed import SamplerConfig, SparseDConfig
from sparsed.bench import shapes
from sparsed.turns import seat

if torch.cuda.device_count() < 2:
    pytest.skip("needs two CUDA GPUs", allow_module_level=True)

LENGTHS = [int(length) for length in os.environ.get("SPARSED_TEST_LENGTHS", "4096,16384").split(",")]
REPEATS = 2
SAMPLER = SamplerConfig(steps=8, gen_length=128, block_length=128, algorithm="low_confidence", temperature=0.0, seed=0)
WANTED = lanes_for(SparseDConfig(skip=0.25, select=0.3, block_size=128))
GIB = 2**30
# Lane and phase → seconds of steps.
Times = dict[tuple[str, str], list[float]]


@pytest.fixture(scope="module", params=["mini", "llada-8b"])
def copies(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    """The bundled model, or one of LLaDA-8B's shape with random weights, on the first GPU and on the second."""
    name = request.param
    if name == "mini":
        made = [sparsed.load(name, device=f"cuda:{gpu}") for gpu in range(2)]
    else:
        if min(torch.cuda.mem_get_info(gpu)[1] for gpu in range(2)) < 60 * GIB:
            pytest.skip("needs GPUs with 60 GiB of memory")
        made = [shapes._random_model(name, f"cuda:{gpu}", None, True) for gpu in range(2)]
    yield made[0], made[1]
    made.clear()
    gc.collect()
    torch.cuda.empty_cache()


def raced(runs: dict[str, Any], times: Times, *, together: bool = True) -> float:
    """Runs warm lanes to their ends and notes their steps; returns seconds. together: each has a device of its own."""
    lanes = [Lane(key, run, number if together else 0) for number, (key, run) in enumerate(runs.items())]
    began = perf_counter()
    # All steps at once: nothing draws here.
    updates = list(Race(lanes, updates_per_second=1000))
    took = perf_counter() - began
    assert updates[-1].state == "done", updates[-1].error
    for update in updates:
        for item in update.steps:
            times[item.lane, item.step.phase].append(item.step.seconds)
    return took


@pytest.mark.parametrize("length", LENGTHS)
def test_each_lane_writes_what_it_writes_alone(copies: tuple[Any, Any], length: int) -> None:
    engine, first = SparsedEngine(), copies[0]
    assert [str(model.device) for model in copies] == ["cuda:0", "cuda:1"]
    vocabulary = first.network.config.vocab_size
    prompt: Any = torch.randint(0, vocabulary - 1, (1, length), generator=torch.Generator().manual_seed(0))
    prompt += prompt >= first.mask_id  # any token but the mask
    alone: Times = defaultdict(list)
    beside: Times = defaultdict(list)
    turns: Times = defaultdict(list)
    walls: dict[str, list[float]] = defaultdict(list)
    tokens: dict[str, list[torch.Tensor]] = defaultdict(list)

    def note(runs: dict[str, Any]) -> None:
        for key, run in runs.items():
            tokens[key].append(run.steps[-1].tokens)

    for repeat in range(REPEATS):
        for lane, one in enumerate(WANTED):
            runs = line_up(engine, (copies[seat(lane, 2)],), prompt, SAMPLER, [one], "auto")
            walls["alone, one after the other"].append(raced(runs, alone))
            note(runs)
        runs = line_up(engine, copies, prompt, SAMPLER, WANTED, "auto")
        assert [run.model for run in runs.values()] == list(copies)
        walls["side by side"].append(raced(runs, beside))
        note(runs)
        if repeat == 0:
            said = ", ".join(f"{key}: {run.dense.name} then {run.backend}" for key, run in runs.items())
        runs = line_up(engine, (first,), prompt, SAMPLER, WANTED, "auto")
        walls["in turns on one GPU"].append(raced(runs, turns, together=False))

    print(f"\n{first.label}, {str(first.dtype).removeprefix('torch.')}, {length} + 128 tokens ({said})")
    print(f"{'lane':8}{'phase':8}{'alone':>12}{'side by side':>14}{'ratio':>8}{'in turns':>12}{'ratio':>8}")
    for (lane, phase), seconds in alone.items():
        one, two, three = (1000 * median(found) for found in (seconds, beside[lane, phase], turns[lane, phase]))
        print(f"{lane:8}{phase:8}{one:9.2f} ms{two:11.2f} ms{two / one:8.3f}{three:9.2f} ms{three / one:8.3f}")
    for name, seconds in walls.items():
        print(f"real time {name}: {sum(seconds) / REPEATS:.3f} s")
    for key, written in tokens.items():
        assert all(torch.equal(one, written[0]) for one in written[1:]), f"{key} wrote something else beside the other"
    assert set(beside) == {("dense", "dense"), ("sparse", "dense"), ("sparse", "select"), ("sparse", "sparse")}


def test_the_engine_loads_a_model_on_gpus_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSED_LANES", raising=False)
    engine = SparsedEngine()
    model = engine.load("mini", lambda _: None)
    copies = engine.copies(model)
    kinds = [torch.cuda.get_device_name(gpu) for gpu in range(torch.cuda.device_count())]
    assert {torch.cuda.get_device_name(copy.device) for copy in copies} == {kinds[0]}
    assert len(copies) == min(kinds.count(kinds[0]), 3)
    assert len({copy.device for copy in copies}) == len(copies) and engine.place(model).startswith(f"{len(copies)} GPU")
    for one, other in zip(model.network.parameters(), copies[-1].network.parameters()):
        assert torch.equal(one.cpu(), other.cpu())
    held = [torch.cuda.memory_allocated(copy.device) for copy in copies]
    devices = [copy.device for copy in copies]
    del model, copies, one, other
    gc.collect()
    assert all(torch.cuda.memory_allocated(device) < before for device, before in zip(devices, held))
