"""Patterns to compare SparseD with, at the density SparseD has.

Each keeps, for every query block, as many key blocks as SparseD does with the same `select`: k_p of the prompt
blocks and k_g of the generation blocks (see `isolated.blocks_to_keep`), k = k_p + k_g together. The paper names the
first two (section 4.1) without defining them for attention that looks both ways; where there is a choice, these take
the reading that is better for the baseline.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsed.attention.pattern import BlockLayout, LayerPattern
from sparsed.attention.selection.isolated import blocks_to_keep, select_blocks


def sliding_window(
    layout: BlockLayout, select: float, batch: int, heads: int, device: torch.device | str = "cpu"
) -> LayerPattern:
    """The k key blocks nearest to each query block, whichever side they are on (of two equally near ones, the lower).

    At either end of the sequence the window is moved inward, not cut, so density is exactly SparseD's. The better
    reading: a query block of the generation sees the whole generation, wherever that fits into its k blocks, and
    spends the rest on the end of the prompt.

    Returns a LayerPattern with indices int32 [batch, heads, n, k], the same for every head and batch row.
    """
    return _the_same_for_all(_window(layout, _kept(layout, select), layout.blocks), layout, batch, heads, device)


def streaming_llm(
    layout: BlockLayout, select: float, batch: int, heads: int, device: torch.device | str = "cpu"
) -> LayerPattern:
    """StreamingLLM (arXiv 2309.17453): the first key block, where attention sinks, and a window of k − 1 blocks.

    The published method keeps four sink tokens; the smallest share of a block mask is a block, which holds them and
    the beginning of the prompt. The window is `sliding_window`'s over the blocks after the first. With k = 1 there is
    room for the window alone.

    Returns a LayerPattern with indices int32 [batch, heads, n, k], the same for every head and batch row.
    """
    kept = _kept(layout, select)
    if kept == 1:
        return sliding_window(layout, select, batch, heads, device)
    # Row 0 is the sink itself: its window is the one of the block after it.
    window = _window(layout, kept - 1, layout.blocks - 1) + 1
    window = torch.cat([window[:1], window])
    sink = torch.zeros(layout.blocks, 1, dtype=torch.int32)
    return _the_same_for_all(torch.cat([sink, window], dim=1), layout, batch, heads, device)


def random_blocks(
    layout: BlockLayout, select: float, batch: int, heads: int, seed: int, device: torch.device | str = "cpu"
) -> LayerPattern:
    """k_p prompt blocks and k_g generation blocks drawn by lot, anew for every batch row, head and query block.

    The better reading: a query block always keeps itself. The same seed draws the same on every device.

    Returns a LayerPattern with indices int32 [batch, heads, n, k].
    """
    blocks = layout.blocks
    lots = torch.rand(batch, heads, blocks, blocks, generator=torch.Generator().manual_seed(seed))
    lots.diagonal(dim1=-2, dim2=-1).fill_(1.0)  # above every lot, which are below 1
    return select_blocks(lots.to(device), layout, select)


def shared_by_heads(mean: Tensor, layout: BlockLayout, select: float, heads: int) -> LayerPattern:
    """SparseD's selection with one pattern for all heads of a layer, from the mean of their importances.

    mean: float32 [batch, 1, n, n]. Returns a LayerPattern with indices int32 [batch, heads, n, k], the same for every
    head of a batch row.
    """
    chosen = select_blocks(mean, layout, select)
    return LayerPattern(
        chosen.indices.expand(-1, heads, -1, -1).contiguous(), chosen.counts.expand(-1, heads, -1).contiguous()
    )


def _kept(layout: BlockLayout, select: float) -> int:
    return blocks_to_keep(select, layout.prompt_blocks) + blocks_to_keep(select, layout.generation_blocks)


def _window(layout: BlockLayout, kept: int, blocks: int) -> Tensor:
    """Int32 [blocks, kept]: the window of each of the last `blocks` query blocks, counted from the first of them."""
    # The nearest `kept` blocks are a run of neighbours; with an even number of them the lower side has one more.
    first = (torch.arange(blocks) - kept // 2).clamp(0, blocks - kept)
    if layout.generation_blocks <= kept:
        first[max(0, blocks - layout.generation_blocks) :] = blocks - kept
    return (first[:, None] + torch.arange(kept)).to(torch.int32)


def _the_same_for_all(
    indices: Tensor, layout: BlockLayout, batch: int, heads: int, device: torch.device | str
) -> LayerPattern:
    blocks, kept = indices.shape
    assert blocks == layout.blocks, "a row for every query block"
    counts = torch.full((batch, heads, blocks), kept, dtype=torch.int32)
    return LayerPattern(indices.expand(batch, heads, blocks, kept).contiguous().to(device), counts.to(device))
