"""Several processes that hold one model together (tensor parallelism), started by torchrun.

The first process drives: it runs the program, makes every decision, and sends orders; the others follow. An order is a
forward: the whole canvas, and what the run's attention is to do with it. So nothing can drift apart: the followers know
no sampler and no random numbers, only weights, and for each run the patterns of their own heads.

Orders and answers go through a socket between the driver and each follower, which also tells each side when the other
one is gone, however it went. Tensors that all processes compute together go through torch.distributed
(`sparsed.models.share`).

    team = join()                            # under torchrun; a follower does not return
    model = sparsed.load("llada-1.5", team=team)

One machine, one GPU for each process (or CPU processes, for trying it out).
"""

from __future__ import annotations

import atexit
import os
import queue
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from sparsed.attention import dense
from sparsed.attention.backends import load_backend
from sparsed.attention.dispatch import AttentionState, Phase
from sparsed.attention.pattern import BlockLayout, LayerPattern, Pattern
from sparsed.config import SparseDConfig
from sparsed.launch import Launch, TeamError, TeamLost
from sparsed.memory import peak_bytes
from sparsed.models.network import hidden_rows
from sparsed.models.share import Share

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Sums wait this long for a process that compiles or reads weights. One that is gone is noticed at once.
_PATIENCE = timedelta(hours=2)
_MEETING = timedelta(minutes=10)
# torchrun passes a Ctrl-C on that the terminal has sent to every process itself.
_SAME_SIGNAL_SECONDS = 3.0

# A network, and why what surrounds attention is not fused, if it should be.
_Made = tuple["PreTrainedModel", "str | None"]


@dataclass(frozen=True)
class _Attention:
    """What a follower must know of an `AttentionState` to do as the driver's does."""

    key: int
    phase: Phase
    config: SparseDConfig | None
    layout: BlockLayout | None
    backend: str | None
    dense: str
    fused: bool
    scaled_by_heads: bool
    seed: int

    @classmethod
    def of(cls, state: AttentionState) -> _Attention:
        return cls(
            state.key, state.phase, state.config, state.layout, state.backend_name, state.dense.name, state.fused,
            state.scaled_by_heads, state.seed,
        )  # fmt: skip

    def state(self, share: Share) -> AttentionState:
        """A new state that does the same."""
        backend = None if self.backend is None else load_backend(self.backend)
        return AttentionState(
            self.phase, self.config, self.layout, backend, scaled_by_heads=self.scaled_by_heads,
            dense=dense.named(self.dense, share.device), fused=self.fused, seed=self.seed, share=share,
            backend_name=self.backend,
        )  # fmt: skip


def join(launch: Launch | None = None, on_lost: Callable[[str], None] | None = None) -> Team:
    """The team that torchrun started this process for. Every process calls it once, at its start.

    In the first process it returns when all are there. In the others it carries out the first one's orders until that
    process ends, and then ends this one (with os._exit): nothing after the call runs there.

    on_lost: called in the first process, in a thread of its own, with a sentence, when another process is gone. By
    default the sentence is printed and the process ends with code 1: a sum that waits on a GPU for a process that is
    gone cannot be called off.

    Raises ValueError in one sentence where torchrun did not start this process, or there are too few GPUs.
    """
    launch = launch or Launch.here()
    if launch.kind != "tensor":
        raise ValueError("There is no team: start several processes with torchrun --nproc-per-node N.")
    if launch.local_size != launch.size:
        raise ValueError("A team works on one machine: start torchrun without --nnodes.")
    gpus = torch.cuda.device_count()
    if 0 < gpus < launch.size:
        raise ValueError(f"{launch.size} processes need a GPU each, and there are {gpus}: start {gpus} or fewer.")
    device = torch.device("cuda", launch.local_rank) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    dist.init_process_group(
        backend, store=_meeting_place(launch), rank=launch.rank, world_size=launch.size, timeout=_PATIENCE
    )
    share = Share(launch.rank, launch.size, device)
    door: list[Any] = [None, None]
    if launch.rank:
        # A Ctrl-C, or a word to stop, is for the first process: this one ends with it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        dist.broadcast_object_list(door, device=torch.device("cpu"))
        line = Client(door[0], family="AF_UNIX", authkey=door[1])
        line.send(launch.rank)
        _warm_up(device)
        _Follower(share, line).serve()
    folder = Path(tempfile.mkdtemp(prefix="sparsed-"))
    try:
        door = [str(folder / "team"), secrets.token_bytes(32)]
        with Listener(door[0], family="AF_UNIX", authkey=door[1]) as listener:
            dist.broadcast_object_list(door, device=torch.device("cpu"))
            lines = dict(_greeted(listener.accept()) for _ in range(launch.size - 1))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _warm_up(device)
    team = Team(share, lines, on_lost)
    # However the program ends, the others end with it in good order.
    atexit.register(team.close)
    return team


