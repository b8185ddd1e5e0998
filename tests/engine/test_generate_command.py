"""python -m sparsed generate: flags and aliases, prompts, output for people, for programs and for files."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparsed
from sparsed import trace
from sparsed.__main__ import main
from sparsed.answer_text import cell_texts
from sparsed.denoising.forward import LocalForward
from sparsed.denoising.run import Run
from sparsed.generation import command, terminal
from sparsed.generation.output import Output
from sparsed.options import attention_of, sampler_of
from sparsed.questions.build import build_prompt

ROOT = Path(__file__).resolve().parents[2]
CPU = ("--device", "cpu", "--dtype", "float32")


@pytest.fixture
def tell(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command on the tiny model → (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["generate", "--model", str(tiny_folder), *CPU, *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


class Terminal(io.StringIO):
    """A standard output that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_built_prompt_with_its_gold_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """mini as it comes, no flag but what makes the machine the same everywhere."""
    assert main(["generate", *CPU, "--kind", "arithmetic", "--gen-length", "16", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    model = sparsed.load("mini", device="cpu", dtype="float32")
    built = build_prompt(model, "short_context", "arithmetic", 0)
    assert said["prompt_tokens"] == built.tokens and said["prompt_format"] == "chat"
    assert said["prompt"] == {
        "kind": "arithmetic",
        "length": "short_context",
        "seed": 0,
        "question": built.question,
        "gold": built.answer,
    }
    assert said["right"] is True and said["text"] == built.answer and said["ended"] == "end token"


def test_an_open_question_is_compared_with_the_answer_that_is_nearest(tell: Any, tiny_folder: Path) -> None:
    """The tiny model says nothing of sense: the nearest answer to that is the first with the fewest facts."""
    code, out, _ = tell("--kind", "open", "--prompt", "1k", "--steps", "2", "--gen-length", "8", "--json")
    said = json.loads(out)
    built = build_prompt(sparsed.load(tiny_folder, device="cpu", dtype="float32"), "1k", "open", 0)
    told = said["prompt"]
    assert code == 0 and said["right"] is False and len(built.answers) >= 3
    assert told["gold"] == min(built.answers, key=lambda answer: answer.count(". "))
    assert sorted([told["gold"], *told["others"]]) == sorted(built.answers)


def test_lines_of_a_pipe(tell: Any) -> None:
    code, out, err = tell("--prompt", "Hello [red]you[/]", "--steps", "10", "--gen-length", "20", "--select", "0.4")
    lines = out.splitlines()
    # Whether sparse steps are faster at this size is for the clock to say.
    assert code == 0 and all("no faster here" in line for line in err.splitlines()) and "\x1b" not in out
    assert re.fullmatch(r"tiny\d* · cpu · float32 · gather · \d+ prompt tokens", lines[0])
    starts = ["answer: ", "steps: 10 of 10 (dense 2, select 1, sparse 7), sparse from step 4", "time: ", "speed: "]
    starts.append("backend: gather, density requested 1.000, executed 1.000; sdpa before; float32 on cpu")
    sampler = "sampler: steps 10, gen_length 20, block_length 20, algorithm low_confidence, temperature 0.0, seed 0"
    starts.append(sampler)
    starts.append("attention: sparsed, skip 0.2, select 0.4, block_size 32")
    at = [next(i for i, line in enumerate(lines) if line.startswith(start)) for start in starts]
    assert at == sorted(at) and re.search(r"tokens, (up to the|no) end token\)", out) and "gold" not in out
    assert lines[at[1]].endswith("; 10 forwards") and lines[-2:] == starts[-2:]


def test_one_json_object_and_nothing_else(tell: Any) -> None:
    code, out, err = tell(
        "--prompt", "Hi", "--steps", "8", "--gen-length", "16", "--json", "--seed", "3", "--skip", "1"
    )
    said = json.loads(out)
    assert code == 0 and out.count("\n") == 1
    assert said["sampler"]["seed"] == 3 and said["attention"]["skip"] == 1 and said["attention"]["selection"] == "paper"
    assert said["phases"] == {"dense": 8, "select": 0, "sparse": 0} and said["forwards"] == 8
    assert said["phase_ms"]["dense"] > 0 and said["phase_ms"]["sparse"] is None
    assert said["switch_step"] is None and said["requested_density"] is None and said["right"] is None
    assert said["seconds"] > 0 and said["tokens_per_second"] == pytest.approx(said["tokens"] / said["seconds"])
    assert said["ms_per_step"] == pytest.approx(1000 * said["seconds"] / 8)
    assert any("never becomes sparse" in note for note in said["notes"]) and "note: " in err


def settings(*arguments: str) -> Any:
    options = command._parser().parse_args(arguments)
    return sampler_of(options), attention_of(options)


@pytest.mark.parametrize(
    ("public", "ours"),
    [
        ("--seq_len 64 --steps 32", "--gen-length 64 --steps 32"),
        ("--block_length 16 --sampling-alg random", "--block-length 16 --algorithm random"),
        ("--sampling-alg maskgit_plus --gen_length 8", "--algorithm maskgit_plus --gen-length 8"),
        ("--skip 0.2 --select 0.3 --block_size 128", "--skip 0.2 --select 0.3 --block-size 128"),
        ("--origin --select 0.3", "--dense"),
    ],
)
def test_public_flags_are_aliases(public: str, ours: str) -> None:
    assert settings(*public.split()) == settings(*ours.split())
    assert settings(*public.split()) != settings()


def test_every_flag_reaches_its_field() -> None:
    flags = "--steps 8 --gen-length 8 --block-length 4 --algorithm entropy --temperature 0.1 --seed 5 --top-p 0.9"
    flags += " --top-k 7 --alg-temp 0.2 --eps 0.01 --cfg-scale 1.5 --threshold 0.9"
    flags += " --skip 0.1 --select 0.4 --block-size 64 --selection reference"
    sampler, attention = settings(*flags.split())
    assert sampler == sparsed.SamplerConfig(8, 8, 4, "entropy", 0.1, 5, 0.9, 7, 0.2, 0.01, 1.5, 0.9)
    assert attention == sparsed.SparseDConfig(0.1, 0.4, 64, "reference")
    assert command._parser().parse_args(["--model_path", "x"]).model == "x"


def test_public_model_path_and_loading_options(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def load(name: str, **options: Any) -> Any:
        given.update(options, name=name)
        raise sparsed.models.LoadError("There is no such model.")

    monkeypatch.setattr("sparsed.models.loading.load", load)
    flags = "generate --model_path GSAI-ML/LLaDA-1.5 --device cuda --dtype bfloat16 --device-map auto --revision r1"
    flags += " --rope-factor 14 --quantize int8"
    assert main(flags.split()) == 2
    assert callable(given.pop("progress"))
    expected = {"device": "cuda", "dtype": "bfloat16", "device_map": "auto", "revision": "r1", "rope_factor": 14.0}
    expected["quantize"] = "int8"
    assert given == {"name": "GSAI-ML/LLaDA-1.5", "team": None, **expected}


def test_prompt_from_file_and_standard_input(tell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Ünïcode\nand two lines"
    (tmp_path / "prompt.txt").write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    flags = ("--steps", "2", "--gen-length", "8", "--json")
    said = [json.loads(tell("--prompt", way, *flags)[1]) for way in (text, f"@{tmp_path / 'prompt.txt'}", "-")]
    for one in said:
        assert (one["text"], one["prompt"]) == (said[0]["text"], said[0]["prompt"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--prompt", "@missing.txt"], "The prompt file missing.txt cannot be read: No such file or directory."),
        (["--prompt", "  "], "The prompt is empty"),
        (["--prompt", "\udcff"], "no UTF-8 text"),
        (["--skip", "2"], "skip must lie between 0 and 1, not 2.0."),
        (["--selection", "reference", "--select", "1"], "select must be below 1"),
        (["--algorithm", "best"], "algorithm must be one of"),
        (["--steps", "99999999999999999999"], "steps must be below 2^20, not 99999999999999999999."),
        (["--gen-length", "99999999999"], "gen_length must be below 2^20"),
        (["--prompt", "x", "--system", "\udcff"], "Message 1 of the prompt is no text: it holds half a character."),
        (["--save-trace", "nowhere/run.json"], "there is no such folder"),
        (["--backend", "fast", "--prompt", "x"], "fast"),
        (["--steps", "1", "--gen-length", "8", "--block-length", "4", "--prompt", "x"], "steps must be at least"),
    ],
)
def test_wrong_values_are_one_sentence(tell: Any, arguments: list[str], sentence: str) -> None:
    code, out, err = tell(*arguments)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and sentence in err


@pytest.mark.parametrize("arguments", [["--steps", "many"], ["--unknown"], ["--kind", "riddle"], ["--selection", "x"]])
def test_argparse_refuses_the_rest(tell: Any, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        tell(*arguments)
    assert stop.value.code == 2


def assert_traced(loaded: trace.Trace, lane: str, run: Run) -> None:
    """Steps, texts and pattern of the trace are the run's."""
    for mine, step in zip(trace.replay(loaded, lane), run.steps, strict=True):
        assert (mine.index, mine.total, mine.phase, mine.seconds) == (step.index, step.total, step.phase, step.seconds)
        for field in ("tokens", "committed", "confidence"):
            np.testing.assert_array_equal(getattr(mine, field), getattr(step, field).numpy())
        # Tokens are bytes here: many a cell reads right only beside its neighbours.
        for tokens in step.tokens.tolist():
            row = [None if token == run.model.mask_id else token for token in tokens]
            assert cell_texts(row, loaded.decode) == cell_texts(row, run.model.tokens_text)
    pattern = loaded.lanes[lane].pattern
    assert (pattern is None) == (run.pattern is None) and loaded.lanes[lane].attention == run.attention
    if pattern is not None and run.pattern is not None:
        for mine, layer in zip(pattern.to_pattern().layers, run.pattern.layers, strict=True):
            assert torch.equal(mine.indices, layer.indices) and torch.equal(mine.counts, layer.counts)


@pytest.mark.parametrize("name", ["run.json", "run.json.gz"])
def test_the_trace_holds_the_run(tell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    runs: list[Run] = []
    real = sparsed.denoising.denoise
    monkeypatch.setattr(sparsed.denoising, "denoise", lambda *a, **k: runs.append(real(*a, **k)) or runs[-1])
    flags = ("--gen-length", "24", "--steps", "12", "--temperature", "1", "--seed", "4", "--save-trace")
    code, out, _ = tell("--prompt", "Tell me", *flags, str(tmp_path / name), "--json")
    loaded, (run,) = trace.load(tmp_path / name), runs
    assert code == 0 and loaded.prompt.text == "Tell me" and loaded.sampler == run.sampler
    assert_traced(loaded, "sparsed", run)
    lane, said = loaded.lanes["sparsed"], json.loads(out)
    assert lane.text == (said["text"],) and lane.seconds == said["seconds"] and lane.switch_step == said["switch_step"]
    assert lane.finished and str(tmp_path.parent) not in repr(loaded)


@pytest.mark.parametrize("algorithm", ["random", "origin", "entropy", "topk_margin"])
@pytest.mark.parametrize("selection", ["paper", "reference"])
@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_every_kind_of_run_is_traced(
    tiny: Any, tmp_path: Path, algorithm: str, selection: str, guidance: float
) -> None:
    sampler = sparsed.SamplerConfig(6, 20, None, algorithm, 0.7, 1, cfg_scale=guidance)
    prompt = torch.arange(140).reshape(2, 70)
    runs: dict[str, Run] = {}
    for name, attention in (("full", "dense"), ("SparseD", sparsed.SparseDConfig(select=0.4, selection=selection))):
        runs[name] = sparsed.denoise(tiny, prompt, sampler=sampler, attention=attention)
        runs[name].result()
    trace.save(trace.record(runs), tmp_path / "race.json")
    loaded = trace.load(tmp_path / "race.json")
    for name, run in runs.items():
        assert_traced(loaded, name, run)


def test_guidance_and_threshold_are_traced(tell: Any, tmp_path: Path) -> None:
    """Twice the rows in the pattern; fewer steps than planned."""
    flags = ("--gen-length", "16", "--cfg-scale", "1", "--threshold", "0.0001", "--skip", "0", "--algorithm")
    code, out, _ = tell("--prompt", "Hi", *flags, "low_confidence", "--save-trace", str(tmp_path / "t.json"), "--json")
    lane, said = trace.load(tmp_path / "t.json").lanes["sparsed"], json.loads(out)
    assert code == 0 and lane.finished and lane.pattern is not None and lane.pattern.batch == 2
    assert len(lane.steps) == said["forwards"] < said["total"] == 16 and lane.switch_step == said["switch_step"]


def test_full_attention(tell: Any, tmp_path: Path) -> None:
    code, out, _ = tell("--prompt", "Hi", "--origin", "--steps", "4", "--save-trace", str(tmp_path / "t.json"))
    assert code == 0 and "(dense 4, select 0, sparse 0), never sparse; 4 forwards" in out
    assert "backend: sdpa, full attention; " in out and out.endswith("\nattention: dense\n")
    lane = trace.load(tmp_path / "t.json").lanes["dense"]
    assert lane.attention.dense and lane.pattern is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--origin"], []),
        (["--dense", "--skip", "0.1", "--backend", "gather", "--block_size", "64"],
         ["--backend, --block-size, --skip without effect: full attention has no such setting."]),
        (["--prompt-seed", "3", "--kind", "fact", "--skip", "0.1"],
         ["--kind, --prompt-seed without effect: the prompt is a text of your own."]),
    ],
)  # fmt: skip
def test_options_without_effect_are_said(tell: Any, words: list[str], said: list[str]) -> None:
    code, _, errors = tell("--prompt", "Hi", "--gen-length", "8", "--steps", "2", *words)
    told = [line.removeprefix("note: ") for line in errors.splitlines() if "without effect" in line]
    assert (code, told) == (0, said)


def test_a_number_is_a_text_and_no_length(tell: Any) -> None:
    """Elsewhere (`eval --lengths 512`) a number is one."""
    code, _, errors = tell("--prompt", "512", "--gen-length", "8", "--steps", "2")
    assert code == 0 and "note: The prompt is the text '512', not a length; lengths are short_context, 1k, " in errors


def test_in_a_terminal_the_canvas_is_drawn(tell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(terminal, "REDRAW_SECONDS", 0)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "70")
    assert tell("--prompt", "Hi", "--steps", "6", "--gen-length", "12")[0] == 0
    said = out.getvalue()
    for part in ("step 1 of 6", "step 6 of 6", "select", "━", "┃", "░" * 8, "\x1b[1;4;32m", "answer: "):
        assert part in said
    assert said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l")  # the cursor is back


def test_a_terminal_obeys_no_answer(capsys: pytest.CaptureFixture[str]) -> None:
    Output(hidden=False, escape=True).line("answer: \x1b]0;title\x07[red]")
    Output(hidden=True, escape=True).line("nothing")
    Output(hidden=False, escape=False).line("\x1b")
    assert capsys.readouterr().out == "answer: \\x1b]0;title\\x07[red]\n\x1b\n"


@pytest.mark.parametrize("setting", ["--quiet", "--json", "TERM=dumb"])
def test_no_canvas_where_it_is_not_wanted(tell: Any, monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", "dumb" if setting == "TERM=dumb" else "xterm")
    assert tell("--prompt", "Hi", "--steps", "2", *([setting] if setting.startswith("--") else []))[0] == 0
    assert "\x1b" not in out.getvalue() and "░" not in out.getvalue()


@pytest.mark.parametrize("interrupted", [0, 5])
def test_ctrl_c_prints_what_there_is(
    tell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: int
) -> None:
    real, steps = LocalForward.logits, count()

    def logits(self: LocalForward, *given: Any) -> Any:
        if next(steps) % (interrupted + 1) == interrupted:
            raise KeyboardInterrupt
        return real(self, *given)

    monkeypatch.setattr(LocalForward, "logits", logits)
    flags = ("--prompt", "Hi", "--steps", "8", "--gen-length", "16", "--save-trace", str(tmp_path / "t.json"))
    code, out, _ = tell(*flags)
    assert code == 130 and f"stopped after {interrupted} of 8 steps" in out and "answer" not in out
    assert (tmp_path / "t.json").exists() == bool(interrupted)
    if interrupted:
        assert "so far: " in out and "_" in out and "time: " in out
        lane = trace.load(tmp_path / "t.json").lanes["sparsed"]
        assert len(lane.steps) == 5 and not lane.finished
    code, out, _ = tell(*flags, "--json")
    said = json.loads(out)
    assert code == 130 and said["finished"] is False and said["forwards"] == interrupted and said["ended"] is None


def test_help_is_light() -> None:
    code = (
        "import sys; from sparsed.__main__ import main\n"
        "try: main(['generate', '--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'transformers', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for flag in ("--model_path", "--seq_len", "--sampling-alg", "--save-trace", "--origin"):
        assert flag in done.stdout


def test_a_trace_that_cannot_be_written_does_not_cost_the_answer(
    tell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up after the run has begun: the old record stays whole."""

    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    place = tmp_path / "run.json"
    place.write_text("old")
    monkeypatch.setattr(os, "fsync", fsync)
    code, out, err = tell("--prompt", "Hi", "--steps", "4", "--gen-length", "8", "--save-trace", str(place))
    assert code == 1 and "answer: " in out
    assert err.splitlines()[-1] == f"error: {place} cannot be written: no space left on device."
    assert place.read_text() == "old" and os.listdir(tmp_path) == ["run.json"]


def test_a_place_that_cannot_be_written_is_refused_before_the_run(
    tell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsed.models.loading.load", lambda *_, **__: pytest.fail("nothing is to be loaded"))
    code, out, err = tell("--prompt", "Hi", "--save-trace", str(tmp_path))
    assert (code, out) == (2, "") and err == f"error: --save-trace {tmp_path} cannot be written: this is a folder.\n"


def test_a_run_that_is_done_before_it_is_sparse_says_so(tell: Any) -> None:
    flags = ("--prompt", "Hi", "--gen-length", "16", "--threshold", "0.0001", "--skip", "0.5")
    code, out, err = tell(*flags)
    assert code == 0 and "steps: 1 of at most 16 (dense 1, select 0, sparse 0), never sparse; 1 forwards\n" in out
    assert "backend: sdpa, full attention (gather was not used); " in out and "threshold 0.0001" in out
    assert "note: This run never became sparse" in err
    said = json.loads(tell(*flags, "--json")[1])
    assert said["switch_step"] is None and said["phases"]["sparse"] == 0 and said["requested_density"] is None
    assert any("never became sparse" in note for note in said["notes"])


def test_json_is_the_record_of_the_run_and_what_is_the_commands_own(
    tell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Run] = []
    real = sparsed.denoising.denoise
    monkeypatch.setattr(sparsed.denoising, "denoise", lambda *a, **k: runs.append(real(*a, **k)) or runs[-1])
    said = json.loads(tell("--prompt", "Hi", "--gen-length", "17", "--cfg-scale", "1", "--stop", "x", "--json")[1])
    record = runs[0].info.record()
    assert {name: said[name] for name in record} == record and record["sampler"]["stop"] == ["x"]
    own = {
        "model", "prompt", "prompt_format", "text", "ended", "right", "seconds", "phase_ms", "ms_per_step", "tokens",
        "tokens_per_second", "requested_density", "executed_density",
    }  # fmt: skip
    assert said.keys() - record.keys() == own and said["prompt"] is None


def writes(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    """Lets the tiny model of `folder` answer with this text, of single bytes, and the end token ever after."""
    model = sparsed.load(str(folder), device="cpu", dtype="float32")
    tokens = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    real = LocalForward.logits

    def logits(self: LocalForward, *given: Any, **more: Any) -> Any:
        made = real(self, *given, **more)
        for place, row in enumerate(made):
            row[:] = -50.0
            row[tokens[place] if place < len(tokens) else model.end_ids[0]] = 50.0
        return made

    monkeypatch.setattr(LocalForward, "logits", logits)


def test_the_answer_is_printed_as_it_is_and_what_ended_it_is_said(
    tell: Any, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step commits all: the places asked for are those of the whole generation."""
    text = "    return x\n\ty, z  "
    writes(monkeypatch, tiny_folder, text)
    flags = ("--prompt", "Hi", "--gen-length", "32", "--steps", "1", "--origin")
    code, out, _ = tell(*flags)
    assert code == 0 and f"\nanswer: {text}\nsteps: " in out and f"({len(text) + 1} tokens, up to the end token)" in out
    said = json.loads(tell(*flags, "--json")[1])
    assert (said["text"], said["ended"], said["tokens"]) == (text, "end token", len(text) + 1)
    said = json.loads(tell(*flags, "--json", "--stop", ", z", "--stop", "never")[1])
    assert (said["text"], said["ended"]) == ("    return x\n\ty", "stop string") and said["tokens"] == len(text) - 2
    said = json.loads(tell(*flags[:2], "--gen-length", "8", *flags[4:], "--json")[1])
    assert (said["text"], said["ended"], said["tokens"]) == (text[:8], None, 8)


def test_prompt_formats_system_and_history(tell: Any, tmp_path: Path) -> None:
    """How many tokens a prompt has tells what was made of it: here each byte is one."""
    history = tmp_path / "history.json"
    history.write_text(json.dumps([{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cde"}]))
    flags = ("--prompt", " Hi", "--steps", "2", "--gen-length", "8", "--json")

    def tokens(*more: str) -> tuple[int, str]:
        said = json.loads(tell(*flags, *more)[1])
        return said["prompt_tokens"], said["prompt_format"]

    chat = tokens()
    assert chat == tokens("--prompt-format", "chat") and chat[1] == "chat"
    assert tokens("--prompt-format", "raw") == (3, "raw")
    # A message is its role's header, its bytes and an end token.
    assert tokens("--system", "be") == (chat[0] + 2 + HEADERS["system"], "chat")
    longer = 2 + HEADERS["user"] + 3 + HEADERS["assistant"]
    assert tokens("--history", str(history)) == (chat[0] + longer, "chat")
    code, out, err = tell(*flags[:-1], "--prompt-format", "raw", "--history", str(history), "--system", "s")
    assert " · 15 prompt tokens · raw prompt\n" in out and "note: The prompt is plain text" in err and code == 0


def test_a_record_says_how_its_prompt_was_put(tell: Any, tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    flags = ("--prompt", "Hi", "--steps", "2", "--gen-length", "8", "--save-trace", str(file))
    for more, system, chat in (
        ((), None, None),
        (("--system", "Be brief."), "Be brief.", None),
        (("--prompt-format", "raw"), None, False),
        (("--prompt-format", "chat", "--system", "s"), "s", True),
    ):
        assert tell(*flags, *more)[0] == 0
        prompt = trace.load(file).prompt
        assert (prompt.system or None, prompt.chat, prompt.text) == (system, chat, "Hi")


# Tokens around a message of each role in the tiny model's template.
HEADERS = {"user": 2, "assistant": 2, "system": len("<|system|>") + 1}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file or directory."),
        ("[", "is no JSON: it must be a list of messages."),
        ("{}", "must be a list of messages, not {}."),
        ('["x"]', "Message 1 of the history must be an object"),
        ('[{"role": "assistant", "content": "x"}]', "has the role 'assistant' where 'user' is due"),
        ('[{"role": "user", "content": "x"}]', "The history ends with a message of the user's"),
    ],
)
def test_bad_histories_are_refused_before_anything_is_loaded(
    tell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, said: str
) -> None:
    monkeypatch.setattr("sparsed.models.loading.load", lambda *_, **__: pytest.fail("nothing is to be loaded"))
    if content is not None:
        (tmp_path / "h.json").write_text(content)
    code, out, err = tell("--prompt", "Hi", "--history", str(tmp_path / "h.json"))
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1 and said in err


def test_a_cache_is_asked_for_told_and_recorded(tell: Any, tmp_path: Path) -> None:
    flags = ["--prompt", "Hi", "--steps", "8", "--gen-length", "16", "--block-length", "8", "--cache", "refresh",
             "--cache-refresh", "3"]  # fmt: skip
    code, out, _ = tell(*flags, "--save-trace", str(tmp_path / "run.json"))
    loaded = trace.load(tmp_path / "run.json")
    (lane,) = loaded.lanes.values()
    length = loaded.prompt.tokens + 16
    rows = [length if step.rows is None else step.rows for step in lane.steps]
    assert code == 0 and rows == [length if step % 3 == 0 else 16 for step in range(8)]
    assert (lane.cache.method, lane.cache.refresh, lane.cache.keys) == ("refresh", 3, "all")
    assert out.splitlines()[-1] == f"cache: refresh, refresh 3; {sum(rows):,} of {8 * length:,} rows computed"
    said = json.loads(tell(*flags, "--json")[1])
    assert said["cache"] == {"method": "refresh", "refresh": 3, "keys": "all"}
    assert sum(said["rows"].values()) == sum(rows)


def test_what_is_no_cache_is_one_sentence(tell: Any) -> None:
    code, out, err = tell("--prompt", "Hi", "--cache", "dual", "--cache-refresh", "3")
    assert code == 2 and not out
    assert err.strip() == "error: The cache 'dual' has no refresh: only delayed and refresh have."
