"""Which rows each step computes: rules, never state. `sparsed.denoising.plan` asks them.

A step is full where it computes all rows; from a full step on, the store holds the keys and values of every position.
Steps are counted from 0; within the current semi-autoregressive block [start, end) too ("of the block").

- "prefix", "dual" (Fast-dLLM, arXiv 2505.22618): the first step of each block is full. Every other step commits inside
  the block alone, and computes the rows from the block's start to the end of the sequence ("prefix"), or the block's
  ("dual").
- "delayed" (dKV-Cache, decode variant, arXiv 2505.15781): the first two steps of each block are full, and each whose
  number in the block is a multiple of `refresh`. Every other step computes the rows that were not committed at the end
  of the step before the last one: a token is computed once more with its own embedding before it is reused.
- "refresh" (ours): each step whose number is a multiple of `refresh` is full; every other one computes the rows of the
  whole generation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsed.config import ResolvedCache


def full(cache: ResolvedCache, step: int, of_block: int) -> bool:
    """Does the method compute every row in this step of the run, the `of_block`-th of its block?"""
    if cache.method in ("prefix", "dual"):
        return of_block == 0
    if cache.method == "delayed":
        return of_block < 2 or of_block % cache.refresh == 0
    return cache.none or step % cache.refresh == 0


def full_later(cache: ResolvedCache, step: int, of_block: int, of_run: int, left: int, last_block: bool) -> bool:
    """Does it in any later step of the run? of_run, left: steps that the run, and the block, may still have after this
    one.
    """
    if cache.method == "refresh":
        return step // cache.refresh < (step + of_run) // cache.refresh
    return not last_block or any(full(cache, step + more, of_block + more) for more in range(1, left + 1))


def computed(
    cache: ResolvedCache, start: int, end: int, uncommitted: Tensor, masked: Tensor, shift: bool
) -> Tensor:
    """The rows of a step that is not full, bool [gen_length + 1]: the last row of the prompt, then the generation's.

    start, end: of the current block, within the generation. uncommitted, masked: bool [gen_length], the positions that
    were not committed at the end of the step before the last one, and those masked now. shift: position i is predicted
    by the row before it, so that the sampler reads that one.
    """
    length = len(masked)
    rows = torch.zeros(length + 1, dtype=torch.bool, device=masked.device)
    if cache.method == "delayed":
        rows[1:] = uncommitted | masked
        if shift:
            rows[:-1] |= masked
        rows[-1] |= ~rows.any()  # where everything is committed: no forward is of nothing
        return rows
    first = start if cache.method in ("prefix", "dual") else 0
    last = end if cache.method == "dual" else length
    rows[first + (0 if shift else 1) : last + 1] = True
    return rows
