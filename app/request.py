"""What the visitor asks for, checked once, at the edge where it comes in."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from sparsed.config import (
    ALGORITHMS,
    DEFAULT_SKIP,
    PATTERN_LABELS,
    SELECTIONS,
    SamplerConfig,
    SparseDConfig,
    switch_step,
)

OWN_TEXT = "own"
MAX_STEPS = 1024
MAX_GENERATION = 1024
MAX_CHARACTERS = 600_000
CPU_BACKENDS = ("auto", "gather")
BACKENDS = (*CPU_BACKENDS, "triton", "flash4", "flex")
# The patterns that a third lane may use, and no third lane.
BASELINES = {name: label for name, label in PATTERN_LABELS.items() if name != "sparsed"}
NO_BASELINE = "none"

# Settings that follow the model and the prompt length until the visitor sets them himself.
SAMPLER_FIELDS = (
    "steps", "gen_length", "block_length", "algorithm", "temperature", "threshold", "cfg_scale", "top_p",
)  # fmt: skip
FOLLOWING = (*SAMPLER_FIELDS, "select", "block_size")


@dataclass(frozen=True)
class Request:
    """One race. kind: a question kind, or OWN_TEXT with `text` as the prompt. sampler: every field set, but for
    threshold, which is None when off.

    attention: fields that are None take the published default for the length; `resolve` fills them in. track: select
    afresh at some later steps, outside the clock, to see how far the pattern would move. third: a third lane, with this
    pattern in place of SparseD's (one of BASELINES); None for two lanes.
    """

    model: str
    kind: str
    length: str
    question: int
    text: str
    sampler: SamplerConfig
    attention: SparseDConfig
    backend: str
    track: bool = False
    third: str | None = None

    @property
    def baseline(self) -> SparseDConfig | None:
        """The third lane's attention: SparseD's, but for the pattern. None for two lanes."""
        return None if self.third is None else replace(self.attention, pattern=self.third)

    @property
    def steps(self) -> int:
        """Denoising steps of the whole run, at most."""
        return self.sampler.steps or 0

    @property
    def gen_length(self) -> int:
        """Generated tokens."""
        return self.sampler.gen_length or 0

    @property
    def at_most(self) -> bool:
        """The run ends before its last step if nothing is masked any more."""
        return self.sampler.threshold is not None

    @property
    def rows(self) -> int:
        """Sequences in one forward: classifier-free guidance adds the canvas without its prompt."""
        return 2 if self.sampler.cfg_scale else 1

    @property
    def switch_step(self) -> int | None:
        """First sparse step, counted from 0; None if SparseD never becomes sparse."""
        skip = DEFAULT_SKIP if self.attention.skip is None else self.attention.skip
        return switch_step(self.steps, skip, self.attention.selection or "paper")

    def resolve(self, tokens: int) -> Request:
        """The request with every field of `attention` set, for a prompt of `tokens` tokens."""
        return replace(self, attention=self.attention.resolve(tokens + self.gen_length))


def parse(
    *,
    model: Any,
    kind: Any,
    length: Any,
    question: Any,
    text: Any,
    steps: Any = None,
    gen_length: Any = None,
    block_length: Any = None,
    algorithm: Any = None,
    temperature: Any = None,
    threshold: Any = None,
    cfg_scale: Any = None,
    top_p: Any = None,
    skip: Any = None,
    select: Any = None,
    block_size: Any = None,
    selection: Any = None,
    seed: Any,
    backend: Any,
    track: Any = False,
    third: Any = None,
    defaults: SamplerConfig,
    models: Collection[str],
    kinds: Collection[str],
    lengths: Collection[str],
) -> Request:
    """A `Request` from what the page sent. What may be None then follows the model's `defaults` and the length.

    threshold: 0 is off. third: NO_BASELINE or None for two lanes. A setting that the algorithm does not have (`unused`)
    is left out. Raises ValueError, one sentence, for what cannot be run.
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
        # Half a pair of surrogates is no character; tokenizers do not take it.
        own = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    sampler = SamplerConfig(
        steps=_whole("steps", steps, 1, MAX_STEPS, optional=True),
        gen_length=_whole("generation length", gen_length, 1, MAX_GENERATION, optional=True),
        block_length=_whole("semi-autoregressive block length", block_length, 1, MAX_GENERATION, optional=True),
        algorithm=None if algorithm is None else _choice("algorithm", algorithm, ALGORITHMS),
        temperature=_number("temperature", temperature, 0.0, 10.0),
        seed=_whole("seed", seed, 0, 2**31 - 1),
        top_p=_number("top-p", top_p, 0.01, 1.0),
        cfg_scale=_number("CFG scale", cfg_scale, 0.0, 100.0),
        threshold=_number("confidence threshold", threshold, 0.0, 1.0) or None,
    )
    sampler = replace(sampler, **dict.fromkeys(unused(sampler, defaults)))
    attention = SparseDConfig(
        skip=_number("skip", skip, 0.0, 1.0),
        select=_number("select", select, 0.01, 1.0),
        block_size=_whole("attention block size", block_size, 32, 128, optional=True),
        selection=None if selection is None else _choice("selection", selection, SELECTIONS),
    )
    baseline = None if third is None else _choice("third lane", third, [NO_BASELINE, *BASELINES])
    if baseline == "shared" and selection == "reference":
        raise ValueError(
            f"The third lane “{BASELINES['shared']}” needs the selection of the paper: the public code has none for it."
        )
    return Request(
        model,
        kind,
        length,
        question_number,
        own,
        sampler.resolve(defaults),
        attention,
        backend,
        bool(track),
        None if baseline == NO_BASELINE else baseline,
    )


