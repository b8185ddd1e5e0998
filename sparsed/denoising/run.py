"""The denoising loop: a run is an iterator of steps.

Step s = ⌈steps · skip⌉ makes the pattern; the steps before it use full attention, the steps after it the
pattern (the paper's "skipping" and "sparse reuse"). Everything a run knows lives in its `Run`; the model
holds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsed.attention.backends import dense
from sparsed.attention.backends.registry import Problem, choose_backend, load_backend
from sparsed.attention.pattern import BlockLayout, Pattern
from sparsed.attention.selection.importance import fusible
from sparsed.attention.selection.isolated import blocks_to_keep
from sparsed.attention.state import AttentionState, Phase
from sparsed.config import ResolvedAttention, ResolvedSampler, select_step, switch_step
from sparsed.denoising.forward import look, synchronize
from sparsed.denoising.step import Result, Step
from sparsed.machine import dtype_name
from sparsed.models.layer import hidden_rows
from sparsed.samplers import make_sampler

if TYPE_CHECKING:
    from sparsed.attention.backends.dense import DenseAttention
    from sparsed.models.model import Model

class Run(Iterator[Step]):
    """A denoising run: iterate over it for its steps, or ask for its `result()`. Made by `denoise`.

    total: number of steps; with a threshold, the most there can be. switch_step: first sparse step, counted
    from 0; None if there is none. pattern: None until the select step was made. probes: step index → the
    pattern a fresh selection after that step gives. backend: what runs the sparse phase (of a dense
    run: every phase), "auto" on a GPU until `warm_up` or the first step has found the fastest. dense: what runs
    the phases before, likewise. attention, sampler: resolved. prompt: its token ids, int64 [batch,
    prompt_length] on the CPU. prompt_length, length: tokens. notes: sentences a user should see, known before
    the run starts but for those that follow from trying backends out and from how a run with a threshold ended.
    steps: the steps made so far. finished: the last step was made.

    With classifier-free guidance every forward has 2 · batch rows, the conditional ones first; so have the
    patterns.
    """

    def __init__(
        self,
        model: Model,
        prompt: Tensor,
        sampler: ResolvedSampler,
        attention: ResolvedAttention,
        backend: str,
        probe_steps: Iterable[int] = (),
        dense_backend: str = "auto",
    ) -> None:
        steps, gen_length = sampler.steps, sampler.gen_length
        batch, self.prompt_length = prompt.shape
        self.model = model
        self.prompt = prompt.to("cpu", copy=True)
        self.total = steps
        self.length = self.prompt_length + gen_length
        self.sampler = sampler
        self.attention = attention
        self.pattern: Pattern | None = None
        self.probes: dict[int, Pattern] = {}
        self.steps: list[Step] = []
        self.finished = False
        self._dense_again = False
        self._select_step = select_step(steps, attention.skip, attention.selection)
        self.switch_step = switch_step(steps, attention.skip, attention.selection)
        if attention.dense:
            state = AttentionState("dense")
        else:
            layout = BlockLayout(self.length, self.prompt_length, attention.block_size)
            # The public code scales LLaDA's scores by heads, Dream's by head_dim.
            by_heads = model.family == "llada"
            state = AttentionState("dense", attention, layout, scaled_by_heads=by_heads, seed=sampler.seed)
        if model.team is not None:
            state.share = model.team.share
        self._state: AttentionState | None = state
        self.backend = backend
        self.dense: DenseAttention | None = None
        self._dense_backend = dense_backend
        self._probe_steps = frozenset(probe_steps)
        self._sampler = make_sampler(sampler, model.mask_id)
        masks = torch.full((batch, gen_length), model.mask_id, dtype=torch.int64, device=model.device)
        self._canvas: Tensor | None = torch.cat([prompt, masks], dim=1)
        # MPS has no float64, which the sampler's noise needs: there the CPU draws it.
        home = torch.device("cpu") if model.device.type == "mps" else model.device
        self._generator = torch.Generator(home).manual_seed(sampler.seed)
        self.notes = self._warnings()
        if model.device.type != "cuda":
            # Nothing has to be tried out there.
            self._choose_backends(state, batch)

    def __iter__(self) -> Run:
        return self

    def __next__(self) -> Step:
        """Makes the next step. Raises RuntimeError if the model's logits are not finite."""
        # Local names: another thread may close the run while this step is being made.
        canvas, state = self._canvas, self._state
        index = len(self.steps)
        if canvas is None or state is None or self.finished:
            raise StopIteration
        try:
            # Where several processes hold the model, nobody else may give them orders while the clock runs.
            with self.model.turn():
                if self.dense is None:
                    self._choose_backends(state, len(canvas))
                step = self._make_step(index, canvas, state)
            self.steps.append(step)
            if step.phase == "select":
                self.pattern = self._pattern(state)
            if step.phase == "sparse":
                self._look_for_gain()
            if index in self._probe_steps:
                self.probes[index] = self._probe(canvas, state)
            if self._is_last(step):
                self._finish()
        except BaseException:
            self.close()
            raise
        return step

    @property
    def fused(self) -> bool:
        """Whether the select step makes its importances with a kernel; known once `dense` is."""
        return self._state is not None and self._state.fused

    def warm_up(self) -> None:
        """One untimed forward for each phase of this run, where kernels compile or tune themselves (GPUs).

        It leaves the run as it was. On a CPU there is nothing to warm up and nothing is done.
        """
        canvas, state = self._canvas, self._state
        if canvas is None or state is None or self.model.device.type == "cpu":
            return
        if self.dense is None:
            self._choose_backends(state, len(canvas))
        scratch = replace(state, phase="dense", layers={}, importance={})
        phases: list[Phase] = ["dense"]
        if self._select_step < self.total:
            phases += ["select", "sparse"]
        spare = torch.Generator(self._generator.device).manual_seed(0)
        with torch.inference_mode():
            generation = canvas[:, self.prompt_length :]
            eligible = self._sampler.eligible(generation, 0)
            for phase in phases:
                scratch.phase = phase
                logits = self._logits(canvas, eligible, scratch)
                self._sampler.commit(generation, eligible, logits, 0, spare)
        self._synchronize()

    def result(self) -> Result:
        """The finished run; makes the steps still to come, after `warm_up` if none was made yet. Raises RuntimeError
        if it was closed before.
        """
        if not self.steps:
            self.warm_up()
        for _ in self:
            pass
        if not self.finished:
            raise RuntimeError(
                f"The run was stopped after {len(self.steps)} of {self.total} steps: it has no result."
            )
        assert self._canvas is not None, "close() keeps the canvas of a finished run"
        tokens = self._canvas.to("cpu", copy=True)
        return Result(
            text=[self.model.decode(row) for row in tokens[:, self.prompt_length :]],
            tokens=tokens,
            steps=list(self.steps),
            switch_step=self.switch_step,
            pattern=self.pattern,
            seconds=sum(step.seconds for step in self.steps),
            backend=self.backend,
            notes=list(self.notes),
        )

    def close(self) -> None:
        """Ends the run and lets go of its attention state; the steps made so far, and the pattern, can still
        be read.

        A run that is neither closed nor finished is freed with its last reference.
        """
        self._state = None
        if not self.finished:
            self._canvas = None

    def _choose_backends(self, state: AttentionState, batch: int) -> None:
        """The fastest dense attention, and the backend asked for or the fastest one. Outside every clock."""
        config: Any = self.model.network.config
        heads = config.num_attention_heads
        # Of this process: where several hold the model, each attends for its own heads.
        ways = self.model.processes
        problem = Problem(
            device=self.model.device,
            dtype=self.model.dtype,
            batch=2 * batch if self.sampler.cfg_scale else batch,
            heads=heads // ways,
            key_heads=config.num_key_value_heads // ways,
            length=self.length,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        )
        state.dense = dense.pick(self._dense_backend, problem)
        attention, layout = state.config, state.layout
        if attention is None or layout is None:
            self.dense, self.backend = state.dense, state.dense.name
            return
        if self.backend == "auto":
            sides = (layout.prompt_blocks, layout.generation_blocks)
            kept = sum(blocks_to_keep(attention.select, side) for side in sides)
            choice = choose_backend(problem, attention.block_size, kept)
            self.backend = choice.name
            self.notes += [f"The backend {name!r} was left out: {why}" for name, why in choice.left_out]
        state.backend, state.backend_name = load_backend(self.backend), self.backend
        state.fused = state.dense.with_lse is not None and fusible(problem, attention.block_size)
        # Set last: from here on the run is ready.
        self.dense = state.dense

    def _phase(self, index: int) -> Phase:
        if index < self._select_step or self._dense_again:
            return "dense"
        return "select" if index == self._select_step else "sparse"

    def _make_step(self, index: int, canvas: Tensor, state: AttentionState) -> Step:
        state.phase = self._phase(index)
        self._synchronize()
        start = perf_counter()
        with torch.inference_mode():
            generation = canvas[:, self.prompt_length :]
            eligible = self._sampler.eligible(generation, index)
            logits = self._logits(canvas, eligible, state)
            # One number a row tells: NaN and +inf both reach the maximum. No sampler may see them: drawing from them
            # fails in words of its own, and on a GPU in a way that no later run survives.
            finite = not len(logits) or bool(logits.amax(-1).isfinite().all())
            if finite:
                commit = self._sampler.commit(generation, eligible, logits, index, self._generator)
                generation.copy_(commit.tokens)
        self._synchronize()
        seconds = perf_counter() - start
        if not finite:
            dtype = dtype_name(self.model.dtype)
            raise RuntimeError(
                f"The model's logits are not finite at step {index + 1} of {self.total} ({state.phase} "
                f"attention): its weights are damaged, or too large for {dtype}."
            )
        # A position that was given the mask token is still masked.
        committed = commit.written & (commit.tokens != self.model.mask_id)
        return Step(
            index=index,
            total=self.total,
            phase=state.phase,
            tokens=commit.tokens.to("cpu", copy=True),
            committed=committed.cpu(),
            confidence=torch.where(committed, commit.confidence, torch.nan).cpu(),
            seconds=seconds,
        )

    def _look_for_gain(self) -> None:
        """After the third sparse step (the first ones may still prepare something): were they worth it?"""
        if self.switch_step is None or len(self.steps) != self.switch_step + 3:
            return
        dense_times = [step.seconds for step in self.steps if step.phase == "dense"]
        sparse_times = [step.seconds for step in self.steps[self.switch_step :]]
        if not dense_times or min(sparse_times) < median(dense_times):
            return
        said = (
            f"Sparse steps are no faster here: {1000 * min(sparse_times):.0f} ms at best, dense steps "
            f"{1000 * median(dense_times):.0f} ms"
        )
        if self.attention.on_no_gain == "dense":
            self._dense_again = True
            self.notes.append(f"{said}; from step {len(self.steps) + 1} on this run is dense again.")
        else:
            self.notes.append(f"{said}; this run stays sparse.")

    def _is_last(self, step: Step) -> bool:
        """Steps run out, or (with a threshold) masks do."""
        if self.sampler.threshold is None:
            return step.index == self.total - 1
        return step.index == self.total - 1 or not bool((step.tokens == self.model.mask_id).any())

    def _finish(self) -> None:
        self.finished = True
        self._state = None
        made = len(self.steps)
        if self.switch_step is not None and made <= self.switch_step:
            self.notes.append(
                f"This run never became sparse: it was done after {made} of at most {self.total} steps, and full "
                f"attention lasts for {self.switch_step}. Lower skip, or steps."
            )
            self.switch_step = None

    def _synchronize(self) -> None:
        for device in self.model.devices:
            synchronize(device)

    def _batch(self, canvas: Tensor) -> Tensor:
        """The rows of a forward: the canvas, and with guidance once more with its prompt masked out."""
        if not self.sampler.cfg_scale:
            return canvas
        without = canvas.clone()
        without[:, : self.prompt_length] = self.model.mask_id
        return torch.cat([canvas, without])

    def _logits(self, canvas: Tensor, eligible: Tensor, state: AttentionState) -> Tensor:
        """Logits [eligible positions, vocabulary]; the last layer's MLP and the head run on no other position."""
        rows, positions = eligible.nonzero(as_tuple=True)
        # Position i of a shifting model is predicted by position i − 1, which there always is: a prompt is never empty.
        wanted = rows * self.length + self.prompt_length + positions - int(self.model.shift)
        guided = self._batch(canvas)
        scale = self.sampler.cfg_scale
        if scale:
            wanted = torch.cat([wanted, wanted + canvas.numel()])
        network: Any = self.model.network
        logits: Tensor
        if self.model.team is None:
            logits = network.lm_head(hidden_rows(network, guided, state, wanted)).to(canvas.device)
        else:
            logits = self.model.team.logits(network, guided, state, wanted)
        if not scale:
            return logits
        conditional, unconditional = logits.chunk(2)
        return unconditional + (scale + 1) * (conditional - unconditional)

    def _probe(self, canvas: Tensor, state: AttentionState) -> Pattern:
        assert state.config is not None, "a dense run is not probed"
        config = replace(state.config, keep_importance=False)
        probe = replace(state, phase="select", config=config, backend=None, layers={}, importance={})
        look(self.model, self._batch(canvas), probe)
        return self._pattern(probe)

    def _pattern(self, state: AttentionState) -> Pattern:
        """What a "select" forward chose, for the heads of all processes."""
        return state.pattern() if self.model.team is None else self.model.team.pattern(state)

    def _warnings(self) -> list[str]:
        notes = list(self.model.notes)
        attention, sampler = self.attention, self.sampler
        if not attention.dense and self.switch_step is None:
            notes.append(
                f"This run never becomes sparse: with {self.total} steps and skip {attention.skip}, "
                f"full attention lasts to the end. Lower skip or take more steps."
            )
        if self.length > self.model.max_positions:
            notes.append(
                f"Speed only: trained to {self.model.max_positions} positions, and this sequence of {self.model.label} "
                f"has {self.length}."
            )
        if self.total > sampler.gen_length and sampler.threshold is None:
            notes.append(f"{self.total} steps for {sampler.gen_length} tokens: some steps commit nothing.")
        return notes
