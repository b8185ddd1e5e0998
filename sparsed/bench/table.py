"""A measurement as tables in the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from sparsed.bench.numbers import Measurement
from sparsed.models.model import Model


def device_of(model: Model) -> str:
    return str(model.device) if model.processes == 1 else f"{model.processes} × {model.device.type}"


def tell(what: str, text: str) -> None:
    print(f"  {what}: {text}", flush=True)


def print_machine(about: dict[str, Any]) -> None:
    units = [name for name in ("amx", "avx512_bf16") if about[name]]
    print(
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads, {about['cpu_capability']}",
        end="",
    )
    print(f" ({', '.join(units)})" if units else "")
    if "gpu" in about:
        print(about["gpu"])
    print(f"torch {about['torch']}, Python {about['python']}, {about['system']}", flush=True)


def _table(results: Sequence[Measurement]) -> list[list[str]]:
    """Head and rows of the summary. Times of steps and of attention: median (quartiles) in milliseconds."""
    head = [
        "prompt",
        "dtype",
        "dense by",
        "sparse by",
        "dense step",
        "select step",
        "sparse step",
        "outside attention",
        "limit of a sparse step",
        "share of the limit",
        "dense run s",
        "SparseD run s",
        "speed-up",
        "one layer's attention: dense",
        "sparse",
        "speed-up",
        "selection / dense",
        "density",
        "same tokens",
        "peak memory of a process",
    ]
    rows = [head]
    for r in results:
        rows.append(
            [
                f"{r.length} ({r.prompt_tokens})",
                r.dtype,
                r.dense_backend,
                r.backend,
                str(r.dense_step),
                "–" if r.select_step is None else str(r.select_step),
                "–" if r.sparse_step is None else str(r.sparse_step),
                f"{r.other:.1f}",
                "–" if r.limit_step is None else f"{r.limit_step:.1f}",
                "–" if r.share is None else f"{100 * r.share:.0f} %",
                f"{statistics.median(r.dense_run):.2f}",
                f"{statistics.median(r.sparsed_run):.2f}",
                f"{r.speedup:.2f}×",
                str(r.attention.dense),
                str(r.attention.sparse),
                f"{r.attention.speedup:.2f}×",
                f"{r.attention.selection_in_dense:.2f}",
                "–" if r.executed_density is None else f"{r.executed_density:.3f}",
                f"{100 * r.same_tokens:.0f} %",
                "–" if r.peak_memory is None else f"{r.peak_memory / 2**30:.2f} GiB",
            ]
        )
        # Composed from medians, and called so.
        for run in r.composed:
            label = f"composed, {run.steps} steps: s"
            if label not in head:
                head += [label, "  speed-up (limit)"]
            rows[-1] += [f"{run.dense:.1f} → {run.sparsed:.1f}", f"{run.speedup:.2f}× ({run.limit:.2f}×)"]
    for row in rows:
        row += ["–"] * (len(head) - len(row))
    return rows


def print_table(results: Sequence[Measurement]) -> None:
    rows = _table(results)
    print("Milliseconds, median (quartiles), unless a column says otherwise.")
    # Upright: one line a quantity, one column a measurement, so that it fits a terminal.
    columns = list(zip(*rows))
    widths = [max(len(cell) for cell in row) for row in rows]
    for column in columns:
        cells = [column[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(column[1:], widths[1:]))]
        print("  ".join(cells))
