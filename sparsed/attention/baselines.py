"""Patterns to compare SparseD with, at the density SparseD has."""

from __future__ import annotations

import torch

from sparsed.attention.pattern import BlockLayout, LayerPattern
from sparsed.attention.selection import blocks_to_keep


def sliding_window(
    layout: BlockLayout, select: float, batch: int, heads: int, device: torch.device | str = "cpu"
) -> LayerPattern:
    """The key blocks nearest to each query block, as many as SparseD keeps with the same `select`.

    The paper names the baseline without defining it for two sides; this is the better reading of it. A
    query block i keeps the k_p + k_g key blocks with the smallest |i − j|, whichever side they are on (of
    two equally near ones, the lower), so density is exactly SparseD's. At either end of the sequence the
    window is moved inward, not cut. For the query blocks of the generation this is the generation itself
    and the end of the prompt: the generation never loses sight of itself, as it would if a share of it
    were dropped by distance.

    Returns a LayerPattern with indices int32 [batch, heads, n, k_p + k_g], the same for every head and
    batch row.
    """
    blocks = layout.blocks
    kept = blocks_to_keep(select, layout.prompt_blocks) + blocks_to_keep(select, layout.generation_blocks)
    position = torch.arange(blocks)
    # The lower of two equals first: the nearest `kept` blocks are a run of neighbours from i − kept // 2 on.
    first = (position - kept // 2).clamp(0, blocks - kept)
    indices = (first[:, None] + torch.arange(kept)).to(torch.int32)
    counts = torch.full((batch, heads, blocks), kept, dtype=torch.int32)
    return LayerPattern(indices.expand(batch, heads, blocks, kept).contiguous().to(device), counts.to(device))
