"""What the visitor asks for, checked once, at the edge where it comes in."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from sparsed.config import DEFAULT_SKIP, SHORT_SELECT, SamplerConfig, SparseDConfig, switch_step

OWN_TEXT = "own"
MAX_STEPS = 1024
MAX_GENERATION = 1024
MAX_CHARACTERS = 2_000_000
BACKENDS = ("auto", "gather")


@dataclass(frozen=True)
class Request:
    """One race. kind: a question kind, or OWN_TEXT with `text` as the prompt. sampler: every field set.

    attention: fields that are None take the published default for the length; `resolve` fills them in.
    """

    model: str
    kind: str
    length: str
    question: int
    text: str
    sampler: SamplerConfig
    attention: SparseDConfig
    backend: str

    @property
    def steps(self) -> int:
        """Denoising steps of the whole run."""
        return self.sampler.steps or 0

    @property
    def gen_length(self) -> int:
        """Generated tokens."""
        return self.sampler.gen_length or 0

    @property
    def switch_step(self) -> int | None:
        """First sparse step, counted from 0; None if SparseD never becomes sparse."""
        skip = self.attention.skip
        return switch_step(self.steps, DEFAULT_SKIP if skip is None else skip)

    def resolve(self, tokens: int, model: Any) -> Request:
        """The request with every field of `attention` set, for a prompt of `tokens` tokens and a loaded model."""
        short = getattr(model, "short_select", SHORT_SELECT)
        return replace(self, attention=self.attention.resolve(tokens + self.gen_length, short))


def parse(
    *,
    model: Any,
    kind: Any,
    length: Any,
    question: Any,
    text: Any,
    steps: Any,
    gen_length: Any,
    block_length: Any,
    skip: Any,
    select: Any,
    block_size: Any,
    seed: Any,
    backend: Any,
    models: Collection[str],
    kinds: Collection[str],
    lengths: Collection[str],
) -> Request:
    """A `Request` from what the page sent; skip, select and block_size may be None for their defaults.

    Raises ValueError, one sentence, for what cannot be run.
    """
    model = _choice("model", model, models)
    kind = _choice("question", kind, [*kinds, OWN_TEXT])
    length = _choice("prompt length", length, lengths)
    backend = _choice("backend", backend, BACKENDS)
    question_number = _whole("question number", question, 0, 2**31 - 1)
    own = ""
    if kind == OWN_TEXT:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                "Your own text is empty: type or paste a prompt, or choose one of the questions."
            )
        if len(text) > MAX_CHARACTERS:
            raise ValueError(
                f"Your own text has {len(text):,} characters; this page takes up to {MAX_CHARACTERS:,}. Shorten it."
            )
        own = text
    step_count = _whole("steps", steps, 1, MAX_STEPS)
    generated = _whole("generation length", gen_length, 1, MAX_GENERATION)
    parallel = _whole("semi-autoregressive block length", block_length, 1, MAX_GENERATION)
    if generated % parallel:
        raise ValueError(
            f"The generation length ({generated}) must be a multiple of the semi-autoregressive block length "
            f"({parallel})."
        )
    if step_count % (generated // parallel):
        raise ValueError(
            f"Steps ({step_count}) must be a multiple of {generated // parallel}, the number of semi-autoregressive "
            f"blocks ({generated} tokens in blocks of {parallel})."
        )
    sampler = SamplerConfig(
        steps=step_count,
        gen_length=generated,
        block_length=parallel,
        temperature=0.0,
        seed=_whole("seed", seed, 0, 2**31 - 1),
    )
    attention = SparseDConfig(
        skip=None if skip is None else _number("skip", skip, 0.0, 1.0),
        select=None if select is None else _number("select", select, 0.01, 1.0),
        block_size=None if block_size is None else _whole("attention block size", block_size, 32, 128),
    )
    return Request(model, kind, length, question_number, own, sampler, attention, backend)


def notes(request: Request) -> list[str]:
    """Sentences to show before the run that follow from the settings alone."""
    if request.switch_step is None:
        return [
            f"This run never becomes sparse: {request.steps} steps with this skip are full attention to the end."
        ]
    return []


def _choice(name: str, value: Any, choices: Collection[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}…"
        raise ValueError(f"The {name} {shown} is not one of {', '.join(choices)}.")
    return value


def _number(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(
            f"The value of {name} must be a number between {low:g} and {high:g}, not {str(value)[:40]!r}."
        )
    if not low <= value <= high:
        raise ValueError(f"The value of {name} must lie between {low:g} and {high:g}, not {value:g}.")
    # The page sends numbers such as 0.30000000000000004; the engine takes decimals as written.
    return round(float(value), 4)


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, str) and value.strip().isdigit() and len(value) <= 12:
        value = int(value)
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value != int(value)
    ):
        raise ValueError(
            f"The value of {name} must be a whole number between {low} and {high}, not {str(value)[:40]!r}."
        )
    if not low <= value <= high:
        raise ValueError(f"The value of {name} must lie between {low} and {high}, not {int(value)}.")
    return int(value)
