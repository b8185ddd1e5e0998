"""What a folder of answers depends on is kept in it, and anything else is refused by name or kept apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsed
from sparsed import AttentionConfig, SamplerConfig, SparseDConfig
from sparsed.answer_text import answer_length
from sparsed.bench.measure import measure
from sparsed.evaluation import command
from sparsed.evaluation.answers import evaluate, goes_alone
from sparsed.evaluation.key import key_of
from sparsed.evaluation.methods import parse_method
from sparsed.evaluation.observe import observe
from sparsed.evaluation.plan import FIRST_SEED, Cell, Plan
from sparsed.evaluation.reading import read_observations, read_records
from sparsed.evaluation.scores import summarise
from sparsed.models.model import Model
from sparsed.questions import build, pieces
from sparsed.results_folder import Folder, key_there
from sparsed.runs import RunRecord

PLAN = Plan(sampler=SamplerConfig(steps=6))
CELLS = [Cell("lookup", "200", 2)]
# Another value of every option of the command that all answers of a folder have alike.
KEY = {
    "steps": "5", "gen_length": "64", "block_length": "16", "algorithm": "random", "temperature": "0.5", "seed": "1",
    "top_p": "0.5", "top_k": "5", "alg_temp": "0.5", "eps": "0.01", "cfg_scale": "1", "threshold": "0.9",
    "logits_eos_inf": "yes", "confidence_eos_eot_inf": "yes", "early_stop": "yes", "stop": "Question:",
    "canvas": "growing", "end_think_boost": "9", "end_think_power": "2",
    "skip": "0.3", "select": "0.4", "block_size": "64", "selection": "reference", "keep_importance": "yes",
    "on_no_gain": "dense", "isolated": "no", "reuse": "no", "generation_rows": "full", "refresh": "8",
    "depths": "0.5", "backend": "gather", "dtype": "bfloat16", "rope_factor": "4",
    "quantize": "int8",
}  # fmt: skip
# Of these each answer says what it was; the model itself counts by its weights.
APART = {"model", "types", "lengths", "questions", "methods", "ablations", "observe"}
# Who asks, what is reported: no answer depends on it. (A device of another kind is refused, see below; questions that
# run together give what each gives alone, see test_a_batch_shows_in_no_answer.)
WITHOUT = {"help", "out", "shard", "report", "json", "recommend", "device", "batch_tokens"}


@pytest.fixture(scope="module")
def mini() -> Model:
    return sparsed.load("mini", device="cpu", dtype="float32")


def test_every_option_is_part_of_the_key_or_kept_apart_or_without_influence() -> None:
    options = {action.dest for action in command._parser()._actions}
    assert options == KEY.keys() | APART | WITHOUT and not KEY.keys() & (APART | WITHOUT) and not APART & WITHOUT


@pytest.mark.parametrize("name", KEY)
def test_another_value_of_any_option_is_refused_by_name_with_both_values(
    mini: Model, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Folder(tmp_path, key_of(mini, PLAN))
    loaded = []
    monkeypatch.setattr("sparsed.models.loading.load", lambda *_, **__: loaded.append(mini) or mini)
    options = ["--steps", "6", "--dtype", "float32", "--device", "cpu", "--out", str(tmp_path), "--questions", "1"]
    with pytest.raises(ValueError, match=rf"belongs to another plan \(.*\b{name} is .* there, .* here.*\); choose"):
        command.main([*options, f"--{name.replace('_', '-')}", KEY[name]])
    # Only what a length asked for becomes is not known without the model.
    assert bool(loaded) == (name == "gen_length")
    assert not list(tmp_path.glob("records*"))


def leaves(key: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    return [leaf for name in key for leaf in leaves(key[name], (*path, name))] if isinstance(key, dict) else [path]


def test_another_value_anywhere_in_the_key_is_refused_by_name(mini: Model, tmp_path: Path) -> None:
    """Whatever the key holds, now or later: weights, dtype, device, versions, prompts …"""
    Folder(tmp_path, key_of(mini, PLAN))
    said = (tmp_path / "plan.json").read_text("utf-8")
    walked = leaves(json.loads(said)["key"])
    must = {("weights",), ("dtype",), ("device",), ("prompts",), ("versions", "torch"), ("versions", "transformers"),
            ("versions", "sparsed"), ("sampler", "steps"), ("attention", "skip"), ("backend",), ("depths",),
            ("processes of one model",)}  # fmt: skip
    assert must <= set(walked)
    for path in walked:
        plan = json.loads(said)
        inner = plan["key"]
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = "another"
        (tmp_path / "plan.json").write_text(json.dumps(plan), "utf-8")
        for asked in (evaluate, observe):
            with pytest.raises(ValueError, match=rf'\({".".join(path)} is "another" there, .* here\); choose another'):
                more: Any = {"methods": ["dense"]} if asked is evaluate else {}
                asked(mini, CELLS, out=tmp_path, plan=PLAN, **more)


def test_another_dtype_and_other_weights_are_refused(mini: Model, tiny: Model, tmp_path: Path) -> None:
    evaluate(mini, CELLS, ["dense"], tmp_path, plan=PLAN)
    with pytest.raises(ValueError, match='dtype is "float32" there, "bfloat16" here'):
        evaluate(sparsed.load("mini", device="cpu", dtype="bfloat16"), CELLS, ["sparsed"], tmp_path, plan=PLAN)
    sampler = PLAN.sampler.resolve(mini.defaults)
    other = replace(tiny, defaults=sampler)
    with pytest.raises(ValueError, match="weights is"):
        evaluate(other, CELLS, ["sparsed"], tmp_path, plan=PLAN)


def test_the_same_asked_in_other_words_goes_on(mini: Model, tmp_path: Path) -> None:
    """A default that is written out, or the model by its folder."""
    evaluate(mini, CELLS, ["dense"], tmp_path, plan=PLAN)
    said = SamplerConfig(steps=6, gen_length=mini.defaults.gen_length, temperature=0, threshold=None)
    again = sparsed.load(Path(sparsed.__file__).parents[1] / "assets" / "mini", device="cpu", dtype="float32")
    evaluate(again, CELLS, ["dense", "sparsed"], tmp_path, plan=replace(PLAN, sampler=said))
    assert [r.method for r in read_records(tmp_path)] == ["dense", "sparsed"] * 2


def test_dense_may_answer_last(mini: Model, tmp_path: Path) -> None:
    plan = replace(PLAN, attention=SparseDConfig(skip=0.0, select=0.1))
    cells = [Cell("several", "200", 4)]
    rows = []
    for name, order in (("first", ["dense", "sparsed"]), ("last", ["sparsed", "dense"])):
        for method in order:
            evaluate(mini, cells, [method], tmp_path / name, plan=plan)
        rows.append(summarise(read_records(tmp_path / name))["lengths"][1])
    first, last = ({name: row[name] for name in ("method", "agreement", "difference", "right")} for row in rows)
    assert first == last and first["agreement"] < 1


def test_a_question_that_has_become_another_is_refused(
    mini: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(mini, CELLS, ["dense"], tmp_path, plan=PLAN)
    monkeypatch.setattr("sparsed.evaluation.answers.FIRST_SEED", 4_000_000)
    with pytest.raises(ValueError, match="Question 0 of 200 lookup is not the one that dense was asked"):
        evaluate(mini, CELLS, ["sparsed"], tmp_path, plan=PLAN)


def test_prompts_have_a_version(mini: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a prompt is another one than here, raise GENERATOR, and write its number and digest here."""
    from sparsed.evaluation.answers import prompt_digest

    kinds = ("fact", "older", "several", "arithmetic")
    texts = [build.build_prompt(mini, "1k", kind, seed=7, depth=0.5).text for kind in kinds]
    assert (build.GENERATOR, prompt_digest(torch.tensor([list("".join(texts).encode())]))) == (1, "210092624cb1")
    before = build.prompts_version()
    text = pieces.material_text()
    monkeypatch.setattr("sparsed.questions.build.material_text", lambda: text + " ")
    assert build.prompts_version() != before and before.startswith(f"{build.GENERATOR}-")


