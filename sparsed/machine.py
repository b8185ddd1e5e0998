"""This machine: what it is, how much memory its devices have left, and how much a stretch of work takes at most.

torch is imported inside functions: the page asks for these before torch is loaded.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsed import __version__

if TYPE_CHECKING:
    import torch


def add_version(parser: argparse.ArgumentParser, *packages: str) -> None:
    """--version: one line with ours, Python's, and those of `packages`, none of which is imported."""

    class Version(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
            print(versions(*packages))  # argparse's own would wrap it
            parser.exit()

    parser.add_argument("--version", nargs=0, action=Version, help="say which versions these are, and exit")


def versions(*packages: str) -> str:
    told = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            told.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            told.append(f"no {package}")
    return f"sparsed {__version__} ({', '.join(told)})"


def machine() -> dict[str, Any]:
    """What numbers that were measured here belong to: processor, cores, threads, memory, GPU and versions."""
    import torch

    info = _cpu_info()
    flags = info.get("flags", "").split()
    about: dict[str, Any] = {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "amx": "amx_bf16" in flags,
        "avx512_bf16": "avx512_bf16" in flags,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    return about


def _cpu_info() -> dict[str, str]:
    """The first processor's entries in /proc/cpuinfo, where there is such a file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def dtype_name(dtype: torch.dtype) -> str:
    """As a user writes it: "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


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


class Peak:
    """Bytes needed at most between `begin` and the last `note`, of the devices that hold a model's weights. copies: the
    same model on other GPUs, each for lanes of its own; of these, what the one took that needed most.

    On CUDA these are bytes that torch allocated. On a CPU it is the resident size of this process: Linux keeps its
    high-water mark and can set it back; elsewhere it is known only where the process was never larger before. Stays
    None where it is not known, as on other devices.
    """

    def __init__(self, model: Any, *copies: Any) -> None:
        device = getattr(model, "device", None)
        self.kind = "cpu" if device is None else str(device.type)
        self.gpus: list[list[Any]] = []
        if self.kind == "cuda":
            for one in (model, *copies):
                self.gpus.append(sorted({weight.device.index for weight in one.network.parameters()} - {None}))
        self._marked = False
        self._before: int | None = None
        self.bytes: int | None = None

    def begin(self) -> None:
        """What was needed before counts no more. Takes some microseconds."""
        self.bytes = None
        if self.kind == "cuda":
            import torch

            for gpu in (gpu for copy in self.gpus for gpu in copy):
                torch.cuda.reset_peak_memory_stats(gpu)
        elif self.kind == "cpu":
            self._marked = _set_mark_back()
            self._before = None if self._marked else largest_resident()

    def note(self) -> None:
        """Takes over what was needed since `begin`; to be called before somebody else uses the device."""
        found = self._read()
        if found is not None:
            self.bytes = max(found, self.bytes or 0)

    def _read(self) -> int | None:
        if self.kind == "cuda":
            import torch

            return max(sum(int(torch.cuda.max_memory_allocated(gpu)) for gpu in copy) for copy in self.gpus)
        if self.kind != "cpu":
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


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of this machine or a device, did not suffice."""
    said = str(error).lower()
    named = isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__
    # Of another process there are only the words, the kind of its error among them.
    return named or any(sign in said for sign in ("out of memory", "can't allocate memory", "memoryerror"))


def release_memory() -> None:
    """Gives what torch keeps of a GPU's memory without using it back to the device."""
    import torch

    if torch.cuda.is_available():
        gc.collect()  # what an error leaves may hold itself in a circle
        torch.cuda.empty_cache()


def give_back() -> None:
    """Returns freed memory to the system, where the C library keeps it for itself (glibc); elsewhere nothing happens.
    Takes some milliseconds.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, Windows
        return
    trim(0)
