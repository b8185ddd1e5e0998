"""The Triton kernels without a GPU: run in Triton's interpreter, and compiled ahead for every GPU generation."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed (it exists for Linux only)")

from sparsed import SparseDConfig  # noqa: E402
from sparsed.attention.backends import triton as triton_backend  # noqa: E402
from sparsed.attention.backends.dense import DenseAttention, dense_attention  # noqa: E402
from sparsed.attention.backends.registry import load_backend  # noqa: E402
from sparsed.attention.kernels import Kernels  # noqa: E402
from sparsed.attention.pattern import BlockLayout, LayerPattern  # noqa: E402
from sparsed.attention.policy import AttentionPolicy  # noqa: E402
from sparsed.attention.state import RunAttention  # noqa: E402
from sparsed.cache.rows import ALL  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="there is a GPU here: tests/gpu runs the kernels for real"
)


def heads(batch: int, length: int, count: int, dim: int, seed: int) -> torch.Tensor:
    """As a model lays them out: [batch, length, heads, head_dim], seen transposed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, count, dim, generator=generator).transpose(1, 2)


def ragged(batch: int, count: int, blocks: int, seed: int) -> tuple[LayerPattern, torch.Tensor]:
    """Lists of random length, from none to all, and the mask they mean; written out one by one."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.full((batch, count, blocks, blocks), -1, dtype=torch.int32)
    counts = torch.zeros(batch, count, blocks, dtype=torch.int32)
    mask = torch.zeros(batch, count, blocks, blocks, dtype=torch.bool)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in (batch, count, blocks))):
        b, h, i = place.tolist()
        kept = int(torch.randint(0, blocks + 1, (1,), generator=generator))
        chosen = torch.randperm(blocks, generator=generator)[:kept].sort().values
        indices[b, h, i, :kept], counts[b, h, i] = chosen.int(), kept
        mask[b, h, i, chosen] = True
    return LayerPattern(indices, counts), mask


def scores_of(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """q kᵀ / √head_dim in float64, one key head repeated for its group of query heads."""
    group = q.shape[1] // k.shape[1]
    return q.double() @ k.double().repeat_interleave(group, 1).transpose(-1, -2) / q.shape[-1] ** 0.5


SHAPES = [
    # batch, query heads, key heads, length, head_dim
    (1, 2, 2, 300, 64),
    (2, 4, 2, 161, 32),
    (1, 3, 1, 129, 32),
    (1, 2, 1, 40, 128),
    (1, 1, 1, 256, 64),
]


@interpreted
@pytest.mark.parametrize("block_size", [32, 64, 128])
@pytest.mark.parametrize(("batch", "query_heads", "key_heads", "length", "dim"), SHAPES)
@pytest.mark.parametrize("descriptors", [True, False])
def test_attention(
    monkeypatch, block_size: int, batch, query_heads, key_heads, length, dim, descriptors: bool
) -> None:
    if not descriptors:
        monkeypatch.setattr(triton_backend, "has_tma", lambda *_: False)
    q = heads(batch, length, query_heads, dim, 1)
    k, v = (heads(batch, length, key_heads, dim, seed) for seed in (2, 3))
    pattern, mask = ragged(batch, query_heads, -(-length // block_size), 4)
    seen = mask.repeat_interleave(block_size, -1).repeat_interleave(block_size, -2)[..., :length, :length]
    weights = scores_of(q, k).masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
    wanted = weights @ v.double().repeat_interleave(query_heads // key_heads, 1)
    lists = pattern.lists(None, BlockLayout(length, 0, block_size))
    for tiles in triton_backend._ATTENTION[block_size]:
        got = triton_backend._attend(q, k, v, lists, dim**-0.5, tiles)
        assert got.shape == q.shape and got.dtype == v.dtype
        assert torch.allclose(got.double(), wanted, atol=1e-5), tiles


@interpreted
@pytest.mark.parametrize("block_size", [32, 64, 128])
@pytest.mark.parametrize(("batch", "query_heads", "key_heads", "length", "dim"), SHAPES)
@pytest.mark.parametrize("descriptors", [True, False])
def test_importance(
    monkeypatch, block_size: int, batch, query_heads, key_heads, length, dim, descriptors: bool
) -> None:
    if not descriptors:
        monkeypatch.setattr(triton_backend, "has_tma", lambda *_: False)
    q, k = heads(batch, length, query_heads, dim, 1), heads(batch, length, key_heads, dim, 2)
    scores = scores_of(q, k)
    rows = [part.mean(-2) for part in scores.softmax(-1).split(block_size, -2)]
    wanted = torch.stack([torch.stack([c.mean(-1) for c in row.split(block_size, -1)], -1) for row in rows], -2)
    lse = scores.logsumexp(-1).float()
    for tiles in triton_backend._IMPORTANCE[block_size]:
        got = triton_backend._means(q, k, lse, dim**-0.5, block_size, tiles)
        assert got.dtype == torch.float32 and torch.allclose(got.double(), wanted, rtol=2e-5, atol=0), tiles


@interpreted
@pytest.mark.parametrize("length", [161, 256])
def test_a_selecting_and_a_sparse_step_with_the_kernels(length: int) -> None:
    """As on a GPU: dense attention gives the log-sum-exp, one kernel the importances, the other the sparse step."""
    q, k, v = (heads(2, length, count, 32, seed) for count, seed in ((4, 1), (2, 2), (2, 3)))
    scale = 32**-0.5

    def with_lse(q, k, v, scale):
        return dense_attention(q, k, v, scale), scores_of(q, k).logsumexp(-1).float()

    config = SparseDConfig(select=0.4, block_size=32).resolve(length)
    layout = BlockLayout(length, length - 40, 32)
    dense = DenseAttention("test", dense_attention, with_lse)
    policy = AttentionPolicy(config, layout, 8)
    states = [
        RunAttention(policy, Kernels(dense, load_backend(name), fused=name == "triton"), phase="select")
        for name in ("triton", "gather")
    ]
    assert torch.equal(*(state.attend(0, q, k, v, scale, ALL) for state in states))
    ours, theirs = (state.pattern() for state in states)
    assert torch.equal(ours.layers[0].indices, theirs.layers[0].indices)
    for state in states:
        state.phase = "sparse"
    got, wanted = (state.attend(0, q, k, v, scale, ALL) for state in states)
    assert torch.allclose(got, wanted, atol=1e-5)


def test_what_the_backend_does_not_take() -> None:
    q = heads(1, 40, 1, 48, 1)
    pattern, _ = ragged(1, 1, 2, 1)
    with pytest.raises(ValueError, match="head_dim 32, 64 or 128, not 48"):
        triton_backend.triton_attention(q, q, q, pattern.lists(None, BlockLayout(40, 0, 32)), 1.0)


# Run by itself, because kernels are either interpreted or compiled in one process. Prints for each GPU generation,
# kernel and block size the bytes of shared memory.
AHEAD = """
import json, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from sparsed.attention.backends import triton as triton_backend
from sparsed.attention.backends import triton_kernels

