"""The Triton backend: block-sparse attention and block importance on NVIDIA GPUs.

Kernels are in `sparsed.attention.backends.triton_kernels`, and one for Hopper alone in
`sparsed.attention.backends.gluon_kernels`.
Which tiles are fastest is tried out once for each kind of problem on each GPU, among the few that have been fastest
somewhere.
"""

from __future__ import annotations

import math
import os
import shutil
import warnings
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from sparsed.attention.backends.registry import Problem, random_trial
from sparsed.attention.backends.timing import device_milliseconds
from sparsed.attention.pattern import BlockLists

HEAD_DIMS = (32, 64, 128)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Tiles:
    """m query rows, n key rows, and Triton's number of warps and pipeline stages. hopper: of the Gluon kernel."""

    m: int
    n: int
    warps: int
    stages: int
    hopper: bool = False


# By attention block size: for attention, the first one is a good guess everywhere.
_ATTENTION = {
    128: (Tiles(128, 64, 4, 2), Tiles(128, 128, 8, 3), Tiles(64, 64, 4, 2)),
    64: (Tiles(64, 64, 4, 2), Tiles(64, 64, 4, 3), Tiles(64, 32, 4, 2)),
    32: (Tiles(32, 64, 2, 3), Tiles(32, 64, 4, 3), Tiles(32, 32, 2, 3)),
}
_IMPORTANCE = {
    128: (Tiles(128, 128, 8, 2), Tiles(128, 128, 4, 2)),
    64: (Tiles(128, 128, 8, 2), Tiles(64, 64, 4, 2)),
    32: (Tiles(128, 128, 8, 2), Tiles(64, 64, 4, 2)),
}
# Where it runs it is the fastest, as far as has been seen, so that only the best guess is tried beside it.
_HOPPER = Tiles(128, 128, 4, 2, hopper=True)
_GROUP = 8
_LONG = 8192
# Of few rows, whose keys are split: stretches merged at a time.
MERGED = 8
# Filling its pipeline and writing its result costs a program about as much as this many tiles of keys.
_START = 4
# In Triton's interpreter, so that there are some stretches.
_SLOTS_WITHOUT_GPU = 16


