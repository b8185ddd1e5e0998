"""Makes the evaluation that comes with the app of folders of answers, and of one made before:
python -m app.tools.evaluation runs/eval assets/evaluation.json --out assets/evaluation.json

What is written is what the figure of accuracy against speed and the recommendation need, and what the answers depend
on: the weights, the device, the versions. Of methods that ran the very same settings one is kept. Of a method that
several of them asked at the same length, the one stands that asked most questions, or else the first one named.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from app.accuracy.shipped import RECOMMENDED_METHOD, SHIPPED, Row, packed, row_of, unpacked
from app.figures.tradeoff import distinct
from app.tools.tradeoff import summary_of
from sparsed.config import ResolvedSampler
from sparsed.edge import go_on, program
from sparsed.evaluation.recommend import most_asked, recommended
from sparsed.files import check, write
from sparsed.options import ATTENTION, SAMPLER
from sparsed.questions.lengths import token_budget
from sparsed.results_folder import about_there, differences


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return program(lambda: _make(arguments))


def _make(arguments: list[str] | None) -> None:
    parser = argparse.ArgumentParser(prog="python -m app.tools.evaluation", description=__doc__)
    parser.add_argument("sources", type=Path, nargs="+", help="folders that python -m sparsed eval --out wrote, and "
                        "files of this command")  # fmt: skip
    parser.add_argument("--out", type=Path, default=SHIPPED, help="the JSON file to write")
    given = parser.parse_args(arguments)
    go_on()
    check(given.out, "--out")
    summary = joined({str(path): with_keys(path) for path in given.sources})
    if not any(row["speed"] is not None for row in summary["lengths"] if row["method"] != "dense"):
        raise ValueError(f"{given.sources[0]} holds no setting beside full attention whose speed is known.")
    text = packed(summary, summary["model"])
    write(given.out, text)
    read = unpacked(json.loads(text))
    if row_of(read, most_asked(read), RECOMMENDED_METHOD) is None:
        print(f"note: the recommended setting, {RECOMMENDED_METHOD}, was not asked.", file=sys.stderr)
    print(*recommended(read), sep="\n")
    print(f"{given.out}: {len(text.encode()):,} bytes; {len(read['lengths'])} rows, {len(read['cells'])} cells")


def with_keys(path: Path) -> dict[str, Any]:
    """The summary of a file of this command, or of a folder of answers as such a file has it. Raises ValueError for
    what is neither, and for a folder that does not say with which weights they were made; what else its answers do not
    say is printed.
    """
    summary = summary_of(path)
    if "keys" in summary:
        return summary
    model = about_there(path).get("model") if path.is_dir() else None
    if model is None or summary["key"] is None:
        raise ValueError(f"{path} does not say with which weights its answers were made.")
    for sentence in summary["doubts"]:
        print(f"note: {sentence}", file=sys.stderr)
    asked = dict.fromkeys(row["length"] for row in summary["lengths"])
    kept = [row for length in asked for row in distinct(summary, length)]
    places = {place_of(row) for row in kept}
    found = {"lengths": kept, "cells": [cell for cell in summary["cells"] if place_of(cell) in places]}
    numbered = {name: [{**row, "made": 0} for row in rows] for name, rows in found.items()}
    return {"model": model, "keys": [summary["key"]], **numbered}


def joined(sources: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """One summary of several, by name, the later ones' keys after the earlier ones'. Raises ValueError where answers
    depend on something else: keys may differ in versions alone.
    """
    (first, base), *_ = sources.items()
    found: dict[str, Any] = {"model": base["model"], "keys": [], "lengths": [], "cells": []}
    for name, summary in sources.items():
        for key in summary["keys"]:
            unlike = differences(depends_on(base["keys"][0]), depends_on(key))
            if unlike:
                raise ValueError(f"{name} is not like {first} ({', '.join(unlike)}): they are two evaluations.")
        for rows in ("lengths", "cells"):
            found[rows] += [{**row, "made": row["made"] + len(found["keys"])} for row in summary[rows]]
        found["keys"] += summary["keys"]
    best: dict[tuple[str, str], Row] = {}
    for row in found["lengths"]:
        if place_of(row) not in best or row["questions"] > best[place_of(row)]["questions"]:
            best[place_of(row)] = row
    for rows in ("lengths", "cells"):
        own = [row for row in found[rows] if row["made"] == best[place_of(row)]["made"]]
        found[rows] = sorted(own, key=lambda row: token_budget(row["length"]))
    used = sorted({row["made"] for row in found["lengths"]})
    for rows in ("lengths", "cells"):
        found[rows] = [{**row, "made": used.index(row["made"])} for row in found[rows]]
    found["keys"] = [found["keys"][number] for number in used]
    return found


def depends_on(key: Mapping[str, Any]) -> dict[str, Any]:
    """A key without its versions; settings that came after it had the value that they have where none is given."""
    later = {field.name: field.default for field in fields(ResolvedSampler) if field.default is not MISSING}
    sampler = {name: value for name, value in later.items() if name in SAMPLER} | key["sampler"]
    attention = dict.fromkeys(ATTENTION) | key["attention"]
    found = {**key, "sampler": sampler, "attention": attention}
    found.pop("versions", None)
    return dict(json.loads(json.dumps(found)))


def place_of(row: Row) -> tuple[str, str]:
    """The prompt length and the method of a row."""
    return row["length"], row["method"]


if __name__ == "__main__":
    sys.exit(main())
