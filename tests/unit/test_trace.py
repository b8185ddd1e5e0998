"""The trace file: what is replayed is what ran, and what is no trace is refused in one sentence."""

from __future__ import annotations

import base64
import gzip
import json
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

from sparsed import trace
from sparsed.attention.pattern import BlockLayout, LayerPattern, Pattern
from sparsed.config import SamplerConfig, SparseDConfig
from sparsed.prompts import Prompt

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
        device=torch.device("cpu"),
        mask_id=MASK,
        eos_id=END,
        end_ids=(END, 1),
        tokenizer=tokenizer,
        token_text=lambda token: tokenizer.decode([token]),
        tokens_text=lambda tokens: tokenizer.decode(list(tokens)),
        decode=lambda row: tokenizer.decode([i for i in row.tolist() if i != MASK]),
    )


def fake_pattern(layout: BlockLayout, batch: int, heads: int, layers: int, seed: int, density: float = 0.4) -> Pattern:
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
    return Pattern(layout, tuple(made), 0.4)


def fake_run(
    batch: int = 1,
    gen_length: int = 8,
    steps: int = 4,
    made: int | None = None,
    seed: int = 0,
    prompt_length: int = 7,
    dense: bool = False,
    model: Any = None,
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
        events.append(
            SimpleNamespace(
                index=index,
                total=steps,
                phase="dense" if dense or index == 0 else "select" if index == 1 else "sparse",
                tokens=torch.where(torch.from_numpy(when <= index), final, MASK),
                committed=committed,
                confidence=torch.where(committed, sure, torch.nan),
                seconds=float(rng.random()),
            )
        )
    layout = BlockLayout(prompt_length + gen_length, prompt_length, 4)
    return SimpleNamespace(
        model=model or fake_model(),
        prompt_length=prompt_length,
        total=steps,
        sampler=SamplerConfig(steps, gen_length, gen_length, "low_confidence", 0.0, seed, 1.0, 0, 0.0, 1e-3, 0.0),
        attention="dense" if dense else SparseDConfig(0.2, 0.4, 32, "paper", False, "sparsed"),
        pattern=None if dense or done < 2 else fake_pattern(layout, batch, 2, 3, seed),
        switch_step=None if dense or steps < 3 else 2,
        backend="sdpa" if dense else "gather",
        finished=done == steps,
        notes=["Short."],
        steps=events,
    )


def assert_replays(run: Any, loaded: trace.Trace, lane: str) -> None:
    replayed = list(trace.replay(loaded, lane))
    assert len(replayed) == len(run.steps)
    for mine, step in zip(replayed, run.steps):
        assert (mine.index, mine.total, mine.phase, mine.seconds) == (step.index, step.total, step.phase, step.seconds)
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
    suffix=st.sampled_from([".json", ".json.gz"]),
)
def test_saved_and_loaded_it_replays_the_very_steps(
    tmp_path_factory, batch, gen_length, steps, stop, prompt_length, seed, dense, suffix
) -> None:
    made = max(1, steps - stop)
    run = fake_run(batch, gen_length, steps, made, seed, prompt_length, dense)
    recorded = trace.record(run, prompt=PROMPT)
    path = tmp_path_factory.mktemp("trace") / f"run{suffix}"
    trace.save(recorded, path)
    loaded = trace.load(path)
    assert loaded == recorded
    (name,) = loaded.lanes
    assert name == ("dense" if dense else "sparsed")
    assert_replays(run, loaded, name)
    lane = loaded.lanes[name]
    assert lane.finished == (made == steps) and lane.seconds == sum(step.seconds for step in run.steps)
    assert lane.text == tuple(run.model.decode(row) for row in run.steps[-1].tokens)


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


def test_the_prompt_text_can_be_left_out() -> None:
    assert trace.record(fake_run(), prompt=PROMPT).prompt.text == PROMPT.text
    kept_out = trace.record(fake_run(), prompt=PROMPT, store_text=False).prompt
    assert kept_out.text is None and kept_out.gold == "Ann." and kept_out.length == "short_context"
    assert trace.record(fake_run(), prompt="Hello").prompt == trace.TracePrompt(7, "Hello")
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
    recorded = trace.record(run)
    for name, limit in (("a.json", 41e6), ("a.json.gz", 31e6)):
        sizes = []
        for each in (recorded, replace(recorded, lanes={"sparsed": replace(recorded.lanes["sparsed"], pattern=None)})):
            trace.save(each, tmp_path / name)
            sizes.append((tmp_path / name).stat().st_size)
        whole, rest = sizes
        assert 512 * (whole - rest) + rest < limit
    trace.save(recorded, tmp_path / "a.json.gz")
    assert trace.load(tmp_path / "a.json.gz") == recorded


def saved(tmp_path: Path) -> dict[str, Any]:
    trace.save(trace.record(fake_run(), prompt=PROMPT), tmp_path / "good.json")
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
    raw = saved(tmp_path) | {"version": version}
    if version == 1e400:
        assert "is no trace" in refusal(tmp_path / "bad.json", json.dumps(raw))
    else:
        assert "this program reads 1" in refusal(tmp_path / "bad.json", json.dumps(raw))


def test_a_gzip_cut_short_is_refused(tmp_path: Path) -> None:
    packed = gzip.compress(json.dumps(saved(tmp_path)).encode())
    for end in (3, len(packed) // 2, len(packed) - 1):
        assert "cannot be decompressed" in refusal(tmp_path / "bad.json.gz", packed[:end])


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
    ],
)
def test_damage_is_named(tmp_path: Path, change: Any, said: str) -> None:
    raw = saved(tmp_path)
    change(raw["lanes"]["sparsed"])
    assert said in refusal(tmp_path / "bad.json", json.dumps(raw))


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
        "assert len(list(trace.replay(loaded))) == 4; loaded.lanes['sparsed'].pattern.mask(0); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "good.json")], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
