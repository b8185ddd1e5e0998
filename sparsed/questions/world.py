"""An invented world: documents, and the questions about them."""

from __future__ import annotations

from collections.abc import Callable

from sparsed.questions.chains import ask_chain3, ask_chain4
from sparsed.questions.documents import ALL_FACTS, Documents, slots_of
from sparsed.questions.entities import Document, Entity, Question
from sparsed.questions.people import ask_list, ask_open
from sparsed.questions.pieces import Pieces, joined, material, render, words

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
    "chain3": "Three hops",
    "chain4": "Four hops",
    "open": "Somebody of a town",
    "list": "All who …",
}
"""Question kinds and the words that name them on the page."""
RICH_KINDS = frozenset({"chain3", "chain4", "open", "list"})
"""Kinds whose prompts are made of rich worlds (`sparsed.questions.documents.Documents`)."""


class World(Documents):
    """Documents that can be asked about."""

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
            "chain3": lambda: ask_chain3(self),
            "chain4": lambda: ask_chain4(self),
            "open": lambda: ask_open(self),
            "list": lambda: ask_list(self),
        }
        if kind not in make:
            raise ValueError(f"question kind {kind!r} is unknown; choose one of {', '.join(KINDS)}.")
        return make[kind]()

    def _ask_fact(self) -> Question | None:
        asked = self._one_fact()
        return None if asked is None else Question("fact", *asked[1:], (asked[0],))

    def _one_fact(self) -> tuple[Entity, Pieces, Pieces] | None:
        """An entity, a question for one of its facts, and the answer."""
        rng = self.rng
        entity = self.pick(rng.choices(tuple(ALL_FACTS), (6, 3, 2))[0])
        keys = [] if entity is None else [key for key in entity.facts if key != "kind"]
        if entity is None or not keys:
            return None
        key = rng.choice(keys)
        question = render(rng.choice(self.material["questions"]["fact"][key]), n=entity.name, **slots_of(entity))
        return entity, question, self.statement(entity, key)

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

    def _ask_inverse(self) -> Question | None:
        # The relation first: by the entity first, the rare ones would hardly ever be asked.
        key = self.rng.choice(tuple(self.material["questions"]["inverse"]))
        entity = self.pick(next(kind for kind, keys in ALL_FACTS.items() if key in keys))
        if entity is None or key not in entity.facts:
            return None
        if key == "company" and len(self.holders(key)[entity.facts[key]]) > 1:
            return None
        question = render(self.rng.choice(self.material["questions"]["inverse"][key]), **slots_of(entity))
        return Question("inverse", question, self.statement(entity, key), (entity,))

    def _ask_two_hop(self) -> Question | None:
        key = self.rng.choice(tuple(self.material["questions"]["two_hop"]))
        entity = self.pick("work" if key == "work" else "person")
        if entity is None:
            return None
        if key == "work":
            other = entity.author
            if other is None or not self.is_described(other) or "town" not in other.facts:
                return None
            values = {**slots_of(entity), "town": other.facts["town"], "n": other.name}
        else:
            other = entity.town
            if other is None or not self.is_described(other) or key not in other.facts:
                return None
            values = {**slots_of(other), "n": entity.name}
        question = render(self.rng.choice(self.material["questions"]["two_hop"][key]), **values)
        answer = render(self.material["answers"]["two_hop"][key], **values)
        return Question("two_hop", question, answer, (entity, other))

    def _ask_older(self) -> Question | None:
        one, two = self.pick("person"), self.pick("person")
        if one is None or two is None or one is two:
            return None
        a, b = one.facts.get("born"), two.facts.get("born")
        if a is None or b is None or a == b:
            return None
        verdict = "yes" if int(a) < int(b) else "no"
        names_ = {"n": one.name, "m": two.name}
        question = render(self.rng.choice(self.material["questions"]["older"]), **names_)
        answer = render(self.material["answers"]["older"][verdict], a=a, b=b, **names_)
        return Question("older", question, answer, (one, two), verdict)

    def _ask_same(self) -> Question | None:
        rng = self.rng
        key, verdict = rng.choice(("town", "job")), rng.choice(("yes", "no"))
        one = self.pick("person")
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
        question = render(rng.choice(self.material["questions"]["same"][key]), **names_)
        answer = render(self.material["answers"]["same"][key][verdict], a=one.facts[key], b=two.facts[key], **names_)
        return Question("same", question, answer, (one, two), verdict)

    def _ask_about(self) -> Question | None:
        entity = self.pick()
        if entity is None or entity.kind == "work":
            return None
        question = render(
            self.rng.choice(self.material["questions"]["about"][entity.kind]), n=entity.name, town=entity.name
        )
        return Question("about", question, self.about(entity), (entity,))

    def _ask_unanswerable(self) -> Question | None:
        rng, fact = self.rng, self.material["questions"]["fact"]
        entities: tuple[Entity, ...] = ()
        if rng.random() < 0.5:
            entity = self.pick()
            if entity is None:
                return None
            missing = [key for key in ALL_FACTS[entity.kind] if key not in entity.facts]
            if not missing:
                return None
            question = render(rng.choice(fact[rng.choice(missing)]), n=entity.name, town=entity.name, title=entity.name)
            entities = (entity,)
        elif rng.random() < 0.7:
            named = self.full_name()
            if named is None:
                return None
            question = render(rng.choice(fact[rng.choice(ALL_FACTS["person"])]), n=named[0])
        else:
            town = self.supply["town"].take()
            if town is None:
                return None
            question = render(rng.choice(fact[rng.choice(ALL_FACTS["town"])]), town=town)
        return Question("unanswerable", question, words(self.material["answers"]["unanswerable"]), entities)

    def _ask_arithmetic(self) -> Question | None:
        rng, data = self.rng, self.material["arithmetic"]
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
        values.update(items=rng.choice(data["items"]), p=rng.choice(self.first_names)[0])
        return Question("arithmetic", render(question, **values), render(answer, **values))

    def small_talk(self) -> Question:
        """A greeting and the like, answered with a fixed sentence (training only)."""
        question, answer = self.rng.choice(self.material["conversation"])
        return Question("conversation", words(question), words(answer))


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
