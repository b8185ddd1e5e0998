"""Long sequences: nothing that a run makes is as large as a sequence squared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sparsed
from sparsed import AttentionConfig, CacheConfig, SamplerConfig

LENGTH = 4096


class Largest(TorchDispatchMode):
    """Bytes of the largest memory that any operation's result lies in."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, torch.Tensor):
                self.bytes = max(self.bytes, made.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize(
    ("family", "attention", "cache"),
    [
        ("llada", {"method": "dense"}, None),
        ("llada", {}, None),
        ("llada_moe", {}, None),
        ("llada", {"selection": "reference"}, None),
        ("llada", {"generation_rows": "full"}, None),
        ("llada", {"method": "shared"}, None),
        ("llada", {"keep_importance": True}, CacheConfig("refresh", 2)),
    ],
    ids=["dense", "sparsed", "experts", "reference", "full rows", "shared", "refresh"],
)
def test_no_step_makes_a_byte_for_every_pair_of_positions(
    model_of: Any, family: str, attention: dict[str, Any], cache: CacheConfig | None
) -> None:
    model = model_of(family)
    ids = torch.randint(0, 250, (1, LENGTH - 32), generator=torch.Generator().manual_seed(0))
    sparse = {"skip": 0.0, "select": 0.3, "block_size": 128} if attention.get("method") != "dense" else {}
    run = sparsed.denoise(
        model,
        ids,
        sampler=SamplerConfig(steps=4, gen_length=32, block_length=32),
        attention=AttentionConfig(**{"method": "sparsed", **sparse, **attention}),
        cache=cache,
    )
    with Largest() as largest:
        phases = {step.phase for step in run}
    assert phases == {"dense"} if not sparse else {"select", "sparse"} <= phases
    assert 0 < largest.bytes < LENGTH**2
    with Largest() as all_pairs:
        torch.ones(LENGTH, 1) @ torch.ones(1, LENGTH)
    assert all_pairs.bytes == 4 * LENGTH**2, "it would be seen"
