"""What a head would keep at another select: ranked anew by the engine's own rule, from the importances that the run's
select step saw. No step is made for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from app.finished.run import Kept
from app.phrases import PERCENT
from app.texts import NO_SELECTION, WHAT_IF_BY_RULE, WHAT_IF_LATER, WHAT_IF_UNKNOWN
from sparsed.attention.masks import Masks

# The slider goes from here to 1.
LEAST, STEP = 0.02, 0.01


@dataclass(frozen=True)
class WhatIf:
    """A head's mask, bool [query blocks, key blocks], at this select; mass: the share of attention it keeps, 0 … 1."""

    select: float
    mask: np.ndarray
    mass: float

    @property
    def keeps(self) -> tuple[str, str]:
        """The shares of blocks and of attention that it keeps, in words."""
        # Down: less than all is never called all.
        share = math.floor(1000 * self.mass + 1e-6) / 10
        return f"{100 * self.mask.mean():.1f}{PERCENT}", f"{share:.1f}{PERCENT}"


def why_not(run: Kept | Masks | None) -> str:
    """Why no other select can be tried on the pattern that is looked at, in a sentence; "" where one can."""
    if not isinstance(run, Kept):
        return WHAT_IF_LATER
    if run.pattern is None or run.seen is None:
        return NO_SELECTION
    attention = run.seen.attention
    # The public code ranks by two softmaxes, whose sums are no shares of attention.
    if attention.method != "sparsed" or attention.selection != "paper":
        return WHAT_IF_BY_RULE
    return "" if run.pattern.importances else WHAT_IF_UNKNOWN


def own(run: Kept, layer: int, head: int) -> WhatIf:
    """What the run itself has kept. Only where `why_not` is ""."""
    pattern = _of(run)
    mask = pattern.mask(layer)[0, head]
    mass = pattern.kept_mass[layer][head] if pattern.kept_mass else _mass(pattern, layer, head, mask)
    return WhatIf(pattern.select, mask, mass)


def what_if(run: Kept, layer: int, head: int, select: float) -> WhatIf:
    """What it would have kept at this select, 0 < select ≤ 1. Only where `why_not` is "".

    Importances are kept rounded (float16; in a record a byte): of blocks that are equal then, the first are kept.
    """
    import torch  # the page draws masks before torch is loaded

    from sparsed.attention.selection.isolated import select_blocks  # needs torch

    pattern = _of(run)
    weights = pattern.importance(layer, head)
    assert weights is not None and run.seen is not None
    chosen = select_blocks(
        torch.from_numpy(weights)[None, None], pattern.layout, select, run.seen.attention.isolated
    ).with_full(pattern.full_blocks)
    mask = chosen.mask()[0, 0].numpy()
    return WhatIf(select, mask, _mass(pattern, layer, head, mask))


def said(run: Kept | Masks | None, layer: int, head: int, tried: WhatIf | None) -> str:
    """A sentence: what is kept at the select that is tried, beside what the run itself keeps."""
    reason = why_not(run)
    if reason or not isinstance(run, Kept):
        return reason
    mine = own(run, layer, head)
    blocks, attention = mine.keeps
    if tried is None:
        kept = f"this head keeps {blocks} of blocks and {attention} of attention"
        return f"The run’s own select, {mine.select:g}: {kept}. Move it: nothing is run."
    would = "this head would keep {} of blocks and {} of attention".format(*tried.keeps)
    return f"At {tried.select:g} {would}; at the run’s own {mine.select:g} it keeps {blocks} and {attention}."


def _of(run: Kept) -> Masks:
    assert run.pattern is not None
    return run.pattern


def _mass(pattern: Masks, layer: int, head: int, mask: np.ndarray) -> float:
    """The share of attention in a mask of one head: importance times width, the mean over its query rows."""
    weights = pattern.importance(layer, head)
    assert weights is not None
    widths = np.array([end - start for start, end in pattern.layout.ranges], dtype=np.float32)
    mass = weights * widths
    share = (mass * mask).sum(1) / np.maximum(mass.sum(1), np.finfo(np.float32).tiny)
    return min(1.0, float(share @ widths) / pattern.layout.length)
