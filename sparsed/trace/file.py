"""A trace as a file: gzipped JSON."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sparsed.config import FULL_ATTENTION, AttentionConfig
from sparsed.trace.check import check_sizes, check_trace
from sparsed.trace.patterns import PatternText, from_text, to_text
from sparsed.trace.types import FORMAT, VERSION, Trace
from sparsed.typed_json import read_as

# A trace may come from a stranger: what it can ask of memory is bounded.
_MOST_BYTES = 256 * 2**20


def save(trace: Trace, path: str | Path) -> None:
    """Writes the file; compressed if its name ends with ".gz"."""
    bare = replace(trace, lanes={name: replace(lane, pattern=None) for name, lane in trace.lanes.items()})
    record = {"format": FORMAT, "version": VERSION, **asdict(bare)}
    for name, lane in trace.lanes.items():
        record["lanes"][name]["attention"] = recorded_attention(lane.attention)
        record["lanes"][name]["pattern"] = None if lane.pattern is None else asdict(to_text(lane.pattern))
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
        _read_attentions(raw.get("lanes"))
        _read_patterns(raw.get("lanes"))
        trace: Trace = read_as(Trace, raw, "the trace")
        check_trace(trace)
    except ValueError as error:
        raise ValueError(f"{path.name} is damaged: {error}") from None
    return trace


def _no_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}.")


def recorded_attention(attention: AttentionConfig) -> dict[str, Any] | str:
    """An attention as version 1 writes it: "dense", or the settings with the method under the key "pattern"."""
    values = asdict(attention)
    return "dense" if attention.dense else {"pattern": values.pop("method"), **values}


def _read_attentions(lanes: Any) -> None:
    """The way back, in place; what is no attention is left for the types to refuse."""
    for lane in lanes.values() if isinstance(lanes, dict) else ():
        told = lane.get("attention") if isinstance(lane, dict) else None
        if told == "dense":
            lane["attention"] = asdict(FULL_ATTENTION.resolve(0))
        elif isinstance(told, str):
            raise ValueError("'attention' must be one of 'dense'.")
        elif isinstance(told, dict):
            lane["attention"] = {**told, "method": told.get("pattern", "sparsed")}


def _read_patterns(lanes: Any) -> None:
    """Likewise each pattern, which becomes Masks. Raises ValueError for what is damaged or too large."""
    found = [lane for lane in lanes.values() if isinstance(lane, dict)] if isinstance(lanes, dict) else []
    found = [lane for lane in found if lane.get("pattern") is not None]
    texts: list[PatternText] = [read_as(PatternText, lane["pattern"], "'pattern'") for lane in found]
    check_sizes(texts)
    for lane, text in zip(found, texts):
        lane["pattern"] = from_text(text)
