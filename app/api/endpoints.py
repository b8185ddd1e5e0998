"""What programs call instead of the page: /models, /compare, /sweep and /pattern."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar, cast

import gradio as gr

from app.api.pattern import Blocks, blocks_of
from app.api.values import MOST_LENGTHS, Compared, Model, Swept, compared_of, known_names, model_of, plain, swept_of
from app.lanes import OFFERED
from app.lengths import comparison
from app.lengths.forecast import NOTHING_CHOSEN
from app.race import request
from app.race.request import BACKENDS, BASELINES, NO_BASELINE, OWN_TEXT, Request
from app.server.desk import Desk
from app.server.gradio_internals import describe_parameters, from_mcp, hung_up
from app.server.session import perform
from app.server.visits import Visit
from sparsed.config import ALGORITHMS, BLOCK_SIZES, SELECTIONS

# While nothing new happens the last value is given again after so many seconds: only when it sends does the server
# notice that a client has gone, and a run that nobody waits for must not keep the device.
BEAT_SECONDS = 1.0
INTERNAL = "The server met an error of its own and ended this call. Its log says more."
TWO_PROMPTS = (
    "text is a prompt of your own, and kind asks one of the page's questions: give one of the two (with text, kind is "
    f"{OWN_TEXT!r})."
)
T = TypeVar("T")
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
# Each parameter in a sentence; what it may be is said by its type, and again here where a type cannot.
_SETTINGS = {
    "model": "Which model answers; /models lists them. One that is not in memory is loaded first, perhaps downloaded.",
    "kind": "A kind of question; own, where it is allowed, stands for the prompt in text (a text alone is enough).",
    "length": "Prompt length of a question, in tokens as its name says; short_context is up to 256.",
    "lengths": "Prompt lengths to compare, each once, run from the shortest to the longest.",
    "question": "Number of the question, 0 to 2147483647: each number makes another prompt.",
    "text": f"A prompt of your own instead of a question, up to {request.MAX_CHARACTERS:,} characters.",
    "steps": f"Denoising steps, 1 to {request.MAX_STEPS}; a multiple of the number of blocks. Default: the model's.",
    "gen_length": f"Tokens to generate, 1 to {request.MAX_GENERATION}. Default: the model's.",
    "block_length": "Semi-autoregressive block length in tokens; divides gen_length. Default: the model's.",
    "algorithm": "Which tokens each step commits: LLaDA's two, then Dream's four. Default: the model's.",
    "temperature": "0 takes the likeliest token; up to 10. Default: the model's.",
    "threshold": "Commit every token surer than this, 0 to 1 (0 is off); ends a run early. Default: the model's.",
    "cfg_scale": "Guidance scale, 0 (off) to 100; above 0 each step costs twice. Default: the model's.",
    "top_p": "Draw from the likeliest tokens of this sum, 0.01 to 1 (off); Dream's only. Default: the model's.",
    "skip": "Share of the steps that use full attention before SparseD's switch, 0 to 1.",
    "select": "Share of the key blocks that a head keeps, 0.01 to 1. Default: 0.5 below 4000 tokens, else 0.3.",
    "block_size": "Attention block size in tokens. Default: 32 below 4000 tokens, else 128.",
    "selection": "How the blocks to keep are ranked: as the paper says, or as its public code does it.",
    "seed": "Seed of the sampler, 0 to 2147483647, the same for all lanes.",
    "backend": "What computes the sparse attention; auto is the fastest here.",
    "third": "A simpler pattern that keeps as many blocks, in a third lane.",
    "run": "The key in the last value of /compare.",
    "layer": "Layer, counted from 0.",
    "head": "Query head of the layer, counted from 0.",
    "lane": "Whose pattern: SparseD's, or that of the third lane.",
    "importance": "Whether to give the importances too, where the run has kept them (large for long prompts).",
}


def add(desk: Desk) -> None:
    """Registers the endpoints with the `gr.Blocks` that is being built. To be called once for it."""
    kinds, lengths = list(desk.engine.kinds()), list(desk.engine.lengths())
    known: Mapping[str, Any] = {
        "model": str if desk.any_model else _one_of(desk.engine.models()),
        "kind": _one_of((*kinds, OWN_TEXT)),
        "length": _one_of(lengths),
        "lengths": list[_one_of(lengths)],  # type: ignore[misc]
        "algorithm": _one_of(ALGORITHMS) | None,
        "block_size": _one_of(BLOCK_SIZES) | None,
        "selection": _one_of(SELECTIONS),
        "backend": _one_of(BACKENDS),
        "third": _one_of((NO_BASELINE, *BASELINES)),
        "lane": _one_of(OFFERED[1:]),
    }
    usual_kind = kinds[0]

    @_documented(known, list[Model])
    def models(http: gr.Request) -> Any:
        """The models that can be asked here.

        Returns:
            A list: name, size, whether it is in memory, the sampler's defaults, and why it is too large if it is.
        """
        with _sentences(desk):
            return _sender(http)([model_of(desk, name) for name in desk.engine.models()])

    @_documented(known, Compared)
    async def compare(
        http: gr.Request,
        model: str = desk.models.default,
        kind: str = usual_kind,
        length: str = lengths[0],
        question: int = 0,
        text: str = "",
        steps: int | None = None,
        gen_length: int | None = None,
        block_length: int | None = None,
        algorithm: str | None = None,
        temperature: float | None = None,
        threshold: float | None = None,
        cfg_scale: float | None = None,
        top_p: float | None = None,
        skip: float = 0.2,
        select: float | None = None,
        block_size: int | None = None,
        selection: str = "paper",
        seed: int = 0,
        backend: str = "auto",
        third: str = NO_BASELINE,
    ) -> AsyncGenerator[Any, None]:
        """Denoises the answer to one prompt with full attention and with SparseD, in turns on one device or each on a
        GPU of its own, each step timed alone, and streams how far both are.

        Returns:
            Objects as the run goes on: state, message, and each lane's step, seconds and text so far (▒ is a masked
            token). The last one says how it ended: answers, whether they are right, speed-up, agreement, and the key of
            the run for /pattern and for its files.
        """
        given = locals()
        with _sentences(desk):
            asked = _asked(desk, given, usual_kind)
            send = _sender(http)
            async with contextlib.aclosing(_steady(perform(desk, _visit(http), asked, via="api"), http)) as stream:
                async for shown in stream:
                    if shown.kept is not None:
                        desk.visits.remember_call(shown.kept)
                    yield send(compared_of(shown))

    @_documented({**known, "kind": _one_of(kinds)}, Swept)
    async def sweep(
        http: gr.Request,
        lengths: list[str],
        model: str = desk.models.default,
        kind: str = usual_kind,
        question: int = 0,
        steps: int | None = None,
        gen_length: int | None = None,
        block_length: int | None = None,
        algorithm: str | None = None,
        temperature: float | None = None,
        threshold: float | None = None,
        cfg_scale: float | None = None,
        top_p: float | None = None,
        skip: float = 0.2,
        select: float | None = None,
        block_size: int | None = None,
        selection: str = "paper",
        seed: int = 0,
        backend: str = "auto",
    ) -> AsyncGenerator[Any, None]:
        """Runs the comparison of /compare at several prompt lengths, one after another, and streams the table.

        Returns:
            Objects with state, message, progress and a row for each length: seconds of both lanes, speed-up, agreement,
            right or wrong, peak memory, and the paper's figures.
        """
        given = locals()
        with _sentences(desk):
            chosen = _lengths(desk, lengths)
            asked = _asked(desk, {**given, "length": chosen[0]}, usual_kind)
            send = _sender(http)
            races = comparison.compare(desk, _visit(http), asked, chosen)
            async with contextlib.aclosing(_steady(races, http)) as stream:
                async for value in stream:
                    yield send(swept_of(value))

    @_documented(known, Blocks)
    def pattern(
        http: gr.Request, run: str, layer: int = 0, head: int = 0, lane: str = OFFERED[1], importance: bool = True
    ) -> Any:
        """Which key blocks one head of a finished run keeps for each query block.

        Returns:
            The block indices, how many there are, block size, prompt blocks, the density asked for and executed, and
            the importances where the run has kept them.
        """
        with _sentences(desk):
            given = {"run": run, "lane": lane, "layer": layer, "head": head, "importance": importance}
            return _sender(http)(blocks_of(desk, {name: plain(name, value) for name, value in given.items()}))

    for endpoint in (models, compare, sweep, pattern):
        number = gr.api(endpoint, concurrency_limit=None, api_visibility="public")["id"]
        # MCP reads the function's docstring instead.
        describe_parameters(number, [_SETTINGS[name] for name in known_names(endpoint)])


def _one_of(names: Any) -> Any:
    """The type of one of these values; gradio makes a list of allowed values of it, for its documents and for MCP."""
    return cast(Any, Literal)[tuple(names)]


def _documented(known: Mapping[str, Any], returned: Any) -> Callable[[Endpoint], Endpoint]:
    """Tells gradio what it reads from a function: the types that are known only when the page is built, what it gives
    (each value, for a stream), and a line for every parameter (gradio takes one line each).
    """

    def describe(endpoint: Endpoint) -> Endpoint:
        names = known_names(endpoint)
        endpoint.__annotations__ |= {name: known[name] for name in names if name in known} | {"return": returned}
        about, _, gives = (endpoint.__doc__ or "").partition("Returns:")
        lines = "".join(f"\n    {name}: {_SETTINGS[name]}" for name in names)
        endpoint.__doc__ = f"{about.strip()}\n\nParameters:{lines}\n\nReturns:\n    {' '.join(gives.split())}"
        return endpoint

    return describe


@contextlib.contextmanager
def _sentences(desk: Desk) -> Iterator[None]:
    """What goes wrong reaches the client as one sentence; what should not have gone wrong, the log as a whole."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from None
    # An error of ours would be sent as it is, by gradio: this is the edge where it is not.
    except Exception as error:  # noqa: BLE001
        desk.journal.error(error, via="api")
        raise gr.Error(INTERNAL, print_exception=False) from None


