"""Fixtures of the engine's tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def folder_of(checkpoints: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(family, values for its writer) → a checkpoint folder, written once; read only."""
    written: dict[str, Path] = {}

    def write(family: str, **values: Any) -> Path:
        key = repr((family, sorted(values.items())))
        if key not in written:
            written[key] = checkpoints.WRITERS[family](tmp_path_factory.mktemp(family), **values)
        return written[key]

    return write


@pytest.fixture(scope="session")
def model_of(folder_of: Callable[..., Path]) -> Callable[..., Any]:
    """(family, values for its writer) → the model on the CPU, in float32 unless said otherwise, loaded once."""
    import sparsed

    loaded: dict[str, Any] = {}

    def load(family: str, load_dtype: str = "float32", **values: Any) -> Any:
        key = repr((family, load_dtype, sorted(values.items())))
        if key not in loaded:
            loaded[key] = sparsed.load(folder_of(family, **values), device="cpu", dtype=load_dtype)
        return loaded[key]

    return load


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """lm-evaluation-harness without a network. The variables are read when its libraries are first imported, which may
    have been long ago.
    """
    import datasets

    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setattr(datasets.config, name, True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture(scope="session")
def harness_of(folder_of: Callable[..., Path]) -> Callable[..., Any]:
    """(family or folder, model arguments) → the harness's model, on the CPU in float32."""

    def make(family: str | Path, **arguments: Any) -> Any:
        from sparsed.harness.model import SparsedLM

        folder = folder_of(family) if isinstance(family, str) else family
        return SparsedLM(pretrained=str(folder), device="cpu", dtype="float32", **arguments)

    return make


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with two local tasks of the harness, multiple choice and generation, three questions each."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    questions = [{"question": f"Is {a} + {a} even?", "choices": ["yes", "no"], "answer": 0} for a in (1, 2, 3)]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in questions))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "data.jsonl")}},
            "test_split": "test", "doc_to_text": "{{question}}"}  # fmt: skip
    choose = data | {"task": "tiny_choice", "output_type": "multiple_choice", "doc_to_choice": "choices",
                     "doc_to_target": "answer", "metric_list": [{"metric": "acc"}]}  # fmt: skip
    write = data | {"task": "tiny_answer", "output_type": "generate_until", "doc_to_target": "{{choices[answer]}}",
                    "metric_list": [{"metric": "exact_match"}],
                    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8}}  # fmt: skip
    for task in (choose, write):
        (folder / f"{task['task']}.yaml").write_text(json.dumps(task))  # JSON is YAML
    return folder
