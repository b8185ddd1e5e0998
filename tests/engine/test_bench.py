"""The bench: a fair race, and a measurement that says what it measured."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsed.__main__ import main as program
from sparsed.bench import attention as attention_module
from sparsed.bench import command, few_rows, numbers
from sparsed.bench import measure as measure_module
from sparsed.bench.command import _kept, main, unheeded
from sparsed.bench.estimate import Estimate
from sparsed.bench.table import print_table
from sparsed.config import RECOMMENDED, SamplerConfig, SparseDConfig
from sparsed.edge import Terminated
from sparsed.options import attention_of, given_of
from sparsed.parallel import crew
from sparsed.turns import take_turns
from sparsed.typed_json import read_as

ROOT = Path(__file__).resolve().parents[2]
SWEEP = (
    "--shape mini --steps 4 --gen-length 32 --dtype float32 --block-size 32 --compose --device cpu --threads 1".split()
)
DETERMINISTIC = (
    "length", "prompt_tokens", "dtype", "steps", "switch_step", "select", "block_size", "requested_density",
    "executed_density", "same_tokens", "dense_backend", "backend",
)  # fmt: skip


class FakeRun:
    """A run whose steps take as long as it is told."""

    def __init__(self, name: str, seconds: list[float], log: list[str]) -> None:
        self.name, self.seconds, self.log = name, iter(seconds), log

    def __next__(self) -> Any:
        step = SimpleNamespace(seconds=next(self.seconds))
        self.log.append(self.name)
        return step


@pytest.mark.parametrize(("first", "order"), [(0, "abaaaab"), (1, "baaaaba")])
def test_the_lane_with_less_time_makes_the_next_step(first: int, order: str) -> None:
    log: list[str] = []
    runs: list[Any] = [FakeRun("a", [1.0] * 5, log), FakeRun("b", [4.0, 4.0], log)]
    assert take_turns(runs, first) == [5.0, 8.0]
    assert "".join(log) == order


def test_agreement_counts_up_to_the_end_of_the_longer_answer() -> None:
    first = torch.tensor([[5, 6, 0, 0, 0, 0]])
    assert numbers.dense_agreement(first, torch.tensor([[5, 6, 0, 9, 9, 9]]), end=0) == 1.0
    assert numbers.dense_agreement(first, torch.tensor([[5, 7, 8, 0, 0, 0]]), end=0) == 0.5
    assert numbers.dense_agreement(first, torch.tensor([[5, 6, 7, 7, 7, 7]]), end=0) == pytest.approx(2 / 6)


def test_measurement_of_a_tiny_model(tiny: Any) -> None:
    ids = torch.arange(100)
    said: list[str] = []
    result, _ = measure_module.measure(
        tiny,
        ids,
        "100",
        SamplerConfig(steps=8),
        SparseDConfig(skip=0.2, select=0.3, block_size=32),
        repeats=2,
        say=said.append,
    )
    assert (result.prompt_tokens, result.steps, result.switch_step) == (100, 8, 3)
    assert len(result.dense_run) == len(result.sparsed_run) == 2
    assert said[0] == "skip 0.2, select 0.3, block 32; 8 steps"
    lines = [line.partition(":")[0] for line in said[1:]]
    assert [line for line in lines if not line.startswith("note")] == ["run 1 of 2", "run 2 of 2"]
    assert result.dense_step.count == 16
    assert result.select_step is not None and result.select_step.count == 2
    assert result.sparse_step is not None and result.sparse_step.count == 10
    assert result.requested_density == pytest.approx(3 / 5)  # 2 of 4 prompt blocks, 1 of 1 of the generation
    assert 0 < result.attention.speedup and 0 <= result.same_tokens <= 1
    for runs, phases in ((result.dense, (8, 0, 0)), (result.sparsed, (2, 1, 5))):
        assert [tuple(run["phases"].values()) for run in runs] == [phases] * 2
        assert all(run["forwards"] == 8 and run["sampler"]["steps"] == 8 for run in runs)
    assert [run["switch_step"] for run in (result.dense[0], result.sparsed[0])] == [None, 3]
    assert result.dense[0]["attention"] == {"method": "dense"} and result.sparsed[0]["attention"]["block_size"] == 32
    head, dtype = (line.split("  ")[-1].strip() for line in _lines([result])[1:3])
    assert (head, dtype) == ("100 (100)", "float32")
    assert [(few.rows, few.keys) for few in result.attention.few_rows] == [(32, 132), (128, 132)]
    for few in result.attention.few_rows:
        assert list(few.milliseconds) == ["sdpa"] and few.milliseconds["sdpa"] > 0 and few.copy_speed > 0
    again = read_as(numbers.Measurement, json.loads(json.dumps(asdict(result))), "it")
    assert json.dumps(asdict(again)) == json.dumps(asdict(result)), "as a folder keeps it"


def test_the_split_of_a_step_with_experts(model_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The experts that are timed get what a dense forward gives those of the middle layer, and all take turns."""
    model = model_of("llada_moe", num_hidden_layers=3, moe_layer_freq=[1, 1, 1])
    given, wanted = list[torch.Tensor](), list[torch.Tensor]()
    real = attention_module.feed_forward
    monkeypatch.setattr(attention_module, "feed_forward", lambda layer, x: given.append(x) or real(layer, x))
    attention = SparseDConfig(skip=0.2, block_size=32)
    sampler = SamplerConfig(steps=4, gen_length=32, block_length=32)
    result, _ = measure_module.measure(model, torch.arange(100), "100", sampler, attention)
    canvas = torch.cat([torch.arange(100), torch.full((32,), model.mask_id)])[None]
    block = model.network.model.layers[1].mlp
    listener = block.register_forward_pre_hook(lambda _, inputs: wanted.append(inputs[0]))
    with torch.inference_mode():
        model.network(input_ids=canvas, use_cache=False)
    listener.remove()
    assert given[0].shape == (1, 132, 48) and torch.allclose(given[0], wanted[0], atol=1e-5)
    assert result.experts is not None and result.experts.count == result.attention.dense.count == len(given) - 1
    lines = _lines([result])
    for kind in ("dense", "sparse"):
        [line] = [line for line in lines if line.startswith(f"{kind} step: attention / experts / rest")]
        assert line.count(" / ") == 4
    assert [line for line in lines if line.startswith("one layer's experts")]