# What a link says, and as what; of the settings that follow the model, those that the visitor has set.
_LINKED: dict[str, Callable[[str], Any]] = {
    "model": str, "kind": str, "length": str, "question": int, "text": str, "skip": float, "selection": str,
    "seed": int, "backend": str, "track": lambda value: value == "1", "third": str,
    "steps": int, "gen_length": int, "block_length": int, "algorithm": str, "temperature": float, "threshold": float,
    "cfg_scale": float, "top_p": float, "select": float, "block_size": int,
}  # fmt: skip
# Beyond it a link would break on its way; such a text is left out.
_LINKED_CHARACTERS = 1500


def link(given: Mapping[str, Any], touched: Collection[str]) -> str:
    """What the page's inputs hold as the query of a link that brings them back: "?model=mini&kind=about…"."""
    said = {}
    for name in _LINKED:
        value = given.get(name)
        if value is None or (name in FOLLOWING and name not in touched):
            continue
        if name == "text" and (given.get("kind") != OWN_TEXT or len(str(value)) > _LINKED_CHARACTERS):
            continue
        if name == "third" and value == NO_BASELINE:
            continue
        if name == "track":
            value = int(bool(value))
        said[name] = value
    return "?" + urlencode(said, errors="replace")


def from_link(query: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """(the inputs that a link's query sets, a sentence for each that cannot be read). Whether a value can be run is
    for `parse` to say; what a link does not know is left out.
    """
    values: dict[str, Any] = {}
    problems = []
    for name, read in _LINKED.items():
        if name not in query:
            continue
        try:
            value = read(query[name])
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError
            values[name] = value
        except ValueError:
            problems.append(f"The link's {name.replace('_', ' ')} {query[name][:40]!r} is no number: it is left out.")
    return values, problems


def unused(sampler: SamplerConfig, defaults: SamplerConfig) -> dict[str, str]:
    """The sampler's settings that its algorithm does not have → why, in a few words.

    Whether it has one is asked of the engine's own rules, with a value that suits everything else.
    """
    algorithm = sampler.algorithm or defaults.algorithm
    plain = SamplerConfig(steps=2, gen_length=2, algorithm=algorithm)

    def refused(**values: Any) -> bool:
        try:
            replace(plain, **values).resolve(defaults)
        except ValueError:
            return True
        return False

    found = {}
    if refused(threshold=0.9):
        found["threshold"] = f"Not with {algorithm}, whose confidence is no probability."
    threshold = None if "threshold" in found else sampler.threshold
    if refused(block_length=1, threshold=threshold):
        found["block_length"] = "Dream's algorithms unmask the whole at once."
    if refused(top_p=0.5):
        found["top_p"] = "Only Dream's algorithms have it."
    return found


def _choice(name: str, value: Any, choices: Collection[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"The {name} {repeated(value)} is not one of {', '.join(choices)}.")
    return value


def _number(name: str, value: Any, low: float, high: float) -> float | None:
    """None stays None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"The value of {name} must be a number between {low:g} and {high:g}, not {repeated(value)}.")
    # No NaN lies between two numbers; a whole number may be too large for everything but comparing.
    if not low <= value <= high:
        raise ValueError(f"The value of {name} must lie between {low:g} and {high:g}, not {repeated(value)}.")
    # The page sends numbers such as 0.30000000000000004; the engine takes decimals as written.
    return round(float(value), 4)


def _whole(name: str, value: Any, low: int, high: int, *, optional: bool = False) -> Any:
    if value is None and optional:
        return None
    if isinstance(value, str) and len(value) <= 12 and value.strip().isascii() and value.strip().isdigit():
        value = int(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole and not (isinstance(value, float) and value.is_integer()):
        raise ValueError(f"The value of {name} must be a whole number between {low} and {high}, not {repeated(value)}.")
    if not low <= value <= high:
        raise ValueError(f"The value of {name} must lie between {low} and {high}, not {repeated(value)}.")
    return int(value)


def repeated(value: Any) -> str:
    """A wrong value as it is repeated in a sentence: short, whatever it is."""
    if value is None:
        return "nothing"
    if isinstance(value, int) and abs(value) > 10**20:
        return "a number far beyond that"
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}" if abs(value) < 1e6 else f"{value:g}"
    shown = str(value) if isinstance(value, (int, float)) else repr(value if not isinstance(value, str) else value[:80])
    return shown if len(shown) <= 40 else f"{shown[:39]}…"
