"""How much memory a stretch of work takes at most."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sparsed.memory import largest_resident

GPU_WORDS = "Peak memory: what torch held at most on the GPU during the race, weights included."
LANES_WORDS = (
    "Peak memory: what torch held at most on one GPU during the race, weights included; where each lane had a GPU of "
    "its own, on the one that held more."
)
CPU_WORDS = "Peak memory: the largest resident size of the whole page’s process during the race, weights included."


class Peak:
    """Bytes needed at most between `begin` and the last `note`, of the devices that hold a model's weights. copies: the
    same model on other GPUs, each for lanes of its own; of these, what the one took that needed most.

    On CUDA these are bytes that torch allocated. On a CPU it is the resident size of this process: Linux keeps its
    high-water mark and can set it back; elsewhere it is known only where the process was never larger before. Stays
    None where it is not known, as on other devices.
    """

    def __init__(self, model: Any, *copies: Any) -> None:
        device = getattr(model, "device", None)
        self._kind = "cpu" if device is None else str(device.type)
        self._gpus: list[list[Any]] = []
        if self._kind == "cuda":
            for one in (model, *copies):
                self._gpus.append(sorted({weight.device.index for weight in one.network.parameters()} - {None}))
        self._marked = False
        self._before: int | None = None
        self.bytes: int | None = None

    @property
    def words(self) -> str:
        """What the number is, in one sentence; empty where there is none."""
        gpu = LANES_WORDS if len(self._gpus) > 1 else GPU_WORDS
        return {"cuda": gpu, "cpu": CPU_WORDS}.get(self._kind, "")

    def begin(self) -> None:
        """What was needed before counts no more. Takes some microseconds."""
        self.bytes = None
        if self._kind == "cuda":
            import torch

            for gpu in (gpu for copy in self._gpus for gpu in copy):
                torch.cuda.reset_peak_memory_stats(gpu)
        elif self._kind == "cpu":
            self._marked = _set_mark_back()
            self._before = None if self._marked else largest_resident()

    def note(self) -> None:
        """Takes over what was needed since `begin`; to be called before somebody else uses the device."""
        found = self._read()
        if found is not None:
            self.bytes = max(found, self.bytes or 0)

    def _read(self) -> int | None:
        if self._kind == "cuda":
            import torch

            return max(sum(int(torch.cuda.max_memory_allocated(gpu)) for gpu in copy) for copy in self._gpus)
        if self._kind != "cpu":
            return None
        if self._marked:
            return _mark()
        largest = largest_resident()
        if largest is None or self._before is None or largest <= self._before:
            return None
        return largest


def _set_mark_back() -> bool:
    """Sets Linux' high-water mark of this process to its size now; False where that cannot be done."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return _mark() is not None


def _mark() -> int | None:
    """Bytes: the largest resident size of this process since the mark was set back."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        return None
    return None if found is None else 1024 * int(found[1])
