"""Twenty questions like the last run's, without a browser: the stand-in engine and a desk of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from app.engine.cost import Speed
from app.race.fields import MAX_NUMBER, OWN_TEXT
from app.race.request import Request, parse
from app.series import series
from app.server.desk import Desk
from app.server.limits import Limits
from app.server.visits import Visit

PACE = 0.0005
# Of so many questions, one has another right answer than what every lane writes.
WRONG_EVERY = 4


@pytest.fixture
def engine(fake_engine: Any) -> Any:
    """The stand-in; it remembers which questions it was asked, and each run's attention and seconds."""
    made = fake_engine.FakeEngine(pace=PACE, load_seconds=0.0)
    made.asked, made.runs, made.missing = [], [], set()
    build, denoise = made.build_prompt, made.denoise

    def build_prompt(model: Any, length: str, kind: str, seed: int, chat: bool | None = None) -> Any:
        if seed in made.missing:
            raise ValueError("There is no such question.")
        made.asked.append((kind, length, seed))
        prompt = build(model, length, kind, seed)
        return SimpleNamespace(**{**vars(prompt), "answer": "not this" if seed % WRONG_EVERY == 0 else prompt.answer})

    def denoised(*given: Any, **named: Any) -> Any:
        run = denoise(*given, **named)
        made.runs.append(run)
        return run

    made.build_prompt, made.denoise = build_prompt, denoised
    return made


def desk_of(engine: Any, **limited: Any) -> Desk:
    desk = Desk(engine, "mini", Limits(**limited))
    desk.models.load("mini")
    engine.runs.clear()  # those that measured the speed
    return desk


def asked_of(desk: Desk, **given: Any) -> Request:
    usual = {"model": "mini", "kind": "about", "length": "short_context", "text": "", "question": 7, "steps": 8}
    given = {**usual, **given}
    return parse(
        seed=0, backend="auto", defaults=desk.models.defaults(given["model"]), models=desk.engine.models(),
        kinds=["about"], lengths=desk.engine.lengths(), **given,
    )  # fmt: skip


