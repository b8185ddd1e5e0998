"""The bench: a fair race, and a measurement that says what it measured."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsed import bench
from sparsed.config import SamplerConfig, SparseDConfig


class FakeRun:
    """A run whose steps take as long as it is told."""

    def __init__(self, name: str, seconds: list[float], log: list[str]) -> None:
        self.name, self.seconds, self.log = name, iter(seconds), log
        self.total = len(seconds)

    def __next__(self) -> Any:
        self.log.append(self.name)
        return SimpleNamespace(seconds=next(self.seconds))


@pytest.mark.parametrize(("first", "order"), [(0, "abaaaab"), (1, "baaaaba")])
def test_the_lane_with_less_time_makes_the_next_step(first: int, order: str) -> None:
    log: list[str] = []
    runs: list[Any] = [FakeRun("a", [1.0] * 5, log), FakeRun("b", [4.0, 4.0], log)]
    assert bench.race(runs, first) == [5.0, 8.0]
    assert "".join(log) == order


def test_agreement_counts_up_to_the_end_of_the_longer_answer() -> None:
    first = torch.tensor([[5, 6, 0, 0, 0, 0]])
    assert bench._agreement(first, torch.tensor([[5, 6, 0, 9, 9, 9]]), end=0) == 1.0
    assert bench._agreement(first, torch.tensor([[5, 7, 8, 0, 0, 0]]), end=0) == 0.5
    assert bench._agreement(first, torch.tensor([[5, 6, 7, 7, 7, 7]]), end=0) == pytest.approx(2 / 6)


def test_measurement_of_a_tiny_model(tiny: Any) -> None:
    ids = torch.arange(100)
    said: list[str] = []
    result = bench.measure(
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
    assert [line.partition(":")[0] for line in said[1:]] == ["run 1 of 2", "run 2 of 2"]
    assert result.dense_step.count == 16
    assert result.select_step is not None and result.select_step.count == 2
    assert result.sparse_step is not None and result.sparse_step.count == 10
    assert result.requested_density == pytest.approx(3 / 5)  # 2 of 4 prompt blocks, 1 of 1 of the generation
    assert 0 < result.attention.speedup and 0 <= result.same_tokens <= 1


def test_command_line_with_random_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    arguments = "--shape mini --lengths 200 --steps 4 --gen-length 32 --dtype float32 --block-size 32"
    assert bench.main([*arguments.split(), "--json", str(file)]) == 0
    record = json.loads(file.read_text(encoding="utf-8"))
    assert record["results"][0]["dtype"] == "float32" and record["machine"]["torch"] == torch.__version__
    assert "speed-up" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--repeats", "0"], ["--threads", "0"]])
def test_numbers_below_one_are_refused(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        bench.main(arguments)
