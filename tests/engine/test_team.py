"""Several processes that hold one model together: the same tokens and patterns as one, and an end to every failure.

torchrun starts the processes (gloo, CPU); what they do is in team_script.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sparsed.__main__ import main
from sparsed.parallel.launch import Launch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("team_script.py")
SECONDS = 5.0


def start(processes: int, *command: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), *command],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


class Ended(NamedTuple):
    code: int
    at: float  # seconds, as time.time() counts
    out: str
    error: str
    found: dict[str, Any]  # by scenario


def scenarios(processes: int, names: str, out: Path, *folders: Path, **environment: str) -> Ended:
    process = start(processes, str(SCRIPT), names, str(out), *map(str, folders), FAIL=f"{out}.plan", **environment)
    try:
        said = process.communicate(timeout=300)
    finally:
        at = time.time()
        with_group(process, signal.SIGKILL)
    assert out.exists(), said[1]
    return Ended(process.returncode, at, *said, json.loads(out.read_text()))


def with_group(process: subprocess.Popen[str], number: int) -> None:
    """A signal to the processes of a session, where there are any left."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


@pytest.fixture(scope="module")
def folders(checkpoints: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Qwen3, LLaDA, Dream and iLLaDA in small, with heads and vocabularies that four processes can share."""
    base = tmp_path_factory.mktemp("team")
    made = [
        checkpoints.write_qwen3(base / "qwen3", num_attention_heads=8, num_key_value_heads=4, vocab_size=308),
        checkpoints.write_llada(base / "llada", embedding_size=312, mask_predicted=False),
        checkpoints.write_dream(
            base / "dream", num_attention_heads=8, hidden_size=64, num_key_value_heads=4, vocab_size=320,
            mask_predicted=False,
        ),
        checkpoints.write_illada(base / "illada", num_key_value_heads=2, vocab_size=312, mask_predicted=False),
    ]  # fmt: skip
    return [base / path.name for path in made]


def test_a_team(folders: list[Path], tmp_path: Path) -> None:
    """Started once, because starting takes longest. float32: every step's tokens, every pattern and probe are those of
    one process. Then a process fails, again and again, and after each failure a run is whole; commands give what they
    give in one process; and in the end one of the processes is gone, in the middle of a run.
    """
    commands = [
        ("sparsed.evaluation.command", [*EVALUATED, "--out", str(tmp_path / "two")]),
        ("sparsed.bench.command", [*MEASURED, "--json", str(tmp_path / "two.json")]),
    ]
    made = scenarios(
        2, "short+fail+commands+lost", tmp_path / "out.json", *folders, ROOT / "assets" / "mini",
        COMMANDS=json.dumps(commands),
    )  # fmt: skip
    assert made.found.keys() == {"short", "fail", "commands"}, made.error
    check_equal(made.found["short"], 2)
    check_failures(made.found["fail"]["failures"])
    check_lost(made, 2)
    check_commands(tmp_path)


def check_failures(failures: list[Any]) -> None:
    assert len(failures) == 10
    for rank, place, said, seconds, same in failures:
        assert "no room here" in said, (rank, place, said)
        assert said.startswith("MemoryError" if rank == 0 else "TeamError: Process 2 of 2 failed: MemoryError"), said
        assert seconds < SECONDS and same, (rank, place, seconds)


def check_equal(found: dict[str, Any], processes: int) -> None:
    """The first family in every setting; the others at least in those that depend on a family."""
    assert list(found) == ["qwen3", "llada", "dream", "illada", "mini"]
    for name, settings in found.items():
        assert settings["share"] < 1 / processes + 0.02, f"{name}: a process holds {settings['share']:.2f} of it"
        assert settings["rows"] < 1e-4 and settings.get("turns", True), (name, settings["rows"])
        assert settings["kept"] == 1 / processes
        made = {setting: one for setting, one in settings.items() if isinstance(one, dict)}
        assert len(made) == 17 or {"dense", "sparse", "cached in blocks", "grown"} == made.keys() and name != "qwen3"
        for setting, one in made.items():
            assert one["tokens"] and one["steps"] and one["text"], (name, setting, one)
            assert one["committed"] > 20 and one["confidence"] < 1e-3, (name, setting, one)
            if setting != "dense":
                assert one["pattern"] and one["probes"] and one["heads"] in (4, 8), (name, setting, one)
                assert 0 < one["density"] < 1
                # Of 332 positions, those from 288 on: blocks 9 and 10 of 32.
                assert one["full"] == (2 if setting in ("full rows", "refreshed") else 0)
        assert made["sparse"]["importance"] < 1e-3
        if name != "dream":  # two blocks of 16, in each a selection
            assert made["grown"]["phases"] == ["dense", "select", *["sparse"] * 2, "select", *["sparse"] * 3]
        if "refreshed" in made:
            assert settings["turns"] and made["refreshed"]["importance"] < 1e-3
            # One selection as planned, then one every two steps, and where LLaDA's second block of 16 begins.
            refreshed = made["refreshed"]["phases"]
            assert refreshed.count("select") > 2 and refreshed[2:4] == ["select", "sparse"], refreshed
            # What differs from head to head differs between processes.
            assert made["random"]["density"] == pytest.approx(made["shared"]["density"])


def check_lost(made: Ended, processes: int) -> None:
    """The last process was gone in the middle of a run."""
    assert made.code != 0
    said = f"error: Process {processes} of {processes}, which held a share of the model, is gone"
    assert said in made.error, made.error
    [began] = re.findall("^now (.*)$", made.out, re.MULTILINE)
    assert made.at - float(began) < SECONDS


EVALUATED = ["--lengths", "200", "--types", "lookup", "--questions", "2", "--steps", "8", "--dtype", "float32",
             "--methods", "dense", "sparsed"]  # fmt: skip
MEASURED = ["--lengths", "300", "--steps", "6", "--gen-length", "32", "--dtype", "float32", "--block-size", "32"]


def check_commands(folder: Path) -> None:
    """An evaluation and a measurement are those of one process: everything but the seconds."""
    from sparsed.bench import command as bench
    from sparsed.evaluation import command as evaluate
    from sparsed.evaluation import reading

    evaluate.main([*EVALUATED, "--out", str(folder / "one")])
    bench.main([*MEASURED, "--json", str(folder / "one.json")])
    answers = [
        [asdict(replace(r, seconds=0, run=None)) for r in reading.read_records(folder / name)]
        for name in ("one", "two")
    ]
    assert len(answers[0]) == 4 and answers[0] == answers[1]
    one, two = (json.loads((folder / f"{name}.json").read_text())["results"][0] for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert len(two["peak_memory_each"]) == 2 and two["peak_memory"] == max(two["peak_memory_each"]) > 10**8
    for name in ("prompt_tokens", "steps", "switch_step", "requested_density", "executed_density", "same_tokens"):
        assert one[name] == two[name], name


@pytest.mark.parametrize("all_of_them", [True, False])
def test_ctrl_c_ends_all_within_a_step_and_prints_what_there_is(all_of_them: bool) -> None:
    """A terminal sends it to every process, and torchrun passes it on once more."""
    # Half a second a step, or a quarter: 48 of them.
    process = start(2, "-m", "sparsed", "generate", "--prompt", "2k", "--dtype", "float32")
    assert process.stdout is not None
    first = process.stdout.readline()  # the model's name, just before the first step
    assert "2 × cpu" in first, first + process.communicate()[1]
    time.sleep(2)
    began = time.monotonic()
    if all_of_them:
        with_group(process, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    seconds = time.monotonic() - began
    with_group(process, signal.SIGKILL)
    assert seconds < SECONDS, seconds
    assert "stopped after " in out and "so far: " in out and re.search("^backend: .*gather", out, re.MULTILINE), out


def test_a_script_that_joins_a_team_ends_well(folders: list[Path], tmp_path: Path) -> None:
    """As docs/python.md says it, without a word about the end; what follows runs in the first process alone."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport sparsed\nfrom sparsed.parallel.meeting import join\n"
        f"model = sparsed.load({str(folders[0])!r}, team=join())\n"
        "print('made', sparsed.generate(model, 'Hello!', sampler=sparsed.SamplerConfig(steps=4)).steps[-1].index)\n"
    )
    process = start(2, str(script))
    out, said = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "made 3\n"), said


