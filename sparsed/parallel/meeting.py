"""How the processes of a team find each other."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sparsed.parallel.follower import Follower
from sparsed.parallel.launch import Launch
from sparsed.parallel.messages import PATIENCE
from sparsed.parallel.share import Share
from sparsed.parallel.team import Team

_MEETING = timedelta(minutes=10)


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
        backend, store=_meeting_place(launch), rank=launch.rank, world_size=launch.size, timeout=PATIENCE
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
        Follower(share, line).serve()
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
