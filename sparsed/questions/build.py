"""Demo prompts: documents filled up to a number of tokens, a question about them, and its right answers.

Made of names that the bundled model never saw in training (see `sparsed.questions.world`), deterministic by seed.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Any

from sparsed.questions.entities import Document, Question
from sparsed.questions.lengths import token_budget
from sparsed.questions.pieces import Pieces, joined, material_text
from sparsed.questions.world import KINDS, RICH_KINDS, World, numbered, prompt_pieces

_FILLER = 0.15
GENERATOR = 1
"""Goes up whenever one seed and tokenizer give another prompt than before (a test tells)."""


def prompts_version() -> str:
    """What prompts depend on besides their seed and the tokenizer: the generator and its material."""
    return f"{GENERATOR}-{hashlib.blake2b(material_text().encode(), digest_size=6).hexdigest()}"


@dataclass(frozen=True)
class Prompt:
    """A prompt with its gold answer.

    Attributes:
        text: the user's message, documents and question (the chat template is added by the model).
        question: the question alone.
        answer: the gold answer.
        kind: question kind, a key of KINDS.
        length: the length asked for: a name of LENGTHS, or the number of tokens.
        tokens: tokens as the model sees them, chat template included.
        seed: what it was made from.
        depth: where the first needed document stands among the documents, 0 (first) to 1 (last); None if none is
            needed.
        verdict: "yes" or "no" for comparisons, otherwise empty.
        others: answers that are right as well, where there are several.
        needed: where the documents that the question needs stand: first character of the text, one past the last.
    """

    text: str
    question: str
    answer: str
    kind: str
    length: str
    tokens: int
    seed: int
    depth: float | None = None
    verdict: str = ""
    others: tuple[str, ...] = ()
    needed: tuple[tuple[int, int], ...] = ()

    @property
    def answers(self) -> tuple[str, ...]:
        """Every right answer; the first is `answer`."""
        return (self.answer, *self.others)


def build_prompt(
    source: Any,
    length: str | int = "short_context",
    kind: str = "about",
    seed: int = 0,
    depth: float | None = None,
    chat: bool | None = None,
) -> Prompt:
    """Build a prompt of a given number of tokens.

    Args:
        source: a loaded model, or a tokenizer with a chat template.
        length: a name of LENGTHS or a number of tokens, chat template included, generation not.
        kind: a key of KINDS. A word problem at "short_context" comes without documents.
        seed: the same seed and tokenizer give the same prompt.
        depth: where the documents that the question needs stand, one after the other, 0 (first) to 1 (last): the same
            prompt, but for the order of its documents. None leaves them where chance put them. Without effect where no
            document is needed.
        chat: the length is counted with the model's chat template (None: where it has one), or without. A tokenizer's
            is always counted with it.

    Returns:
        A prompt within 1 % of the length and never above it (with the bundled tokenizer: exactly; "short_context"
        may be shorter).

    Raises:
        ValueError: unknown length or kind, a depth out of range, or a tokenizer without chat template.
    """
    if depth is not None:
        check_depth(depth)
    if kind not in KINDS:
        raise ValueError(f"Question kind {kind!r} is unknown; choose one of {', '.join(KINDS)}.")
    budget = token_budget(length)
    counter = _Counter(source, chat)
    for attempt in range(150):
        rng = random.Random(f"prompt-{seed}-{kind}-{budget}-{attempt}")
        world = World(rng, held_out=True, rich=kind in RICH_KINDS)
        if kind == "arithmetic" and length == "short_context":
            question = world.ask(kind)
            assert question is not None, "a sum needs no documents"
            built = _Built([], question, counter.prompt(prompt_pieces([], question.question)))
        else:
            made = _build(world, counter, budget, kind, depth)
            if made is None:
                continue
            built = made
        text = "".join(prompt_pieces(built.documents, built.question.question))
        return Prompt(
            text=text,
            question="".join(built.question.question),
            answer="".join(built.question.answer),
            kind=kind,
            length=str(length),
            tokens=built.tokens,
            seed=seed,
            depth=_depth(built.documents, built.question),
            verdict=built.question.verdict,
            others=tuple("".join(other) for other in built.question.others),
            needed=_needed(text, built.documents, built.question),
        )
    raise ValueError(
        f"No question of kind {kind!r} fits into {budget} tokens of this tokenizer; choose a longer prompt."
    )


def check_depth(depth: float) -> None:
    """Raises ValueError for what is no depth."""
    if not 0 <= depth <= 1:
        raise ValueError(f"The depth of the needed documents must lie between 0 (first) and 1 (last), not {depth}.")


@dataclass
class _Built:
    documents: list[Document]
    question: Question
    tokens: int


class _Counter:
    """Counts tokens: pieces one by one (an estimate, except for the bundled tokenizer) and whole prompts (exactly)."""

    def __init__(self, source: Any, chat: bool | None) -> None:
        self._chat = chat
        model = source if hasattr(source, "tokenizer") else None
        self._tokenizer = source if model is None else model.tokenizer
        if model is None and not getattr(source, "chat_template", None):
            raise ValueError("This tokenizer has no chat template, so the length of a prompt cannot be counted.")
        self._model = model
        self._sizes: dict[str, int] = {}

    def pieces(self, pieces: Pieces) -> int:
        sizes = self._sizes
        for piece in pieces:
            if piece not in sizes:
                sizes[piece] = len(self._tokenizer.encode(piece, add_special_tokens=False))
        return sum(sizes[piece] for piece in pieces)

    def prompt(self, pieces: Pieces) -> int:
        if self._model is not None:
            return int(self._model.encode("".join(pieces), self._chat).shape[1])
        messages = [{"role": "user", "content": "".join(pieces)}]
        encoded = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        return len(encoded["input_ids"])


def _build(world: World, counter: _Counter, budget: int, kind: str, depth: float | None) -> _Built | None:
    """Documents and a question of the kind in at most ``budget`` tokens, or None if this draw has no such question."""
    reserve = 48  # for the question and the chat template
    empty = counter.prompt(prompt_pieces([Document(["."])], ["?"]))
    while (room := budget - empty - reserve - _cost(counter, world.documents)) > 100:
        before = len(world.documents)
        world.fill(counter.pieces, room, _FILLER)
        if len(world.documents) == before:
            break
    question = _richest(world, kind)
    if question is None:
        return None
    documents = list(world.documents)
    needed = {id(entity) for entity in question.entities}
    # What is not counted piece by piece; whole prompts are slow to count, so only the first and the last one are.
    fixed = counter.prompt(prompt_pieces(documents, question.question)) - _cost(counter, documents)
    for attempt in range(60):
        missing = budget - fixed - _cost(counter, documents)
        if missing == 0 or (attempt > 30 and 0 < missing <= budget // 200):
            break
        extra = _filler_of(world, counter, missing - _number_cost(counter, len(documents) + 1))
        if missing > 0 and extra is not None:
            documents.insert(world.rng.randrange(len(documents) + 1), extra)
        else:
            spare = [d for d in documents if d.entity is None or id(d.entity) not in needed]
            if not spare:
                return None
            documents.remove(world.rng.choice([d for d in spare if d.entity is None] or spare))
    if depth is not None:
        documents = _moved(documents, needed, depth)
    tokens = counter.prompt(prompt_pieces(documents, question.question))
    for _ in range(60):
        # Another tokenizer than ours may merge across pieces, so that the sum is off by a few tokens: near is enough.
        if tokens <= budget:
            return _Built(documents, question, tokens) if tokens >= budget * 0.99 else None
        spare = [d for d in documents if d.entity is None]
        if not spare:
            return None
        documents.remove(spare[-1])
        if depth is not None:
            documents = _moved(documents, needed, depth)
        tokens = counter.prompt(prompt_pieces(documents, question.question))
    return None


def _moved(documents: list[Document], needed: set[int], depth: float) -> list[Document]:
    """The documents with the needed ones one after the other at a depth."""
    others = [document for document in documents if id(document.entity) not in needed]
    place = round(depth * len(others))
    return [*others[:place], *(d for d in documents if id(d.entity) in needed), *others[place:]]


def _cost(counter: _Counter, documents: list[Document]) -> int:
    """Tokens of numbered documents, counted piece by piece."""
    return counter.pieces(numbered(documents))


def _richest(world: World, kind: str) -> Question | None:
    """A question of the kind; "about" takes the longest answer of a few, because it is the one to watch."""
    wanted = 4 if kind == "about" else 1
    found: list[Question] = []
    for _ in range(300):
        question = world.ask(kind)
        if question is not None:
            found.append(question)
            if len(found) == wanted:
                break
    return max(found, key=lambda question: len("".join(question.answer)), default=None)


def _number_cost(counter: _Counter, number: int) -> int:
    return counter.pieces(["Document", f" {number}", ":", "\n"])


def _filler_of(world: World, counter: _Counter, tokens: int) -> Document | None:
    """A filler document of exactly ``tokens`` tokens by the counter (of fewer, if they are many), or None."""
    if tokens < 3:
        return None
    size = tokens if tokens <= 90 else world.rng.randrange(30, 61)
    by_size: dict[int, list[Pieces]] = {}
    for _ in range(80):
        sentence = world.filler_sentence()
        by_size.setdefault(counter.pieces([" " + sentence[0], *sentence[1:]]), []).append(sentence)
    text = [world.rng.choice(by_size[part]) for part in _parts_of(size, sorted(by_size), world.rng)]
    return Document(joined(text)) if text else None


def _parts_of(total: int, sizes: list[int], rng: random.Random) -> list[int]:
    """A random way to write ``total`` as a sum of sizes; empty where there is none."""
    reachable: list[set[int]] = [set() for _ in range(total + 1)]
    for value in range(1, total + 1):
        reachable[value] = {size for size in sizes if size == value or (size < value and reachable[value - size])}
    parts: list[int] = []
    left = total
    while left and reachable[left]:
        parts.append(rng.choice(sorted(reachable[left])))
        left -= parts[-1]
    return parts


def _needed(text: str, documents: list[Document], question: Question) -> tuple[tuple[int, int], ...]:
    """Where the documents that the question needs stand in the prompt's text, first character, one past the last."""
    found = ["".join(documents[place].pieces) for place in _places(documents, question)]
    return tuple((text.index(document), text.index(document) + len(document)) for document in found)


def _places(documents: list[Document], question: Question) -> list[int]:
    """Which documents the question needs."""
    needed = {id(entity) for entity in question.entities}
    return [index for index, document in enumerate(documents) if id(document.entity) in needed and document.entity]


def _depth(documents: list[Document], question: Question) -> float | None:
    places = _places(documents, question)
    return places[0] / max(1, len(documents) - 1) if places else None