def test_what_a_step_is_split_into(tiny: Any) -> None:
    """Three layers, the last of which has few rows for its experts."""
    attention = SparseDConfig(block_size=32)
    plain, _ = measure_module.measure(tiny, torch.arange(100), "100", SamplerConfig(steps=8), attention)
    step, seen, written = (numbers.Spread(5, ms, ms, ms) for ms in (50.0, 10.0, 4.0))
    assert plain.experts is None and plain.split(step, seen) is None and plain.layers == 3
    assert replace(plain, experts=written).split(step, seen) == (30.0, 8.0, 12.0)
    assert not [line for line in _lines([plain]) if "experts" in line]


def test_a_length_without_room_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, threads_of_torch: None
) -> None:
    real = command.measure

    def measure(model: Any, prompt: Any, length: str, *given: Any, **more: Any) -> Any:
        if length == "300":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB.")
        return real(model, prompt, length, *given, **more)

    monkeypatch.setattr("sparsed.bench.command.measure", measure)
    file = tmp_path / "bench.json"
    assert main([*SWEEP, "--lengths", "200", "300", "250", "--json", str(file)]) == 1
    record = json.loads(file.read_text("utf-8"))
    assert [row["length"] for row in record["results"]] == ["200", "250"] and not record["finished"]
    said = (
        "mini (random weights) at 300 in float32 does not fit into cpu: choose a shorter length, or several GPUs "
        "(torchrun --nproc-per-node 2 -m sparsed bench …)."
    )
    printed = capsys.readouterr().out
    assert f"  300, float32: {said}\n" in printed and f"Left out: {said}\n" in printed
    assert "before the end" not in printed


def test_what_loading_took_is_told(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], threads_of_torch: None
) -> None:
    file = tmp_path / "bench.json"
    main([*SWEEP[2:], "--model", str(tiny_folder), "--random-tokens", "--lengths", "200", "--json", str(file)])
    [row] = json.loads(file.read_text("utf-8"))["results"]
    assert row["load_seconds"] > 0 and row["load_memory"] > 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("loaded in ")]
    assert line == f"loaded in {row['load_seconds']:.1f} s, at most {row['load_memory'] / 2**30:.2f} GiB"
    main([*SWEEP, "--lengths", "200", "--json", str(file)])
    [row] = json.loads(file.read_text("utf-8"))["results"]
    assert row["load_seconds"] > 0 and row["weights"] == 4 * 4_459_776  # mini's shape in float32
    assert f"drawn in {row['load_seconds']:.1f} s, at most " in capsys.readouterr().out


