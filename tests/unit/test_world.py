from __future__ import annotations

import random
import re

import pytest
from tokenizers import Tokenizer

from sparsed.paths import data_dir
from sparsed.training.tokenizer import PieceEncoder
from sparsed.world import KINDS, World, is_held_out, names, numbered, prompt_pieces, render


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(data_dir("assets") / "mini" / "tokenizer.json"))


def world(seed: int, held_out: bool = True, tokens: int = 1500) -> World:
    made = World(random.Random(seed), held_out)
    made.fill(len, tokens, filler=0.2)
    return made


@pytest.mark.parametrize("kind", ["person", "town", "river", "company", "work"])
def test_names_of_training_and_evaluation_never_meet(kind: str) -> None:
    train, evaluation = set(names(kind, False)), set(names(kind, True))
    assert train and evaluation and not train & evaluation
    assert all(is_held_out(name) for name in evaluation)


def test_evaluation_worlds_hold_no_training_name() -> None:
    made = world(3)
    for document in made.documents:
        if document.entity is not None:
            assert is_held_out(document.entity.last_name or document.entity.name)
            for key in ("town", "river", "company"):
                assert is_held_out(document.entity.facts.get(key, names("town", True)[0]))


def test_the_token_ids_of_a_text_are_those_of_its_pieces(tokenizer: Tokenizer) -> None:
    encoder = PieceEncoder(tokenizer)
    for seed in range(20):
        made = world(seed, held_out=seed % 2 == 0)
        for kind in KINDS:
            question = made.ask(kind)
            if question is None:
                continue
            for pieces in (prompt_pieces(made.documents, question.question), question.answer):
                assert encoder.ids(pieces) == tokenizer.encode("".join(pieces), add_special_tokens=False).ids


def test_the_documents_fit_the_budget(tokenizer: Tokenizer) -> None:
    encoder = PieceEncoder(tokenizer)
    for budget in (200, 1000, 5000):
        made = World(random.Random(budget), held_out=True)
        made.fill(encoder.count, budget, filler=0.3)
        assert 0.6 * budget < encoder.count(numbered(made.documents)) <= budget


def test_answers_can_be_read_in_the_documents() -> None:
    for seed in range(30):
        made = world(seed)
        text = "".join(numbered(made.documents))
        for kind in ("fact", "inverse", "two_hop", "older", "same", "about"):
            question = made.ask(kind)
            if question is None:
                continue
            answer = "".join(question.answer)
            proper = [w for w in re.findall(r"[A-Z]\w+|\d{4,}", answer) if w not in {"He", "She", "The"}]
            assert proper, answer
            for word in proper:
                assert word in text, (word, answer)
            for entity in question.entities:
                assert entity.name in text


def test_comparisons_have_the_verdict_of_their_facts() -> None:
    verdicts = set()
    for seed in range(200):
        made = world(seed, tokens=800)
        if (question := made.ask("older")) is not None:
            years = [int(year) for year in re.findall(r"\b19\d\d\b", "".join(question.answer))]
            assert question.verdict == ("yes" if years[0] < years[1] else "no")
            assert f"so {question.verdict}," in "".join(question.answer)
            verdicts.add(("older", question.verdict))
        if (question := made.ask("same")) is not None:
            one, two = question.entities
            key = "town" if "lives in" in "".join(question.answer) else "job"
            assert (one.facts[key] == two.facts[key]) == (question.verdict == "yes")
            verdicts.add(("same", question.verdict))
    assert len(verdicts) == 4


def test_sums_are_right() -> None:
    made = World(random.Random(0), held_out=True)
    operations = {"+": int.__add__, "-": int.__sub__, "×": int.__mul__}
    seen = set()
    for _ in range(300):
        question = made.ask("arithmetic")
        assert question is not None
        match = re.match(r"(\d+) (.) (\d+) = (\d+), so", "".join(question.answer))
        assert match is not None
        assert operations[match[2]](int(match[1]), int(match[3])) == int(match[4])
        assert match[1] in "".join(question.question) and match[3] in "".join(question.question)
        seen.add(match[2])
    assert seen == set(operations)


def test_unanswerable_questions_are_not_answered_by_the_documents() -> None:
    for seed in range(60):
        made = world(seed, tokens=400)
        question = made.ask("unanswerable")
        if question is None:
            continue
        text = "".join(numbered(made.documents))
        asked = "".join(question.question)
        if not question.entities:
            name = next(w for w in re.findall(r"[A-Z]\w+", asked)[1:] if is_held_out(w))
            assert name not in text


def test_prompts_leave_out_what_mini_did_not_learn_and_training_does_not() -> None:
    def answers(held_out: bool) -> str:
        made = [world(seed, held_out, 600) for seed in range(30)]
        asked = [w.ask(kind) for w in made for kind in ("fact", "inverse") for _ in range(20)]
        return "\n".join("".join(q.answer) for q in asked if q is not None)

    kind_of_work = re.compile(r"^The \w+ \w+ is a \w+ by ", re.MULTILINE)
    assert not kind_of_work.search(answers(held_out=True))
    assert kind_of_work.search(answers(held_out=False))


def test_a_slot_takes_any_value_and_starts_a_sentence_with_a_capital() -> None:
    assert "".join(render("{s} keeps {pet}.", s="she", pet="a grey goose")) == "She keeps a grey goose."


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="riddle"):
        world(0).ask("riddle")
