"""What a folder of results holds."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from sparsed.evaluation.cost import SIZES
from sparsed.evaluation.plan import TYPES
from sparsed.evaluation.scores import Answer, Observation
from sparsed.models.sizes import Sizes
from sparsed.questions.lengths import token_budget
from sparsed.results_folder import about_there, key_there, read_lines, strangers

Entry = TypeVar("Entry", Answer, Observation)


def read_records(folder: Path) -> list[Answer]:
    """All records of a folder, of all processes, by question; an answer that two processes gave counts once."""
    records = [_read(Answer, entry, folder) for entry in read_lines(folder, "records")]
    return sorted({(r.type, r.length, r.index, r.method): r for r in records}.values(), key=question_of)


def read_observations(folder: Path) -> list[Observation]:
    """All observations of a folder, of all processes, by question; one that was made twice counts once."""
    observations = [_read(Observation, entry, folder) for entry in read_lines(folder, "observations")]
    return sorted({(o.type, o.length, o.index): o for o in observations}.values(), key=question_of)


def read_sizes(folder: Path) -> Sizes | None:
    """The sizes of the network that gave the answers; None where an earlier version did not keep them."""
    there = about_there(folder).get(SIZES)
    return None if there is None else Sizes(**there)


def _read(kind: type[Entry], entry: dict[str, Any], folder: Path) -> Entry:
    try:
        return kind(**entry)
    except TypeError:
        wrong = entry.keys() ^ {field.name for field in fields(kind)}
        raise ValueError(
            f"{folder} holds {kind.__name__.lower()}s of another version of this program (unlike in "
            f"{', '.join(sorted(wrong))})."
        ) from None


def doubts(folder: Path) -> list[str]:
    """Sentences about what the entries of a folder do not say, and about entries that do not belong to it."""
    said = []
    if key_there(folder) is None and any(folder.glob("*.jsonl")):
        said.append(
            "These results are of an earlier version: with which weights, dtype, device and versions they were made, "
            "and how many of their steps were sparse, is not known."
        )
    for kind in ("records", "observations"):
        said += [
            f"{file} holds {count} {kind} of another plan than plan.json: they are left out."
            for file, count in strangers(folder, kind).items()
        ]
    return said


def question_of(entry: Answer | Observation) -> tuple[int, int, int]:
    """An order in which sums and tables come out the same, whichever process did what."""
    types = list(TYPES)
    place = types.index(entry.type) if entry.type in types else len(types)
    return place, token_budget(entry.length), entry.index
