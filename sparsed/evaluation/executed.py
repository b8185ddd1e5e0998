"""What a finished run really computed, sequence by sequence: what the cost of its answers is counted from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from sparsed.attention.backends.registry import executed_density
from sparsed.cache.rows import Rows
from sparsed.denoising import Result
from sparsed.samplers import make_sampler

if TYPE_CHECKING:
    from sparsed.models.model import Model

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Executed:
    """What the steps of a run computed for one sequence.

    rows: positions, by the steps' phase, all steps together (of a canvas that grows too each counts as if it saw
    a whole sequence). head_rows: rows of logits that were asked for, likewise.
    density: of the pairs of these rows with all keys, the share that sparse steps computed
    (`registry.executed_density`), by the run's last pattern; None without such a step. With classifier-free guidance
    the mean over its two sequences.
    """

    rows: Mapping[str, int]
    head_rows: int
    density: float | None


def executed(model: Model, result: Result) -> list[Executed]:
    """Of each sequence."""
    sampler = make_sampler(result.info.sampler, model.mask_id, model.end_ids)
    batch = len(result.tokens)
    before = torch.full_like(result.steps[0].tokens, model.mask_id)
    asked = torch.zeros(batch, dtype=torch.int64)
    rows: list[dict[str, int]] = [{str(phase): 0 for phase in result.info.phases} for _ in range(batch)]
    sparse: list[list[tuple[Rows, int]]] = [[] for _ in range(batch)]  # those of each sparse step, and how many
    for step, parts in zip(result.steps, result.plans, strict=True):
        eligible = sampler.eligible(before, step.index)
        for sequences, plan in parts:
            wanted = eligible[sequences] if plan.candidates is None else eligible[sequences] & plan.candidates.cpu()
            asked[sequences] += wanted.sum(1)
            for sequence in range(batch)[sequences]:
                rows[sequence][plan.phase] += plan.rows.count(plan.length)
                if plan.phase == "sparse":
                    sparse[sequence].append((plan.rows, plan.rows.count(plan.length)))
        before = step.tokens
    return [
        Executed(rows[sequence], int(asked[sequence]), _density(result, sequence, sparse[sequence]))
        for sequence in range(batch)
    ]


def _density(result: Result, sequence: int, steps: list[tuple[Rows, int]]) -> float | None:
    """Of one sequence, over steps that computed these rows, so many, by the pattern."""
    pattern, batch = result.pattern, len(result.tokens)
    if pattern is None or not steps:
        return None
    its = torch.arange(sequence, len(pattern.layers[0].counts), batch)
    own = replace(pattern, layers=tuple(layer.of_rows(its) for layer in pattern.layers), importance=None)
    share = {rows: executed_density(result.backend, own, rows.on(_CPU)) for rows, _ in dict(steps).items()}
    return sum(share[rows] * count for rows, count in steps) / sum(count for _, count in steps)
