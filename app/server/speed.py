"""How fast this machine is, what a race will cost here, and where its lanes run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from app.engine.cost import SHORTEST_TOGETHER, Estimate, Speed, estimate, fit_speed, peak
from app.engine.interface import Engine, ModelLike
from app.race.line import DeviceQueue
from app.race.request import Request
from app.server.limits import Limits
from app.server.models import Loaded, ModelStore
from app.texts import NO_ROOM, NOT_MEASURED, TOO_SHORT, held_together
from sparsed.config import FULL_ATTENTION, SamplerConfig

# Tokens of the short runs that measure this machine, as far as no step takes longer than SLOW_STEP seconds. Attention
# over a few thousand keys costs more for each of them than over a few hundred, so the longest tells most.
MEASURED_TOKENS = (224, 2016, 4064)
SLOW_STEP = 2.0
# What a race shows of the machine counts when its steps take less than this share of what was expected.
FASTER = 0.8


@dataclass(frozen=True)
class Places:
    """Where the lanes of a race run."""

    copies: tuple[ModelLike, ...]  # of the model, one for each device that the lanes have (`sparsed.turns.seat`)
    why: str = ""  # the sentence for lanes that take turns although there are other devices


def measure(engine: Engine, line: DeviceQueue, loaded: Loaded) -> Speed:
    """The speed of a model here, by dense steps at a few lengths; waits in the line for the device. Of each length the
    fastest step counts: the first warms up, and a visitor's browser may be starting on the same cores.

    Raises what the engine raises.
    """
    points: list[tuple[int, float]] = []
    # Any text will do, and a model need not have a chat template.
    a_hundred = engine.count(loaded.model, "one " * 100)
    ticket = line.join()
    try:
        while ticket.position:
            time.sleep(0.05)
        for tokens in MEASURED_TOKENS:
            text = "one " * max(1, 100 * tokens // a_hundred)
            length = engine.count(loaded.model, text) + 32
            # The first is too short to tell anything of the second.
            if points and points[-1][1] * (length / points[-1][0]) ** (2 if len(points) > 1 else 1) > SLOW_STEP:
                break
            sampler = SamplerConfig(steps=32, gen_length=32, block_length=32, temperature=0.0, seed=0)
            run = engine.denoise(loaded.model, text, sampler, FULL_ATTENTION, "auto")
            made = [next(run).seconds]
            while len(made) < 4 and sum(made) < SLOW_STEP / 2:
                made.append(next(run).seconds)
            run.close()
            points.append((length, min(made)))
    finally:
        ticket.leave()
    return fit_speed(points, loaded.shape)


class Forecaster:
    """Says what a race will cost here. limits: what a request may ask for."""

    def __init__(self, engine: Engine, models: ModelStore, limits: Limits) -> None:
        self.limits = limits
        self._engine = engine
        self._models = models

    def learn(self, name: str, length: int, seconds: Sequence[float]) -> None:
        """Dense steps over `length` tokens took so long. A machine that was busy when it was measured is faster than it
        seemed, and nothing must be refused for that; one that is busy now is no slower.
        """
        loaded = self._models.loaded(name)
        if loaded is None or loaded.speed is None or len(seconds) < 3:
            return
        expected = loaded.speed.step(length)
        factor = median(seconds) / expected if expected > 0 else 1.0
        if 0 < factor < FASTER:
            self._models.set_speed(name, Speed(factor * loaded.speed.per_token, factor * loaded.speed.per_pair))

    def estimate(self, loaded: Loaded, request: Request, tokens: int, places: Places | None = None) -> Estimate | None:
        """Time and memory of a race over `tokens` prompt tokens; None while the speed is not known. places: where its
        lanes run, if that is decided.
        """
        places = places or self.places(loaded, request, tokens)
        return self._estimate(loaded, request, tokens, len(places.copies))

    def _estimate(self, loaded: Loaded, request: Request, tokens: int, devices: int) -> Estimate | None:
        if loaded.speed is None:
            return None
        return estimate(
            loaded.shape,
            loaded.speed,
            lanes=request.lanes,
            length=tokens + request.gen_length,
            steps=request.steps,
            blocks=request.blocks,
            gen_length=request.gen_length,
            rows=request.rows,
            devices=devices,
            grows=request.sampler.grows,
        )

    def needed(self, name: str, request: Request, tokens: int) -> int:
        """Bytes that a model and the race over `tokens` prompt tokens take on one device, the part of the free memory
        that a race leaves included; 0 where they are not known, the weights alone where the sizes are not.
        """
        weights, shape, length = self._engine.weights(name), self._engine.known_shape(name), tokens + request.gen_length
        if not weights or shape is None:
            return weights
        memory, _ = peak(shape, request.lanes, length, request.gen_length // request.blocks, request.rows)
        return weights + int(memory / self.limits.memory_share)

    def places(self, loaded: Loaded, request: Request, tokens: int) -> Places:
        """Where the lanes of a race over `tokens` prompt tokens run: each on a device of its own where there are
        several, the race fits on them, and its steps are long enough to be timed honestly at the same time.
        """
        first, *others = self._engine.copies(loaded.model)
        if not others:
            return Places((first,), held_together(loaded.shape.processes) if loaded.shape.processes > 1 else "")
        alone = self._estimate(loaded, request, tokens, 1)
        if loaded.speed is None or alone is None:
            return Places((first,), NOT_MEASURED)
        if request.rows * loaded.speed.step(tokens + request.gen_length) < SHORTEST_TOGETHER:
            return Places((first,), TOO_SHORT)
        roomy = [copy for copy in others if self._fits(alone, copy)][: len(request.lanes) - 1]
        return Places((first, *roomy), "" if roomy else NO_ROOM)

    def _fits(self, estimated: Estimate, model: ModelLike) -> bool:
        """Is there room for a race on the device of this model?"""
        free = self._engine.memory(model)
        return free is None or estimated.memory <= self.limits.memory_share * free

    def room(self, loaded: Loaded) -> Limits:
        """The limits, with the memory that is free now on the device of this model. Other devices are used where a race
        fits on them only, so theirs limit nothing.
        """
        return replace(self.limits, memory=self._engine.memory(loaded.model))

    def longest(self, loaded: Loaded, request: Request, seconds: float) -> str:
        """The longest prompt length whose race takes at most `seconds` here; the shortest when none does."""
        best = next(iter(self._engine.lengths()))
        for name, tokens in self._engine.lengths().items():
            estimated = self.estimate(loaded, request.resolve(tokens), tokens)
            if estimated is not None and estimated.seconds <= seconds:
                best = name
        return best
