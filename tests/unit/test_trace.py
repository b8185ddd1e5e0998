"""The trace file: what is replayed is what ran, and what is no trace is refused in one sentence."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import os
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsed
from sparsed import trace
from sparsed.attention import analysis
from sparsed.attention.masks import Masks
from sparsed.attention.pattern import BlockLayout, LayerPattern, Pattern
from sparsed.config import FULL_ATTENTION, NO_CACHE, ResolvedSampler, SamplerConfig, SparseDConfig
from sparsed.denoising.answers import Answers
from sparsed.questions.build import Prompt
from sparsed.trace import check

ROOT = Path(__file__).resolve().parents[2]
MASK, END = 99, 0
PROMPT = Prompt("Documents.\nWho?", "Who?", "Ann.", "about", "short_context", 7, 3)


class Tokens:
    """Token 5 and 6 are the two bytes of "é"; the others are letters."""

    def decode(self, ids: list[int], **_: Any) -> str:
        raw = b"".join({5: b"\xc3", 6: b"\xa9"}.get(i, bytes([65 + i % 26])) for i in ids)
        return raw.decode("utf-8", errors="replace")


def fake_model() -> Any:
    tokenizer = Tokens()
    return SimpleNamespace(
        name="fake",
        label="Fake",
        family="llada",
        dtype=torch.float32,
        numbers="float32",
        device=torch.device("cpu"),
        processes=1,
        mask_id=MASK,
        eos_id=END,
        end_ids=(END, 1),
        tokenizer=tokenizer,
        token_text=lambda token: tokenizer.decode([token]),
        tokens_text=lambda tokens, special=True: tokenizer.decode(list(tokens), skip_special_tokens=not special),
    )


def fake_pattern(
    layout: BlockLayout,
    batch: int,
    heads: int,
    layers: int,
    seed: int,
    density: float = 0.4,
    keep_importance: bool = False,
) -> Pattern:
    """Every query block of every head keeps another number of blocks; one slot is always padding."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(layers):
        mask = rng.random((batch, heads, layout.blocks, layout.blocks)) < density
        counts = mask.sum(-1)
        kept = min(int(counts.max()) + 1, layout.blocks)
        order = np.argsort(~mask, axis=-1, kind="stable")[..., :kept]
        indices = np.where(np.arange(kept) < counts[..., None], order, -1).astype(np.int32)
        made.append(LayerPattern(torch.from_numpy(indices), torch.from_numpy(counts.astype(np.int32))))
    importance = tuple(
        torch.from_numpy(rng.random((batch, heads, layout.blocks, layout.blocks)).astype(np.float16) ** 8)
        for _ in range(layers if keep_importance else 0)
    )
    return Pattern(layout, tuple(made), 0.4, importance or None)


def fake_run(
    batch: int = 1,
    gen_length: int = 8,
    steps: int = 4,
    made: int | None = None,
    seed: int = 0,
    prompt_length: int = 7,
    dense: bool = False,
    model: Any = None,
    keep_importance: bool = False,
) -> Any:
    """A run that commits random cells; some steps commit nothing, some confidences are NaN."""
    rng = np.random.default_rng(seed)
    when = rng.integers(0, steps, (batch, gen_length))
    final = torch.from_numpy(rng.integers(0, 10, (batch, gen_length)))
    sure = torch.from_numpy(rng.random((batch, gen_length)).astype(np.float32))
    sure[torch.from_numpy(rng.random((batch, gen_length)) < 0.1)] = torch.nan
    done = steps if made is None else made
    events = []
    for index in range(done):
        committed = torch.from_numpy(when == index)
        seconds = float(rng.random())
        events.append(
            SimpleNamespace(
                index=index,
                total=steps,
                phase="dense" if dense or index == 0 else "select" if index == 1 else "sparse",
                rows=prompt_length + gen_length,
                length=prompt_length + gen_length,
                tokens=torch.where(torch.from_numpy(when <= index), final, MASK),
                committed=committed,
                confidence=torch.where(committed, sure, torch.nan),
                seconds=seconds,
                attention_seconds=None if batch > 1 else seconds / 3,
            )
        )
    layout = BlockLayout(prompt_length + gen_length, prompt_length, 4)
    pattern = None if dense or done < 2 else fake_pattern(layout, batch, 2, 3, seed, keep_importance=keep_importance)
    return SimpleNamespace(
        model=model or fake_model(),
        prompt=torch.from_numpy(rng.integers(0, 10, (batch, prompt_length))),
        probes={},
        probed={},
        prompt_length=prompt_length,
        cache=NO_CACHE,
        total=steps,
        sampler=ResolvedSampler(steps, gen_length, gen_length, "low_confidence", 0.0, seed, 1.0, 0, 0.0, 1e-3, 0.0),
        attention=(FULL_ATTENTION if dense else SparseDConfig(0.2, 0.4, 32, "paper", keep_importance)).resolve(0),
        pattern=pattern,
        switch_step=None if dense or steps < 3 else 2,
        backend="sdpa" if dense else "gather",
        finished=done == steps,
        notes=["Short."],
        info=SimpleNamespace(dense_backend="sdpa"),
        steps=events,
    )


