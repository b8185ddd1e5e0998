"""Sentences about a run that its user should see."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from sparsed.denoising.predictor import Predictor
from sparsed.denoising.step import Step

# The first sparse steps may still prepare something.
STEPS_TO_JUDGE = 3


def beforehand(predictor: Predictor, threshold: float | None) -> list[str]:
    """What is known before the first step."""
    model, policy, length = predictor.model, predictor.policy, predictor.length
    notes = list(model.notes)
    if not policy.config.dense and policy.switch_step is None:
        notes.append(
            f"This run never becomes sparse: with {policy.steps} steps and skip {policy.config.skip}, "
            f"full attention lasts to the end. Lower skip or take more steps."
        )
    if length > model.max_positions:
        notes.append(
            f"Speed only: trained to {model.max_positions} positions, and this sequence of {model.label} has {length}."
        )
    gen_length = length - predictor.prompt_length
    if policy.steps > gen_length and threshold is None:
        notes.append(f"{policy.steps} steps for {gen_length} tokens: some steps commit nothing.")
    return notes


def no_gain(steps: Sequence[Step], switch_step: int) -> str | None:
    """That sparse steps are no faster than dense ones, without its end; None if they are, or nothing can be said."""
    dense_times = [step.seconds for step in steps if step.phase == "dense"]
    sparse_times = [step.seconds for step in steps[switch_step:]]
    if not dense_times or min(sparse_times) < median(dense_times):
        return None
    return (
        f"Sparse steps are no faster here: {1000 * min(sparse_times):.0f} ms at best, dense steps "
        f"{1000 * median(dense_times):.0f} ms"
    )


def never_sparse(made: int, total: int, switch_step: int) -> str:
    """After a run that was done before it became sparse."""
    return (
        f"This run never became sparse: it was done after {made} of at most {total} steps, and full attention lasts "
        f"for {switch_step}. Lower skip, or steps."
    )
