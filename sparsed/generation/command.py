"""python -m sparsed generate: answers one prompt, shows the canvas while it denoises, says how long it took; or many.

The flags of the public SparseD commands work too: --model_path, --seq_len, --block_length, --sampling-alg,
--block_size, --origin.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsed import files
from sparsed.batches import BATCH_TOKENS
from sparsed.edge import INTERRUPTED, TERMINATED, Terminated, go_on, heeding_sigterm
from sparsed.generation.conversation import check_conversation, converse
from sparsed.generation.many import answer_file
from sparsed.generation.output import Output, load_model, say_notes
from sparsed.generation.prompt import history_of, own_text
from sparsed.models.chat import messages_of
from sparsed.options import (
    ATTENTION,
    add_attention_options,
    add_cache_options,
    add_preset_option,
    add_quantize,
    add_rope_factor,
    add_sampler_options,
    attention_of,
    cache_of,
    given_of,
    sampler_of,
    without_effect,
)
from sparsed.questions.build import Prompt, build_prompt
from sparsed.questions.lengths import LENGTHS
from sparsed.questions.world import KINDS

if TYPE_CHECKING:
    from rich.console import Console

    from sparsed.denoising.run import Run
    from sparsed.generation.report import Report
    from sparsed.generation.terminal import View
    from sparsed.models.chat import Message
    from sparsed.models.model import Model
    from sparsed.parallel.team import Team

# What --prompt-format says of a chat template.
_FORMATS = {"chat": True, "raw": False}
_USUAL = "short_context"
_OF_BUILT_PROMPTS = ("kind", "prompt_seed", "prompt_depth")
_OF_FILES = ("batch_tokens", "out")
_OF_ONE = ("prompt", "history", "save_trace", "chat")


def main(argv: Sequence[str] | None = None, team: Team | None = None) -> int:
    """The command line. Returns the exit code (130 after Ctrl-C, 143 after SIGTERM, where steps were made); raises
    ValueError for wrong values.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    given = given_of(parser, options)
    options.prompt = options.prompt if "prompt" in given else _USUAL
    if options.method == "dense":
        sparse = {*ATTENTION, "backend", "preset"} - {"method"}
        say_notes(without_effect(given, sparse, "full attention has no such setting."))
    if options.prompts is not None:
        alone = [f"--{name.replace('_', '-')}" for name in _OF_ONE if name in given]
        if alone:
            raise ValueError(f"--prompts asks the prompts of a file: leave {', '.join(alone)} out, for one prompt.")
        say_notes(without_effect(given, _OF_BUILT_PROMPTS, "the prompts are those of a file."))
        with nullcontext() if team is not None else heeding_sigterm():
            asked = sampler_of(options), attention_of(options), cache_of(options)
            return answer_file(options, *asked, _chat_of(options), team)
    say_notes(without_effect(given, _OF_FILES, "it belongs to --prompts FILE."))
    if options.prompt not in LENGTHS:
        say_notes(without_effect(given, _OF_BUILT_PROMPTS, "the prompt is a text of your own."))
    if options.prompt.isdecimal():
        say_notes([f"The prompt is the text {options.prompt!r}, not a length; lengths are {', '.join(LENGTHS)}."])
    with nullcontext() if team is not None else heeding_sigterm():
        return _generate(options, given, team)


def _chat_of(options: argparse.Namespace) -> bool | None:
    """Whether prompts go through the chat template; None: where there is one."""
    return None if options.prompt_format is None else _FORMATS[options.prompt_format]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sparsed generate", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--model", "--model_path", default="mini", metavar="ID", help="catalogue name, Hub id or local folder")
    add(
        "--prompt",
        help=f"{', '.join(LENGTHS)}: documents of that length and a question about them (default {_USUAL}); "
        "or your own text, @FILE, or - for standard input",
    )
    add("--kind", default="about", choices=KINDS, help="kind of question in a built prompt")
    add("--prompt-seed", type=int, default=0, help="which of the built prompts")
    add("--prompt-depth", type=float, help="where a built prompt's needed documents stand, 0 (first) to 1 (last)")

    add("--prompt-format", choices=tuple(_FORMATS), help="by the model's chat template, or as plain text (default: "
        "the template where there is one)")  # fmt: skip
    add("--system", metavar="TEXT", help="system prompt (default: what the chat template has)")
    add("--chat", action="store_true", help="a conversation: after --prompt, if given, each line of standard input is "
        "a further turn")  # fmt: skip
    add("--history", metavar="FILE", help="what was said before, as a JSON list of messages with 'role' and 'content'")

    group = parser.add_argument_group("many prompts")
    add = group.add_argument
    add("--prompts", metavar="FILE", help="instead of --prompt: .txt, one a line, or .jsonl, objects with 'prompt' or "
        "'messages', and 'id' if you like")  # fmt: skip
    add("--batch-tokens", type=int, metavar="N", help="prompts of equal length run together up to so many tokens, "
        f"generations included; 0: one by one (default {BATCH_TOKENS:,})")  # fmt: skip
    add("--out", type=Path, metavar="FOLDER", help="keep the answers there; the same command goes on with it")

    group = parser.add_argument_group("sampler (default: the model's own)")
    add_sampler_options(group)

    group = parser.add_argument_group("attention (default: SparseD as published for the length)")
    add_preset_option(group)
    add_attention_options(group)
    add = group.add_argument
    add("--origin", "--dense", dest="method", action="store_const", const="dense", help="the same as --method dense")
    add("--backend", default="auto", help="sparse backend")
    add("--dense-backend", default="auto", help="dense attention: sdpa, cudnn, flash or flash4")

    add_cache_options(parser.add_argument_group("cache (default: none, every step computes every row)"))

    group = parser.add_argument_group("machine")
    add = group.add_argument
    add("--device", help="default: CUDA, else MPS, else CPU")
    add("--dtype", help="float32, bfloat16 or float16")
    add("--device-map", help='how accelerate spreads a large model, as "auto"')
    add("--revision", help="branch, tag or commit on the Hub")
    add_rope_factor(group)
    add_quantize(group)

    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--save-trace", type=Path, metavar="FILE", help="the run as a file for replay; .gz compresses it")
    add("--json", action="store_true", help="print one JSON object, of many prompts one a line, and nothing else")
    add("--quiet", action="store_true", help="no progress, only the answer and its numbers")
    return parser


