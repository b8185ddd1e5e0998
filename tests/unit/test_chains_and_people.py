"""Questions of several hops or several right answers, against what can be read in the prompt's own text."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass

import pytest
from transformers import PreTrainedTokenizerFast

from sparsed.paths import data_dir
from sparsed.questions.build import Prompt, build_prompt
from sparsed.questions.entities import is_held_out, names
from sparsed.questions.pieces import material
from sparsed.questions.score import exact_match, facts_right, nearest
from sparsed.questions.world import RICH_KINDS, World, numbered, prompt_pieces

RELATIONS = {
    "author": (r"(?P<s>The .+) is an? \w+ by (?P<v>[A-Z].+)", r"(?P<v>.+) made the \w+ (?P<s>The .+)",
               r"The [a-z]+ (?P<s>The .+) is the work of (?P<v>.+)"),
    "year": (r"(?P<s>The .+) first appeared in (?P<v>\d+)", r"(?P<s>The .+) dates from (?P<v>\d+)",
             r"The public first saw (?P<s>The .+) in (?P<v>\d+)"),
    "river": (r"(?P<s>\w+) lies on the river (?P<v>\w+)", r"The river (?P<v>\w+) flows through (?P<s>\w+)",
              r"(?P<s>\w+) was built along the river (?P<v>\w+)"),
    "mayor": (r"The mayor of (?P<s>\w+) is (?P<v>.+)", r"(?P<v>.+) is the mayor of (?P<s>\w+)",
              r"(?P<s>\w+) has elected (?P<v>.+) as mayor"),
    "population": (r"(?P<s>\w+) has (?P<v>\d+) inhabitants", r"About (?P<v>\d+) people live in (?P<s>\w+)",
                   r"The population of (?P<s>\w+) is (?P<v>\d+)"),
    "product": (r"(?P<s>\w+) is known for its (?P<v>\w+)", r"The town of (?P<s>\w+) makes (?P<v>\w+)",
                r"Most families in (?P<s>\w+) make (?P<v>\w+)"),
    "job": (r"(?P<s>.+) is (?P<v>an? \w+)(?: by trade)?", r"(?P<s>.+) earns a living as (?P<v>an? \w+)"),
    "born": (r"(?P<s>.+) was born in (?P<v>\d+)", r"(?P<s>.+) came into the world in (?P<v>\d+)",
             r"The birth year of (?P<s>.+) is (?P<v>\d+)"),
    "town": (r"(?P<s>.+) lives in (?P<v>\w+)", r"The home of (?P<s>.+) is in (?P<v>\w+)",
             r"(?P<s>.+) has a house in (?P<v>\w+)"),
    "company": (r"(?P<s>.+) works for (?P<v>\w+)", r"(?P<s>.+) is employed by (?P<v>\w+)",
                r"The employer of (?P<s>.+) is (?P<v>\w+)"),
    "instrument": (r"In the evening (?P<s>.+) plays the (?P<v>\w+)", r"(?P<s>.+) plays the (?P<v>\w+)",
                   r"(?P<s>.+) has played the (?P<v>\w+) for years"),
    "language": (r"(?P<s>.+) speaks (?P<v>\w+)", r"(?P<s>.+) has learned (?P<v>\w+)",
                 r"(?P<s>.+) is fluent in (?P<v>\w+)"),
    "pet": (r"At home (?P<s>.+) keeps (?P<v>a \w+ \w+)", r"(?P<s>.+) keeps (?P<v>a \w+ \w+)",
            r"(?P<s>.+) owns (?P<v>a \w+ \w+)"),
}  # fmt: skip
SAID = {
    "author": "{} is by {}.", "river": "{} lies on the river {}.", "mayor": "The mayor of {} is {}.",
    "population": "{} has {} inhabitants.", "product": "{} is known for its {}.", "job": "{} is {}.",
    "born": "{} was born in {}.", "town": "{} lives in {}.", "company": "{} works for {}.",
    "instrument": "{} plays the {}.", "language": "{} speaks {}.", "pet": "{} keeps {}.",
}  # fmt: skip
LISTED = {
    "instrument": r"(?:plays?|play) the (\w+)", "language": r"speaks? (\w+)",
    "job": r"as (an? \w+)|is (an? \w+) by trade", "pet": r"keeps? (a \w+ \w+)", "town": r"lives? in (\w+)",
    "company": r"works? for (\w+)|employed by (\w+)",
}  # fmt: skip
ASKED = {
    "chain3": {"river": "river", "mayor": "mayor", "population": "people|population|inhabitants",
               "product": "known for|make\\?"},
    "chain4": {"job": "profession|do for a living|what work", "born": "born|birth", "instrument": "instrument",
               "company": "work for|employer|lives work", "language": "language", "pet": "animal|pet"},
    "open": {"job": "profession|person's work|do for a living", "born": "born|birth", "instrument": "instrument",
             "company": "employer|company", "language": "language", "pet": "animal|pet"},
}  # fmt: skip
LENGTHS = (("320", 12), ("1k", 12), ("4k", 4), ("16k", 1))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(data_dir("assets") / "mini")


@dataclass
class Read:
    """What the documents of a text state: (place of the document, relation, subject, value), as they stand there."""

    documents: list[str]
    stated: list[tuple[int, str, str, str]]

    def value(self, relation: str, subject: str) -> str:
        """The only one that is stated."""
        (value,) = (v for _, r, s, v in self.stated if (r, s) == (relation, subject))
        return value

    def has(self, relation: str, subject: str) -> bool:
        return any((r, s) == (relation, subject) for _, r, s, _ in self.stated)

    def with_value(self, relation: str, value: str) -> list[str]:
        return [s for _, r, s, v in self.stated if (r, v) == (relation, value)]

    def place(self, subject: str) -> int:
        """Of the one document that is about it."""
        (place,) = {p for p, _, s, _ in self.stated if s == subject}
        return place

    def two_facts(self, person: str, relation: str) -> str:
        """Where somebody lives, and a fact, as an open question's answer says them."""
        pronoun = next(p for p, firsts in material()["first_names"].items() if person.split(" ")[0] in firsts)
        there = SAID["town"].format(person, self.value("town", person))
        return f"{there} {SAID[relation].format(pronoun, self.value(relation, person))}"