def _meeting_place(launch: Launch) -> dist.Store:
    """Where the processes find each other. torchrun keeps one store over its restarts (--max-restarts): what the
    processes of an earlier attempt left there leads nowhere.
    """
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        launch.size,
        is_master=launch.rank == 0 and not hosted,
        timeout=_MEETING,
    )
    return dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _greeted(line: Connection) -> tuple[int, Connection]:
    return line.recv(), line


def _warm_up(device: torch.device) -> None:
    """The processes find each other now, not in the first forward."""
    dist.all_reduce(torch.ones(1, device=device))


class Team:
    """The driver's side: orders to the other processes, and what they answer.

    share: this process's. size: processes. lost: a sentence once one of them is gone, else None. on_lost: see `join`.
    """

    def __init__(
        self, share: Share, lines: dict[int, Connection], on_lost: Callable[[str], None] | None = None
    ) -> None:
        self.share, self.size = share, share.size
        self.lost: str | None = None
        self.on_lost = on_lost or _end
        self._lines = lines
        self._answers: dict[int, queue.SimpleQueue[Any]] = {rank: queue.SimpleQueue() for rank in lines}
        self._turn = threading.RLock()
        self._closed = False
        self._forgotten: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self._states: set[int] = set()
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

    def load(self, folder: Path, dtype: torch.dtype, fusing: bool, on_weight: Callable[[str], None]) -> _Made:
        """A network of which every process has read its share; see `sparsed.models.loading.load_share`. The others'
        shares go when the driver's is freed. Raises what loading raises.
        """
        from sparsed.models.loading import load_share

        return self._network(
            ("load", str(folder), dtype, fusing), lambda: load_share(folder, dtype, fusing, self.share, on_weight)
        )

    def build(self, raw: Mapping[str, Any], dtype: torch.dtype, fusing: bool) -> _Made:
        """The same with random weights; see `sparsed.models.loading.random_network`."""
        from sparsed.models.loading import random_network

        share = self.share
        return self._network(
            ("build", dict(raw), dtype, fusing), lambda: random_network(raw, dtype, share.device, fusing, share)
        )

    def _network(self, order: tuple[Any, ...], make: Callable[[], _Made]) -> _Made:
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

    def logits(self, network: PreTrainedModel, ids: Tensor, state: AttentionState, rows: Tensor) -> Tensor:
        """A forward over ids int64 [batch, length]: logits [n, vocabulary] for rows int64 [n] into batch · length.
        Raises TeamError where another process failed, TeamLost where one is gone.
        """
        with self._turn:
            if state.key not in self._states:
                self._states.add(state.key)
                weakref.finalize(state, self._forgotten.put, ("state", state.key))
            order = ("logits", self._numbers[network], _Attention.of(state), ids.cpu().numpy(), rows.cpu().numpy())
            made: Tensor = self._order(order, lambda: share_logits(network, ids, state, rows, self.share))
        return made

    def pattern(self, state: AttentionState) -> Pattern:
        """The pattern of all heads after a "select" forward, on the CPU; takes the importances as `state.pattern`."""
        with self._turn:
            own, others = self._order(("pattern", state.key), state.pattern, answers=True)
        parts = [own, *(_unpacked(own, part) for part in others)]
        layers = tuple(LayerPattern.joined(layer) for layer in zip(*(part.layers for part in parts)))
        importance = None
        if own.importance is not None:
            importance = tuple(torch.cat(layer, dim=1) for layer in zip(*(part.importance for part in parts)))
        return Pattern(own.layout, layers, own.select, importance)

    def peaks(self, reset: bool = False) -> list[int]:
        """`sparsed.memory.peak_bytes` of every process; empty where the system does not say."""
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
        self._states -= {number for kind, number in forgotten if kind == "state"}
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


def _end(sentence: str) -> None:
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    os._exit(1)


