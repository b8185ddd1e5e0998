"""A model on several GPUs: where it is loaded again, and that each lane runs on its own copy. GPUs are stand-ins."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

import sparsed
from app.engine.copies import ROOM_GENERATED, ROOM_TOKENS, line_up
from app.engine.cost import memory_needed
from app.engine.local import SparsedEngine
from app.finished.run import keep
from app.lanes import LaneSpec, lanes_for, watched
from app.race.race import Lane, Race
from sparsed import trace
from sparsed.config import SamplerConfig, SparseDConfig
from sparsed.models import LoadError
from sparsed.turns import seat

GIB = 2**30
H200, A10 = "NVIDIA H200", "NVIDIA A10"
SAMPLER = SamplerConfig(steps=8, gen_length=32, block_length=32, seed=3)
SPARSE = SparseDConfig(skip=0.25, select=0.4, block_size=32)
PROMPT = "Every word of this prompt is one of many. " * 12


class Placed:
    """A model somewhere, as far as the engine looks at it."""

    def __init__(self, mini: Any, device: str) -> None:
        self.network, self.dtype = mini.network, torch.bfloat16
        self.device, self.processes = torch.device(device), 1
        self.quantize, self.numbers = None, "bfloat16"


class Machine:
    """GPUs by number: (kind, bytes free). loads: device and dtype that were asked for. failing: device → error."""

    def __init__(self, mini: Any, gpus: list[tuple[str, int]], first: str = "cuda:0") -> None:
        self.mini, self.gpus, self.first = mini, gpus, first
        self.loads: list[tuple[Any, Any]] = []
        self.failing: dict[str, Exception] = {}

    def load(self, name: str, *, device: Any = None, dtype: Any = None, progress: Any = None, **_: Any) -> Placed:
        self.loads.append((device, dtype))
        progress("reading weights")
        if device in self.failing:
            raise self.failing[device]
        return Placed(self.mini, device or self.first)


@pytest.fixture(scope="module")
def mini() -> Any:
    return sparsed.load("mini", device="cpu", dtype="float32")


@pytest.fixture
def machine(mini: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    """GPUs → a machine that has them; the engine sees no other."""

    def make(*gpus: tuple[str, int], first: str = "cuda:0") -> Machine:
        made = Machine(mini, list(gpus), first)
        monkeypatch.delenv("SPARSED_LANES", raising=False)
        monkeypatch.setattr(sparsed, "load", made.load)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(made.gpus))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda gpu: made.gpus[getattr(gpu, "index", gpu)][0])
        monkeypatch.setattr("app.engine.local.device_memory", lambda kind, gpu=None: made.gpus[gpu][1])
        return made

    return make


def places(engine: SparsedEngine, model: Any) -> list[str]:
    return [str(copy.device) for copy in engine.copies(model)]


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ([H200], ["cuda:0"]),
        ([H200, H200], ["cuda:0", "cuda:1"]),
        ([H200] * 8, ["cuda:0", "cuda:1", "cuda:2"]),
        # On another kind of GPU a lane would win or lose by it.
        ([H200, A10, H200], ["cuda:0", "cuda:2"]),
        ([H200, A10], ["cuda:0"]),
    ],
)
def test_a_model_is_loaded_on_gpus_of_one_kind_at_most_once_for_each_lane(machine, gpus, expected) -> None:
    here, engine, heard = machine(*((kind, 80 * GIB) for kind in gpus)), SparsedEngine(), []
    model = engine.load("mini", heard.append)
    assert places(engine, model) == expected and engine.copies(model)[0] is model
    # The copies have the first one's numbers, whatever their own GPU would be given.
    assert here.loads == [(None, None), *((device, torch.bfloat16) for device in expected[1:])]
    assert [str(far) for far in heard] == [
        "reading weights",
        *(f"copy {number}, on another GPU: reading weights" for number in range(2, len(expected) + 1)),
    ]
    number = "GPU" if len(expected) == 1 else f"{len(expected)} GPUs"
    assert engine.place(model) == f"{number} · bfloat16"


def test_the_gpu_that_has_the_model_already_is_no_other(machine) -> None:
    machine(*[(H200, 80 * GIB)] * 3, first="cuda:1")
    engine = SparsedEngine()
    assert places(engine, engine.load("mini", lambda _: None)) == ["cuda:1", "cuda:0", "cuda:2"]


def test_a_copy_needs_room_for_itself_and_a_run(machine, mini) -> None:
    engine = SparsedEngine()
    shape = engine.shape(Placed(mini, "cuda:0"))
    needed = shape.weight_bytes + memory_needed(shape, ROOM_TOKENS, 128, ROOM_GENERATED)
    for free, copies in ((int(needed / 0.9) + 2, 2), (int(needed / 0.9) - 2, 1), (shape.weight_bytes, 1)):
        machine((H200, 80 * GIB), (H200, free))
        assert len(engine.copies(engine.load("mini", lambda _: None))) == copies


@pytest.mark.parametrize("error", [LoadError("too little"), torch.OutOfMemoryError("out"), OSError("gone")])
def test_a_copy_that_cannot_be_loaded_is_no_error(machine, error: Exception) -> None:
    here, engine = machine(*[(H200, 80 * GIB)] * 3), SparsedEngine()
    here.failing["cuda:1"] = error
    assert places(engine, engine.load("mini", lambda _: None)) == ["cuda:0", "cuda:2"]


def test_nothing_is_loaded_twice_where_lanes_are_told_to_take_turns(machine, monkeypatch) -> None:
    here = machine(*[(H200, 80 * GIB)] * 2)
    monkeypatch.setenv("SPARSED_LANES", "turns")
    engine = SparsedEngine()
    assert places(engine, engine.load("mini", lambda _: None)) == ["cuda:0"] and len(here.loads) == 1
    monkeypatch.setenv("SPARSED_LANES", "two")
    with pytest.raises(ValueError, match="^SPARSED_LANES is 'two'; it must be 'auto' or 'turns'.$"):
        SparsedEngine()


def test_on_a_cpu_there_is_one(machine) -> None:
    here = machine(*[(H200, 80 * GIB)] * 2, first="cpu")
    engine = SparsedEngine()
    assert places(engine, engine.load("mini", lambda _: None)) == ["cpu"] and len(here.loads) == 1


def test_copies_are_freed_with_their_model(machine) -> None:
    machine(*[(H200, 80 * GIB)] * 2)
    engine = SparsedEngine()
    model = engine.load("mini", lambda _: None)
    copy = weakref.ref(engine.copies(model)[1])
    gc.collect()
    assert copy() is not None
    del model
    gc.collect()
    assert copy() is None


# ---- the lanes on their copies -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def copies(mini: Any) -> tuple[Any, ...]:
    return (mini, *(sparsed.load("mini", device="cpu", dtype="float32") for _ in range(2)))


def wanted(third: bool) -> tuple[LaneSpec, ...]:
    return watched(lanes_for(SPARSE, ["random"] if third else []), False, (5,))


@pytest.fixture(scope="module")
def alone(mini: Any) -> dict[str, Any]:
    """What each lane writes by itself."""
    runs = line_up(SparsedEngine(), (mini,), PROMPT, SAMPLER, wanted(True), "gather")
    assert {id(run.model) for run in runs.values()} == {id(mini)}
    return {key: run.result().tokens for key, run in runs.items()}


@pytest.mark.parametrize(("third", "devices"), [(False, 2), (True, 2), (True, 3)])
def test_each_lane_runs_on_its_copy_and_writes_what_it_writes_alone(copies, alone, third: bool, devices: int) -> None:
    runs = line_up(SparsedEngine(), copies[:devices], PROMPT, SAMPLER, wanted(third), "gather")
    seats = [seat(number, devices) for number in range(len(runs))]
    assert [run.model for run in runs.values()] == [copies[number] for number in seats]
    lanes = [Lane(key, run, number) for (key, run), number in zip(runs.items(), seats)]
    last = list(Race(lanes))[-1]
    assert last.state == "done", last.error
    for key, run in runs.items():
        assert torch.equal(run.result().tokens, alone[key])
    kept = keep(runs, PROMPT)
    assert kept is not None and [lane.device for lane in kept.trace.lanes.values()] == seats
    assert kept.pattern is not None and kept.trace.lanes["sparse"].probes


def test_its_record_is_that_of_lanes_in_turns_but_for_the_devices(copies, mini, tmp_path) -> None:
    records = []
    for own in (copies[:2], (mini,)):
        runs = line_up(SparsedEngine(), own, PROMPT, SAMPLER, wanted(False), "gather")
        for run in runs.values():
            run.result()
        kept = keep(runs, PROMPT)
        assert kept is not None
        trace.save(kept.trace, tmp_path / "race.json.gz")
        records.append(trace.load(tmp_path / "race.json.gz"))
    together, turns = records
    for key, lane in turns.lanes.items():
        assert lane.text == together.lanes[key].text and lane.pattern == together.lanes[key].pattern
        assert [step.committed for step in lane.steps] == [step.committed for step in together.lanes[key].steps]
    assert together.prompt == turns.prompt and together.vocabulary == turns.vocabulary
    assert [lane.device for one in records for lane in one.lanes.values()] == [0, 1, 0, 0]
