"""What a run costs as executed: multiplications and additions, counted from what it made and the network's sizes.

No torch here: tables of what is kept are made without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparsed.models.sizes import Sizes
from sparsed.runs import RunRecord

SIZES = "sizes"
"""The name that a network's sizes have in plan.json."""


@dataclass(frozen=True)
class Work:
    """What a run made for one sequence.

    Attributes:
        length: positions of a sequence, prompt and generation.
        dense: rows that forwards with full attention computed, all together, those that made a pattern among them; all
            of a sequence's in each forward, but with a cache.
        sparse: rows that forwards by a pattern computed, likewise.
        selections: forwards that computed the scores of all pairs once more to rank blocks.
        density: of the pairs of the sparse rows with all keys, the share that was computed; as executed, so whatever
            the backend computes beside what is kept counts, and so do full generation rows.
        head_rows: positions whose logits were asked for, over all forwards together.
        copies: sequences of a forward: 2 with classifier-free guidance.
    """

    length: int
    dense: int
    sparse: int
    selections: int
    density: float
    head_rows: int
    copies: int = 1


def length_of(run: RunRecord) -> int:
    """Positions of a sequence, prompt and generation."""
    length: int = run["prompt_tokens"] + run["sampler"]["gen_length"]
    return length


def work_of(
    run: RunRecord | None, density: float | None, head_rows: int | None, rows: Mapping[str, int] | None = None
) -> Work | None:
    """What a kept run made for one sequence (`sparsed.evaluation.executed`); None where an earlier version did not keep
    enough. rows: None where it did not count them: it had no cache, and each step computed all.
    """
    if run is None or head_rows is None:
        return None
    phases, attention, sampler = run["phases"], run["attention"], run["sampler"]
    if density is None and phases["sparse"]:
        return None
    length = length_of(run)
    rows = rows or {phase: steps * length for phase, steps in phases.items()}
    # The baselines choose blocks without looking at scores.
    ranks = attention["method"] in ("sparsed", "shared")
    fresh = phases["select"] + (0 if attention.get("reuse", True) else phases["sparse"])
    return Work(
        length=length,
        dense=rows["dense"] + rows["select"],
        sparse=rows["sparse"],
        selections=fresh if ranks else 0,
        density=density or 0.0,
        head_rows=head_rows,
        copies=2 if sampler.get("cfg_scale") else 1,
    )


def executed_cost(sizes: Sizes, work: Work) -> float:
    """Floating point operations of a run for one sequence, two for each multiplication with its addition.

    Attention, in each layer and head: q·k and probability·v of every pair that was computed, which are rows · length in
    a dense forward and density · rows · length in a sparse one; a selection adds q·k of all length² pairs once more,
    half of the attention of a dense forward over all rows. Outside attention, in each layer: the projections to q, k
    and v of the rows, and the output projection and the MLP of the rows but in the last layer, where only those whose
    logits are asked for go on; the head runs on these alone too. Norms, rotations, softmax, top-k and the sampler are
    left out, each of them small beside these; so is memory traffic, which a clock sees and this does not: a step over
    few rows is bound by it, so by the clock a cache is less fast than this says.
    """
    width, kv_width = sizes.heads * sizes.head_dim, sizes.key_heads * sizes.head_dim
    rows = work.dense + work.sparse
    pairs = (work.dense + work.density * work.sparse) * work.length
    ranked = work.selections * work.length**2
    attention = sizes.layers * width * (4 * pairs + 2 * ranked)
    before = sizes.layers * rows * 2 * sizes.hidden * (width + 2 * kv_width)
    after = ((sizes.layers - 1) * rows + work.head_rows) * 2 * sizes.hidden * (width + 3 * sizes.intermediate)
    head = work.head_rows * 2 * sizes.hidden * sizes.vocabulary
    return work.copies * (attention + before + after + head)
