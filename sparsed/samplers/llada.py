"""LLaDA's sampler: semi-autoregressive blocks, low-confidence (or random) remasking.

Follows the published sampler. In particular it does not forbid the mask token as a prediction: a position
that is given the mask token simply stays masked. It keeps being eligible, in later blocks too, and if no
later step has room for it, it is still masked when the run ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsed.config import steps_of_blocks
from sparsed.samplers.base import Sampler, surest


def schedule(steps: int, gen_length: int, block_length: int) -> tuple[int, ...]:
    """How many positions each of the `steps` steps commits.

    The positions of each semi-autoregressive block are split evenly over the steps that it gets, the first
    `remainder` of them commit one more. (With more steps than positions, the last steps of a block commit none.)
    """
    counts: list[int] = []
    for share in steps_of_blocks(steps, gen_length // block_length):
        base, remainder = divmod(block_length, share)
        counts += [base + (step < remainder) for step in range(share)]
    return tuple(counts)


def propose_tokens(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
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
        draw = torch.rand(tokens.shape, dtype=torch.float32, device=generator.device, generator=generator)
        return draw.to(tokens.device)
    return logits.float().softmax(-1).gather(-1, tokens[:, None])[:, 0]


@dataclass(frozen=True)
class LLaDASampler(Sampler):
    """LLaDA's sampler for one resolved config."""

    def _settings(self) -> tuple[int, int, int]:
        steps, gen_length, block_length = self.config.steps, self.config.gen_length, self.config.block_length
        return steps, gen_length, block_length

    def propose(self, logits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `propose_tokens` and `confidence_of`."""
        tokens = propose_tokens(logits, self.config.temperature, generator)
        return tokens, confidence_of(logits, tokens, self.config.algorithm, generator)

    def choose(self, confidence: Tensor, step: int, generator: torch.Generator) -> Tensor:
        """As many of the surest as the schedule says."""
        return surest(confidence, schedule(*self._settings())[step])
