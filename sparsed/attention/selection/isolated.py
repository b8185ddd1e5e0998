"""Isolated selection: which key blocks a query block keeps, prompt and generation ranked apart (SparseD)."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from sparsed.attention.pattern import BlockLayout, LayerPattern

# Entries that are ranked at a time: what is made of them on the way takes several times their memory, and on a GPU
# torch's nonzero counts to 2³¹ − 1.
_AT_ONCE = 2**26


def blocks_to_keep(select: float, blocks: int) -> int:
    """How many of `blocks` blocks of one side are kept: 0 of 0, else max(1, ⌈select · blocks⌉).

    The product takes `select` as the decimal that is written: 0.55 of 100 is 55, not the 56 of binary floats.

    Raises ValueError for a select outside 0 < select ≤ 1.
    """
    if not 0 < select <= 1:
        raise ValueError(f"select must be above 0 and at most 1, not {select}.")
    if blocks == 0:
        return 0
    return max(1, math.ceil(Fraction(str(select)) * blocks))


def select_blocks(importance: Tensor, layout: BlockLayout, select: float, isolated: bool = True) -> LayerPattern:
    """The most important key blocks of each side for each query block.

    importance: float32 [batch, query_heads, n, n] (query block, key block). isolated: rank the two sides apart;
    without it (the paper's ablation) as many blocks as the two sides together keep, the most important of all. Ties
    go to the lower key block, so the result is the same on every device. Every query block keeps the same number of
    blocks; see `blocks_to_keep`.

    Raises ValueError if the importance does not fit the layout or holds NaN.
    """
    blocks = layout.blocks
    if importance.shape[-2:] != (blocks, blocks):
        shape = " × ".join(map(str, importance.shape[-2:]))
        raise ValueError(f"importance must end in {blocks} × {blocks} blocks for this layout, not {shape}.")
    check_finite(importance)
    middle = layout.prompt_blocks
    sides = [(0, middle), (middle, blocks)]
    numbers = [blocks_to_keep(select, end - first) for first, end in sides]
    if isolated:
        kept = torch.cat(
            [
                most_important(importance[..., first:end], number) + first
                for (first, end), number in zip(sides, numbers)
                if number
            ],
            dim=-1,
        )
    else:
        kept = most_important(importance, sum(numbers))
    counts = torch.full(kept.shape[:-1], kept.shape[-1], dtype=torch.int32, device=kept.device)
    return LayerPattern(kept.to(torch.int32), counts)


def check_finite(importance: Tensor) -> None:
    """Raises ValueError if the importance holds NaN: nothing can be ranked by it."""
    if bool(importance.isnan().any()):
        raise ValueError("importance holds NaN: the model's queries or keys are not finite.")


def most_important(values: Tensor, count: int) -> Tensor:
    """Ascending positions [..., count], int64, of the `count` largest entries of each row; of equals, the first.

    Memory beside the result: that of some rows, however many there are.
    """
    *shape, entries = values.shape
    if count == entries:
        return torch.arange(count, device=values.device).expand(*shape, count)
    parts = values.reshape(-1, entries).split(max(1, _AT_ONCE // entries))
    return torch.cat([_most_important(part, count) for part in parts]).view(*shape, count)


def _most_important(values: Tensor, count: int) -> Tensor:
    """`most_important` of rows [m, entries]."""
    # topk alone leaves ties to chance. Its smallest value is the cut: all above it are in, and as many
    # equal to it as there is still room for, from the left. This is several times faster than a stable
    # sort of every row.
    cut = values.topk(count, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    chosen = values > cut
    equal = values == cut
    room = count - chosen.sum(-1, keepdim=True, dtype=torch.int32)
    chosen |= equal & (equal.cumsum(-1, dtype=torch.int32) <= room)
    # nonzero walks row by row, so the positions come out ascending, exactly `count` to a row.
    return chosen.nonzero()[:, -1].view(len(values), count)
