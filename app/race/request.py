"""What a visitor asks for, checked once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from app.lanes import LaneSpec, headline, lanes_for
from app.race.checks import check_choice, check_number, check_whole
from sparsed.config import (
    ALGORITHMS,
    METHOD_LABELS,
    SELECTIONS,
    AttentionConfig,
    ResolvedSampler,
    SamplerConfig,
    SparseDConfig,
)

OWN_TEXT = "own"
MAX_STEPS = 1024
MAX_GENERATION = 1024
MAX_CHARACTERS = 600_000
CPU_BACKENDS = ("auto", "gather")
BACKENDS = (*CPU_BACKENDS, "triton", "flash4", "flex")
# The methods that a third lane may use, and no third lane.
BASELINES = {name: label for name, label in METHOD_LABELS.items() if name not in ("dense", "sparsed")}
NO_BASELINE = "none"
# Settings that follow the model and the prompt length until the visitor sets them himself.
SAMPLER_FIELDS = (
    "steps", "gen_length", "block_length", "algorithm", "temperature", "threshold", "cfg_scale", "top_p",
)  # fmt: skip
FOLLOWING = (*SAMPLER_FIELDS, "select", "block_size")


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
    model = check_choice("model", model, models)
    kind = check_choice("question", kind, [*kinds, OWN_TEXT])
    length = check_choice("prompt length", length, lengths)
    backend = check_choice("backend", backend, BACKENDS)
    question_number = check_whole("question number", question, 0, 2**31 - 1)
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
        steps=check_whole("steps", steps, 1, MAX_STEPS, optional=True),
        gen_length=check_whole("generation length", gen_length, 1, MAX_GENERATION, optional=True),
        block_length=check_whole("semi-autoregressive block length", block_length, 1, MAX_GENERATION, optional=True),
        algorithm=None if algorithm is None else check_choice("algorithm", algorithm, ALGORITHMS),
        temperature=check_number("temperature", temperature, 0.0, 10.0),
        seed=check_whole("seed", seed, 0, 2**31 - 1),
        top_p=check_number("top-p", top_p, 0.01, 1.0),
        cfg_scale=check_number("CFG scale", cfg_scale, 0.0, 100.0),
        threshold=check_number("confidence threshold", threshold, 0.0, 1.0) or None,
    )
    sampler = replace(sampler, **dict.fromkeys(unused(sampler, defaults)))
    attention = SparseDConfig(
        skip=check_number("skip", skip, 0.0, 1.0),
        select=check_number("select", select, 0.01, 1.0),
        block_size=check_whole("attention block size", block_size, 32, 128, optional=True),
        selection=None if selection is None else check_choice("selection", selection, SELECTIONS),
    )
    if third is not None:
        check_choice("third lane", third, [NO_BASELINE, *BASELINES])
    if third == "shared" and selection == "reference":
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
        lanes_for(attention, None if third == NO_BASELINE else third),
        backend,
        bool(track),
    )


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
