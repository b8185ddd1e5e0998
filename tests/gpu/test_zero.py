"""A whole race over the real `spaces` package and a real GPU: what the pool's own server says comes from a stand-in on
the loopback; the fork, the pretended CUDA before it and the tensors that are moved are the package's.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
for package in ("gradio", "spaces"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]

RACES = """
import asyncio, json, os, sys, time
sys.path.insert(0, ".")
import spaces
import gradio
from app.engine.borrowed import ZeroEngine
from app.server.desk import Desk
from app.server.limits import Limits
from app.server.journal import Journal
from app.race.request import parse
from app.server.session import perform
from app.server.visits import Visit

engine = ZeroEngine(["mini"], spaces.GPU)
desk = Desk(engine, "mini", Limits(max_seconds=120), Journal(open(os.devnull, "w")))
desk.models.place(["mini"])
spaces.zero.startup()

def asked(**more):
    given = dict(model="mini", kind="several", length="4k", question=2, text="", seed=0, backend="auto", steps=24)
    return parse(**{**given, **more}, defaults=desk.models.defaults("mini"), models=engine.models(),
                 kinds=engine.kinds(), lengths=engine.lengths())

async def race(request, stop_at=None):
    visit, last, stopped = Visit(), None, None
    async for last in perform(desk, visit, request):
        made = sum(lane["step"] for lane in last.stage["lanes"])
        if stop_at is not None and made >= stop_at and stopped is None:
            stopped = time.monotonic()
            visit.stop()
    while len(desk.queue):
        await asyncio.sleep(0.01)
    freed = None if stopped is None else time.monotonic() - stopped
    stage = last.stage
    return {
        **{name: [lane[name] for lane in stage["lanes"]] for name in ("right", "text", "step", "seconds", "backend")},
        "state": stage["state"], "message": stage["message"], "notes": stage["notes"], "freed": freed,
        "machine": None if last.kept is None else last.kept.trace.machine.get("gpu"),
        "layers": None if last.kept is None else last.kept.layers,
        "overlap": None if last.kept is None else [probe.step for probe in last.kept.lane("sparse").probes],
    }

out = []
odd = asked(backend="flash4", block_size=64)
wanted = [asked(track=True), asked(), asked(steps=96), odd, asked(third="sliding_window")]
for request, stop_at in zip(wanted, (None, None, 20, None, None)):
    began = time.monotonic()
    out.append({**asyncio.run(race(request, stop_at)), "wall": time.monotonic() - began})
print("RESULT " + json.dumps(out))
"""


class PoolServer(BaseHTTPRequestHandler):
    """Lends the one GPU at once; `idle` says that a process that had it before may have it again."""

    asked: list[dict[str, Any]] = []
    released: list[str] = []
    allowed: list[int] = []
    uuid = ""

    def do_POST(self) -> None:  # noqa: N802 (the name http.server looks for)
        url = urlparse(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        body: bytes = b"{}"
        if url.path == "/schedule":
            self.asked.append(query)
            token = f"token-{len(self.asked)}"
            said = {"idle": len(self.released) > 0, "nvidiaIndex": 0, "nvidiaUUID": self.uuid, "allowToken": token}
            body = json.dumps(said).encode()
        elif url.path == "/allow":
            self.allowed.append(int(query["pid"]))
        elif url.path == "/release":
            self.released.append(query["allowToken"])
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def pool() -> Iterator[str]:
    PoolServer.uuid = subprocess.run(
        ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    server = ThreadingHTTPServer(("127.0.0.1", 0), PoolServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_races_on_a_gpu_that_is_lent(pool: str, tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    groups.write_text("0::/here\n")
    environment = {
        **os.environ, "SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": pool, "HOME": str(tmp_path),
        "ZEROGPU_PROC_SELF_CGROUP_PATH": str(groups),
    }  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-c", RACES]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    tracked, again, stopped, refused, three = json.loads(lines[0].removeprefix("RESULT "))
    print(json.dumps([tracked, again, stopped, refused, three], indent=1))
    for one in (tracked, again, three):
        assert one["state"] == "done" and one["step"][0] == 24 and one["message"] == ""
    assert tracked["right"] == [True, True] and tracked["text"] == again["text"] == three["text"][:2]
    assert tracked["layers"] == 6 and len(tracked["overlap"]) == 4 and "NVIDIA" in tracked["machine"]
    assert not any("fused" in note for note in tracked["notes"])
    assert stopped["state"] == "stopped" and sum(stopped["step"]) < 2 * 96
    assert refused["state"] in ("refused", "failed") and "flash4" in refused["message"]
    assert len(PoolServer.asked) == len(PoolServer.released) == 5 and len(set(PoolServer.allowed)) >= 1
    assert all(int(one["durationSeconds"]) > 20 for one in PoolServer.asked)
