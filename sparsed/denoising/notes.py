"""Sentences about a run that its user should see."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from sparsed.config import ResolvedCache, ResolvedSampler
from sparsed.denoising.predictor import Predictor
from sparsed.denoising.step import Step

if TYPE_CHECKING:
    from torch import Tensor

    from sparsed.denoising.run import Run
    from sparsed.models.model import Model

# The first sparse steps may still prepare something.
STEPS_TO_JUDGE = 3


def beforehand(
    predictor: Predictor, sampler: ResolvedSampler, cache: ResolvedCache, switch_step: int | None
) -> list[str]:
    """What is known before the first step: first what is not as it was asked for. switch_step: as planned."""
    model, policy, length = predictor.model, predictor.policy, predictor.length
    notes = [*sampler.changed, *model.notes]
    if not policy.config.dense and switch_step is None:
        why = f"with {policy.steps} steps and skip {policy.config.skip}, full attention lasts to the end"
        way = f"{_take(policy.config.skip)} more steps"
        if policy.switch_step is not None:
            why = f"after the one that makes the pattern, the cache {cache.method!r} plans no step over all rows"
            way = f"{_take(policy.config.skip)} shorter semi-autoregressive blocks or the pattern's keys"
            if policy.grows:
                why = f"the cache {cache.method!r} plans no step over all rows but those that make a pattern"
                way = "Take the pattern's keys"
        elif policy.select_step is not None and (policy.config.refresh or policy.grows):
            why = (
                f"with {'a canvas that grows' if policy.grows else 'refresh'}, each of its {policy.blocks} "
                f"semi-autoregressive blocks begins with a fresh pattern, and {policy.steps} steps leave no other"
            )
            way = "Take more steps"
        notes.append(f"This run never becomes sparse: {why}. {way}.")
    notes += positions(model, length)
    if sampler.steps > sampler.gen_length and sampler.threshold is None:
        notes.append(f"{sampler.steps} steps for {sampler.gen_length} tokens: some steps commit nothing.")
    notes += [
        f"The stop string {stop!r} holds a backslash and the letter n, which is no line feed (a shell writes that as "
        f"$'\\n')."
        for stop in sampler.stop
        if "\\n" in stop
    ]
    return notes


def padding(model: Model, prompt: Tensor) -> list[str]:
    """Of token ids [batch, length] that look as if rows of other lengths were filled up: no mask hides the filling."""
    fillings = {model.eos_id, getattr(model.tokenizer, "pad_token_id", None)}
    ends: list[int] = []
    for row in prompt.tolist():
        here = [next((n for n, token in enumerate(side) if token not in fillings), 0) for side in (row, row[::-1])]
        ends.append(max(here))
    rows = [str(number) for number, count in enumerate(ends, 1) if count > 1 or (count and min(ends) == 0)]
    if not rows:
        return []
    return [
        f"The token ids of prompt {', '.join(rows)} begin or end with padding, which the model reads like the rest: "
        f"give prompts of unequal length to generate_all, as they are."
    ]


def positions(model: Model, length: int) -> list[str]:
    """Of a sequence longer than any that the model was trained on, and of rotary positions that were stretched."""
    said = []
    if length > model.max_positions:
        said.append(
            f"Speed only: trained to {model.max_positions} positions, and this sequence of {model.label} has {length}."
        )
    if model.rope_factor != 1:
        said.append(
            f"The base of the rotary positions is {model.rope_factor:g} times the published one (rope_factor): that "
            f"is for sequences longer than the {model.max_positions} positions that {model.label} was trained to, and "
            f"changes its answers at every length."
        )
    return said


def no_gain(steps: Sequence[Step]) -> str | None:
    """That sparse steps are no faster than dense ones, without its end; None if they are, or nothing can be said."""
    sparse = [step for step in steps if step.phase == "sparse"]
    # Of steps that compute as many rows.
    dense_times = [step.seconds for step in steps if step.phase == "dense" and step.rows == sparse[0].rows]
    sparse_times = [step.seconds for step in sparse]
    if not dense_times or min(sparse_times) < median(dense_times):
        return None
    return (
        f"Sparse steps are no faster here: {1000 * min(sparse_times):.0f} ms at best, dense steps "
        f"{1000 * median(dense_times):.0f} ms"
    )


def afterwards(run: Run, steps: Sequence[Step], switch_step: int | None, complete: bool) -> list[str]:
    """What is known after the last one of these steps of a run. switch_step: as planned. complete: the run was told to
    end with its answers, and did.
    """
    notes, done = [], f"after {len(steps)} of at most {run.total} steps"
    if complete:
        notes.append(f"Every answer was complete {done}; what follows their ends stays masked.")
    if switch_step is not None and all(step.phase != "sparse" for step in steps):
        selected = sum(step.phase == "select" for step in steps)
        why = _why_dense(run, switch_step, selected)
        notes.append(f"This run never became sparse: it was done {done}, and {why}.")
    return notes


def _why_dense(run: Run, switch_step: int, selected: int) -> str:
    """Why a run was done before it became sparse, with so many select steps, and what helps."""
    skip = run.attention.skip
    if not run.cache.none:
        return f"none of them after the one that makes the pattern computed every row. {_take(skip)} shorter blocks"
    if selected > 1:
        grown = run.sampler.grows
        why, way = ("a canvas that grows", "Take") if grown else ("refresh", "Leave refresh out, or take")
        return f"with {why} each semi-autoregressive block began with full attention. {way} longer blocks"
    return f"full attention lasts for {switch_step}. {'Lower skip, or steps' if skip else 'Take fewer steps'}"


def _take(skip: float) -> str:
    return "Lower skip, or take" if skip else "Take"
