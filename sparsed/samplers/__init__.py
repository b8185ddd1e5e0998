"""Samplers: which masked positions to commit at each step, and to which tokens. Pure functions of logits."""

from __future__ import annotations

from collections.abc import Sequence

from sparsed.config import DREAM_ALGORITHMS, ResolvedSampler
from sparsed.samplers.base import Commit, Sampler, surest
from sparsed.samplers.dream import DreamSampler
from sparsed.samplers.llada import LLaDASampler

__all__ = ["Commit", "Sampler", "make_sampler", "surest"]


def make_sampler(
    config: ResolvedSampler, mask_id: int, end_ids: Sequence[int] = (), end_think_ids: Sequence[int] = ()
) -> Sampler:
    """The sampler for a resolved config: that of the family its algorithm belongs to. end_ids: every token that ends an
    answer, the end token first. end_think_ids: the tokens of the text that ends thinking, which end_think_boost is for.
    """
    kind = DreamSampler if config.algorithm in DREAM_ALGORITHMS else LLaDASampler
    return kind(config, mask_id, tuple(end_ids), tuple(end_think_ids))