def assert_replays(run: Any, loaded: trace.Trace, lane: str) -> None:
    replayed = list(trace.replay(loaded, lane))
    assert len(replayed) == len(run.steps)
    for mine, step in zip(replayed, run.steps):
        assert (mine.index, mine.total, mine.phase, mine.seconds) == (step.index, step.total, step.phase, step.seconds)
        assert mine.attention_seconds == step.attention_seconds
        for name, dtype in (("tokens", np.int64), ("committed", np.bool_), ("confidence", np.float32)):
            array = getattr(mine, name)
            assert array.dtype == dtype
            np.testing.assert_array_equal(array, getattr(step, name).numpy())
    pattern = loaded.lanes[lane].pattern
    assert (pattern is None) == (run.pattern is None)
    if pattern is not None:
        again = pattern.to_pattern()
        assert again.layout == run.pattern.layout and again.select == run.pattern.select
        for number, (a, b) in enumerate(zip(again.layers, run.pattern.layers, strict=True)):
            assert torch.equal(a.indices, b.indices) and a.indices.dtype == b.indices.dtype
            assert torch.equal(a.counts, b.counts) and a.counts.dtype == b.counts.dtype
            np.testing.assert_array_equal(pattern.mask(number), b.mask().numpy())


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    gen_length=st.integers(1, 40),
    steps=st.integers(1, 12),
    stop=st.integers(0, 11),
    prompt_length=st.integers(1, 30),
    seed=st.integers(0, 10**6),
    dense=st.booleans(),
    importance=st.booleans(),
    suffix=st.sampled_from([".json", ".json.gz"]),
)
def test_saved_and_loaded_it_replays_the_very_steps(
    tmp_path_factory, batch, gen_length, steps, stop, prompt_length, seed, dense, importance, suffix
) -> None:
    made = max(1, steps - stop)
    run = fake_run(batch, gen_length, steps, made, seed, prompt_length, dense, keep_importance=importance)
    if run.pattern is not None:
        run.probes = {made - 1: fake_pattern(run.pattern.layout, batch, 2, 3, 0, 1.0)}
        run.probed = {made - 1: run.pattern}
    recorded = trace.record(run, prompt=PROMPT, importance=importance)
    path = tmp_path_factory.mktemp("trace") / f"run{suffix}"
    trace.save(recorded, path)
    loaded = trace.load(path)
    assert loaded == recorded
    (name,) = loaded.lanes
    assert name == ("dense" if dense else "sparsed")
    assert_replays(run, loaded, name)
    lane = loaded.lanes[name]
    assert lane.finished == (made == steps) and lane.seconds == sum(step.seconds for step in run.steps)
    assert lane.text == tuple(Answers(run.model).read(row).text for row in run.steps[-1].tokens.tolist())


def test_two_lanes_share_one_file(tmp_path: Path) -> None:
    model = fake_model()
    runs = {"full": fake_run(dense=True, model=model), "SparseD": fake_run(model=model)}
    trace.save(trace.record(runs, prompt=PROMPT), tmp_path / "race.json")
    loaded = trace.load(tmp_path / "race.json")
    assert list(loaded.lanes) == ["full", "SparseD"]
    for name, run in runs.items():
        assert_replays(run, loaded, name)
    raw = json.loads((tmp_path / "race.json").read_text())
    assert raw["prompt"]["gold"] == "Ann." and "prompt" not in raw["lanes"]["full"]
    with pytest.raises(ValueError, match="'full', 'SparseD', not None"):
        trace.replay(loaded)


def test_runs_that_do_not_belong_together_are_refused() -> None:
    model = fake_model()
    first = fake_run(model=model)
    for other in (fake_run(model=model, gen_length=9), fake_run(model=model, prompt_length=8), fake_run()):
        with pytest.raises(ValueError, match="'b' has another model, prompt or sampler"):
            trace.record({"a": first, "b": other})
    with pytest.raises(ValueError, match="no step yet"):
        trace.record(fake_run(made=0))
    with pytest.raises(ValueError, match="at least one run"):
        trace.record({})


def test_all_right_answers_are_kept(tmp_path: Path) -> None:
    several = replace(PROMPT, others=("Ben.", "Cleo."))
    trace.save(trace.record(fake_run(), prompt=several), tmp_path / "run.json")
    assert trace.load(tmp_path / "run.json").prompt.others == ("Ben.", "Cleo.")
    raw = json.loads((tmp_path / "run.json").read_text())
    del raw["prompt"]["others"]  # as earlier versions wrote it
    (tmp_path / "run.json").write_text(json.dumps(raw))
    loaded = trace.load(tmp_path / "run.json").prompt
    assert (loaded.gold, loaded.others) == ("Ann.", ())


def test_where_the_needed_documents_lie_is_kept(tmp_path: Path) -> None:
    run = fake_run()
    written = "".join(run.model.token_text(token) for token in run.prompt[0].tolist())
    # Tokens 0 and 1, and 6, are the template's; each token is a character.
    prompt = replace(PROMPT, text=written[2:6], needed=((0, 2), (3, 4)))
    made = trace.record(run, prompt=prompt)
    assert made.prompt.needed == ((2, 4), (5, 6))
    trace.save(made, tmp_path / "run.json")
    assert trace.load(tmp_path / "run.json") == made
    raw = json.loads((tmp_path / "run.json").read_text())
    for wrong in ([2, 2], [-1, 3], [5, 8]):
        raw["prompt"]["needed"] = [wrong]
        (tmp_path / "run.json").write_text(json.dumps(raw))
        with pytest.raises(ValueError, match="'needed' must lie within the 7 tokens of the prompt"):
            trace.load(tmp_path / "run.json")
    # A text that these tokens do not make up: nobody knows.
    assert trace.record(run, prompt=replace(prompt, text="another")).prompt.needed == ()


def test_the_prompt_text_can_be_left_out() -> None:
    assert trace.record(fake_run(), prompt=PROMPT).prompt.text == PROMPT.text
    kept_out = trace.record(fake_run(), prompt=PROMPT, store_text=False).prompt
    assert kept_out.text is None and kept_out.gold == "Ann." and kept_out.length == "short_context"
    hello = trace.record(fake_run(), prompt="Hello").prompt
    assert hello.words and replace(hello, words=()) == trace.TracePrompt(7, "Hello")
    assert trace.record(fake_run(), prompt="Hello", store_text=False).prompt == trace.TracePrompt(7)


