"""Block importance against attention in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsed.attention.selection import importance as module
from sparsed.attention.selection.importance import block_importance


def oracle(q: Tensor, k: Tensor, scale: float, size: int) -> Tensor:
    """Mean of the float64 attention weights over each block pair, pair by pair."""
    q, k = q.double(), k.double()
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    weights = (q @ k.mT * scale).softmax(-1)
    starts = range(0, q.shape[2], size)
    rows = [
        torch.stack([weights[:, :, i : i + size, j : j + size].mean((-1, -2)) for j in starts], -1)
        for i in starts
    ]
    return torch.stack(rows, -2)


SHAPES = [
    # batch, query heads, key heads, length, block size
    (1, 1, 1, 64, 16),
    (2, 4, 2, 61, 16),
    (1, 4, 1, 65, 16),  # last block of one row
    (2, 2, 2, 7, 16),  # one block, not full
    (1, 3, 3, 33, 1),
]


@pytest.mark.parametrize("bytes_at_once", [1, 3 * 16 * 80 * 4, 1 << 20])
@pytest.mark.parametrize(("batch", "heads", "key_heads", "length", "size"), SHAPES)
def test_against_double_precision(
    batch: int,
    heads: int,
    key_heads: int,
    length: int,
    size: int,
    bytes_at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_CPU_BYTES", bytes_at_once)
    torch.manual_seed(length)
    q, k = torch.randn(batch, heads, length, 8) * 3, torch.randn(batch, key_heads, length, 8)
    result = block_importance(q, k, 0.35, size)
    blocks = -(-length // size)
    assert result.dtype == torch.float32 and result.shape == (batch, heads, blocks, blocks)
    torch.testing.assert_close(result.double(), oracle(q, k, 0.35, size), rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize(("batch", "heads", "key_heads", "length", "size"), SHAPES)
def test_a_row_times_the_block_sizes_sums_to_one(
    batch: int, heads: int, key_heads: int, length: int, size: int
) -> None:
    q, k = torch.randn(batch, heads, length, 8), torch.randn(batch, key_heads, length, 8)
    columns = torch.tensor([min(size, length - start) for start in range(0, length, size)])
    total = (block_importance(q, k, 0.35, size) * columns).sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_large_scores_neither_overflow_nor_vanish() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 2, 40, 8) * 200, torch.randn(1, 2, 40, 8) + 3
    for sign in (1, -1):
        result = block_importance(q * sign, k, 1.0, 16)
        torch.testing.assert_close(result.double(), oracle(q * sign, k, 1.0, 16), rtol=1e-2, atol=1e-5)


def test_half_precision_inputs_are_averaged_in_float32() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 2, 50, 8).bfloat16(), torch.randn(1, 1, 50, 8).bfloat16()
    torch.testing.assert_close(
        block_importance(q, k, 0.35, 16), oracle(q, k, 0.35, 16).float(), rtol=2e-5, atol=1e-9
    )


def test_strides_do_not_matter() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 50, 2, 8), torch.randn(1, 50, 2, 8)
    strided = block_importance(q.transpose(1, 2), k.transpose(1, 2), 0.35, 16)
    together = block_importance(q.transpose(1, 2).contiguous(), k.transpose(1, 2).contiguous(), 0.35, 16)
    torch.testing.assert_close(strided, together)
