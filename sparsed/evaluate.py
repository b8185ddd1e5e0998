"""Does the answer change? ``python -m sparsed eval``: full attention, SparseD and the baselines, on the same questions.

Answers are compared with the only right one; questions use names that training never showed and seeds of their own;
differences to dense are paired. A line of JSON is written as soon as an answer is known, so that an interrupted
evaluation goes on where it stopped, methods can be added later, and several processes (``accelerate launch``) can
share the work.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sparsed.answer_text import agreement, answer_length
from sparsed.config import PATTERNS, SamplerConfig, SparseDConfig
from sparsed.prompts import Prompt, build_prompt, exact_match, facts_right, token_budget
from sparsed.records import ALONE, Crew, Folder, read_lines
from sparsed.scores import METHODS, Observation, Record, summarise, table

if TYPE_CHECKING:
    from torch import Tensor

    from sparsed.models.model import Model
    from sparsed.team import Team

TYPES: dict[str, tuple[str, ...]] = {
    "lookup": ("fact", "inverse"),
    "two_hop": ("two_hop",),
    "comparison": ("older", "same"),
    "several": ("several", "about"),
    "arithmetic": ("arithmetic",),
    "unanswerable": ("unanswerable",),
}
"""Question types of the grid, and the kinds of `sparsed.prompts` that each asks in turns."""

LENGTHS = ("512", "1k", "2k", "4k", "8k", "16k", "32k", "64k")
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
FIRST_SEED = 3_000_000
ABLATIONS = (
    *(f"sparsed:skip={skip}" for skip in (0, 0.1, 0.2, 0.3, 0.4, 0.5)),
    *(f"sparsed:select={select}" for select in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1)),
    *(f"sparsed:block_size={size}" for size in (32, 64, 128)),
    "sparsed:reuse=no",
    "sparsed:isolated=no",
)
"""What the paper varies, one setting at a time."""


@dataclass(frozen=True)
class Cell:
    """Questions of one type at one prompt length."""

    type: str
    length: str
    questions: int


@dataclass(frozen=True)
class Plan:
    """What is the same for all answers of an evaluation; a folder of records holds one plan.

    model: as it was asked for. sampler: None is the model's default. attention: SparseD's settings, None by length.
    depths: where the needed documents stand, question by question in turns; None leaves that to chance.
    """

    model: str = "mini"
    sampler: SamplerConfig = SamplerConfig()
    attention: SparseDConfig = SparseDConfig()
    depths: tuple[float, ...] | None = DEPTHS


def parse_method(method: str, base: SparseDConfig) -> SparseDConfig | Literal["dense"]:
    """A method as it is written on the command line: "dense", a pattern, or a pattern with settings of its own.

    "sparsed:skip=0", "sliding_window:select=0.1,block_size=64"; settings: skip, select, block_size, selection,
    isolated, reuse (yes or no). What is not given is `base`'s. Raises ValueError for anything else.
    """
    name, colon, said = method.partition(":")
    if method == "dense":
        return "dense"
    if name not in PATTERNS:
        raise ValueError(f"Method {method!r} is unknown; choose from {', '.join(METHODS)}.")
    values: dict[str, Any] = {}
    for part in said.split(",") if colon else ():
        key, _, value = part.partition("=")
        try:
            values[key] = _SETTINGS[key](value)
        except (KeyError, ValueError):
            raise ValueError(
                f"Method {method!r}: {part!r} is no setting; write one of {', '.join(_SETTINGS)} as name=value."
            ) from None
    return replace(base, pattern=name, **values)


def _yes_or_no(value: str) -> bool:
    return {"yes": True, "no": False}[value]


_SETTINGS: dict[str, Any] = {
    "skip": float, "select": float, "block_size": int, "selection": str, "isolated": _yes_or_no, "reuse": _yes_or_no,
}  # fmt: skip


def token_agreement(one: Sequence[int], two: Sequence[int], end: int | Collection[int]) -> float:
    """Share of equal tokens of two answers, counted up to the end token of the longer one; padding never counts."""
    counted = agreement(one, two, end)
    assert counted is not None, "a finished answer has a token in every cell"
    return counted[0] / counted[1]


def default_cells(lengths: Iterable[str], types: Iterable[str], questions: int | None = None) -> list[Cell]:
    """The evaluation grid: 200 questions a cell up to 16k, 100 at 32k, 40 at 64k."""
    types = list(types)
    cells = []
    for length in lengths:
        tokens = token_budget(length)
        usual = 200 if tokens <= 16384 else 100 if tokens <= 32768 else 40
        cells += [Cell(type, length, questions or usual) for type in types]
    return cells


def read_records(folder: Path) -> list[Record]:
    """All records of a folder, of all processes, by question; an answer that two processes gave counts once."""
    records = (Record(**entry) for entry in read_lines(folder, "records"))
    return sorted({(r.type, r.length, r.index, r.method): r for r in records}.values(), key=_question)


def read_observations(folder: Path) -> list[Observation]:
    """All observations of a folder, of all processes, by question; one that was made twice counts once."""
    observations = (Observation(**entry) for entry in read_lines(folder, "observations"))
    return sorted({(o.type, o.length, o.index): o for o in observations}.values(), key=_question)


def _question(entry: Record | Observation) -> tuple[int, int, int]:
    """An order in which sums and tables come out the same, whichever process did what."""
    types = list(TYPES)
    place = types.index(entry.type) if entry.type in types else len(types)
    return place, token_budget(entry.length), entry.index


Asked = tuple[int, Prompt, "Tensor"]


def evaluate(
    model: Model,
    cells: Sequence[Cell],
    methods: Sequence[str],
    out: Path,
    *,
    plan: Plan | None = None,
    shard: tuple[int, int] = (0, 1),
    crew: Crew = ALONE,
    batch_tokens: int = 0,
    backend: str = "auto",
) -> None:
    """Answer the questions of the cells with each method and append a record for each to ``out``/records-*.jsonl.

    Args:
        model: a loaded model.
        cells: what to ask.
        methods: see `parse_method`; agreement is measured against "dense", if that is among them or in the folder.
        out: folder of records; what is there already is not asked again.
        plan: what all answers share.
        shard: (i, n): answer every n-th question from the i-th.
        crew: processes that call this at the same time with the same arguments; they share what is open.
        batch_tokens: run questions of equal length together up to this many tokens; 0 runs them one by one.
        backend: what computes the sparse steps.
    """
    from tqdm import tqdm

    plan = plan or Plan()
    configs = {method: parse_method(method, plan.attention) for method in methods}
    folder = Folder(out, asdict(plan), _name(shard, crew))
    done: dict[tuple[str, str, int], dict[str, list[int]]] = defaultdict(dict)
    for record in read_records(out):
        done[record.type, record.length, record.index][record.method] = record.tokens
    unanswered = {
        (place, index): len(set(methods) - set(done[cell.type, cell.length, index]))
        for place, cell in enumerate(cells)
        for index in range(shard[0], cell.questions, shard[1])
    }
    mine = _share(cells, unanswered, crew)
    total = sum(unanswered[place, index] for place, indices in mine.items() for index in indices)
    # Dense first: the others are compared with it.
    order = sorted(configs, key=lambda method: method != "dense")
    with tqdm(total=total, desc="answers", unit="answer", disable=not _watched(crew)) as bar:
        for place, indices in mine.items():
            cell = cells[place]
            bar.set_postfix_str(f"{cell.length} {cell.type}")
            known = {index: done[cell.type, cell.length, index] for index in indices}
            for batch in _batches(model, cell, plan, indices, batch_tokens):
                for method in order:
                    missing = [asked for asked in batch if method not in known[asked[0]]]
                    if missing:
                        for record in _answer(model, missing, method, configs[method], cell, plan, known, backend):
                            known[record.index][method] = record.tokens
                            folder.add("records", asdict(record))
                        bar.update(len(missing))


def _watched(crew: Crew) -> bool:
    """Is there someone to see a progress bar? Rank 0's share stands for the others', which are as large."""
    return crew.rank == 0 and sys.stderr.isatty()


def _name(shard: tuple[int, int], crew: Crew) -> str:
    """What this process's files are called by."""
    return crew.name if crew.size > 1 else f"{shard[0]}-of-{shard[1]}"


