"""A Space made of this tree: what goes up, what is refused, what is found wrong afterwards."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import SpaceCard
from huggingface_hub.hf_api import RepoFile
from packaging.requirements import Requirement

from app.tools import deploy
from sparsed.models.catalogue import CATALOGUE

ROOT = Path(__file__).resolve().parents[3]
SPACE = "someone/sparsed-live"
README = """---
title: A page
sdk: gradio
sdk_version: 6.31.0
python_version: 3.12.12
app_file: app.py
---
# A page
"""
FILES = {
    "CHANGELOG.md": b"# Changes\n",
    "CONTRIBUTING.md": b"# Contributing\n",
    "LICENSE": b"Apache\n",
    "README.md": README.encode(),
    "app.py": b"import app\n",
    "app/__init__.py": b"",
    "app/page.py": b"print('page')\n",
    "assets/model.safetensors": bytes(range(256)) * 5,
    "docs/page.md": b"# The page\n",
    "prompts/world.json": b"{}\n",
    "requirements.txt": b"# the page\ngradio[mcp]>=6.31,<7\ntorch>=2.11\n",
    "sparsed/__init__.py": b"",
    "sparsed/models/mini.py": "größer\n".encode(),
}
OTHERS = ("app/__pycache__/page.cpython-311.pyc", "app/.hidden", "tests/test_page.py", "runs/log.txt", ".env")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small project with every part of a Space, and much that does not belong into one."""
    root = tmp_path / "project"
    for name, content in {**FILES, **dict.fromkeys(OTHERS, b"x")}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub's HTTP interface that the command uses, for one Space; every file is a plain one.

    files: those of the Space. asked: "METHOD address" of each request. lose, corrupt: paths that an upload drops, or
    stores changed. broken: every request fails.
    """

    files: dict[str, bytes]
    asked: list[str]
    about: dict[str, Any]
    lose = corrupt = ""
    broken = False

    def _answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        address = self.path.partition("?")[0]
        self.asked.append(f"GET {address}")
        if address.startswith(f"/api/spaces/{SPACE}/tree/"):
            entries = [{"type": "directory", "path": "app", "oid": "0" * 40, "size": 0}]
            for path, content in self.files.items():
                done = subprocess.run(["git", "hash-object", "--stdin"], input=content, capture_output=True, check=True)
                oid = done.stdout.decode().strip()
                entries.append({"type": "file", "path": path, "oid": oid, "size": len(content)})
            self._answer(entries)
        elif address == f"/api/spaces/{SPACE}/runtime":
            hardware = {"current": None, "requested": self.about["hardware"]}
            self._answer({"stage": "BUILDING", "hardware": hardware, "storage": None})
        elif address == f"/api/spaces/{SPACE}":
            self._answer({"id": SPACE, "private": self.about["private"]})
        else:
            self._answer({"error": "unknown"}, 404)

    def do_POST(self) -> None:
        address, body = self.path.partition("?")[0], self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(f"POST {address}")
        assert self.headers["Authorization"] == "Bearer secret"
        # The client takes no address but that of the Hub it asked.
        url = f"http://{self.headers['Host']}/spaces/{SPACE}"
        if self.broken:
            self._answer({"error": "on fire"}, 400)
        elif address == "/api/repos/create":
            given = json.loads(body)
            assert (given["organization"], given["name"], given["type"]) == (*SPACE.split("/"), "space")
            there = bool(self.files)
            if not there:
                self.files |= {".gitattributes": b"*.bin\n", "README.md": b"---\nsdk: gradio\n---\n"}
                private = given.get("visibility") == "private"
                self.about |= {"hardware": given.get("hardware") or "cpu-basic", "private": private}
            self._answer({"url": url}, 409 if there else 200)
        elif address == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif address == f"/api/spaces/{SPACE}/preupload/main":
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            self._answer({"files": [{"path": file["path"], **plain} for file in json.loads(body)["files"]]})
        elif address == f"/api/spaces/{SPACE}/hardware":
            self.about["hardware"] = json.loads(body)["flavor"]
            self._answer({"stage": "BUILDING", "hardware": {}, "storage": None})
        elif address == f"/api/spaces/{SPACE}/commit/main":
            self._commit([json.loads(line) for line in body.splitlines()])
            oid = f"commit-{len(self.about['messages'])}"
            self._answer({"commitUrl": f"{url}/commit/{oid}", "commitOid": oid})
        else:
            self._answer({"error": "unknown"}, 404)

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.about["messages"].append(value["summary"])
            elif line["key"] == "deletedFile":
                del self.files[value["path"]]
            elif value["path"] != self.lose:
                assert line["key"] == "file" and value["encoding"] == "base64"
                changed = b"!" if value["path"] == self.corrupt else b""
                self.files[value["path"]] = changed + base64.b64decode(value["content"])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A `Hub` of one's own on loopback; its address is `hub.address`."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "secret")
    here = type("Here", (Hub,), {"files": {}, "asked": [], "about": {"messages": []}})
    with ThreadingHTTPServer(("127.0.0.1", 0), here) as server:
        here.address = f"http://127.0.0.1:{server.server_address[1]}"  # type: ignore[attr-defined]
        Thread(target=server.serve_forever, daemon=True).start()
        yield here
        server.shutdown()


def send(tree: Path, hub: Any, *options: str) -> int:
    return deploy.main([SPACE, "--upload", *options], root=tree, endpoint=hub.address)


def kept(hub: Any) -> dict[str, bytes]:
    """The files of the Space but for the one that the Hub makes itself."""
    return {path: content for path, content in hub.files.items() if path != ".gitattributes"}


# What goes up


def git(root: Path, *words: str) -> None:
    """git in a repository that knows no settings but its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    alone = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *who, *words], cwd=root, env={**clean, **alone}, check=True, capture_output=True)


