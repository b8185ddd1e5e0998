"""An invented world: who lives where, wrote what, plays what."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sparsed.questions.entities import Document, Entity, Question, Supply
from sparsed.questions.pieces import Measure, Pieces, joined, material, number_pieces, render, words

KINDS: dict[str, str] = {
    "about": "Tell me about …",
    "fact": "One fact",
    "inverse": "Inverse lookup",
    "two_hop": "Two hops",
    "several": "Several facts",
    "older": "Who is older",
    "same": "Same town or profession",
    "unanswerable": "Not in the documents",
    "arithmetic": "Word problem",
}
"""Question kinds and the words that name them on the page."""


@dataclass
class World:
    """Makes documents and questions from one random generator.

    Args:
        rng: the only source of randomness.
        held_out: use names that training never shows (demo and evaluation) or only the others (training).
    """

    rng: random.Random
    held_out: bool
    documents: list[Document] = field(default_factory=list)
    _described: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._data = material()
        self._supply = {
            kind: Supply(self.rng, kind, self.held_out) for kind in ("person", "town", "river", "company", "work")
        }
        self._firsts = [(first, pron) for pron, firsts in self._data["first_names"].items() for first in firsts]

    # documents

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

    def _stream(self, filler: float) -> Iterator[Document]:
        rng = self.rng
        while True:
            town = self._town()
            group = [] if town is None else [self._describe(town)]
            for _ in range(rng.choice((1, 2, 2, 3, 3, 4))):
                person = self._person(town)
                if person is None:
                    break
                group.append(self._describe(person))
                if rng.random() < 0.3 and (work := self._work(person)) is not None:
                    group.append(self._describe(work))
            rng.shuffle(group)
            for document in group:
                while rng.random() < filler:
                    yield self.filler_document()
                yield document
            if not group:
                yield self.filler_document()

    def full_name(self) -> tuple[str, str, str] | None:
        """A new person's (full name, last name, pronoun), or None when the names are used up."""
        last = self._supply["person"].take()
        if last is None:
            return None
        first, pronoun = self.rng.choice(self._firsts)
        return f"{first} {last}", last, pronoun

    def _person(self, town: Entity | None) -> Entity | None:
        rng, values = self.rng, self._data["values"]
        named = self.full_name()
        if named is None:
            return None
        name, last, pronoun = named
        while True:
            chosen = [key for key, share in _PERSON_FACTS if rng.random() < share]
            if 3 <= len(chosen) <= 6:
                break
        facts: dict[str, str] = {}
        for key in chosen:
            if key == "born":
                facts[key] = str(rng.randrange(1900, 2000))
            elif key == "town":
                if town is not None:
                    facts[key] = town.name
            elif key == "company":
                if (company := self._supply["company"].take()) is not None:
                    facts[key] = company
            elif key == "pet":
                facts[key] = f"a {rng.choice(values['pet_colour'])} {rng.choice(values['pet_animal'])}"
            else:
                facts[key] = rng.choice(values[key])
        return Entity("person", name, facts, pronoun, last, town=town if "town" in facts else None)

    def _town(self) -> Entity | None:
        rng = self.rng
        name, river, mayor = self._supply["town"].take(), self._supply["river"].take(), self.full_name()
        if name is None or river is None or mayor is None:
            return None
        facts = {
            "river": river,
            "mayor": mayor[0],
            "population": str(rng.randrange(11, 990) * 100),
            "product": rng.choice(self._data["values"]["product"]),
        }
        if rng.random() < 0.3:
            facts.pop(rng.choice(tuple(facts)))
        return Entity("town", name, facts)

    def _work(self, author: Entity) -> Entity | None:
        title = self._supply["work"].take()
        if title is None:
            return None
        facts = {"author": author.name, "kind": self.rng.choice(self._data["work_titles"]["kinds"])}
        if self.rng.random() < 0.8:
            facts["year"] = str(self.rng.randrange(1900, 2000))
        return Entity("work", title, facts, author=author)

    def _describe(self, entity: Entity) -> Document:
        rng = self.rng
        variants = self._data["documents"][entity.kind]
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
        rng, data = self.rng, self._data["filler"]
        if rng.random() < 0.25:
            return words(rng.choice(data["short"]))
        return words(f"{rng.choice(data['subjects'])} {rng.choice(data['verbs'])} {rng.choice(data['times'])}.")

    def filler_document(self) -> Document:
        """Two to five sentences that are about nobody."""
        return Document(joined([self.filler_sentence() for _ in range(self.rng.randrange(2, 6))]))

    # questions

    def ask(self, kind: str) -> Question | None:
        """One question of a kind about the documents at hand, or None if this draw has none."""
        make: dict[str, Callable[[], Question | None]] = {
            "fact": self._ask_fact,
            "inverse": self._ask_inverse,
            "two_hop": self._ask_two_hop,
            "several": self._ask_several,
            "older": self._ask_older,
            "same": self._ask_same,
            "about": self._ask_about,
            "unanswerable": self._ask_unanswerable,
            "arithmetic": self._ask_arithmetic,
        }
        if kind not in make:
            raise ValueError(f"question kind {kind!r} is unknown; choose one of {', '.join(KINDS)}.")
        return make[kind]()

    def _pick(self, kind: str | None = None) -> Entity | None:
        for _ in range(12):
            if not self.documents:
                return None
            entity = self.rng.choice(self.documents).entity
            if entity is not None and (kind is None or entity.kind == kind):
                return entity
        return None

    def _is_described(self, entity: Entity) -> bool:
        return id(entity) in self._described

    def _ask_fact(self) -> Question | None:
        asked = self._one_fact()
        return None if asked is None else Question("fact", *asked[1:], (asked[0],))

    def _one_fact(self) -> tuple[Entity, Pieces, Pieces] | None:
        """An entity, a question for one of its facts, and the answer."""
        rng = self.rng
        entity = self._pick(rng.choices(tuple(_ALL_FACTS), (6, 3, 2))[0])
        keys = [] if entity is None else [key for key in entity.facts if key != "kind"]
        if entity is None or not keys:
            return None
        key = rng.choice(keys)
        question = render(rng.choice(self._data["questions"]["fact"][key]), n=entity.name, **slots_of(entity))
        return entity, question, self._statement(entity, key)

    def _ask_several(self) -> Question | None:
        """Two or three facts of as many entities, asked and answered one after the other."""
        asked: dict[int, tuple[Entity, Pieces, Pieces]] = {}
        for _ in range(self.rng.choice((2, 3))):
            if (one := self._one_fact()) is not None:
                asked.setdefault(id(one[0]), one)
        if len(asked) < 2:
            return None
        entities, questions, answers = zip(*asked.values(), strict=True)
        return Question("several", joined(questions), joined(answers), entities)

    def _statement(self, entity: Entity, key: str, subject: str | None = None) -> Pieces:
        template = self._data["statements"][entity.kind][key]
        return render(template, s=subject or entity.name, **slots_of(entity))

    def _ask_inverse(self) -> Question | None:
        # The relation first: by the entity first, the rare ones would hardly ever be asked.
        key = self.rng.choice(tuple(self._data["questions"]["inverse"]))
        entity = self._pick(next(kind for kind, keys in _ALL_FACTS.items() if key in keys))
        if entity is None or key not in entity.facts:
            return None
        question = render(self.rng.choice(self._data["questions"]["inverse"][key]), **slots_of(entity))
        return Question("inverse", question, self._statement(entity, key), (entity,))

    def _ask_two_hop(self) -> Question | None:
        key = self.rng.choice(tuple(self._data["questions"]["two_hop"]))
        entity = self._pick("work" if key == "work" else "person")
        if entity is None:
            return None
        if key == "work":
            other = entity.author
            if other is None or not self._is_described(other) or "town" not in other.facts:
                return None
            values = {**slots_of(entity), "town": other.facts["town"], "n": other.name}
        else:
            other = entity.town
            if other is None or not self._is_described(other) or key not in other.facts:
                return None
            values = {**slots_of(other), "n": entity.name}
        question = render(self.rng.choice(self._data["questions"]["two_hop"][key]), **values)
        answer = render(self._data["answers"]["two_hop"][key], **values)
        return Question("two_hop", question, answer, (entity, other))

    def _ask_older(self) -> Question | None:
        one, two = self._pick("person"), self._pick("person")
        if one is None or two is None or one is two:
            return None
        a, b = one.facts.get("born"), two.facts.get("born")
        if a is None or b is None or a == b:
            return None
        verdict = "yes" if int(a) < int(b) else "no"
        names_ = {"n": one.name, "m": two.name}
        question = render(self.rng.choice(self._data["questions"]["older"]), **names_)
        answer = render(self._data["answers"]["older"][verdict], a=a, b=b, **names_)
        return Question("older", question, answer, (one, two), verdict)

    def _ask_same(self) -> Question | None:
        rng = self.rng
        key, verdict = rng.choice(("town", "job")), rng.choice(("yes", "no"))
        one = self._pick("person")
        if one is None or key not in one.facts:
            return None
        others = [
            d.entity
            for d in self.documents
            if d.entity is not None
            and d.entity.kind == "person"
            and d.entity is not one
            and key in d.entity.facts
            and (d.entity.facts[key] == one.facts[key]) == (verdict == "yes")
        ]
        if not others:
            return None
        two = rng.choice(others)
        names_ = {"n": one.name, "m": two.name}
        question = render(rng.choice(self._data["questions"]["same"][key]), **names_)
        answer = render(self._data["answers"]["same"][key][verdict], a=one.facts[key], b=two.facts[key], **names_)
        return Question("same", question, answer, (one, two), verdict)

    def _ask_about(self) -> Question | None:
        entity = self._pick()
        if entity is None or entity.kind == "work":
            return None
        question = render(
            self.rng.choice(self._data["questions"]["about"][entity.kind]), n=entity.name, town=entity.name
        )
        answer = [self._statement(entity, key, entity.pronoun if at else None) for at, key in enumerate(entity.facts)]
        return Question("about", question, joined(answer), (entity,))

    def _ask_unanswerable(self) -> Question | None:
        rng, fact = self.rng, self._data["questions"]["fact"]
        entities: tuple[Entity, ...] = ()
        if rng.random() < 0.5:
            entity = self._pick()
            if entity is None:
                return None
            missing = [key for key in _ALL_FACTS[entity.kind] if key not in entity.facts]
            if not missing:
                return None
            question = render(rng.choice(fact[rng.choice(missing)]), n=entity.name, town=entity.name, title=entity.name)
            entities = (entity,)
        elif rng.random() < 0.7:
            named = self.full_name()
            if named is None:
                return None
            question = render(rng.choice(fact[rng.choice(_ALL_FACTS["person"])]), n=named[0])
        else:
            town = self._supply["town"].take()
            if town is None:
                return None
            question = render(rng.choice(fact[rng.choice(_ALL_FACTS["town"])]), town=town)
        return Question("unanswerable", question, words(self._data["answers"]["unanswerable"]), entities)

    def _ask_arithmetic(self) -> Question | None:
        rng, data = self.rng, self._data["arithmetic"]
        operation = rng.choice(tuple(key for key in data if key != "items"))
        if operation.startswith("multiply"):
            a, b = rng.randrange(2, 10), rng.randrange(2, 13)
            c = a * b
        else:
            a, b = rng.randrange(10, 100), rng.randrange(10, 100)
            if operation == "subtract" and a < b:
                a, b = b, a
            c = a - b if operation == "subtract" else a + b
        d = rng.randrange(2, max(3, min(c, 60)))
        e = c + d if operation == "multiply_add" else c - d
        question, answer = rng.choice(data[operation])
        values = {name: str(value) for name, value in zip("abcde", (a, b, c, d, e), strict=True)}
        values.update(items=rng.choice(data["items"]), p=rng.choice(self._firsts)[0])
        return Question("arithmetic", render(question, **values), render(answer, **values))

    def small_talk(self) -> Question:
        """A greeting and the like, answered with a fixed sentence (training only)."""
        question, answer = self.rng.choice(self._data["conversation"])
        return Question("conversation", words(question), words(answer))


