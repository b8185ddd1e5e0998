"""What generate says of a run: numbers for `--json`, lines for people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from sparsed.answer_text import answer_length, cell_texts
from sparsed.attention.backends.registry import executed_density
from sparsed.config import ResolvedAttention, ResolvedCache, ResolvedSampler
from sparsed.denoising.answers import Answers
from sparsed.denoising.info import RunInfo
from sparsed.origin import changes
from sparsed.questions.build import Prompt
from sparsed.questions.score import exact_match, nearest

if TYPE_CHECKING:
    from sparsed.denoising.run import Run
    from sparsed.models.model import Model


@dataclass(frozen=True)
class Report:
    """A run in numbers; also of a run that was stopped.

    info: every setting, and the steps made. prompt: of a built one kind, length, seed, question and gold answer; where
    several are right, the one that the text is nearest to, and the others.
    ended: what ended the answer, "end token" or "stop string"; None where nothing did, or where the run was stopped.
    right: is the answer a gold one; None if there is none, or no end yet. tokens: generated ones up to and with what
    ended them. seconds: the sum of the steps' times. phase_ms: milliseconds a step; None for a phase without steps.
    Densities: kept share of all key blocks as asked for, and as computed; None if no pattern was made.
    """

    info: RunInfo
    model: dict[str, Any]
    prompt: dict[str, Any] | None
    prompt_format: str
    text: str
    ended: str | None
    right: bool | None
    seconds: float
    phase_ms: dict[str, float | None]
    tokens: int
    requested_density: float | None
    executed_density: float | None

    @property
    def ms_per_step(self) -> float | None:
        return 1000 * self.seconds / self.info.forwards if self.info.forwards else None

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.seconds if self.seconds > 0 else None

    def record(self) -> dict[str, Any]:
        """As plain values: those of `RunInfo.record`, and beside them what is the run's of this command alone."""
        own = {row.name: getattr(self, row.name) for row in fields(self) if row.name != "info"}
        speed = {"ms_per_step": self.ms_per_step, "tokens_per_second": self.tokens_per_second}
        return {**own, **speed, **self.info.record()}


def report_of(run: Run, prompt: Prompt | str, chat: bool) -> Report:
    """Of the steps made so far. chat: the prompt went through a chat template."""
    model, pattern, steps = run.model, run.pattern, run.steps
    row = steps[-1].tokens[0].tolist() if steps else []
    answers = Answers(model, run.sampler.stop)
    answer = answers.read(row)
    times: dict[str, list[float]] = {phase: [] for phase in run.info.phases}
    for step in steps:
        times[step.phase].append(step.seconds)
    return Report(
        info=run.info,
        model=of_model(model),
        prompt=_built(prompt, answer.text) if isinstance(prompt, Prompt) else None,
        prompt_format="chat" if chat else "raw",
        text=answer.text,
        ended=answer.ended if run.finished else None,
        right=exact_match(answer.text, *prompt.answers) if isinstance(prompt, Prompt) and run.finished else None,
        seconds=sum(step.seconds for step in steps),
        phase_ms={phase: 1000 * sum(spent) / len(spent) if spent else None for phase, spent in times.items()},
        tokens=answers.count(row),
        requested_density=None if pattern is None else pattern.requested_density,
        executed_density=None if pattern is None else executed_density(run.backend, pattern),
    )


def of_model(model: Model) -> dict[str, Any]:
    """What a record says of the model."""
    return {
        "name": model.name,
        "label": model.label,
        "family": model.family,
        **({} if model.processes == 1 else {"processes": model.processes}),
        **changes(model.rope_factor, model.quantize),
    }


def _built(prompt: Prompt, text: str) -> dict[str, Any]:
    gold = nearest(text, prompt.answers)
    return {
        "kind": prompt.kind,
        "length": prompt.length,
        "seed": prompt.seed,
        "question": prompt.question,
        "gold": gold,
        **({"others": [one for one in prompt.answers if one != gold]} if prompt.others else {}),
    }


def say(report: Report, run: Run, line: Callable[[str], None]) -> None:
    """The answer, its numbers, and what the run was; of a stopped run what there is."""
    info = report.info
    if info.finished:
        line(f"answer: {report.text}")
    else:
        line(f"stopped after {info.forwards} of {info.total} steps")
        if not run.steps:
            return
        line(f"so far: {_unfinished(run)}")
    if report.prompt is not None:
        verdict = "" if report.right is None else " (right)" if report.right else " (wrong)"
        line(f"gold:   {report.prompt['gold']}{verdict}")
    counts = ", ".join(f"{phase} {count}" for phase, count in info.phases.items())
    switch = "never sparse" if info.switch_step is None else f"sparse from step {info.switch_step + 1}"
    at_most = "at most " if info.sampler.at_most else ""
    rows = " of 2 sequences" if info.sampler.cfg_scale else ""
    line(f"steps: {info.forwards} of {at_most}{info.total} ({counts}), {switch}; {info.forwards} forwards{rows}")
    each = ", ".join(f"{phase} {spent:.0f}" for phase, spent in report.phase_ms.items() if spent is not None)
    line(f"time: {report.seconds:.2f} s, {report.ms_per_step:.0f} ms/step ({each})")
    if report.tokens_per_second is not None:
        end = f"up to the {report.ended}" if report.ended else "no end token"
        line(f"speed: {report.tokens_per_second:.2f} tokens/s ({report.tokens} tokens, {end})")
    line(f"backend: {_backend(report)}; {info.dtype} on {info.device}")
    line(f"sampler: {settings(info.sampler)}")
    line(f"attention: {settings(info.attention)}")
    if not info.cache.none:
        whole = sum(step.length for step in run.steps)
        share = f"{sum(info.rows.values()):,} of {whole:,} rows computed" if whole else "no row computed"
        line(f"cache: {settings(info.cache)}; {share}")


def _backend(report: Report) -> str:
    """What computed attention, and how much of it."""
    info = report.info
    if report.requested_density is None or report.executed_density is None:
        unused = f" ({info.backend} was not used)" if info.never_sparse else ""
        return f"{info.dense_backend}, full attention{unused}"
    density = f"density requested {report.requested_density:.3f}, executed {report.executed_density:.3f}"
    return f"{info.backend}, {density}; {info.dense_backend} before"


def settings(config: ResolvedSampler | ResolvedAttention | ResolvedCache) -> str:
    """A config in words: what every run has, and of the rest what is not off. Of full attention, its name."""
    told = [
        f"{row.name} {_word(getattr(config, row.name))}"
        for row in fields(config)
        if row.name not in ("changed", "method") and getattr(config, row.name) != row.default
    ]
    if isinstance(config, ResolvedCache):
        told = [config.method, *told]
    if isinstance(config, ResolvedAttention):
        told = [config.method, *([] if config.dense else told)]
    return ", ".join(told)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(repr, value)) if isinstance(value, tuple) else str(value)


def _unfinished(run: Run) -> str:
    """The canvas of a stopped run up to its last committed token, an underscore for each masked cell."""
    model = run.model
    row = run.steps[-1].tokens[0].tolist()
    answer = [token for token in row[: answer_length(row, model.end_ids)] if token not in model.end_ids]
    tokens = [None if token == model.mask_id else token for token in answer]
    while tokens and tokens[-1] is None:
        tokens.pop()
    texts = cell_texts(tokens, model.tokens_text)
    return "".join("_" if token is None else text for token, text in zip(tokens, texts))
