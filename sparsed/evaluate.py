"""Does the answer change? ``python -m sparsed eval``: dense, SparseD and a sliding window on the same questions.

Answers are compared with the only right one, questions use names that training never showed, differences to dense
are paired. One line of JSON a question and method is written as soon as it is known, so an interrupted evaluation
goes on where it stopped and several processes (``--shard``) can share the work.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sparsed.agreement import agreement
from sparsed.prompts import Prompt, build_prompt, exact_match, facts_right, token_budget

if TYPE_CHECKING:
    from torch import Tensor

    from sparsed.models.model import Model

GROUPS: dict[str, tuple[str, ...]] = {
    "lookup": ("fact", "inverse", "two_hop"),
    "comparison": ("older", "same"),
    "about": ("about",),
    "arithmetic": ("arithmetic",),
    "unanswerable": ("unanswerable",),
}
METHODS = ("dense", "sparsed", "sliding_window")
LENGTHS = ("512", "1k", "2k", "4k", "8k", "16k", "32k", "64k")
FIRST_SEED = 1_000_000


@dataclass(frozen=True)
class Cell:
    """Questions of one group at one prompt length."""

    group: str
    length: str
    questions: int


@dataclass(frozen=True)
class Settings:
    """What a visitor of the page could set too; None is the model's default."""

    steps: int | None = None
    skip: float | None = None
    select: float | None = None
    block_size: int | None = None


