"""What the evaluation that comes with the app says beside twenty questions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.accuracy.shipped import SHIPPED
from app.race.request import Request, parse
from app.series import shipped
from sparsed.evaluation.scores import wilson
from sparsed.models.catalogue import find


def asked_of(kind: str = "older", length: str = "1k", **given: Any) -> Request:
    mini = find("mini").defaults
    return parse(
        defaults=mini, models=["mini"], kinds=["older", "chain3", "unanswerable"], lengths=["1k", "4k", "128k"],
        model="mini", kind=kind, length=length, text="", question=3, backend="auto", **{"seed": 5, **given},
    )  # fmt: skip


def cell(length: str, type_: str, method: str) -> str:
    """The line of the file itself, in words."""
    columns, *_ = (table := json.loads(SHIPPED.read_text("utf-8"))["cells"])["columns"], None
    rows = [dict(zip(columns, row, strict=True)) for row in table["rows"]]
    (one,) = [row for row in rows if (row["length"], row["type"], row["method"]) == (length, type_, method)]
    low, high = wilson(one["right"], one["questions"])
    return f"{one['right']} of {one['questions']}, {100 * low:.0f}–{100 * high:.0f}\u00a0%"


def test_each_lane_has_the_line_of_its_kind_length_and_settings() -> None:
    asked = asked_of(lanes=["dense+dual", "sparsed+refresh", "sliding_window"])
    # No window was evaluated.
    assert shipped.found(asked, 1020) == {
        "dense": cell("1k", "comparison", "dense"),
        "sparse": cell("1k", "comparison", "sparsed"),
        "dense+dual": cell("1k", "comparison", "dense+dual"),
        "sparsed+refresh": cell("1k", "comparison", "sparsed+refresh"),
    }
    ours = {"skip": 0.05, "select": 0.1, "generation_rows": "full"}
    found = shipped.found(asked_of("chain3", "4k", **ours), 4090)
    assert found is not None
    assert found["sparse"] == cell("4k", "chain3", "sparsed:skip=0.05,select=0.1,generation_rows=full")
    # A default that is written out is the same setting; another one is not.
    usual = asked_of().attention.resolve(1020 + 96)
    assert shipped.found(asked_of(skip=usual.skip, select=usual.select), 1020) == shipped.found(asked_of(), 1020)
    other = shipped.found(asked_of(select=0.42), 1020)
    assert other == {"dense": cell("1k", "comparison", "dense")}


@pytest.mark.parametrize(
    "given", [{"steps": 24}, {"length": "128k"}, {"kind": "unanswerable"}, {"temperature": 0.5}, {"block_length": 96}]
)
def test_what_was_not_evaluated_has_none(given: Any) -> None:
    assert shipped.found(asked_of(**given), 1020) is None


def test_without_the_file_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    assert shipped.found(asked_of(), 1020)
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path / "evaluation.json")
    assert shipped.found(asked_of(), 1020) is None
