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


class FullRows(NamedTuple):
    """Which of the given query rows see every key, whatever the lists say."""

    start: int  # none before this one
    those: Tensor | None  # bool [batch, 1, n − start, 1]: which of the others; None: all


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
    full: FullRows | None = None  # rows that see every key; their tiles' lists are empty
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


def _full_rows(positions: Tensor, first: int) -> FullRows | None:
    """Those of rows at `positions`, int64 [1 or batch, n] ascending, that are at `first` or after it."""
    those = positions >= first
    starts = (~those).sum(1).tolist()
    start = min(starts)
    if start == positions.shape[1]:
        return None
    return FullRows(start, None if max(starts) == start else those[:, None, start:, None])


# Sets of query rows whose lists a layer remembers; the lists of all positions come on top.
_REMEMBERED = 4


@dataclass(frozen=True, eq=False)
class LayerPattern:
    """The key blocks kept in one layer."""

    indices: Tensor  # int32 [batch, query_heads, query_blocks, kept], ascending, then −1 for padding
    counts: Tensor  # int32 [batch, query_heads, query_blocks]: the entries of `indices` that are not padding
    full_blocks: int = 0  # the last query blocks: they see every key block, and their lists are empty
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
        mask = _mask(self.indices, self.indices.shape[-2])
        mask[..., mask.shape[-2] - self.full_blocks :, :] = True
        return mask

    def with_full(self, blocks: int) -> LayerPattern:
        """The same pattern, but that so many of the last query blocks see every key block."""
        first = self.counts.shape[-1] - blocks
        indices, counts = self.indices.clone(), self.counts.clone()
        indices[..., first:, :] = -1
        counts[..., first:] = 0
        return LayerPattern(indices, counts, blocks)

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
        first = layout.start_of_last(self.full_blocks)
        if positions is None:
            full = FullRows(first, None) if self.full_blocks else None
            return BlockLists(self.indices.contiguous(), self.counts.contiguous(), size, length, full=full)
        rows = _row_map(positions, size)
        block = rows.blocks[:, None].clamp(min=0)
        counts = self.counts.take_along_dim(block, 2).masked_fill(rows.blocks[:, None] < 0, 0)
        indices = self.indices.take_along_dim(block[..., None], 2)
        return BlockLists(indices, counts, size, length, rows, _full_rows(positions, first))

    def to(self, device: torch.device | str) -> LayerPattern:
        """The same pattern on another device."""
        return LayerPattern(self.indices.to(device), self.counts.to(device), self.full_blocks)

    def of_rows(self, rows: Tensor) -> LayerPattern:
        """The pattern of some batch rows, int64 [m]."""
        rows = rows.to(self.indices.device)
        return LayerPattern(self.indices[rows], self.counts[rows], self.full_blocks)

    def of_heads(self, heads: slice) -> LayerPattern:
        """The pattern of some heads."""
        return LayerPattern(self.indices[:, heads].contiguous(), self.counts[:, heads].contiguous(), self.full_blocks)

    @classmethod
    def joined(cls, parts: Sequence[LayerPattern]) -> LayerPattern:
        """One pattern for the heads of several, in their order; all on one device."""
        return cls._together(parts, 1)

    @classmethod
    def stacked(cls, parts: Sequence[LayerPattern], guided: bool = False) -> LayerPattern:
        """One pattern for the batch rows of several, in their order; all on one device. guided: the first half of each
        one's rows is conditional, and so it is of all.
        """
        stacked = cls._together(parts, 0)
        return stacked.of_rows(conditional_first([len(part.counts) for part in parts], guided)) if guided else stacked

    @classmethod
    def _together(cls, parts: Sequence[LayerPattern], dim: int) -> LayerPattern:
        kept = max(part.kept for part in parts)
        wide = [pad(part.indices, (0, kept - part.kept), value=-1) for part in parts]
        return cls(torch.cat(wide, dim), torch.cat([part.counts for part in parts], dim), parts[0].full_blocks)


def conditional_first(sizes: Sequence[int], guided: bool) -> Tensor:
    """The order, int64, of the rows of several batches of these sizes, which stand one after another: with guidance the
    conditional rows, the first half of each, come before all others.
    """
    halves = [rows.chunk(2 if guided else 1) for rows in torch.arange(sum(sizes)).split(list(sizes))]
    return torch.cat([rows for side in zip(*halves) for rows in side])


@dataclass(frozen=True, eq=False)
class Pattern:
    """The pattern of a run: a LayerPattern for each layer, made at the select step ("sparse reuse").

    select: the ratio ρ that was asked for on each side. importance: per layer float16 [batch,
    query_heads, n, n] on the CPU, or None if it was not kept.
    """

    layout: BlockLayout
    layers: tuple[LayerPattern, ...]
    select: float
    importance: tuple[Tensor, ...] | None = None

    @classmethod
    def of_sequences(cls, parts: Sequence[Pattern], guided: bool) -> Pattern:
        """One pattern of several, each of one sequence (guided: of two batch rows, the conditional one first): rows in
        their order, all conditional ones first.
        """
        layers = tuple(LayerPattern.stacked(one, guided) for one in zip(*(part.layers for part in parts)))
        first = parts[0]
        importance = None
        if first.importance is not None:
            order = conditional_first([2 if guided else 1] * len(parts), guided)
            importance = tuple(torch.cat(one)[order] for one in zip(*(part.importance or () for part in parts)))
        return cls(first.layout, layers, first.select, importance)

    def mask(self, layer: int, head: int, batch: int = 0) -> Tensor:
        """Bool [query_blocks, key_blocks] on the CPU: True where `head` of `layer` keeps the key block."""
        chosen = self.layers[layer]
        one = LayerPattern(chosen.indices[batch, head], chosen.counts[batch, head], chosen.full_blocks)
        return one.mask().cpu()

    @property
    def full_blocks(self) -> int:
        """The last query blocks, which see every key block: no block was selected for them."""
        return self.layers[0].full_blocks

    @property
    def requested_density(self) -> float:
        """Kept (query block, key block) pairs as a share of all pairs, over layers, heads and batch rows."""
        kept = sum(int(layer.counts.sum()) for layer in self.layers)
        pairs = sum(layer.counts.numel() for layer in self.layers) * self.layout.blocks
        return kept / pairs + self.full_blocks / self.layout.blocks

    def overlap(self, other: Pattern) -> Tensor:
        """Intersection over union of two patterns' kept pairs, float32 [layers, query_heads] on the CPU.

        Pairs are pooled over batch rows and query blocks of a head; query blocks that see everything in either pattern
        are left out, for nothing was selected there (1 where none is left). Raises ValueError if the patterns differ in
        layers or in shape.
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
            selected = mine.counts.shape[-1] - max(mine.full_blocks, theirs.full_blocks)
            a, b = (one.mask().cpu()[..., :selected, :] for one in (mine, theirs))
            both = (a & b).sum((0, 2, 3)).float()
            either = (a | b).sum((0, 2, 3)).float()
            rows.append(torch.where(either > 0, both / either, 1.0))
        return torch.stack(rows)
