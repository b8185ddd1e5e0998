"""What the samplers share: from proposed tokens to the next canvas.

LLaDA's and Dream's samplers differ in how they propose tokens and in how many positions they choose; what
they share is here, confidence-threshold decoding (Fast-dLLM) included.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from sparsed.config import ResolvedSampler, steps_of_blocks


@dataclass(frozen=True, eq=False)
class Commit:
    """What one step writes into the generation part of the canvas. All tensors are [batch, gen_length].

    tokens: int64, the new canvas. written: bool, True where this step wrote a token. confidence: float32, the
    confidence of the token where `written`, NaN elsewhere.
    """

    tokens: Tensor
    written: Tensor
    confidence: Tensor


# A confidence below every other, and yet a candidate; divided by a temperature it stays finite.
_LAST = -1e30


@dataclass(frozen=True)
class Sampler(ABC):
    """One run's sampler. config: resolved. end_ids: every token that ends an answer, the end token first.
    end_think_ids: the tokens of the text that ends thinking. It holds settings, never state: what it needs comes in
    with the call.

    generation: int64 [batch, gen_length]; of a canvas that grows, all of it, what is not there yet as masks.
    """

    config: ResolvedSampler
    mask_id: int
    end_ids: tuple[int, ...] = ()
    end_think_ids: tuple[int, ...] = ()

    @abstractmethod
    def propose(self, logits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens int64 [n] for logits [n, vocabulary], and the confidence in each, float32 [n]."""

    @abstractmethod
    def choose(self, confidence: Tensor, step: int, generator: torch.Generator) -> Tensor:
        """Bool like confidence [batch, gen_length] (−inf: no candidate): the positions to commit."""

    def eligible(self, generation: Tensor, step: int) -> Tensor:
        """Bool [batch, gen_length]: the positions whose logits `commit` needs at this step.

        Masked ones up to the end of the current block: what was given the mask token stays eligible in later blocks.
        (With a threshold there are none before the current block.)
        """
        _start, end = self.block(generation, step)
        position = torch.arange(generation.shape[1], device=generation.device)
        return (generation == self.mask_id) & (position < end)

    def block(self, generation: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The current semi-autoregressive block of each row: its first position, and one past its last, both int64
        [batch, 1] within the generation.

        Each block has its share of the steps (`steps_of_blocks`). With a threshold it is the row's first block that is
        not done, so that rows may differ; of a row that is done, an empty one at the end.
        """
        batch, gen_length = generation.shape
        blocks, block_length = self.config.blocks, self.config.block_length
        if self.config.threshold is None:
            ends = list(accumulate(steps_of_blocks(self.config.steps, blocks)))
            number = torch.full((batch, 1), bisect(ends, step), device=generation.device)
        else:
            done = (generation != self.mask_id).view(batch, blocks, block_length).all(-1)
            number = done.long().cumprod(-1).sum(-1, keepdim=True)
        start = number * block_length
        return start, (start + block_length).clamp(max=gen_length)

    def commit(
        self, generation: Tensor, eligible: Tensor, logits: Tensor, step: int, generator: torch.Generator
    ) -> Commit:
        """The canvas after this step. logits: [eligible positions, vocabulary], row by row of `eligible`."""
        if self.config.end_think_boost and self.end_think_ids:
            logits = self._boosted(generation, eligible, logits, step)
        if self.config.logits_eos_inf:
            end = torch.tensor(self.end_ids[:1], device=logits.device)
            logits = logits.index_fill(-1, end, -torch.inf)
        proposed, sure = self.propose(logits, generator)
        confidence = torch.full(generation.shape, -torch.inf, dtype=torch.float32, device=generation.device)
        confidence[eligible] = sure
        candidates = generation.clone()
        candidates[eligible] = proposed
        order = confidence
        if self.config.confidence_eos_eot_inf:
            ends = torch.isin(candidates, torch.tensor(self.end_ids, device=candidates.device))
            order = confidence.masked_fill(eligible & ends, _LAST)
        if self.config.threshold is None:
            written = self.choose(order, step, generator)
        else:
            written = surest(order, 1) | (order > self.config.threshold)
        return Commit(
            tokens=torch.where(written, candidates, generation),
            written=written,
            confidence=torch.where(written, confidence, torch.nan),
        )

    def _boosted(self, generation: Tensor, eligible: Tensor, logits: Tensor, step: int) -> Tensor:
        """Logits with what `end_think_boost` adds: in each row that has not ended thinking, to one token at the first
        masked position of the current block.
        """
        config, logits = self.config, logits.clone()
        starts, ends = (side[:, 0].tolist() for side in self.block(generation, step))
        line = 0  # of the row's first logits
        for tokens, asked, start, end in zip(generation.tolist(), eligible.tolist(), starts, ends):
            place = next((place for place in range(start, end) if asked[place]), None)
            if place is not None and not _holds(tokens, self.end_think_ids):
                boost = config.end_think_boost * ((place + 1) / config.gen_length) ** config.end_think_power
                logits[line + sum(asked[:place]), _next_of(self.end_think_ids, tokens[:place])] += boost
            line += sum(asked)
        return logits


def _holds(tokens: list[int], text: tuple[int, ...]) -> bool:
    return any(tuple(tokens[first : first + len(text)]) == text for first in range(len(tokens) - len(text) + 1))


def _next_of(text: tuple[int, ...], before: list[int]) -> int:
    """The token of a text that is due after `before`, as much of it as stands at the end of that."""
    written = (count for count in range(len(text) - 1, 0, -1) if tuple(before[-count:]) == text[:count])
    return text[next(written, 0)]


def surest(confidence: Tensor, count: int | Tensor) -> Tensor:
    """Bool like confidence [batch, gen_length]: the `count` (of all rows, or int64 [batch, 1]) largest of each
    row, of equals the lowest position.

    Positions at −inf are never chosen, so a row may have fewer.
    """
    order = confidence.sort(dim=-1, descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )
    return (rank < count) & (confidence > -torch.inf)
