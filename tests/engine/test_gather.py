"""The gather backend equals dense attention under the pattern's mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparsed.attention.backends import gather as module
from sparsed.attention.backends.dense import dense_attention
from sparsed.attention.backends.gather import gather_attention
from sparsed.attention.backends.registry import executed_density
from sparsed.attention.pattern import BlockLayout, LayerPattern, Pattern
from sparsed.attention.selection.importance import block_importance
from sparsed.attention.selection.isolated import select_blocks

SCALE = 0.25


def masked_dense(q: Tensor, k: Tensor, v: Tensor, pattern: LayerPattern, size: int) -> Tensor:
    """Attention with every score computed and the ones outside the pattern taken away."""
    length, group = q.shape[2], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    mask = pattern.mask().repeat_interleave(size, -1).repeat_interleave(size, -2)[..., :length, :length]
    scores = (q @ k.mT * SCALE).masked_fill(~mask, -torch.inf)
    return scores.softmax(-1).nan_to_num(0) @ v


def attend(q: Tensor, k: Tensor, v: Tensor, pattern: LayerPattern, size: int) -> Tensor:
    """The backend on all rows."""
    return gather_attention(q, k, v, pattern.lists(None, BlockLayout(k.shape[2], 0, size)), SCALE)


def tensors(
    batch: int, heads: int, key_heads: int, length: int, dim: int = 16
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v with the strides transformers gives them: heads lie inside a position."""
    torch.manual_seed(length)
    return tuple(torch.randn(batch, length, h, dim).transpose(1, 2) for h in (heads, key_heads, key_heads))  # type: ignore[return-value]


def ragged(batch: int, heads: int, blocks: int) -> LayerPattern:
    """A random pattern in which query blocks keep unlike numbers of blocks, some none."""
    torch.manual_seed(blocks)
    indices = torch.full((batch, heads, blocks, blocks), -1, dtype=torch.int32)
    counts = torch.randint(0, blocks + 1, (batch, heads, blocks), dtype=torch.int32)
    for b, h, i in torch.cartesian_prod(*(torch.arange(s) for s in counts.shape)).tolist():
        count = int(counts[b, h, i])
        indices[b, h, i, :count] = torch.randperm(blocks)[:count].sort().values.int()
    kept = max(1, int(counts.max()))
    return LayerPattern(indices[..., :kept].contiguous(), counts)


SHAPES = [
    # batch, query heads, key heads, length, prompt, block size
    (1, 4, 4, 256, 192, 32),
    (1, 4, 4, 200, 150, 32),  # partial last block
    (2, 4, 2, 200, 192, 32),  # grouped queries, batch of two
    (2, 6, 1, 193, 130, 64),  # last block of one row
    (1, 2, 2, 300, 290, 128),
    (1, 2, 1, 20, 12, 32),  # one block, not full
]


@pytest.mark.parametrize("bytes_per_thread", [1, 100_000, 1 << 20])
@pytest.mark.parametrize("select", [0.3, 0.5])
@pytest.mark.parametrize(("batch", "heads", "key_heads", "length", "prompt", "size"), SHAPES)
def test_equals_masked_dense_attention(
    batch: int,
    heads: int,
    key_heads: int,
    length: int,
    prompt: int,
    size: int,
    select: float,
    bytes_per_thread: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_CPU_BYTES_PER_THREAD", bytes_per_thread)
    q, k, v = tensors(batch, heads, key_heads, length)
    pattern = select_blocks(block_importance(q, k, SCALE, size), BlockLayout(length, prompt, size), select)
    out = attend(q, k, v, pattern, size)
    assert out.shape == q.shape and out.dtype == v.dtype
    torch.testing.assert_close(out, masked_dense(q, k, v, pattern, size), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("batch", "heads", "key_heads", "length", "prompt", "size"), SHAPES)
def test_unlike_counts(batch: int, heads: int, key_heads: int, length: int, prompt: int, size: int) -> None:
    q, k, v = tensors(batch, heads, key_heads, length)
    pattern = ragged(batch, heads, -(-length // size))
    out = attend(q, k, v, pattern, size)
    torch.testing.assert_close(out, masked_dense(q, k, v, pattern, size), rtol=0, atol=1e-5)


def test_a_pattern_that_keeps_nothing_gives_zeros() -> None:
    q, k, v = tensors(1, 2, 2, 40)
    pattern = LayerPattern(
        torch.full((1, 2, 3, 1), -1, dtype=torch.int32), torch.zeros(1, 2, 3, dtype=torch.int32)
    )
    assert not attend(q, k, v, pattern, 16).any()


@pytest.mark.parametrize(("batch", "heads", "key_heads", "length", "prompt", "size"), SHAPES)
def test_keeping_everything_is_dense_attention(
    batch: int, heads: int, key_heads: int, length: int, prompt: int, size: int
) -> None:
    q, k, v = tensors(batch, heads, key_heads, length)
    pattern = select_blocks(block_importance(q, k, SCALE, size), BlockLayout(length, prompt, size), 1.0)
    out = attend(q, k, v, pattern, size)
    torch.testing.assert_close(out, dense_attention(q, k, v, SCALE), rtol=0, atol=1e-5)


def test_bfloat16() -> None:
    q, k, v = (x.bfloat16() for x in tensors(2, 4, 2, 200))
    pattern = select_blocks(block_importance(q, k, SCALE, 32), BlockLayout(200, 150, 32), 0.5)
    out = attend(q, k, v, pattern, 32)
    assert out.dtype == torch.bfloat16
    expected = masked_dense(q.float(), k.float(), v.float(), pattern, 32)
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=2e-2)


def test_one_pattern_serves_many_calls() -> None:
    """What the first step prepares must hold for other q, k and v, and nothing may leak between calls."""
    q, k, v = tensors(1, 4, 2, 200)
    pattern = select_blocks(block_importance(q, k, SCALE, 32), BlockLayout(200, 150, 32), 0.5)
    first = attend(q, k, v, pattern, 32)
    other = attend(-q, k, 2 * v, pattern, 32)
    torch.testing.assert_close(other, masked_dense(-q, k, 2 * v, pattern, 32), rtol=0, atol=2e-5)
    assert torch.equal(first, attend(q, k, v, pattern, 32))


@pytest.mark.parametrize("uneven", [False, True])
def test_executed_density_is_what_runs(uneven: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = 0

    def counting(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        nonlocal computed
        computed += q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)

    monkeypatch.setattr(module, "scaled_dot_product_attention", counting)
    layout = BlockLayout(200, 150, 32)
    q, k, v = tensors(2, 4, 2, layout.length)
    layer = ragged(2, 4, layout.blocks) if uneven else select_blocks(torch.rand(2, 4, 7, 7), layout, 0.4)
    attend(q, k, v, layer, 32)
    pattern = Pattern(layout, (layer,), 0.4)
    assert executed_density("gather", pattern) == pytest.approx(computed / (2 * 4 * layout.length**2))
