"""Attention of few rows on the GPU, to all keys and to listed key blocks: against float64, up to 64k keys."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)

import sparsed  # noqa: E402
from sparsed import CacheConfig, SamplerConfig, SparseDConfig  # noqa: E402
from sparsed.attention.backends import few_rows, triton  # noqa: E402
from sparsed.attention.backends.registry import Problem  # noqa: E402
from sparsed.attention.pattern import BlockLayout, LayerPattern  # noqa: E402

DEVICE = torch.device("cuda:0")
if (missing := triton.unavailable(DEVICE)) is not None:
    pytest.skip(missing, allow_module_level=True)

BF16 = torch.bfloat16


def heads(batch: int, length: int, count: int, dim: int, dtype: torch.dtype, seed: int) -> Tensor:
    """As a model lays them out: [batch, length, heads, head_dim], seen transposed."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    made = torch.empty(batch, length, count, dim, device=DEVICE, dtype=dtype)
    return made.normal_(generator=generator).transpose(1, 2)


def worst(got: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> float:
    """The largest error, in roundings of the dtype: of the weights and of the result. One key head at a time."""
    assert got.shape == q.shape and got.dtype == v.dtype and got.isfinite().all()
    group, found = q.shape[1] // k.shape[1], 0.0
    for b in range(len(q)):
        for h in range(k.shape[1]):
            mine = slice(h * group, (h + 1) * group)
            keys, values = k[b, h].double(), v[b, h].double()
            weights = (q[b, mine].double() @ keys.mT * scale).softmax(-1)
            allowed = 1e-5 + torch.finfo(v.dtype).eps * (weights @ values.abs())
            found = max(found, float(((got[b, mine].double() - weights @ values).abs() / allowed).max()))
    return found


SHAPES = [
    # batch, query heads, key heads, rows, keys, head_dim
    (1, 4, 4, 1, 1, 128),
    (1, 4, 4, 1, 4097, 128),
    (2, 8, 2, 33, 777, 64),
    (1, 7, 1, 96, 1000, 32),
    (1, 28, 4, 32, 4224, 128),
    (1, 32, 8, 32, 4224, 128),
    (2, 28, 4, 127, 2049, 128),
    (3, 32, 32, 128, 4225, 128),
    (1, 4, 4, 300, 16_513, 64),
]


@pytest.mark.parametrize("dtype", [BF16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_implementation_equals_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, query_heads, key_heads, n, length, dim = shape
    q = heads(batch, n, query_heads, dim, dtype, 1)
    k, v = (heads(batch, length, key_heads, dim, dtype, seed) for seed in (2, 3))
    ran = []
    for one in few_rows.choices(DEVICE, dtype):
        try:
            got = one.attend(q, k, v, dim**-0.5)
        except Exception:
            # Another library's kernel may not take a shape; ours takes all of these.
            if one.name == "split":
                raise
            continue
        ran.append(one.name)
        assert worst(got, q, k, v, dim**-0.5) < 2, one.name
    assert "split" in ran and "flash" in ran
    chosen = few_rows.pick("auto", Problem(DEVICE, dtype, batch, query_heads, key_heads, length, dim), n)
    assert chosen.name in ran


@pytest.mark.parametrize("dtype", [BF16, torch.float16])
@pytest.mark.parametrize("descriptors", [True, False])
@pytest.mark.parametrize("rows", sorted(few_rows._TILES))
def test_all_tiles_and_numbers_of_stretches(monkeypatch, rows: int, descriptors: bool, dtype: torch.dtype) -> None:
    from triton.runtime.errors import OutOfResources

    if not descriptors:
        monkeypatch.setattr(few_rows, "has_tma", lambda *_: False)
    q = heads(2, rows - 3, 4, 128, dtype, 1)
    k, v = (heads(2, 1501, 4, 128, dtype, seed) for seed in (2, 3))
    for number, tiles in enumerate(few_rows._TILES[rows]):
        for count in (1, 2, 7, 1000):
            try:
                got = few_rows._attend(q, k, v, 0.09, tiles, count)
            except OutOfResources:
                assert number > 0, "the first tiles fit everywhere"
                continue
            assert worst(got, q, k, v, 0.09) < 2, (tiles, count)


@pytest.mark.parametrize("n", [1, 40])
def test_float32(n: int) -> None:
    q = heads(1, n, 4, 128, torch.float32, 1)
    k, v = (heads(1, 3001, 2, 128, torch.float32, seed) for seed in (2, 3))
    got = few_rows.split_attention(q, k, v, 0.09)
    # 1e-5, written as `worst` counts.
    assert worst(got, q, k, v, 0.09) < 1


def test_large_scores_and_a_stretch_far_above_the_others() -> None:
    q, k, v = heads(1, 50, 4, 128, BF16, 1), heads(1, 9000, 4, 128, BF16, 2), heads(1, 9000, 4, 128, BF16, 3)
    k[:, :, 5000:5003] = 40 * q[:, :, :1]
    for few in (q, 30 * q):
        for count in (1, 9, 100):
            got = few_rows._attend(few, k, v, 0.09, few_rows._TILES[64][0], count)
            assert worst(got, few, k, v, 0.09) < 2


@pytest.mark.parametrize("n", [32, 128])
@pytest.mark.parametrize(("query_heads", "key_heads"), [(32, 32), (32, 8), (28, 4)])
def test_64k_keys(query_heads: int, key_heads: int, n: int) -> None:
    q = heads(1, n, query_heads, 128, BF16, 1)
    k, v = (heads(1, 65_664, key_heads, 128, BF16, seed) for seed in (2, 3))
    for one in few_rows.choices(DEVICE, BF16):
        try:
            got = one.attend(q, k, v, 128**-0.5)
        except Exception:
            if one.name == "split":
                raise
            continue
        assert worst(got, q, k, v, 128**-0.5) < 2, one.name


def test_keys_of_more_than_2_to_the_31_numbers() -> None:
    """Five sequences of 128k keys in 32 heads: the last ones lie beyond what 32 bits count."""
    free, _ = torch.cuda.mem_get_info(DEVICE)
    if free < 20 * 2**30:
        pytest.skip("needs 20 GiB of free GPU memory")
    generator = torch.Generator(DEVICE).manual_seed(1)
    # Keys and values are neighbours in memory, as in a fused projection: strides grow twice as fast.
    both = torch.empty(5, 131_200, 2, 32, 64, device=DEVICE, dtype=BF16).normal_(generator=generator)
    k, v = both[:, :, 0].transpose(1, 2), both[:, :, 1].transpose(1, 2)
    assert (len(k) - 1) * k.stride(0) > 2**31
    q = heads(5, 17, 32, 64, BF16, 2)
    got = few_rows.split_attention(q, k, v, 0.125)
    assert worst(got[-1:], q[-1:], k[-1:], v[-1:], 0.125) < 2
    assert worst(got[:1], q[:1], k[:1], v[:1], 0.125) < 2


def test_in_a_cuda_graph() -> None:
    """Once tiles are chosen and kernels compiled, nothing waits for the host."""
    q, k, v = (heads(1, n, 4, 64, BF16, seed) for n, seed in ((40, 1), (2000, 2), (2000, 3)))
    wanted = few_rows.split_attention(q, k, v, 0.125)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = few_rows.split_attention(q, k, v, 0.125)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("descriptors", [True, False])
@pytest.mark.parametrize(
    ("batch", "query_heads", "key_heads", "length", "size", "first", "n"),
    [
        (1, 32, 32, 65_664, 128, 65_536, 128),
        (1, 28, 4, 4224, 64, 4180, 32),
        (2, 8, 2, 1001, 32, 960, 41),
        (3, 4, 4, 777, 128, 650, 97),
    ],
)  # fmt: skip
def test_listed_blocks(
    monkeypatch, batch: int, query_heads: int, key_heads: int, length: int, size: int, first: int, n: int,
    descriptors: bool,
) -> None:  # fmt: skip
    """Three in ten key blocks, others for each head; against float64 over the keys of each row's blocks."""
    monkeypatch.setattr(triton, "has_tma", lambda *_: descriptors)
    layout = BlockLayout(length, first, size)
    generator = torch.Generator(DEVICE).manual_seed(4)
    shape = (batch, query_heads, layout.blocks, layout.blocks)
    kept = max(1, int(0.3 * layout.blocks))
    chosen = torch.rand(shape, device=DEVICE, generator=generator).topk(kept, dim=-1).indices.sort(-1).values
    counts = torch.full(shape[:3], kept, dtype=torch.int32, device=DEVICE)
    pattern = LayerPattern(chosen.to(torch.int32), counts)
    positions = torch.arange(first, first + n, device=DEVICE)[None]
    lists = pattern.lists(positions, layout)
    q = heads(batch, n, query_heads, 128, BF16, 1)
    k, v = (heads(batch, length, key_heads, 128, BF16, seed) for seed in (2, 3))
    got = triton.triton_attention(q, k, v, lists, 0.09)
    for b in {0, batch - 1}:
        for h in {0, query_heads // 2, query_heads - 1}:
            for block in range(first // size, (first + n - 1) // size + 1):
                rows = [i for i in range(n) if (first + i) // size == block]
                mine = slice(rows[0], rows[-1] + 1)
                seen = (torch.arange(length, device=DEVICE) // size)[:, None].eq(chosen[b, h, block]).any(-1)
                keys, values = (x[b : b + 1, h * key_heads // query_heads, seen][:, None] for x in (k, v))
                one = (slice(b, b + 1), slice(h, h + 1), mine)
                assert worst(got[one], q[one], keys, values, 0.09) < 2, (b, h, block)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_run_in_which_the_generation_sees_everything(dtype: str) -> None:
    """With the kernels that "auto" chooses; with everything selected its tokens are those of full attention."""
    model = sparsed.load("mini", device="cuda:0", dtype=dtype)
    prompt = torch.randint(1, 2000, (1, 3000), generator=torch.Generator().manual_seed(2))
    sampler = SamplerConfig(steps=8, gen_length=64, block_length=64)
    few = SparseDConfig(skip=0.2, select=0.3, block_size=64, generation_rows="full")
    run = sparsed.denoise(model, prompt, sampler=sampler, attention=few)
    steps = list(run)
    assert steps[-1].phase == "sparse"
    assert run.pattern is not None and run.pattern.full_blocks == 2
    kernels = run._predictor.kernels
    assert kernels is not None
    names = {one.name for one in few_rows.choices(model.device, model.dtype)}
    assert kernels.few.name in names and (dtype == "bfloat16" or kernels.few.name == "sdpa")
    if dtype == "float32":
        whole = sparsed.generate(model, prompt, sampler=sampler, attention="dense").tokens
        every = SparseDConfig(skip=0.2, select=1.0, block_size=64, generation_rows="full")
        assert torch.equal(sparsed.generate(model, prompt, sampler=sampler, attention=every).tokens, whole)


@pytest.mark.parametrize("cache", [CacheConfig("dual"), CacheConfig("prefix"), CacheConfig("refresh", 8)],
                         ids=lambda cache: cache.method)  # fmt: skip
def test_captured_steps_give_the_same_tokens(monkeypatch, cache: CacheConfig) -> None:
    """Bit for bit: a graph launches the same kernels on the same numbers."""
    model = sparsed.load("mini", device="cuda:0", dtype="bfloat16")
    prompt = torch.randint(1, 2000, (1, 3000), generator=torch.Generator().manual_seed(2))
    sampler = SamplerConfig(steps=48, gen_length=96, block_length=32)
    replayed, real = [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: replayed.append(1) or real(graph))

    def tokens() -> list[list[int]]:
        run = sparsed.denoise(model, prompt, sampler=sampler, attention=SparseDConfig(block_size=64), cache=cache)
        return [step.tokens[0].tolist() for step in run]

    with_graphs = tokens()
    assert len(replayed) > 20
    monkeypatch.setattr("sparsed.denoising.run.step_graphs", lambda model: None)
    replayed.clear()
    assert tokens() == with_graphs and not replayed
