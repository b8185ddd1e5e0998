"""What a sparse pattern is: which key blocks each head keeps for each query block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparsed.attention.layout import BlockLayout


class RowMap(NamedTuple):
    """How n given query rows lie in tiles: all rows of a tile are of one query block, and short tiles are padded."""

    blocks: Tensor  # int64 [1 or batch, tiles]: the query block of each tile, ascending; −1: a tile without rows
    counts: Tensor  # int64 [1 or batch, tiles]: rows of each tile, at its start
    places: Tensor  # int64 [1 or batch, n]: where each given row lies among the tiles · tile places
    sources: Tensor  # int64 [1 or batch, tiles · tile]: which given row lies at each place; padding repeats the first


@lru_cache(maxsize=16)
def _row_map(positions: Tensor, tile: int) -> RowMap:
    """How rows at `positions` lie in tiles. Tensors are told apart by identity: a forward's layers share one map."""
    count, n = positions.shape
    block = positions // tile
    order = torch.arange(n, device=positions.device).expand(count, n)
    starts = torch.ones_like(block, dtype=torch.bool)
    starts[:, 1:] = block[:, 1:] != block[:, :-1]
    number = starts.cumsum(1) - 1
    places = number * tile + order - torch.where(starts, order, 0).cummax(1).values
    tiles = int(number.max()) + 1
    return RowMap(
        blocks=block.new_full((count, tiles), -1).scatter_(1, number, block),
        counts=block.new_zeros(count, tiles).scatter_add_(1, number, torch.ones_like(block)),
        places=places,
        sources=block.new_zeros(count, tiles * tile).scatter_(1, places, order),
    )


def _taken(x: Tensor, rows: Tensor) -> Tensor:
    """Rows, int64 [1 or batch, m], of x, [batch, heads, n, head_dim]; laid out as [batch, m, heads, head_dim]."""
    laid = x.transpose(1, 2)
    if len(rows) == 1:
        return laid.index_select(1, rows[0]).transpose(1, 2)
    return laid[torch.arange(len(rows), device=rows.device)[:, None], rows].transpose(1, 2)


def _mask(indices: Tensor, key_blocks: int) -> Tensor:
    """Bool [..., key_blocks]: True at each of the indices [..., kept] that is not negative."""
    # One more column catches the padding, and is dropped.
    columns = torch.where(indices < 0, key_blocks, indices).long()
    mask = torch.zeros(*indices.shape[:-1], key_blocks + 1, dtype=torch.bool, device=indices.device)
    return mask.scatter_(-1, columns, True)[..., :key_blocks]


@dataclass(frozen=True, eq=False)
class BlockLists:
    """Which key blocks each tile of query rows sees: what a backend is given in place of a mask.

    Made by `LayerPattern.lists`. Without `rows` the queries are all positions and tile i is query block i.
    """

    indices: Tensor  # int32 [batch, query_heads, tiles, kept], contiguous; ascending, then −1 for padding
    counts: Tensor  # int32 [batch, query_heads, tiles], contiguous: the entries of `indices` that are not padding
    tile: int  # query rows of a tile, and positions of a key block: the attention block size
    key_length: int  # positions that have a key
    rows: RowMap | None = None  # how fewer query rows than keys lie in the tiles
    plans: dict[Any, Any] = field(default_factory=dict, repr=False)  # what a backend derived from this, by its name

    @property
    def key_blocks(self) -> int:
        """Key blocks, the last one perhaps partly filled."""
        return -(-self.key_length // self.tile)

    @property
    def missing_keys(self) -> int:
        """Positions that the last key block lacks, 0 … tile − 1."""
        return self.key_blocks * self.tile - self.key_length

    @property
    def tile_rows(self) -> Tensor:
        """Query rows in each tile, int64 [1 or batch, tiles]."""
        if self.rows is not None:
            return self.rows.counts
        rows = torch.full((1, self.counts.shape[-1]), self.tile, device=self.counts.device)
        rows[:, -1] -= self.missing_keys
        return rows

    def mask(self) -> Tensor:
        """Bool [batch, query_heads, tiles, key_blocks]: True where a tile sees a key block."""
        return _mask(self.indices, self.key_blocks)

    def into_tiles(self, q: Tensor) -> Tensor:
        """Queries [batch, query_heads, n, head_dim] laid into the tiles; untouched where they are all positions."""
        return q if self.rows is None else _taken(q, self.rows.sources)

    def out_of_tiles(self, out: Tensor) -> Tensor:
        """What `into_tiles` did, undone: the n given rows of a result."""
        return out if self.rows is None else _taken(out, self.rows.places)


# Sets of query rows whose lists a layer remembers; the lists of all positions come on top.
_REMEMBERED = 4


@dataclass(frozen=True, eq=False)
class LayerPattern:
    """The key blocks kept in one layer."""

    indices: Tensor  # int32 [batch, query_heads, query_blocks, kept], ascending, then −1 for padding
    counts: Tensor  # int32 [batch, query_heads, query_blocks]: the entries of `indices` that are not padding
    # (identity of the rows, layout) → the rows and their lists. Every later step of the run needs the same.
    _lists: dict[tuple[int, BlockLayout], tuple[Tensor | None, BlockLists]] = field(
        default_factory=dict, init=False, repr=False
    )

    @property
    def kept(self) -> int:
        """Slots per query block (the most blocks any query block keeps)."""
        return self.indices.shape[-1]

    def mask(self) -> Tensor:
        """Bool [batch, query_heads, query_blocks, key_blocks]: True where a block is kept."""
        return _mask(self.indices, self.indices.shape[-2])

    def lists(self, positions: Tensor | None, layout: BlockLayout) -> BlockLists:
        """What a backend needs for queries at `positions`; None: at all of the layout's.

        positions: int64 [1 or batch, n] on the pattern's device, n at least 1, ascending without repetition. Made
        once for a tensor, which must not change afterwards; the last few are remembered.
        """
        key = (id(positions), layout)
        if key not in self._lists:
            partial = [known for known, (given, _) in self._lists.items() if given is not None]
            if positions is not None and len(partial) == _REMEMBERED:
                del self._lists[partial[0]]
            # The positions are kept beside their lists, so that no other tensor can take their identity.
            self._lists[key] = positions, self._made(positions, layout)
        return self._lists[key][1]

    def _made(self, positions: Tensor | None, layout: BlockLayout) -> BlockLists:
        size, length = layout.block_size, layout.length
        if positions is None:
            return BlockLists(self.indices.contiguous(), self.counts.contiguous(), size, length)
        rows = _row_map(positions, size)
        block = rows.blocks[:, None].clamp(min=0)
        counts = self.counts.take_along_dim(block, 2).masked_fill(rows.blocks[:, None] < 0, 0)
        return BlockLists(self.indices.take_along_dim(block[..., None], 2), counts, size, length, rows)

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
