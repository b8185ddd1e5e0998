"""Runs to a trace."""

from __future__ import annotations

import math
import platform
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import sparsed
from sparsed.answer_text import REPLACEMENT, groups
from sparsed.attention.analysis import kept_mass
from sparsed.attention.masks import Masks, coded
from sparsed.config import same_importances
from sparsed.machine import machine
from sparsed.questions.build import Prompt
from sparsed.trace.check import MOST_IMPORTANCES
from sparsed.trace.types import (
    CHARACTERS_OF_BLOCK,
    Commit,
    Lane,
    Trace,
    TraceModel,
    TraceProbe,
    TracePrompt,
    TraceStep,
    replay,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sparsed.attention.pattern import Pattern
    from sparsed.denoising.run import Run
    from sparsed.models.chat import Message
    from sparsed.models.model import Model

def record(
    runs: Run | Mapping[str, Run],
    *,
    prompt: Prompt | str | None = None,
    store_text: bool = True,
    importance: bool = False,
    devices: Mapping[str, int] | None = None,
    system: str = "",
    chat: bool | None = None,
    history: Sequence[Message] = (),
) -> Trace:
    """The record of a run, or of several by name, finished or stopped.

    runs: of one model, prompt and sampler. A single run's lane is named after its attention's method. prompt: what
    `sparsed.questions.build.build_prompt` made, or the user's own text. store_text: False leaves the prompt's text out.
    importance: keeps the importances too, where the run has them and they are at most 2 ** 27 numbers. devices: where
    runs were made at the same time on copies of the model, the number of the device that each had, from 0. system: the
    system prompt before the prompt. chat: as `denoise` was given it. history: what was said before the prompt.

    Raises ValueError for no run, a run without any step, or runs that do not belong together.
    """
    if not isinstance(runs, Mapping):
        runs = {runs.attention.method: runs}
    if not runs:
        raise ValueError("A trace needs at least one run.")
    for name, run in runs.items():
        if not run.steps:
            raise ValueError(f"The run {name!r} has made no step yet: there is nothing to record.")
    first = next(iter(runs.values()))
    shape = first.steps[0].tokens.shape
    for name, run in runs.items():
        apart = devices is not None and devices[name] != devices[next(iter(runs))]
        same = _same_model(run.model, first.model, copies=apart) and run.sampler == first.sampler
        if not same or run.prompt_length != first.prompt_length or run.steps[0].tokens.shape != shape:
            raise ValueError(f"The run {name!r} has another model, prompt or sampler than the first one.")
    model = first.model
    lanes = {name: _lane(run, _weights(run, runs.values()), importance) for name, run in runs.items()}
    if devices is not None:
        lanes = {name: replace(lane, device=devices[name]) for name, lane in lanes.items()}
    about = _prompt(prompt, first.prompt_length, store_text)
    about = replace(about, chat=chat)
    if store_text:
        needed = _needed(first, prompt.text, prompt.needed) if isinstance(prompt, Prompt) else ()
        said = tuple((message["role"], message["content"]) for message in history)
        about = replace(about, words=_words(runs.values()), system=system or None, needed=needed, history=said)
    trace = Trace(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        software=_software(),
        machine=_machine(),
        model=TraceModel(
            name=model.name,
            label=model.label,
            family=model.family,
            dtype=model.numbers,
            device=model.device.type,
            processes=model.processes,
        ),
        prompt=about,
        sampler=first.sampler,
        batch=shape[0],
        gen_length=shape[1],
        mask_id=model.mask_id,
        end_ids=tuple(model.end_ids),
        vocabulary=_vocabulary(model, lanes),
        fragments=(),
        lanes=lanes,
    )
    return replace(trace, fragments=_fragments(model, trace))


def _same_model(model: Model, other: Model, *, copies: bool) -> bool:
    """copies: it may have been loaded twice."""
    told = ("name", "label", "family", "numbers", "mask_id", "end_ids")
    return model is other or (copies and all(getattr(model, name) == getattr(other, name) for name in told))


def _weights(run: Run, runs: Iterable[Run]) -> tuple[Tensor, ...] | None:
    """The importances of a run's select step, be they another run's; None where there are none."""
    for other in (run, *runs):
        importance = None if other.pattern is None else other.pattern.importance
        # Of a canvas that grows the last selection's are kept, and by then the runs differ.
        alike = not run.sampler.grows and same_importances(other.attention, run.attention)
        if importance is not None and (other is run or alike):
            return importance
    return None


def _lane(run: Run, weights: tuple[Tensor, ...] | None, importance: bool) -> Lane:
    from sparsed.denoising.answers import Answers  # needs torch, which reading a record does not

    answers = Answers(run.model, run.sampler.stop)
    steps = []
    for step in run.steps:
        places = step.committed.nonzero().tolist()
        tokens = step.tokens[step.committed].tolist()
        confidences = step.confidence[step.committed].tolist()
        commits = (
            Commit(row, position, token, confidence if math.isfinite(confidence) else None)
            for (row, position), token, confidence in zip(places, tokens, confidences)
        )
        rows = None if step.rows == step.length else step.rows
        length = None if step.length == run.prompt_length + run.sampler.gen_length else step.length
        steps.append(
            TraceStep(step.index, step.phase, step.seconds, tuple(commits), rows, step.attention_seconds, length)
        )
    return Lane(
        attention=run.attention,
        backend=run.backend,
        dense_backend=run.info.dense_backend,
        total=run.total,
        switch_step=run.switch_step,
        finished=run.finished,
        notes=tuple(run.notes),
        seconds=sum(step.seconds for step in run.steps),
        text=tuple(answers.read(row).text for row in run.steps[-1].tokens.tolist()),
        steps=tuple(steps),
        pattern=None if run.pattern is None else _masks(run, run.pattern, weights, importance),
        probes=() if run.pattern is None else _probes(run),
        cache=run.cache,
    )


def _masks(run: Run, pattern: Pattern, seen: tuple[Tensor, ...] | None, importance: bool) -> Masks:
    masks = Masks.of(pattern)
    weights = masks.importances if importance else ()
    if len(weights) * masks.heads * masks.layout.blocks**2 > MOST_IMPORTANCES:
        weights = ()
    # What the public code ranks by are no shares of attention.
    weighed = seen is not None and run.attention.selection != "reference"
    mass = _rounded(kept_mass(replace(pattern, importance=seen))) if weighed else ()
    return replace(masks, kept_mass=mass, importances=tuple(coded(layer[:1]) for layer in weights))


def _rounded(shares: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(share, 4) for share in heads) for heads in shares.tolist())


