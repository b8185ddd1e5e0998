"""refresh: when a run makes a fresh pattern, what it is made from, and what is said of such a run."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sparsed
from sparsed import AttentionConfig, SamplerConfig, SparseDConfig, runs, trace
from sparsed.__main__ import main
from sparsed.bench import measure as measure_module
from sparsed.config import phases_of, switch_step
from sparsed.runs import dense_again

SIZE = 32


def planned(steps: int, first: int, refresh: int, begins: set[int]) -> list[str]:
    """The phases, read off the text: counted from the last selection, and where a block begins."""
    said, since = [], 0
    for step in range(steps):
        if step < first:
            said.append("dense")
        elif step == first or (refresh and (since == refresh or step in begins)):
            said.append("select")
            since = 1
            continue
        else:
            said.append("sparse")
        since += 1
    return said


def beginnings(steps: int, blocks: int) -> set[int]:
    """The steps that begin a semi-autoregressive block: steps are dealt to the blocks in turns, one at a time."""
    hands = [0] * blocks
    for step in range(steps):
        hands[step % blocks] += 1
    return {sum(hands[:block]) for block in range(blocks)}


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 40), st.integers(0, 20), st.integers(0, 50), st.integers(1, 8), st.booleans())
def test_planned_phases(steps: int, twentieths: int, refresh: int, blocks: int, reference: bool) -> None:
    steps, skip = max(steps, blocks), twentieths / 20
    first = int(steps * skip) + 1 if reference else -(-steps * twentieths // 20)
    wanted = planned(steps, first, refresh, beginnings(steps, blocks))
    selection = "reference" if reference else "paper"
    assert list(phases_of(steps, skip, selection, refresh, blocks)) == wanted
    switch = wanted.index("sparse") if "sparse" in wanted else None
    assert switch_step(steps, skip, selection, refresh, blocks) == switch
    if blocks == 1:
        assert list(phases_of(steps, skip, selection, refresh)) == wanted


def prompt_of(batch: int = 1, length: int = 100, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (batch, length), generator=torch.Generator().manual_seed(seed))


def assert_said(run: Any, phases: list[str]) -> None:
    """What a run that is over says of itself is what it did."""
    result, info = run.result(), run.info
    assert [step.phase for step in run.steps] == phases
    assert info.phases == {phase: phases.count(phase) for phase in ("dense", "select", "sparse")}
    switch = phases.index("sparse") if "sparse" in phases else None
    assert info.switch_step == run.switch_step == result.switch_step == switch
    assert info.never_sparse == (switch is None) and info.forwards == len(phases)
    assert (run.pattern is None) == ("select" not in phases)
    said = [note for note in run.notes if "never bec" in note]
    assert len(said) == (switch is None), run.notes
    assert not dense_again(info.record()) and not runs.never_sparse(info.record()) == (switch is not None)


@pytest.mark.parametrize(("steps", "block_length"), [(12, 12), (12, 4), (11, 4), (14, 3), (4, 3), (1, 12)])
@pytest.mark.parametrize("skip", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("refresh", [0, 2, 3, 5, 50])
def test_phases_of_runs(tiny, steps: int, block_length: int, skip: float, refresh: int) -> None:
    sampler = SamplerConfig(steps=steps, gen_length=12, block_length=block_length)
    attention = SparseDConfig(skip, 0.4, SIZE, refresh=refresh)
    wanted = planned(steps, math.ceil(steps * skip), refresh, beginnings(steps, 12 // block_length))
    run = sparsed.denoise(tiny, prompt_of(length=40), sampler=sampler, attention=attention)
    assert run.switch_step == (wanted.index("sparse") if "sparse" in wanted else None)
    if "sparse" not in wanted:
        assert any("never becomes sparse" in note for note in run.notes)
        # The advice is one that helps.
        blamed = "each of its" in " ".join(run.notes)
        assert blamed == (bool(refresh) and steps > math.ceil(steps * skip))
    seen = None
    for step in run:
        assert (run.pattern is not seen) == (step.phase == "select")
        seen = run.pattern
    assert_said(run, wanted)


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize(
    ("batch", "block_length", "threshold"), [(1, 8, 0.15), (3, 8, 0.15), (2, 4, 0.3), (2, 24, 0.1)]
)
@pytest.mark.parametrize(("skip", "refresh"), [(0.0, 50), (0.1, 3), (0.0, 2)])
def test_phases_where_blocks_are_done_early(
    model_of, family: str, batch: int, block_length: int, threshold: float, skip: float, refresh: int
) -> None:
    """With a threshold every row has a semi-autoregressive block of its own: wherever one begins, in any row."""
    model = model_of(family, mask_predicted=False)
    algorithm = "low_confidence" if family == "llada" else "maskgit_plus"
    sampler = SamplerConfig(None, 24, block_length, algorithm, 0.0, 0, threshold=threshold)
    attention = SparseDConfig(skip, 0.4, SIZE, refresh=refresh)
    run = sparsed.denoise(model, prompt_of(batch, seed=5), sampler=sampler, attention=attention)
    first, wanted, selected, at = math.ceil(24 * skip), [], None, [0] * batch
    tokens = [[model.mask_id] * 24 for _ in range(batch)]
    for index, step in enumerate(run):
        now = []
        for row in tokens:
            masked = [place for place, token in enumerate(row) if token == model.mask_id]
            now.append(masked[0] // block_length if masked else None)
        if index < first:
            wanted.append("dense")
        else:
            moved = any(block is not None and block != before for block, before in zip(now, at))
            due = selected is None or moved or index - selected >= refresh
            wanted.append("select" if due else "sparse")
            if due:
                selected, at = index, now
        assert step.phase == wanted[-1], (index, wanted)
        if "sparse" in wanted:
            assert run.switch_step == wanted.index("sparse")
        elif not run.finished:
            assert run.switch_step > index, "still to come"
        tokens = step.tokens.tolist()
    assert len(wanted) < 24, "nothing was done early"
    assert_said(run, wanted)


def test_a_run_whose_every_step_begins_a_block_is_not_told_to_skip_less(model_of) -> None:
    """A threshold that everything is above commits whole blocks: each step begins another one."""
    model = model_of("llada", mask_predicted=False)
    sampler = SamplerConfig(None, 12, 4, "low_confidence", 0.0, 0, threshold=1e-6)
    run = sparsed.denoise(model, prompt_of(), sampler=sampler, attention=SparseDConfig(0.0, 0.4, SIZE, refresh=8))
    assert_said(run, ["select"] * 3)
    (said,) = [note for note in run.notes if "never became sparse" in note]
    assert "3 of at most 12 steps" in said and "Leave refresh out" in said and "Lower skip" not in said
    # Where it is the skipped steps, that is what is said.
    run = sparsed.denoise(model, prompt_of(), sampler=sampler, attention=SparseDConfig(0.5, 0.4, SIZE, refresh=8))
    assert_said(run, ["dense"] * 3)
    (said,) = [note for note in run.notes if "never became sparse" in note]
    assert "Lower skip" in said and "refresh" not in said


def test_an_early_end_with_refresh_is_said_as_it_was(tiny) -> None:
    """The end token is all that is predicted from the tenth forward on, in the second semi-autoregressive block."""
    forwards = 0

    def ending(_module: Any, _arguments: Any, logits: Tensor) -> Tensor:
        nonlocal forwards
        forwards, logits = forwards + 1, logits.clone()
        logits[..., tiny.mask_id] = -1e4
        logits[..., list(tiny.end_ids)] = 1e4 if forwards >= 10 else -1e4
        return logits

    sampler = SamplerConfig(steps=32, gen_length=32, block_length=8, early_stop=True)
    hook = tiny.network.lm_head.register_forward_hook(ending)
    run = sparsed.denoise(tiny, prompt_of(), sampler=sampler, attention=SparseDConfig(0.1, 0.5, SIZE, refresh=3))
    made = len(list(run))
    hook.remove()
    assert 10 <= made < 17 and any("Every answer was complete" in note for note in run.notes)
    assert_said(run, planned(32, 4, 3, {0, 8, 16, 24})[:made])


def same(one: Any, two: Any) -> bool:
    return all(
        torch.equal(a.indices, b.indices) and torch.equal(a.counts, b.counts) and a.full_blocks == b.full_blocks
        for a, b in zip(one.layers, two.layers, strict=True)
    )


@pytest.mark.parametrize("rows", ["pattern", "full"])
@pytest.mark.parametrize(("method", "guidance"), [("sparsed", 0.0), ("sparsed", 0.7), ("shared", 0.0), ("random", 0.0)])
def test_a_fresh_pattern_is_what_a_probe_finds_before_it(tiny, rows: str, method: str, guidance: float) -> None:
    sampler = SamplerConfig(steps=12, gen_length=24, block_length=12, cfg_scale=guidance)
    attention = AttentionConfig(method, 0.1, 0.3, SIZE, refresh=3, generation_rows=rows)
    run = sparsed.denoise(
        tiny, prompt_of(2, 130), sampler=sampler, attention=attention, probe_steps=range(12)
    )
    made, used = {}, {}
    for step in run:
        if step.phase == "select":
            made[step.index] = run.pattern
        used[step.index] = run.pattern
    assert sorted(made) == [2, 5, 6, 9] and sorted(run.probes) == list(range(12)) == sorted(run.probed)
    for index, pattern in made.items():
        assert same(pattern, run.probes[index - 1])
    distinct = sum(not same(one, two) for one, two in zip(list(made.values()), list(made.values())[1:]))
    assert distinct == (0 if method == "random" else 3)
    # A probe is compared with the pattern in use then, or the first to come.
    for index in range(12):
        assert run.probed[index] is (used[index] if index >= 2 else made[2])
    (lane,) = trace.record(run).lanes.values()
    for probe in lane.probes:
        wanted = run.probes[probe.step].overlap(used[probe.step] if probe.step >= 2 else made[2])
        torch.testing.assert_close(torch.tensor(probe.overlap), wanted, rtol=0, atol=5.1e-5)


def test_the_newest_importances_are_kept(checkpoints, folder_of, model_of) -> None:
    """float16 block means of the weights that the last selecting step's own canvas gives."""
    values = {"n_kv_heads": 2, "mask_predicted": False}
    model, network = model_of("llada", **values), checkpoints.PlainNetwork(folder_of("llada", **values), torch.float64)
    attention = SparseDConfig(0.2, 0.3, SIZE, keep_importance=True, refresh=2)
    ids = prompt_of(length=110)
    run = sparsed.denoise(model, ids, sampler=SamplerConfig(steps=8, gen_length=20), attention=attention)
    canvas = torch.cat([ids[0], torch.full((20,), model.mask_id)])
    cuts = [range(start, min(start + SIZE, 130)) for start in range(0, 130, SIZE)]
    checked = 0
    for step in run:
        if step.phase == "select":
            checked += 1
            for kept, (q, k) in zip(run.pattern.importance, network.run(canvas)[1], strict=True):
                weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
                for i, rows in enumerate(cuts):
                    for j, columns in enumerate(cuts):
                        mean = weights[:, list(rows)][:, :, list(columns)].mean((1, 2))
                        torch.testing.assert_close(kept[0, :, i, j].double(), mean, rtol=2e-3, atol=1e-6)
        canvas = torch.cat([ids[0], step.tokens[0]])
    assert checked == 3


