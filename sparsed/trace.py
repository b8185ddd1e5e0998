"""A run as a file: recorded, saved, loaded and replayed, without the model that made it.

Version 1 is one JSON object (UTF-8; gzip if the file's name ends with ".gz"). What all lanes share stands at
the top, what one run did stands in its lane, so that one file holds runs of one prompt with full attention, with
SparseD and with a baseline. Steps, positions and rows are counted from 0. Readers ignore keys that they do not know.

    format         "sparsed-trace"
    version        1
    created        text, when it was recorded: ISO 8601, UTC
    software       {name: version}: sparsed, python, torch, transformers
    machine        {key: text, number or true/false}: cpu, gpu, cores, threads … (sparsed.machine.machine)
    model          {name, label, family, dtype, device}, all text; device is the type alone, as "cuda". processes:
                   whole number, optional: how many held the model together
    prompt         {kind, length, seed, question, gold, text, tokens}. tokens: number of prompt tokens, chat
                   template included. kind, length ("4k" …), seed, question, gold (the right answer): null
                   unless the prompt was built by sparsed.prompts. text: the user's message, or null.
                   words: [text], optional
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
    device         whole number, optional: which of the race's devices it had. Lanes of the same number took turns on
                   one, lanes of different numbers ran at the same time; missing is 0
    probes         [{step, overlap}], optional
    pattern        null, or {length, prompt_length, block_size, select, batch, heads, kept, layers}: tokens of
                   the sequence, of its prompt and of an attention block; the share asked for; rows (twice
                   `batch` with classifier-free guidance: conditional rows first); query heads; kept, a list:
                   the slots of a query block in each layer. layers: for each layer the block mask, a bit for
                   each [row, head, query block, key block] in C order, first bit highest, zlib, base64.
                   kept_mass: [layer][head], optional. importance: [text], optional

What is optional may be missing or empty: it was not known, not asked for, or not to be stored. It is about row 0.

    words          how each attention block of the sequence begins, as it stood after the last step: at most 48
                   characters, white space made one space; repeated masks and end tokens stand once. The blocks
                   are those of the first lane that is not dense
    probes         for some steps, ascending: after that step the pattern was selected afresh. overlap:
                   [layer][head], 0 … 1, four decimals: intersection over union of the kept pairs of that pattern
                   and of `pattern`, pooled over the query blocks of every row
    kept_mass      the share of attention that the kept blocks had at the select step, 0 … 1, four decimals
                   (sparsed.analysis.kept_mass). A lane without importances of its own is weighed by those of
                   another one that selected in the same step: until then both did the same
    importance     a text for each layer: the mean attention weight of the block pairs, a byte v for each [head,
                   query block, key block] in C order, zlib, base64. The weight is 2 ** ((v − 255) / 10), for v = 0
                   it is 0: from 1 to below the smallest float16, within 3.6 %. Patterns of more than 2 ** 27
                   pairs, layers and heads counted, have none
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import math
import platform
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

import sparsed
from sparsed.analysis import kept_mass
from sparsed.answer_text import REPLACEMENT, groups
from sparsed.config import SamplerConfig, SparseDConfig, same_importances
from sparsed.machine import dtype_name, machine
from sparsed.prompts import Prompt
from sparsed.typed_json import read_as

if TYPE_CHECKING:
    from torch import Tensor

    from sparsed.attention.pattern import Pattern
    from sparsed.denoising import Run
    from sparsed.models.model import Model

FORMAT, VERSION = "sparsed-trace", 1

# A trace may come from a stranger: what it can ask of memory is bounded.
_MOST_BYTES = 256 * 2**20
_MOST_CELLS = 2**24
_MOST_PAIRS = 2**26
_MOST_PAIRS_OF_ALL = 2**31
# At most 180 MB of text, which with the masks stays below _MOST_BYTES.
_MOST_IMPORTANCES = 2**27

_WORDS = 48
_CODES_PER_OCTAVE = 10

# The fields of these classes are those of the file, by name and by type: `save` and `load` go by them.


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

    words: how each attention block of the whole sequence begins, () where it is not known or stored.
    """

    tokens: int
    text: str | None = None
    question: str | None = None
    gold: str | None = None
    kind: str | None = None
    length: str | None = None
    seed: int | None = None
    words: tuple[str, ...] = ()


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
class TraceProbe:
    """How much a pattern selected afresh after a step has in common with the one in use: overlap[layer][head]."""

    step: int
    overlap: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class TracePattern:
    """The block masks of a run. layers: one text for each, see the module's text.

    kept_mass: [layer][head], importance: one text for each layer, both of row 0; () where there is none.
    """

    length: int
    prompt_length: int
    block_size: int
    select: float
    batch: int
    heads: int
    kept: tuple[int, ...]
    layers: tuple[str, ...]
    kept_mass: tuple[tuple[float, ...], ...] = ()
    importance: tuple[str, ...] = ()

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
        bits = _unpack(self.layers[layer], -(-cells // 8))
        if bits is None:
            raise ValueError(f"layer {layer} of the pattern cannot be unpacked.")
        flat = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=cells)
        return flat.view(np.bool_).reshape(self.shape)

    def importance_of(self, layer: int) -> np.ndarray:
        """Float32 [heads, query blocks, key blocks]: the mean attention weight of every block pair in row 0.

        Each is 0 where it was 0, else within 3.6 % (2 ** 0.05 − 1) of the float16 that it was. Raises ValueError
        where the file has none or the text does not hold them.
        """
        if not self.importance:
            raise ValueError("This pattern was stored without importances.")
        weights = np.exp2((np.arange(256) - 255) / _CODES_PER_OCTAVE).astype(np.float32)
        weights[0] = 0
        return weights[self._codes(layer)]

    def _codes(self, layer: int) -> np.ndarray:
        """Uint8 [heads, query blocks, key blocks]. Raises ValueError where the text does not hold them."""
        data = _unpack(self.importance[layer], math.prod(self.shape[1:]))
        if data is None:
            raise ValueError(f"the importances of layer {layer} cannot be unpacked.")
        return np.frombuffer(data, dtype=np.uint8).reshape(self.shape[1:])

    def to_pattern(self) -> Pattern:
        """The engine's own Pattern, on the CPU. Needs torch.

        Its importances are those of `importance_of`; None where there are none, or more rows than the first.
        """
        import torch

        from sparsed.attention.pattern import BlockLayout, LayerPattern, Pattern  # needs torch

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
        importance = None
        if self.importance and self.batch == 1:
            weights = (torch.from_numpy(self.importance_of(layer)) for layer in range(len(layers)))
            importance = tuple(layer[None].to(torch.float16) for layer in weights)
        return Pattern(layout, tuple(layers), self.select, importance)


@dataclass(frozen=True)
class Lane:
    """One run. switch_step: the first sparse step or None. text: one a row. seconds: the sum over steps.

    probes: by ascending step; only where there is a pattern. device: lanes with the same number took turns, lanes with
    different ones ran at the same time.
    """

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
    probes: tuple[TraceProbe, ...] = ()
    device: int = 0


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


def record(
    runs: Run | Mapping[str, Run],
    *,
    prompt: Prompt | str | None = None,
    store_text: bool = True,
    importance: bool = False,
    devices: Mapping[str, int] | None = None,
) -> Trace:
    """The record of a run, or of several by name, finished or stopped.

    runs: of one model, prompt and sampler. A single run's lane is named "dense" or after its pattern. prompt: what
    `sparsed.prompts.build_prompt` made, or the user's own text. store_text: False leaves the prompt's text out.
    importance: keeps the importances too, where the run has them and they are at most 2 ** 27 numbers. devices: where
    runs were made at the same time on copies of the model, the number of the device that each had, from 0.

    Raises ValueError for no run, a run without any step, or runs that do not belong together.
    """
    if not isinstance(runs, Mapping):
        runs = {"dense" if runs.attention == "dense" else runs.attention.pattern or "sparsed": runs}
    if not runs:
        raise ValueError("A trace needs at least one run.")
    for name, run in runs.items():
        if not run.steps:
            raise ValueError(f"The run {name!r} has made no step yet: there is nothing to record.")
    first = next(iter(runs.values()))
    shape = first.steps[0].tokens.shape
    for name, run in runs.items():
        apart = devices is not None and devices[name] != devices[next(iter(runs))]
        same = _same_model(run.model, first.model, copies=apart) and run.sampler == first.sampler
        if not same or run.prompt_length != first.prompt_length or run.steps[0].tokens.shape != shape:
            raise ValueError(f"The run {name!r} has another model, prompt or sampler than the first one.")
    model = first.model
    lanes = {name: _lane(run, _weights(run, runs.values()), importance) for name, run in runs.items()}
    if devices is not None:
        lanes = {name: replace(lane, device=devices[name]) for name, lane in lanes.items()}
    about = _prompt(prompt, first.prompt_length, store_text)
    if store_text:
        about = replace(about, words=_words(runs.values()))
    trace = Trace(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        software=_software(),
        machine=_machine(),
        model=TraceModel(
            name=model.name,
            label=model.label,
            family=model.family,
            dtype=dtype_name(model.dtype),
            device=model.device.type,
            processes=model.processes,
        ),
        prompt=about,
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
    than 256 MiB; OSError if it cannot be read.
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


def _same_model(model: Model, other: Model, *, copies: bool) -> bool:
    """copies: it may have been loaded twice."""
    told = ("name", "label", "family", "dtype", "mask_id", "end_ids")
    return model is other or (copies and all(getattr(model, name) == getattr(other, name) for name in told))


def _weights(run: Run, runs: Iterable[Run]) -> tuple[Tensor, ...] | None:
    """The importances of a run's select step, be they another run's; None where there are none."""
    for other in (run, *runs):
        importance = None if other.pattern is None else other.pattern.importance
        if importance is not None and same_importances(other.attention, run.attention):
            return importance
    return None


def _lane(run: Run, weights: tuple[Tensor, ...] | None, importance: bool) -> Lane:
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
        pattern=None if run.pattern is None else _pack(run, run.pattern, weights, importance),
        probes=() if run.pattern is None else _probes(run, run.pattern),
    )


def _pack(run: Run, pattern: Pattern, seen: tuple[Tensor, ...] | None, importance: bool) -> TracePattern:
    masks = pack_masks(pattern)
    weights = pattern.importance or ()
    # What the public code ranks by are no shares of attention.
    weighed = seen is not None and isinstance(run.attention, SparseDConfig) and run.attention.selection != "reference"
    if not importance or len(weights) * masks.heads * pattern.layout.blocks**2 > _MOST_IMPORTANCES:
        weights = ()
    return replace(
        masks,
        kept_mass=_rounded(kept_mass(replace(pattern, importance=seen))) if weighed else (),
        importance=tuple(_encode(layer[0].numpy()) for layer in weights),
    )


def pack_masks(pattern: Pattern) -> TracePattern:
    """A pattern as a record holds it, without its importances; `TracePattern.to_pattern` is the way back."""
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


def _encode(importance: np.ndarray) -> str:
    """Weights 0 … 1 as the text that `TracePattern.importance` holds."""
    weights = importance.astype(np.float32)
    known = weights > 0
    octaves = np.log2(weights, out=np.zeros_like(weights), where=known)
    codes = np.clip(np.rint(255 + _CODES_PER_OCTAVE * octaves), 1, 255).astype(np.uint8) * known
    # More effort makes it 2 % smaller and takes up to five times as long.
    return base64.b64encode(zlib.compress(codes.tobytes(), 1)).decode("ascii")


def _probes(run: Run, pattern: Pattern) -> tuple[TraceProbe, ...]:
    return tuple(TraceProbe(step, _rounded(fresh.overlap(pattern))) for step, fresh in sorted(run.probes.items()))


def _rounded(shares: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(share, 4) for share in heads) for heads in shares.tolist())


