"""What the runs of an evaluation really were: their settings, steps and notes, counted for each task.

A task's score says nothing of how it came about; this stands beside it in the results.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparsed.denoising.info import RunInfo
from sparsed.runs import COMMON, METHOD, QUESTION, dense_again, kind_of

# What a run's record says of its settings.
_SETTINGS = (*COMMON, *METHOD, *QUESTION, "batch")
# So many different numbers are written as a range.
_MANY = 8


@dataclass
class Count:
    """The runs of one kind for one task.

    requests: answered by them. never_sparse: finished runs that were to become sparse and did not. dense_again: runs
    that were sparse and went back to full attention (on_no_gain). tokens, seconds: of
    generated answers, and of their steps alone. notes: kind of note → (the first of them, how often). values: setting →
    its values, by their JSON.
    """

    requests: int = 0
    runs: int = 0
    never_sparse: int = 0
    dense_again: int = 0
    forwards: int = 0
    steps: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)  # positions of a sequence that steps of each phase computed
    tokens: int = 0
    seconds: float = 0.0
    notes: dict[str, tuple[str, int]] = field(default_factory=dict)
    values: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, info: RunInfo, requests: int) -> None:
        self.requests += requests
        self.runs += 1
        self.never_sparse += info.never_sparse and info.finished
        self.forwards += info.forwards
        self.steps.update(info.phases)
        self.rows.update(info.rows)
        for note in info.notes:
            self.note(note)
        record: Any = info.record()
        self.dense_again += dense_again(record)
        for name in _SETTINGS:
            value = record[name]
            for inner, one in value.items() if isinstance(value, dict) else [("", value)]:
                self._see(f"{name}.{inner}" if inner else name, one)

    def note(self, sentence: str, times: int = 1) -> None:
        kind = kind_of(sentence)
        first, before = self.notes.get(kind, (sentence, 0))
        self.notes[kind] = first, before + times

    def merge(self, other: Count) -> None:
        """Adds what another process counted."""
        self.requests += other.requests
        self.runs += other.runs
        self.never_sparse += other.never_sparse
        self.dense_again += other.dense_again
        self.forwards += other.forwards
        self.steps.update(other.steps)
        self.rows.update(other.rows)
        self.tokens += other.tokens
        self.seconds += other.seconds
        for sentence, times in other.notes.values():
            self.note(sentence, times)
        for name, values in other.values.items():
            for value in values.values():
                self._see(name, value)

    def record(self) -> dict[str, Any]:
        """As plain values for JSON. A setting that all runs share is its value, another one what it was in the runs."""
        found: dict[str, Any] = {
            "requests": self.requests,
            "runs": self.runs,
            "never_sparse": self.never_sparse,
            "dense_again": self.dense_again,
            "forwards": self.forwards,
            "steps": {phase: self.steps[phase] for phase in ("dense", "select", "sparse")},
            "rows": {phase: self.rows[phase] for phase in ("dense", "select", "sparse")},
        }
        if self.seconds:
            found |= {"tokens": self.tokens, "seconds": round(self.seconds, 3)}
        for name, values in self.values.items():
            part, _, inner = name.rpartition(".")
            (found.setdefault(part, {}) if part else found)[inner] = _together(list(values.values()))
        found["notes"] = dict(self.notes.values())
        return found

    def _see(self, name: str, value: Any) -> None:
        self.values.setdefault(name, {}).setdefault(json.dumps(value), value)


class Counts(dict[tuple[str, str], Count]):
    """(task, kind of its runs) → their count."""

    def of(self, task: str, kind: str) -> Count:
        return self.setdefault((task, kind), Count())

    @classmethod
    def of_all(cls, parts: Iterable[Counts]) -> Counts:
        """The counts of several processes as one."""
        whole = cls()
        for part in parts:
            for key, count in part.items():
                whole.of(*key).merge(count)
        return whole

    def record(self) -> dict[str, Any]:
        """{task: {kind: its count}} for JSON."""
        tasks: dict[str, Any] = {}
        for (task, kind), count in self.items():
            tasks.setdefault(task, {})[kind] = count.record()
        return tasks

    def never_sparse(self) -> str | None:
        """The sentence about runs that were to become sparse and did not; None if there are none."""
        found = [
            f"{task} ({kind}): {count.never_sparse} of {count.runs}"
            for (task, kind), count in self.items()
            if count.never_sparse
        ]
        if not found:
            return None
        return f"{', '.join(found)} runs never became sparse: these are full attention's results."


    def speed(self) -> str | None:
        """The sentence about the speed of generated answers; None if there are none."""
        made = {task: count for (task, _), count in self.items() if count.seconds}
        if not made:
            return None
        return "; ".join(
            f"{task}: {count.tokens} tokens in {count.seconds:.1f} s of denoising steps "
            f"({count.tokens / count.seconds:.1f} a second), {count.forwards} forwards"
            for task, count in made.items()
        )


def _together(values: Sequence[Any]) -> Any:
    """The one value; several in order; many numbers as their range."""
    if len(values) == 1:
        return values[0]
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        return sorted(values, key=json.dumps)
    return sorted(numbers) if len(numbers) <= _MANY else {"from": min(numbers), "to": max(numbers)}
