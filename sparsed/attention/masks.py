"""A pattern to keep, to look at and to send: packed, a bit for each pair of blocks. Only the ways from and to the
engine's own form (`sparsed.Pattern`) need torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from sparsed.attention.layout import BlockLayout

if TYPE_CHECKING:
    from sparsed.attention.pattern import Pattern

# A weight as one byte v, as a file holds it: 2 ** ((v − 255) / 10), and 0 for v = 0.
_CODES_PER_OCTAVE = 10
_WEIGHTS = np.exp2((np.arange(256) - 255) / _CODES_PER_OCTAVE).astype(np.float32)
_WEIGHTS[0] = 0


@dataclass(frozen=True, eq=False)
class Masks:
    """The block masks of a run. Equal to another one if all it holds is."""

    layout: BlockLayout
    select: float  # the ratio ρ that was asked for on each side
    batch: int
    heads: int  # query heads
    kept: tuple[int, ...]  # slots of a query block in each layer, as `LayerPattern.kept`
    # For each layer uint8: a bit for each [batch, head, query block, key block] in C order, first bit highest.
    bits: tuple[np.ndarray, ...]
    kept_mass: tuple[tuple[float, ...], ...] = ()  # [layer][head]: the share of row 0's attention; () if not known
    # The mean attention weight of every pair, for each layer [rows, heads, query blocks, key blocks]; () if not kept.
    # As the select step made them, float16 of all rows; in a record, uint8 codes of row 0, within 3.6 %: 2 ** 0.05 − 1.
    importances: tuple[np.ndarray, ...] = ()
    full_blocks: int = 0  # the last query blocks, which see every key block: none was selected for them

    @property
    def layers(self) -> int:
        return len(self.bits)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of one layer's mask: (batch, heads, query blocks, key blocks)."""
        return self.batch, self.heads, self.layout.blocks, self.layout.blocks

    @property
    def nbytes(self) -> int:
        """What it takes of memory."""
        return sum(array.nbytes for array in (*self.bits, *self.importances))

    @property
    def requested_density(self) -> float:
        """Kept pairs of blocks as a share of all pairs, over layers, heads and batch rows; as of a Pattern."""
        return float(np.mean([self.mask(layer).mean() for layer in range(self.layers)]))

    def mask(self, layer: int) -> np.ndarray:
        """Bool [batch, heads, query blocks, key blocks]: True where the block is kept. Unpacked at each call."""
        flat = np.unpackbits(self.bits[layer], count=math.prod(self.shape))
        return flat.view(np.bool_).reshape(self.shape)

    def importance(self, layer: int, head: int) -> np.ndarray | None:
        """Float32 [query blocks, key blocks] of row 0; None where it was not kept."""
        if not self.importances:
            return None
        weights = self.importances[layer][0, head]
        return _WEIGHTS[weights] if weights.dtype == np.uint8 else weights.astype(np.float32)

    def of_head(self, layer: int, head: int) -> Masks:
        """The mask of one head in row 0, alone."""
        bits = np.packbits(self.mask(layer)[0, head])
        return replace(
            self, batch=1, heads=1, kept=(self.kept[layer],), bits=(bits,), kept_mass=(), importances=()
        )  # fmt: skip

    @classmethod
    def of(cls, pattern: Pattern) -> Masks:
        """Packs a pattern that is on the CPU; its importances are shared, not copied."""
        batch, heads = pattern.layers[0].counts.shape[:2]
        return cls(
            pattern.layout,
            pattern.select,
            int(batch),
            int(heads),
            kept=tuple(layer.kept for layer in pattern.layers),
            bits=tuple(np.packbits(np.asarray(layer.mask())) for layer in pattern.layers),
            full_blocks=pattern.full_blocks,
            importances=tuple(np.asarray(layer) for layer in pattern.importance or ()),
        )

    def to_pattern(self) -> Pattern:
        """The engine's own form, on the CPU; its importances are float16, None where they are not of all rows."""
        import torch

        from sparsed.attention.pattern import LayerPattern, Pattern  # needs torch

        layers = []
        for layer, kept in enumerate(self.kept):
            mask = self.mask(layer)
            mask[:, :, self.layout.blocks - self.full_blocks :] = False  # their lists are empty
            counts = mask.sum(-1, dtype=np.int32)
            indices = np.full((*counts.shape, kept), -1, dtype=np.int32)
            indices[np.arange(kept) < counts[..., None]] = np.flatnonzero(mask) % self.layout.blocks
            layers.append(LayerPattern(torch.from_numpy(indices), torch.from_numpy(counts), self.full_blocks))
        weights = [_WEIGHTS[one].astype(np.float16) if one.dtype == np.uint8 else one for one in self.importances]
        importance = tuple(map(torch.from_numpy, weights)) if weights and len(weights[0]) == self.batch else None
        return Pattern(self.layout, tuple(layers), self.select, importance)

    def __eq__(self, other: object) -> bool:
        told = [field.name for field in fields(self)]
        return isinstance(other, Masks) and all(np.array_equal(getattr(self, n), getattr(other, n)) for n in told)

    __hash__ = None  # type: ignore[assignment]


def coded(weights: np.ndarray) -> np.ndarray:
    """Weights 0 … 1, float16, as uint8 codes of the same shape."""
    wide = weights.astype(np.float32)
    known = wide > 0
    octaves = np.log2(wide, out=np.zeros_like(wide), where=known)
    return np.clip(np.rint(255 + _CODES_PER_OCTAVE * octaves), 1, 255).astype(np.uint8) * known
