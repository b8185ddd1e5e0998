"""What a visitor asks for, checked once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from app.lanes import LaneSpec, headline, lanes_for
from app.race.fields import BASELINES, BY_NAME, FIELDS, MAX_CHARACTERS, OWN_TEXT
from sparsed.config import AttentionConfig, ResolvedSampler, SamplerConfig, SparseDConfig


@dataclass(frozen=True)
class Request:
    """One race. kind: a question kind, or OWN_TEXT with `text` as the prompt.

    lanes: full attention first, then SparseD, then others; fields of their attentions that are None take the published
    default for the length, which `resolve` fills in. track: select afresh at some later steps, outside the clock, to
    see how far the pattern would move.
    """

    model: str
    kind: str
    length: str
    question: int
    text: str
    sampler: ResolvedSampler
    lanes: tuple[LaneSpec, ...]
    backend: str
    track: bool = False

    @property
    def headline(self) -> LaneSpec:
        """SparseD's lane."""
        found = headline(self.lanes)
        assert found is not None, "every request has a lane of SparseD"
        return found

    @property
    def attention(self) -> AttentionConfig:
        """SparseD's settings."""
        return self.headline.attention

    @property
    def steps(self) -> int:
        """Denoising steps of the whole run, at most."""
        return self.sampler.steps

    @property
    def gen_length(self) -> int:
        """Generated tokens."""
        return self.sampler.gen_length

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
        return self.headline.switch_step(self.steps)

    def resolve(self, tokens: int) -> Request:
        """The request with every setting of its lanes set, for a prompt of `tokens` tokens."""
        return replace(self, lanes=tuple(lane.resolve(tokens + self.gen_length) for lane in self.lanes))


def parse(
    *,
    defaults: SamplerConfig,
    models: Collection[str],
    kinds: Collection[str],
    lengths: Collection[str],
    **given: Any,
) -> Request:
    """A `Request` from what the page sent: `given` is one value for each name of the table (`app.race.fields`).

    What may be None, or is left out, then follows the model's `defaults` and the length; a setting that the algorithm
    does not have (`unused`) is left out. Raises ValueError, one sentence, for what cannot be run, and TypeError for a
    name that is not in the table.
    """
    if unknown := set(given) - set(BY_NAME):
        raise TypeError(f"The table of settings has no {', '.join(sorted(unknown))}.")
    known = {"model": models, "kind": [*kinds, OWN_TEXT], "length": lengths}
    values: dict[str, dict[str, Any]] = {"race": {}, "sampler": {}, "attention": {}}
    for field in FIELDS:
        values[field.home][field.name] = field.check(given.get(field.name), known.get(field.name))
    race = values["race"]
    race["text"] = _own_text(race["text"]) if race["kind"] == OWN_TEXT else ""
    sampler = SamplerConfig(**values["sampler"])
    sampler = replace(sampler, **dict.fromkeys(unused(sampler, defaults)))
    attention = SparseDConfig(**values["attention"])
    third = race.pop("third")
    if third == "shared" and attention.selection == "reference":
        raise ValueError(
            f"The third lane “{BASELINES['shared']}” needs the selection of the paper: the public code has none for it."
        )
    return Request(**race, sampler=sampler.resolve(defaults), lanes=lanes_for(attention, third))


def _own_text(text: Any) -> str:
    """A prompt of the visitor's own. Raises ValueError where there is none, or too much."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError("Your own text is empty: type or paste a prompt, or choose one of the questions.")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"Your own text has {len(text):,} characters; this page takes up to {MAX_CHARACTERS:,}. Shorten it."
        )
    # Half a pair of surrogates is no character; tokenizers do not take it.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def unused(sampler: SamplerConfig, defaults: SamplerConfig) -> dict[str, str]:
    """The sampler's settings that its algorithm does not have → why, in a few words.

    Whether it has one is asked of the engine's own rules, with a value that suits everything else.
    """
    algorithm, threshold = sampler.algorithm or defaults.algorithm, sampler.threshold
    plain = SamplerConfig(steps=2, gen_length=2, algorithm=algorithm)
    found: dict[str, str] = {}
    # The threshold first: with one, Dream has blocks too.
    for field in sorted(FIELDS, key=lambda field: field.name != "threshold"):
        if field.trial is None:
            continue
        tried: dict[str, Any] = {"threshold": threshold, field.name: field.trial}
        try:
            replace(plain, **tried).resolve(defaults)
        except ValueError:
            found[field.name] = field.lacking.format(algorithm=algorithm)
            if field.name == "threshold":
                threshold = None
    return found
