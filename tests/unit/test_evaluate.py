"""Scores of an evaluation, against counts made by hand."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from sparsed.denoising.info import RunInfo
from sparsed.evaluation.answers import own_share, token_agreement
from sparsed.evaluation.command import _parser, main, unheeded
from sparsed.evaluation.plan import default_cells
from sparsed.evaluation.reading import read_observations, read_records
from sparsed.evaluation.scores import Answer, Observation, over_types, paired, summarise, wilson
from sparsed.evaluation.tables import table
from sparsed.options import given_of
from sparsed.parallel.crew import Crew
from sparsed.questions.lengths import token_budget
from sparsed.results_folder import Folder
from sparsed.runs import COMMON, METHOD, OWN, QUESTION, RunRecord, dense_again, notes_of, told


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


@pytest.mark.parametrize(("won", "lost", "total"), [(0, 0, 1), (0, 0, 200), (200, 0, 200), (0, 5, 5), (3, 7, 40)])
def test_an_interval_of_a_difference_holds_it_and_is_never_empty(won: int, lost: int, total: int) -> None:
    low, high = paired(won, lost, total)
    assert -1 <= low < high <= 1 and low <= (won - lost) / total <= high
    assert paired(lost, won, total) == (pytest.approx(-high), pytest.approx(-low))
    more = paired(100 * won, 100 * lost, 100 * total)
    assert more[1] - more[0] < high - low


def test_the_mean_over_types_counts_each_alike() -> None:
    cells = [
        {"accuracy": 0.5, "difference": -0.1, "difference_interval": (-0.14, -0.02)},
        {"accuracy": 1.0, "difference": 0.0, "difference_interval": (-0.03, 0.03)},
    ]
    mean = over_types(cells)
    assert (mean["types"], mean["mean_accuracy"]) == (2, 0.75)
    assert mean["mean_difference"] == pytest.approx(-0.05)
    spread = (0.06**2 + 0.03**2) ** 0.5 / 2
    assert mean["mean_difference_interval"] == (pytest.approx(-0.04 - spread), pytest.approx(-0.04 + spread))
    assert over_types([cells[0], {**cells[1], "difference": None}])["mean_difference_interval"] is None


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
    # −1, −1, +1 and seven zeros, and one more of each: twelve, of which five differ, their sum −1.
    more = [-1, -1, -1, 1, 1] + [0] * 7
    variance = sum((one + 1 / 12) ** 2 for one in more) / 12
    assert (high - low) / 2 == pytest.approx(1.96 * (variance / 12) ** 0.5)
    assert (high + low) / 2 == pytest.approx(-1 / 12)
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
    assert settings == ["dense", "default", "skip 0", "select 0.5, reuse no", "select 0.1", "Sliding window"]
    methods = ["dense:threshold=0.9", "sliding_window:select=0.1"]
    said = table(summarise([record(0, method, True) for method in methods]))
    assert [line.split(" | ")[1] for line in said.split("\n\n")[-1].splitlines()[2:]] == [
        "dense, threshold 0.9", "Sliding window, select 0.1"
    ]  # fmt: skip


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
    cells = default_cells(["512", "16k", "32k", "64k", "128k"], ["lookup", "arithmetic"])
    assert [(c.type, c.length, c.questions) for c in cells] == [
        ("lookup", "512", 200), ("arithmetic", "512", 200), ("lookup", "16k", 200), ("arithmetic", "16k", 200),
        ("lookup", "32k", 100), ("arithmetic", "32k", 100), ("lookup", "64k", 40), ("arithmetic", "64k", 40),
        ("lookup", "128k", 20), ("arithmetic", "128k", 20),
    ]  # fmt: skip


def test_the_same_length_in_other_words_is_the_same() -> None:
    cells = default_cells(["1024", "1k", "0512", "512", "256", "short_context"], ["lookup", "lookup"], 1)
    assert [cell.length for cell in cells] == ["1k", "512", "256", "short_context"]


def test_a_folder_holds_the_entries_of_all_processes(tmp_path: Path) -> None:
    for shard in range(2):
        folder = Folder(tmp_path, {"weights": "5c1f"}, f"{shard}-of-2")
        folder.add("records", asdict(record(shard, "dense", True)))
        folder.add("observations", asdict(Observation("lookup", "1k", shard, 0.5, [])))
    assert [r.index for r in read_records(tmp_path)] == [o.index for o in read_observations(tmp_path)] == [0, 1]


def ran(method: str = "sparsed", dense: int = 4, sparse: int = 4, **more: Any) -> RunRecord:
    values: dict[str, Any] = dict(
        sampler={"steps": 8}, attention={"method": method}, backend="gather", dense_backend="sdpa", dtype="float32",
        device="cpu", prompt_tokens=1000, batch=1, phases={"dense": dense, "select": int(sparse > 0), "sparse": sparse},
        forwards=dense + int(sparse > 0) + sparse, total=8, finished=True, cache={"method": "none"},
        rows={"dense": 1096 * dense, "select": 1096 * int(sparse > 0), "sparse": 1096 * sparse},
        switch_step=dense + 1 if sparse else None, notes=[],
    )  # fmt: skip
    return RunRecord(**{**values, **more})  # type: ignore[typeddict-item]


NEVER = "This run never becomes sparse."


def test_a_column_that_never_was_sparse_says_so_in_its_heading() -> None:
    dense = [record(i, "dense", True, run=ran("dense", 8, 0)) for i in range(4)]
    never = [record(i, "sparsed", True, run=ran(dense=8, sparse=0, notes=[NEVER])) for i in range(4)]
    sparse = [record(i, "random", True, run=ran("random")) for i in range(4)]
    some = [record(i, "shared", True, run=ran("shared", 8, 0) if i else ran("shared")) for i in range(4)]
    own = [record(i, "sparsed:skip=1", True, run=ran(dense=8, sparse=0)) for i in range(4)]
    summary = summarise(dense + never + sparse + some + own)
    said = table(summary)
    assert "| Full attention | SparseD (never sparse) | Random blocks |" in said
    assert "| One pattern for all heads (never sparse in 3 of 4) |" in said
    assert "| default (never sparse) |" in said and "| skip 1 (never sparse) |" in said
    rows = {row["method"]: row for row in summary["lengths"]}
    assert [rows[method]["never_sparse"] for method in ("dense", "sparsed", "random", "shared")] == [0, 4, 0, 3]
    assert rows["shared"]["phases"] == {"dense": 28, "select": 1, "sparse": 4}
    assert said.count(NEVER) == 1 and f"Note (SparseD: 4 of 4): {NEVER}" in said
    assert summary["notes"] == [{"note": NEVER, "label": "sparsed", "times": 4, "of": 4}]


def test_a_cache_is_a_method_of_its_own_with_its_name() -> None:
    asked = ("sparsed+refresh", "dense+dual", "sparsed", "dense")
    records = [record(i, method, True) for i in range(2) for method in asked]
    summary = summarise(records)
    assert [row["method"] for row in summary["lengths"]] == ["dense", "dense+dual", "sparsed", "sparsed+refresh"]
    said = table(summary)
    for name in ("dense", "Full attention + Fast-dLLM, dual", "default", "SparseD + Refresh"):
        assert f"\n| 1k | {name} | 2 |" in said
    assert "SparseD + Refresh, mean over 1k: +0.00 points to dense, 75.0 % of the tokens agree." in said


def test_runs_that_went_back_to_full_attention_are_told() -> None:
    again = ran(dense=7, sparse=3, switch_step=3, phases={"dense": 5, "select": 1, "sparse": 3})
    said = table(summarise([record(0, "sparsed", True, run=again), record(1, "sparsed", True, run=ran())]))
    assert "| SparseD (dense again in 1 of 2) |" in said
    # A refresh is a dense step too, and no way back: one dense step, then two selections at the start of a block.
    attention = {"method": "sparsed", "skip": 0.1, "selection": "paper", "refresh": 3}
    fresh = ran(attention=attention, phases={"dense": 1, "select": 3, "sparse": 4}, switch_step=3)
    back = ran(attention=attention, phases={"dense": 3, "select": 2, "sparse": 3}, switch_step=3)
    assert "SparseD |" in table(summarise([record(0, "sparsed", True, run=fresh)]))
    assert "SparseD (dense again) |" in table(summarise([record(0, "sparsed", True, run=back)]))
    # With a cache, steps over few rows see all keys: what went back says so.
    few = ran(dense=7, sparse=1, cache={"method": "dual"}, attention=attention)
    gone = {**few, "notes": ["Sparse steps are no faster here; from step 6 on this run is dense again."]}
    assert [dense_again(run) for run in (few, gone)] == [False, True]


def test_forwards_of_an_answer_are_a_column() -> None:
    records = [record(i, method, True, run=ran(method, 4, i)) for i in range(2) for method in ("dense", "sparsed")]
    assert [row["forwards"] for row in summarise(records)["lengths"]] == [5, 5]
    assert table(summarise(records)).splitlines()[2].endswith("| 5 |")
    records.append(record(2, "sparsed", True, run=ran(forwards=14)))
    assert table(summarise(records)).splitlines()[2].endswith("| 5 / 8 |")


def test_notes_that_differ_in_numbers_alone_are_one() -> None:
    notes = [[f"{n} tokens of 4,096: slow.", "Other."] for n in (90, 100, 110)] + [[]]
    found = notes_of([("sparsed", ran(notes=one)) for one in notes] + [("dense", None)])
    assert found == [
        {"note": "90 tokens of 4,096: slow.", "label": "sparsed", "times": 3, "of": 4},
        {"note": "Other.", "label": "sparsed", "times": 3, "of": 4},
    ]
    found.append({"note": "Other.", "label": "random", "times": 1, "of": 2})
    assert told(found, str.upper) == [
        "Note (SPARSED: 3 of 4): 90 tokens of 4,096: slow.", "Note (SPARSED: 3 of 4; RANDOM: 1 of 2): Other."
    ]  # fmt: skip


def test_every_field_of_a_run_is_alike_in_all_or_belongs_to_a_question_a_method_or_itself() -> None:
    kept = {field.name for field in fields(RunInfo)} | {"forwards"}
    assert kept == set(RunRecord.__annotations__)
    assert sorted(kept) == sorted((*COMMON, *QUESTION, *METHOD, *OWN))


@pytest.mark.parametrize("name", [*COMMON, *QUESTION])
def test_answers_are_compared_with_dense_ones_of_like_runs_alone(name: str) -> None:
    other = {"sampler": {"steps": 9}, "dtype": "bfloat16", "device": "cuda", "total": 9, "prompt_tokens": 1001}
    dense = [record(i, "dense", True, run=ran("dense", 8, 0)) for i in range(2)]
    like = record(0, "sparsed", False, run=ran())
    unlike = record(1, "sparsed", True, agreement=0.25, run=ran(**{name: other[name]}))
    summary = summarise([*dense, like, unlike])
    (row,) = (row for row in summary["lengths"] if row["method"] == "sparsed")
    assert (row["difference"], row["agreement"]) == (-1, 0.75)
    assert f"Answers not compared with the dense ones, because of another {name}: 1." in table(summary)


def test_answers_to_another_prompt_are_not_compared() -> None:
    dense, sparse = record(0, "dense", True, prompt="5c1f"), record(0, "sparsed", False, prompt="77aa")
    assert [row["difference"] for row in summarise([dense, sparse])["lengths"]] == [None, None]
    assert [row["difference"] for row in summarise([dense, replace(sparse, prompt="5c1f")])["lengths"]] == [None, -1]


@pytest.mark.parametrize("name", [*COMMON, *METHOD])
def test_runs_of_one_method_that_had_unlike_settings_are_told(name: str) -> None:
    other: dict[str, Any] = {
        "sampler": {"steps": 9}, "attention": {"method": "sparsed", "select": 0.1}, "backend": "triton", "total": 9,
        "dense_backend": "flash4", "dtype": "bfloat16", "device": "cuda:1", "cache": {"method": "dual"},
    }  # fmt: skip
    records = [record(i, "sparsed", True, run=ran(**({name: other[name]} if i == 3 else {}))) for i in range(4)]
    (said,) = summarise(records)["doubts"]
    assert said.startswith(f"1k, sparsed: not all 4 answers had the same {name}: ")
    alike = [record(i, "sparsed", True, run=ran(prompt_tokens=990 + i, device=f"cuda:{i}")) for i in range(4)]
    assert not summarise(alike)["doubts"]
    assert summarise(alike)["settings"] == [
        {"length": "1k", "method": "sparsed", "runs": 4, "sampler": {"steps": 8}, "dtype": "float32", "total": 8,
         "device": "cuda", "attention": {"method": "sparsed"}, "cache": {"method": "none"}, "backend": "gather",
         "dense_backend": "sdpa"}
    ]  # fmt: skip


def test_a_folder_of_an_earlier_version_can_be_read_and_says_what_is_not_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = {"model": "mini", "sampler": {"steps": 8}, "attention": {"skip": None}, "depths": [0.0, 0.5]}
    (tmp_path / "plan.json").write_text(json.dumps(plan, indent=1), encoding="utf-8")
    old = asdict(record(1, "dense", True))
    del old["prompt"], old["run"]
    (tmp_path / "records-1-of-2.jsonl").write_text(json.dumps(old) + "\n", "utf-8")
    main(["--out", str(tmp_path), "--report", "--json", str(tmp_path / "scores.json")])
    said = capsys.readouterr().out
    assert "100.0 (" in said and said.count("is not known") == 1 and said.splitlines()[2].endswith("| – |")
    scores = json.loads((tmp_path / "scores.json").read_text("utf-8"))
    assert scores["key"] is None and scores["lengths"][0]["forwards"] is None and len(scores["doubts"]) == 1
    with pytest.raises(ValueError, match="does not say what its results depend on"):
        main(["--out", str(tmp_path)])


def test_a_report_of_the_first_questions_leaves_the_others_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Folder(tmp_path, {"weights": "5c1f"})
    for i in range(5):
        folder.add("records", asdict(record(i, "dense", i < 2)))
    for options, row in (([], "| 1k | 5 | 40.0 ("), (["--questions", "3"], "| 1k | 3 | 66.7 (")):
        main(["--out", str(tmp_path), "--report", *options])
        said = capsys.readouterr()
        assert row in said.out and "without effect" not in said.err


def test_a_report_says_which_answers_are_of_another_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    Folder(one, {"weights": "5c1f"}).add("records", asdict(record(0, "dense", True)))
    Folder(two, {"weights": "77aa"}, "1-of-2").add("records", asdict(record(0, "sparsed", False)))
    shutil.copy(two / "records-1-of-2.jsonl", one)
    main(["--out", str(one), "--report"])
    said = capsys.readouterr().out
    assert "SparseD" not in said
    assert "records-1-of-2.jsonl holds 1 records of another plan than plan.json: they are left out." in said


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
        (["--report"], r"holds no answers yet\.$"),
        (["--depths", "0", "1.5"], "depth of the needed documents must lie between 0 .* and 1 .*, not 1.5"),
        (["--batch-tokens", "-1"], "--batch-tokens must be 0 or above, not -1"),
        (["--questions", "0"], "--questions must be at least 1, not 0"),
        (["--ablations", "--methods", "dense"], "leave one of --ablations and --methods out"),
        (["--methods", "dense:skip=0"], "skip belongs to sparse attention; full attention takes steps, block_length"),
        (["--methods", "sparsed:threshold=2"], "threshold must"),
        (["--methods", "dense", "dense+fast"], "the cache 'fast' is unknown"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_loaded(tmp_path: Path, options: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        main(["--model", str(tmp_path / "none"), "--out", str(tmp_path / "out"), *options])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--methods dense --skip 0.3 --backend gather", "--backend, --skip without effect: no sparse method is asked"),
        ("--methods dense sparsed --skip 0.3", ""),
        ("--observe --batch-tokens 500 --methods dense --skip 0.3", "--batch-tokens, --methods without effect"),
        ("--methods dense dense+dual dense:steps=12 --skip 0.3", "--skip without effect: no sparse method is asked"),
        ("--methods dense --ablations select --skip 0.3", ""),
        ("--types arithmetic --depths 0.5", "--depths without effect: word problems need no document"),
        ("--types arithmetic lookup --depths 0.5", ""),
        ("--report --steps 5 --json x.json --recommend", "--steps without effect: --report only reads"),
    ],
)
def test_settings_without_effect_are_said(options: str, said: str) -> None:
    parser = _parser()
    args = parser.parse_args(options.split())
    found = unheeded(args, given_of(parser, args))
    assert len(found) == bool(said) and said in "".join(found)


def test_entries_of_another_version_are_refused_in_a_sentence(tmp_path: Path) -> None:
    line = {**asdict(record(0, "dense", True)), "mood": "good"}
    del line["facts"]
    Folder(tmp_path, {}).add("records", line)
    with pytest.raises(ValueError, match=r"holds answers of another version of this program \(unlike in facts, mood\)"):
        read_records(tmp_path)


def test_shares_by_hand_and_by_themselves_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Crew, "here", lambda: contextlib.nullcontext(Crew(rank=1, size=2)))
    with pytest.raises(ValueError, match="leave out --shard"):
        main(["--shard", "0/2", "--out", str(tmp_path)])
