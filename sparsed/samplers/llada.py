"""LLaDA's sampler: semi-autoregressive blocks, low-confidence (or random) remasking.

Follows the published sampler. In particular it does not forbid the mask token as a prediction: a position
that is given the mask token simply stays masked. It keeps being eligible, in later blocks too, and if no
later step has room for it, it is still masked when the run ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsed.config import SamplerConfig
from sparsed.samplers import Commit


def schedule(steps: int, gen_length: int, block_length: int) -> tuple[int, ...]:
    """How many positions each of the `steps` steps commits.

    Each semi-autoregressive block gets the same number of steps; its positions are split evenly over them,
    the first `remainder` steps commit one more. (With more steps than positions, the last steps of a block
    commit none.)
    """
    steps_per_block = steps // (gen_length // block_length)
    base, remainder = divmod(block_length, steps_per_block)
    return tuple(base + (step % steps_per_block < remainder) for step in range(steps))


def propose(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """A token for each row of logits [n, vocabulary] → int64 [n].

    Temperature 0: the most likely token, of equals the lowest id. Above: argmax of exp(logits) / (−log
    u)^temperature with u uniform, in float64 (in lower precision the noise's tails distort the result).
    """
    if temperature == 0:
        return logits.argmax(-1)
    # The generator's device does the float64 work: not every device has float64.
    wide = logits.to(generator.device, torch.float64)
    uniform = torch.rand(wide.shape, dtype=torch.float64, device=generator.device, generator=generator)
    return (wide.exp() / (-uniform.log()) ** temperature).argmax(-1).to(logits.device)


def confidence_of(logits: Tensor, tokens: Tensor, algorithm: str, generator: torch.Generator) -> Tensor:
    """How sure the model is of tokens [n], float32 [n].

    "low_confidence": the token's softmax probability under the logits [n, vocabulary], without noise.
    "random": a uniform draw.
    """
    if algorithm == "random":
        return torch.rand(tokens.shape, device=generator.device, generator=generator).to(tokens.device)
    return logits.float().softmax(-1).gather(-1, tokens[:, None])[:, 0]


def surest(confidence: Tensor, count: int) -> Tensor:
    """Bool like confidence [batch, gen_length]: the `count` largest of each row, of equals the lowest
    position.

    Positions at −inf are never chosen, so a row may have fewer.
    """
    order = confidence.sort(dim=-1, descending=True, stable=True).indices[:, :count]
    chosen = torch.zeros_like(confidence, dtype=torch.bool).scatter_(-1, order, True)
    return chosen & (confidence > -torch.inf)


@dataclass(frozen=True)
class LLaDASampler:
    """LLaDA's sampler for one resolved config; see `sparsed.samplers.Sampler`."""

    config: SamplerConfig
    mask_id: int

    def _settings(self) -> tuple[int, int, int]:
        steps, gen_length, block_length = self.config.steps, self.config.gen_length, self.config.block_length
        assert steps is not None and gen_length is not None and block_length is not None
        return steps, gen_length, block_length

    def eligible(self, generation: Tensor, step: int) -> Tensor:
        """Masked positions up to the end of the step's semi-autoregressive block."""
        steps, gen_length, block_length = self._settings()
        block = step * (gen_length // block_length) // steps
        position = torch.arange(gen_length, device=generation.device)
        return (generation == self.mask_id) & (position < (block + 1) * block_length)

    def commit(
        self, generation: Tensor, eligible: Tensor, logits: Tensor, step: int, generator: torch.Generator
    ) -> Commit:
        """Commits the surest eligible positions of every row."""
        assert self.config.temperature is not None and self.config.algorithm is not None
        count = schedule(*self._settings())[step]
        proposed = propose(logits, self.config.temperature, generator)
        confidence = torch.full(generation.shape, -torch.inf, dtype=torch.float32, device=generation.device)
        confidence[eligible] = confidence_of(logits, proposed, self.config.algorithm, generator)
        candidates = generation.clone()
        candidates[eligible] = proposed
        written = surest(confidence, count)
        return Commit(
            tokens=torch.where(written, candidates, generation),
            written=written,
            confidence=torch.where(written, confidence, torch.nan),
        )
