"""flash-attn-4's kernels on the GPU: sparse against gather, dense against torch, in higher precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsed.attention.backends import flash4
from sparsed.attention.backends.dense import dense_attention
from sparsed.attention.backends.gather import gather_attention
from sparsed.attention.pattern import BlockLayout, LayerPattern

if (reason := flash4.unavailable("cuda")) is not None:
    pytest.skip(reason, allow_module_level=True)

SIZE = flash4.BLOCK_SIZE


def tensors(
    batch: int, heads: int, key_heads: int, length: int, dim: int, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v with the strides transformers gives them: heads lie inside a position."""
    torch.manual_seed(length)
    return tuple(  # type: ignore[return-value]
        torch.randn(batch, length, h, dim, device="cuda").to(dtype).transpose(1, 2)
        for h in (heads, key_heads, key_heads)
    )


def random_pattern(batch: int, heads: int, blocks: int, kept: int | None = None) -> LayerPattern:
    """`kept` random key blocks for each query block; None: unlike numbers, the first query block none, the last all."""
    generator = torch.Generator("cuda").manual_seed(blocks)
    order = torch.rand(batch, heads, blocks, blocks, device="cuda", generator=generator).argsort(-1)
    if kept is None:
        counts = torch.randint(0, blocks + 1, order.shape[:-1], device="cuda", generator=generator)
        counts[..., 0], counts[..., -1] = 0, blocks
    else:
        counts = torch.full(order.shape[:-1], kept, device="cuda")
    padding = torch.arange(blocks, device="cuda") >= counts[..., None]
    indices = order.masked_fill(padding, blocks).sort(-1).values[..., : int(counts.max())]
    return LayerPattern(indices.masked_fill(indices == blocks, -1).int().contiguous(), counts.int())


def error(out: Tensor, expected: Tensor) -> float:
    """Relative Frobenius norm of the difference; NaN if anything is not finite."""
    return float((out.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize(("heads", "key_heads"), [(32, 32), (32, 8), (28, 4)])
@pytest.mark.parametrize("length", [1000, 4224, 4225, 16512])  # 4225: the last block has one row
def test_sparse(length: int, heads: int, key_heads: int, dim: int, ragged: bool) -> None:
    blocks = -(-length // SIZE)
    q, k, v = tensors(1, heads, key_heads, length, dim)
    pattern = random_pattern(1, heads, blocks, None if ragged else -(-3 * blocks // 10))
    lists = pattern.lists(None, BlockLayout(length, 0, SIZE))
    scale = dim**-0.5
    out = flash4.flash4_attention(q, k, v, lists, scale)
    assert out.shape == q.shape and out.dtype == v.dtype and out.transpose(1, 2).is_contiguous()
    precise = torch.float64 if length < 5000 else torch.float32
    wanted = gather_attention(q.to(precise), k.to(precise), v.to(precise), lists, scale)
    assert error(out, wanted) < 5e-3
    if ragged:
        assert not out[:, :, :SIZE].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_batch_other_strides_and_one_pattern_for_many_calls(dtype: torch.dtype) -> None:
    q, k, v = tensors(3, 4, 2, 700, 128, dtype)
    lists = random_pattern(3, 4, 6).lists(None, BlockLayout(700, 0, SIZE))
    first = flash4.flash4_attention(q, k, v, lists, 0.1)
    wanted = gather_attention(q.double(), k.double(), v.double(), lists, 0.1)
    assert error(first, wanted) < 5e-3
    packed = flash4.flash4_attention(-q.contiguous(), k.contiguous(), v, lists, 0.1)
    wanted = gather_attention(-q.double(), k.double(), v.double(), lists, 0.1)
    assert error(packed, wanted) < 5e-3
    assert torch.equal(first, flash4.flash4_attention(q, k, v, lists, 0.1))


@pytest.mark.parametrize("case", ["one hot key", "constant keys", "equal scores"])
def test_adversarial_inputs(case: str) -> None:
    q, k, v = tensors(1, 4, 4, 1025, 128)
    if case == "one hot key":
        k[:, :, 1024] = 30 * q[:, :, 1024]
    elif case == "constant keys":
        k[:] = 1
    else:
        k[:, :, 128:900] = k[:, :, 128:129]
    lists = random_pattern(1, 4, 9, 4).lists(None, BlockLayout(1025, 0, SIZE))
    out = flash4.flash4_attention(q, k, v, lists, 0.0884)
    wanted = gather_attention(q.double(), k.double(), v.double(), lists, 0.0884)
    assert error(out, wanted) < 5e-3


@pytest.mark.parametrize(("batch", "heads", "key_heads", "length"), [(2, 8, 2, 1025), (1, 4, 4, 4224), (3, 4, 1, 100)])
def test_fewer_rows_than_keys(row_sets, batch: int, heads: int, key_heads: int, length: int) -> None:
    q, k, v = tensors(batch, heads, key_heads, length, 128)
    layout, pattern = BlockLayout(length, 0, SIZE), random_pattern(batch, heads, -(-length // SIZE))
    precise = [x.double() for x in (q, k, v)]
    wanted = gather_attention(*precise, pattern.lists(None, layout), 128**-0.5)
    for name, positions in row_sets(length, SIZE, batch).items():
        positions = positions.cuda()
        rows = positions[:, None, :, None].expand(batch, heads, -1, 128)
        out = flash4.flash4_attention(q.gather(2, rows), k, v, pattern.lists(positions, layout), 128**-0.5)
        assert out.shape == rows.shape, name
        assert (out.double() - wanted.gather(2, rows)).norm() <= 5e-3 * wanted.gather(2, rows).norm(), name


@pytest.mark.parametrize(("heads", "key_heads"), [(32, 32), (32, 8), (28, 4)])
@pytest.mark.parametrize("length", [1000, 4225])
def test_dense_and_its_log_sum_exp(length: int, heads: int, key_heads: int) -> None:
    q, k, v = tensors(2, heads, key_heads, length, 128)
    scale = 128**-0.5
    out, lse = flash4.dense_with_lse(q, k, v, scale)
    precise = [x.float() for x in (q, k, v)]
    assert error(out, dense_attention(*precise, scale)) < 5e-3
    assert torch.equal(out, flash4.dense(q, k, v, scale))
    assert lse.shape == q.shape[:3] and lse.dtype == torch.float32
    group = heads // key_heads
    for h in range(heads):
        scores = precise[0][:, h].double() @ precise[1][:, h // group].double().mT * scale
        torch.testing.assert_close(lse[:, h].double(), scores.logsumexp(-1), rtol=0, atol=1e-4)


def test_what_it_cannot_do() -> None:
    q, k, v = tensors(1, 2, 2, 256, 128)
    pattern = random_pattern(1, 2, 2)
    with pytest.raises(ValueError, match="block_size 128, not 64"):
        flash4.flash4_attention(q, k, v, pattern.lists(None, BlockLayout(256, 0, 64)), 0.1)
    lists = pattern.lists(None, BlockLayout(256, 0, SIZE))
    with pytest.raises(ValueError, match="not float32"):
        flash4.flash4_attention(q.float(), k.float(), v.float(), lists, 0.1)
    with pytest.raises(ValueError, match="up to 128, not 256"):
        flash4.dense(*tensors(1, 2, 2, 256, 256), 0.1)
