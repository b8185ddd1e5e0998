"""LLaDA-MoE's experts on a GPU: what runs, without a wait for the host; graphs and kernels that change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sparsed
from sparsed import CacheConfig, SamplerConfig, SparseDConfig
from sparsed.models.layer import feed_forward
from sparsed.models.model import Model

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)

# Heads and widths for which all kernels are made; experts enough to be a loop.
SIZES = {
    "hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2, "expert_intermediate_size": 128,
    "num_experts": 32, "num_experts_per_tok": 4, "max_position_embeddings": 8192,
}  # fmt: skip
# torch computes groups in one kernel, without a look at their sizes, on these alone.
grouped = pytest.mark.skipif(
    torch.cuda.get_device_capability() < (9, 0), reason="grouped products are one kernel from Hopper on"
)


@pytest.fixture(scope="module")
def folder(checkpoints: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.WRITERS["llada_moe"](tmp_path_factory.mktemp("moe"), **SIZES)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    """As it is loaded by default: bfloat16, fused."""
    loaded = sparsed.load(folder, device="cuda", dtype="bfloat16")
    assert loaded.notes == () and loaded.network.model.layers[0].fused is not None
    return loaded


def prompt(length: int) -> torch.Tensor:
    return torch.randint(0, 250, (1, length), generator=torch.Generator().manual_seed(length))


def logits(model: Model, ids: torch.Tensor, way: str) -> torch.Tensor:
    config = model.network.config
    before, config._experts_implementation = config._experts_implementation, way
    try:
        with torch.inference_mode():
            return model.network(input_ids=ids.cuda(), use_cache=False).logits[0].double()
    finally:
        config._experts_implementation = before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("way", ["grouped_mm", "batched_mm"])
@pytest.mark.parametrize("length", [1, 7, 600])
def test_every_implementation_gives_the_plain_loops_logits(folder: Path, dtype: str, way: str, length: int) -> None:
    model = sparsed.load(folder, device="cuda", dtype=dtype, fuse=False)
    assert model.network.config._experts_implementation == "grouped_mm"
    ids = prompt(length)
    got, wanted = logits(model, ids, way), logits(model, ids, "eager")
    apart = (got - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    # By rows: in bfloat16 another order of a sum now and then chooses another expert in the second layer.
    print(f"\n{way}, {dtype}, {length}: median {float(apart.median()):.1e}, largest {float(apart.max()):.1e}")
    assert apart.median() < (1e-5 if dtype == "float32" else 1e-2)
    assert dtype == "bfloat16" or apart.max() < 1e-4


@grouped
@pytest.mark.parametrize("rows", [32, 4096])
def test_nothing_waits_for_the_host(model: Model, rows: int) -> None:
    """torch refuses what would; transformers' plain loop does."""
    layer = model.network.model.layers[0]
    hidden = torch.randn(1, rows, SIZES["hidden_size"], device="cuda", dtype=torch.bfloat16)
    finish = layer.fused[1]
    with torch.inference_mode():
        feed_forward(layer, hidden), finish(layer, hidden, hidden)
        torch.cuda.set_sync_debug_mode("error")
        try:
            feed_forward(layer, hidden), finish(layer, hidden, hidden)
            model.network.config._experts_implementation = "eager"
            with pytest.raises(RuntimeError, match="synchroniz"):
                feed_forward(layer, hidden)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            model.network.config._experts_implementation = "grouped_mm"


@grouped
def test_as_few_kernels_for_many_experts_as_for_few(model: Model) -> None:
    """The products of all experts are one kernel each."""
    layer = model.network.model.layers[0]
    hidden = torch.randn(1, 4096, SIZES["hidden_size"], device="cuda", dtype=torch.bfloat16)
    with torch.inference_mode():
        feed_forward(layer, hidden)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            feed_forward(layer, hidden)
            torch.cuda.synchronize()
    on_device = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    kernels = [name for name in on_device if "Memcpy" not in name]
    print("\n" + "\n".join(name[:100] for name in kernels))
    assert 0 < len(kernels) < 2 * SIZES["num_experts"]


def test_no_length_is_compiled_anew(model: Model) -> None:
    def lengths() -> int:
        for length in (40, 333, 2000):
            with torch.inference_mode():
                model.network(input_ids=prompt(length).cuda(), use_cache=False)
        return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    with torch.inference_mode():
        model.network(input_ids=prompt(96).cuda(), use_cache=False)
    before = int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert before > 0 and lengths() == before


