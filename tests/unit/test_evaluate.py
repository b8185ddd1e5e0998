"""Scores of an evaluation, against counts made by hand."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from sparsed.config import AttentionConfig, SamplerConfig, SparseDConfig
from sparsed.evaluation.answers import own_share, token_agreement
from sparsed.evaluation.command import main
from sparsed.evaluation.plan import ABLATIONS, Plan, default_cells, parse_method
from sparsed.evaluation.reading import read_observations, read_records
from sparsed.evaluation.scores import Answer, Observation, summarise, wilson
from sparsed.evaluation.tables import table
from sparsed.parallel.crew import Crew
from sparsed.questions.lengths import token_budget
from sparsed.results_folder import Folder


def record(index: int, method: str, exact: bool, **more: object) -> Answer:
    values: dict[str, object] = dict(
        type="lookup", length="1k", index=index, kind="fact", method=method, exact=exact, right=int(exact), facts=1,
        invented=0, verdict="", depth=0.5, agreement=None if method == "dense" else 0.75, seconds=2.0, tokens=[5, 0],
    )  # fmt: skip
    return Answer(**{**values, **more})  # type: ignore[arg-type]


class FakeCrew(Crew):
    """A process that has seen the same as rank 0."""

    def agree(self, value: Any) -> Any:
        return value


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
    said = table(summarise([], seen))
    assert "step 21: 0.80" in said and "questions |" not in said


def test_the_grid_asks_as_many_questions_as_promised() -> None:
    cells = default_cells(["512", "16k", "32k", "64k"], ["lookup", "arithmetic"])
    assert [(c.type, c.length, c.questions) for c in cells] == [
        ("lookup", "512", 200), ("arithmetic", "512", 200), ("lookup", "16k", 200), ("arithmetic", "16k", 200),
        ("lookup", "32k", 100), ("arithmetic", "32k", 100), ("lookup", "64k", 40), ("arithmetic", "64k", 40),
    ]  # fmt: skip


def test_methods_take_settings_of_their_own() -> None:
    base = SparseDConfig(skip=0.1)
    assert parse_method("dense", base) == AttentionConfig("dense")
    assert parse_method("sparsed", base) == SparseDConfig(skip=0.1)
    asked = parse_method("streaming_llm:skip=0,block_size=64,reuse=no", base)
    assert asked == AttentionConfig("streaming_llm", skip=0.0, block_size=64, reuse=False)
    for wrong in ("fast", "dense:skip=0", "sparsed:", "sparsed:speed=2", "sparsed:reuse=maybe", "sparsed:skip"):
        with pytest.raises(ValueError, match="Method"):
            parse_method(wrong, base)
    with pytest.raises(ValueError, match="skip must lie"):
        parse_method("sparsed:skip=2", base)
    assert all(parse_method(method, SparseDConfig()).method == "sparsed" for method in ABLATIONS)


def test_a_folder_holds_the_entries_of_all_processes(tmp_path: Path) -> None:
    for shard in range(2):
        folder = Folder(tmp_path, Plan().record(), f"{shard}-of-2")
        folder.add("records", asdict(record(shard, "dense", True)))
        folder.add("observations", asdict(Observation("lookup", "1k", shard, 0.5, [])))
    assert [r.index for r in read_records(tmp_path)] == [o.index for o in read_observations(tmp_path)] == [0, 1]


def test_a_folder_of_another_plan_is_refused(tmp_path: Path) -> None:
    Folder(tmp_path, Plan().record())
    said = r"belongs to another plan \(attention.skip is null there, 0.3 here\); choose another folder"
    with pytest.raises(ValueError, match=said):
        main(["--model", "mini", "--skip", "0.3", "--out", str(tmp_path)])


def test_a_folder_of_the_time_before_crews_is_gone_on_with(tmp_path: Path) -> None:
    plan = {
        "model": "mini",
        "sampler": {**asdict(SamplerConfig()), "steps": 8},
        "attention": {"skip": None, "select": None, "block_size": None, "selection": None, "pattern": None},
        "depths": [0.0, 0.25, 0.5, 0.75, 1.0],
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan, indent=1), encoding="utf-8")
    (tmp_path / "records-1-of-2.jsonl").write_text(json.dumps(asdict(record(1, "dense", True))) + "\n", "utf-8")
    Folder(tmp_path, Plan(sampler=SamplerConfig(steps=8)).record())
    assert [r.index for r in read_records(tmp_path)] == [1]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_what_is_open_is_shared_evenly_whoever_did_the_rest(processes: int) -> None:
    cells = default_cells(["512", "1k"], ["lookup", "two_hop"], 20)
    # Two processes were there, and the first was nearly done.
    open_ = {(place, i): 0 if i % 2 == 0 and i < 16 else 1 + place % 2 for place in range(4) for i in range(20)}
    shares = [own_share(cells, open_, FakeCrew(rank, processes)) for rank in range(processes)]
    asked = [(place, i) for share in shares for place, indices in share.items() for i in indices]
    assert sorted(asked) == sorted(question for question, missing in open_.items() if missing)
    weights = [token_budget(cell.length) ** 2 for cell in cells]
    loads = [sum(open_[place, i] * weights[place] for place in share for i in share[place]) for share in shares]
    assert max(loads) - min(loads) <= 2 * 1024**2, "no two differ by more than the costliest question"


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


def test_shares_by_hand_and_by_themselves_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Crew, "here", lambda: contextlib.nullcontext(Crew(rank=1, size=2)))
    with pytest.raises(ValueError, match="leave out --shard"):
        main(["--shard", "0/2", "--out", str(tmp_path)])
