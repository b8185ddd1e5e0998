"""Steps that compute few rows, as CUDA graphs: launching a hundred kernels of a few microseconds takes longer than they
do.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sparsed.models.model import Model

# Hidden states [batch · n, width] of ids int64 [batch, n] at positions int64 [1 or batch, n].
FewRows = Callable[[Tensor, Tensor], Tensor]
# Work without arguments → what does it again, into the same result, from the same memory: see `_Captured.work`.
Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]

# Forwards of a shape before it is captured. Where every step has other numbers of rows (dKV-Cache), none is worth it.
_SEEN_BEFORE = 2


@dataclass(frozen=True, eq=False)
class _Captured:
    ids: Tensor
    positions: Tensor
    work: Callable[[], Tensor]  # kept, for a graph reads the memory of tensors made before it, and does not hold them
    again: Callable[[], Tensor]


class StepGraphs:
    """One run's forwards of few rows over all keys: those of a shape are the same work on other ids and positions, and
    from the third one on it is captured and replayed.

    Whatever a forward reads and writes beside ids and positions must keep its place in memory: see `RowStore`. Freed
    with the run.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._seen: dict[tuple[torch.Size, torch.Size], int] = {}
        self._captured: dict[tuple[torch.Size, torch.Size], _Captured] = {}
        self._failed = False

    def hidden(self, forward: FewRows, ids: Tensor, positions: Tensor) -> Tensor:
        """What `forward` gives; valid until the next call. `forward` must be the same work each time."""
        shape = ids.shape, positions.shape
        captured = self._captured.get(shape)
        if captured is None:
            self._seen[shape] = self._seen.get(shape, 0) + 1
            if self._failed or self._seen[shape] <= _SEEN_BEFORE:
                return forward(ids, positions)
            mine = ids.clone(), positions.clone()
            work = partial(forward, *mine)
            try:
                captured = _Captured(*mine, work, self._capture(work))
            except RuntimeError as error:
                # A library below cannot be captured on this machine: the run goes on, slower.
                self._failed = True
                said = (str(error).splitlines() or [""])[0]
                warnings.warn(f"Steps of few rows go without CUDA graphs: {said}", stacklevel=2)
                return forward(ids, positions)
            self._captured[shape] = captured
        captured.ids.copy_(ids)
        captured.positions.copy_(positions)
        return captured.again()


def step_graphs(model: Model) -> StepGraphs | None:
    """Those of a new run; None where there are no CUDA graphs: on other devices, for weights on several, in a team."""
    if model.device.type != "cuda" or model.team is not None or len(model.devices) > 1:
        return None
    return StepGraphs(_cuda_graph(model.device))


def _cuda_graph(device: torch.device) -> Capture:
    def capture(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile (lanes of a race, the page).
        with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            out = work()

        def again() -> Tensor:
            graph.replay()
            return out

        return again

    return capture
