"""Training rows: documents followed by as many question/answer turns as fit, as arrays of token ids."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.utils.data import IterableDataset, get_worker_info

from sparsed.questions.entities import Question
from sparsed.questions.world import RICH_KINDS, World, prompt_pieces
from sparsed.training.tokenizer import ASSISTANT, END, USER, PieceEncoder, special_id

CANVAS = 96
"""Tokens of an answer's canvas in the demo."""

CANVASES = (64, 96, 128)
"""Training canvases have one of these lengths, or just fit their answer."""

MAX_POSITION = 66_000
"""Positions seen in training; rows shorter than this are spread over it by random skips (PoSE)."""

TURN_KINDS = {
    "fact": 0.037,
    "inverse": 0.056,
    "two_hop": 0.081,
    "several": 0.037,
    "older": 0.033,
    "same": 0.067,
    "about": 0.022,
    "unanswerable": 0.011,
    "arithmetic": 0.026,
    "chain3": 0.056,
    "chain4": 0.111,
    "open": 0.241,
    "list": 0.222,
}
"""Shares of the kinds among the turns of a row, before those are drawn again that its documents do not allow.

What few documents allow (chains of four, open questions) is drawn more often than what nearly all do. The kinds of one
and two hops, which are learned faster, share 37 %, each with the weight among them that it had alone.
"""
RICH_SHARE = 0.7
"""Share of the rows whose world is rich, as the new kinds' prompts are; the old kinds' are plain, and asked of both."""
MAX_TURNS = 150


@dataclass
class Row:
    """One training row of ``length`` tokens.

    Attributes:
        ids: int64 token ids [length], nothing masked yet.
        turns: int64 [length]; 0 for text that is given, n for the canvas of the n-th answer.
        offsets: int64 [length]; position inside the canvas.
    """

    ids: list[int]
    turns: list[int]
    offsets: list[int]


class RowMaker:
    """Makes training rows of any length.

    Args:
        tokenizer: the bundled model's tokenizer.
        rng: the only source of randomness.
        held_out: use the names that training never shows (for probes).
    """

    def __init__(self, tokenizer: Tokenizer, rng: random.Random, held_out: bool = False) -> None:
        self.encoder = PieceEncoder(tokenizer)
        self.end, self.user, self.assistant = (special_id(tokenizer, token) for token in (END, USER, ASSISTANT))
        self.rng, self.held_out = rng, held_out

    def row(self, length: int, kind: str | None = None) -> Row:
        """A row of exactly ``length`` tokens; ``kind`` asks for a single question of that kind on a full canvas, in a
        world as its prompts have. Raises ValueError where no question of the kind fits.
        """
        for _ in range(100):
            if (row := self._row(length, kind)) is not None:
                return row
        raise ValueError(f"No question{'' if kind is None else f' of kind {kind!r}'} fits a row of {length} tokens.")

    def _row(self, length: int, kind: str | None) -> Row | None:
        """A row of one draw's documents, or None where no question fits beside them."""
        rng = self.rng
        talk = kind == "arithmetic" or (kind is None and length <= 512 and rng.random() < 0.06)
        single = kind is not None or (not talk and rng.random() < 0.15)
        canvas_size = CANVAS if kind else rng.choice(CANVASES)
        rich = rng.random() < RICH_SHARE if kind is None else kind in RICH_KINDS
        world = World(rng, self.held_out, rich)
        if not talk:
            if single:
                share = (length - canvas_size - 40) / length
            elif length <= 4096:
                # A chain of four hops needs half of a row of 512 tokens.
                share = rng.uniform(0.5, 0.8) if rich else rng.uniform(0.3, 0.6 if length <= 512 else 0.8)
            else:
                share = max(rng.uniform(0.85, 0.95), 1 - MAX_TURNS * 60 / length)
            filler = 0.0 if rng.random() < 0.3 else rng.uniform(0, 0.6)
            world.fill(self.encoder.count, int(share * length) - 12, filler)
        row = Row([], [], [])
        used: set[int] = set()
        for turn in range(1, 10_000):
            question = self._question(world, talk, used, kind)
            if question is None:
                return None
            pieces = question.question if turn > 1 else prompt_pieces(world.documents, question.question)
            given = [self.user, *self.encoder.ids(pieces), self.assistant]
            answer = self.encoder.ids(question.answer)
            left = length - len(row.ids) - len(given) - len(answer)
            if left < 1:
                if turn == 1:
                    return None
                break
            size = canvas_size if single or rng.random() < 0.25 else len(answer) + rng.randrange(1, 9)
            ends = max(1, min(left, size - len(answer)))
            canvas = answer + [self.end] * ends
            row.ids += given + canvas
            row.turns += [0] * len(given) + [turn] * len(canvas)
            row.offsets += [0] * len(given) + list(range(len(canvas)))
            if single:
                break
        rest = length - len(row.ids)
        row.ids += [self.end] * rest
        row.turns += [0] * rest
        row.offsets += [0] * rest
        return row

    def _question(self, world: World, talk: bool, used: set[int], kind: str | None) -> Question | None:
        """The next turn's; of a kind that was asked for, None where these documents have none."""
        rng = self.rng
        if kind is not None:
            return next((question for _ in range(60) if (question := world.ask(kind)) is not None), None)
        for attempt in range(24):
            if talk and rng.random() < 0.1:
                return world.small_talk()
            chosen = "arithmetic" if talk else rng.choices(list(TURN_KINDS), list(TURN_KINDS.values()))[0]
            # About what was asked before now and then, and where hardly anything else is left.
            again = attempt >= 8 or rng.random() < 0.15
            world.used = set() if again else used
            for _ in range(4):
                if (question := world.ask(chosen)) is None:
                    continue
                keys = {id(entity) for entity in question.entities}
                if again or not keys & used:
                    used |= keys
                    return question
        return _sum(world)