def compiled(kernel, capability, block, tiles, descriptors):
    values = {"BLOCK": block, "M": tiles.m, "N": tiles.n, "D": 128, "TMA": descriptors, "STAGES": tiles.stages}
    values["GROUP"] = 8
    importance = "Lse" in kernel.arg_names
    signature = {}
    for name in kernel.arg_names:
        if name in values:
            signature[name] = "constexpr"
        elif name in ("Q", "K", "V"):
            rows = tiles.m if name == "Q" else tiles.n
            signature[name] = f"tensordesc<bf16[1, 1, {rows}, 128]>" if descriptors else "*bf16"
        elif name in ("Out", "Lse"):
            signature[name] = "*fp32" if importance else "*bf16"
        else:
            signature[name] = {"Index": "*i32", "Count": "*i32", "scale": "fp32"}.get(name, "i32")
    given = {(kernel.arg_names.index(name),): value for name, value in values.items() if name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=given)
    done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": tiles.warps})
    assert done.asm["cubin"]
    return done.metadata.shared

for capability in (80, 86, 89, 90, 100, 120):
    for block in (32, 128) if capability == 90 else (128,):
        for kernel, choices in (
            (triton_kernels.block_sparse_forward, triton_backend._ATTENTION),
            (triton_kernels.block_means, triton_backend._IMPORTANCE),
        ):
            tiles = choices[block][0]
            descriptors = capability >= 90 and tiles.n <= max(block, 128 * ("Lse" in kernel.arg_names))
            print(json.dumps([capability, block, compiled(kernel, capability, block, tiles, descriptors)]))
