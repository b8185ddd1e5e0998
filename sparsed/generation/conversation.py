"""generate --chat: turn after turn, each with what was said before it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

from sparsed.generation.output import Output
from sparsed.models.chat import Message, messages_of
from sparsed.questions.build import Prompt

if TYPE_CHECKING:
    from sparsed.denoising.run import Run
    from sparsed.generation.report import Report
    from sparsed.models.model import Model

Answer = Callable[[list[Message], Prompt | str], "tuple[int, Run, Report]"]


def check_conversation(options: argparse.Namespace, given: set[str]) -> None:
    """Raises ValueError for options that leave no conversation."""
    if options.prompt_format == "raw":
        raise ValueError("--chat goes by the model's chat template: leave --prompt-format raw out.")
    if "prompt" in given and options.prompt == "-":
        raise ValueError("--chat reads its turns from standard input: give its first one as --prompt TEXT or @FILE.")
    if options.save_trace is not None:
        raise ValueError("--save-trace keeps one run: leave it out with --chat.")


def converse(
    model: Model,
    answer: Answer,
    options: argparse.Namespace,
    first: Prompt | str | None,
    history: list[Message] | None,
) -> int:
    """Answers `first`, if there is one, and then each line of standard input, until it ends. The exit code: of Ctrl-C
    or SIGTERM in a run, which end it within the step and the conversation with it, or 0. Raises ValueError for a model
    without a chat template.
    """
    if not model.chat:
        raise ValueError(
            f"{model.label} has no chat template: it answers single prompts, and no further turns. Leave --chat out, "
            f"or choose a model that was trained on conversations."
        )
    earlier = list(history or [])
    out = Output(hidden=options.json, escape=sys.stdout.isatty())
    for prompt in chain([] if first is None else [first], _turns()):
        text = prompt if isinstance(prompt, str) else prompt.text
        messages = messages_of(text, options.system, earlier)
        code, run, report = answer(messages, prompt)
        if options.json:
            print(json.dumps(report.record(), allow_nan=False), flush=True)
        if code:
            out.line(f"stopped after {report.info.forwards} of {report.info.total} steps")
            return code
        out.line(report.text)
        speed = f"{report.seconds:.2f} s, {report.info.forwards} steps, {report.tokens} tokens"
        out.line(f"({run.prompt_length:,} prompt tokens; {speed})")
        earlier += [{"role": "user", "content": text}, {"role": "assistant", "content": report.text}]
    return 0


def _turns() -> Iterator[str]:
    """The lines of standard input that are not empty; on a terminal they are asked for."""
    if sys.stdin is None:
        raise ValueError("Standard input is closed: there is no turn to read.")
    asked = sys.stdin.isatty()
    number = 0
    while True:
        if asked:
            print("you: ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.buffer.readline()
        if not line:
            return
        number += 1
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise ValueError(f"Line {number} of standard input is no UTF-8 text.") from None
        if text:
            yield text
