"""The heatmaps of an evaluation say, cell by cell, what was counted."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from app.tools.depth_chart import heatmap, main
from sparsed.evaluation.scores import Answer, summarise
from sparsed.evaluation.tables import method_label


def record(index: int, method: str, length: str, depth: float | None, exact: bool) -> Answer:
    return Answer("lookup", length, index, "fact", method, exact, 1, 1, 0, "", depth, None, 1.0, [0])


RECORDS = [
    record(i, method, length, depth, exact=(i < 3) if method == "dense" else depth == 1.0)
    for method in ("dense", "sliding_window", "sparsed:skip=0", "sparsed")
    for length in ("4k", "512")
    for depth in (0.0, 1.0)
    for i in range(4)
    if not (method == "sparsed" and length == "4k" and depth == 0.0)
]


def test_every_cell_is_the_share_of_right_answers() -> None:
    figure = heatmap(summarise(RECORDS)["depths"])
    titles = [annotation.text for annotation in figure.layout.annotations]
    assert titles == ["Full attention", "SparseD", "SparseD, skip 0", "Sliding window"]
    assert len(figure.data) == 4
    for trace, method in zip(figure.data, ("dense", "sparsed", "sparsed:skip=0", "sliding_window"), strict=True):
        assert list(trace.x) == ["512", "4k"] and list(trace.y) == ["0 %", "100 %"]
        for row, depth in zip(trace.z, (0.0, 1.0), strict=True):
            for value, length in zip(row, trace.x, strict=True):
                found = [r.exact for r in RECORDS if (r.method, r.length, r.depth) == (method, length, depth)]
                assert value == (100 * sum(found) / len(found) if found else None)
    # All in one colour scale from 0 to 100, whatever the values.
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 100)


def test_the_command_writes_a_page_that_needs_no_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "\n".join(json.dumps(asdict(one)) for one in RECORDS)
    (tmp_path / "records-0-of-1.jsonl").write_text(lines, encoding="utf-8")
    out = tmp_path / "depth.html"
    assert main([str(tmp_path), "--out", str(out)]) == 0
    page = out.read_text("utf-8")
    assert "Sliding window" in page and "src=\"http" not in page and len(page) > 1_000_000
    assert "4 heatmaps" in capsys.readouterr().out
    assert main([str(tmp_path), "--methods", "dense", "sparsed", "--out", str(out)]) == 0
    assert "2 heatmaps" in capsys.readouterr().out and "Sliding window" not in out.read_text("utf-8")


def test_nothing_to_draw_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "No answer of this evaluation has a depth" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no document"):
        heatmap(summarise([record(0, "dense", "4k", None, True)])["depths"])


def test_a_method_in_words() -> None:
    assert method_label("streaming_llm:select=0.1,skip=0") == "StreamingLLM, select 0.1, skip 0"
