"""Races on a borrowed GPU: a stand-in for `spaces.GPU` forks and pickles as the real one does; and the real package, as
far as it goes without a GPU.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import math
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import torch

import sparsed
from app.engine import borrowed, remote
from app.engine.gpu import gpu_is_borrowed
from app.engine.local import SparsedEngine
from app.finished.run import probe_steps
from app.race.request import parse
from app.server import session
from app.server.desk import Desk
from app.server.limits import Limits
from app.server.session import perform
from app.server.shown import Shown
from app.server.visits import Visit
from sparsed.attention.backends import gather
from sparsed.attention.masks import Masks
from sparsed.config import FULL_ATTENTION

ROOT = Path(__file__).resolve().parents[2]
FORK = multiprocessing.get_context("fork")


class Pool:
    """Lends this machine's CPU as ZeroGPU lends a GPU: a process forked for each call, arguments and results pickled,
    and of an error there only the class. asked: seconds of each call. sent: the pickled results. refusal: what is said
    instead of lending.
    """

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.sent: list[bytes] = []
        self.pids: list[int] = []
        self.refusal = ""

    def GPU(self, *, duration: Callable[..., float]) -> Callable[..., Any]:  # noqa: N802 (the name it has there)
        def decorate(task: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
            assert inspect.isgeneratorfunction(task)
            return lambda *given: self._lend(task, duration, given)

        return decorate

    def _lend(self, task: Any, duration: Any, given: tuple[Any, ...]) -> Iterator[Any]:
        self.asked.append(duration(*given))
        if self.refusal:
            raise gr.Error(self.refusal, print_exception=False)
        mine, theirs = FORK.Pipe(duplex=False)
        stop = FORK.Event()
        process = FORK.Process(target=_work, args=(task, pickle.dumps(given), theirs, stop), daemon=True)
        process.start()
        theirs.close()
        self.pids.append(process.pid)
        try:
            while True:
                try:
                    sent = mine.recv_bytes()
                except EOFError:
                    raise gr.Error("GPU task aborted", print_exception=False) from None
                kind, value = pickle.loads(sent)
                if kind == "end":
                    return
                if kind == "error":
                    raise gr.Error(value, print_exception=False)
                self.sent.append(sent)
                try:
                    yield value
                except GeneratorExit:
                    stop.set()
                    while process.is_alive():
                        if mine.poll(0.05):
                            try:
                                mine.recv_bytes()
                            except EOFError:
                                break
                    raise
        finally:
            process.join(20)
            assert process.exitcode is not None, "the process that had the GPU must end"


def _work(task: Any, given: bytes, results: Any, stop: Any) -> None:
    events = task(*pickle.loads(given))
    while True:
        try:
            event = next(events)
        except StopIteration:
            break
        except Exception as error:
            results.send_bytes(pickle.dumps(("error", type(error).__name__)))
            os._exit(0)
        if stop.is_set():
            events.close()
            break
        results.send_bytes(pickle.dumps(("value", event)))
    results.send_bytes(pickle.dumps(("end", None)))
    os._exit(0)


class OnTheCpu(borrowed.ZeroEngine):
    """The engine of a ZeroGPU Space, with the model where the stand-in can use it."""

    def load(self, name: str, progress: Any) -> Any:
        model = sparsed.load(name, device="cpu", dtype="float32")
        self._placed[name] = replace(model)
        return model

    def memory(self, model: Any = None) -> int | None:
        return None


@pytest.fixture(scope="module")
def pool() -> Pool:
    return Pool()


@pytest.fixture(scope="module")
def desk(pool: Pool) -> Desk:
    engine = OnTheCpu(["mini"], pool.GPU)
    desk = Desk(engine, "mini", Limits(max_seconds=120))
    desk.models.place(["mini"])
    return desk


def asked_of(desk: Desk, **more: Any) -> Any:
    given = {
        "model": "mini", "kind": "about", "length": "short_context", "question": 3, "text": "", "seed": 0, "steps": 12,
        "gen_length": 96, "block_length": 96, "backend": "auto",
    }  # fmt: skip
    return parse(
        **{**given, **more}, defaults=desk.models.defaults("mini"), models=desk.engine.models(),
        kinds=desk.engine.kinds(), lengths=desk.engine.lengths(),
    )  # fmt: skip


def run(desk: Desk, asked: Any, act: Callable[[Visit, Shown], None] = lambda _v, _s: None) -> list[Shown]:
    """Every value of a race; `act` looks at each."""
    visit = Visit()

    async def collect() -> list[Shown]:
        seen = []
        async for shown in perform(desk, visit, asked):
            seen.append(shown)
            act(visit, shown)
        return seen

    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(asyncio.run, collect()).result(timeout=120)
    until = time.monotonic() + 20
    while len(desk.queue) and time.monotonic() < until:
        time.sleep(0.02)
    assert len(desk.queue) == 0, "the device is free again"
    return seen


def test_a_borrowed_race_is_the_race_itself(desk: Desk, pool: Pool) -> None:
    asked = asked_of(desk, third="random", track=True)
    last = run(desk, asked)[-1]
    assert last.stage["state"] == "done" and last.kept is not None
    material = desk.prompt(desk.models.load("mini"), "short_context", "about", 3)
    asked = asked.resolve(material.tokens)
    model = sparsed.load("mini", device="cpu", dtype="float32")
    probes = tuple(probe_steps(asked.steps, asked.switch_step))
    seen = replace(asked.attention, keep_importance=True)
    for key, attention in (("dense", FULL_ATTENTION), ("sparse", seen), ("baseline", asked.lanes[2].attention)):
        own = SparsedEngine().denoise(
            model, material.text, asked.sampler, attention, "auto", probes if key == "sparse" else ()
        )
        list(own)
        lane = last.kept.lane(key)
        expected = sparsed.trace.recording.record(own, prompt=material)
        (alone,) = expected.lanes.values()
        assert [(s.phase, s.committed) for s in lane.steps] == [(s.phase, s.committed) for s in alone.steps]
        facts = [(one.text, one.backend, one.switch_step, one.finished, one.attention) for one in (lane, alone)]
        assert facts[0] == facts[1]
        if key != "dense":
            assert replace(lane.pattern, kept_mass=()) == replace(alone.pattern, kept_mass=())
        if key == "sparse":
            assert {probe.step for probe in lane.probes} == set(probes) and lane.probes == alone.probes
    # What came back is arrays and bytes: nothing of torch, whose tensors would bring their device along.
    assert len(pool.sent) > 36 and not any(b"torch._" in sent for sent in pool.sent)


def test_each_fresh_pattern_comes_back_when_it_is_made(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SELECTED_SECONDS", 0.0)
    made: list[remote.Made] = []
    of = borrowed._Stream.of

    def noted(stream: Any, lane: str) -> Any:
        found = of(stream, lane)
        made.extend([found] if found is not None and lane == "sparse" else [])
        return found

    monkeypatch.setattr(borrowed._Stream, "of", noted)
    told: list[int] = []
    given = {"steps": 18, "block_length": 32, "refresh": 4, "generation_rows": "full"}
    asked = asked_of(desk, **given)
    last = run(desk, asked, lambda _, shown: told.append(shown.stage["selected"]))[-1]
    assert last.stage["state"] == "done" and last.kept is not None
    # Six steps a block: skip 0.2 selects in step 4, then four later, at each beginning of a block, and four after it.
    selected = [4, 6, 10, 12, 16]
    assert [one.step["index"] for one in made if one.pattern is not None] == selected
    assert [one.step["index"] for one in made if one.step["phase"] == "select"] == selected
    assert told == sorted(told) and set(told) <= {0, *(step + 1 for step in selected)} and len(set(told)) > 1
    material = desk.prompt(desk.models.load("mini"), "short_context", "about", 3)
    attention = replace(asked.resolve(material.tokens).attention, keep_importance=True)
    own = SparsedEngine().denoise(
        sparsed.load("mini", device="cpu", dtype="float32"), material.text, asked.sampler, attention, "auto"
    )
    patterns = {step.index: Masks.of(own.pattern) for step in own if step.phase == "select"}
    for one in made:
        if one.pattern is not None:
            assert one.pattern == patterns[one.step["index"]]
    lane = last.kept.lane("sparse")
    assert lane.switch_step == 5 and replace(lane.pattern, kept_mass=(), importances=()) == replace(
        patterns[16], importances=()
    )
    assert lane.pattern.full_blocks == patterns[16].full_blocks > 0


def test_importances_come_back_as_they_were(desk: Desk) -> None:
    model = sparsed.load("mini", device="cpu", dtype="float32")
    config = sparsed.SparseDConfig(keep_importance=True)
    own = sparsed.denoise(model, "Who is Ada?", sampler=sparsed.SamplerConfig(steps=12), attention=config)
    list(own)
    back = pickle.loads(pickle.dumps(remote._sent(own.pattern))).to_pattern()
    assert all(torch.equal(a, b) for a, b in zip(back.importance, own.pattern.importance, strict=True))
    for one, other in zip(back.layers, own.pattern.layers, strict=True):
        assert torch.equal(one.mask(), other.mask()) and torch.equal(one.counts, other.counts)
    assert back.layout == own.pattern.layout and back.select == own.pattern.select


@pytest.mark.parametrize("length", ["short_context", "4k"])
def test_a_run_asks_for_the_gpu_for_as_long_as_its_settings_need(desk: Desk, pool: Pool, length: str) -> None:
    asked = asked_of(desk, length=length)
    pool.refusal = "not today"
    seen = run(desk, asked)
    pool.refusal = ""
    prompt = desk.prompt(desk.models.load("mini"), length, "about", 3)
    expected = desk.speed.estimate(desk.models.load("mini"), asked.resolve(prompt.tokens), prompt.tokens)
    assert pool.asked[-1] == math.ceil(remote.START_SECONDS + 1.5 * expected.seconds)
    assert seen[-1].stage["state"] == "refused"


def test_stop_ends_it_within_a_step_and_gives_the_gpu_back(
    desk: Desk, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*given: Any, **named: Any) -> Any:
        time.sleep(0.03)  # six layers: a fifth of a second for each sparse step
        return attend(*given, **named)

    attend = gather.gather_attention
    monkeypatch.setattr(gather, "gather_attention", slow)
    stopped: list[float] = []

    def act(visit: Visit, shown: Shown) -> None:
        if shown.stage["lanes"][1]["step"] >= 5 and not stopped:
            stopped.append(shown.stage["lanes"][1]["step"])
            visit.stop()

    last = run(desk, asked_of(desk, steps=48), act)[-1]
    assert last.stage["state"] == "stopped" and last.stage["lanes"][1]["step"] <= stopped[0] + 4
    assert not Path(f"/proc/{pool.pids[-1]}").exists() or sys.platform != "linux"
    assert run(desk, asked_of(desk))[-1].stage["state"] == "done"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "This machine ran out of memory in the lane “SparseD”."),
        (RuntimeError("a kernel failed\nwith details"), "(RuntimeError: RuntimeError: a kernel failed)"),
        (KeyError("odd"), "(RuntimeError: KeyError: 'odd')"),
    ],
)
def test_what_goes_wrong_over_there_is_a_sentence_here(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(gather, "gather_attention", broken)
        last = run(desk, asked_of(desk))[-1]
    message = last.stage["message"]
    assert last.stage["state"] == "failed" and says in message and "Traceback" not in message
    assert run(desk, asked_of(desk))[-1].stage["state"] == "done"


def test_a_gpu_that_is_taken_away_ends_the_run_alone(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(gather, "gather_attention", lambda *_, **__: os._exit(9))
        last = run(desk, asked_of(desk))[-1]
    assert last.stage["state"] == "failed" and "The pool of GPUs says: GPU task aborted." in last.stage["message"]
    assert run(desk, asked_of(desk))[-1].stage["state"] == "done"


def test_what_the_pool_says_is_passed_on_as_text(desk: Desk, pool: Pool) -> None:
    pool.refusal = 'You have <b>exceeded</b> your quota (60s requested vs. 20s left). <a href="https://x.y">Log&nbsp;in</a>'
    last = run(desk, asked_of(desk))[-1]
    pool.refusal = ""
    assert last.stage["state"] == "refused"
    expected = "The pool of GPUs says: You have exceeded your quota (60s requested vs. 20s left). Log\xa0in."
    assert last.stage["message"] == expected


def test_only_the_models_of_the_space_are_listed(desk: Desk) -> None:
    assert list(desk.engine.models()) == ["mini"] and desk.models.at_once("mini")
    with pytest.raises(ValueError, match="which this Space has"):
        desk.engine.admit("owner/name")
    assert borrowed.placed({"SPARSED_MODELS": " mini, llada-1.5 ,mini"}) == ["mini", "llada-1.5"]
    assert borrowed.placed({}) == ["mini"] and gpu_is_borrowed({"SPACES_ZERO_GPU": "true"}) and not gpu_is_borrowed({})


REAL = """
import os, sys
import torch
# A CPU build of torch lacks what the package takes over; nothing of this is called.
torch.version.cuda = torch.version.cuda or "13.0"
if not hasattr(torch._C, "_cuda_init"):
    torch._C._cuda_init = lambda: None
    torch.cuda._is_in_bad_fork = dict
