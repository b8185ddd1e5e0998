"""The bundled model's tokenizer: byte-level BPE of 2,048 tokens, every digit a token of its own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from sparsed.files import write
from sparsed.questions.world import KINDS, World, prompt_pieces

END, MASK, USER, ASSISTANT = "<|endoftext|>", "<|mask|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (END, MASK, USER, ASSISTANT)
VOCABULARY = 2048

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] + '<|endoftext|>' }}"
    "{% else %}{{ '<|user|>' + message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# Borders fall before every space-led word, every digit, every newline and every run of punctuation.
_PRE_TOKENS = r" ?\p{L}+| ?\p{N}|\n| ?[^\s\p{L}\p{N}]+|\s"


def train(seed: int = 0, texts: int = 6000) -> Tokenizer:
    """Train the tokenizer on generated prompts and answers (training names only); the same seed, the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PRE_TOKENS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed, texts), trainer)
    return tokenizer


def _corpus(seed: int, texts: int) -> Iterator[str]:
    rng = random.Random(f"tokenizer-{seed}")
    for text in range(texts):
        world = World(rng, held_out=False, rich=text % 2 == 1)
        world.fill(lambda pieces: len(pieces), 400, filler=0.2)
        for kind in KINDS:
            if (question := world.ask(kind)) is not None:
                yield "".join([*question.question, "\n", *question.answer])
        talk = world.small_talk()
        yield "".join([*talk.question, "\n", *talk.answer])
        yield "".join(prompt_pieces(world.documents, ["?"]))


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json as transformers reads them."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        mask_token=MASK,
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        model_max_length=65536 + 64,
    )
    fast.chat_template = CHAT_TEMPLATE
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as made:
        fast.save_pretrained(made)
        for file in sorted(Path(made).iterdir()):
            write(folder / file.name, file.read_bytes())


def special_id(tokenizer: Tokenizer, token: str) -> int:
    """Id of a special token. Raises ValueError if the tokenizer lacks it."""
    number = tokenizer.token_to_id(token)
    if number is None:
        raise ValueError(f"The tokenizer has no token {token}; make one with python -m sparsed.training tokenizer.")
    return int(number)


class PieceEncoder(dict[str, list[int]]):
    """Token ids of pieces, each encoded once.

    Exact for the bundled tokenizer, because the borders of pieces are borders of its pre-tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, piece: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(piece, add_special_tokens=False).ids
        self[piece] = ids
        return ids

    def ids(self, pieces: list[str]) -> list[int]:
        """Concatenated token ids of the pieces."""
        return [token for piece in pieces for token in self[piece]]

    def count(self, pieces: list[str]) -> int:
        """Number of tokens of the pieces."""
        return sum(len(self[piece]) for piece in pieces)