@pytest.mark.parametrize("on_no_gain", ["sparse", "dense"])
def test_a_run_that_goes_back_to_dense_makes_no_fresh_pattern(tiny, monkeypatch, on_no_gain: str) -> None:
    """The clock is scripted: every step takes a second, so that sparse ones are no faster."""
    now, begun = 0.0, False

    def clock() -> float:
        nonlocal now, begun
        begun, now = not begun, now + (1.0 if begun else 0.0)
        return now

    monkeypatch.setattr("sparsed.denoising.run.perf_counter", clock)
    attention = SparseDConfig(0.2, 0.4, SIZE, refresh=2, on_no_gain=on_no_gain)
    sampler = SamplerConfig(steps=12, gen_length=12, block_length=6)
    run = sparsed.denoise(tiny, prompt_of(), sampler=sampler, attention=attention)
    phases = [step.phase for step in run]
    wanted = planned(12, 3, 2, {0, 6})
    third = [index for index, phase in enumerate(wanted) if phase == "sparse"][2]
    if on_no_gain == "dense":
        wanted[third + 1 :] = ["dense"] * (11 - third)
    assert phases == wanted and any("no faster here" in note for note in run.notes)
    assert run.info.phases == {phase: Counter(wanted)[phase] for phase in ("dense", "select", "sparse")}
    assert run.info.switch_step == wanted.index("sparse") == run.switch_step
    assert dense_again(run.info.record()) == (on_no_gain == "dense")


