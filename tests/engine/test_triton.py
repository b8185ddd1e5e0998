"""The Triton kernels without a GPU: run in Triton's interpreter, and compiled ahead for every GPU generation."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

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
AHEAD = Path(__file__).with_name("compile_ahead.py")

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
    # batch, query heads, key heads, whole blocks, rows of one more, head_dim
    (2, 4, 2, 2, 1, 32),  # sequences and groups of heads; the last block has one row
    (1, 1, 1, 2, 0, 64),  # whole blocks alone
    (1, 2, 1, 0, 20, 128),  # one block, not full
]
CASES = [(size, *shape) for size in (32, 64, 128) for shape in SHAPES]
NAMES = ("block_size", "batch", "query_heads", "key_heads", "blocks", "rest", "dim")


def distinct(choices: tuple[triton_backend.Tiles, ...], size: int, descriptors: bool) -> list[triton_backend.Tiles]:
    """Warps and stages are nothing to the interpreter; more keys than a block come through pointers all the same."""
    found = {(tiles.m, tiles.n): tiles for tiles in choices}
    return [tiles for tiles in found.values() if descriptors or tiles.n <= size]


@interpreted
@pytest.mark.parametrize(NAMES, CASES)
@pytest.mark.parametrize("descriptors", [True, False])
def test_attention(
    monkeypatch, block_size: int, batch, query_heads, key_heads, blocks, rest, dim, descriptors: bool
) -> None:
    if not descriptors:
        monkeypatch.setattr(triton_backend, "has_tma", lambda *_: False)
    length = blocks * block_size + rest
    q = heads(batch, length, query_heads, dim, 1)
    k, v = (heads(batch, length, key_heads, dim, seed) for seed in (2, 3))
    pattern, mask = ragged(batch, query_heads, -(-length // block_size), 4)
    seen = mask.repeat_interleave(block_size, -1).repeat_interleave(block_size, -2)[..., :length, :length]
    weights = scores_of(q, k).masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
    wanted = weights @ v.double().repeat_interleave(query_heads // key_heads, 1)
    lists = pattern.lists(None, BlockLayout(length, 0, block_size))
    for tiles in distinct(triton_backend._ATTENTION[block_size], block_size, descriptors):
        got = triton_backend._attend(q, k, v, lists, dim**-0.5, tiles)
        assert got.shape == q.shape and got.dtype == v.dtype
        assert torch.allclose(got.double(), wanted, atol=1e-5), tiles


@interpreted
@pytest.mark.parametrize(NAMES, [*CASES, (64, 1, 1, 1, 9, 3, 32)])  # more tiles than are summed apart at a time
@pytest.mark.parametrize("descriptors", [True, False])
def test_importance(
    monkeypatch, block_size: int, batch, query_heads, key_heads, blocks, rest, dim, descriptors: bool
) -> None:
    if not descriptors:
        monkeypatch.setattr(triton_backend, "has_tma", lambda *_: False)
    length = blocks * block_size + rest
    q, k = heads(batch, length, query_heads, dim, 1), heads(batch, length, key_heads, dim, 2)
    scores = scores_of(q, k)
    rows = [part.mean(-2) for part in scores.softmax(-1).split(block_size, -2)]
    wanted = torch.stack([torch.stack([c.mean(-1) for c in row.split(block_size, -1)], -1) for row in rows], -2)
    lse = scores.logsumexp(-1).float()
    for tiles in distinct(triton_backend._IMPORTANCE[block_size], length, descriptors):
        got = triton_backend._means(q, k, lse, dim**-0.5, block_size, tiles)
        assert got.dtype == torch.float32 and torch.allclose(got.double(), wanted, rtol=2e-5, atol=0), tiles


@interpreted
def test_a_selecting_and_a_sparse_step_with_the_kernels() -> None:
    """As on a GPU: dense attention gives the log-sum-exp, one kernel the importances, the other the sparse step."""
    length = 161
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


def compiles_with() -> dict[str, str]:
    """All that what is compiled ahead depends on: sources, versions, this kind of machine, and what Triton reads from
    the environment.
    """
    sources = [AHEAD, *sorted((ROOT / "sparsed" / "attention").rglob("*.py"))]
    return {
        "sources": hashlib.sha256(b"\0".join(file.read_bytes() for file in sources)).hexdigest(),
        "triton": triton.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: value for name, value in os.environ.items() if name.startswith(("TRITON_", "PTXAS"))},
    }


def ahead_key() -> str:
    """Where pytest's cache keeps what was compiled ahead."""
    said = json.dumps(compiles_with(), sort_keys=True)
    return f"sparsed/ahead-{hashlib.sha256(said.encode()).hexdigest()}"


