"""generate --prompts: answers the prompts of a file, in their order, and keeps them where that is asked for."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from time import monotonic
from typing import TYPE_CHECKING, Any

from sparsed import files
from sparsed.batches import BATCH_TOKENS, must_be_alone
from sparsed.config import AttentionConfig, CacheConfig, SamplerConfig
from sparsed.edge import INTERRUPTED, TERMINATED, Terminated, go_on
from sparsed.generation.output import Output, load_model, say_notes
from sparsed.generation.prompts_file import Line, read_prompts
from sparsed.options import SAMPLER
from sparsed.origin import changes, origin_of, versions
from sparsed.results_folder import Folder, check, read_lines
from sparsed.runs import Tally, notes_of, told

if TYPE_CHECKING:
    from sparsed.denoising.several import Answered
    from sparsed.parallel.team import Team

# The answers in the order of the file, in the folder of --out.
IN_ORDER = "answers.jsonl"
_KIND = "answers"


def answer_file(
    options: argparse.Namespace,
    sampler: SamplerConfig,
    attention: AttentionConfig,
    cache: CacheConfig,
    chat: bool | None,
    team: Team | None,
) -> int:
    """Answers what `options.out` does not hold yet, all without it. Returns the exit code; raises ValueError for wrong
    lines and values before anything is loaded, and for prompts that the model refuses before anything is answered.
    """
    batch_tokens = BATCH_TOKENS if options.batch_tokens is None else options.batch_tokens
    if batch_tokens < 0:
        raise ValueError(f"--batch-tokens must be 0 or above, not {batch_tokens}.")
    asked = read_prompts(options.prompts, options.system)
    if asked.unread:
        say_notes([f"Fields of {options.prompts} that are not read: {', '.join(map(repr, asked.unread))}."])
    key = {
        "prompts": hashlib.blake2b(repr(asked.lines).encode(), digest_size=6).hexdigest(),
        "prompt_format": options.prompt_format,
        "attention": asdict(attention),
        "cache": asdict(cache),
        "backend": options.backend,
        "dense_backend": options.dense_backend,
    }
    if options.out is not None:
        loaded = {"versions": versions(options.quantize), **changes(options.rope_factor, options.quantize)}
        check(options.out, {**key, **loaded})
        go_on()
    model = load_model(options, None, team)
    resolved = sampler.resolve(model.defaults)
    if options.batch_tokens and must_be_alone(resolved, attention, cache.resolve()):
        say_notes(["--batch-tokens without effect: with these settings others of a batch would show in an answer."])

    from sparsed.denoising.several import each_answer, encode_all  # these need torch
    from sparsed.generation.report import of_model

    names = [f"Line {line.number} of {options.prompts}" for line in asked.lines]
    prompts = encode_all(model, [line.messages for line in asked.lines], chat, names)
    folder = None
    if options.out is not None:
        settings = {name: getattr(resolved, name) for name in SAMPLER}
        folder = Folder(options.out, {**origin_of(model), "sampler": settings, **key}, about={"model": model.name})
    kept = _Kept(folder)
    open_ones = [place for place, line in enumerate(asked.lines) if line.number not in kept.records]
    common = {"model": of_model(model), "prompt_format": "chat" if (model.chat if chat is None else chat) else "raw"}
    shown = _Shown(asked.lines, kept, options)
    answers = each_answer(
        model,
        [prompts[place] for place in open_ones],
        sampler=sampler,
        attention=attention,
        cache=cache,
        backend=options.backend,
        dense_backend=options.dense_backend,
        batch_tokens=batch_tokens,
        names=[names[place] for place in open_ones],
    )
    code, failed = 0, None
    try:
        with _progress(options, len(open_ones)) as advance:
            shown.those_in_order()
            for answered in answers:
                line = asked.lines[open_ones[answered.index]]
                kept.add(line.number, {**_record(line, answered), **common})
                shown.those_in_order()
                advance()
    except KeyboardInterrupt as error:
        code = TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    except (RuntimeError, MemoryError) as error:  # a device that failed, a prompt that is too long for it
        failed = error
    kept.write()
    shown.end(stopped=bool(code) or failed is not None)
    if failed is not None:
        raise failed
    return code


def _record(line: Line, answered: Answered) -> dict[str, Any]:
    """An answer as plain values for JSON, by the names that `Report.record` has."""
    return {
        "line": line.number,
        **({} if line.id is None else {"id": line.id}),
        "text": answered.text,
        "ended": answered.ended,
        "seconds": answered.seconds,
        "tokens": answered.count,
        **answered.info.record(),
    }


class _Kept:
    """The answers that there are, by the numbers of their lines, and the folder that they are in, if any."""

    def __init__(self, folder: Folder | None) -> None:
        self.folder = folder
        self.records: dict[int, dict[str, Any]] = {}
        if folder is not None:
            self.records = {entry["line"]: entry for entry in read_lines(folder.path, _KIND)}
        self.before = len(self.records)

    def add(self, number: int, record: dict[str, Any]) -> None:
        self.records[number] = record
        if self.folder is not None:
            self.folder.add(_KIND, record)

    def write(self) -> None:
        """All of them in the order of their lines, beside those in the order in which they were made."""
        if self.folder is not None:
            lines = [json.dumps(self.records[number], ensure_ascii=False) + "\n" for number in sorted(self.records)]
            files.write(self.folder.path / IN_ORDER, "".join(lines))


class _Shown:
    """What standard output says of the answers: each once those of all lines before it are there, and a sum."""

    def __init__(self, lines: list[Line], kept: _Kept, options: argparse.Namespace) -> None:
        self._waiting = [line.number for line in lines]
        self._all, self._kept, self._json, self._out = len(lines), kept, options.json, options.out
        self._say = Output(hidden=options.json, escape=sys.stdout.isatty()).line

    def those_in_order(self) -> None:
        while self._waiting and self._waiting[0] in self._kept.records:
            self._show(self._waiting.pop(0))

    def _show(self, number: int) -> None:
        record = self._kept.records[number]
        if self._json:
            print(json.dumps(record, allow_nan=False), flush=True)
        elif self._out is None:
            self._say(f"{number}: {record['text']}")

    def end(self, stopped: bool) -> None:
        """stopped: before all were there; those behind a gap are shown too."""
        for number in self._waiting:
            if number in self._kept.records:
                self._show(number)
        records: list[Any] = list(self._kept.records.values())
        say_notes(line.removeprefix("Note ") for line in told(notes_of(("answers", record) for record in records)))
        if stopped:
            self._say(f"stopped after {len(records)} of {self._all} answers")
        seconds, tokens = (sum(record[name] for record in records) for name in ("seconds", "tokens"))
        speed = f", {tokens / seconds:.2f} tokens/s" if seconds > 0 else ""
        before = f" ({self._kept.before} of them were there before)" if self._kept.before else ""
        self._say(f"answers: {len(records)}{before} in {seconds:.2f} s of denoising steps, {tokens} tokens{speed}")
        for words in Tally.of(records).words():
            self._say(f"attention: {words}")
        if self._out is not None:
            self._say(f"kept: {self._out / IN_ORDER}")
            if stopped:
                say_notes([f"What {self._out} holds stays; the same command goes on from there."])


@contextmanager
def _progress(options: argparse.Namespace, total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal's standard error; elsewhere a line every ten seconds."""
    from tqdm import tqdm

    from sparsed.generation.terminal import SAY_SECONDS  # needs rich

    answers_seen = sys.stdout.isatty() and options.out is None
    watched = sys.stderr.isatty() and not options.quiet and not answers_seen
    with tqdm(total=total, desc="answers", unit="answer", disable=not watched) as bar:
        made, said = 0, monotonic()

        def advance() -> None:
            nonlocal made, said
            made += 1
            bar.update()
            if not watched and not options.quiet and monotonic() - said >= SAY_SECONDS:
                said = monotonic()
                print(f"{made} of {total} answers", file=sys.stderr, flush=True)

        yield advance
