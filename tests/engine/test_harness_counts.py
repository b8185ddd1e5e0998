"""What stands beside the scores of lm-evaluation-harness: the settings, steps and notes of the runs really made."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsed
from sparsed import AttentionConfig, SamplerConfig

pytest.importorskip("lm_eval", reason="lm_eval is not installed (the optional extra 'lm_eval')")

import lm_eval  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.model import CachingLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from sparsed.__main__ import main  # noqa: E402
from sparsed.harness.counts import Count, Counts  # noqa: E402
from sparsed.harness.made_with import made_with  # noqa: E402
from sparsed.harness.model import SparsedLM  # noqa: E402
from sparsed.models.fingerprint import fingerprint  # noqa: E402
from sparsed.paths import data_dir  # noqa: E402
from sparsed.runs import kind_of  # noqa: E402

# What a clock says of a run, and may say of its equal or not.
CLOCK = "Sparse steps are no faster here: # ms at best, dense steps # ms; this run stays sparse."
pytestmark = pytest.mark.usefixtures("offline")


def evaluated(tasks: Path, names: list[str], **model_args: Any) -> dict[str, Any]:
    """The results, as the JSON file has them, for the bundled model."""
    found = lm_eval.simple_evaluate(
        model="sparsed",
        model_args={"pretrained": "mini", "dtype": "float32", "device": "cpu", **model_args},
        tasks=names,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        log_samples=False,
    )
    return dict(json.loads(json.dumps(found, default=str)))


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What we logged, but for what a clock says."""
    said = [record.getMessage() for record in caplog.records if record.name.startswith("sparsed")]
    return [line for line in said if "no faster" not in line]


def asked(kind: str, *arguments: tuple[Any, ...], task: str = "a") -> list[Instance]:
    return [
        Instance(kind, {}, one, index, (task, index, 1))  # type: ignore[arg-type]
        for index, one in enumerate(arguments)
    ]


def test_a_task_that_never_became_sparse_says_so_in_the_log_and_in_the_results(tasks: Path, caplog) -> None:
    results = evaluated(tasks, ["tiny_answer"], threshold=0.9, gen_length=96)
    model = sparsed.load("mini", dtype="float32")
    made = results["config"]["sparsed"]
    assert (made["weights"], made["dtype"], made["device"]) == (model.fingerprint(), "float32", "cpu")
    assert made["sampler"] == {"threshold": 0.9, "gen_length": 96} and made["attention"] == {"method": "sparsed"}
    count = made["tasks"]["tiny_answer"]["generate_until"]
    assert (count["requests"], count["runs"], count["never_sparse"]) == (3, 3, 3)
    assert count["steps"]["sparse"] == 0 and count["forwards"] == sum(count["steps"].values()) < 3 * count["total"]
    assert count["sampler"]["threshold"] == 0.9 and count["sampler"]["early_stop"] is True
    said = told(caplog)
    for note in count["notes"]:
        assert said.count(note) == 1
    assert sum("never became sparse: it was done after" in note for note in count["notes"]) == 1
    assert sum(count["notes"].values()) >= 3
    [last] = [line for line in said if "full attention's results" in line]
    assert last == (
        "tiny_answer (generate_until): 3 of 3 runs never became sparse: these are full attention's results."
    )


def test_full_attention_that_was_asked_for_needs_no_warning(tasks: Path, caplog) -> None:
    results = evaluated(tasks, ["tiny_answer", "tiny_choice"], attention="dense", threshold=0.9, mc_num=4)
    kinds = results["config"]["sparsed"]["tasks"]
    assert kinds["tiny_answer"]["generate_until"]["never_sparse"] == 0
    assert kinds["tiny_choice"]["loglikelihood"]["attention"] == {"method": "dense"}
    assert not [line for line in told(caplog) if "became sparse" in line]


