"""The line for the device: whose turn it is among visitors."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Hashable


class DeviceQueue:
    """The line for one device: who uses it, who waits, and for about how long. Safe from any thread.

    capacity: places in all. at_once: how many runs the device takes at the same time (a borrowed GPU may be several).
    The line is fair among owners, as in round-robin: first come, first served within a round, and everybody has one run
    in each. Whoever has a place already stands in the next round; who comes anew, in the one that goes on.
    """

    def __init__(self, capacity: int = 32, at_once: int = 1) -> None:
        for name, value in (("capacity", capacity), ("at_once", at_once)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        self.capacity = capacity
        self.at_once = at_once
        self._lock = threading.Lock()
        self._line: list[Ticket] = []
        self._turns = 0

    def join(self, seconds: float | None = None, owner: Hashable = None) -> Ticket:
        """A place in the line. seconds: how long the device is expected to be used, None where nobody knows. owner: on
        whose behalf; None stands for itself alone. Raises LineFull (a ValueError) when the line is full.
        """
        with self._lock:
            if len(self._line) >= self.capacity:
                raise LineFull(
                    f"{len(self._line)} runs are already in line for this device, which is as many as it takes. "
                    "Please try again in a few minutes."
                )
            ticket = Ticket(self, seconds, object() if owner is None else owner)
            own = [one.round + 1 for one in self._line if one.owner == ticket.owner]
            ticket.round = max(own) if own else self._line[0].round if self._line else 0
            self._line.append(ticket)
            self._arrange()
            return ticket

    def __len__(self) -> int:
        with self._lock:
            return len(self._line)

    @property
    def running(self) -> int:
        """How many have the device now."""
        with self._lock:
            return min(self.at_once, len(self._line))

    def next_turn(self) -> int:
        """0, 1, 2, … : the number of races that have begun here before this one."""
        with self._lock:
            turn, self._turns = self._turns, self._turns + 1
            return turn

    def _arrange(self) -> None:
        """Sorts those that wait, round by round; and starts the clocks of those whose turn it is. Call with the lock
        held.
        """
        self._line.sort(key=lambda ticket: (ticket.began is None, ticket.round, ticket.number))
        for ticket in self._line[: self.at_once]:
            if ticket.began is None:
                ticket.began = time.monotonic()

    def _position(self, ticket: Ticket) -> int:
        with self._lock:
            return max(0, self._line.index(ticket) - self.at_once + 1) if ticket in self._line else 0

    def _wait(self, ticket: Ticket) -> float | None:
        """Seconds until it is this one's turn, by what those before it were expected to take; None where one of them
        is unknown.
        """
        with self._lock:
            if ticket not in self._line or ticket.began is not None:
                return 0.0
            before, now = self._line[: self._line.index(ticket)], time.monotonic()
            lasts = [None if one.seconds is None else one.seconds - (now - (one.began or now)) for one in before]
            # When each place at the device is free: everyone takes the one that is free first.
            free = [0.0] * self.at_once
            for last in lasts:
                if last is None:
                    return None
                free[free.index(min(free))] += max(0.0, last)
            return min(free)

    def _leave(self, ticket: Ticket) -> None:
        with self._lock:
            if ticket in self._line:
                self._line.remove(ticket)
                self._arrange()


class LineFull(ValueError):
    """There is no place left in the line."""


class Ticket:
    """A place in a `DeviceQueue`; `position` 0 means the device is yours until `leave()`.

    seconds, owner: as in `DeviceQueue.join`. round: as in `DeviceQueue`. began: when the device became this one's
    (time.monotonic), or None.
    """

    _numbers = itertools.count()

    def __init__(self, queue: DeviceQueue, seconds: float | None, owner: Hashable) -> None:
        self._queue = queue
        self.seconds = seconds
        self.owner = owner
        self.number = next(self._numbers)
        self.round = 0
        self.began: float | None = None

    @property
    def position(self) -> int:
        """How many runs have to end before this one begins."""
        return self._queue._position(self)

    @property
    def wait(self) -> float | None:
        """Seconds until then, about; None where nobody knows."""
        return self._queue._wait(self)

    def leave(self) -> None:
        """Give the place, or the device, back. Any number of times."""
        self._queue._leave(self)
