"""The denoising loop: a run is an iterator of steps.

Step s = ⌈steps · skip⌉ makes the pattern; the steps before it use full attention, the steps after it the
pattern (the paper's "skipping" and "sparse reuse"), or now and then make a fresh one (`refresh`, ours).
Everything a run knows lives in its `Run`; the model holds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median_low
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsed.attention.backends import few_rows
from sparsed.attention.pattern import Pattern
from sparsed.attention.state import RunAttention
from sparsed.cache.rows import ALL, Rows
from sparsed.cache.store import RowStore
from sparsed.config import NO_CACHE, Phase, ResolvedAttention, ResolvedCache, ResolvedSampler
from sparsed.denoising.answers import Answers, end_think_ids
from sparsed.denoising.forward import synchronize
from sparsed.denoising.graphs import StepGraphs, step_graphs
from sparsed.denoising.info import RunInfo
from sparsed.denoising.notes import STEPS_TO_JUDGE, afterwards, beforehand, no_gain, padding
from sparsed.denoising.plan import Plan, Planner, one_by_one, planned_steps
from sparsed.denoising.predictor import Predictor
from sparsed.denoising.step import Result, Step
from sparsed.samplers import make_sampler

if TYPE_CHECKING:
    from sparsed.attention.backends.dense import DenseAttention
    from sparsed.models.model import Model

@dataclass(eq=False)
class Part:
    """Sequences of a run that go through the network together. What is of one length begins anew with the next one."""

    sequences: slice
    planner: Planner
    attention: RunAttention  # of one length
    store: RowStore | None  # of one length; None where every step computes every row
    graphs: StepGraphs | None  # of its steps of few rows, of one length; None where there are none


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
        cache: ResolvedCache = NO_CACHE,
    ) -> None:
        batch, self.prompt_length = prompt.shape  # in tokens, as `length`
        self.model = model
        self.prompt = prompt.to("cpu", copy=True)  # token ids, int64 [batch, prompt_length] on the CPU
        self.sampler = sampler
        self.attention = attention
        self.cache = cache
        self._predictor = Predictor(model, self.prompt_length, sampler, attention, backend, dense_backend)
        self._there = self._predictor  # of the canvas so far
        self._policy = self._predictor.policy
        self._asked_backend, self._asked_dense_backend = backend, dense_backend
        self.length = self._predictor.length  # of a sequence that is whole
        self.total = self._policy.steps  # number of steps, or the most there can be (`ResolvedSampler.at_most`)
        self.pattern: Pattern | None = None  # that of the last select step, once one was made
        self.probes: dict[int, Pattern] = {}  # step index → the pattern a fresh selection after that step gives
        self.probed: dict[int, Pattern] = {}  # step index → the pattern in use then; before there was one, the first
        self.steps: list[Step] = []  # made so far
        self.plans: list[list[tuple[slice, Plan]]] = []  # of these steps
        self.finished = False  # the last step was made
        # Sentences a user should see, known before the run starts but for those that follow from trying backends out
        # and from how the run went.
        self._sampler = make_sampler(sampler, model.mask_id, model.end_ids, end_think_ids(model, sampler))
        self.planned = planned_steps(self._planner())  # what each step is to compute, if the run takes all of them
        planned = [step.phase for step in self.planned]
        # First sparse step, counted from 0: as planned until it is made; None if there is none.
        self.switch_step = planned.index("sparse") if "sparse" in planned else None
        told = beforehand(self._predictor, sampler, cache, self.switch_step)
        self.notes = [*told, *padding(model, self.prompt)]
        self._answers = Answers(model, sampler.stop)
        self._complete = False  # and that is why it ended
        self._dense_again = False
        self._probe_steps = frozenset(probe_steps)
        shape = batch, self.length - self.prompt_length
        masks = torch.full(shape, model.mask_id, dtype=torch.int64, device=model.device)
        self._canvas: Tensor | None = torch.cat([prompt, masks], dim=1)
        self._parts: list[Part] | None = None
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
    def _few(self) -> list[int]:
        """Of each step that is to compute some rows, how many."""
        return [step.rows for step in self.planned if 0 < step.rows < step.length]

    @property
    def dense(self) -> DenseAttention | None:
        """What runs the phases before; None until `warm_up` or the first step has found the fastest."""
        return None if self._predictor.kernels is None else self._predictor.kernels.dense

    @property
    def _alone_on_cpu(self) -> bool:
        return self.model.processes == 1 and all(device.type == "cpu" for device in self.model.devices)

    @property
    def info(self) -> RunInfo:
        """What this run is, and what it has made so far."""
        phases: dict[Phase, int] = {"dense": 0, "select": 0, "sparse": 0}
        rows = dict(phases)
        for step in self.steps:
            phases[step.phase] += 1
            rows[step.phase] += step.rows
        return RunInfo(
            sampler=self.sampler,
            attention=self.attention,
            cache=self.cache,
            backend=self.backend,
            dense_backend=self._asked_dense_backend if self.dense is None else self.dense.name,
            dtype=self.model.numbers,
            device=self.model.device.type,
            prompt_tokens=self.prompt_length,
            batch=len(self.prompt),
            phases=phases,
            rows=rows,
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
        parts, canvas = self._parts, self._canvas
        index = len(self.steps)
        if canvas is None or self.finished:
            raise StopIteration
        try:
            # Where several processes hold the model, nobody else may give them orders while the clock runs.
            with self.model.turn():
                parts = parts or self._begin(len(canvas))
                step = self._make_step(index, canvas, parts)
            self.steps.append(step)
            if step.phase == "select":
                made = [self._predictor.forward.pattern(part.attention) for part in parts]
                self.pattern = made[0] if len(made) == 1 else Pattern.of_sequences(made, self.sampler.cfg_scale > 0)
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
        if self._parts is None:
            self._begin(len(canvas))
        with torch.inference_mode():
            self._each_kind(canvas)
        self._synchronize()

    def _each_kind(self, canvas: Tensor) -> None:
        """A forward over every row in each phase, of the shortest canvas and of the whole one; then of as many rows, of
        each kind that kernels are tuned for, as steps of some rows are to compute.
        """
        phases: tuple[Phase, ...] = ("dense",) if self._policy.select_step is None else ("dense", "select", "sparse")
        spare = torch.Generator(self._generator.device).manual_seed(0)
        generation = canvas[:, self.prompt_length :]
        eligible = self._sampler.eligible(generation, 0)
        kinds = [(phase, ALL, eligible) for phase in phases]
        if (first := self.planned[0].length) < self.length:
            self._try(self._predictor.at(first), canvas, kinds, spare)
        few_phases: tuple[Phase, ...] = ("dense", "sparse") if self.cache.keys == "pattern" else ("dense",)
        positions = torch.arange(self.length, device=canvas.device)
        for count in {few_rows.rows_kind(n): n for n in sorted(self._few)}.values():
            last = Rows(positions[None, -count:])
            seen = positions[self.prompt_length :] - int(self.model.shift) >= self.length - count
            kinds += [(phase, last, seen.expand(generation.shape)) for phase in few_phases]
        self._try(self._predictor, canvas, kinds, spare)

    def _try(
        self, predictor: Predictor, canvas: Tensor, kinds: list[tuple[Phase, Rows, Tensor]], spare: torch.Generator
    ) -> None:
        """Forwards (phase, rows, wanted) of a length, and commits of which nothing is kept."""
        scratch, store = predictor.attention(), None if self.cache.none else RowStore()
        generation = canvas[:, self.prompt_length :]
        for scratch.phase, rows, wanted in kinds:
            logits = predictor.logits(canvas[:, : predictor.length], wanted, scratch, rows, store)
            self._sampler.commit(generation, wanted, logits, 0, spare)

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
            plans=list(self.plans),
        )

    def close(self) -> None:
        """Ends the run and lets go of its attention's patterns; the steps made so far, and the pattern, can still
        be read.

        A run that is neither closed nor finished is freed with its last reference.
        """
        if not self.finished:
            self._canvas = None
        self._parts = None

    def _begin(self, batch: int) -> list[Part]:
        """Chooses kernels, outside every clock."""
        each = 1 if one_by_one(self.cache, self.sampler.threshold) else batch
        self.notes += self._predictor.choose_kernels(each, median_low(self._few) if self._few else 0)
        self._parts = [self._part(slice(first, first + each)) for first in range(0, batch, each)]
        return self._parts

    def _part(self, sequences: slice) -> Part:
        store, graphs = self._kept()
        return Part(sequences, self._planner(), self._there.attention(), store, graphs)

    def _kept(self) -> tuple[RowStore | None, StepGraphs | None]:
        """What a part begins with: a store, and graphs of its steps of few rows, where there are any."""
        if self.cache.none:
            return None, None
        graphs = step_graphs(self.model)
        return RowStore(in_place=graphs is not None), graphs

    def _grow(self, parts: list[Part], length: int) -> None:
        """The canvas is longer: patterns, keys and values, and graphs of the shorter one are of no more use."""
        self._there = self._predictor.at(length)
        for part in parts:
            part.attention = self._there.attention()
            part.store, part.graphs = self._kept()

    def _planner(self) -> Planner:
        return Planner(self._policy, self.cache, self._sampler, self.prompt_length, self.model.shift)

    def _make_step(self, index: int, canvas: Tensor, parts: list[Part]) -> Step:
        generation, every = canvas[:, self.prompt_length :], parts
        if self.sampler.threshold is not None:
            # The run of a sequence that is done would have ended.
            parts = [part for part in parts if bool((generation[part.sequences] == self.model.mask_id).any())]
        plans = [part.planner.plan(index, generation[part.sequences], self._dense_again) for part in parts]
        self.plans.append([(part.sequences, plan) for part, plan in zip(parts, plans)])
        phase, length = plans[0].phase, plans[0].length
        if length != self._there.length:
            self._grow(every, length)
        for part in parts:
            part.attention.spent = 0.0
        self._synchronize()
        start = perf_counter()
        with torch.inference_mode():
            eligible = self._sampler.eligible(generation, index)
            found = []
            for part, plan in zip(parts, plans):
                part.attention.phase = plan.phase
                wanted = eligible[part.sequences]
                if plan.candidates is not None:
                    wanted &= plan.candidates
                found.append(self._logits(part, plan, canvas[part.sequences, :length], wanted))
            logits = found[0] if len(found) == 1 else torch.cat(found)
            # One number a row tells: NaN and +inf both reach the maximum. No sampler may see them: drawing from them
            # fails in words of its own, and on a GPU in a way that no later run survives.
            finite = not len(logits) or bool(logits.amax(-1).isfinite().all())
            if finite:
                commit = self._sampler.commit(generation, eligible, logits, index, self._generator)
                generation.copy_(commit.tokens)
        self._synchronize()
        seconds = perf_counter() - start
        if not finite:
            raise self._predictor.not_finite(f" at step {index + 1} of {self.total} ({phase} attention)")
        # A position that was given the mask token is still masked.
        committed = commit.written & (commit.tokens != self.model.mask_id)
        return Step(
            index=index,
            total=self.total,
            phase=phase,
            rows=max(plan.rows.count(length) for plan in plans),
            length=length,
            tokens=commit.tokens.to("cpu", copy=True),
            committed=committed.cpu(),
            confidence=torch.where(committed, commit.confidence, torch.nan).cpu(),
            seconds=seconds,
            # A GPU's work is not done when a call returns, and other processes have heads of their own.
            attention_seconds=sum(part.attention.spent for part in parts) if self._alone_on_cpu else None,
        )

    def _logits(self, part: Part, plan: Plan, canvas: Tensor, wanted: Tensor) -> Tensor:
        """Of the wanted positions of some sequences, by the forward that their plan says; inside the step's clock."""
        return self._there.logits(canvas, wanted, part.attention, plan.rows, part.store, part.graphs)

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
        """Steps run out, or (with a threshold) masks do, or (if asked for) every answer is complete: of a canvas that
        grows, when a block is done.
        """
        if step.index == self.total - 1:
            return True
        looks = self.sampler.early_stop
        if looks and self.sampler.grows:
            start, _end = self._sampler.block(step.tokens, step.index + 1)
            looks = self.prompt_length + int(start.max()) >= step.length
        if looks and self._answers.complete(step.tokens):
            self._complete = True
            return True
        return self.sampler.threshold is not None and not bool((step.tokens == self.model.mask_id).any())

    def _finish(self) -> None:
        self.finished = True
        self._parts = None
        self._told, self._planned_switch = len(self.notes), self.switch_step
        self.notes = self.notes_after(self.steps, self._complete)
        if all(step.phase != "sparse" for step in self.steps):
            self.switch_step = None

    def notes_after(self, steps: Sequence[Step], complete: bool) -> list[str]:
        """The notes if the finished run had ended with these of its steps. complete: because its answers were."""
        return self.notes[: self._told] + afterwards(self, steps, self._planned_switch, complete)

    def _synchronize(self) -> None:
        for device in self.model.devices:
            synchronize(device)
