"""The denoising loop: a run is an iterator of steps.

Step s = ⌈steps · skip⌉ makes the pattern; the steps before it use full attention, the steps after it the
pattern (the paper's "skipping" and "sparse reuse"), or now and then make a fresh one (`refresh`, ours).
Everything a run knows lives in its `Run`; the model holds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsed.attention.pattern import Pattern
from sparsed.attention.state import RunAttention
from sparsed.cache.rows import ALL, Rows
from sparsed.config import Phase, ResolvedAttention, ResolvedSampler
from sparsed.denoising.answers import Answers
from sparsed.denoising.forward import synchronize
from sparsed.denoising.info import RunInfo
from sparsed.denoising.notes import STEPS_TO_JUDGE, beforehand, ended_early, never_sparse, no_gain, padding
from sparsed.denoising.predictor import Predictor
from sparsed.denoising.step import Result, Step
from sparsed.machine import dtype_name
from sparsed.samplers import make_sampler

if TYPE_CHECKING:
    from sparsed.attention.backends.dense import DenseAttention
    from sparsed.models.model import Model


class Run(Iterator[Step]):
    """A denoising run: iterate over it for its steps, or ask for its `result()`. Made by `denoise`.

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
        batch, self.prompt_length = prompt.shape  # in tokens, as `length`
        self.model = model
        self.prompt = prompt.to("cpu", copy=True)  # token ids, int64 [batch, prompt_length] on the CPU
        self.sampler = sampler
        self.attention = attention
        self._predictor = Predictor(model, self.prompt_length, sampler, attention, backend, dense_backend)
        self._policy = self._predictor.policy
        self._asked_backend, self._asked_dense_backend = backend, dense_backend
        self.length = self._predictor.length
        self.total = self._policy.steps  # number of steps, or the most there can be (`ResolvedSampler.at_most`)
        # First sparse step, counted from 0: as planned until it is made; None if there is none.
        self.switch_step = self._policy.switch_step
        self.pattern: Pattern | None = None  # that of the last select step, once one was made
        self.probes: dict[int, Pattern] = {}  # step index → the pattern a fresh selection after that step gives
        self.probed: dict[int, Pattern] = {}  # step index → the pattern in use then; before there was one, the first
        self.steps: list[Step] = []  # made so far
        self.finished = False  # the last step was made
        # Sentences a user should see, known before the run starts but for those that follow from trying backends out
        # and from how the run went.
        self.notes = [*beforehand(self._predictor, sampler), *padding(model, self.prompt)]
        self._answers = Answers(model, sampler.stop)
        self._dense_again = False
        # The last select step, and where the semi-autoregressive block of each row began then, int64 [batch, 1].
        self._selected: tuple[int, Tensor] | None = None
        self._probe_steps = frozenset(probe_steps)
        self._sampler = make_sampler(sampler, model.mask_id, model.end_ids)
        shape = batch, self.length - self.prompt_length
        masks = torch.full(shape, model.mask_id, dtype=torch.int64, device=model.device)
        self._canvas: Tensor | None = torch.cat([prompt, masks], dim=1)
        self._attention: RunAttention | None = None
        # MPS has no float64, which the sampler's noise needs: there the CPU draws it.
        home = torch.device("cpu") if model.device.type == "mps" else model.device
        self._generator = torch.Generator(home).manual_seed(self._policy.seed)
        if model.device.type != "cuda":
            # Nothing has to be tried out there.
            self._begin(batch)

    @property
    def backend(self) -> str:
        """What runs the sparse phase (of a dense run: every phase); as asked for until `warm_up` or the first step."""
        return self._asked_backend if self._predictor.kernels is None else self._predictor.kernels.name

    @property
    def dense(self) -> DenseAttention | None:
        """What runs the phases before; None until `warm_up` or the first step has found the fastest."""
        return None if self._predictor.kernels is None else self._predictor.kernels.dense

    @property
    def info(self) -> RunInfo:
        """What this run is, and what it has made so far."""
        phases: dict[Phase, int] = {"dense": 0, "select": 0, "sparse": 0}
        for step in self.steps:
            phases[step.phase] += 1
        return RunInfo(
            sampler=self.sampler,
            attention=self.attention,
            backend=self.backend,
            dense_backend=self._asked_dense_backend if self.dense is None else self.dense.name,
            dtype=dtype_name(self.model.dtype),
            device=self.model.device.type,
            prompt_tokens=self.prompt_length,
            batch=len(self.prompt),
            phases=phases,
            total=self.total,
            finished=self.finished,
            switch_step=next((step.index for step in self.steps if step.phase == "sparse"), None),
            notes=tuple(self.notes),
        )

    def __iter__(self) -> Run:
        return self

    def __next__(self) -> Step:
        """Makes the next step. Raises RuntimeError if the model's logits are not finite."""
        # Local names, in the reverse order of `close`: another thread may close the run while this step is being made.
        attention, canvas = self._attention, self._canvas
        index = len(self.steps)
        if canvas is None or self.finished:
            raise StopIteration
        try:
            # Where several processes hold the model, nobody else may give them orders while the clock runs.
            with self.model.turn():
                attention = attention or self._begin(len(canvas))
                step = self._make_step(index, canvas, attention)
            self.steps.append(step)
            if step.phase == "select":
                self.pattern = self._predictor.forward.pattern(attention)
            if step.phase == "sparse":
                self._became_sparse()
            elif index == self.switch_step and index + 1 < self.total:
                self.switch_step = index + 1  # a block was done early, and the next one began with a fresh pattern
            if index in self._probe_steps:
                self.probes[index] = self._predictor.select(canvas)
            if self.pattern is not None:
                self.probed |= {at: self.pattern for at in self.probes.keys() - self.probed.keys()}
            if self._is_last(step):
                self._finish()
        except BaseException:
            self.close()
            raise
        return step

    def warm_up(self) -> None:
        """One untimed forward for each phase of this run, where kernels compile or tune themselves (GPUs).

        It leaves the run as it was. On a CPU there is nothing to warm up and nothing is done.
        """
        canvas = self._canvas
        if canvas is None or self.finished or self.model.device.type == "cpu":
            return
        if self._attention is None:
            self._begin(len(canvas))
        scratch = self._predictor.attention()
        phases: tuple[Phase, ...] = ("dense",) if self._policy.select_step is None else ("dense", "select", "sparse")
        spare = torch.Generator(self._generator.device).manual_seed(0)
        with torch.inference_mode():
            generation = canvas[:, self.prompt_length :]
            eligible = self._sampler.eligible(generation, 0)
            for phase in phases:
                scratch.phase = phase
                logits = self._predictor.logits(canvas, eligible, scratch)
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
        answers = [self._answers.read(row) for row in tokens[:, self.prompt_length :].tolist()]
        return Result(
            text=[answer.text for answer in answers],
            ended=[answer.ended for answer in answers],
            tokens=tokens,
            steps=list(self.steps),
            switch_step=self.switch_step,
            pattern=self.pattern,
            seconds=sum(step.seconds for step in self.steps),
            backend=self.backend,
            notes=list(self.notes),
            info=self.info,
        )

    def close(self) -> None:
        """Ends the run and lets go of its attention's patterns; the steps made so far, and the pattern, can still
        be read.

        A run that is neither closed nor finished is freed with its last reference.
        """
        if not self.finished:
            self._canvas = None
        self._attention = None

    def _begin(self, batch: int) -> RunAttention:
        """Chooses kernels, outside every clock."""
        self.notes += self._predictor.choose_kernels(batch)
        self._attention = self._predictor.attention()
        return self._attention

    def _plan(self, index: int, canvas: Tensor) -> tuple[Phase, Rows]:
        """The attention of a step, and the rows it computes."""
        if self._dense_again:
            return "dense", ALL
        if not self.attention.refresh:
            return self._policy.phase(index), ALL
        starts, ends = self._sampler.block(canvas[:, self.prompt_length :], index)
        selected, before = self._selected or (None, starts)
        new_block = bool(((starts != before) & (starts < ends)).any())
        phase = self._policy.phase(index, selected, new_block)
        if phase == "select":
            self._selected = index, starts
        return phase, ALL

    def _make_step(self, index: int, canvas: Tensor, attention: RunAttention) -> Step:
        attention.phase, rows = self._plan(index, canvas)
        self._synchronize()
        start = perf_counter()
        with torch.inference_mode():
            generation = canvas[:, self.prompt_length :]
            eligible = self._sampler.eligible(generation, index)
            logits = self._predictor.logits(canvas, eligible, attention, rows)
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
                f"The model's logits are not finite at step {index + 1} of {self.total} ({attention.phase} "
                f"attention): its weights are damaged, or too large for {dtype}."
            )
        # A position that was given the mask token is still masked.
        committed = commit.written & (commit.tokens != self.model.mask_id)
        return Step(
            index=index,
            total=self.total,
            phase=attention.phase,
            rows=rows.count(self.length),
            tokens=commit.tokens.to("cpu", copy=True),
            committed=committed.cpu(),
            confidence=torch.where(committed, commit.confidence, torch.nan).cpu(),
            seconds=seconds,
        )

    def _became_sparse(self) -> None:
        """After a sparse step: when was the first, and after the first few of them, were they worth it?"""
        sparse = [step.index for step in self.steps if step.phase == "sparse"]
        self.switch_step = sparse[0]
        if len(sparse) != STEPS_TO_JUDGE or (said := no_gain(self.steps)) is None:
            return
        self._dense_again = self.attention.on_no_gain == "dense"
        again = f"from step {len(self.steps) + 1} on this run is dense again"
        self.notes.append(f"{said}; {again if self._dense_again else 'this run stays sparse'}.")

    def _is_last(self, step: Step) -> bool:
        """Steps run out, or (with a threshold) masks do, or (if asked for) every answer is complete."""
        if step.index == self.total - 1:
            return True
        if self.sampler.early_stop and self._answers.complete(step.tokens):
            self.notes.append(ended_early(len(self.steps), self.total))
            return True
        return self.sampler.threshold is not None and not bool((step.tokens == self.model.mask_id).any())

    def _finish(self) -> None:
        self.finished = True
        self._attention = None
        if self.switch_step is not None and all(step.phase != "sparse" for step in self.steps):
            selected = sum(step.phase == "select" for step in self.steps)
            self.notes.append(never_sparse(len(self.steps), self.total, self.switch_step, selected))
            self.switch_step = None

    def _synchronize(self) -> None:
        for device in self.model.devices:
            synchronize(device)