def test_pieces_of_a_character_read_as_in_the_canvas() -> None:
    """Whatever group of pieces stands side by side after some step decodes without the tokenizer."""
    run = fake_run(gen_length=6, steps=3)
    final = torch.tensor([[7, 5, 6, 5, 6, 8]])
    for step, known in zip(run.steps, ([1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 1], [1] * 6)):
        seen = torch.tensor([known], dtype=torch.bool)
        step.committed = seen & (run.steps[step.index - 1].tokens == MASK) if step.index else seen
        step.tokens = torch.where(seen, final, MASK)
        step.confidence = torch.where(step.committed, 0.5, torch.nan)
    recorded = trace.record(run)
    assert recorded.decode([5, 6]) == "é" and recorded.decode([5, 6, 5, 6]) == "éé"
    assert recorded.decode([5]) == "\ufffd" and recorded.decode([7, 8]) == "HI"


def test_a_64k_run_of_a_large_model_stays_below_40_mb(tmp_path: Path) -> None:
    """Two of the 32 · 32 heads, without any structure: the worst case. 512 times as much must fit."""
    prompt_length, gen_length = 65_536, 128
    run = fake_run(gen_length=gen_length, prompt_length=prompt_length, made=1)
    run.pattern = fake_pattern(BlockLayout(prompt_length + gen_length, prompt_length, 128), 1, 2, 1, 0, 0.3)
    recorded = trace.record(run, store_text=False)
    for name, limit in (("a.json", 41e6), ("a.json.gz", 31e6)):
        sizes = []
        for each in (recorded, replace(recorded, lanes={"sparsed": replace(recorded.lanes["sparsed"], pattern=None)})):
            trace.save(each, tmp_path / name)
            sizes.append((tmp_path / name).stat().st_size)
        whole, rest = sizes
        assert 512 * (whole - rest) + rest < limit
    trace.save(recorded, tmp_path / "a.json.gz")
    assert trace.load(tmp_path / "a.json.gz") == recorded


def importances(masks: Masks, layer: int) -> np.ndarray:
    """Of all heads, [heads, query blocks, key blocks]."""
    return np.stack([masks.importance(layer, head) for head in range(masks.heads)])


def test_importances_come_back_within_the_stated_error(tmp_path: Path) -> None:
    """Every float16 from 0 to 1 there is."""
    known = np.arange(0x3C01, dtype=np.uint16).view(np.float16)
    assert known[0] == 0 and known[1] == np.float16(2.0**-24) and known[-1] == 1
    run = fake_run(gen_length=64, prompt_length=60)
    values = np.zeros(16 * 31 * 31, dtype=np.float16)
    values[: len(known)] = known
    shaped = torch.from_numpy(np.random.default_rng(0).permutation(values).reshape(1, 16, 31, 31))
    layout = BlockLayout(124, 60, 4)
    run.pattern = replace(fake_pattern(layout, 1, 16, 1, 0), importance=(shaped,))
    trace.save(trace.record(run, importance=True), tmp_path / "a.json")
    pattern = trace.load(tmp_path / "a.json").lanes["sparsed"].pattern
    assert pattern is not None
    found, true = importances(pattern, 0), shaped[0].numpy().astype(np.float64)
    assert found.dtype == np.float32 and found.shape == (16, 31, 31)
    np.testing.assert_array_equal(found == 0, true == 0)
    some = true > 0
    error = np.abs(found[some].astype(np.float64) / true[some] - 1)
    assert 0.03 < error.max() <= (2**0.05 - 1) * 1.0001 < 0.036
    assert (found[true == 1] == 1).all()
    (again,) = pattern.to_pattern().importance
    assert again.dtype == torch.float16 and again.shape == (1, 16, 31, 31)
    np.testing.assert_array_equal(again[0].numpy(), found.astype(np.float16))


def test_importances_of_several_rows_are_those_of_the_first() -> None:
    run = fake_run(batch=2, keep_importance=True)
    pattern = trace.record(run, importance=True).lanes["sparsed"].pattern
    for layer, importance in enumerate(run.pattern.importance):
        np.testing.assert_allclose(importances(pattern, layer), importance[0].numpy().astype(float), rtol=0.036)
    assert pattern.to_pattern().importance is None
    only = replace(run.pattern, importance=tuple(layer[:1] for layer in run.pattern.importance))
    np.testing.assert_allclose(pattern.kept_mass, analysis.kept_mass(only), atol=5.1e-5)


