"""Fixtures of the engine's tests."""

from __future__ import annotations

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
