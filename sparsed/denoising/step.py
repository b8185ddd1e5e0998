"""What a run gives: its steps, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sparsed.attention.pattern import Pattern
from sparsed.config import Phase
from sparsed.denoising.info import RunInfo
from sparsed.denoising.plan import Plan


@dataclass(frozen=True, eq=False)
class Step:
    """One denoising step, after it was made.

    Tensors are [batch, gen_length] on the CPU.
    """

    index: int  # counted from 0
    total: int  # steps of the whole run, at most
    phase: Phase  # "dense", "select" (dense, and the pattern was made) or "sparse"
    rows: int  # positions of a sequence that were computed
    length: int  # of a sequence that were there, the prompt's and those of the canvas so far
    tokens: Tensor  # int64, masks included, and as masks what is not there yet
    committed: Tensor  # bool: unmasked in this step
    confidence: Tensor  # float32: of the committed tokens, NaN elsewhere
    seconds: float  # wall time of the forward and the sampler alone, the device synchronised before and after
    # Of those, the attention of all layers, selections included; None where it is not told apart: on a CPU alone it is,
    # in a model that one process holds.
    attention_seconds: float | None = None


@dataclass(frozen=True, eq=False)
class Result:
    """A finished run. text: one string a batch row, as it was generated up to what `ended` it (None: nothing did).
    tokens: int64 [batch, length + gen_length] on the CPU; after an early end, masks stand behind the answers.

    switch_step: the first sparse step, counted from 0, or None. pattern: None for a run that never selected.
    seconds: sum over steps. notes: sentences a user should see. info: every setting, and the steps really made. plans:
    for each step what it did, for each part of the batch that went through the network on its own (its sequences).
    """

    text: list[str]
    ended: list[Literal["end token", "stop string"] | None]
    tokens: Tensor
    steps: list[Step]
    switch_step: int | None
    pattern: Pattern | None
    seconds: float
    backend: str
    notes: list[str]
    info: RunInfo
    plans: list[list[tuple[slice, Plan]]]