_PERSON_FACTS = (
    ("job", 0.75),
    ("born", 0.75),
    ("town", 0.9),
    ("company", 0.55),
    ("instrument", 0.55),
    ("language", 0.55),
    ("pet", 0.55),
)
_ALL_FACTS = {
    "person": tuple(key for key, _ in _PERSON_FACTS),
    "town": ("river", "mayor", "population", "product"),
    "work": ("author", "year"),
}


def slots_of(entity: Entity) -> dict[str, str]:
    """The facts of an entity under the slot names of the templates."""
    own = {"town": "town", "work": "title", "person": "name"}[entity.kind]
    slots = {**entity.facts, own: entity.name}
    if "kind" in slots:
        slots["a_kind"] = f"{'an' if slots['kind'][0] in 'aeiou' else 'a'} {slots['kind']}"
    return slots


def numbered(documents: list[Document]) -> Pieces:
    """The documents one below the other, numbered from 1."""
    pieces: Pieces = []
    for number, document in enumerate(documents, start=1):
        head, *rest = document.pieces
        pieces += ["Document", f" {number}", ":", " " + head, *rest, "\n"]
    return pieces


def prompt_pieces(documents: list[Document], question: Pieces) -> Pieces:
    """The user's message: instruction, documents, question; the bare question where there are no documents."""
    if not documents:
        return list(question)
    return [*words(material()["lead_in"]), "\n", "\n", *numbered(documents), "\n", *question]
