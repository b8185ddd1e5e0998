"""python -m sparsed lm_eval: lm-evaluation-harness's own command line, with the model "sparsed" registered."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from sparsed.edge import go_on
from sparsed.parallel.launch import Launch


def main(argv: Sequence[str]) -> int:
    """Hands the rest of the line to the harness as it is. Raises ValueError where the harness is not installed."""
    if find_spec("lm_eval") is None:
        raise ValueError("lm_eval is not installed: pip install 'sparsed[lm_eval]' (in a checkout '.[lm_eval]').")
    if Launch.here().rank:
        # The first process speaks for all that share the questions.
        os.environ["LMEVAL_LOG_LEVEL"] = "ERROR"
    import_module("sparsed.harness")
    run = import_module("lm_eval.__main__").cli_evaluate
    if any(word.split("=")[0] in ("--output_path", "-o") for word in argv):
        go_on()
    before = sys.argv
    # The harness reads its arguments there.
    sys.argv = ["lm_eval", *argv]
    try:
        run()
    finally:
        sys.argv = before
    return 0
