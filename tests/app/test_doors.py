"""One request by every door: Python, the commands, the harness, the page and its API give the same settings, answer and
notes.
"""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from conftest import load_module

import sparsed
from app.engine.local import SparsedEngine
from app.race.request import parse
from app.server.desk import Desk
from app.server.limits import Limits
from app.server.session import perform
from app.server.visits import Visit
from sparsed.__main__ import main
from sparsed.config import AttentionConfig, SamplerConfig, SparseDConfig
from sparsed.evaluation.plan import FIRST_SEED
from sparsed.questions.build import build_prompt

ROOT = Path(__file__).resolve().parents[2]
CPU = ["--device", "cpu", "--dtype", "float32"]
LENGTH, KIND, TYPE = "short_context", "fact", "lookup"

# What is asked for, by checkpoint. Each draws nothing at random: the harness takes temperature 0 where nobody asks.
REQUESTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("mini", {}, {}),
    ("mini", {"gen_length": 40, "steps": 10}, {"skip": 0.5, "select": 0.3}),
    ("mini", {"threshold": 0.9}, {}),
    ("mini", {"gen_length": 64, "block_length": 16, "early_stop": True}, {"skip": 0.1}),
    ("mini", {"steps": 8}, {"skip": 1.0}),
    ("llada", {"gen_length": 100}, {}),
    ("llada", {"gen_length": 500, "steps": 32}, {"skip": 0.0}),
    ("llada", {"gen_length": 20, "threshold": 0.3}, {}),
    ("llada", {"gen_length": 32, "steps": 8, "cfg_scale": 0.5, "seed": 4}, {"selection": "reference"}),
    ("llada", {"gen_length": 33, "block_length": 16, "confidence_eos_eot_inf": True, "logits_eos_inf": True}, {}),
    ("mini", {"gen_length": 64, "block_length": 32, "steps": 16}, {"refresh": 4, "generation_rows": "full"}),
    ("dream", {"gen_length": 40, "threshold": 0.5}, {"generation_rows": "full"}),
    ("dream", {"gen_length": 48, "temperature": 0.0, "top_p": 0.9}, {"skip": 0.3, "select": 0.4}),
    ("dream", {"gen_length": 32, "temperature": 0.0, "algorithm": "low_confidence"}, {}),
]