@pytest.mark.parametrize("batch_tokens", [0, 1000])
def test_records_say_what_ran(mini: Model, tmp_path: Path, batch_tokens: int) -> None:
    methods = ["dense", "sparsed", "sparsed:skip=1", "sparsed:on_no_gain=dense"]
    evaluate(mini, CELLS, methods, tmp_path, plan=PLAN, batch_tokens=batch_tokens)
    runs: dict[str, RunRecord] = {r.method: r.run for r in read_records(tmp_path) if r.run is not None}
    assert runs["dense"]["phases"] == runs["sparsed:skip=1"]["phases"] == {"dense": 6, "select": 0, "sparse": 0}
    assert runs["sparsed"]["phases"] == {"dense": 2, "select": 1, "sparse": 3}
    assert [runs[name]["switch_step"] for name in methods[:3]] == [None, 3, None]
    assert all(run["forwards"] == 6 and run["dtype"] == "float32" for run in runs.values())
    assert runs["sparsed"]["sampler"]["steps"] == 6 and runs["sparsed"]["attention"]["skip"] == 0.2
    assert "never becomes sparse" in runs["sparsed:skip=1"]["notes"][0] and not runs["dense"]["notes"]
    asked = sparsed.generate(mini, mini.encode("Hello!"), sampler=PLAN.sampler, attention=SparseDConfig())
    assert runs["sparsed"].keys() == asked.info.record().keys()
    summary = summarise(read_records(tmp_path))
    rows = {row["method"]: row for row in summary["lengths"]}
    assert [rows[name]["never_sparse"] for name in methods[:3]] == [0, 0, 2]
    settings = {row["method"]: row for row in summary["settings"]}
    assert settings["sparsed"]["attention"]["select"] == 0.5 and settings["sparsed"]["backend"] == "gather"


