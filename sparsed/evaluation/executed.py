"""What a finished run really computed, sequence by sequence: what the cost of its answers is counted from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from sparsed.attention.backends.registry import executed_density
from sparsed.denoising import Result
from sparsed.samplers import make_sampler

if TYPE_CHECKING:
    from sparsed.models.model import Model


def head_rows(model: Model, result: Result) -> list[int]:
    """Of each sequence, how many rows of logits its steps asked for, all together."""
    sampler = make_sampler(result.info.sampler, model.mask_id, model.end_ids)
    before = torch.full_like(result.steps[0].tokens, model.mask_id)
    asked = torch.zeros(len(before), dtype=torch.int64)
    for step in result.steps:
        asked += sampler.eligible(before, step.index).sum(1)
        before = step.tokens
    counts: list[int] = asked.tolist()
    return counts


def densities(result: Result) -> list[float | None]:
    """Of each sequence, the share of all pairs that a sparse step computes (`registry.executed_density`), by the run's
    last pattern; None without one. With classifier-free guidance the mean over its two sequences.
    """
    batch, pattern = len(result.tokens), result.pattern
    if pattern is None:
        return [None] * batch
    found: list[float | None] = []
    for row in range(batch):
        own = torch.arange(row, len(pattern.layers[0].counts), batch)
        layers = tuple(layer.of_rows(own) for layer in pattern.layers)
        found.append(executed_density(result.backend, replace(pattern, layers=layers, importance=None)))
    return found
