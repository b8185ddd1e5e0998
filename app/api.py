"""What programs call instead of the page: four named endpoints, for gradio's clients in Python and JavaScript, and as
tools for language models (MCP) where the page is launched with `mcp_server=True`.

/models, /compare, /sweep and /pattern take and give plain JSON. Who may run what is decided where the page decides it
(`app.request`, `app.limits`), and a run goes through the same line for the device (`app.session`). Every call stands
for itself: nothing of it is seen on anybody's page.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, TypedDict, TypeVar, cast

import gradio as gr

from app import compare as comparison
from app import request, takeaway
from app.compare import NOTHING_CHOSEN
from app.desk import Desk, Visit
from app.kept import lane_key
from app.request import BACKENDS, BASELINES, NO_BASELINE, OWN_TEXT, SAMPLER_FIELDS, Request
from app.server.gradio_internals import describe_parameters, from_mcp, hung_up
from app.serving import RUNS
from app.session import Shown, perform
from app.stage import BASELINE, DENSE, SPARSE, Snapshot, lane_label
from sparsed.config import ALGORITHMS, BLOCK_SIZES, SELECTIONS
from sparsed.trace import TracePattern

# While nothing new happens the last value is given again after so many seconds: only when it sends does the server
# notice that a client has gone, and a run that nobody waits for must not keep the device.
BEAT_SECONDS = 1.0
MASKED = "▒"
# Beyond these a value can be nothing that is meant; it is not repeated in the sentence that says so.
MOST_CHARACTERS, MOST_NUMBER, MOST_LENGTHS = 200, 2**53, 64
INTERNAL = "The server met an error of its own and ended this call. Its log says more."
TWO_PROMPTS = (
    "text is a prompt of your own, and kind asks one of the page's questions: give one of the two (with text, kind is "
    f"{OWN_TEXT!r})."
)
UNKNOWN_RUN = (
    "No run of that key is kept any more: a call's run is kept for some minutes, and the last few only. Run /compare "
    "again and use the key in its last value."
)

T = TypeVar("T")
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


# ---- what is given ---------------------------------------------------------------------------------------------


class Defaults(TypedDict):
    """A model's sampler, where a call says nothing else. Lengths in tokens; threshold: None where it is off."""

    steps: int
    gen_length: int
    block_length: int
    algorithm: str
    temperature: float
    threshold: float | None
    cfg_scale: float
    top_p: float


class Model(TypedDict):
    """A model that can be asked. parameters: 0 if unknown; download_gb: 10⁹ bytes, 0 if bundled; trained_length: tokens
    (0 if unknown); too_large: why it does not fit into this machine, "" if it does.
    """

    name: str
    label: str
    parameters: int
    download_gb: float
    bundled: bool
    in_memory: bool
    trained_length: int
    too_large: str
    defaults: Defaults


class Speedup(TypedDict):
    """How many times faster SparseD is: the number, and as people say it ("1.41×", "faster so far")."""

    ratio: float
    text: str
    words: str


class Agreement(TypedDict):
    """How many of the tokens compared are those of full attention."""

    same: int
    compared: int
    text: str


class LaneValue(TypedDict):
    """One lane. step of total; seconds of its own computing so far; text: its answer, "▒" for each token that is still
    masked; right, verdict: of the finished answer, None where the right one is not known; agreement: with full
    attention, at the end.
    """

    label: str
    backend: str
    phase: str
    step: int
    total: int
    seconds: float
    text: str
    right: bool | None
    verdict: str | None
    agreement: Agreement | None


class Compared(TypedDict):
    """What /compare gives. state: "loading", "preparing", "waiting", "running", and once, last, "done", "stopped",
    "refused" or "failed". position: runs before this one while it waits, and wait: for about how many seconds, if that
    is known. mode: "turns" or "together", how the lanes share the machine's devices, None before they begin.
    switch_step: SparseD's first sparse step, counted from 1, None if there is none. gold: the right answer,
    at the end. run: the key for /pattern; files: what can be downloaded, name → address below the page's own; both at
    the end of a run that made a step.
    """

    state: str
    message: str
    position: int | None
    wait: float | None
    question: str
    mode: str | None
    lanes: dict[str, LaneValue]
    speedup: Speedup | None
    agreement: Agreement | None
    switch_step: int | None
    notes: list[str]
    gold: str | None
    prompt_tokens: int | None
    run: str | None
    files: dict[str, str]