@dataclass(frozen=True)
class Seen:
    """What a door gave. text: None where it keeps none."""

    info: dict[str, Any]
    text: str | None

    @classmethod
    def of(cls, info: dict[str, Any], text: str | None) -> Seen:
        """Whether sparse steps are faster is said by the clock, which no two runs share. The page keeps importances, to
        draw them; no answer depends on that.
        """
        info = json.loads(json.dumps(info))
        info["attention"].pop("keep_importance", None)
        info["notes"] = [note for note in info["notes"] if "no faster" not in note]
        return cls(info, text)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The name that every door takes: of the bundled model, or a folder of small random weights."""
    writers = load_module(ROOT / "tests" / "engine" / "checkpoints.py").WRITERS
    made: dict[str, str] = {"mini": "mini"}

    def name(family: str) -> str:
        if family not in made:
            folder = tmp_path_factory.mktemp("doors") / f"tiny-{family}"
            # The mask token is never the likeliest: every step commits what it writes.
            writers[family](folder, mask_predicted=False)
            made[family] = str(folder)
        return made[family]

    return name


def by_python(name: str, sampler: dict[str, Any], attention: dict[str, Any]) -> Seen:
    model = sparsed.load(name, device="cpu", dtype="float32")
    prompt = build_prompt(model, LENGTH, KIND, FIRST_SEED)
    result = sparsed.generate(
        model, prompt.text, sampler=SamplerConfig(**sampler), attention=SparseDConfig(**attention)
    )
    return Seen.of(result.info.record(), result.text[0])


def options(settings: dict[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in settings.items():
        said = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
        words += [f"--{name.replace('_', '-')}", said]
    return words


def by_command(name: str, sampler: dict[str, Any], attention: dict[str, Any], capsys: Any) -> Seen:
    asked = ["--model", name, "--prompt", LENGTH, "--kind", KIND, "--prompt-seed", str(FIRST_SEED)]
    capsys.readouterr()
    assert main(["generate", *asked, *CPU, *options(sampler | attention), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    return Seen.of({row: told[row] for row in by_info()}, told["text"])


def by_info() -> list[str]:
    from sparsed.denoising.info import RunInfo

    return [*(row.name for row in fields(RunInfo)), "forwards"]


def by_eval(name: str, sampler: dict[str, Any], attention: dict[str, Any], folder: Path) -> Seen:
    asked = ["--model", name, "--types", TYPE, "--lengths", LENGTH, "--questions", "1", "--depths"]
    methods = ["--methods", "sparsed", "--out", str(folder / "eval")]
    assert main(["eval", *asked, *methods, *CPU, *options(sampler | attention)]) == 0
    (file,) = (folder / "eval").glob("records-*.jsonl")
    record = json.loads(file.read_text(encoding="utf-8"))
    assert record["kind"] == KIND
    return Seen.of(record["run"], record["text"] if record["text"] is not None else record["gold"])


def by_bench(name: str, sampler: dict[str, Any], attention: dict[str, Any], folder: Path) -> Seen:
    asked = ["--model", name, "--lengths", LENGTH, "--kind", KIND, "--prompt-seed", str(FIRST_SEED)]
    # The command has settings of its own where nobody asks: these are the models'.
    usual = sparsed.load(name, device="cpu", dtype="float32").defaults
    steps = SamplerConfig(**sampler).resolve(usual).steps
    kept = AttentionConfig(**attention).resolve(256)
    given = {"steps": steps, "skip": kept.skip, "select": kept.select, "block_size": kept.block_size}
    file = folder / "bench.json"
    assert main(["bench", *asked, *CPU, *options({**given, **sampler, **attention}), "--json", str(file)]) == 0
    (measured,) = json.loads(file.read_text(encoding="utf-8"))["results"]
    return Seen.of(measured["sparsed"][0], None)


def by_harness(name: str, sampler: dict[str, Any], attention: dict[str, Any]) -> Seen:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed (the optional extra 'lm_eval')")
    from lm_eval.api.instance import Instance

    # It brings the harness.
    from sparsed.harness.model import SparsedLM

    given = {"early_stop": False, **sampler, **attention}
    lm = SparsedLM(pretrained=name, device="cpu", dtype="float32", **given)
    prompt = build_prompt(lm.model, LENGTH, KIND, FIRST_SEED)
    context = lm.apply_chat_template([{"role": "user", "content": prompt.text}])
    wishes = {"until": [], "do_sample": False}
    if "gen_length" not in sampler:
        wishes["max_gen_toks"] = lm.model.defaults.gen_length
    (text,) = lm.generate_until([Instance("generate_until", {}, (context, wishes), 0)])
    ((_, count),) = lm.counts.items()
    told = count.record()
    assert (told.pop("requests"), told.pop("runs")) == (1, 1)
    # One run's counts, under the names that a run has for them.
    phases = told.pop("steps")
    info = {
        **told,
        "phases": phases,
        "notes": [note for note, times in told["notes"].items() for _ in range(times)],
        # The step after the first that selects.
        "switch_step": phases["dense"] + 1 if phases["sparse"] else None,
        "finished": True,
    }
    return Seen.of({row: info[row] for row in by_info()}, text)


def by_page(name: str, sampler: dict[str, Any], attention: dict[str, Any]) -> Seen:
    """As the page, a link and /compare ask: a request of the table, raced, its last snapshot."""
    engine = SparsedEngine(None if name == "mini" else name)
    engine_load = sparsed.load
    desk = Desk(engine, name, Limits())

    def in_float32(*given: Any, **more: Any) -> Any:
        return engine_load(*given, **{**more, "device": "cpu", "dtype": "float32"})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparsed, "load", in_float32)
        desk.models.load(name)
        asked = parse(
            model=name, kind=KIND, length=LENGTH, question=FIRST_SEED, text="", backend="auto",
            **{"seed": 0, **sampler, **attention}, defaults=desk.models.defaults(name), models=engine.models(),
            kinds=engine.kinds(), lengths=engine.lengths(),
        )  # fmt: skip

        async def last() -> Any:
            return [shown async for shown in perform(desk, Visit("door"), asked)][-1]

        # Not in this thread, where a browser's loop may run.
        with ThreadPoolExecutor(1) as thread:
            shown = thread.submit(asyncio.run, last()).result()
    assert shown.stage["state"] == "done", shown.stage["message"]
    (lane,) = (lane for lane in shown.stage["lanes"] if lane["key"] == "sparse")
    return Seen.of(lane["info"], lane["text"])


@pytest.mark.parametrize(("family", "sampler", "attention"), REQUESTS)
def test_every_door_gives_the_same(checkpoint, tmp_path, capsys, family, sampler, attention) -> None:
    name = checkpoint(family)
    expected = by_python(name, sampler, attention)
    seen = {
        "generate": by_command(name, sampler, attention, capsys),
        "eval": by_eval(name, sampler, attention, tmp_path),
        "bench": by_bench(name, sampler, attention, tmp_path),
        "page": by_page(name, sampler, attention),
        "lm_eval": by_harness(name, sampler, attention),
    }
    for door, found in seen.items():
        assert found.info == expected.info, door
        assert found.text in (None, expected.text), door
    # What is not as asked for is the first thing that each of them says.
    changed = sampler.get("gen_length") not in (None, expected.info["sampler"]["gen_length"])
    assert changed == any("tokens are generated, not" in note for note in expected.info["notes"][:1])


def test_the_requests_cover_what_a_run_can_do() -> None:
    """A rounded length, a run that never became sparse in either way, an early end, and each family's checkpoint."""
    asked = [name for _, sampler, attention in REQUESTS for name in {**sampler, **attention}]
    assert {"gen_length", "block_length", "steps", "threshold", "early_stop", "cfg_scale", "skip"} <= set(asked)
    assert {"generation_rows", "refresh"} <= set(asked)
    assert {family for family, _, _ in REQUESTS} == {"mini", "llada", "dream"}
