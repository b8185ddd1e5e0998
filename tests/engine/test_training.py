from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

import sparsed
from sparsed.paths import data_dir
from sparsed.questions.entities import Question, names
from sparsed.questions.world import KINDS, RICH_KINDS, World
from sparsed.training.data import TURN_KINDS, RowMaker, skipped_positions, stack
from sparsed.training.export import export
from sparsed.training.loss import hidden_states, mask_rows
from sparsed.training.recipe import CURRICULUM, Recipe, Stage, mini_config, shortened
from sparsed.training.tokenizer import VOCABULARY, _corpus, special_id, train
from sparsed.training.trainer import Trainer

TINY = (Stage(1.0, {256: 1.0}),)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(data_dir("assets") / "mini" / "tokenizer.json"))


@pytest.mark.parametrize("length", [256, 512, 1024])
def test_rows_are_full_and_their_canvases_hold_question_and_answer(tokenizer: Tokenizer, length: int) -> None:
    maker = RowMaker(tokenizer, random.Random(length))
    end, user, assistant = (special_id(tokenizer, t) for t in ("<|endoftext|>", "<|user|>", "<|assistant|>"))
    for _ in range(30):
        row = maker.row(length)
        assert len(row.ids) == len(row.turns) == len(row.offsets) == length
        assert row.ids[0] == user and max(row.turns) >= 1
        for turn in range(1, max(row.turns) + 1):
            places = [i for i, t in enumerate(row.turns) if t == turn]
            assert places == list(range(places[0], places[-1] + 1)), "a canvas is one stretch"
            assert row.ids[places[0] - 1] == assistant
            canvas = [row.ids[i] for i in places]
            assert canvas[0] != end and canvas[-1] == end
            first_end = canvas.index(end)
            assert set(canvas[first_end:]) == {end} and end not in canvas[:first_end]
            assert [row.offsets[i] for i in places] == list(range(len(places)))


def test_masking_hides_canvases_and_a_little_of_the_rest(tokenizer: Tokenizer) -> None:
    mask, end = special_id(tokenizer, "<|mask|>"), special_id(tokenizer, "<|endoftext|>")
    batch = stack(RowMaker(tokenizer, random.Random(1)), 512, 16)
    recipe = Recipe()
    torch.manual_seed(0)
    weights, masked = mask_rows(batch, mask, end, recipe)
    ids, canvas = batch["ids"].long(), batch["turns"] > 0
    hidden = masked == mask
    assert torch.equal(masked[~hidden], ids[~hidden])
    assert torch.equal(weights > 0, hidden)
    assert 0.3 < hidden[canvas].float().mean() < 0.8
    assert 0 < hidden[~canvas].float().mean() < 0.06
    assert weights[hidden & ~canvas].unique().tolist() == pytest.approx([recipe.prompt_weight])
    assert weights[hidden & canvas & (ids != end)].unique().tolist() == [1.0]


def test_positions_only_ever_skip_forward() -> None:
    rng = random.Random(0)
    skipped = 0
    for _ in range(50):
        positions = skipped_positions(rng, 1024)
        assert positions[0] == 0 and (positions[1:] > positions[:-1]).all() and positions[-1] <= 66_000
        skipped += positions[-1] > 1023
    assert 10 < skipped < 40
    assert skipped_positions(rng, 256)[-1] == 255


