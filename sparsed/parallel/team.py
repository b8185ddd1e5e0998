"""Several processes that hold one model together (tensor parallelism), started by torchrun.

The first process drives: it runs the program, makes every decision, and sends orders; the others follow. An order is a
forward: the whole canvas, and what the run's attention is to do with it. So nothing can drift apart: the followers know
no sampler and no random numbers, only weights, and for each run the patterns of their own heads.

Orders and answers go through a socket between the driver and each follower, which also tells each side when the other
one is gone, however it went. Tensors that all processes compute together go through torch.distributed
(`sparsed.parallel.share`).

    team = join()                            # under torchrun; a follower does not return
    model = sparsed.load("llada-1.5", team=team)

One machine, one GPU for each process (or CPU processes, for trying it out).
"""

from __future__ import annotations

import queue
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from sparsed.attention.pattern import LayerPattern, Pattern
from sparsed.attention.state import RunAttention
from sparsed.denoising.forward import Pass
from sparsed.machine import peak_bytes
from sparsed.models.shares import load_share, random_network
from sparsed.parallel.follower import end_process, share_logits
from sparsed.parallel.launch import TeamError, TeamLost
from sparsed.parallel.messages import MadeNetwork, PassMessage
from sparsed.parallel.share import Share

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# torchrun passes a Ctrl-C on that the terminal has sent to every process itself.
_SAME_SIGNAL_SECONDS = 3.0


