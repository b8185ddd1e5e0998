"""How the canvas is unmasked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from fractions import Fraction
from functools import partial
from typing import Any

from sparsed.config.rows import (
    BETWEEN,
    OFF_OR_MORE,
    check_each,
    check_set,
    choice,
    given,
    number,
    setting,
    switch,
    texts,
    whole,
    word,
)

LLADA_ALGORITHMS = ("low_confidence", "random")
DREAM_ALGORITHMS = ("origin", "maskgit_plus", "topk_margin", "entropy")
ALGORITHMS = LLADA_ALGORITHMS + DREAM_ALGORITHMS
CANVASES = ("fixed", "growing")
# Of steps and tokens: far beyond every model, and what a slip of the finger asks for would fill the memory.
_MOST = 2**20


def steps_of_blocks(steps: int, blocks: int) -> tuple[int, ...]:
    """How many of a run's `steps` each of its semi-autoregressive blocks gets: equally many, and where `blocks` does
    not divide them the first (steps mod blocks) blocks one more.
    """
    each, more = divmod(steps, blocks)
    return tuple(each + (number < more) for number in range(blocks))


@dataclass(frozen=True)
class SamplerConfig:
    """How the canvas is unmasked; fields that are None take the model's default.

    Raises ValueError, here for a value out of range and in `resolve` for values that do not fit together.
    """

    steps: int | None = setting(
        partial(whole, least=1, below=_MOST),
        "denoising steps of the whole run, shared out evenly over the semi-autoregressive blocks; where that leaves "
        "some over, the first blocks get one more",
        kind=int,
    )
    gen_length: int | None = setting(
        partial(whole, least=1, below=_MOST), "tokens to generate, rounded up to whole blocks", "--seq_len", kind=int
    )
    # Dream has one block, the whole generation, unless it decodes by threshold.
    block_length: int | None = setting(
        partial(whole, least=1, below=_MOST), "semi-autoregressive block length, in tokens", kind=int
    )
    # LLaDA's "low_confidence" commits the surest tokens first; Dream's "origin" each position by chance,
    # "maskgit_plus" the surest first, "topk_margin" the largest lead over the second best, "entropy" the lowest.
    algorithm: str | None = setting(
        partial(choice, choices=ALGORITHMS), ", ".join(ALGORITHMS), "--sampling-alg", kind=str
    )
    # LLaDA draws with Gumbel noise, Dream from the softmax.
    temperature: float | None = setting(OFF_OR_MORE, "0 takes the most likely token; above 0 draws")
    seed: int | None = setting(
        partial(whole, least=0, below=2**63), "of the run's own random generator, 0 to 2^63 - 1", kind=int
    )
    top_p: float | None = setting(
        partial(number, fits=lambda value: 0 < value <= 1, said="be above 0 and at most 1 (1 = off)"),
        "Dream: draw from the fewest tokens whose probabilities sum to this; 1 is off", dream=True,
    )  # fmt: skip
    top_k: int | None = setting(
        partial(whole, least=0), "Dream: draw from so many most likely tokens; 0 is off", kind=int, dream=True
    )
    # Positions are drawn by softmax(confidence / alg_temp).
    alg_temp: float | None = setting(
        OFF_OR_MORE, "Dream: temperature of the choice of positions; 0 is off", dream=True
    )
    eps: float | None = setting(BETWEEN, "Dream: end of the time schedule, above 0 and below 1", dream=True)
    # Every step also sees the canvas without its prompt.
    cfg_scale: float | None = setting(OFF_OR_MORE, "classifier-free guidance; 0 is off")
    # Fast-dLLM (arXiv 2505.22618): each step commits every position of the current semi-autoregressive block whose
    # confidence is above it, and at least the surest one. `steps` is then an upper bound, and confidence that of the
    # model's own distribution, whatever temperature, top_p and top_k make of the one that tokens are drawn from.
    threshold: float | None = setting(BETWEEN, "commit every position surer than this; off if not given")

    # LLaDA's own evaluation has these two (arXiv 2502.09992, appendix B.4): a model that was trained on padded answers
    # ends them early. The end token is the first of the model's; "last" is after everything else of the block.
    logits_eos_inf: bool | None = switch("never predict the end token (default no)")
    confidence_eos_eot_inf: bool | None = switch("commit tokens that end an answer last (default no)")
    # `steps` is then an upper bound as well.
    early_stop: bool | None = switch(
        "end a run as soon as every answer of its batch has its end token or a stop string, with nothing masked before "
        "it (default no)"
    )
    stop: tuple[str, ...] | None = setting(
        texts, "an answer's text ends before this; may be given several times", kind=str, many=True
    )

    # "growing" (iLLaDA): a semi-autoregressive block is appended when the one before it is done, so that a step sees
    # the prompt, what was written, and the masks of its own block. With early_stop a run then ends after a block.
    canvas: str | None = word(
        CANVASES, "fixed: every mask is there from the beginning; growing: those of a semi-autoregressive block are "
        "appended when the one before is done"
    )  # fmt: skip
    # iLLaDA: on the way to gen_length the next token of "</think>" gets ever more likely, at the block's first masked
    # position j: boost · ((j + 1) / gen_length) ^ power is added to its logit, until the text was written.
    end_think_boost: float | None = setting(
        OFF_OR_MORE, "push towards the end of thinking, </think>: what its logit gets at the end of the generation "
        "(published: 100); 0 is off"
    )  # fmt: skip
    end_think_power: float | None = setting(
        OFF_OR_MORE, "how late that push sets in: the power of the share of the generation that it grows with "
        "(default 3)"
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_each(SamplerConfig, self)

    def resolve(self, defaults: SamplerConfig) -> ResolvedSampler:
        """Every field with its own value, or that of `defaults`; threshold stays None when off. The one place where
        lengths and steps are decided, for every door.

        Where the algorithm is not of the family of `defaults`, only their steps, gen_length and seed are taken. With a
        threshold, the defaults draw nothing at random: temperature 0, no top_p, top_k, alg_temp, as in the public
        threshold code.

        Lengths: a generation is a whole number of semi-autoregressive blocks, to which gen_length is rounded up. Where
        block_length is not asked for it is the default, or the whole generation where that is shorter, where the
        defaults have one block for all, or for Dream's algorithms. Steps that are not asked for are as many a token as
        the defaults have, rounded up to equally many for each block; with a threshold gen_length, their upper bound.
        What differs from what was asked is said in `changed`.

        Raises ValueError if there are fewer steps than blocks, a setting does not belong to the algorithm or
        has no effect beside another, or `defaults` lack one.
        """
        usual = given(defaults)
        usual.pop("changed", None)
        dream = (self.algorithm or defaults.algorithm) in DREAM_ALGORITHMS
        if dream != (defaults.algorithm in DREAM_ALGORITHMS):
            usual |= {"block_length": None, "temperature": 0.0, "canvas": "fixed", **_DREAM_OFF}
        threshold = self.threshold if self.threshold is not None else defaults.threshold
        if threshold is not None:
            usual |= {"temperature": 0.0, **_DREAM_OFF}
        values = usual | given(self)
        if not values.keys() >= {"steps", "gen_length", "algorithm", "temperature", "seed"}:
            raise ValueError("A default is missing: the sampler's defaults must have every field set.")
        asked, usual_length = values["gen_length"], usual.get("gen_length")
        one_block = usual.get("block_length") in (None, usual_length) or dream
        block_length = self.block_length or (asked if one_block else min(usual["block_length"], asked))
        if dream and threshold is None:
            blocks, gen_length = 1, asked  # other block lengths are refused
        else:
            blocks = -(-asked // block_length)
            gen_length = blocks * block_length
        values |= {"gen_length": gen_length, "block_length": block_length}
        if self.gen_length not in (None, gen_length):
            values["changed"] = (
                *values.get("changed", ()),
                f"{gen_length} tokens are generated, not {asked}: whole semi-autoregressive blocks of {block_length}.",
            )
        if self.steps is None:
            a_block = Fraction(usual["steps"] * block_length, usual_length or asked)
            values["steps"] = gen_length if threshold is not None else blocks * math.ceil(a_block)
        return ResolvedSampler(**values)


@dataclass(frozen=True)
class ResolvedSampler(SamplerConfig):
    """A sampler whose every setting is known and fits the others; threshold alone is None when off.

    Raises ValueError as `SamplerConfig.resolve` does.
    """

    steps: int
    gen_length: int
    block_length: int
    algorithm: str
    temperature: float
    seed: int
    # What a model's defaults need not say is off.
    top_p: float = 1.0
    top_k: int = 0
    alg_temp: float = 0.0
    eps: float = 1e-3
    cfg_scale: float = 0.0
    threshold: float | None = None
    logits_eos_inf: bool = False
    confidence_eos_eot_inf: bool = False
    early_stop: bool = False
    stop: tuple[str, ...] = ()
    canvas: str = "fixed"
    end_think_boost: float = 0.0
    end_think_power: float = 3.0
    # Sentences: what `resolve` made of settings asked for that is not what was asked.
    changed: tuple[str, ...] = field(default=(), compare=False)

    @property
    def at_most(self) -> bool:
        """`steps` is an upper bound: a run ends when there is nothing left to do."""
        return self.threshold is not None or self.early_stop

    @property
    def blocks(self) -> int:
        """Semi-autoregressive blocks of the generation."""
        return self.gen_length // self.block_length

    @property
    def grows(self) -> bool:
        """Each block but the first is appended when the one before it is done."""
        return self.canvas == "growing" and self.blocks > 1

    @property
    def draws(self) -> bool:
        """Something in a run is left to chance, so that in a batch each row has another draw."""
        return bool(self.temperature or self.alg_temp or self.algorithm in ("random", "origin"))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_set(self, but=("threshold",))
        steps, gen_length, block_length = self.steps, self.gen_length, self.block_length
        if gen_length % block_length:
            raise ValueError(
                f"gen_length must be a multiple of block_length (the semi-autoregressive block length): "
                f"{gen_length} is not a multiple of {block_length}."
            )
        blocks = self.blocks
        if self.threshold is not None:
            if self.algorithm in ("origin", "entropy"):
                raise ValueError(
                    f"A threshold needs a confidence between 0 and 1, which {self.algorithm!r} does not give: choose "
                    f"'low_confidence', 'maskgit_plus' or 'topk_margin', or leave the threshold out."
                )
            for name in ("alg_temp", "eps"):
                if getattr(self, name) != _DREAM_OFF[name]:
                    raise ValueError(
                        f"{name} has no effect with a threshold, which decides how many positions a step commits: "
                        f"leave one of them out."
                    )
            if steps < gen_length:
                raise ValueError(
                    f"With a threshold, steps is an upper bound and must be at least gen_length ({gen_length}), "
                    f"because each step is only sure to commit one token; it is {steps}."
                )
        elif self.algorithm in DREAM_ALGORITHMS and blocks > 1:
            raise ValueError(
                f"block_length must be gen_length ({gen_length}) or unset for {self.algorithm!r}, not "
                f"{block_length}: Dream's algorithms unmask the whole generation at once."
            )
        elif steps < blocks:
            raise ValueError(
                f"steps must be at least the number of semi-autoregressive blocks, "
                f"gen_length / block_length = {blocks}: {steps} is less."
            )
        for name in ("alg_temp", "confidence_eos_eot_inf"):
            if self.algorithm == "origin" and getattr(self, name):
                raise ValueError(
                    f"{name} has no effect with 'origin', which commits positions by chance: leave it out."
                )
        if self.end_think_power != ResolvedSampler.end_think_power and not self.end_think_boost:
            raise ValueError("end_think_power has no effect without end_think_boost: leave it out.")
        if self.canvas == "growing" and self.algorithm in DREAM_ALGORITHMS and self.threshold is None:
            raise ValueError(
                f"canvas 'growing' appends semi-autoregressive blocks, which {self.algorithm!r} has with a threshold "
                f"alone: leave one of them out."
            )
        if self.algorithm in LLADA_ALGORITHMS:
            for name, off in _DREAM_OFF.items():
                if getattr(self, name) != off:
                    raise ValueError(
                        f"{name} belongs to Dream's algorithms ({', '.join(DREAM_ALGORITHMS)}), not to "
                        f"{self.algorithm!r}: leave it out."
                    )


_DREAM = [f.name for f in fields(SamplerConfig) if "dream" in f.metadata]
_DREAM_OFF: dict[str, Any] = {f.name: f.default for f in fields(ResolvedSampler) if f.name in _DREAM}
