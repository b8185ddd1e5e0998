"""Block patterns of a trace."""

from __future__ import annotations

import base64
import math
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sparsed.attention.analysis import kept_mass

if TYPE_CHECKING:
    from torch import Tensor

    from sparsed.attention.pattern import Pattern
    from sparsed.denoising.run import Run

# At most 180 MB of text, which with the masks stays below _MOST_BYTES.
MOST_IMPORTANCES = 2**27
_CODES_PER_OCTAVE = 10


@dataclass(frozen=True)
class TracePattern:
    """The block masks of a run. layers: one text for each, see the module's text.

    kept_mass: [layer][head], importance: one text for each layer, both of row 0; () where there is none.
    """

    length: int
    prompt_length: int
    block_size: int
    select: float
    batch: int
    heads: int
    kept: tuple[int, ...]
    layers: tuple[str, ...]
    kept_mass: tuple[tuple[float, ...], ...] = ()
    importance: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of one layer's mask: (batch, heads, query blocks, key blocks)."""
        blocks = -(-self.length // self.block_size)
        return self.batch, self.heads, blocks, blocks

    def mask(self, layer: int) -> np.ndarray:
        """Bool [batch, heads, query blocks, key blocks]: True where the block is kept.

        Raises ValueError where the text does not hold such a mask.
        """
        cells = math.prod(self.shape)
        bits = _unpack(self.layers[layer], -(-cells // 8))
        if bits is None:
            raise ValueError(f"layer {layer} of the pattern cannot be unpacked.")
        flat = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=cells)
        return flat.view(np.bool_).reshape(self.shape)

    def importance_of(self, layer: int) -> np.ndarray:
        """Float32 [heads, query blocks, key blocks]: the mean attention weight of every block pair in row 0.

        Each is 0 where it was 0, else within 3.6 % (2 ** 0.05 − 1) of the float16 that it was. Raises ValueError
        where the file has none or the text does not hold them.
        """
        if not self.importance:
            raise ValueError("This pattern was stored without importances.")
        weights = np.exp2((np.arange(256) - 255) / _CODES_PER_OCTAVE).astype(np.float32)
        weights[0] = 0
        return weights[self._codes(layer)]

    def _codes(self, layer: int) -> np.ndarray:
        """Uint8 [heads, query blocks, key blocks]. Raises ValueError where the text does not hold them."""
        data = _unpack(self.importance[layer], math.prod(self.shape[1:]))
        if data is None:
            raise ValueError(f"the importances of layer {layer} cannot be unpacked.")
        return np.frombuffer(data, dtype=np.uint8).reshape(self.shape[1:])

    def to_pattern(self) -> Pattern:
        """The engine's own Pattern, on the CPU. Needs torch.

        Its importances are those of `importance_of`; None where there are none, or more rows than the first.
        """
        import torch

        from sparsed.attention.pattern import BlockLayout, LayerPattern, Pattern  # needs torch

        layers = []
        for layer, kept in enumerate(self.kept):
            mask = self.mask(layer)
            counts = mask.sum(-1, dtype=np.int32)
            rows, blocks = np.nonzero(mask.reshape(-1, mask.shape[-1]))
            slots = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts.ravel(), counts.ravel())
            indices = np.full((counts.size, kept), -1, dtype=np.int32)
            indices[rows, slots] = blocks
            shaped = indices.reshape(*counts.shape, kept)
            layers.append(LayerPattern(torch.from_numpy(shaped), torch.from_numpy(counts)))
        layout = BlockLayout(self.length, self.prompt_length, self.block_size)
        importance = None
        if self.importance and self.batch == 1:
            weights = (torch.from_numpy(self.importance_of(layer)) for layer in range(len(layers)))
            importance = tuple(layer[None].to(torch.float16) for layer in weights)
        return Pattern(layout, tuple(layers), self.select, importance)


def pack_pattern(run: Run, pattern: Pattern, seen: tuple[Tensor, ...] | None, importance: bool) -> TracePattern:
    masks = pack_masks(pattern)
    weights = pattern.importance or ()
    # What the public code ranks by are no shares of attention.
    weighed = seen is not None and run.attention.selection != "reference"
    if not importance or len(weights) * masks.heads * pattern.layout.blocks**2 > MOST_IMPORTANCES:
        weights = ()
    return replace(
        masks,
        kept_mass=rounded(kept_mass(replace(pattern, importance=seen))) if weighed else (),
        importance=tuple(_encode(layer[0].numpy()) for layer in weights),
    )


def pack_masks(pattern: Pattern) -> TracePattern:
    """A pattern as a record holds it, without its importances; `TracePattern.to_pattern` is the way back."""
    layout = pattern.layout
    batch, heads = pattern.layers[0].counts.shape[:2]
    bits = (np.packbits(layer.mask().cpu().numpy()).tobytes() for layer in pattern.layers)
    return TracePattern(
        length=layout.length,
        prompt_length=layout.prompt_length,
        block_size=layout.block_size,
        select=pattern.select,
        batch=batch,
        heads=heads,
        kept=tuple(layer.kept for layer in pattern.layers),
        layers=tuple(base64.b64encode(zlib.compress(layer)).decode("ascii") for layer in bits),
    )


def _encode(importance: np.ndarray) -> str:
    """Weights 0 … 1 as the text that `TracePattern.importance` holds."""
    weights = importance.astype(np.float32)
    known = weights > 0
    octaves = np.log2(weights, out=np.zeros_like(weights), where=known)
    codes = np.clip(np.rint(255 + _CODES_PER_OCTAVE * octaves), 1, 255).astype(np.uint8) * known
    # More effort makes it 2 % smaller and takes up to five times as long.
    return base64.b64encode(zlib.compress(codes.tobytes(), 1)).decode("ascii")


def rounded(shares: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(share, 4) for share in heads) for heads in shares.tolist())


def _unpack(text: str, size: int) -> bytes | None:
    """The bytes in a text, base64 of zlib; None where they are not `size` bytes."""
    try:
        # Never more than is expected, whatever the data would unpack to.
        data = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), size + 1)
    except (ValueError, zlib.error):  # ValueError: base64 takes no letter outside ASCII
        return None
    return data if len(data) == size else None
