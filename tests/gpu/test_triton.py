"""The Triton kernels for real, against float64, on random and adversarial inputs."""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)

from sparsed.attention.backends import dense, triton
from sparsed.attention.backends.registry import Problem
from sparsed.attention.pattern import BlockLayout, LayerPattern

if (missing := triton.unavailable(torch.device("cuda"))) is not None:
    pytest.skip(missing, allow_module_level=True)


def heads(batch: int, length: int, count: int, dim: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """As a model lays them out: [batch, length, heads, head_dim], seen transposed."""
    generator = torch.Generator("cuda").manual_seed(seed)
    shape = (batch, length, count, dim)
    return torch.randn(shape, generator=generator, device="cuda").to(dtype).transpose(1, 2)


def ragged(batch: int, count: int, blocks: int, seed: int) -> LayerPattern:
    """Lists of random length, from none to all."""
    generator = torch.Generator("cuda").manual_seed(seed)
    chances = torch.rand(batch, count, blocks, blocks, generator=generator, device="cuda")
    counts = torch.randint(0, blocks + 1, (batch, count, blocks), generator=generator, device="cuda")
    mask = chances.argsort(-1).argsort(-1) < counts[..., None]
    order = mask.to(torch.int8).sort(dim=-1, descending=True, stable=True).indices
    return LayerPattern(torch.where(mask.gather(-1, order), order, -1).int(), counts.int())


def oracle(q, k, v, pattern: LayerPattern | None, scale: float, block_size: int) -> torch.Tensor:
    """Masked softmax attention in float64."""
    group = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    scores = q @ k.transpose(-1, -2) * scale
    if pattern is not None:
        seen = pattern.mask().repeat_interleave(block_size, -1).repeat_interleave(block_size, -2)
        scores = scores.masked_fill(~seen[..., : q.shape[2], : q.shape[2]], -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0) @ v


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative Frobenius norm of the difference."""
    assert got.isfinite().all()
    return float((got.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block_size", [32, 64, 128])
@pytest.mark.parametrize(
    ("batch", "query_heads", "key_heads", "length", "dim"),
    [(1, 4, 4, 1000, 128), (2, 8, 2, 641, 64), (1, 4, 1, 513, 32), (1, 2, 2, 40, 128), (2, 7, 1, 1025, 128)],
)
def test_attention_equals_float64(dtype, block_size, batch, query_heads, key_heads, length, dim) -> None:
    q = heads(batch, length, query_heads, dim, dtype, 1)
    k, v = (heads(batch, length, key_heads, dim, dtype, seed) for seed in (2, 3))
    pattern = ragged(batch, query_heads, -(-length // block_size), 4)
    wanted = oracle(q, k, v, pattern, dim**-0.5, block_size)
    lists = pattern.lists(None, BlockLayout(length, 0, block_size))
    choices = triton._ATTENTION[block_size]
    if triton._hopper(q.device, dim, block_size):
        choices += (triton._HOPPER,)
    for tiles in choices:
        got = triton._attend(q, k, v, lists, dim**-0.5, tiles)
        assert error(got, wanted) < 5e-3, tiles


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [64, 128])
def test_many_query_blocks_for_each_program(dtype, dim) -> None:
    """More query blocks than multiprocessors: rings of tiles go on from one to the next, over empty ones too."""
    if not triton._hopper(torch.device("cuda"), dim, 128):
        pytest.skip("the Gluon kernel is for Hopper GPUs")
    q = heads(2, 4000, 16, dim, dtype, 1)
    k, v = (heads(2, 4000, 4, dim, dtype, seed) for seed in (2, 3))
    pattern = ragged(2, 16, 32, 4)
    lists = pattern.lists(None, BlockLayout(4000, 0, 128))
    assert (pattern.counts == 0).any() and (pattern.counts == 1).any() and pattern.counts.numel() > 4 * 132
    wanted = oracle(q, k, v, pattern, dim**-0.5, 128)
    got = [triton._attend(q, k, v, lists, dim**-0.5, triton._HOPPER) for _ in range(5)]
    assert error(got[0], wanted) < 5e-3
    assert all(torch.equal(got[0], again) for again in got[1:])


@pytest.mark.parametrize("block_size", [32, 64, 128])
@pytest.mark.parametrize(
    ("batch", "query_heads", "key_heads", "length", "dim"),
    [(1, 4, 4, 1000, 128), (2, 8, 2, 641, 64), (3, 4, 1, 513, 32), (1, 2, 2, 40, 128)],
)
def test_fewer_rows_than_keys(row_sets, block_size, batch, query_heads, key_heads, length, dim) -> None:
    """Every tile size, the Gluon kernel included, gives the rows of the square result."""
    q = heads(batch, length, query_heads, dim, torch.bfloat16, 1)
    k, v = (heads(batch, length, key_heads, dim, torch.bfloat16, seed) for seed in (2, 3))
    layout = BlockLayout(length, 0, block_size)
    pattern = ragged(batch, query_heads, layout.blocks, 4)
    wanted = oracle(q, k, v, pattern, dim**-0.5, block_size)
    choices = triton._ATTENTION[block_size]
    if triton._hopper(q.device, dim, block_size):
        choices += (triton._HOPPER,)
    for name, positions in row_sets(length, block_size, batch).items():
        positions = positions.cuda()
        rows = positions[:, None, :, None].expand(batch, query_heads, -1, dim)
        lists, few = pattern.lists(positions, layout), q.gather(2, rows)
        results = [
            lists.out_of_tiles(triton._attend(lists.into_tiles(few), k, v, lists, dim**-0.5, tiles))
            for tiles in choices
        ]
        for got in (*results, triton.triton_attention(few, k, v, lists, dim**-0.5)):
            assert got.shape == rows.shape and got.isfinite().all(), name
            assert (got.double() - wanted.gather(2, rows)).norm() <= 5e-3 * wanted.gather(2, rows).norm(), name


def test_starts_that_no_descriptor_takes() -> None:
    """The plain kernel runs where rows do not start at multiples of 16 bytes."""
    wide = heads(1, 300, 2, 132, torch.bfloat16, 1)
    q = k = v = wide[..., 1:129]
    assert not triton.has_tma(q, k, v)
    pattern = ragged(1, 2, 3, 4)
    lists = pattern.lists(None, BlockLayout(300, 0, 128))
    got = triton.triton_attention(q, k, v, lists, 128**-0.5)
    assert error(got, oracle(q, k, v, pattern, 128**-0.5, 128)) < 5e-3


ADVERSARIAL = {
    "one hot key": lambda q, k: k.index_copy(2, torch.tensor([77], device="cuda"), 30 * q[:, :, :1]),
    "constant keys": lambda q, k: k[:, :, :1].expand_as(k).clone(),
    "runs of equal scores": lambda q, k: k[:, :, ::64].repeat_interleave(64, 2)[:, :, : k.shape[2]].clone(),
    "large scores": lambda q, k: 20 * k,
    "zeros": lambda q, k: torch.zeros_like(k),
}


@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("length", [1024, 897])
def test_adversarial_keys(name: str, length: int) -> None:
    q, k, v = (heads(1, length, 2, 128, torch.bfloat16, seed) for seed in (1, 2, 3))
    k = ADVERSARIAL[name](q, k)
    pattern = ragged(1, 2, -(-length // 128), 4)
    lists = pattern.lists(None, BlockLayout(length, 0, 128))
    wanted = oracle(q, k, v, pattern, 128**-0.5, 128)
    choices = triton._ATTENTION[128][:1]
    if triton._hopper(q.device, 128, 128):
        choices += (triton._HOPPER,)
    for tiles in choices:
        assert error(triton._attend(q, k, v, lists, 128**-0.5, tiles), wanted) < 5e-3, tiles


@pytest.mark.parametrize("block_size", [32, 64, 128])
@pytest.mark.parametrize(
    ("batch", "query_heads", "key_heads", "length", "dim"),
    [(1, 4, 4, 1000, 128), (2, 8, 2, 641, 64), (1, 4, 4, 513, 128), (1, 28, 4, 2049, 128)],
)
def test_importance_equals_float64(block_size, batch, query_heads, key_heads, length, dim) -> None:
    q = heads(batch, length, query_heads, dim, torch.bfloat16, 1)
    k = heads(batch, length, key_heads, dim, torch.bfloat16, 2)
    problem = Problem(q.device, q.dtype, batch, query_heads, key_heads, length, dim)
    scores = q.double() @ k.double().repeat_interleave(query_heads // key_heads, 1).transpose(-1, -2) * dim**-0.5
    weights = scores.softmax(-1)
    blocks = -(-length // block_size)
    wanted = torch.stack(
        [
            torch.stack([part.mean((-1, -2)) for part in rows.split(block_size, -1)], -1)
            for rows in weights.split(block_size, -2)
        ],
        -2,
    )
    for full in (dense.CUDNN, dense.FLASH, dense.fastest(problem)):
        assert full.with_lse is not None
        out, lse = full.with_lse(q, k, k, dim**-0.5)
        assert error(out, weights @ k.double().repeat_interleave(query_heads // key_heads, 1)) < 5e-3
        assert lse.shape == q.shape[:-1] and lse.dtype == torch.float32
        assert torch.allclose(lse.double(), scores.logsumexp(-1), atol=1e-4)
        for tiles in triton._IMPORTANCE[block_size]:
            got = triton._means(q, k, lse.contiguous(), dim**-0.5, block_size, tiles)
            assert got.shape[-2:] == (blocks, blocks)
            assert torch.allclose(got.double(), wanted, rtol=1e-5, atol=0), (full.name, tiles)
