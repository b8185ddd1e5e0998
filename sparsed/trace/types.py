"""What a trace holds. The file format: docs/trace-format.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from sparsed.attention.masks import Masks
from sparsed.config import NO_CACHE, Phase, ResolvedAttention, ResolvedCache, ResolvedSampler
from sparsed.runs import RunRecord

FORMAT, VERSION = "sparsed-trace", 1
CHARACTERS_OF_BLOCK = 48


@dataclass(frozen=True)
class TraceModel:
    """The model that ran; device is the type alone ("cpu", "cuda" …). processes: that held it together."""

    name: str
    label: str
    family: str
    dtype: str
    device: str
    processes: int = 1


@dataclass(frozen=True)
class TracePrompt:
    """What was asked. tokens: prompt tokens, template included; all else None where it is not known or stored.

    gold, others: a right answer, and what is right as well.
    words: how each attention block of the whole sequence begins, () where it is not known or stored. system: the system
    prompt before the text. chat: it was asked for with the chat template, or without; None is as the model has it.
    needed: which tokens hold each document that the question needs (first, one past the last), () where not known.
    history: what was said before the text, (role, content) of each message.
    """

    tokens: int
    text: str | None = None
    question: str | None = None
    gold: str | None = None
    kind: str | None = None
    length: str | None = None
    seed: int | None = None
    words: tuple[str, ...] = ()
    system: str | None = None
    chat: bool | None = None
    others: tuple[str, ...] = ()
    needed: tuple[tuple[int, int], ...] = ()
    history: tuple[tuple[str, str], ...] = ()

    @property
    def asked(self) -> str | None:
        """What was asked, in a line: the question of a built prompt, or the last turn of a conversation."""
        return self.question or (self.text if self.history else None)


class Commit(NamedTuple):
    """One token that was unmasked. position: within the generated tokens. confidence: None for NaN."""

    row: int
    position: int
    token: int
    confidence: float | None


@dataclass(frozen=True)
class TraceStep:
    """What one step did, and the seconds it took. rows: positions of a sequence that it computed; None: all that were
    there. length: how many were there, of a canvas that grows; None: the whole sequence. attention_seconds: of its
    seconds those of attention, as of `sparsed.Step`.
    """

    index: int
    phase: Phase
    seconds: float
    committed: tuple[Commit, ...]
    rows: int | None = None
    attention_seconds: float | None = None
    length: int | None = None


@dataclass(frozen=True)
class TraceProbe:
    """How much a pattern selected afresh after a step has in common with the one in use: overlap[layer][head]."""

    step: int
    overlap: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Lane:
    """One run. switch_step: the first sparse step or None. text: one a row. seconds: the sum over steps.

    probes: by ascending step; only where there is a pattern. device: lanes with the same number took turns, lanes with
    different ones ran at the same time. dense_backend: what ran the steps that were not sparse; "" where it is not
    known.
    """

    attention: ResolvedAttention
    backend: str
    total: int
    switch_step: int | None
    finished: bool
    notes: tuple[str, ...]
    seconds: float
    text: tuple[str, ...]
    steps: tuple[TraceStep, ...]
    pattern: Masks | None
    probes: tuple[TraceProbe, ...] = ()
    device: int = 0
    dense_backend: str = ""
    cache: ResolvedCache = NO_CACHE


@dataclass(frozen=True)
class Trace:
    """A recorded race: what the lanes share, and the lanes by name."""

    created: str
    software: Mapping[str, str]
    machine: Mapping[str, str | bool | int | float]
    model: TraceModel
    prompt: TracePrompt
    sampler: ResolvedSampler
    batch: int
    gen_length: int
    mask_id: int
    end_ids: tuple[int, ...]
    vocabulary: Mapping[int, str]
    fragments: tuple[tuple[tuple[int, ...], str], ...]
    lanes: Mapping[str, Lane]

    @property
    def length(self) -> int:
        """Positions of a sequence that is whole, prompt and generation."""
        return self.prompt.tokens + self.gen_length

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens that occur in the trace, as it stands in an answer."""
        whole = dict(self.fragments).get(tuple(tokens)) if len(tokens) > 1 else None
        return "".join(self.vocabulary[token] for token in tokens) if whole is None else whole


@dataclass(frozen=True)
class LaneInfo:
    """What a recorded run was: `sparsed.denoising.info.RunInfo`, without torch."""

    trace: Trace
    lane: Lane

    def record(self) -> RunRecord:
        """As plain values for JSON, as of RunInfo."""
        trace, lane = self.trace, self.lane
        sampler = {**asdict(trace.sampler), "stop": list(trace.sampler.stop)}
        del sampler["changed"]  # the notes begin with it
        made, rows = Counter(step.phase for step in lane.steps), Counter[Phase]()
        for step in lane.steps:
            rows[step.phase] += step.rows or step.length or trace.length
        return {
            "sampler": sampler,
            "attention": {"method": "dense"} if lane.attention.dense else asdict(lane.attention),
            "cache": lane.cache.record(),
            "backend": lane.backend,
            "dense_backend": lane.dense_backend,
            "dtype": trace.model.dtype,
            "device": trace.model.device,
            "prompt_tokens": trace.prompt.tokens,
            "batch": trace.batch,
            "phases": {phase: made[phase] for phase in ("dense", "select", "sparse")},
            "forwards": len(lane.steps),
            "rows": {phase: rows[phase] for phase in ("dense", "select", "sparse")},
            "total": lane.total,
            "finished": lane.finished,
            "switch_step": next((step.index for step in lane.steps if step.phase == "sparse"), None),
            "notes": list(lane.notes),
        }


@dataclass(frozen=True, eq=False)
class ReplayedStep:
    """A `sparsed.Step` from a record: the same fields, with numpy arrays in place of tensors.

    tokens: int64 [batch, gen_length]. committed: bool, confidence: float32 (NaN elsewhere), same shape.
    """

    index: int
    total: int
    phase: Phase
    tokens: np.ndarray
    committed: np.ndarray
    confidence: np.ndarray
    seconds: float
    rows: int
    length: int
    attention_seconds: float | None = None


def replay(trace: Trace, lane: str | None = None) -> Iterator[ReplayedStep]:
    """The steps of a lane as the run gave them; no waiting in between.

    lane: its name; may be left out where there is one only. Raises ValueError for a lane that is not there.
    """
    if lane is None and len(trace.lanes) == 1:
        lane = next(iter(trace.lanes))
    if lane is None or lane not in trace.lanes:
        listed = ", ".join(repr(name) for name in trace.lanes)
        raise ValueError(f"lane must be one of {listed}, not {lane!r}.")
    return _replay(trace, trace.lanes[lane])


def _replay(trace: Trace, lane: Lane) -> Iterator[ReplayedStep]:
    shape = (trace.batch, trace.gen_length)
    tokens = np.full(shape, trace.mask_id, dtype=np.int64)
    for step in lane.steps:
        committed = np.zeros(shape, dtype=bool)
        confidence = np.full(shape, np.nan, dtype=np.float32)
        for commit in step.committed:
            place = commit.row, commit.position
            tokens[place] = commit.token
            committed[place] = True
            if commit.confidence is not None:
                confidence[place] = commit.confidence
        length = trace.length if step.length is None else step.length
        yield ReplayedStep(
            step.index, lane.total, step.phase, tokens.copy(), committed, confidence, step.seconds,
            length if step.rows is None else step.rows, length, step.attention_seconds,
        )  # fmt: skip
