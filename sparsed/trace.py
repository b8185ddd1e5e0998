"""A run as a file: recorded, saved, loaded and replayed, without the model that made it.

Version 1 is one JSON object (UTF-8; gzip if the file's name ends with ".gz"). What all lanes share stands at
the top, what one run did stands in its lane, so that one file holds a dense and a SparseD run of one prompt.
Steps, positions and rows are counted from 0. Readers ignore keys that they do not know.

    format         "sparsed-trace"
    version        1
    created        text, when it was recorded: ISO 8601, UTC
    software       {name: version}: sparsed, python, torch, transformers
    machine        {key: text, number or true/false}: cpu, gpu, cores, threads … (sparsed.bench.machine)
    model          {name, label, family, dtype, device}, all text; device is the type alone, as "cuda"
    prompt         {kind, length, seed, question, gold, text, tokens}. tokens: number of prompt tokens, chat
                   template included. kind, length ("4k" …), seed, question, gold (the right answer): null
                   unless the prompt was built by sparsed.prompts. text: the user's message, or null
    sampler        every field of SamplerConfig by its name
    batch          number of rows
    gen_length     generated tokens of a row
    mask_id        the mask token's id
    end_ids        [id]: the tokens that end an answer
    vocabulary     {id: text}: the text of every token that occurs in a step, and of end_ids
    fragments      [[[id …], text]]: the text of neighbouring tokens that are pieces of one character
    lanes          {name: lane}, at least one

    lane           one run:
    attention      "dense", or every field of SparseDConfig by its name
    backend        text, what ran the sparse steps (in a dense run: every step)
    total          number of steps that were planned
    switch_step    index of the first sparse step, or null
    finished       true, or false where the run was stopped
    notes          [text]: what the run said to its user
    seconds        number: the sum of its steps' seconds
    text           [text]: each row's answer
    steps          [{index, phase, seconds, committed}]. phase: "dense", "select" or "sparse". seconds: device
                   time of the step. committed: [[row, position, token id, confidence]], position within the
                   generated tokens, confidence null where there is none
    pattern        null, or {length, prompt_length, block_size, select, batch, heads, kept, layers}: tokens of
                   the sequence, of its prompt and of an attention block; the share asked for; rows (twice
                   `batch` with classifier-free guidance: conditional rows first); query heads; kept, a list:
                   the slots of a query block in each layer. layers: for each layer the block mask, a bit for
                   each [row, head, query block, key block] in C order, first bit highest, zlib, base64
"""

from __future__ import annotations

import base64
import binascii
import gzip
import io
import json
import math
import platform
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from sparsed.config import SamplerConfig, SparseDConfig
from sparsed.fragments import REPLACEMENT, groups
from sparsed.prompts import Prompt
from sparsed.typed_json import read_as

if TYPE_CHECKING:
    from sparsed.attention.pattern import Pattern
    from sparsed.denoising import Run
    from sparsed.models.model import Model

FORMAT, VERSION = "sparsed-trace", 1

# A trace may come from a stranger: what it can ask of memory is bounded.
_MOST_BYTES = 256 * 2**20
_MOST_CELLS = 2**24
_MOST_PAIRS = 2**26

# The fields of these classes are those of the file, by name and by type: `save` and `load` go by them.


@dataclass(frozen=True)
class TraceModel:
    """The model that ran; device is the type alone ("cpu", "cuda" …)."""

    name: str
    label: str
    family: str
    dtype: str
    device: str


@dataclass(frozen=True)
class TracePrompt:
    """What was asked. tokens: prompt tokens, template included; all else None where it is not known or stored."""

    tokens: int
    text: str | None = None
    question: str | None = None
    gold: str | None = None
    kind: str | None = None
    length: str | None = None
    seed: int | None = None


class Commit(NamedTuple):
    """One token that was unmasked. position: within the generated tokens. confidence: None for NaN."""

    row: int
    position: int
    token: int
    confidence: float | None


@dataclass(frozen=True)
class TraceStep:
    """What one step did, and the seconds it took."""

    index: int
    phase: Literal["dense", "select", "sparse"]
    seconds: float
    committed: tuple[Commit, ...]


