"""What a pattern tells about the heads: how much attention they keep, how alike they are, how they look from afar.

Patterns may have many batch rows; `row` says which one is looked at. Nothing here needs more than one layer in
memory at a time, and only `kept_mass` needs torch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from sparsed.attention.pattern import Pattern

# Pairs of each head at a time: the float32 copy stays small, and its counts stay exact.
_AT_ONCE = 2**18


def kept_mass(pattern: Pattern, row: int = 0) -> Tensor:
    """The share of its attention that each head keeps, float32 [layers, heads] on the CPU, 0 … 1.

    It says how much of what the select step saw is still there in the sparse steps (SparseD, section 3). A query
    block's share: importance times width, summed over the key blocks it keeps and divided by the same sum over
    all of them, which is 1 but for the rounding to float16 (0 / 0 counts as 0). A head's share: the mean over
    its query rows, so that a partly filled last block weighs less.

    The importances of selection "reference" come from two softmaxes; the shares of such a pattern are no shares
    of attention. Raises ValueError if the pattern has no importances.
    """
    import torch  # the page draws thumbnails before torch is loaded

    if pattern.importance is None:
        raise ValueError("This pattern has no importances; ask for them with SparseDConfig(keep_importance=True).")
    widths = torch.tensor([end - start for start, end in pattern.layout.ranges], dtype=torch.float32)
    shares = []
    for layer, importance in zip(pattern.layers, pattern.importance):
        mass = importance[row].float() * widths
        indices = layer.indices[row]
        kept = mass.gather(-1, indices.clamp(min=0).long()).masked_fill_(indices < 0, 0).sum(-1)
        full = kept.shape[-1] - layer.full_blocks
        kept[:, full:] = mass[:, full:].sum(-1)
        share = kept / mass.sum(-1).clamp_(min=torch.finfo(torch.float32).tiny)
        shares.append((share @ widths / pattern.layout.length).clamp_(max=1))
    return torch.stack(shares)


def head_overlap(pattern: Pattern, layer: int, row: int = 0) -> np.ndarray:
    """How alike the heads of a layer are: `mask_overlap` of its mask, where something was selected."""
    mask = pattern.layers[layer].mask()[row].numpy()
    return mask_overlap(mask[:, : mask.shape[1] - pattern.full_blocks])


def mask_overlap(mask: np.ndarray) -> np.ndarray:
    """Bool [heads, query blocks, key blocks] → float32 [heads, heads], intersection over union of the kept pairs.

    A pair is (query block, key block). The diagonal is 1. For the paper's first observation, that heads attend
    differently from each other.
    """
    flat = mask.reshape(len(mask), -1)
    both = np.zeros((len(flat), len(flat)))
    for start in range(0, flat.shape[1], _AT_ONCE):
        part = flat[:, start : start + _AT_ONCE].astype(np.float32)
        both += part @ part.T
    sizes = both.diagonal()
    either = sizes[:, None] + sizes - both
    return np.divide(both, either, out=np.ones_like(both), where=either > 0).astype(np.float32)


def mean_head_overlap(pattern: Pattern, row: int = 0) -> float:
    """`head_overlap` of two different heads, averaged over all such pairs and layers; NaN for a single head.

    The paper's first observation in one number: 1 if all heads kept the same, `select` / (2 − `select`) or so if
    they chose by lot.
    """
    means = []
    for layer in range(len(pattern.layers)):
        overlap = head_overlap(pattern, layer, row)
        heads = len(overlap)
        if heads < 2:
            return math.nan
        # The diagonal, all ones, is taken off again.
        means.append((float(overlap.sum(dtype=np.float64)) - heads) / (heads * (heads - 1)))
    return sum(means) / len(means)


def thumbnails(mask: np.ndarray, most: int = 128) -> tuple[np.ndarray, int]:
    """The masks of a layer's heads, made small: (float32 [heads, cells, cells], blocks to a side of a cell).

    mask: bool [heads, n, n]. A cell is the share of its pairs that are kept; the last row and column of cells
    average what they have. cells ≤ most; with n ≤ most a cell is one pair and nothing is lost.

    Raises ValueError for `most` below 1.
    """
    if most < 1:
        raise ValueError(f"most must be at least 1 cell, not {most}.")
    blocks = mask.shape[-1]
    side = -(-blocks // most)
    starts = np.arange(0, blocks, side)
    kept = np.add.reduceat(np.add.reduceat(mask, starts, axis=1, dtype=np.int32), starts, axis=2)
    widths = np.diff(starts, append=blocks)
    return (kept / np.outer(widths, widths)).astype(np.float32), side
