"""``python -m sparsed.training``: tokenizer, training, export of the bundled model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sparsed.edge import go_on, program


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m sparsed.training``; returns its exit status."""
    return program(lambda: _main(argv))


def _main(argv: list[str] | None) -> None:
    parser = argparse.ArgumentParser(prog="python -m sparsed.training", description="Make the bundled model again.")
    commands = parser.add_subparsers(dest="command", required=True)
    tokenizer = commands.add_parser("tokenizer", help="train the tokenizer")
    tokenizer.add_argument("--out", type=Path, required=True)
    tokenizer.add_argument("--seed", type=int, default=0)
    train = commands.add_parser("train", help="train the network; run it again to resume (torchrun for several GPUs)")
    train.add_argument("--out", type=Path, required=True, help="folder of checkpoints and the log")
    train.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    train.add_argument("--seconds", type=float, default=600, help="wall-clock budget")
    train.add_argument("--tokens", type=int, default=65_536, help="tokens a process and step")
    train.add_argument("--learning-rate", type=float, default=2e-3)
    train.add_argument("--workers", type=int, default=8, help="data-loader processes")
    train.add_argument("--longest", type=int, default=65_536, help="leave out longer rows (slow machines)")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--start-from", type=Path, help="weights to go on from, by the last four stages")
    export = commands.add_parser("export", help="write a folder that sparsed.load reads")
    export.add_argument("--run", type=Path, required=True, help="folder of a finished training run")
    export.add_argument("--tokenizer", type=Path, required=True)
    export.add_argument("--out", type=Path, required=True)
    export.add_argument("--after", type=Path, help="training.json of the model that the run began with")
    args = parser.parse_args(argv)
    go_on()

    if args.command == "tokenizer":
        from sparsed.training import tokenizer as made  # needs tokenizers, which help does not

        made.save(made.train(args.seed), args.out)
        return

    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(args.tokenizer))
    if args.command == "train":
        # It brings torch.
        from sparsed.training.recipe import CURRICULUM, Recipe, last_stages, shortened
        from sparsed.training.trainer import Trainer  # torch

        recipe = Recipe(seconds=args.seconds, tokens=args.tokens, learning_rate=args.learning_rate, seed=args.seed)
        curriculum = shortened(CURRICULUM, args.longest)
        if args.start_from is not None:
            curriculum = last_stages(curriculum)
        Trainer(recipe, args.out, loaded, args.workers, args.start_from, curriculum).run()
    else:
        from sparsed.training.export import export as export_run  # torch

        export_run(args.run, loaded, args.out, args.after)


if __name__ == "__main__":
    sys.exit(main())