"""


AHEAD_ON_HOPPER = """
import json, triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.language import NVMMASharedLayout
from sparsed.attention.backends import gluon_kernels
from sparsed.attention.backends import triton as triton_backend

kernel, tiles = gluon_kernels.warp_specialized_forward, triton_backend._HOPPER
layout = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
for dtype, dim in (("bf16", 128), ("fp16", 64)):
    values = {"N": tiles.n, "D": dim, "STAGES": tiles.stages}
    signature = {}
    for name in kernel.arg_names:
        if name in values:
            signature[name] = "constexpr"
        elif name in ("Q", "K", "V"):
            rows = tiles.m // 2 if name == "Q" else tiles.n
            signature[name] = f"tensordesc<{dtype}[1, 1, {rows}, {dim}],{layout!r}>"
        else:
            signature[name] = {"Out": "*" + dtype, "Index": "*i32", "Count": "*i32", "scale": "fp32"}.get(name, "i32")
    given = {(kernel.arg_names.index(name),): value for name, value in values.items()}
    source = GluonASTSource(fn=kernel, signature=signature, constexprs=given)
    options = {"num_warps": tiles.warps, "maxnreg": gluon_kernels.REGISTERS}
    done = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    ptx = done.asm["ptx"]
    print(json.dumps([done.metadata.shared, ptx.count("wgmma.mma_async"), ptx.count("setmaxnreg")]))
"""


AHEAD_FOR_FEW_ROWS = """
import json, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from sparsed.attention.backends import few_rows, triton as triton_backend
from sparsed.attention.backends.few_rows_kernels import attend_listed_stretch, attend_stretch, merge_stretches

def compiled(kernel, capability, values, warps, dtype, descriptors):
    signature, aligned = {}, []
    for place, name in enumerate(kernel.arg_names):
        if name in values:
            signature[name] = "constexpr"
        elif name in ("K", "V") and descriptors:
            signature[name] = f"tensordesc<{dtype}[1, 1, {values['N']}, {values['D']}]>"
        elif name[0].isupper():
            kinds = {"Q": dtype, "K": dtype, "V": dtype, "Out": dtype, "Index": "i32", "Count": "i32", "Rows": "i64"}
            signature[name] = "*" + kinds.get(name, "fp32")
        else:
            signature[name] = "fp32" if name == "scale" else "i32"
        # What Triton finds out about pointers and strides when it compiles for a call.
        if signature[name][0] == "*" or name.endswith(("_batch", "_head", "_row")):
            aligned.append(place)
    given = {(kernel.arg_names.index(name),): value for name, value in values.items()}
    attributes = {(place,): [["tt.divisibility", 16]] for place in aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=given, attrs=attributes)
    done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    assert done.asm["cubin"]
    return done

for capability in (80, 90, 100, 120):
    compiled(merge_stretches, capability, {"S": triton_backend.MERGED, "D": 128}, 4, "bf16", False)
    for dtype, tiles in (("bf16", few_rows._TILES[16][0]), ("bf16", few_rows._TILES[128][0]),
                         ("fp32", few_rows._FLOAT32[32])):
        values = {"M": tiles.m, "N": tiles.n, "D": 128, "STAGES": tiles.stages, "TMA": capability >= 90}
        done = compiled(attend_stretch, capability, values, tiles.warps, dtype, capability >= 90)
        counts = [done.asm["ptx"].count(name) for name in ("cp.async", "wgmma.mma_async")]
        print(json.dumps([capability, tiles.m, done.metadata.shared, *counts]))
    tiles = triton_backend.few_tiles(torch.bfloat16, 128, 128)
    tma = capability >= 90
    values = {"BLOCK": 128, "M": tiles.m, "N": tiles.n, "D": 128, "STAGES": tiles.stages, "TMA": tma}
    done = compiled(attend_listed_stretch, capability, values, tiles.warps, "bf16", tma)
    counts = [done.asm["ptx"].count(name) for name in ("cp.async", "wgmma.mma_async")]
    print(json.dumps([capability, tiles.m, done.metadata.shared, *counts]))
