"""Races of one request at several prompt lengths."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from app.lanes import PAIR, additions
from app.lengths import paper as published
from app.lengths.forecast import NOTHING_CHOSEN, OWN_HAS_ONE, foresee, in_order
from app.lengths.table import Comparison, Row, Table, done, is_shown, lengths_in, row_of
from app.race.request import OWN_TEXT, Request
from app.server.desk import Desk
from app.server.observer import Measured
from app.server.several import Several
from app.server.visits import Visit

BUSY = "A run of this page is going on: stop it, or wait for its end, before you compare."
NOT_BEGUN = "Not begun."


def label(desk: Desk, asked: Request) -> str:
    """What was compared, in a few words: model, steps, select, and whatever else is not as usual."""
    sampler, attention = asked.sampler, asked.attention
    parts = [
        desk.models.spec(asked.model).name,
        f"{'up to ' if asked.at_most else ''}{asked.steps} steps",
        "default select" if attention.select is None else f"select {attention.select:g}",
    ]
    if attention.skip is not None:
        parts.append(f"skip {attention.skip:g}")
    if attention.block_size is not None:
        parts.append(f"attention block {attention.block_size}")
    parts += additions(attention)
    if sampler.threshold is not None:
        parts.append(f"threshold {sampler.threshold:g}")
    if sampler.cfg_scale:
        parts.append(f"CFG {sampler.cfg_scale:g}")
    if asked.backend != "auto":
        parts.append(asked.backend)
    if further := asked.lanes[len(PAIR) :]:
        parts.append(f"with {'; '.join(lane.label for lane in further)}")
    return " · ".join(parts)


async def compare(desk: Desk, visit: Visit, asked: Request, lengths: Sequence[str]) -> AsyncGenerator[Comparison, None]:
    """Runs the race of `asked` at each of `lengths`, shortest first, and yields the table after every change.

    asked.length is not looked at. A length that is refused or fails
    does not end the others. Ends within one step after `visit.stop()`, what is done staying in the table; closing the
    stream stops the race too, and frees the device. The last value is the only one whose state is not "running".
    """
    empty = Table((), "", "", "")
    if asked.kind == OWN_TEXT:
        yield empty.value("refused", OWN_HAS_ONE)
        return
    try:
        chosen = in_order(desk, lengths)
    except ValueError as error:
        yield empty.value("refused", str(error))
        return
    if not chosen or visit.running:
        yield empty.value("refused", BUSY if chosen else NOTHING_CHOSEN)
        return
    paper = published.source(desk.models.spec(asked.model).family)
    budgets = desk.engine.lengths()
    table = Table(
        [row_of(name, budgets[name], paper.runs.get(name), asked.lanes) for name in chosen],
        label(desk, asked),
        desk.engine.kinds().get(asked.kind, asked.kind),
        paper.words,
    )
    with Several(desk, visit, asked.model, via="sweep") as several:
        yield table.value("running", f"Comparing {lengths_in(len(chosen))}.")
        for name in chosen:
            if several.over:
                break
            measured = Measured()
            message = f"{is_shown(name)} is being run."
            async with contextlib.aclosing(several.race(replace(asked, length=name), measured)) as race:
                async for shown in race:
                    if table.costs is None and several.ready(shown):
                        table.costs = foresee(desk, asked, chosen)
                    table.take(name, shown.stage, measured.tokens, measured.peak)
                    if not shown.over:
                        yield table.value("running", message)
            if name != chosen[-1] and not several.over:
                yield table.value("running", f"{is_shown(name)}: {_outcome(table.rows[name])}")
        if visit.stopping:
            table.leave_out(NOT_BEGUN)
            yield table.value("stopped", "Stopped. What was measured so far stays here.")
        elif several.unloaded:
            table.leave_out("The model could not be loaded.")
            yield table.value("failed", several.unloaded)
        else:
            yield table.value("done", _summary(table))


def _outcome(row: Row) -> str:
    """How a length ended, in a few words or the sentence that says why."""
    if row["state"] != "done":
        return str(row["message"])
    if row["never_sparse"]:
        return "done; SparseD was never sparse."
    if row["speedup"] is None:
        return "done."
    return f"SparseD was {row['speedup']['text']} {row['speedup']['words']}."


def _summary(table: Table) -> str:
    good, all_of_them = len(done(table.rows.values())), len(table.rows)
    if good == all_of_them:
        return f"Done: {lengths_in(good)} compared."
    return f"Done: {good} of {lengths_in(all_of_them)} compared; the table says why the others were not."
