"""Races and their records, made at random without a model; a cell may hold a piece of a character."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from sparsed import trace as traces
from sparsed.config import FULL_ATTENTION, NO_CACHE, AttentionConfig, ResolvedSampler, select_step, switch_step
from sparsed.denoising.info import RunInfo
from sparsed.questions.build import Prompt

MASK, ENDS = 127, (0, 1)
# Tokens are bytes: letters, and pieces of "é" and "€" that are characters only side by side.
BYTES = [0, 1, 65, 66, 97, 32, 10, 0xC3, 0xA9, 0xC3, 0xA9, 0xE2, 0x82, 0xAC]
PROMPT = Prompt("Documents.\nWho?", "Who?", "Ann.", "about", "short_context", 7, 3)


def read(tokens: Any, special: bool = True) -> str:
    return bytes(tokens).decode("utf-8", errors="replace")


MODEL = SimpleNamespace(
    name="fake",
    label="Fake",
    family="llada",
    dtype=torch.float32, numbers="float32",
    device=torch.device("cpu"),
    processes=1,
    mask_id=MASK,
    end_ids=ENDS,
    token_text=lambda token: read([token]),
    tokens_text=read,
    tokenizer=SimpleNamespace(decode=lambda tokens, **_: read(tokens)),
)


def make_run(
    seed: int,
    dense: bool,
    cells: int,
    total: int,
    made: int,
    skip: float,
    threshold: float | None = None,
    pattern: str | None = None,
    refresh: int = 0,
) -> Any:
    """A run that commits cells at random; with fewer than `total` steps it was stopped, or the threshold ended it."""
    rng = np.random.default_rng(seed)
    when = rng.integers(0, made if threshold else total, cells)
    final = torch.from_numpy(rng.choice(BYTES, cells))
    sure = torch.from_numpy(rng.random(cells).astype(np.float32))
    sure[torch.from_numpy(rng.random(cells) < 0.1)] = torch.nan
    select, switch = (total, None) if dense else (select_step(total, skip), switch_step(total, skip))
    steps = []
    for index in range(made):
        committed = torch.from_numpy(when == index)
        steps.append(
            SimpleNamespace(
                index=index,
                total=total,
                # Fresh patterns come every so many steps after the first.
                phase="dense"
                if index < select
                else "select"
                if index == select or (refresh and (index - select) % refresh == 0)
                else "sparse",
                rows=7 + cells,
                length=7 + cells,
                tokens=torch.where(torch.from_numpy(when <= index), final, MASK)[None],
                committed=committed[None],
                confidence=torch.where(committed, sure, torch.nan)[None],
                attention_seconds=None,
                seconds=float(rng.random()),
            )
        )
    attention = FULL_ATTENTION if dense else AttentionConfig(pattern or "sparsed", skip, 0.4, 32, refresh=refresh)
    finished = made == total or threshold is not None
    # With a threshold, fewer steps are made than tokens at the outside; here they only have to be recorded.
    most = max(total, cells) if threshold else total
    sampler = ResolvedSampler(
        most, cells, cells, "low_confidence", 0.0, 0, 1.0, 0, 0.0, 1e-3, 0.0, threshold=threshold
    )
    phases = Counter(step.phase for step in steps)
    backend = "sdpa" if dense else "gather"
    info = RunInfo(
        sampler=sampler, attention=attention.resolve(cells), backend=backend, dense_backend="sdpa", dtype="float32",
        device="cpu", prompt_tokens=7, batch=1, total=total,
        phases={phase: phases[phase] for phase in ("dense", "select", "sparse")},
        rows={phase: phases[phase] * (7 + cells) for phase in ("dense", "select", "sparse")},
        finished=finished, notes=("Short.",),
        switch_step=next((step.index for step in steps if step.phase == "sparse"), None),
    )  # fmt: skip
    return SimpleNamespace(
        model=MODEL,
        prompt=torch.full((1, 7), 65),
        prompt_length=7,
        cache=NO_CACHE,
        probes={},
        probed={},
        total=total,
        sampler=sampler,
        attention=attention.resolve(cells),
        pattern=None,
        # As the engine has it: a run that ended before it was sparse has no switch any more.
        switch_step=None if finished and switch is not None and made <= switch else switch,
        backend=backend,
        finished=finished,
        notes=["Short."],
        info=info,
        steps=steps,
    )


def make_race(
    seed: int, cells: int, total: int, made: tuple[int, ...], skip: float, threshold: float | None, refresh: int = 0
) -> tuple[dict[str, Any], traces.Trace]:
    """Its runs and its record. made: steps of full attention, of SparseD, and of up to three other lanes."""
    runs = {
        "dense": make_run(seed, True, cells, total, made[0], skip, threshold),
        "sparse": make_run(seed + 1, False, cells, total, made[1], skip, threshold, None, refresh),
    }
    others = {"baseline": "shared", "random": "random", "streaming_llm": "streaming_llm"}
    for number, (key, method) in enumerate(list(others.items())[: len(made) - 2], start=2):
        runs[key] = make_run(seed + number, False, cells, total, made[number], skip, threshold, method, refresh)
    return runs, traces.record(runs, prompt=PROMPT)


def slow_cells(run: Any, made: int) -> list[list[Any]]:
    """The canvas after `made` steps, from the run's own tensors, cell by cell."""
    row = [None] * run.sampler.gen_length
    at, sure = [0] * len(row), [None] * len(row)
    for step in run.steps[:made]:
        for cell in range(len(row)):
            if bool(step.committed[0, cell]):
                row[cell], at[cell] = int(step.tokens[0, cell]), step.index + 1
                confidence = float(step.confidence[0, cell])
                sure[cell] = None if confidence != confidence else round(confidence, 3)
    texts = ["" if token is None else read([token]) for token in row]
    cell = 0
    while cell < len(row):
        last = cell
        while last < len(row) and row[last] is not None and row[last] > 127:
            last += 1
        whole = read(row[cell:last])
        if last - cell > 1 and "\ufffd" not in whole:
            texts[cell:last] = [whole] + [""] * (last - cell - 1)
        cell = max(last, cell + 1)
    return [[texts[i], at[i], sure[i], int(row[i] in ENDS)] for i in range(len(row))]


def judge(text: str, gold: str) -> tuple[bool, str]:
    return len(text) % 2 == 0, f"{text!r} for {gold}"