def _generate(options: argparse.Namespace, given: set[str], team: Team | None) -> int:
    sampler, attention, cache = sampler_of(options), attention_of(options), cache_of(options)
    if options.save_trace is not None:
        files.check(options.save_trace, "--save-trace")
        go_on()
    if options.chat:
        check_conversation(options, given)
    text = own_text(options.prompt)
    history = None if options.history is None else history_of(options.history)
    messages_of("", options.system, history)  # refused before anything is loaded

    from rich.console import Console

    console = Console(file=sys.stdout)
    live = console.is_terminal and sys.stdout.isatty() and not console.is_dumb_terminal
    live = live and not options.json and not options.quiet
    model = load_model(options, console if live else None, team)
    prompt: Prompt | str
    if text is not None:
        prompt = text
    else:
        prompt = build_prompt(model, options.prompt, options.kind, options.prompt_seed, options.prompt_depth)
    asked = _chat_of(options)
    chat = model.chat if asked is None else asked
    settings = {"sampler": sampler, "attention": attention, "cache": cache, "chat": chat}
    answer = partial(_answer, model, options, console if live else None, settings)
    if options.chat:
        return converse(model, answer, options, prompt if "prompt" in given else None, history)
    messages = messages_of(prompt if isinstance(prompt, str) else prompt.text, options.system, history)
    if len(messages) > 1 and not chat:
        say_notes(["The prompt is plain text: what goes before it stands there as it is, a blank line between."])
    code, run, report = answer(messages, prompt)
    if options.json:
        print(json.dumps(report.record(), allow_nan=False))
    else:
        from sparsed.generation.report import say  # needs torch

        say(report, run, Output(hidden=False, escape=sys.stdout.isatty()).line)
    if run.steps and options.save_trace is not None:
        from sparsed import trace  # needs numpy

        # After the answer, which a full disk should not cost.
        system = next((one["content"] for one in messages if one["role"] == "system"), "")
        before = [one for one in messages[:-1] if one["role"] != "system"]
        record = trace.record(run, prompt=prompt, system=system, chat=asked, history=before)
        trace.save(record, options.save_trace)
    return code


def _answer(
    model: Model,
    options: argparse.Namespace,
    console: Console | None,
    settings: dict[str, Any],
    messages: list[Message],
    prompt: Prompt | str,
) -> tuple[int, Run, Report]:
    """Makes a run and shows it while it goes on. The exit code, the run and what there is to say of it."""
    from sparsed.denoising import denoise  # these need torch
    from sparsed.generation.report import report_of

    run = denoise(model, messages, backend=options.backend, dense_backend=options.dense_backend, **settings)
    run.warm_up()
    out = Output(hidden=options.json or options.chat, escape=sys.stdout.isatty())
    out.line(_header(run, settings["chat"]))
    if isinstance(prompt, Prompt):
        out.line(f"question: {prompt.question}")
    say_notes(run.notes)
    told = len(run.notes)
    code = _denoise(run, console, options.quiet)
    say_notes(run.notes[told:])
    return code, run, report_of(run, prompt, settings["chat"])


def _denoise(run: Run, console: Console | None, quiet: bool) -> int:
    """Makes all steps and shows them. The exit code: of Ctrl-C or SIGTERM, which end it within the step, or 0."""
    try:
        with _view(run, console, quiet) as shown:
            for step in run:
                shown.apply(step)
    except KeyboardInterrupt as error:
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    return 0


def _view(run: Run, console: Console | None, quiet: bool) -> AbstractContextManager[View]:
    from sparsed.generation.terminal import Canvas, LiveView, PlainView, SilentView  # needs rich

    sampler = run.sampler
    if console is None:
        return nullcontext(SilentView() if quiet else PlainView(sys.stderr, sampler.at_most))
    canvas = Canvas(sampler.gen_length, sampler.block_length, run.model.end_ids, run.model.tokens_text)
    return LiveView(run, canvas, console)


def _header(run: Run, chat: bool) -> str:
    model = run.model
    place = str(model.device) if model.processes == 1 else f"{model.processes} × {model.device.type}"
    parts = [model.label, place, model.numbers, run.backend, f"{run.prompt_length:,} prompt tokens"]
    parts += [] if chat else ["raw prompt"]
    return " · ".join(parts)
