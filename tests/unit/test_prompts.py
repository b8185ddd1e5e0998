from __future__ import annotations

import re

import pytest
from transformers import PreTrainedTokenizerFast

from sparsed.paths import data_dir
from sparsed.questions.build import build_prompt
from sparsed.questions.lengths import LENGTHS, token_budget
from sparsed.questions.score import exact_match, facts_right
from sparsed.questions.world import KINDS

TOKENS = {"short_context": 256, "1k": 1024, "2k": 2048, "4k": 4096, "8k": 8192, "16k": 16384}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(data_dir("assets") / "mini")


def seen(tokenizer: PreTrainedTokenizerFast, text: str) -> int:
    chat = [{"role": "user", "content": text}]
    return len(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"])


@pytest.mark.parametrize("length", TOKENS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_fills_its_length_as_the_model_sees_it(
    tokenizer: PreTrainedTokenizerFast, length: str, kind: str
) -> None:
    prompt = build_prompt(tokenizer, length, kind, seed=7)
    assert prompt.tokens == seen(tokenizer, prompt.text) <= TOKENS[length]
    if (length, kind) != ("short_context", "arithmetic"):
        assert prompt.tokens >= 0.99 * TOKENS[length]
    assert prompt.text.endswith(prompt.question)
    assert prompt.answer and prompt.answer not in prompt.question


def test_the_longest_prompt_fills_its_length(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = build_prompt(tokenizer, "128k", "fact", seed=1)
    assert 0.99 * 131_072 <= seen(tokenizer, prompt.text) <= 131_072


@pytest.mark.parametrize("letters", [1, 5, 12])
def test_the_longest_prompt_of_other_tokenizers(letters: int) -> None:
    """Which take a token for every so many letters of a word: little text, or much; documents hardly repeat."""

    class Cutting:
        chat_template = "x"

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [0] * sum(-(-len(word) // letters) for word in re.findall(r" ?[A-Za-z]+|[^A-Za-z]", text))

        def apply_chat_template(self, chat: list[dict[str, str]], **_: object) -> dict[str, list[int]]:
            return {"input_ids": self.encode(chat[0]["content"], False)}

    prompt = build_prompt(Cutting(), "128k", "two_hop", 5)
    assert 0.99 * 131_072 <= prompt.tokens == len(Cutting().encode(prompt.text, False)) <= 131_072
    documents = [line.partition(": ")[2] for line in prompt.text.splitlines() if line.startswith("Document ")]
    assert len(documents) > 500 and len(set(documents)) > 0.99 * len(documents) and len(prompt.needed) == 2


def test_another_tokenizer_is_within_one_percent(tokenizer: PreTrainedTokenizerFast) -> None:
    class Words:
        """Merges across pieces: a token for every two characters of the whole text."""

        chat_template = "x"

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [0] * -(-len(text) // 2)

        def apply_chat_template(self, chat: list[dict[str, str]], **_: object) -> dict[str, list[int]]:
            return {"input_ids": self.encode(chat[0]["content"] + "<assistant>", False)}

    for seed in range(5):
        prompt = build_prompt(Words(), 4096, "two_hop", seed)
        assert 0.99 * 4096 <= -(-len(prompt.text + "<assistant>") // 2) <= 4096


def test_the_same_seed_gives_the_same_prompt_and_another_one_does_not(tokenizer: PreTrainedTokenizerFast) -> None:
    first, again = (build_prompt(tokenizer, "1k", "about", 5) for _ in range(2))
    assert first == again
    assert build_prompt(tokenizer, "1k", "about", 6).text != first.text


def test_needed_documents_stand_everywhere(tokenizer: PreTrainedTokenizerFast) -> None:
    depths = [build_prompt(tokenizer, "1k", "fact", seed).depth for seed in range(40)]
    known = [depth for depth in depths if depth is not None]
    assert len(known) == 40 and min(known) < 0.2 and max(known) > 0.8


@pytest.mark.parametrize("kind", ["fact", "two_hop", "several", "about"])
@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 1.0])
def test_the_needed_documents_stand_where_they_are_asked_to(
    tokenizer: PreTrainedTokenizerFast, kind: str, depth: float
) -> None:
    plain, moved = (build_prompt(tokenizer, "2k", kind, 11, at) for at in (None, depth))
    assert (moved.question, moved.answer) == (plain.question, plain.answer)
    lines, before = (
        [line.partition(": ")[2] for line in prompt.text.splitlines() if line.startswith("Document")]
        for prompt in (moved, plain)
    )
    # The same documents in another order: as many tokens, and nothing lost.
    assert sorted(lines) == sorted(before) and moved.tokens == plain.tokens == seen(tokenizer, moved.text)
    asked = [name for name in (line.split(" ")[:2] for line in lines) if " ".join(name) in moved.question]
    assert moved.depth == pytest.approx(depth, abs=2.5 / len(lines)), asked
    # Where they stand in the text: whole documents, the same ones, one after the other from that depth on.
    needed = [moved.text[first:end] for first, end in moved.needed]
    places = [lines.index(document) for document in needed]
    assert places == [*range(places[0], places[0] + len(needed))] and moved.depth == places[0] / (len(lines) - 1)
    assert sorted(needed) == sorted(plain.text[first:end] for first, end in plain.needed)


def test_without_a_needed_document_depth_changes_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    plain, moved = (build_prompt(tokenizer, "1k", "arithmetic", 3, at) for at in (None, 0.5))
    assert moved == plain and moved.depth is None and moved.needed == ()


def test_lengths_by_name_or_number() -> None:
    assert [token_budget(name) for name in LENGTHS] == [256, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072]
    assert token_budget(500) == token_budget("500") == 500
    for wrong in ("5k", "", 0, -1, 131073):
        with pytest.raises(ValueError, match="rompt"):
            token_budget(wrong)


def test_bad_requests_are_refused_in_a_sentence(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="riddle"):
        build_prompt(tokenizer, "1k", "riddle")
    for depth in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="between 0"):
            build_prompt(tokenizer, "1k", "fact", 0, depth)
    with pytest.raises(ValueError, match="chat template"):
        build_prompt(object(), "1k")


def test_answers_are_compared_fact_by_fact() -> None:
    gold = "Mira Tolvane is a baker. She lives in Orvika. She keeps a grey goose."
    assert exact_match(f" {gold} ", gold) and not exact_match(gold[:-1], gold)
    assert facts_right(gold, gold) == (3, 3, 0)
    assert facts_right(f"\n  {gold}\n", gold) == (3, 3, 0)
    assert facts_right("Mira Tolvane is a baker. She lives in Rome.", gold) == (1, 3, 1)
    assert facts_right("", gold) == (0, 3, 0)
