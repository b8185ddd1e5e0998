"""Measurements as tables in the terminal, and as a file."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from sparsed import files
from sparsed.bench.cached_table import print_cached
from sparsed.bench.numbers import Measurement
from sparsed.models.model import Model
from sparsed.runs import RunRecord, Tally, notes_of, told


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
        "steps of SparseD: dense / select / sparse",
        "steps of dense",
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
    rows, more = [head], []
    for r in results:
        rows.append(
            [
                ", ".join([f"{r.length} ({r.prompt_tokens})", *_tally(r).words()]),
                r.dtype,
                r.dense_backend,
                r.backend,
                _steps(r.sparsed, ("dense", "select", "sparse")),
                _steps(r.dense, ("dense",)),
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
        one = {("", f"{few.rows} rows to all keys"): str(few) for few in r.attention.few_rows}
        if r.weights is not None:
            one["", "weights"] = f"{r.weights / 2**30:.2f} GiB"
        if r.same_unquantised is not None:
            one["", "same tokens as unquantised"] = f"{100 * r.same_unquantised:.0f} %"
        if r.experts is not None:
            one["", "one layer's experts"] = str(r.experts)
        for kind, step, attention in (
            ("dense", r.dense_step, r.attention.dense),
            ("sparse", r.sparse_step, r.attention.sparse),
        ):
            if step is not None and (parts := r.split(step, attention)) is not None:
                one["", f"{kind} step: attention / experts / rest"] = " / ".join(f"{part:.1f}" for part in parts)
        for run in r.composed:
            # Composed from medians, and called so.
            label = f"composed, {run.steps} steps: s"
            one[label, label] = f"{run.dense:.1f} → {run.sparsed:.1f}"
            one[label, "  speed-up (limit)"] = f"{run.speedup:.2f}× ({run.limit:.2f}×)"
        more.append(one)
    # Not every measurement has these; what one lacks is a dash.
    further = list(dict.fromkeys(key for one in more for key in one))
    head += [label for _, label in further]
    for row, one in zip(rows[1:], more):
        row += [one.get(key, "–") for key in further]
    return rows


def _tally(result: Measurement) -> Tally:
    """Whether the runs that are called SparseD's were sparse."""
    return Tally.of(cast("Sequence[RunRecord]", result.sparsed))


def _steps(runs: Sequence[Mapping[str, Any]], phases: Sequence[str]) -> str:
    """The steps made of each phase; where repeats differ, the mean."""
    if not runs:
        return "not known"
    return " / ".join(f"{statistics.mean(run['phases'][phase] for run in runs):g}" for phase in phases)


def _below(results: Sequence[Measurement]) -> list[str]:
    """What the runs noted, and the settings that they had."""
    runs = [
        (label, f"{r.length}, {r.dtype}", cast("RunRecord", run))
        for r in results
        for label, ran in (("dense", r.dense), ("SparseD", r.sparsed))
        for run in ran
    ]
    said = told(notes_of((label, run) for label, _, run in runs))
    samplers = {_words(run["sampler"]): place for _, place, run in runs}
    attentions: dict[str, list[str]] = {}
    for label, place, run in runs:
        if label == "SparseD":
            attentions.setdefault(_words(run["attention"]), []).append(place)
    crowded = dict.fromkeys(f"{r.length}, {r.dtype} ({r.beside})" for r in results if r.beside > 1)
    if crowded:
        said.append(f"Note: measured beside other processes on the same device (so many in all): {'; '.join(crowded)}")
    said += [f"sampler: {words}" + (f" ({place})" if len(samplers) > 1 else "") for words, place in samplers.items()]
    for words, places in attentions.items():
        where = f" ({'; '.join(dict.fromkeys(places))})" if len(attentions) > 1 else ""
        said.append(f"attention of SparseD: {words}{where}")
    return said


def _words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items() if value not in (None, [], ()))


def print_table(results: Sequence[Measurement]) -> None:
    rows = _table(results)
    print("Milliseconds, median (quartiles), unless a column says otherwise.")
    # Upright: one line a quantity, one column a measurement, so that it fits a terminal.
    columns = list(zip(*rows))
    widths = [max(len(cell) for cell in row) for row in rows]
    for column in columns:
        cells = [column[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(column[1:], widths[1:]))]
        print("  ".join(cells))
    for line in _below(results):
        print(line)


class Report:
    """What was measured, as a table in the end and as a file all along.

    file: None for none. about: the machine. show: one process of several does.
    """

    def __init__(self, file: Path | None, about: Mapping[str, Any], show: bool) -> None:
        self._file, self._about, self._show = file, about, show
        self._results: list[Measurement] = []

    def add(self, result: Measurement) -> None:
        """The file is written at once: what comes next may take hours, and may not end well."""
        self._results.append(result)
        self._write(finished=False)

    def end(self, finished: bool, kept: list[Measurement] | None = None, left_out: Sequence[str] = ()) -> None:
        """The table of what there is. finished: nothing that was asked for is missing. kept: what a folder holds.
        left_out: sentences on what was asked for and is not there.
        """
        results = self._results = self._results if kept is None else kept
        if not self._show or not results:
            return
        print()
        print_table(results)
        print_cached(results)
        for sentence in left_out:
            print(f"Left out: {sentence}")
        if not finished and not left_out:
            print("This is what was measured before the end.")
        self._write(finished)
        if self._file is not None:
            print(f"\nwritten to {self._file}")

    def _write(self, finished: bool) -> None:
        if self._file is not None and self._show:
            results = [asdict(result) for result in self._results]
            record = {"machine": self._about, "finished": finished, "results": results}
            files.write(self._file, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