@dataclass(frozen=True)
class TracePattern:
    """The block masks of a run. layers: one text for each, see the module's text."""

    length: int
    prompt_length: int
    block_size: int
    select: float
    batch: int
    heads: int
    kept: tuple[int, ...]
    layers: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of one layer's mask: (batch, heads, query blocks, key blocks)."""
        blocks = -(-self.length // self.block_size)
        return self.batch, self.heads, blocks, blocks

    def mask(self, layer: int) -> np.ndarray:
        """Bool [batch, heads, query blocks, key blocks]: True where the block is kept.

        Raises ValueError where the text does not hold such a mask.
        """
        cells = math.prod(self.shape)
        size = -(-cells // 8)
        try:
            # Never more than is expected, whatever the data would unpack to.
            bits = zlib.decompressobj().decompress(base64.b64decode(self.layers[layer], validate=True), size + 1)
        except (binascii.Error, zlib.error):
            bits = b""
        if len(bits) != size:
            raise ValueError(f"layer {layer} of the pattern cannot be unpacked.")
        flat = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=cells)
        return flat.view(np.bool_).reshape(self.shape)

    def to_pattern(self) -> Pattern:
        """The engine's own Pattern, on the CPU, without importances. Needs torch."""
        import torch

        from sparsed.attention.pattern import BlockLayout, LayerPattern, Pattern

        layers = []
        for layer, kept in enumerate(self.kept):
            mask = self.mask(layer)
            counts = mask.sum(-1, dtype=np.int32)
            rows, blocks = np.nonzero(mask.reshape(-1, mask.shape[-1]))
            slots = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts.ravel(), counts.ravel())
            indices = np.full((counts.size, kept), -1, dtype=np.int32)
            indices[rows, slots] = blocks
            shaped = indices.reshape(*counts.shape, kept)
            layers.append(LayerPattern(torch.from_numpy(shaped), torch.from_numpy(counts)))
        layout = BlockLayout(self.length, self.prompt_length, self.block_size)
        return Pattern(layout, tuple(layers), self.select)


@dataclass(frozen=True)
class Lane:
    """One run. switch_step: the first sparse step or None. text: one a row. seconds: the sum over steps."""

    attention: SparseDConfig | Literal["dense"]
    backend: str
    total: int
    switch_step: int | None
    finished: bool
    notes: tuple[str, ...]
    seconds: float
    text: tuple[str, ...]
    steps: tuple[TraceStep, ...]
    pattern: TracePattern | None