async def _steady(stream: AsyncGenerator[T, None], http: gr.Request) -> AsyncGenerator[T, None]:
    """The values of a stream, and the last one again after each BEAT_SECONDS without a new one. Closing it, or
    cancelling who waits for it, closes the stream at once; so does a client that hangs up.
    """
    async with contextlib.aclosing(stream):
        coming: asyncio.Future[T] = asyncio.ensure_future(anext(stream))
        try:
            last: list[T] = []
            while True:
                arrived, _ = await asyncio.wait({coming}, timeout=BEAT_SECONDS)
                if arrived:
                    try:
                        last = [coming.result()]
                    except StopAsyncIteration:
                        return
                    coming = asyncio.ensure_future(anext(stream))
                if from_mcp(http) and hung_up(http.request):
                    return
                for value in last:
                    yield value
        finally:
            coming.cancel()
            # Waits for it, and takes what nobody wants to know any more.
            await asyncio.gather(coming, return_exceptions=True)


def _visit(http: gr.Request) -> Visit:
    """A visit for one call. In line for the device the calls of one client let others pass; so do those through MCP,
    all of which gradio makes as one client.
    """
    visit = Visit()
    visit.owner = http.session_hash
    return visit


def _sender(http: gr.Request) -> Callable[[Any], Any]:
    """How a value goes out: as it is; to MCP as text, because gradio would write a dictionary as Python does."""
    return (lambda value: json.dumps(value, ensure_ascii=False)) if from_mcp(http) else (lambda value: value)