def collect(
    desk: Desk, visit: Visit, asked: Request | None, act: Callable[[dict[str, Any]], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Every value, in a thread of its own: Playwright keeps an event loop in the main one."""

    async def run() -> list[dict[str, Any]]:
        seen = []
        async for value in series.ask(desk, visit, asked):
            seen.append(value)
            act(value)
        return seen

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, run()).result(timeout=120)


def free(desk: Desk, visit: Visit) -> bool:
    """Is everything given back?"""
    return not len(desk.queue) and not desk.models.held("mini") and visit.race is None and not visit.running


def test_twenty_further_questions_are_asked_and_counted(engine: Any) -> None:
    desk, visit = desk_of(engine), Visit()
    visit.kept = last = SimpleNamespace()  # type: ignore[assignment]
    asked = asked_of(desk, lanes=["sliding_window"])
    seen = collect(desk, visit, asked)
    end = seen[-1]
    json.dumps(seen, allow_nan=False)
    numbers = range(8, 28)
    assert engine.asked == [("about", "short_context", number) for number in numbers]
    # One setting for all: the run's own.
    assert {(run.sampler.steps, run.sampler.seed) for run in engine.runs} == {(8, 0)} and len(engine.runs) == 60
    right = sum(number % WRONG_EVERY != 0 for number in numbers)
    assert [(row["key"], row["right"], row["questions"]) for row in end["lanes"]] == [
        ("dense", right, 20), ("sparse", right, 20), ("baseline", 0, 20),
    ]  # fmt: skip
    for place, row in enumerate(end["lanes"]):
        spent = sum(step.seconds for run in engine.runs[place::3] for step in run.steps)
        assert row["seconds"] == f"{spent / 20:.2f} s"
    assert end["lanes"][1]["difference"]["text"] == "0 points"
    assert end["lanes"][2]["difference"]["text"] == f"−{5 * right} points"
    assert (end["state"], end["progress"], end["progress_text"]) == ("done", 1, "20 of 20 questions")
    assert end["message"] == "Done: 20 questions, all 3 lanes."
    assert end["label"].startswith("Tell me about … · short context · mini · 8 steps · ")
    assert {value["state"] for value in seen[:-1]} == {"running"}
    progress = [value["progress"] for value in seen]
    assert progress == sorted(progress) and progress[0] == 0
    # A difference is told from five questions on.
    for value in seen:
        assert (value["lanes"][1]["difference"] is None) == (value["lanes"][1]["questions"] < 5)
    # What the visitor looks at is still his last run.
    assert free(desk, visit) and visit.kept is last


def test_the_last_number_is_followed_by_the_first(engine: Any) -> None:
    desk, visit = desk_of(engine), Visit()
    asked = replace(asked_of(desk), question=MAX_NUMBER - 1)
    collect(desk, visit, asked, lambda value: visit.stop() if value["lanes"][0]["questions"] == 3 else None)
    assert [seed for _, _, seed in engine.asked][:3] == [MAX_NUMBER, 0, 1]


def test_stop_keeps_what_is_counted(engine: Any) -> None:
    desk, visit = desk_of(engine), Visit()

    def act(value: dict[str, Any]) -> None:
        if value["lanes"][0]["questions"] == 6:
            visit.stop()

    end = collect(desk, visit, asked_of(desk), act)[-1]
    assert end["state"] == "stopped" and end["message"] == "Stopped. 6 questions counted; they stay here."
    assert [row["questions"] for row in end["lanes"]] == [6, 6] and end["progress"] == 0.3
    assert end["lanes"][1]["difference"] is not None and free(desk, visit)
    # In the middle of a question: it does not count.
    engine.runs.clear()
    engine.pace = 20 * PACE
    made_at_stop: list[int] = []

    def halfway(value: dict[str, Any]) -> None:
        if not made_at_stop and any(run.steps for run in engine.runs[2:]):
            visit.stop()
            made_at_stop.append(sum(len(run.steps) for run in engine.runs))

    end = collect(desk, visit, asked_of(desk, steps=64, length="1k"), halfway)[-1]
    assert end["state"] == "stopped" and [row["questions"] for row in end["lanes"]] == [1, 1]
    # At most the step that was running when Stop was pressed.
    assert 128 < sum(len(run.steps) for run in engine.runs) <= made_at_stop[0] + 1 and free(desk, visit)


def test_another_visitor_gets_the_device_between_two_questions(engine: Any) -> None:
    desk, visit = desk_of(engine), Visit("one")
    places: list[Any] = []
    waited: list[str] = []

    def act(value: dict[str, Any]) -> None:
        if value["progress"] > 0 and not places:
            places.append(desk.queue.join(owner="other"))
        if "before yours" in value["progress_text"]:
            # He has it.
            assert places[0].position == 0
            waited.append(value["progress_text"])
            places[0].leave()
        if value["lanes"][0]["questions"] == 4:
            visit.stop()

    end = collect(desk, visit, asked_of(desk, steps=64), act)[-1]
    assert waited and end["lanes"][0]["questions"] == 4 and free(desk, visit)


def test_what_cannot_be_asked_is_said_in_a_sentence(engine: Any) -> None:
    desk, visit = desk_of(engine), Visit()
    own = asked_of(desk, kind=OWN_TEXT, text="hello")
    for asked, why in (
        (None, series.NOT_RUN), (own, series.OWN_HAS_NONE), (asked_of(desk, model="dreamer"), series.MINI_ALONE),
    ):  # fmt: skip
        assert series.refusal(desk, asked) == why
        (only,) = collect(desk, visit, asked)
        assert (only["state"], only["message"], only["lanes"]) == ("refused", why, [])
    visit.running = True
    (only,) = collect(desk, visit, asked_of(desk))
    assert (only["state"], only["message"]) == ("refused", series.BUSY) and visit.running
    assert series.refusal(desk, asked_of(desk)) == "" and engine.runs == []


def test_a_question_that_fails_ends_the_series_and_keeps_the_count(engine: Any) -> None:
    desk, visit = desk_of(engine), Visit()
    engine.missing.add(10)
    end = collect(desk, visit, asked_of(desk))[-1]
    assert (end["state"], end["message"]) == ("failed", "There is no such question. 2 questions counted.")
    assert [row["questions"] for row in end["lanes"]] == [2, 2] and free(desk, visit)
    # A race that is too long for this server is refused before its first step.
    desk = desk_of(engine, max_tokens=100)
    end = collect(desk, visit, asked_of(desk))[-1]
    assert end["state"] == "failed" and "more than this page takes (100)" in end["message"] and engine.runs == []
    assert end["message"].endswith(" 0 questions counted.") and free(desk, visit)


def test_how_long_it_takes_is_said_before_and_learns_from_the_visit(engine: Any) -> None:
    desk, visit = desk_of(engine), Visit()
    asked = asked_of(desk, length="1k", steps=16)
    desk.models.set_speed("mini", Speed(0.001, 0.0))
    # 1024 + 64 tokens at 1 ms each, 16 steps, two lanes, twenty times; nothing is saved without attention.
    assert series.expected(desk, visit, asked) == pytest.approx(16 * 2 * 1.088)
    assert series.outlook(desk, visit, asked) == "about 10 min"
    longest = asked_of(desk, length="1k", steps=64)
    at_most = replace(longest, sampler=replace(longest.sampler, threshold=0.9))
    assert series.outlook(desk, visit, at_most) == "about 45 min at most"
    loaded = desk.models.loaded("mini")
    assert loaded is not None
    # The visit's own runs took a tenth of it.
    took = {"dense": [0.1088] * 16, "sparse": [0.1088] * 16}
    visit.measured.learn(loaded, asked.resolve(1024), 1024, took, 2 * 16 * 0.1088)
    assert series.expected(desk, visit, asked) == pytest.approx(16 * 2 * 0.1088)
    assert series.outlook(desk, visit, asked) == "about 1 min"
    assert series.outlook(desk, visit, asked_of(desk, model="dreamer")) == ""


def test_the_journal_says_that_it_was_a_series(engine: Any) -> None:
    desk, visit = desk_of(engine), Visit()
    reports: list[Any] = []
    desk.report = reports.append  # type: ignore[method-assign]
    collect(desk, visit, asked_of(desk), lambda value: visit.stop() if value["lanes"][0]["questions"] == 2 else None)
    assert [(report.via, report.state) for report in reports[:2]] == [("series", "done")] * 2
