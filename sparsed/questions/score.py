"""Is an answer right?"""

from __future__ import annotations

from collections.abc import Sequence


def exact_match(text: str, *gold: str) -> bool:
    """Whether an answer is a gold answer, white space at the ends aside. gold: every right answer."""
    return any(text.strip() == one.strip() for one in gold)


def facts_right(text: str, *gold: str) -> tuple[int, int, int]:
    """How many facts of a gold answer of several sentences are stated.

    gold: every right answer; the text is compared with the one that it is nearest to.

    Returns:
        (facts stated right, facts of that gold answer, sentences stated that are no fact of it).
    """
    return _facts(text, nearest(text, gold))


def nearest(text: str, gold: Sequence[str]) -> str:
    """The right answer that a text is compared with: the one that it is, or else the one most of whose facts it states
    with the fewest others beside them; of equals the first. gold: every right answer.
    """
    return max(gold, key=lambda one: _closeness(text, one))


def _closeness(text: str, gold: str) -> tuple[bool, int, int, int]:
    right, facts, invented = _facts(text, gold)
    return exact_match(text, gold), right, -invented, -facts


def _facts(text: str, gold: str) -> tuple[int, int, int]:
    said, true = _sentences(text), _sentences(gold)
    right = sum(sentence in said for sentence in true)
    return right, len(true), sum(sentence not in true for sentence in said)


def _sentences(text: str) -> list[str]:
    return [sentence.strip(" .") for sentence in text.strip().split(". ") if sentence.strip(" .")]
