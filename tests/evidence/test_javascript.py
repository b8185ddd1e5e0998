"""The named endpoints as gradio's client in JavaScript uses them: it comes from npm's registry."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gradio_client import Client
from servers import Server
from test_api import GOING_ON, at


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[str], Server]]:
    made: list[Server] = []

    def start(which: str) -> Server:
        made.append(Server.watched(tmp_path, which))
        made[-1].ready()
        return made[-1]

    yield start
    for server in made:
        server.close()


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which node finds @gradio/client; fetched from the registry, if that can be reached."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "@gradio/client@2"]
    try:
        fetched = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip("@gradio/client could not be fetched in 120 s")
    if fetched.returncode:
        pytest.skip(f"@gradio/client could not be fetched: {(fetched.stderr.strip().splitlines() or ['?'])[-1]}")
    return folder


def javascript(folder: Path, code: str) -> str:
    """What a script prints."""
    (folder / "script.mjs").write_text(code, encoding="utf-8")
    ran = subprocess.run(["node", "script.mjs"], cwd=folder, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


SCRIPT = """
import { Client } from "@gradio/client";
const app = await Client.connect("%s");
const models = (await app.predict("/models")).data[0].map((model) => model.name);
const states = [];
let last;
for await (const message of app.submit("/compare", { steps: 16, third: "random" })) {
  if (message.type === "data") { last = message.data[0]; states.push(last.state); }
}
const pattern = (await app.predict("/pattern", { run: last.run, layer: 1 })).data[0];
const rows = [];
for await (const message of app.submit("/sweep", { lengths: ["1k"], steps: 8 })) {
  if (message.type === "data") rows.push(message.data[0].rows[0].state);
}
let refused = "";
try { await app.predict("/compare", { steps: 0 }); } catch (error) { refused = error.message; }
console.log(JSON.stringify({ models, states, last, counts: pattern.counts, rows, refused }));
process.exit(0);
"""


def test_the_client_in_javascript_gets_the_same(started: Callable[[str], Server], node: Path) -> None:
    keeping = started("keeping")
    client = Client(keeping.url, verbose=False)
    got = json.loads(javascript(node, SCRIPT % keeping.url))
    assert got["models"] == ["mini", "dreamer", "slowpoke", "broken", "giant"]
    # This client gives the last value twice, as gradio's server sends it.
    assert set(got["states"]) <= {*GOING_ON, "done"} and len(got["states"]) >= 4
    assert [state for state, after in zip(got["states"], got["states"][1:]) if state == "done" != after] == []
    last = got["last"]
    assert last["state"] == "done" and last["lanes"]["sparse"]["right"] is True and set(last["lanes"]) == {
        "dense", "sparse", "baseline"
    }  # fmt: skip
    assert got["counts"] == client.predict(run=last["run"], layer=1, api_name="/pattern")["counts"]
    assert got["rows"][-1] == "done"
    assert got["refused"] == "The value of steps must lie between 1 and 1024, not 0."


def test_the_javascript_examples_of_the_docs_run(
    started: Callable[[str], Server], examples: Callable[[str, str], str], node: Path
) -> None:
    code = at(started("mini"), examples("docs/api.md", "javascript"))
    assert "done" in javascript(node, code + "\nprocess.exit(0);\n")