class SweptRow(TypedDict):
    """One prompt length of /sweep. state: "waiting", "preparing", "running", "done", "refused", "failed" or "stopped";
    step of total, both lanes together; seconds of each lane; memory: the peak in bytes; published: the paper's seconds
    and speed-up at this length, where it has any. What is not known yet is None.
    """

    length: str
    tokens: int | None
    state: str
    message: str
    step: int
    total: int
    dense_seconds: float | None
    sparse_seconds: float | None
    speedup: Speedup | None
    agreement: Agreement | None
    dense_right: bool | None
    sparse_right: bool | None
    memory: int | None
    published: dict[str, float] | None
    notes: list[str]


class Swept(TypedDict):
    """What /sweep gives. state: "running", and once, last, "done", "stopped", "refused" or "failed"; progress: 0 … 1;
    label: what was compared, in a few words.
    """

    state: str
    message: str
    label: str
    question: str
    progress: float
    rows: list[SweptRow]


class Density(TypedDict):
    """requested: kept pairs of blocks, of all. executed: scores that the run's backend computes for them, of all."""

    requested: float
    executed: float


class Blocks(TypedDict):
    """What one head keeps. kept: for each query block the key blocks that are computed, counted from 0; counts: how
    many. The first prompt_blocks key blocks are the prompt's. importance: the mean attention weight of every (query
    block, key block), None where it was not kept.
    """

    run: str
    lane: str
    label: str
    layer: int
    head: int
    layers: int
    heads: int
    tokens: int
    block_size: int
    blocks: int
    prompt_blocks: int
    select: float
    kept: list[list[int]]
    counts: list[int]
    density: Density
    importance: list[list[float]] | None


