"""Faults inside a race, and what is left of them: one sentence for the visitor, and nothing else.

The real engine with small random checkpoints, driven as the page drives it (`app.server.session.perform` with a
`Desk`), but without a browser. Memory runs out or a kernel fails inside the attention of one lane, or its logits are
not finite, at some step; after each fault the same race, undisturbed, must write what it wrote before the first one.
tests/evidence draws a hundred faults from a seed.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from app.engine.local import SparsedEngine
from app.race.race import Race
from app.race.request import OWN_TEXT, Request, parse
from app.server.desk import Desk
from app.server.limits import Limits
from app.server.observer import Measured, Observer
from app.server.session import VISITOR, perform
from app.server.shown import Shown
from app.server.visits import Visit
from sparsed.attention.backends import dense, gather
from sparsed.config import DEFAULT_SKIP, select_step
from sparsed.denoising.forward import LocalForward
from sparsed.denoising.run import Run

TEXT = "Mara Velin was born in Tolm in 1911 and worked as a glassblower. She lived in Orlin, near the river Sava. " * 3
LANES = ("dense", "sparsed", "random")
STEPS = 16
SELECT = select_step(STEPS, DEFAULT_SKIP)
NOT_FINITE = "not finite"


class KernelPanicError(RuntimeError):
    """What a kernel may raise: several lines, the later ones of no use to a visitor."""


RAISED: dict[str, Callable[[], Exception]] = {
    "MemoryError": MemoryError,
    "OutOfMemoryError": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.\nGPU 0 has …"),
    "allocator": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    "RuntimeError": lambda: RuntimeError("The size of tensor a (64) must match the size of tensor b (32)"),
    "kernel": lambda: KernelPanicError('an illegal memory access\nTraceback (most recent call last):\n  File "k.py"'),
}
OF_MEMORY = ("MemoryError", "OutOfMemoryError", "allocator")


@dataclass(frozen=True)
class Fault:
    """what: one of RAISED, raised inside the attention of that layer, or NOT_FINITE. step: counted from 0."""

    what: str
    lane: str
    step: int
    layer: int = 0
    value: float = float("nan")

    @property
    def sentence(self) -> str:
        """What the visitor must read, in the lane of that name."""
        labels = {"dense": "Full attention", "sparsed": "SparseD", "random": "Random blocks"}
        where = f"in the lane “{labels[self.lane]}”"
        if self.what in OF_MEMORY:
            return (
                f"This machine ran out of memory {where}. Choose a shorter prompt length or a shorter generation, and "
                "press Run again."
            )
        return f"The run ended early {where} with an error of the engine ("


class Injector:
    """Knows which step of which run is being made, and spoils the one that `fault` names. spoiled: it has done so."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.fault: Fault | None = None
        self.spoiled: list[str] = []
        self.runs: weakref.WeakSet[Run] = weakref.WeakSet()
        self._now = ("", -1)
        self._layer = 0
        patch.setattr(Run, "__init__", self._noted(Run.__init__))
        patch.setattr(Run, "__next__", self._placed(Run.__next__))
        patch.setattr(LocalForward, "logits", self._logits(LocalForward.logits))
        # Looked up by the engine whenever it is called, or when a run chooses its backend.
        patch.setattr(dense, "scaled_dot_product_attention", self._attention(dense.scaled_dot_product_attention))
        patch.setattr(gather, "gather_attention", self._attention(gather.gather_attention))

    def _noted(self, original: Callable[..., None]) -> Callable[..., None]:
        def init(run: Run, *given: Any) -> None:
            original(run, *given)
            self.runs.add(run)

        return init

    def _placed(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def make_step(run: Run) -> Any:
            lane = run.attention.method
            self._now, self._layer = (lane, len(run.steps)), 0
            try:
                return original(run)
            finally:
                self._now = ("", -1)

        return make_step

    def _here(self) -> Fault | None:
        fault = self.fault
        return fault if fault is not None and self._now == (fault.lane, fault.step) else None

    def _attention(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def attend(*given: Any, **named: Any) -> Any:
            fault, layer = self._here(), self._layer
            self._layer += 1
            if fault is not None and fault.what in RAISED and layer == fault.layer:
                self.spoiled.append(original.__name__)
                raise RAISED[fault.what]()
            return original(*given, **named)

        return attend

    def _logits(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def logits(*given: Any) -> Any:
            made = original(*given)
            fault = self._here()
            if fault is not None and fault.what == NOT_FINITE and len(made):
                self.spoiled.append("logits")
                made = made.clone()
                made[len(made) // 2, 7] = fault.value
            return made

        return logits


class Page:
    """A desk over one checkpoint, and what it shows of a race."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.name = str(folder)
        self.desk = Desk(SparsedEngine(self.name), self.name, Limits())
        # Its speed is of no interest here, and measuring takes longer than the test.
        self.desk.models.measure = lambda loaded: None  # type: ignore[method-assign, assignment, return-value]
        self.desk.models.load(self.name)
        self.visit = Visit()
        self.asked = self.ask(**settings)

    def ask(self, **settings: Any) -> Request:
        engine = self.desk.engine
        return parse(
            **{
                "model": self.name, "kind": OWN_TEXT, "length": "short_context", "question": 0, "text": TEXT,
                "steps": STEPS, "gen_length": 32, "block_length": 32, "block_size": 32, "seed": 5, "backend": "auto",
                "third": "random",
                "defaults": self.desk.models.defaults(self.name), "models": engine.models(), "kinds": engine.kinds(),
                "lengths": engine.lengths(),
            }
            | settings
        )  # fmt: skip

    def race(self, observer: Observer = VISITOR, visit: Visit | None = None) -> list[Shown]:
        """Everything that one race shows. The visit is the same one each time, as that of a page that stays open."""

        async def collect() -> list[Shown]:
            used = self.visit if visit is None else visit
            return [shown async for shown in perform(self.desk, used, self.asked, observer)]

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, collect()).result(timeout=60)

    def nothing_left(self, injector: Injector) -> None:
        """No race, no place in the line, no hold on the model, no run in memory."""
        deadline = time.monotonic() + 10
        # A worker's last act is to tell that the race is over; who watches it hears of that.
        while (left := threads_of_races()) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert left == []
        assert len(self.desk.queue) == 0
        assert self.desk.models.held(self.name) == 0
        assert (self.visit.race, self.visit.running, self.visit.stopping) == (None, False, False)
        gc.collect()
        assert list(injector.runs) == []


def threads_of_races() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name in ("race", "watchdog")]


def written(shown: list[Shown]) -> dict[str, list[list[Any]]]:
    """Lane → the cells at the end: text, step, confidence."""
    last = shown[-1]
    assert last.over and last.stage["state"] == "done", last.stage["message"]
    return {lane["key"]: lane["cells"] for lane in last.stage["lanes"]}


def tokens(page: Page) -> dict[str, list[tuple[int, int, int]]]:
    """Lane → (step, position, token) of the visit's last run."""
    assert page.visit.kept is not None
    lanes = page.visit.kept.trace.lanes
    return {
        key: [(step.index, commit.position, commit.token) for step in lane.steps for commit in step.committed]
        for key, lane in lanes.items()
    }


@pytest.fixture
def injector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Injector]:
    monkeypatch.setattr("app.server.start.Race", partial(Race, updates_per_second=60))
    # What torch and transformers hold need not be gone through again each time.
    gc.collect()
    gc.freeze()
    yield Injector(monkeypatch)
    gc.unfreeze()


@pytest.fixture(scope="module")
def llama_page(tiny_folder: Path) -> Page:
    """A Llama in mini's format; greedy."""
    return Page(tiny_folder)


@pytest.fixture(scope="module")
def dream_page(checkpoints: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A Dream, whose sampler draws tokens."""
    folder = tmp_path_factory.mktemp("faulty-dream") / "tiny-dream"
    checkpoints.WRITERS["dream"](folder, mask_predicted=False)
    return Page(folder, temperature=0.7, top_p=0.9)


def drawn(layers: int, count: int, seed: int) -> list[Fault]:
    """Faults over all kinds, lanes and steps, the same ones each time."""
    rng = random.Random(seed)
    kinds = [*RAISED, NOT_FINITE]
    return [
        Fault(
            what=kinds[number % len(kinds)],
            lane=rng.choice(LANES),
            step=rng.randrange(STEPS),
            layer=rng.randrange(layers),
            value=rng.choice([float("nan"), float("inf")]),
        )
        for number in range(count)
    ]


def each() -> list[Fault]:
    """Every kind; of memory, of errors and of numbers one in every lane, at the first, the select, the last and other
    steps, and one at the select step of a lane that selects.
    """
    steps = itertools.cycle([0, SELECT, SELECT + 1, SELECT - 1, STEPS - 1])
    values = itertools.cycle([float("nan"), float("inf")])
    kinds = [*OF_MEMORY, "RuntimeError", "kernel", "RuntimeError", *3 * [NOT_FINITE]]
    places = [(what, lane, next(steps)) for what, lane in zip(kinds, itertools.cycle(LANES))]
    places += [("OutOfMemoryError", "random", SELECT), ("kernel", "random", SELECT), (NOT_FINITE, "sparsed", SELECT)]
    return [Fault(*place, layer=number % 2, value=next(values)) for number, place in enumerate(places)]


def check_sentence(message: str, fault: Fault) -> None:
    assert message.startswith(fault.sentence) and message.endswith("press Run again."), message
    for never in ("\n", "Traceback", 'File "', "  "):
        assert never not in message, message
    assert len(message) < 400
    if fault.what == NOT_FINITE:
        assert f"logits are not finite at step {fault.step + 1} of 16 (" in message, message
        assert "its weights are damaged, or too large for" in message


def weather(page: Page, faults: list[Fault], injector: Injector) -> list[str]:
    """Each fault, and after each the undisturbed race; returns where they struck."""
    before = written(page.race())
    truth = tokens(page)
    assert all(before.values()) and all(truth.values())
    page.nothing_left(injector)
    struck = []
    for number, fault in enumerate(faults):
        injector.fault, injector.spoiled = fault, []
        shown = page.race()
        assert len(injector.spoiled) == 1, (number, fault)
        struck += injector.spoiled
        last = shown[-1]
        assert [one.over for one in shown] == [False] * (len(shown) - 1) + [True]
        assert last.stage["state"] == "failed", (number, fault)
        check_sentence(last.stage["message"], fault)
        del shown, last
        page.nothing_left(injector)
        injector.fault = None
        assert written(page.race()) == before, (number, fault)
        assert tokens(page) == truth, (number, fault)
        page.nothing_left(injector)
    return struck


def test_each_fault_in_each_lane_is_a_sentence_and_hurts_no_later_run(
    llama_page: Page, dream_page: Page, injector: Injector, capfd: pytest.CaptureFixture[str]
) -> None:
    faults = each()
    assert len(faults) == 12 and {fault.what for fault in faults} == {*RAISED, NOT_FINITE}
    assert {page.asked.attention.skip for page in (llama_page, dream_page)} <= {None, DEFAULT_SKIP}
    assert {0, SELECT - 1, SELECT, SELECT + 1, STEPS - 1} == {fault.step for fault in faults}
    assert {(fault.lane, fault.step) for fault in faults} >= {("sparsed", SELECT), ("random", SELECT)}
    struck = weather(llama_page, faults[::2], injector) + weather(dream_page, faults[1::2], injector)
    assert len(struck) == len(faults)
    # They reach dense and sparse attention and the logits.
    assert min(struck.count(name) for name in ("scaled_dot_product_attention", "gather_attention", "logits")) >= 2
    # Whoever runs the page finds in the log where each came from.
    assert capfd.readouterr().err.count('"event": "error"') == len(faults)


def test_a_fault_in_one_of_several_races_leaves_nothing_either(
    llama_page: Page, injector: Injector, capfd: pytest.CaptureFixture[str]
) -> None:
    injector.fault = Fault("MemoryError", "sparsed", 9, 1)
    visit = Visit()
    visit.running = True  # the caller keeps it
    measured = Measured()
    last = llama_page.race(measured, visit)[-1]
    assert last.over and last.stage["state"] == "failed" and measured.tokens is not None
    check_sentence(last.stage["message"], injector.fault)
    assert visit.kept is None and visit.race is None and visit.running
    injector.fault = None
    assert llama_page.race(Measured(), visit)[-1].stage["state"] == "done"
    llama_page.nothing_left(injector)


def test_a_failed_run_keeps_what_was_written_until_then(
    llama_page: Page, injector: Injector, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = written(llama_page.race())
    injector.fault = Fault("RuntimeError", "sparsed", 10, 0)
    last = llama_page.race()[-1]
    lanes = {lane["key"]: lane for lane in last.stage["lanes"]}
    assert lanes["sparse"]["step"] == 10 and last.kept is not None
    for key, lane in lanes.items():
        made = lane["step"]
        expected = [cell if 0 < cell[1] <= made else None for cell in whole[key]]
        assert [cell if cell[1] else None for cell in lane["cells"]] == expected


# Where else a race can break: methods of the engine, and what may be raised there.
ELSEWHERE = ("count", "denoise", "decode_tokens", "read_answer")
ANYTHING: dict[str, Callable[[], Exception]] = {
    "MemoryError": MemoryError,
    "RuntimeError": lambda: RuntimeError("no such kernel\nand more"),
    "KeyError": lambda: KeyError("weight"),
    "TypeError": lambda: TypeError("not a string"),
    "AssertionError": AssertionError,
}


@pytest.mark.parametrize("what", ANYTHING)
@pytest.mark.parametrize("name", ELSEWHERE)
def test_whatever_breaks_around_the_steps_is_a_sentence_too(
    llama_page: Page,
    injector: Injector,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    name: str,
    what: str,
) -> None:
    def broken(*_: Any) -> Any:
        raise ANYTHING[what]()

    with monkeypatch.context() as patch:
        patch.setattr(llama_page.desk.engine, name, broken)
        last = llama_page.race()[-1]
    assert last.over and last.stage["state"] == "failed"
    message = last.stage["message"]
    assert message.endswith("press Run again.") and "\n" not in message and "Traceback" not in message
    assert ("ran out of memory" in message) == (what == "MemoryError")
    told = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(one["error"], len(one["trace"]) > 1) for one in told if one["event"] == "error"] == [(what, True)]
    del last
    llama_page.nothing_left(injector)
    assert set(written(llama_page.race())) == {"dense", "sparse", "baseline"}


@pytest.mark.parametrize("what", ANYTHING)
def test_a_race_that_cannot_be_recorded_is_done_all_the_same(
    llama_page: Page,
    injector: Injector,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    what: str,
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ANYTHING[what]()

    whole = written(llama_page.race())
    with monkeypatch.context() as patch:
        patch.setattr(llama_page.desk.engine, "record", broken)
        shown = llama_page.race()
    assert written(shown) == whole and shown[-1].kept is None
    told = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(one["error"], len(one["trace"]) > 1) for one in told if one["event"] == "error"] == [(what, True)]
    del shown
    llama_page.nothing_left(injector)
