"""A run of which the steps of some rows are made, and those over every row count with what they are known to take.

At 64k a step over every row takes seconds and one of few rows milliseconds; with a cache nearly all are of few rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from time import perf_counter

import torch
from torch import Tensor

from sparsed.config import Phase
from sparsed.denoising.plan import Plan
from sparsed.denoising.run import Part, Run
from sparsed.denoising.step import Step


class Rehearsal(Run):
    """`run`, which has made no step yet, to be iterated over in its place.

    known: seconds of a step over every row, by phase. Such a step is made once, for the keys and values or the pattern
    that later ones need (one that uses the pattern not at all), and counts with what is known. The others commit random
    tokens, as many as the schedule says. Steps of some rows are all made, and counted with their own time, the first of
    each number of rows after one outside the clock. backend, dense_backend: as `denoise` takes them.

    Raises ValueError for a run with a threshold, whose steps depend on what the model says, or a canvas that grows,
    whose steps over every row are of many lengths.
    """

    def __init__(self, run: Run, known: Mapping[Phase, float], backend: str, dense_backend: str) -> None:
        if run.sampler.threshold is not None:
            raise ValueError("With a threshold nothing is known of a run before it is made: put none together.")
        if run.sampler.grows:
            raise ValueError("With a canvas that grows every step has its own length: put no run together.")
        self._known = known
        self._made: set[Phase] = {"sparse"}
        self._tried: set[tuple[Phase, int]] = set()
        self._outside = 0.0
        self._drawn = torch.Generator().manual_seed(run.sampler.seed)
        prompt = run.prompt.to(run.model.device)
        super().__init__(
            run.model, prompt, run.sampler, run.attention, backend, dense_backend=dense_backend, cache=run.cache
        )

    def warm_up(self) -> None:
        """Nothing: steps over every row count with what is known, and the others warm up one by one."""

    def _make_step(self, index: int, canvas: Tensor, parts: list[Part]) -> Step:
        self._outside = 0.0
        step = super()._make_step(index, canvas, parts)
        if step.rows == step.length and step.phase in self._known:
            return replace(step, seconds=self._known[step.phase])
        return replace(step, seconds=step.seconds - self._outside)

    def _logits(self, part: Part, plan: Plan, canvas: Tensor, wanted: Tensor) -> Tensor:
        if plan.rows.positions is None:
            if plan.phase in self._made and plan.phase in self._known:
                return self._random(int(wanted.sum()))
            self._made.add(plan.phase)
        elif (kind := (plan.phase, plan.rows.count(plan.length))) not in self._tried:
            self._tried.add(kind)
            self._synchronize()
            start = perf_counter()
            super()._logits(part, plan, canvas, wanted)
            self._synchronize()
            self._outside += perf_counter() - start
        return super()._logits(part, plan, canvas, wanted)

    def _random(self, count: int) -> Tensor:
        """Logits of so many positions, under which none is given the mask token."""
        logits = torch.randn(count, self.model.network.config.vocab_size, generator=self._drawn)
        logits[:, self.model.mask_id] = -torch.inf
        return logits.to(self.model.device)
