"""The command: python -m sparsed bench."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsed import files
from sparsed.bench.cached import settle, work_in_runs
from sparsed.bench.estimate import Estimate
from sparsed.bench.measure import measure, random_prompt
from sparsed.bench.numbers import Measurement, dense_agreement
from sparsed.bench.shapes import SHAPES, identity, load_or_make
from sparsed.bench.table import Report, device_of, print_machine, tell
from sparsed.config import PRESETS, ResolvedSampler, SamplerConfig
from sparsed.config.rows import whole
from sparsed.denoising.forward import synchronize
from sparsed.edge import go_on, heeding_sigterm
from sparsed.machine import dtype_name, machine, peak_bytes
from sparsed.models.config_checks import check_factor
from sparsed.models.devices import can_fuse, check_dtype, pick_device, pick_dtype
from sparsed.models.model import Model
from sparsed.models.numbers import check_quantize, numbers
from sparsed.models.quantise import network_bytes
from sparsed.options import (
    ATTENTION,
    SAMPLER,
    add_attention_options,
    add_cache_options,
    add_preset_option,
    add_quantize,
    add_rope_factor,
    add_sampler_options,
    attention_of,
    caches_of,
    given_of,
    sampler_of,
    without_effect,
)
from sparsed.origin import changes, versions
from sparsed.parallel.crew import Crew
from sparsed.parallel.launch import Launch
from sparsed.questions.build import prompts_version
from sparsed.questions.lengths import token_budget
from sparsed.results_folder import Folder, check, check_alike, read_lines, strangers
from sparsed.typed_json import read_as

if TYPE_CHECKING:
    from sparsed.parallel.team import Team

_MOST_THREADS = 2**12
DEFAULTS: dict[str, Any] = {"steps": 64, "skip": 0.2, "select": 0.3, "block_size": 128}
"""What is measured where nothing is said, whatever the model and the length: tables stay comparable."""
WHOLE: dict[str, Any] = {"canvas": "fixed", "early_stop": False}
"""Likewise: every step is made, and over the whole length."""
COMPOSED = [128]
"""Runs of so many steps are put together where nothing is said, no cache is asked for, and the canvas does not grow."""


def main(argv: Sequence[str] | None = None, team: Team | None = None) -> int:
    """The command line. Returns the exit code, 1 where a length did not fit into memory; raises ValueError for settings
    that make no sense.

    team: the processes that hold the model together, under torchrun.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    given = given_of(parser, options)
    if options.threads is not None:
        whole("threads", options.threads, least=1, below=_MOST_THREADS)
        torch.set_num_threads(options.threads)
    if options.repeats < 1:
        raise ValueError(f"repeats must be at least 1, not {options.repeats}.")
    if options.shape is not None and options.model != "mini":
        raise ValueError("--shape draws weights of its own: leave --model out.")
    if options.shape is not None and options.rope_factor is not None:
        raise ValueError("--shape draws random weights, whose positions need no stretching: leave --rope-factor out.")
    for total in options.compose or ():
        SamplerConfig(steps=total)  # refused here, and not after everything was measured
    options.rope_factor = check_factor(options.rope_factor)
    for length in options.lengths:
        token_budget(length)
    if options.json is not None:
        files.check(options.json, "--json")
    if options.json is not None or options.out is not None:
        go_on()
    with Crew.here() as crew:
        if crew.size > 1 and options.out is None:
            raise ValueError("Several processes share the measurements by way of a folder: name one with --out.")
        options.device = crew.device(options.device)
        about = machine()
        own = _fill_in(options)
        if crew.rank == 0:
            print_machine(about)
            for sentence in unheeded(options, given):
                print(f"note: {sentence}", file=sys.stderr)
            if own:
                print(f"bench's own defaults: {own}; what else was not said is the model's", flush=True)
        report = Report(options.json, about, show=crew.rank == 0)
        left_out: list[str] = []
        try:
            with nullcontext() if crew.size > 1 or team is not None else heeding_sigterm():
                if options.out is None:
                    asked = [(choice, length) for choice in _choices(options) for length in options.lengths]
                    for result in _measurements(options, asked, team, left_out):
                        report.add(result)
                else:
                    _measure_missing(options, about, crew, team, left_out)
                    crew.wait()
        except ValueError:  # a wrong value says nothing of what the folder holds, which may be of other settings
            report.end(finished=False)
            raise
        except BaseException as error:
            report.end(finished=False, kept=None if options.out is None else _kept(options.out))
            if isinstance(error, KeyboardInterrupt) and options.out is not None:
                kept = f"What {options.out} holds stays; the same command goes on from there."
                raise type(error)(kept) from None
            raise
        report.end(not left_out, None if options.out is None else _kept(options.out), left_out)
    return 1 if left_out else 0


