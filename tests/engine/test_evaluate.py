"""Evaluations of the bundled model on prompts of 200 tokens: answers, resuming, sharing the work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsed
from sparsed import AttentionConfig, SamplerConfig, SparseDConfig
from sparsed.cache.store import RowStore
from sparsed.evaluation.answers import evaluate, token_agreement
from sparsed.evaluation.command import main
from sparsed.evaluation.observe import observe
from sparsed.evaluation.plan import DEPTHS, FIRST_SEED, Cell, Plan, default_cells
from sparsed.evaluation.reading import read_observations, read_records
from sparsed.models.model import Model
from sparsed.questions.build import build_prompt
from sparsed.questions.score import exact_match, facts_right
from sparsed.results_folder import read_lines

ROOT = Path(__file__).resolve().parents[2]
PLAN = Plan(sampler=SamplerConfig(steps=8))
METHODS = ["dense", "sparsed", "streaming_llm", "sparsed:skip=0"]


@pytest.fixture(scope="module")
def mini() -> Model:
    return sparsed.load("mini", dtype="float32")


def test_records_are_what_generate_gives_one_by_one(mini: Model, tmp_path: Path) -> None:
    evaluate(mini, [Cell("lookup", "200", 3), Cell("arithmetic", "200", 1)], METHODS, tmp_path, plan=PLAN)
    records = {(r.type, r.index, r.method): r for r in read_records(tmp_path)}
    assert len(records) == 4 * len(METHODS)
    configs = {
        "dense": "dense", "sparsed": SparseDConfig(), "streaming_llm": AttentionConfig("streaming_llm"),
        "sparsed:skip=0": SparseDConfig(skip=0),
    }  # fmt: skip
    wholes: dict[str, list[int]] = {}  # prompt → what full attention writes
    for (asked, index, method), record in records.items():
        kind = "arithmetic" if asked == "arithmetic" else ("fact", "inverse")[index % 2]
        depth = (0.0, 0.0, 0.25)[index]
        prompt = build_prompt(mini, "200", kind, FIRST_SEED + index, depth)
        result = sparsed.generate(mini, prompt.text, sampler=SamplerConfig(steps=8), attention=configs[method])
        answer = result.tokens[0, -mini.defaults.gen_length :].tolist()
        end = answer.index(mini.eos_id) + 1 if mini.eos_id in answer else len(answer)
        assert record.tokens == answer[:end] and record.kind == kind
        assert record.depth == (None if kind == "arithmetic" else depth)
        assert record.exact == exact_match(result.text[0], prompt.answer)
        assert (record.text, record.gold) == ((None, None) if record.exact else (result.text[0], prompt.answer))
        if method == "dense":
            assert record.agreement is None
        else:
            if prompt.text not in wholes:
                dense = sparsed.generate(mini, prompt.text, sampler=SamplerConfig(steps=8), attention="dense")
                wholes[prompt.text] = dense.tokens[0, -len(answer) :].tolist()
            assert record.agreement == token_agreement(answer, wholes[prompt.text], mini.end_ids)


def test_a_record_of_an_open_question_can_be_scored_again(
    mini: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is said: the second of the right answers, a mix of two of them, something else."""
    cells = [Cell("open", "512", 3)]
    prompts = [build_prompt(mini, "512", "open", FIRST_SEED + index, DEPTHS[index]) for index in range(3)]
    mixed = prompts[1].answers[0].rpartition(". ")[0] + ". " + prompts[1].answers[1].split(". ")[-1]
    said = [prompts[0].answers[1], mixed, "Nobody."]
    real = sparsed.denoising.generate
    asked = iter(said)

    def saying(*given: Any, **more: Any) -> Any:
        return replace(real(*given, **more), text=[next(asked)])

    monkeypatch.setattr("sparsed.denoising.generate", saying)
    evaluate(mini, cells, ["dense"], tmp_path, plan=replace(PLAN, sampler=SamplerConfig(steps=3)))
    records = read_records(tmp_path)
    assert [record.exact for record in records] == [True, False, False]
    assert (records[0].text, records[0].gold, records[0].others) == (None, None, None)
    assert records[0].right == records[0].facts == said[0].count(". ") + 1 and records[0].invented == 0
    for record, prompt, text in zip(records[1:], prompts[1:], said[1:], strict=True):
        assert record.text == text and record.gold is not None and record.others is not None
        assert sorted([record.gold, *record.others]) == sorted(prompt.answers)
        again = facts_right(record.text, record.gold, *record.others)
        assert (record.right, record.facts, record.invented) == again == facts_right(text, *prompt.answers)
    assert (records[1].gold, records[1].invented) == (prompts[1].answers[0], 1)
    assert (records[2].right, records[2].invented) == (0, 1)


