"""What a visitor asks for, checked once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from app.lanes import MOST_FURTHER, USUAL_CACHES, CacheSettings, LaneSpec, headline, idle_caches, lanes_for
from app.race.checks import Turns, as_messages
from app.race.fields import BY_NAME, FIELDS, MAX_CHARACTERS, MAX_GENERATION, OWN_TEXT
from sparsed.config import METHOD_LABELS, AttentionConfig, ResolvedSampler, SamplerConfig, SparseDConfig
from sparsed.models.chat import Message, messages_of

# Why what belongs to a text of the visitor's own has no effect.
ASKED_A_QUESTION = "It belongs to a text of your own, and one of the questions is asked."
OF_OWN_TEXT = ("text", "system", "history")


@dataclass(frozen=True)
class Request:
    """One race. kind: a question kind, or OWN_TEXT with `text` as the prompt.

    lanes: full attention first, then SparseD, then others; fields of their attentions that are None take the published
    default for the length, which `resolve` fills in. track: select afresh at some later steps, outside the clock, to
    see how far the pattern would move. system: the system prompt before a text of the visitor's own, or "".
    history: what was said before such a text, the visitor's turns and the answers; it needs a chat template. chat: the
    prompt goes through the model's chat template (None: where it has one), or is raw text. caches: of the lanes with
    one, as far as they have them. left_out: sentences on what was asked for and would have no effect.
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
    system: str = ""
    history: Turns = ()
    chat: bool | None = None
    caches: CacheSettings = USUAL_CACHES
    left_out: tuple[str, ...] = ()

    def messages(self, text: str) -> str | list[Message]:
        """A prompt as the engine takes it."""
        if not (self.system or self.history):
            return text
        return messages_of(text, self.system or None, as_messages(self.history))

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
        """The run ends before its last step if nothing is left to do."""
        return self.sampler.at_most

    @property
    def blocks(self) -> int:
        """Semi-autoregressive blocks of the generation."""
        return self.sampler.blocks

    @property
    def rows(self) -> int:
        """Sequences in one forward: classifier-free guidance adds the canvas without its prompt."""
        return 2 if self.sampler.cfg_scale else 1

    @property
    def switch_step(self) -> int | None:
        """First sparse step, counted from 0; None if SparseD never becomes sparse."""
        return self.headline.switch_step(self.steps, self.blocks, grows=self.sampler.grows)

    def resolve(self, tokens: int) -> Request:
        """The request with every setting of its lanes set, for a prompt of `tokens` tokens."""
        return replace(self, lanes=tuple(lane.resolve(tokens + self.gen_length) for lane in self.lanes))


def parse(
    *,
    defaults: SamplerConfig,
    models: Collection[str],
    kinds: Collection[str],
    lengths: Collection[str],
    lenient: bool = False,
    **given: Any,
) -> Request:
    """A `Request` from what the page sent: `given` is one value for each name of the table (`app.race.fields`).

    What may be None, or is left out, then follows the model's `defaults` and the length. lenient: a setting that would
    have no effect beside the others is left out, and named in the request's `left_out`.

    Raises ValueError, one sentence, for what cannot be run, or (not lenient) would have no effect: a sampler's setting
    that its algorithm does not have (`unused`), or what belongs to a text of one's own where a question is asked; and
    TypeError for a name that is not in the table.
    """
    if unknown := set(given) - set(BY_NAME):
        raise TypeError(f"The table of settings has no {', '.join(sorted(unknown))}.")
    known = {"model": models, "kind": [*kinds, OWN_TEXT], "length": lengths}
    values: dict[str, dict[str, Any]] = {"race": {}, "sampler": {}, "attention": {}, "cache": {}}
    for field in FIELDS:
        values[field.home][field.name] = field.check(given.get(field.name), known.get(field.name))
    race = values["race"]
    own = race["kind"] == OWN_TEXT
    without = {} if own else {name: ASKED_A_QUESTION for name in OF_OWN_TEXT if race[name]}
    race["text"] = _own_text(race["text"]) if own else ""
    race["system"] = _checked_text("system prompt", race["system"] or "") if own else ""
    race["history"] = race["history"] if own else ()
    settings = SamplerConfig(**values["sampler"])
    idle = unused(settings, defaults)
    sampler = replace(settings, **dict.fromkeys(idle)).resolve(defaults)
    # What is as it would be anyway may be said.
    changed = [name for name in idle if getattr(settings, name) not in (None, getattr(sampler, name))]
    caches = CacheSettings(**{name: value for name, value in values["cache"].items() if value is not None})
    lanes = _lanes(SparseDConfig(**values["attention"]), caches, race.pop("lanes"), race.pop("third"))
    no_such_cache = idle_caches(lanes)
    changed += [name for name in no_such_cache if getattr(caches, name) != getattr(USUAL_CACHES, name)]
    idle |= no_such_cache
    without |= {name: idle[name] for name in changed}
    if race["track"] and sampler.grows:
        race["track"], without["track"] = False, "The canvas grows, and patterns of two lengths cannot be compared."
    if without and not lenient:
        name, why = next(iter(without.items()))
        raise ValueError(f"The setting {name} would have no effect: leave it out. {why}")
    left_out = tuple(f"The setting “{BY_NAME[name].label}” is left out. {why}" for name, why in without.items())
    if sampler.gen_length > MAX_GENERATION:
        raise ValueError(
            f"The generation would have {sampler.gen_length} tokens, rounded up to whole semi-autoregressive blocks of "
            f"{sampler.block_length}; this page takes up to {MAX_GENERATION}. Choose a shorter one."
        )
    race["chat"] = {None: None, "chat": True, "raw": False}[race.pop("prompt_format")]
    if race["history"]:
        _check_conversation(race)
    return Request(**race, sampler=sampler, lanes=lanes, caches=caches, left_out=left_out)


def _check_conversation(race: dict[str, Any]) -> None:
    """Earlier turns go by the chat template, which is asked for then. Raises ValueError."""
    if race["chat"] is False:
        raise ValueError("Earlier turns go by the model's chat template: leave the prompt format as the model has it.")
    race["chat"] = True
    messages_of(race["text"], race["system"] or None, as_messages(race["history"]))  # one system prompt at most


def _lanes(
    attention: AttentionConfig, caches: CacheSettings, names: Collection[str] | None, third: str | None
) -> tuple[LaneSpec, ...]:
    """The lanes asked for. Raises ValueError where there are too many, or one cannot be."""
    further = tuple(dict.fromkeys((*(names or ()), *((third,) if third else ()))))
    if len(further) > MOST_FURTHER:
        raise ValueError(f"There may be {MOST_FURTHER} further lanes at most, not {len(further)}.")
    if "shared" in further and attention.selection == "reference":
        raise ValueError(
            f"The lane “{METHOD_LABELS['shared']}” needs the selection of the paper: the public code has none for it."
        )
    return lanes_for(attention, further, caches)


def _own_text(text: Any) -> str:
    """A prompt of the visitor's own. Raises ValueError where there is none, or too much."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError("Your own text is empty: type or paste a prompt, or choose one of the questions.")
    return _checked_text("own text", text)


def _checked_text(called: str, text: Any) -> str:
    if not isinstance(text, str):
        raise ValueError(f"The {called} must be a text.")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"Your {called} has {len(text):,} characters; this page takes up to {MAX_CHARACTERS:,}. Shorten it."
        )
    return of_characters(text)


def of_characters(text: str) -> str:
    """The text with a replacement for each half of a pair of surrogates, which is no character: neither tokenizers nor
    answers in UTF-8 take it.
    """
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