"""


def compiles_with() -> dict[str, str]:
    """All that what is compiled ahead depends on: sources, versions, this kind of machine, and what Triton reads from
    the environment.
    """
    sources = sorted((ROOT / "sparsed" / "attention").rglob("*.py"))
    return {
        "sources": hashlib.sha256(b"\0".join(file.read_bytes() for file in sources)).hexdigest(),
        "triton": triton.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: value for name, value in os.environ.items() if name.startswith(("TRITON_", "PTXAS"))},
    }


def ahead_key(code: str) -> str:
    """Where pytest's cache keeps what a code printed."""
    said = json.dumps([code, compiles_with()], sort_keys=True)
    return f"sparsed/ahead-{hashlib.sha256(said.encode()).hexdigest()}"


@pytest.fixture
def ahead(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], list[list[int]]]:
    """What a code prints, from pytest's cache while it and all that `compiles_with` tells are what they were."""

    def lines(code: str) -> list[list[int]]:
        key = ahead_key(code)
        cache = getattr(request.config, "cache", None)  # without it, all is compiled every time
        found: list[list[int]] | None = cache.get(key, None) if cache else None
        if found is None:
            found = compiled_ahead(code, tmp_path)
            if cache:
                cache.set(key, found)
        return found

    return lines


def test_what_was_compiled_before_counts_only_for_what_it_was_compiled_with(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {ahead_key("a"), ahead_key("b")}
    monkeypatch.setattr(platform, "python_version", lambda: "3.99.0")
    keys.add(ahead_key("a"))
    monkeypatch.setattr(triton, "__version__", "0")
    keys.add(ahead_key("a"))
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/elsewhere")
    keys.add(ahead_key("a"))
    monkeypatch.setattr(Path, "read_bytes", lambda _: b"another kernel")
    keys.add(ahead_key("a"))
    assert len(keys) == 6


def compiled_ahead(code: str, cache: Path) -> list[list[int]]:
    """What the code printed, each line as JSON; in a process that compiles, with nothing compiled before."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_hopper_kernel_compiles_ahead(ahead: Callable[[str], list[list[int]]]) -> None:
    lines = ahead(AHEAD_ON_HOPPER)
    assert len(lines) == 2
    for shared, products, registers in lines:
        assert shared <= 227 * 1024
        # Products on the tensor cores, groups of warps with registers of their own.
        assert products > 0 and registers > 0


def test_kernels_compile_ahead_for_every_generation(ahead: Callable[[str], list[list[int]]]) -> None:
    """The first choice of tiles, which has to fit everywhere; shared memory within what the generation has."""
    room = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
    lines = ahead(AHEAD)
    assert len(lines) == 14 and {capability for capability, _, _ in lines} == set(room)
    for capability, _block, shared in lines:
        assert shared <= room[capability] * 1024


def test_the_kernels_of_few_rows_compile_ahead(ahead: Callable[[str], list[list[int]]]) -> None:
    """The first choice of tiles, for one row and for many; tiles of keys come while others are worked on."""
    room = {80: 163, 90: 227, 100: 227, 120: 99}
    lines = ahead(AHEAD_FOR_FEW_ROWS)
    assert len(lines) == 16 and {capability for capability, *_ in lines} == set(room)
    for capability, rows, shared, copies, products in lines:
        assert shared <= room[capability] * 1024 and copies > 0
        # Hopper's own products need 64 rows.
        assert (products > 0) == (capability == 90 and rows == 128)


def test_a_hopper_kernel_that_does_not_compile_gives_way_and_is_said(monkeypatch) -> None:
    plain, hopper = triton_backend.Tiles(64, 64, 4, 2), triton_backend.Tiles(128, 128, 4, 2, hopper=True)

    def milliseconds(device: torch.device, work, repeats: int, cold: bool) -> float:
        return work()

    def work(tiles: triton_backend.Tiles) -> float:
        if tiles.hopper:
            raise AttributeError("no such descriptor\nand much more")
        return 1.0

    monkeypatch.setattr(triton_backend, "device_milliseconds", milliseconds)
    with pytest.warns(RuntimeWarning, match=r"does not compile here \(AttributeError: no such descriptor\)"):
        assert triton_backend.fastest_tiles(torch.device("cpu"), (hopper, plain), work) == plain
    with pytest.raises(RuntimeError, match="No tile size"):
        triton_backend.fastest_tiles(torch.device("cpu"), (), work)
