"""A run that is over → the values of the page's charts. None where the run has nothing for a chart."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

import numpy as np

from app.figures import base, later_steps
from app.figures import head as head_figure
from app.figures import layer as layer_figure
from app.figures import model as model_figure
from app.figures import timeline as timeline_figure
from app.figures.shared import title_of
from app.finished.evidence import evidence
from app.finished.replay import origin
from app.finished.run import Kept
from app.finished.what_if import what_if, why_not
from app.lanes import headline
from app.race.lane_view import ranges_of
from app.race.snapshot import StepTimes
from app.texts import Shades
from sparsed.attention.analysis import mask_overlap, thumbnails
from sparsed.attention.layout import BlockLayout
from sparsed.attention.masks import Masks
from sparsed.trace.types import Lane

Value = dict[str, Any]


def timeline(run: Kept | None) -> Value | None:
    """The lanes' times, step by step."""
    if run is None:
        return None
    lanes = run.lanes
    total = max(made.total for made in lanes.values())
    positions = run.trace.prompt.tokens + run.trace.gen_length
    times = StepTimes(
        tuple(lanes),
        {lane.key: [step.seconds for step in made.steps] for lane, made in lanes.items()},
        {lane.key: [step.phase for step in made.steps] for lane, made in lanes.items()},
        total,
        _ranges(run),
        run.trace.sampler.at_most,
        {lane.key: [step.rows or positions for step in made.steps] for lane, made in lanes.items()},
        positions,
    )
    labels = " and ".join(lane.label for lane in lanes)
    figure = timeline_figure.timeline(times)
    return {"figure": figure, "label": f"Line chart of the time per step of {labels}, {total} steps."}


def _ranges(run: Kept) -> list[list[Any]]:
    """The phases of the headline's lane as `LaneView.ranges`: as made, and as planned for what a Stop left out."""
    lanes, sampler = run.lanes, run.trace.sampler
    large = headline(lanes)
    if large is None:
        return []
    made = lanes[large]
    phases = [step.phase for step in made.steps]
    planned = () if made.finished else large.phases(made.total, sampler.blocks, grows=sampler.grows)
    return ranges_of([*phases, *planned[len(phases) :]], at_most=sampler.at_most and not made.finished)


def which(run: Kept | Masks | None, *, before: bool = False, selected: int = 0) -> str:
    """Which run the page looks at, in a sentence or two. before: another one goes on that has not selected yet.
    selected: of a run that goes on, the step that made its pattern, counted from 1.
    """
    if run is None:
        return "Nothing to look at yet: press Run."
    if isinstance(run, Masks):
        return f"Your run, which goes on: its blocks were selected in step {selected}. More is here when it is over."
    if run.live:
        said = "Your last run"
    else:
        about = origin(run.trace)
        said = f"A recorded run of {run.trace.model.name}, on {about['machine']}, {about['date']}"
    said += f": {run.trace.prompt.tokens:,} prompt tokens"
    layout = None if run.pattern is None else run.pattern.layout
    said += "" if layout is None else f", {layout.blocks} blocks of {layout.block_size}"
    if len(run.selected) > 1:
        said += f". It selected {len(run.selected)} times; these blocks are those of step {run.selected[-1]}"
    return f"{said}. The run that goes on now comes here at its select step." if before else f"{said}."


def head(
    run: Kept | Masks | None, layer: int, head: int, shades: Shades = "both", select: float | None = None
) -> Value | None:
    """One head: what it keeps, over what mattered to it. select: what it would keep at this one, where that can be
    said (`app.finished.what_if`).
    """
    pattern = _pattern(run)
    if run is None or pattern is None:
        return None
    layer, head = min(layer, pattern.layers - 1), min(head, pattern.heads - 1)
    mass = _mass(run, layer)
    tried = None
    if select is not None and isinstance(run, Kept) and not why_not(run):
        tried = what_if(run, layer, head, select)
    kept_mass = tried.mass if tried else None if mass is None else mass[head]
    view = head_figure.head_detail(
        tried.mask if tried else pattern.mask(layer)[0, head],
        layer=layer,
        head=head,
        length=pattern.layout.length,
        prompt_length=pattern.layout.prompt_length,
        block_size=pattern.layout.block_size,
        prompt_blocks=pattern.layout.prompt_blocks,
        importance=pattern.importance(layer, head),
        kept_mass=kept_mass,
        full_blocks=pattern.full_blocks,
        words=run.trace.prompt.words if isinstance(run, Kept) else (),
        show=shades,
        lane=run.seen_key if isinstance(run, Kept) else "",
        what_if=select if tried else None,
    )
    view.figure["layout"]["meta"]["evidence"] = evidence(run, layer, head, tried)
    return view._asdict()