def _share(cells: Sequence[Cell], answers: Mapping[tuple[int, int], int], crew: Crew) -> dict[int, list[int]]:
    """This process's share of the questions that lack answers: place of the cell → indices of questions.

    answers: how many of them a question lacks, by (place of its cell, index). What is open is shared evenly, however
    much of it an earlier run of fewer or more processes has done.
    """
    # Rank 0 has looked what is there before anyone writes; all divide what it has seen.
    missing = crew.agree([(question, count) for question, count in answers.items() if count])
    costs = [count * token_budget(cells[place].length) ** 2 for (place, _), count in missing]
    mine: dict[int, list[int]] = defaultdict(list)
    for piece in crew.share(costs):
        place, index = missing[piece][0]
        mine[place].append(index)
    return mine


def _batches(model: Model, cell: Cell, plan: Plan, indices: Iterable[int], batch_tokens: int) -> Iterator[list[Asked]]:
    """The cell's questions of these indices, those of equal length together."""
    waiting: dict[int, list[Asked]] = defaultdict(list)
    for index in indices:
        prompt = _ask(model, cell, plan, index)
        ids = model.encode(prompt.text)
        batch = waiting[ids.shape[1]]
        batch.append((index, prompt, ids))
        if (len(batch) + 1) * ids.shape[1] > batch_tokens:
            yield waiting.pop(ids.shape[1])
    yield from waiting.values()


