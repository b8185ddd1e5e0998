"""The speeds that the SparseD paper (arXiv 2509.24014) reports, to stand beside what is measured here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """Whole runs of 128 steps. dense, sparse: seconds. gain: the speed-up, as the paper writes it where it does."""

    dense: float
    sparse: float
    gain: float


# Prompt length → both models on one A800 80 GB, 128 denoising steps, full attention by FlashAttention.
DREAM = {
    "4k": Published(33, 36, 33 / 36),
    "8k": Published(81, 84, 81 / 84),
    "16k": Published(207, 195, 207 / 195),
    "32k": Published(563, 496, 563 / 496),
    "64k": Published(1699, 1371, 1.23),
}
LLADA = {
    "4k": Published(38, 41, 38 / 41),
    "8k": Published(94, 95, 94 / 95),
    "16k": Published(245, 230, 245 / 230),
    "32k": Published(690, 596, 690 / 596),
    "64k": Published(2127, 1695, 1.25),
}
# At 64k the paper also has 1024 steps, as a speed-up alone.
MANY_STEPS = 1024


@dataclass(frozen=True)
class Source:
    """One of the paper's models. many: its speed-up at 64k in MANY_STEPS steps."""

    model: str
    runs: dict[str, Published]
    many: float

    @property
    def words(self) -> str:
        """What the figures are, in one sentence."""
        return (
            f"The paper’s figures: {self.model}, one A800 80 GB, 128 steps, against FlashAttention "
            f"(at 64k in {MANY_STEPS:,} steps: {self.many:.2f}×)."
        )


def source(family: str) -> Source:
    """The paper's model that is nearest to one of this family (see `sparsed.models.catalogue`)."""
    if family == "dream":
        return Source("Dream-7B", DREAM, 1.50)
    return Source("LLaDA-1.5", LLADA, 1.48)
