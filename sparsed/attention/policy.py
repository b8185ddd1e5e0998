"""Which attention a run's steps have, and which blocks its layers keep: settings and rules, never state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from sparsed.attention.layout import BlockLayout
from sparsed.attention.pattern import LayerPattern
from sparsed.attention.selection.baselines import random_blocks, shared_by_heads, sliding_window, streaming_llm
from sparsed.attention.selection.isolated import blocks_to_keep, select_blocks
from sparsed.attention.selection.public_code import reference_blocks
from sparsed.config import Phase, ResolvedAttention, select_step, switch_step

if TYPE_CHECKING:
    from sparsed.parallel.share import Share


@dataclass(frozen=True)
class Selecting:
    """What a layer's blocks are chosen from; q, k: [batch, heads, length, head_dim], of this process's heads."""

    layer: int
    q: Tensor
    k: Tensor
    scale: float
    importance: Callable[[], Tensor]  # float32 [batch, query_heads, n, n], see `block_importance`
    share: Share | None  # of a model that several processes hold together

    @property
    def heads(self) -> int:
        """Query heads of all processes."""
        return self.q.shape[1] * (1 if self.share is None else self.share.size)


# The blocks, and the importances they were ranked by where there are any.
Chosen = tuple[LayerPattern, Tensor | None]


@dataclass(frozen=True)
class AttentionPolicy:
    """What one run's attention does at each step."""

    config: ResolvedAttention
    layout: BlockLayout  # of the sequence when it is whole
    steps: int
    blocks: int = 1  # semi-autoregressive blocks
    grows: bool = False  # each of them makes the sequence longer
    seed: int = 0  # what the baseline "random" draws from
    scaled_by_heads: bool = False  # selection "reference" divides scores by √query_heads (the public LLaDA code)

    @property
    def select_step(self) -> int | None:
        """The step, counted from 0, that makes the pattern; None: none of them."""
        step = select_step(self.steps, self.config.skip, self.config.selection)
        return step if step < self.steps else None

    @property
    def switch_step(self) -> int | None:
        """The first sparse step as planned, counted from 0; None: none of them. (With a threshold and `refresh`, blocks
        that are done early can move it.)
        """
        config = self.config
        return switch_step(self.steps, config.skip, config.selection, config.refresh, self.blocks, self.grows)

    def at(self, length: int) -> AttentionPolicy:
        """The same while the sequence has so many positions."""
        if length == self.layout.length:
            return self
        return replace(self, layout=replace(self.layout, length=length))

    def phase(self, step: int) -> Phase:
        """Full attention, then the step that makes the pattern, then the pattern; without `refresh`, where every step
        computes all rows of a sequence that does not grow.
        """
        if self.select_step is None or step < self.select_step:
            return "dense"
        return "select" if step == self.select_step else "sparse"

    def due(self, step: int, selected: int | None, new_block: bool) -> bool:
        """Is a pattern to be made, the first one or (with `refresh`, or for a longer sequence) a fresh one?

        selected: the last step that made one, None: none yet. new_block: a semi-autoregressive block has begun since.
        """
        if self.select_step is None or step < self.select_step:
            return False
        refresh = self.config.refresh
        if selected is None or (new_block and self.grows):
            return True
        return refresh > 0 and (new_block or step - selected >= refresh)

    def selects(self, phase: Phase) -> bool:
        """Whether a step of that phase makes patterns; without `reuse` the sparse ones do too. Such a step computes all
        rows.
        """
        return phase == "select" or (phase == "sparse" and not self.config.reuse)

    @property
    def kept(self) -> int:
        """Key blocks that a query block keeps."""
        sides = self.layout.prompt_blocks, self.layout.generation_blocks
        return sum(blocks_to_keep(self.config.select, side) for side in sides)

    @property
    def summed_pairs(self) -> int:
        """Block pairs of a sequence whose mean importance over all heads a selecting layer asks for; 0: it does not."""
        return self.layout.blocks**2 if self.config.method == "shared" else 0

    def choose(self, given: Selecting) -> Chosen:
        """The blocks that a layer keeps; not for the method "dense"."""
        chosen, ranked = _METHODS[self.config.method](self, given)
        if self.config.generation_rows == "full":
            chosen = chosen.with_full(self.layout.generation_query_blocks)
        return chosen, ranked


def _sparsed(policy: AttentionPolicy, given: Selecting) -> Chosen:
    config = policy.config
    if config.selection == "reference":
        scale = given.heads**-0.5 if policy.scaled_by_heads else given.scale
        importance, chosen = reference_blocks(given.q, given.k, scale, policy.layout, policy.config.select)
        return chosen, importance
    importance = given.importance()
    return select_blocks(importance, policy.layout, config.select, config.isolated), importance


def _shared(policy: AttentionPolicy, given: Selecting) -> Chosen:
    importance = given.importance()
    mean = importance.mean(1, keepdim=True)
    if given.share is not None:
        mean = given.share.mean(mean)
    return shared_by_heads(mean, policy.layout, policy.config.select, given.q.shape[1]), importance


def _random(policy: AttentionPolicy, given: Selecting) -> Chosen:
    seed = (1000 * policy.seed + given.layer) % 2**63
    drawn = random_blocks(policy.layout, policy.config.select, len(given.q), given.heads, seed, given.q.device)
    return drawn if given.share is None else drawn.of_heads(given.share.heads(given.heads)), None


def _sliding_window(policy: AttentionPolicy, given: Selecting) -> Chosen:
    batch, heads = given.q.shape[:2]
    return sliding_window(policy.layout, policy.config.select, batch, heads, given.q.device), None


def _streaming_llm(policy: AttentionPolicy, given: Selecting) -> Chosen:
    batch, heads = given.q.shape[:2]
    return streaming_llm(policy.layout, policy.config.select, batch, heads, given.q.device), None


_METHODS: dict[str, Callable[[AttentionPolicy, Selecting], Chosen]] = {
    "sparsed": _sparsed,
    "shared": _shared,
    "random": _random,
    "sliding_window": _sliding_window,
    "streaming_llm": _streaming_llm,
}