def _lines(results: list[numbers.Measurement]) -> list[str]:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        print_table(results)
    return said.getvalue().splitlines()


def test_few_rows_against_their_limit() -> None:
    """One head of 4 Mi keys and values of 64 halves: 1 GiB to be read."""
    few = numbers.FewRows(32, 2**22, {"split": 0.3, "flash": 0.45}, limit=0.25, copy_speed=4295.0)
    assert few.over_limit == pytest.approx(1.2)
    assert str(few) == "split 0.3, flash 0.45 (limit 0.25: 1.20×)"
    nothing = replace(few, milliseconds={})
    assert nothing.over_limit is None and str(nothing) == "none ran (limit 0.25)"


def test_the_limit_of_few_rows_is_reading_keys_and_values_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_rows, "copy_speed", lambda _: 1e9)
    q, k = torch.zeros(2, 6, 40, 32), torch.zeros(2, 3, 500, 32)
    [few] = few_rows.few_rows_times(q, k, k, 0.1)
    # 2 sequences, 3 heads, 500 keys and as many values of 32 numbers, 4 bytes each, at 10⁹ a second.
    assert (few.rows, few.keys, few.limit, few.copy_speed) == (32, 500, 0.768, 1.0)
    assert list(few.milliseconds) == ["sdpa"]


def test_what_a_measurement_lacks_is_a_dash(tiny: Any) -> None:
    """One without few rows, as an older folder holds it, beside one that has them, with other composed runs."""
    sampler = SamplerConfig(steps=8)
    attention = SparseDConfig(skip=0.2, block_size=32)
    first, _ = measure_module.measure(tiny, torch.arange(100), "100", sampler, attention, compose=[50, 100])
    second = replace(first, attention=replace(first.attention, few_rows=()), composed=first.composed[1:])
    cells = {line[:24].strip(): line.split()[-1] for line in _lines([first, second])}
    assert cells["32 rows to all keys"] == cells["128 rows to all keys"] == cells["composed, 50 steps: s"] == "–"
    assert cells["composed, 100 steps: s"] == f"{first.composed[1].sparsed:.1f}"


def test_a_lane_that_never_was_sparse_is_called_so(tiny: Any) -> None:
    said: list[str] = []
    attention = SparseDConfig(skip=1, block_size=32)
    result, _ = measure_module.measure(tiny, torch.arange(80), "80", SamplerConfig(steps=4), attention, say=said.append)
    assert said[0].startswith("note (SparseD): This run never becomes sparse"), "before hours of work"
    lines = _lines([result])
    assert lines[1].split("  ")[-1].strip() == "80 (80), never sparse"
    assert any(line.startswith("steps of SparseD: dense / select / sparse") and "4 / 0 / 0" in line for line in lines)
    [note] = (line for line in lines if "never becomes sparse" in line)
    assert note.startswith("Note (SparseD: 1 of 1): ")
    assert any(line.startswith("sampler: steps 4, gen_length 32, ") for line in lines)


def test_notes_of_both_lanes_and_of_every_repeat_are_kept(tiny: Any) -> None:
    """A trained length is passed by both; what on_no_gain decides is known at the end of a run."""
    said: list[str] = []
    slow = replace(tiny, max_positions=50)
    attention = SparseDConfig(skip=0, block_size=32, on_no_gain="dense")
    ticks = iter(range(10**6))
    with pytest.MonkeyPatch.context() as patch:
        # Every step takes a second, so no sparse step is faster than a dense one.
        patch.setattr("sparsed.denoising.run.perf_counter", lambda: next(ticks))
        sampler = SamplerConfig(steps=8)
        attention = replace(attention, skip=0.2)
        result, _ = measure_module.measure(
            slow, torch.arange(80), "80", sampler, attention, repeats=2, compose=[100], say=said.append
        )
    assert result.composed == (), "no run of so many steps would have been sparse to its end"
    for runs in (result.dense, result.sparsed):
        assert all(any("trained to 50" in note for note in run["notes"]) for run in runs)
    assert all(tuple(run["phases"].values()) == (4, 1, 3) for run in result.sparsed)
    assert all("from step 7 on this run is dense again" in run["notes"][-1] for run in result.sparsed)
    assert sum("trained to 50" in line for line in said) == 2 and sum("dense again" in line for line in said) == 1
    lines = _lines([result])
    assert lines[1].split("  ")[-1].strip() == "80 (80), dense again"
    assert "Note (dense: 2 of 2; SparseD: 2 of 2): Speed only: trained to 50" in "\n".join(lines)


