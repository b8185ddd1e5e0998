"""The documents of an invented world: who lives where, wrote what, plays what."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from sparsed.questions.entities import Document, Entity, Shared, Supply
from sparsed.questions.pieces import Measure, Pieces, joined, material, number_pieces, render, words

SHARED_COMPANIES = 30
"""At most so many companies of a rich world have several people each; all others have one."""

_PERSON_FACTS = (
    ("job", 0.75),
    ("born", 0.75),
    ("town", 0.9),
    ("company", 0.55),
    ("instrument", 0.55),
    ("language", 0.55),
    ("pet", 0.55),
)
ALL_FACTS = {
    "person": tuple(key for key, _ in _PERSON_FACTS),
    "town": ("river", "mayor", "population", "product"),
    "work": ("author", "year"),
}
"""The facts that a document of each kind may state."""


@dataclass
class Documents:
    """Makes documents from one random generator.

    Args:
        rng: the only source of randomness.
        held_out: use names that training never shows (demo and evaluation) or only the others (training).
        rich: people have more to do with each other, for questions of several steps or with several right answers. A
            town has two to five people, three in four mayors are among them, and two in five people made a work; some
            instruments, languages, professions, pets and companies have two to five people each.
        used: ids of entities that are not to be asked about.
    """

    rng: random.Random
    held_out: bool
    rich: bool = False
    documents: list[Document] = field(default_factory=list)
    used: set[int] = field(default_factory=set)
    _described: set[int] = field(default_factory=set)
    _holders: dict[str, dict[str, list[Entity]]] = field(default_factory=dict)
    _routes: list[tuple[Entity, Entity, Entity]] | None = None

    def __post_init__(self) -> None:
        self.material = material()
        self.supply = {
            kind: Supply(self.rng, kind, self.held_out) for kind in ("person", "town", "river", "company", "work")
        }
        self.first_names = [(first, pron) for pron, firsts in self.material["first_names"].items() for first in firsts]
        self._shared = self._shares() if self.rich else {}

    def _shares(self) -> dict[str, Shared]:
        rng, values, company = self.rng, self.material["values"], self.supply["company"]
        few = [name for _ in range(SHARED_COMPANIES) if (name := company.take()) is not None]
        shares = {"company": Shared(rng, few, company.take)}
        pets = [f"a {colour} {animal}" for colour in values["pet_colour"] for animal in values["pet_animal"]]
        choices = {"pet": pets, **{key: values[key] for key in ("job", "instrument", "language")}}
        for key, all_values in choices.items():
            mixed = rng.sample(all_values, len(all_values))
            third = len(mixed) // 3
            shares[key] = Shared(rng, mixed[:third], partial(rng.choice, mixed[third:]))
        return shares

    def fill(self, measure: Measure, budget: int, filler: float) -> None:
        """Add documents, in random order and unnumbered, until about ``budget`` tokens of them stand there.

        Args:
            measure: tokens of a list of pieces, its number and line end not included.
            budget: tokens to fill, numbers and line ends included; never exceeded.
            filler: share of documents that describe nobody, 0 to 1.
        """
        left = budget
        number_cost = measure(number_pieces(max(1, budget // 25)))
        for document in self._stream(filler):
            cost = measure(document.pieces) + number_cost
            if cost > left:
                break
            left -= cost
            self.documents.append(document)
            if document.entity is not None:
                self._described.add(id(document.entity))
        self.rng.shuffle(self.documents)
        self._holders.clear()
        self._routes = None

    def _stream(self, filler: float) -> Iterator[Document]:
        rng = self.rng
        while True:
            group = self._rich_group() if self.rich else self._group()
            rng.shuffle(group)
            for document in group:
                while rng.random() < filler:
                    yield self.filler_document()
                yield document
            if not group:
                yield self.filler_document()

    def _group(self) -> list[Document]:
        """A town, its people and their works."""
        rng = self.rng
        town = self._town()
        group = [] if town is None else [self._describe(town)]
        for _ in range(rng.choice((1, 2, 2, 3, 3, 4))):
            person = self._person(town)
            if person is None:
                break
            group.append(self._describe(person))
            if rng.random() < 0.3 and (work := self._work(person)) is not None:
                group.append(self._describe(work))
        return group

    def _rich_group(self) -> list[Document]:
        """A town, its people, with its mayor among them three times in four, and their works."""
        rng = self.rng
        town = self._town()
        people = [one for _ in range(rng.randrange(2, 6)) if (one := self._person(town)) is not None]
        if town is not None and "mayor" in town.facts and people and rng.random() < 0.75:
            town.mayor = rng.choice(people)
            town.facts["mayor"] = town.mayor.name
        works = [work for one in people if rng.random() < 0.4 and (work := self._work(one)) is not None]
        return [self._describe(entity) for entity in (*([] if town is None else [town]), *people, *works)]

    def full_name(self) -> tuple[str, str, str] | None:
        """A new person's (full name, last name, pronoun), or None when the names are used up."""
        last = self.supply["person"].take()
        if last is None:
            return None
        first, pronoun = self.rng.choice(self.first_names)
        return f"{first} {last}", last, pronoun

    def _person(self, town: Entity | None) -> Entity | None:
        named = self.full_name()
        if named is None:
            return None
        name, last, pronoun = named
        while True:
            chosen = [key for key, share in _PERSON_FACTS if self.rng.random() < share]
            if 3 <= len(chosen) <= 6:
                break
        facts: dict[str, str] = {}
        for key in chosen:
            if (value := self._value(key, town)) is not None:
                facts[key] = value
        return Entity("person", name, facts, pronoun, last, town=town if "town" in facts else None)

    def _value(self, key: str, town: Entity | None) -> str | None:
        """What a person of a town has for a fact, or None if there is nothing left."""
        rng, values = self.rng, self.material["values"]
        if key == "born":
            return str(rng.randrange(1900, 2000))
        if key == "town":
            return None if town is None else town.name
        if key in self._shared:
            return self._shared[key].take()
        if key == "company":
            return self.supply["company"].take()
        if key == "pet":
            return f"a {rng.choice(values['pet_colour'])} {rng.choice(values['pet_animal'])}"
        return str(rng.choice(values[key]))

    def _town(self) -> Entity | None:
        rng = self.rng
        name, river, mayor = self.supply["town"].take(), self.supply["river"].take(), self.full_name()
        if name is None or river is None or mayor is None:
            return None
        facts = {
            "river": river,
            "mayor": mayor[0],
            "population": str(rng.randrange(11, 990) * 100),
            "product": rng.choice(self.material["values"]["product"]),
        }
        if rng.random() < 0.3:
            facts.pop(rng.choice(tuple(facts)))
        return Entity("town", name, facts)

    def _work(self, author: Entity) -> Entity | None:
        title = self.supply["work"].take()
        if title is None:
            return None
        facts = {"author": author.name, "kind": self.rng.choice(self.material["work_titles"]["kinds"])}
        if self.rng.random() < 0.8:
            facts["year"] = str(self.rng.randrange(1900, 2000))
        return Entity("work", title, facts, author=author)

    def _describe(self, entity: Entity) -> Document:
        rng = self.rng
        variants = self.material["documents"][entity.kind]
        sentences: list[Pieces] = []
        for key in entity.facts:
            if key not in variants:
                continue
            template = rng.choice(variants[key])
            if not sentences:
                subject = named = entity.name
            else:
                named = entity.last_name or entity.name
                subject = named if rng.random() < 0.5 else entity.pronoun
                if not template.startswith("{s}"):
                    subject = subject.lower() if subject == entity.pronoun else subject
            sentences.append(render(template, s=subject, n=named, **slots_of(entity)))
        return Document(joined(sentences), entity)

    def filler_sentence(self) -> Pieces:
        """A sentence that is about nobody."""
        rng, data = self.rng, self.material["filler"]
        if rng.random() < 0.25:
            return words(rng.choice(data["short"]))
        return words(f"{rng.choice(data['subjects'])} {rng.choice(data['verbs'])} {rng.choice(data['times'])}.")

    def filler_document(self) -> Document:
        """Two to five sentences that are about nobody."""
        return Document(joined([self.filler_sentence() for _ in range(self.rng.randrange(2, 6))]))

    # what stands in the documents

    def pick(self, kind: str | None = None) -> Entity | None:
        """What a document drawn at random describes, of a kind or of any; None where a few draws find none. What is in
        `used` is left out.
        """
        for _ in range(12):
            if not self.documents:
                return None
            entity = self.rng.choice(self.documents).entity
            if entity is not None and (kind is None or entity.kind == kind) and id(entity) not in self.used:
                return entity
        return None

    def is_described(self, entity: Entity) -> bool:
        """Whether it has a document."""
        return id(entity) in self._described

    def holders(self, key: str) -> dict[str, list[Entity]]:
        """Value of a fact → the people whose documents state it, in the documents' order."""
        if key not in self._holders:
            found = self._holders[key] = {}
            for document in self.documents:
                entity = document.entity
                if entity is not None and entity.kind == "person" and key in entity.facts:
                    found.setdefault(entity.facts[key], []).append(entity)
        return self._holders[key]

    def routes(self) -> list[tuple[Entity, Entity, Entity]]:
        """Work, author and the author's home town, of all works whose documents and those of these two lead there."""
        if self._routes is None:
            works = (document.entity for document in self.documents)
            ways = [(one, one.author, one.author.town) for one in works if one is not None and one.author is not None]
            self._routes = [
                (work, author, town)
                for work, author, town in ways
                if town is not None and self.is_described(author) and self.is_described(town)
            ]
        return self._routes

    def may_ask(self, entities: Iterable[Entity]) -> bool:
        """Whether all of them have documents, and none is in `used`."""
        return all(id(entity) in self._described and id(entity) not in self.used for entity in entities)

    def statement(self, entity: Entity, key: str, subject: str | None = None) -> Pieces:
        """A fact as answers say it. subject: a pronoun instead of the name."""
        template = self.material["statements"][entity.kind][key]
        return render(template, s=subject or entity.name, **slots_of(entity))

    def about(self, entity: Entity) -> Pieces:
        """All facts of a person or a town, a sentence each."""
        first, *rest = entity.facts
        return joined([self.statement(entity, first), *(self.statement(entity, key, entity.pronoun) for key in rest)])


def slots_of(entity: Entity) -> dict[str, str]:
    """The facts of an entity under the slot names of the templates."""
    own = {"town": "town", "work": "title", "person": "name"}[entity.kind]
    slots = {**entity.facts, own: entity.name}
    if "kind" in slots:
        slots["a_kind"] = f"{'an' if slots['kind'][0] in 'aeiou' else 'a'} {slots['kind']}"
    return slots
