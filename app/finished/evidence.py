"""What a token of the answer can see: the key blocks that its query block keeps in one head, in every lane, and where
the documents lie that the question needs.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from app.finished.run import Kept
from app.finished.what_if import WhatIf
from sparsed.attention.layout import BlockLayout
from sparsed.attention.masks import Masks


def evidence(run: Kept | Masks, layer: int, head: int, tried: WhatIf | None = None) -> dict[str, Any] | None:
    """The answer's rows of the masks of one head, as assets/page/evidence.js lights them; None without a pattern.

    {"layer", "head", "size": tokens of a block, "prompt": prompt tokens, "blocks", "needed": [[first, last key block]
    of each document], "lanes": lane's key → the rows of the query blocks that hold a generated token, each a bit for
    a key block, first bit highest, base64; None for a lane with full attention, whose rows see every key, "what_if":
    None or {"lane", "select"}}. Of a run that goes on the headline's lane is "", and no document's place is known.
    tried: what the lane that is looked at would keep, in place of what it keeps.
    """
    pattern = run if isinstance(run, Masks) else run.pattern
    if pattern is None:
        return None
    layout = pattern.layout
    lanes: dict[str, list[str] | None] = {}
    if isinstance(run, Masks):
        lanes[""] = _rows(layout, pattern.mask(layer)[0, head])
    else:
        for lane, made in run.lanes.items():
            if made.attention.dense:
                lanes[lane.key] = None
            elif made.pattern is not None and made.pattern.layout == layout:
                mask = tried.mask if tried and made is run.seen else made.pattern.mask(layer)[0, head]
                lanes[lane.key] = _rows(layout, mask)
    places = run.trace.prompt.needed if isinstance(run, Kept) else ()
    return {
        "layer": layer,
        "head": head,
        "size": layout.block_size,
        "prompt": layout.prompt_length,
        "blocks": layout.blocks,
        "needed": [[first // layout.block_size, (end - 1) // layout.block_size] for first, end in places],
        "lanes": lanes,
        "what_if": {"lane": run.seen_key, "select": tried.select} if tried and isinstance(run, Kept) else None,
    }


def _rows(layout: BlockLayout, mask: np.ndarray) -> list[str]:
    rows = np.packbits(mask[layout.blocks - layout.generation_query_blocks :], axis=1)
    return [base64.b64encode(row.tobytes()).decode("ascii") for row in rows]