def read(text: str) -> Read:
    documents = re.findall(r"^Document \d+: (.*)$", text, re.MULTILINE)
    stated = []
    for place, document in enumerate(documents):
        about = ""
        for sentence in document.removesuffix(".").split(". "):
            for relation, patterns in RELATIONS.items():
                found = next((m for p in patterns if (m := re.fullmatch(p, sentence))), None)
                if found is None:
                    continue
                about = about or found["s"]
                subject = found["s"]
                if subject.lower() in ("he", "she") or about.endswith(" " + subject):
                    subject = about
                assert subject == about, f"{sentence!r} in a document about {about}"
                stated.append((place, relation, subject, found["v"]))
                break
    counted = Counter((relation, subject) for _, relation, subject, _ in stated)
    assert max(counted.values()) == 1, "every fact stands there once"
    return Read(documents, stated)


def hops_of(prompt: Prompt, there: Read) -> list[tuple[str, str]]:
    """The (relation, subject) of every hop, found by walking through the text."""
    title = re.search(r"the author of (The \w+ \w+)", prompt.question)
    assert title is not None, prompt.question
    asked = prompt.question.replace(title[1], "")
    (relation,) = (r for r, words in ASKED[prompt.kind].items() if re.search(words, asked, re.IGNORECASE)
                   and not (r == "population" and "river" in asked)
                   and not (r == "mayor" and prompt.kind == "chain4"))  # fmt: skip
    author = there.value("author", title[1])
    town = there.value("town", author)
    hops = [("author", title[1]), ("town", author)]
    if prompt.kind == "chain3":
        return [*hops, (relation, town)]
    return [*hops, ("mayor", town), (relation, there.value("mayor", town))]


@pytest.mark.parametrize("kind", ["chain3", "chain4"])
@pytest.mark.parametrize(("length", "seeds"), LENGTHS)
def test_a_chain_can_be_followed_through_the_documents(
    tokenizer: PreTrainedTokenizerFast, kind: str, length: str, seeds: int
) -> None:
    relations = set()
    for seed in range(seeds):
        prompt = build_prompt(tokenizer, length, kind, seed)
        there = read(prompt.text)
        hops = hops_of(prompt, there)
        relations.add(hops[-1][0])
        sentences = [SAID[relation].format(subject, there.value(relation, subject)) for relation, subject in hops]
        assert prompt.answer == " ".join(sentences) and prompt.answers == (prompt.answer,)
        places = {there.place(subject) for _, subject in hops}
        assert len(places) == len(hops) == {"chain3": 3, "chain4": 4}[kind], "one document a hop"
        assert prompt.depth == pytest.approx(min(places) / (len(there.documents) - 1))
        assert exact_match(prompt.answer, *prompt.answers)
        assert facts_right(prompt.answer, *prompt.answers) == (len(hops), len(hops), 0)
        for at, (relation, subject) in enumerate(hops):
            others = {v for _, r, _, v in there.stated if r == relation} - {there.value(relation, subject)}
            for other in sorted(others)[:3]:
                wrong = " ".join([*sentences[:at], SAID[relation].format(subject, other), *sentences[at + 1 :]])
                assert not exact_match(wrong, *prompt.answers)
                assert facts_right(wrong, *prompt.answers) == (len(hops) - 1, len(hops), 1)
    assert seeds < 12 or len(relations) >= 3


