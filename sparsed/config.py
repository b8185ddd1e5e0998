"""What a run can be asked for: the sampler's settings and the attention's.

Both configs are frozen and check each value when they are made. A field that is None means "the default"; `resolve`
gives a `ResolvedSampler` or `ResolvedAttention`, where every field is set, and checks what depends on several fields.
A field's row is the one home of a setting: its type, what it means, its range and its names on a command line
(`sparsed.options`). No torch here: these are plain values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from fractions import Fraction
from functools import partial
from typing import Any

LLADA_ALGORITHMS = ("low_confidence", "random")
DREAM_ALGORITHMS = ("origin", "maskgit_plus", "topk_margin", "entropy")
ALGORITHMS = LLADA_ALGORITHMS + DREAM_ALGORITHMS
SELECTIONS = ("paper", "reference")
METHOD_LABELS = {
    "dense": "Full attention",
    "sparsed": "SparseD",
    "sliding_window": "Sliding window",
    "streaming_llm": "StreamingLLM",
    "random": "Random blocks",
    "shared": "One pattern for all heads",
}
METHODS = tuple(METHOD_LABELS)
ON_NO_GAIN = ("sparse", "dense")
BLOCK_SIZES = (32, 64, 128)

# Settings that the paper publishes (section 4.1): short sequences keep more, smaller blocks.
LONG_SEQUENCE = 4000
DEFAULT_SKIP = 0.2
SHORT_SELECT, SHORT_BLOCK_SIZE = 0.5, 32
LONG_SELECT, LONG_BLOCK_SIZE = 0.3, 128


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


def _whole(name: str, value: object, least: int, below: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be a whole number, not {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}.")
    if value >= below:
        raise ValueError(f"{name} must be below 2^{math.log2(below):.0f}, not {value}.")


def _number(name: str, value: Any, fits: Callable[[float], bool], said: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be a number, not {value!r}.")
    if not fits(value):
        raise ValueError(f"{name} must {said}, not {value}.")


def _choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    # Compared with type: 1 equals True, but is no answer to a yes-or-no question.
    if not any(value == choice and type(value) is type(choice) for choice in choices):
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}, not {value!r}.")


_AT_LEAST_0 = partial(_number, fits=lambda value: 0 <= value < math.inf, said="be 0 or above and finite")
_BETWEEN = partial(_number, fits=lambda value: 0 < value < 1, said="lie between 0 and 1, both excluded")


def _setting(check: Callable[[str, Any], None], help: str, *also: str, kind: type = float, **more: Any) -> Any:
    """The field of a setting; None unless `more` has a default.

    check: refuses a (name, value) out of range. also: further names on a command line. more, for a sampler: `dream`,
    only Dream's algorithms have it.
    """
    default = more.pop("default", None)
    return field(default=default, metadata={"check": check, "help": help, "also": also, "kind": kind, **more})


def _word(choices: tuple[str, ...], help: str, **more: Any) -> Any:
    """The field of a setting that is one of a few words, which a command line lists."""
    return _setting(partial(_choice, choices=choices), help, kind=str, choices=choices, **more)


def _switch(help: str) -> Any:
    """The field of a setting that is on or off."""
    return _setting(partial(_choice, choices=(False, True)), help, kind=bool)


def _given(config: Any) -> dict[str, Any]:
    """The fields of a config that are not None."""
    return {f.name: value for f in fields(config) if (value := getattr(config, f.name)) is not None}


def _check_each(config: type, values: Any) -> None:
    """The range of each field that is set, by the rows of the class `config`."""
    for row in fields(config):
        value = getattr(values, row.name)
        if value is not None:
            row.metadata["check"](row.name, value)


def _check_set(values: Any, but: tuple[str, ...] = ()) -> None:
    for row in fields(values):
        if getattr(values, row.name) is None and row.name not in but:
            raise ValueError(f"{row.name} is missing.")


@dataclass(frozen=True)
class SamplerConfig:
    """How the canvas is unmasked; fields that are None take the model's default.

    Raises ValueError, here for a value out of range and in `resolve` for values that do not fit together.
    """

    steps: int | None = _setting(
        partial(_whole, least=1),
        "denoising steps of the whole run; each semi-autoregressive block gets an equal share",
        kind=int,
    )
    gen_length: int | None = _setting(partial(_whole, least=1), "tokens to generate", "--seq_len", kind=int)
    # Dream has one block, the whole generation, unless it decodes by threshold.
    block_length: int | None = _setting(
        partial(_whole, least=1), "semi-autoregressive block length, in tokens; divides gen_length", kind=int
    )
    # LLaDA's "low_confidence" commits the surest tokens first; Dream's "origin" each position by chance,
    # "maskgit_plus" the surest first, "topk_margin" the largest lead over the second best, "entropy" the lowest.
    algorithm: str | None = _setting(
        partial(_choice, choices=ALGORITHMS), ", ".join(ALGORITHMS), "--sampling-alg", kind=str
    )
    # LLaDA draws with Gumbel noise, Dream from the softmax.
    temperature: float | None = _setting(_AT_LEAST_0, "0 takes the most likely token; above 0 draws")
    seed: int | None = _setting(
        partial(_whole, least=0, below=2**63), "of the run's own random generator, 0 to 2^63 - 1", kind=int
    )
    top_p: float | None = _setting(
        partial(_number, fits=lambda value: 0 < value <= 1, said="be above 0 and at most 1 (1 = off)"),
        "Dream: draw from the fewest tokens whose probabilities sum to this; 1 is off", dream=True,
    )  # fmt: skip
    top_k: int | None = _setting(
        partial(_whole, least=0), "Dream: draw from so many most likely tokens; 0 is off", kind=int, dream=True
    )
    # Positions are drawn by softmax(confidence / alg_temp).
    alg_temp: float | None = _setting(
        _AT_LEAST_0, "Dream: temperature of the choice of positions; 0 is off", dream=True
    )
    eps: float | None = _setting(_BETWEEN, "Dream: end of the time schedule, above 0 and below 1", dream=True)
    # Every step also sees the canvas without its prompt.
    cfg_scale: float | None = _setting(_AT_LEAST_0, "classifier-free guidance; 0 is off")
    # Fast-dLLM: each step commits every position of the current semi-autoregressive block whose confidence is above
    # it, and at least the surest one. `steps` is then an upper bound.
    threshold: float | None = _setting(_BETWEEN, "commit every position surer than this; off if not given")

    def __post_init__(self) -> None:
        _check_each(SamplerConfig, self)

    def resolve(self, defaults: SamplerConfig) -> ResolvedSampler:
        """Every field with its own value, or that of `defaults`; threshold stays None when off.

        Where the algorithm is not of the family of `defaults`, only their steps, gen_length and seed are taken.
        Defaults that do not suit a gen_length asked for give way to it: no more steps than tokens, a number that the
        blocks divide, and one block of the whole length where the default block_length does not divide it. Raises
        ValueError if block_length does not divide gen_length, the number of blocks does not divide steps, a setting
        does not belong to the algorithm, or `defaults` lack one.
        """
        usual = _given(defaults)
        dream = (self.algorithm or defaults.algorithm) in DREAM_ALGORITHMS
        if dream != (defaults.algorithm in DREAM_ALGORITHMS):
            usual |= {"block_length": None, "temperature": 0.0, **_DREAM_OFF}
        values = usual | _given(self)
        if not values.keys() >= {"steps", "gen_length", "algorithm", "temperature", "seed"}:
            raise ValueError("A default is missing: the sampler's defaults must have every field set.")
        gen_length = values["gen_length"]
        usual_block = usual.get("block_length") or gen_length
        default_block = gen_length if gen_length % usual_block or dream else usual_block
        values["block_length"] = block_length = self.block_length or default_block
        if self.steps is None and values.get("threshold") is not None:
            values["steps"] = gen_length
        elif self.steps is None:
            most = min(values["steps"], gen_length)
            blocks = gen_length // block_length
            values["steps"] = most if gen_length % block_length else max(blocks, most // blocks * blocks)
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

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_set(self, but=("threshold",))
        steps, gen_length, block_length = self.steps, self.gen_length, self.block_length
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


_DREAM = [f.name for f in fields(SamplerConfig) if "dream" in f.metadata]
_DREAM_OFF: dict[str, Any] = {f.name: f.default for f in fields(ResolvedSampler) if f.name in _DREAM}


@dataclass(frozen=True)
class AttentionConfig:
    """Which keys a query sees; fields that are None take the published default for the length of the sequence.

    Raises ValueError for a value out of range, select = 1 with selection "reference", "reference" together with a
    setting that only the paper's selection has, or a setting of sparse attention with method "dense".
    """

    # "dense": full attention in every step. "sparsed": SparseD. The others are baselines that keep as many blocks
    # (`sparsed.attention.selection.baselines`).
    method: str = _word(
        METHODS, "SparseD (default), full attention, or a baseline that keeps as much", default="sparsed"
    )
    skip: float | None = _setting(
        partial(_number, fits=lambda value: 0 <= value <= 1, said="lie between 0 and 1"),
        "share of the steps with full attention, before the pattern is made (default 0.2)",
    )
    select: float | None = _setting(
        partial(_number, fits=lambda value: 0 < value <= 1, said="be above 0 and at most 1"),
        f"share of the key blocks kept on each side (default 0.5 below {LONG_SEQUENCE} tokens, else 0.3)",
    )
    block_size: int | None = _setting(
        partial(_choice, choices=BLOCK_SIZES),
        f"attention block size: 32, 64 or 128 (default 32 below {LONG_SEQUENCE} tokens, else 128)",
        kind=int,
    )
    selection: str | None = _word(SELECTIONS, "as the paper defines it, or as the public code does it")
    keep_importance: bool | None = _switch("keep the block importances in the pattern (float16)")
    on_no_gain: str | None = _word(
        ON_NO_GAIN, "what follows when the first sparse steps turn out no faster than dense ones (default sparse)"
    )
    # Two ablations of the paper.
    isolated: bool | None = _switch("rank prompt and generation blocks apart (default yes)")
    reuse: bool | None = _switch("keep one pattern, instead of a new one in each step (default yes)")

    def __post_init__(self) -> None:
        _check_each(AttentionConfig, self)
        if self.selection == "reference" and self.select == 1:
            raise ValueError(
                "select must be below 1 with selection 'reference': the public code keeps int(blocks · select) + 1 "
                "blocks, one more than there are."
            )
        if self.selection == "reference" and (self.isolated is False or self.method == "shared"):
            raise ValueError(
                "Selection 'reference' is the public code's own: isolated = False and method 'shared' need 'paper'."
            )
        for name in _given(self) if self.dense else ():
            if name != "method":
                raise ValueError(f"{name} belongs to sparse attention: leave it out with attention=dense.")

    @property
    def dense(self) -> bool:
        """Every query sees every key in every step."""
        return self.method == "dense"

    def resolve(self, length: int) -> ResolvedAttention:
        """Every field with its own value or the default, for a sequence of `length` tokens (prompt and generation)."""
        if self.dense:
            return ResolvedAttention("dense", 1.0, 1.0, LONG_BLOCK_SIZE)
        long = length >= LONG_SEQUENCE
        usual = {
            "skip": DEFAULT_SKIP,
            "select": LONG_SELECT if long else SHORT_SELECT,
            "block_size": LONG_BLOCK_SIZE if long else SHORT_BLOCK_SIZE,
        }
        return ResolvedAttention(**usual | _given(self))


@dataclass(frozen=True)
class ResolvedAttention(AttentionConfig):
    """An attention whose every setting is known. "dense" is skip = 1, select = 1: it has no sparse step."""

    method: str
    skip: float
    select: float
    block_size: int
    selection: str = "paper"
    keep_importance: bool = False
    on_no_gain: str = "sparse"
    isolated: bool = True
    reuse: bool = True

    def __post_init__(self) -> None:
        _check_each(AttentionConfig, self)
        _check_set(self)


FULL_ATTENTION = AttentionConfig("dense")
# The documented name for SparseD: an AttentionConfig of method "sparsed", with the other fields in the same order.
SparseDConfig = partial(AttentionConfig, "sparsed")


def same_importances(one: AttentionConfig, two: AttentionConfig) -> bool:
    """Whether the select steps of two runs of one prompt see the same importances: until then both did the same.

    Never so for "dense", which selects nothing.
    """
    if one.dense or two.dense:
        return False
    return (one.skip, one.selection, one.block_size) == (two.skip, two.selection, two.block_size)
