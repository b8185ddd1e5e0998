"""SparseD's attention in a loop that is not ours: the same tokens as a run of ours with the same rules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sparsed
from sparsed import AttentionConfig, OwnLoop, SamplerConfig, SparseDConfig

PROMPT = torch.randint(2, 250, (2, 41), generator=torch.Generator().manual_seed(3))
GENERATED, STEPS = 32, 16
SPARSE = SparseDConfig(skip=0.3, select=0.4, block_size=32)  # the pattern is made by step ⌈4.8⌉ = 5


def canvas(model: Any) -> Tensor:
    return torch.cat([PROMPT, torch.full((2, GENERATED), model.mask_id)], dim=1)


def commit_surest(model: Any, ids: Tensor, logits: Tensor, count: int) -> None:
    """Low-confidence remasking, in loops: the most likely token where the model is surest of it."""
    for row, probabilities in zip(ids, logits.float().softmax(-1)):
        masked = [j for j in range(GENERATED) if row[PROMPT.shape[1] + j] == model.mask_id]
        for j in sorted(masked, key=lambda j: -float(probabilities[j].max()))[:count]:
            row[PROMPT.shape[1] + j] = probabilities[j].argmax()


@pytest.mark.parametrize(
    "attention",
    ["dense", SPARSE, AttentionConfig("sliding_window", skip=0.3, select=0.4, block_size=32),
     SparseDConfig(skip=0.3, select=0.4, block_size=32, generation_rows="full", refresh=4)],
    ids=["dense", "sparsed", "window", "ours"],
)  # fmt: skip
def test_a_loop_of_ones_own_writes_what_a_run_writes(model_of: Any, attention: Any) -> None:
    model = model_of("llada")
    sampler = SamplerConfig(steps=STEPS, gen_length=GENERATED, block_length=GENERATED, temperature=0.0)
    run = sparsed.denoise(model, PROMPT, sampler=sampler, attention=attention)
    ids = canvas(model)
    with OwnLoop(model, prompt_length=41, gen_length=GENERATED, steps=STEPS, attention=attention) as loop:
        for index, step in enumerate(run):
            commit_surest(model, ids, loop.logits(ids, index), GENERATED // STEPS)
            assert loop.phase == step.phase
            assert torch.equal(ids[:, 41:], step.tokens)
    if attention != "dense":
        assert run.pattern is not None and loop.pattern is not None
        for mine, theirs in zip(loop.pattern.layers, run.pattern.layers, strict=True):
            assert torch.equal(mine.mask(), theirs.mask())


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_logits_stand_where_their_tokens_do(model_of: Any, family: str) -> None:
    """Against transformers' own forward, which for Dream predicts a token one position before it."""
    model = model_of(family)
    ids = canvas(model)
    loop = OwnLoop(model, prompt_length=41, gen_length=GENERATED, steps=4, attention="dense")
    found = loop.logits(ids, 0)
    loop.logits(ids, 0)[..., model.mask_id] = -torch.inf  # rules of one's own may write into them
    with torch.no_grad():
        whole = model.network(input_ids=ids, use_cache=False).logits
    first = 41 - (family == "dream")
    torch.testing.assert_close(found, whole[:, first : first + GENERATED], rtol=1e-4, atol=1e-4)
    wanted = torch.rand(2, GENERATED, generator=torch.Generator().manual_seed(1)) < 0.3
    torch.testing.assert_close(loop.logits(ids, 0, wanted), found[wanted], rtol=1e-5, atol=1e-5)


def test_steps_may_be_left_out_and_asked_again(model_of: Any) -> None:
    model = model_of("llada")
    ids = canvas(model)
    loop = OwnLoop(model, prompt_length=41, gen_length=GENERATED, steps=STEPS, attention=SPARSE)
    phases = []
    for step in (0, 2, 2, 8, 8, 9, 15):
        loop.logits(ids, step)
        phases.append(loop.phase)
    assert phases == ["dense", "dense", "dense", "select", "sparse", "sparse", "sparse"]
    fresh = SparseDConfig(skip=0.3, select=0.4, block_size=32, refresh=3)
    loop = OwnLoop(model, prompt_length=41, gen_length=GENERATED, steps=STEPS, attention=fresh)
    phases = []
    for step in range(4, 13):
        loop.logits(ids, step)
        phases.append(loop.phase)
    assert phases == ["dense", "select", "sparse", "sparse", "select", "sparse", "sparse", "select", "sparse"]


def test_loops_and_runs_interleave(model_of: Any) -> None:
    model = model_of("llada")
    ids = canvas(model)

    def through(loop: OwnLoop) -> list[Tensor]:
        return [loop.logits(ids, step).clone() for step in range(8)]

    def new() -> OwnLoop:
        return OwnLoop(model, prompt_length=41, gen_length=GENERATED, steps=8, attention=SPARSE)

    alone = through(new())
    one, two, between = new(), new(), []
    run = sparsed.denoise(model, PROMPT, sampler=SamplerConfig(steps=8, gen_length=GENERATED), attention=SPARSE)
    for step in range(8):
        between.append(one.logits(ids, step).clone())
        next(run)
        two.logits(ids.flip(0), step)
    assert all(torch.equal(first, second) for first, second in zip(alone, between))


@pytest.mark.parametrize(
    "ids, step, sentence",
    [
        (torch.zeros(2, 72, dtype=torch.int64), 0, r"must be of shape \[batch, 73\], not \[2, 72\]"),
        (torch.zeros(2, 73), 0, "must be whole numbers"),
        (torch.full((2, 73), 10**6), 0, "must lie between 0 and"),
        (torch.zeros(2, 73, dtype=torch.int64), 4, "step must lie between 0 and 3, not 4"),
        (torch.zeros(2, 73, dtype=torch.int64), True, "step must lie between 0 and 3, not True"),
    ],
)
def test_what_a_loop_cannot_take(model_of: Any, ids: Tensor, step: int, sentence: str) -> None:
    loop = OwnLoop(model_of("llada"), prompt_length=41, gen_length=GENERATED, steps=4)
    with pytest.raises(ValueError, match=sentence):
        loop.logits(ids, step)
    assert loop.logits(torch.zeros(2, 73, dtype=torch.int64), 0).shape[:2] == (2, GENERATED), "the next call works"


def test_a_loop_goes_forward_keeps_its_shape_and_ends(model_of: Any) -> None:
    model = model_of("llada")
    with OwnLoop(model, prompt_length=41, gen_length=GENERATED, steps=4) as loop:
        assert loop.backend is None and loop.phase is None
        loop.logits(canvas(model), 2)
        with pytest.raises(ValueError, match="Steps go forward: 1 comes after 2"):
            loop.logits(canvas(model), 1)
        with pytest.raises(ValueError, match=r"of shape \[2, 73\], not \[1, 73\]"):
            loop.logits(canvas(model)[:1], 3)
        with pytest.raises(ValueError, match=r"wanted must be bool of shape \[2, 32\], not torch.int64"):
            loop.logits(canvas(model), 3, torch.ones(2, 32, dtype=torch.int64))
    with pytest.raises(ValueError, match="closed"):
        loop.logits(canvas(model), 3)


@pytest.mark.parametrize("name", ["prompt_length", "gen_length", "steps"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True])
def test_lengths_and_steps_are_whole_numbers(model_of: Any, name: str, value: Any) -> None:
    given = {"prompt_length": 41, "gen_length": GENERATED, "steps": 4, name: value}
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1"):
        OwnLoop(model_of("llada"), **given)