@pytest.mark.parametrize(("length", "seeds"), LENGTHS)
def test_an_open_question_is_right_for_everybody_who_fits_and_for_no_mix_of_them(
    tokenizer: PreTrainedTokenizerFast, length: str, seeds: int
) -> None:
    for seed in range(seeds):
        prompt = build_prompt(tokenizer, length, "open", seed)
        there = read(prompt.text)
        towns = set(re.findall(r"\w+", prompt.question)) & set(names("town", True))
        (relation,) = (r for r, words in ASKED["open"].items() if re.search(words, prompt.question))
        people = there.with_value("town", towns.pop())
        assert not towns and len(people) >= 3 and all(there.has(relation, one) for one in people)
        right = [there.two_facts(person, relation) for person in people]
        assert sorted(prompt.answers) == sorted(right) and len(set(right)) == len(right)
        assert prompt.depth == pytest.approx(min(map(there.place, people)) / (len(there.documents) - 1))
        for answer in right:
            assert nearest(answer, prompt.answers) == answer and exact_match(f" {answer}\n", *prompt.answers)
            assert facts_right(answer, *prompt.answers) == (2, 2, 0)
            shorter = answer.rpartition(". ")[0] + "."
            assert not exact_match(shorter, *prompt.answers) and nearest(shorter, prompt.answers) == answer
            for other in right:
                taken = other.split(". ")[-1].removesuffix(".")
                if other == answer or taken in answer:
                    continue
                mixed = f"{shorter} {taken}."
                assert not exact_match(mixed, *prompt.answers)
                assert facts_right(mixed, answer) == (1, 2, 1)


@pytest.mark.parametrize(("length", "seeds"), LENGTHS)
def test_a_list_names_all_from_a_to_z(tokenizer: PreTrainedTokenizerFast, length: str, seeds: int) -> None:
    for seed in range(seeds):
        prompt = build_prompt(tokenizer, length, "list", seed)
        there = read(prompt.text)
        found = {key: m for key, pattern in LISTED.items() if (m := re.search(pattern, prompt.question))}
        ((key, match),) = found.items()
        value = next(group for group in match.groups() if group)
        people = sorted(there.with_value(key, value))
        assert 2 <= len(people) <= 4 and len({name.split(" ")[0] for name in people}) == len(people)
        sentences = [SAID[key].format(name, value) for name in people]
        assert prompt.answers == (" ".join(sentences),)
        assert prompt.depth == pytest.approx(min(map(there.place, people)) / (len(there.documents) - 1))
        assert not exact_match(" ".join(reversed(sentences)), *prompt.answers)
        assert not exact_match(" ".join(sentences[:-1]), *prompt.answers)


