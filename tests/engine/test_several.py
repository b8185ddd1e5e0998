"""generate_all: prompts of any lengths, each answered as by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

import sparsed
from sparsed import CacheConfig, SamplerConfig, SparseDConfig
from sparsed.denoising import several
from sparsed.denoising.forward import LocalForward

LENGTHS = (90, 70, 90, 71, 90, 70, 90)
LLADA = SamplerConfig(8, 24, 12, "low_confidence", 0.0, 0)
DREAM = SamplerConfig(8, 24, 24, "maskgit_plus", 0.0, 0)


def prompts(seed: int = 0, lengths: Sequence[int] = LENGTHS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (1, length), generator=generator) for length in lengths]


def assert_alone(model: Any, answered: sparsed.Answered, ids: torch.Tensor, **settings: Any) -> None:
    """An answer of several is what its prompt alone has."""
    alone = sparsed.generate(model, ids, **settings)
    assert torch.equal(answered.tokens, alone.tokens[0, ids.shape[1] :])
    assert (answered.text, answered.ended, answered.steps) == (alone.text[0], alone.ended[0], len(alone.steps))
    same = ("sampler", "attention", "cache", "phases", "rows", "switch_step", "prompt_tokens", "total", "finished")
    for name in same:
        assert getattr(answered.info, name) == getattr(alone.info, name), name
    # What its steps took is its own.
    assert [note for note in answered.notes if "faster" not in note] == [
        note for note in alone.notes if "faster" not in note
    ]


@pytest.mark.parametrize("family", ["llada", "dream", "qwen3"])
@pytest.mark.parametrize("attention", ["dense", SparseDConfig(skip=0.25, select=0.4, block_size=32)])
def test_answers_are_those_of_each_prompt_alone_in_the_order_of_the_prompts(model_of, family: str, attention) -> None:
    model, sampler = model_of(family), DREAM if family == "dream" else LLADA
    asked = prompts()
    # Four rows of 90 + 24 tokens are too many by one.
    found = sparsed.generate_all(model, asked, sampler=sampler, attention=attention, batch_tokens=4 * 114 - 1)
    assert [one.index for one in found] == list(range(7))
    assert [one.info.batch for one in found] == [3, 2, 3, 1, 3, 2, 1]
    for one, ids in zip(found, asked, strict=True):
        assert_alone(model, one, ids, sampler=sampler, attention=attention)
    one_by_one = sparsed.generate_all(model, asked, sampler=sampler, attention=attention, batch_tokens=0)
    assert {one.info.batch for one in one_by_one} == {1}
    assert all(torch.equal(one.tokens, two.tokens) for one, two in zip(one_by_one, found, strict=True))


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize("attention", ["dense", SparseDConfig(skip=0.3, select=0.5, block_size=32)])
def test_with_a_threshold_each_answer_has_its_own_steps(model_of, attention, early_stop: bool) -> None:
    model = model_of("llada", mask_predicted=False)
    sampler = SamplerConfig(None, 24, 8, "low_confidence", 0.0, 0, threshold=0.15, early_stop=early_stop)
    asked = prompts(5, (100,) * 5)
    found = sparsed.generate_all(model, asked, sampler=sampler, attention=attention)
    assert {one.info.batch for one in found} == {5} and len({one.steps for one in found}) > 1
    for one, ids in zip(found, asked, strict=True):
        assert_alone(model, one, ids, sampler=sampler, attention=attention)


def test_shares_of_the_time_sum_to_all_of_it(model_of, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    real = several.answers_of
    monkeypatch.setattr(several, "answers_of", lambda run: results.append(run.result()) or real(run))
    model = model_of("llada", mask_predicted=False)
    sampler = SamplerConfig(None, 24, 8, "low_confidence", 0.0, 0, threshold=0.15)
    found = sparsed.generate_all(model, prompts(5, (100, 100, 80)), sampler=sampler, attention="dense")
    assert sum(one.seconds for one in found) == pytest.approx(sum(result.seconds for result in results))
    assert len(results) == 2 and all(one.seconds > 0 for one in found)


def test_a_stop_string_that_comes_later_in_the_text_of_others_changes_nothing(model_of) -> None:
    """A row is read as it was when it was complete; the batch goes on with it."""
    model = model_of("qwen3")
    sampler = SamplerConfig(16, 16, 8, "low_confidence", 0.0, 0)
    asked = prompts(1, (60, 60, 60))
    whole = sparsed.generate_all(model, asked, sampler=sampler, attention="dense")
    ends = [one.text[2] for one in whole if len(one.text) > 3][:2]
    assert ends
    stopped = SamplerConfig(16, 16, 8, "low_confidence", 0.0, 0, early_stop=True, stop=tuple(ends))
    for one, ids in zip(sparsed.generate_all(model, asked, sampler=stopped, attention="dense"), asked, strict=True):
        assert_alone(model, one, ids, sampler=stopped, attention="dense")
        assert one.ended is None or not any(end in one.text for end in ends)
        # Counted by hand: the shortest beginning whose text holds what ended it.
        if one.ended == "stop string":
            row = one.tokens.tolist()
            lengths = [n for n in range(1, 17) if any(end in model.tokens_text(row[:n], special=False) for end in ends)]
            assert one.count == sum(token != model.mask_id for token in row[: lengths[0]])


@pytest.mark.parametrize(
    ("sampler", "attention", "cache"),
    [
        (SamplerConfig(8, 24, 12, "low_confidence", 0.9, 3), "dense", None),
        (SamplerConfig(8, 24, 12, "random", 0.0, 3), "dense", None),
        (LLADA, sparsed.AttentionConfig("random", select=0.4, block_size=32), None),
        (SamplerConfig(None, 24, 8, "low_confidence", 0.0, 0, threshold=0.15), SparseDConfig(refresh=2), None),
        (SamplerConfig(None, 24, 8, "low_confidence", 0.0, 0, threshold=0.15), SparseDConfig(), CacheConfig("dual")),
    ],
)
def test_what_others_would_show_in_goes_one_by_one(model_of, sampler, attention, cache) -> None:
    model, asked = model_of("llada", mask_predicted=False), prompts(2, (80, 80))
    found = sparsed.generate_all(model, asked, sampler=sampler, attention=attention, cache=cache)
    assert [one.info.batch for one in found] == [1, 1]
    for one, ids in zip(found, asked, strict=True):
        assert_alone(model, one, ids, sampler=sampler, attention=attention, cache=cache)


def test_a_note_about_one_prompt_is_no_others(model_of) -> None:
    """One that looks filled up at its end, beside two that do not."""
    model, asked = model_of("llada", mask_predicted=False), prompts(5, (80, 80, 80))
    asked[1][0, -3:] = model.eos_id
    found = sparsed.generate_all(model, asked, sampler=LLADA)
    assert [one.info.batch for one in found] == [3, 3, 3] and any("padding" in note for note in found[1].notes)
    for one, ids in zip(found, asked, strict=True):
        assert_alone(model, one, ids, sampler=LLADA)


@pytest.mark.parametrize("cache", [CacheConfig("delayed"), CacheConfig("dual"), CacheConfig("refresh", 2)])
@pytest.mark.parametrize("family", ["llada", "dream"])  # of a shifted model, rows differ in number too
def test_with_a_cache(model_of, family: str, cache: CacheConfig) -> None:
    model, asked = model_of(family), prompts(3, (80, 75, 80))
    attention = SparseDConfig(skip=0.25, select=0.4, block_size=32)
    found = sparsed.generate_all(model, asked, sampler=LLADA, attention=attention, cache=cache)
    assert [one.info.batch for one in found] == [2, 1, 2]
    for one, ids in zip(found, asked, strict=True):
        assert_alone(model, one, ids, sampler=LLADA, attention=attention, cache=cache)


def test_where_memory_does_not_suffice_half_of_a_batch_is_tried(model_of, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = model_of("llada"), prompts(4, (60,) * 5)
    whole = sparsed.generate_all(model, asked, sampler=LLADA)
    real = LocalForward.logits

    def small(self: LocalForward, ids: torch.Tensor, pass_: Any) -> torch.Tensor:
        if len(ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(self, ids, pass_)

    monkeypatch.setattr(LocalForward, "logits", small)
    found = sparsed.generate_all(model, asked, sampler=LLADA)
    assert [one.info.batch for one in found] == [2, 2, 2, 2, 1]
    assert all(torch.equal(one.tokens, two.tokens) for one, two in zip(found, whole, strict=True))
    assert all(one.notes[-1].startswith("5 sequences of 84 tokens were too much for the memory here") for one in found)


@pytest.mark.parametrize("most", [0, 16_384])
def test_prompts_that_are_too_much_for_the_memory_cost_no_other_answer(model_of, monkeypatch, most: int) -> None:
    """Those of 80 and 90 tokens, wherever they stand."""
    model, asked = model_of("llada"), prompts(4, (80, 60, 90, 60, 80, 70, 90))
    whole = {one.index: one for one in sparsed.generate_all(model, asked, sampler=LLADA)}
    real, tried = LocalForward.logits, []

    def small(self: LocalForward, ids: torch.Tensor, pass_: Any) -> torch.Tensor:
        tried.append(ids.shape[1])
        if ids.shape[1] > 70 + 24:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(self, ids, pass_)

    monkeypatch.setattr(LocalForward, "logits", small)
    said = (
        "^Prompt 1, Prompt 3, Prompt 5 and 1 more: There is too little memory for one sequence of 104 tokens, its "
        "generation included: take a shorter prompt"
    )
    with pytest.raises(sparsed.Unanswered, match=said) as raised:
        sparsed.generate_all(model, asked, sampler=LLADA, batch_tokens=most)
    assert raised.value.indices == [0, 2, 4, 6]
    assert [one.index for one in raised.value.answered] == [1, 3, 5]
    assert all(torch.equal(one.tokens, whole[one.index].tokens) for one in raised.value.answered)
    there = []
    with pytest.raises(MemoryError, match="^b, d, e: There is too little memory for one sequence of 104 tokens"):
        for one in sparsed.each_answer(model, [*asked[3:], asked[0]], sampler=LLADA, names="abcde"):
            there.append(one.index)
    assert there == [0, 2]


def test_answers_come_one_by_one_as_soon_as_they_are_there(model_of, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a device that fails later costs none of them."""
    model, real = model_of("llada"), LocalForward.logits

    def failing(self: LocalForward, ids: torch.Tensor, pass_: Any) -> torch.Tensor:
        if ids.shape[1] == 60 + 24:
            raise RuntimeError("lost")
        return real(self, ids, pass_)

    monkeypatch.setattr(LocalForward, "logits", failing)
    there = []
    with pytest.raises(RuntimeError, match="lost"):
        for one in sparsed.each_answer(model, prompts(4, (80, 60, 90, 80)), sampler=LLADA):
            there.append(one.index)
    assert there == [0, 3]