def _fill_in(options: argparse.Namespace) -> str:
    """Bench's own defaults, where neither an option nor the preset says anything; returns them in words."""
    said = (options, PRESETS[options.preset])
    names = [name for name in DEFAULTS if all(getattr(one, name, None) is None for one in said)]
    if options.threshold is not None and "steps" in names:
        names.remove("steps")  # with a threshold they are an upper bound, which the engine knows
    for name in names:
        setattr(options, name, DEFAULTS[name])
    for name, value in WHOLE.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.compose is None:
        options.compose = [] if options.cache or options.canvas == "growing" else COMPOSED
    return ", ".join(f"{name} {DEFAULTS[name]}" for name in names)


def unheeded(options: argparse.Namespace, given: set[str]) -> list[str]:
    """Sentences about options that were `given`, by their names, and that change nothing here."""
    random = options.random_tokens or options.shape is not None
    said = without_effect(given, {"kind"} if random else (), "the prompt is random tokens.")
    of_caches = {"cache_refresh", "cache_keys"} if not caches_of(options) else ()
    return said + without_effect(given, of_caches, "no --cache is asked for.")


# A dtype and a quantize; None: the fastest here, and none.
Choice = tuple[str | None, str | None]


def _choices(options: argparse.Namespace) -> list[Choice]:
    """Every dtype with every quantize that was asked for. Raises what `check_quantize` raises."""
    kinds = [check_quantize(None if kind == "none" else kind) for kind in options.quantize or ["none"]]
    return [(dtype, kind) for dtype in options.dtype or [None] for kind in dict.fromkeys(kinds)]


def _measurements(
    options: argparse.Namespace,
    asked: Sequence[tuple[Choice, str]],
    team: Team | None,
    left_out: list[str],
    loaded: Callable[[Model], object] = lambda _: None,
) -> Iterator[Measurement]:
    """Each (choice, length) measured, one after another; a model is loaded once for each choice, and `loaded` told of
    it before anything is measured. Tokens of unquantised weights are kept, to compare the others with. One that runs
    out of the GPU's memory is left out, and added to `left_out` in a sentence.
    """
    sampler, attention, caches = sampler_of(options), attention_of(options), caches_of(options)
    done, unquantised = 0, dict[tuple[torch.dtype, str], Tensor]()
    for choice in dict.fromkeys(choice for choice, _ in asked):
        model, took, held = _loaded(options, choice, team)
        print(f"\n{model.label}, {model.numbers} on {device_of(model)}", flush=True)
        most = "" if held is None else f", at most {held / 2**30:.2f} GiB"
        print(f"{'loaded' if options.shape is None else 'drawn'} in {took:.1f} s{most}", flush=True)
        loaded(model)
        for length in [length for one, length in asked if one == choice]:
            say = partial(tell, f"{length}, {model.numbers}")
            done += 1
            later = [name for _, name in asked[done:]]
            settings = sampler.resolve(model.defaults)
            cached = work_in_runs(settings, attention, caches, options.compose, token_budget(length))
            cached *= 1 if options.compose else options.repeats
            try:
                result, tokens = measure(
                    model,
                    random_prompt(model, length, options),
                    length,
                    sampler,
                    attention,
                    backend=options.backend,
                    dense_backend=options.dense_backend,
                    repeats=options.repeats,
                    compose=options.compose,
                    caches=caches,
                    say=say,
                    look=Estimate(2 * options.repeats, length, later, say, cached).look,
                )
            except torch.OutOfMemoryError:
                if team is not None:
                    raise  # the others wait for this process
                left_out.append(_does_not_fit(model, length))
                say(left_out[-1])
                settle(model)
                continue
            key = model.dtype, length
            same = None
            if model.quantize is None:
                unquantised[key] = tokens
            elif key in unquantised:
                same = round(dense_agreement(unquantised[key], tokens, model.end_ids), 4)
            weights = network_bytes(model.network)
            yield replace(
                result, load_seconds=took, load_memory=held, weights=weights, same_unquantised=same
            )
        del model
        gc.collect()


