"""Quantised weights on a GPU: the same as on a CPU, fp8 against loops over its numbers, memory and graphs."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from loops_of_bits import check_fp8
from torch import Tensor

import sparsed
from sparsed.bench.shapes import SHAPES
from sparsed.models.families import read_config
from sparsed.models.quantise import is_quantised, network_bytes
from sparsed.models.shares import random_network
from sparsed.paths import data_dir

pytest.importorskip("torchao", reason="the extra 'quantize' is not installed")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

KINDS = ("int8", "int4", "fp8")


def needs(kind: str) -> None:
    if kind == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU does not compute in fp8")


def layers_of(network: Any) -> dict[str, Any]:
    return {name: module for name, module in network.named_modules() if name.endswith("_proj")}


@torch.inference_mode()
def used(layer: Any, columns: int) -> Tensor:
    """The weights that a layer multiplies with, bfloat16 [out, in]."""
    return layer(torch.eye(columns, device="cuda", dtype=torch.bfloat16)).T


def test_fp8_weights_are_those_of_loops() -> None:
    needs("fp8")
    mini = read_config(data_dir("assets") / "mini")
    made = [random_network(mini, torch.bfloat16, torch.device("cuda"), False, quantize=q)[0] for q in (None, "fp8")]
    name = "model.layers.2.self_attn.k_proj"
    weight, layer = made[0].get_submodule(name).weight.double().cpu(), made[1].get_submodule(name)
    got = used(layer, weight.shape[1]).double().cpu()
    check_fp8(weight, got)


@pytest.mark.parametrize("kind", ("int8", "int4"))
def test_the_weights_are_those_of_a_cpu(kind: str) -> None:
    """But for what is at a border of two numbers: CUDA divides by a number with the inverse of it."""
    models = {place: sparsed.load("mini", device=place, dtype="bfloat16", quantize=kind, fuse=False) for place in (
        "cpu", "cuda",
    )}  # fmt: skip
    for name, layer in layers_of(models["cuda"].network).items():
        columns = layer.in_features
        with torch.inference_mode():
            wanted = models["cpu"].network.get_submodule(name)(torch.eye(columns, dtype=torch.bfloat16)).T
        got = used(layer, columns).cpu()
        step = layer.scale.float().repeat_interleave(columns // layer.scale.shape[1], dim=1).cpu()
        # One number of the packed ones further, and the rounding to bfloat16.
        apart = (got.float() - wanted.float()).abs()
        assert bool((apart <= 1.01 * step + 2**-7 * wanted.float().abs()).all()), name
        assert float((got != wanted).float().mean()) < 0.01, name


@pytest.mark.parametrize("kind", KINDS)
def test_mini_answers_fused_or_not_with_a_cache_or_without(kind: str) -> None:
    """torch.compile and CUDA graphs take the layers; logits differ by roundings alone."""
    needs(kind)
    ids = torch.randint(0, 2000, (1, 700), device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    logits, sampler = {}, sparsed.SamplerConfig(steps=96, gen_length=96, block_length=96)
    for fuse in (False, True):
        model = sparsed.load("mini", device="cuda", dtype="bfloat16", quantize=kind, fuse=fuse)
        assert not model.notes
        with torch.inference_mode():
            logits[fuse] = model.network(input_ids=ids, use_cache=False).logits.float()
        for cache in (None, sparsed.CacheConfig("dual"), sparsed.CacheConfig("delayed")):
            attention = sparsed.SparseDConfig(block_size=64)
            run = sparsed.denoise(model, ids, sampler=sampler, attention=attention, cache=cache)
            assert not bool((list(run)[-1].tokens == model.mask_id).any())
    apart, largest = (logits[True] - logits[False]).abs(), logits[False].abs().max()
    print(f"{kind}: differ by {apart.max() / largest:.3f} of the largest, {apart.mean() / largest:.5f} on average")
    # fp8 rounds what the layers are given to three bits, too: a rounding before that is one of 1/16.
    assert apart.max() < (0.25 if kind == "fp8" else 0.1) * largest and apart.mean() < 0.02 * largest


@pytest.mark.parametrize("kind", KINDS)
def test_llada_8b_is_made_within_its_size(kind: str) -> None:
    """Random weights of full size: no more is needed than the quantised ones, one that is not, and its work."""
    needs(kind)
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    network, _ = random_network(SHAPES["llada-8b"], torch.bfloat16, torch.device("cuda"), False, quantize=kind)
    held, peak = network_bytes(network), torch.cuda.max_memory_allocated() - before
    print(f"{kind}: {held / 2**30:.2f} GiB held, {peak / 2**30:.2f} GiB at most")
    largest = max(w.numel() for name, w in network.named_parameters() if not is_quantised(name))
    assert held < 9.2e9 and peak < min(held + 2 * largest + 2e9, 12e9)
