"""Samplers: which masked positions to commit at each step, and to which tokens. Pure functions of logits."""

from __future__ import annotations

from sparsed.config import DREAM_ALGORITHMS, ResolvedSampler
from sparsed.samplers.base import Commit, Sampler, surest
from sparsed.samplers.dream import DreamSampler
from sparsed.samplers.llada import LLaDASampler

__all__ = ["Commit", "Sampler", "make_sampler", "surest"]


def make_sampler(config: ResolvedSampler, mask_id: int) -> Sampler:
    """The sampler for a resolved config: that of the family its algorithm belongs to."""
    return (DreamSampler if config.algorithm in DREAM_ALGORITHMS else LLaDASampler)(config, mask_id)
