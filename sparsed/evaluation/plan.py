"""What an evaluation asks: question types, lengths, depths, seeds. (How it is answered: `methods`.)"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sparsed.config import AttentionConfig, SamplerConfig, SparseDConfig
from sparsed.parallel.crew import Crew
from sparsed.questions.build import check_depth
from sparsed.questions.lengths import length_name, token_budget

TYPES: dict[str, tuple[str, ...]] = {
    "lookup": ("fact", "inverse"),
    "two_hop": ("two_hop",),
    "comparison": ("older", "same"),
    "several": ("several", "about"),
    "arithmetic": ("arithmetic",),
    "unanswerable": ("unanswerable",),
    "chain3": ("chain3",),
    "chain4": ("chain4",),
    "open": ("open",),
    "list": ("list",),
}
"""Question types of the grid, and the kinds of `sparsed.questions` that each asks in turns."""
USUAL_TYPES = tuple(name for name in TYPES if name != "unanswerable")
"""Those that are asked where none are named."""
LENGTHS = ("512", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k")
# So many of each type up to so many tokens; 20 beyond.
_QUESTIONS = ((16_384, 200), (32_768, 100), (65_536, 40))
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
FIRST_SEED = 3_000_000


@dataclass(frozen=True)
class Cell:
    """Questions of one type at one prompt length."""

    type: str
    length: str
    questions: int


@dataclass(frozen=True)
class Plan:
    """What is asked of all answers of an evaluation alike; with the model it makes their folder's key
    (`sparsed.evaluation.key`).

    sampler: None is the model's default; methods may have a cache, and steps, block_length and threshold of their own
    (`sparsed.evaluation.methods`). attention: of sparse methods, None by length. backend: what computes the
    sparse steps. depths: where the needed documents stand, question by question in turns; None leaves that to chance.
    """

    sampler: SamplerConfig = SamplerConfig()
    attention: AttentionConfig = SparseDConfig()
    backend: str = "auto"
    depths: tuple[float, ...] | None = DEPTHS

    def __post_init__(self) -> None:
        for depth in self.depths or ():
            check_depth(depth)


def default_cells(lengths: Iterable[str], types: Iterable[str], questions: int | None = None) -> list[Cell]:
    """The evaluation grid: 200 questions a cell up to 16k, 100 at 32k, 40 at 64k, 20 at 128k."""
    types = list(dict.fromkeys(types))
    cells = []
    for length in dict.fromkeys(map(length_name, lengths)):
        tokens = token_budget(length)
        usual = next((many for most, many in _QUESTIONS if tokens <= most), 20)
        cells += [Cell(type, length, questions or usual) for type in types]
    return cells


def file_name(shard: tuple[int, int], crew: Crew) -> str:
    """What this process's files are called by."""
    return crew.name if crew.size > 1 else f"{shard[0]}-of-{shard[1]}"
