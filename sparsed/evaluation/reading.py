"""What a folder of results holds."""

from __future__ import annotations

from pathlib import Path

from sparsed.evaluation.plan import TYPES
from sparsed.evaluation.scores import Answer, Observation
from sparsed.questions.lengths import token_budget
from sparsed.results_folder import read_lines


def read_records(folder: Path) -> list[Answer]:
    """All records of a folder, of all processes, by question; an answer that two processes gave counts once."""
    records = (Answer(**entry) for entry in read_lines(folder, "records"))
    return sorted({(r.type, r.length, r.index, r.method): r for r in records}.values(), key=question_of)


def read_observations(folder: Path) -> list[Observation]:
    """All observations of a folder, of all processes, by question; one that was made twice counts once."""
    observations = (Observation(**entry) for entry in read_lines(folder, "observations"))
    return sorted({(o.type, o.length, o.index): o for o in observations}.values(), key=question_of)


def question_of(entry: Answer | Observation) -> tuple[int, int, int]:
    """An order in which sums and tables come out the same, whichever process did what."""
    types = list(TYPES)
    place = types.index(entry.type) if entry.type in types else len(types)
    return place, token_budget(entry.length), entry.index
