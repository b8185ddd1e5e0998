"""What the harness asks of a model beside its answers: to take part in several processes, and to say what it made.

Under ``accelerate launch`` each process has a whole model; the harness deals its questions out by `rank` and
`world_size`, and puts the answers together by `all_gather`, `gather_object` and `barrier`.
"""

from __future__ import annotations

import atexit
import logging
from contextlib import ExitStack
from typing import Any

import torch.distributed
from lm_eval.api.model import TemplateLM
from torch import Tensor

from sparsed.batches import Fitting
from sparsed.denoising.info import RunInfo
from sparsed.harness.counts import Count, Counts
from sparsed.parallel.crew import Crew
from sparsed.parallel.launch import Launch
from sparsed.runs import kind_of

_log = logging.getLogger(__name__)


class SharedLM(TemplateLM):
    """A model of the harness whose runs are counted, over all processes. The first one speaks for all."""

    def __init__(self) -> None:
        super().__init__()
        self.crew = _joined()
        self.show_speed = False
        self.fitting = Fitting()  # what is known of the memory here
        self.counts = Counts()  # what the runs of the evaluation were, those of all processes
        self._new = Counts()  # of this process, since all came together
        self._said: set[str] = set()
        self._over = False  # the evaluation has its results; what comes next belongs to another one

    @property
    def rank(self) -> int:
        return self.crew.rank

    @property
    def world_size(self) -> int:
        return self.crew.size

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The number of requests of a task in each process. The harness has processes with fewer than another answer
        some twice, for models whose forwards must come in step; ours need not, so all are said to have as many.

        Raises ValueError, in every process, where one has none: the harness has no result for it.
        """
        if not all(self.crew.gather(int(tensor))):
            raise ValueError(
                f"A task has fewer questions than there are processes ({self.crew.size}): start fewer processes."
            )
        return tensor.expand(self.crew.size)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        found = self.crew.gather(obj)
        return found if self.rank == dst else None

    def barrier(self) -> None:
        """All processes come here after each kind of request."""
        self._sum_up()

    def results(self) -> dict[str, Any]:
        """The counts of an evaluation, which is over now, as plain values for JSON."""
        self._over = True
        return self.counts.record()

    def count(self, task: str, kind: str, info: RunInfo, requests: int) -> Count:
        """Counts a run for a task, and says its notes."""
        count = self._new.of(task, kind)
        count.add(info, requests)
        for note in info.notes:
            self.say(kind_of(note), note)
        return count

    def say(self, what: str, sentence: str) -> None:
        """A warning, once for each kind and evaluation, of the first process."""
        self._begin()
        if self.rank == 0 and what not in self._said:
            self._said.add(what)
            _log.warning(sentence)

    def answered(self) -> None:
        """To be called when all requests of a kind are answered here."""
        if self.fitting.note is not None:
            self.say("memory", self.fitting.note)
        if self.world_size == 1:
            self._sum_up()

    def _sum_up(self) -> None:
        """Says what the runs of the requests just answered were, those of all processes together."""
        self._begin()
        new = Counts.of_all(self.crew.gather(self._new))
        self._new = Counts()
        self.counts = Counts.of_all([self.counts, new])
        for count in new.values():
            for kind, (first, _) in count.notes.items():
                self.say(kind, first)
        for sentence in (new.never_sparse(), new.speed() if self.show_speed else None):
            if sentence is not None:
                self.say(sentence, sentence)

    def _begin(self) -> None:
        """Forgets an evaluation that is over; a model may be used for several."""
        if self._over:
            self._over = False
            self.counts = Counts()
            self._said.clear()


def launched() -> bool:
    """Whether this process is one of several that each have a model."""
    return Launch.here().kind == "data"


def _joined() -> Crew:
    """The processes that share the questions, joined until this one ends."""
    launch = Launch.here()
    if launch.kind == "tensor":
        raise ValueError("lm_eval cannot run under torchrun; under accelerate launch processes share the questions.")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Crew(launch.rank, launch.size, launch.local_rank, launch.local_size)
    stack = ExitStack()
    crew = stack.enter_context(Crew.here())
    atexit.register(stack.close)
    return crew