@pytest.mark.parametrize("kind", ["chain4", "list"])
def test_the_longest_prompts_hold_the_answer_too(tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
    prompt = build_prompt(tokenizer, "128k", kind, 1)
    assert 0.99 * 131_072 <= prompt.tokens <= 131_072
    there = read(prompt.text)
    if kind == "chain4":
        assert prompt.answer == " ".join(SAID[r].format(s, there.value(r, s)) for r, s in hops_of(prompt, there))
    else:
        named = [" ".join(sentence.split(" ")[:2]) for sentence in prompt.answer.split(". ")]
        assert 2 <= len(named) <= 4 and named == sorted(named) and all(there.place(name) >= 0 for name in named)


@pytest.mark.parametrize("kind", sorted(RICH_KINDS))
@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_all_needed_documents_are_moved(
    tokenizer: PreTrainedTokenizerFast, kind: str, depth: float
) -> None:
    plain, moved = (build_prompt(tokenizer, "1k", kind, 4, at) for at in (None, depth))
    assert (moved.question, moved.answers, moved.tokens) == (plain.question, plain.answers, plain.tokens)
    there, before = read(moved.text), read(plain.text)
    assert sorted(there.documents) == sorted(before.documents)
    named = {s for _, _, s, _ in there.stated if any(s in answer for answer in moved.answers)}
    if kind in ("open", "list"):
        named = {s for s in named if " " in s and not s.startswith("The ")}
    if kind == "chain3":  # its last word may be a mayor with a document that is not needed
        named = {subject for _, subject in hops_of(moved, there)}
    places = sorted(there.place(subject) for subject in named)
    first = round(depth * (len(there.documents) - len(places)))
    assert places == list(range(first, first + len(places)))
    assert moved.depth == pytest.approx(first / (len(there.documents) - 1))


def test_an_answer_fits_the_canvas(tokenizer: PreTrainedTokenizerFast) -> None:
    longest = 0
    for seed in range(60):
        world = World(random.Random(seed), True, rich=True)
        world.fill(len, 1500, 0.1)
        for kind in sorted(RICH_KINDS):
            if (question := world.ask(kind)) is not None:
                longest = max([longest, *(len(tokenizer.encode("".join(answer))) for answer in question.answers)])
    assert 30 < longest < 96


def test_a_chain_that_does_not_fit_is_refused_in_a_sentence(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="No question of kind 'chain4' fits into 192 tokens .* choose a longer prompt"):
        build_prompt(tokenizer, 192, "chain4")


def test_a_rich_world_is_as_rich_as_it_is_said_to_be() -> None:
    residents, mayors, authors = Counter[str](), [], []
    for seed in range(12):
        world = World(random.Random(seed), held_out=False, rich=True)
        world.fill(len, 12_000, 0.0)
        there = read("".join(numbered(world.documents)))
        residents.update(f"{seed} {v}" for _, r, _, v in there.stated if r == "town")
        people = {s for _, r, s, _ in there.stated if r in ("job", "born", "town", "company")}
        mayors += [v in people for _, r, _, v in there.stated if r == "mayor"]
        written = {v for _, r, _, v in there.stated if r == "author"}
        authors += [person in written for person in people]
        few = Counter((r, v) for _, r, _, v in there.stated if r in LISTED)
        for key in LISTED:
            assert sum(2 <= n <= 5 for (r, _), n in few.items() if r == key) >= 5, key
    assert max(residents.values()) == 5 and min(residents.values()) >= 1
    assert 0.7 < sum(mayors) / len(mayors) < 0.8
    assert 0.36 < sum(authors) / len(authors) < 0.44


def test_every_wording_of_every_relation_is_asked() -> None:
    wordings = material()["questions"]
    templates = {
        kind: [t for ts in wordings[kind].values() for t in ts]
        for kind in RICH_KINDS
    }
    asked: dict[str, set[str]] = {kind: set() for kind in RICH_KINDS}
    for seed in range(50):
        world = World(random.Random(seed), held_out=True, rich=True)
        world.fill(len, 3000, 0.1)
        for kind in sorted(RICH_KINDS):
            for _ in range(12):
                if (question := world.ask(kind)) is None:
                    continue
                text = "".join(question.question)
                fit = [t for t in templates[kind] if re.fullmatch(re.sub(r"\\{\w+\\}", ".+", re.escape(t)), text)]
                assert fit, text
                asked[kind].update(fit)
    assert asked == {kind: set(ts) for kind, ts in templates.items()}


def test_the_example_of_an_open_question_is_mostly_the_first_in_the_alphabet_and_sometimes_each() -> None:
    world = World(random.Random(8), held_out=True, rich=True)
    world.fill(len, 2000, 0.0)
    chosen: dict[frozenset[str], Counter[str]] = {}
    for _ in range(6000):
        if (question := world.ask("open")) is not None:
            answers = ["".join(answer) for answer in question.answers]
            chosen.setdefault(frozenset(answers), Counter())[answers[0]] += 1
    assert len(chosen) >= 2
    for answers_, counted in chosen.items():
        total, weights = sum(counted.values()), [0.3**place for place in range(len(answers_))]
        for answer, weight in zip(sorted(answers_), weights, strict=True):
            share = weight / sum(weights)
            assert abs(counted[answer] / total - share) < 4 * (share * (1 - share) / total) ** 0.5


def test_who_works_for_a_company_is_one_answer_or_a_list() -> None:
    singles = 0
    for seed in range(40):
        world = World(random.Random(seed), held_out=True, rich=True)
        world.fill(len, 1500, 0.1)
        there = read("".join(numbered(world.documents)))
        for _ in range(20):
            question = world.ask("inverse")
            if question is not None and "works for" in (answer := "".join(question.answer)):
                company = answer.split(" ")[-1].removesuffix(".")
                assert len(there.with_value("company", company)) == 1
                singles += 1
    assert singles > 40


@pytest.mark.parametrize("held_out", [True, False])
def test_rich_worlds_keep_the_two_halves_of_all_names_apart(held_out: bool) -> None:
    forbidden = {name for kind in ("person", "town", "river", "company") for name in names(kind, not held_out)}
    titles = set(names("work", not held_out))
    for seed in range(12):
        world = World(random.Random(seed), held_out, rich=True)
        world.fill(len, 4000, 0.1)
        for kind in sorted(RICH_KINDS):
            question = next(asked for _ in range(60) if (asked := world.ask(kind)) is not None)
            for pieces in (prompt_pieces(world.documents, question.question), *question.answers):
                text = "".join(pieces)
                assert not set(re.findall(r"\w+", text)) & forbidden
                assert not set(re.findall(r"The [A-Z]\w+ [A-Z]\w+", text)) & titles
    assert all(is_held_out(name) != held_out for name in forbidden)
