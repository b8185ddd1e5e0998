"""The prompt of a command line: its own text, a file's or standard input's, byte for byte."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from sparsed.questions.lengths import LENGTHS

# In bytes; many times what any model reads, and what many prompts have.
_MOST, MOST_OF_MANY = 64 * 2**20, 2**30


def own_text(prompt: str) -> str | None:
    """The user's text, or None for a prompt that is built.

    prompt: the option's value. Of a file ("@FILE") and of standard input ("-") every byte is kept, but for one line
    end after the last line, which editors and `echo` put there. Raises ValueError in a sentence for what is no text.
    """
    if prompt in LENGTHS:
        return None
    if re.fullmatch(r"\d+k", prompt):
        raise ValueError(f"There is no built prompt of length {prompt!r}; there are {', '.join(LENGTHS)}.")
    if prompt == "-":
        text = _text(_standard_input(), "Standard input")
    elif prompt.startswith("@"):
        text = _text(content_of(prompt[1:], "--prompt @FILE", "prompt file"), f"The prompt file {prompt[1:]}")
    else:
        text = prompt
        try:
            text.encode()
        except UnicodeError:  # half a character
            raise ValueError("The prompt is no UTF-8 text.") from None
    if not text.strip():
        raise ValueError("The prompt is empty: it must hold at least one character that is not a space.")
    return text


def history_of(name: str) -> list[Any]:
    """The list that a file holds as JSON; `sparsed.models.chat.messages_of` says whether it is one of messages. Raises
    ValueError.
    """
    text = _text(content_of(name, "--history", "history"), f"The history {name}")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"The history {name} is no JSON: it must be a list of messages.") from None
    if not isinstance(found, list):
        raise ValueError(f"The history {name} must be a list of messages, not {found!r:.60}.")
    return found


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise ValueError("Standard input is closed: there is no prompt to read.")
    try:
        return sys.stdin.buffer.read(_MOST + 1)
    except OSError as error:
        raise ValueError(f"Standard input cannot be read: {error.strerror}.") from None


def content_of(name: str, option: str, what: str, most: int = _MOST) -> bytes:
    """The bytes of a file, one more than `most` at the most. Raises ValueError."""
    if not name:
        raise ValueError(f"{option} needs the name of a file.")
    try:
        with Path(name).open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise ValueError(f"The {what} {name} cannot be read: {error.strerror}.") from None


def _text(content: bytes, what: str) -> str:
    if len(content) > _MOST:
        raise ValueError(f"{what} has more than {_MOST // 2**20} MiB: that is no prompt.")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is no UTF-8 text: byte {error.start + 1:,} fits no character.") from None
    return text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")
