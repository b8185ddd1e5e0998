"""How the server is, for those who look after it: /healthz, and /metrics where prometheus_client is installed. Neither
says anything about a visitor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Literal

from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from app.server.journal import RunReport, one_line

State = Literal["ok", "loading", "stuck", "lost", "stopping"]

NO_METRICS = "There are no metrics here without prometheus_client; run: pip install prometheus-client"
# A model's name may be a folder that a visitor typed: after so many names, the counters call the others "other".
MOST_MODELS = 32
# Upper ends of the histograms' buckets.
SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600)
GAUGES = {
    "up": "1 while the server serves, 0 when it is stuck, lost or stopping.",
    "running": "Runs on the device.",
    "waiting": "Runs in line.",
    "visits": "Open pages.",
    "models_in_memory": "Models in memory.",
    "uptime_seconds": "Seconds since the start.",
}


@dataclass(frozen=True)
class Status:
    """How the server is now.

    state: "ok", "loading" (a model; it serves), "stuck" (a step does not come back), "lost" (so is a process that held
    a share of the model) or "stopping".
    """

    state: State
    models: tuple[str, ...] = ()  # names of those in memory
    running: int = 0  # runs on the device
    waiting: int = 0  # runs in line
    visits: int = 0  # open pages
    uptime: float = 0.0  # seconds
    version: str = ""

    @property
    def serves(self) -> bool:
        return self.state in ("ok", "loading")


def _public(model: str) -> str:
    """A model's name as outsiders may see it: of a folder of this machine only the last part."""
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(model).is_absolute() or model.startswith((".", "~")):
            return one_line(kind(model).name)
    return one_line(model)


class Metrics:
    """Counters for Prometheus, in a registry of their own; without the package prometheus_client they count nothing.

    status: asked once for each `render`.
    """

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status
        self._models: set[str] = set()
        self._registry = None
        try:
            import prometheus_client as prometheus  # optional
        except ImportError:
            return
        self._registry = registry = prometheus.CollectorRegistry()
        self._text, self._media_type = prometheus.generate_latest, prometheus.CONTENT_TYPE_LATEST
        self._runs = prometheus.Counter(
            "sparsed_runs", "Runs that are over.", ["state", "via", "model"], registry=registry
        )
        self._steps = prometheus.Counter(
            "sparsed_steps", "Denoising steps of runs that came to their end, those of one lane.", registry=registry
        )
        said = 'Seconds of a run that came to its end: device time of a lane, or "all": wall time of all.'
        self._seconds = prometheus.Histogram("sparsed_run_seconds", said, ["lane"], buckets=SECONDS, registry=registry)
        said = "Seconds in line, of runs that were not refused."
        self._waited = prometheus.Histogram("sparsed_wait_seconds", said, buckets=SECONDS, registry=registry)
        self._gauges = [prometheus.Gauge(f"sparsed_{name}", said, registry=registry) for name, said in GAUGES.items()]
        prometheus.ProcessCollector(registry=registry)

    def note(self, report: RunReport) -> None:
        """Count one run. Never raises for odd numbers."""
        if self._registry is None:
            return
        model = _public(report.model)
        if len(self._models) < MOST_MODELS:
            self._models.add(model)
        self._runs.labels(report.state, report.via, model if model in self._models else "other").inc()
        if report.state != "refused":
            self._waited.observe(max(0.0, report.waited))
        if report.state == "done":
            self._steps.inc(max(0, report.steps))
            for lane, seconds in {**report.lane_seconds, "all": report.seconds}.items():
                self._seconds.labels(lane).observe(seconds)

    def render(self) -> tuple[bytes, str] | None:
        """The text for Prometheus and its media type; None without the package."""
        if self._registry is None:
            return None
        now = self._status()
        values = (now.serves, now.running, now.waiting, now.visits, len(now.models), now.uptime)
        for gauge, value in zip(self._gauges, values, strict=True):
            gauge.set(value)
        return self._text(self._registry), self._media_type


def routes(status: Callable[[], Status], metrics: Metrics) -> list[Route]:
    """/healthz (200 while the server serves, 503 when it is stuck, lost or stopping) and /metrics (404 without the
    package).

    status: called in the event loop; it must answer at once, so it may not wait for a lock that a run holds.
    """

    async def healthz(_: Any) -> Response:
        now = status()
        said = {**asdict(now), "models": [_public(model) for model in now.models], "uptime": round(now.uptime, 1)}
        return JSONResponse(said, status_code=200 if now.serves else 503, headers={"Cache-Control": "no-store"})

    async def measured(_: Any) -> Response:
        made = metrics.render()
        if made is None:
            return PlainTextResponse(NO_METRICS, status_code=404)
        return Response(made[0], headers={"Content-Type": made[1], "Cache-Control": "no-store"})

    return [Route("/healthz", healthz, methods=["GET"]), Route("/metrics", measured, methods=["GET"])]
