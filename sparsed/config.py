"""What a run can be asked for: the sampler's settings and SparseD's settings.

Both configs are frozen and check each value when they are made. A field that is None means "the default";
`resolve` returns a copy with every field set and checks what depends on several fields. No torch here: these
are plain values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

LLADA_ALGORITHMS = ("low_confidence", "random")
DREAM_ALGORITHMS = ("origin", "maskgit_plus", "topk_margin", "entropy")
ALGORITHMS = LLADA_ALGORITHMS + DREAM_ALGORITHMS
SELECTIONS = ("paper", "reference")
PATTERN_LABELS = {
    "sparsed": "SparseD",
    "sliding_window": "Sliding window",
    "streaming_llm": "StreamingLLM",
    "random": "Random blocks",
    "shared": "One pattern for all heads",
}
PATTERNS = tuple(PATTERN_LABELS)
ON_NO_GAIN = ("sparse", "dense")
BLOCK_SIZES = (32, 64, 128)

# Settings that the paper publishes (section 4.1): short sequences keep more, smaller blocks.
LONG_SEQUENCE = 4000
DEFAULT_SKIP = 0.2
SHORT_SELECT, SHORT_BLOCK_SIZE = 0.5, 32
LONG_SELECT, LONG_BLOCK_SIZE = 0.3, 128


# Settings that only Dream's algorithms have, with the value that switches each off.
_DREAM_OFF: dict[str, Any] = {"top_p": 1.0, "top_k": 0, "alg_temp": 0.0, "eps": 1e-3}


def select_step(steps: int, skip: float, selection: str = "paper") -> int:
    """The step, counted from 0, whose queries and keys make the pattern. At or beyond `steps`: never reached.

    "paper": ⌈steps · skip⌉; the product takes `skip` as the decimal that is written (0.55 · 100 is 55).
    "reference": the public code's int(steps · skip) + 1, a product of binary floats.
    """
    if selection == "reference":
        return int(steps * skip) + 1
    return math.ceil(Fraction(str(skip)) * steps)


def switch_step(steps: int, skip: float, selection: str = "paper") -> int | None:
    """The first sparse step, counted from 0, or None if none of `steps` steps comes after the select step."""
    step = select_step(steps, skip, selection) + 1
    return step if step < steps else None


@dataclass(frozen=True)
class SamplerConfig:
    """How the canvas is unmasked; fields that are None take the model's default.

    steps: denoising steps of the whole run, at least 1; each semi-autoregressive block gets an equal share.
    gen_length: generated tokens, at least 1.
    block_length: tokens of one semi-autoregressive block; divides gen_length. Dream has one block, the whole
        generation, unless it decodes by threshold.
    algorithm: LLaDA's "low_confidence" (commit the surest tokens first) or "random"; Dream's "origin" (each
        position by chance), "maskgit_plus" (surest first), "topk_margin" (largest lead over the second best
        first) or "entropy" (lowest entropy first).
    temperature: 0 takes the most likely token; above 0 draws, LLaDA with Gumbel noise, Dream from the softmax.
    seed: of the run's own random generator, 0 … 2⁶³ − 1.
    top_p, top_k: Dream: draw from the fewest tokens whose probabilities sum to top_p (0 < top_p ≤ 1, 1 = off),
        from the top_k most likely (0 = off).
    alg_temp: Dream: above 0, the positions to commit are drawn, by softmax(confidence / alg_temp). 0 = off.
    eps: Dream: time at which the schedule ends, 0 < eps < 1.
    cfg_scale: classifier-free guidance, 0 = off; above, every step also sees the canvas without its prompt.
    threshold: None = off. Else 0 < threshold < 1, confidence-threshold decoding (Fast-dLLM): each step commits
        every position of the current block whose confidence is above it, and at least the surest one. `steps`
        is then an upper bound.

    Raises ValueError, here for a value out of range and in `resolve` for values that do not fit together.
    """

    steps: int | None = None
    gen_length: int | None = None
    block_length: int | None = None
    algorithm: str | None = None
    temperature: float | None = None
    seed: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    alg_temp: float | None = None
    eps: float | None = None
    cfg_scale: float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        _check_whole("steps", self.steps, least=1)
        _check_whole("gen_length", self.gen_length, least=1)
        _check_whole("block_length", self.block_length, least=1)
        _check_choice("algorithm", self.algorithm, ALGORITHMS)
        _check_at_least_0("temperature", self.temperature)
        _check_whole("seed", self.seed, least=0)
        if self.seed is not None and self.seed >= 2**63:
            raise ValueError(f"seed must be below 2^63, not {self.seed}.")
        _check_number("top_p", self.top_p)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1 (1 = off), not {self.top_p}.")
        _check_whole("top_k", self.top_k, least=0)
        _check_at_least_0("alg_temp", self.alg_temp)
        _check_between_0_and_1("eps", self.eps)
        _check_at_least_0("cfg_scale", self.cfg_scale)
        _check_between_0_and_1("threshold", self.threshold)

    def resolve(self, defaults: SamplerConfig) -> SamplerConfig:
        """A copy with every field set (threshold stays None when off): its own value, or that of `defaults`,
        which must be complete.

        Where the algorithm is not of the family of `defaults`, only their steps, gen_length and seed are
        taken. Defaults that do not suit a gen_length asked for give way to it: no more steps than tokens, a
        number that the blocks divide, and one block of the whole length where the default block_length does not
        divide it. Raises ValueError if
        block_length does not divide gen_length, the number of blocks does not divide steps, or a setting does
        not belong to the algorithm.
        """
        algorithm = _first(self.algorithm, defaults.algorithm)
        dream = algorithm in DREAM_ALGORITHMS
        if dream != (defaults.algorithm in DREAM_ALGORITHMS):
            defaults = replace(defaults, block_length=None, temperature=0.0, **_DREAM_OFF)
        gen_length = _first(self.gen_length, defaults.gen_length)
        usual_block = _first(defaults.block_length, gen_length)
        default_block = gen_length if gen_length % usual_block or dream else usual_block
        threshold = _first(self.threshold, defaults.threshold, 0.0) or None
        block_length = _first(self.block_length, default_block)
        most_steps = min(_first(defaults.steps), gen_length)
        if threshold is not None:
            most_steps = gen_length
        elif gen_length % block_length == 0:
            blocks = gen_length // block_length
            most_steps = max(blocks, most_steps // blocks * blocks)
        full = SamplerConfig(
            steps=_first(self.steps, most_steps),
            gen_length=gen_length,
            block_length=block_length,
            algorithm=algorithm,
            temperature=_first(self.temperature, defaults.temperature),
            seed=_first(self.seed, defaults.seed),
            top_p=_first(self.top_p, defaults.top_p, _DREAM_OFF["top_p"]),
            top_k=_first(self.top_k, defaults.top_k, _DREAM_OFF["top_k"]),
            alg_temp=_first(self.alg_temp, defaults.alg_temp, _DREAM_OFF["alg_temp"]),
            eps=_first(self.eps, defaults.eps, _DREAM_OFF["eps"]),
            cfg_scale=_first(self.cfg_scale, defaults.cfg_scale, 0.0),
            threshold=threshold,
        )
        full._check_together()
        return full

    def _check_together(self) -> None:
        """The rules that tie several fields of a resolved config."""
        steps, gen_length, block_length = _first(self.steps), _first(self.gen_length), _first(self.block_length)
        if gen_length % block_length:
            raise ValueError(
                f"gen_length must be a multiple of block_length (the semi-autoregressive block length): "
                f"{gen_length} is not a multiple of {block_length}."
            )
        blocks = gen_length // block_length
        if self.threshold is not None:
            if self.algorithm in ("origin", "entropy"):
                raise ValueError(
                    f"A threshold needs a confidence between 0 and 1, which {self.algorithm!r} does not give: choose "
                    f"'low_confidence', 'maskgit_plus' or 'topk_margin', or leave the threshold out."
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
        elif steps % blocks:
            raise ValueError(
                f"steps must be a multiple of the number of semi-autoregressive blocks, "
                f"gen_length / block_length = {blocks}: {steps} is not."
            )
        if self.algorithm in LLADA_ALGORITHMS:
            for name, off in _DREAM_OFF.items():
                if getattr(self, name) != off:
                    raise ValueError(
                        f"{name} belongs to Dream's algorithms ({', '.join(DREAM_ALGORITHMS)}), not to "
                        f"{self.algorithm!r}: leave it out."
                    )


@dataclass(frozen=True)
class SparseDConfig:
    """SparseD's settings; fields that are None take the published default for the length of the sequence.

    skip: share of the steps that use full attention before the pattern is made, 0 … 1 (default 0.2). select:
    share ρ of the key blocks kept on each side, above 0 and at most 1 (default 0.5 below 4000 tokens, else
    0.3). block_size: attention block size in tokens, 32, 64 or 128 (default 32 below 4000 tokens, else 128).
    selection: "paper", isolated selection as the paper defines it, or "reference", as the public code does
    it (see `sparsed.attention.selection.public_code`). keep_importance: keep the block importances in the pattern
    (float16, CPU memory). pattern: "sparsed", or a baseline that keeps as many blocks: "sliding_window",
    "streaming_llm", "random" or "shared", one pattern for all heads (see `sparsed.attention.selection.baselines`).
    isolated,
    reuse: the paper's ablations: without the one, prompt and generation blocks are ranked together; without the
    other, every sparse step makes its pattern anew. on_no_gain: what to do when the first sparse steps turn out no
    faster than the dense ones: stay "sparse" (default), or go back to "dense"; either way the run says so.

    Raises ValueError for a value out of range, select = 1 with "reference", or "reference" together with a setting
    that only the paper's selection has.
    """

    skip: float | None = None
    select: float | None = None
    block_size: int | None = None
    selection: str | None = None
    keep_importance: bool | None = None
    pattern: str | None = None
    on_no_gain: str | None = None
    isolated: bool | None = None
    reuse: bool | None = None

    def __post_init__(self) -> None:
        _check_number("skip", self.skip)
        if self.skip is not None and not 0 <= self.skip <= 1:
            raise ValueError(f"skip must lie between 0 and 1, not {self.skip}.")
        _check_number("select", self.select)
        if self.select is not None and not 0 < self.select <= 1:
            raise ValueError(f"select must be above 0 and at most 1, not {self.select}.")
        _check_choice("block_size", self.block_size, BLOCK_SIZES)
        _check_choice("selection", self.selection, SELECTIONS)
        if self.selection == "reference" and self.select == 1:
            raise ValueError(
                "select must be below 1 with selection 'reference': the public code keeps int(blocks · select) + 1 "
                "blocks, one more than there are."
            )
        _check_choice("keep_importance", self.keep_importance, (False, True))
        _check_choice("pattern", self.pattern, PATTERNS)
        _check_choice("isolated", self.isolated, (False, True))
        _check_choice("reuse", self.reuse, (False, True))
        if self.selection == "reference" and (self.isolated is False or self.pattern == "shared"):
            raise ValueError(
                "Selection 'reference' is the public code's own: isolated = False and pattern 'shared' need 'paper'."
            )
        _check_choice("on_no_gain", self.on_no_gain, ON_NO_GAIN)

    def resolve(self, length: int) -> SparseDConfig:
        """A copy with every field set, for a sequence of `length` tokens (prompt and generation together)."""
        long = length >= LONG_SEQUENCE
        defaults = SparseDConfig(
            skip=DEFAULT_SKIP,
            select=LONG_SELECT if long else SHORT_SELECT,
            block_size=LONG_BLOCK_SIZE if long else SHORT_BLOCK_SIZE,
            selection="paper",
            keep_importance=False,
            pattern="sparsed",
            isolated=True,
            reuse=True,
            on_no_gain="sparse",
        )
        unset = {f.name: getattr(defaults, f.name) for f in fields(self) if getattr(self, f.name) is None}
        return replace(self, **unset)


def same_importances(one: SparseDConfig | str, two: SparseDConfig | str) -> bool:
    """Whether the select steps of two runs of one prompt see the same importances: until then both did the same.

    Never so for "dense", which selects nothing.
    """
    if not isinstance(one, SparseDConfig) or not isinstance(two, SparseDConfig):
        return False
    return (one.skip, one.selection, one.block_size) == (two.skip, two.selection, two.block_size)


def _first(*values: Any) -> Any:
    """The first value that is not None."""
    for value in values:
        if value is not None:
            return value
    raise ValueError("A default is missing: the sampler's defaults must have every field set.")


def _check_whole(name: str, value: object, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be a whole number, not {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}.")


def _check_number(name: str, value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise ValueError(f"{name} must be a number, not {value!r}.")


def _check_at_least_0(name: str, value: Any) -> None:
    _check_number(name, value)
    if value is not None and not 0 <= value < math.inf:
        raise ValueError(f"{name} must be 0 or above and finite, not {value}.")


def _check_between_0_and_1(name: str, value: Any) -> None:
    _check_number(name, value)
    if value is not None and not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1, both excluded, not {value}.")


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    # Compared with type: 1 equals True, but is no answer to a yes-or-no question.
    if value is not None and not any(value == choice and type(value) is type(choice) for choice in choices):
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}, not {value!r}.")
