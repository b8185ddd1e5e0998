"""accelerate launch -m sparsed lm_eval: the questions of a task shared among processes, each with a whole model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed (the optional extra 'lm_eval')")

import lm_eval  # noqa: E402
import torch  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from sparsed.harness import SparsedLM  # noqa: E402
from sparsed.parallel.crew import Crew  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
ARGUMENTS: dict[str, Any] = {"pretrained": "mini", "dtype": "float32", "mc_num": 4, "threshold": 0.9, "gen_length": 32}
pytestmark = pytest.mark.usefixtures("offline")


def launch(folder: Path, *line: str) -> subprocess.CompletedProcess[str]:
    """The command by accelerate launch with two processes; both are on the CPU."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1",
                   "HF_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}  # fmt: skip
    return subprocess.run(
        [*command, "-m", "sparsed", "lm_eval", *line],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=500,
    )  # fmt: skip


def timeless(made: Any) -> Any:
    """Counts without what a clock says, and without what belongs to how questions were dealt out."""
    if not isinstance(made, dict):
        return made
    return {
        key: timeless(value)
        for key, value in made.items()
        if key not in ("seconds", "processes") and "no faster" not in key
    }


def spelled(value: Any) -> Any:
    """Answers as the harness writes them into its files of samples."""
    return [spelled(inner) for inner in value] if isinstance(value, (list, tuple)) else str(value)


def test_two_processes_give_what_one_gives(tasks: Path, tmp_path: Path) -> None:
    """Three questions each: one process has two of them, the other one, which answers none twice."""
    arguments = ",".join(f"{name}={value}" for name, value in ARGUMENTS.items())
    done = launch(
        tmp_path, "--model", "sparsed", "--model_args", arguments,
        "--tasks", "tiny_choice,tiny_answer", "--include_path", str(tasks), "--device", "cpu",
        "--output_path", str(tmp_path / "out"), "--log_samples",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    # The first process speaks for both.
    assert done.stdout.count("|tiny_choice|") == 1
    assert done.stderr.count("runs never became sparse: these are full attention's results") == 1
    assert "tiny_answer (generate_until): 3 of 3 runs never became sparse" in done.stderr
    [written] = (tmp_path / "out").rglob("results_*.json")
    two = json.loads(written.read_text())
    samples = {
        file.name.removeprefix("samples_").partition("_2")[0]: [json.loads(line) for line in file.open()]
        for file in (tmp_path / "out").rglob("samples_*.jsonl")
    }

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = lm_eval.simple_evaluate(
            model="sparsed",
            model_args=ARGUMENTS,
            tasks=["tiny_choice", "tiny_answer"],
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            device="cpu",
        )
    finally:
        torch.set_num_threads(threads)
    alone = json.loads(json.dumps(one, default=str))
    for task in ("tiny_choice", "tiny_answer"):
        assert two["results"][task] == alone["results"][task]
        got = sorted(samples[task], key=lambda sample: sample["doc_id"])
        assert [sample["resps"] for sample in got] == [spelled(sample["resps"]) for sample in one["samples"][task]]
    assert two["config"]["sparsed"]["processes"] == 2
    assert timeless(two["config"]["sparsed"]) == timeless(alone["config"]["sparsed"])


class _Dealt(Crew):
    """Two processes of which each has so many questions."""

    def gather(self, value: Any) -> list[Any]:
        return [value, 3 - value]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_task_without_a_question_for_each_process_is_one_sentence(harness_of, rank: int) -> None:
    lm: SparsedLM = harness_of("llada")
    lm.crew = _Dealt(rank, 2, rank, 2)
    assert (lm.rank, lm.world_size) == (rank, 2)
    # Nobody is to answer a question twice, so that all have as many.
    assert lm.all_gather(torch.tensor(2)).tolist() == [2, 2]
    for mine in (0, 3):
        with pytest.raises(ValueError, match=r"A task has fewer questions than there are processes \(2\)"):
            lm.all_gather(torch.tensor(mine))
    assert lm.gather_object(1) == (None if rank else [1, 2])


def test_only_the_first_process_speaks(harness_of, caplog) -> None:
    lm: SparsedLM = harness_of("llada")
    for rank, said in ((1, []), (0, ["a sentence"])):
        lm.crew = Crew(rank, 2, rank, 2)
        lm.say("kind", "a sentence"), lm.say("kind", "a sentence")
        assert [record.getMessage() for record in caplog.records] == said


def test_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(ValueError, match="lm_eval cannot run under torchrun"):
        SparsedLM(pretrained="mini")
