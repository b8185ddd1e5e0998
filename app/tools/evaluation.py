"""Makes the evaluation that comes with the app of a folder of answers:
python -m app.tools.evaluation runs/eval --out assets/evaluation.json

What is written is what the figure of accuracy against speed and the recommendation need, and what the answers depend
on: the weights, the device, the versions. Of methods that ran the very same settings one is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from app.accuracy.shipped import RECOMMENDED_METHOD, SHIPPED, most_asked, packed, row_of, unpacked
from app.figures.tradeoff import distinct
from sparsed.edge import go_on, program
from sparsed.evaluation.reading import doubts, read_records, read_sizes
from sparsed.evaluation.recommend import recommended
from sparsed.evaluation.scores import summarise
from sparsed.files import check, write
from sparsed.results_folder import about_there, key_there


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return program(lambda: _make(arguments))


def _make(arguments: list[str] | None) -> None:
    parser = argparse.ArgumentParser(prog="python -m app.tools.evaluation", description=__doc__)
    parser.add_argument("folder", type=Path, help="what python -m sparsed eval --out wrote")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="the JSON file to write")
    given = parser.parse_args(arguments)
    go_on()
    check(given.out, "--out")
    key, about = key_there(given.folder), about_there(given.folder)
    if key is None or "model" not in about:
        raise ValueError(f"{given.folder} does not say with which weights its answers were made.")
    summary = summarise(read_records(given.folder), doubts=doubts(given.folder), sizes=read_sizes(given.folder))
    summary["key"] = key
    for sentence in summary["doubts"]:
        print(f"note: {sentence}", file=sys.stderr)
    kept = [row for length in dict.fromkeys(row["length"] for row in summary["lengths"])
            for row in distinct(summary, length)]  # fmt: skip
    if not any(row["speed"] is not None for row in kept if row["method"] != "dense"):
        raise ValueError(f"{given.folder} holds no setting beside full attention whose speed is known.")
    places = {(row["length"], row["method"]) for row in kept}
    summary["lengths"] = kept
    summary["cells"] = [cell for cell in summary["cells"] if (cell["length"], cell["method"]) in places]
    text = packed(summary, about["model"])
    write(given.out, text)
    read = unpacked(json.loads(text))
    if row_of(read, most_asked(read), RECOMMENDED_METHOD) is None:
        print(f"note: the recommended setting, {RECOMMENDED_METHOD}, was not asked.", file=sys.stderr)
    print(*recommended(read), sep="\n")
    print(f"{given.out}: {len(text.encode()):,} bytes; {len(kept)} rows, {len(summary['cells'])} cells")


if __name__ == "__main__":
    sys.exit(main())
