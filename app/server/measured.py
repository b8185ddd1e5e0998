"""What the runs of one visit took on this machine, and what that makes of the next estimate."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from app.engine.cost import Estimate, Speed, lane_seconds
from app.lanes import LaneSpec
from app.race.request import Request
from app.server.models import Loaded
from sparsed.config import ResolvedCache

# So many lanes of runs are remembered; of those that are alike, the last few count.
MOST_TOOK, MOST_COUNTED = 120, 9
# Two lengths of which one is at most so many times the other are the same.
SAME_LENGTH = 1.05
# Fewer steps tell nothing: the first ones warm up.
FEWEST_STEPS = 3


@dataclass(frozen=True)
class _Took:
    """One lane of a run: how many times as long as expected it took, waiting between its steps included."""

    model: str
    lane: LaneSpec  # resolved for the length
    backend: str
    length: int  # tokens of prompt and generation
    ratio: float
    speed: Speed  # that it was expected of


class Measured:
    """Makes estimates learn from a visit's runs. One for each visit."""

    def __init__(self) -> None:
        self._took: deque[_Took] = deque(maxlen=MOST_TOOK)

    def learn(
        self, loaded: Loaded, asked: Request, tokens: int, times: Mapping[str, Sequence[float]], wall: float
    ) -> None:
        """A race over `tokens` prompt tokens is over. asked: resolved for them. times: lane's key → seconds of each of
        its steps, of which there may be fewer than planned. wall: seconds from its first step to its last.
        """
        spent = sum(map(sum, times.values()))
        if loaded.speed is None or not spent:
            return
        # Lanes that take turns share what happens between steps; those of several devices have a wall below the sum.
        between = max(1.0, wall / spent)
        length = tokens + asked.gen_length
        for lane in asked.lanes:
            made = times[lane.key]
            planned = lane.plan(asked.steps, asked.blocks, asked.gen_length, asked.sampler.grows)[: len(made)]
            expected = asked.rows * lane_seconds(lane, planned, loaded.speed, length, asked.gen_length)
            if len(made) >= FEWEST_STEPS and expected > 0:
                ratio = between * sum(made) / expected
                self._took.append(_Took(loaded.name, lane, asked.backend, length, ratio, loaded.speed))

    def applied(self, estimated: Estimate | None, loaded: Loaded, asked: Request, tokens: int) -> Estimate | None:
        """The estimate of a race, by what its lanes took before: at this length, or else at the nearest one. asked:
        resolved for `tokens` prompt tokens.
        """
        if estimated is None or loaded.speed is None:
            return estimated
        length, lanes = tokens + asked.gen_length, {lane.key: lane for lane in asked.lanes}
        return replace(
            estimated,
            lanes={
                key: seconds * self._factor(loaded, loaded.speed, lanes[key], asked.backend, length)
                for key, seconds in estimated.lanes.items()
            },
        )

    def _factor(self, loaded: Loaded, speed: Speed, lane: LaneSpec, backend: str, length: int) -> float:
        """How many times as long as expected such a lane takes; 1 where nothing is known of this model."""

        def apart(took: _Took) -> float:
            return max(took.length, length) / min(took.length, length)

        def nearest(some: Iterable[_Took]) -> list[_Took]:
            there = list(some)
            least = min(map(apart, there), default=0.0)
            return [took for took in there if apart(took) <= SAME_LENGTH * least]

        known = [took for took in list(self._took) if took.model == loaded.name]
        alike = [took for took in known if _method(took.lane) == _method(lane)]
        same = [took for took in alike if (took.lane.attention, took.backend) == (lane.attention, backend)]
        here = [took for took in same if apart(took) <= SAME_LENGTH]
        counted = (here or nearest(alike) or nearest(known))[-MOST_COUNTED:]
        # The speed that the machine is taken to have may have been put right since.
        return median(took.ratio * took.speed.step(length) / speed.step(length) for took in counted) if counted else 1.0


def _method(lane: LaneSpec) -> tuple[str, ResolvedCache | None]:
    return lane.attention.method, lane.cache
