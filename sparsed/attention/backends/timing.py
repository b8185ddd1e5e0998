"""How long work takes on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch


def device_milliseconds(device: torch.device, work: Callable[[], object], *, repeats: int = 3) -> float:
    """The median time of a few repeats, by the device's own events, after one that does not count."""
    work()
    spent = []
    # Events are recorded on the current device's stream.
    with torch.cuda.device(device):
        for _ in range(repeats):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            work()
            end.record()
            end.synchronize()
            spent.append(start.elapsed_time(end))
    return median(spent)
