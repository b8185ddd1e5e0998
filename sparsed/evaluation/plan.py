"""What an evaluation asks: methods, question types, lengths, depths, seeds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from sparsed.config import FULL_ATTENTION, METHODS, AttentionConfig, SamplerConfig, SparseDConfig
from sparsed.options import ATTENTION, reader
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
LENGTHS = ("512", "1k", "2k", "4k", "8k", "16k", "32k", "64k")
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
FIRST_SEED = 3_000_000
ABLATIONS = (
    *(f"sparsed:skip={skip}" for skip in (0, 0.1, 0.2, 0.3, 0.4, 0.5)),
    *(f"sparsed:select={select}" for select in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1)),
    *(f"sparsed:block_size={size}" for size in (32, 64, 128)),
    "sparsed:reuse=no",
    "sparsed:isolated=no",
)
"""What the paper varies, one setting at a time."""


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

    sampler: None is the model's default. attention: of sparse methods, None by length. backend: what computes the
    sparse steps. depths: where the needed documents stand, question by question in turns; None leaves that to chance.
    """

    sampler: SamplerConfig = SamplerConfig()
    attention: AttentionConfig = SparseDConfig()
    backend: str = "auto"
    depths: tuple[float, ...] | None = DEPTHS

    def __post_init__(self) -> None:
        for depth in self.depths or ():
            check_depth(depth)


def parse_method(method: str, base: AttentionConfig) -> AttentionConfig:
    """A method as it is written on the command line: one of METHODS, with settings of its own but for "dense".

    "sparsed:skip=0", "sliding_window:select=0.1,reuse=no". What is not given is `base`'s. Raises ValueError for
    anything else.
    """
    name, colon, said = method.partition(":")
    if method == "dense":
        return FULL_ATTENTION
    if name not in METHODS or name == "dense":
        raise ValueError(f"Method {method!r} is unknown; choose from {', '.join(METHODS)}.")
    values: dict[str, Any] = {}
    for part in said.split(",") if colon else ():
        key, _, value = part.partition("=")
        try:
            values[key] = reader(_SETTINGS[key])(value)
        except (KeyError, ValueError):
            raise ValueError(
                f"Method {method!r}: {part!r} is no setting; write one of {', '.join(_SETTINGS)} as name=value."
            ) from None
    return replace(base, method=name, **values)


def spelled(method: str, base: AttentionConfig) -> str:
    """The one way to write a method: "sparsed:skip=0,select=0.1" for "sparsed:select=.1,skip=0.0". Raises ValueError as
    `parse_method` does.
    """
    config = parse_method(method, base)
    name, _, said = method.partition(":")
    given = {part.partition("=")[0] for part in said.split(",")}
    settings = [f"{key}={_spelled(getattr(config, key))}" for key in _SETTINGS if key in given]
    return ":".join([name, *([",".join(settings)] if settings else [])])


def _spelled(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value).removesuffix(".0")


_SETTINGS = {name: row for name, row in ATTENTION.items() if name != "method"}


def default_cells(lengths: Iterable[str], types: Iterable[str], questions: int | None = None) -> list[Cell]:
    """The evaluation grid: 200 questions a cell up to 16k, 100 at 32k, 40 at 64k."""
    types = list(dict.fromkeys(types))
    cells = []
    for length in dict.fromkeys(map(length_name, lengths)):
        tokens = token_budget(length)
        usual = 200 if tokens <= 16384 else 100 if tokens <= 32768 else 40
        cells += [Cell(type, length, questions or usual) for type in types]
    return cells


def method_name(shard: tuple[int, int], crew: Crew) -> str:
    """What this process's files are called by."""
    return crew.name if crew.size > 1 else f"{shard[0]}-of-{shard[1]}"