REFUSED = [
    ({"refresh": 1}, "With refresh = 1 every step would have full attention: give 2 or more, or 0 (off)."),
    ({"refresh": -2}, "refresh must be at least 0, not -2."),
    ({"refresh": 4, "reuse": False}, "Without reuse every sparse step makes its own pattern: leave refresh out."),
]


@pytest.mark.parametrize(("values", "said"), REFUSED)
@pytest.mark.parametrize("command", ["generate", "eval", "bench"])
def test_every_command_refuses_in_one_sentence(
    tiny_folder: Path, tmp_path: Path, capsys, command: str, values: dict[str, Any], said: str
) -> None:
    own = {"generate": ["--prompt", "hello"], "eval": ["--out", str(tmp_path / "out")], "bench": []}[command]
    given = [word for name, value in values.items() for word in (f"--{name}", "no" if value is False else str(value))]
    try:
        code = main([command, "--model", str(tiny_folder), "--device", "cpu", *own, *given])
    except SystemExit as stop:
        code = int(stop.code)
    out, err = capsys.readouterr()
    assert code == 2 and (out == "" or command == "bench")  # which says first where it measures
    last = err.strip().splitlines()[-1]
    assert last.startswith(("error: ", f"sparsed {command}: error: ")) and last.endswith(said)


