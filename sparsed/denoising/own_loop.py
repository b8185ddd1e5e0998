"""SparseD's attention in a denoising loop of one's own: ids in, logits out, phases by a step index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from sparsed.attention.backends import dense
from sparsed.attention.backends.registry import check_backend
from sparsed.attention.pattern import Pattern
from sparsed.attention.state import RunAttention
from sparsed.config import AttentionConfig, Phase, ResolvedSampler, as_attention
from sparsed.denoising.predictor import Predictor

if TYPE_CHECKING:
    from sparsed.models.model import Model


class OwnLoop:
    """The forwards of a loop that commits tokens by rules of its own.

        with sparsed.OwnLoop(model, prompt_length=n, gen_length=96, steps=48) as loop:
            for step in range(48):
                logits = loop.logits(ids, step)

    Steps before ⌈steps · skip⌉ have full attention, that one makes the pattern, and those after it use it (the paper's
    section 3); with `refresh`, every so many steps another one makes a fresh pattern. Steps may be left out: the first
    forward at or after ⌈steps · skip⌉ makes the pattern. One asked again uses the pattern that it made. Any number of
    loops and runs may share a model and interleave.

    Args:
        model: from `sparsed.load`.
        prompt_length, gen_length: positions of a sequence, those of the generation behind the prompt's.
        steps: of the whole loop, which `skip` is a share of.
        attention: as `sparsed.denoise` takes it: None is SparseD as published for the length, "dense" full attention.
        backend, dense_backend: likewise.

    Raises ValueError for a length or a number of steps below 1, settings out of range, or an unknown backend.
    """

    def __init__(
        self,
        model: Model,
        *,
        prompt_length: int,
        gen_length: int,
        steps: int,
        attention: AttentionConfig | Literal["dense"] | None = None,
        backend: str = "auto",
        dense_backend: str = "auto",
    ) -> None:
        for name, value in (("prompt_length", prompt_length), ("gen_length", gen_length), ("steps", steps)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}.")
        dense.check(dense_backend, model.device)
        resolved = as_attention(attention).resolve(prompt_length + gen_length)
        check_backend(backend, model.device, None if resolved.dense else resolved.block_size)
        # Of a sampler a forward asks for the lengths, the steps and a seed; the rest is the loop's own.
        sampler = ResolvedSampler(
            steps=steps, gen_length=gen_length, block_length=gen_length, algorithm="low_confidence", temperature=0.0,
            seed=0,
        )  # fmt: skip
        self.model, self.steps = model, steps
        self.shape: tuple[int, int] | None = None  # of the ids, once there were any
        self.phase: Phase | None = None  # of the last forward
        self.pattern: Pattern | None = None  # that of the last select step
        self._predictor = Predictor(model, prompt_length, sampler, resolved, backend, dense_backend)
        self._attention: RunAttention | None = None
        self._last = -1
        self._selected: int | None = None
        self._closed = False

    @property
    def backend(self) -> str | None:
        """What computes the sparse steps (with full attention: every step); None before the first forward."""
        return None if self._predictor.kernels is None else self._predictor.kernels.name

    def logits(self, ids: Tensor, step: int, wanted: Tensor | None = None) -> Tensor:
        """Logits of the generation's positions, [batch, gen_length, vocabulary] in the model's dtype: those at position
        j are of the token that stands there, whichever position the model predicts it at.

        ids: whole numbers [batch, prompt_length + gen_length], on any device, masks among them (`model.mask_id`); the
        same shape each time. step: from 0 to steps − 1, never a lower one than before. wanted: bool [batch,
        gen_length], positions that are asked for; the logits are then [as many, vocabulary], row by row, and the head
        runs on no other one.

        Raises ValueError for ids of another shape or outside the vocabulary, for a step that is none of the loop's or
        goes back, and after the loop was closed.
        """
        ids, every = self._checked(ids), wanted is None
        wanted = self._wanted(wanted, len(ids))
        self.shape = (ids.shape[0], ids.shape[1])
        self._check_step(step)
        if self._attention is None:
            self._predictor.choose_kernels(len(ids))
            self._attention = self._predictor.attention()
        attention = self._attention
        attention.phase = self.phase = self._phase(step)
        with self.model.turn():
            logits = self._predictor.logits(ids, wanted, attention)
            if self.phase == "select":
                self.pattern, self._selected = self._predictor.forward.pattern(attention), step
        self._last = step
        if not torch.is_inference_mode_enabled():
            logits = logits.clone()  # the loop's own rules may change them in place
        return logits.view(*wanted.shape, -1) if every else logits

    def close(self) -> None:
        """Lets go of the patterns on the device; `pattern` can still be read."""
        self._closed, self._attention = True, None

    def __enter__(self) -> OwnLoop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _phase(self, step: int) -> Phase:
        if self._predictor.policy.due(step, self._selected, new_block=False):
            return "select"
        return "dense" if self._selected is None else "sparse"

    def _checked(self, ids: Tensor) -> Tensor:
        if self._closed:
            raise ValueError("This loop was closed: make another one.")
        ids = self.model.check_tokens(ids)
        if ids.shape[1] != self._predictor.length or self.shape not in (None, tuple(ids.shape)):
            batch = "batch" if self.shape is None else self.shape[0]
            raise ValueError(f"The ids must be of shape [{batch}, {self._predictor.length}], not {list(ids.shape)}.")
        return ids.to(self.model.device, torch.int64)

    def _wanted(self, wanted: Tensor | None, batch: int) -> Tensor:
        shape = batch, self._predictor.length - self._predictor.prompt_length
        if wanted is None:
            return torch.ones(shape, dtype=torch.bool, device=self.model.device)
        if wanted.dtype != torch.bool or tuple(wanted.shape) != shape:
            raise ValueError(
                f"wanted must be bool of shape {list(shape)}, not {wanted.dtype} of {list(wanted.shape)}."
            )
        return wanted.to(self.model.device)

    def _check_step(self, step: int) -> None:
        if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < self.steps:
            raise ValueError(f"step must lie between 0 and {self.steps - 1}, not {step!r}.")
        if step < self._last:
            raise ValueError(f"Steps go forward: {step} comes after {self._last}. Another loop begins anew.")