def _sum(world: World) -> Question:
    question = world.ask("arithmetic")
    assert question is not None, "arithmetic needs no documents"
    return question


def skipped_positions(rng: random.Random, length: int) -> np.ndarray:
    """Positions 0 … length−1, on half of the rows of 512 tokens and more with random gaps (PoSE, arXiv 2309.10400)."""
    positions = np.arange(length)
    room = MAX_POSITION - length
    if length < 512 or room <= 0 or rng.random() < 0.5:
        return positions
    cuts = sorted(rng.randrange(1, length) for _ in range(rng.choice((1, 1, 2, 3))))
    room = rng.randrange(room)
    for index, cut in enumerate(cuts):
        gap = rng.randrange(room + 1) if index < len(cuts) - 1 else room
        positions[cut:] += gap
        room -= gap
    return positions


class Batches(IterableDataset[dict[str, torch.Tensor]]):
    """Batches of equal-length rows following a plan of lengths, split over data-loader workers in order.

    Each batch has ids, turns, offsets, positions: int32 tensors [tokens_per_step // length, length].
    """

    def __init__(self, tokenizer_json: str, plan: Sequence[int], tokens: int, seed: str, first: int = 0) -> None:
        self.tokenizer_json, self.plan, self.tokens, self.seed, self.first = tokenizer_json, plan, tokens, seed, first

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        tokenizer = Tokenizer.from_str(self.tokenizer_json)
        maker = RowMaker(tokenizer, random.Random())
        for step in range(self.first + worker, len(self.plan), workers):
            maker.rng = random.Random(f"{self.seed}-{step}")
            yield stack(maker, self.plan[step], max(1, self.tokens // self.plan[step]))


def stack(
    maker: RowMaker, length: int, count: int, kind: str | None = None, skips: bool = True
) -> dict[str, torch.Tensor]:
    """``count`` rows of ``length`` tokens as int32 tensors [count, length]."""
    rows = [maker.row(length, kind) for _ in range(count)]
    positions = [skipped_positions(maker.rng, length) if skips else np.arange(length) for _ in rows]
    return {
        "ids": torch.tensor([row.ids for row in rows], dtype=torch.int32),
        "turns": torch.tensor([row.turns for row in rows], dtype=torch.int32),
        "offsets": torch.tensor([row.offsets for row in rows], dtype=torch.int32),
        "positions": torch.from_numpy(np.stack(positions).astype(np.int32)),
    }
