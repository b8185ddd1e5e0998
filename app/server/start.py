"""From the prompt to the start line: the lanes' runs, what the page shows of them, and their race."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.engine.copies import line_up
from app.engine.interface import RunLike
from app.finished.run import fits, probe_steps
from app.lanes import LaneSpec, watched
from app.race.canvas import Canvas
from app.race.lane_view import LaneView
from app.race.race import Lane, Race
from app.race.snapshot import Stage, mode
from app.server.desk import Desk
from app.server.material import Material
from app.server.models import Loaded
from app.server.observer import Observer
from app.texts import BACKEND_WORDS, OWN_QUESTION
from sparsed.turns import seat


@dataclass(frozen=True)
class Started:
    """A race that is ready for its first step."""

    race: Race
    stage: Stage
    runs: dict[str, RunLike]  # by the lane's key


def start(
    desk: Desk, loaded: Loaded, material: Material, observer: Observer, on_end: Callable[[], None]
) -> Started:
    """Lines up the lanes; where kernels compile it takes a while. on_end: see `Race`; not called where this raises what
    the engine raises.
    """
    engine, asked, copies = desk.engine, material.asked, material.places.copies
    lanes = _watched(loaded, material) if observer.wants_pattern else asked.lanes
    first = desk.queue.next_turn()
    seconds = desk.speed.limits.max_seconds if material.estimated is None else material.estimated.seconds
    runs = engine.lend(
        loaded.model, material.given, asked.sampler, lanes, asked.backend, first, seconds, asked.chat
    )
    if runs is None:
        # The memory of a device that is elsewhere is not known here.
        observer.begin(copies)
        runs = line_up(engine, copies, material.given, asked.sampler, lanes, asked.backend, asked.chat)
    lines = [Lane(key, run, seat(number, len(copies))) for number, (key, run) in enumerate(runs.items())]
    race = Race(lines, first=first, on_end=on_end, most_seconds=material.most_seconds)
    return Started(race, _stage(desk, loaded, material, lanes, runs), runs)


def _watched(loaded: Loaded, material: Material) -> tuple[LaneSpec, ...]:
    """The lanes of a race whose pattern is looked at."""
    asked = material.asked
    length = material.tokens + asked.gen_length
    kept = fits(loaded.shape.layers, loaded.shape.heads, length, asked.attention.resolve(length).block_size)
    return watched(asked.lanes, kept, probe_steps(asked.steps, asked.switch_step) if asked.track else ())


def _stage(
    desk: Desk, loaded: Loaded, material: Material, lanes: Sequence[LaneSpec], runs: dict[str, RunLike]
) -> Stage:
    """What the page shows of these runs."""
    engine, model, asked, places = desk.engine, loaded.model, material.asked, material.places
    end_ids = frozenset(model.end_ids)
    views = [
        LaneView(
            lane,
            Canvas(asked.gen_length, lambda tokens: engine.decode_tokens(model, tokens), end_ids),
            planned=lane.plan(run.total, asked.blocks, asked.gen_length, asked.sampler.grows),
            positions=run.info.record()["prompt_tokens"] + asked.gen_length,
            at_most=asked.at_most,
            grows=asked.sampler.grows,
            backend=BACKEND_WORDS.get(run.backend, run.backend),
            parallel=asked.sampler.block_length,
            source=run,
        )
        for lane, run in zip(lanes, runs.values(), strict=True)
    ]
    return Stage(
        views,
        run_id=desk.next_run(),
        end_ids=end_ids,
        gold=material.gold,
        others=material.others,
        judge=engine.verdict,
        read=lambda tokens: engine.read_answer(model, tokens, asked.sampler.stop),
        question=material.question or OWN_QUESTION,
        mode=mode(len(runs), len(places.copies), places.why),
    )
