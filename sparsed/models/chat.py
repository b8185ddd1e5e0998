"""Messages of a chat, as token ids."""

from __future__ import annotations

from typing import Any


def is_message(message: Any) -> bool:
    return (
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
    )


def batch_of_messages(around: list[str], contents: list[str]) -> list[str]:
    """around[0], contents[0], around[1], contents[1], … around[-1]."""
    return [part for pair in zip(around, [*contents, ""]) for part in pair][: 2 * len(around) - 1]
