"""How likely a masked diffusion model finds an answer: LLaDA's Monte-Carlo estimate (arXiv 2502.09992, eq. 6).

Of an answer of L tokens after a context, a draw masks l tokens, l uniform on 1 … L and the l tokens without
replacement, and gives L / l times the sum of their log-probabilities under the model, which sees the context and the
other L − l tokens. The mean over all draws bounds the answer's log-likelihood from below and is estimated by a few.

Draws stand where a run has its denoising steps: from the most to the least masked one, the first ⌈draws · skip⌉ with
full attention, then one that makes the pattern (its own output is dense), the others with that pattern.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from sparsed.attention.backends import dense
from sparsed.attention.backends.registry import check_backend
from sparsed.attention.pattern import LayerPattern
from sparsed.attention.state import RunAttention
from sparsed.batches import Fitting, together
from sparsed.config import AttentionConfig, Phase, ResolvedSampler, SamplerConfig, as_attention
from sparsed.denoising import denoise
from sparsed.denoising.info import RunInfo
from sparsed.denoising.notes import positions
from sparsed.denoising.predictor import Predictor

if TYPE_CHECKING:
    from sparsed.models.model import Model

# Logits are made float32 for so many positions at a time.
_ROWS = 1024


@dataclass(frozen=True)
class Likelihood:
    """value: the estimated bound of log p(answer | context), in nats. greedy: greedy decoding gives the answer."""

    value: float
    greedy: bool


class Seen(Protocol):
    """Is told what stands behind likelihoods: of a set of draws or, where `greedy`, of a decoding. requests: how many
    pairs it answers.
    """

    def __call__(self, info: RunInfo, requests: int, greedy: bool) -> None: ...


@dataclass(frozen=True, eq=False)
class _Question:
    """What one set of draws answers: a context and answers of equal length, several if their canvases are the same.

    context: int64 [prompt_length]. answers: int64 [n, answer_length]. places: for each answer the indices of the pairs
    that asked for it.
    """

    context: Tensor
    answers: Tensor
    places: list[list[int]]


@dataclass(frozen=True, eq=False)
class _Draw:
    """A canvas to look at. question: index into a group. masked: bool [answer_length]. times: how often drawn."""

    question: int
    masked: Tensor
    times: int


def draw_masks(length: int, draws: int, seed: int) -> Tensor:
    """Which of an answer's tokens each draw masks: bool [draws, length], the most masked first.

    The numbers of masked tokens are spread evenly over 1 … length from a random start (systematic sampling): each of
    them is uniform, as the estimate needs, and together they vary less than independent ones. Which tokens are masked
    is independent between draws. The same seed draws the same.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(length, (), generator=generator)
    counts = (start + torch.arange(draws) * length // draws) % length + 1
    counts = counts.sort(descending=True).values
    rank = torch.rand(draws, length, dtype=torch.float64, generator=generator).argsort(-1).argsort(-1)
    return rank < counts[:, None]


def log_likelihoods(
    model: Model,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    draws: int = 128,
    seed: int = 0,
    attention: AttentionConfig | Literal["dense"] | None = None,
    backend: str = "auto",
    dense_backend: str = "auto",
    cfg_scale: float = 0.0,
    batch_size: int = 1,
    greedy: bool = True,
    seen: Seen | None = None,
    fitting: Fitting | None = None,
) -> Iterator[tuple[int, Likelihood]]:
    """The likelihoods of `pairs` of token ids (context, answer), as (index of the pair, likelihood), longest first.

    draws: of the Monte-Carlo estimate, at least 1. seed: with a pair's own tokens it decides that pair's draws, so a
    result depends neither on the other pairs nor, beyond rounding, on `batch_size`, the most canvases of one forward.
    attention, backend, dense_backend: as for `denoise`; the context is the prompt side, the answer the generation side.
    The baseline "random" draws one pattern for all pairs of a shape. cfg_scale: classifier-free guidance, 0 = off: the
    logits are guided before they become probabilities.

    Equal draws of a pair, which give equal numbers, are looked at once (an answer of one token is always wholly
    masked: one forward for each phase), and so are the draws of one-token answers to one context, since their
    canvases are the same.

    `greedy` is decided as LLaDA's public evaluation does it: from a wholly masked answer, the surest position is given
    its most likely token, one position a step, L steps in all; the same attention applies to those steps as to a run
    of them. Decoding stops at the first token that is not the answer's. An empty answer has value 0 and is greedy.
    greedy: whether that is asked; else `Likelihood.greedy` is False, as LLaDA's is_check_greedy=False has it.

    seen: is called for the draws of each group of pairs of one shape, as for a run of as many steps as draws in which
    only the forwards really made count, and for each decoding. fitting: what is known of the memory here, for calls
    that follow one another; where it does not suffice for a batch, half of it is tried.

    Raises ValueError for an empty context, ids outside the vocabulary and settings out of range; RuntimeError if the
    model's logits are not finite; MemoryError, in a sentence, where one canvas alone is too much.
    """
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ValueError(f"The number of Monte-Carlo draws must be a whole number of at least 1, not {draws!r}.")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, not {batch_size!r}.")
    attention, fitting = as_attention(attention), fitting or Fitting()
    for index, (_context, answer) in enumerate(pairs):
        if not answer:
            yield index, Likelihood(0.0, greedy)
    # A pattern drawn by lot belongs to a row of a batch: row 0 then, whatever the batch size.
    alone = attention.method == "random"
    for group in _groups(pairs, 1 if alone else batch_size):
        contexts = model.encode(torch.stack([question.context for question in group]))
        model.encode(torch.cat([question.answers for question in group]))  # checks their ids
        length = group[0].answers.shape[1]
        # A run of as many steps as draws knows what each of them does.
        settings = SamplerConfig(
            steps=draws,
            gen_length=length,
            block_length=length,
            algorithm="low_confidence",
            temperature=0.0,
            cfg_scale=cfg_scale,
            early_stop=False,
            seed=seed,
        ).resolve(model.defaults)
        estimate = _Estimate(model, contexts.shape[1], settings, attention, backend, dense_backend)
        values, decoded = estimate.of(group, seed, batch_size, fitting)
        if seen is not None:
            seen(estimate.info(len(group)), _requests(group), False)
        if not greedy:
            decoded = [[False] * len(question.answers) for question in group]
        elif length > 1:
            decoded = []
            work = partial(_greedy, model, estimate=estimate, settings=settings)
            for part, (found, info) in fitting.pieces(group, contexts.shape[1] + length, work):
                decoded += found
                if seen is not None:
                    seen(info, _requests(part), True)
        for question, own, is_greedy in zip(group, values, decoded):
            for places, value, yes in zip(question.places, own, is_greedy):
                for place in places:
                    yield place, Likelihood(value, yes)


def _groups(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int
) -> list[list[_Question]]:
    """Questions of equal context length and answer length, at most `batch_size` together, the longest first."""
    asked: dict[tuple[tuple[int, ...], tuple[int, ...]], dict[tuple[int, ...], list[int]]] = {}
    for index, (context, answer) in enumerate(pairs):
        if answer:
            # The canvas of a wholly masked answer does not depend on the answer.
            canvas = tuple(context), tuple(answer) if len(answer) > 1 else ()
            asked.setdefault(canvas, {}).setdefault(tuple(answer), []).append(index)
    questions = [
        _Question(
            torch.tensor(context, dtype=torch.int64),
            torch.tensor(list(answers), dtype=torch.int64),
            list(answers.values()),
        )
        for (context, _), answers in asked.items()
    ]
    groups = together(questions, _shape, lambda _: batch_size)
    return sorted(groups, key=lambda group: (-sum(_shape(group[0])), _shape(group[0])))


def _requests(group: Sequence[_Question]) -> int:
    """How many pairs the questions answer."""
    return sum(len(places) for question in group for places in question.places)


def _shape(question: _Question) -> tuple[int, int]:
    """Tokens of the context and of each answer."""
    return len(question.context), question.answers.shape[1]


class _Estimate:
    """The draws for a group of questions of one shape."""

    def __init__(
        self,
        model: Model,
        prompt_length: int,
        settings: ResolvedSampler,
        attention: AttentionConfig,
        backend: str,
        dense_backend: str,
    ) -> None:
        dense.check(dense_backend, model.device)
        resolved = attention.resolve(prompt_length + settings.gen_length)
        check_backend(backend, model.device, None if resolved.dense else resolved.block_size)
        self.model = model
        self.predictor = Predictor(model, prompt_length, settings, resolved, backend, dense_backend)
        self._policy = self.predictor.policy
        self._attention: RunAttention | None = None  # once kernels are chosen
        self._made: list[dict[int, LayerPattern]] = []  # the patterns of all questions, batch by batch
        self._owners: list[int] = []  # the questions that the rows of its patterns belong to
        self._settings = settings
        self._forwards: Counter[Phase] = Counter()
        self._notes: list[str] = []  # on kernels

    def of(
        self, group: list[_Question], seed: int, batch_size: int, fitting: Fitting
    ) -> tuple[list[list[float]], list[list[bool]]]:
        """For every answer of every question its mean over the draws and, where answers are one token, whether it is
        the most likely one under full attention.
        """
        dense_draws, select_draws, sparse_draws = self._plan(group, seed)
        totals = [torch.zeros(len(question.answers), dtype=torch.float64) for question in group]
        greedy: list[list[bool]] = [[] for _ in group]
        phases: tuple[tuple[Phase, list[_Draw]], ...] = (
            ("dense", dense_draws), ("select", select_draws), ("sparse", sparse_draws),
        )  # fmt: skip
        for phase, chosen in phases:
            for first in range(0, len(chosen), batch_size):
                batch = chosen[first : first + batch_size]
                work = partial(self._look, group, phase=phase)
                for part, found in fitting.pieces(batch, self.predictor.length, work):
                    for draw, (share, right) in zip(part, found):
                        totals[draw.question] += share
                        greedy[draw.question] = greedy[draw.question] or right
        return [total.tolist() for total in totals], greedy

    def info(self, questions: int) -> RunInfo:
        """The settings, and the forwards made so far for so many questions."""
        kernels, config = self.predictor.kernels, self._policy.config
        assert kernels is not None, "an estimate was made"
        notes = [*self.model.notes, *self._notes]
        if not config.dense and self._policy.switch_step is None:
            notes.append(
                f"These likelihoods never become sparse: with mc_num {self._policy.steps} and skip {config.skip}, full "
                f"attention lasts to the last draw. Lower skip or raise mc_num."
            )
        if config.refresh:
            notes.append("refresh is without effect on likelihoods: their draws are no steps of one run.")
        notes += positions(self.model, self.predictor.length)
        return RunInfo(
            sampler=self._settings,
            attention=config,
            backend=kernels.name,
            dense_backend=kernels.dense.name,
            dtype=self.model.numbers,
            device=self.model.device.type,
            prompt_tokens=self.predictor.prompt_length,
            batch=questions,
            phases={phase: self._forwards[phase] for phase in ("dense", "select", "sparse")},
            rows={phase: self._forwards[phase] * self.predictor.length for phase in ("dense", "select", "sparse")},
            total=self._policy.steps,
            finished=True,
            switch_step=self._policy.switch_step if self._forwards["sparse"] else None,
            notes=tuple(notes),
        )

    def _plan(self, group: list[_Question], seed: int) -> tuple[list[_Draw], list[_Draw], list[_Draw]]:
        """The draws of all questions with full attention, those that make patterns, and those that use them."""
        plan: tuple[list[_Draw], list[_Draw], list[_Draw]] = ([], [], [])
        # A pattern that no draw uses need not be made.
        select = None if self._policy.switch_step is None else self._policy.select_step
        for number, question in enumerate(group):
            length = question.answers.shape[1]
            masks = draw_masks(length, self._policy.steps, 0 if length == 1 else _seed(seed, question))
            if select is None:
                plan[0].extend(_different(number, masks))
                continue
            # What makes the pattern is dense itself: it also speaks for the dense draws that are equal to it.
            equal = (masks[:select] == masks[select]).all(-1)
            plan[0].extend(_different(number, masks[:select][~equal]))
            plan[1].append(_Draw(number, masks[select], 1 + int(equal.sum())))
            plan[2].extend(_different(number, masks[select + 1 :]))
        return plan

    def _look(self, group: list[_Question], batch: Sequence[_Draw], *, phase: Phase) -> list[tuple[Tensor, list[bool]]]:
        """Of each draw, for every answer of its question, float64 [answers]: its share of the mean over all draws. And
        of answers of one token, whether each is the most likely one.
        """
        device = self.model.device
        if self._attention is None:
            self._notes = self.predictor.choose_kernels(len(batch))
            self._attention = self.predictor.attention()
        attention = self._attention
        masked = torch.stack([draw.masked for draw in batch])
        answers = torch.stack([group[draw.question].answers[0] for draw in batch])
        contexts = torch.stack([group[draw.question].context for draw in batch])
        canvas = torch.cat([contexts, answers.masked_fill(masked, self.model.mask_id)], dim=1).to(device)
        attention.phase = phase
        owners = [draw.question for draw in batch]
        if phase == "select":
            attention.layers = {}
        elif phase == "sparse" and owners != self._owners:
            # One set of layers as long as the rows stay the same: a backend keeps what it derived from them.
            rows = owners if not self.predictor.guidance else owners + [owner + len(group) for owner in owners]
            chosen = torch.tensor(rows, device=device)
            if len(self._made) > 1:
                guided = bool(self.predictor.guidance)
                parts = {layer: [made[layer] for made in self._made] for layer in self._made[0]}
                self._made = [{layer: LayerPattern.stacked(one, guided) for layer, one in parts.items()}]
            attention.layers = {layer: pattern.of_rows(chosen) for layer, pattern in self._made[0].items()}
            self._owners = owners
        logits = self.predictor.logits(canvas, masked.to(device), attention)
        if not bool(logits.amax(-1).isfinite().all()):
            raise self.predictor.not_finite(f" ({phase} attention)")
        found = []
        for draw, part in zip(batch, logits.split([int(draw.masked.sum()) for draw in batch])):
            own = group[draw.question].answers[:, draw.masked]
            weight = draw.times * len(draw.masked) / int(draw.masked.sum()) / self._policy.steps
            right = (part.argmax(-1).cpu() == own).all(-1).tolist() if len(draw.masked) == 1 else []
            found.append((weight * _log_probability(part, own), right))
        if phase == "select":
            self._made.append(attention.layers)
        self._forwards[phase] += 1
        return found


def _different(question: int, masks: Tensor) -> Iterator[_Draw]:
    """The draws [n, answer_length], each once."""
    if len(masks):
        rows, times = masks.unique(dim=0, return_counts=True)
        yield from (_Draw(question, row, count) for row, count in zip(rows, times.tolist()))


def _log_probability(logits: Tensor, answers: Tensor) -> Tensor:
    """Σ log p of answers int64 [n, positions] under logits [positions, vocabulary]: float64 [n] on the CPU."""
    total = torch.zeros(len(answers), dtype=torch.float64)
    for part, tokens in zip(logits.split(_ROWS), answers.to(logits.device).split(_ROWS, dim=1)):
        wide = part.float()
        found = wide.gather(-1, tokens.T) - wide.logsumexp(-1, keepdim=True)
        total += found.cpu().double().sum(0)
    return total


def _seed(seed: int, question: _Question) -> int:
    """A seed for the question's draws, the same on every machine."""
    content = json.dumps([seed, question.context.tolist(), question.answers.tolist()]).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1


def _greedy(
    model: Model, group: Sequence[_Question], *, estimate: _Estimate, settings: ResolvedSampler
) -> tuple[list[list[bool]], RunInfo]:
    """Whether decoding one token a step, the surest first, gives each question's answer; and what that run was."""
    answers = torch.cat([question.answers for question in group])
    config, kernels = estimate.predictor.policy.config, estimate.predictor.kernels
    assert kernels is not None, "an estimate was made"
    run = denoise(
        model,
        torch.stack([question.context for question in group]),
        sampler=replace(settings, steps=answers.shape[1]),
        attention=config,
        backend="auto" if config.dense else kernels.name,
        dense_backend=kernels.dense.name,
    )
    still = torch.ones(len(answers), dtype=torch.bool)
    for step in run:
        still &= ((step.tokens == answers) | (step.tokens == model.mask_id)).all(-1)
        if not still.any():
            run.close()
    if run.finished:
        still &= (run.steps[-1].tokens == answers).all(-1)
    return [[yes] for yes in still.tolist()], run.info