def before_selecting(layout: BlockLayout) -> Value:
    """The map of a run that goes on and has not selected yet: every head computes every pair."""
    view = head_figure.head_detail(
        np.ones((layout.blocks, layout.blocks), dtype=bool),
        layer=0,
        head=0,
        length=layout.length,
        prompt_length=layout.prompt_length,
        block_size=layout.block_size,
        prompt_blocks=layout.prompt_blocks,
    )
    said = "Every head computes every block", "what each head keeps appears at the select step"
    view.figure["layout"] |= {"title": title_of(*said), "meta": {"map": view.figure["layout"]["meta"]["map"]}}
    return {"figure": view.figure, "label": f"{said[0]}; {said[1]}."}


def layer(run: Kept | Masks | None, layer: int) -> tuple[Value, Value, Value] | None:
    """All heads of a layer: their masks, how much they share, and how much attention each keeps."""
    pattern = _pattern(run)
    if pattern is None:
        return None
    layer = max(0, min(layer, pattern.layers - 1))
    mask, mass = pattern.mask(layer)[0], _mass(run, layer)
    thumbs, per_cell = thumbnails(mask)
    density = mask.mean((1, 2))
    overview = layer_figure.overview(
        thumbs,
        per_cell,
        layer,
        mass,
        blocks=mask.shape[-1],
        block_size=pattern.layout.block_size,
        prompt_blocks=pattern.layout.prompt_blocks,
        full_blocks=pattern.full_blocks,
    )
    # Where something was selected: rows that see every key are the same in all heads.
    selected = mask[:, : mask.shape[1] - pattern.full_blocks]
    overlap = layer_figure.overlap_matrix(mask_overlap(selected), layer)
    if mass is None:
        said = "How much attention each head keeps appears here when the run is over."
        if not isinstance(run, Masks):
            said = "How much attention the heads keep is known of runs whose importances were kept."
        bars: Value = {"figure": base.empty(said), "label": said}
    else:
        bars = layer_figure.kept_mass_bars(mass, density.tolist(), layer)._asdict()
    return overview._asdict(), overlap._asdict(), bars


def model(run: Kept | None) -> Value | None:
    """Every head of every layer."""
    pattern = _pattern(run)
    if pattern is None:
        return None
    made = [thumbnails(pattern.mask(layer)[0], model_figure.ATLAS_CELLS) for layer in range(pattern.layers)]
    return model_figure.atlas(
        [thumbs for thumbs, _ in made],
        made[0][1],
        blocks=pattern.layout.blocks,
        block_size=pattern.layout.block_size,
        prompt_blocks=pattern.layout.prompt_blocks,
        full_blocks=pattern.full_blocks,
    )._asdict()


def later(run: Kept | None) -> Value | None:
    """How much of the pattern a fresh selection at later steps would choose again; None for a run not tracked."""
    lane = None if run is None else run.sparse
    if lane is None or not lane.probes:
        return None
    overlap = np.asarray([probe.overlap for probe in lane.probes], dtype=np.float32)
    # The first one's line is the switch.
    again = [step.index for step in lane.steps if step.phase == "select"][1:]
    steps = [probe.step for probe in lane.probes]
    return later_steps.tracking(steps, overlap, lane.switch_step, again, _selection_cost(lane))._asdict()


def _selection_cost(lane: Lane) -> str:
    """What the selections of a lane took beside steps of full attention, in words; "" where it made no such step."""
    dense = [step.seconds for step in lane.steps if step.phase == "dense"]
    selecting = [step.seconds for step in lane.steps if step.phase == "select"]
    if not dense or not selecting:
        return ""
    # The first step of a run warms up.
    more = [seconds - median(dense[1:] or dense) for seconds in selecting]
    count = "1 selection" if len(more) == 1 else f"{len(more)} selections"
    each = "" if len(more) == 1 else " each (median)"
    return (
        f"{count}: {1000 * max(0.0, median(more)):.0f} ms{each} beside a dense step, "
        f"{100 * max(0.0, sum(more)) / lane.seconds:.1f} % of the run"
    )


def clicked(point: Any) -> tuple[int, int] | None:
    """(layer, head) of the thumbnail that was clicked: said by its trace, or by where it stands in the whole model;
    None where what the browser sent is no place. There need not be such a head.
    """
    if not isinstance(point, Mapping):
        return None
    meta = point.get("meta")
    given = (meta["layer"], meta["head"]) if isinstance(meta, Mapping) and {"layer", "head"} <= set(meta) else None
    layer, head = given or (point.get("y"), point.get("x"))
    if not all(isinstance(place, (int, float)) and -0.5 <= place < 1e6 for place in (layer, head)):
        return None
    return round(layer), round(head)  # type: ignore[arg-type]


def _pattern(run: Kept | Masks | None) -> Masks | None:
    return run.pattern if isinstance(run, Kept) else run


def _mass(run: Kept | Masks | None, layer: int) -> list[float] | None:
    """The share of attention that each head of a layer keeps; None where that is not known, or not yet."""
    pattern = _pattern(run)
    return list(pattern.kept_mass[layer]) if pattern is not None and pattern.kept_mass else None
