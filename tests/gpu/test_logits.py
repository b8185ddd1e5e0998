"""On a GPU: logits against the plain network on the same device, and the same tokens dense and sparse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sparsed
from sparsed import SamplerConfig, SparseDConfig

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)

FAMILIES = ("llada", "dream", "qwen3", "illada")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_equal_the_plain_network(checkpoints, tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    folder = checkpoints.WRITERS[family](tmp_path / family)
    model = sparsed.load(folder, device="cuda", dtype=dtype, fuse=False)
    sequence = torch.randint(0, 250, (150,), generator=torch.Generator().manual_seed(1)).cuda()
    plain = checkpoints.PlainNetwork(folder, dtype)
    plain.weights = {name: weight.cuda() for name, weight in plain.weights.items()}
    with torch.inference_mode(), torch.device("cuda"):
        got = model.network(input_ids=sequence[None], use_cache=False).logits[0]
        wanted = plain.logits(sequence)
    if dtype == torch.float32:
        print(f"\n{family} float32: largest difference {float((got - wanted).abs().max()):.1e}")
        assert torch.allclose(got, wanted, atol=1e-4, rtol=1e-4)
    else:
        apart = checkpoints.ulps(got, wanted)
        print(f"\n{family} bfloat16: {apart:.2f} ulp, equal bit for bit: {torch.equal(got, wanted)}")
        assert apart <= 1
        fused = sparsed.load(folder, device="cuda", dtype=dtype, fuse=True)
        assert fused.notes == ()
        with torch.inference_mode():
            nearly = fused.network(input_ids=sequence[None], use_cache=False).logits[0]
        off = float((nearly.double() - wanted.double()).norm() / wanted.double().norm())
        print(f"{family} fused: relative difference {off:.1e}, equal bit for bit: {torch.equal(nearly, wanted)}")
        assert off < 5e-3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
def test_selecting_everything_gives_the_dense_tokens(checkpoints, tmp_path: Path, family: str, cfg_scale) -> None:
    model = sparsed.load(checkpoints.WRITERS[family](tmp_path / family), device="cuda", dtype="float32")
    prompt = torch.randint(8, 250, (2, 200), generator=torch.Generator().manual_seed(2))
    sampler = SamplerConfig(steps=16, gen_length=32, cfg_scale=cfg_scale, temperature=0.7, seed=3)
    everything = SparseDConfig(skip=0.0, select=1.0, block_size=32)
    dense = sparsed.generate(model, prompt, sampler=sampler, attention="dense")
    sparse = sparsed.generate(model, prompt, sampler=sampler, attention=everything)
    assert [step.phase for step in sparse.steps] == ["select"] + ["sparse"] * 15
    assert torch.equal(dense.tokens, sparse.tokens)