def test_importances_are_stored_where_they_are_asked_for_and_there(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = fake_run(keep_importance=True)

    def pattern(run: Any, **flags: Any) -> Masks:
        found = trace.record(run, **flags).lanes["sparsed"].pattern
        assert found is not None
        return found

    assert len(pattern(kept, importance=True).importances) == 3
    assert pattern(kept).importances == () and pattern(kept).kept_mass
    assert pattern(kept).importance(0, 0) is None
    assert pattern(kept).to_pattern().importance is None
    assert pattern(fake_run(), importance=True).importances == pattern(fake_run()).kept_mass == ()
    # What "reference" ranks by adds up to more than the attention there is.
    kept.attention = replace(kept.attention, selection="reference")
    assert pattern(kept, importance=True).kept_mass == () != pattern(kept, importance=True).importances
    monkeypatch.setattr("sparsed.trace.recording.MOST_IMPORTANCES", 3 * 2 * 4 * 4 - 1)
    assert pattern(kept, importance=True).importances == ()
    monkeypatch.setattr("sparsed.trace.recording.MOST_IMPORTANCES", 3 * 2 * 4 * 4)
    assert len(pattern(kept, importance=True).importances) == 3


def test_kept_mass_is_stored_with_four_decimals() -> None:
    run = fake_run(keep_importance=True)
    stored = trace.record(run).lanes["sparsed"].pattern.kept_mass
    assert len(stored) == 3 and {len(heads) for heads in stored} == {2}
    for heads, true in zip(stored, analysis.kept_mass(run.pattern).tolist()):
        assert heads == tuple(round(share, 4) for share in true) and 0 < min(heads) < 1


def test_a_lane_without_importances_is_weighed_by_those_of_a_lane_that_selected_in_the_same_step() -> None:
    model = fake_model()
    ours = fake_run(1, 9, model=model, keep_importance=True)
    theirs = fake_run(1, 9, model=model)
    theirs.pattern = fake_pattern(ours.pattern.layout, 1, 2, 3, 5)
    theirs.attention = replace(ours.attention, method="random", keep_importance=False)
    lanes = trace.record({"theirs": theirs, "ours": ours}).lanes
    layout = ours.pattern.layout
    for name, run in (("ours", ours), ("theirs", theirs)):
        for layer, heads in enumerate(lanes[name].pattern.kept_mass):
            for head, share in enumerate(heads):
                rows = 0.0
                for query, (start, end) in enumerate(layout.ranges):
                    weights = [
                        float(ours.pattern.importance[layer][0, head, query, key]) * (last - first)
                        for key, (first, last) in enumerate(layout.ranges)
                    ]
                    mask = run.pattern.layers[layer].mask()[0, head, query].tolist()
                    held = sum(weight for weight, kept in zip(weights, mask, strict=True) if kept)
                    rows += (end - start) * held / sum(weights)
                assert share == pytest.approx(rows / layout.length, abs=6e-5)
    assert lanes["ours"].pattern.kept_mass != lanes["theirs"].pattern.kept_mass
    for other in ({"skip": 0.5}, {"selection": "reference"}, {"block_size": 64}):
        theirs.attention = replace(ours.attention, method="random", **other)
        assert trace.record({"theirs": theirs, "ours": ours}).lanes["theirs"].pattern.kept_mass == ()


def test_probes_say_how_much_of_the_pattern_they_would_keep() -> None:
    run = fake_run(batch=2)
    fresh = {step: fake_pattern(run.pattern.layout, 2, 2, 3, step, 0.6) for step in (3, 1)}
    run.probes, run.probed = fresh | {2: run.pattern}, dict.fromkeys((1, 2, 3), run.pattern)
    probes = trace.record(run).lanes["sparsed"].probes
    assert [probe.step for probe in probes] == [1, 2, 3]
    assert probes[1].overlap == ((1, 1),) * 3
    for probe in (probes[0], probes[2]):
        for layer, head in itertools.product(range(3), range(2)):
            sets = [
                {(row, i, j) for row in range(2) for i, j in pattern.mask(layer, head, row).nonzero().tolist()}
                for pattern in (run.pattern, fresh[probe.step])
            ]
            share = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
            assert probe.overlap[layer][head] == pytest.approx(share, abs=5.1e-5) and share < 1
    run.pattern = None
    assert trace.record(run).lanes["sparsed"].probes == ()


def test_words_are_the_beginnings_of_blocks() -> None:
    blocks = [
        [6, 7, 8, 4, 9, *[8] * 26, 5],
        [6, 7, *[1] * 29, 0],
        [*[8] * 10, 0, 0, *[MASK] * 18, 5, 6],
        [MASK] * 5,
    ]
    canvas = torch.tensor([[token for block in blocks for token in block]])
    run = fake_run(gen_length=27, prompt_length=74, steps=3, made=2)
    run.prompt, run.steps[-1].tokens = canvas[:, :74], canvas[:, 74:]
    text = {4: " \n ", MASK: "<mask>", 0: "<end>", 1: "<stop>"}
    letters = run.model.tokens_text
    run.model.tokens_text = lambda tokens, special=True: "".join(
        "".join(text[t] for t in group) if known else letters(list(group))
        for known, group in itertools.groupby(tokens, key=text.__contains__)
    )
    # A half character at either end is left out, a mask or an end is said once.
    expected = ("HI J" + 26 * "I", "H<stop><end>", 10 * "I" + "<end><mask>é", "<mask>")
    assert trace.record(run).prompt.words == expected
    both = {"full": fake_run(gen_length=27, prompt_length=74, steps=3, dense=True, model=run.model), "sparse": run}
    both["full"].sampler = run.sampler
    assert trace.record(both).prompt.words == expected
    assert trace.record(both, store_text=False).prompt.words == ()
    assert trace.record(both["full"]).prompt.words == ()


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("a" * 60, "a" * 48),
        ("a" * 48, "a" * 48),
        ("a" * 47 + " b", "a" * 47),
        ("a" * 48 + " b", "a" * 48),
        ("one two three four five six seven eight nine ten eleven", "one two three four five six seven eight nine ten"),
        ("one two three four five six seven eight nine tenten", "one two three four five six seven eight nine"),
        ("  a \t\n b ", "a b"),
        ("\n", ""),
    ],
)
def test_words_have_at_most_48_characters(block: str, words: str) -> None:
    run = fake_run()
    run.model.tokens_text = lambda tokens, special=True: block
    assert trace.record(run).prompt.words == (words,)


def test_files_from_before_load_as_they_were(tmp_path: Path) -> None:
    run = fake_run(keep_importance=True)
    run.probes = run.probed = {1: run.pattern}
    recorded = trace.record(run, prompt=PROMPT, importance=True)
    trace.save(recorded, tmp_path / "new.json")
    raw = json.loads((tmp_path / "new.json").read_text())
    lane = raw["lanes"]["sparsed"]
    for value in (raw["prompt"].pop("words"), lane.pop("probes"), lane["pattern"].pop("kept_mass")):
        assert value
    assert lane["pattern"].pop("importance")
    (tmp_path / "old.json").write_text(json.dumps(raw))
    old = trace.load(tmp_path / "old.json")
    new = recorded.lanes["sparsed"]
    bare = replace(new, probes=(), pattern=replace(new.pattern, kept_mass=(), importances=()))
    assert old == replace(recorded, prompt=replace(recorded.prompt, words=()), lanes={"sparsed": bare})
    # Fields that were always there may still not be missing.
    del lane["notes"]
    assert "'notes' must be a list" in refusal(tmp_path / "bad.json", json.dumps(raw))


