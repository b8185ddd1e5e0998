"""When a real GPU runs out of memory, or logits are not finite, the next run is as good as the one before."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from app.engine.local import SparsedEngine  # noqa: E402
from app.race.request import parse  # noqa: E402
from app.server.desk import Desk  # noqa: E402
from app.server.journal import Journal  # noqa: E402
from app.server.limits import Limits  # noqa: E402
from app.server.session import perform  # noqa: E402
from app.server.visits import Visit  # noqa: E402


@pytest.fixture(scope="module")
def desk() -> Desk:
    desk = Desk(SparsedEngine(), "mini", Limits(max_seconds=3600), Journal(open(os.devnull, "w")))  # noqa: SIM115
    desk.models.load("mini")
    return desk


def race(desk: Desk, **more: Any) -> dict[str, Any]:
    """The last picture of a race of mini."""
    given = {
        "model": "mini", "kind": "about", "length": "2k", "question": 1, "text": "", "seed": 0, "backend": "auto",
        "steps": 12,
    }  # fmt: skip
    asked = parse(
        **{**given, **more}, defaults=desk.models.defaults("mini"), models=desk.engine.models(),
        kinds=desk.engine.kinds(), lengths=desk.engine.lengths(),
    )  # fmt: skip

    async def run() -> dict[str, Any]:
        async for shown in perform(desk, Visit(), asked):
            last = shown
        return last.stage

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, run()).result(timeout=250)


def answers(stage: dict[str, Any]) -> list[Any]:
    return [lane["cells"] for lane in stage["lanes"]]


def test_out_of_memory_on_the_gpu_is_a_sentence_and_the_next_run_is_the_same(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = race(desk)
    assert before["state"] == "done"
    free, total = torch.cuda.mem_get_info()
    # All but 64 MiB are taken by somebody else; the page's own estimate is kept from refusing the run.
    monkeypatch.setattr(desk.engine, "memory", lambda model=None: None)
    for _ in range(3):
        torch.cuda.empty_cache()
        taken = torch.empty(torch.cuda.mem_get_info()[0] - 64 * 2**20, dtype=torch.uint8, device="cuda")
        short = race(desk, length="16k")
        assert short["state"] == "failed", short["state"]
        assert "This machine ran out of memory" in short["message"] and "shorter prompt" in short["message"]
        del taken
        torch.cuda.empty_cache()
        after = race(desk)
        assert after["state"] == "done" and answers(after) == answers(before)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logits_that_are_not_finite_do_not_harm_the_next_run(desk: Desk, temperature: float) -> None:
    before = race(desk, temperature=temperature)
    head = desk.models.load("mini").model.network.lm_head.weight
    kept = head.detach().clone()
    with torch.no_grad():
        head[5] = float("nan")
    try:
        broken = race(desk, temperature=temperature)
    finally:
        with torch.no_grad():
            head.copy_(kept)
    assert broken["state"] == "failed" and "not finite at step 1 of 12" in broken["message"]
    after = race(desk, temperature=temperature)
    assert after["state"] == "done" and answers(after) == answers(before)