def test_the_counts_are_those_of_the_runs(harness_of) -> None:
    sparse = {"skip": 0.25, "select": 0.3}
    lm = harness_of("llada", steps=16, gen_length=16, block_length=8, attention_block_size=32, **sparse)
    prompts = ["the other " * 20, "a thin line", "their arrow " * 20]
    wishes: dict[str, Any] = {"until": ["e"], "max_gen_toks": 16}
    requests = asked("generate_until", *((prompt, wishes) for prompt in prompts[:2]))
    requests += asked("generate_until", (prompts[2], wishes), task="b")
    answers = lm.generate_until(requests, disable_tqdm=True)
    sampler = SamplerConfig(16, 16, 8, temperature=0.0, early_stop=True, stop=("e",))
    attention = AttentionConfig(block_size=32, **sparse)
    runs = [
        sparsed.generate(lm.model, torch.tensor(lm.tok_encode(prompt)), sampler=sampler, attention=attention)
        for prompt in prompts
    ]
    assert answers == [run.text[0] for run in runs]
    for task, mine in (("a", runs[:2]), ("b", runs[2:])):
        count = lm.counts[task, "generate_until"].record()
        assert (count["requests"], count["runs"]) == (len(mine), len(mine))
        assert count["forwards"] == sum(run.info.forwards for run in mine)
        for phase in ("dense", "select", "sparse"):
            assert count["steps"][phase] == sum(run.info.phases[phase] for run in mine)
        notes = {kind_of(note) for note in count["notes"]}, {kind_of(note) for run in mine for note in run.notes}
        assert notes[0] - {CLOCK} == notes[1] - {CLOCK}
        record = mine[0].info.record()
        assert count["sampler"] == record["sampler"] and count["attention"] == record["attention"]
        assert (count["backend"], count["dense_backend"]) == (record["backend"], record["dense_backend"])
    assert lm.counts["a", "generate_until"].record()["prompt_tokens"] == sorted(
        len(lm.tok_encode(prompt)) for prompt in prompts[:2]
    )


@pytest.mark.parametrize("family", ["llada", "dream", "qwen3"])
@pytest.mark.parametrize("wish", [{"max_gen_toks": 64}, {"max_gen_toks": 64, "threshold": 0.02}, {"max_gen_toks": 33}])
def test_a_request_is_the_same_by_the_command_line(
    harness_of, folder_of, capsys, family: str, wish: dict[str, Any]
) -> None:
    question = "Is 1 + 1 even?"
    lm = harness_of(family, skip=0.1, attention_block_size=32)
    prompt = lm.apply_chat_template([{"role": "user", "content": question}])
    wishes = {"until": ["\n"], **wish}
    [answer] = lm.generate_until(asked("generate_until", (prompt, wishes)), disable_tqdm=True)
    count = lm.counts["a", "generate_until"].record()
    line = ["generate", "--model", str(folder_of(family)), "--prompt", question, "--device", "cpu",
            "--dtype", "float32", "--gen-length", str(wish["max_gen_toks"]), "--temperature", "0",
            "--early-stop", "yes", "--stop", "\n", "--skip", "0.1", "--block-size", "32", "--json"]  # fmt: skip
    if "threshold" in wish:
        line += ["--threshold", str(wish["threshold"])]
    assert main(line) == 0
    told_there = json.loads(capsys.readouterr().out)
    for name in ("sampler", "attention", "backend", "dense_backend", "dtype", "device", "prompt_tokens", "total"):
        assert count[name] == told_there[name]
    assert (count["steps"], count["forwards"]) == (told_there["phases"], told_there["forwards"])
    notes = {kind_of(note) for note in count["notes"]}, {kind_of(note) for note in told_there["notes"]}
    assert {note for note in notes[0] if "max_gen_toks" not in note} - {CLOCK} == notes[1] - {CLOCK}
    whole = told_there["text"]
    assert whole == answer or ("max_gen_toks" in str(notes[0]) and whole.startswith(answer))


def test_likelihoods_say_what_stands_behind_them(harness_of, caplog) -> None:
    lm = harness_of("llada", mc_num=8, skip=0.25, attention_block_size=32, max_length=None)
    context = "some text " * 12 + ":"
    lm.loglikelihood(asked("loglikelihood", (context, "a"), (context, "b"), (context, " and more of it")), True)
    count = lm.counts["a", "loglikelihood"].record()
    # Two choices of one letter share a canvas; the group of the longer answer has its own.
    assert (count["requests"], count["runs"], count["never_sparse"]) == (3, 2, 0)
    assert count["total"] == 8 and count["sampler"]["gen_length"] == [1, 14] and count["steps"]["select"] == 2
    assert count["forwards"] == sum(count["steps"].values()) and count["steps"]["sparse"] > 1
    decoded = lm.counts["a", "greedy decoding"].record()
    assert (decoded["requests"], decoded["runs"]) == (1, 1) and decoded["forwards"] <= 14
    assert not told(caplog)

    never = harness_of("llada", mc_num=2, skip=1.0, attention_block_size=32)
    never.loglikelihood(asked("loglikelihood", (context * 3, "a")), disable_tqdm=True)
    said = told(caplog)
    assert len(said) == 3
    assert said[0].startswith("These likelihoods never become sparse: with mc_num 2 and skip 1.0")
    assert said[1].startswith("Speed only: trained to 256 positions, and this sequence")
    assert said[2] == "a (loglikelihood): 1 of 1 runs never became sparse: these are full attention's results."
    assert list(never.counts["a", "loglikelihood"].record()["notes"]) == said[:2]