@pytest.mark.parametrize(("values", "said"), [*REFUSED, ({"generation_rows": "all"}, "'pattern', 'full', not 'all'")])
def test_python_and_the_harness_refuse_in_one_sentence(tiny_folder: Path, values: dict[str, Any], said: str) -> None:
    pytest.importorskip("lm_eval")
    from sparsed.harness.model import SparsedLM

    for refused in (lambda: AttentionConfig(**values), lambda: SparsedLM(pretrained=str(tiny_folder), **values)):
        with pytest.raises(ValueError) as error:
            refused()
        assert said in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_number_or_has_no_sparse_step_is_refused() -> None:
    for value in (True, 2.5, "4"):
        with pytest.raises(ValueError, match="refresh must be a whole number"):
            SparseDConfig(refresh=value)
    for name, value in (("refresh", 4), ("generation_rows", "full")):
        with pytest.raises(ValueError, match=f"{name} belongs to sparse attention: leave it out with attention=dense"):
            AttentionConfig("dense", **{name: value})
    # Off is off, with everything.
    assert SparseDConfig(refresh=0, reuse=False).resolve(100) == SparseDConfig(reuse=False).resolve(100)
    assert SparseDConfig().resolve(100).refresh == 0 and SparseDConfig().resolve(100).generation_rows == "pattern"


def test_a_refreshed_run_is_recorded_and_opened(tiny, tmp_path: Path) -> None:
    attention = SparseDConfig(0.1, 0.3, SIZE, refresh=3, generation_rows="full", keep_importance=True)
    sampler = SamplerConfig(steps=12, gen_length=24, block_length=12)
    runs_made = {
        "ours": sparsed.denoise(tiny, prompt_of(), sampler=sampler, attention=attention, probe_steps=(4, 7)),
        "paper": sparsed.denoise(tiny, prompt_of(), sampler=sampler, attention=SparseDConfig(0.1, 0.3, SIZE)),
    }
    for run in runs_made.values():
        run.result()
    made = trace.record(runs_made, importance=True)
    trace.save(made, tmp_path / "race.json")
    loaded = trace.load(tmp_path / "race.json")
    assert loaded == made
    lane, run = loaded.lanes["ours"], runs_made["ours"]
    assert [step.phase for step in lane.steps] == [step.phase for step in run.steps]
    assert same(lane.pattern.to_pattern(), run.pattern) and lane.attention == run.attention
    # The importances are those of the last selection, which the other run's pattern was not made from.
    assert lane.pattern.kept_mass and not loaded.lanes["paper"].pattern.kept_mass
    raw = json.loads((tmp_path / "race.json").read_text())
    assert raw["lanes"]["ours"]["attention"]["refresh"] == 3
    assert raw["lanes"]["ours"]["pattern"]["full_blocks"] == 1 and raw["lanes"]["paper"]["pattern"]["full_blocks"] == 0


def test_composed_runs_count_every_selection(tiny) -> None:
    attention = SparseDConfig(0.25, 0.3, SIZE, refresh=3)
    sampler = SamplerConfig(steps=8, gen_length=8, block_length=4)
    made, _ = measure_module.measure(tiny, prompt_of()[0], "100", sampler, attention, compose=(16, 24, 40))
    assert [one.steps for one in made.composed] == [16, 24, 40]
    for one in made.composed:
        counts = Counter(planned(one.steps, math.ceil(one.steps / 4), 3, {0, one.steps // 2}))
        dense, select, sparse = made.dense_step.median, made.select_step.median, made.sparse_step.median
        whole = one.steps * dense
        ours = counts["dense"] * dense + counts["select"] * select + counts["sparse"] * sparse
        limit = (counts["dense"] + counts["select"]) * dense + counts["sparse"] * made.limit_step
        assert one.speedup == pytest.approx(whole / ours, abs=2e-3)
        assert one.limit == pytest.approx(whole / limit, abs=2e-3)
    counts = Counter(planned(8, 2, 3, {0, 4}))
    assert (made.select_step.count, made.sparse_step.count) == (counts["select"], counts["sparse"]) == (3, 3)


def test_a_setting_that_is_off_changes_nothing(tiny) -> None:
    sampler = SamplerConfig(steps=8, gen_length=24)
    attention = SparseDConfig(0.2, 0.3, SIZE)
    plain = sparsed.generate(tiny, prompt_of(), sampler=sampler, attention=attention)
    off = sparsed.generate(
        tiny, prompt_of(), sampler=sampler, attention=replace(attention, refresh=0, generation_rows="pattern")
    )
    assert torch.equal(plain.tokens, off.tokens) and same(plain.pattern, off.pattern)