@pytest.mark.parametrize("made", [1, 3, 8])
def test_a_run_of_a_model_is_recorded_with_all_there_is_to_see(tiny: Any, tmp_path: Path, made: int) -> None:
    """Finished or stopped, before the pattern (it is made in the third step) or after it."""
    ids = tiny.encode("Rosa Lind lives in Orlin. She keeps bees. Where does Rosa Lind live?")
    before = ids.clone()
    run = sparsed.denoise(
        tiny,
        ids,
        sampler=SamplerConfig(steps=8, gen_length=16),
        attention=SparseDConfig(block_size=32, select=0.5, keep_importance=True),
        probe_steps=(2, 4, 7),
    )
    assert run.prompt.dtype == torch.int64 and torch.equal(run.prompt, before)
    for _ in range(made):
        next(run)
    run.close()
    ids.fill_(0)
    assert torch.equal(run.prompt, before)
    trace.save(trace.record(run, importance=True), tmp_path / "a.json.gz")
    loaded = trace.load(tmp_path / "a.json.gz")
    lane = loaded.lanes["sparsed"]
    assert lane.finished == (made == 8)
    # What a run says of itself is what its record says of it.
    assert trace.LaneInfo(loaded, lane).record() == run.info.record()
    assert len(loaded.prompt.words) == -(-run.length // 32)
    assert loaded.prompt.words[1] == tiny.tokens_text(before[0, 32:64].tolist()).strip()
    if made == 1:
        assert lane.pattern is None and lane.probes == ()
        return
    assert lane.pattern is not None and run.pattern is not None and run.pattern.importance is not None
    np.testing.assert_allclose(lane.pattern.kept_mass, analysis.kept_mass(run.pattern), atol=5.1e-5)
    assert [probe.step for probe in lane.probes] == ([2] if made == 3 else [2, 4, 7])
    for probe in lane.probes:
        np.testing.assert_allclose(probe.overlap, run.probes[probe.step].overlap(run.pattern), atol=5.1e-5)
    for layer, importance in enumerate(run.pattern.importance):
        np.testing.assert_allclose(importances(lane.pattern, layer), importance[0].double(), rtol=0.036)


def saved(tmp_path: Path) -> dict[str, Any]:
    run = fake_run(keep_importance=True)
    run.probes = {1: run.pattern, 3: fake_pattern(run.pattern.layout, 1, 2, 3, 9)}
    run.probed = {1: run.pattern, 3: run.pattern}
    trace.save(trace.record(run, prompt=PROMPT, importance=True), tmp_path / "good.json")
    return json.loads((tmp_path / "good.json").read_text())


def refusal(path: Path, content: bytes | str) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as error:
        trace.load(path)
    assert type(error.value) is ValueError
    said = str(error.value)
    assert "\n" not in said and said.startswith(path.name) and said.endswith(".") and str(path.parent) not in said
    return said


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"[]", b"{}", b"null", b"\xff\xfe", b'{"format": "other", "version": 1}', b"[" * 100_000],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, content: bytes) -> None:
    assert "is no trace" in refusal(tmp_path / "bad.json", content)


@pytest.mark.parametrize("version", [0, 2, "1", None, True, 1e400])
def test_other_versions_are_refused(tmp_path: Path, version: Any) -> None:
    said = refusal(tmp_path / "bad.json", json.dumps(saved(tmp_path) | {"version": version}))
    if version == 1e400:
        assert "is damaged: it holds a number" in said
    elif type(version) is int:
        assert f"of version {version}; this program reads 1" in said
    else:
        assert f"'version' must be a whole number, as 1, not {version!r}." in said


