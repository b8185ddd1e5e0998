"""The command: python -m sparsed eval."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparsed import files
from sparsed.config import METHODS
from sparsed.edge import go_on
from sparsed.evaluation.answers import evaluate, goes_alone
from sparsed.evaluation.methods import ABLATIONS, ablations, parse_method, parts_of
from sparsed.evaluation.observe import observe
from sparsed.evaluation.plan import DEPTHS, LENGTHS, TYPES, USUAL_TYPES, Plan, default_cells
from sparsed.evaluation.reading import doubts, read_observations, read_records, read_sizes
from sparsed.evaluation.recommend import recommended
from sparsed.evaluation.scores import summarise
from sparsed.evaluation.tables import table
from sparsed.options import (
    ATTENTION,
    add_attention_options,
    add_quantize,
    add_rope_factor,
    add_sampler_options,
    attention_of,
    given_of,
    sampler_of,
    without_effect,
)
from sparsed.parallel.crew import Crew
from sparsed.results_folder import check, key_there

if TYPE_CHECKING:
    from sparsed.parallel.team import Team


def main(argv: Sequence[str] | None = None, team: Team | None = None) -> None:
    """Entry point of ``python -m sparsed eval``. team: the processes that hold the model together, under torchrun."""
    parser = _parser()
    args = parser.parse_args(argv)
    shard = _shard(args.shard)
    if args.json:
        files.check(args.json, "--json")
    go_on()  # answers are kept in a folder, whoever reads the tables
    if args.batch_tokens < 0:
        raise ValueError(f"--batch-tokens must be 0 or above, not {args.batch_tokens}.")
    if args.questions is not None and args.questions < 1:
        raise ValueError(f"--questions must be at least 1, not {args.questions}.")
    given = given_of(parser, args)
    if args.ablations is not None and "methods" in given:
        raise ValueError("--ablations asks methods of its own: leave one of --ablations and --methods out.")
    with Crew.here() as crew:
        for sentence in unheeded(args, given) if crew.rank == 0 else ():
            print(f"note: {sentence}", file=sys.stderr)
        if crew.size > 1 and args.shard is not None:
            raise ValueError("The processes of accelerate launch share the questions by themselves; leave out --shard.")
        if not args.report:
            try:
                _ask_all(args, shard, crew, team)
            except KeyboardInterrupt as error:
                kept = f"What {args.out} holds stays; the same command goes on from there."
                raise type(error)(kept) from None
        crew.wait()
    if crew.rank != 0:
        return
    records = read_records(args.out)
    if args.report and args.questions is not None:
        records = [record for record in records if record.index < args.questions]
    observations = read_observations(args.out)
    said = doubts(args.out)
    if not records and not observations:
        raise ValueError(" ".join([f"{args.out} holds no answers yet.", *said]))
    summary = {"key": key_there(args.out), **summarise(records, observations, said, read_sizes(args.out))}
    print(table(summary))
    if args.recommend:
        print("", *recommended(summary, caches=args.recommend == "caches"), sep="\n")
    if args.json:
        files.write(args.json, json.dumps(summary, indent=1))


def unheeded(args: argparse.Namespace, given: set[str]) -> list[str]:
    """Sentences about options that were `given`, by their names, and that change nothing here."""
    if args.report:
        heeded = {"report", "out", "json", "recommend", "questions"}
        return without_effect(given, given - heeded, "--report only reads the folder.")
    said = []
    if args.observe:
        alone = {"methods", "ablations", "batch_tokens"}
        said += without_effect(given, alone, "--observe makes runs of SparseD alone, one by one.")
    elif args.ablations is None and all(parts_of(method).attention == "dense" for method in args.methods):
        sparse = {*ATTENTION, "backend"}
        said += without_effect(given, sparse, "no sparse method is asked (later ones of this folder will have it).")
    if set(args.types) == {"arithmetic"}:
        said += without_effect(given, {"depths"}, "word problems need no document.")
    return said


def _ask_all(args: argparse.Namespace, shard: tuple[int, int], crew: Crew, team: Team | None) -> None:
    """Answers, or observes, what the folder lacks."""
    from sparsed.evaluation.key import key_before  # these need torch
    from sparsed.models.config_checks import check_factor
    from sparsed.models.devices import check_dtype, pick_device, pick_dtype
    from sparsed.models.loading import load

    plan = Plan(
        sampler=sampler_of(args),
        attention=attention_of(args),
        backend=args.backend,
        depths=tuple(args.depths) or None,
    )
    methods = args.methods if args.ablations is None else ablations(args.ablations or ["all"])
    parsed = [parse_method(method, plan.attention) for method in methods]
    cells = default_cells(args.lengths, args.types, args.questions)
    # Nothing is loaded for a folder that is another's, as far as that can be told.
    device, dtype = crew.device(args.device), check_dtype(args.dtype)
    place = team.share.device if team else pick_device(device)
    check(args.out, key_before(plan, place, dtype, check_factor(args.rope_factor), args.quantize))
    if dtype is None and crew.size > 1:
        # On a CPU a trial decides, and could decide otherwise in another process.
        dtype = crew.agree(pick_dtype(None, pick_device(device), 0, args.model, args.quantize))
    model = load(
        args.model, device=device, dtype=dtype, rope_factor=args.rope_factor, quantize=args.quantize, team=team
    )
    if args.observe:
        observe(model, cells, args.out, plan=plan, shard=shard, crew=crew)
    else:
        alone = [
            method.name
            for method in parsed
            if goes_alone(method, method.resolve(plan.sampler, model.defaults))
        ]
        if alone and args.batch_tokens and crew.rank == 0:
            print(
                f"note: --batch-tokens without effect for {', '.join(alone)}: runs that draw at random, or may end "
                f"early, go one by one.",
                file=sys.stderr,
            )
        evaluate(model, cells, methods, args.out, plan=plan, shard=shard, crew=crew, batch_tokens=args.batch_tokens)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sparsed eval",
        description="Accuracy of full attention, SparseD and baselines of equal density, with and without a "
        "cache, on the same questions.",
    )
    add = parser.add_argument
    add("--model", default="mini", help="catalogue name, Hub id or local folder")
    add("--types", nargs="+", choices=list(TYPES), default=list(USUAL_TYPES), help="question types")
    add("--lengths", nargs="+", default=["512", "1k", "2k"], help=f"of {' '.join(LENGTHS)}, or a number of tokens")
    add("--depths", nargs="*", type=float, default=list(DEPTHS), help="where the needed documents stand, 0 … 1; none: "
        "by chance")  # fmt: skip
    add("--questions", type=int, help="of each type and length; default 200 up to 16k, 100 at 32k, 40 at "
        "64k, 20 at 128k; with --report, only the first so many")  # fmt: skip
    add("--methods", nargs="+", default=["dense", "sparsed", "sliding_window", "streaming_llm"], metavar="METHOD",
        help=f"of {' '.join(METHODS)}; with a cache: dense+prefix, sparsed+dual; with settings of its own: "
        "sparsed:skip=0,select=0.1, dense:threshold=0.9, sparsed+refresh:cache_refresh=4")  # fmt: skip
    add("--ablations", nargs="*", choices=["all", *ABLATIONS], metavar="GROUP", help="instead of methods: dense, "
        f"SparseD, and one setting varied at a time; all, or of {' '.join(ABLATIONS)}")  # fmt: skip
    add("--observe", action="store_true", help="instead of answers: how alike the masks of two heads are, and of the "
        "switch and later steps")  # fmt: skip
    add_sampler_options(parser.add_argument_group("sampler (default: the model's own)"))
    group = parser.add_argument_group("sparse methods (default: as published for the length)")
    add_attention_options(group, without=["method"])
    add("--out", type=Path, default=Path("runs/eval"), help="folder of records; what is there is not asked again")
    add("--shard", help="i/n: every n-th question from the i-th (accelerate launch shares the work by itself)")
    add("--batch-tokens", type=int, default=0, help="run equal lengths together up to so many tokens, answers included")
    add("--backend", default="auto", help="what computes the sparse steps")
    add("--device")
    add("--dtype")
    add_rope_factor(parser)
    add_quantize(parser)
    add("--report", action="store_true", help="only print the tables of what is there")
    add("--recommend", nargs="?", choices=["attention", "caches"], const="attention", help="below the tables, for each "
        "length: the fastest setting of attention (or with a cache too) within 1 point of full attention on the mean "
        "and 3 on every question type")  # fmt: skip
    add("--json", type=Path, help="write the scores there")
    return parser


def _shard(said: str | None) -> tuple[int, int]:
    """What --shard says: this process's number, and of how many."""
    if said is None:
        return 0, 1
    part, _, parts = said.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise ValueError(f"--shard must be i/n with i from 0 to n − 1, not {said!r}.")
    return int(part), int(parts)


if __name__ == "__main__":
    main()
