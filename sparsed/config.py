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

ALGORITHMS = ("low_confidence", "random")
SELECTIONS = ("paper",)
PATTERNS = ("sparsed", "sliding_window")
BLOCK_SIZES = (32, 64, 128)

# Settings that the paper publishes (section 4.1): short sequences keep more, smaller blocks.
LONG_SEQUENCE = 4000
DEFAULT_SKIP = 0.2
SHORT_SELECT, SHORT_BLOCK_SIZE = 0.5, 32
LONG_SELECT, LONG_BLOCK_SIZE = 0.3, 128


def select_step(steps: int, skip: float) -> int:
    """The step, counted from 0, whose queries and keys make the pattern: ⌈steps · skip⌉.

    The product takes `skip` as the decimal that is written (0.55 · 100 is 55). At or beyond `steps`: never
    reached.
    """
    return math.ceil(Fraction(str(skip)) * steps)


def switch_step(steps: int, skip: float) -> int | None:
    """The first sparse step, counted from 0, or None if none of `steps` steps comes after the select step."""
    step = select_step(steps, skip) + 1
    return step if step < steps else None


@dataclass(frozen=True)
class SamplerConfig:
    """How the canvas is unmasked. LLaDA's sampler; fields that are None take the model's default.

    steps: denoising steps of the whole run, at least 1; each semi-autoregressive block gets an equal share.
    gen_length: generated tokens, at least 1.
    block_length: tokens of one semi-autoregressive block; divides gen_length.
    algorithm: "low_confidence" (commit the surest tokens first) or "random".
    temperature: 0 takes the most likely token; above 0 adds Gumbel noise.
    seed: of the run's own random generator, 0 … 2⁶³ − 1.

    Raises ValueError, here for a value out of range and in `resolve` for values that do not fit together.
    """

    steps: int | None = None
    gen_length: int | None = None
    block_length: int | None = None
    algorithm: str | None = None
    temperature: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_whole("steps", self.steps, least=1)
        _check_whole("gen_length", self.gen_length, least=1)
        _check_whole("block_length", self.block_length, least=1)
        _check_choice("algorithm", self.algorithm, ALGORITHMS)
        _check_number("temperature", self.temperature)
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be 0 or above and finite, not {self.temperature}.")
        _check_whole("seed", self.seed, least=0)
        if self.seed is not None and self.seed >= 2**63:
            raise ValueError(f"seed must be below 2^63, not {self.seed}.")

    def resolve(self, defaults: SamplerConfig) -> SamplerConfig:
        """A copy with every field set: its own value, or the one of `defaults` (which must be complete).

        Defaults that do not suit a gen_length asked for give way to it: no more steps than tokens, and one
        block of the whole length where the default block_length does not divide it. Raises ValueError if
        block_length does not divide gen_length, or the number of blocks does not divide steps.
        """
        gen_length = _first(self.gen_length, defaults.gen_length)
        usual_block = _first(defaults.block_length)
        default_block = gen_length if gen_length % usual_block else usual_block
        full = SamplerConfig(
            steps=_first(self.steps, min(_first(defaults.steps), gen_length)),
            gen_length=gen_length,
            block_length=_first(self.block_length, default_block),
            algorithm=_first(self.algorithm, defaults.algorithm),
            temperature=_first(self.temperature, defaults.temperature),
            seed=_first(self.seed, defaults.seed),
        )
        steps, block_length = _first(full.steps), _first(full.block_length)
        if gen_length % block_length:
            raise ValueError(
                f"gen_length must be a multiple of block_length (the semi-autoregressive block length): "
                f"{gen_length} is not a multiple of {block_length}."
            )
        blocks = gen_length // block_length
        if steps % blocks:
            raise ValueError(
                f"steps must be a multiple of the number of semi-autoregressive blocks, "
                f"gen_length / block_length = {blocks}: {steps} is not."
            )
        return full


@dataclass(frozen=True)
class SparseDConfig:
    """SparseD's settings; fields that are None take the published default for the length of the sequence.

    skip: share of the steps that use full attention before the pattern is made, 0 … 1 (default 0.2). select:
    share ρ of the key blocks kept on each side, above 0 and at most 1 (default 0.5 below 4000 tokens, else
    0.3). block_size: attention block size in tokens, 32, 64 or 128 (default 32 below 4000 tokens, else 128).
    selection: "paper", isolated selection as the paper defines it. keep_importance: keep the block
    importances in the pattern (float16, CPU memory). pattern: "sparsed", or the baseline "sliding_window"
    with the same number of kept blocks.

    Raises ValueError for a value out of range.
    """

    skip: float | None = None
    select: float | None = None
    block_size: int | None = None
    selection: str | None = None
    keep_importance: bool | None = None
    pattern: str | None = None

    def __post_init__(self) -> None:
        _check_number("skip", self.skip)
        if self.skip is not None and not 0 <= self.skip <= 1:
            raise ValueError(f"skip must lie between 0 and 1, not {self.skip}.")
        _check_number("select", self.select)
        if self.select is not None and not 0 < self.select <= 1:
            raise ValueError(f"select must be above 0 and at most 1, not {self.select}.")
        _check_choice("block_size", self.block_size, BLOCK_SIZES)
        _check_choice("selection", self.selection, SELECTIONS)
        _check_choice("keep_importance", self.keep_importance, (False, True))
        _check_choice("pattern", self.pattern, PATTERNS)

    def resolve(self, length: int, short_select: float = SHORT_SELECT) -> SparseDConfig:
        """A copy with every field set, for a sequence of `length` tokens (prompt and generation together).

        short_select: the model's default `select` below 4000 tokens.
        """
        long = length >= LONG_SEQUENCE
        defaults = SparseDConfig(
            skip=DEFAULT_SKIP,
            select=LONG_SELECT if long else short_select,
            block_size=LONG_BLOCK_SIZE if long else SHORT_BLOCK_SIZE,
            selection="paper",
            keep_importance=False,
            pattern="sparsed",
        )
        unset = {f.name: getattr(defaults, f.name) for f in fields(self) if getattr(self, f.name) is None}
        return replace(self, **unset)


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


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    # Compared with type: 1 equals True, but is no answer to a yes-or-no question.
    if value is not None and not any(value == choice and type(value) is type(choice) for choice in choices):
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}, not {value!r}.")
