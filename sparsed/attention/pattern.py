"""What a sparse pattern is: which key blocks each head keeps for each query block.

Blocks of `block_size` positions start at position 0 on the query axis and on the key axis; a partly
filled last block counts as one block. Key blocks have a side: the prompt or the generation (SparseD,
"isolated selection").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class BlockLayout:
    """How a sequence of `length` positions, the first `prompt_length` of them prompt, is cut into blocks.

    A key block is on the generation side if it starts at or after `prompt_length`; a block that straddles
    the boundary is prompt. If no block starts at or after the boundary, the last block alone is
    generation, so the generation side is never empty (the prompt side may be).

    Raises ValueError for a length or block size below 1, or a prompt that does not fit into the sequence.
    """

    length: int
    prompt_length: int
    block_size: int

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length must be at least 1 token, not {self.length}.")
        if self.block_size < 1:
            raise ValueError(f"block_size must be at least 1 token, not {self.block_size}.")
        if not 0 <= self.prompt_length <= self.length:
            raise ValueError(
                f"prompt_length must lie between 0 and the length {self.length}, not {self.prompt_length}."
            )

    @property
    def blocks(self) -> int:
        """Blocks on either axis, n = ceil(length / block_size)."""
        return -(-self.length // self.block_size)

    @property
    def prompt_blocks(self) -> int:
        """Key blocks on the prompt side; they come first: 0 … prompt_blocks − 1."""
        return min(-(-self.prompt_length // self.block_size), self.blocks - 1)

    @property
    def generation_blocks(self) -> int:
        """Key blocks on the generation side: prompt_blocks … blocks − 1. At least one."""
        return self.blocks - self.prompt_blocks

    @property
    def last_block_rows(self) -> int:
        """Positions in the last block, 1 … block_size."""
        return self.length - (self.blocks - 1) * self.block_size

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """(first position, one past the last position) of every block, in order."""
        size = self.block_size
        return tuple((start, min(start + size, self.length)) for start in range(0, self.length, size))


@dataclass(frozen=True, eq=False)
class LayerPattern:
    """The key blocks kept in one layer.

    indices: int32 [batch, query_heads, query_blocks, kept], ascending along the last axis, padded with −1
    at its end. counts: int32 [batch, query_heads, query_blocks], the entries of `indices` that are not
    padding. plans: what a backend derived from the two for its own use, by backend and shape. It is made
    on the first sparse step and lives and dies with the pattern, because every later step needs the same.
    """

    indices: Tensor
    counts: Tensor
    plans: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def kept(self) -> int:
        """Slots per query block (the most blocks any query block keeps)."""
        return self.indices.shape[-1]

    def mask(self) -> Tensor:
        """Bool [batch, query_heads, query_blocks, key_blocks]: True where a block is kept."""
        blocks = self.indices.shape[-2]
        # One more column catches the padding, and is dropped.
        columns = torch.where(self.indices < 0, blocks, self.indices).long()
        mask = torch.zeros(*self.indices.shape[:-1], blocks + 1, dtype=torch.bool, device=self.indices.device)
        return mask.scatter_(-1, columns, True)[..., :blocks]

    def to(self, device: torch.device | str) -> LayerPattern:
        """The same pattern on another device."""
        return LayerPattern(self.indices.to(device), self.counts.to(device))

    def of_heads(self, heads: slice) -> LayerPattern:
        """The pattern of some heads."""
        return LayerPattern(self.indices[:, heads].contiguous(), self.counts[:, heads].contiguous())

    @classmethod
    def joined(cls, parts: Sequence[LayerPattern]) -> LayerPattern:
        """One pattern for the heads of several, in their order; all on one device."""
        kept = max(part.kept for part in parts)
        wide = [pad(part.indices, (0, kept - part.kept), value=-1) for part in parts]
        return cls(torch.cat(wide, dim=1), torch.cat([part.counts for part in parts], dim=1))


@dataclass(frozen=True, eq=False)
class Pattern:
    """The pattern of a run: a LayerPattern for each layer, made once at the select step ("sparse reuse").

    select: the ratio ρ that was asked for on each side. importance: per layer float16 [batch,
    query_heads, n, n] on the CPU, or None if it was not kept.
    """

    layout: BlockLayout
    layers: tuple[LayerPattern, ...]
    select: float
    importance: tuple[Tensor, ...] | None = None

    def mask(self, layer: int, head: int, batch: int = 0) -> Tensor:
        """Bool [query_blocks, key_blocks] on the CPU: True where `head` of `layer` keeps the key block."""
        chosen = self.layers[layer]
        one = LayerPattern(chosen.indices[batch, head], chosen.counts[batch, head])
        return one.mask().cpu()

    @property
    def requested_density(self) -> float:
        """Kept (query block, key block) pairs as a share of all pairs, over layers, heads and batch rows."""
        kept = sum(int(layer.counts.sum()) for layer in self.layers)
        pairs = sum(layer.counts.numel() for layer in self.layers) * self.layout.blocks
        return kept / pairs

    @property
    def executed_density(self) -> float:
        """Scores that the gather backend computes as a share of the length² scores of dense attention, 0 … 1.

        It differs from the requested density only by the partly filled last block, which holds fewer
        scores than the others: gather computes no score that was not asked for (padding slots and absent
        keys cost nothing).
        """
        layout = self.layout
        size, tail = layout.block_size, layout.last_block_rows
        scores, dense = 0, 0
        for layer in self.layers:
            keys = layer.counts.long() * size
            keys -= (layer.indices == layout.blocks - 1).sum(-1) * (size - tail)
            rows = torch.full((layout.blocks,), size, device=keys.device)
            rows[-1] = tail
            scores += int((keys * rows).sum())
            dense += layer.counts.shape[0] * layer.counts.shape[1] * layout.length**2
        return scores / dense

    def overlap(self, other: Pattern) -> Tensor:
        """Intersection over union of two patterns' kept pairs, float32 [layers, query_heads] on the CPU.

        Pairs are pooled over batch rows and query blocks of a head. Raises ValueError if the patterns
        differ in layers or in shape.
        """
        if len(self.layers) != len(other.layers):
            raise ValueError(
                f"The patterns have {len(self.layers)} and {len(other.layers)} layers, not the same number."
            )
        rows = []
        for mine, theirs in zip(self.layers, other.layers):
            if mine.counts.shape != theirs.counts.shape:
                shapes = f"{tuple(mine.counts.shape)} and {tuple(theirs.counts.shape)}"
                raise ValueError(f"The patterns have shapes {shapes}, not the same.")
            a, b = mine.mask().cpu(), theirs.mask().cpu()
            both = (a & b).sum((0, 2, 3)).float()
            either = (a | b).sum((0, 2, 3)).float()
            rows.append(both / either)
        return torch.stack(rows)