sys.path.insert(0, ".")
import runpy
door = runpy.run_path("app.py", run_name="door")
here, page = door["build"]()
placed = here.engine._placed["mini"]
from spaces.zero.decorator import decorated_cache
print("placed on", {str(weight.device) for weight in placed.network.parameters()}, placed.device, placed.dtype)
print("decorated", len(decorated_cache) > 0)
print("status", here.status().state, here.status().models, here.models.load("mini").place)
import threading
def elsewhere():
    # Handlers run in threads, where no GPU is pretended.
    print("count", here.engine.count(here.models.load("mini").model, "hello there") > 3)
    print("speed", here.models.load("mini").speed.step(4096) > 0, here.engine.memory() > 10**9)
thread = threading.Thread(target=elsewhere); thread.start(); thread.join()
"""


@pytest.mark.skipif(importlib.util.find_spec("spaces") is None, reason="the package spaces is not installed")
def test_with_the_real_package_models_are_placed_before_the_page_is_served() -> None:
    environment = {**os.environ, "SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": "http://127.0.0.1:9"}
    command = [sys.executable, "-W", "ignore", "-c", REAL]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        "placed on {'cuda:0'} cuda:0 torch.bfloat16",
        "decorated True",
        "status ok ('mini',) ZeroGPU · bfloat16",
        "count True",
        "speed True True",
    ]