def _words(runs: Iterable[Run]) -> tuple[str, ...]:
    """How the attention blocks of the first run that has some begin, in row 0."""
    for run in runs:
        if isinstance(run.attention, SparseDConfig):
            size = run.attention.block_size
            assert size is not None, "a run's config is resolved"
            row = run.prompt[0].tolist() + run.steps[-1].tokens[0].tolist()
            return tuple(_beginning(run.model, row[start : start + size]) for start in range(0, len(row), size))
    return ()


def _beginning(model: Model, block: list[int]) -> str:
    once = {model.mask_id, *model.end_ids}
    told = [token for before, token in zip([None, *block], block) if token != before or token not in once]
    # The ends of a block may cut a character in two.
    text = " ".join(model.tokens_text(told[:_WORDS]).split()).strip(REPLACEMENT + " ")
    if len(text) <= _WORDS:
        return text
    return text[: _WORDS + 1].rpartition(" ")[0] or text[:_WORDS]


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

    return {
        "sparsed": sparsed.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def _machine() -> dict[str, Any]:
    return {key: value for key, value in machine().items() if key not in ("python", "torch")}


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


def _unpack(text: str, size: int) -> bytes | None:
    """The bytes in a text, base64 of zlib; None where they are not `size` bytes."""
    try:
        # Never more than is expected, whatever the data would unpack to.
        data = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), size + 1)
    except (ValueError, zlib.error):  # ValueError: base64 takes no letter outside ASCII
        return None
    return data if len(data) == size else None


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
    if trace.model.processes < 1:
        raise ValueError(f"'processes' must be at least 1, not {trace.model.processes}.")
    used = set(trace.end_ids)
    for lane in trace.lanes.values():
        used |= _check_lane(lane, trace)
    _check_words(trace)
    if used - set(trace.vocabulary):
        raise ValueError(f"'vocabulary' lacks the token {min(used - set(trace.vocabulary))}.")


