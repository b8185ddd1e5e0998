"""Asks the questions of a plan and scores the answers."""

from __future__ import annotations

import hashlib
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsed.answer_text import agreement, answer_length
from sparsed.batches import Fitting, must_be_alone, naming, together
from sparsed.config import ResolvedSampler
from sparsed.evaluation.key import about, key_of
from sparsed.evaluation.methods import Method, parse_method
from sparsed.evaluation.plan import FIRST_SEED, TYPES, Cell, Plan, file_name
from sparsed.evaluation.reading import read_records
from sparsed.evaluation.scores import Answer
from sparsed.parallel.crew import ALONE, Crew
from sparsed.questions.build import Prompt, build_prompt
from sparsed.questions.lengths import token_budget
from sparsed.questions.score import exact_match, facts_right, nearest
from sparsed.results_folder import Folder, check_alike

if TYPE_CHECKING:
    from torch import Tensor

    from sparsed.denoising import Result
    from sparsed.models.model import Model


def token_agreement(one: Sequence[int], two: Sequence[int], end: int | Collection[int]) -> float:
    """Share of equal tokens of two answers, counted up to the end token of the longer one; padding never counts."""
    counted = agreement(one, two, end)
    assert counted is not None, "a finished answer has a token in every cell"
    return counted[0] / counted[1]


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
) -> None:
    """Answer the questions of the cells with each method and append a record for each to ``out``/records-*.jsonl.

    Args:
        model: a loaded model.
        cells: what to ask.
        methods: see `parse_method`. Each is compared with "dense", if that is among them or in the folder: with full
            attention as the plan's sampler runs it, whatever settings of the sampler a method has of its own, because
            that is how the model is usually run, and one reference serves all. (So "sparsed:threshold=0.9" is not
            compared with "dense:threshold=0.9", which is a method beside it, compared with "dense" too.)
        out: folder of records; what is there already is not asked again. Raises ValueError if what is there depends
            on something else (`sparsed.evaluation.key`).
        plan: what all answers share.
        shard: (i, n): answer every n-th question from the i-th.
        crew: processes that call this at the same time with the same arguments; they share what is open.
        batch_tokens: run questions of equal length together up to this many tokens, answers included; 0 runs them one
            by one. So do runs whose batch would show in their answers or their steps (`goes_alone`). Where memory does
            not suffice for a batch, half of it is tried.
    """
    from tqdm import tqdm

    plan = plan or Plan()
    asked = {method.name: method for method in (parse_method(method, plan.attention) for method in methods)}
    samplers = {name: method.resolve(plan.sampler, model.defaults) for name, method in asked.items()}
    alone = {name: goes_alone(method, samplers[name]) for name, method in asked.items()}
    generated = plan.sampler.resolve(model.defaults).gen_length
    fitting = Fitting()
    key = key_of(model, plan)
    check_alike(crew, key)
    folder = Folder(out, key, file_name(shard, crew), about(model))
    done: dict[tuple[str, str, int], dict[str, Answer]] = defaultdict(dict)
    for record in read_records(out):
        done[record.type, record.length, record.index][record.method] = record
    unanswered = {
        (place, index): len(asked.keys() - done[cell.type, cell.length, index].keys())
        for place, cell in enumerate(cells)
        for index in range(shard[0], cell.questions, shard[1])
    }
    mine = own_share(cells, unanswered, crew)
    total = sum(unanswered[place, index] for place, indices in mine.items() for index in indices)
    # Dense first: the others are compared with it.
    order = sorted(asked, key=lambda name: name != "dense")
    with tqdm(total=total, desc="answers", unit="answer", disable=not is_watched(crew)) as bar:
        for place, indices in mine.items():
            cell = cells[place]
            bar.set_postfix_str(f"{cell.length} {cell.type}")
            known = {index: done[cell.type, cell.length, index] for index in indices}
            for batch in together(
                _asked(model, cell, plan, indices),
                key=lambda question: question[2].shape[1] + generated,
                most=lambda length: batch_tokens // length,
            ):
                for name in order:
                    missing = [question for question in batch if name not in known[question[0]]]
                    rows = 1 if alone[name] else len(batch)
                    for start in range(0, len(missing), rows):
                        part = missing[start : start + rows]
                        for record in _answer(
                            model, part, asked[name], samplers[name], cell, plan, known, fitting
                        ):
                            known[record.index][name] = record
                            folder.add("records", asdict(record))
                            bar.update()
    if fitting.note is not None:
        print(f"note: {fitting.note}", file=sys.stderr)


