"""Whose turn it is among lanes that share a device, and which device a lane has. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol


class Timed(Protocol):
    """What is read of a step. seconds: of the device."""

    @property
    def seconds(self) -> float: ...


def whose_turn(clocks: Sequence[float], running: Iterable[int], first: int) -> int:
    """The lane that goes next: of those `running` the one with the least seconds; among equals the one at or after
    `first`.
    """
    return min(running, key=lambda lane: (clocks[lane], (lane - first) % len(clocks)))


def take_turns(runs: Sequence[Iterator[Timed]], first: int = 0) -> list[float]:
    """Runs every lane to its end, never two at the same time. Returns the seconds of each."""
    clocks = [0.0] * len(runs)
    running = set(range(len(runs)))
    while running:
        lane = whose_turn(clocks, running, first)
        step = next(runs[lane], None)
        if step is None:
            running.remove(lane)
        else:
            clocks[lane] += step.seconds
    return clocks


def seat(lane: int, devices: int) -> int:
    """Which of so many devices a lane has, both counted from 0: one of its own, or else the last one, where it takes
    turns.
    """
    return min(lane, devices - 1)
