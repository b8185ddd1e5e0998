"""Attention of few rows to all keys: our kernel in Triton's interpreter, folded heads, and how one is chosen."""

from __future__ import annotations

import heapq
import itertools
import math
import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsed import SparseDConfig
from sparsed.attention.backends import dense, few_rows, triton
from sparsed.attention.backends.dense import DenseAttention
from sparsed.attention.backends.registry import Problem, load_backend
from sparsed.attention.backends.triton import Tiles
from sparsed.attention.kernels import Kernels
from sparsed.attention.pattern import BlockLayout, LayerPattern
from sparsed.attention.policy import AttentionPolicy
from sparsed.attention.state import RunAttention
from sparsed.cache.rows import ALL

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="there is a GPU here: tests/gpu runs the kernels for real"
)
SHAPES = [
    # batch, query heads, key heads, rows, keys, head_dim
    (1, 2, 2, 5, 150, 64),
    (2, 4, 2, 17, 77, 32),  # 34 folded rows: no multiple of a tile
    (1, 3, 1, 1, 40, 128),
    (1, 7, 1, 3, 65, 32),  # one key more than two tiles of 32
    (1, 1, 1, 40, 1, 32),
]
CPU = torch.device("cpu")


def heads(batch: int, length: int, count: int, dim: int, seed: int) -> Tensor:
    """As a model lays them out: [batch, length, heads, head_dim], seen transposed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, count, dim, generator=generator).transpose(1, 2)


def integers(batch: int, length: int, count: int, dim: int, seed: int) -> Tensor:
    """−1, 0 and 1: sums of their products are exact in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 2, (batch, length, count, dim), generator=generator).float().transpose(1, 2)


