"""What a comparison will take, before it begins."""

from __future__ import annotations

from collections.abc import Sequence

from app.engine.cost import Estimate, about
from app.lengths.table import is_shown, lengths_in
from app.race.checks import repeated
from app.race.request import OWN_TEXT, Request
from app.server import limits
from app.server.desk import Desk

NOTHING_CHOSEN = "Choose at least one prompt length to compare."
OWN_HAS_ONE = "Your own text has one length only: choose one of the questions to compare prompt lengths."


def foresee(desk: Desk, asked: Request, lengths: Sequence[str]) -> dict[str, tuple[Estimate | None, str]]:
    """Length → what its race costs here (None: nobody knows), and in a few words why it will be refused,
    or "".
    """
    loaded = desk.models.loaded(asked.model)
    if loaded is None:
        return dict.fromkeys(lengths, (None, ""))
    room, budgets = desk.speed.room(loaded), desk.engine.lengths()
    found = {}
    for name in lengths:
        tokens = budgets[name]
        estimated = desk.speed.estimate(loaded, asked.resolve(tokens), tokens)
        found[name] = estimated, limits.reason(estimated, room, length=tokens + asked.gen_length)
    return found


def outlook(desk: Desk, asked: Request, lengths: Sequence[str]) -> str:
    """What a comparison of these lengths will take, in a sentence or two, before it is begun."""
    if asked.kind == OWN_TEXT:
        return OWN_HAS_ONE
    chosen = in_order(desk, lengths)
    if not chosen:
        return NOTHING_CHOSEN
    costs = foresee(desk, asked, chosen)
    refused = [f"{is_shown(name)} ({reason})" for name, (_, reason) in costs.items() if reason]
    seconds = [cost.seconds for cost, reason in costs.values() if cost is not None and not reason]
    sentences = []
    if seconds:
        most = " at most" if asked.at_most else ""
        sentences.append(f"{lengths_in(len(seconds))}: {about(sum(seconds))} on this machine{most}.")
    elif not refused:
        sentences.append(f"{lengths_in(len(chosen))}: how long that takes here is not known yet.")
    if refused:
        sentences.append(f"Too long here: {', '.join(refused)}.")
    return " ".join(sentences)


def in_order(desk: Desk, lengths: Sequence[str]) -> list[str]:
    """The lengths once each, shortest first. Raises ValueError for one that does not exist."""
    budgets = desk.engine.lengths()
    for name in lengths if isinstance(lengths, (list, tuple)) else [lengths]:
        if not isinstance(name, str) or name not in budgets:
            raise ValueError(f"The prompt length {repeated(name)} is not one of {', '.join(budgets)}.")
    return sorted(set(lengths), key=lambda name: budgets[name])