def _asked(desk: Desk, given: Mapping[str, Any], usual_kind: str) -> Request:
    """The request of a call; what is None takes the default. Raises ValueError, one sentence, for what cannot run."""
    usual = {
        "model": desk.models.default, "kind": usual_kind, "length": next(iter(desk.engine.lengths())), "question": 0,
        "text": "", "skip": 0.2, "selection": "paper", "seed": 0, "backend": "auto", "third": NO_BASELINE,
    }  # fmt: skip
    names = (*usual, *request.FOLLOWING)
    said = {name: plain(name, given[name]) for name in names if given.get(name) is not None}
    values = {**dict.fromkeys(names), **usual, **said}
    if not isinstance(values["text"], str):
        raise ValueError("The value of text must be a string.")
    if values["text"].strip() and values["kind"] != OWN_TEXT:
        if values["kind"] != usual_kind:
            raise ValueError(TWO_PROMPTS)
        values["kind"] = OWN_TEXT
    if isinstance(values["model"], str) and values["model"] not in desk.engine.models():
        desk.engine.admit(values["model"])
    return request.parse(
        **values,
        # What is no string is refused by `parse`.
        defaults=desk.models.defaults(values["model"] if isinstance(values["model"], str) else desk.models.default),
        models=desk.engine.models(),
        kinds=desk.engine.kinds(),
        lengths=desk.engine.lengths(),
    )


def _lengths(desk: Desk, given: Any) -> list[str]:
    """The prompt lengths of a sweep. Raises ValueError where they are none, or no list of such."""
    known = desk.engine.lengths()
    if not isinstance(given, list) or len(given) > MOST_LENGTHS:
        raise ValueError(f"The value of lengths must be a list of some of {', '.join(known)}.")
    if not given:
        raise ValueError(NOTHING_CHOSEN)
    for name in given:
        if not isinstance(plain("lengths", name), str) or name not in known:
            raise ValueError(f"The prompt length {name!r} is not one of {', '.join(known)}.")
    return list(given)
