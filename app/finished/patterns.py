"""A pattern to look at, whatever it comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from sparsed.trace.patterns import TracePattern


class Look(ABC):
    """A pattern to look at, whatever it comes from."""

    layers: int
    heads: int
    length: int
    prompt_length: int
    block_size: int

    @property
    def prompt_blocks(self) -> int:
        """Blocks on the prompt's side; they come first."""
        return min(-(-self.prompt_length // self.block_size), -(-self.length // self.block_size) - 1)

    @abstractmethod
    def mask(self, layer: int) -> np.ndarray:
        """Bool [heads, query blocks, key blocks] of the first row: True where the block is kept."""

    @abstractmethod
    def importance_of(self, layer: int, head: int) -> np.ndarray | None:
        """Float32 [query blocks, key blocks] of the first row; None where it was not kept."""


class Selected(Look):
    """The pattern of a run that goes on (a `sparsed` Pattern)."""

    def __init__(self, pattern: Any) -> None:
        layout = pattern.layout
        self.pattern = pattern
        self.layers = len(pattern.layers)
        self.heads = int(pattern.layers[0].counts.shape[1])
        self.length, self.prompt_length, self.block_size = layout.length, layout.prompt_length, layout.block_size

    def mask(self, layer: int) -> np.ndarray:
        return np.asarray(self.pattern.layers[layer].mask()[0])

    def importance_of(self, layer: int, head: int) -> np.ndarray | None:
        if self.pattern.importance is None:
            return None
        return np.asarray(self.pattern.importance[layer][0, head].float())


class Recorded(Look):
    """The pattern of a run that is over, from its record. weighed: the pattern of the record whose importances are
    shown. importance: where that has none, the live run's.
    """

    def __init__(self, pattern: TracePattern, weighed: TracePattern, importance: tuple[Any, ...] | None) -> None:
        self.pattern, self.importance = pattern, importance
        self._weighed = weighed
        self.layers, self.heads = len(pattern.layers), pattern.heads
        self.length, self.prompt_length, self.block_size = pattern.length, pattern.prompt_length, pattern.block_size

    def mask(self, layer: int) -> np.ndarray:
        return self.pattern.mask(layer)[0]

    def importance_of(self, layer: int, head: int) -> np.ndarray | None:
        if self.importance is not None:
            return np.asarray(self.importance[layer][0, head].float())
        return self._weighed.importance_of(layer)[head] if self._weighed.importance else None
