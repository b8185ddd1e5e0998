"""Of a step's time, what attention took."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import sparsed
from sparsed import trace
from sparsed.attention import state
from sparsed.attention.state import RunAttention
from sparsed.config import CacheConfig, SamplerConfig, SparseDConfig
from sparsed.denoising import run as running

LAYERS = 3
ATTENTION, REST = 2.0, 5.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tiny: sparsed.Model) -> SimpleNamespace:
    """A clock that moves by so much in each call of attention, and in each forward outside of it."""
    now = SimpleNamespace(at=0.0)
    attend = RunAttention._attend

    def slow(self: RunAttention, *given: object) -> torch.Tensor:
        now.at += ATTENTION
        return attend(self, *given)  # type: ignore[arg-type]

    def head(*_: object) -> None:
        now.at += REST

    monkeypatch.setattr(RunAttention, "_attend", slow)
    monkeypatch.setattr(state, "perf_counter", lambda: now.at)
    monkeypatch.setattr(running, "perf_counter", lambda: now.at)
    hook = tiny.network.lm_head.register_forward_hook(head)
    yield now
    hook.remove()


@pytest.mark.parametrize("guided", [False, True])
def test_every_phase_tells_its_attention_apart(tiny: sparsed.Model, clock: SimpleNamespace, guided: bool) -> None:
    sampler = SamplerConfig(steps=8, cfg_scale=0.5 if guided else 0.0)
    attention = SparseDConfig(skip=0.25, select=0.3, block_size=32)
    # A selection for comparison, outside the step, counts for none.
    run = sparsed.denoise(tiny, "one two three " * 20, sampler=sampler, attention=attention, probe_steps=[1, 4])
    steps = list(run)
    assert {step.phase for step in steps} == {"dense", "select", "sparse"}
    assert [(step.attention_seconds, step.seconds) for step in steps] == [(6.0, 11.0)] * 8
    replayed = list(trace.replay(trace.record(run)))
    assert [step.attention_seconds for step in replayed] == [6.0] * 8


def test_sequences_that_go_alone_count_together(tiny: sparsed.Model, clock: SimpleNamespace) -> None:
    ids = torch.arange(200).view(2, 100) % 200
    sampler = SamplerConfig(steps=32, gen_length=32, threshold=0.99)
    run = sparsed.denoise(tiny, ids, sampler=sampler, attention="dense", cache=CacheConfig(method="dual"))
    step = next(run)
    assert (step.attention_seconds, step.seconds) == (2 * LAYERS * ATTENTION, 2 * (LAYERS * ATTENTION + REST))


def test_it_is_told_where_a_call_returns_when_its_work_is_done(tiny: sparsed.Model, monkeypatch) -> None:
    for held, told in ((1, True), (2, False)):
        run = sparsed.denoise(tiny, "one two", sampler=SamplerConfig(steps=4), attention="dense")
        monkeypatch.setattr(sparsed.Model, "processes", property(lambda self, held=held: held))
        assert (run._alone_on_cpu, next(run).attention_seconds is not None) == (told, told)
