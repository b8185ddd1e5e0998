"""Weights spread over devices by accelerate: the same tokens as on one device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sparsed
from sparsed import SamplerConfig, SparseDConfig

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)

needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
TOP = ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")


@pytest.mark.parametrize("family", ["llada", "dream", "qwen3"])
@pytest.mark.parametrize(
    ("top", "layers"),
    [
        (0, (0, "cpu")),
        (0, ("cpu", 0)),
        pytest.param(0, (0, 1), marks=needs_two),
        pytest.param(1, (0, 1), marks=needs_two),
    ],
)
def test_the_same_tokens(checkpoints, tmp_path: Path, family: str, top: int, layers: tuple[Any, Any]) -> None:
    folder = checkpoints.WRITERS[family](tmp_path / family)
    device_map: dict[str, Any] = dict.fromkeys(TOP, top)
    device_map |= {f"model.layers.{number}": place for number, place in enumerate(layers)}
    one = sparsed.load(folder, device="cuda:0", dtype="float32")
    spread = sparsed.load(folder, dtype="float32", device_map=device_map)
    assert len(spread.network.model.layers) == len(layers) and len(spread.devices) > 1
    prompt = torch.randint(0, 250, (2, 200), generator=torch.Generator().manual_seed(2))
    sampler = SamplerConfig(steps=16, gen_length=32)
    for attention in ("dense", SparseDConfig(skip=0.2, select=0.4, block_size=32)):
        expected = sparsed.generate(one, prompt, sampler=sampler, attention=attention)
        got = sparsed.generate(spread, prompt, sampler=sampler, attention=attention)
        assert torch.equal(got.tokens, expected.tokens)
        if got.pattern is not None:
            assert bool((got.pattern.overlap(expected.pattern) == 1).all())
