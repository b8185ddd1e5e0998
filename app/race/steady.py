"""Whether a machine was steady enough for a factor between two lanes to mean something."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from statistics import median

# A factor that a few slow steps move by more than this is that of the machine rather than of the method.
_APART = 1.1


def by_medians(seconds: Sequence[float], work: Sequence[Hashable]) -> float:
    """What a lane's steps would have taken together, had each been the median one of those that do the same work: what
    they differ by is the machine's.
    """
    alike = defaultdict(list)
    for taken, done in zip(seconds, work, strict=True):
        alike[done].append(taken)
    return sum(len(times) * median(times) for times in alike.values())


def unsteady(by_clock: float, median_steps: float) -> bool:
    """Is the factor by the clock another one than that by median steps?"""
    return max(by_clock, median_steps) > _APART * min(by_clock, median_steps)