@dataclass(frozen=True)
class Record:
    """One answer.

    Attributes:
        exact: the answer is the gold answer.
        right, facts, invented: facts stated, facts asked for, sentences stated that are none of them.
        agreement: share of tokens equal to the dense answer's, up to the longer answer's end; None for dense.
        seconds: the run's own compute, divided by the questions that ran together.
        text: the answer where it is not the gold answer.
    """

    group: str
    length: str
    index: int
    kind: str
    method: str
    exact: bool
    right: int
    facts: int
    invented: int
    verdict: str
    depth: float | None
    agreement: float | None
    seconds: float
    text: str | None
    gold: str | None


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95 % Wilson score interval of a share, as (low, high) between 0 and 1."""
    if total == 0:
        return 0.0, 1.0
    share = right / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, (centre - spread) / (1 + z * z / total)), min(1.0, (centre + spread) / (1 + z * z / total))


def token_agreement(one: Sequence[int], two: Sequence[int], end: int | Collection[int]) -> float:
    """Share of equal tokens of two answers, counted up to the end token of the longer one; padding never counts."""
    counted = agreement(one, two, end)
    assert counted is not None, "a finished answer has a token in every cell"
    return counted[0] / counted[1]


def default_cells(lengths: Iterable[str], groups: Iterable[str], questions: int | None = None) -> list[Cell]:
    """The evaluation grid: 200 questions a cell up to 16k, 100 at 32k, 40 at 64k; small sums without documents."""
    lengths = list(lengths)
    cells = []
    for group in groups:
        for length in ["short_context"] if group == "arithmetic" else lengths:
            tokens = token_budget(length)
            usual = 200 if tokens <= 16384 else 100 if tokens <= 32768 else 40
            cells.append(Cell(group, length, questions or usual))
    return cells


def evaluate(
    model: Model,
    cells: Sequence[Cell],
    methods: Sequence[str],
    out: Path,
    *,
    shard: tuple[int, int] = (0, 1),
    batch_tokens: int = 0,
    settings: Settings | None = None,
) -> None:
    """Answer the questions of the cells with each method and append a record for each to ``out``/records-*.jsonl.

    Args:
        model: a loaded model.
        cells: what to ask.
        methods: of METHODS; "dense" comes first, because agreement is measured against it.
        out: folder of records; what is there already is not asked again.
        shard: (i, n): answer every n-th question from the i-th.
        batch_tokens: run questions of equal length together up to this many tokens; 0 runs them one by one.
        settings: steps and sparsity where they are not the model's defaults.
    """
    from tqdm import tqdm

    unknown = set(methods) - set(METHODS)
    if unknown:
        raise ValueError(f"Method {sorted(unknown)[0]!r} is unknown; choose from {', '.join(METHODS)}.")
    out.mkdir(parents=True, exist_ok=True)
    done = {(r.group, r.length, r.index, r.method) for r in read_records(out)}
    work = [(cell, batch) for cell in cells for batch in _batches(model, cell, shard, batch_tokens, done, methods)]
    with (out / f"records-{shard[0]}-of-{shard[1]}.jsonl").open("a", encoding="utf-8") as file:
        for cell, batch in tqdm(work, desc="questions", unit="batch", disable=not sys.stderr.isatty()):
            for record in _answer(model, batch, methods, cell, settings or Settings()):
                if (record.group, record.length, record.index, record.method) not in done:
                    file.write(json.dumps(asdict(record)) + "\n")
            file.flush()


Batch = list[tuple[int, Prompt, "Tensor"]]


def _batches(
    model: Model,
    cell: Cell,
    shard: tuple[int, int],
    batch_tokens: int,
    done: set[tuple[str, str, int, str]],
    methods: Sequence[str],
) -> Iterator[Batch]:
    kinds = GROUPS[cell.group]
    waiting: dict[int, Batch] = defaultdict(list)
    for index in range(shard[0], cell.questions, shard[1]):
        if all((cell.group, cell.length, index, method) in done for method in methods):
            continue
        prompt = build_prompt(model, cell.length, kinds[index % len(kinds)], FIRST_SEED + index)
        ids = model.encode(prompt.text)
        batch = waiting[ids.shape[1]]
        batch.append((index, prompt, ids))
        if (len(batch) + 1) * ids.shape[1] > batch_tokens:
            yield waiting.pop(ids.shape[1])
    yield from waiting.values()


def _answer(model: Model, batch: Batch, methods: Sequence[str], cell: Cell, settings: Settings) -> Iterator[Record]:
    import torch

    from sparsed.config import SamplerConfig, SparseDConfig
    from sparsed.denoising import generate

    ids = torch.cat([item[2] for item in batch])
    sampler = SamplerConfig(steps=settings.steps)
    sparse = SparseDConfig(skip=settings.skip, select=settings.select, block_size=settings.block_size)
    dense: list[list[int]] = []
    for method in sorted(methods, key=METHODS.index):
        attention: SparseDConfig | Literal["dense"] = "dense" if method == "dense" else replace(sparse, pattern=method)
        result = generate(model, ids, sampler=sampler, attention=attention)
        answers = result.tokens[:, ids.shape[1] :].tolist()
        if method == "dense":
            dense = answers
        for row, (index, prompt, _) in enumerate(batch):
            text = result.text[row]
            exact = exact_match(text, prompt.answer)
            right, facts, invented = facts_right(text, prompt.answer)
            yield Record(
                cell.group,
                cell.length,
                index,
                prompt.kind,
                method,
                exact,
                right,
                facts,
                invented,
                prompt.verdict,
                prompt.depth,
                token_agreement(answers[row], dense[row], model.end_ids) if dense and method != "dense" else None,
                result.seconds / len(batch),
                None if exact else text,
                None if exact else prompt.answer,
            )


def read_records(folder: Path) -> list[Record]:
    """All records of a folder."""
    lines = (line for path in sorted(folder.glob("records-*.jsonl")) for line in path.read_text("utf-8").splitlines())
    return [Record(**json.loads(line)) for line in lines]


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """Accuracy per cell and method with Wilson intervals, paired differences to dense, and means over the cells."""
    by_cell: dict[tuple[str, str], dict[str, dict[int, Record]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        by_cell[record.group, record.length][record.method][record.index] = record
    order = {group: place for place, group in enumerate(GROUPS)}
    rows = []
    for (group, length), methods in sorted(by_cell.items(), key=lambda x: (order[x[0][0]], token_budget(x[0][1]))):
        for method in (m for m in METHODS if m in methods):
            rows.append(_summary(group, length, method, methods))
    means = {}
    for method in METHODS[1:]:
        shifts = [row["difference"] for row in rows if row["method"] == method and row["difference"] is not None]
        if shifts:
            means[method] = {"cells": len(shifts), "mean_paired_difference": sum(shifts) / len(shifts)}
    return {"cells": rows, "means": means}


def _summary(group: str, length: str, method: str, methods: dict[str, dict[int, Record]]) -> dict[str, Any]:
    records = list(methods[method].values())
    right, total = sum(r.exact for r in records), len(records)
    row: dict[str, Any] = {
        "group": group,
        "length": length,
        "method": method,
        "questions": total,
        "right": right,
        "accuracy": right / total,
        "interval": wilson(right, total),
        "facts_right": sum(r.right for r in records) / max(1, sum(r.facts for r in records)),
        "invented": sum(r.invented for r in records),
        "seconds": sum(r.seconds for r in records) / total,
        "difference": None,
        "difference_interval": None,
        "agreement": None,
        "kinds": {
            kind: [sum(r.exact for r in records if r.kind == kind), sum(r.kind == kind for r in records)]
            for kind in GROUPS[group]
        },
    }
    for verdict in ("yes", "no"):
        asked = [r for r in records if r.verdict == verdict]
        if asked:
            row[verdict] = [sum(r.exact for r in asked), len(asked)]
    if method != "dense" and "dense" in methods:
        dense = methods["dense"]
        pairs = [int(r.exact) - int(dense[r.index].exact) for r in records if r.index in dense]
        if pairs:
            mean = sum(pairs) / len(pairs)
            spread = 1.96 * math.sqrt(sum((x - mean) ** 2 for x in pairs)) / len(pairs)
            row["difference"], row["difference_interval"] = mean, (mean - spread, mean + spread)
        known = [r.agreement for r in records if r.agreement is not None]
        row["agreement"] = sum(known) / len(known) if known else None
    return row


def table(summary: dict[str, Any]) -> str:
    """The summary as a Markdown table."""
    lines = [
        "| questions | length | method | right | exact match (95 % interval) | to dense | tokens agreeing | details |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in summary["cells"]:
        low, high = row["interval"]
        shift = "" if row["difference"] is None else f"{100 * row['difference']:+.1f}"
        agree = "" if row["agreement"] is None else f"{100 * row['agreement']:.1f} %"
        details = ", ".join(f"{name} {row[name][0]}/{row[name][1]}" for name in ("yes", "no") if name in row)
        if row["group"] == "about":
            details = f"facts right {100 * row['facts_right']:.1f} %, invented {row['invented']}"
        if row["group"] == "lookup":
            details = ", ".join(f"{kind} {a}/{b}" for kind, (a, b) in row["kinds"].items())
        lines.append(
            f"| {row['group']} | {row['length']} | {row['method']} | {row['right']}/{row['questions']} | "
            f"{100 * row['accuracy']:.1f} % ({100 * low:.1f}–{100 * high:.1f}) | {shift} | {agree} | {details} |"
        )
    for method, mean in summary["means"].items():
        lines.append(
            f"\n{method}: mean paired difference to dense over {mean['cells']} cells "
            f"{100 * mean['mean_paired_difference']:+.2f} points."
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m sparsed eval``."""
    parser = argparse.ArgumentParser(
        prog="python -m sparsed eval",
        description="Accuracy of dense, SparseD and a sliding window on the same questions.",
    )
    parser.add_argument("--model", default="mini", help="catalogue name or local folder")
    parser.add_argument(
        "--groups", nargs="+", choices=list(GROUPS), default=["lookup", "comparison", "about", "arithmetic"]
    )
    parser.add_argument("--lengths", nargs="+", default=["512", "1k", "2k"], help=f"of {' '.join(LENGTHS)}")
    parser.add_argument("--questions", type=int, help="a cell; default 200 up to 16k, 100 at 32k, 40 at 64k")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, help="denoising steps; default the model's")
    parser.add_argument("--skip", type=float, help="share of the steps with full attention")
    parser.add_argument("--select", type=float, help="share of the blocks kept; default by length")
    parser.add_argument("--block-size", type=int, help="attention block size; default by length")
    parser.add_argument("--out", type=Path, default=Path("runs/eval"), help="folder of records; resumes what is there")
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th question from the i-th (several processes)")
    parser.add_argument("--batch-tokens", type=int, default=0, help="run equal lengths together up to so many tokens")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--report", action="store_true", help="only print the table of what is there")
    parser.add_argument("--json", type=Path, help="write the summary there")
    args = parser.parse_args(argv)
    try:
        if not args.report:
            from sparsed.models.loading import load

            part, _, parts = args.shard.partition("/")
            evaluate(
                load(args.model, device=args.device, dtype=args.dtype),
                default_cells(args.lengths, args.groups, args.questions),
                args.methods,
                args.out,
                shard=(int(part), int(parts)),
                batch_tokens=args.batch_tokens,
                settings=Settings(args.steps, args.skip, args.select, args.block_size),
            )
        summary = summarise(read_records(args.out))
    except ValueError as error:
        parser.error(str(error))
    print(table(summary))
    if args.json:
        args.json.write_text(json.dumps(summary, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
