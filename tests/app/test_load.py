"""The load test, small: a few visitors at once on the bundled model, and that its judgement can fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
import visitors
from servers import ROOT


def test_ten_visitors_at_once_get_their_own_answers(capfd: pytest.CaptureFixture[str]) -> None:
    if not (ROOT / "assets" / "mini" / "model.safetensors").exists():
        pytest.skip("mini has not been made yet")
    # So few visitors cannot tell growth from noise.
    assert visitors.load(10, 8.0, growth=None, warm_up=3) == []
    assert "accepted, done" in capfd.readouterr().out


def test_the_visitors_are_of_every_kind_and_the_same_each_time() -> None:
    made = visitors.plans(50, 120.0, 0)
    assert made == visitors.plans(50, 120.0, 0) and made != visitors.plans(50, 120.0, 1)
    assert [plan.number for plan in made] == list(range(50)) and made[-1].at < 120
    fates = [plan.fate for plan in made]
    assert (fates.count("closes"), fates.count("bad"), fates.count("stays")) == (10, 5, 35)
    assert {plan.way for plan in made} == {"tab", "program"}
    assert len({(plan.question, plan.text) for plan in made}) == 50


def test_the_judgement_sees_what_is_wrong() -> None:
    plan = replace(visitors.plans(1, 1.0, 0)[0], way="tab", fate="stays")
    right = {"dense": (["a", " b"], "a b"), "sparse": (["a", " c"], "a c")}
    answers = {"dense": ["a", " b"], "sparse": ["a", " c"]}
    good = visitors.Seen(plan, "done", answers=answers, received=f"… {plan.mark} …")

    def wrong(seen: object) -> str:
        return " ".join(visitors.judge(seen, right))

    assert wrong(good) == ""
    assert "alone it writes" in wrong(replace(good, answers={**good.answers, "sparse": ["a", " b"]}))
    assert "alone it writes" in wrong(replace(good, answers={"dense": ["a", " b"]}))
    assert "the text of visitors ['0007']" in wrong(replace(good, received=visitors.mark(7)))
    assert "received 'Traceback'" in wrong(replace(good, received="Traceback (most recent call last)"))
    assert "ended in the state 'failed'" in wrong(replace(good, state="failed", message="No."))
    assert "ended in the state 'none'" in wrong(replace(good, state="none"))
    assert "closed by itself" in wrong(replace(good, state="closed"))
    assert "told ''" in wrong(replace(good, state="refused"))
    assert wrong(replace(good, state="refused", message="Too long.")) == ""
    bad = replace(good, plan=replace(plan, fate="bad"))
    assert "in the state 'done'" in wrong(bad)
    assert wrong(replace(bad, state="refused", message="No such model.")) == ""


def test_differences_are_put_together() -> None:
    old = {"a": [1, {"b": "x"}]}
    changes = [["append", ["a", 1, "b"], "yz"], ["add", ["a", 0], 0], ["replace", ["a", 1], 5], ["add", ["c"], 2]]
    assert visitors.changed(old, changes) == {"a": [0, 5, {"b": "xyz"}], "c": 2}
    assert visitors.changed("ab", [["append", [], "c"]]) == "abc"
    assert visitors.changed("ab", [["replace", [], "c"]]) == "c"
    assert visitors.changed([1, 2], [["delete", [0], None]]) == [2] and old == {"a": [1, {"b": "x"}]}
