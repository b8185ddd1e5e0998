"""Copies of a model on several devices, one for each lane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.engine.interface import Engine, Given, Listener, M, RunLike
from app.lanes import LaneSpec
from sparsed.config import SamplerConfig
from sparsed.turns import seat

# For full attention, SparseD, and a further lane.
MOST_COPIES = 3
# A copy is of use where a run over so many tokens fits beside it, so many of them generated, in such attention blocks.
ROOM_TOKENS, ROOM_GENERATED, ROOM_BLOCK = 4224, 128, 128


def line_up(
    engine: Engine[M],
    copies: Sequence[M],
    prompt: Given,
    sampler: SamplerConfig,
    lanes: Sequence[LaneSpec],
    backend: str,
    chat: bool | None = None,
) -> dict[str, RunLike]:
    """The runs of a race by lane, ready for their first step. copies: of the model, one for each device that the lanes
    have (`sparsed.turns.seat`). Raises what `Engine.denoise` raises; nothing is left open then.
    """
    runs: dict[str, RunLike] = {}
    try:
        for number, lane in enumerate(lanes):
            model = copies[seat(number, len(copies))]
            probes = lane.probe_steps
            run = engine.denoise(model, prompt, sampler, lane.attention, backend, probes, chat, lane.cache)
            runs[lane.key] = run
            # Kernels that compile or tune themselves do it here, before the clocks start (nothing on a CPU).
            warm_up = getattr(run, "warm_up", None)
            if warm_up is not None:
                warm_up()
    except BaseException:
        for run in runs.values():
            run.close()
        raise
    return runs


def hear_copy(progress: Listener, number: int, far: Any) -> None:
    progress(f"copy {number}, on another GPU: {far}")
