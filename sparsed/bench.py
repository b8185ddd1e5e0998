"""python -m sparsed bench: whole runs of full attention and SparseD on this machine, timed side by side.

Both lanes run in one process on the same weights and prompt, never at the same time. Each step is timed
alone, and the lane that has used less time makes the next step, so that whatever else the machine does falls
on both alike. The selection is part of SparseD's time. The attention of one layer is timed apart, on the
queries, keys and values that the model makes of the prompt and the masks.

With --out, each measurement is kept in a folder as soon as it is done: what is there is not measured again, and
the processes of ``accelerate launch``, each with a whole model on a device of its own, share what is missing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsed.agreement import agreement
from sparsed.attention.backends import executed_density, load_backend
from sparsed.attention.dispatch import AttentionState
from sparsed.attention.importance import block_importance, fused_importance
from sparsed.attention.pattern import BlockLayout, LayerPattern
from sparsed.attention.selection import select_blocks
from sparsed.config import SamplerConfig, SparseDConfig, switch_step
from sparsed.denoising import Run, denoise, look, synchronize
from sparsed.launch import Launch
from sparsed.memory import peak_bytes
from sparsed.prompts import build_prompt, token_budget
from sparsed.records import Crew, Folder, differences, read_lines
from sparsed.typed_json import read_as

if TYPE_CHECKING:
    from sparsed.models.model import Model
    from sparsed.team import Team

# Shapes for machines or moments without the weights: what the checkpoint's config.json says.
_SHAPES: dict[str, dict[str, Any]] = {
    "mini": {
        "model_type": "llama",
        "vocab_size": 2048,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "max_position_embeddings": 66_048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": True,
    },
    "llada-8b": {
        "model_type": "llada",
        "d_model": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "mlp_hidden_size": 12_288,
        "vocab_size": 126_464,
        "max_sequence_length": 4096,
        "rope_theta": 5e5,
        "rms_norm_eps": 1e-5,
        "mask_token_id": 126_336,
        "eos_token_id": 126_081,
    },
    "dream-7b": {
        "model_type": "Dream",
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18_944,
        "vocab_size": 152_064,
        "max_position_embeddings": 131_072,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "mask_token_id": 151_666,
        "eos_token_id": 151_643,
    },
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "vocab_size": 151_936,
        "max_position_embeddings": 40_960,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "mask_token_id": 151_669,
        "eos_token_id": 151_645,
    },
}


@dataclass(frozen=True)
class Spread:
    """Durations in milliseconds: how many, their median, and the quartiles around it."""

    count: int
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """From durations in seconds; at least one."""
        ordered = sorted(1000 * x for x in seconds)
        low, median, high = ordered[0], statistics.median(ordered), ordered[-1]
        if len(ordered) > 3:
            low, _, high = statistics.quantiles(ordered, n=4, method="inclusive")
        return cls(len(ordered), round(median, 3), round(low, 3), round(high, 3))

    def __str__(self) -> str:
        return f"{self.median:.1f} ({self.low:.1f}–{self.high:.1f})"


@dataclass(frozen=True)
class AttentionTimes:
    """One layer's attention on the model's own queries, keys and values, milliseconds.

    speedup: dense / sparse. selection_in_dense: importance and selection, in dense attentions.
    """

    dense: Spread
    sparse: Spread
    selection: Spread
    speedup: float
    selection_in_dense: float


@dataclass(frozen=True)
class Composed:
    """A whole run of `steps` steps put together from the medians of this measurement's steps, seconds.

    limit: the speed-up if sparse attention cost its density's share of the best dense attention, and selection nothing.
    """

    steps: int
    dense: float
    sparsed: float
    speedup: float
    limit: float


@dataclass(frozen=True)
class Measurement:
    """One whole comparison. Steps in milliseconds, runs in seconds, memory in bytes.

    dense_step: the steps of the dense lane. select_step, sparse_step: of the SparseD lane; None if the run
    has no such step. dense_run, sparsed_run: the sum of a run's steps, one a repeat. speedup: the median over
    the repeats of dense / SparseD. same_tokens: share of the generated tokens, up to the longer answer's end,
    on which the lanes agree. peak_memory: largest resident size of the process so far, on CUDA what torch held at
    most. dense_backend, backend: what ran. other: milliseconds of a dense step outside attention (the step less
    the layers' attention). limit_step: `other` and requested density · dense attention of all layers; share: of the
    limit that is reached, limit_step / sparse_step. processes: that hold the model together; attention is one's share
    of the heads, peak_memory the largest of peak_memory_each.
    """

    length: str
    prompt_tokens: int
    dtype: str
    steps: int
    switch_step: int | None
    select: float
    block_size: int
    requested_density: float | None
    executed_density: float | None
    dense_step: Spread
    select_step: Spread | None
    sparse_step: Spread | None
    dense_run: tuple[float, ...]
    sparsed_run: tuple[float, ...]
    speedup: float
    attention: AttentionTimes
    same_tokens: float
    peak_memory: int | None
    dense_backend: str
    backend: str
    other: float
    limit_step: float | None
    share: float | None
    composed: tuple[Composed, ...]
    processes: int = 1
    peak_memory_each: tuple[int, ...] = ()


def race(runs: Sequence[Run], first: int = 0) -> list[float]:
    """Runs every lane to its end; the lane with the least time so far makes the next step. Seconds a lane.

    first: the lane that begins (all start with no time used). Lanes never run at the same time.
    """
    spent = [0.0] * len(runs)
    made = [0] * len(runs)
    order = [(first + i) % len(runs) for i in range(len(runs))]
    while waiting := [i for i in order if made[i] < runs[i].total]:
        lane = min(waiting, key=lambda i: spent[i])
        spent[lane] += next(runs[lane]).seconds
        made[lane] += 1
    return spent


def measure(
    model: Model,
    prompt: str | Tensor,
    length: str,
    sampler: SamplerConfig,
    attention: SparseDConfig,
    *,
    backend: str = "auto",
    dense_backend: str = "auto",
    repeats: int = 1,
    compose: Sequence[int] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Measurement:
    """Whole runs of both lanes on one prompt, `repeats` times, taking turns at the first step.

    compose: numbers of steps of longer runs to put together from the measured steps.

    Raises ValueError for settings that `denoise` refuses.
    """
    dense_runs: list[float] = []
    sparsed_runs: list[float] = []
    steps: dict[str, list[float]] = {"dense lane": [], "dense": [], "select": [], "sparse": []}
    same = 1.0
    for repeat in range(repeats):
        dense = denoise(model, prompt, sampler=sampler, attention="dense", dense_backend=dense_backend)
        sparsed = denoise(
            model, prompt, sampler=sampler, attention=attention, backend=backend, dense_backend=dense_backend
        )
        if repeat == 0:
            for note in sparsed.notes:
                say(f"note: {note}")
        start = perf_counter()
        for run in (dense, sparsed):
            run.warm_up()
        if model.device.type != "cpu" and repeat == 0:
            say(f"warm-up (kernels compiled and chosen, one forward for each phase): {perf_counter() - start:.1f} s")
        _settle(model)
        _peak_memory(model, reset=True)
        seconds = race([dense, sparsed], first=repeat % 2)
        dense_runs.append(seconds[0])
        sparsed_runs.append(seconds[1])
        steps["dense lane"] += [step.seconds for step in dense.steps]
        for step in sparsed.steps:
            steps[step.phase].append(step.seconds)
        same = _agreement(dense.steps[-1].tokens, sparsed.steps[-1].tokens, model.end_ids)
        if repeat == 0 and isinstance(sparsed.attention, SparseDConfig):
            used = sparsed.attention
            say(f"skip {used.skip}, select {used.select}, block {used.block_size}; {sparsed.total} steps")
        say(f"run {repeat + 1} of {repeats}: dense {seconds[0]:.2f} s, SparseD {seconds[1]:.2f} s")
    settings = sparsed.attention
    assert isinstance(settings, SparseDConfig) and settings.select is not None
    assert settings.block_size is not None
    pattern = sparsed.pattern
    dense_step = Spread.of(steps["dense lane"])
    select_step = Spread.of(steps["select"]) if steps["select"] else None
    sparse_step = Spread.of(steps["sparse"]) if steps["sparse"] else None
    layer = _attention_times(model, prompt, sampler, attention, backend, dense_backend)
    full = layer.dense.median * model.network.config.num_hidden_layers
    other = dense_step.median - full
    density = None if pattern is None else pattern.requested_density
    limit_step = None if density is None else other + density * full
    composed = []
    if select_step is not None and sparse_step is not None and limit_step is not None:
        for total in compose:
            switch = switch_step(total, settings.skip or 0.0, settings.selection or "paper")
            if switch is None:
                continue
            whole = total * dense_step.median / 1000
            before = (switch - 1) * dense_step.median
            ours = (before + select_step.median + (total - switch) * sparse_step.median) / 1000
            best = (switch * dense_step.median + (total - switch) * limit_step) / 1000
            composed.append(
                Composed(total, round(whole, 2), round(ours, 2), round(whole / ours, 3), round(whole / best, 3))
            )
    assert dense.dense is not None, "a finished run has chosen"
    peaks = _peak_memory(model)
    return Measurement(
        length=length,
        prompt_tokens=sparsed.prompt_length,
        dtype=_name(model.dtype),
        steps=sparsed.total,
        switch_step=sparsed.switch_step,
        select=settings.select,
        block_size=settings.block_size,
        requested_density=None if pattern is None else pattern.requested_density,
        executed_density=None if pattern is None else executed_density(sparsed.backend, pattern),
        dense_step=dense_step,
        select_step=select_step,
        sparse_step=sparse_step,
        dense_run=tuple(round(x, 4) for x in dense_runs),
        sparsed_run=tuple(round(x, 4) for x in sparsed_runs),
        speedup=round(statistics.median(a / b for a, b in zip(dense_runs, sparsed_runs)), 3),
        attention=layer,
        same_tokens=round(same, 4),
        peak_memory=max(peaks, default=None),
        dense_backend=dense.dense.name,
        backend=sparsed.backend,
        other=round(other, 3),
        limit_step=None if limit_step is None else round(limit_step, 3),
        share=None if limit_step is None or sparse_step is None else round(limit_step / sparse_step.median, 3),
        composed=tuple(composed),
        processes=1 if model.team is None else model.team.size,
        peak_memory_each=tuple(peaks),
    )


class _Recorder(AttentionState):
    """Attention that stays dense and keeps what one layer was given."""

    def __init__(self, layer: int) -> None:
        super().__init__("dense")
        self.layer = layer
        self.given: tuple[Tensor, Tensor, Tensor, float] | None = None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        if layer == self.layer:
            self.given = (q, k, v, scale)
        return super().attend(layer, q, k, v, scale)


@torch.inference_mode()
def _attention_times(
    model: Model,
    prompt: str | Tensor,
    sampler: SamplerConfig,
    attention: SparseDConfig,
    backend: str,
    dense_backend: str,
) -> AttentionTimes:
    """The middle layer's attention, with the strides the model gives its queries, keys and values.

    Dense, sparse and selection take turns, so that noise meets all three.
    """
    run = denoise(
        model, prompt, sampler=sampler, attention=attention, backend=backend, dense_backend=dense_backend
    )
    run.warm_up()
    settings, full = run.attention, run.dense
    assert isinstance(settings, SparseDConfig) and full is not None, "this lane is not dense"
    select, block_size = settings.select, settings.block_size
    assert select is not None and block_size is not None, "a run's config is resolved"
    layout = BlockLayout(run.length, run.prompt_length, block_size)
    ids = model.encode(prompt)
    canvas = torch.cat([ids, ids.new_full((len(ids), run.length - run.prompt_length), model.mask_id)], dim=1)
    recorder = _Recorder(model.network.config.num_hidden_layers // 2)
    look(model, canvas, recorder)
    assert recorder.given is not None, "the model has this layer"
    q, k, v, scale = recorder.given
    sparse = load_backend(run.backend)

    # The select step's own attention gives the log-sum-exp, where its kernel does.
    lse = full.with_lse(q, k, v, scale)[1] if full.with_lse is not None and run.fused else None

    def choose() -> LayerPattern:
        if lse is None:
            return select_blocks(block_importance(q, k, scale, block_size), layout, select)
        return select_blocks(fused_importance(q, k, lse, scale, block_size), layout, select)

    pattern = choose()
    timed: dict[str, Callable[[], object]] = {
        "dense": lambda: full.attend(q, k, v, scale),
        "sparse": lambda: sparse(q, k, v, pattern.lists(None, layout), scale),
        "selection": choose,
    }
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for work in timed.values():
        work()
    # About four seconds, and never fewer than five rounds.
    spent, rounds = 0.0, 0
    while rounds < 5 or (spent < 4 and rounds < 30):
        rounds += 1
        for name, work in timed.items():
            synchronize(model.device)
            start = perf_counter()
            work()
            synchronize(model.device)
            seconds[name].append(perf_counter() - start)
            spent += seconds[name][-1]
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    return AttentionTimes(
        dense=Spread.of(seconds["dense"]),
        sparse=Spread.of(seconds["sparse"]),
        selection=Spread.of(seconds["selection"]),
        speedup=round(middle["dense"] / middle["sparse"], 3),
        selection_in_dense=round(middle["selection"] / middle["dense"], 3),
    )


def machine() -> dict[str, Any]:
    """What the numbers belong to: processor, cores, threads, memory, GPU and versions."""
    info = _cpu_info()
    flags = info.get("flags", "").split()
    about: dict[str, Any] = {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "amx": "amx_bf16" in flags,
        "avx512_bf16": "avx512_bf16" in flags,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    return about


def main(argv: Sequence[str] | None = None, team: Team | None = None) -> int:
    """The command line. Returns the exit code; raises ValueError for settings that make no sense.

    team: the processes that hold the model together, under torchrun.
    """
    options = _parser().parse_args(argv)
    if options.threads is not None:
        if options.threads < 1:
            raise ValueError(f"threads must be at least 1, not {options.threads}.")
        torch.set_num_threads(options.threads)
    if options.repeats < 1:
        raise ValueError(f"repeats must be at least 1, not {options.repeats}.")
    for length in options.lengths:
        token_budget(length)
    with Crew.here() as crew:
        if crew.size > 1 and options.out is None:
            raise ValueError("Several processes share the measurements by way of a folder: name one with --out.")
        options.device = crew.device(options.device)
        about = machine()
        if crew.rank == 0:
            _print_machine(about)
        if options.out is None:
            asked: list[tuple[str | None, str]] = [
                (dtype, length) for dtype in options.dtype or [None] for length in options.lengths
            ]
            results = list(_measurements(options, asked, team))
        else:
            _measure_missing(options, about, crew, team)
            crew.wait()
    if crew.rank != 0:
        return 0
    if options.out is not None:
        results = _kept(options.out)
    print()
    _print_table(results)
    if options.json:
        record = {"machine": about, "results": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"\nwritten to {options.json}")
    return 0


def _measurements(
    options: argparse.Namespace, asked: Sequence[tuple[str | None, str]], team: Team | None
) -> Iterator[Measurement]:
    """Each (dtype, length) measured, one after another; a model is loaded once for each dtype."""
    sampler = SamplerConfig(steps=options.steps, gen_length=options.gen_length)
    attention = SparseDConfig(skip=options.skip, select=options.select, block_size=options.block_size)
    for dtype in dict.fromkeys(dtype for dtype, _ in asked):
        model = _load(options, dtype, team)
        print(f"\n{model.label}, {_name(model.dtype)} on {_place(model)}", flush=True)
        for length in [length for number, length in asked if number == dtype]:
            yield measure(
                model,
                _prompt(model, length, options),
                length,
                sampler,
                attention,
                backend=options.backend,
                dense_backend=options.dense_backend,
                repeats=options.repeats,
                compose=options.compose,
                say=partial(_say, f"{length}, {_name(model.dtype)}"),
            )
        del model
        gc.collect()


def _measure_missing(
    options: argparse.Namespace, about: dict[str, Any], crew: Crew, team: Team | None
) -> None:
    """This process's share of the measurements that the folder lacks; each is in the folder as soon as it is done."""
    from sparsed.models.loading import check_dtype, pick_device, pick_dtype

    place = pick_device(options.device)
    named = [check_dtype(dtype) for dtype in options.dtype or [None]]
    plan = _plan(options, about, place.type)
    unlike = differences(crew.agree(plan), plan)
    if unlike:
        raise ValueError(f"Process 0 is not like process {crew.rank} ({', '.join(unlike)}): these are two tables.")
    folder = Folder(options.out, plan, crew.name)
    # Rank 0 alone looks what is there, and tries which dtype is fastest on a CPU: all share out the same list.
    missing: dict[tuple[str, int], str] = {}
    if crew.rank == 0:
        dtypes = [_name(dtype or pick_dtype(None, place, 0, "")) for dtype in named]
        wanted = {(dtype, token_budget(length)): length for dtype in dtypes for length in options.lengths}
        done = {(row.dtype, token_budget(row.length)) for row in _kept(options.out)}
        missing = {key: length for key, length in wanted.items() if key not in done}
        print(f"{len(wanted) - len(missing)} of {len(wanted)} measurements are in {options.out}", flush=True)
        devices = torch.cuda.device_count() if place.type == "cuda" else 1
        if min(crew.local_size, len(missing)) > devices:
            print(
                f"note: {crew.local_size} processes measure at the same time on "
                f"{'the same GPUs' if place.type == 'cuda' else 'the same cores'} and slow each other; for clean "
                f"times, give each a GPU of its own.",
                file=sys.stderr,
            )
    missing = crew.agree(missing)
    pieces = list(missing.items())
    mine = crew.share([tokens**2 for (_, tokens), _ in pieces])
    # In the order asked for, not the longest first: on a CPU the peak memory is that of the process so far.
    for result in _measurements(options, [(pieces[i][0][0], pieces[i][1]) for i in mine], team):
        folder.add("measurements", asdict(result))


def _plan(options: argparse.Namespace, about: dict[str, Any], device: str) -> dict[str, Any]:
    """What is the same for all rows of one table."""
    settings = (
        "shape", "random_tokens", "kind", "prompt_seed", "steps", "gen_length", "skip", "select", "block_size",
        "backend", "dense_backend", "no_fuse", "repeats", "compose",
    )  # fmt: skip
    facts = ("cpu", "gpu", "torch") if device == "cuda" else ("cpu", "threads", "cpu_capability", "torch")
    launch = Launch.here()
    return {
        "model": options.model if options.shape is None else None,
        **{name: getattr(options, name) for name in settings},
        "device": device,
        "processes of one model": launch.size if launch.kind == "tensor" else 1,
        "machine": {name: about.get(name) for name in facts},
    }


def _kept(folder: Path) -> list[Measurement]:
    """The measurements of a folder, of all processes, by dtype and length; one that was made twice counts once."""
    rows = [read_as(Measurement, entry, "a measurement") for entry in read_lines(folder, "measurements")]
    kept = {(row.dtype, token_budget(row.length)): row for row in rows}
    return [kept[key] for key in sorted(kept)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sparsed bench", description=__doc__)
    parser.add_argument("--model", default="mini", help="a name of the catalogue or a local folder")
    parser.add_argument("--shape", choices=sorted(_SHAPES), help="random weights of this shape, no checkpoint")
    parser.add_argument("--lengths", nargs="+", default=["4k", "8k", "16k"], help="4k, 8k … or tokens")
    parser.add_argument("--random-tokens", action="store_true", help="random token ids as the prompt")
    parser.add_argument("--kind", default="about", help="kind of question in the prompt")
    parser.add_argument("--prompt-seed", type=int, default=0, help="which of the built prompts")
    parser.add_argument("--steps", type=int, default=64, help="denoising steps")
    parser.add_argument("--gen-length", type=int, help="generated tokens (default: the model's)")
    parser.add_argument("--skip", type=float, default=0.2, help="share of the steps before the selection")
    parser.add_argument("--select", type=float, default=0.3, help="share of key blocks kept on each side")
    parser.add_argument("--block-size", type=int, default=128, help="attention block size: 32, 64 or 128")
    parser.add_argument("--backend", default="auto", help="sparse backend")
    parser.add_argument("--dense-backend", default="auto", help="dense attention: sdpa, cudnn, flash or flash4")
    parser.add_argument("--device", help="default: CUDA, else MPS, else CPU")
    parser.add_argument("--dtype", nargs="+", help="float32, bfloat16, float16 (default: the fastest here)")
    parser.add_argument("--no-fuse", action="store_true", help="do not torch.compile what surrounds attention")
    parser.add_argument("--threads", type=int, help="CPU threads of torch (default: torch's choice)")
    parser.add_argument("--repeats", type=int, default=1, help="whole runs of each lane")
    parser.add_argument(
        "--compose", type=int, nargs="*", default=[128], metavar="T", help="put runs of T steps together from medians"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="keep measurements there; make only what is missing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE")
    return parser


def _load(options: argparse.Namespace, dtype: str | None, team: Team | None = None) -> Model:
    from sparsed.models.loading import load

    if options.shape is None:
        fuse = False if options.no_fuse else None
        return load(options.model, device=options.device, dtype=dtype, fuse=fuse, team=team)
    return _random_model(options.shape, options.device, dtype, not options.no_fuse, team)


def _random_model(
    shape: str, device: str | None, dtype: str | None, fusing: bool, team: Team | None = None
) -> Model:
    """A model of this shape with random weights and no tokenizer: it takes token ids, and says nothing."""
    import transformers

    from sparsed.models.families import recognise
    from sparsed.models.loading import can_fuse, check_dtype, pick_device, pick_dtype, random_network
    from sparsed.models.model import Model

    place = pick_device(device) if team is None else team.share.device
    checkpoint = recognise(_SHAPES[shape], shape)
    with torch.device("meta"):
        whole = getattr(transformers, checkpoint.network)(checkpoint.config)
    number = pick_dtype(check_dtype(dtype), place, sum(weight.numel() for weight in whole.parameters()), shape)
    fusing = fusing and can_fuse(place)
    start = perf_counter()
    if team is None:
        network, problem = random_network(_SHAPES[shape], number, place, fusing)
    else:
        team.share.check(checkpoint.config, shape)
        network, problem = team.build(_SHAPES[shape], number, fusing)
    if fusing:
        print(f"weights drawn, and torch.compile of what surrounds attention: {perf_counter() - start:.1f} s")
    last = checkpoint.config.vocab_size - 1
    return Model(
        name=shape,
        label=f"{shape} (random weights)",
        network=network,
        tokenizer=None,  # type: ignore[arg-type]
        device=place,
        dtype=number,
        mask_id=last if checkpoint.mask_id is None else checkpoint.mask_id,
        eos_id=checkpoint.end_ids[0] if checkpoint.end_ids else 0,
        defaults=checkpoint.defaults.resolve(checkpoint.defaults),
        max_positions=checkpoint.positions,
        family=checkpoint.family,
        shift=checkpoint.shift,
        chat=False,
        notes=() if problem is None else (problem,),
        team=team,
    )


def _prompt(model: Model, length: str, options: argparse.Namespace) -> str | Tensor:
    size = int(length) if length.isdigit() else length
    if not options.random_tokens and options.shape is None:
        return build_prompt(model, size, options.kind, options.prompt_seed).text
    generator = torch.Generator().manual_seed(options.prompt_seed)
    return torch.randint(1, model.mask_id, (1, token_budget(size)), generator=generator)


def _agreement(first: Tensor, second: Tensor, end: int | tuple[int, ...]) -> float:
    """Share of equal tokens [batch, gen_length], up to and with the end token of the longer answer."""
    rows = [agreement(a, b, end) for a, b in zip(first.tolist(), second.tolist())]
    counted = [row for row in rows if row is not None]
    return sum(equal for equal, _ in counted) / sum(compared for _, compared in counted)


def _settle(model: Model) -> None:
    """Lets the last run's memory go before the next one is timed."""
    gc.collect()
    synchronize(model.device)


def _peak_memory(model: Model, reset: bool = False) -> list[int]:
    """Bytes, of every process that holds a share of the model: on CUDA what torch has held at most since the last
    reset, else the largest resident size of the process. Empty where the system does not say.
    """
    if model.team is not None:
        return model.team.peaks(reset)
    found = peak_bytes(model.device, reset)
    return [] if found is None else [found]


def _place(model: Model) -> str:
    return str(model.device) if model.team is None else f"{model.team.size} × {model.device.type}"


def _cpu_info() -> dict[str, str]:
    """The first processor's entries in /proc/cpuinfo, where there is such a file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _say(what: str, text: str) -> None:
    print(f"  {what}: {text}", flush=True)


def _print_machine(about: dict[str, Any]) -> None:
    units = [name for name in ("amx", "avx512_bf16") if about[name]]
    print(
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads, {about['cpu_capability']}",
        end="",
    )
    print(f" ({', '.join(units)})" if units else "")
    if "gpu" in about:
        print(about["gpu"])
    print(f"torch {about['torch']}, Python {about['python']}, {about['system']}", flush=True)


def _table(results: Sequence[Measurement]) -> list[list[str]]:
    """Head and rows of the summary. Times of steps and of attention: median (quartiles) in milliseconds."""
    head = [
        "prompt",
        "dtype",
        "dense by",
        "sparse by",
        "dense step",
        "select step",
        "sparse step",
        "outside attention",
        "limit of a sparse step",
        "share of the limit",
        "dense run s",
        "SparseD run s",
        "speed-up",
        "one layer's attention: dense",
        "sparse",
        "speed-up",
        "selection / dense",
        "density",
        "same tokens",
        "peak memory of a process",
    ]
    rows = [head]
    for r in results:
        rows.append(
            [
                f"{r.length} ({r.prompt_tokens})",
                r.dtype,
                r.dense_backend,
                r.backend,
                str(r.dense_step),
                "–" if r.select_step is None else str(r.select_step),
                "–" if r.sparse_step is None else str(r.sparse_step),
                f"{r.other:.1f}",
                "–" if r.limit_step is None else f"{r.limit_step:.1f}",
                "–" if r.share is None else f"{100 * r.share:.0f} %",
                f"{statistics.median(r.dense_run):.2f}",
                f"{statistics.median(r.sparsed_run):.2f}",
                f"{r.speedup:.2f}×",
                str(r.attention.dense),
                str(r.attention.sparse),
                f"{r.attention.speedup:.2f}×",
                f"{r.attention.selection_in_dense:.2f}",
                "–" if r.executed_density is None else f"{r.executed_density:.3f}",
                f"{100 * r.same_tokens:.0f} %",
                "–" if r.peak_memory is None else f"{r.peak_memory / 2**30:.2f} GiB",
            ]
        )
        # Composed from medians, and called so.
        for run in r.composed:
            label = f"composed, {run.steps} steps: s"
            if label not in head:
                head += [label, "  speed-up (limit)"]
            rows[-1] += [f"{run.dense:.1f} → {run.sparsed:.1f}", f"{run.speedup:.2f}× ({run.limit:.2f}×)"]
    for row in rows:
        row += ["–"] * (len(head) - len(row))
    return rows


def _print_table(results: Sequence[Measurement]) -> None:
    rows = _table(results)
    print("Milliseconds, median (quartiles), unless a column says otherwise.")
    # Upright: one line a quantity, one column a measurement, so that it fits a terminal.
    columns = list(zip(*rows))
    widths = [max(len(cell) for cell in row) for row in rows]
    for column in columns:
        cells = [column[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(column[1:], widths[1:]))]
        print("  ".join(cells))