@grouped
@pytest.mark.parametrize("cache", ["dual", "prefix", "refresh"])
def test_captured_steps_give_the_same_tokens(model: Model, monkeypatch: pytest.MonkeyPatch, cache: str) -> None:
    """Bit for bit: a graph launches the same kernels on the same numbers."""
    sampler = SamplerConfig(steps=48, gen_length=96, block_length=32)
    replayed, real = [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: replayed.append(1) or real(graph))

    def tokens() -> list[list[int]]:
        given = CacheConfig(cache, refresh=8) if cache == "refresh" else CacheConfig(cache)
        run = sparsed.denoise(model, prompt(3000), sampler=sampler, attention=SparseDConfig(block_size=64), cache=given)
        return [step.tokens[0].tolist() for step in run]

    with_graphs = tokens()
    assert len(replayed) > 20
    monkeypatch.setattr("sparsed.denoising.run.step_graphs", lambda model: None)
    replayed.clear()
    assert tokens() == with_graphs and not replayed


@pytest.mark.parametrize("block_size", [32, 128])
def test_selecting_everything_gives_the_dense_tokens(folder: Path, block_size: int) -> None:
    model = sparsed.load(folder, device="cuda", dtype="float32")
    sampler = SamplerConfig(steps=16, gen_length=32, temperature=0.7, seed=3)
    everything = SparseDConfig(skip=0.0, select=1.0, block_size=block_size)
    dense = sparsed.generate(model, prompt(700), sampler=sampler, attention="dense")
    sparse = sparsed.generate(model, prompt(700), sampler=sampler, attention=everything)
    assert [step.phase for step in sparse.steps] == ["select"] + ["sparse"] * 15
    assert torch.equal(dense.tokens, sparse.tokens)


def test_the_kernels_agree(model: Model) -> None:
    """After the same selection the fused kernels and plain torch see the same: nearly the same confidences."""
    sampler = SamplerConfig(steps=2, gen_length=64, block_length=64)
    found = []
    for backend in ("gather", "auto"):
        attention = SparseDConfig(skip=0.0, block_size=128)
        run = sparsed.denoise(model, prompt(3000), sampler=sampler, attention=attention, backend=backend)
        last = list(run)[-1]
        assert last.phase == "sparse" and int(last.committed.sum()) == 32
        found.append(last.confidence.double())
        print(f"\n{backend}: {run.backend}")
    apart = (found[0] - found[1]).abs() / found[0]
    apart = apart[apart.isfinite()]
    assert len(apart) >= 24 and apart.median() < 0.05


@grouped
def test_the_published_experts_on_128k_rows() -> None:
    """Eight rows of 2048 numbers for each of 131,200: more than an int32 counts. The same rows in two parts."""
    from sparsed.bench.shapes import SHAPES
    from sparsed.models.shares import random_network

    if torch.cuda.mem_get_info()[0] < 60 * 2**30:
        pytest.skip("needs 60 GiB of free memory")
    raw = dict(SHAPES["llada-moe-7b"], num_hidden_layers=2)
    network, problem = random_network(raw, torch.bfloat16, torch.device("cuda"), True)
    assert problem is None
    layer = network.model.layers[0]
    hidden = torch.randn(1, 131_200, 2048, device="cuda", dtype=torch.bfloat16)
    assert 8 * hidden.numel() > 2**31
    with torch.inference_mode():
        parts = torch.cat([feed_forward(layer, part) for part in hidden.split(65_600, 1)], 1)
        whole = feed_forward(layer, hidden)
        assert torch.equal(whole, parts)
        finish = layer.fused[1]
        for tensor in (hidden, other := torch.zeros_like(hidden)):
            torch._dynamo.maybe_mark_dynamic(tensor, 1)
        fused = finish(layer, hidden, other)
        plain = torch.cat([layer_end(layer, part) for part in hidden.split(65_600, 1)], 1)
    apart = (fused.float() - plain.float()).norm(dim=-1) / plain.float().norm(dim=-1)
    assert apart.median() < 1e-2 and apart[:, -1000:].median() < 1e-2


def layer_end(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    """What a layer makes of rows to which attention adds nothing."""
    return hidden + feed_forward(layer, layer.post_attention_layernorm(hidden))
