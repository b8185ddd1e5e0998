"""How much memory a device has left."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def available_memory() -> int | None:
    """Bytes of main memory that could be taken now: free memory, or less where a container limits it.

    None where the system does not say (Windows).
    """
    candidates = []
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                candidates.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError):
        pass
    if not candidates:
        try:
            candidates.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        except (AttributeError, OSError, ValueError):
            pass
    group = Path("/sys/fs/cgroup")
    for folder, limit, used, cached in (
        (group, "memory.max", "memory.current", "inactive_file"),
        (group / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            free = int((folder / limit).read_text()) - int((folder / used).read_text())
            # Cached files count as used, but give way.
            lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
            candidates.append(free + next((int(value) for name, value in lines if name == cached), 0))
        except (OSError, ValueError):
            continue
    return max(0, min(candidates)) if candidates else None


def device_memory(kind: str, index: int | None = None) -> int | None:
    """Bytes that a torch device of this kind ("cpu", "cuda" …) could still take; None where that is unknown."""
    if kind == "cpu":
        return available_memory()
    if kind == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(index)
        # What torch holds without using it can be taken too.
        return free + torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
    return None


def largest_resident() -> int | None:
    """Bytes: the largest resident size of this process in its life; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


def peak_bytes(device: torch.device, reset: bool = False) -> int | None:
    """Bytes that torch held at most on a CUDA device since the last reset; elsewhere `largest_resident`."""
    if device.type != "cuda":
        return largest_resident()
    import torch

    held = torch.cuda.max_memory_allocated(device)
    if reset:
        torch.cuda.reset_peak_memory_stats(device)
    return held


def give_back() -> None:
    """Returns freed memory to the system, where the C library keeps it for itself (glibc); elsewhere nothing happens.
    Takes some milliseconds.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, Windows
        return
    trim(0)