class Team:
    """The driver's side: orders to the other processes, and what they answer.

    share: this process's. size: processes. lost: a sentence once one of them is gone, else None. on_lost: see `join`.
    """

    def __init__(
        self, share: Share, lines: dict[int, Connection], on_lost: Callable[[str], None] | None = None
    ) -> None:
        self.share, self.size = share, share.size
        self.lost: str | None = None
        self.on_lost = on_lost or end_process
        self._lines = lines
        self._answers: dict[int, queue.SimpleQueue[Any]] = {rank: queue.SimpleQueue() for rank in lines}
        self._turn = threading.RLock()
        self._closed = False
        self._forgotten: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self._runs: set[int] = set()  # keys of attentions that the others know
        self._networks = 0
        self._numbers: weakref.WeakKeyDictionary[PreTrainedModel, int] = weakref.WeakKeyDictionary()
        for rank in lines:
            threading.Thread(target=self._listen, args=(rank,), name=f"team-{rank}", daemon=True).start()
        self._busy = self._interrupted = False
        self._last_interrupt = -_SAME_SIGNAL_SECONDS
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._interrupt)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Keeps other threads from giving orders, so that what is timed inside waits for nobody."""
        with self._turn:
            yield

    def load(
        self,
        folder: Path,
        dtype: torch.dtype,
        fusing: bool,
        on_weight: Callable[[str], None],
        rope_factor: float = 1.0,
    ) -> MadeNetwork:
        """A network of which every process has read its share; see `sparsed.models.shares.load_share`. The others'
        shares go when the driver's is freed. Raises what loading raises.
        """
        return self._network(
            ("load", str(folder), dtype, fusing, rope_factor),
            lambda: load_share(folder, dtype, fusing, self.share, on_weight, rope_factor),
        )

    def build(self, raw: Mapping[str, Any], dtype: torch.dtype, fusing: bool) -> MadeNetwork:
        """The same with random weights; see `sparsed.models.shares.random_network`."""
        share = self.share
        return self._network(
            ("build", dict(raw), dtype, fusing), lambda: random_network(raw, dtype, share.device, fusing, share)
        )

    def _network(self, order: tuple[Any, ...], make: Callable[[], MadeNetwork]) -> MadeNetwork:
        with self._turn:
            self._networks += 1
            number = self._networks
            try:
                (network, problem), others = self._order((order[0], number, *order[1:]), make, answers=True)
            except BaseException:
                self._forgotten.put(("network", number))
                raise
        self._numbers[network] = number
        weakref.finalize(network, self._forgotten.put, ("network", number))
        return network, next((one for one in (problem, *others) if one is not None), None)

    def forward(self, network: PreTrainedModel) -> TeamForward:
        """The forward of a network that this team has made."""
        return TeamForward(self, network)

    def logits(self, network: PreTrainedModel, ids: Tensor, pass_: Pass) -> Tensor:
        """A forward over ids int64 [batch, length]: logits [m, vocabulary] of the wanted positions. Raises TeamError
        where another process failed, TeamLost where one is gone.
        """
        with self._turn:
            attention = pass_.attention
            if attention.key not in self._runs:
                self._runs.add(attention.key)
                weakref.finalize(attention, self._forgotten.put, ("run", attention.key))
            order = ("logits", self._numbers[network], PassMessage.of(pass_), ids.cpu().numpy())
            made: Tensor = self._order(order, lambda: share_logits(network, ids, pass_, self.share))
        return made

    def pattern(self, attention: RunAttention) -> Pattern:
        """The pattern of all heads after a "select" forward, on the CPU; takes the importances as
        `RunAttention.pattern`.
        """
        with self._turn:
            own, others = self._order(("pattern", attention.key), attention.pattern, answers=True)
        parts = [own, *(part.to_pattern() for part in others)]
        layers = tuple(LayerPattern.joined(layer) for layer in zip(*(part.layers for part in parts)))
        importance = None
        if own.importance is not None:
            importance = tuple(torch.cat(layer, dim=1) for layer in zip(*(part.importance for part in parts)))
        return Pattern(own.layout, layers, own.select, importance)

    def peaks(self, reset: bool = False) -> list[int]:
        """`sparsed.machine.peak_bytes` of every process; empty where the system does not say."""
        with self._turn:
            own, others = self._order(("peak", reset), lambda: peak_bytes(self.share.device, reset), answers=True)
        return [found for found in (own, *others) if found is not None]

    def close(self) -> None:
        """The followers end. Any number of times."""
        with self._turn:
            if self._closed:
                return
            self._closed = True
            for line in self._lines.values():
                with suppress(OSError):
                    line.send(("end",))
            if self.lost is None:
                dist.destroy_process_group()

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _order(self, order: tuple[Any, ...], own: Callable[[], Any], answers: bool = False) -> Any:
        """Has every follower carry out an order, and this process its part of it, `own`. Returns what that returns, and
        with `answers` also what each follower answered. Call with the turn taken.
        """
        if self.lost is not None:
            raise TeamLost(self.lost)
        forgotten = []
        while not self._forgotten.empty():
            forgotten.append(self._forgotten.get())
        self._runs -= {number for kind, number in forgotten if kind == "run"}
        with self._uninterrupted():
            for line in self._lines.values():
                with suppress(OSError):  # whoever listens to it says that it is gone
                    line.send((*order, forgotten))
            made, failed = None, None
            try:
                made = own()
            except Exception as error:  # noqa: BLE001 (the answers must be taken first, whatever it is)
                failed = error
            said = [self._answer(rank) for rank in sorted(self._lines)]
        if self.lost is not None:
            raise TeamLost(self.lost)
        if failed is not None:
            raise failed
        for rank, (done, value) in zip(sorted(self._lines), said):
            if not done:
                raise TeamError(f"Process {rank + 1} of {self.size} failed: {value}")
        return (made, [value for _, value in said]) if answers else made

    def _answer(self, rank: int) -> Any:
        while True:
            try:
                return self._answers[rank].get(timeout=0.5)
            except queue.Empty:
                if self.lost is not None:
                    return False, self.lost

    def _listen(self, rank: int) -> None:
        """Takes the follower's answers; and hears when it is gone."""
        line, answers = self._lines[rank], self._answers[rank]
        try:
            while True:
                answers.put(line.recv())
        except (EOFError, OSError):
            pass
        if self._closed:
            return
        first = self.lost is None
        if first:
            self.lost = (
                f"Process {rank + 1} of {self.size}, which held a share of the model, is gone: it ended, or the system "
                f"ended it. The program has to be started again, with all its processes."
            )
        answers.put((False, self.lost))
        if first and self.lost is not None:
            self.on_lost(self.lost)

    @contextmanager
    def _uninterrupted(self) -> Iterator[None]:
        """A Ctrl-C waits for the end of an order: half of one would leave the processes in different places."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
        if self._interrupted and threading.current_thread() is threading.main_thread():
            self._interrupted = False
            raise KeyboardInterrupt

    def _interrupt(self, *_: object) -> None:
        now, before = monotonic(), self._last_interrupt
        self._last_interrupt = now
        if now - before < _SAME_SIGNAL_SECONDS:
            return
        if not self._busy:
            raise KeyboardInterrupt
        self._interrupted = True


class TeamForward:
    """A network that a team holds; see `sparsed.denoising.forward.Forward`."""

    def __init__(self, team: Team, network: PreTrainedModel) -> None:
        self.share: Share | None = team.share
        self.pattern = team.pattern
        self._team, self._network = team, network

    def logits(self, ids: Tensor, pass_: Pass) -> Tensor:
        return self._team.logits(self._network, ids, pass_)

    def hidden(self, ids: Tensor, pass_: Pass) -> None:
        self._team.logits(self._network, ids, pass_)