def _ask(model: Model, cell: Cell, plan: Plan, index: int) -> Prompt:
    kinds = TYPES[cell.type]
    depth = _depth(cell, plan, index)
    return build_prompt(model, cell.length, kinds[index % len(kinds)], FIRST_SEED + index, depth)


def _depth(cell: Cell, plan: Plan, index: int) -> float | None:
    """Where the documents that a question needs are to stand."""
    return None if not plan.depths else plan.depths[index // len(TYPES[cell.type]) % len(plan.depths)]


def _answer(
    model: Model,
    batch: Sequence[Asked],
    method: str,
    attention: SparseDConfig | Literal["dense"],
    cell: Cell,
    plan: Plan,
    known: dict[int, dict[str, list[int]]],
    backend: str,
) -> Iterator[Record]:
    # Needs torch, as what follows: a table of kept answers is made without.
    import torch

    from sparsed.denoising import generate

    ids = torch.cat([asked[2] for asked in batch])
    result = generate(model, ids, sampler=plan.sampler, attention=attention, backend=backend)
    answers: list[list[int]] = result.tokens[:, ids.shape[1] :].tolist()
    for (index, prompt, _), text, answer in zip(batch, result.text, answers, strict=True):
        dense = known[index].get("dense") if method != "dense" else None
        exact = exact_match(text, prompt.answer)
        right, facts, invented = facts_right(text, prompt.answer)
        yield Record(
            type=cell.type,
            length=cell.length,
            index=index,
            kind=prompt.kind,
            method=method,
            exact=exact,
            right=right,
            facts=facts,
            invented=invented,
            verdict=prompt.verdict,
            depth=None if prompt.depth is None else _depth(cell, plan, index),
            agreement=None if dense is None else token_agreement(answer, _padded(dense, answer), model.end_ids),
            seconds=result.seconds / len(batch),
            tokens=answer[: answer_length(answer, model.end_ids)],
            text=None if exact else text,
            gold=None if exact else prompt.answer,
        )


def _padded(tokens: list[int], like: list[int]) -> list[int]:
    """A stored answer on the whole canvas again: what follows its end token is more of it."""
    return tokens + tokens[-1:] * (len(like) - len(tokens))


def observe(
    model: Model,
    cells: Sequence[Cell],
    out: Path,
    *,
    plan: Plan | None = None,
    shard: tuple[int, int] = (0, 1),
    crew: Crew = ALONE,
) -> None:
    """The paper's first two observations, on the cells' questions: append how alike the masks of two heads are, and
    how alike the mask at the switch and at four later steps, to ``out``/observations-*.jsonl. shard, crew: as for
    `evaluate`.
    """
    from tqdm import tqdm

    # They need numpy and torch.
    from sparsed.analysis import mean_head_overlap
    from sparsed.denoising import denoise

    plan = plan or Plan()
    folder = Folder(out, asdict(plan), _name(shard, crew))
    done = {(one.type, one.length, one.index) for one in read_observations(out)}
    unseen = {
        (place, index): int((cell.type, cell.length, index) not in done)
        for place, cell in enumerate(cells)
        for index in range(shard[0], cell.questions, shard[1])
    }
    work = [(cells[place], index) for place, indices in _share(cells, unseen, crew).items() for index in indices]
    for cell, index in tqdm(work, desc="observations", unit="run", disable=not _watched(crew)):
        ids = model.encode(_ask(model, cell, plan, index).text)
        plain = denoise(model, ids, sampler=plan.sampler, attention=plan.attention)
        if plain.switch_step is None:
            raise ValueError("These runs never become sparse, so there is no pattern to observe; lower skip.")
        first, last = plain.switch_step, plain.total - 1
        steps = sorted({first + (last - first) * quarter // 4 for quarter in (1, 2, 3, 4)})
        run = denoise(model, ids, sampler=plan.sampler, attention=plan.attention, probe_steps=steps)
        result = run.result()
        assert result.pattern is not None, "a run with a switch step has a pattern"
        later = [[step, float(result.pattern.overlap(run.probes[step]).mean())] for step in steps if step in run.probes]
        seen = Observation(cell.type, cell.length, index, mean_head_overlap(result.pattern), later)
        folder.add("observations", asdict(seen))


def main(argv: Sequence[str] | None = None, team: Team | None = None) -> None:
    """Entry point of ``python -m sparsed eval``. team: the processes that hold the model together, under torchrun."""
    args = _parser().parse_args(argv)
    shard = _shard(args.shard)
    with Crew.here() as crew:
        if crew.size > 1 and args.shard is not None:
            raise ValueError("The processes of accelerate launch share the questions by themselves; leave out --shard.")
        if not args.report:
            _ask_all(args, shard, crew, team)
        crew.wait()
    if crew.rank != 0:
        return
    records = read_records(args.out)
    observations = read_observations(args.out)
    if not records and not observations:
        raise ValueError(f"{args.out} holds no answers yet.")
    summary = summarise(records, observations)
    print(table(summary))
    if args.json:
        args.json.write_text(json.dumps(summary, indent=1), encoding="utf-8")


def _ask_all(args: argparse.Namespace, shard: tuple[int, int], crew: Crew, team: Team | None) -> None:
    """Answers, or observes, what the folder lacks."""
    from sparsed.models.loading import load, pick_device, pick_dtype  # needs torch

    plan = Plan(
        model=args.model,
        sampler=SamplerConfig(steps=args.steps, gen_length=args.gen_length, block_length=args.block_length),
        attention=SparseDConfig(
            skip=args.skip, select=args.select, block_size=args.block_size, selection=args.selection
        ),
        depths=tuple(args.depths) or None,
    )
    methods = list(dict.fromkeys(["dense", "sparsed", *ABLATIONS] if args.ablations else args.methods))
    for method in methods:
        parse_method(method, plan.attention)
    cells = default_cells(args.lengths, args.types, args.questions)
    Folder(args.out, asdict(plan), _name(shard, crew))
    device, dtype = crew.device(args.device), args.dtype
    if dtype is None and crew.size > 1:
        # On a CPU a trial decides, and could decide otherwise in another process.
        dtype = crew.agree(pick_dtype(None, pick_device(device), 0, args.model))
    model = load(args.model, device=device, dtype=dtype, team=team)
    if args.observe:
        observe(model, cells, args.out, plan=plan, shard=shard, crew=crew)
    else:
        evaluate(
            model, cells, methods, args.out,
            plan=plan, shard=shard, crew=crew, batch_tokens=args.batch_tokens, backend=args.backend,
        )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sparsed eval",
        description="Accuracy of full attention, SparseD and baselines of equal density on the same questions.",
    )
    add = parser.add_argument
    add("--model", default="mini", help="catalogue name, Hub id or local folder")
    add("--types", nargs="+", choices=list(TYPES), default=list(TYPES)[:5], help="question types")
    add("--lengths", nargs="+", default=["512", "1k", "2k"], help=f"of {' '.join(LENGTHS)}, or a number of tokens")
    add("--depths", nargs="*", type=float, default=list(DEPTHS), help="where the needed documents stand, 0 … 1; none: "
        "by chance")  # fmt: skip
    add("--questions", type=int, help="of each type and length; default 200 up to 16k, 100 at 32k, 40 at 64k")
    add("--methods", nargs="+", default=["dense", "sparsed", "sliding_window", "streaming_llm"], metavar="METHOD",
        help=f"of {' '.join(METHODS)}; with settings of its own: sparsed:skip=0,select=0.1")  # fmt: skip
    add("--ablations", action="store_true", help="instead of methods: dense, and SparseD with one setting varied at a "
        "time (skip, select, attention block size, without reuse, without isolated selection)")  # fmt: skip
    add("--observe", action="store_true", help="instead of answers: how alike the masks of two heads are, and of the "
        "switch and later steps")  # fmt: skip
    add("--steps", type=int, help="denoising steps; default the model's")
    add("--gen-length", type=int, help="tokens to generate; default the model's")
    add("--block-length", type=int, help="semi-autoregressive block length; default the model's")
    add("--skip", type=float, help="share of the steps with full attention")
    add("--select", type=float, help="share of the key blocks kept; default by length")
    add("--block-size", type=int, help="attention block size; default by length")
    add("--selection", help="paper or reference")
    add("--out", type=Path, default=Path("runs/eval"), help="folder of records; what is there is not asked again")
    add("--shard", help="i/n: every n-th question from the i-th (accelerate launch shares the work by itself)")
    add("--batch-tokens", type=int, default=0, help="run equal lengths together up to so many tokens")
    add("--backend", default="auto", help="what computes the sparse steps")
    add("--device")
    add("--dtype")
    add("--report", action="store_true", help="only print the tables of what is there")
    add("--json", type=Path, help="write the scores there")
    return parser


def _shard(said: str | None) -> tuple[int, int]:
    """What --shard says: this process's number, and of how many."""
    if said is None:
        return 0, 1
    part, _, parts = said.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise ValueError(f"--shard must be i/n with i from 0 to n − 1, not {said!r}.")
    return int(part), int(parts)


if __name__ == "__main__":
    main()
