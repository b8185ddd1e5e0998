"""What the command generate writes: lines for people, notes, and loading while it goes on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from sparsed.models.model import Model
    from sparsed.parallel.team import Team


class Output:
    """Lines on standard output. hidden: none at all. escape: a terminal reads them, so it must not obey them."""

    def __init__(self, hidden: bool, escape: bool) -> None:
        self._hidden, self._escape = hidden, escape

    def line(self, text: str) -> None:
        if self._hidden:
            return
        if self._escape:
            from sparsed.generation.terminal import safe  # needs rich

            text = safe(text)
        print(text, flush=True)


def say_notes(notes: Iterable[str]) -> None:
    """Each on standard error."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr, flush=True)


def load_model(options: argparse.Namespace, console: Console | None, team: Team | None) -> Model:
    """The model that was asked for; how far it is stands on `console`, or without one on standard error."""
    from sparsed.generation.terminal import loading_bar, loading_lines  # needs rich
    from sparsed.models.loading import load  # needs torch

    shown: AbstractContextManager[Callable[[Any], None] | None] = nullcontext(None)
    if console is not None:
        shown = loading_bar(console)
    elif not options.quiet:
        shown = loading_lines(sys.stderr)
    with shown as progress:
        return load(
            options.model,
            device=options.device,
            dtype=options.dtype,
            device_map=options.device_map,
            rope_factor=options.rope_factor,
            quantize=options.quantize,
            revision=options.revision,
            progress=progress,
            team=team,
        )
