"""What a race is made of: its prompt, its cost, and what is to be said before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.engine import cost
from app.race.request import OWN_TEXT, Request
from app.server import limits
from app.server.desk import Desk
from app.server.models import Loaded
from app.server.speed import Places

EXPECTED = (ValueError, OSError, RuntimeError, ImportError, MemoryError)
# What runs a lane, in words. torch SDPA: scaled_dot_product_attention, whichever kernel it picks.
BACKEND_WORDS = {
    "sdpa": "torch SDPA",
    "cudnn": "cuDNN",
    "flash": "FlashAttention-2",
    "flash4": "flash-attn-4",
    "flex": "FlexAttention",
    "triton": "Triton",
}
NOT_KEPT = "This run could not be recorded: it cannot be played again."


@dataclass(frozen=True)
class Material:
    """The prompt of a request, and what it will cost. gold: None for a visitor's own text. prompt: what the engine
    built, or that text. most_seconds: a watchdog ends the race then. places: where the lanes run.
    """

    text: str
    question: str
    tokens: int
    gold: str | None
    prompt: Any
    asked: Request
    estimated: cost.Estimate | None
    refused: str | None
    most_seconds: float
    places: Places


def gather(desk: Desk, asked: Request, loaded: Loaded) -> Material:
    """Builds the prompt and checks it against the limits of this machine. Raises what the engine raises."""
    if asked.kind == OWN_TEXT:
        prompt: Any = asked.text
        text, question, gold = asked.text, "", None
        tokens = desk.engine.count(loaded.model, text)
    else:
        prompt = desk.prompt(loaded, asked.length, asked.kind, asked.question)
        text, question, gold, tokens = prompt.text, prompt.question, prompt.answer, prompt.tokens
    asked = asked.resolve(tokens)
    places = desk.speed.places(loaded, asked, tokens)
    estimated = desk.speed.estimate(loaded, asked, tokens, places)
    room = desk.speed.room(loaded)
    refused = limits.refusal(estimated, room, length=tokens + asked.gen_length, steps=asked.steps)
    most = room.announced(estimated)
    return Material(text, question, tokens, gold, prompt, asked, estimated, refused, most, places)


def notes(desk: Desk, material: Material, loaded: Loaded) -> list[str]:
    """What the engine says before the first step. Raises ValueError for what it refuses."""
    asked = material.asked
    run = desk.engine.denoise(loaded.model, material.text, asked.sampler, asked.attention, asked.backend)
    run.close()
    return list(run.notes)
