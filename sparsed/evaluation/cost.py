"""What a run costs as executed: multiplications and additions, counted from what it made and the network's sizes.

No torch here: tables of what is kept are made without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsed.runs import RunRecord

if TYPE_CHECKING:
    from sparsed.models.model import Model

SIZES = "sizes"
"""The name that a network's sizes have in plan.json."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a network that decide what a forward costs. intermediate: the MLP's inner width, of its three
    matrices. vocabulary: entries of one row of logits.
    """

    layers: int
    hidden: int
    heads: int
    key_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int

    @classmethod
    def of(cls, model: Model) -> Sizes:
        """Of the whole network, however many processes hold it."""
        config: Any = model.network.config
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            key_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            intermediate=config.intermediate_size,
            vocabulary=config.vocab_size,
        )


@dataclass(frozen=True)
class Work:
    """What a run made for one sequence.

    Attributes:
        length: positions of a forward, prompt and generation; every forward computes all of them.
        dense: forwards with full attention, those that made a pattern among them.
        sparse: forwards by a pattern.
        selections: forwards that computed the scores of all pairs once more to rank blocks.
        density: pairs that a sparse forward computes, as a share of length²; as executed, so whatever the backend
            computes beside what is kept counts, and so do full generation rows.
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


def work_of(run: RunRecord | None, density: float | None, head_rows: int | None) -> Work | None:
    """What a kept run made; None where an earlier version did not keep enough."""
    if run is None or head_rows is None:
        return None
    phases, attention, sampler = run["phases"], run["attention"], run["sampler"]
    if density is None and phases["sparse"]:
        return None
    # The baselines choose blocks without looking at scores.
    ranks = attention["method"] in ("sparsed", "shared")
    fresh = phases["select"] + (0 if attention.get("reuse", True) else phases["sparse"])
    return Work(
        length=run["prompt_tokens"] + sampler["gen_length"],
        dense=phases["dense"] + phases["select"],
        sparse=phases["sparse"],
        selections=fresh if ranks else 0,
        density=density or 0.0,
        head_rows=head_rows,
        copies=2 if sampler.get("cfg_scale") else 1,
    )


def executed_cost(sizes: Sizes, work: Work) -> float:
    """Floating point operations of a run for one sequence, two for each multiplication with its addition.

    Attention, in each layer and head: q·k and probability·v of every pair that was computed, which are length² in a
    dense forward and density · length² in a sparse one; a selection adds q·k of all length² pairs once more, half of a
    dense forward's attention. Outside attention, in each layer: the projections to q, k and v of all rows, and the
    output projection and the MLP of all rows but in the last layer, where only the rows whose logits are asked for go
    on; the head runs on these alone too. Norms, rotations, softmax, top-k and the sampler are left out, each of them
    small beside these; so is memory traffic, which a clock sees and this does not.
    """
    width, kv_width = sizes.heads * sizes.head_dim, sizes.key_heads * sizes.head_dim
    rows = (work.dense + work.sparse) * work.length
    pairs = (work.dense + work.density * work.sparse) * work.length**2
    ranked = work.selections * work.length**2
    attention = sizes.layers * width * (4 * pairs + 2 * ranked)
    before = sizes.layers * rows * 2 * sizes.hidden * (width + 2 * kv_width)
    after = ((sizes.layers - 1) * rows + work.head_rows) * 2 * sizes.hidden * (width + 3 * sizes.intermediate)
    head = work.head_rows * 2 * sizes.hidden * sizes.vocabulary
    return work.copies * (attention + before + after + head)
