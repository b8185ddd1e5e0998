"""Scores of an evaluation, against counts made by hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from sparsed.config import SparseDConfig
from sparsed.evaluate import (
    ABLATIONS,
    Folder,
    Plan,
    default_cells,
    main,
    parse_method,
    read_observations,
    read_records,
    token_agreement,
)
from sparsed.scores import Observation, Record, summarise, table, wilson


def record(index: int, method: str, exact: bool, **more: object) -> Record:
    values: dict[str, object] = dict(
        type="lookup", length="1k", index=index, kind="fact", method=method, exact=exact, right=int(exact), facts=1,
        invented=0, verdict="", depth=0.5, agreement=None if method == "dense" else 0.75, seconds=2.0, tokens=[5, 0],
    )  # fmt: skip
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
    # Question 3 of another type is another question.
    dense.append(record(3, "dense", False, type="two_hop"))
    sparse = [record(i, "sparsed", i not in (0, 1, 8)) for i in range(10)]  # loses 0, 1; wins 9
    window = [record(i, "sliding_window", False) for i in range(4)]  # fewer questions: all lost, of 4 right
    summary = summarise(dense + sparse + window)
    cells = {(row["type"], row["method"]): row for row in summary["cells"]}
    assert cells["lookup", "sparsed"]["right"] == 7
    assert cells["lookup", "sparsed"]["difference"] == pytest.approx(-0.1)
    assert cells["lookup", "sliding_window"]["difference"] == -1
    assert cells["two_hop", "dense"]["questions"] == 1
    low, high = cells["lookup", "sparsed"]["difference_interval"]
    # −1, −1, +1 and seven zeros: variance (3 − 10 · 0.01) / 10, over ten questions.
    assert (high - low) / 2 == pytest.approx(1.96 * ((3 - 0.1) / 10 / 10) ** 0.5)
    assert summary["means"]["sparsed"] == {
        "lengths": ["1k"], "difference": pytest.approx(-0.1), "agreement": pytest.approx(0.75)
    }  # fmt: skip
    said = table(summary)
    assert "70.0 (" in said and "-10.0 (" in said and "n = 4" in said and "two_hop" in said


def test_means_weigh_every_length_alike_and_stop_at_16k() -> None:
    records = []
    for length, lost, asked in (("1k", 1, 2), ("16k", 0, 8), ("32k", 4, 4)):
        for i in range(asked):
            records += [record(i, "dense", True, length=length), record(i, "sparsed", i >= lost, length=length)]
    summary = summarise(records)
    assert summary["means"]["sparsed"]["lengths"] == ["1k", "16k"]
    assert summary["means"]["sparsed"]["difference"] == pytest.approx(-0.25)
    assert [row["length"] for row in summary["lengths"]] == ["1k", "1k", "16k", "16k", "32k", "32k"]


def test_depths_are_scored_apart_and_questions_without_one_left_out() -> None:
    records = [record(i, "dense", depth == 0.5, depth=depth) for i, depth in enumerate((0.0, 0.5, 0.5, None))]
    rows = summarise(records)["depths"]
    assert [(row["depth"], row["right"], row["questions"]) for row in rows] == [(0.0, 0, 1), (0.5, 2, 2)]


def test_settings_of_sparsed_have_a_table_of_their_own() -> None:
    own = ["sparsed:skip=0", "sparsed:select=0.5,reuse=no", "sparsed:select=0.1"]
    methods = ["sliding_window", *own, "sparsed", "dense"]
    said = table(summarise([record(0, method, True) for method in methods]))
    lines = said.split("\n\n")[1].splitlines()[2:]
    settings = [line.split(" | ")[1] for line in lines]
    assert settings == ["dense", "default", "skip 0", "select 0.5, reuse no", "select 0.1"]


def test_observations_are_averaged_by_length_and_step() -> None:
    seen = [
        Observation("lookup", "4k", 0, 0.2, [[20, 0.9], [40, 0.8]]), Observation("lookup", "4k", 1, 0.4, [[20, 0.7]]),
        Observation("lookup", "512", 0, 0.5, [[20, 1.0]]),
    ]  # fmt: skip
    rows = summarise([], seen)["observations"]
    assert [row["length"] for row in rows] == ["512", "4k"]
    assert rows[1]["heads"] == pytest.approx(0.3) and rows[1]["later"] == {20: pytest.approx(0.8), 40: 0.8}
    assert "step 21: 0.80" in table(summarise([], seen))


def test_the_grid_asks_as_many_questions_as_promised() -> None:
    cells = default_cells(["512", "16k", "32k", "64k"], ["lookup", "arithmetic"])
    assert [(c.type, c.length, c.questions) for c in cells] == [
        ("lookup", "512", 200), ("arithmetic", "512", 200), ("lookup", "16k", 200), ("arithmetic", "16k", 200),
        ("lookup", "32k", 100), ("arithmetic", "32k", 100), ("lookup", "64k", 40), ("arithmetic", "64k", 40),
    ]  # fmt: skip


def test_methods_take_settings_of_their_own() -> None:
    base = SparseDConfig(skip=0.1)
    assert parse_method("dense", base) == "dense"
    assert parse_method("sparsed", base) == SparseDConfig(skip=0.1, pattern="sparsed")
    asked = parse_method("streaming_llm:skip=0,block_size=64,reuse=no", base)
    assert asked == SparseDConfig(skip=0.0, block_size=64, reuse=False, pattern="streaming_llm")
    for wrong in ("fast", "dense:skip=0", "sparsed:", "sparsed:speed=2", "sparsed:reuse=maybe", "sparsed:skip"):
        with pytest.raises(ValueError, match="Method"):
            parse_method(wrong, base)
    with pytest.raises(ValueError, match="skip must lie"):
        parse_method("sparsed:skip=2", base)
    assert all(isinstance(parse_method(method, SparseDConfig()), SparseDConfig) for method in ABLATIONS)


def test_a_folder_holds_one_plan_and_the_entries_of_all_processes(tmp_path: Path) -> None:
    for shard in range(2):
        folder = Folder(tmp_path, Plan(), (shard, 2))
        folder.add(record(shard, "dense", True))
        folder.add(Observation("lookup", "1k", shard, 0.5, []))
    assert [r.index for r in read_records(tmp_path)] == [o.index for o in read_observations(tmp_path)] == [0, 1]
    with pytest.raises(ValueError, match="another folder"):
        Folder(tmp_path, Plan(attention=SparseDConfig(skip=0.3)))


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    whole = json.dumps(asdict(record(0, "dense", True)))
    (tmp_path / "records-0-of-1.jsonl").write_text(f"{whole}\n{whole[:40]}", encoding="utf-8")
    assert len(read_records(tmp_path)) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--methods", "fast"], "Method 'fast' is unknown"),
        (["--lengths", "5k"], "Prompt length '5k' is unknown"),
        (["--shard", "2/2"], "--shard must be i/n"),
        (["--skip", "2"], "skip must lie between 0 and 1"),
        (["--report"], "holds no answers yet"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_loaded(tmp_path: Path, options: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        main(["--model", str(tmp_path / "none"), "--out", str(tmp_path / "out"), *options])
