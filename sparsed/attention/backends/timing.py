"""How long work takes on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch

# More than any GPU's cache holds, written so many times that the host meanwhile starts what is timed.
_BEYOND_CACHES, _TIMES = 256 << 20, 4


def device_milliseconds(
    device: torch.device, work: Callable[[], object], *, repeats: int = 3, cold: bool = False
) -> float:
    """The median time of a few repeats, by the device's own events, after one that does not count.

    cold: before each one the device's caches are emptied, as other layers' work does in a run. That keeps the device
    busy while the host starts the work, so that short work is not timed by how fast it is started.
    """
    work()
    spent = []
    other = torch.empty(_BEYOND_CACHES if cold else 0, dtype=torch.uint8, device=device)
    # Events are recorded on the current device's stream.
    with torch.cuda.device(device):
        for _ in range(repeats):
            for _ in range(_TIMES if cold else 0):
                other.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            work()
            end.record()
            end.synchronize()
            spent.append(start.elapsed_time(end))
    return median(spent)
