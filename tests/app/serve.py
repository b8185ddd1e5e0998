"""Serves the page for the browser tests: `python serve.py --port PORT keeping`, `… double` or `… MODEL`.

"keeping" is the stand-in, which leaves a record of its runs, "double" the same with two devices; MODEL is what
`sparsed.load` takes. Beside the page it answers /test/state (what the engine did), /test/mask (what the last pattern
is) and /test/lanes (what the last run of each kind wrote), so that a test can compare the page with the engine itself;
/test/hold lets steps wait, so that a test need not be faster than they are.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000000")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from starlette.responses import JSONResponse  # noqa: E402
from starlette.routing import Route  # noqa: E402

from app.engine import local  # noqa: E402
from app.page import serving, wiring  # noqa: E402
from app.server import desk, limits, speed  # noqa: E402


class Watched:
    """A run that notes when its steps begin, and whether another one was at work."""

    def __init__(self, run: Any, log: Log, lane: str, read: Callable[[int], str | None]) -> None:
        self._run, self._log, self._lane, self._read = run, log, lane, read
        self._made = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def __iter__(self) -> Watched:
        return self

    def __next__(self) -> Any:
        log = self._log
        with log.lock:
            log.began.append(time.monotonic())
            log.overlaps += log.working
            log.working += 1
        try:
            log.hold(self._made)
            step = next(self._run)
            self._made = step.index + 1
            if step.index == 0:
                log.written[self._lane] = []
            log.written[self._lane].append([self._read(token) for token in step.tokens[0].tolist()])
            return step
        finally:
            with log.lock:
                log.working -= 1
                log.pattern = self._run.pattern or log.pattern


class Log:
    """What the engine did in this server."""

    def __init__(self) -> None:
        # Lanes with devices of their own step in threads of their own.
        self.lock = threading.Lock()
        self.first_held: int | None = None
        self.changed = threading.Condition()
        self.began: list[float] = []
        self.stopped_at: float | None = None
        self.stops = 0
        self.working = 0
        self.overlaps = 0
        self.pattern: Any = None
        # "dense" or the pattern → the text of each cell after each step; None where it is masked.
        self.written: dict[str, list[list[str | None]]] = {}

    def hold(self, step: int) -> None:
        """Waits until this step may be made."""
        with self.changed:
            self.changed.wait_for(lambda: self.first_held is None or step < self.first_held)

    def hold_from(self, step: int) -> None:
        """Steps from this one on wait; below 0 none does."""
        with self.changed:
            self.first_held = None if step < 0 else step
            self.changed.notify_all()

    def state(self) -> dict[str, Any]:
        stop = self.stopped_at
        after = 0 if stop is None else sum(began > stop for began in self.began)
        return {"steps": len(self.began), "stops": self.stops, "after_stop": after, "overlaps": self.overlaps}


def end_with(parent: int) -> None:
    """Ends this process when the one that started it is gone, however that went."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    port, which = int(sys.argv[2]), sys.argv[3]
    if which in ("keeping", "double"):
        from fake_engine import FakeEngine

        used: Any = FakeEngine(keeps=True)
        if which == "double":
            # At this pace steps are short at the shortest prompt length alone: its steps are quicker than a model's.
            speed.SHORTEST_TOGETHER = 0.02
            used = FakeEngine(pace=0.03, keeps=True, devices=2)
        name = "mini"
    else:
        used, name = local.SparsedEngine(which), which
    log, denoise = Log(), used.denoise

    def watched(model: Any, prompt: Any, sampler: Any, attention: Any, *more: Any, **named: Any) -> Watched:
        def read(token: int) -> str | None:
            return None if token == model.mask_id else used.decode_tokens(model, [token])

        return Watched(denoise(model, prompt, sampler, attention, *more, **named), log, attention.method, read)

    used.denoise = watched
    here = desk.Desk(used, name, limits.Limits(max_seconds=1200))
    stop = here.visits.stop

    def noted_stop(visit: str | None) -> None:
        log.stopped_at, log.stops = time.monotonic(), log.stops + 1
        stop(visit)

    here.visits.stop = noted_stop  # type: ignore[method-assign]

    async def state(_: Any) -> JSONResponse:
        return JSONResponse({**log.state(), "waiting": len(here.queue), "visits": list(here.visits._visits)})

    async def hold(http: Any) -> JSONResponse:
        log.hold_from(int(http.query_params["step"]))
        return JSONResponse({})

    async def mask(http: Any) -> JSONResponse:
        """The kept key blocks of every query block, read from the engine's own indices."""
        layer, head = int(http.query_params["layer"]), int(http.query_params["head"])
        pattern = log.pattern
        kept = getattr(pattern.layers[layer], "indices", None)
        rows = pattern.mask(layer, head) if kept is None else kept[0, head].tolist()
        if kept is None:
            rows = [[column for column, value in enumerate(row) if value] for row in rows.tolist()]
        return JSONResponse([sorted(block for block in row if block >= 0) for row in rows])

    async def lanes(_: Any) -> JSONResponse:
        return JSONResponse(log.written)

    demo = wiring.build_page(here, default_length="short_context", default_kind="about")
    given = serving.launch_options(here)
    answers = {"state": state, "hold": hold, "mask": mask, "lanes": lanes}
    given["app_kwargs"]["routes"] += [Route(f"/test/{name}", answer) for name, answer in answers.items()]
    demo.launch(server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, quiet=True, **given)
    here.models.open()
    demo.block_thread()


if __name__ == "__main__":
    main()
