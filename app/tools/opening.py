"""Records a race for the page to play: python -m app.tools.opening --length 8k --out assets/opening.json.gz

The lanes run to their ends as on the page: on this machine, never at the same time, the one with less time so far
first. What is written is what was measured; nothing else should use the machine meanwhile.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import sparsed
from app.engine.copies import line_up
from app.engine.local import SparsedEngine
from app.finished.run import OPENING, probe_steps
from app.lanes import FURTHER, lanes_for, watched
from app.phrases import clock
from app.race.race import Lane, Race
from sparsed import trace
from sparsed.config import SamplerConfig, SparseDConfig
from sparsed.edge import go_on, program
from sparsed.files import check
from sparsed.questions.build import build_prompt

if TYPE_CHECKING:
    from sparsed.denoising.run import Run


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return program(lambda: _record(arguments))


def _record(arguments: list[str] | None) -> None:
    parser = argparse.ArgumentParser(prog="python -m app.tools.opening", description=__doc__)
    parser.add_argument("--model", default="mini", help="a name of the catalogue or a local folder")
    parser.add_argument("--length", default="8k", help="prompt length: short_context, 1k … 128k")
    parser.add_argument("--kind", default="about", help="kind of question")
    parser.add_argument("--question", type=int, default=0, help="question number")
    parser.add_argument("--lanes", nargs="*", choices=FURTHER, default=[], help="further lanes (default: none)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    parser.add_argument("--out", type=Path, default=OPENING, help="the file to write; .gz compresses it")
    given = parser.parse_args(arguments)
    go_on()
    check(given.out, "--out")
    model = sparsed.load(given.model)
    prompt = build_prompt(model, given.length, given.kind, given.question)
    sampler = SamplerConfig(steps=given.steps).resolve(model.defaults)
    lanes = lanes_for(SparseDConfig(), given.lanes)
    switch_step = lanes[1].switch_step(sampler.steps, sampler.blocks, grows=sampler.grows)
    lanes = watched(lanes, True, probe_steps(sampler.steps, switch_step))
    runs = line_up(SparsedEngine(), (model,), prompt.text, sampler, lanes, "auto")
    for update in Race([Lane(key, run) for key, run in runs.items()]):
        for made in update.steps:
            step = made.step
            print(f"{made.lane}: step {step.index + 1} of {step.total}, {clock(step.seconds)}", flush=True)
        if update.error is not None:
            raise update.error
    trace.save(trace.record(cast("dict[str, Run]", runs), prompt=prompt, importance=True), given.out)
    spent = {key: sum(step.seconds for step in run.steps) for key, run in runs.items()}
    print(f"{given.out}: {given.out.stat().st_size:,} bytes; {' and '.join(map(clock, spent.values()))}")


if __name__ == "__main__":
    sys.exit(main())