def test_runs_that_end_early_are_measured(tiny: Any) -> None:
    sampler = SamplerConfig(steps=32, gen_length=32, block_length=32, threshold=1e-9)
    attention = SparseDConfig(skip=0.2, block_size=32)
    result, _ = measure_module.measure(tiny, torch.arange(100), "100", sampler, attention)
    assert result.steps == 32 and 0 < result.dense_step.count < 32 and result.sparse_step is None
    assert result.dense[0]["forwards"] == result.dense_step.count and not result.sparsed[0]["phases"]["sparse"]
    assert any("never became sparse" in note for note in result.sparsed[0]["notes"])


def test_command_line_with_random_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    arguments = "--shape mini --lengths 200 --steps 4 --gen-length 32 --dtype float32 --block-size 32"
    assert main([*arguments.split(), "--json", str(file)]) == 0
    record = json.loads(file.read_text(encoding="utf-8"))
    assert record["results"][0]["dtype"] == "float32" and record["machine"]["torch"] == torch.__version__
    assert "speed-up" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--repeats", "0"], ["--threads", "0"], ["--compose", "-1"]])
def test_numbers_below_one_are_refused(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        main(arguments)


@pytest.mark.parametrize("option", ["--compose", "--threads"])
def test_numbers_beyond_all_measure_are_refused_before_anything_is_measured(option: str) -> None:
    with pytest.raises(ValueError, match="must be below 2"):
        main([option, "99999999999"])


def test_settings_that_shut_each_other_out() -> None:
    with pytest.raises(ValueError, match="--shape draws weights of its own: leave --model out"):
        main(["--shape", "mini", "--model", "llada-8b"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--shape", "mini", "--kind", "fact"], ["--kind without effect: the prompt is random tokens."]),
        (["--random-tokens", "--kind", "fact"], ["--kind without effect: the prompt is random tokens."]),
        (["--kind", "fact"], []),
        (["--shape", "mini", "--prompt-seed", "3"], []),
        (["--cache-refresh", "4"], ["--cache-refresh without effect: no --cache is asked for."]),
        (["--cache", "delayed", "none", "--cache-refresh", "4"], []),
    ],
)
def test_options_without_effect_are_said(words: list[str], said: list[str]) -> None:
    parser = command._parser()
    options = parser.parse_args(words)
    assert unheeded(options, given_of(parser, options)) == said


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(dtype, length) of everything that is measured, in order."""
    real, made = measure_module.measure, []

    def measure(*given: Any, **more: Any) -> tuple[numbers.Measurement, torch.Tensor]:
        result, tokens = real(*given, **more)
        made.append((result.dtype, result.length))
        return result, tokens

    monkeypatch.setattr("sparsed.bench.command.measure", measure)
    return made


@pytest.fixture
def threads_of_torch() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def launch(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """accelerate launch with two processes; without a GPU they share the CPU."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    return subprocess.run(
        [*command, "-m", "sparsed", "bench", *SWEEP, *options], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_a_sweep_over_two_processes_is_that_of_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], measured: list[tuple[str, str]], threads_of_torch: None
) -> None:
    two, file = tmp_path / "two", tmp_path / "two.json"
    # One measurement is there, and a second one was cut off while it was written.
    assert main([*SWEEP, "--lengths", "200", "--out", str(two)]) == 0
    kept = two / "measurements-0-of-1.jsonl"
    before = kept.read_bytes()
    kept.write_bytes(before + before[:100])
    done = launch(two, "--lengths", "400", "200", "300", "350", "--out", str(two), "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert kept.read_bytes() == before + before[:100], "what is there is not measured again"
    assert "1 of 4 measurements are in" in done.stdout and done.stdout.count("one layer's attention") == 1
    assert done.stderr.count("slow each other") == 1

    # The longest to one process, the other two to the other.
    def lengths(name: str) -> list[str]:
        return [json.loads(line)["length"] for line in (two / name).read_text("utf-8").splitlines()]

    assert lengths("measurements-0-of-2.jsonl") == ["400"] and lengths("measurements-1-of-2.jsonl") == ["300", "350"]
    capsys.readouterr()
    one = tmp_path / "one.json"
    assert main([*SWEEP, "--lengths", "200", "300", "350", "400", "--json", str(one)]) == 0
    rows = [json.loads(path.read_text("utf-8"))["results"] for path in (one, file)]
    assert [row["length"] for row in rows[0]] == ["200", "300", "350", "400"]
    alone, shared = ([{name: row[name] for name in DETERMINISTIC} for row in found] for found in rows)
    assert alone == shared
    # And one process goes on where two were.
    measured.clear()
    assert main([*SWEEP, "--lengths", "250", "400", "--out", str(two)]) == 0
    assert measured == [("float32", "250")]
    assert "200 (200)" in capsys.readouterr().out, "the table is of all that the folder holds"
    assert [row.length for row in _kept(two)] == ["200", "250", "300", "350", "400"]


def test_a_folder_keeps_what_was_measured_before_an_interruption(
    tmp_path: Path, measured: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, threads_of_torch: None
) -> None:
    options = [*SWEEP, "--dtype", "float32", "bfloat16", "--lengths", "300", "200", "--out", str(tmp_path)]
    counting = command.measure

    def interrupted(*given: Any, **more: Any) -> tuple[numbers.Measurement, torch.Tensor]:
        if len(measured) == 3:
            raise KeyboardInterrupt
        return counting(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr("sparsed.bench.command.measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            main(options)
    kept = _kept(tmp_path)
    assert [(row.dtype, row.length) for row in kept] == [("bfloat16", "300"), ("float32", "200"), ("float32", "300")]
    main(options)
    assert measured == [("float32", "300"), ("float32", "200"), ("bfloat16", "300"), ("bfloat16", "200")]
    assert _kept(tmp_path)[1:] == kept


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("CUDA out of memory."), Terminated()])
@pytest.mark.parametrize("folder", [False, True])
def test_what_was_measured_before_the_end_is_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], threads_of_torch: None,
    error: BaseException, folder: bool,
) -> None:  # fmt: skip
    """Whatever ends it in the second of three; and after the first one the file is there already."""
    real, made, file = measure_module.measure, [], tmp_path / "bench.json"

    def measure(*given: Any, **more: Any) -> tuple[numbers.Measurement, torch.Tensor]:
        if made:
            raise error
        made.append(real(*given, **more))
        return made[-1]

    monkeypatch.setattr("sparsed.bench.command.measure", measure)
    out = ["--out", str(tmp_path / "out")] if folder else []
    codes = {KeyboardInterrupt: 130, Terminated: 143, RuntimeError: 1}
    assert program(["bench", *SWEEP, "--lengths", "200", "300", "400", "--json", str(file), *out]) == codes[type(error)]
    said, told = capsys.readouterr()
    assert "200 (200)" in said and "This is what was measured before the end." in said and f"written to {file}" in said
    record = json.loads(file.read_text(encoding="utf-8"))
    assert [row["length"] for row in record["results"]] == ["200"] and record["finished"] is False
    assert told.count("\n") == 1 and ("the same command goes on from there" in told) == (
        folder and isinstance(error, KeyboardInterrupt)
    )
    monkeypatch.setattr("sparsed.bench.command.measure", real)
    assert program(["bench", *SWEEP, "--lengths", "200", "300", "--json", str(file), *out]) == 0
    record = json.loads(file.read_text(encoding="utf-8"))
    assert [row["length"] for row in record["results"]] == ["200", "300"] and record["finished"] is True


