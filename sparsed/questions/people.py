"""Questions about people that are not named: all who share a fact, or any one of them."""

from __future__ import annotations

from operator import attrgetter

from sparsed.questions.documents import Documents
from sparsed.questions.entities import Question
from sparsed.questions.pieces import joined, render

FEWEST_CHOICES = 3
"""An open question has at least so many right answers."""
FAVOUR = 0.3
"""In an open question's examples each person is chosen so many times as often as the one before in alphabetical order.

Were all chosen alike, what is most likely at one place of the answer would say nothing about what is at another, and a
model that writes two tokens at once would take them from two people.
"""
MOST_LISTED = 4
"""A list names at most so many people, and at least two."""


def ask_open(world: Documents) -> Question | None:
    """Anybody who lives in a town, with a fact that all who live there have: right with any one's name and fact."""
    wordings = world.material["questions"]["open"]
    key = world.rng.choice(tuple(wordings))
    # Where somebody's fact is not in the documents, whoever is named first may be the wrong one to name.
    choices = [
        (town, sorted(people, key=attrgetter("name")))
        for town, people in world.holders("town").items()
        if len(people) >= FEWEST_CHOICES and all(key in one.facts for one in people) and world.may_ask(people)
    ]
    if not choices:
        return None
    town, people = world.rng.choice(choices)
    one = world.rng.choices(people, [FAVOUR**place for place in range(len(people))])[0]
    right = {id(who): joined([world.statement(who, "town"), world.statement(who, key, who.pronoun)]) for who in people}
    answer = right.pop(id(one))
    question = render(world.rng.choice(wordings[key]), town=town)
    return Question("open", question, answer, tuple(people), others=tuple(right.values()))


def ask_list(world: Documents) -> Question | None:
    """All who share a fact, in alphabetical order, a sentence each; no two of them have the same first name."""
    wordings = world.material["questions"]["list"]
    key = world.rng.choice(tuple(wordings))
    listed = [
        (value, sorted(people, key=attrgetter("name")))
        for value, people in world.holders(key).items()
        if 2 <= len(people) <= MOST_LISTED
        and len({one.name.split()[0] for one in people}) == len(people)
        and world.may_ask(people)
    ]
    if not listed:
        return None
    value, people = world.rng.choice(listed)
    question = render(world.rng.choice(wordings[key]), **{key: value})
    return Question("list", question, joined([world.statement(one, key) for one in people]), tuple(people))
