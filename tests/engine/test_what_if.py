"""Another select, tried on a run that is over, keeps what a run with that select keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sparsed
from app.finished.run import Kept, keep, opened
from app.finished.what_if import what_if, why_not
from sparsed import trace
from sparsed.config import SamplerConfig, SparseDConfig

PROMPT = "Where is the lighthouse? " * 14


def run_with(model: sparsed.Model, select: float, size: int, **more: object) -> sparsed.Run:
    attention = SparseDConfig(skip=0.5, select=select, block_size=size, **more)  # type: ignore[arg-type]
    run = sparsed.denoise(model, PROMPT, sampler=SamplerConfig(steps=4), attention=attention)
    for _ in run:
        pass
    return run


@pytest.mark.parametrize(
    ("size", "more"), [(32, {}), (64, {}), (32, {"generation_rows": "full"}), (32, {"isolated": False})]
)
def test_a_fresh_run_keeps_the_same(tiny: sparsed.Model, tmp_path: Path, size: int, more: dict[str, object]) -> None:
    run = run_with(tiny, 0.3, size, keep_importance=True, **more)
    live = keep({"sparse": run}, PROMPT)
    assert live is not None and live.pattern is not None
    trace.save(trace.record({"sparse": run}, prompt=PROMPT, importance=True), tmp_path / "run.json.gz")
    recorded = opened(tmp_path / "run.json.gz")
    assert why_not(live) == why_not(recorded) == ""
    for select in (0.02, 0.1, 0.3, 0.55, 0.83, 1.0):
        fresh = run_with(tiny, select, size, **more).pattern
        assert fresh is not None
        for layer in range(3):
            for head in range(4):
                mask = fresh.mask(layer, head).numpy()
                for kept in (live, recorded):
                    _same_but_for_equals(kept, layer, head, select, mask)


def _same_but_for_equals(kept: Kept, layer: int, head: int, select: float, mask: np.ndarray) -> None:
    """The run ranks float32, the page what it has kept of it: rounded, which swaps no two but makes some equal. So each
    row keeps blocks of the same rounded importances, and the same ones wherever those differ.
    """
    assert kept.pattern is not None
    tried = what_if(kept, layer, head, select).mask
    weights = kept.pattern.importance(layer, head)
    assert weights is not None
    middle = kept.pattern.layout.prompt_blocks
    assert kept.seen is not None
    sides = [slice(None, middle), slice(middle, None)] if kept.seen.attention.isolated else [slice(None)]
    for row, mine, theirs in zip(weights, tried, mask, strict=True):
        for side in sides:
            assert np.array_equal(np.sort(row[side][mine[side]]), np.sort(row[side][theirs[side]]))
        swapped = row[mine != theirs]
        assert all(value in row[mine & ~theirs] and value in row[~mine & theirs] for value in swapped)