def test_rolling_likelihoods_are_counted_and_decode_nothing(harness_of) -> None:
    lm = harness_of("llada", mc_num=3, attention="dense", max_length=21)
    lm.loglikelihood_rolling(asked("loglikelihood_rolling", ("abcdefghij" * 5,)), disable_tqdm=True)
    assert list(lm.counts) == [("a", "loglikelihood_rolling")]
    assert lm.counts["a", "loglikelihood_rolling"].requests == 3  # windows


def test_an_answer_holds_no_more_tokens_than_were_asked_for(harness_of, caplog) -> None:
    settings: dict[str, Any] = {"attention": "dense", "steps": 16, "block_length": 8}
    request = {"until": [], "max_gen_toks": 5}
    canvas = harness_of("qwen3", gen_length=16, **settings)
    [cut] = canvas.generate_until(asked("generate_until", ("some text", request)), disable_tqdm=True)
    sampler = SamplerConfig(16, 16, 8, temperature=0.0, early_stop=True)
    ids = torch.tensor(canvas.tok_encode("some text"))
    tokens = sparsed.generate(canvas.model, ids, sampler=sampler, attention="dense").tokens[0, len(ids) :]
    assert cut == canvas.tokenizer.decode(tokens[:5], clean_up_tokenization_spaces=False)
    note = "An answer was cut to the 5 tokens that max_gen_toks asks for; its canvas has 16."
    assert note in told(caplog) and canvas.counts["a", "generate_until"].record()["notes"][note] == 1
    assert canvas.counts["a", "generate_until"].tokens == 5
    # Without a word on the length of an answer, a canvas that was asked for is the answer's.
    [whole] = canvas.generate_until(asked("generate_until", ("some text", {"until": []})), disable_tqdm=True)
    assert whole.startswith(cut) and len(whole) > len(cut)
    # A canvas of whole blocks, and what was asked for of it.
    caplog.clear()
    [text] = harness_of("qwen3", **settings).generate_until(
        asked("generate_until", ("some text", {"until": [], "max_gen_toks": 13})), disable_tqdm=True
    )
    assert text and any(line.startswith("16 tokens are generated, not 13: whole") for line in told(caplog))


def test_a_speed_is_said_where_it_is_asked_for(harness_of, caplog) -> None:
    lm = harness_of("llada", attention="dense", steps=4, gen_length=8, block_length=8, show_speed=True)
    lm.generate_until(asked("generate_until", ("text", {"until": []})), disable_tqdm=True)
    [line] = [line for line in told(caplog) if "a second" in line]
    assert line.startswith(f"a: {lm.counts['a', 'generate_until'].tokens} tokens in ") and "4 forwards" in line


def test_answers_of_the_harness_cache_belong_to_the_settings_they_were_made_with(harness_of, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 4, "gen_length": 8, "block_length": 8, "batch_size": 1}
    path = str(tmp_path / "cache.db")
    request = asked("generate_until", ("a", {"until": []}))
    CachingLM(harness_of("llada", attention="dense", **settings), path).generate_until(request)
    CachingLM(harness_of("llada", attention="dense", **settings | {"batch_size": 4}), path)
    for other, words in (
        (harness_of("llada", **settings), r'attention\.method is "dense" there, "sparsed" here'),
        (harness_of("llada", attention="dense", **settings | {"steps": 8}), r"sampler\.steps is 4 there, 8 here"),
        (harness_of("qwen3", attention="dense", **settings), "weights is "),
    ):
        with pytest.raises(ValueError, match=f"The answers at --use_cache were made otherwise .*{words}"):
            CachingLM(other, path)
    plain = CachingLM(lm_eval.api.model.LM.__new__(_Silent), str(tmp_path / "old.db"))
    plain.dbdict["key"] = "answer"
    with pytest.raises(ValueError, match="do not say what they were made with"):
        CachingLM(harness_of("llada"), str(tmp_path / "old.db"))


def test_the_results_name_the_weights_that_answered(make_checkpoint, tmp_path: Path) -> None:
    """The harness asks for them when every answer is there; the folder may hold a newer checkpoint by then."""
    folder = make_checkpoint(tmp_path / "model")
    lm = SparsedLM(pretrained=str(folder), device="cpu", dtype="float32")
    answered = fingerprint(folder)
    (folder / "model.safetensors").unlink()
    assert lm.get_model_info()["sparsed"]["weights"] == answered


