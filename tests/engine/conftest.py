"""Fixtures of the engine's tests."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def checkpoints() -> ModuleType:
    """The module checkpoints.py beside this file (tests are no package, so it cannot be imported by name)."""
    name = "tests_engine_checkpoints"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("checkpoints.py"))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


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
