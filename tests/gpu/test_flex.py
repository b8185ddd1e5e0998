"""FlexAttention compiled for the GPU, against gather in higher precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsed.attention.backends import flex
from sparsed.attention.backends.gather import gather_attention
from sparsed.attention.pattern import BlockLayout, LayerPattern

if (reason := flex.unavailable("cuda")) is not None:
    pytest.skip(reason, allow_module_level=True)


def tensors(batch: int, heads: int, key_heads: int, length: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """bfloat16 q, k, v with the strides transformers gives them: heads lie inside a position."""
    torch.manual_seed(length)
    return tuple(  # type: ignore[return-value]
        torch.randn(batch, length, h, dim, device="cuda").bfloat16().transpose(1, 2)
        for h in (heads, key_heads, key_heads)
    )


def ragged(batch: int, heads: int, blocks: int) -> LayerPattern:
    """A random pattern in which query blocks keep unlike numbers of blocks: the first none, the last all."""
    generator = torch.Generator("cuda").manual_seed(blocks)
    order = torch.rand(batch, heads, blocks, blocks, device="cuda", generator=generator).argsort(-1)
    counts = torch.randint(0, blocks + 1, order.shape[:-1], device="cuda", generator=generator)
    counts[..., 0], counts[..., -1] = 0, blocks
    padding = torch.arange(blocks, device="cuda") >= counts[..., None]
    indices = order.masked_fill(padding, blocks).sort(-1).values
    return LayerPattern(indices.masked_fill(indices == blocks, -1).int(), counts.int())


def error(out: Tensor, expected: Tensor) -> float:
    """Relative Frobenius norm of the difference; NaN if anything is not finite."""
    return float((out.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize(
    ("batch", "heads", "key_heads", "length", "dim", "size"),
    [
        (1, 32, 32, 4224, 128, 128),
        (2, 28, 4, 1025, 64, 128),  # last block of one row
        (1, 28, 4, 1000, 128, 64),
        (2, 8, 8, 1025, 128, 32),
        (1, 4, 2, 20, 64, 32),  # one block, not full
    ],
)
def test_equals_gather(batch: int, heads: int, key_heads: int, length: int, dim: int, size: int) -> None:
    q, k, v = tensors(batch, heads, key_heads, length, dim)
    pattern, layout = ragged(batch, heads, -(-length // size)), BlockLayout(length, 0, size)
    lists, scale = pattern.lists(None, layout), dim**-0.5
    out = flex.flex_attention(q, k, v, lists, scale)
    assert out.shape == q.shape and out.dtype == v.dtype
    wanted = gather_attention(q.double(), k.double(), v.double(), lists, scale)
    assert error(out, wanted) < 5e-3
    # Another layer's pattern of the same shape: the same kernel, other lists.
    other = LayerPattern(pattern.indices.flip(1).contiguous(), pattern.counts.flip(1).contiguous())
    others = other.lists(None, layout)
    out = flex.flex_attention(-q, k, v, others, scale)
    wanted = gather_attention(-q.double(), k.double(), v.double(), others, scale)
    assert error(out, wanted) < 5e-3


@pytest.mark.parametrize(
    ("batch", "heads", "key_heads", "length", "size"), [(2, 8, 2, 1025, 128), (2, 4, 4, 300, 32), (1, 4, 1, 100, 64)]
)
def test_fewer_rows_than_keys(row_sets, batch: int, heads: int, key_heads: int, length: int, size: int) -> None:
    q, k, v = tensors(batch, heads, key_heads, length, 64)
    layout, pattern = BlockLayout(length, 0, size), ragged(batch, heads, -(-length // size))
    wanted = gather_attention(q.double(), k.double(), v.double(), pattern.lists(None, layout), 0.125)
    for name, positions in row_sets(length, size, batch).items():
        positions = positions.cuda()
        rows = positions[:, None, :, None].expand(batch, heads, -1, 64)
        out = flex.flex_attention(q.gather(2, rows), k, v, pattern.lists(positions, layout), 0.125)
        assert out.shape == rows.shape, name
        assert (out.double() - wanted.gather(2, rows)).norm() <= 5e-3 * wanted.gather(2, rows).norm(), name
