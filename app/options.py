"""What the page is started with: the command line and the environment, read before anything heavy is imported."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.engine.cost import lanes_take_turns
from app.engine.interface import check_name
from app.server.journal import Journal
from app.server.limits import Limits
from sparsed.machine import add_version

PORTS = range(65_536)


@dataclass(frozen=True)
class Options:
    """See `parser` for the first four."""

    host: str | None
    port: int | None
    model: str
    any_model: bool
    limits: Limits
    journal: Journal


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python app.py", description="Full attention and SparseD, side by side.")
    add_version(made, "torch", "transformers", "gradio")
    made.add_argument("--host", help="address to listen on (default 127.0.0.1, or GRADIO_SERVER_NAME)")
    made.add_argument("--port", type=int, help="port (default GRADIO_SERVER_PORT, or the first free from 7860)")
    made.add_argument("--model", default="mini", help="a model of the catalogue, or a folder (default: mini); "
        "with @int8, @int4 or @fp8 behind it, in fewer bits")  # fmt: skip
    made.add_argument(
        "--allow-any-model",
        action="store_true",
        help="visitors may type any Hub id or folder; not where strangers come (on a Space, or with SPARSED_PUBLIC=1)",
    )
    return made


def read(arguments: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> Options:
    """None: those of this process. Raises ValueError, in a sentence, for a value that does not go; ends the process, as
    argparse does, for --help and for what is no option.
    """
    given = parser().parse_args(arguments)
    if given.port is not None and given.port not in PORTS:
        raise ValueError(cannot_listen(given.port))
    for name in ("GRADIO_SERVER_PORT", "GRADIO_NUM_PORTS"):
        # gradio reads them when it is imported, and fails with a traceback.
        said = (os.environ if environment is None else environment).get(name)
        if said is not None and not (said.isascii() and said.isdigit()):
            raise ValueError(f"{name} is {said!r}; it must be a whole number.")
    check_name(given.model)
    limits, journal = Limits.here(environment), Journal.here(environment)
    lanes_take_turns(environment)
    if given.allow_any_model and limits.public:
        raise ValueError("--allow-any-model is not for a public page: leave it out, or set SPARSED_PUBLIC=0.")
    return Options(given.host, given.port, given.model, given.allow_any_model, limits, journal)


def cannot_listen(port: int | None, host: str | None = None) -> str:
    """What is said of a port that is taken, or is none, or of a host that may not be this machine."""
    wanted = f"port {port}" if port is not None else "any port that it tried"
    if host is not None:
        return f"The page cannot listen on {wanted} of {host!r}: choose another one with --port or --host."
    return f"The page cannot listen on {wanted}: choose another one with --port."
