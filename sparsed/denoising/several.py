"""Many prompts, of any lengths: those of one length run together, each answer as its prompt alone has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from sparsed.batches import BATCH_TOKENS, Fitting, must_be_alone, together
from sparsed.config import AttentionConfig, CacheConfig, Phase, SamplerConfig, as_attention
from sparsed.denoising import Run, denoise
from sparsed.denoising.answers import Answers
from sparsed.denoising.info import RunInfo
from sparsed.denoising.notes import padding

if TYPE_CHECKING:
    from sparsed.models.model import Model

PromptLike = str | list[dict[str, str]] | Tensor
# So many of the prompts that are too much are named.
_NAMED = 3


class Unanswered(MemoryError):
    """Prompts that are too much for the memory, each by itself; every other one was answered.

    indices: theirs, from 0. answered: of `generate_all`, the answers to the others, in the order of the prompts.
    """

    def __init__(self, said: str, indices: Sequence[int]) -> None:
        super().__init__(said)
        self.indices = list(indices)
        self.answered: list[Answered] = []


@dataclass(frozen=True, eq=False)
class Answered:
    """The answer to one of several prompts.

    index: of its prompt, from 0. text, ended: as in `Result`. tokens: int64 [gen_length] on the CPU, as they were after
    its own last step: with a threshold or early_stop a run of one prompt ends there, and others of its batch go on.
    count: of these, up to and with what ended the answer, masks left out.
    seconds: its share of the batch's time: of each of its steps, the time divided by the sequences not done before.
    info: as of a run of this prompt alone, its own steps counted; but for `batch`, how many ran together.
    """

    index: int
    text: str
    ended: Literal["end token", "stop string"] | None
    tokens: Tensor
    count: int
    seconds: float
    info: RunInfo

    @property
    def steps(self) -> int:
        """Denoising steps until it was done."""
        return self.info.forwards

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that a user should see."""
        return self.info.notes


def generate_all(
    model: Model,
    prompts: Sequence[PromptLike],
    *,
    sampler: SamplerConfig | None = None,
    attention: AttentionConfig | Literal["dense"] | None = None,
    cache: CacheConfig | None = None,
    backend: str = "auto",
    dense_backend: str = "auto",
    chat: bool | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Answered]:
    """The answers to several prompts of any lengths, in the order of the prompts.

    prompts: each a string, a list of messages, or token ids [length] or [1, length]. Prompts of equal length run
    together, as many as have at most `batch_tokens` tokens with their generations; 0 runs them one by one. Where the
    device's memory does not suffice for a batch, half of it is tried, which a note says. The rest is as for `denoise`.

    No prompt is filled up, so each answer is the one that `generate` gives to its prompt alone: bit by bit where it ran
    alone (`info.batch` is 1), and otherwise but for rounding, because the sums of a matrix product over more rows may
    be taken in another order; a token may then be another one where two were as good as equally likely. Runs whose
    answers would depend on the batch by more than that always go one by one (`sparsed.batches.must_be_alone`): those
    that draw at random, each with the same seed, and those with a threshold and a refresh of the pattern, a canvas that
    grows, or a cache and sparse attention.

    Raises ValueError for a wrong prompt, with its number from 1, and what `denoise` raises; `Unanswered`, with the
    answers that there are, where prompts are too much for the memory. Where a device may fail on the way, `each_answer`
    gives each answer once it is there.
    """
    found: list[Answered] = []
    try:
        for answered in each_answer(
            model,
            prompts,
            sampler=sampler,
            attention=attention,
            cache=cache,
            backend=backend,
            dense_backend=dense_backend,
            chat=chat,
            batch_tokens=batch_tokens,
        ):
            found.append(answered)
    except Unanswered as error:
        error.answered = _in_order(found)
        raise
    return _in_order(found)


def _in_order(found: list[Answered]) -> list[Answered]:
    return sorted(found, key=lambda answered: answered.index)


def encode_all(
    model: Model, prompts: Sequence[PromptLike], chat: bool | None, names: Sequence[str]
) -> list[Tensor]:
    """Each prompt's token ids, int64 [1, length]. names: what each is called in a refusal."""
    found = []
    for name, prompt in zip(names, prompts, strict=True):
        try:
            ids = model.encode(prompt, chat)
            if len(ids) != 1:
                raise ValueError(f"token ids of shape {list(ids.shape)} are {len(ids)} prompts: give each by itself.")
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        found.append(ids)
    return found


