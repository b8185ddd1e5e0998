"""What lanes there are, and what they are called."""

from __future__ import annotations

from sparsed.config import PATTERN_LABELS

DENSE, SPARSE, BASELINE = "dense", "sparse", "baseline"
LABELS = {DENSE: "Full attention", SPARSE: PATTERN_LABELS["sparsed"]}


def lane_label(key: str, pattern: str | None = None) -> str:
    """What a lane is called. pattern: which one the lane of a baseline uses (`sparsed.config.PATTERNS`)."""
    return PATTERN_LABELS.get(pattern or "", key) if key == BASELINE else LABELS.get(key, key)
