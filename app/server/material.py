"""What a race is made of: its prompt, its cost, and what is to be said before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.engine import cost
from app.engine.interface import Given, PromptLike
from app.race.notes import of_lanes
from app.race.request import OWN_TEXT, Request
from app.server import limits
from app.server.desk import Desk
from app.server.models import Loaded
from app.server.speed import Places
from app.texts import OTHER_TEXT

EXPECTED = (ValueError, OSError, RuntimeError, ImportError, MemoryError)


@dataclass(frozen=True)
class Material:
    """The prompt of a request, and what it will cost."""

    text: str
    question: str  # empty for a visitor's own text that begins a conversation
    tokens: int
    gold: str | None  # None for a visitor's own text
    others: Sequence[str]  # right as well
    prompt: PromptLike | str  # what the engine built, or that text
    asked: Request  # resolved for so many tokens
    estimated: cost.Estimate | None  # None while this machine's speed is not known
    refused: str | None  # why it may not run here, in a sentence
    most_seconds: float  # a watchdog ends the race then
    places: Places

    @property
    def given(self) -> Given:
        """The prompt as the engine takes it."""
        return self.asked.messages(self.text)

    @property
    def expected(self) -> float | None:
        """Seconds of the race; None where nobody knows."""
        return None if self.estimated is None else self.estimated.seconds


def gather(desk: Desk, asked: Request, loaded: Loaded) -> Material:
    """Builds the prompt and checks it against the limits of this machine. Raises what the engine raises."""
    others: Sequence[str] = ()
    if asked.kind == OWN_TEXT:
        prompt: PromptLike | str = asked.text
        text, question, gold = asked.text, asked.text if asked.history else "", None
        tokens = desk.engine.count(loaded.model, asked.messages(text), asked.chat)
    else:
        prompt = built = desk.prompt(loaded, asked.length, asked.kind, asked.question, asked.chat)
        text, question, tokens = built.text, built.question, built.tokens
        gold, others = built.answer, tuple(built.others)
    asked = asked.resolve(tokens)
    places = desk.speed.places(loaded, asked, tokens)
    estimated = desk.speed.estimate(loaded, asked, tokens, places)
    room = desk.speed.room(loaded)
    refused = limits.refusal(estimated, room, length=tokens + asked.gen_length, steps=asked.steps)
    most = room.announced(estimated)
    return Material(text, question, tokens, gold, others, prompt, asked, estimated, refused, most, places)


def example(desk: Desk, loaded: Loaded) -> str:
    """A short prompt in the form that the bundled model knows. Raises ValueError where none can be made."""
    return desk.prompt(loaded, next(iter(desk.engine.lengths())), next(iter(desk.engine.kinds())), 0).text


def afterwards(desk: Desk, material: Material, loaded: Loaded) -> list[str]:
    """What is to be said once a race is over: what a text of the visitor's own cannot show of the bundled model, where
    it does not begin as the prompts do that this one was trained on.
    """
    spec = desk.engine.models()[material.asked.model]
    if material.asked.kind != OWN_TEXT or not spec.bundled:
        return []
    first = next((content for role, content in material.asked.history if role == "user"), material.text)
    begins = [text.strip().splitlines()[:1] for text in (first, example(desk, loaded))]
    return [] if begins[0] == begins[1] else [OTHER_TEXT.format(model=spec.name)]


def notes(desk: Desk, material: Material, loaded: Loaded) -> list[str]:
    """What was left out of what was asked, and what the engine says of each lane before the first step.

    Raises ValueError for what it refuses.
    """
    asked, said = material.asked, {}
    for lane in asked.lanes:
        run = desk.engine.denoise(
            loaded.model,
            material.given,
            asked.sampler,
            lane.attention,
            asked.backend,
            chat=asked.chat,
            cache=lane.cache,
        )
        run.close()
        said[lane.label] = run.notes
    return [*asked.left_out, *of_lanes(said)]
