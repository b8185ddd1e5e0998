"""A pattern as text in a file."""

from __future__ import annotations

import base64
import math
import zlib
from dataclasses import dataclass

import numpy as np

from sparsed.attention.layout import BlockLayout
from sparsed.attention.masks import Masks


@dataclass(frozen=True)
class PatternText:
    """The fields are the file's keys: docs/trace-format.md."""

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
    full_blocks: int = 0

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of one layer's mask: (batch, heads, query blocks, key blocks)."""
        blocks = -(-self.length // self.block_size)
        return self.batch, self.heads, blocks, blocks


def to_text(masks: Masks) -> PatternText:
    """masks: without importances, or with uint8 codes."""
    layout = masks.layout
    return PatternText(
        length=layout.length,
        prompt_length=layout.prompt_length,
        block_size=layout.block_size,
        select=masks.select,
        batch=masks.batch,
        heads=masks.heads,
        kept=masks.kept,
        layers=tuple(_pack(layer, -1) for layer in masks.bits),
        full_blocks=masks.full_blocks,
        kept_mass=masks.kept_mass,
        # More effort makes them 2 % smaller and takes up to five times as long.
        importance=tuple(_pack(layer, 1) for layer in masks.importances),
    )


def from_text(text: PatternText) -> Masks:
    """Raises ValueError where a text does not hold what the shape says."""
    cells = math.prod(text.shape)
    bits = [
        _unpack(layer, -(-cells // 8), f"layer {number} of the pattern") for number, layer in enumerate(text.layers)
    ]
    codes = [
        _unpack(layer, cells // text.batch, f"the importances of layer {number}")
        for number, layer in enumerate(text.importance)
    ]
    return Masks(
        BlockLayout(text.length, text.prompt_length, text.block_size),
        text.select,
        text.batch,
        text.heads,
        text.kept,
        tuple(bits),
        text.kept_mass,
        tuple(layer.reshape(1, *text.shape[1:]) for layer in codes),
        text.full_blocks,
    )


def _pack(array: np.ndarray, effort: int) -> str:
    """uint8 as text, base64 of zlib."""
    return base64.b64encode(zlib.compress(array.tobytes(), effort)).decode("ascii")


def _unpack(text: str, size: int, what: str) -> np.ndarray:
    """The uint8 [size] in a text; ValueError where it holds anything else."""
    try:
        # Never more than is expected, whatever the data would unpack to.
        data = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), size + 1)
    except (ValueError, zlib.error):  # ValueError: base64 takes no letter outside ASCII
        data = b""
    if len(data) != size:
        raise ValueError(f"{what} cannot be unpacked.")
    return np.frombuffer(data, dtype=np.uint8)
