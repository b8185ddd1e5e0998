"""A trace as a file: gzipped JSON."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sparsed import files
from sparsed.config import FULL_ATTENTION, AttentionConfig
from sparsed.trace.check import check_sizes, check_trace
from sparsed.trace.patterns import PatternText, from_text, to_text
from sparsed.trace.types import FORMAT, VERSION, Trace
from sparsed.typed_json import read_as

# A trace may come from a stranger: what it can ask of memory is bounded.
_MOST_BYTES = 256 * 2**20
# How a record begins, as it is written here.
_BEGINNING = re.compile(rb'\s*\{\s*"format"\s*:\s*"sparsed-trace"')
# Of JSON's words and of a character's code, all of which may be cut in two.
_LONGEST_WORD = 6
_NO_TRACE = f"{{}} is no trace: it does not hold a JSON object of format {FORMAT!r}."
_CUT_OFF = "{} is cut off: it ends in the middle of the record. Copy or download it again."


def save(trace: Trace, path: str | Path) -> None:
    """Writes the file, whole or not at all (`sparsed.files.write`); compressed if its name ends with ".gz"."""
    bare = replace(trace, lanes={name: replace(lane, pattern=None) for name, lane in trace.lanes.items()})
    record = {"format": FORMAT, "version": VERSION, **asdict(bare)}
    for name, lane in trace.lanes.items():
        record["lanes"][name]["attention"] = recorded_attention(lane.attention)
        record["lanes"][name]["pattern"] = None if lane.pattern is None else asdict(to_text(lane.pattern))
    text = json.dumps(record, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
    files.write(path, gzip.compress(text, compresslevel=6) if Path(path).suffix == ".gz" else text)


def load(path: str | Path) -> Trace:
    """Reads what `save` wrote.

    Raises ValueError, in one sentence, for a file that is no trace, cut off, of another version, damaged or larger than
    256 MiB; OSError if it cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if content.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(io.BytesIO(content)) as unpacked:
                content = unpacked.read(_MOST_BYTES + 1)
        except EOFError:
            raise ValueError(_CUT_OFF.format(path.name)) from None
        except (OSError, zlib.error):
            raise ValueError(f"{path.name} is damaged: it cannot be decompressed.") from None
    if len(content) > _MOST_BYTES:
        raise ValueError(f"{path.name} is too large for a trace: at most {_MOST_BYTES // 2**20} MiB.")
    raw = _object(content, path.name)
    if raw.get("format") != FORMAT:
        raise ValueError(_NO_TRACE.format(path.name))
    version = raw.get("version")
    if type(version) is not int:
        told = f"{version!r:.20}"
        raise ValueError(f"{path.name} is damaged: 'version' must be a whole number, as {VERSION}, not {told}.")
    if version != VERSION:
        raise ValueError(f"{path.name} is a trace of version {str(version)[:20]}; this program reads {VERSION}.")
    try:
        _read_attentions(raw.get("lanes"))
        _read_patterns(raw.get("lanes"))
        trace: Trace = read_as(Trace, raw, "the trace")
        check_trace(trace)
    except ValueError as error:
        raise ValueError(f"{path.name} is damaged: {error}") from None
    return trace


def _object(content: bytes, name: str) -> dict[str, Any]:
    """The JSON object of a file. Raises ValueError, which tells one that is cut off or damaged from what is none."""
    if not content.strip():
        raise ValueError(f"{name} is no trace: it is empty.")
    try:
        # Half a character at the end is no other fault than half a number.
        text = content.decode("utf-8", errors="replace" if _BEGINNING.match(content) else "strict")
        raw = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        if not _BEGINNING.match(content):
            raise ValueError(_NO_TRACE.format(name)) from None
        # What is missing is missed where the text ends, or where the last string began.
        if error.msg.startswith("Unterminated string") or error.pos >= len(text.rstrip()) - _LONGEST_WORD:
            raise ValueError(_CUT_OFF.format(name)) from None
        raise ValueError(f"{name} is damaged: it is no JSON from character {error.pos + 1:,} on.") from None
    except (ValueError, RecursionError):
        if _BEGINNING.match(content):
            raise ValueError(f"{name} is damaged: it holds a number or a depth that cannot be read.") from None
        raw = None
    if not isinstance(raw, dict):
        raise ValueError(_NO_TRACE.format(name))
    return raw


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
