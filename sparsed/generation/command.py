"""python -m sparsed generate: answers one prompt, shows the canvas while it denoises, says how long it took.

The flags of the public SparseD commands work too: --model_path, --seq_len, --block_length, --sampling-alg,
--block_size, --origin.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsed import files
from sparsed.answer_text import answer_length, cell_texts
from sparsed.edge import INTERRUPTED, TERMINATED, Terminated, go_on, heeding_sigterm
from sparsed.generation.prompt import own_text
from sparsed.machine import dtype_name
from sparsed.options import add_attention_options, add_sampler_options, attention_of, sampler_of
from sparsed.questions.build import Prompt, build_prompt
from sparsed.questions.lengths import LENGTHS
from sparsed.questions.score import exact_match
from sparsed.questions.world import KINDS

if TYPE_CHECKING:
    from rich.console import Console

    from sparsed.denoising.run import Run
    from sparsed.generation.terminal import View
    from sparsed.models.model import Model
    from sparsed.parallel.team import Team

@dataclass(frozen=True)
class PhaseTime:
    """steps: of this phase, so far. ms_per_step: their mean, milliseconds; None without any."""

    steps: int
    ms_per_step: float | None


@dataclass(frozen=True)
class Report:
    """A run in numbers, as `--json` prints it; also of a run that was stopped.

    model: name, label, family, dtype, device; under torchrun also processes. prompt: tokens, and of a built prompt
    kind, length, seed, question and gold answer. right: is the answer the gold one; None if there is none, or no end
    yet. tokens: generated tokens up to and with the end token. tokens_per_second: those by `seconds`, the sum of the
    steps' times. switch_step: the first sparse step, counted from 0. Densities: kept share of all key blocks
    as asked for, and as computed; None if no pattern was made.
    """

    model: dict[str, Any]
    prompt: dict[str, Any]
    sampler: dict[str, Any]
    attention: dict[str, Any] | str
    text: str
    right: bool | None
    finished: bool
    steps: int
    total: int
    switch_step: int | None
    phases: dict[str, PhaseTime]
    seconds: float
    ms_per_step: float | None
    tokens: int
    tokens_per_second: float | None
    backend: str
    requested_density: float | None
    executed_density: float | None
    notes: list[str]


def main(argv: Sequence[str] | None = None, team: Team | None = None) -> int:
    """The command line. Returns the exit code (130 after Ctrl-C, 143 after SIGTERM, where steps were made); raises
    ValueError for wrong values.
    """
    options = _parser().parse_args(argv)
    with nullcontext() if team is not None else heeding_sigterm():
        return _generate(options, team)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sparsed generate", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--model", "--model_path", default="mini", metavar="ID", help="catalogue name, Hub id or local folder")
    add(
        "--prompt",
        default="short_context",
        help=f"{', '.join(LENGTHS)}: documents of that length and a question about them; "
        "or your own text, @FILE, or - for standard input",
    )
    add("--kind", default="about", choices=KINDS, help="kind of question in a built prompt")
    add("--prompt-seed", type=int, default=0, help="which of the built prompts")
    add("--prompt-depth", type=float, help="where a built prompt's needed documents stand, 0 (first) to 1 (last)")

    group = parser.add_argument_group("sampler (default: the model's own)")
    add_sampler_options(group)

    group = parser.add_argument_group("attention (default: SparseD as published for the length)")
    add_attention_options(group)
    add = group.add_argument
    add("--origin", "--dense", dest="method", action="store_const", const="dense", help="the same as --method dense")
    add("--backend", default="auto", help="sparse backend")
    add("--dense-backend", default="auto", help="dense attention: sdpa, cudnn, flash or flash4")

    group = parser.add_argument_group("machine")
    add = group.add_argument
    add("--device", help="default: CUDA, else MPS, else CPU")
    add("--dtype", help="float32, bfloat16 or float16")
    add("--device-map", help='how accelerate spreads a large model, as "auto"')
    add("--revision", help="branch, tag or commit on the Hub")

    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--save-trace", type=Path, metavar="FILE", help="the run as a file for replay; .gz compresses it")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    add("--quiet", action="store_true", help="no progress, only the answer and its numbers")
    return parser


def _generate(options: argparse.Namespace, team: Team | None) -> int:
    sampler, attention = sampler_of(options), attention_of(options)
    if options.save_trace is not None:
        files.check(options.save_trace, "--save-trace")
        go_on()
    text = own_text(options.prompt)

    from rich.console import Console

    console = Console(file=sys.stdout)
    live = console.is_terminal and sys.stdout.isatty() and not console.is_dumb_terminal
    live = live and not options.json and not options.quiet
    model = _load(options, console if live else None, team)
    prompt: Prompt | str
    if text is not None:
        prompt = text
    else:
        prompt = build_prompt(model, options.prompt, options.kind, options.prompt_seed, options.prompt_depth)

    from sparsed.denoising import denoise  # needs torch

    run = denoise(
        model,
        prompt if isinstance(prompt, str) else prompt.text,
        sampler=sampler,
        attention=attention,
        backend=options.backend,
        dense_backend=options.dense_backend,
    )
    run.warm_up()
    out = _Output(hidden=options.json, escape=sys.stdout.isatty())
    out.line(_header(run))
    if isinstance(prompt, Prompt):
        out.line(f"question: {prompt.question}")
    told = _notes(run.notes)
    code = _denoise(run, console if live else None, options.quiet)
    _notes(run.notes[told:])
    report = _report(run, prompt)
    if options.json:
        print(json.dumps(asdict(report), allow_nan=False))
    else:
        _print(report, run, out)
    if run.steps and options.save_trace is not None:
        from sparsed import trace  # needs numpy

        # After the answer, which a full disk should not cost.
        trace.save(trace.record(run, prompt=prompt), options.save_trace)
    return code


def _load(options: argparse.Namespace, console: Console | None, team: Team | None) -> Model:
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
            revision=options.revision,
            progress=progress,
            team=team,
        )


def _denoise(run: Run, console: Console | None, quiet: bool) -> int:
    """Makes all steps and shows them. The exit code: of Ctrl-C or SIGTERM, which end it within the step, or 0."""
    try:
        with _view(run, console, quiet) as shown:
            if run.model.device.type != "cpu":
                shown.say("warming up")
                run.warm_up()
            for step in run:
                shown.apply(step)
    except KeyboardInterrupt as error:
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    return 0


def _view(run: Run, console: Console | None, quiet: bool) -> AbstractContextManager[View]:
    from sparsed.generation.terminal import Canvas, LiveView, PlainView, SilentView  # needs rich

    if console is None:
        return nullcontext(SilentView() if quiet else PlainView(sys.stderr))
    sampler = run.sampler
    canvas = Canvas(sampler.gen_length, sampler.block_length, run.model.end_ids, run.model.tokens_text)
    return LiveView(run, canvas, console)


def _report(run: Run, prompt: Prompt | str) -> Report:
    from sparsed.attention.backends.registry import executed_density  # needs torch
    from sparsed.trace.file import recorded_attention  # needs numpy

    model, pattern, steps = run.model, run.pattern, run.steps
    asked: dict[str, Any] = {"tokens": run.prompt_length}
    if isinstance(prompt, Prompt):
        about = ("kind", "length", "seed", "question", "answer")
        asked |= {"gold" if name == "answer" else name: getattr(prompt, name) for name in about}
    text = model.decode(steps[-1].tokens[0]) if steps else ""
    times = {phase: [s.seconds for s in steps if s.phase == phase] for phase in ("dense", "select", "sparse")}
    seconds = sum(step.seconds for step in steps)
    row = steps[-1].tokens[0].tolist() if steps else []
    tokens = sum(token != model.mask_id for token in row[: answer_length(row, model.end_ids)])
    return Report(
        model={
            "name": model.name,
            "label": model.label,
            "family": model.family,
            "dtype": dtype_name(model.dtype),
            "device": str(model.device),
            **({} if model.processes == 1 else {"processes": model.processes}),
        },
        prompt=asked,
        sampler=asdict(run.sampler),
        attention=recorded_attention(run.attention),
        text=text,
        right=exact_match(text, prompt.answer) if isinstance(prompt, Prompt) and run.finished else None,
        finished=run.finished,
        steps=len(steps),
        total=run.total,
        switch_step=run.switch_step,
        phases={phase: PhaseTime(len(spent), _mean_ms(spent)) for phase, spent in times.items()},
        seconds=seconds,
        ms_per_step=_mean_ms([step.seconds for step in steps]),
        tokens=tokens,
        tokens_per_second=tokens / seconds if seconds > 0 else None,
        backend=run.backend,
        requested_density=None if pattern is None else pattern.requested_density,
        executed_density=None if pattern is None else executed_density(run.backend, pattern),
        notes=list(run.notes),
    )


def _mean_ms(seconds: list[float]) -> float | None:
    return 1000 * sum(seconds) / len(seconds) if seconds else None


class _Output:
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


def _header(run: Run) -> str:
    model = run.model
    dtype = dtype_name(model.dtype)
    place = str(model.device) if model.processes == 1 else f"{model.processes} × {model.device.type}"
    parts = [model.label, place, dtype, run.backend, f"{run.prompt_length:,} prompt tokens"]
    return " · ".join(parts)


def _notes(notes: list[str]) -> int:
    for note in notes:
        print(f"note: {note}", file=sys.stderr, flush=True)
    return len(notes)


def _print(report: Report, run: Run, out: _Output) -> None:
    if report.finished:
        out.line(f"answer: {report.text}")
    else:
        out.line(f"stopped after {report.steps} of {report.total} steps")
        if not run.steps:
            return
        out.line(f"so far: {_unfinished(run)}")
    if "gold" in report.prompt:
        verdict = "" if report.right is None else " (right)" if report.right else " (wrong)"
        out.line(f"gold:   {report.prompt['gold']}{verdict}")
    counts = ", ".join(f"{phase} {time.steps}" for phase, time in report.phases.items())
    switch = "never sparse" if report.switch_step is None else f"sparse from step {report.switch_step + 1}"
    out.line(f"steps: {report.steps} of {report.total} ({counts}), {switch}")
    each = ", ".join(
        f"{phase} {time.ms_per_step:.0f}" for phase, time in report.phases.items() if time.ms_per_step is not None
    )
    out.line(f"time: {report.seconds:.2f} s, {report.ms_per_step:.0f} ms/step ({each})")
    if report.tokens_per_second is not None:
        out.line(f"speed: {report.tokens_per_second:.2f} tokens/s ({report.tokens} tokens, up to the end token)")
    density = "full attention"
    if report.requested_density is not None and report.executed_density is not None:
        asked, done = report.requested_density, report.executed_density
        density = f"density requested {asked:.3f}, executed {done:.3f}"
    out.line(f"backend: {report.backend}, {density}")


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