@pytest.mark.parametrize("draws", [{"temperature": 1.5}, {"algorithm": "random"}, {}])
def test_repeats_that_are_drawn_differ_with_a_cache_as_without(harness_of, tmp_path: Path, draws: dict) -> None:
    """A temperature of the model's arguments, where the harness takes answers for greedy (no do_sample)."""
    settings: dict[str, Any] = {"steps": 8, "gen_length": 8, "block_length": 8, "attention": "dense", **draws}
    requests = asked("generate_until", ("a line", {"until": []}), ("other", {"until": []}))
    requests = [requests[0], requests[0], requests[0], requests[1]]
    alone = harness_of("qwen3", **settings).generate_until(requests, disable_tqdm=True)
    assert len(set(alone[:3])) > 1 or not draws
    for again in range(3):
        lm = harness_of("qwen3", **settings)
        assert CachingLM(lm, str(tmp_path / "cache.db")).generate_until(requests) == alone
        # Greedy answers are taken from the store.
        made = lm.counts["a", "generate_until"].requests if lm.counts else 0
        assert made == (4 if draws or not again else 0)


def test_a_model_that_is_used_twice_tells_each_evaluation_apart(harness_of, tasks: Path, caplog) -> None:
    lm = harness_of("qwen3", threshold=0.05, gen_length=32, mc_num=2)

    def results(task: str) -> dict[str, Any]:
        caplog.clear()
        found = lm_eval.simple_evaluate(
            model=lm, tasks=[task], bootstrap_iters=0,
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        )  # fmt: skip
        return dict(found["config"]["sparsed"]["tasks"])

    first = results("tiny_answer")
    said = told(caplog)
    assert list(first) == ["tiny_answer"] and any("full attention's results" in line for line in said)
    assert list(results("tiny_choice")) == ["tiny_choice"]
    again = results("tiny_answer")
    assert told(caplog) == said
    for count in (first, again):
        del count["tiny_answer"]["generate_until"]["seconds"]
    assert again == first


def test_the_same_weights_by_two_names_share_a_cache(harness_of, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data_dir("assets") / "mini", tmp_path / "elsewhere"))
    by_name, by_folder = harness_of(Path("mini")), harness_of(copy)
    assert by_name.model.name != by_folder.model.name
    made = [made_with(lm.model, lm.arguments) for lm in (by_name, by_folder)]
    assert made[0] == made[1] and json.loads(json.dumps(made[0])) == made[0]


class _Silent:
    def set_cache_hook(self, hook: object) -> None: ...


def test_counts_of_processes_are_summed() -> None:
    def part(task: str, note: str, steps: int) -> Counts:
        counts = Counts()
        count = counts.of(task, "generate_until")
        count.requests, count.runs, count.never_sparse, count.forwards = 2, 1, 1, steps
        count.steps.update(dense=steps)
        count.rows.update(dense=100 * steps)
        count.note(note)
        count._see("total", steps)
        count._see("sampler.stop", ["a"])
        return counts

    whole = Counts.of_all([part("a", "done after 3 steps", 3), part("a", "done after 14 steps", 14), part("b", "x", 1)])
    found = whole.record()["a"]["generate_until"]
    assert found == {
        "requests": 4, "runs": 2, "never_sparse": 2, "dense_again": 0, "forwards": 17,
        "steps": {"dense": 17, "select": 0, "sparse": 0}, "rows": {"dense": 1700, "select": 0, "sparse": 0},
        "total": [3, 14], "sampler": {"stop": ["a"]},
        "notes": {"done after 3 steps": 2},
    }  # fmt: skip
    assert whole.never_sparse() == (
        "a (generate_until): 2 of 2, b (generate_until): 1 of 1 runs never became sparse: "
        "these are full attention's results."
    )


def test_many_numbers_are_a_range() -> None:
    count = Count()
    for number in range(3, 30):
        count._see("prompt_tokens", number)
        count._see("batch", number % 3)
    assert count.record()["prompt_tokens"] == {"from": 3, "to": 29} and count.record()["batch"] == [0, 1, 2]


def test_the_log_is_shown_without_any_setting_up() -> None:
    """The harness sets up its own loggers alone; a warning of ours needs none."""
    assert logging.getLogger("sparsed.harness.shared").isEnabledFor(logging.WARNING)
