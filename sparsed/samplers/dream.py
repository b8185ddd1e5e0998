"""Dream's sampler: a schedule in continuous time, over the whole generation at once.

Time runs from 1 down to eps in equal steps; of the positions still masked at time t, the share 1 − s/t is
committed on the way to time s, the next one. Logits come in already shifted (position i is predicted by
i − 1): that belongs to the model, see `shift` of `sparsed.models.model.Model`. As in LLaDA's sampler, a position
that is given the mask token stays masked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsed.samplers.base import Sampler, surest


def times(steps: int, eps: float) -> Tensor:
    """The steps + 1 times from 1 to eps, float32 on the CPU."""
    # The dtype is named everywhere: while transformers loads a model, torch's default is the model's, in all threads.
    return torch.linspace(1, eps, steps + 1, dtype=torch.float32)


def transfer_share(step: int, steps: int, eps: float) -> Tensor:
    """Share of the masked positions to commit at a step, a float32 number; 1 at the last step."""
    if step == steps - 1:
        return torch.tensor(1.0, dtype=torch.float32)
    time = times(steps, eps)
    return 1 - time[step + 1] / time[step]


def probabilities(logits: Tensor, temperature: float, top_p: float, top_k: int) -> Tensor:
    """The distribution to draw from, float32 like logits [n, vocabulary].

    In this order: logits / temperature (unless 0); only the fewest tokens whose probabilities reach top_p
    together; only the top_k most likely (ties with the last of them stay); softmax.
    """
    logits = logits.float()
    if temperature > 0:
        logits = logits / temperature
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        # A token goes if those before it have passed top_p already; so the first always stays.
        before = ordered.softmax(-1).cumsum(-1).roll(1, -1)
        before[..., 0] = 0
        gone = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, order, before > top_p)
        logits = logits.masked_fill(gone, -torch.inf)
    if top_k > 0:
        last = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < last, -torch.inf)
    return logits.softmax(-1)


def confidence_of(chances: Tensor, tokens: Tensor, algorithm: str) -> Tensor:
    """Confidence float32 [n] in tokens [n] under chances [n, vocabulary].

    "topk_margin": the lead of the most likely token over the second. "entropy": Σ p·log(p + 1e-10), the
    negative entropy. Otherwise the token's probability.
    """
    if algorithm == "topk_margin":
        best = chances.topk(2, dim=-1).values
        return best[..., 0] - best[..., 1]
    if algorithm == "entropy":
        return (chances * (chances + 1e-10).log()).sum(-1)
    return chances.gather(-1, tokens[:, None])[:, 0]


def draw(weights: Tensor, count: Tensor, generator: torch.Generator) -> Tensor:
    """Bool like weights [batch, gen_length]: positions drawn one after the other without replacement, each with
    chance proportional to exp(weight). −inf is never drawn. count: int64 [batch, 1].

    The largest sums of weight and Gumbel noise are such a draw, with no exp to underflow.
    """
    noise = torch.rand(weights.shape, dtype=torch.float64, device=generator.device, generator=generator)
    keys = weights.to(generator.device, torch.float64) - (-noise.log()).log()
    return surest(keys, count.to(generator.device)).to(weights.device)


@dataclass(frozen=True)
class DreamSampler(Sampler):
    """Dream's sampler for one resolved config."""

    def propose(self, logits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The most likely tokens at temperature 0, else a draw; confidence as the algorithm defines it.

        With a threshold it is confidence under the model's own distribution: after temperature 0.05 and top-p 0.95
        nearly every draw would be sure.
        """
        config = self.config
        chances = probabilities(logits, config.temperature, config.top_p, config.top_k)
        if config.temperature > 0 and len(chances):
            tokens = torch.multinomial(chances.to(generator.device), 1, generator=generator)[:, 0].to(chances.device)
        else:
            tokens = chances.argmax(-1)
        if config.threshold is not None:
            chances = logits.float().softmax(-1)
        return tokens, confidence_of(chances, tokens, config.algorithm)

    def choose(self, confidence: Tensor, step: int, generator: torch.Generator) -> Tensor:
        """Positions by chance ("origin"), the surest, or (alg_temp > 0) drawn by confidence."""
        config = self.config
        share = transfer_share(step, config.steps, config.eps)
        masked = confidence > -torch.inf
        if config.algorithm == "origin":
            # One number for each masked position, in order.
            count = int(masked.sum())
            chance = torch.rand(count, dtype=torch.float32, device=generator.device, generator=generator)
            chosen = torch.zeros_like(masked)
            chosen[masked] = (chance < share.to(chance.device)).to(masked.device)
            return chosen
        counts = (masked.sum(-1, keepdim=True) * share.to(masked.device)).long()
        if config.alg_temp > 0:
            return draw(confidence / config.alg_temp, counts, generator)
        return surest(confidence, counts)