def _does_not_fit(model: Model, length: str) -> str:
    whole = ""
    if model.device.type == "cuda":
        whole = f"'s {torch.cuda.get_device_properties(model.device).total_memory / 2**30:.0f} GiB"
    return (
        f"{model.label} at {length} in {model.numbers} does not fit into {model.device}{whole}: choose a "
        f"shorter length, or several GPUs (torchrun --nproc-per-node 2 -m sparsed bench …)."
    )


def _loaded(
    options: argparse.Namespace, choice: Choice, team: Team | None
) -> tuple[Model, float, int | None]:
    """The model, the seconds that reading or drawing it took, and the most bytes that a process held meanwhile (None
    where the system does not say).
    """
    if team is None:
        peak_bytes(pick_device(options.device), reset=True)
    start = perf_counter()
    model = load_or_make(options, *choice, team)
    synchronize(model.device)
    seconds = perf_counter() - start
    return model, round(seconds, 3), max(model.peak_bytes(), default=None)


def _measure_missing(
    options: argparse.Namespace, about: dict[str, Any], crew: Crew, team: Team | None, left_out: list[str]
) -> None:
    """This process's share of the measurements that the folder lacks; each is in the folder as soon as it is done."""
    place = pick_device(options.device)
    named = [(check_dtype(dtype), quantize) for dtype, quantize in _choices(options)]
    key = _key_before(options, about, place)
    check_alike(crew, key)
    check(options.out, key)
    # Rank 0 alone looks what is there, and tries which dtype is fastest on a CPU: all share out the same list.
    missing: dict[tuple[Choice, int], str] = {}
    if crew.rank == 0:
        found = [(dtype_name(dtype or pick_dtype(None, place, 0, "", kind)), kind) for dtype, kind in named]
        wanted = {(choice, token_budget(length)): length for choice in found for length in options.lengths}
        done = {(row.dtype, token_budget(row.length)) for row in _kept(options.out)}
        missing = {key: length for key, length in wanted.items() if (numbers(*key[0]), key[1]) not in done}
        print(f"{len(wanted) - len(missing)} of {len(wanted)} measurements are in {options.out}", flush=True)
        for file, count in strangers(options.out, "measurements").items():
            print(f"note: {file} holds {count} measurements of another plan: they are left out.", file=sys.stderr)
        if not missing and options.out.exists():
            check(options.out, _whole_key(key, options, *identity(options)), whole=True)
    missing = crew.agree(missing)
    devices = torch.cuda.device_count() if place.type == "cuda" else 1
    beside = -(-min(crew.local_size, len(missing)) // devices)
    if crew.rank == 0 and beside > 1:
        print(
            f"note: {crew.local_size} processes measure at the same time on "
            f"{'the same GPUs' if place.type == 'cuda' else 'the same cores'} and slow each other; for clean times, "
            f"give each a GPU of its own.",
            file=sys.stderr,
        )
    pieces = list(missing.items())
    mine = crew.share([tokens**2 for (_, tokens), _ in pieces])
    # In the order asked for, not the longest first: on a CPU the peak memory is that of the process so far.
    folders: list[Folder] = []

    def loaded(model: Model) -> None:
        whole = _whole_key(key, options, model.fingerprint(), model.defaults)
        folders.append(Folder(options.out, whole, crew.name, {"model": options.shape or options.model}))

    for result in _measurements(options, [(pieces[i][0][0], pieces[i][1]) for i in mine], team, left_out, loaded):
        folders[-1].add("measurements", asdict(replace(result, beside=max(1, beside))))


# What --out needs the same of all measurements, as it stands among the options.
SETTINGS = (
    "shape", "random_tokens", "kind", "prompt_seed", "backend", "dense_backend", "no_fuse", "repeats", "compose",
    "cache", "cache_refresh", "cache_keys",
)  # fmt: skip


def _key_before(options: argparse.Namespace, about: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """What the measurements of a folder depend on and have alike, as far as it is known before a model is loaded: all
    but the weights and what their defaults make of the sampler.
    """
    facts = ("cpu", "gpu", "torch") if device.type == "cuda" else ("cpu", "threads", "cpu_capability", "torch")
    launch, attention = Launch.here(), attention_of(options)
    sampler = {name: value for name in SAMPLER if (value := getattr(options, name)) is not None}
    sampler.pop("gen_length", None)  # it may be rounded up
    return {
        **{name: getattr(options, name) for name in SETTINGS},
        "sampler": sampler,
        "attention": {name: getattr(attention, name) for name in ATTENTION if name != "method"},
        "device": device.type,
        "fuses": can_fuse(device) and not options.no_fuse,
        "processes of one model": launch.size if launch.kind == "tensor" else 1,
        "machine": {name: about.get(name) for name in facts},
        "prompts": prompts_version(),
        "versions": versions(),
        **changes(options.rope_factor, None),
    }


def _whole_key(
    key: dict[str, Any], options: argparse.Namespace, weights: str, defaults: ResolvedSampler
) -> dict[str, Any]:
    """With what the model adds: its weights, and what its defaults make of the sampler."""
    sampler = sampler_of(options).resolve(defaults)
    return {**key, "weights": weights, "sampler": {name: getattr(sampler, name) for name in SAMPLER}}


def _kept(folder: Path) -> list[Measurement]:
    """The measurements of a folder, of all processes, by dtype and length; one that was made twice counts once."""
    rows = [read_as(Measurement, entry, "a measurement") for entry in read_lines(folder, "measurements")]
    kept = {(row.dtype, token_budget(row.length)): row for row in rows}
    return [kept[key] for key in sorted(kept)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sparsed bench", description=__doc__)
    parser.add_argument("--model", default="mini", help="a name of the catalogue or a local folder")
    parser.add_argument("--shape", choices=sorted(["mini", *SHAPES]), help="random weights of this shape")
    parser.add_argument("--lengths", nargs="+", default=["4k", "8k", "16k"], help="4k, 8k … or tokens")
    parser.add_argument("--random-tokens", action="store_true", help="random token ids as the prompt")
    parser.add_argument("--kind", default="about", help="kind of question in the prompt")
    parser.add_argument("--prompt-seed", type=int, default=0, help="which of the built prompts")
    add_sampler_options(parser.add_argument_group("sampler (default: 64 steps, else the model's own)"))
    group = parser.add_argument_group("SparseD (default: skip 0.2, select 0.3, attention block size 128)")
    add_preset_option(group)
    add_attention_options(group, without=["method"])
    add_cache_options(
        parser.add_argument_group("caches (default: none): each makes two lanes, with full attention and with SparseD"),
        several=True,
    )
    parser.add_argument("--backend", default="auto", help="sparse backend")
    parser.add_argument("--dense-backend", default="auto", help="dense attention: sdpa, cudnn, flash or flash4")
    parser.add_argument("--device", help="default: CUDA, else MPS, else CPU")
    parser.add_argument("--dtype", nargs="+", help="float32, bfloat16, float16 (default: the fastest here)")
    add_rope_factor(parser)
    add_quantize(parser, several=True)
    parser.add_argument("--no-fuse", action="store_true", help="do not torch.compile what surrounds attention")
    parser.add_argument("--threads", type=int, help="CPU threads of torch (default: torch's choice)")
    parser.add_argument("--repeats", type=int, default=1, help="whole runs of each lane")
    parser.add_argument(
        "--compose",
        type=int,
        nargs="*",
        metavar="T",
        help="put runs of T steps together from medians (default: 128; with --cache none, all are run whole)",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="keep measurements there; make only what is missing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE")
    return parser
