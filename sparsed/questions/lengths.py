"""The prompt lengths that have names, and the tokens that each may have."""

from __future__ import annotations

_BUDGETS = {
    "short_context": 256,
    "1k": 1024,
    "2k": 2048,
    "4k": 4096,
    "8k": 8192,
    "16k": 16384,
    "32k": 32768,
    "64k": 65536,
    "128k": 131072,
}
LENGTHS = tuple(_BUDGETS)
"""Prompt lengths by name; "4k" is 4,096 tokens of the loaded tokenizer, chat template included."""
SHORTEST, LONGEST = 192, 131_072


def token_budget(length: str | int) -> int:
    """Tokens of a length given by name or number.

    Raises:
        ValueError: an unknown name, or a number outside 192 … 131,072.
    """
    if isinstance(length, str) and length in _BUDGETS:
        return _BUDGETS[length]
    try:
        tokens = int(length)
    except ValueError:
        raise ValueError(f"Prompt length {length!r} is unknown; choose one of {', '.join(LENGTHS)}.") from None
    if not SHORTEST <= tokens <= LONGEST:
        raise ValueError(f"A prompt of {tokens:,} tokens is out of range; ask for {SHORTEST} to {LONGEST:,} tokens.")
    return tokens


def length_name(length: str | int) -> str:
    """The one way to write a length: "4k" for 4096 too. Raises ValueError as `token_budget` does.

    "short_context" is more than its number: a word problem comes without documents there.
    """
    tokens = token_budget(length)
    if length == "short_context":
        return "short_context"
    named = {size: name for name, size in _BUDGETS.items() if name != "short_context"}
    return named.get(tokens, str(tokens))
