"""Traces: what runs were, step by step, in a file that can be replayed. The format: docs/trace-format.md."""

from sparsed.trace.file import load, save
from sparsed.trace.recording import record
from sparsed.trace.types import (
    Commit,
    Lane,
    LaneInfo,
    ReplayedStep,
    Trace,
    TraceModel,
    TraceProbe,
    TracePrompt,
    TraceStep,
    replay,
)

__all__ = [
    "Commit",
    "Lane",
    "LaneInfo",
    "ReplayedStep",
    "Trace",
    "TraceModel",
    "TraceProbe",
    "TracePrompt",
    "TraceStep",
    "load",
    "record",
    "replay",
    "save",
]