@dataclass(frozen=True)
class Trace:
    """A recorded race: what the lanes share, and the lanes by name."""

    created: str
    software: Mapping[str, str]
    machine: Mapping[str, str | bool | int | float]
    model: TraceModel
    prompt: TracePrompt
    sampler: SamplerConfig
    batch: int
    gen_length: int
    mask_id: int
    end_ids: tuple[int, ...]
    vocabulary: Mapping[int, str]
    fragments: tuple[tuple[tuple[int, ...], str], ...]
    lanes: Mapping[str, Lane]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens that occur in the trace, as it stands in an answer."""
        whole = dict(self.fragments).get(tuple(tokens)) if len(tokens) > 1 else None
        return "".join(self.vocabulary[token] for token in tokens) if whole is None else whole


@dataclass(frozen=True, eq=False)
class ReplayedStep:
    """A `sparsed.Step` from a record: the same fields, with numpy arrays in place of tensors.

    tokens: int64 [batch, gen_length]. committed: bool, confidence: float32 (NaN elsewhere), same shape.
    """

    index: int
    total: int
    phase: Literal["dense", "select", "sparse"]
    tokens: np.ndarray
    committed: np.ndarray
    confidence: np.ndarray
    seconds: float


def record(runs: Run | Mapping[str, Run], *, prompt: Prompt | str | None = None, store_text: bool = True) -> Trace:
    """The record of a run, or of several by name, finished or stopped.

    runs: of one model, prompt and sampler. A single run's lane is named "dense" or "sparsed". prompt: what
    `sparsed.prompts.build_prompt` made, or the user's own text. store_text: False leaves the prompt's text out.

    Raises ValueError for no run, a run without any step, or runs that do not belong together.
    """
    if not isinstance(runs, Mapping):
        runs = {"dense" if runs.attention == "dense" else "sparsed": runs}
    if not runs:
        raise ValueError("A trace needs at least one run.")
    for name, run in runs.items():
        if not run.steps:
            raise ValueError(f"The run {name!r} has made no step yet: there is nothing to record.")
    first = next(iter(runs.values()))
    shape = first.steps[0].tokens.shape
    for name, run in runs.items():
        same = run.model is first.model and run.sampler == first.sampler
        if not same or run.prompt_length != first.prompt_length or run.steps[0].tokens.shape != shape:
            raise ValueError(f"The run {name!r} has another model, prompt or sampler than the first one.")
    model = first.model
    lanes = {name: _lane(run) for name, run in runs.items()}
    trace = Trace(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        software=_software(),
        machine=_machine(),
        model=TraceModel(
            name=model.name,
            label=model.label,
            family=model.family,
            dtype=str(model.dtype).removeprefix("torch."),
            device=model.device.type,
        ),
        prompt=_prompt(prompt, first.prompt_length, store_text),
        sampler=first.sampler,
        batch=shape[0],
        gen_length=shape[1],
        mask_id=model.mask_id,
        end_ids=tuple(model.end_ids),
        vocabulary=_vocabulary(model, lanes),
        fragments=(),
        lanes=lanes,
    )
    return replace(trace, fragments=_fragments(model, trace))


def save(trace: Trace, path: str | Path) -> None:
    """Writes the file; compressed if its name ends with ".gz"."""
    record = {"format": FORMAT, "version": VERSION, **asdict(trace)}
    text = json.dumps(record, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
    path = Path(path)
    path.write_bytes(gzip.compress(text, compresslevel=6) if path.suffix == ".gz" else text)


def load(path: str | Path) -> Trace:
    """Reads what `save` wrote.

    Raises ValueError, in one sentence, for a file that is no trace, of another version, damaged or larger
    than 512 MiB; OSError if it cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if content.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(io.BytesIO(content)) as unpacked:
                content = unpacked.read(_MOST_BYTES + 1)
        except (OSError, EOFError, zlib.error):
            raise ValueError(f"{path.name} is damaged: it cannot be decompressed.") from None
    if len(content) > _MOST_BYTES:
        raise ValueError(f"{path.name} is too large for a trace: at most {_MOST_BYTES // 2**20} MiB.")
    try:
        raw = json.loads(content, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise ValueError(f"{path.name} is no trace: it does not hold a JSON object of format {FORMAT!r}.")
    version = raw.get("version")
    if version != VERSION or isinstance(version, bool):
        raise ValueError(f"{path.name} is a trace of version {str(version)[:20]}; this program reads {VERSION}.")
    try:
        trace: Trace = read_as(Trace, raw, "the trace")
        _check(trace)
    except ValueError as error:
        raise ValueError(f"{path.name} is damaged: {error}") from None
    return trace


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
        yield ReplayedStep(step.index, lane.total, step.phase, tokens.copy(), committed, confidence, step.seconds)


# ---------------------------------------------------------------- recording


def _lane(run: Run) -> Lane:
    steps = []
    for step in run.steps:
        places = step.committed.nonzero().tolist()
        tokens = step.tokens[step.committed].tolist()
        confidences = step.confidence[step.committed].tolist()
        commits = (
            Commit(row, position, token, confidence if math.isfinite(confidence) else None)
            for (row, position), token, confidence in zip(places, tokens, confidences)
        )
        steps.append(TraceStep(step.index, step.phase, step.seconds, tuple(commits)))
    return Lane(
        attention=run.attention,
        backend=run.backend,
        total=run.total,
        switch_step=run.switch_step,
        finished=run.finished,
        notes=tuple(run.notes),
        seconds=sum(step.seconds for step in run.steps),
        text=tuple(run.model.decode(row) for row in run.steps[-1].tokens),
        steps=tuple(steps),
        pattern=None if run.pattern is None else _pack(run.pattern),
    )


def _pack(pattern: Pattern) -> TracePattern:
    layout = pattern.layout
    batch, heads = pattern.layers[0].counts.shape[:2]
    bits = (np.packbits(layer.mask().cpu().numpy()).tobytes() for layer in pattern.layers)
    return TracePattern(
        length=layout.length,
        prompt_length=layout.prompt_length,
        block_size=layout.block_size,
        select=pattern.select,
        batch=batch,
        heads=heads,
        kept=tuple(layer.kept for layer in pattern.layers),
        layers=tuple(base64.b64encode(zlib.compress(layer)).decode("ascii") for layer in bits),
    )


def _prompt(prompt: Prompt | str | None, tokens: int, store_text: bool) -> TracePrompt:
    if prompt is None or isinstance(prompt, str):
        return TracePrompt(tokens, text=prompt if store_text else None)
    return TracePrompt(
        tokens,
        text=prompt.text if store_text else None,
        question=prompt.question,
        gold=prompt.answer,
        kind=prompt.kind,
        length=prompt.length,
        seed=prompt.seed,
    )


def _software() -> dict[str, str]:
    import torch
    import transformers

    import sparsed

    return {
        "sparsed": sparsed.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def _machine() -> dict[str, Any]:
    from sparsed.bench import machine

    about = machine()
    return {key: value for key, value in about.items() if key not in ("python", "torch")}


def _vocabulary(model: Model, lanes: Mapping[str, Lane]) -> dict[int, str]:
    seen = {commit.token for lane in lanes.values() for step in lane.steps for commit in step.committed}
    return {token: model.token_text(token) for token in sorted({*seen, *model.end_ids})}


def _fragments(model: Model, trace: Trace) -> tuple[tuple[tuple[int, ...], str], ...]:
    """The text of each group of neighbouring pieces that stood in the canvas after some step."""
    pieces = {token for token, text in trace.vocabulary.items() if REPLACEMENT in text}
    found: dict[tuple[int, ...], str] = {}
    if not pieces:
        return ()
    for lane in trace.lanes:
        for step in replay(trace, lane):
            for row in step.tokens.tolist():
                for start, end in groups(row, pieces):
                    group = tuple(row[start:end])
                    if group not in found:
                        found[group] = model.tokens_text(group)
    return tuple((group, text) for group, text in found.items() if REPLACEMENT not in text)


# ---------------------------------------------------------------- checking what was read


def _no_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}.")


def _check(trace: Trace) -> None:
    """What the types do not say. Raises ValueError."""
    datetime.fromisoformat(trace.created)
    if min(trace.batch, trace.gen_length, trace.prompt.tokens) < 1 or trace.mask_id < 0:
        raise ValueError("'batch', 'gen_length', 'tokens' or 'mask_id' is too small.")
    if trace.batch * trace.gen_length > _MOST_CELLS:
        raise ValueError(f"batch · gen_length must be at most {_MOST_CELLS:,}.")
    if not trace.lanes:
        raise ValueError("'lanes' is empty.")
    used = set(trace.end_ids)
    for lane in trace.lanes.values():
        used |= _check_lane(lane, trace)
    if used - set(trace.vocabulary):
        raise ValueError(f"'vocabulary' lacks the token {min(used - set(trace.vocabulary))}.")


def _check_lane(lane: Lane, trace: Trace) -> set[int]:
    """The tokens that it commits."""
    if not 0 < len(lane.steps) <= lane.total:
        raise ValueError(f"a lane has {len(lane.steps)} of {lane.total} steps.")
    if lane.switch_step is not None and not 0 <= lane.switch_step < lane.total:
        raise ValueError(f"'switch_step' must lie between 0 and {lane.total - 1}, not {lane.switch_step}.")
    if len(lane.text) != trace.batch:
        raise ValueError(f"a lane has {len(lane.text)} texts for {trace.batch} rows.")
    written: dict[tuple[int, int], int] = {}
    for index, step in enumerate(lane.steps):
        if step.index != index:
            raise ValueError(f"step {index} is missing.")
        if step.seconds < 0:
            raise ValueError(f"step {index} took less than no time.")
        for row, position, token, _ in step.committed:
            inside = 0 <= row < trace.batch and 0 <= position < trace.gen_length
            if not inside or (row, position) in written:
                raise ValueError(f"step {index} commits row {row}, position {position}, which cannot be.")
            written[row, position] = token
    if lane.pattern is not None:
        _check_pattern(lane.pattern, trace)
    return set(written.values())


def _check_pattern(pattern: TracePattern, trace: Trace) -> None:
    tokens = trace.prompt.tokens
    if (pattern.prompt_length, pattern.length) != (tokens, tokens + trace.gen_length):
        raise ValueError("the pattern has another length than the sequence.")
    if min(pattern.block_size, pattern.batch, pattern.heads) < 1:
        raise ValueError("'block_size', 'batch' or 'heads' of the pattern is below 1.")
    if len(pattern.layers) != len(pattern.kept) or not pattern.layers:
        raise ValueError("'layers' and 'kept' of the pattern must be of the same length.")
    if math.prod(pattern.shape) > _MOST_PAIRS:
        raise ValueError(f"the pattern is too large: at most {_MOST_PAIRS:,} block pairs a layer.")
    for layer, kept in enumerate(pattern.kept):
        if not pattern.mask(layer).sum(-1).max() <= kept <= pattern.shape[-1]:
            raise ValueError(f"layer {layer} of the pattern keeps another number of blocks than {kept}.")
