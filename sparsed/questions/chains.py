"""Questions of three and four hops, answered a sentence a hop."""

from __future__ import annotations

from sparsed.questions.documents import Documents
from sparsed.questions.entities import Entity, Question
from sparsed.questions.pieces import joined, render


def ask_chain3(world: Documents) -> Question | None:
    """A fact of the home town of a work's author, or None if the documents have no such chain."""
    return _ask(world, "chain3")


def ask_chain4(world: Documents) -> Question | None:
    """A fact of the mayor of the home town of a work's author, or None if the documents have no such chain."""
    return _ask(world, "chain4")


def _ask(world: Documents, kind: str) -> Question | None:
    # The relation first: by the entities first, the rare ones would hardly ever be asked.
    wordings = world.material["questions"][kind]
    key = world.rng.choice(tuple(wordings))
    chains = [hops for route in world.routes() if (hops := _hops(*route, kind, key)) and world.may_ask(hops)]
    if not chains:
        return None
    hops = world.rng.choice(chains)
    work = next(iter(hops))
    return Question(
        kind,
        render(world.rng.choice(wordings[key]), title=work.name),
        joined([world.statement(entity, fact) for entity, fact in hops.items()]),
        tuple(hops),
    )


def _hops(work: Entity, author: Entity, town: Entity, kind: str, key: str) -> dict[Entity, str]:
    """From a work to a fact: each entity with its fact that leads on; empty where the documents do not lead there."""
    if kind == "chain3":
        return {work: "author", author: "town", town: key} if key in town.facts else {}
    mayor = town.mayor
    if mayor is None or mayor is author or key not in mayor.facts:
        return {}  # an author who is the mayor would save a hop
    return {work: "author", author: "town", town: "mayor", mayor: key}
