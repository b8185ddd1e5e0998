"""Is an answer right?"""

from __future__ import annotations


def exact_match(text: str, gold: str) -> bool:
    """Whether an answer is the gold answer, white space at the ends aside."""
    return text.strip() == gold.strip()


def facts_right(text: str, gold: str) -> tuple[int, int, int]:
    """How many facts of a gold answer of several sentences are stated.

    Returns:
        (facts stated right, facts of the gold answer, sentences stated that are no fact of it).
    """
    said, true = _sentences(text), _sentences(gold)
    right = sum(sentence in said for sentence in true)
    return right, len(true), sum(sentence not in true for sentence in said)


def _sentences(text: str) -> list[str]:
    return [sentence.strip(" .") for sentence in text.strip().split(". ") if sentence.strip(" .")]
