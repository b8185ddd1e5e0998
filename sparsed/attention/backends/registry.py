"""The sparse backends, and which of them is fastest here.

A backend is one function (q, k, v, block lists, scale) → out: each tile of query rows sees only the key blocks listed
for it. On a CPU there is one; on a GPU those that can run are timed once for the shape at hand. One that cannot be
imported or compiled is left out and said so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor

from sparsed.attention.backends.timing import device_milliseconds
from sparsed.attention.pattern import BlockLayout, BlockLists, LayerPattern, Pattern

# q: [batch, query_heads, n, head_dim], n the lists' query rows; k, v: [batch, key_heads, key_length, head_dim],
# query_heads a multiple of key_heads; any length, batch and (as far as a backend does not say otherwise) strides. out:
# [batch, query_heads, n, head_dim] in v's dtype; rows that see no key give zeros. For inference: no gradient flows.
SparseAttention = Callable[[Tensor, Tensor, Tensor, BlockLists, float], Tensor]


class SparseBackend(NamedTuple):
    """A backend and its name."""

    name: str
    attend: SparseAttention


# name → (module, function, attention block sizes). A module is imported when a run asks for it; it may say why it is
# `unavailable`.
_BACKENDS: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "gather": ("sparsed.attention.backends.gather", "gather_attention", (32, 64, 128)),
    "triton": ("sparsed.attention.backends.triton", "triton_attention", (32, 64, 128)),
    "flash4": ("sparsed.attention.backends.flash4", "flash4_attention", (128,)),
    "flex": ("sparsed.attention.backends.flex", "flex_attention", (32, 64, 128)),
}
BACKENDS = tuple(_BACKENDS)
# What "auto" tries on a GPU. Flex is there for comparison; gather is what is left when neither of these runs.
_FAST = ("triton", "flash4")
# Not missed where they are not installed.
_OPTIONAL = ("flash4",)


@dataclass(frozen=True)
class Problem:
    """The shape that attention is asked for, and where. length, head_dim in tokens and components."""

    device: torch.device
    dtype: torch.dtype
    batch: int
    heads: int
    key_heads: int
    length: int
    head_dim: int


@dataclass(frozen=True)
class Choice:
    """A backend's name, and which others could not be tried or failed (name → sentence)."""

    name: str
    left_out: tuple[tuple[str, str], ...] = ()


def check_backend(name: str, device: torch.device, block_size: int | None = None) -> None:
    """Raises ValueError for a name that is no backend, or one that cannot run on the device or with the block size."""
    if name == "auto":
        return
    if name not in _BACKENDS:
        raise ValueError(f"backend must be 'auto' or one of {', '.join(map(repr, BACKENDS))}, not {name!r}.")
    sizes = _BACKENDS[name][2]
    if block_size is not None and block_size not in sizes:
        raise ValueError(f"The backend {name!r} needs block_size {' or '.join(map(str, sizes))}, not {block_size}.")
    reason = unavailable(name, device)
    if reason is not None:
        raise ValueError(f"The backend {name!r} cannot run here: {reason}")


def unavailable(name: str, device: torch.device) -> str | None:
    """Why a backend cannot run on a device, in one sentence; None if it can, as far as can be told without running."""
    try:
        module = import_module(_BACKENDS[name][0])
    except ImportError as error:
        return f"it cannot be imported ({error})."
    says: Callable[[torch.device], str | None] | None = getattr(module, "unavailable", None)
    return None if says is None else says(device)


def load_backend(name: str) -> SparseBackend:
    """The backend of a name that `check_backend` takes."""
    module, function, _sizes = _BACKENDS[name]
    return SparseBackend(name, getattr(import_module(module), function))


def executed_density(name: str, pattern: Pattern, rows: Tensor | None = None) -> float:
    """Scores that are computed with the backend as a share of those of dense attention, which are rows · length.

    rows: the positions of the queries, int64 [1 or batch, n]; None: all. "gather" computes what is kept; "triton" and
    "flash4" whole blocks, so also what is absent from a partly filled one, triton blocks of 32 two at a time; "flex"
    whole tiles of 128 × 128, whatever the block size.
    """
    layout = pattern.layout
    size, count = layout.block_size, layout.length if rows is None else rows.shape[1]
    all_lists = [layer.lists(rows, layout) for layer in pattern.layers]
    full = all_lists[0].full
    # Another kernel computes these.
    full_share = 0.0 if full is None else (count - full.start) / count
    if name == "flex":
        # It brings torch's flex_attention.
        from sparsed.attention.backends import flex

        return sum(map(flex.executed_density, all_lists)) / len(all_lists) + full_share
    pairs, heads = 0, 0
    for lists in all_lists:
        counts = lists.counts.long()
        heads += counts.shape[0] * counts.shape[1]
        if name == "gather":
            keys = counts * size - (lists.indices == lists.key_blocks - 1).any(-1) * lists.missing_keys
            pairs += int((keys * lists.tile_rows[:, None]).sum())
        else:
            pairs += int((counts + counts % 2 if size == 32 else counts).sum()) * size**2
    return pairs / (heads * count * layout.length) + full_share


@lru_cache(maxsize=256)
def choose_backend(problem: Problem, block_size: int, kept: int) -> Choice:
    """The fastest backend for a problem whose query blocks keep `kept` key blocks each; tried out once on a GPU."""
    if problem.device.type != "cuda":
        return Choice("gather")
    times: dict[str, float] = {}
    left_out: dict[str, str] = {}
    trial: tuple[Tensor, Tensor, BlockLists] | None = None
    for name in _FAST:
        if block_size not in _BACKENDS[name][2]:
            continue
        reason = unavailable(name, problem.device)
        if reason is not None:
            if name not in _OPTIONAL:
                left_out[name] = reason
            continue
        q, k, lists = trial = trial if trial is not None else random_trial(problem, block_size, kept)
        try:
            work = partial(load_backend(name).attend, q, k, k, lists, problem.head_dim**-0.5)
            times[name] = device_milliseconds(problem.device, work)
        except torch.OutOfMemoryError:
            # That may be otherwise the next time; what is raised is not remembered.
            raise
        except Exception as error:  # a compiler can fail in any way it likes
            said = (str(error).splitlines() or [""])[0][:120]
            left_out[name] = f"it failed when it was tried ({type(error).__name__}: {said})."
    best = min(times, key=lambda name: times[name]) if times else "gather"
    return Choice(best, tuple(left_out.items()))


def random_trial(problem: Problem, block_size: int, kept: int) -> tuple[Tensor, Tensor, BlockLists]:
    """Random queries, keys (also to be used as values) and lists of `kept` random blocks everywhere."""
    device, length = problem.device, problem.length
    generator = torch.Generator(device).manual_seed(0)

    def normal(heads: int) -> Tensor:
        shape = (problem.batch, length, heads, problem.head_dim)
        return torch.randn(shape, dtype=problem.dtype, device=device, generator=generator).transpose(1, 2)

    layout = BlockLayout(length, 0, block_size)
    shape = (problem.batch, problem.heads, layout.blocks, layout.blocks)
    chances = torch.rand(shape, device=device, generator=generator)
    indices = chances.topk(kept, dim=-1).indices.sort(dim=-1).values.to(torch.int32)
    counts = torch.full(indices.shape[:-1], kept, dtype=torch.int32, device=device)
    lists = LayerPattern(indices, counts).lists(None, layout)
    return normal(problem.heads), normal(problem.key_heads), lists