def oracle(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Each row's mean of the values, and of their absolute values, weighed by softmax: one row and key at a time."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    size = torch.zeros(q.shape, dtype=torch.float64)
    group = q.shape[1] // k.shape[1]
    for b, h, i in itertools.product(*map(range, q.shape[:3])):
        keys, values = k[b, h // group].tolist(), v[b, h // group].tolist()
        row = q[b, h, i].tolist()
        scores = [scale * math.fsum(x * y for x, y in zip(row, key)) for key in keys]
        top = max(scores)
        weights = [math.exp(score - top) for score in scores]
        total = math.fsum(weights)
        for weight, value in zip(weights, values):
            value = torch.tensor(value, dtype=torch.float64)
            out[b, h, i] += weight / total * value
            size[b, h, i] += weight / total * value.abs()
    return out, size


def close(got: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
    """float32 within 1e-5; in 16 bits within the rounding of the weights and of the result."""
    wanted, size = oracle(q, k, v, scale)
    assert got.shape == q.shape and got.dtype == v.dtype and got.isfinite().all()
    allowed = 1e-5 + (0 if v.dtype == torch.float32 else torch.finfo(v.dtype).eps) * size
    assert ((got.double() - wanted).abs() <= allowed).all(), float((got.double() - wanted).abs().max())


@interpreted
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter multiplies no bfloat16
def test_the_split_kernel(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, query_heads, key_heads, n, length, dim = shape
    q = heads(batch, n, query_heads, dim, 1).to(dtype)
    k, v = (heads(batch, length, key_heads, dim, seed).to(dtype) for seed in (2, 3))
    got = few_rows.split_attention(q, k, v, dim**-0.5)
    close(got, q, k, v, dim**-0.5)
    # As a layer's output projection takes it.
    assert got.transpose(1, 2).is_contiguous()


@interpreted
@pytest.mark.parametrize("descriptors", [True, False])
def test_any_number_of_stretches_and_any_tiles_give_the_same(
    monkeypatch: pytest.MonkeyPatch, descriptors: bool
) -> None:
    monkeypatch.setattr(few_rows, "has_tma", lambda *_: descriptors)
    q, k, v = heads(2, 3, 2, 32, 1), heads(2, 147, 1, 32, 2), heads(2, 147, 1, 32, 3)
    wanted, _ = oracle(q, k, v, 0.2)
    # As many as there are tiles of keys, which are ten: more than are merged at a time.
    assert triton.MERGED < 10
    for rows, keys, count in ((16, 16, 1), (16, 16, 3), (16, 16, 1000), (32, 64, 2)):
        got = few_rows._attend(q, k, v, 0.2, Tiles(rows, keys, 4, 2), count)
        assert torch.allclose(got.double(), wanted, atol=1e-5), (rows, keys, count)


def listed(
    batch: int, heads_: int, length: int, prompt: int, size: int, full: int = 0
) -> tuple[LayerPattern, BlockLayout]:
    """Lists of one block and more, some with the last block; those of the last `full` query blocks are empty."""
    layout = BlockLayout(length, prompt, size)
    generator = torch.Generator().manual_seed(5)
    mask = torch.rand(batch, heads_, layout.blocks, layout.blocks, generator=generator) < 0.5
    mask[..., 0] |= ~mask.any(-1)
    mask[0, 0, :, -1] = True
    counts = mask.sum(-1, dtype=torch.int32)
    order = torch.where(mask, torch.arange(layout.blocks), layout.blocks).sort(-1).values[..., : int(counts.max())]
    indices = order.masked_fill(order == layout.blocks, -1).to(torch.int32)
    pattern = LayerPattern(indices, counts)
    return (pattern.with_full(full) if full else pattern), layout


@interpreted
@pytest.mark.parametrize(
    ("descriptors", "dtype", "batch", "query_heads", "key_heads", "dim", "length", "size", "rows"),
    [
        # Two tiles, the last key block of 22.
        (True, torch.float16, 1, 2, 1, 32, 150, 32, [[100, 101, 102, 140, 149]]),
        (False, torch.float32, 1, 2, 1, 32, 150, 32, [[100, 101, 102, 140, 149]]),
        # Sequences with other rows; some see no key.
        (True, torch.float32, 2, 2, 1, 32, 200, 64, [[90, 127, 128, 199], [1, 2, 130, 131]]),
        # A tile of some rows, and one of many.
        (False, torch.float16, 1, 1, 1, 64, 300, 128, [list(range(250, 290))]),
    ],
)  # fmt: skip
def test_the_split_over_listed_blocks(
    monkeypatch: pytest.MonkeyPatch, descriptors: bool, dtype: torch.dtype, batch: int, query_heads: int,
    key_heads: int, dim: int, length: int, size: int, rows: list[list[int]],
) -> None:  # fmt: skip
    """One row at a time over the keys of its blocks, in any number of stretches; what sees nothing is 0."""
    monkeypatch.setattr(triton, "has_tma", lambda *_: descriptors)
    pattern, layout = listed(batch, query_heads, length, 64, size, full=1 if size == 64 else 0)
    positions = torch.tensor(rows)
    lists = pattern.lists(positions, layout)
    q = heads(batch, positions.shape[1], query_heads, dim, 1).to(dtype)
    k, v = (heads(batch, length, key_heads, dim, seed).to(dtype) for seed in (2, 3))
    k[:, :, : length // 2] *= 4  # stretches apart by much
    wanted, sizes = torch.zeros(q.shape, dtype=torch.float64), torch.zeros(q.shape, dtype=torch.float64)
    for b, h, i in itertools.product(*map(range, q.shape[:3])):
        block = int(positions[b % len(positions), i]) // size
        seen = [n for n in range(length) if n // size in pattern.indices[b, h, block].tolist()]
        if seen:
            group = h // (query_heads // key_heads)
            one = (q[b : b + 1, h : h + 1, i : i + 1], *(x[b : b + 1, group : group + 1, seen] for x in (k, v)))
            wanted[b, h, i], sizes[b, h, i] = (found[0, 0, 0] for found in oracle(*one, dim**-0.5))
    assert bool((wanted == 0).all(-1).any()) == (size == 64)
    tiles = triton.few_tiles(dtype, q.shape[2], size)
    allowed = 1e-5 + (0 if dtype == torch.float32 else torch.finfo(dtype).eps) * sizes
    for count in (1, 3):
        laid = lists.into_tiles(q)
        got = lists.out_of_tiles(triton._attend_few(laid, k, v, lists, dim**-0.5, tiles, count))
        assert ((got.double() - wanted).abs() <= allowed).all(), (count, float((got.double() - wanted).abs().max()))
    # And the backend takes it for few rows.
    calls: list[int] = []
    real = triton._attend_few
    monkeypatch.setattr(triton, "_attend_few", lambda *given: calls.append(given[-1]) or real(*given))
    got = triton.triton_attention(q, k, v, lists, dim**-0.5)
    assert ((got.double() - wanted).abs() <= allowed).all()
    assert bool(calls) == (q.shape[2] <= size)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_very_large_scores(dtype: torch.dtype) -> None:
    """Apart by multiples of 16384: the weights are those of the largest ones alone, in one stretch or in several."""
    q, k = (128 * integers(1, length, 2, 64, seed).to(dtype) for length, seed in ((6, 1), (140, 2)))
    k[:, :, 70:] = k[:, :, :70]
    v = heads(1, 140, 2, 64, 3).to(dtype)
    assert (q.double() @ k.double().mT).max() > 200_000
    for count in (1, 5):
        close(few_rows._attend(q, k, v, 1.0, Tiles(16, 32, 4, 2), count), q, k, v, 1.0)


@interpreted
@pytest.mark.parametrize("high", [slice(0, 32), slice(64, 96), slice(128, 140)])
def test_a_stretch_far_above_all_others(high: slice) -> None:
    """The other stretches' scores are 128 below: what they give counts nothing."""
    q, k, v = integers(1, 6, 2, 32, 1), integers(1, 140, 2, 32, 2), heads(1, 140, 2, 32, 3)
    q[..., 0], k[..., 0] = 16, -16
    k[:, :, high, 0] = 16
    for count in (1, 2, 5):
        got = few_rows._attend(q, k, v, 0.25, Tiles(16, 32, 4, 2), count)
        close(got, q, k, v, 0.25)
        close(got, q, k[:, :, high], v[:, :, high], 0.25)


@interpreted
def test_rows_and_heads_anywhere_in_memory() -> None:
    """Part of the rows, heads before positions, a head dimension that is not the last in memory."""
    q = heads(1, 30, 4, 32, 1)[:, :, 21:]
    k = heads(1, 70, 2, 32, 2).contiguous()
    v = heads(1, 70, 2, 32, 3).transpose(2, 3).contiguous().transpose(2, 3)
    assert v.stride(-1) != 1
    close(few_rows.split_attention(q, k, v, 0.2), q, k, v, 0.2)


@interpreted
@pytest.mark.parametrize("descriptors", [True, False])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_places_beyond_what_32_bits_count(monkeypatch: pytest.MonkeyPatch, axis: int, descriptors: bool) -> None:
    """Three sequences, heads or positions that are 2³⁰ numbers apart, in memory of which only those are ever touched.

    They begin in its middle, so that a place which wraps around is a wrong one and no crash.
    """
    monkeypatch.setattr(few_rows, "has_tma", lambda *_: descriptors)
    try:
        memory = torch.empty(2**32 + 2**30, dtype=torch.float16)
    except RuntimeError:
        pytest.skip("this machine does not lend 10 GiB of address space")
    shape, strides = [1, 1, 2, 32], [192, 192, 96, 1]
    shape[axis], strides[axis] = 3, 2**30

    def placed(number: int) -> Tensor:
        there = memory.as_strided(shape, strides, 2**31 + 32 * number)
        return there.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(number)))

    q, k, v = map(placed, range(3))
    close(few_rows._attend(q, k, v, 0.2, Tiles(16, 32, 4, 2), 1), q, k, v, 0.2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folded_heads(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, query_heads, key_heads, n, length, dim = shape
    q = heads(batch, n, query_heads, dim, 1).to(dtype)
    k, v = (heads(batch, length, key_heads, dim, seed).to(dtype) for seed in (2, 3))
    seen: list[tuple[int, ...]] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        seen.extend((tuple(q.shape), tuple(k.shape)))
        return dense.dense_attention(q, k, v, scale)

    close(few_rows.folded(attend, q, k, v, dim**-0.5), q, k, v, dim**-0.5)
    close(few_rows.SDPA.attend(q, k, v, dim**-0.5), q, k, v, dim**-0.5)
    # No key head is repeated.
    rows = query_heads // key_heads * n
    assert seen == [(batch, key_heads, rows, dim), (batch, key_heads, length, dim)]


def test_what_the_split_kernel_does_not_take() -> None:
    q = torch.zeros(1, 2, 3, 48)
    with pytest.raises(ValueError, match="head_dim 32, 64 or 128, not 48"):
        few_rows.split_attention(q, q, q, 1.0)
    q = torch.zeros(1, 2, 3, 64, dtype=torch.float64)
    with pytest.raises(ValueError, match="float64"):
        few_rows.split_attention(q, q, q, 1.0)


@pytest.mark.parametrize("work", [1, 4, 31, 32, 64, 131, 200, 264, 265, 5000])
@pytest.mark.parametrize("key_tiles", [1, 3, 66, 258, 1026, 2050])
def test_splits_fill_the_device(work: int, key_tiles: int) -> None:
    slots = 264  # of an H200
    count = triton.splits(work, key_tiles, slots)
    assert 1 <= count <= key_tiles

    def longest(count: int) -> int:
        """Key tiles that the device works off one after the other, a start's cost included, program by program."""
        free = [0] * slots
        for _ in range(work * count):
            heapq.heapreplace(free, free[0] + -(-key_tiles // count) + triton._START)
        return max(free)

    assert longest(count) <= longest(1)
    # Where there are enough keys to split, most of the device is at work for most of the time.
    if work * key_tiles >= 64 * slots:
        assert work * key_tiles >= 0.6 * slots * longest(count)


def test_splits_of_what_one_h200_is_asked() -> None:
    # LLaDA-8B, 32 heads: one tile of rows each. 64k and 4k keys.
    assert triton.splits(32, 1026, 264) == 8 and few_rows.splits(32, 66, 264) == 8
    # With guidance, and with more sequences than there is room for at a time.
    assert triton.splits(64, 1026, 264) == 4 and few_rows.splits(528, 1026, 264) == 1
    # Dream-7B, 128 rows: 4 key heads of 7 tiles.
    assert triton.splits(28, 1026, 264) == 9


def test_problems_of_a_kind() -> None:
    problem = Problem(CPU, torch.bfloat16, 1, 28, 4, 65_664, 128)
    assert few_rows.kind_of(problem, 128) == (replace(problem, length=65_536), 128)
    rows = {n: few_rows.kind_of(problem, n)[1] for n in (1, 16, 17, 32, 33, 96, 129, 300, 5000)}
    assert rows == {1: 16, 16: 16, 17: 32, 32: 32, 33: 64, 96: 96, 129: 160, 300: 320, 5000: 1024}
    lengths = {n: few_rows.kind_of(replace(problem, length=n), 1)[0].length for n in (1, 100, 4192, 6000, 131_200)}
    assert lengths == {1: 1, 100: 128, 4192: 4096, 6000: 8192, 131_200: 131_072}


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> Any:
    """(implementations) → what is chosen of them; `attend` gives the milliseconds that it takes."""

    def choose(*given: DenseAttention) -> DenseAttention:
        monkeypatch.setattr(few_rows, "choices", lambda *_: given)
        monkeypatch.setattr(dense, "device_milliseconds", lambda _device, work, cold: work())
        few_rows.fastest.cache_clear()
        return few_rows.pick("auto", Problem(CPU, torch.bfloat16, 1, 2, 1, 100, 32), 5)

    yield choose
    few_rows.fastest.cache_clear()


def taking(name: str, milliseconds: float | Exception) -> DenseAttention:
    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Any:
        assert q.shape == (1, 2, 16, 32) and k.shape == v.shape == (1, 1, 128, 32) and scale == 32**-0.5
        # Reading keys and values is the work, so they lie in memory of their own.
        assert k.data_ptr() != v.data_ptr()
        if isinstance(milliseconds, Exception):
            raise milliseconds
        return milliseconds

    return DenseAttention(name, attend)


def test_the_fastest_is_chosen_and_what_fails_is_left_out(trial: Any) -> None:
    broken, slow, fast = taking("a", RuntimeError("no")), taking("b", 2.0), taking("c", 1.0)
    assert trial(broken, slow, fast) is fast
    assert trial(broken, slow) is slow
    assert trial(broken, taking("d", ValueError("no"))) is few_rows.SDPA
    with pytest.raises(torch.OutOfMemoryError):
        trial(slow, taking("e", torch.OutOfMemoryError("full")))


def policy(generation_rows: str) -> AttentionPolicy:
    config = SparseDConfig(select=0.4, block_size=32, generation_rows=generation_rows).resolve(200)  # type: ignore[arg-type]
    return AttentionPolicy(config, BlockLayout(200, 150, 32), 8)


def test_a_run_chooses_where_it_has_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def pick(name: str, problem: Problem, rows: int) -> DenseAttention:
        asked.append((name, rows))
        return few_rows.SPLIT

    monkeypatch.setattr(few_rows, "pick", pick)
    problem = Problem(CPU, torch.float32, 1, 4, 2, 200, 32)
    assert Kernels.choose(problem, policy("pattern"), dense_backend="sdpa")[0].few is few_rows.SDPA
    assert not asked
    kernels, _ = Kernels.choose(problem, policy("full"), dense_backend="sdpa")
    # From the block of position 128 on, which holds the first generated position, 150.
    assert kernels.few is few_rows.SPLIT and asked == [("sdpa", 72)]


@pytest.mark.parametrize("few", [few_rows.SDPA, few_rows.SPLIT])
def test_other_processes_find_the_same_by_name(few: DenseAttention) -> None:
    kernels = Kernels(dense.SDPA, load_backend("gather"), few=few)
    assert Kernels.named(kernels.names, CPU).names == kernels.names == ("sdpa", "gather", False, few.name)


def test_on_a_cpu_torch_picks() -> None:
    problem = Problem(CPU, torch.bfloat16, 1, 4, 2, 200, 32)
    assert few_rows.pick("auto", problem, 72) is few_rows.SDPA and few_rows.pick("sdpa", problem, 72).name == "sdpa"


def test_the_generations_rows_are_given_to_it() -> None:
    q, k, v = (heads(1, 200, count, 32, seed) for count, seed in ((4, 1), (2, 2), (2, 3)))
    given: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        given.append(q)
        return few_rows.SDPA.attend(q, k, v, scale)

    kernels = Kernels(dense.SDPA, load_backend("gather"), few=DenseAttention("test", attend))
    state = RunAttention(policy("full"), kernels, phase="select")
    full = state.attend(0, q, k, v, 0.2, ALL)
    assert not given
    state.phase = "sparse"
    sparse = state.attend(0, q, k, v, 0.2, ALL)
    assert [tuple(few.shape) for few in given] == [(1, 4, 72, 32)]
    assert torch.allclose(sparse[:, :, 128:], full[:, :, 128:], atol=1e-5)
    assert not torch.allclose(sparse[:, :, :128], full[:, :, :128], atol=1e-3)