def test_an_end_before_the_first_measurement_says_nothing_of_a_folder_that_nobody_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], threads_of_torch: None
) -> None:
    def measure(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sparsed.bench.command.measure", measure)
    assert program(["bench", *SWEEP, "--lengths", "200"]) == 130
    said, told = capsys.readouterr()
    assert told == "stopped.\n" and "speed-up" not in said


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sparsed.bench.command.load_or_make", lambda *_: pytest.fail("nothing is to be loaded"))
    assert program(["bench", *SWEEP, "--lengths", "200", "--json", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: --json {tmp_path} cannot be written: this is a folder.\n"


@pytest.mark.parametrize(
    ("seconds", "later", "said"),
    [
        ([9.0, 2.0, 2.0, 2.0], [], ["about 4.3 min: 2 runs of 64 steps, 2 s a step of full attention"]),
        (
            [1.0, 30.0, 30.0],
            ["8k", "2k"],
            ["about 1.1 h: 2 runs of 64 steps, 30 s a step of full attention; then 2.7 h to 4.5 h, by their lengths, "
             "for 8k, 2k"],
        ),
        ([0.1, 0.1, 0.1, 0.1], [], []),
        ([5.0, 5.0], ["8k"], []),
    ],
)  # fmt: skip
def test_how_long_it_takes_is_said_once_as_soon_as_it_is_known(
    seconds: list[float], later: list[str], said: list[str]
) -> None:
    """The first step may be slower; what takes no time needs no word."""
    told: list[str] = []
    estimate = Estimate(2, "4k", later, told.append)
    for made in range(len(seconds)):
        run = SimpleNamespace(total=64, steps=[SimpleNamespace(seconds=spent) for spent in seconds[: made + 1]])
        estimate.look(run)
        assert not told or made >= 2
    assert told == said


def test_what_caches_take_is_part_of_how_long_it_takes() -> None:
    told: list[str] = []
    run = SimpleNamespace(total=64, steps=[SimpleNamespace(seconds=2.0)] * 3)
    Estimate(2, "4k", [], told.append, cached=0.5).look(run)
    assert told == [
        "about 5.3 min: 2 runs of 64 steps, 2 s a step of full attention, and 1.1 min of it for caches"
    ]  # fmt: skip


def test_a_measurement_shows_each_dense_step_to_who_looks(tiny: Any) -> None:
    seen: list[int] = []
    measure_module.measure(
        tiny, torch.arange(100), "100", SamplerConfig(steps=8), SparseDConfig(block_size=32), repeats=2,
        look=lambda run: seen.append(len(run.steps)),
    )  # fmt: skip
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8] * 2


# Another value of every option that all measurements of a folder have alike.
KEY = {
    "shape": "qwen3-0.6b", "random_tokens": None, "kind": "fact", "prompt_seed": "1", "backend": "gather",
    "dense_backend": "sdpa", "no_fuse": None, "repeats": "2", "compose": "64", "threads": "2",
    "steps": "5", "gen_length": "64", "block_length": "16", "algorithm": "random", "temperature": "0.5", "seed": "1",
    "top_p": "0.5", "top_k": "5", "alg_temp": "0.5", "eps": "0.01", "cfg_scale": "1", "threshold": "0.9",
    "logits_eos_inf": "yes", "confidence_eos_eot_inf": "yes", "early_stop": "yes", "stop": "Question:",
    "canvas": "growing", "end_think_boost": "9", "end_think_power": "2",
    "skip": "0.3", "select": "0.5", "block_size": "64", "selection": "reference", "keep_importance": "yes",
    "on_no_gain": "dense", "isolated": "no", "reuse": "no", "generation_rows": "full", "refresh": "2",
    "cache": "dual", "cache_refresh": "4", "cache_keys": "pattern",
}  # fmt: skip
# Rows say what they were; a model counts by its weights. Of these no measurement depends.
# (A preset counts by the settings that it stands for.)
APART, WITHOUT = {"lengths", "dtype", "quantize", "model"}, {"help", "device", "out", "json", "preset"}
# Refused beside the random weights that are measured here; of a model it is part of the key (test_rotation.py).
OF_A_MODEL = {"rope_factor"}


def test_every_option_is_part_of_the_key_or_kept_apart_or_without_influence() -> None:
    assert {action.dest for action in command._parser()._actions} == KEY.keys() | APART | WITHOUT | OF_A_MODEL


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads_of_torch: None) -> Path:
    """One measurement is in it; measured is no more."""
    main([*SWEEP, "--lengths", "200", "--out", str(tmp_path)])

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is to be measured")

    monkeypatch.setattr("sparsed.bench.command.measure", refuse)
    return tmp_path


def test_another_value_of_any_option_is_refused_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, loaded = command.load_or_make, []
    monkeypatch.setattr("sparsed.bench.command.load_or_make", lambda *given: loaded.append(given) or real(*given))
    for name, value in KEY.items():
        options = [*SWEEP, "--lengths", "250", "--out", str(folder), f"--{name.replace('_', '-')}"]
        said = rf"belongs to another plan \(.*\b{name} is .* there, .* here.*\); choose another"
        with pytest.raises(ValueError, match=said):
            main([*options, *([] if value is None else [value])])
        # Only what a length asked for becomes is not known without the model.
        assert bool(loaded) == (name == "gen_length"), name
        loaded.clear()


def test_another_value_anywhere_in_the_key_is_refused_by_name(folder: Path) -> None:
    said = (folder / "plan.json").read_text("utf-8")
    whole = json.loads(said)["key"]
    places = [(name,) for name in whole if not isinstance(whole[name], dict)]
    places += [(name, inner) for name in whole if isinstance(whole[name], dict) for inner in whole[name]]
    assert {("weights",), ("versions", "torch"), ("machine", "cpu"), ("prompts",), ("device",)} <= set(places)
    for place in places:
        plan = json.loads(said)
        (plan["key"] if len(place) == 1 else plan["key"][place[0]])[place[-1]] = "another"
        (folder / "plan.json").write_text(json.dumps(plan), "utf-8")
        with pytest.raises(ValueError, match=rf'{".".join(place)} is "another" there, .* here'):
            main([*SWEEP, "--lengths", "250", "--out", str(folder)])


def test_a_folder_that_lacks_nothing_is_no_other_models(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, threads_of_torch: None
) -> None:
    """Nothing would be loaded; all the same the table of one model is not shown as another's."""
    options = [*SWEEP, "--random-tokens", "--lengths", "200", "--out", str(tmp_path)]
    del options[:2]  # --shape mini
    main([*options, "--model", str(tiny_folder)])

    def load(*_: Any) -> None:
        raise AssertionError("nothing is to be loaded")

    monkeypatch.setattr("sparsed.bench.command.load_or_make", load)
    assert main([*options, "--model", str(tiny_folder)]) == 0
    with pytest.raises(ValueError, match=r"belongs to another plan \(.*weights is .* there, .* here"):
        main([*options, "--model", "mini"])
    with pytest.raises(ValueError, match=r"belongs to another plan \(sampler.gen_length is 32 there, 64 here"):
        main([*options, "--model", str(tiny_folder), "--gen-length", "64"])


def test_measurements_of_another_folder_are_told_and_left_out(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    line = json.loads((folder / "measurements-0-of-1.jsonl").read_text("utf-8"))
    (folder / "measurements-1-of-2.jsonl").write_text(json.dumps({**line, "key": "0", "length": "300"}), "utf-8")
    main([*SWEEP, "--lengths", "200", "--out", str(folder)])
    said = capsys.readouterr()
    assert "measurements-1-of-2.jsonl holds 1 measurements of another plan: they are left out" in said.err
    assert "300 (300)" not in said.out


def test_its_own_defaults_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], threads_of_torch: None) -> None:
    main([*SWEEP, "--lengths", "200"])
    assert "bench's own defaults: skip 0.2, select 0.3; what else" in capsys.readouterr().out
    bounded = command._parser().parse_args(["--threshold", "0.9", "--skip", "0.1"])
    assert command._fill_in(bounded) == "select 0.3, block_size 128" and bounded.steps is None
    # What a preset says is said.
    ours = command._parser().parse_args(["--preset", "recommended", "--steps", "9"])
    assert command._fill_in(ours) == "block_size 128"
    assert attention_of(ours) == replace(RECOMMENDED, block_size=128)


def test_processes_that_share_the_work_need_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew.Crew, "here", lambda: contextlib.nullcontext(crew.Crew(rank=1, size=2)))
    with pytest.raises(ValueError, match="name one with --out"):
        main([*SWEEP, "--lengths", "200"])