def goes_alone(method: Method, sampler: ResolvedSampler) -> bool:
    """Do a method's questions go one by one, with this sampler? So they do where others of a batch would show in an
    answer, or in the steps that it took: one that may end before its last step makes as many as its slowest row.
    """
    return must_be_alone(sampler, method.attention, method.cache.resolve()) or sampler.at_most


def is_watched(crew: Crew) -> bool:
    """Is there someone to see a progress bar? Rank 0's share stands for the others', which are as large."""
    return crew.rank == 0 and sys.stderr.isatty()


def own_share(cells: Sequence[Cell], answers: Mapping[tuple[int, int], int], crew: Crew) -> dict[int, list[int]]:
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


def _asked(model: Model, cell: Cell, plan: Plan, indices: Iterable[int]) -> Iterator[Asked]:
    """The cell's questions of these indices, each once it is asked for."""
    for index in indices:
        prompt = ask_batch(model, cell, plan, index)
        yield index, prompt, model.encode(prompt.text)


def ask_batch(model: Model, cell: Cell, plan: Plan, index: int) -> Prompt:
    kinds = TYPES[cell.type]
    depth = _depth(cell, plan, index)
    return build_prompt(model, cell.length, kinds[index % len(kinds)], FIRST_SEED + index, depth)


def _depth(cell: Cell, plan: Plan, index: int) -> float | None:
    """Where the documents that a question needs are to stand."""
    return None if not plan.depths else plan.depths[index // len(TYPES[cell.type]) % len(plan.depths)]


def _answer(
    model: Model,
    batch: Sequence[Asked],
    method: Method,
    sampler: ResolvedSampler,
    cell: Cell,
    plan: Plan,
    known: dict[int, dict[str, Answer]],
    fitting: Fitting,
) -> Iterator[Answer]:
    # Needs torch, as what follows: a table of kept answers is made without.
    import torch

    from sparsed.denoising import generate

    def ran(part: Sequence[Asked]) -> Result:
        ids = torch.cat([asked[2] for asked in part])
        return generate(
            model, ids, sampler=sampler, attention=method.attention, cache=method.cache, backend=plan.backend
        )

    length = batch[0][2].shape[1] + sampler.gen_length
    with naming(f"{cell.length} {cell.type}, question {batch[0][0]}, {method.name}"):
        for part, result in fitting.pieces(batch, length, ran):
            yield from _records(model, part, result, method, cell, plan, known)


def _records(
    model: Model,
    batch: Sequence[Asked],
    result: Result,
    method: Method,
    cell: Cell,
    plan: Plan,
    known: dict[int, dict[str, Answer]],
) -> Iterator[Answer]:
    """The answers of a run to a batch of questions."""
    # Needs torch, as above.
    from sparsed.evaluation.executed import executed

    ids = batch[0][2]
    answers: list[list[int]] = result.tokens[:, ids.shape[1] :].tolist()
    # A run that ended early leaves masks behind its answer.
    ends = (*model.end_ids, model.mask_id)
    run: Any = result.info.record()
    for (index, prompt, own_ids), text, answer, made in zip(
        batch, result.text, answers, executed(model, result), strict=True
    ):
        digest = prompt_digest(own_ids)
        for other in known[index].values():
            if other.prompt != digest:
                raise ValueError(
                    f"Question {index} of {cell.length} {cell.type} is not the one that {other.method} was asked in "
                    f"this folder: choose another folder."
                )
        dense = known[index].get("dense") if method.name != "dense" else None
        gold = nearest(text, prompt.answers)
        exact = exact_match(text, gold)
        right, facts, invented = facts_right(text, gold)
        yield Answer(
            type=cell.type,
            length=cell.length,
            index=index,
            kind=prompt.kind,
            method=method.name,
            exact=exact,
            right=right,
            facts=facts,
            invented=invented,
            verdict=prompt.verdict,
            depth=None if prompt.depth is None else _depth(cell, plan, index),
            agreement=None if dense is None else token_agreement(answer, _padded(dense.tokens, answer), ends),
            seconds=result.seconds / len(batch),
            tokens=answer[: answer_length(answer, ends)],
            text=None if exact else text,
            gold=None if exact else gold,
            others=None if exact or not prompt.others else [one for one in prompt.answers if one != gold],
            prompt=digest,
            run=run,
            density=made.density,
            head_rows=made.head_rows,
            rows=dict(made.rows),
        )


def prompt_digest(ids: Tensor) -> str:
    """A prompt's token ids in a few letters."""
    return hashlib.blake2b(repr(ids.tolist()).encode(), digest_size=6).hexdigest()


def _padded(tokens: list[int], like: list[int]) -> list[int]:
    """A stored answer on the whole canvas again: what follows its end token is more of it."""
    return tokens + tokens[-1:] * (len(like) - len(tokens))
