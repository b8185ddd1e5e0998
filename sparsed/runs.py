"""What is kept of runs (`sparsed.denoising.info`, as a record), and what is said about many of them.

No torch here: tables of what is kept are made without.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from sparsed.config import NO_CACHE, select_step

COMMON = ("sampler", "dtype", "device", "total")
"""What all runs of a table have alike: without it, they are not compared."""
QUESTION = ("prompt_tokens",)
"""What all runs of one prompt have alike, likewise."""
METHOD = ("attention", "cache", "backend", "dense_backend")
"""What all runs of one method and prompt length have alike; where they do not, a table says so."""
OWN = ("batch", "phases", "forwards", "rows", "finished", "switch_step", "notes")
"""What belongs to one run alone. Every field of a record is in one of these four."""


class RunRecord(TypedDict):
    """`RunInfo.record()`; see there."""

    sampler: dict[str, Any]
    attention: dict[str, Any]
    cache: dict[str, Any]
    backend: str
    dense_backend: str
    dtype: str
    device: str
    prompt_tokens: int
    batch: int
    phases: dict[str, int]
    forwards: int
    rows: dict[str, int]
    total: int
    finished: bool
    switch_step: int | None
    notes: list[str]


def never_sparse(run: RunRecord) -> bool:
    """It was to become sparse, and every step had full attention."""
    return run["attention"]["method"] != "dense" and not run["phases"]["sparse"]


def dense_again(run: RunRecord) -> bool:
    """It was sparse, and went back to full attention (on_no_gain "dense")."""
    switch, attention = run["switch_step"], run["attention"]
    if switch is None:
        return False
    if _value(run, "cache")["method"] != "none":
        # Its steps over few rows may see all keys, and count as dense.
        return any("this run is dense again" in note for note in run["notes"])
    # With refresh a semi-autoregressive block may begin, and select again, before the first sparse step.
    refresh = attention.get("refresh")
    before = select_step(run["total"], attention["skip"], attention["selection"]) if refresh else switch - 1
    return run["phases"]["dense"] > before


def unlike(one: RunRecord | None, two: RunRecord | None, names: Sequence[str] = (*COMMON, *QUESTION)) -> list[str]:
    """In which of these fields two runs differ. Of two of which nothing was kept, none is known to."""
    if one is None or two is None:
        return [] if one is two else list(names)
    return [name for name in names if _value(one, name) != _value(two, name)]


@dataclass(frozen=True)
class Tally:
    """Of how many runs something is known, how many of them never were sparse, and how many went back to dense."""

    known: int = 0
    never_sparse: int = 0
    dense_again: int = 0

    @classmethod
    def of(cls, runs: Iterable[RunRecord | None]) -> Tally:
        known = [run for run in runs if run is not None]
        return cls(len(known), sum(map(never_sparse, known)), sum(map(dense_again, known)))

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.known + other.known, self.never_sparse + other.never_sparse, self.dense_again + other.dense_again
        )

    def words(self) -> list[str]:
        """What belongs beside a heading: "never sparse", "never sparse in 2 of 40", "dense again"; often nothing."""
        return [
            words if count == self.known else f"{words} in {count} of {self.known}"
            for count, words in ((self.never_sparse, "never sparse"), (self.dense_again, "dense again"))
            if count
        ]

    def heading(self, label: str) -> str:
        """The label, and what belongs beside it: "SparseD (never sparse)"."""
        words = self.words()
        return f"{label} ({', '.join(words)})" if words else label


def notes_of(runs: Iterable[tuple[str, RunRecord | None]]) -> list[dict[str, Any]]:
    """The notes of runs, each with the label of its run: {"note", "label", "times", "of"}: in so many of its runs.

    Notes that differ in their numbers alone are one, in the words of the first.
    """
    of: Counter[str] = Counter()
    found: Counter[tuple[str, str]] = Counter()
    words: dict[tuple[str, str], str] = {}
    for label, run in runs:
        if run is None:
            continue
        of[label] += 1
        for key, note in {(label, kind_of(note)): note for note in run["notes"]}.items():
            found[key] += 1
            words.setdefault(key, note)
    return [{"note": words[key], "label": key[0], "times": count, "of": of[key[0]]} for key, count in found.items()]


def told(notes: Iterable[Mapping[str, Any]], labels: Callable[[str], str] = str) -> list[str]:
    """The notes of `notes_of` as lines, each once: "Note (Full attention: 4 of 4; SparseD: 4 of 4): …"."""
    who: dict[str, list[str]] = {}
    words: dict[str, str] = {}
    for note in notes:
        kind = kind_of(note["note"])
        words.setdefault(kind, note["note"])
        who.setdefault(kind, []).append(f"{labels(note['label'])}: {note['times']} of {note['of']}")
    return [f"Note ({'; '.join(who[kind])}): {words[kind]}" for kind in words]


def kind_of(note: str) -> str:
    """A note without its numbers."""
    return re.sub(r"\d[\d.,]*", "#", note)


def settings_of(runs: Iterable[tuple[Mapping[str, Any], RunRecord | None]]) -> list[dict[str, Any]]:
    """The settings that runs had, by their places (plain values, such as a length and a method): a row for each
    combination of values, {**place, "runs": how many had it, and the fields of COMMON and METHOD}.
    """
    rows: dict[str, dict[str, Any]] = {}
    for place, run in runs:
        if run is None:
            continue
        row = {**place, "runs": 0, **{name: _value(run, name) for name in (*COMMON, *METHOD)}}
        rows.setdefault(repr(row), row)["runs"] += 1
    return list(rows.values())


def disagreements(rows: Sequence[Mapping[str, Any]], places: Sequence[str]) -> list[str]:
    """Where runs of one place differ in their settings: "4k, SparseD: backend is triton in 20 runs, flash4 in 180."

    rows: of `settings_of`. places: the names that make a place.
    """
    said = []
    for place in dict.fromkeys(tuple(str(row[name]) for name in places) for row in rows):
        own = [row for row in rows if tuple(str(row[name]) for name in places) == place]
        for name in (*COMMON, *METHOD):
            counts: Counter[str] = Counter()
            for row in own:
                for value in _parts(name, row[name]):
                    counts[value] += row["runs"]
            total = sum(row["runs"] for row in own)
            split = {value: count for value, count in counts.items() if count < total}
            if split:
                values = ", ".join(f"{value} in {count}" for value, count in split.items())
                said.append(f"{', '.join(place)}: not all {total} answers had the same {name}: {values}.")
    return said


def _parts(name: str, value: Any) -> list[str]:
    """A value in words; of a config each setting by itself."""
    return [f"{key} {one}" for key, one in value.items()] if isinstance(value, dict) else [str(value)]


def _value(run: RunRecord, name: str) -> Any:
    """A field's value; of the device its kind alone: processes that share the work have a GPU each. Records from before
    there were caches have none.
    """
    value: Any = run.get(name, NO_CACHE.record() if name == "cache" else None)
    return value.partition(":")[0] if name == "device" else value
