"""What programs call instead of the page: /models, /compare, /sweep and /pattern."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import gradio as gr

from app.api.arguments import Argument, one_of, publish, settings
from app.api.calls import asked, lengths_of, plain, sender, sentences, steady, visit_of
from app.api.pattern import Blocks, blocks_of
from app.api.values import Compared, Model, Swept, compared_of, model_of, swept_of
from app.lengths import comparison
from app.race import fields
from app.race.request import OF_OWN_TEXT
from app.server.desk import Desk
from app.server.session import perform

# A sweep has lengths of its own and asks the page's questions alone.
NOT_IN_SWEEP = ("length", "third", *OF_OWN_TEXT)
LENGTHS = "Prompt lengths to compare, each once, run from the shortest to the longest."
PATTERN_ARGUMENTS = (
    Argument("run", str, "The key in the last value of /compare."),
    Argument("layer", int, "Layer, counted from 0.", 0),
    Argument("head", int, "Query head of the layer, counted from 0.", 0),
    Argument("lane", str, "Whose pattern: the key of a lane in the last value of /compare.", "sparse"),
    Argument(
        "importance", bool,
        "Whether to give the importances too, where the run has kept them (large for long prompts).", True,
    ),
)  # fmt: skip


def add(desk: Desk) -> None:
    """Registers the endpoints with the `gr.Blocks` that is being built. To be called once for it."""
    kinds, lengths = list(desk.engine.kinds()), list(desk.engine.lengths())
    # Any model may be named where others can be loaded.
    choices = {"model": () if desk.any_model else list(desk.engine.models()), "kind": kinds, "length": lengths}
    usual = fields.usual(desk.models.default, kinds[0], lengths[0])
    of_compare = settings({**choices, "kind": [*kinds, fields.OWN_TEXT]}, usual)
    of_sweep = [
        Argument("lengths", list[one_of(lengths)], LENGTHS),  # type: ignore[misc]
        *settings(choices, usual, NOT_IN_SWEEP),
    ]

    def models(http: gr.Request) -> Any:
        """The models that can be asked here.

        Returns:
            A list: name, size, whether it is in memory, the sampler's defaults, and why it is too large if it is.
        """
        with sentences(desk):
            return sender(http)([model_of(desk, name) for name in desk.engine.models()])

    async def compare(http: gr.Request, *values: Any) -> AsyncGenerator[Any, None]:
        """Denoises the answer to one prompt with full attention and with SparseD, in turns on one device or each on a
        GPU of its own, each step timed alone, and streams how far both are.

        Returns:
            Objects as the run goes on: state, message, and each lane's step, seconds and text so far (▒ is a masked
            token). The last one says how it ended: answers, whether they are right, speed-up, agreement, and the key of
            the run for /pattern and for its files.
        """
        with sentences(desk):
            request, send = asked(desk, _by_name(of_compare, values), usual), sender(http)
            race = steady(perform(desk, visit_of(http), request, via="api"), http)
            async with contextlib.aclosing(race) as stream:
                async for shown in stream:
                    if shown.kept is not None:
                        desk.visits.remember_call(shown.kept)
                    yield send(compared_of(shown))

    async def sweep(http: gr.Request, *values: Any) -> AsyncGenerator[Any, None]:
        """Runs the comparison of /compare at several prompt lengths, one after another, and streams the table.

        Returns:
            Objects with state, message, progress and a row for each length: seconds, speed-up, agreement, right or
            wrong of each lane, peak memory, and the paper's figures.
        """
        with sentences(desk):
            given = _by_name(of_sweep, values)
            chosen = lengths_of(desk, given["lengths"])
            request, send = asked(desk, {**given, "length": chosen[0]}, usual), sender(http)
            races = steady(comparison.compare(desk, visit_of(http), request, chosen), http)
            async with contextlib.aclosing(races) as stream:
                async for value in stream:
                    yield send(swept_of(value))

    def pattern(http: gr.Request, *values: Any) -> Any:
        """Which key blocks one head of a finished run keeps for each query block.

        Returns:
            The block indices, how many there are, block size, prompt blocks, which rows see every key, the step that
            selected, the density asked for and executed, and the importances where the run has kept them.
        """
        with sentences(desk):
            given = _by_name(PATTERN_ARGUMENTS, values)
            return sender(http)(blocks_of(desk, {name: plain(name, value) for name, value in given.items()}))

    publish(models, (), list[Model])
    publish(compare, of_compare, Compared)
    publish(sweep, of_sweep, Swept)
    publish(pattern, PATTERN_ARGUMENTS, Blocks)


def _by_name(arguments: Sequence[Argument], values: Sequence[Any]) -> dict[str, Any]:
    """What a call gives, in the order of the arguments; the default where it ends before."""
    given = dict(zip((argument.name for argument in arguments), values))
    return {argument.name: given.get(argument.name, argument.default) for argument in arguments}