def each_answer(
    model: Model,
    prompts: Sequence[PromptLike],
    *,
    sampler: SamplerConfig | None = None,
    attention: AttentionConfig | Literal["dense"] | None = None,
    cache: CacheConfig | None = None,
    backend: str = "auto",
    dense_backend: str = "auto",
    chat: bool | None = None,
    batch_tokens: int = BATCH_TOKENS,
    names: Sequence[str] | None = None,
) -> Iterator[Answered]:
    """As `generate_all`, each answer once it is there: batches are run in the order of their first prompts, and
    `Unanswered` is raised after every other prompt was answered. names: what prompts are called in errors.
    """
    if isinstance(prompts, str | Tensor) or not isinstance(prompts, Sequence):
        raise ValueError(f"Several prompts must be given as a list, not {prompts!r:.60}.")
    if isinstance(batch_tokens, bool) or not isinstance(batch_tokens, int) or batch_tokens < 0:
        raise ValueError(f"batch_tokens must be a whole number of at least 0, not {batch_tokens!r}.")
    if not isinstance(sampler, SamplerConfig | None):
        raise ValueError(f"sampler must be a SamplerConfig, not {sampler!r}.")
    if not isinstance(cache, CacheConfig | None):
        raise ValueError(f"cache must be a CacheConfig, not {cache!r}.")
    settings = (sampler or SamplerConfig()).resolve(model.defaults)
    alone = must_be_alone(settings, as_attention(attention), (cache or CacheConfig()).resolve())
    most = 0 if alone else batch_tokens
    names = names or [f"Prompt {number}" for number in range(1, len(prompts) + 1)]
    encoded = encode_all(model, prompts, chat, names)
    fitting, made = Fitting(), 0

    def ran(part: Sequence[tuple[int, Tensor]]) -> Run:
        run = denoise(
            model,
            torch.cat([ids for _, ids in part]),
            sampler=sampler,
            attention=attention,
            cache=cache,
            backend=backend,
            dense_backend=dense_backend,
        )
        if not made:
            run.warm_up()
        for _ in run:
            pass
        return run

    groups = together(
        enumerate(encoded),
        key=lambda asked: asked[1].shape[1] + settings.gen_length,
        most=lambda length: most // length,
    )
    too_much: dict[int, str] = {}  # index of a prompt → why
    for group in sorted(groups, key=lambda group: group[0][0]):
        length = group[0][1].shape[1] + settings.gen_length
        left = [index for index, _ in group]
        try:
            for part, run in fitting.pieces(group, length, ran):
                made += len(part)
                said = () if fitting.note is None else (fitting.note,)
                for answered in answers_of(run):
                    info = replace(answered.info, notes=(*answered.notes, *said))
                    yield replace(answered, index=left.pop(0), info=info)
        except MemoryError as error:
            too_much |= dict.fromkeys(left, str(error))
    if too_much:
        shortest = min(too_much, key=lambda index: encoded[index].shape[1])
        who = [names[index] for index in sorted(too_much)]
        more = f" and {len(who) - _NAMED} more" if len(who) > _NAMED else ""
        raise Unanswered(f"{', '.join(who[:_NAMED])}{more}: {too_much[shortest]}", sorted(too_much))


def answers_of(run: Run) -> Iterator[Answered]:
    """The answers of one batch that is finished, row by row, each as its prompt alone has it."""
    model, info = run.model, run.info
    ends = [_end_of(run, row) for row in range(info.batch)]
    filled = padding(model, run.prompt)
    for row, (made, complete) in enumerate(ends):
        steps = run.steps[:made]
        tokens = steps[-1].tokens[row]
        answers = Answers(model, info.sampler.stop)
        text, ended = answers.read(tokens.tolist())
        phases: dict[Phase, int] = {"dense": 0, "select": 0, "sparse": 0}
        rows = dict(phases)
        for step, parts in zip(steps, run.plans):
            phases[step.phase] += 1
            own = next(plan for part, plan in parts if row in range(info.batch)[part])
            rows[step.phase] += own.rows.count(own.length)
        switch = next((step.index for step in steps if step.phase == "sparse"), None)
        notes = run.notes_after(steps, complete)
        if filled:
            at = notes.index(filled[0])
            notes[at : at + 1] = padding(model, run.prompt[row : row + 1])
        yield Answered(
            index=row,
            text=text,
            ended=ended,
            tokens=tokens,
            count=answers.count(tokens.tolist()),
            seconds=sum(step.seconds / sum(step.index < one for one, _ in ends) for step in steps),
            info=replace(info, phases=phases, rows=rows, switch_step=switch, notes=tuple(notes)),
        )


def _end_of(run: Run, row: int) -> tuple[int, bool]:
    """How many steps a run of this row alone makes, and whether it ends because its answer is complete."""
    sampler, last = run.sampler, len(run.steps)
    if not sampler.at_most:
        return last, False
    answers = Answers(run.model, sampler.stop)
    for step, later in zip(run.steps, [*run.steps[1:], None]):
        tokens = step.tokens[row : row + 1]
        # Where the last step of all was made, that is why.
        looks = sampler.early_stop and step.index < run.total - 1
        # A canvas that grows is looked at when a block is done; that of a run that ended before its last step was.
        looks = looks and (not sampler.grows or later is None or later.length > step.length)
        if looks and answers.complete(tokens):
            return step.index + 1, True
        if sampler.threshold is not None and not bool((tokens == run.model.mask_id).any()):
            return step.index + 1, False
    return last, False