def test_what_is_known_is_not_asked_again_and_methods_can_come_later(
    mini: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = default_cells(["200"], ["two_hop"], 3)
    evaluate(mini, cells, ["dense"], tmp_path, plan=PLAN)
    before = (tmp_path / "records-0-of-1.jsonl").read_text("utf-8")
    ran = []
    real = sparsed.denoising.generate

    def counting(model, ids, **more):
        ran.append((len(ids), more["attention"]))
        return real(model, ids, **more)

    monkeypatch.setattr(sparsed.denoising, "generate", counting)
    evaluate(mini, cells, ["dense"], tmp_path, plan=PLAN)
    assert not ran and (tmp_path / "records-0-of-1.jsonl").read_text("utf-8") == before
    # Another process's share, another method, all of it as one batch: only what is missing is run.
    evaluate(mini, cells, ["dense", "sparsed"], tmp_path, plan=PLAN, shard=(0, 2), batch_tokens=600)
    assert [rows for rows, _ in ran] == [2] and ran[0][1] != "dense"
    evaluate(mini, cells, ["dense", "sparsed"], tmp_path, plan=PLAN, batch_tokens=600)
    assert [rows for rows, _ in ran] == [2, 1]
    records = read_records(tmp_path)
    assert len(records) == 6
    assert all(r.agreement is not None for r in records if r.method == "sparsed")


def test_a_question_that_memory_cannot_hold_is_named_and_what_was_answered_is_kept(
    mini: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(self: RowStore, *_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(RowStore, "put", small)
    said = r"^200 lookup, question 0, dense\+dual: There is too little memory for one sequence of \d+ tokens, its"
    with pytest.raises(MemoryError, match=said):
        evaluate(mini, [Cell("lookup", "200", 2)], ["dense+dual", "dense"], tmp_path, plan=PLAN)
    assert [(one.method, one.index) for one in read_records(tmp_path)] == [("dense", 0)]


def test_observations_are_the_overlaps_of_the_masks(mini: Model, tmp_path: Path) -> None:
    plan = Plan(sampler=SamplerConfig(steps=12), attention=SparseDConfig(select=0.3), depths=None)
    observe(mini, [Cell("lookup", "200", 1)], tmp_path, plan=plan)
    (seen,) = read_observations(tmp_path)
    assert [step for step, _ in seen.later] == [5, 7, 9, 11]  # a quarter, half … of the way from 4 to 11
    prompt = build_prompt(mini, "200", "fact", FIRST_SEED)
    run = sparsed.denoise(
        mini, prompt.text, sampler=plan.sampler, attention=plan.attention, probe_steps=[5, 7, 9, 11]
    )
    pattern = run.result().pattern
    assert pattern is not None
    pairs = []
    for layer in range(len(pattern.layers)):
        masks = [pattern.mask(layer, head) for head in range(4)]
        for one in range(4):
            for two in range(4):
                if one != two:
                    both, either = masks[one] & masks[two], masks[one] | masks[two]
                    pairs.append(int(both.sum()) / int(either.sum()))
    assert seen.heads == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    for step, overlap in seen.later:
        fresh = run.probes[int(step)]
        shares = [
            int((pattern.mask(i, h) & fresh.mask(i, h)).sum()) / int((pattern.mask(i, h) | fresh.mask(i, h)).sum())
            for i in range(len(pattern.layers))
            for h in range(4)
        ]
        assert overlap == pytest.approx(sum(shares) / len(shares), abs=1e-6)


OPTIONS = "--lengths 200 --types lookup two_hop --questions 6 --steps 8 --dtype float32 --methods dense sparsed".split()


def launch(folder: Path, *options: str) -> subprocess.Popen[str]:
    """accelerate launch with two processes; both are on the CPU."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["-m", "sparsed", "eval", *OPTIONS, "--device", "cpu", "--out", str(folder), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_go_on_where_two_were_stopped_and_give_what_one_gives(tmp_path: Path) -> None:
    """tests/evidence kills two that are at work; here their files are made of those of one."""
    alone(tmp_path)
    lines = (tmp_path / "one" / "records-0-of-1.jsonl").read_bytes().splitlines(keepends=True)
    two = tmp_path / "two"
    two.mkdir()
    shutil.copy(tmp_path / "one" / "plan.json", two)
    (two / "records-0-of-2.jsonl").write_bytes(b"".join(lines[:4]))
    # Its last answer did not get into the file as a whole.
    (two / "records-1-of-2.jsonl").write_bytes(b"".join(lines[4:9])[:-20])
    goes_on(tmp_path)


def alone(folder: Path) -> None:
    """What one process gives, in the folder `one` and the file one.json."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        main([*OPTIONS, "--device", "cpu", "--out", str(folder / "one"), "--json", str(folder / "one.json")])
    finally:
        torch.set_num_threads(threads)


def goes_on(folder: Path) -> None:
    """Two processes go on with what lies in the folder `two`, and give what lies in `one`."""
    two = folder / "two"
    before = {path.name: path.read_bytes() for path in two.iterdir()}
    there = len(read_records(two))
    assert there < 24

    running = launch(two, "--json", str(folder / "two.json"))
    stdout, stderr = running.communicate(timeout=300)
    assert running.returncode == 0, stderr
    assert stdout.count("| length | questions |") == 1
    assert {path.name for path in two.iterdir()} == {"plan.json", "records-0-of-2.jsonl", "records-1-of-2.jsonl"}
    after = {path.name: path.read_bytes() for path in two.iterdir()}
    assert all(after[name].startswith(text) for name, text in before.items())
    # What was there was not asked again, nothing was asked twice, and both had as much to do.
    asked = [(entry["type"], entry["index"], entry["method"]) for entry in read_lines(two, "records")]
    assert len(asked) == len(set(asked)) == 24
    new = [after[name].count(b"\n") - before.get(name, b"").count(b"\n") for name in sorted(after) if "rec" in name]
    new[1] -= 1  # the end of the line that was cut off
    assert sum(new) == 24 - there and abs(new[0] - new[1]) <= 2

    # Whether sparse steps are faster, a run notes by the clock.
    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            clock = ("seconds", "measured_speed", "notes")
            return {key: timeless(inner) for key, inner in value.items() if key not in clock}
        return [timeless(inner) for inner in value] if isinstance(value, list) else value

    def known(name: str) -> Any:
        return timeless([asdict(record) for record in read_records(folder / name)])

    def scores(name: str) -> Any:
        return timeless(json.loads((folder / f"{name}.json").read_text("utf-8")))

    assert known("two") == known("one")
    assert scores("two") == scores("one") and scores("one")["cells"][0]["questions"] == 6
