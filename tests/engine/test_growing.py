"""A canvas that grows (iLLaDA's) and the push towards the end of thinking, against a literal sampler in plain loops."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsed
from sparsed import CacheConfig, SamplerConfig, SparseDConfig, trace
from sparsed.bench.command import main as bench
from sparsed.config import phases_of
from sparsed.denoising.graphs import StepGraphs
from sparsed.samplers import make_sampler

# Decisions closer than this are nobody's to call: a run is compared up to there.
CLOSE = 2e-5
PROMPT = torch.randint(8, 250, (1, 45), generator=torch.Generator().manual_seed(3))
GROWING = SamplerConfig(steps=12, gen_length=24, block_length=8, algorithm="low_confidence", temperature=0.0,
                        canvas="growing", early_stop=False)  # fmt: skip


@pytest.fixture(scope="module")
def tally() -> Iterator[dict[str, int]]:
    counts = {"compared": 0, "close": 0}
    yield counts
    assert counts["compared"] > 100 and counts["close"] <= 0.02 * counts["compared"]


@torch.no_grad()
def logits_of(model: Any, row: list[int]) -> Tensor:
    """What predicts each position, in the network's own arithmetic."""
    logits = model.network(input_ids=torch.tensor([row]), use_cache=False).logits[0]
    return torch.cat([logits[:1], logits[:-1]]) if model.shift else logits


def pushed(logits: Tensor, written: list[int], at: int, text: list[int], boost: float, power: float, all_: int) -> None:
    """The formula, in place: to the next token of the text at position `at` of what was written so far."""
    for first in range(len(written)):
        if written[first : first + len(text)] == text:
            return
    due = 0
    for count in range(1, len(text)):
        if count <= at and written[at - count : at] == text[:count]:
            due = count  # the longest beginning that stands right before
    logits[text[due]] += boost * ((at + 1) / all_) ** power


def literal(
    model: Any, prompt: list[int], config: SamplerConfig, text: list[int], boost: float, power: float
) -> Iterator[tuple[list[int], float]]:
    """The generation after each step, as far as it is there, and how clear the step's decisions were."""
    row, start, blocks = list(prompt), len(prompt), config.gen_length // config.block_length
    share = config.steps // blocks
    for _ in range(blocks):
        first = len(row)
        row += [model.mask_id] * config.block_length
        for step in range(share):
            logits = logits_of(model, row)
            masked = [i for i in range(start, len(row)) if row[i] == model.mask_id]
            mine = [i for i in masked if i >= first]
            if boost and mine:
                pushed(logits[mine[0]], row[start:], mine[0] - start, text, boost, power, config.gen_length)
            sure = {i: float(logits[i].softmax(0).max()) for i in masked}
            order = sorted(masked, key=lambda i: (-sure[i], i))
            each, more = divmod(config.block_length, share)
            chosen, rest = order[: each + (step < more)], order[each + (step < more) :]
            best = {i: logits[i].topk(2) for i in chosen}
            margin = min((float(b.values[0] - b.values[1]) for b in best.values()), default=1.0)
            if chosen and rest:
                margin = min(margin, sure[chosen[-1]] - sure[rest[0]])
            for i in chosen:
                row[i] = int(best[i].indices[0])
            yield row[start:], margin


@pytest.mark.parametrize("number", range(36))
def test_tokens_are_those_of_the_literal_sampler(model_of, tally, number: int) -> None:
    """Every step, of every family; some predict the mask token, which stays eligible in later blocks."""
    dice = random.Random(number)
    family = dice.choice(["illada", "illada", "llada", "dream", "llada_moe"])
    model = model_of(family, mask_predicted=number % 4 == 0)
    blocks, block_length = dice.randint(1, 4), dice.randint(1, 8)
    config = SamplerConfig(steps=blocks * dice.randint(1, block_length + 1), gen_length=blocks * block_length,
                           block_length=block_length, algorithm="low_confidence", temperature=0.0, canvas="growing",
                           early_stop=False)  # fmt: skip
    prompt = [dice.randint(8, 250) for _ in range(dice.randint(1, 30))]
    text: list[int] = []
    boost, power = dice.choice([0.0, 5.0, 40.0]), dice.choice([1.0, 3.0])
    if boost:
        config = replace(config, end_think_boost=boost, end_think_power=power if power != 3 else None)
        text = model.tokenizer("</think>", add_special_tokens=False)["input_ids"]
        assert len(text) > 3
    run = sparsed.denoise(model, torch.tensor(prompt), sampler=config, attention="dense")
    for wanted, margin in literal(model, prompt, config, text, boost, power):
        tally["compared"] += 1
        if margin < CLOSE:
            tally["close"] += 1
            return
        step = next(run)
        later = config.gen_length - len(wanted)
        assert step.tokens.tolist() == [wanted + [model.mask_id] * later], step.index
        assert step.rows == step.length == len(prompt) + len(wanted)
    assert next(run, None) is None and run.finished


