"""What must hold in a trace that comes from a stranger."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

import numpy as np

from sparsed.attention.masks import Masks
from sparsed.trace.patterns import PatternText
from sparsed.trace.types import CHARACTERS_OF_BLOCK, Lane, Trace

_TIME = re.compile(
    r"(\d{4})-?(\d\d)-?(\d\d)(?:[Tt ](\d\d)(?::?(\d\d)(?::?(\d\d)(?:[.,](\d+))?)?)?"
    r"([Zz]|[+-](\d\d):?(\d\d)?(?::?\d\d(?:\.\d+)?)?)?)?",
    re.ASCII,
)
_MOST_CELLS = 2**24
_MOST_PAIRS = 2**26
_MOST_PAIRS_OF_ALL = 2**31
# At most 180 MB of text, which with the masks stays below what a file may have.
MOST_IMPORTANCES = 2**27
# What the patterns of all lanes may take of memory.
_MOST_BYTES = 2**29


def check_trace(trace: Trace) -> None:
    """What the types do not say. Raises ValueError."""
    read_time(trace.created)
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
    _check_needed(trace)
    if used - set(trace.vocabulary):
        raise ValueError(f"'vocabulary' lacks the token {min(used - set(trace.vocabulary))}.")


def read_time(text: str) -> datetime:
    """A date, or date and time, of ISO 8601 in numbers of days and months, alike on every version of Python. Raises
    ValueError.
    """
    found = _TIME.fullmatch(text)
    try:
        if found is None:
            raise ValueError
        year, month, day, hour, minute, second = (int(found[name] or 0) for name in range(1, 7))
        fraction = int((found[7] or "").ljust(6, "0")[:6])
        offset = timedelta(hours=int(found[9] or 0), minutes=int(found[10] or 0))
        zone = None if found[8] is None else timezone(-offset if found[8].startswith("-") else offset)
        return datetime(year, month, day, hour, minute, second, fraction, zone)
    except ValueError:
        raise ValueError(f"'created' must be a time like 2026-01-31T12:00:00Z, not {text[:40]!r}.") from None


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
        there = trace.length if step.length is None else step.length
        if not trace.prompt.tokens < there <= trace.length:
            raise ValueError(f"step {index} saw {there} positions, which cannot be.")
        if step.rows is not None and not 0 < step.rows <= there:
            raise ValueError(f"step {index} computed {step.rows} rows, which cannot be.")
        if step.seconds < 0:
            raise ValueError(f"step {index} took less than no time.")
        if step.attention_seconds is not None and not 0 <= step.attention_seconds <= step.seconds:
            raise ValueError(f"step {index} took {step.seconds:g} s, and its attention {step.attention_seconds:g} s.")
        for row, position, token, _ in step.committed:
            inside = 0 <= row < trace.batch and 0 <= position < there - trace.prompt.tokens
            if not inside or (row, position) in written:
                raise ValueError(f"step {index} commits row {row}, position {position}, which cannot be.")
            written[row, position] = token
    if lane.pattern is not None:
        _check_pattern(lane.pattern, lane, trace)
    _check_probes(lane)
    return set(written.values())


def _check_words(trace: Trace) -> None:
    words = trace.prompt.words
    if not words:
        return
    sizes = [lane.attention.block_size for lane in trace.lanes.values() if not lane.attention.dense]
    if not sizes or len(words) != -(-trace.length // sizes[0]):
        raise ValueError(f"the number of 'words', {len(words)}, is not that of the attention blocks.")
    if max(map(len, words)) > CHARACTERS_OF_BLOCK:
        raise ValueError(f"an entry of 'words' has more than {CHARACTERS_OF_BLOCK} characters.")


def _check_needed(trace: Trace) -> None:
    for first, end in trace.prompt.needed:
        if not 0 <= first < end <= trace.prompt.tokens:
            told = f"the {trace.prompt.tokens} tokens of the prompt, not {first, end}"
            raise ValueError(f"'needed' must lie within {told}.")


def _check_probes(lane: Lane) -> None:
    before = -1
    for probe in lane.probes:
        if lane.pattern is None:
            raise ValueError("'probes' need a pattern.")
        if not before < probe.step < len(lane.steps):
            raise ValueError(f"the steps of 'probes' must ascend, from 0 to at most {len(lane.steps) - 1}.")
        before = probe.step
        _check_shares(probe.overlap, lane.pattern, "'overlap'")


def _check_shares(shares: tuple[tuple[float, ...], ...], pattern: Masks, what: str) -> None:
    if len(shares) != pattern.layers or any(len(heads) != pattern.heads for heads in shares):
        raise ValueError(f"{what} must have an entry for each head of each layer.")
    if not all(0 <= share <= 1 for heads in shares for share in heads):
        raise ValueError(f"{what} must lie between 0 and 1.")


def check_sizes(patterns: Sequence[PatternText]) -> None:
    """The patterns of a file, before any is unpacked. Raises ValueError."""
    total = 0
    for pattern in patterns:
        if min(pattern.length, pattern.block_size, pattern.batch, pattern.heads) < 1:
            raise ValueError("'length', 'block_size', 'batch' or 'heads' of the pattern is below 1.")
        if len(pattern.layers) != len(pattern.kept) or not pattern.layers:
            raise ValueError("'layers' and 'kept' of the pattern must be of the same length.")
        pairs = math.prod(pattern.shape)
        if pairs > _MOST_PAIRS:
            raise ValueError(f"the pattern is too large: at most {_MOST_PAIRS:,} block pairs a layer.")
        if len(pattern.layers) * pairs > _MOST_PAIRS_OF_ALL:
            raise ValueError(f"the pattern is too large: at most {_MOST_PAIRS_OF_ALL:,} block pairs in all layers.")
        if len(pattern.importance) not in (0, len(pattern.layers)):
            raise ValueError("'layers' and 'importance' of the pattern must be of the same length.")
        importances = len(pattern.importance) * pairs // pattern.batch
        if importances > MOST_IMPORTANCES:
            raise ValueError(f"the pattern has too many importances: at most {MOST_IMPORTANCES:,}.")
        total += len(pattern.layers) * -(-pairs // 8) + importances
    if total > _MOST_BYTES:
        raise ValueError(f"the patterns of its lanes are too large: at most {_MOST_BYTES:,} bytes in memory.")


def _check_pattern(pattern: Masks, lane: Lane, trace: Trace) -> None:
    layout = pattern.layout
    there = {trace.length if step.length is None else step.length for step in lane.steps}
    if layout.prompt_length != trace.prompt.tokens or layout.length not in there:
        raise ValueError("the pattern has another length than the sequence.")
    rows = lane.attention.generation_rows
    full = layout.generation_query_blocks if rows == "full" else 0
    if pattern.full_blocks != full:
        raise ValueError(f"'full_blocks' must be {full} with generation_rows {rows!r}, not {pattern.full_blocks}.")
    if pattern.kept_mass:
        _check_shares(pattern.kept_mass, pattern, "'kept_mass'")
    for layer, kept in enumerate(pattern.kept):
        selected, everything = np.split(pattern.mask(layer), [layout.blocks - full], axis=2)
        if not everything.all():
            raise ValueError(f"layer {layer} of the pattern lacks blocks in the query blocks that see every one.")
        if not selected.sum(-1).max(initial=0) <= kept <= layout.blocks:
            raise ValueError(f"layer {layer} of the pattern keeps another number of blocks than {kept}.")
