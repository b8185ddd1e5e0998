"""The race as one JSON value: speed-up, agreement, verdicts, and the stream of steps."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from app.lanes import PAIR, PlannedStep, lanes_for
from app.phrases import clock
from app.race.canvas import Canvas
from app.race.lane_view import LaneView, ranges_of
from app.race.notes import of_lanes
from app.race.race import LaneStep, Update
from app.race.snapshot import Stage, before_run, mode, speedup
from sparsed.config import Phase, SparseDConfig

END = 0
NAMES = ("full attention", "SparseD")
WORDS = ["<end>", "It", " is", " so"]


def decode(tokens: list[int]) -> str:
    return "".join(WORDS[token] for token in tokens)


def plan(total: int, switch_step: int | None) -> tuple[PlannedStep, ...]:
    """A run that selects once; switch_step: its first sparse step, from 0."""
    phases: list[Phase] = ["dense"] * total
    if switch_step is not None:
        phases[switch_step - 1 :] = ["select", *["sparse"] * (total - switch_step)]
    return tuple(map(PlannedStep, phases))


def judge(text: str, gold: str) -> tuple[bool, str]:
    return text == gold, "words"


def said(*notes: str, density: float | None = None) -> SimpleNamespace:
    """A run that says this of itself. density: of its pattern, if it has one."""
    pattern = None if density is None else SimpleNamespace(requested_density=density)
    info = SimpleNamespace(record=lambda: {"notes": list(notes)})
    return SimpleNamespace(notes=list(notes), info=info, pattern=pattern)


def stage_of(gold: str | None = "It is so", others: tuple[str, ...] = ()) -> Stage:
    lanes = [
        LaneView(
            lane, Canvas(4, decode, {END}), planned=plan(4, switch), backend="x", parallel=4, source=said("n")
        )
        for lane, switch in zip(PAIR, (None, 2), strict=True)
    ]
    return Stage(
        lanes,
        run_id=7,
        end_ids={END},
        gold=gold,
        others=others,
        judge=judge,
        read=lambda t: decode(t).split("<end>")[0],
    )


def step(lane: str, index: int, token: int, seconds: float, rows: int = 7) -> LaneStep:
    committed = np.arange(4)[None] == index
    made = SimpleNamespace(
        index=index,
        phase="dense" if lane == "dense" or index < 1 else "select" if index == 1 else "sparse",
        tokens=np.full((1, 4), token),
        committed=committed,
        confidence=np.where(committed, 0.5, np.nan),
        seconds=seconds,
        rows=rows,
        length=7,
    )
    return LaneStep(lane, made)


def whole(answers: dict[str, list[int]], seconds: dict[str, float], others: tuple[str, ...] = ()) -> dict:
    stage, steps = stage_of(others=others), []
    for index in range(4):
        for lane, answer in answers.items():
            steps.append(step(lane, index, answer[index], seconds[lane]))
    stage.apply(Update(tuple(steps[:3]), "running", ()))
    return stage.apply(Update(tuple(steps[3:]), "done", ("dense", "sparse")))


def test_a_finished_race() -> None:
    value = whole({"dense": [1, 2, 3, END], "sparse": [1, 2, 3, END]}, {"dense": 0.3, "sparse": 0.2})
    json.dumps(value, allow_nan=False)
    assert value["state"] == "done" and value["run"] == 7 and value["notes"] == ["n"]
    assert value["speedup"]["text"] == "1.50×" and value["speedup"]["words"] == "faster"
    assert value["agreement"]["text"] == "100\u00a0%" and value["agreement"]["compared"] == 4
    assert value["gold"] == "It is so"
    dense, sparse = value["lanes"]
    assert [(lane["right"], lane["verdict"]) for lane in (dense, sparse)] == [(True, "words")] * 2
    assert (dense["step"], dense["total"], dense["seconds"], dense["ms_per_step"]) == (4, 4, 1.2, 300.0)
    assert dense["tokens_per_second"] == 3.333
    assert sparse["phase"] == "sparse"
    assert [cell[1] for cell in sparse["cells"]] == [1, 2, 3, 4]


def test_the_gold_answer_and_the_verdicts_wait_for_the_end() -> None:
    stage = stage_of()
    value = stage.apply(Update((step("dense", 0, 1, 0.1),), "running", ()))
    assert value["gold"] is None and value["agreement"] is None and value["speedup"] is None
    assert all(lane["verdict"] is None for lane in value["lanes"])
    assert "It is so" not in json.dumps(value)
    stopped = stage.apply(Update((), "stopped", ()))
    assert stopped["state"] == "stopped" and stopped["gold"] is None


def test_a_wrong_answer_and_a_disagreement_are_said() -> None:
    value = whole({"dense": [1, 2, 3, END], "sparse": [1, 2, END, END]}, {"dense": 0.2, "sparse": 0.3})
    assert [lane["right"] for lane in value["lanes"]] == [True, False]
    assert value["agreement"]["text"] == "75.0\u00a0%" and value["agreement"]["same"] == 3
    assert value["speedup"] == {
        "ratio": 0.6667,
        "text": "1.50×",
        "words": "slower",
        "detail": "whole runs: 0.80 s with full attention, 1.20 s with SparseD",
    }


def test_a_factor_that_a_slow_step_made_is_unsteady_and_says_that_of_median_steps() -> None:
    """Dense 0.1 three times and 0.9: medians 4 × 0.1. SparseD: 0.2 dense, 0.2 select, 2 × 0.1 sparse, all medians."""
    stage, seconds = stage_of(), {"dense": (0.1, 0.1, 0.1, 0.9), "sparse": (0.2, 0.2, 0.1, 0.1)}
    steps = [step(lane, index, END, seconds[lane][index]) for index in range(4) for lane in seconds]
    running = stage.apply(Update(tuple(steps), "running", ()))
    assert running["speedup"]["detail"].startswith("first 4 steps: ") and "unsteady" not in running["speedup"]
    value = stage.apply(Update((), "done", ("dense", "sparse")))
    assert value["speedup"] == {
        "ratio": 2.0,
        "text": "2.00×",
        "words": "faster",
        "unsteady": True,
        "detail": "1.20 s against 0.60 s on an unsteady machine; 1.50× slower by median steps",
    }
    assert value["lanes"][1]["speedup"] == value["speedup"]


def test_steps_of_fewer_rows_take_less_on_a_steady_machine() -> None:
    """Each as long as its rows: five rows and twice one, whose median is one."""
    stage, rows = stage_of(), (7, 5, 1, 1)
    steps = [step("dense", index, END, 0.7) for index in range(4)]
    steps += [step("sparse", index, END, 0.1 * rows[index], rows[index]) for index in range(4)]
    value = stage.apply(Update(tuple(steps), "done", ("dense", "sparse")))
    assert value["speedup"]["ratio"] == 2.0 and "unsteady" not in value["speedup"]


def test_any_of_several_right_answers_is_right_and_the_nearest_one_is_shown() -> None:
    value = whole({"dense": [1, 2, END, END], "sparse": [1, 2, 3, END]}, {"dense": 0.2, "sparse": 0.3}, ("It is", "So"))
    assert [lane["right"] for lane in value["lanes"]] == [True, True] and value["gold"] == "It is"
    value = whole({"dense": [1, 3, END, END], "sparse": [1, 2, END, END]}, {"dense": 0.2, "sparse": 0.3}, ("It is",))
    assert [lane["right"] for lane in value["lanes"]] == [False, True] and value["gold"] == "It is so"


def test_nearly_the_same_is_never_called_100_percent() -> None:
    canvas = [Canvas(2000, decode, {END}), Canvas(2000, decode, {END})]
    lanes = [
        LaneView(lane, c, planned=plan(1, None), backend="", parallel=2000)
        for lane, c in zip(PAIR, canvas, strict=True)
    ]
    stage = Stage(lanes, end_ids={END})
    for index, lane in enumerate(lanes):
        tokens = np.ones((1, 2000), dtype=int)
        tokens[0, 0] += index
        made = SimpleNamespace(
            index=0,
            phase="dense",
            tokens=tokens,
            committed=tokens > 0,
            confidence=tokens * 0.5,
            seconds=1.0,
            rows=7,
            length=7,
        )
        stage.apply(Update((LaneStep(lane.key, made),), "running", (lane.key,)))
    found = stage.agreement(stage.headline)
    assert found is not None and found["text"] == "99.9\u00a0%"


def test_the_stream_holds_each_step_once_and_the_snapshots_are_complete() -> None:
    stage, seen = stage_of(), []
    for index in range(4):
        value = stage.apply(
            Update((step("dense", index, 1, 0.1), step("sparse", index, 1, 0.1)), "running", ())
        )
        seen += [(item["lane"], item["step"]) for item in value["steps"]]
        assert [lane["step"] for lane in value["lanes"]] == [index + 1] * 2
        assert value["sequence"] == index + 1
    assert sorted(seen) == [(lane, n) for lane in ("dense", "sparse") for n in (1, 2, 3, 4)]


def test_snapshots_do_not_share_what_changes() -> None:
    stage = stage_of()
    first = stage.apply(Update((step("dense", 0, 1, 0.1),), "running", ()))
    before = json.dumps(first)
    stage.apply(Update((step("dense", 1, 1, 0.1),), "running", ()))
    assert json.dumps(first) == before


@pytest.mark.parametrize(
    ("dense", "sparse", "finished", "text", "words"),
    [
        ([1.0, 1.0, 1.0], [1.0, 0.5], False, "1.33×", "faster so far"),  # over the two steps both have
        ([1.0], [1.08], False, "1.08×", "slower so far"),
        ([1.0], [1.001], False, "1.00×", "about the same speed so far"),
        # Under 5 % nothing is called faster or slower.
        ([1.04, 1.0], [1.0, 1.0], True, "1.02×", "about the same speed"),
        ([1.0], [0.96], True, "1.04×", "about the same speed"),
        ([1.0], [1.04], True, "0.96×", "about the same speed"),
        ([1.0], [1.06], True, "1.06×", "slower"),
        ([1.0, 1.0], [0.5], True, "4.00×", "faster"),  # at the end: whole runs
    ],
)
def test_speedup_words(dense, sparse, finished, text, words) -> None:
    found = speedup(dense, sparse, names=NAMES, finished=finished)
    assert found is not None and (found["text"], found["words"]) == (text, words)


def test_a_lane_s_time_per_step_is_the_median_and_one_whose_pattern_is_a_rule_selects_nothing() -> None:
    *_, window = lanes_for(SparseDConfig(), ["sliding_window"])
    view = LaneView(window, Canvas(4, decode, {END}), planned=plan(4, 2), backend="x", parallel=4, source=said())
    assert view.snapshot("running")["phases"] == [["dense", 1, 2], ["sparse", 3, 4]]
    for index, seconds in enumerate((0.1, 0.2, 0.3, 10.0)):
        view.apply(step("sparse", index, 1, seconds).step)
    shown = view.snapshot("running")
    assert (shown["ms_per_step"], shown["ms_spread"]) == (250.0, [175.0, 2725.0])
    assert view.phases == ["dense", "dense", "sparse", "sparse"]


def test_there_is_no_factor_before_the_lane_is_sparse() -> None:
    stage = stage_of()
    for index in range(4):
        stage.apply(Update((step("dense", index, 1, 0.1),), "running", ()))
        value = stage.apply(Update((step("sparse", index, 1, 0.05),), "running", ()))
        # Step 0 is dense, step 1 selects.
        assert (value["speedup"] is None) == (index < 2)


def test_no_speedup_before_both_lanes_have_a_step() -> None:
    assert speedup([1.0], [], names=NAMES, finished=False) is None


@pytest.mark.parametrize(
    ("total", "switch_step", "expected"),
    [
        (64, 14, [["dense", 1, 13], ["select", 14, 14], ["sparse", 15, 64]]),
        (64, None, [["dense", 1, 64]]),
        (4, 1, [["select", 1, 1], ["sparse", 2, 4]]),
    ],
)
def test_ranges_of_phases_count_from_one(total, switch_step, expected) -> None:
    phases = [one.phase for one in plan(total, switch_step)]
    assert ranges_of(phases) == expected
    assert ranges_of(phases, at_most=True) == [*expected[:-1], [*expected[-1][:2], None]]
    assert ranges_of([]) == ranges_of([], at_most=True) == []


@pytest.mark.parametrize(("at_most", "block_length"), [(False, 4), (False, 2), (True, 4)])
def test_a_lane_that_selects_again_shows_each_time_as_made_and_as_planned(at_most: bool, block_length: int) -> None:
    lane = lanes_for(SparseDConfig(skip=0.25, refresh=3))[1]
    planned = lane.phases(12, 4 // block_length)
    steps = lane.plan(12, 4 // block_length)
    view = LaneView(lane, Canvas(4, decode, {END}), planned=steps, backend="", parallel=block_length, at_most=at_most)
    # With a threshold a block is done before its time, and the pattern after it is made then.
    real = list(planned) if not at_most else ["dense"] * 3 + ["select", "select", "sparse", "select", "sparse"]
    for made in range(len(real) + 1):
        expected = [*real[:made], *planned[made:]]
        slow: list[list[object]] = []
        for number, phase in enumerate(expected, start=1):
            if number > 1 and phase == expected[number - 2]:
                slow[-1][2] = number
            else:
                slow.append([phase, number, number])
        slow[-1][2] = None if at_most else len(expected)
        assert view.ranges() == slow == view.snapshot("running")["phases"]
        assert view.switch_step == expected.index("sparse") and not view.never_sparse
        if made < len(real):
            token = SimpleNamespace(
                index=made, phase=real[made], tokens=np.ones((1, 4)), committed=np.zeros((1, 4), bool),
                confidence=np.full((1, 4), np.nan), seconds=0.1, rows=7, length=7,
            )  # fmt: skip
            view.apply(token)
    view.finish()
    # What was planned and not made is gone.
    assert [phase for phase, first, last in view.ranges() for _ in range(first, last + 1)] == real


def test_the_opening_is_all_masks() -> None:
    value = before_run(PAIR, 32, 16, total=64, message="Press Run.")
    assert value["state"] == "idle" and [len(lane["cells"]) for lane in value["lanes"]] == [32, 32]
    assert all(cell == ["", 0, None, 0] for lane in value["lanes"] for cell in lane["cells"])


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.5, "0.50 s"), (12.34, "12.3 s"), (59.96, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_clock(seconds: float, words: str) -> None:
    assert clock(seconds) == words


def test_a_third_lane_has_an_agreement_of_its_own_and_leaves_the_headline_alone() -> None:
    lanes = [
        LaneView(
            lane,
            Canvas(4, decode, {END}),
            planned=plan(4, switch),
            backend="x",
            parallel=4,
            source=said("n"),
        )
        for lane, switch in zip(lanes_for(SparseDConfig(), "sliding_window"), (None, 2, 2), strict=True)
    ]
    stage = Stage(
        lanes, run_id=7, end_ids={END}, gold="It is so", judge=judge, read=lambda t: decode(t).split("<end>")[0]
    )
    answers = {"dense": [1, 2, 3, END], "sparse": [1, 2, 3, END], "baseline": [1, 3, END, END]}
    seconds = {"dense": 0.3, "sparse": 0.2, "baseline": 0.1}
    steps = [step(lane, index, answer[index], seconds[lane]) for lane, answer in answers.items() for index in range(4)]
    two = stage.apply(Update(tuple(steps), "running", ("dense", "sparse")))
    # The third lane has not reached its end: the answer is not told yet.
    assert two["gold"] is None and two["agreement"] is None and two["lanes"][2]["same"] is None
    assert "so far" in two["speedup"]["words"] and two["lanes"][2]["verdict"] is None
    value = stage.apply(Update((), "done", ("dense", "sparse", "baseline")))
    alone = whole({lane: answers[lane] for lane in ("dense", "sparse")}, seconds)
    for name in ("speedup", "agreement", "gold"):
        assert value[name] == alone[name]
    assert value["lanes"][:2] == alone["lanes"]
    third = value["lanes"][2]
    assert (third["key"], third["label"]) == ("baseline", "Sliding window")
    assert (third["right"], third["seconds"]) == (False, 0.4)
    assert third["same"] == {
        "same": 2, "compared": 4, "text": "50.0\u00a0%", "words": "same text as full attention",
        "detail": "2 of 4 tokens are the same, the end token included",
    }  # fmt: skip


def test_before_a_run_a_third_lane_is_there_if_it_will_be() -> None:
    value = before_run(lanes_for(SparseDConfig(), ["random"]), 8, 8, total=4)
    assert [(lane["key"], lane["label"]) for lane in value["lanes"]] == [
        ("dense", "Full attention"), ("sparse", "SparseD"), ("baseline", "Random blocks"),
    ]  # fmt: skip
    assert value["lanes"][2]["phases"] == value["lanes"][1]["phases"] != value["lanes"][0]["phases"]
    assert before_run(PAIR, 8, 8, total=4)["lanes"] == value["lanes"][:2]


def test_a_lane_with_a_threshold_may_end_early_and_say_that_it_never_became_sparse() -> None:
    sources = said(), said()
    lanes = [
        LaneView(
            lane, Canvas(4, decode, {END}), planned=plan(4, switch), backend="", parallel=4, at_most=True,
            source=source,
        )
        for lane, switch, source in zip(PAIR, (None, 2), sources, strict=True)
    ]  # fmt: skip
    stage = Stage(lanes, end_ids={END})
    planned = stage.snapshot()["lanes"]
    assert [lane["phases"] for lane in planned] == [
        [["dense", 1, None]],
        [["dense", 1, 1], ["select", 2, 2], ["sparse", 3, None]],
    ]

    def burst(lane: str, index: int, phase: str) -> LaneStep:
        committed = np.array([[index == 0, index == 0, index == 1, index == 1]])
        made = SimpleNamespace(
            index=index, phase=phase, tokens=np.array([[1, 2, 3, END]]), committed=committed,
            confidence=np.where(committed, 0.5, np.nan), seconds=0.5, rows=7, length=7,
        )  # fmt: skip
        return LaneStep(lane, made)

    half = stage.apply(Update((burst("dense", 0, "dense"), burst("sparse", 0, "dense")), "running", ()))
    assert [(lane["step"], lane["progress"]) for lane in half["lanes"]] == [(1, 0.5)] * 2
    # A run on a borrowed device has another list after each step.
    sources[1].notes = ["This run never became sparse."]
    steps = (burst("dense", 1, "dense"), burst("sparse", 1, "select"))
    value = stage.apply(Update(steps, "done", ("dense", "sparse")))
    dense, sparse = value["lanes"]
    assert value["notes"] == ["SparseD: This run never became sparse."] and half["notes"] == []
    assert [lane["never_sparse"] for lane in half["lanes"]] == [False, False]
    assert (dense["never_sparse"], sparse["never_sparse"], value["speedup"]) == (False, True, None)
    assert (sparse["step"], sparse["total"], sparse["at_most"], sparse["progress"]) == (2, 4, True, 1.0)
    assert dense["phases"] == [["dense", 1, 2]] and sparse["phases"] == [["dense", 1, 1], ["select", 2, 2]]
    assert stage.lanes["sparse"].switch_step is None and dense["state"] == "done"


def test_whole_runs_of_different_length_say_how_long_they_were() -> None:
    found = speedup([1.0, 1.0], [0.5], names=NAMES, finished=True)
    assert found is not None
    assert found["detail"] == "whole runs: 2.00 s in 2 steps with full attention, 0.50 s in 1 step with SparseD"


def test_how_lanes_share_the_machine_is_said_in_a_sentence() -> None:
    said = {(lanes, devices): mode(lanes, devices) for lanes in (1, 2, 3) for devices in (1, 2, 3)}
    assert [said[1, devices] for devices in (1, 2, 3)] == [None] * 3
    assert said[2, 1] == said[3, 1] == {"name": "turns", "text": "The lanes take turns on one device."}
    both = {"name": "together", "text": "Each lane has a GPU of its own; both run at the same time."}
    assert said[2, 2] == said[2, 3] == both
    assert said[3, 2]["name"] == said[3, 3]["name"] == "together"
    assert "Full attention has a GPU of its own; the other lanes" in said[3, 2]["text"]
    assert "; all run at" in said[3, 3]["text"]
    assert mode(6, 3) == {
        "name": "together", "text": "The first 2 lanes have a GPU each; the others take turns on another.",
    }  # fmt: skip
    assert mode(2, 1, "Why.") == {"name": "turns", "text": "Why."}
    stage = Stage([], end_ids=(), mode=said[2, 2])
    assert stage.snapshot()["mode"] == both and before_run(PAIR, 8, 8, total=4)["mode"] is None


def test_each_note_is_said_once_by_name_where_not_every_lane_says_it() -> None:
    ours, theirs = ["Short.", "Slow.", "Slow."], ["Slow.", "Short."]
    notes = {"Full attention": ["Short."], "SparseD": ours, "Random blocks": theirs}
    assert of_lanes(notes) == ["Short.", "SparseD and Random blocks: Slow."]
    assert of_lanes({"SparseD": ["Slow."]}) == ["Slow."] and of_lanes({}) == []


def test_a_lane_says_beforehand_that_it_will_never_be_sparse() -> None:
    value = before_run(lanes_for(SparseDConfig(skip=1.0), ["random"]), 8, 8, total=4)
    assert [lane["never_sparse"] for lane in value["lanes"]] == [False, True, True]
    assert [lane["info"] for lane in value["lanes"]] == [None] * 3


def racing(total: int, at_most: bool) -> Stage:
    """Both lanes before their first step, with canvases of four cells."""
    lanes = [
        LaneView(
            lane, Canvas(4, decode, {END}), planned=plan(total, switch), backend="x", parallel=4, at_most=at_most,
            source=said(),
        )
        for lane, switch in zip(PAIR, (None, 1), strict=True)
    ]  # fmt: skip
    return Stage(lanes, end_ids={END}, gold="It is", judge=judge, read=lambda t: decode(t).split("<end>")[0])


def test_masks_that_are_left_after_all_steps_are_no_early_end() -> None:
    """A model may predict the mask token to the last step: that is a hole in the answer, and nothing was left out."""
    for at_most in (False, True):
        stage = racing(total=3, at_most=at_most)
        steps = [step(lane, index, token, 0.1) for lane in ("dense", "sparse") for index, token in enumerate([1, 2, 1])]
        stage.apply(Update(tuple(steps), "running", ()))
        value = stage.apply(Update((), "done", ("dense", "sparse")))
        assert [lane["ended_early"] for lane in value["lanes"]] == [False, False]
        assert value["agreement"] is None


def test_what_a_run_leaves_out_after_its_answer_stays_masked_and_is_no_difference() -> None:
    stage = racing(total=4, at_most=True)
    steps = [step(lane, index, token, 0.1) for lane in ("dense", "sparse") for index, token in enumerate([1, 2, END])]
    running = stage.apply(Update(tuple(steps), "running", ()))
    assert [lane["ended_early"] for lane in running["lanes"]] == [False, False]
    value = stage.apply(Update((), "done", ("dense", "sparse")))
    for lane in value["lanes"]:
        assert (lane["ended_early"], lane["progress"], lane["text"], lane["right"]) == (True, 1.0, "It is", True)
        assert [cell[1] for cell in lane["cells"]] == [1, 2, 3, 0]
    assert (value["agreement"]["same"], value["agreement"]["compared"]) == (3, 3)
    # The other lane goes on where this one has ended.
    longer = stage.lanes["sparse"].canvas
    longer.apply(step("sparse", 3, 1, 0.1).step)
    assert stage.agreement(stage.lanes["sparse"])["compared"] == 3  # type: ignore[index]
