"""What the samplers share: from proposed tokens to the next canvas.

LLaDA's and Dream's samplers differ in how they propose tokens and in how many positions they choose; what
they share is here, confidence-threshold decoding (Fast-dLLM) included.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsed.config import ResolvedSampler


@dataclass(frozen=True, eq=False)
class Commit:
    """What one step writes into the generation part of the canvas. All tensors are [batch, gen_length].

    tokens: int64, the new canvas. written: bool, True where this step wrote a token. confidence: float32, the
    confidence of the token where `written`, NaN elsewhere.
    """

    tokens: Tensor
    written: Tensor
    confidence: Tensor


@dataclass(frozen=True)
class Sampler(ABC):
    """One run's sampler. config: resolved. It holds settings, never state: what it needs comes in with the call."""

    config: ResolvedSampler
    mask_id: int

    @abstractmethod
    def candidates(self, masked: Tensor, step: int) -> Tensor:
        """Bool like masked [batch, gen_length]: the masked positions that the published sampler considers."""

    @abstractmethod
    def propose(self, logits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens int64 [n] for logits [n, vocabulary], and the confidence in each, float32 [n]."""

    @abstractmethod
    def choose(self, confidence: Tensor, step: int, generator: torch.Generator) -> Tensor:
        """Bool like confidence [batch, gen_length] (−inf: no candidate): the positions to commit."""

    def eligible(self, generation: Tensor, step: int) -> Tensor:
        """Bool [batch, gen_length]: the positions whose logits `commit` needs at this step.

        With a threshold: the masked positions of each row's first block that is not done.
        """
        masked = generation == self.mask_id
        if self.config.threshold is None:
            return self.candidates(masked, step)
        block_length = self.config.block_length
        blocks = masked.view(len(masked), -1, block_length)
        undone = blocks.any(-1)
        first = undone & (undone.cumsum(-1) == 1)
        return (blocks & first[..., None]).view_as(masked)

    def commit(
        self, generation: Tensor, eligible: Tensor, logits: Tensor, step: int, generator: torch.Generator
    ) -> Commit:
        """The canvas after this step. logits: [eligible positions, vocabulary], row by row of `eligible`."""
        proposed, sure = self.propose(logits, generator)
        confidence = torch.full(generation.shape, -torch.inf, dtype=torch.float32, device=generation.device)
        confidence[eligible] = sure
        candidates = generation.clone()
        candidates[eligible] = proposed
        if self.config.threshold is None:
            written = self.choose(confidence, step, generator)
        else:
            written = surest(confidence, 1) | (confidence > self.config.threshold)
        return Commit(
            tokens=torch.where(written, candidates, generation),
            written=written,
            confidence=torch.where(written, confidence, torch.nan),
        )


def surest(confidence: Tensor, count: int | Tensor) -> Tensor:
    """Bool like confidence [batch, gen_length]: the `count` (of all rows, or int64 [batch, 1]) largest of each
    row, of equals the lowest position.

    Positions at −inf are never chosen, so a row may have fewer.
    """
    order = confidence.sort(dim=-1, descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )
    return (rank < count) & (confidence > -torch.inf)