def test_the_trainer_computes_what_transformers_computes(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    network = LlamaForCausalLM._from_config(mini_config(2048), attn_implementation="sdpa").eval()
    ids = torch.randint(0, 2048, (3, 40))
    positions = torch.arange(40).expand(3, 40) * 7
    with torch.no_grad():
        ours = hidden_states(network, ids, positions).view(3, 40, -1)
        theirs = network.model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_run_learns_stops_resumes_and_loads(tokenizer: Tokenizer, tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = Recipe(seconds=1000.0, tokens=256, warmup=2, learning_rate=3e-3)

    class Short(Trainer):
        def _plan(self) -> list[int]:
            return [256] * 12

    first = Short(recipe, run, tokenizer, workers=0, curriculum=TINY)
    before = {name: tensor.clone() for name, tensor in first.network.state_dict().items()}
    first.run()
    state = json.loads((run / "checkpoint.json").read_text())
    assert state["plan"] == [256] * 12 and state["step"] == 11
    assert any(not torch.equal(before[name], tensor) for name, tensor in first.network.state_dict().items())

    state["plan"] = [256] * 15
    (run / "checkpoint.json").write_text(json.dumps(state))
    again = Short(recipe, run, tokenizer, workers=0, curriculum=TINY)
    again.run()
    moments = [again.optimizer.state[p]["step"].item() for p in again.parameters]
    assert set(moments) == {12 + 4}, "the optimiser went on counting from the checkpoint"

    other = replace(recipe, learning_rate=1e-3)
    for trainer, said in (
        (Short(other, run, tokenizer, workers=0, curriculum=TINY), "recipe.learning_rate is 0.003 there, 0.001 here"),
        (Short(recipe, run, tokenizer, workers=0, curriculum=CURRICULUM), "curriculum is"),
    ):
        with pytest.raises(ValueError, match=f"holds a run of other settings .*{said}.*choose another folder"):
            trainer.run()

    export(run, tokenizer, tmp_path / "model")
    model = sparsed.load(tmp_path / "model", dtype="float32")
    result = sparsed.generate(model, "Hello!", sampler=sparsed.SamplerConfig(steps=4, gen_length=8, block_length=8))
    assert result.tokens.shape[1] == model.encode("Hello!").shape[1] + 8


def test_the_curriculum_can_leave_out_long_rows() -> None:
    stages = shortened(CURRICULUM, 1024)
    assert max(length for stage in stages for length in stage.lengths) == 1024
    with pytest.raises(ValueError, match="256"):
        shortened(CURRICULUM, 100)


def test_rows_ask_every_kind_and_chains_beside_other_turns(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[Question]] = []
    real = World.ask

    def hearing(world: World, kind: str) -> Question | None:
        if (question := real(world, kind)) is not None:
            asked[-1].append(question)
        return question

    monkeypatch.setattr(World, "ask", hearing)
    maker = RowMaker(tokenizer, random.Random(3))
    turns: Counter[str] = Counter()
    beside = 0
    for _ in range(30):
        asked.append([])
        row = maker.row(4096)
        text = tokenizer.decode(row.ids, skip_special_tokens=False)
        kinds = [question.kind for question in asked[-1] if f"<|assistant|>{''.join(question.answer)}<|endo" in text]
        turns.update(kinds)
        beside += "chain4" in kinds and len(set(kinds)) > 2
        found = set(re.findall(r"\w+", text))
        assert not found & {name for kind in ("person", "town", "river", "company") for name in names(kind, True)}
        assert not set(re.findall(r"The [A-Z]\w+ [A-Z]\w+", text)) & set(names("work", True))
    assert set(turns) == set(TURN_KINDS), "every kind is asked"
    assert sum(TURN_KINDS.values()) == pytest.approx(1) and set(TURN_KINDS) == set(KINDS)
    assert beside >= 5
    assert sum(turns[kind] for kind in RICH_KINDS) > 0.3 * sum(turns.values())


@pytest.mark.parametrize("kind", sorted(RICH_KINDS))
def test_a_row_of_one_kind_holds_that_question_on_a_full_canvas(tokenizer: Tokenizer, kind: str) -> None:
    row = RowMaker(tokenizer, random.Random(1), held_out=True).row(512, kind)
    canvas = [token for token, turn in zip(row.ids, row.turns, strict=True) if turn]
    answer = tokenizer.decode(canvas)
    assert len(canvas) == 96 and max(row.turns) == 1
    sentences = answer.removesuffix(".").split(". ")
    assert len(sentences) in {"chain3": (3,), "chain4": (4,), "open": (2,), "list": (2, 3, 4)}[kind]
    assert answer.endswith(".")
    assert kind != "list" or len({tuple(sentence.split(" ")[2:]) for sentence in sentences}) == 1
    assert kind != "open" or "lives in" in sentences[0]


def test_a_row_that_is_too_short_for_its_question_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="No question of kind 'chain4' fits a row of 160 tokens"):
        RowMaker(tokenizer, random.Random(1)).row(160, "chain4")


def test_the_tokenizer_is_trained_on_every_kind_and_keeps_its_size() -> None:
    texts = list(_corpus(0, 40))
    said = ("of the author of The", "the mayor of the home town of the author", "somebody who", "in alphabetical order")
    for words in said:
        assert any(words in text for text in texts), words
    assert not {name for name in names("person", True)} & set(re.findall(r"\w+", " ".join(texts)))
    made = train(0, texts=300)
    assert made.get_vocab_size() == VOCABULARY == 2048
    for word in (" everybody", "Name", " author", " mayor", "<|mask|>"):
        assert len(made.encode(word).ids) == 1, word
