"""What attention of few query rows to all keys costs, by every implementation, and what it would cost at best."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from sparsed.attention.backends import few_rows
from sparsed.attention.backends.timing import device_milliseconds
from sparsed.bench.numbers import FewRows
from sparsed.denoising.forward import synchronize

ROWS = (32, 128)


@torch.inference_mode()
def few_rows_times(q: Tensor, k: Tensor, v: Tensor, scale: float, rows: Sequence[int] = ROWS) -> Iterator[FewRows]:
    """For each number of rows that q has, the last ones of q to all keys; shapes as in `DenseAttention`."""
    speed = copy_speed(k.device)
    read = (k.numel() + v.numel()) * k.element_size()
    for n in rows:
        if n > q.shape[2]:
            continue
        few, times = q[:, :, -n:], {}
        for one in few_rows.choices(q.device, q.dtype):
            try:
                times[one.name] = round(milliseconds(q.device, partial(one.attend, few, k, v, scale)), 4)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # as where the fastest is chosen: not for this torch, GPU or shape
                continue
        yield FewRows(
            rows=n,
            keys=k.shape[2],
            milliseconds=dict(sorted(times.items(), key=lambda item: item[1])),
            limit=round(1000 * read / speed, 4),
            copy_speed=round(speed / 1e9, 1),
        )


def copy_speed(device: torch.device) -> float:
    """Bytes a second that the device's memory moves in a copy, reads and writes together."""
    # More than caches hold; on a CPU little beside what a run takes.
    size = (64 if device.type == "cpu" else 256) << 20
    given, taken = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / (milliseconds(device, partial(taken.copy_, given)) / 1000)


def milliseconds(device: torch.device, work: Callable[[], object]) -> float:
    """The median time of a piece of work; on a GPU with empty caches, as other layers leave them."""
    if device.type == "cuda":
        return device_milliseconds(device, work, repeats=9, cold=True)
    spent: list[float] = []
    work()
    while len(spent) < 5 or (sum(spent) < 0.1 and len(spent) < 50):
        start = perf_counter()
        work()
        synchronize(device)
        spent.append(perf_counter() - start)
    return 1000 * statistics.median(spent)