def test_texts_messages_and_token_ids_side_by_side(model_of) -> None:
    model = model_of("llada")
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    asked = ["some text", chat, model.encode("some text")[0]]
    found = sparsed.generate_all(model, asked, sampler=LLADA)
    assert found[0].text == found[2].text == sparsed.generate(model, "some text", sampler=LLADA).text[0]
    assert found[1].info.prompt_tokens == model.encode(chat).shape[1]
    raw = sparsed.generate_all(model, ["some text"], sampler=LLADA, chat=False)
    assert raw[0].info.prompt_tokens == model.encode("some text", chat=False).shape[1]
    assert sparsed.generate_all(model, []) == []


@pytest.mark.parametrize(
    ("asked", "more", "said"),
    [
        (["x", " "], {}, "Prompt 2: The prompt is empty"),
        (["x", 5], {}, "Prompt 2: A prompt must be a string"),
        (["x", torch.ones(2, 3, dtype=torch.int64)], {}, r"Prompt 2: token ids of shape \[2, 3\] are 2 prompts"),
        ("x", {}, "Several prompts must be given as a list, not 'x'"),
        (["x"], {"batch_tokens": -1}, "batch_tokens must be a whole number of at least 0, not -1"),
        (["x"], {"cache": "dual"}, "cache must be a CacheConfig, not 'dual'"),
        (["x"], {"sampler": 3}, "sampler must be a SamplerConfig, not 3"),
    ],
)
def test_wrong_prompts_are_one_sentence_with_their_number(model_of, asked, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sparsed.generate_all(model_of("llada"), asked, **more)


def test_a_list_of_texts_is_no_prompt_of_generate(model_of) -> None:
    with pytest.raises(ValueError, match=r"several texts go to sparsed\.generate_all\."):
        sparsed.generate(model_of("llada"), ["x", "y"])
