"""What a run costs, against a count of every multiplication one by one; and speeds that are made of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sparsed.evaluation.cost import Work, executed_cost, work_of
from sparsed.evaluation.scores import Answer, summarise
from sparsed.evaluation.tables import table
from sparsed.models.sizes import Sizes
from sparsed.runs import RunRecord

SIZES = Sizes(layers=3, hidden=4, heads=4, key_heads=2, head_dim=2, intermediate=5, vocabulary=7)
LENGTH, BLOCK = 10, 4  # a last block of two positions
# Which key blocks each query block sees: the last one, with the generation, sees all.
SEEN = [{0}, {0, 2}, {0, 1, 2}]


def matrix(rows: int, inside: int, outside: int) -> int:
    """Operations of [rows, inside] @ [inside, outside], counted one by one."""
    count = 0
    for _ in range(rows):
        for _ in range(outside):
            for _ in range(inside):
                count += 2
    return count


def counted(steps: list[str], wanted: list[int], ranking: set[str], computed: dict[int, range] | None = None) -> int:
    """Operations of these steps ("dense", "select", "sparse"), of which each asks for so many rows of logits; those of
    the phases in `ranking` compute all scores once more. computed: of a step by its number, the rows that it computes.
    """
    heads, dim, inner = SIZES.heads * SIZES.head_dim, SIZES.head_dim, SIZES.intermediate
    count = 0
    for step, (phase, rows) in enumerate(zip(steps, wanted, strict=True)):
        queries = (computed or {}).get(step, range(LENGTH))
        for layer in range(SIZES.layers):
            for size in (SIZES.heads, SIZES.key_heads, SIZES.key_heads):
                count += matrix(len(queries), SIZES.hidden, size * dim)
            for _ in range(SIZES.heads):
                for query in queries:
                    for key in range(LENGTH):
                        if phase != "sparse" or key // BLOCK in SEEN[query // BLOCK]:
                            count += 2 * dim + 2 * dim
                        if phase in ranking:
                            count += 2 * dim
            left = rows if layer == SIZES.layers - 1 else len(queries)
            count += matrix(left, heads, SIZES.hidden)
            count += 2 * matrix(left, SIZES.hidden, inner) + matrix(left, inner, SIZES.hidden)
        count += matrix(rows, SIZES.hidden, SIZES.vocabulary)
    return count


def density() -> float:
    pairs = sum(key // BLOCK in SEEN[query // BLOCK] for query in range(LENGTH) for key in range(LENGTH))
    return pairs / LENGTH**2


def ran(phases: dict[str, int], method: str = "sparsed", **attention: Any) -> RunRecord:
    forwards = sum(phases.values())
    return RunRecord(
        sampler={"steps": forwards, "gen_length": 2, "cfg_scale": 0.0}, attention={"method": method, **attention},
        backend="gather", dense_backend="sdpa", dtype="float32", device="cpu", prompt_tokens=LENGTH - 2, batch=1,
        phases=phases, forwards=forwards, total=forwards, finished=True, switch_step=None, notes=[],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "method", "attention", "ranking"),
    [
        (["dense"] * 4, "dense", {}, set()),
        (["dense", "select", "sparse", "sparse"], "sparsed", {"reuse": True}, {"select"}),
        (["select", "sparse", "select", "sparse"], "sparsed", {"reuse": True, "refresh": 1}, {"select"}),
        (["select", "sparse", "sparse", "sparse"], "shared", {"reuse": True}, {"select"}),
        # Without reuse every sparse step ranks all blocks anew; a window asks for no score.
        (["select", "sparse", "sparse", "sparse"], "sparsed", {"reuse": False}, {"select", "sparse"}),
        (["select", "sparse", "sparse", "sparse"], "sliding_window", {"reuse": True}, set()),
        (["dense", "dense", "dense", "dense"], "sparsed", {"reuse": True}, set()),  # never sparse
    ],
)
def test_the_cost_of_a_run_is_every_operation_of_its_steps(
    steps: list[str], method: str, attention: dict[str, Any], ranking: set[str]
) -> None:
    wanted = [2, 2, 1, 1]
    run = ran({phase: steps.count(phase) for phase in ("dense", "select", "sparse")}, method, **attention)
    work = work_of(run, density() if "sparse" in steps else None, sum(wanted))
    assert work is not None
    expected = counted(steps, wanted, ranking)
    assert executed_cost(SIZES, work) == pytest.approx(expected, rel=1e-12)
    guided = work_of({**run, "sampler": {**run["sampler"], "cfg_scale": 1.5}}, work.density, sum(wanted))
    assert guided is not None and executed_cost(SIZES, guided) == pytest.approx(2 * expected, rel=1e-12)


def test_with_a_cache_the_cost_is_of_the_rows_that_steps_computed() -> None:
    """The second half of the sequence in some steps, with all keys and by the pattern."""
    steps, wanted, few = ["dense", "select", "dense", "sparse", "sparse"], [2, 2, 1, 1, 1], range(5, LENGTH)
    expected = counted(steps, wanted, {"select"}, {0: few, 2: few, 4: few})
    pairs = [[key // BLOCK in SEEN[query // BLOCK] for key in range(LENGTH)] for query in range(LENGTH)]
    kept = sum(map(sum, pairs)) + sum(map(sum, pairs[5:]))
    run = ran({"dense": 2, "select": 1, "sparse": 2}, reuse=True)
    rows = {"dense": 10, "select": LENGTH, "sparse": LENGTH + 5}
    work = work_of(run, kept / (15 * LENGTH), sum(wanted), rows)
    assert work is not None and executed_cost(SIZES, work) == pytest.approx(expected, rel=1e-12)
    # The share of all rows is the mean over answers, and a column where any left some out.
    dense = ran({"dense": 5, "select": 0, "sparse": 0}, "dense")
    records = [answer(i, "dense", 4.0, dense, rows={"dense": 50, "select": 0, "sparse": 0}) for i in range(2)]
    assert "rows computed" not in table(summarise(records, sizes=SIZES))
    records += [answer(i, "sparsed+dual:skip=0", 1.0, run, rows={**rows, "dense": 10 - 5 * i}) for i in range(2)]
    found = {row["method"]: row["rows"] for row in summarise(records, sizes=SIZES)["lengths"]}
    assert found == {"dense": 1.0, "sparsed+dual:skip=0": pytest.approx((35 / 50 + 30 / 50) / 2)}
    said = table(summarise(records, sizes=SIZES))
    assert "| 512 | SparseD + Fast-dLLM, dual, skip 0 | 2 |" in said and "| 5 | 65.0 % |" in said
    assert "| 512 | Full attention | 5 | 100.0 % |" in said


def test_what_an_earlier_version_did_not_keep_has_no_cost() -> None:
    sparse = ran({"dense": 1, "select": 1, "sparse": 2})
    assert work_of(None, 0.5, 6) is None and work_of(sparse, 0.5, None) is None and work_of(sparse, None, 6) is None
    dense = ran({"dense": 4, "select": 0, "sparse": 0}, "dense")
    assert work_of(dense, None, 6) == Work(LENGTH, 4 * LENGTH, 0, 0, 0.0, 6)


def answer(index: int, method: str, seconds: float, run: RunRecord | None, **more: Any) -> Answer:
    given: dict[str, Any] = {"density": 0.4, "head_rows": 6, **more}
    return Answer(
        "lookup", "512", index, "fact", method, True, 1, 1, 0, "", 0.5, None, seconds, [5], run=run, **given
    )


def test_speed_is_paired_with_full_attention_as_the_folder_runs_it() -> None:
    dense = ran({"dense": 4, "select": 0, "sparse": 0}, "dense")
    sparse = ran({"dense": 1, "select": 1, "sparse": 2}, reuse=True)
    few = ran({"dense": 2, "select": 0, "sparse": 0}, "dense")
    records = [answer(i, "dense", 4.0, dense) for i in range(3)]
    records += [answer(i, "sparsed", 1.0 + i, sparse) for i in range(2)]  # question 2 is not asked
    records.append(answer(7, "sparsed", 99.0, sparse))  # of which dense knows nothing
    records += [answer(i, "dense:steps=2", 2.0, few, head_rows=3) for i in range(3)]
    rows = {row["method"]: row for row in summarise(records, sizes=SIZES)["lengths"]}

    def cost(run: RunRecord, head_rows: int = 6) -> float:
        work = work_of(run, 0.4, head_rows)
        assert work is not None
        return executed_cost(SIZES, work)

    assert rows["dense"]["speed"] == rows["dense"]["measured_speed"] == 1
    assert rows["dense"]["cost"] == pytest.approx(cost(dense))
    assert rows["sparsed"]["speed"] == pytest.approx(cost(dense) / cost(sparse))
    assert rows["sparsed"]["measured_speed"] == pytest.approx(8 / 3)
    assert rows["sparsed"]["density"] == pytest.approx(0.4)
    # A method that samples otherwise is compared with the folder's dense runs too, forwards and all.
    assert rows["dense:steps=2"]["speed"] == pytest.approx(cost(dense) / cost(few, 3))
    assert rows["dense:steps=2"]["difference"] == 0
    said = table(summarise(records, sizes=SIZES))
    assert f"| {rows['sparsed']['speed']:.2f}× | 2.67× |" in said and "within this folder alone" in said


def test_a_speed_that_is_not_known_is_not_said() -> None:
    dense, sparse = ran({"dense": 4, "select": 0, "sparse": 0}, "dense"), ran({"dense": 2, "select": 1, "sparse": 1})
    one, two = answer(0, "dense", 4.0, dense), answer(0, "sparsed", 1.0, sparse)

    def row(*records: Answer, sizes: Sizes | None = SIZES) -> dict[str, Any]:
        summary = summarise(records, sizes=sizes)
        known = [row for row in summary["lengths"] if row["speed"] is not None]
        assert ("Speed as executed" in table(summary)) == bool(known)
        return {row["method"]: row for row in summary["lengths"]}["sparsed"]

    assert row(two)["speed"] is None and row(two)["cost"] is not None
    assert row(one, two, sizes=None)["speed"] is None and row(one, two, sizes=None)["measured_speed"] == 4
    assert row(one, replace(two, head_rows=None))["speed"] is None
    # A batch makes each of its answers cheaper by the clock.
    batch = row(one, replace(two, run={**sparse, "batch": 8}))
    assert batch["measured_speed"] is None and batch["speed"] is not None
    elsewhere = row(one, replace(two, run={**sparse, "device": "cuda"}))
    assert elsewhere["measured_speed"] is elsewhere["speed"] is elsewhere["difference"] is None