def test_the_end_of_thinking_is_written_and_not_twice(model_of) -> None:
    """With a large boost the whole text stands there, once; its power decides how late."""
    model = model_of("illada", mask_predicted=False)
    text = model.tokenizer("</think>", add_special_tokens=False)["input_ids"]
    asked = replace(GROWING, gen_length=32, steps=32)

    def ends(**more: Any) -> list[int]:
        found = sparsed.generate(model, PROMPT, sampler=replace(asked, **more), attention="dense").tokens[0, 45:]
        row = found.tolist()
        return [first for first in range(len(row)) if row[first : first + len(text)] == text]

    assert ends() == []
    (early,), (late,) = ends(end_think_boost=400.0, end_think_power=0.0), ends(end_think_boost=400.0)
    assert early < late


@pytest.mark.parametrize("canvas", ["growing", "fixed"])
def test_the_push_goes_to_one_logit_of_each_row(canvas: str) -> None:
    """By hand: two rows with other histories; one has written the text already."""
    config = SamplerConfig(steps=4, gen_length=8, block_length=4, algorithm="low_confidence", temperature=0.0,
                           canvas=canvas, end_think_boost=10.0, end_think_power=2.0)  # fmt: skip
    resolved = config.resolve(SamplerConfig(4, 8, 4, "low_confidence", 0.0, 0))
    sampler = make_sampler(resolved, 11, (9,), (3, 4, 3, 5))
    rows = [[1, 3, 4, 3, 11, 2, 11, 11], [3, 4, 3, 5, 11, 11, 11, 11], [2, 2, 11, 2, 11, 11, 2, 11],
            [1, 2, 3, 4, 2, 2, 2, 2]]  # fmt: skip
    generation = torch.tensor(rows)
    eligible = sampler.eligible(generation, 2)  # the second block
    logits = torch.zeros(int(eligible.sum()), 12)
    seen: list[Tensor] = []

    def heard(given: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        seen.append(given)
        return given.argmax(-1), given.amax(-1)

    object.__setattr__(sampler, "propose", heard)
    sampler.commit(generation, eligible, logits, 2, torch.Generator())
    (changed,) = seen
    places = [(n, i) for n, row in enumerate(rows) for i, token in enumerate(row) if token == 11]
    expected = torch.zeros(len(places), 12)
    # Of the first row 3 4 3 is written, so 5 is due at position 4; of the third the first token, at position 4 too: the
    # mask at 2 is of the block before.
    expected[places.index((0, 4)), 5] = expected[places.index((2, 4)), 3] = 10.0 * (5 / 8) ** 2
    assert torch.allclose(changed, expected) and not logits.any()


def test_a_push_without_a_tokenizer_or_a_power_without_a_push_is_refused(model_of) -> None:
    model = replace(model_of("illada"), tokenizer=None)
    with pytest.raises(ValueError, match="^end_think_boost needs a tokenizer, which illada.* has not: leave it out.$"):
        sparsed.denoise(model, PROMPT, sampler=replace(GROWING, end_think_boost=1.0))
    with pytest.raises(ValueError, match="^end_think_power has no effect without end_think_boost: leave it out.$"):
        sparsed.denoise(model, PROMPT, sampler=replace(GROWING, end_think_power=1.0))


@pytest.mark.parametrize("skip", [0.0, 0.3])
@pytest.mark.parametrize("more", [{}, {"generation_rows": "full"}, {"refresh": 2}], ids=["paper", "full", "refresh"])
def test_each_longer_canvas_selects_afresh(checkpoints, folder_of, model_of, tally, skip: float, more: dict) -> None:
    """Phases, patterns and tokens against full matrices: a block begins with full attention, over what is there by
    then, and the steps of the block see what that selected.
    """
    model = model_of("illada", mask_predicted=False)
    plain = checkpoints.PlainNetwork(folder_of("illada", mask_predicted=False), torch.float64)
    asked = replace(GROWING, gen_length=48, block_length=16, steps=12)
    run = sparsed.denoise(model, PROMPT, sampler=asked, backend="gather",
                          attention=SparseDConfig(skip=skip, select=0.4, block_size=32, **more))  # fmt: skip
    row, first, seen = PROMPT[0].tolist(), 0, None
    for index in range(12):
        begins = index % 4 == 0
        if begins:
            row += [model.mask_id] * 16
        made = seen is not None and (begins or (more.get("refresh") and index - first >= 2))
        phase = "dense" if index < 12 * skip else "select" if seen is None or made else "sparse"
        logits, heads = plain.run(torch.tensor(row), seen if phase == "sparse" else None)
        step = next(run)
        assert (step.phase, step.length, step.rows) == (phase, len(row), len(row)), index
        if phase == "select":
            first, seen = index, []
            for layer, (query, key) in zip(run.pattern.layers, heads):
                wanted = checkpoints.paper_selection(query, key, len(row) - 45, 32, 0.4)
                assert run.pattern.layout.length == len(row)
                n = -(-len(row) // 32)
                kept = torch.zeros(len(wanted), n, n, dtype=torch.bool)
                for head, blocks in enumerate(wanted):
                    for block, (chosen, lead) in enumerate(blocks):
                        tally["compared"] += 1
                        if lead < 1e-4:
                            tally["close"] += 1
                            return
                        kept[head, block, list(chosen)] = True
                if more.get("generation_rows"):
                    kept[:, 45 // 32 :] = True
                assert torch.equal(layer.mask()[0], kept)
                seen.append(checkpoints.positions(kept, 32, len(row)))
        masked = [i for i in range(45, len(row)) if row[i] == model.mask_id]
        sure = {i: float(logits[i].softmax(0).max()) for i in masked}
        order = sorted(masked, key=lambda i: -sure[i])
        margin = min(float(logits[i].topk(2).values.diff().abs()) for i in order[:4])
        if len(order) > 4:
            margin = min(margin, sure[order[3]] - sure[order[4]])
        tally["compared"] += 1
        if margin < CLOSE:
            tally["close"] += 1
            return
        for i in order[:4]:
            row[i] = int(logits[i].argmax())
        assert step.tokens[0, : len(row) - 45].tolist() == row[45:]
        assert (step.tokens[0, len(row) - 45 :] == model.mask_id).all()
    assert run.finished and run.switch_step == next(s.index for s in run.steps if s.phase == "sparse")


@pytest.mark.parametrize("steps", [5, 12, 13])
@pytest.mark.parametrize("blocks", [1, 2, 5])
@pytest.mark.parametrize(("skip", "refresh"), [(0.0, 0), (0.2, 0), (0.4, 3), (1.0, 0)])
def test_phases(steps: int, blocks: int, skip: float, refresh: int) -> None:
    turns = sorted(step % blocks for step in range(steps))
    selected: int | None = None
    for step, phase in enumerate(phases_of(steps, skip, refresh=refresh, blocks=blocks, grows=True)):
        begins = step == 0 or turns[step] != turns[step - 1]
        due = step >= skip * steps and (
            selected is None or begins or bool(refresh and step - selected >= refresh)
        )
        assert phase == ("select" if due else "dense" if selected is None else "sparse")
        selected = step if due else selected


@pytest.mark.parametrize("cache", [None, "prefix", "dual", "delayed", "refresh"])
@pytest.mark.parametrize("keys", ["all", "pattern"])
def test_what_is_planned_is_what_is_made(model_of, cache: str | None, keys: str) -> None:
    model = model_of("illada", mask_predicted=False)
    config = None if cache is None else CacheConfig(cache, 4 if cache in ("delayed", "refresh") else None, keys)
    run = sparsed.denoise(model, PROMPT, sampler=replace(GROWING, steps=18), cache=config,
                          attention=SparseDConfig(skip=0.2, select=0.5, block_size=32))  # fmt: skip
    planned = [(step.phase, step.rows, step.length) for step in run.planned]
    assert [(step.phase, step.rows, step.length) for step in run] == planned
    assert len({length for *_, length in planned}) == 3
    if config is None or keys == "pattern":
        assert run.info.phases["sparse"] > 0
    else:
        never = [note for note in run.notes if note.startswith("This run never becomes sparse")]
        assert bool(never) == (run.info.phases["sparse"] == 0) == (cache in ("prefix", "dual"))


def test_one_block_is_the_fixed_canvas(model_of) -> None:
    model = model_of("illada")
    runs = [
        sparsed.generate(model, PROMPT, sampler=replace(GROWING, block_length=24, canvas=canvas))
        for canvas in ("fixed", "growing")
    ]
    assert [[(s.phase, s.rows, s.length) for s in run.steps] for run in runs][0] == [
        (s.phase, s.rows, s.length) for s in runs[1].steps
    ]
    assert torch.equal(runs[0].tokens, runs[1].tokens)


@pytest.mark.parametrize("attention", ["dense", SparseDConfig(skip=0.2, select=0.4, block_size=32)])
@pytest.mark.parametrize("cache", [None, CacheConfig("dual", keys="pattern"), CacheConfig("delayed", 4)],
                         ids=["none", "dual", "delayed"])  # fmt: skip
def test_rows_of_a_batch_and_runs_side_by_side_are_the_runs_alone(model_of, attention: Any, cache: Any) -> None:
    model = model_of("illada", mask_predicted=False)
    if attention == "dense" and cache is not None:
        cache = replace(cache, keys=None)
    ids = torch.randint(8, 250, (3, 30), generator=torch.Generator().manual_seed(5))
    given: dict[str, Any] = {"sampler": GROWING, "attention": attention, "cache": cache}
    together = sparsed.generate(model, ids, **given).tokens
    alone = [sparsed.denoise(model, row[None], **given) for row in ids]
    for _ in range(12):  # in turns
        for run in alone:
            next(run)
    assert torch.equal(together, torch.cat([run.result().tokens for run in alone]))


def test_a_run_ends_after_the_block_in_which_the_answer_ends(model_of) -> None:
    """And not within it; without early_stop it goes on, to the same text."""
    model = model_of("illada", mask_predicted=False)
    asked = replace(GROWING, gen_length=64, steps=64)
    whole = sparsed.generate(model, PROMPT, sampler=asked, attention="dense")
    row = whole.tokens[0, 45:].tolist()
    said = model.tokens_text(row[12:13])
    stop = replace(asked, stop=(said,), early_stop=True)
    end = next(n for n in range(1, 65) if said in model.tokens_text(row[:n], special=False))
    blocks = -(-end // 8)
    assert 1 <= blocks < 8
    short = sparsed.generate(model, PROMPT, sampler=stop, attention="dense")
    assert len(short.steps) == 8 * blocks and short.ended == ["stop string"]
    assert short.tokens[0, 45 : 45 + 8 * blocks].tolist() == row[: 8 * blocks]
    assert (short.tokens[0, 45 + 8 * blocks :] == model.mask_id).all()
    assert short.steps[-1].length == 45 + 8 * blocks
    long = sparsed.generate(model, PROMPT, sampler=replace(stop, early_stop=False), attention="dense")
    assert len(long.steps) == 64 and long.text == short.text
    assert "Every answer was complete after" in short.notes[-1]


@pytest.mark.parametrize("method", ["prefix", "refresh"])
def test_captured_steps_begin_anew_with_each_block(model_of, monkeypatch, method: str) -> None:
    """A graph reads the keys and values of its own length."""
    model = model_of("illada", mask_predicted=False)
    given: dict[str, Any] = {"sampler": replace(GROWING, steps=24), "attention": "dense", "cache": CacheConfig(method)}
    wanted = sparsed.generate(model, PROMPT, **given).tokens
    captured: list[Callable[[], Tensor]] = []

    def capture(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        out = work().clone()
        captured.append(work)
        return lambda: out.copy_(work())

    monkeypatch.setattr("sparsed.denoising.run.step_graphs", lambda model: StepGraphs(capture))
    assert torch.equal(sparsed.generate(model, PROMPT, **given).tokens, wanted)
    assert len(captured) == 3


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="there is a GPU here: tests/gpu runs it for real")
def test_the_triton_kernels_give_the_same_tokens(model_of, monkeypatch) -> None:
    pytest.importorskip("triton")
    model = model_of("illada", hidden_size=128)  # head_dim 32
    monkeypatch.setattr("sparsed.denoising.check_backend", lambda *_: None)
    config = SparseDConfig(skip=0.0, select=0.5, block_size=32)
    few = replace(GROWING, steps=4, gen_length=8, block_length=4)
    gather, triton = (
        sparsed.generate(model, PROMPT, sampler=few, attention=config, backend=name) for name in ("gather", "triton")
    )
    assert triton.backend == "triton" and torch.equal(gather.tokens, triton.tokens)
    assert [step.phase for step in triton.steps] == ["select", "sparse"] * 2


def test_what_it_does_not_go_with_is_a_sentence(model_of) -> None:
    model = model_of("illada")
    with pytest.raises(ValueError, match="probe_steps compare patterns of one length: leave them out, or take canvas"):
        sparsed.denoise(model, PROMPT, sampler=GROWING, probe_steps=[11])
    surely = replace(GROWING, steps=24, threshold=0.5)
    with pytest.raises(ValueError, match="the canvases of a batch grow at different steps: give prompts one by one"):
        sparsed.denoise(model, PROMPT.expand(2, -1), sampler=surely)
    with pytest.raises(ValueError, match="canvas 'growing' appends semi-autoregressive blocks, which 'entropy' has"):
        sparsed.denoise(model, PROMPT, sampler=SamplerConfig(algorithm="entropy", canvas="growing"))
    with pytest.raises(ValueError, match="With a canvas that grows every step has its own length: put no longer runs"):
        bench(["--lengths", "200", "--steps", "6", "--canvas", "growing", "--compose", "12", "--random-tokens"])


def test_a_record_of_it_plays_again(model_of, tmp_path: Path) -> None:
    """Ended early, so that the last pattern is shorter than the whole sequence."""
    model = model_of("illada", mask_predicted=False)
    asked = replace(GROWING, gen_length=64, steps=64)
    row = sparsed.generate(model, PROMPT, sampler=asked).tokens[0, 45:].tolist()
    stop = replace(asked, stop=(model.tokens_text(row[12:13]),), early_stop=True)
    runs = {
        "dense": sparsed.denoise(model, PROMPT, sampler=stop, attention="dense"),
        "sparse": sparsed.denoise(model, PROMPT, sampler=stop, attention=SparseDConfig(skip=0.0, block_size=32,
                                                                                      keep_importance=True)),
    }  # fmt: skip
    for run in runs.values():
        run.result()
    made = runs["sparse"]
    assert made.pattern.layout.length == made.steps[-1].length < made.length
    trace.save(trace.record(runs, importance=True), tmp_path / "run.json")
    loaded = trace.load(tmp_path / "run.json")
    for name, run in runs.items():
        again = list(trace.replay(loaded, name))
        assert [(s.phase, s.rows, s.length) for s in again] == [(s.phase, s.rows, s.length) for s in run.steps]
        assert [s.tokens.tolist() for s in again] == [s.tokens.tolist() for s in run.steps]
    text = (tmp_path / "run.json").read_text().replace('"length":53', '"length":52')
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match="commits row 0, position"):
        trace.load(tmp_path / "other.json")


def test_many_prompts_end_each_with_its_own_answer(model_of) -> None:
    """Together as alone, although the batch goes on until the last one has ended; looked at after each block."""
    model = model_of("illada", mask_predicted=False)
    asked = replace(GROWING, gen_length=64, steps=64)
    prompts = [torch.randint(8, 250, (1, 30), generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    row = sparsed.generate(model, prompts[1], sampler=asked, attention="dense").tokens[0, 30:].tolist()
    stop = replace(asked, stop=(model.tokens_text(row[20:21]),), early_stop=True)
    alone = [sparsed.generate(model, ids, sampler=stop, attention="dense") for ids in prompts]
    together = sparsed.generate_all(model, prompts, sampler=stop, attention="dense")
    assert len({len(one.steps) for one in alone}) > 1
    for one, answered in zip(alone, together, strict=True):
        assert (answered.text, answered.ended, answered.steps) == (one.text[0], one.ended[0], len(one.steps))
        assert answered.steps % 8 == 0 and answered.tokens.tolist() == one.tokens[0, 30:].tolist()
        assert answered.info.rows == one.info.rows
