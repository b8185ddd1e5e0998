"""How long a bench still takes, said as soon as steps were measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Protocol

from sparsed.questions.lengths import token_budget

# So many steps of full attention tell what one takes.
STEPS = 3
# What takes less needs no word.
LEAST_SECONDS = 20.0


class Steps(Protocol):
    """What is read of a run: `sparsed.denoising.run.Run`."""

    total: int

    @property
    def steps(self) -> Sequence[Timed]: ...


class Timed(Protocol):
    @property
    def seconds(self) -> float: ...


class Estimate:
    """Of a measurement that has begun, and of those after it.

    runs: that the measurement makes, of the lanes without a cache. length: of its prompt. later: the lengths of those
    after it. cached: what the lanes with a cache compute, in such runs.
    """

    def __init__(
        self, runs: int, length: str, later: Sequence[str], say: Callable[[str], None], cached: float = 0.0
    ) -> None:
        self._runs, self._length, self._later, self._say = runs, length, later, say
        self._cached, self._said = cached, False

    def look(self, run: Steps) -> None:
        """After each step of a run with full attention; says once what is known."""
        made = run.steps
        if self._said or len(made) < min(STEPS, run.total):
            return
        self._said = True
        step = median(one.seconds for one in made)
        whole = (self._runs + self._cached) * run.total * step
        ratios = [token_budget(length) / token_budget(self._length) for length in self._later]
        # What surrounds attention grows with the tokens, attention with their square.
        least, most = (whole * sum(ratio**power for ratio in ratios) for power in (1, 2))
        least, most = min(least, most), max(least, most)
        if whole + most < LEAST_SECONDS:
            return
        told = f"about {_words(whole)}: {self._runs} runs of {run.total} steps, {step:.2g} s a step of full attention"
        if self._cached:
            told += f", and {_words(self._cached * run.total * step)} of it for caches"
        if self._later:
            told += f"; then {_words(least)} to {_words(most)}, by their lengths, for {', '.join(self._later)}"
        self._say(told)


def _words(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.2g} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
