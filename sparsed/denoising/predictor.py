"""Logits of a canvas's positions: what a run asks for at every step, and an estimate of likelihood for every draw."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsed.attention.kernels import Kernels
from sparsed.attention.layout import BlockLayout
from sparsed.attention.pattern import Pattern
from sparsed.attention.policy import AttentionPolicy
from sparsed.attention.state import RunAttention
from sparsed.cache.rows import ALL, Rows
from sparsed.cache.store import RowStore
from sparsed.config import ResolvedAttention, ResolvedSampler
from sparsed.denoising.forward import Pass, forward_of
from sparsed.denoising.graphs import StepGraphs

if TYPE_CHECKING:
    from sparsed.models.model import Model


class Predictor:
    """Forwards over canvases of one length, with one attention policy.

    With classifier-free guidance every forward has 2 · batch sequences, the conditional ones first; so have the
    patterns.
    """

    def __init__(
        self,
        model: Model,
        prompt_length: int,
        sampler: ResolvedSampler,
        attention: ResolvedAttention,
        backend: str = "auto",
        dense_backend: str = "auto",
    ) -> None:
        self.model = model
        self.forward = forward_of(model)
        self.prompt_length = prompt_length
        self.length = prompt_length + sampler.gen_length
        self.guidance = sampler.cfg_scale
        self.policy = AttentionPolicy(
            attention,
            BlockLayout(self.length, prompt_length, attention.block_size),
            sampler.steps,
            sampler.blocks,
            sampler.grows,
            sampler.seed,
            # The public code scales LLaDA's scores by heads, Dream's by head_dim.
            scaled_by_heads=model.family == "llada",
        )
        self.kernels: Kernels | None = None  # until `choose_kernels`
        self._backends = backend, dense_backend

    def choose_kernels(self, batch: int, cached_rows: int = 0) -> list[str]:
        """The kernels asked for, or the fastest ones for so many canvases; tried out on a GPU, outside every clock.
        Returns sentences about what had to be left out.
        """
        problem = self.model.problem(2 * batch if self.guidance else batch, self.length)
        self.kernels, notes = Kernels.choose(problem, self.policy, *self._backends, cached_rows)
        return notes

    def at(self, length: int) -> Predictor:
        """The same over canvases that have so many positions so far: their kernels are those of the whole length."""
        shorter = copy(self)
        shorter.length, shorter.policy = length, self.policy.at(length)
        return shorter

    def attention(self) -> RunAttention:
        """A new run's attention, once kernels are chosen."""
        assert self.kernels is not None, "choose kernels first"
        return RunAttention(self.policy, self.kernels, self.forward.share)

    @torch.inference_mode()
    def logits(
        self,
        canvas: Tensor,
        eligible: Tensor,
        attention: RunAttention,
        rows: Rows = ALL,
        store: RowStore | None = None,
        graphs: StepGraphs | None = None,
    ) -> Tensor:
        """Logits [eligible positions, vocabulary], row by row of eligible, bool [batch, gen_length], for canvas int64
        [batch, length].
        """
        sequences, positions = eligible.nonzero(as_tuple=True)
        # Position i of a shifting model is predicted by position i − 1, which there always is: a prompt is never empty.
        wanted = sequences * self.length + self.prompt_length + positions - int(self.model.shift)
        if self.guidance:
            wanted = torch.cat([wanted, wanted + canvas.numel()])
        logits = self.forward.logits(self._batch(canvas), Pass(rows, wanted, attention, store, graphs))
        if not self.guidance:
            return logits
        conditional, unconditional = logits.chunk(2)
        return unconditional + (self.guidance + 1) * (conditional - unconditional)

    @torch.inference_mode()
    def select(self, canvas: Tensor) -> Pattern:
        """The pattern that a select step over this canvas would make, without importances."""
        assert self.kernels is not None, "choose kernels first"
        policy = replace(self.policy, config=replace(self.policy.config, keep_importance=False))
        attention = RunAttention(policy, self.kernels, self.forward.share, "select")
        nothing = torch.empty(0, dtype=torch.int64, device=canvas.device)
        self.forward.hidden(self._batch(canvas), Pass(ALL, nothing, attention))
        return self.forward.pattern(attention)

    def not_finite(self, where: str) -> RuntimeError:
        """What to raise where logits are no numbers."""
        guided = f", or cfg_scale ({self.guidance:g}) is" if self.guidance else ""
        return RuntimeError(
            f"The model's logits are not finite{where}: its weights are damaged, or too large for "
            f"{self.model.numbers}{guided}."
        )

    def _batch(self, canvas: Tensor) -> Tensor:
        """The sequences of a forward: the canvas, and with guidance once more with its prompt masked out."""
        if not self.guidance:
            return canvas
        without = canvas.clone()
        without[:, : self.prompt_length] = self.model.mask_id
        return torch.cat([canvas, without])
