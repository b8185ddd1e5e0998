from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from sparsed.evaluate import Record, default_cells, read_records, summarise, table, token_agreement, wilson


def record(index: int, method: str, exact: bool, **more: object) -> Record:
    values: dict[str, object] = dict(
        group="lookup", length="1k", index=index, kind="fact", method=method, exact=exact, right=int(exact), facts=1,
        invented=0, verdict="", depth=0.5, agreement=None if method == "dense" else 1.0, seconds=2.0, text=None,
        gold=None,
    )
    return Record(**{**values, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("right,total", [(0, 10), (5, 10), (10, 10), (61, 62), (199, 200)])
def test_wilson_bounds_solve_the_score_equation(right: int, total: int) -> None:
    # The bounds are where |share − p| = z·sqrt(p(1 − p)/total).
    for bound in wilson(right, total):
        if 0 < bound < 1:
            gap = abs(right / total - bound)
            assert gap == pytest.approx(1.96 * (bound * (1 - bound) / total) ** 0.5, abs=1e-9)
    low, high = wilson(right, total)
    assert 0 <= low <= right / total <= high <= 1


def test_agreement_counts_to_the_end_of_the_longer_answer() -> None:
    end = 0
    assert token_agreement([5, 6, 0, 0], [5, 6, 0, 0], end) == 1
    assert token_agreement([5, 6, 0, 0, 0], [5, 7, 8, 0, 0], end) == 2 / 4
    assert token_agreement([5, 6, 7], [5, 6, 8], end) == 2 / 3
    assert token_agreement([0, 0, 0], [0, 0, 0], end) == 1


def test_differences_are_paired_by_question() -> None:
    dense = [record(i, "dense", i < 8) for i in range(10)]
    sparse = [record(i, "sparsed", i not in (0, 1, 8)) for i in range(10)]  # loses 0, 1; wins 9
    summary = summarise(dense + sparse)
    row = next(r for r in summary["cells"] if r["method"] == "sparsed")
    assert row["right"] == 7 and row["difference"] == pytest.approx(-0.1)
    assert summary["means"]["sparsed"] == {"cells": 1, "mean_paired_difference": pytest.approx(-0.1)}
    assert "7/10" in table(summary) and "-10.0" in table(summary)


def test_the_grid_asks_as_many_questions_as_promised() -> None:
    cells = default_cells(["512", "16k", "32k", "64k"], ["lookup", "arithmetic"])
    assert [(c.group, c.length, c.questions) for c in cells] == [
        ("lookup", "512", 200), ("lookup", "16k", 200), ("lookup", "32k", 100), ("lookup", "64k", 40),
        ("arithmetic", "short_context", 200),
    ]


def test_records_are_read_from_all_shards(tmp_path: Path) -> None:
    for shard in range(2):
        line = json.dumps(asdict(record(shard, "dense", True)))
        (tmp_path / f"records-{shard}-of-2.jsonl").write_text(line + "\n", encoding="utf-8")
    assert [r.index for r in read_records(tmp_path)] == [0, 1]