def test_a_command_that_cannot_be_shared_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under torchrun, which is what these variables say."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert main(["lm_eval", "--model", "sparsed"]) != 0
    assert capsys.readouterr().err == "error: lm_eval cannot run under torchrun; bench, eval, generate can.\n"


def test_heads_that_cannot_be_shared_are_said(folders: list[Path]) -> None:
    process = start(3, "-m", "sparsed", "generate", "--model", str(folders[0]), "--prompt", "hello", "--quiet")
    _, said = process.communicate(timeout=120)
    assert "error: qwen3 has 4 key/value heads, which 3 processes cannot share: start as many as divide 4." in said


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({}, "alone"),
        ({"WORLD_SIZE": "1", "RANK": "0"}, "alone"),
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, "tensor"),
        (
            {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "1"},
            "data",
        ),
    ],
)
def test_how_a_process_was_started(environment: dict[str, str], kind: str) -> None:
    launch = Launch.here(environment)
    assert launch.kind == kind
    assert (launch.rank, launch.size) == ((0, 1) if kind == "alone" else (1, 2))


def test_an_environment_that_is_not_whole_is_refused() -> None:
    with pytest.raises(ValueError, match="WORLD_SIZE is '2'"):
        Launch.here({"WORLD_SIZE": "2", "RANK": "0"})


def test_no_team_without_torchrun() -> None:
    from sparsed.parallel import meeting

    with pytest.raises(ValueError, match="start several processes with torchrun"):
        meeting.join(Launch())
    with pytest.raises(ValueError, match="one machine"):
        meeting.join(Launch("tensor", 0, 4, 0, 2))


def test_a_team_takes_no_device(tiny_folder: Path) -> None:
    import sparsed

    class Stub:
        size = 2

    for wrong in ({"device": "cpu"}, {"device_map": "auto"}):
        with pytest.raises(ValueError, match="leave device and device_map out"):
            sparsed.load(tiny_folder, team=Stub(), **wrong)  # type: ignore[arg-type]


def test_every_head_belongs_to_one_process() -> None:
    import torch

    from sparsed.parallel.share import Share

    for size in (1, 2, 4):
        found = torch.cat([torch.arange(8)[Share(rank, size, torch.device("cpu")).heads(8)] for rank in range(size)])
        assert found.tolist() == list(range(8))


def test_one_run_is_nothing_to_share() -> None:
    """Under accelerate launch every process would make the same run."""
    started = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "sparsed", "generate"], cwd=ROOT, env={**os.environ, **started}, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: generate cannot run under accelerate launch; bench, eval, lm_eval can.\n"
