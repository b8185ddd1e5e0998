"""A process that holds its share of a model and does what the first one says."""

from __future__ import annotations

import os
import queue
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from sparsed.attention.masks import Masks
from sparsed.attention.state import RunAttention
from sparsed.cache.store import RowStore
from sparsed.denoising.forward import Pass, hidden_rows
from sparsed.machine import peak_bytes
from sparsed.models.shares import load_share, random_network
from sparsed.parallel.messages import PassMessage, sentence_of
from sparsed.parallel.share import Share

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def end_process(sentence: str) -> None:
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    os._exit(1)


class Follower:
    """The other side: carries out orders until there are none."""

    def __init__(self, share: Share, line: Connection) -> None:
        self._share, self._line = share, line
        self._orders: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._networks: dict[int, PreTrainedModel] = {}
        self._runs: dict[int, tuple[RunAttention, RowStore]] = {}  # by the key of the driver's attention

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
                (self._networks if kind == "network" else self._runs).pop(number, None)
            try:
                answer = True, getattr(self, name)(*given)
            except Exception as error:  # noqa: BLE001 (whatever it is, the driver says it)
                answer = False, sentence_of(error)
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

    def load(self, number: int, folder: str, dtype: torch.dtype, fusing: bool, rope_factor: float) -> str | None:
        self._networks[number], problem = load_share(
            Path(folder), dtype, fusing, self._share, lambda _: None, rope_factor
        )
        return problem

    def build(self, number: int, raw: dict[str, Any], dtype: torch.dtype, fusing: bool) -> str | None:
        share = self._share
        self._networks[number], problem = random_network(raw, dtype, share.device, fusing, share)
        return problem

    def logits(self, number: int, message: PassMessage, ids: Any) -> None:
        share, device = self._share, self._share.device
        if message.run not in self._runs:
            self._runs[message.run] = message.attention(share), RowStore()
        pass_ = message.open(*self._runs[message.run], device)
        share_logits(self._networks[number], torch.from_numpy(ids).to(device), pass_, share)
        if device.type == "cuda":
            # What failed on the device is said now; and the driver's clock sees the slowest of all.
            torch.cuda.synchronize(device)

    def pattern(self, key: int) -> Masks:
        return Masks.of(self._runs[key][0].pattern())

    def peak(self, reset: bool) -> int | None:
        return peak_bytes(self._share.device, reset)


def share_logits(network: PreTrainedModel, ids: Tensor, pass_: Pass, share: Share) -> Tensor | None:
    """One process's part of `Team.logits`; the logits come out in the first one. A process that fails here takes part
    in what the others do to the end, and raises its error then.
    """
    failed: Exception | None = None
    part: Tensor | None = None
    share.begin(network, ids, pass_)
    with torch.inference_mode():
        try:
            head: Any = network.lm_head
            part = head(hidden_rows(network, ids, pass_))
        except Exception as error:  # noqa: BLE001
            # Its frames hold tensors, and memory may be what is missing.
            failed = error.with_traceback(None)
        if failed is not None:
            share.abandon()
            if share.device.type == "cuda":
                # Sums that nobody waited for still write into memory that is free by now.
                torch.cuda.synchronize(share.device)
        part = share.gather(network, part, len(pass_.wanted))
    if failed is not None:
        raise failed
    return part