def _check_lane(lane: Lane, trace: Trace) -> set[int]:
    """The tokens that it commits."""
    if not 0 < len(lane.steps) <= lane.total:
        raise ValueError(f"a lane has {len(lane.steps)} of {lane.total} steps.")
    if lane.switch_step is not None and not 0 <= lane.switch_step < lane.total:
        raise ValueError(f"'switch_step' must lie between 0 and {lane.total - 1}, not {lane.switch_step}.")
    if not 0 <= lane.device < len(trace.lanes):
        raise ValueError(f"'device' must lie between 0 and {len(trace.lanes) - 1}, not {lane.device}.")
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
    _check_probes(lane)
    return set(written.values())


def _check_words(trace: Trace) -> None:
    words = trace.prompt.words
    if not words:
        return
    sizes = [lane.attention.block_size for lane in trace.lanes.values() if isinstance(lane.attention, SparseDConfig)]
    if not sizes or sizes[0] is None or len(words) != -(-(trace.prompt.tokens + trace.gen_length) // sizes[0]):
        raise ValueError(f"the number of 'words', {len(words)}, is not that of the attention blocks.")
    if max(map(len, words)) > _WORDS:
        raise ValueError(f"an entry of 'words' has more than {_WORDS} characters.")


def _check_probes(lane: Lane) -> None:
    before = -1
    for probe in lane.probes:
        if lane.pattern is None:
            raise ValueError("'probes' need a pattern.")
        if not before < probe.step < len(lane.steps):
            raise ValueError(f"the steps of 'probes' must ascend, from 0 to at most {len(lane.steps) - 1}.")
        before = probe.step
        _check_shares(probe.overlap, lane.pattern, "'overlap'")


def _check_shares(shares: tuple[tuple[float, ...], ...], pattern: TracePattern, what: str) -> None:
    if len(shares) != len(pattern.layers) or any(len(heads) != pattern.heads for heads in shares):
        raise ValueError(f"{what} must have an entry for each head of each layer.")
    if not all(0 <= share <= 1 for heads in shares for share in heads):
        raise ValueError(f"{what} must lie between 0 and 1.")


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
    if len(pattern.layers) * math.prod(pattern.shape) > _MOST_PAIRS_OF_ALL:
        raise ValueError(f"the pattern is too large: at most {_MOST_PAIRS_OF_ALL:,} block pairs in all layers.")
    if pattern.kept_mass:
        _check_shares(pattern.kept_mass, pattern, "'kept_mass'")
    if pattern.importance:
        _check_importance(pattern)
    for layer, kept in enumerate(pattern.kept):
        if not pattern.mask(layer).sum(-1).max() <= kept <= pattern.shape[-1]:
            raise ValueError(f"layer {layer} of the pattern keeps another number of blocks than {kept}.")


def _check_importance(pattern: TracePattern) -> None:
    if len(pattern.importance) != len(pattern.layers):
        raise ValueError("'layers' and 'importance' of the pattern must be of the same length.")
    if len(pattern.layers) * math.prod(pattern.shape[1:]) > _MOST_IMPORTANCES:
        raise ValueError(f"the pattern has too many importances: at most {_MOST_IMPORTANCES:,}.")
    for layer in range(len(pattern.importance)):
        pattern._codes(layer)
