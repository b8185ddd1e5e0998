"""How much memory a race takes at most, and what that number is, in words."""

from __future__ import annotations

from sparsed import machine

GPU_WORDS = "Peak memory: what torch held at most on the GPU during the race, weights included."
LANES_WORDS = (
    "Peak memory: what torch held at most on one GPU during the race, weights included; where each lane had a GPU of "
    "its own, on the one that held more."
)
CPU_WORDS = "Peak memory: the largest resident size of the whole page’s process during the race, weights included."


class Peak(machine.Peak):
    """The peak of a race on the devices that hold a model's weights."""

    @property
    def words(self) -> str:
        """What the number is, in one sentence; empty where there is none."""
        gpu = LANES_WORDS if len(self.gpus) > 1 else GPU_WORDS
        return {"cuda": gpu, "cpu": CPU_WORDS}.get(self.kind, "")
