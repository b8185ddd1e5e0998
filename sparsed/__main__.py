"""The command line: python -m sparsed bench | eval | generate | lm_eval.

Under torchrun the processes hold one model together: the first runs the command, the others follow it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from importlib import import_module

from sparsed.edge import program
from sparsed.machine import add_version
from sparsed.parallel.launch import Launch

# command → (module with main(argv), one line of help). The modules load when they are needed.
_COMMANDS = {
    "bench": ("sparsed.bench.command", "time full attention against SparseD on this machine"),
    "eval": ("sparsed.evaluation.command", "measure the accuracy of answers, full attention and SparseD"),
    "generate": ("sparsed.generation.command", "answer one prompt, shown while it denoises"),
    "lm_eval": ("sparsed.harness.command", "lm-evaluation-harness with the model 'sparsed' (optional extra)"),
}

# Those that take a team; their main is main(argv, team). And those that share their work among processes.
_TEAM = ("bench", "eval", "generate")
_SHARED = ("bench", "eval", "lm_eval")


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand and returns its exit code, see `sparsed.edge.program`."""
    argv = sys.argv[1:] if argv is None else argv
    # Threads that spin while they wait slow every step many times over as soon as anything else uses a core.
    # torch reads this when it loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return program(lambda: _main(argv))


def _main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m sparsed", description=__doc__)
    add_version(parser, "torch", "transformers")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, text) in _COMMANDS.items():
        # The module's own parser reads the rest of the line, --help included.
        commands.add_parser(name, help=text, add_help=False)
    return _run(parser.parse_args(argv[:1]).command, argv[1:])


def _run(command: str, argv: list[str]) -> int:
    launch = Launch.here()
    able, launcher = {"data": (_SHARED, "accelerate launch"), "tensor": (_TEAM, "torchrun")}.get(launch.kind, ((), ""))
    if launcher and command not in able:
        raise ValueError(f"{command} cannot run under {launcher}; {', '.join(able)} can.")
    if {"-h", "--help"} & set(argv) and launch.rank:
        return 0  # one process says it
    if launch.kind != "tensor" or {"-h", "--help"} & set(argv):
        return int(_found(command)(argv) or 0)
    from sparsed.parallel.meeting import join  # needs torch, which help does not

    with join(launch) as team:
        return int(_found(command)(argv, team) or 0)


def _found(command: str) -> Callable[..., int | None]:
    found: Callable[..., int | None] = import_module(_COMMANDS[command][0]).main
    return found


if __name__ == "__main__":
    sys.exit(main())
