"""Whether the GPU is borrowed from a pool (ZeroGPU)."""

from __future__ import annotations

import os
from collections.abc import Mapping


def gpu_is_borrowed(environment: Mapping[str, str] | None = None) -> bool:
    """Does this process run on a ZeroGPU Space, which lends a GPU for one race at a time?"""
    values = os.environ if environment is None else environment
    return values.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
