from __future__ import annotations

import random
import re

import pytest
from tokenizers import Tokenizer

from sparsed.paths import data_dir
from sparsed.questions.entities import is_held_out, names
from sparsed.questions.pieces import render
from sparsed.questions.world import KINDS, World, numbered, prompt_pieces
from sparsed.training.tokenizer import PieceEncoder


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
            assert "".join(question.answer).endswith(f"so the answer is {question.verdict}.")
            verdicts.add(("older", question.verdict))
        if (question := made.ask("same")) is not None:
            one, two = question.entities
            key = "town" if "lives in" in "".join(question.answer) else "job"
            assert (one.facts[key] == two.facts[key]) == (question.verdict == "yes")
            verdicts.add(("same", question.verdict))
    assert len(verdicts) == 4


def test_several_facts_are_of_several_documents_each_asked_and_answered() -> None:
    counts = set()
    for seed in range(100):
        made = world(seed, tokens=800)
        if (question := made.ask("several")) is None:
            continue
        asked = [part for part in "".join(question.question).split("?") if part]
        said = [part for part in "".join(question.answer).split(".") if part]
        counts.add(len(asked))
        assert len(asked) == len(said) == len(question.entities) == len({id(one) for one in question.entities})
        for part, sentence, entity in zip(asked, said, question.entities, strict=True):
            assert entity.name in part and entity.name in sentence
            assert any(value in sentence for value in entity.facts.values())
    assert counts == {2, 3}


def test_every_relation_is_asked_about_evenly() -> None:
    """Inverse and two-hop questions draw the relation first, so that rare ones are not left out."""
    asked: dict[str, int] = {}
    for seed in range(300):
        made = world(seed, tokens=1500)
        for kind, word in (("inverse", r"mayor|river|works for|is by"), ("two_hop", r"mayor|river|inhab|known|is by")):
            if (question := made.ask(kind)) is not None:
                found = re.search(word, "".join(question.answer))
                assert found is not None
                key = f"{kind} {found[0]}"
                asked[key] = asked.get(key, 0) + 1
    assert len(asked) == 9 and min(asked.values()) > 20, asked


def test_sums_are_right() -> None:
    made = World(random.Random(0), held_out=True)
    operations = {"+": int.__add__, "-": int.__sub__, "×": int.__mul__}
    seen = set()
    for _ in range(300):
        question = made.ask("arithmetic")
        assert question is not None
        asked, answer = "".join(question.question), "".join(question.answer)
        match = re.match(r"(\d+) (.) (\d+) = (\d+)(?: and (\d+) (.) (\d+) = (\d+))?, so .*?(\d+)", answer)
        assert match is not None, answer
        result = operations[match[2]](int(match[1]), int(match[3]))
        assert result == int(match[4]) and match[1] in asked and match[3] in asked
        if match[5]:  # a second step goes on from the first
            assert int(match[5]) == result and match[7] in asked
            result = operations[match[6]](result, int(match[7]))
            assert result == int(match[8])
        assert result >= 0 and int(match[9]) == result
        seen.add((match[2], match[6]))
    assert seen == {("+", None), ("-", None), ("×", None), ("+", "-"), ("×", "+")}


def test_unanswerable_questions_are_not_answered_by_the_documents() -> None:
    for seed in range(60):
        made = world(seed, tokens=400)
        question = made.ask("unanswerable")
        if question is None:
            continue
        text = "".join(numbered(made.documents))
        asked = "".join(question.question)
        if not question.entities:
            invented = {*names("person", True), *names("town", True)}
            name = next(word for word in re.findall(r"[A-Z]\w+", asked) if word in invented)
            assert name not in text


def test_a_slot_takes_any_value_and_starts_a_sentence_with_a_capital() -> None:
    assert "".join(render("{s} keeps {pet}.", s="she", pet="a grey goose")) == "She keeps a grey goose."


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="riddle"):
        world(0).ask("riddle")
