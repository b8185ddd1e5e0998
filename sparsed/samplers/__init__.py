"""Samplers: which masked positions to commit at each step, and to which tokens. Pure functions of logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sparsed.config import SamplerConfig


@dataclass(frozen=True, eq=False)
class Commit:
    """What one step writes into the generation part of the canvas. All tensors are [batch, gen_length].

    tokens: int64, the new canvas. written: bool, True where this step wrote a token. confidence: float32, the
    confidence of the token where `written`, NaN elsewhere.
    """

    tokens: Tensor
    written: Tensor
    confidence: Tensor


class Sampler(Protocol):
    """One run's sampler. It holds settings, never state: what it needs comes in with the call."""

    def eligible(self, generation: Tensor, step: int) -> Tensor:
        """Bool [batch, gen_length]: the positions whose logits `commit` needs at this step."""
        ...

    def commit(
        self, generation: Tensor, eligible: Tensor, logits: Tensor, step: int, generator: torch.Generator
    ) -> Commit:
        """The canvas after this step. logits: [eligible positions, vocabulary], row by row of `eligible`."""
        ...


def make_sampler(config: SamplerConfig, mask_id: int) -> Sampler:
    """The sampler for a resolved config."""
    from sparsed.samplers.llada import LLaDASampler

    return LLaDASampler(config, mask_id)