# ---- the endpoints ---------------------------------------------------------------------------------------------

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
        "lane": _one_of((SPARSE, BASELINE)),
    }
    usual_kind = kinds[0]

    @_documented(known, list[Model])
    def models(http: gr.Request) -> Any:
        """The models that can be asked here.

        Returns:
            A list: name, size, whether it is in memory, the sampler's defaults, and why it is too large if it is.
        """
        with _sentences(desk):
            return _sender(http)([_model(desk, name) for name in desk.engine.models()])

    @_documented(known, Compared)
    async def compare(
        http: gr.Request,
        model: str = desk.default_model,
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
                        desk.remember_call(shown.kept)
                    yield send(_compared(shown))

    @_documented({**known, "kind": _one_of(kinds)}, Swept)
    async def sweep(
        http: gr.Request,
        lengths: list[str],
        model: str = desk.default_model,
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
                    yield send(_swept(value))

    @_documented(known, Blocks)
    def pattern(
        http: gr.Request, run: str, layer: int = 0, head: int = 0, lane: str = SPARSE, importance: bool = True
    ) -> Any:
        """Which key blocks one head of a finished run keeps for each query block.

        Returns:
            The block indices, how many there are, block size, prompt blocks, the density asked for and executed, and
            the importances where the run has kept them.
        """
        with _sentences(desk):
            given = {"run": run, "lane": lane, "layer": layer, "head": head, "importance": importance}
            return _sender(http)(_blocks(desk, {name: _plain(name, value) for name, value in given.items()}))

    for endpoint in (models, compare, sweep, pattern):
        number = gr.api(endpoint, concurrency_limit=None, api_visibility="public")["id"]
        # MCP reads the function's docstring instead.
        describe_parameters(number, [_SETTINGS[name] for name in _names(endpoint)])


def _one_of(names: Any) -> Any:
    """The type of one of these values; gradio makes a list of allowed values of it, for its documents and for MCP."""
    return cast(Any, Literal)[tuple(names)]


def _names(endpoint: Callable[..., Any]) -> list[str]:
    """What a call may give, in its order."""
    return [name for name in inspect.signature(endpoint).parameters if name != "http"]


def _documented(known: Mapping[str, Any], returned: Any) -> Callable[[Endpoint], Endpoint]:
    """Tells gradio what it reads from a function: the types that are known only when the page is built, what it gives
    (each value, for a stream), and a line for every parameter (gradio takes one line each).
    """

    def describe(endpoint: Endpoint) -> Endpoint:
        names = _names(endpoint)
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


# ---- what is asked ---------------------------------------------------------------------------------------------


def _plain(name: str, value: Any) -> Any:
    """A value that `app.request.parse` can look at: nothing, or a string, number or truth value of a sane size. Raises
    ValueError.
    """
    if isinstance(value, str):
        most = request.MAX_CHARACTERS if name == "text" else MOST_CHARACTERS
        if len(value) > most:
            raise ValueError(f"The value of {name} has {len(value):,} characters; it may have up to {most:,}.")
    elif isinstance(value, int) and abs(value) > MOST_NUMBER:
        raise ValueError(f"The value of {name} is a number far beyond its range.")
    elif value is not None and not isinstance(value, (int, float)):
        what = "a list" if isinstance(value, list) else "an object"
        raise ValueError(f"The value of {name} is {what}; it must be a single value.")
    return value


def _asked(desk: Desk, given: Mapping[str, Any], usual_kind: str) -> Request:
    """The request of a call; what is None takes the default. Raises ValueError, one sentence, for what cannot run."""
    usual = {
        "model": desk.default_model, "kind": usual_kind, "length": next(iter(desk.engine.lengths())), "question": 0,
        "text": "", "skip": 0.2, "selection": "paper", "seed": 0, "backend": "auto", "third": NO_BASELINE,
    }  # fmt: skip
    names = (*usual, *request.FOLLOWING)
    said = {name: _plain(name, given[name]) for name in names if given.get(name) is not None}
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
        defaults=desk.defaults(values["model"] if isinstance(values["model"], str) else desk.default_model),
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
        if not isinstance(_plain("lengths", name), str) or name not in known:
            raise ValueError(f"The prompt length {name!r} is not one of {', '.join(known)}.")
    return list(given)


# ---- what is answered ------------------------------------------------------------------------------------------


def _model(desk: Desk, name: str) -> Model:
    spec, defaults = desk.spec(name), desk.defaults(name)
    defaults = defaults.resolve(defaults)
    return {
        "name": name,
        "label": spec.label,
        "parameters": spec.parameters,
        "download_gb": spec.download_gb,
        "bundled": spec.bundled,
        "in_memory": desk.loaded(name) is not None,
        "trained_length": spec.trained_length,
        "too_large": desk.too_large(name),
        "defaults": cast(Defaults, {field: getattr(defaults, field) for field in SAMPLER_FIELDS}),
    }


def _speedup(value: Snapshot | None) -> Speedup | None:
    return None if value is None else {"ratio": value["ratio"], "text": value["text"], "words": value["words"]}


def _agreement(value: Snapshot | None) -> Agreement | None:
    return None if value is None else {"same": value["same"], "compared": value["compared"], "text": value["text"]}


def _lane(lane: Snapshot, agreement: Snapshot | None) -> LaneValue:
    text = lane["text"]
    if text is None:
        text = "".join(MASKED if step == 0 else "" if end else cell for cell, step, _, end in lane["cells"])
    return {
        "label": lane["label"],
        "backend": lane["backend"],
        "phase": lane["phase"],
        "step": lane["step"],
        "total": lane["total"],
        "seconds": lane["seconds"],
        "text": text,
        "right": lane["right"],
        "verdict": lane["verdict"],
        "agreement": _agreement(agreement),
    }


def _compared(shown: Shown) -> Compared:
    """A value of the page as one of the endpoint."""
    stage, run = shown.stage, shown.kept
    lanes = {lane["key"]: lane for lane in stage["lanes"]}
    agreements = {SPARSE: stage["agreement"], BASELINE: lanes.get(BASELINE, {}).get("same")}
    sparse = [first for phase, first, _ in lanes[SPARSE]["phases"] if phase == "sparse"]
    return {
        "state": stage["state"],
        "message": stage["message"],
        "position": shown.position if stage["state"] == "waiting" else None,
        "wait": None if shown.wait is None else round(shown.wait, 1),
        "question": stage["question"],
        "mode": stage["mode"] and stage["mode"]["name"],
        "lanes": {key: _lane(lane, agreements.get(key)) for key, lane in lanes.items()},
        "speedup": _speedup(stage["speedup"]),
        "agreement": _agreement(stage["agreement"]),
        "switch_step": sparse[0] if sparse else None,
        "notes": stage["notes"],
        "gold": stage["gold"],
        "prompt_tokens": None if run is None else run.trace.prompt.tokens,
        "run": None if run is None else run.key,
        "files": {} if run is None else {name: f"{RUNS}/{run.key}/{name}" for name in takeaway.FILES},
    }


def _swept(value: Mapping[str, Any]) -> Swept:
    """A comparison of the page as a value of the endpoint."""
    return {
        "state": value["state"],
        "message": value["message"],
        "label": value["label"],
        "question": value["question"],
        "progress": value["progress"],
        "rows": [_row(row) for row in value["rows"]],
    }


def _row(row: Mapping[str, Any]) -> SweptRow:
    paper = row["published"]
    return {
        "length": row["length"],
        "tokens": row["tokens"],
        "state": row["state"],
        "message": row["message"],
        "step": row["step"],
        "total": row["total"],
        "dense_seconds": row["dense_seconds"],
        "sparse_seconds": row["sparse_seconds"],
        "speedup": _speedup(row["speedup"]),
        "agreement": _agreement(row["agreement"]),
        "dense_right": row["dense_right"],
        "sparse_right": row["sparse_right"],
        "memory": row["memory"],
        "published": paper and {name: paper[name] for name in ("dense_seconds", "sparse_seconds", "ratio")},
        "notes": row["notes"],
    }


# ---- the pattern of a run --------------------------------------------------------------------------------------


def _blocks(desk: Desk, given: Mapping[str, Any]) -> Blocks:
    """One head of a run that is kept. Raises ValueError, one sentence, for what is not there."""
    key, lane = given["run"], given["lane"]
    if lane not in (SPARSE, BASELINE):
        raise ValueError(f"The lane {lane!r} has no pattern: it must be {SPARSE} or {BASELINE}.")
    kept = desk.kept(key) if isinstance(key, str) else None
    if kept is None:
        raise ValueError(UNKNOWN_RUN)
    found = kept.lane(lane)
    if found is None:
        has = ", ".join(one for one in map(lane_key, kept.trace.lanes.values()) if one != DENSE)
        raise ValueError(f"This run has no lane {lane!r}; it has {has or 'none with a pattern'}.")
    pattern = found.pattern
    look = kept.showing(lane).look
    if pattern is None or look is None or found.attention == "dense":
        raise ValueError("This run has no pattern: it ended before its select step.")
    layer = _index("layer", given["layer"], look.layers)
    head = _index("head", given["head"], look.heads)
    mask = look.mask(layer)[head]
    if given["importance"] not in (None, True, False):
        raise ValueError("The value of importance must be true or false.")
    weights = None if given["importance"] is False else look.importance_of(layer, head)
    return {
        "run": kept.key,
        "lane": lane,
        "label": lane_label(lane, found.attention.pattern),
        "layer": layer,
        "head": head,
        "layers": look.layers,
        "heads": look.heads,
        "tokens": look.length,
        "block_size": look.block_size,
        "blocks": len(mask),
        "prompt_blocks": look.prompt_blocks,
        "select": pattern.select,
        "kept": [row.nonzero()[0].tolist() for row in mask],
        "counts": mask.sum(1).tolist(),
        "density": _density(pattern, found.backend, layer, head),
        "importance": None if weights is None else [[round(w, 6) for w in row] for row in weights.tolist()],
    }


def _index(name: str, value: Any, count: int) -> int:
    """Raises ValueError where it is none of 0 … count − 1."""
    number = 0 if value is None else value
    whole = isinstance(number, (int, float)) and not isinstance(number, bool) and number in range(count)
    if not whole:
        shown = f"{number!r}"[:80]
        raise ValueError(f"The {name} {shown} is not there: this run's are 0 to {count - 1}.")
    return int(number)


def _density(pattern: TracePattern, backend: str, layer: int, head: int) -> Density:
    # torch is loaded by now: there was a run.
    from sparsed.attention.backends import executed_density
    from sparsed.attention.pattern import LayerPattern

    only = {"layers": (pattern.layers[layer],), "kept": (pattern.kept[layer],), "kept_mass": (), "importance": ()}
    made = replace(pattern, **only).to_pattern()  # type: ignore[arg-type]
    of_all = made.layers[0]
    one = LayerPattern(of_all.indices[:1, head : head + 1], of_all.counts[:1, head : head + 1])
    made = replace(made, layers=(one,))
    return {"requested": made.requested_density, "executed": executed_density(backend, made)}
