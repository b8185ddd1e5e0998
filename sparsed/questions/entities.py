"""People, places, works and documents of the invented world, and the questions about them."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from sparsed.questions.pieces import Pieces, material

HELD_OUT_SHARE = 8
"""One name in this many never occurs in training; prompts and evaluation are made of those names only."""
MOST_HOLDERS = 5
"""A list has at most so many names."""


def is_held_out(name: str) -> bool:
    """Whether a name belongs to the eighth of all names that training never shows."""
    return zlib.crc32(name.encode("utf-8")) % HELD_OUT_SHARE == 0


@cache
def names(kind: str, held_out: bool) -> tuple[str, ...]:
    """All names of a kind ("person", "town", "river", "company", "work") on one side of the held-out split."""
    data = material()
    if kind == "work":
        titles = data["work_titles"]
        made = (f"The {a} {n}" for a in titles["adjectives"] for n in titles["nouns"])
    else:
        parts = data["names"][kind]
        made = (s + m + e for s in parts["start"] for m in parts["middle"] for e in parts["end"])
    return tuple(name for name in made if is_held_out(name) == held_out)


@dataclass(eq=False)
class Entity:
    """A person, a town or a work with the facts its document states."""

    kind: str
    name: str
    facts: dict[str, str]
    pronoun: str = ""
    last_name: str = ""
    town: Entity | None = None
    author: Entity | None = None
    mayor: Entity | None = None


@dataclass(eq=False)
class Document:
    """One document: its text as pieces (without number) and what it describes (None for filler)."""

    pieces: Pieces
    entity: Entity | None = None


@dataclass(frozen=True)
class Question:
    """A question with its right answer, and the entities whose documents are needed to answer it.

    others: answers that are right as well, where there are several.
    """

    kind: str
    question: Pieces
    answer: Pieces
    entities: tuple[Entity, ...] = ()
    verdict: str = ""
    others: tuple[Pieces, ...] = ()

    @property
    def answers(self) -> tuple[Pieces, ...]:
        """Every right answer; the first is `answer`."""
        return (self.answer, *self.others)


class Supply:
    """Names of one kind in random order, each handed out once."""

    def __init__(self, rng: random.Random, kind: str, held_out: bool) -> None:
        self._pool, self._random = names(kind, held_out), rng.random
        self._used: set[int] = set()

    def take(self) -> str | None:
        """A name not handed out before, or None when nine in ten are used up (a blind draw then takes too long)."""
        size = len(self._pool)
        if len(self._used) * 10 >= size * 9:
            return None
        while (index := int(self._random() * size)) in self._used:
            pass
        self._used.add(index)
        return self._pool[index]


class Shared:
    """Values of one fact, some of which have two to `MOST_HOLDERS` people each.

    few: those, each handed out so often that it has them, one value after the other. common: draws one of the others,
    or None when they are used up.
    """

    def __init__(self, rng: random.Random, few: Sequence[str], common: Callable[[], str | None]) -> None:
        self._rng, self._few, self._common = rng, list(few), common
        self._waiting: list[str] = []

    def take(self) -> str | None:
        """The value of one more person: one of the few half of the time, as long as they last."""
        if self._rng.random() < 0.5 and (self._waiting or self._few):
            if not self._waiting:
                self._waiting = [self._few.pop()] * self._rng.randrange(2, MOST_HOLDERS + 1)
            return self._waiting.pop()
        return self._common()
