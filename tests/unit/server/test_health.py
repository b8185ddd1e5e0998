"""/healthz and /metrics."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from app.server.health import MOST_MODELS, Metrics, Status, routes
from tests.unit.server.logged import REPORT


class TestMetrics:
    @staticmethod
    def values(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        parser = pytest.importorskip("prometheus_client.parser", reason="prometheus_client is not installed")
        made = metrics.render()
        assert made is not None and made[1].startswith("text/plain")
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in parser.text_string_to_metric_families(made[0].decode())
            for sample in family.samples
        }

    def test_counts_runs_by_state_way_and_model_and_times_only_those_that_were_done(self) -> None:
        metrics = Metrics(lambda: Status("ok"))
        metrics.note(REPORT)
        metrics.note(replace(REPORT, via="api", waited=40.0))
        metrics.note(replace(REPORT, state="stopped"))
        metrics.note(replace(REPORT, state="refused", waited=99.0))
        values = self.values(metrics)

        def runs(state: str, via: str) -> float:
            return values[("sparsed_runs_total", (("model", "mini"), ("state", state), ("via", via)))]

        assert (runs("done", "page"), runs("done", "api"), runs("stopped", "page"), runs("refused", "page")) == (1,) * 4
        assert values[("sparsed_steps_total", ())] == 96
        assert values[("sparsed_run_seconds_count", (("lane", "dense"),))] == 2
        assert values[("sparsed_run_seconds_sum", (("lane", "dense"),))] == 15
        assert values[("sparsed_run_seconds_sum", (("lane", "sparse"),))] == 9
        assert values[("sparsed_run_seconds_sum", (("lane", "all"),))] == 24
        assert values[("sparsed_wait_seconds_count", ())] == 3
        assert values[("sparsed_wait_seconds_sum", ())] == 41
        assert values[("sparsed_wait_seconds_bucket", (("le", "0.5"),))] == 2

    def test_asks_for_the_gauges_once_each_time_it_is_asked(self) -> None:
        now = [Status("ok", ("mini",), running=1, waiting=2, visits=3, uptime=4.5), Status("stuck")]
        asked: list[Status] = []

        def status() -> Status:
            asked.append(now[len(asked)])
            return asked[-1]

        metrics = Metrics(status)
        assert asked == []
        names = ("up", "running", "waiting", "visits", "models_in_memory", "uptime_seconds")
        first = self.values(metrics)
        assert [first[(f"sparsed_{name}", ())] for name in names] == [1, 1, 2, 3, 1, 4.5]
        second = self.values(metrics)
        assert [second[(f"sparsed_{name}", ())] for name in names] == [0, 0, 0, 0, 0, 0]
        assert len(asked) == 2

    @pytest.mark.skipif(sys.platform != "linux", reason="prometheus_client reads /proc")
    def test_says_how_much_memory_the_process_has(self) -> None:
        assert self.values(Metrics(lambda: Status("ok")))[("process_resident_memory_bytes", ())] > 2**20

    def test_has_a_registry_of_its_own(self) -> None:
        first, second = Metrics(lambda: Status("ok")), Metrics(lambda: Status("ok"))
        first.note(REPORT)
        counted = ("sparsed_runs_total", (("model", "mini"), ("state", "done"), ("via", "page")))
        assert self.values(first)[counted] == 1
        assert counted not in self.values(second)

    def test_visitors_cannot_make_endless_counters_nor_show_folders(self) -> None:
        metrics = Metrics(lambda: Status("ok"))
        metrics.note(replace(REPORT, model="/srv/secret/tiny"))
        for number in range(1000):
            metrics.note(replace(REPORT, model=f"own\n{number}"))
        models = {dict(labels)["model"] for name, labels in self.values(metrics) if name == "sparsed_runs_total"}
        assert models == {"tiny", "other", *(f"own {number}" for number in range(MOST_MODELS - 1))}

    def test_without_the_package_it_counts_nothing_and_the_route_says_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "prometheus_client", None)
        metrics = Metrics(lambda: Status("ok"))
        metrics.note(REPORT)
        assert metrics.render() is None
        answer = TestClient(Starlette(routes=routes(lambda: Status("ok"), metrics))).get("/metrics")
        assert (answer.status_code, answer.text) == (
            404,
            "There are no metrics here without prometheus_client; run: pip install prometheus-client",
        )


class TestRoutes:
    @pytest.mark.parametrize(("state", "code"), [("ok", 200), ("loading", 200), ("stuck", 503), ("stopping", 503)])
    def test_health_is_503_only_where_the_server_does_not_serve(self, state: Any, code: int) -> None:
        status = Status(state, ("mini", "/srv/secret/tiny", "../up/there", "C:\\secret\\it"), 1, 2, 3, 4.5678, "0.1.0")
        client = TestClient(Starlette(routes=routes(lambda: status, Metrics(lambda: Status("ok")))))
        answer = client.get("/healthz")
        assert answer.status_code == code
        assert answer.headers["cache-control"] == "no-store"
        assert answer.json() == {
            "state": state,
            "models": ["mini", "tiny", "there", "it"],
            "running": 1,
            "waiting": 2,
            "visits": 3,
            "uptime": 4.6,
            "version": "0.1.0",
        }
        head = client.head("/healthz")
        assert (head.status_code, head.content) == (code, b"")
        assert client.post("/healthz").status_code == 405

    def test_metrics_are_served_as_prometheus_reads_them(self) -> None:
        prometheus = pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")
        metrics = Metrics(lambda: Status("ok"))
        metrics.note(REPORT)
        answer = TestClient(Starlette(routes=routes(lambda: Status("ok"), metrics))).get("/metrics")
        assert (answer.status_code, answer.headers["content-type"]) == (200, prometheus.CONTENT_TYPE_LATEST)
        assert 'sparsed_runs_total{model="mini",state="done",via="page"} 1.0' in answer.text
