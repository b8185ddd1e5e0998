"""What the tests of teams start with torchrun: `team_script.py SCENARIO OUT FOLDER…`, one JSON object written to OUT,
with what each scenario found (of several: `short+fail+lost`).

equal: every folder's model, held by the team and whole in the first process, asked the same things; short: the first
folder's alone is asked all of them. fail: a process fails in the middle of a forward, in each of several places; the
next run must be as if nothing had been. commands: those of COMMANDS. lost: a process is gone in the middle of a run.
backends: `equal` in 16 bits on GPUs, for each sparse backend.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

import sparsed
from sparsed import AttentionConfig, CacheConfig, SamplerConfig
from sparsed.attention.state import RunAttention
from sparsed.cache.rows import ALL, Rows
from sparsed.cache.store import RowStore
from sparsed.denoising.forward import Pass, forward_of
from sparsed.denoising.predictor import Predictor
from sparsed.models import layer
from sparsed.parallel import follower, meeting, team

RANK = int(os.environ["RANK"])
# What depends on a family: its weights, its shift, rows that are computed alone, a canvas that grows.
OF_A_FAMILY = ("dense", "sparse", "cached in blocks", "grown")
# (sampler, attention, probe steps). Short and long blocks, guidance, batches, every sampler family's own.
SETTINGS: dict[str, tuple[dict[str, Any], Any, tuple[int, ...]]] = {
    "dense": ({"steps": 8}, "dense", ()),
    "sparse": ({"steps": 8}, {"keep_importance": True}, (5,)),
    "blocks of 64": ({"steps": 8, "seed": 3, "temperature": 0.8}, {"block_size": 64, "select": 0.3}, ()),
    "guided": ({"steps": 8, "cfg_scale": 0.5}, {}, (4,)),
    "reference": ({"steps": 8}, {"selection": "reference", "select": 0.3}, ()),
    "shared": ({"steps": 8}, {"method": "shared", "select": 0.3}, ()),
    "shared afresh": ({"steps": 8}, {"method": "shared", "select": 0.3, "reuse": False}, ()),
    "random": ({"steps": 8}, {"method": "random", "select": 0.3}, ()),
    "streaming": ({"steps": 8}, {"method": "streaming_llm", "select": 0.3}, ()),
    "afresh": ({"steps": 8}, {"reuse": False}, ()),
    "full rows": ({"steps": 8, "cfg_scale": 0.5}, {"select": 0.3, "generation_rows": "full"}, (5,)),
    # Of the cache the method alone.
    "cached": ({"steps": 8, "cfg_scale": 0.5}, {"select": 0.3, "skip": 0.1, "cache": "refresh"}, ()),
    "cached in blocks": ({"steps": 8}, {"select": 0.3, "skip": 0.1, "cache": "dual"}, ()),
    "grown": ({"steps": 8, "canvas": "growing"}, {"select": 0.3, "skip": 0.1}, ()),
    "grown, cached": ({"steps": 8, "canvas": "growing"}, {"select": 0.3, "skip": 0.1, "cache": "dual"}, ()),
    "refreshed": ({"steps": 8}, {"select": 0.3, "generation_rows": "full", "refresh": 2, "keep_importance": True}, ()),
    "wide": ({"steps": 8}, {"block_size": 128, "select": 0.5}, ()),
}


def prompt_of(model: Any, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(2, model.network.config.vocab_size - 12, (batch, 300), generator=generator)
    return ids.where(ids != model.mask_id, 2)


def run_of(model: Any, name: str, batch: int, backend: str = "auto") -> Any:
    sampler, attention, probes = SETTINGS[name]
    # iLLaDA's canvas grows and its runs end early by themselves; Dream's has one block, which cannot grow.
    grows = "canvas" in sampler and model.family != "dream"
    sampler = {**sampler, "canvas": "growing" if grows else "fixed", "early_stop": False}
    given = {} if attention == "dense" else dict(attention)
    method = given.pop("cache", "none")
    cache = CacheConfig(method, 3 if method == "refresh" else None)
    return sparsed.denoise(
        model,
        prompt_of(model, batch),
        sampler=SamplerConfig(gen_length=32, **({} if model.family == "dream" else {"block_length": 16}), **sampler),
        attention="dense" if attention == "dense" else AttentionConfig(**given),
        cache=cache,
        probe_steps=probes,
        backend=backend,
    )


def same_pattern(one: Any, two: Any) -> bool:
    return len(one.layers) == len(two.layers) and all(
        torch.equal(a.indices, b.indices) and torch.equal(a.counts, b.counts) and a.full_blocks == b.full_blocks
        for a, b in zip(one.layers, two.layers)
    )


def compare(shared: Any, whole: Any, name: str, batch: int) -> dict[str, Any]:
    a, b = run_of(shared, name, batch), run_of(whole, name, batch)
    made = [run.result() for run in (a, b)]
    found: dict[str, Any] = {
        "tokens": torch.equal(made[0].tokens, made[1].tokens),
        "steps": all(
            torch.equal(x.tokens, y.tokens) and torch.equal(x.committed, y.committed) and x.phase == y.phase
            for x, y in zip(made[0].steps, made[1].steps, strict=True)
        ),
        "text": made[0].text == made[1].text,
        "committed": int(sum(step.committed.sum() for step in made[0].steps)),
    }
    sure = [torch.stack([step.confidence for step in one.steps]) for one in made]
    found["confidence"] = float((sure[0] - sure[1]).nan_to_num().abs().max())
    if a.pattern is not None:
        found["pattern"] = same_pattern(a.pattern, b.pattern)
        found["density"] = a.pattern.requested_density
        found["probes"] = all(same_pattern(a.probes[step], b.probes[step]) for step in b.probes)
        found["heads"] = a.pattern.layers[0].counts.shape[1]
        found["full"] = a.pattern.full_blocks
        found["phases"] = [step.phase for step in made[0].steps]
        if b.pattern.importance is not None:
            pairs = zip(a.pattern.importance, b.pattern.importance, strict=True)
            found["importance"] = max(float((x.float() - y.float()).abs().max()) for x, y in pairs)
    return found


def weights(network: Any) -> int:
    """But for the embedding, which older versions of transformers leave whole."""
    return sum(weight.numel() for name, weight in network.named_parameters() if "embed_tokens" not in name)


def few_rows(model: Any) -> tuple[list[torch.Tensor], int]:
    """Logits of passes over all rows, which make a pattern, then over some rows of other canvases, some of which see
    every key; and the bytes that this process keeps.
    """
    config = AttentionConfig(select=0.4, block_size=32, generation_rows="full").resolve(332)
    predictor = Predictor(model, 300, SamplerConfig(steps=8, gen_length=32).resolve(model.defaults), config)
    predictor.choose_kernels(2)
    attention, store = predictor.attention(), RowStore()
    some, more = (Rows(torch.arange(first, end, device=model.device)[None]) for first, end in ((300, 316), (280, 332)))
    passes = (("select", ALL), ("dense", some), ("sparse", more))
    wanted = torch.tensor([301, 310, 332 + 305], device=model.device)
    made = []
    for seed, (attention.phase, rows) in enumerate(passes):
        ids = torch.randint(2, 290, (2, 332), generator=torch.Generator().manual_seed(seed))
        made.append(forward_of(model).logits(ids.to(model.device), Pass(rows, wanted, attention, store)))
    return made, store.bytes


def equal(ours: team.Team, folders: list[str], short: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for folder in folders:
        settings = OF_A_FAMILY if short and folder != folders[0] else tuple(SETTINGS)
        shared = sparsed.load(folder, dtype="float32", team=ours)
        whole = sparsed.load(folder, dtype="float32", device=str(ours.share.device))
        held, all_of_it = (weights(one.network) for one in (shared, whole))
        name = Path(folder).name
        found[name] = {setting: compare(shared, whole, setting, 2) for setting in settings}
        found[name]["share"] = held / all_of_it
        (mine, kept), (alone_made, all_kept) = few_rows(shared), few_rows(whole)
        found[name]["kept"] = kept / all_kept
        pairs = zip(mine, alone_made, strict=True)
        found[name]["rows"] = max(float((x - y).abs().max() / y.abs().max()) for x, y in pairs)
        if settings != OF_A_FAMILY:
            found[name]["turns"] = in_turns(shared, whole)
    return found


def in_turns(shared: Any, whole: Any) -> bool:
    """Two runs of one model that take turns, and one that is given up in the middle, end as they do alone."""
    runs = [run_of(shared, name, 1) for name in ("sparse", "blocks of 64", "sparse")]
    for step in range(8):
        for run in runs[: 3 if step < 5 else 2]:
            next(run)
    runs[2].close()
    alone = [run_of(whole, name, 1).result().steps[-1].tokens for name in ("sparse", "blocks of 64")]
    return all(torch.equal(run.steps[-1].tokens, other) for run, other in zip(runs, alone))


def backends(ours: team.Team, folders: list[str]) -> dict[str, Any]:
    """Tokens and patterns of 16-bit numbers follow the kernels: what is said is how alike they are."""
    found: dict[str, Any] = {}
    for folder in folders:
        shared = sparsed.load(folder, dtype="bfloat16", team=ours)
        whole = sparsed.load(folder, dtype="bfloat16", device=str(ours.share.device))
        for backend in ("gather", "triton", "flash4"):
            try:
                runs = [run_of(model, "wide", 1, backend) for model in (shared, whole)]
            except ValueError as error:
                found[f"{Path(folder).name} {backend}"] = str(error)
                continue
            made = [run.result() for run in runs]
            assert runs[0].pattern is not None and runs[1].pattern is not None
            found[f"{Path(folder).name} {backend}"] = {
                "backend": [run.backend for run in runs],
                "notes": list(runs[0].notes),
                "tokens": float((made[0].tokens == made[1].tokens).float().mean()),
                "pattern": float(runs[0].pattern.overlap(runs[1].pattern).mean()),
                "first": float((made[0].steps[0].tokens == made[1].steps[0].tokens).float().mean()),
            }
    return found


def fail(ours: team.Team, folders: list[str]) -> dict[str, Any]:
    """See `sabotage`."""
    model = sparsed.load(folders[0], dtype="float32", team=ours)
    clean = run_of(model, "sparse", 1).result()
    found: dict[str, Any] = {"failures": []}
    plan = Path(os.environ["FAIL"])
    for rank in range(ours.size):
        # In a layer's attention, its selection, between its sums, before the first of them.
        for place in ("attend 0", "attend 5", "_select 1", "between 2", "forward 3"):
            plan.write_text(f"{rank} {place}")
            start = time.monotonic()
            run = run_of(model, "sparse", 1)
            try:
                run.result()
                said = ""
            except (RuntimeError, MemoryError) as error:
                said = f"{type(error).__name__}: {error}"
            seconds = time.monotonic() - start
            plan.write_text("")
            again = run_of(model, "sparse", 1).result()
            same = torch.equal(again.tokens, clean.tokens) and same_pattern(again.pattern, clean.pattern)
            found["failures"].append([rank, place, said, seconds, same])
    return found


def sabotage() -> None:
    """Makes functions of this process fail when the file FAIL says so, at the n-th call since it was written."""
    plan = Path(os.environ["FAIL"])
    counters: dict[str, Any] = {}

    def failing(owner: Any, attribute: str, label: str) -> None:
        real = getattr(owner, attribute)

        def call(*given: Any, **named: Any) -> Any:
            said = plan.read_text() if plan.exists() else ""
            if not said:
                counters.clear()
            elif said.startswith(f"{RANK} {label} "):
                number = next(counters.setdefault(label, count()))
                if number == int(said.split()[2]):
                    if said.endswith("gone"):
                        os._exit(9)
                    raise MemoryError("no room here")
            return real(*given, **named)

        setattr(owner, attribute, call)

    failing(RunAttention, "attend", "attend")
    failing(RunAttention, "_select", "_select")
    failing(layer, "between_sums", "between")
    failing(follower, "hidden_rows", "forward")


def lost(ours: team.Team, folders: list[str]) -> dict[str, Any]:
    model = sparsed.load(folders[0], dtype="float32", team=ours)
    run_of(model, "sparse", 1).result()
    Path(os.environ["FAIL"]).write_text(f"{ours.size - 1} attend 7 gone")
    print("now", time.time(), flush=True)
    run_of(model, "sparse", 1).result()
    return {"never": "reached"}


def commands(ours: team.Team, _: list[str]) -> None:
    """Each a module and its words."""
    for module, words in json.loads(os.environ["COMMANDS"]):
        import_module(module).main(words, ours)


def main() -> None:
    names, out, *folders = sys.argv[1:]
    torch.set_num_threads(1)
    known = {
        "equal": equal, "short": partial(equal, short=True), "fail": fail, "commands": commands, "lost": lost,
        "backends": backends,
    }  # fmt: skip
    if "FAIL" in os.environ:
        sabotage()
    found: dict[str, Any] = {}
    with meeting.join() as ours:
        for name in names.split("+"):
            found[name] = known[name](ours, folders)
            Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
