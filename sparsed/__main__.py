"""The command line: python -m sparsed bench | eval | generate."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from typing import Literal

# command → (module with main(argv), one line of help). The modules load when they are needed.
_COMMANDS = {
    "bench": ("sparsed.bench", "time full attention against SparseD on this machine"),
    "eval": ("sparsed.evaluate", "measure the accuracy of answers, full attention and SparseD"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand and returns its exit code; a wrong value is one sentence on stderr and code 2."""
    argv = sys.argv[1:] if argv is None else argv
    # Threads that spin while they wait slow every step many times over as soon as anything else uses a core.
    # torch reads this when it loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = argparse.ArgumentParser(prog="python -m sparsed", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, text) in _COMMANDS.items():
        # The module's own parser reads the rest of the line, --help included.
        commands.add_parser(name, help=text, add_help=False)
    _add_generate(commands.add_parser("generate", help="answer one prompt and say how long it took"))
    if argv and argv[0] in _COMMANDS:
        run = import_module(_COMMANDS[argv[0]][0]).main
        arguments: list[str] | argparse.Namespace = argv[1:]
    else:
        run, arguments = _generate, parser.parse_args(argv)
    try:
        return int(run(arguments) or 0)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", nargs="?", help="the user message; without it a prompt of --length is built")
    parser.add_argument("--model", default="mini", help="a name of the catalogue or a local folder")
    parser.add_argument("--length", default="1k", help="short_context, 1k, 2k … 64k, or a number of tokens")
    parser.add_argument("--kind", default="about", help="kind of question in a built prompt")
    parser.add_argument("--prompt-seed", type=int, default=0, help="which of the built prompts")
    parser.add_argument("--dense", action="store_true", help="full attention in every step")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--gen-length", type=int)
    parser.add_argument("--block-length", type=int, help="semi-autoregressive block length")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--skip", type=float)
    parser.add_argument("--select", type=float)
    parser.add_argument("--block-size", type=int, help="attention block size: 32, 64 or 128")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--device")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16")


def _generate(options: argparse.Namespace) -> int:
    from sparsed.config import SamplerConfig, SparseDConfig

    sampler = SamplerConfig(
        steps=options.steps,
        gen_length=options.gen_length,
        block_length=options.block_length,
        temperature=options.temperature,
        seed=options.seed,
    )
    sparse = SparseDConfig(skip=options.skip, select=options.select, block_size=options.block_size)

    from sparsed.denoising import denoise
    from sparsed.models.loading import load

    model = load(options.model, device=options.device, dtype=options.dtype)
    text, gold = options.text, None
    if text is None:
        from sparsed.prompts import build_prompt

        length = int(options.length) if options.length.isdigit() else options.length
        built = build_prompt(model, length, options.kind, options.prompt_seed)
        text, gold = built.text, built.answer
        print(f"question: {built.question}")
    attention: SparseDConfig | Literal["dense"] = "dense" if options.dense else sparse
    run = denoise(model, text, sampler=sampler, attention=attention, backend=options.backend)
    for note in run.notes:
        print(f"note: {note}", file=sys.stderr)
    run.warm_up()
    result = run.result()
    print(f"answer: {result.text[0]}")
    if gold is not None:
        print(f"gold: {gold}")
    switch = "never sparse" if result.switch_step is None else f"sparse from step {result.switch_step + 1}"
    print(
        f"{run.prompt_length} prompt tokens, {run.total} steps ({switch}), backend {result.backend}, "
        f"{str(model.dtype).removeprefix('torch.')} on {model.device}: {result.seconds:.2f} s, "
        f"{1000 * result.seconds / run.total:.0f} ms a step"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
