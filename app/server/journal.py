"""The log: one line of JSON for each run and each other event. What visitors write, and the messages of exceptions,
which may quote it, stay out unless SPARSED_LOG_PROMPTS=1 asks for them.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, TextIO

Via = Literal["page", "api", "sweep", "series"]
Ending = Literal["done", "stopped", "refused", "failed", "overdue", "full"]

ROOT = Path(__file__).resolve().parents[2]
# The longest text that a log line takes over, in characters; prompts are cut later.
LONGEST_TEXT, LONGEST_PROMPT = 300, 20_000


@dataclass(frozen=True)
class RunReport:
    """What there is to say about one run when it is over."""

    run: int
    via: Via
    model: str
    kind: str
    tokens: int | None
    gen_length: int
    steps: int
    state: Ending
    waited: float = 0.0  # seconds in line
    seconds: float = 0.0  # wall time from having the device to the end
    lane_seconds: Mapping[str, float] = field(default_factory=dict)  # device time of each lane by its key
    speedup: float | None = None
    right: tuple[bool | None, ...] = ()  # verdicts, one a lane, None where there is none
    error: str = ""  # the exception's class name
    prompt: str = ""  # the visitor's text; it is only written where prompts are


class Journal:
    """Writes the log. Any thread may write; no failure to write, a closed stream among them, reaches the caller.

    stream: None is sys.stderr as it is when a line is written. prompts: whether visitors' texts are written too.
    """

    def __init__(self, stream: TextIO | None = None, prompts: bool = False) -> None:
        self.prompts = prompts
        handler = _Handler(stream)
        handler.setFormatter(_JsonLine())
        # Not by `getLogger`: what another library does to the loggers it finds there is not done to this one.
        self._logger = logging.Logger("sparsed")
        self._logger.addHandler(handler)

    @classmethod
    def here(cls, environment: Mapping[str, str] | None = None, stream: TextIO | None = None) -> Journal:
        """The journal of this machine: SPARSED_LOG_PROMPTS=1 writes prompts. Raises ValueError for other values than
        0 and 1.
        """
        text = (os.environ if environment is None else environment).get("SPARSED_LOG_PROMPTS", "").strip()
        if text not in ("", "0", "1"):
            raise ValueError(f"SPARSED_LOG_PROMPTS is {text!r}; it must be 0 or 1.")
        return cls(stream, prompts=text == "1")

    def note(self, report: RunReport) -> None:
        """One run. Its prompt is left out unless prompts are written."""
        facts = asdict(report)
        # A class name and nothing else: a message may quote the prompt.
        if not re.fullmatch(r"[\w.]{0,100}", report.error, re.ASCII):
            facts["error"] = "unnamed"
        prompt = facts.pop("prompt")
        if self.prompts:
            facts["prompt"] = one_line(prompt, LONGEST_PROMPT)
        self.event("run", **facts)

    def event(self, name: str, /, **facts: object) -> None:
        """Anything else, such as "start", "model", "stopping" or "error"."""
        self._logger.info(name, extra={"facts": facts})

    def error(self, error: BaseException, /, **facts: object) -> None:
        """An exception nobody expected: its class and where it came from; its message only if prompts are written, for
        it may quote one.
        """
        if self.prompts:
            facts["message"] = error
        self.event("error", **{**facts, "error": type(error).__name__, "trace": _trace(error)})


class _Handler(logging.StreamHandler):
    """Follows sys.stderr where it has no stream of its own, and says nothing about a line that cannot be written."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(stream)
        self._own = stream

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr if self._own is None else self._own
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Whatever is wrong with the log, the run goes on."""


class _JsonLine(logging.Formatter):
    """Sorted keys, ASCII, UTC."""

    def format(self, record: logging.LogRecord) -> str:
        now = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        facts: Mapping[str, object] = record.facts  # type: ignore[attr-defined]
        plain = {key: value if key == "prompt" else _plain(value) for key, value in facts.items()}
        line = {**plain, "event": one_line(record.msg), "time": now.replace("+00:00", "Z")}
        return json.dumps(line, sort_keys=True, allow_nan=False)


def one_line(text: str, longest: int = LONGEST_TEXT) -> str:
    """The text in one line of at most `longest` characters."""
    whole = len(text) <= longest
    return " ".join((text if whole else text[: longest - 1] + "…").splitlines())


def _plain(value: object) -> object:
    """What JSON can say, without line breaks, NaN or endless texts."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {one_line(str(key)): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    return one_line(value if isinstance(value, str) else str(value))


def _trace(error: BaseException) -> list[str]:
    """Where an exception came from, outermost first: file:line in function, without the lines' text."""
    places = []
    for frame in traceback.extract_tb(cause(error).__traceback__)[-30:]:
        path = Path(frame.filename)
        short = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path(*path.parts[-2:])
        places.append(f"{short.as_posix()}:{frame.lineno} in {frame.name}")
    return places


def cause(error: BaseException) -> BaseException:
    """The first single exception of a group, which is what a task group makes of one."""
    while inner := getattr(error, "exceptions", None):
        error = inner[0]
    return error