def unavailable(device: torch.device) -> str | None:
    """Why this backend cannot run on a device, in one sentence; None if it can."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton is not installed ({error})."
    if device.type != "cuda" and not _interpreted():
        return f"triton needs a CUDA GPU, not {device.type}."
    if device.type != "cuda":
        return None
    if torch.version.hip is not None:
        return "its tiles are for NVIDIA GPUs."
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "triton needs a GPU of compute capability 8.0 or above."
    if not os.environ.get("CC") and not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return "triton needs a C compiler (cc, gcc or clang) to build its launchers."
    return None


def triton_attention(q: Tensor, k: Tensor, v: Tensor, lists: BlockLists, scale: float) -> Tensor:
    """A sparse backend (see `registry.SparseAttention`) for head_dim 32, 64 or 128; ValueError for another.

    The result is laid out as [batch, n, query_heads, head_dim].
    """
    n = q.shape[2]
    q, k, v = (contiguous_heads(x) for x in (lists.into_tiles(q), k, v))
    if lists.rows is not None and n <= lists.tile:
        few = few_tiles(q.dtype, n, lists.tile)
        count = splits(len(q) * q.shape[1], lists.indices.shape[-1] * lists.tile // few.n, slots(q.device))
        if count > 1:
            return lists.out_of_tiles(_attend_few(q, k, v, lists, scale, few, count))
    tiles = _attention_tiles(*_problem(q, k), lists.tile)
    if tiles.hopper and not has_tma(q, k, v):
        tiles = _ATTENTION[lists.tile][0]
    return lists.out_of_tiles(_attend(q, k, v, lists, scale, tiles))


def triton_importance(q: Tensor, k: Tensor, lse: Tensor, scale: float, block_size: int) -> Tensor:
    """`sparsed.attention.selection.importance.block_importance`, given each row's log-sum-exp, in one pass over q kᵀ.

    lse: float32 [batch, query_heads, length], natural logarithm of Σ exp(scale · q·k) over all keys, as dense attention
    gives it. Memory: the result, float32 [batch, query_heads, n, n].
    """
    q, k = contiguous_heads(q), contiguous_heads(k)
    tiles = _importance_tiles(*_problem(q, k), block_size)
    return _means(q, k, lse.contiguous(), scale, block_size, tiles)


def prepare_importance(problem: Problem, block_size: int) -> None:
    """Compiles the kernel of `triton_importance` and chooses its tiles; raises what the compiler raises."""
    grouped, long = problem.key_heads < problem.heads, problem.length > _LONG
    _importance_tiles(problem.device, problem.dtype, problem.head_dim, grouped, long, block_size)


def _attend(q: Tensor, k: Tensor, v: Tensor, lists: BlockLists, scale: float, tiles: Tiles) -> Tensor:
    """The kernel on queries that lie in the lists' tiles."""
    if tiles.hopper:
        return _attend_on_hopper(q, k, v, lists, scale, tiles)
    # It brings Triton.
    from sparsed.attention.backends.triton_kernels import block_sparse_forward

    batch, heads, length, dim = q.shape
    out = torch.empty(batch, length, heads, dim, dtype=v.dtype, device=v.device).transpose(1, 2)
    tma = tiles.n <= lists.tile and has_tma(q, k, v)
    given = (q, k, v)
    if tma:
        given = tuple(tile_descriptor(x, rows) for x, rows in zip(given, (tiles.m, tiles.n, tiles.n)))
    with on_device(q.device):
        block_sparse_forward[(-(-length // tiles.m), batch * heads)](
            *given, out, lists.indices, lists.counts,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
            heads, heads // k.shape[1], length, k.shape[2], *lists.indices.shape[-2:], scale * LOG2_E,
            BLOCK=lists.tile, M=tiles.m, N=tiles.n, D=dim, TMA=tma, STAGES=tiles.stages, num_warps=tiles.warps,
        )  # fmt: skip
    return out


def few_tiles(dtype: torch.dtype, n: int, block: int) -> Tiles:
    """Tiles for few rows: they fit on every GPU from Ampere on."""
    most = 32 if dtype == torch.float32 else 128
    m = next((m for m in (16, 32, 64) if m >= n), 128)
    return Tiles(min(m, block, most), 32 if dtype == torch.float32 else min(64, block), 4, 2)


def splits(work: int, key_tiles: int, slots: int) -> int:
    """Into how many stretches the keys are split: what takes the fewest tiles of keys one after another.

    work: programs for one stretch. key_tiles: tiles of keys, at least 1. slots: programs that run at the same time.
    """

    def rounds(count: int) -> int:
        return -(-work * count // slots) * (-(-key_tiles // count) + _START)

    return min(range(1, min(key_tiles, 4 * slots // work + 1) + 1), key=rounds)


def slots(device: torch.device) -> int:
    """Programs that run at the same time: two of a processor, or one after the other where there is room for one."""
    return 2 * multiprocessors(device) if device.type == "cuda" else _SLOTS_WITHOUT_GPU


def _attend_few(
    q: Tensor, k: Tensor, v: Tensor, lists: BlockLists, scale: float, tiles: Tiles, count: int
) -> Tensor:
    """Both kernels of few rows on queries that lie in the lists' tiles, with at most `count` stretches of each list. A
    place without a row has no meaning.
    """
    # It brings Triton.
    from sparsed.attention.backends.few_rows_kernels import attend_listed_stretch, merge_stretches

    assert lists.rows is not None, "of all rows nothing is split"
    batch, heads, places, dim = q.shape
    held, listed = lists.rows.counts, lists.indices.shape[-1]
    stretch = -(-listed // count)
    count, rows = -(-listed // stretch), batch * heads * places
    mixed = torch.empty(count, rows, dim, dtype=torch.float32, device=q.device)
    top, total = torch.empty(2, count, rows, dtype=torch.float32, device=q.device)
    out = torch.empty(batch, places, heads, dim, dtype=v.dtype, device=q.device)
    tma = has_tma(k, v)
    given = (tile_descriptor(k, tiles.n), tile_descriptor(v, tiles.n)) if tma else (k, v)
    with on_device(q.device):
        attend_listed_stretch[(places // tiles.m, count, batch * heads)](
            q, *given, mixed, top, total, lists.indices, lists.counts, held,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            heads, heads // k.shape[1], held.shape[1], k.shape[2], listed, stretch,
            held.stride(0) if len(held) > 1 else 0, scale * LOG2_E,
            BLOCK=lists.tile, M=tiles.m, N=tiles.n, D=dim, TMA=tma, STAGES=tiles.stages, num_warps=tiles.warps,
        )  # fmt: skip
        merge_stretches[(rows,)](mixed, top, total, out, rows, heads, places, count, S=MERGED, D=dim)
    return out.transpose(1, 2)


def _attend_on_hopper(q: Tensor, k: Tensor, v: Tensor, lists: BlockLists, scale: float, tiles: Tiles) -> Tensor:
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    # It brings Triton.
    from sparsed.attention.backends import gluon_kernels

    batch, heads, length, dim = q.shape
    items = lists.counts.numel()
    out = torch.empty(batch, length, heads, dim, dtype=v.dtype, device=v.device).transpose(1, 2)
    layout = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)

    def descriptor(x: Tensor, rows: int) -> Any:
        return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, rows, dim], layout)

    with on_device(q.device):
        gluon_kernels.warp_specialized_forward[(min(items, multiprocessors(q.device)),)](
            descriptor(q, tiles.m // 2), descriptor(k, tiles.n), descriptor(v, tiles.n), out,
            lists.indices, lists.counts, *out.stride()[:3],
            items, heads, heads // k.shape[1], *lists.indices.shape[-2:], length, k.shape[2], scale * LOG2_E,
            N=tiles.n, D=dim, STAGES=tiles.stages, num_warps=tiles.warps, maxnreg=gluon_kernels.REGISTERS,
        )  # fmt: skip
    return out


@lru_cache(maxsize=16)
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _means(q: Tensor, k: Tensor, lse: Tensor, scale: float, block_size: int, tiles: Tiles) -> Tensor:
    # It brings Triton.
    from sparsed.attention.backends.triton_kernels import block_means

    batch, heads, length, dim = q.shape
    blocks = -(-length // block_size)
    out = torch.empty(batch, heads, blocks, blocks, dtype=torch.float32, device=q.device)
    tma = has_tma(q, k)
    given = (tile_descriptor(q, tiles.m), tile_descriptor(k, tiles.n)) if tma else (q, k)
    with on_device(q.device):
        block_means[(-(-length // tiles.m), batch * heads)](
            *given, lse, out,
            *q.stride()[:3], *k.stride()[:3],
            heads, heads // k.shape[1], length, scale * LOG2_E,
            BLOCK=block_size, M=tiles.m, N=tiles.n, D=dim, TMA=tma, STAGES=tiles.stages, GROUP=_GROUP,
            num_warps=tiles.warps,
        )  # fmt: skip
    return out


def contiguous_heads(x: Tensor) -> Tensor:
    """x, copied if its last dimension is not contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def on_device(device: torch.device) -> Any:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else torch.no_grad()


def _interpreted() -> bool:
    from triton import knobs

    return bool(knobs.runtime.interpret)


def has_tma(*tensors: Tensor) -> bool:
    """Tensor descriptors: on Hopper and later, for rows and starts at multiples of 16 bytes."""
    x = tensors[0]
    able = _interpreted() if x.device.type != "cuda" else torch.cuda.get_device_capability(x.device)[0] >= 9
    return able and all(
        t.data_ptr() % 16 == 0 and all(s * t.element_size() % 16 == 0 for s in t.stride()[:3]) for t in tensors
    )


def tile_descriptor(x: Tensor, rows: int) -> Any:
    """Of tiles of so many rows of one head of x, [batch, heads, length, head_dim]."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, rows, x.shape[-1]])


def _problem(q: Tensor, k: Tensor) -> tuple[torch.device, torch.dtype, int, bool, bool]:
    """What decides which tiles are fastest: device, dtype, head_dim, grouped heads or not, many keys or not."""
    if q.shape[-1] not in HEAD_DIMS or q.dtype not in DTYPES:
        raise ValueError(f"The triton backend takes head_dim 32, 64 or 128, not {q.shape[-1]} in {q.dtype}.")
    return q.device, q.dtype, q.shape[-1], k.shape[1] < q.shape[1], k.shape[2] > _LONG


def _trial(
    device: torch.device, dtype: torch.dtype, dim: int, grouped: bool, long: bool, block_size: int
) -> tuple[Tensor, Tensor, BlockLists]:
    """Queries, keys (also used as values) and lists of density 0.3 to try tiles on."""
    length, heads = (16_384, 16) if long else (4096, 32)
    problem = Problem(device, dtype, 1, heads, heads // 4 if grouped else heads, length, dim)
    return random_trial(problem, block_size, max(1, round(0.3 * (length // block_size))))


def _hopper(device: torch.device, dim: int, block_size: int) -> bool:
    """Can the Gluon kernel run (for 16-bit numbers)?"""
    return torch.cuda.get_device_capability(device)[0] == 9 and dim in (64, 128) and block_size == 128


@lru_cache(maxsize=64)
def _attention_tiles(
    device: torch.device, dtype: torch.dtype, dim: int, grouped: bool, long: bool, block_size: int
) -> Tiles:
    choices: tuple[Tiles, ...] = _ATTENTION[block_size]
    if device.type != "cuda" or dtype == torch.float32:
        return choices[-1]
    if _hopper(device, dim, block_size):
        choices = (_HOPPER, choices[0])
    q, k, lists = _trial(device, dtype, dim, grouped, long, block_size)
    return fastest_tiles(device, choices, lambda tiles: _attend(q, k, k, lists, dim**-0.5, tiles))


@lru_cache(maxsize=64)
def _importance_tiles(
    device: torch.device, dtype: torch.dtype, dim: int, grouped: bool, long: bool, block_size: int
) -> Tiles:
    choices = _IMPORTANCE[block_size]
    if device.type != "cuda" or dtype == torch.float32:
        return choices[-1]
    q, k, _ = _trial(device, dtype, dim, grouped, long, block_size)
    lse = torch.full(q.shape[:-1], 10.0, device=device)
    return fastest_tiles(device, choices, lambda tiles: _means(q, k, lse, dim**-0.5, block_size, tiles))


def fastest_tiles(device: torch.device, choices: tuple[Tiles, ...], work: Any, *, cold: bool = False) -> Tiles:
    """The choice with the smallest median time of a few; those that the GPU has no room for, or that only another
    version of Triton can compile, are left out. cold: as in `device_milliseconds`.
    """
    from triton.runtime.errors import OutOfResources

    times: dict[Tiles, float] = {}
    for tiles in choices:
        try:
            times[tiles] = device_milliseconds(device, partial(work, tiles), repeats=5, cold=cold)
        except OutOfResources:
            continue
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # Gluon is young and changes; the plain kernel's errors are errors.
            if not tiles.hopper:
                raise
            first_line = (str(error).strip().splitlines() or [""])[0][:200]
            warnings.warn(
                f"The kernel for Hopper GPUs does not compile here ({type(error).__name__}: {first_line}); the "
                "portable one runs instead.",
                RuntimeWarning,
                stacklevel=2,
            )
    if not times:
        raise RuntimeError("No tile size of the triton backend fits this GPU.")
    return min(times, key=lambda tiles: times[tiles])
