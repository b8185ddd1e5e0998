"""Which keys a query sees."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import accumulate
from typing import Literal

from sparsed.config.rows import check_each, check_set, choice, given, number, setting, switch, whole, word
from sparsed.config.sampler import steps_of_blocks

Phase = Literal["dense", "select", "sparse"]

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
GENERATION_ROWS = ("pattern", "full")

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


def switch_step(
    steps: int, skip: float, selection: str = "paper", refresh: int = 0, blocks: int = 1, grows: bool = False
) -> int | None:
    """The first sparse step, counted from 0, or None if none of `steps` steps is.

    refresh, blocks, grows: see `phases_of`.
    """
    planned = phases_of(steps, skip, selection, refresh, blocks, grows)
    return next((step for step, phase in enumerate(planned) if phase == "sparse"), None)


def phases_of(
    steps: int, skip: float, selection: str = "paper", refresh: int = 0, blocks: int = 1, grows: bool = False
) -> tuple[Phase, ...]:
    """The phase of each of `steps` steps: "dense", "select" (full attention that makes the pattern), "sparse".

    refresh: 0, or a step also selects when so many have been made since the last selection, and where one of the
    semi-autoregressive `blocks` begins. grows: each block makes the canvas longer, for which a pattern of its own is
    made where it begins.
    """
    first = select_step(steps, skip, selection)
    begins = {0, *accumulate(steps_of_blocks(steps, blocks))}
    phases: list[Phase] = []
    selected = first
    for step in range(steps):
        fresh = step == first or (
            step > first
            and ((refresh > 0 and step - selected >= refresh) or ((grows or refresh > 0) and step in begins))
        )
        selected = step if fresh else selected
        phases.append("select" if fresh else "dense" if step < first else "sparse")
    return tuple(phases)


@dataclass(frozen=True)
class AttentionConfig:
    """Which keys a query sees; fields that are None take the published default for the length of the sequence.

    Raises ValueError for a value out of range, select = 1 with selection "reference", "reference" together with a
    setting that only the paper's selection has, or a setting of sparse attention with method "dense".
    """

    # "dense": full attention in every step. "sparsed": SparseD. The others are baselines that keep as many blocks
    # (`sparsed.attention.selection.baselines`).
    method: str = word(
        METHODS, "SparseD (default), full attention, or a baseline that keeps as much", default="sparsed"
    )
    skip: float | None = setting(
        partial(number, fits=lambda value: 0 <= value <= 1, said="lie between 0 and 1"),
        "share of the steps with full attention, before the pattern is made (default 0.2)",
    )
    select: float | None = setting(
        partial(number, fits=lambda value: 0 < value <= 1, said="be above 0 and at most 1"),
        f"share of the key blocks kept on each side (default 0.5 below {LONG_SEQUENCE} tokens, else 0.3)",
    )
    block_size: int | None = setting(
        partial(choice, choices=BLOCK_SIZES),
        f"attention block size: 32, 64 or 128 (default 32 below {LONG_SEQUENCE} tokens, else 128)",
        kind=int,
    )
    selection: str | None = word(SELECTIONS, "as the paper defines it, or as the public code does it")
    keep_importance: bool | None = switch("keep the block importances in the pattern (float16)")
    on_no_gain: str | None = word(
        ON_NO_GAIN, "what follows when the first sparse steps turn out no faster than dense ones (default sparse)"
    )
    # Two ablations of the paper.
    isolated: bool | None = switch("rank prompt and generation blocks apart (default yes)")
    reuse: bool | None = switch("keep one pattern, instead of a new one in each step (default yes)")
    # Two settings of ours. "full": in sparse steps every query block that holds a generation position sees all keys.
    generation_rows: str | None = word(
        GENERATION_ROWS, "what the generation's rows see in sparse steps: their pattern (the paper), or every key"
    )
    refresh: int | None = setting(
        partial(whole, least=0),
        "make a fresh pattern every so many steps, and where a semi-autoregressive block begins (default 0: never, "
        "the paper)",
        kind=int,
    )

    def __post_init__(self) -> None:
        check_each(AttentionConfig, self)
        if self.refresh and self.reuse is False:
            raise ValueError("Without reuse every sparse step makes its own pattern: leave refresh out.")
        if self.refresh == 1:
            raise ValueError("With refresh = 1 every step would have full attention: give 2 or more, or 0 (off).")
        if self.selection == "reference" and self.select == 1:
            raise ValueError(
                "select must be below 1 with selection 'reference': the public code keeps int(blocks · select) + 1 "
                "blocks, one more than there are."
            )
        if self.selection == "reference" and (self.isolated is False or self.method == "shared"):
            raise ValueError(
                "Selection 'reference' is the public code's own: isolated = False and method 'shared' need 'paper'."
            )
        for name in given(self) if self.dense else ():
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
        return ResolvedAttention(**usual | given(self))


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
    generation_rows: str = "pattern"
    refresh: int = 0

    def __post_init__(self) -> None:
        check_each(AttentionConfig, self)
        check_set(self)


FULL_ATTENTION = AttentionConfig("dense")
# The documented name for SparseD: an AttentionConfig of method "sparsed", with the other fields in the same order.
SparseDConfig = partial(AttentionConfig, "sparsed")
RECOMMENDED = SparseDConfig(skip=0, select=0.2, generation_rows="full")
"""The setting that this project recommends: the generation's rows see every key, the prompt's follow a pattern of a
fifth of the blocks that is made in the first step.

The evidence is an evaluation of mini at 4k, nine kinds of questions: of the settings asked, the fastest one within 1
point of full attention on the mean and within 3 on each kind (`sparsed.evaluation.recommend`), about one small model.
``python -m sparsed eval --report --recommend`` says it again of a folder of answers, with its intervals.
"""
PRESETS = {"published": SparseDConfig(), "recommended": RECOMMENDED}
"""Settings of SparseD by name: the paper's, and ours."""


def as_attention(asked: AttentionConfig | Literal["dense"] | None) -> AttentionConfig:
    """What a caller of the package may write for an attention, as the one type behind its doors. Raises ValueError."""
    if asked is None:
        return SparseDConfig()
    if asked == "dense":
        return FULL_ATTENTION
    if not isinstance(asked, AttentionConfig):
        raise ValueError(f"attention must be a SparseDConfig or 'dense', not {asked!r}.")
    return asked


def same_importances(one: AttentionConfig, two: AttentionConfig) -> bool:
    """Whether the select steps of two runs of one prompt see the same importances: until then both did the same.

    Never so for "dense", which selects nothing.
    """
    if one.dense or two.dense:
        return False
    if one.refresh or two.refresh:
        return False  # the last selection's are kept, and by then the runs differ
    return (one.skip, one.selection, one.block_size) == (two.skip, two.selection, two.block_size)
