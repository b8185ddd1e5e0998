"""A visitor's last run, as the figure of accuracy against speed shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.figures.own_run import Mark
from app.figures.palette import LANES
from app.finished.run import Kept
from sparsed.questions.lengths import token_budget

# A text of one's own is as long as a length says within so much.
NEAR = 0.02


@dataclass(frozen=True)
class OwnRun:
    """A run that is over: the model's label, its prompt tokens, its lanes with a speed-up (none of one that was
    stopped); the prompt length by name, None for a text of one's own.
    """

    model: str
    tokens: int
    marks: tuple[Mark, ...]
    length: str | None = None

    def length_of(self, lengths: Sequence[str]) -> str | None:
        """The one of these prompt lengths that its prompt has; None where it has another."""
        if self.length is not None:
            return self.length if self.length in lengths else None
        return next((name for name in lengths if abs(self.tokens / token_budget(name) - 1) <= NEAR), None)


def own_run(run: Kept, played: Mapping[str, Any]) -> OwnRun | None:
    """What the figure shows of a run; None of one that was not made on this page. played: its replay
    (`app.finished.replay.replay_value`).
    """
    if not run.live:
        return None
    about, asked = run.trace.model, run.trace.prompt
    marks = []
    for lane in played["lanes"] if played["state"] == "done" else ():
        ratio = 1.0 if lane["key"] == played["reference"] else (lane["speedup"] or {}).get("ratio")
        if ratio:
            marks.append(Mark(lane["label"], ratio, lane["right"], LANES[lane["style"] - 1]))
    return OwnRun(about.label or about.name, asked.tokens, tuple(marks), asked.length)
