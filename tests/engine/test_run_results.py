"""What a run says of itself: where its answers end, when it ends, and what it really made. The bundled model."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import sparsed
from sparsed import SamplerConfig, SparseDConfig
from sparsed.denoising.answers import Answers
from sparsed.questions.build import build_prompt


@pytest.fixture(scope="module")
def mini():
    return sparsed.load("mini", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def prompts(mini) -> list[str]:
    return [build_prompt(mini, "short_context", "about", seed).text for seed in range(4)]


def prefix(tokens: list[int], mask: int) -> list[int]:
    return tokens[: tokens.index(mask)] if mask in tokens else tokens


@pytest.mark.parametrize("block_length", [8, 16, 48])
def test_a_run_ends_with_its_answers_and_they_are_those_of_a_whole_run(mini, block_length: int) -> None:
    ended = 0
    for seed in range(4):
        prompt = build_prompt(mini, "short_context", "fact", seed).text
        sampler = SamplerConfig(steps=24, gen_length=48, block_length=block_length)
        whole = sparsed.generate(mini, prompt, sampler=sampler)
        early = sparsed.generate(mini, prompt, sampler=SamplerConfig(**{**vars(sampler), "early_stop": True}))
        assert (early.text, early.ended) == (whole.text, whole.ended)
        made = len(early.steps)
        for one, other in zip(early.steps, whole.steps):
            assert torch.equal(one.tokens, other.tokens)
        # It is over at the first step after which an end token stands with nothing masked before it, and not sooner.
        over = [
            any(token in mini.end_ids for token in prefix(step.tokens[0].tolist(), mini.mask_id))
            for step in whole.steps
        ]
        assert made == (over.index(True) + 1 if True in over else 24)
        assert early.info.forwards == made and early.info.finished
        said = f"Every answer was complete after {made} of at most 24 steps; what follows their ends stays masked."
        assert (said in early.notes) == (made < 24)
        ended += made < 24
    assert ended > 0 or block_length == 48


def test_a_batch_ends_with_its_last_answer(mini) -> None:
    ids = [mini.encode(build_prompt(mini, "short_context", "about", seed).text) for seed in range(40)]
    pair = next([a, b] for n, a in enumerate(ids) for b in ids[n + 1 :] if a.shape == b.shape)
    sampler = SamplerConfig(steps=96, gen_length=96, block_length=16, early_stop=True)
    alone = [sparsed.generate(mini, row, sampler=sampler) for row in pair]
    both = sparsed.generate(mini, torch.cat(pair), sampler=sampler)
    assert both.text == [one.text[0] for one in alone]
    assert len(both.steps) == max(len(one.steps) for one in alone)


def test_a_stop_string_cuts_the_text_and_with_early_stop_ends_the_run(mini, prompts) -> None:
    sampler = {"steps": 48, "gen_length": 96, "block_length": 16}
    plain = sparsed.generate(mini, prompts[0], sampler=SamplerConfig(**sampler))
    word = plain.text[0].split()[2]
    cut = sparsed.generate(mini, prompts[0], sampler=SamplerConfig(**sampler, stop=("never written", word)))
    assert cut.text[0] == plain.text[0][: plain.text[0].index(word)] and cut.ended == ["stop string"]
    assert len(cut.steps) == 48 and torch.equal(cut.tokens, plain.tokens)
    short = sparsed.generate(mini, prompts[0], sampler=SamplerConfig(**sampler, stop=(word,), early_stop=True))
    assert (short.text, short.ended) == (cut.text, cut.ended) and len(short.steps) < 48


def test_what_ends_an_answer(mini) -> None:
    end, mask = mini.end_ids[0], mini.mask_id
    a, b = mini.tokenizer("one two", add_special_tokens=False)["input_ids"][:2]
    name = mini.tokenizer.decode([end])
    assert Answers(mini).read([a, end, b]) == (mini.decode(torch.tensor([a])), "end token")
    assert Answers(mini).read([a, b]).ended is None
    # A stop string that is a special token ends an answer as an end token does, although it is no text.
    extra = next(token for token in mini.tokenizer.get_added_vocab().values() if token not in (end, mask))
    special = mini.tokenizer.convert_ids_to_tokens(extra)
    assert Answers(mini, [special]).read([a, extra, b]).ended == "end token"
    assert Answers(mini).read([a, extra, b]).ended is None
    answers = Answers(mini, [name])
    assert not answers.complete(torch.tensor([[a, mask, end]]))
    assert answers.complete(torch.tensor([[a, b, end]]))


@pytest.mark.parametrize(
    ("sampler", "attention", "never"),
    [
        (SamplerConfig(steps=48), SparseDConfig(), False),
        (SamplerConfig(threshold=0.9), SparseDConfig(), True),
        (SamplerConfig(steps=8), SparseDConfig(skip=1.0), True),
        (SamplerConfig(steps=8), "dense", False),
    ],
)
def test_a_run_tells_what_it_really_made(mini, prompts, sampler, attention, never: bool) -> None:
    run = sparsed.denoise(mini, prompts[0], sampler=sampler, attention=attention)
    assert run.info.forwards == 0 and not run.info.finished
    result = run.result()
    info = result.info
    assert info == run.info and info.notes == tuple(result.notes)
    for phase in ("dense", "select", "sparse"):
        assert info.phases[phase] == sum(step.phase == phase for step in result.steps)
    assert info.forwards == len(result.steps) and info.finished and info.never_sparse is never
    sparse = [step.index for step in result.steps if step.phase == "sparse"]
    assert info.switch_step == (sparse[0] if sparse else None)
    assert any("never" in note for note in info.notes) is never
    assert (info.prompt_tokens, info.batch) == (mini.encode(prompts[0]).shape[1], 1)
    assert (info.dtype, info.device, info.sampler, info.attention) == ("float32", "cpu", run.sampler, run.attention)
    told = json.loads(json.dumps(info.record()))
    assert told["phases"] == dict(info.phases) and told["forwards"] == info.forwards
    length = info.prompt_tokens + run.sampler.gen_length
    assert told["rows"] == {phase: count * length for phase, count in info.phases.items()}
    assert told["cache"] == {"method": "none"}
    assert told["attention"]["method"] == ("dense" if attention == "dense" else "sparsed")
    assert told["sampler"]["gen_length"] == run.sampler.gen_length and told["notes"] == list(info.notes)


def test_padding_in_a_batch_is_said_to_be_read(mini) -> None:
    short, long = mini.encode("Hello!"), mini.encode("Hello! Hello!")
    pad = torch.full((1, long.shape[1] - short.shape[1]), mini.eos_id)
    settings: dict[str, Any] = {"sampler": SamplerConfig(steps=2, gen_length=4), "attention": "dense"}
    for rows in (torch.cat([pad, short], 1), torch.cat([short, pad], 1)):
        notes = sparsed.denoise(mini, torch.cat([long, rows]), **settings).notes
        assert notes == [
            "The token ids of prompt 2 begin or end with padding, which the model reads like the rest: give prompts of "
            "unequal length to generate_all, as they are."
        ]
    for ids in (short, torch.cat([long, long]), torch.tensor([[mini.eos_id]]), torch.tensor([[mini.eos_id, 5]] * 2)):
        assert sparsed.denoise(mini, ids, **settings).notes == []


@pytest.mark.parametrize(("stop", "said"), [("\\ndef", True), ("\ndef", False), ("\\end", False)])
def test_a_backslash_in_a_stop_string_is_said_to_be_one(mini, stop: str, said: bool) -> None:
    """What a shell makes of --stop '\\ndef'."""
    notes = sparsed.denoise(mini, "Hello!", sampler=SamplerConfig(stop=(stop,)), attention="dense").notes
    assert notes == said * [
        r"The stop string '\\ndef' holds a backslash and the letter n, which is no line feed (a shell writes that as "
        r"$'\n')."
    ]


def test_a_sampler_is_no_dictionary(mini) -> None:
    with pytest.raises(ValueError, match=r"sampler must be a SamplerConfig, not \{'steps': 8\}"):
        sparsed.denoise(mini, "Hello!", sampler={"steps": 8})  # type: ignore[arg-type]


def test_what_is_not_as_asked_for_is_the_first_note(mini, prompts) -> None:
    run = sparsed.denoise(mini, prompts[0], sampler=SamplerConfig(gen_length=100, block_length=32, steps=64))
    assert run.notes[0] == "128 tokens are generated, not 100: whole semi-autoregressive blocks of 32."
    assert run.info.notes == tuple(run.notes) and run.length == run.prompt_length + 128
