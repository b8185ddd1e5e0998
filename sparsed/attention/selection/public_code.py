"""Selection as the public SparseD code does it, for exact comparison with it.

It departs from the paper: the blocks of the prompt side are ranked among all key blocks and those of the
generation dropped afterwards, so that query blocks keep different numbers; the generation side is ranked by a
softmax over its own keys; int(blocks · select) + 1 blocks are taken each time; the partly filled last key block
is averaged over its padding as well. (The public LLaDA code also divides scores by √query_heads: that is the
caller's `scale`.) Two departures are not followed: averages stay in float32, where the public code rounds to
bfloat16 first, and ties go to the lower block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsed.attention.pattern import BlockLayout, LayerPattern
from sparsed.attention.selection.importance import block_importance
from sparsed.attention.selection.isolated import check_finite, most_important


def reference_blocks(
    q: Tensor, k: Tensor, scale: float, layout: BlockLayout, select: float
) -> tuple[Tensor, LayerPattern]:
    """The importances that blocks are ranked by, float32 [batch, query_heads, n, n] (columns of the prompt and of
    the generation come from different softmaxes), and the blocks kept.

    q: [batch, query_heads, length, head_dim]; k: [batch, key_heads, length, head_dim]. select: below 1.
    """
    first = layout.prompt_blocks
    size = layout.block_size
    over_all = block_importance(q, k, scale, size)
    over_generation = block_importance(q, k[:, :, first * size :], scale, size)
    for importance in (over_all, over_generation):
        importance[..., -1] *= layout.last_block_rows / size
        check_finite(importance)
    mask = torch.cat([_largest(over_all, select)[..., :first], _largest(over_generation, select)], dim=-1)
    counts = mask.sum(-1, dtype=torch.int32)
    # Kept blocks first, in ascending order, then padding.
    order = mask.to(torch.int8).sort(dim=-1, descending=True, stable=True).indices[..., : int(counts.max())]
    indices = torch.where(mask.gather(-1, order), order, -1).to(torch.int32)
    return torch.cat([over_all[..., :first], over_generation], dim=-1), LayerPattern(indices, counts)


def _largest(importance: Tensor, select: float) -> Tensor:
    """Bool like importance: the int(blocks · select) + 1 largest of each row."""
    blocks = importance.shape[-1]
    chosen = most_important(importance, int(blocks * select) + 1)
    return torch.zeros_like(importance, dtype=torch.bool).scatter_(-1, chosen, True)