def _probes(run: Run) -> tuple[TraceProbe, ...]:
    """How alike each probe and the pattern in use then are."""
    return tuple(
        TraceProbe(step, _rounded(fresh.overlap(run.probed[step]))) for step, fresh in sorted(run.probes.items())
    )


def _words(runs: Iterable[Run]) -> tuple[str, ...]:
    """How the attention blocks of the first run that has some begin, in row 0."""
    for run in runs:
        if not run.attention.dense:
            size = run.attention.block_size
            row = run.prompt[0].tolist() + run.steps[-1].tokens[0].tolist()
            return tuple(_beginning(run.model, row[start : start + size]) for start in range(0, len(row), size))
    return ()


def _beginning(model: Model, block: list[int]) -> str:
    once = {model.mask_id, *model.end_ids}
    told = [token for before, token in zip([None, *block], block) if token != before or token not in once]
    # The ends of a block may cut a character in two.
    text = " ".join(model.tokens_text(told[:CHARACTERS_OF_BLOCK]).split()).strip(REPLACEMENT + " ")
    if len(text) <= CHARACTERS_OF_BLOCK:
        return text
    return text[: CHARACTERS_OF_BLOCK + 1].rpartition(" ")[0] or text[:CHARACTERS_OF_BLOCK]


def _prompt(prompt: Prompt | str | None, tokens: int, store_text: bool) -> TracePrompt:
    if prompt is None or isinstance(prompt, str):
        return TracePrompt(tokens, text=prompt if store_text else None)
    return TracePrompt(
        tokens,
        text=prompt.text if store_text else None,
        question=prompt.question,
        gold=prompt.answer,
        others=prompt.others,
        kind=prompt.kind,
        length=prompt.length,
        seed=prompt.seed,
    )


def _needed(run: Run, text: str, places: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Which prompt tokens hold these places of the prompt's text (first, one past the last); () where its tokens' texts
    do not make it up.
    """
    row = run.prompt[0].tolist() if places else []
    texts = {token: run.model.token_text(token) for token in set(row)}
    before = "".join(texts[token] for token in row).find(text)
    if before < 0:
        return ()
    ends = list(accumulate(len(texts[token]) for token in row))
    return tuple(
        (bisect_right(ends, before + first), bisect_right(ends, before + last - 1) + 1) for first, last in places
    )


def _software() -> dict[str, str]:
    import torch
    import transformers

    return {
        "sparsed": sparsed.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def _machine() -> dict[str, Any]:
    return {key: value for key, value in machine().items() if key not in ("python", "torch")}


def _vocabulary(model: Model, lanes: Mapping[str, Lane]) -> dict[int, str]:
    seen = {commit.token for lane in lanes.values() for step in lane.steps for commit in step.committed}
    return {token: model.token_text(token) for token in sorted({*seen, *model.end_ids})}


def _fragments(model: Model, trace: Trace) -> tuple[tuple[tuple[int, ...], str], ...]:
    """The text of each group of neighbouring pieces that stood in the canvas after some step."""
    pieces = {token for token, text in trace.vocabulary.items() if REPLACEMENT in text}
    found: dict[tuple[int, ...], str] = {}
    if not pieces:
        return ()
    for lane in trace.lanes:
        for step in replay(trace, lane):
            for row in step.tokens.tolist():
                for start, end in groups(row, pieces):
                    group = tuple(row[start:end])
                    if group not in found:
                        found[group] = model.tokens_text(group)
    return tuple((group, text) for group, text in found.items() if REPLACEMENT not in text)