def test_observations_say_what_ran(mini: Model, tmp_path: Path) -> None:
    observe(mini, CELLS[:1], tmp_path, plan=replace(PLAN, backend="gather"))
    key, seen = key_there(tmp_path), read_observations(tmp_path)
    assert key is not None and key["backend"] == "gather"
    assert [one.run["phases"]["sparse"] for one in seen if one.run is not None] == [3, 3]


REQUESTS = [
    (SamplerConfig(steps=6), SparseDConfig()),
    (SamplerConfig(gen_length=40, steps=4), SparseDConfig(skip=1)),  # 40 is no whole number of blocks
    (SamplerConfig(gen_length=40), SparseDConfig(select=0.3)),
    (SamplerConfig(gen_length=20, threshold=0.9), SparseDConfig()),
    (SamplerConfig(gen_length=32, steps=4, temperature=0.7, seed=3, early_stop=True), SparseDConfig(reuse=False)),
]


@pytest.mark.parametrize(("sampler", "attention"), REQUESTS)
def test_eval_and_bench_run_what_generate_runs(
    mini: Model, tmp_path: Path, sampler: SamplerConfig, attention: AttentionConfig
) -> None:
    """The same settings, tokens and notes, whatever the rule for lengths made of what was asked."""
    model = replace(mini, defaults=replace(mini.defaults, block_length=32, gen_length=64, steps=32))
    prompt = build.build_prompt(model, "200", "fact", FIRST_SEED, 0.0).text
    evaluate(model, [Cell("lookup", "200", 1)], ["dense", "sparsed"], tmp_path, plan=Plan(sampler, attention))
    kept = {r.method: r for r in read_records(tmp_path)}
    measured, _ = measure(model, prompt, "200", sampler, attention)

    def untimed(run: Any) -> dict[str, Any]:
        """Whether sparse steps are faster is noted by the clock."""
        return {**run, "notes": [note for note in run["notes"] if "no faster" not in note]}

    lanes: list[tuple[str, Any, Any]] = [
        ("dense", "dense", measured.dense), ("sparsed", attention, measured.sparsed)
    ]  # fmt: skip
    for method, asked, ran in lanes:
        result = sparsed.generate(model, prompt, sampler=sampler, attention=asked)
        expected = untimed(result.info.record())
        assert untimed(kept[method].run) == untimed(ran[0]) == expected
        answer = result.tokens[0, expected["prompt_tokens"] :].tolist()
        assert kept[method].tokens == answer[: answer_length(answer, (*model.end_ids, model.mask_id))]
    if sampler.gen_length == 40:
        assert kept["sparsed"].run is not None and kept["sparsed"].run["sampler"]["gen_length"] == 64
        assert "40" in kept["dense"].run["notes"][0], "what was asked for is said"  # type: ignore[index]


@pytest.mark.parametrize(
    ("sampler", "attention"),
    [
        (SamplerConfig(steps=4), SparseDConfig()),
        (SamplerConfig(steps=4, temperature=0.8), SparseDConfig()),
        (SamplerConfig(steps=4, algorithm="random"), AttentionConfig("dense")),
        (SamplerConfig(steps=4, algorithm="origin"), AttentionConfig("dense")),
        (SamplerConfig(steps=4), AttentionConfig("random")),
        (SamplerConfig(threshold=0.9), AttentionConfig("dense")),
        (SamplerConfig(steps=4, early_stop=True), AttentionConfig("dense")),
    ],
)
def test_a_batch_shows_in_no_answer(
    mini: Model, tmp_path: Path, sampler: SamplerConfig, attention: AttentionConfig
) -> None:
    plan = Plan(sampler=sampler)
    cells = [Cell("lookup", "200", 2), Cell("several", "200", 2)]
    for name, tokens in (("alone", 0), ("together", 5000)):
        evaluate(mini, cells, [attention.method], tmp_path / name, plan=plan, batch_tokens=tokens)
    alone, together = (
        [(r.type, r.index, r.method, r.tokens, r.run and r.run["forwards"]) for r in read_records(tmp_path / name)]
        for name in ("alone", "together")
    )
    assert alone == together
    batches = {r.run["batch"] for r in read_records(tmp_path / "together") if r.run is not None}
    method = parse_method(attention.method, attention)
    assert (batches == {1}) == goes_alone(method, sampler.resolve(mini.defaults))
