"""What lanes there are, and what they are called."""

from __future__ import annotations

from sparsed.config import METHOD_LABELS

DENSE, SPARSE, BASELINE = "dense", "sparse", "baseline"
LABELS = {DENSE: METHOD_LABELS["dense"], SPARSE: METHOD_LABELS["sparsed"]}


def lane_label(key: str, method: str | None = None) -> str:
    """What a lane is called. method: what the lane of a baseline uses (`sparsed.METHODS`)."""
    return METHOD_LABELS.get(method or "", key) if key == BASELINE else LABELS.get(key, key)
