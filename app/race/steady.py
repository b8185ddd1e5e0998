"""Whether a machine was steady enough for a factor between two lanes to mean something."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median

# A factor that a few slow steps move by more than this is that of the machine rather than of the method.
_APART = 1.1


def by_medians(seconds: Sequence[float], kinds: Sequence[str]) -> float:
    """What a lane's steps would have taken together, had each been the median one of its kind: steps of one kind do
    the same work, so what they differ by is the machine's.
    """
    alike = defaultdict(list)
    for taken, kind in zip(seconds, kinds, strict=True):
        alike[kind].append(taken)
    return sum(len(times) * median(times) for times in alike.values())


def unsteady(by_clock: float, median_steps: float) -> bool:
    """Is the factor by the clock another one than that by median steps?"""
    return max(by_clock, median_steps) > _APART * min(by_clock, median_steps)
