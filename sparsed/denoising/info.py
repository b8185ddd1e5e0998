"""What a run was: its settings and what was really made. It stands beside every result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import cast

from sparsed.config import NO_CACHE, Phase, ResolvedAttention, ResolvedCache, ResolvedSampler
from sparsed.runs import RunRecord


@dataclass(frozen=True)
class RunInfo:
    """The settings of a run, every default filled in, and the steps that it made so far."""

    sampler: ResolvedSampler
    attention: ResolvedAttention
    backend: str  # what ran the sparse steps; of a dense run, all
    dense_backend: str  # what ran the others
    dtype: str  # "float32" …
    device: str  # "cpu", "cuda" …
    prompt_tokens: int  # of one sequence, its template included
    batch: int  # sequences
    phases: Mapping[Phase, int]  # steps made of each phase
    rows: Mapping[Phase, int]  # positions of a sequence that the steps of each phase computed, all together
    total: int  # steps of the whole run, at most
    finished: bool
    switch_step: int | None  # the first sparse step made, counted from 0; None where there was none
    notes: tuple[str, ...]  # sentences that a user should see
    cache: ResolvedCache = NO_CACHE

    @property
    def forwards(self) -> int:
        """Forward passes of the network: one a step, of twice as many sequences with classifier-free guidance."""
        return sum(self.phases.values())

    @property
    def never_sparse(self) -> bool:
        """It was asked to become sparse, and made every step with full attention."""
        return not self.attention.dense and not self.phases["sparse"]

    def record(self) -> RunRecord:
        """As plain values for JSON; of full attention and of no cache the method alone: they have no other setting."""
        attention = {"method": "dense"} if self.attention.dense else asdict(self.attention)
        values = {**asdict(self), "attention": attention, "cache": self.cache.record(), "forwards": self.forwards}
        values["sampler"]["stop"] = list(self.sampler.stop)
        values["notes"] = list(self.notes)
        del values["sampler"]["changed"]  # the notes begin with it
        return cast(RunRecord, values)
