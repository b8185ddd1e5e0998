"""Checks of single values, each refusing in a sentence."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from sparsed.models.chat import check_messages, messages_of

Turns = tuple[tuple[str, str], ...]
"""What was said before: (role, content) of each message."""


def check_choice(name: str, value: Any, choices: Collection[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"The {name} {repeated(value)} is not one of {', '.join(choices)}.")
    return value


def check_names(name: str, value: Any, choices: Collection[str], most: int) -> tuple[str, ...]:
    """Some of the choices, each once; a text names them with commas."""
    given = [one.strip() for one in value.split(",") if one.strip()] if isinstance(value, str) else value
    if not isinstance(given, (list, tuple)):
        raise ValueError(f"The value of {name} must be a list of some of {', '.join(choices)}.")
    for one in given:
        if not isinstance(one, str) or one not in choices:
            raise ValueError(f"The value {repeated(one)} of {name} is not one of {', '.join(choices)}.")
    found = tuple(dict.fromkeys(given))
    if len(found) > most:
        raise ValueError(f"The value of {name} must have {most} names at most, not {len(found)}.")
    return found


def check_number(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"The value of {name} must be a number between {low:g} and {high:g}, not {repeated(value)}.")
    # No NaN lies between two numbers; a whole number may be too large for everything but comparing.
    if not low <= value <= high:
        raise ValueError(f"The value of {name} must lie between {low:g} and {high:g}, not {repeated(value)}.")
    # The page sends numbers such as 0.30000000000000004; the engine takes decimals as written.
    return round(float(value), 4)


def check_whole(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, str) and len(value) <= 12 and value.strip().isascii() and value.strip().isdigit():
        value = int(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole and not (isinstance(value, float) and value.is_integer()):
        raise ValueError(f"The value of {name} must be a whole number between {low} and {high}, not {repeated(value)}.")
    if not low <= value <= high:
        raise ValueError(f"The value of {name} must lie between {low} and {high}, not {repeated(value)}.")
    return int(value)


def check_texts(name: str, value: Any, most: int, longest: int) -> tuple[str, ...]:
    """most: so many of them; longest: in characters."""
    good = isinstance(value, (list, tuple)) and all(isinstance(one, str) and 0 < len(one) <= longest for one in value)
    if not good:
        raise ValueError(f"The value of {name} must be a list of texts of 1 to {longest} characters each.")
    if len(value) > most:
        raise ValueError(f"The value of {name} must have {most} texts at most, not {len(value)}.")
    return tuple(value)


def check_turns(name: str, value: Any, most: int) -> Turns:
    """Messages {"role", "content"}, or JSON of them as a page and a link hold it. most: characters, all together."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else []
        except (ValueError, RecursionError):
            raise ValueError(f"The {name} must be a list of messages, as JSON: {repeated(value)} is none.") from None
    if value in (None, [], ()):
        return ()
    turns = tuple((one["role"], one["content"]) for one in check_messages(value, f"the {name}"))
    if (characters := sum(len(content) for _, content in turns)) > most:
        raise ValueError(f"Your {name} have {characters:,} characters; this page takes up to {most:,}. Begin anew.")
    messages_of("", None, as_messages(turns))  # whose turn it is
    return turns


def as_messages(turns: Turns) -> list[dict[str, str]]:
    """As the engine takes them."""
    return [{"role": role, "content": content} for role, content in turns]


def check_switch(name: str, value: Any) -> bool:
    """Programs write it in words, too; what is left out is no."""
    said = {None: False, 0: False, 1: True, "false": False, "true": True, "no": False, "yes": True}
    value = value.strip().lower() if isinstance(value, str) else value
    if not isinstance(value, (str, bool, int, type(None))) or value not in said:
        raise ValueError(f"The value of {name} must be true or false, not {repeated(value)}.")
    return said[value]


def repeated(value: Any) -> str:
    """A wrong value as it is repeated in a sentence: short, whatever it is."""
    if value is None:
        return "nothing"
    if isinstance(value, int) and abs(value) > 10**20:
        return "a number far beyond that"
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}" if abs(value) < 1e6 else f"{value:g}"
    shown = str(value) if isinstance(value, (int, float)) else repr(value if not isinstance(value, str) else value[:80])
    return shown if len(shown) <= 40 else f"{shown[:39]}…"