@pytest.fixture(scope="module")
def ahead(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What compile_ahead.py prints, from pytest's cache while all that `compiles_with` tells is what it was."""
    cache = getattr(request.config, "cache", None)  # without it, all is compiled every time
    found: list[dict[str, Any]] | None = cache.get(ahead_key(), None) if cache else None
    if found is None:
        found = compiled_ahead(tmp_path_factory.mktemp("ahead"))
        if cache:
            cache.set(ahead_key(), found)
    return found


def test_what_was_compiled_before_counts_only_for_what_it_was_compiled_with(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {ahead_key()}
    monkeypatch.setattr(platform, "python_version", lambda: "3.99.0")
    keys.add(ahead_key())
    monkeypatch.setattr(triton, "__version__", "0")
    keys.add(ahead_key())
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/elsewhere")
    keys.add(ahead_key())
    monkeypatch.setattr(Path, "read_bytes", lambda _: b"another kernel")
    keys.add(ahead_key())
    assert len(keys) == 5


def compiled_ahead(cache: Path) -> list[dict[str, Any]]:
    """In a process that compiles, with nothing compiled before."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(AHEAD)], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


# KiB of shared memory that a program may have: the least of its generation (of 8.0, that of 8.6 and 8.9).
ROOM = {80: 99, 90: 227, 100: 227, 120: 99}


def of_kernel(ahead: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    found = [one for one in ahead if one["kernel"] in names]
    for one in found:
        assert one["shared"] <= ROOM[one["capability"]] * 1024, one
    return found


def test_the_hopper_kernel_compiles_ahead(ahead: list[dict[str, Any]]) -> None:
    found = of_kernel(ahead, "warp_specialized_forward")
    assert [(one["dtype"], one["dim"]) for one in found] == [("bf16", 128), ("fp16", 64)]
    for one in found:
        # Products on the tensor cores, groups of warps with registers of their own.
        assert one["products"] > 0 and one["registers"] > 0


def test_kernels_compile_ahead_for_every_generation(ahead: list[dict[str, Any]]) -> None:
    """The first choice of tiles, which has to fit everywhere."""
    for name in ("block_sparse_forward", "block_means"):
        found = {(one["capability"], one["block"]) for one in of_kernel(ahead, name)}
        assert found == {*((capability, 128) for capability in ROOM), (90, 32)}


def test_the_kernels_of_few_rows_compile_ahead(ahead: list[dict[str, Any]]) -> None:
    """The first choice of tiles, for one row and for many; tiles of keys come while others are worked on."""
    found = of_kernel(ahead, "attend_stretch", "attend_listed_stretch")
    assert {one["capability"] for one in found} == set(ROOM)
    assert {(one["m"], one["dtype"]) for one in found} == {(16, "bf16"), (128, "bf16"), (32, "fp32")}
    for one in found:
        assert one["copies"] > 0, one
        # Hopper's own products need 64 rows.
        assert (one["products"] > 0) == (one["capability"] == 90 and one["m"] == 128), one
    assert of_kernel(ahead, "merge_stretches")


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