class _Follower:
    """The other side: carries out orders until there are none."""

    def __init__(self, share: Share, line: Connection) -> None:
        self._share, self._line = share, line
        self._orders: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._networks: dict[int, PreTrainedModel] = {}
        self._states: dict[int, AttentionState] = {}

    def serve(self) -> NoReturn:
        """Ends this process with the driver's last order."""
        threading.Thread(target=self._listen, name="orders", daemon=True).start()
        while True:
            name, *given = self._orders.get()
            if name == "end":
                dist.destroy_process_group()
                # What this process has imported may take seconds to be torn down in good order, for nobody.
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)
            *given, forgotten = given
            for kind, number in forgotten:
                (self._networks if kind == "network" else self._states).pop(number, None)
            try:
                answer = True, getattr(self, name)(*given)
            except Exception as error:  # noqa: BLE001 (whatever it is, the driver says it)
                answer = False, _said(error)
            self._line.send(answer)

    def _listen(self) -> None:
        try:
            while True:
                order = self._line.recv()
                self._orders.put(order)
                if order[0] == "end":
                    return
        except (EOFError, OSError):
            # The driver is gone. The main thread may wait for it in a sum, for ever.
            os._exit(1)

    def load(self, number: int, folder: str, dtype: torch.dtype, fusing: bool) -> str | None:
        from sparsed.models.loading import load_share

        self._networks[number], problem = load_share(Path(folder), dtype, fusing, self._share, lambda _: None)
        return problem

    def build(self, number: int, raw: dict[str, Any], dtype: torch.dtype, fusing: bool) -> str | None:
        from sparsed.models.loading import random_network

        share = self._share
        self._networks[number], problem = random_network(raw, dtype, share.device, fusing, share)
        return problem

    def logits(self, number: int, attention: _Attention, ids: Any, rows: Any) -> None:
        share, key = self._share, attention.key
        state = self._states.get(key)
        new = attention.state(share)
        if state is not None:
            new.layers, new.importance = state.layers, state.importance
        self._states[key] = new
        device = share.device
        share_logits(
            self._networks[number], torch.from_numpy(ids).to(device), new, torch.from_numpy(rows).to(device), share
        )
        if device.type == "cuda":
            # What failed on the device is said now; and the driver's clock sees the slowest of all.
            torch.cuda.synchronize(device)

    def pattern(self, key: int) -> Any:
        return _packed(self._states[key].pattern())

    def peak(self, reset: bool) -> int | None:
        return peak_bytes(self._share.device, reset)


def share_logits(
    network: PreTrainedModel, ids: Tensor, state: AttentionState, rows: Tensor, share: Share
) -> Tensor | None:
    """One process's part of `Team.logits`; the logits come out in the first one. A process that fails here takes part
    in what the others do to the end, and raises its error then.
    """
    failed: Exception | None = None
    part: Tensor | None = None
    masks = 0
    if state.phase == "select" and state.config is not None and state.config.pattern == "shared":
        assert state.layout is not None, "a run that selects has a layout"
        masks = len(ids) * state.layout.blocks**2
    share.begin(network, ids, rows, masks)
    with torch.inference_mode():
        try:
            head: Any = network.lm_head
            part = head(hidden_rows(network, ids, state, rows))
        except Exception as error:  # noqa: BLE001
            # Its frames hold tensors, and memory may be what is missing.
            failed = error.with_traceback(None)
        if failed is not None:
            share.abandon()
            if share.device.type == "cuda":
                # Sums that nobody waited for still write into memory that is free by now.
                torch.cuda.synchronize(share.device)
        part = share.gather(network, part, len(rows))
    if failed is not None:
        raise failed
    return part


def _said(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0][:300].rstrip(".")
    return f"{type(error).__name__}: {first}." if first else f"{type(error).__name__}."


def _packed(pattern: Pattern) -> tuple[Any, Any]:
    """A pattern as numpy arrays; block indices in 16 bits, of which there may be hundreds of millions."""
    layers = [(one.indices.to(torch.int16).numpy(), one.counts.numpy()) for one in pattern.layers]
    return layers, None if pattern.importance is None else [layer.numpy() for layer in pattern.importance]


def _unpacked(like: Pattern, packed: tuple[Any, Any]) -> Pattern:
    layers = tuple(
        LayerPattern(torch.from_numpy(indices).to(torch.int32), torch.from_numpy(counts))
        for indices, counts in packed[0]
    )
    importance = None if packed[1] is None else tuple(torch.from_numpy(layer) for layer in packed[1])
    return Pattern(like.layout, layers, like.select, importance)
