"""A file of prompts: one a line, as text (.txt) or as JSON (.jsonl)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsed.generation.prompt import MOST_OF_MANY, content_of
from sparsed.models.chat import Message, check_messages, messages_of

_FIELDS = ("prompt", "messages", "id")
# So many further wrong lines are named.
_NAMED = 5


@dataclass(frozen=True)
class Line:
    """number: in the file, from 1. messages: what is asked. id: what the line calls itself; None without."""

    number: int
    messages: list[Message]
    id: str | int | None = None


@dataclass(frozen=True)
class PromptsFile:
    """lines: those that hold a prompt. unread: names of fields that some have and nobody reads."""

    lines: list[Line]
    unread: tuple[str, ...] = ()


def read_prompts(name: str, system: str | None = None) -> PromptsFile:
    """The prompts of a file, in its order; empty lines are left out.

    A line of a .txt file is a prompt. One of a .jsonl file is an object with "prompt", a text, or "messages", a list of
    {"role", "content"} that ends with the user's; "id" is handed on. system: the system prompt of all. Raises
    ValueError, in a sentence that names the first wrong line and the numbers of others.
    """
    readers: dict[str, Callable[[str, str | None, set[str]], tuple[list[Message], str | int | None]]]
    readers = {".txt": _of_text, ".jsonl": _of_json}
    read = readers.get(Path(name).suffix.lower())
    if name and read is None:
        raise ValueError(f"--prompts reads .txt, a prompt on each line, and .jsonl, a JSON object on each, not {name}.")
    content = content_of(name, "--prompts", "prompts file", MOST_OF_MANY)
    if len(content) > MOST_OF_MANY:
        raise ValueError(f"{name} has more than {MOST_OF_MANY // 2**20} MiB: cut it into several files.")
    assert read is not None, "a file without a name was refused"
    lines, wrong, unread = [], {}, set[str]()
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not raw.strip():
            continue
        try:
            messages, own = read(_decoded(raw), system, unread)
            lines.append(Line(number, messages, own))
        except ValueError as error:
            wrong[number] = str(error)
    if wrong:
        first, *others = wrong
        named = ", ".join(map(str, others[:_NAMED])) + (" …" if len(others) > _NAMED else "")
        more = f" (Lines that are wrong too: {named}.)" if others else ""
        raise ValueError(f"Line {first} of {name}: {wrong[first]}{more}")
    if not lines:
        raise ValueError(f"{name} holds no prompt: every line is empty.")
    return PromptsFile(lines, tuple(sorted(unread)))


def _decoded(raw: bytes) -> str:
    try:
        return raw.removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no UTF-8 text: byte {error.start + 1:,} fits no character.") from None


def _of_text(text: str, system: str | None, unread: set[str]) -> tuple[list[Message], None]:
    return messages_of(text, system), None


def _of_json(text: str, system: str | None, unread: set[str]) -> tuple[list[Message], str | int | None]:
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON.") from None
    if not isinstance(found, dict):
        raise ValueError(f"it must be a JSON object with 'prompt' or 'messages', not {found!r:.60}.")
    given = [key for key in ("prompt", "messages") if found.get(key) is not None]
    if len(given) != 1:
        raise ValueError(f"it has {'both' if given else 'neither'} 'prompt' {'and' if given else 'nor'} 'messages'.")
    unread.update(found.keys() - set(_FIELDS))
    own = found.get("id")
    if isinstance(own, bool) or not isinstance(own, str | int | None):
        raise ValueError(f"its 'id' must be a text or a whole number, not {own!r:.60}.")
    if given == ["prompt"]:
        if not isinstance(found["prompt"], str) or not found["prompt"].strip():
            raise ValueError(f"its 'prompt' must be a text that is not empty, not {found['prompt']!r:.60}.")
        return check_messages(messages_of(found["prompt"], system)), own
    messages = check_messages(found["messages"], "its messages")
    if messages[-1]["role"] != "user":
        raise ValueError(f"its last message must be the user's, not of the role {messages[-1]['role']!r}.")
    return messages_of(messages[-1]["content"], system, messages[:-1]), own