def test_a_folder_without_git_sends_the_parts_of_a_space_without_caches_and_hidden_files(tree: Path) -> None:
    assert deploy.choose(tree) == sorted(FILES)


def test_a_git_checkout_sends_what_git_tracks_as_it_is_now_and_says_what_differs(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    git(tree, "init", "-q")
    git(tree, "add", "--", *FILES, "tests")
    git(tree, "commit", "-q", "-m", "first")
    (tree / "app" / "new.py").write_bytes(b"")
    (tree / "app" / "page.py").write_bytes(b"print('newer')\n")
    assert deploy.choose(tree) == sorted(FILES)
    assert deploy.read(tree)["app/page.py"] == b"print('newer')\n"
    assert deploy.main([SPACE], root=tree) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert any(line.endswith(":  M app/page.py") for line in notes)
    assert any(line.endswith(": ?? app/new.py") for line in notes) and "tests" not in "".join(notes)
    (tree / "app" / "page.py").unlink()
    with pytest.raises(deploy.Refused, match=r"^app/page\.py is missing\.$"):
        deploy.read(tree)


def test_without_upload_the_files_are_listed_and_nothing_is_sent(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it opened a connection"))
    monkeypatch.setattr(deploy, "get_token", lambda: pytest.fail("it looked for a token"))
    assert deploy.main([SPACE], root=tree) == 0
    *files, total, last = capsys.readouterr().out.splitlines()
    for line, (path, content) in zip(files, sorted(FILES.items()), strict=True):
        done = subprocess.run(["git", "hash-object", "--stdin"], input=content, capture_output=True, check=True)
        assert line.split() == [done.stdout.decode().strip(), f"{len(content):,}", path]
    assert total == f"{len(FILES)} files, {sum(map(len, FILES.values())):,} bytes"
    assert last == "Nothing was sent; --upload sends it."


# What is refused before anything is sent


def refused(capsys: pytest.CaptureFixture[str], hub: Any, tree: Path, *options: str) -> list[str]:
    """The sentences of a refusal, without "error: "."""
    assert send(tree, hub, *options) == 2
    assert not any("commit" in asked for asked in hub.asked)
    return [line.removeprefix("error: ") for line in capsys.readouterr().err.splitlines()]


@pytest.mark.parametrize("name", ["page", "a/b/c", "a/", "/b", "a b/c", "a/b--c", "a/..b", "-a/b", "a/b.git", ""])
def test_a_name_that_the_hub_does_not_allow_is_refused(
    name: str, tree: Path, hub: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    # "--" keeps argparse from reading "-a/b" as an option.
    assert deploy.main(["--upload", "--", name], root=tree, endpoint=hub.address) == 2
    assert capsys.readouterr().err.startswith("error: ") and hub.asked == []


def test_no_token_is_one_sentence(
    tree: Path, hub: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "get_token", lambda: None)
    (said,) = refused(capsys, hub, tree)
    assert said == "no token: log in with `hf auth login`, or set HF_TOKEN to a token that may write."


def test_large_files_pointers_links_and_missing_parts_are_refused_together(
    tree: Path, hub: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in {"large.bin": deploy.LARGEST, "just.bin": deploy.LARGEST - 1}.items():
        with (tree / "assets" / name).open("wb") as file:
            file.truncate(size)
    (tree / "assets" / "model.safetensors").write_bytes(deploy.POINTER + b"v1\noid sha256:00\nsize 5\n")
    (tree / "app" / "link.py").symlink_to(tree / ".env")
    (tree / "LICENSE").unlink()
    assert refused(capsys, hub, tree) == [
        "app/link.py is a link; the Hub would hold a copy of what it points to.",
        "assets/large.bin has 10,000,000 bytes; a file must stay below 10,000,000.",
        "assets/model.safetensors is a pointer of git LFS, not the file itself; run: git lfs pull",
        "LICENSE has nothing to upload; a Space needs it.",
    ]


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("sdk: gradio", "sdk: docker", "sdk must be gradio, not 'docker'."),
        ("---\ntitle", "title", "sdk must be gradio, not None."),
        ("title: A page", "title: [", "it cannot be read: "),
        ("title: A page", "title: \x80", "it cannot be read: "),
        ("6.31.0", "6.31", "sdk_version must be one version, like 6.31.0, not 6.31."),
        ("6.31.0", '">=6.31"', "sdk_version must be one version, like 6.31.0, not '>=6.31'."),
        ("6.31.0", "5.0.1", "sdk_version is 5.0.1, but requirements.txt asks for gradio[mcp]<7,>=6.31."),
        ("3.12.12", "3.10", "python_version must be a text like 3.12 or 3.12.12, not 3.1."),
        ("3.12.12", '"2.7"', "python_version must be a text like 3.12 or 3.12.12, not '2.7'."),
        ("app_file: app.py", "app_file: main.py", "app_file is main.py, which is not among the files of the Space."),
    ],
)
def test_front_matter_that_would_build_a_broken_space_is_refused(
    before: str, after: str, sentence: str, tree: Path, hub: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "README.md").write_text(README.replace(before, after), encoding="latin-1")
    assert refused(capsys, hub, tree)[0].startswith(f"README.md, front matter: {sentence}")


# The upload by the Hub's own client, and the look at what arrived


def test_a_new_space_gets_the_files_and_the_machine_asked_for(
    tree: Path, hub: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send(tree, hub, "--private", "--hardware", "zero-a10g", "--message", "Hello") == 0
    assert kept(hub) == FILES
    assert hub.about == {"private": True, "hardware": "zero-a10g", "messages": ["Hello"]}
    assert f"POST /api/spaces/{SPACE}/hardware" not in hub.asked
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{hub.address}/spaces/{SPACE}: all {len(FILES)} files are there, byte for byte"


def test_a_second_upload_deletes_what_is_gone_moves_to_another_machine_and_reads_its_own_commit(
    tree: Path, hub: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send(tree, hub) == 0
    (tree / "app" / "page.py").unlink()
    assert send(tree, hub, "--hardware", "t4-small") == 0
    assert kept(hub) == {path: content for path, content in FILES.items() if path != "app/page.py"}
    assert ".gitattributes" in hub.files
    assert (hub.about["private"], hub.about["hardware"]) == (False, "t4-small")
    assert f"GET /api/spaces/{SPACE}/tree/commit-2" in hub.asked
    assert "to delete on the Hub: app/page.py\n" in capsys.readouterr().out


def test_what_arrives_changed_and_what_does_not_arrive_is_found(
    tree: Path, hub: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.corrupt, hub.lose = "app.py", "LICENSE"
    assert send(tree, hub, "--hardware", "t4-small") == 1
    lost, changed, last = capsys.readouterr().err.splitlines()
    assert lost == "error: LICENSE: missing on the Hub."
    here, there = (deploy.blob(content) for content in (FILES["app.py"], b"!" + FILES["app.py"]))
    assert changed == f"error: app.py: {here} here, {there} on the Hub."
    assert last == f"error: {hub.address}/spaces/{SPACE} is not the same as this tree; run the command again."


def test_large_files_are_compared_by_their_sha256_and_a_file_too_many_is_found() -> None:
    ours = {"model.bin": b"ours", "same.bin": b"same"}
    tree = [RepoFile(path="old.py", size=1, oid="0" * 40), RepoFile(path=".gitattributes", size=1, oid="0" * 40)]
    for path, content in {"model.bin": b"theirs", "same.bin": b"same"}.items():
        stored = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        tree.append(RepoFile(path=path, size=len(content), oid="0" * 40, lfs=stored))
    here, there = (hashlib.sha256(content).hexdigest() for content in (b"ours", b"theirs"))
    assert deploy.differences(ours, tree) == [
        f"model.bin: {here} here, {there} on the Hub.",
        "old.py: on the Hub only.",
    ]


def test_a_public_space_is_not_taken_for_a_private_one_and_another_project_is_overwritten_only_when_asked_for(
    tree: Path, hub: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    there = {".gitattributes": b"", "README.md": b"", "app.py": b"print('precious')\n"}
    hub.files |= there
    hub.about |= {"private": False, "hardware": "cpu-basic"}
    (said,) = refused(capsys, hub, tree, "--private")
    assert said == f"{SPACE} is there already and is public; make it private first, or leave --private out."
    (said,) = refused(capsys, hub, tree)
    assert said == f"{SPACE} holds another project (README.md, app.py); --replace overwrites it."
    assert hub.files == there
    assert send(tree, hub, "--replace") == 0
    assert kept(hub) == FILES


def test_what_the_hub_answers_is_said_without_a_traceback(
    tree: Path, hub: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.broken = True
    assert send(tree, hub) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: the upload failed: ") and "on fire" in said and "Traceback" not in said


# This project


@pytest.fixture(scope="module")
def front() -> dict[str, Any]:
    return SpaceCard.load(ROOT / "README.md").data.to_dict()


def test_this_tree_may_be_sent_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert deploy.main([SPACE]) == 0
    assert "app.py\n" in capsys.readouterr().out


def test_the_front_matter_names_the_models_of_the_catalogue(front: dict[str, Any]) -> None:
    assert front["models"] == [spec.source for spec in CATALOGUE if not spec.bundled]


def test_the_front_matter_asks_for_the_gradio_that_is_tested(front: dict[str, Any]) -> None:
    assert front["sdk_version"].split(".")[:2] == version("gradio").split(".")[:2]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    asked = [Requirement(line) for line in lines if line.startswith("gradio")]
    assert len(asked) == 1 and front["sdk_version"] in asked[0].specifier


def test_the_front_matter_asks_for_a_python_that_readme_promises(front: dict[str, Any]) -> None:
    assert front["python_version"].split(".")[:2] in (["3", "10"], ["3", "11"], ["3", "12"])


@pytest.fixture(scope="module")
def uploaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that a Space of this tree gets, and nothing else, in a folder of their own."""
    folder = tmp_path_factory.mktemp("space")
    for path, content in deploy.read(ROOT).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def alone(folder: Path, *command: str) -> str:
    """What Python prints in that folder, with no way to this one."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SPACE_ID")}
    clean["PYTHONDONTWRITEBYTECODE"] = "1"
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=clean, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_uploaded_has_no_tests_caches_or_runs(uploaded: Path) -> None:
    names = {path.name for path in uploaded.iterdir()}
    assert names == set(deploy.SPACE)
    assert not [path for path in uploaded.rglob("*") if path.suffix == ".pyc" or path.name.startswith(".")]


def test_what_is_uploaded_starts_by_itself(uploaded: Path) -> None:
    assert alone(uploaded, "app.py", "--help").startswith("usage: python app.py")


def test_what_is_uploaded_builds_the_page_from_its_own_modules(uploaded: Path) -> None:
    code = """
import json, pkgutil, importlib, runpy, sys
door = runpy.run_path("app.py")
desk, page = door["build"]()
import app, sparsed
for package in (app, sparsed):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name not in OPTIONAL and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
files = [m.__file__ for n, m in sys.modules.items() if n.split(".")[0] in ("app", "sparsed") and m.__file__]
print(json.dumps([type(page).__name__, len(page.blocks), files]))
"""
    # These need packages that a Space does not have.
    optional = (
        "sparsed.harness", "sparsed.harness.command", "sparsed.attention.backends.triton_kernels",
        "sparsed.attention.backends.gluon_kernels",
    )  # fmt: skip
    kind, blocks, files = json.loads(alone(uploaded, "-c", f"OPTIONAL = {optional}{code}").splitlines()[-1])
    assert kind == "Blocks" and blocks > 20
    assert {Path(file).resolve().is_relative_to(uploaded.resolve()) for file in files} == {True}
