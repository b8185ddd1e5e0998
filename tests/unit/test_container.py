"""The container's files: what the image gets, how it is built, whose health it asks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from packaging.requirements import Requirement

from app.tools import deploy

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """(INSTRUCTION, rest) of the Dockerfile, continued lines joined, comments dropped."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def rest_of(name: str) -> list[str]:
    return [rest for word, rest in instructions() if word == name]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out of the image: of the patterns that match it or a folder above it, the last
    one decides."""
    parts = path.split("/")
    above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            anywhere = pattern.removeprefix("**/")
            candidates = [name.rpartition("/")[2] for name in above] if anywhere != pattern else above
            same_depth = (name for name in candidates if name.count("/") == anywhere.count("/"))
            if any(fnmatchcase(name, anywhere) for name in same_depth):
                out = not line.startswith("!")
    return out


def test_the_image_gets_what_a_space_gets() -> None:
    copied = [rest.split()[:-1] for rest in rest_of("COPY")]
    assert {name for names in copied for name in names} == set(deploy.SPACE)
    assert all((ROOT / name).exists() for names in copied for name in names)


def test_the_image_is_kept_free_of_all_else() -> None:
    wanted = deploy.choose(ROOT)
    assert [path for path in wanted if ignored(path)] == []
    kept_out = [
        ".git/config", "tests/unit/test_container.py", ".venv-tests/bin/python", "venv/bin/python", "runs/log.txt",
        "app/__pycache__/page.cpython-312.pyc", "sparsed/models/__pycache__", "sparsed/old.pyc", "app/.env", ".env",
        "pyproject.toml", "Dockerfile",
    ]  # fmt: skip
    assert [path for path in kept_out if not ignored(path)] == []


def test_requirements_are_installed_before_the_code_is_copied() -> None:
    steps = [word if word != "COPY" else f"COPY {rest.split()[0]}" for word, rest in instructions()]
    install = [i for i, (word, rest) in enumerate(instructions()) if word == "RUN" and "pip install" in rest]
    assert steps.index("COPY requirements.txt") < min(install)
    code = [i for i, step in enumerate(steps) if step in ("COPY app", "COPY sparsed", "COPY assets", "COPY prompts")]
    assert len(code) == 4 and max(install) < min(code)


def test_torch_is_installed_alone_within_the_range_of_requirements() -> None:
    torch, others = [rest for rest in rest_of("RUN") if "pip install" in rest]
    inner = re.search(r'"\$\((.*)\)"', torch)
    assert inner is not None and "$TORCH_OPTIONS" in torch and "$TORCH_OPTIONS" not in others
    shell = subprocess.run(["sh", "-c", inner[1]], cwd=ROOT, capture_output=True, text=True, check=True)
    assert Requirement(shell.stdout.strip()).name == "torch"
    assert others == "pip install $PIP_OPTIONS -r requirements.txt"


def test_the_container_serves_the_page_as_a_user_without_rights() -> None:
    assert rest_of("USER") == ["visitor"] and "useradd" in " ".join(rest_of("RUN"))
    order = [word for word, _ in instructions()]
    assert order.index("USER") > max(i for i, word in enumerate(order) if word in ("RUN", "COPY"))
    assert [json.loads(rest) for rest in rest_of("CMD")] == [["python", "app.py"]]
    assert rest_of("STOPSIGNAL") == ["SIGTERM"]
    assert rest_of("EXPOSE") == ["7860"]
    environment = dict(pair.split("=", 1) for rest in rest_of("ENV") for pair in rest.split())
    assert environment["GRADIO_SERVER_NAME"] == "0.0.0.0" and environment["GRADIO_SERVER_PORT"] == "7860"
    assert rest_of("VOLUME") == [environment["HF_HOME"]]


def test_no_address_stands_in_the_container_files_but_its_own() -> None:
    found = re.findall(r"https?://[^/'\"\s]+", DOCKERFILE + (ROOT / ".dockerignore").read_text())
    assert found == ["http://127.0.0.1:"]
    base = rest_of("FROM")
    assert len(base) == 1 and re.fullmatch(r"python:\$\{PYTHON\}-slim", base[0])


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (404, False), (None, False)])
def test_the_health_check_asks_healthz_and_fails_unless_it_is_well(
    status: int | None, healthy: bool, answering: Callable[[int], str]
) -> None:
    command = rest_of("HEALTHCHECK")[0].partition("CMD ")[2]
    program, *rest = json.loads(command)
    assert program == "python"
    # Port 9 is for discarding; nothing listens there.
    port = "9" if status is None else answering(status)
    done = subprocess.run(
        [sys.executable, *rest], env={**os.environ, "GRADIO_SERVER_PORT": port}, capture_output=True, timeout=60
    )
    assert (done.returncode == 0) is healthy


@pytest.fixture
def answering() -> Iterator[Callable[[int], str]]:
    """Starts a server on loopback that answers one status at /healthz and 418 elsewhere; gives its port."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status if self.path == "/healthz" else 418)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Answer))
        Thread(target=servers[-1].serve_forever, daemon=True).start()
        return str(servers[-1].server_address[1])

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
