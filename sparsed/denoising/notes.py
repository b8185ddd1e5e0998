"""Sentences about a run that its user should see."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from sparsed.config import ResolvedSampler
from sparsed.denoising.predictor import Predictor
from sparsed.denoising.step import Step

if TYPE_CHECKING:
    from torch import Tensor

    from sparsed.models.model import Model

# The first sparse steps may still prepare something.
STEPS_TO_JUDGE = 3


def beforehand(predictor: Predictor, sampler: ResolvedSampler) -> list[str]:
    """What is known before the first step: first what is not as it was asked for."""
    model, policy, length = predictor.model, predictor.policy, predictor.length
    notes = [*sampler.changed, *model.notes]
    if not policy.config.dense and policy.switch_step is None:
        notes.append(
            f"This run never becomes sparse: with {policy.steps} steps and skip {policy.config.skip}, "
            f"full attention lasts to the end. Lower skip or take more steps."
            if policy.select_step is None or not policy.config.refresh
            else f"This run never becomes sparse: with refresh, each of its {policy.blocks} semi-autoregressive blocks "
            f"begins with a fresh pattern, and {policy.steps} steps leave no other. Take more steps."
        )
    if length > model.max_positions:
        notes.append(speed_only(model, length))
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
        f"run prompts of unequal length one by one."
    ]


def speed_only(model: Model, length: int) -> str:
    """Of a sequence longer than any that the model was trained on."""
    return f"Speed only: trained to {model.max_positions} positions, and this sequence of {model.label} has {length}."


def no_gain(steps: Sequence[Step]) -> str | None:
    """That sparse steps are no faster than dense ones, without its end; None if they are, or nothing can be said."""
    dense_times = [step.seconds for step in steps if step.phase == "dense"]
    sparse_times = [step.seconds for step in steps if step.phase == "sparse"]
    if not dense_times or min(sparse_times) < median(dense_times):
        return None
    return (
        f"Sparse steps are no faster here: {1000 * min(sparse_times):.0f} ms at best, dense steps "
        f"{1000 * median(dense_times):.0f} ms"
    )


def ended_early(made: int, total: int) -> str:
    """After a run that was told to end with its answers."""
    return f"Every answer was complete after {made} of at most {total} steps; what follows their ends stays masked."


def never_sparse(made: int, total: int, switch_step: int, selected: int) -> str:
    """After a run that was done before it became sparse, with so many select steps."""
    if selected > 1:
        return (
            f"This run never became sparse: it was done after {made} of at most {total} steps, and with refresh each "
            f"semi-autoregressive block began with full attention. Leave refresh out, or take longer blocks."
        )
    return (
        f"This run never became sparse: it was done after {made} of at most {total} steps, and full attention lasts "
        f"for {switch_step}. Lower skip, or steps."
    )
