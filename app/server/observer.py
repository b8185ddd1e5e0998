"""Who a race is made for: what is computed and kept for them, and what they hear of it."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Protocol

from app.engine.interface import ModelLike
from app.engine.peak import Peak


class Observer(Protocol):
    """Looks on at one race. `begin` is called in the thread that starts it, `end` in any, and perhaps again."""

    @property
    def wants_pattern(self) -> bool:
        """Somebody looks at the pattern: importances are kept beside it, and what was asked for is tracked."""

    @property
    def keeps(self) -> bool:
        """The race is its visit's own: no other one goes on beside it, and its record stays."""

    def prepared(self, tokens: int) -> None:
        """The prompt is made, of so many tokens."""

    def begin(self, copies: Sequence[ModelLike]) -> None:
        """The devices of these copies of the model are this race's now."""

    def end(self) -> None:
        """They are so no longer, if they were."""


class _Silent:
    """Hears of the race, and does nothing."""

    def prepared(self, tokens: int) -> None:
        pass

    def begin(self, copies: Sequence[ModelLike]) -> None:
        pass

    def end(self) -> None:
        pass


class Visitor(_Silent):
    """Whoever pressed Run, or a program: looks at all of it, and keeps the record."""

    wants_pattern = keeps = True


class Counted(_Silent):
    """A race that is one of several leaves its numbers alone. The visit's last run, which the visitor looks at, stays;
    so does a Stop that was pressed before this race began.
    """

    wants_pattern = keeps = False


class Measured(Counted):
    """The same, with what it needed of memory."""

    def __init__(self) -> None:
        self.tokens: int | None = None  # of the prompt, once it is made
        self.peak: Peak | None = None  # the memory that was needed while the devices were this race's

    def prepared(self, tokens: int) -> None:
        self.tokens = tokens

    def begin(self, copies: Sequence[ModelLike]) -> None:
        # What the race before left behind in cycles would count as this one's.
        gc.collect()
        self.peak = Peak(*copies)
        self.peak.begin()

    def end(self) -> None:
        if self.peak is not None:
            self.peak.note()
