"""Texts made of pieces with slots, from the material in prompts/."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

from sparsed.paths import data_dir

Pieces = list[str]
Template = tuple[tuple[bool, str], ...]
Measure = Callable[[Pieces], int]
_SLOT = re.compile(r" ?\{(\w+)\}")


@lru_cache(maxsize=1)
def material() -> dict[str, Any]:
    """The templates and word lists of prompts/world.json."""
    return json.loads(material_text())


def material_text() -> str:
    """prompts/world.json as it is written."""
    return (data_dir("prompts") / "world.json").read_text(encoding="utf-8")


@cache
def _parts(template: str) -> Template:
    """Split a template into literals ``(False, text)`` and slots ``(True, name)``; ``" {x}"`` marks a leading space."""
    parts: list[tuple[bool, str]] = []
    position = 0
    for match in _SLOT.finditer(template):
        if match.start() > position:
            parts.append((False, template[position : match.start()]))
        parts.append((True, (" " if match.group(0)[0] == " " else "") + match.group(1)))
        position = match.end()
    if position < len(template):
        parts.append((False, template[position:]))
    return tuple(parts)


def render(template: str, **values: str) -> Pieces:
    """Fill a template; every word of a value becomes a piece of its own."""
    pieces: Pieces = []
    for is_slot, text in _parts(template):
        if not is_slot:
            pieces.append(text)
            continue
        spaced = text[0] == " "
        words = values[text[1:] if spaced else text].split(" ")
        if not pieces and not spaced:
            pieces.append(words[0][0].upper() + words[0][1:])
        else:
            pieces.append(" " + words[0] if spaced else words[0])
        pieces.extend(" " + word for word in words[1:])
    return pieces


def words(text: str) -> Pieces:
    """The pieces of a plain sentence."""
    head, *tail = text.split(" ")
    return [head, *(" " + word for word in tail)]


def joined(sentences: Sequence[Pieces]) -> Pieces:
    """Sentences one after the other, a space between."""
    head, *tail = sentences
    return [*head, *(piece for first, *rest in tail for piece in (" " + first, *rest))]


def number_pieces(number: int) -> Pieces:
    """What stands before and after a document: its number and the line end."""
    return ["Document", f" {number}", ":", "\n"]
