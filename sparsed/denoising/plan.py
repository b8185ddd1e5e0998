"""What each step of a run does: the one place where its two policies meet, which keys a query sees (attention) and
which rows a step computes (cache).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from sparsed.attention.layout import BlockLayout
from sparsed.attention.policy import AttentionPolicy
from sparsed.cache.policy import computed, full, full_later
from sparsed.cache.rows import ALL, Rows
from sparsed.config import (
    Phase,
    ResolvedAttention,
    ResolvedCache,
    ResolvedSampler,
    steps_of_blocks,
)
from sparsed.samplers import make_sampler
from sparsed.samplers.base import Sampler


@dataclass(frozen=True, eq=False)
class Plan:
    """One step. phase: the attention of the rows that it computes. length: positions of a sequence that are there, its
    prompt's and those of the canvas so far.
    """

    phase: Phase
    length: int
    rows: Rows = ALL
    candidates: Tensor | None = None  # bool [1, gen_length]: positions whose tokens may be committed; None: all


@dataclass(eq=False)
class Planner:
    """Plans the steps of some sequences of a run, one after the other. With a cache whose rows depend on what was
    committed (`one_by_one`) there is one sequence.
    """

    attention: AttentionPolicy
    cache: ResolvedCache
    sampler: Sampler
    prompt_length: int
    shift: bool  # position i is predicted by i − 1
    _selected: int | None = field(default=None, init=False)  # the last step that made a pattern
    _blocks: Tensor | None = field(default=None, init=False)  # where each sequence's block starts, int64 [batch, 1]
    _began: int = field(default=0, init=False)  # the step at which these blocks began
    _selected_blocks: Tensor | None = field(default=None, init=False)  # those of the last select step
    _masked: Tensor | None = field(default=None, init=False)  # bool [batch, gen_length]: before the last step
    _last: tuple[Tensor, Rows] | None = field(default=None, init=False)  # rows computed last: equal ones are the same

    def plan(self, step: int, generation: Tensor, dense_again: bool = False) -> Plan:
        """The next step, over generation, int64 [batch, gen_length], what is not there yet as masks. dense_again: no
        pattern is made or used from now on.
        """
        attention, cache, grows = self.attention, self.cache, self.sampler.config.grows
        length = attention.layout.length
        if cache.none and not attention.config.refresh and not grows:
            return Plan("dense" if dense_again else attention.phase(step), length)
        starts, ends = self.sampler.block(generation, step)
        if grows:
            length = self.prompt_length + int(ends.max())
        if self._blocks is None or bool(((starts != self._blocks) & (starts < ends)).any()):
            self._blocks, self._began = starts, step
        of_block, masked = step - self._began, generation == self.sampler.mask_id
        # No store knows the keys and values of positions that are new.
        every_row = full(cache, step, of_block) or (grows and of_block == 0)
        phase: Phase = "dense"
        if not dense_again and attention.due(step, self._selected, self._selected_blocks is not self._blocks):
            # A select step computes every row: the first one at or after its time that the cache computes them in
            # anyway, or this one where there is none to come.
            if every_row or (self._selected is None and not self._full_later(step, masked)):
                every_row, phase = True, "select"
                self._selected, self._selected_blocks = step, self._blocks
        if phase == "dense" and self._selected is not None and not dense_again:
            phase = "sparse" if every_row or cache.keys == "pattern" else "dense"
        uncommitted, self._masked = masked if self._masked is None else self._masked, masked
        if every_row:
            return Plan(phase, length)
        there = length - self.prompt_length
        start, end = int(starts[0]), int(ends[0])
        rows = computed(cache, start, end, uncommitted[0, :there], masked[0, :there], self.shift)
        inside = torch.arange(generation.shape[1], device=generation.device)[None]
        candidates = (inside >= start) & (inside < end) if cache.method in ("prefix", "dual") else None
        return Plan(phase, length, self._rows(rows), candidates)

    def told(self, plan: Plan) -> PlannedStep:
        """A plan in numbers."""
        attention = self.attention.at(plan.length)
        layout = attention.layout
        rows, keys = plan.rows.count(layout.length), float(layout.length)
        if plan.phase == "sparse":
            seen = min(keys, attention.kept * layout.block_size)
            full = 0
            if attention.config.generation_rows == "full":
                full = min(rows, layout.length - layout.start_of_last(layout.generation_query_blocks))
            keys = (full * keys + (rows - full) * seen) / rows
        return PlannedStep(plan.phase, rows, keys, plan.length)

    def _full_later(self, step: int, masked: Tensor) -> bool:
        """Does the cache compute every row in any later step, if the block takes all the steps that it may?"""
        config, of_block = self.sampler.config, step - self._began
        assert self._blocks is not None
        start = int(self._blocks[0])
        end = start + config.block_length
        of_run = config.steps - step - 1
        if config.threshold is None:
            left = steps_of_blocks(config.steps, config.blocks)[start // config.block_length] - of_block - 1
        else:
            left = int(masked[0, start:end].sum()) - 1
            of_run = min(of_run, int(masked[0].sum()) - 1)
        last_block = end >= config.gen_length
        if config.grows and not last_block:
            return True  # the next block begins with one
        return full_later(self.cache, step, of_block, of_run, left, last_block)

    def _rows(self, computed_rows: Tensor) -> Rows:
        last = self._last
        if last is None or len(last[0]) != len(computed_rows) or not torch.equal(last[0], computed_rows):
            positions = computed_rows.nonzero()[:, 0] + self.prompt_length - 1
            self._last = last = computed_rows, Rows(positions[None])
        return last[1]


class PlannedStep(NamedTuple):
    """What one step will compute for one sequence. It costs a · rows, and b · rows · keys for attention; a "select"
    step ranks all its pairs of a query and a key beside.
    """

    phase: Phase
    rows: int  # positions that are computed
    keys: float  # that a row attends to, the mean over the rows
    length: int  # positions of the sequence that are there: all of them where the canvas does not grow


def planned_steps(planner: Planner) -> tuple[PlannedStep, ...]:
    """Each step, if blocks take all the steps that they may: with a threshold, one for each token.

    planner: one that has planned nothing yet, which serves for this alone. Where rows depend on what was committed
    ("delayed"), it is as if the first masked positions were the surest. What is drawn by chance ("origin") may differ.
    """
    config, mask = planner.sampler.config, planner.sampler.mask_id
    generation, steps = torch.full((1, config.gen_length), mask), []
    chance = torch.Generator().manual_seed(config.seed)
    for step in range(config.steps if config.threshold is None else config.gen_length):
        plan = planner.plan(step, generation)
        steps.append(planner.told(plan))
        if config.threshold is not None:
            generation[0, step] = mask + 1
        elif planner.cache.method == "delayed":
            alike = torch.where(planner.sampler.eligible(generation, step), 0.0, -torch.inf)
            generation[planner.sampler.choose(alike, step, chance)] = mask + 1
    return tuple(steps)


def plan_of(
    sampler: ResolvedSampler,
    attention: ResolvedAttention,
    cache: ResolvedCache,
    prompt_length: int,
    shift: bool = False,
) -> tuple[PlannedStep, ...]:
    """`planned_steps` of a run with these settings over so many prompt tokens, for which no model is needed.

    shift: of the model, position i is predicted by i − 1.
    """
    layout = BlockLayout(prompt_length + sampler.gen_length, prompt_length, attention.block_size)
    policy = AttentionPolicy(attention, layout, sampler.steps, sampler.blocks, sampler.grows, sampler.seed)
    return planned_steps(Planner(policy, cache, make_sampler(sampler, mask_id=0), prompt_length, shift))


def one_by_one(cache: ResolvedCache, threshold: float | None) -> bool:
    """Do the rows that a step computes depend on what a sequence has committed, so that those of a batch differ?"""
    return not cache.none and (cache.method == "delayed" or threshold is not None)
