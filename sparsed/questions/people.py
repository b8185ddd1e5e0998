"""Questions about people that are not named: all who share a fact, or any one of them."""

from __future__ import annotations

from sparsed.questions.documents import Documents
from sparsed.questions.entities import MOST_HOLDERS, Question
from sparsed.questions.pieces import render

FEWEST_CHOICES = 3
"""An open question has at least so many right answers."""


def ask_open(world: Documents) -> Question | None:
    """Anybody who lives in a town; all that the documents say about one of them is right, whoever that is."""
    one = world.pick("person")
    if one is None or (town := one.facts.get("town")) is None:
        return None
    people = world.holders("town")[town]
    if len(people) < FEWEST_CHOICES or not world.may_ask(people):
        return None
    question = render(world.rng.choice(world.material["questions"]["open"]), town=town)
    others = tuple(world.about(other) for other in people if other is not one)
    return Question("open", question, world.about(one), tuple(people), others=others)


def ask_list(world: Documents) -> Question | None:
    """All who share a fact, two to `MOST_HOLDERS`, named in the documents' order."""
    wordings = world.material["questions"]["list"]
    key = world.rng.choice(tuple(wordings))
    listed = [(value, who) for value, who in world.holders(key).items() if 2 <= len(who) <= MOST_HOLDERS]
    listed = [(value, who) for value, who in listed if world.may_ask(who)]
    if not listed:
        return None
    value, people = world.rng.choice(listed)
    slots = [f"{{n{number}}}" for number in range(1, len(people) + 1)]
    names = f"{', '.join(slots[:-1])} and {slots[-1]}"
    answer = world.material["answers"]["list"][key].replace("{names}", names)
    named = {f"n{number}": one.name for number, one in enumerate(people, start=1)}
    question = render(world.rng.choice(wordings[key]), **{key: value})
    return Question("list", question, render(answer, **named, **{key: value}), tuple(people))
