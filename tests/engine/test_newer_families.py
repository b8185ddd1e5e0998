"""LLaDA-MoE and iLLaDA: sparse runs, patterns, caches and kernels, as of every family."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

import sparsed
from sparsed import AttentionConfig, CacheConfig, SamplerConfig, SparseDConfig

SAMPLER = SamplerConfig(steps=8, gen_length=16, block_length=8, algorithm="low_confidence", temperature=0.0)
# With heads of 32, the least that the kernels take; of iLLaDA four query heads to one of keys and values, as published.
WIDE_HEADS: dict[str, dict[str, int]] = {
    "illada": {"hidden_size": 128},
    "llada_moe": {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2},
}


@pytest.fixture(params=list(WIDE_HEADS))
def family(request) -> str:
    return request.param


@pytest.fixture
def model(model_of, family: str) -> Any:
    return model_of(family)


def prompt(length: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(8, 250, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_a_sparse_run_that_keeps_everything_is_the_dense_run(model) -> None:
    everything = SparseDConfig(skip=0.0, select=1.0, block_size=32)
    dense = sparsed.generate(model, prompt(75, 2), sampler=SAMPLER, attention="dense")
    sparse = sparsed.generate(model, prompt(75, 2), sampler=SAMPLER, attention=everything, backend="gather")
    assert torch.equal(dense.tokens, sparse.tokens) and "sparse" in {step.phase for step in sparse.steps}


def test_its_pattern_is_the_papers(checkpoints, model, family: str, folder_of) -> None:
    plain = checkpoints.PlainNetwork(folder_of(family), torch.float64)
    ids = prompt(100)
    # One block: a canvas that grows is whole from the beginning.
    whole = SamplerConfig(steps=8, gen_length=16, block_length=16, algorithm="low_confidence", temperature=0.0)
    run = sparsed.denoise(model, ids, sampler=whole, attention=SparseDConfig(skip=0.0, select=0.4, block_size=32))
    next(run)
    row = torch.cat([ids[0], torch.full((16,), model.mask_id)])
    clear = 0
    for layer, (query, key) in zip(run.pattern.layers, plain.run(row)[1]):
        wanted = checkpoints.paper_selection(query, key, 16, 32, 0.4)
        for head, rows in enumerate(wanted):
            for block, (kept, lead) in enumerate(rows):
                if lead > 1e-4:
                    count = int(layer.counts[0, head, block])
                    assert set(layer.indices[0, head, block, :count].tolist()) == kept
                    clear += 1
    assert clear > 20


@pytest.mark.parametrize("method", ["prefix", "dual", "delayed", "refresh"])
@pytest.mark.parametrize("attention", ["dense", "sparsed"])
def test_caches_run(model, method: str, attention: str) -> None:
    """With every row in every step a cache changes nothing; as published it computes fewer."""
    config = AttentionConfig(method=attention, **({} if attention == "dense" else {"skip": 0.2, "select": 0.5}))
    plain = sparsed.generate(model, prompt(75), sampler=SAMPLER, attention=config)
    cached = sparsed.generate(model, prompt(75), sampler=SAMPLER, attention=config, cache=CacheConfig(method))
    if not model.defaults.early_stop:  # which may leave masks behind an answer
        assert not (cached.tokens == model.mask_id).any() or (plain.tokens == model.mask_id).any()
    assert sum(cached.info.rows.values()) < sum(plain.info.rows.values())
    if method == "refresh" and attention == "dense":
        every = CacheConfig(method, refresh=1)
        same = sparsed.generate(model, prompt(75), sampler=SAMPLER, attention=config, cache=every)
        assert torch.equal(same.tokens, plain.tokens)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="there is a GPU here: tests/gpu runs it for real")
def test_the_triton_kernels_give_the_same_tokens(model_of, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    model = model_of(family, **WIDE_HEADS[family])
    monkeypatch.setattr("sparsed.denoising.check_backend", lambda *_: None)
    config = SparseDConfig(skip=0.0, select=0.5, block_size=32)
    few = SamplerConfig(steps=3, gen_length=6, block_length=6, temperature=0.0)
    gather, triton = (
        sparsed.generate(model, prompt(75), sampler=few, attention=config, backend=name)
        for name in ("gather", "triton")
    )
    assert triton.backend == "triton" and torch.equal(gather.tokens, triton.tokens)
