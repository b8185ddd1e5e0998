"""Methods with a sampler of their own, asked of the bundled model; and what their answers cost, as torch counts it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import sparsed
from sparsed import AttentionConfig, CacheConfig, SamplerConfig, SparseDConfig
from sparsed.evaluation.answers import evaluate
from sparsed.evaluation.command import main
from sparsed.evaluation.cost import executed_cost, work_of
from sparsed.evaluation.executed import executed
from sparsed.evaluation.plan import FIRST_SEED, Cell, Plan
from sparsed.evaluation.reading import read_records, read_sizes
from sparsed.evaluation.scores import summarise
from sparsed.models.model import Model
from sparsed.models.sizes import Sizes
from sparsed.questions.build import build_prompt
from sparsed.results_folder import key_there

COMMON = SamplerConfig(steps=4, gen_length=48, block_length=48)
PLAN = Plan(sampler=COMMON)
METHODS = [
    "dense", "sparsed", "dense:steps=2", "sparsed:steps=6,block_length=24", "dense:threshold=0.9", "dense+delayed",
    "sparsed+refresh:cache_refresh=2,cache_keys=pattern,skip=0", "sparsed+dual:block_length=24,threshold=0.5",
]  # fmt: skip


@pytest.fixture(scope="module")
def mini() -> Model:
    return sparsed.load("mini", device="cpu", dtype="float32")


def test_each_answer_has_the_sampler_of_its_method(mini: Model, tmp_path: Path) -> None:
    evaluate(mini, [Cell("lookup", "200", 2)], METHODS, tmp_path, plan=PLAN, batch_tokens=1000)
    records = {(r.method, r.index): r for r in read_records(tmp_path)}
    assert len(records) == 2 * len(METHODS)
    own = {
        "dense": COMMON, "sparsed": COMMON, "dense:steps=2": replace(COMMON, steps=2),
        "sparsed:steps=6,block_length=24": replace(COMMON, steps=6, block_length=24),
        "dense:threshold=0.9": SamplerConfig(gen_length=48, block_length=48, threshold=0.9), METHODS[5]: COMMON,
        METHODS[6]: COMMON,
        METHODS[7]: SamplerConfig(gen_length=48, block_length=24, threshold=0.5),
    }  # fmt: skip
    caches = {
        METHODS[5]: CacheConfig("delayed"), METHODS[6]: CacheConfig("refresh", 2, "pattern"),
        METHODS[7]: CacheConfig("dual"),
    }  # fmt: skip
    for (method, index), record in records.items():
        prompt = build_prompt(mini, "200", ("fact", "inverse")[index], FIRST_SEED + index, 0.0)
        attention = "dense" if method.startswith("dense") else SparseDConfig(skip=0 if "skip=0" in method else None)
        cache = caches.get(method)
        result = sparsed.generate(mini, prompt.text, sampler=own[method], attention=attention, cache=cache)
        info = result.info.record()
        assert record.run is not None and record.run["sampler"] == info["sampler"]
        assert record.run["cache"] == info["cache"]
        assert (record.run["phases"], record.run["total"]) == (info["phases"], info["total"])
        answer = result.tokens[0, -48:].tolist()
        assert record.tokens == answer[: len(record.tokens)]
        # Only those that may end early run one by one.
        assert record.run["batch"] == (1 if "threshold" in method else 2)
        (made,) = executed(mini, result)
        assert (record.density, record.head_rows, record.rows) == (made.density, made.head_rows, made.rows)
        assert made.rows == info["rows"], "of one sequence"
        # All are compared with full attention as the folder runs it.
        dense = records["dense", index]
        whole = record.tokens + record.tokens[-1:] * (len(dense.tokens) - len(record.tokens))
        longer = dense.tokens + dense.tokens[-1:] * (len(record.tokens) - len(dense.tokens))
        agreeing = sum(one == two for one, two in zip(whole, longer, strict=True)) / len(whole)
        assert record.agreement == (None if method == "dense" else agreeing)
    # The folder's key holds what is common.
    key = key_there(tmp_path)
    assert key is not None and (key["sampler"]["steps"], key["sampler"]["threshold"]) == (4, None)
    assert read_sizes(tmp_path) == Sizes.of(mini)
    rows = {row["method"]: row for row in summarise(list(records.values()), sizes=Sizes.of(mini))["lengths"]}
    assert all(row["speed"] is not None and row["difference"] is not None for m, row in rows.items() if m != "dense")
    assert rows["dense:steps=2"]["speed"] > 1 > rows["sparsed:steps=6,block_length=24"]["speed"]
    assert rows["dense:steps=2"]["speed"] == pytest.approx(2, rel=0.05)  # each step's head has more rows


def test_a_sampler_that_does_not_fit_is_refused_before_anything_is_asked(mini: Model, tmp_path: Path) -> None:
    for method, said in (("dense:block_length=36", "no whole number"), ("sparsed:steps=1,block_length=24", "at least")):
        with pytest.raises(ValueError, match=f"Method '{method}': .*{said}"):
            evaluate(mini, [Cell("lookup", "200", 1)], ["dense", method], tmp_path, plan=PLAN)
    assert not list(tmp_path.iterdir())


def test_the_command_asks_a_part_of_the_ablations_and_recommends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--lengths 200 --types lookup arithmetic --questions 1 --steps 3 --device cpu --dtype float32".split()
    out = ["--out", str(tmp_path / "answers"), "--json", str(tmp_path / "scores.json"), "--recommend"]
    main([*options, *out, "--ablations", "block_length", "isolated"])
    said = capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text("utf-8"))
    asked = [
        "dense", "dense:block_length=32", "dense:block_length=96", "sparsed", "sparsed:block_length=32",
        "sparsed:block_length=96", "sparsed:isolated=no",
    ]  # fmt: skip
    assert [row["method"] for row in scores["lengths"]] == asked
    assert said.count("Recommended at 200: ") == 1 and "| 200 | dense, block_length 32 |" in said
    before = (tmp_path / "answers" / "records-0-of-1.jsonl").read_bytes()
    main([*out, "--report"])
    assert capsys.readouterr().out == said
    assert (tmp_path / "answers" / "records-0-of-1.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("sampler", "attention", "cache"),
    [
        (SamplerConfig(steps=4), AttentionConfig("dense"), None),
        (SamplerConfig(steps=4), SparseDConfig(), None),
        (SamplerConfig(steps=4, block_length=16, cfg_scale=0.5), SparseDConfig(select=0.3, skip=0), None),
        (SamplerConfig(threshold=0.2), SparseDConfig(skip=0), None),
        (SamplerConfig(steps=4), SparseDConfig(select=0.3, reuse=False), None),
        (SamplerConfig(steps=4), SparseDConfig(select=0.3, generation_rows="full"), None),
        (SamplerConfig(steps=6), SparseDConfig(select=0.3, skip=0, refresh=2), None),
        (SamplerConfig(steps=4), AttentionConfig("shared", select=0.3), None),
        (SamplerConfig(steps=4), AttentionConfig("streaming_llm", select=0.3), None),
        (SamplerConfig(steps=6, block_length=16), AttentionConfig("dense"), CacheConfig("prefix")),
        (SamplerConfig(threshold=0.2, gen_length=16, block_length=8), AttentionConfig("dense"), CacheConfig("dual")),
        # Sequences that go one by one, and are done before their steps are.
        (SamplerConfig(steps=11, gen_length=8, block_length=8), AttentionConfig("dense"), CacheConfig("delayed", 4)),
        (SamplerConfig(steps=12, block_length=8), SparseDConfig(select=0.3), CacheConfig("dual")),
        (SamplerConfig(steps=8), SparseDConfig(select=0.3, refresh=4, skip=0), CacheConfig("refresh", 3)),
        (SamplerConfig(steps=8, cfg_scale=0.5), SparseDConfig(select=0.3), CacheConfig("refresh", 4, "pattern")),
        (SamplerConfig(steps=8), SparseDConfig(select=0.3), CacheConfig("delayed", 3, "pattern")),
        (
            SamplerConfig(steps=8, block_length=16),
            AttentionConfig("shared", select=0.3, generation_rows="full", skip=0.5),
            CacheConfig("prefix", keys="pattern"),
        ),
    ],
)
def test_the_cost_is_what_torch_counts(
    tiny: Model, sampler: SamplerConfig, attention: AttentionConfig, cache: CacheConfig | None
) -> None:
    """Whole blocks of 32, so that no position is computed that is not there."""
    ids = torch.randint(5, 250, (2, 96), generator=torch.Generator().manual_seed(0))
    model = replace(tiny, defaults=SamplerConfig(gen_length=32, block_length=32).resolve(tiny.defaults))
    # SDPA's one kernel is not counted, the same as matrix products is.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = sparsed.generate(model, ids, sampler=sampler, attention=attention, cache=cache)
    run = result.info.record()
    costs = []
    for made in executed(model, result):
        work = work_of(run, made.density, made.head_rows, made.rows)
        assert work is not None
        costs.append(executed_cost(Sizes.of(model), work))
    assert sum(costs) == pytest.approx(counter.get_total_flops(), rel=1e-9)