def test_a_record_that_is_cut_off_is_said_to_be(tmp_path: Path) -> None:
    """Wherever the cut is; a byte that is changed in the middle is another fault."""
    whole = json.dumps(saved(tmp_path), ensure_ascii=False).replace("Documents", "Dökumente").encode()
    packed = gzip.compress(whole)
    for name, content, first in (("bad.json", whole, 40), ("bad.json.gz", packed, 12)):
        for end in [*range(first, len(content) - 1, max(1, len(content) // 300)), len(content) - 1]:
            said = refusal(tmp_path / name, content[:end])
            assert "is cut off: it ends in the middle of the record." in said, content[max(0, end - 20) : end]
    middle = whole.index(b'"batch": ')
    said = refusal(tmp_path / "bad.json", whole[:middle] + b"?" + whole[middle:])
    assert f"is damaged: it is no JSON from character {len(whole[:middle].decode()) + 1:,} on" in said
    assert "cannot be decompressed" in refusal(tmp_path / "bad.json.gz", packed[:40] + b"\0" * 9 + packed[49:])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-28T20:11:52Z", 0),
        ("2026-11-28T20:11:52.5z", 0.5),
        ("2026-11-28t20:11:52,123456789+00:00", 0.123456),
        ("2026-11-28 21:11:52+01", 0),
        ("2026-11-28T14:41:52-0530", 0),
        ("20261128T201152Z", 0),
        ("2026-11-28T20:11:52.000+00:00", 0),
    ],
)
def test_the_forms_of_a_time_are_read_alike_on_every_python(tmp_path: Path, text: str, seconds: float) -> None:
    """3.10 reads of them what it writes itself, the last one; later versions read most."""
    assert check.read_time(text).timestamp() == 1795896712 + seconds
    (tmp_path / "a.json").write_text(json.dumps(saved(tmp_path) | {"created": text}))
    assert trace.load(tmp_path / "a.json").created == text


@pytest.mark.parametrize(
    "text",
    ["", "now", "2026-W48-6", "2026-13-01", "2026-11-28T25:00Z", "2026-11-28T", "2026-11-28T20:11 UTC", "٢٠٢٦-11-28"],
)
def test_what_is_no_time_is_refused(tmp_path: Path, text: str) -> None:
    said = refusal(tmp_path / "a.json", json.dumps(saved(tmp_path) | {"created": text}))
    assert f"'created' must be a time like 2026-01-31T12:00:00Z, not {text!r}." in said
    assert check.read_time("2026-11-28").isoformat() == "2026-11-28T00:00:00"
    assert check.read_time("2026-11-28T20:11").isoformat() == "2026-11-28T20:11:00"


def test_a_full_disk_leaves_the_old_record_whole(tmp_path: Path) -> None:
    trace.save(trace.record(fake_run()), tmp_path / "a.json")
    before = (tmp_path / "a.json").read_bytes()
    code = (
        "import resource, sys; from sparsed import trace\n"
        "loaded = trace.load(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: trace.save(loaded, sys.argv[1])\n"
        "except OSError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.json"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"{tmp_path}/a.json cannot be written: file too large.\n", done.stderr
    assert (tmp_path / "a.json").read_bytes() == before and os.listdir(tmp_path) == ["a.json"]


def test_unknown_keys_are_ignored(tmp_path: Path) -> None:
    raw = saved(tmp_path)
    for place in (raw, raw["model"], raw["prompt"], raw["sampler"], raw["lanes"]["sparsed"]):
        place["later"] = {"more": 1}
    (tmp_path / "later.json").write_text(json.dumps(raw))
    assert trace.load(tmp_path / "later.json") == trace.load(tmp_path / "good.json")


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key and index in a JSON value, parents first."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, child in inside for found in [(*path, key), *places(child, (*path, key))]]


def test_every_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    """Each value replaced in turn by values of other types: never anything but ValueError, never a wrong step."""
    raw = saved(tmp_path)
    good = json.dumps(raw)
    refused = 0
    for place in places(raw):
        for value in (None, -1, 10**400, "x", [], {}, [[0, 0, 0, 0]], True, 0.5):
            damaged = json.loads(good)
            parent = damaged
            for key in place[:-1]:
                parent = parent[key]
            parent[place[-1]] = value
            (tmp_path / "bad.json").write_text(json.dumps(damaged))
            try:
                loaded = trace.load(tmp_path / "bad.json")
            except ValueError as error:
                refused += 1
                assert type(error) is ValueError and "\n" not in str(error)
            else:
                for lane in loaded.lanes.values():
                    list(trace.replay(replace(loaded, lanes={"only": lane})))
    assert refused > 1000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lane: lane["steps"].pop(1), "step 1 is missing"),
        (lambda lane: lane["steps"].append(dict(lane["steps"][-1], index=4)), "5 of 4 steps"),
        (lambda lane: lane["steps"][0]["committed"].append([0, 8, 1, None]), "position 8"),
        (lambda lane: lane["steps"][0]["committed"].extend([lane["steps"][-1]["committed"][0]]), "which cannot be"),
        (lambda lane: lane["steps"][0].update(seconds=-1.0), "less than no time"),
        (lambda lane: lane["steps"][0].update(attention_seconds=1.5), "its attention 1.5 s"),
        (lambda lane: lane["steps"][0].update(attention_seconds=-1.0), "its attention -1 s"),
        (lambda lane: lane["steps"][0].update(phase="fast"), "'phase' must be one of 'dense', 'select', 'sparse'"),
        (lambda lane: lane["pattern"].update(block_size=1), "cannot be unpacked"),
        (lambda lane: lane["pattern"].update(block_size=1, heads=2**40), "too large"),
        (lambda lane: lane["pattern"].update(length=16), "another length"),
        (lambda lane: lane["pattern"]["kept"].__setitem__(0, 0), "another number of blocks than 0"),
        (lambda lane: lane["pattern"]["layers"].pop(), "of the same length"),
        (
            lambda lane: lane["pattern"]["layers"].__setitem__(
                0, base64.b64encode(zlib.compress(bytes(10**7))).decode()
            ),
            "cannot be unpacked",
        ),
        (lambda lane: lane.update(text=[]), "0 texts for 1 rows"),
        (lambda lane: lane.update(attention="sparse"), "'attention' must be one of 'dense'"),
        (lambda lane: lane["steps"][0].update(seconds=10**400), "'seconds' must be a finite number"),
        (lambda lane: lane["steps"][0].update(index=False), "'index' must be a whole number"),
        (lambda lane: lane["steps"][0].update(committed=[[0, 1, 2]]), "must have 4 entries, not 3"),
        (lambda lane: lane["attention"].update(select=3), "select must be above 0"),
        (lambda lane: lane["pattern"]["kept_mass"].pop(), "'kept_mass' must have an entry for each head of each layer"),
        (lambda lane: lane["pattern"]["kept_mass"][1].append(0.5), "'kept_mass' must have an entry for each head"),
        (lambda lane: lane["pattern"]["kept_mass"][1].__setitem__(0, 1.01), "'kept_mass' must lie between 0 and 1"),
        (lambda lane: lane["pattern"]["kept_mass"][1].__setitem__(0, -0.01), "'kept_mass' must lie between 0 and 1"),
        (lambda lane: lane["pattern"]["kept_mass"][1].__setitem__(0, float("nan")), "is damaged: it holds a number"),
        (lambda lane: lane["pattern"]["importance"].pop(), "'layers' and 'importance' of the pattern must be of the"),
        (lambda lane: lane["pattern"]["importance"].__setitem__(1, "é"), "importances of layer 1 cannot be unpacked"),
        (lambda lane: lane["pattern"]["importance"].__setitem__(1, "AAAA"), "importances of layer 1 cannot be"),
        (lambda lane: lane["pattern"]["layers"].__setitem__(1, "é"), "layer 1 of the pattern cannot be unpacked"),
        (
            lambda lane: lane["pattern"]["importance"].__setitem__(
                2, base64.b64encode(zlib.compress(bytes(10**7))).decode()
            ),
            "importances of layer 2 cannot be unpacked",
        ),
        (
            lambda lane: lane["pattern"]["importance"].__setitem__(
                0, base64.b64encode(zlib.compress(bytes(2 * 4 * 4 - 1))).decode()
            ),
            "importances of layer 0 cannot be unpacked",
        ),
        (lambda lane: lane["probes"].reverse(), "the steps of 'probes' must ascend, from 0 to at most 3"),
        (lambda lane: lane["probes"].append(lane["probes"][1]), "must ascend"),
        (lambda lane: lane["probes"][1].update(step=4), "must ascend"),
        (lambda lane: lane["probes"][0].update(step=-1), "must ascend"),
        (lambda lane: lane["probes"][0].pop("step"), "'step' must be a whole number"),
        (lambda lane: lane["probes"][0]["overlap"].pop(), "'overlap' must have an entry for each head of each layer"),
        (lambda lane: lane["probes"][0]["overlap"][0].__setitem__(1, 2), "'overlap' must lie between 0 and 1"),
        (lambda lane: lane.update(pattern=None), "'probes' need a pattern"),
        (lambda lane: lane["attention"].update(block_size=None), "'block_size' must be a whole number"),
        (lambda lane: lane.update(attention="dense"), "number of 'words', 1,"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: Any, said: str) -> None:
    raw = saved(tmp_path)
    change(raw["lanes"]["sparsed"])
    assert said in refusal(tmp_path / "bad.json", json.dumps(raw))


def test_words_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    raw = saved(tmp_path)
    raw["prompt"]["words"][0] = "w" * 49
    assert "more than 48 characters" in refusal(tmp_path / "bad.json", json.dumps(raw))
    raw["prompt"]["words"][0] = 7
    assert "'words' must be text" in refusal(tmp_path / "bad.json", json.dumps(raw))
    raw["prompt"]["words"] = ["w"] * 5
    assert "number of 'words', 5, is not that of the attention blocks" in refusal(
        tmp_path / "bad.json", json.dumps(raw)
    )


def test_patterns_too_large_for_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = json.dumps(saved(tmp_path))
    cells = 3 * 2 * 4 * 4
    for limit, said in (
        ("MOST_IMPORTANCES", f"too many importances: at most {cells - 1}"),
        ("_MOST_PAIRS_OF_ALL", f"at most {cells - 1} block pairs in all layers"),
    ):
        with monkeypatch.context() as lower:
            lower.setattr(check, limit, cells - 1)
            assert said in refusal(tmp_path / "bad.json", good)
            lower.setattr(check, limit, cells)
            trace.load(tmp_path / "good.json")


def test_the_patterns_of_all_lanes_together_must_fit_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = saved(tmp_path)
    lanes = {"a": raw["lanes"]["sparsed"], "b": raw["lanes"]["sparsed"]}
    (tmp_path / "two.json").write_text(json.dumps(raw | {"lanes": lanes}))
    loaded = trace.load(tmp_path / "two.json")
    size = sum(lane.pattern.nbytes for lane in loaded.lanes.values() if lane.pattern)
    assert size == 2 * 3 * (2 * 4 * 4 // 8 + 2 * 4 * 4)
    monkeypatch.setattr(check, "_MOST_BYTES", size)
    assert trace.load(tmp_path / "two.json") == loaded
    monkeypatch.setattr(check, "_MOST_BYTES", size - 1)
    # Before anything is unpacked.
    monkeypatch.setattr("sparsed.trace.file.from_text", None)
    said = refusal(tmp_path / "bad.json", (tmp_path / "two.json").read_bytes())
    assert f"too large: at most {size - 1} bytes in memory" in said


def test_the_text_of_a_pattern_is_what_the_format_says(tmp_path: Path) -> None:
    """docs/trace-format.md, read without our own code."""
    run = fake_run(keep_importance=True)
    raw = json.loads(json.dumps(saved(tmp_path)))["lanes"]["sparsed"]["pattern"]
    layers = run.pattern.layers
    bits = [np.packbits(layer.mask().numpy()).tobytes() for layer in layers]
    assert raw["layers"] == [base64.b64encode(zlib.compress(one)).decode() for one in bits]
    assert raw["kept"] == [layer.kept for layer in layers] and (raw["batch"], raw["heads"]) == (1, 2)
    for text, weights in zip(raw["importance"], run.pattern.importance, strict=True):
        codes = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8).reshape(2, 4, 4)
        true = weights[0].numpy().astype(np.float64)
        assert np.array_equal(codes == 0, true == 0)
        assert np.abs(255 + 10 * np.log2(true[true > 0]) - codes[true > 0]).max() <= 0.5 + 1e-6
    keys = ["length", "prompt_length", "block_size", "select", "batch", "heads", "kept", "layers", "kept_mass"]
    assert list(raw) == [*keys, "importance", "full_blocks"]


def test_a_canvas_too_large_for_memory_is_refused(tmp_path: Path) -> None:
    raw = saved(tmp_path) | {"gen_length": 2**40}
    assert "at most 16,777,216" in refusal(tmp_path / "bad.json", json.dumps(raw))


def test_nothing_tells_where_it_was_made(tmp_path: Path) -> None:
    import os
    import platform

    text = json.dumps(saved(tmp_path))
    assert platform.node() not in text
    for secret in (str(Path.home()), str(ROOT), str(tmp_path), os.environ.get("USER") or "no user"):
        assert len(secret) < 3 or secret not in text


def test_loading_and_replaying_needs_no_torch(tmp_path: Path) -> None:
    saved(tmp_path)
    code = (
        "import sys; from sparsed import trace; loaded = trace.load(sys.argv[1]); "
        "from sparsed.attention import analysis; pattern = loaded.lanes['sparsed'].pattern; "
        "assert len(list(trace.replay(loaded))) == 4; pattern.mask(0); pattern.importance(0, 1); "
        "analysis.mask_overlap(pattern.mask(0)[0]); analysis.thumbnails(pattern.mask(0)[0]); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "good.json")], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- devices


def test_lanes_that_ran_at_the_same_time_say_so(tmp_path: Path) -> None:
    runs = {"a": fake_run(dense=True, model=fake_model()), "b": fake_run(model=fake_model())}
    with pytest.raises(ValueError, match="'b' has another model"):
        trace.record(runs)
    with pytest.raises(ValueError, match="'b' has another model"):
        trace.record(runs, devices={"a": 0, "b": 0})
    trace.save(trace.record(runs, devices={"a": 0, "b": 1}), tmp_path / "race.json")
    loaded = trace.load(tmp_path / "race.json")
    assert {name: lane.device for name, lane in loaded.lanes.items()} == {"a": 0, "b": 1}
    for name, run in runs.items():
        assert_replays(run, loaded, name)
    other = fake_model()
    other.name = "another"
    with pytest.raises(ValueError, match="'b' has another model"):
        trace.record({"a": runs["a"], "b": fake_run(model=other)}, devices={"a": 0, "b": 1})


def test_a_file_from_before_says_that_lanes_took_turns(tmp_path: Path) -> None:
    model = fake_model()
    made = trace.record({"a": fake_run(dense=True, model=model), "b": fake_run(model=model)})
    path = tmp_path / "race.json"
    trace.save(made, path)
    raw = json.loads(path.read_text())
    assert [lane.pop("device") for lane in raw["lanes"].values()] == [0, 0]
    path.write_text(json.dumps(raw))
    assert trace.load(path) == made
    for device in (2, -1, True, "0"):
        raw["lanes"]["b"]["device"] = device
        path.write_text(json.dumps(raw))
        with pytest.raises(ValueError, match="race.json is damaged: 'device' must"):
            trace.load(path)


def test_how_many_processes_held_the_model_is_recorded(tmp_path: Path) -> None:
    model = fake_model()
    model.processes = 4
    path = tmp_path / "race.json"
    trace.save(trace.record({"a": fake_run(model=model)}), path)
    assert trace.load(path).model.processes == 4
    raw = json.loads(path.read_text())
    for wrong in (0, -1, True, "4"):
        raw["model"]["processes"] = wrong
        path.write_text(json.dumps(raw))
        with pytest.raises(ValueError, match="race.json is damaged: 'processes' must"):
            trace.load(path)
    del raw["model"]["processes"]  # a file from before
    path.write_text(json.dumps(raw))
    assert trace.load(path).model.processes == 1


def full_run() -> Any:
    """A run whose last query blocks see every key: 15 positions in blocks of 4, the generation from position 7 on."""
    run = fake_run(keep_importance=True, prompt_length=7)
    full = tuple(layer.with_full(3) for layer in run.pattern.layers)
    run.pattern = replace(run.pattern, layers=full)
    run.attention = replace(run.attention, generation_rows="full")
    return run


def test_a_pattern_with_full_rows_comes_back(tmp_path: Path) -> None:
    run = full_run()
    recorded = trace.record(run, prompt=PROMPT, importance=True)
    trace.save(recorded, tmp_path / "run.json.gz")
    loaded = trace.load(tmp_path / "run.json.gz")
    assert loaded == recorded
    assert_replays(run, loaded, "sparsed")
    pattern = loaded.lanes["sparsed"].pattern
    assert pattern.full_blocks == 3 == pattern.to_pattern().full_blocks
    assert pattern.mask(0)[:, :, 1:].all() and not pattern.mask(0)[:, :, :1].all()
    np.testing.assert_allclose(pattern.kept_mass, analysis.kept_mass(run.pattern), atol=5.1e-5)


def test_damaged_full_blocks_are_refused(tmp_path: Path) -> None:
    trace.save(trace.record(full_run(), prompt=PROMPT, importance=True), tmp_path / "run.json")
    good = json.loads((tmp_path / "run.json").read_text())

    def said(change: Any, raw: dict[str, Any] = good) -> str:
        damaged = json.loads(json.dumps(raw))
        change(damaged["lanes"]["sparsed"])
        return refusal(tmp_path / "bad.json", json.dumps(damaged))

    for number in (0, 1, 2, 4, 5, -1, 2**40):
        found = said(lambda lane, number=number: lane["pattern"].update(full_blocks=number))
        assert f"'full_blocks' must be 3 with generation_rows 'full', not {number}." in found
    for value in ("3", 3.0, True, None, [3]):
        assert "'full_blocks' must be a whole number" in said(
            lambda lane, value=value: lane["pattern"].update(full_blocks=value)
        )
    assert "must be 3 with generation_rows 'full', not 0" in said(lambda lane: lane["pattern"].pop("full_blocks"))
    words = "'full_blocks' must be 0 with generation_rows 'pattern', not 3."
    assert words in said(lambda lane: lane["attention"].update(generation_rows="pattern"))
    assert words in said(lambda lane: lane["attention"].pop("generation_rows"))

    # A pair that is missing: [row 0, head 1, query block 3, key block 2] of the second layer.
    def lacks_one(lane: dict[str, Any]) -> None:
        bits = np.frombuffer(zlib.decompress(base64.b64decode(lane["pattern"]["layers"][1])), dtype=np.uint8).copy()
        bit = (1 * 4 + 3) * 4 + 2
        assert bits[bit // 8] & 128 >> bit % 8
        bits[bit // 8] &= ~np.uint8(128 >> bit % 8)
        lane["pattern"]["layers"][1] = base64.b64encode(zlib.compress(bits.tobytes())).decode()

    assert "layer 1 of the pattern lacks blocks in the query blocks that see every one" in said(lacks_one)
    # `kept` counts the slots of lists, and full query blocks have none.
    most = int(trace.load(tmp_path / "run.json").lanes["sparsed"].pattern.mask(0)[:, :, :1].sum(-1).max())
    assert most < 4
    changed = json.loads(json.dumps(good))
    changed["lanes"]["sparsed"]["pattern"]["kept"][0] = most
    (tmp_path / "fits.json").write_text(json.dumps(changed))
    assert trace.load(tmp_path / "fits.json").lanes["sparsed"].pattern.kept[0] == most
    words = f"layer 0 of the pattern keeps another number of blocks than {most - 1}"
    assert words in said(lambda lane: lane["pattern"]["kept"].__setitem__(0, most - 1))
