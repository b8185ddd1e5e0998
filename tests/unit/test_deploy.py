"""A Space made of this tree: what goes up, what is refused, what is found wrong afterwards; the container's files."""

from __future__ import annotations

import base64
import hashlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi, RepoUrl
from huggingface_hub.hf_api import RepoFile, RepoFolder
from huggingface_hub.utils import filter_repo_objects, validate_repo_id
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement

from app import deploy
from sparsed.models.catalogue import CATALOGUE

ROOT = Path(__file__).resolve().parents[2]
SPACE = "someone/sparsed-live"
FRONT = {
    "title": "A page",
    "emoji": "🏁",
    "colorFrom": "indigo",
    "colorTo": "green",
    "sdk": "gradio",
    "sdk_version": "6.31.0",
    "python_version": "3.12.12",
    "app_file": "app.py",
    "license": "apache-2.0",
}
BINARY = bytes(range(256)) * 5


def readme(**changes: Any) -> bytes:
    """A README with the front matter above; a key set to None is left out."""
    given = {name: value for name, value in {**FRONT, **changes}.items() if value is not None}
    # As people write it, a version has no quotes.
    bare = re.fullmatch(r"[0-9.]+", given.get("sdk_version", ""))
    lines = [
        f"{name}: {value if name == 'sdk_version' and bare else json.dumps(value)}" for name, value in given.items()
    ]
    return "\n".join(["---", *lines, "---", "", "# A page", ""]).encode()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small project with every part of a Space, and much that does not belong into one."""
    files = {
        "app/__init__.py": b"",
        "app/page.py": b"print('page')\n",
        "app/__pycache__/page.cpython-311.pyc": b"\0",
        "app/.hidden": b"x",
        "sparsed/__init__.py": b"",
        "sparsed/models/mini.py": "größer\n".encode(),
        "assets/model.safetensors": BINARY,
        "prompts/world.json": b"{}\n",
        "app.py": b"import app\n",
        "requirements.txt": b"# the page\ngradio>=6.31,<7\ntorch>=2.11\n",
        "README.md": readme(),
        "LICENSE": b"Apache\n",
        "tests/test_page.py": b"x",
        "runs/log.txt": b"x",
        ".env": b"TOKEN=1",
    }
    root = tmp_path / "project"
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


SENT = [
    "LICENSE", "README.md", "app.py", "app/__init__.py", "app/page.py", "assets/model.safetensors",
    "prompts/world.json", "requirements.txt", "sparsed/__init__.py", "sparsed/models/mini.py",
]  # fmt: skip


class Hub:
    """Stands in for `HfApi`: keeps the bytes of each Space, and computes the Hub's own hashes of them.

    lose, corrupt: paths that an upload drops, or stores with one bit changed. keep_stale: deletes nothing.
    """

    def __init__(self) -> None:
        self.spaces: dict[str, SimpleNamespace] = {}
        self.calls: list[str] = []
        self.lose: set[str] = set()
        self.corrupt: set[str] = set()
        self.keep_stale = False
        self.fails: Exception | None = None

    def _called(self, name: str, *positional: Any, **keywords: Any) -> None:
        inspect.signature(getattr(HfApi, name)).bind(self, *positional, **keywords)
        self.calls.append(name)
        if self.fails is not None:
            raise self.fails

    def _space(self, repo_id: str, repo_type: str) -> SimpleNamespace:
        assert repo_type == "space"
        return self.spaces[repo_id]

    def create_repo(self, repo_id: str, **options: Any) -> RepoUrl:
        self._called("create_repo", repo_id, **options)
        validate_repo_id(repo_id)
        assert options["repo_type"] == "space" and options["space_sdk"] == "gradio" and options["exist_ok"] is True
        if repo_id not in self.spaces:
            self.spaces[repo_id] = SimpleNamespace(
                private=bool(options["private"]),
                hardware=options["space_hardware"] or "cpu-basic",
                files={".gitattributes": b"*.bin filter=lfs\n", "README.md": b"---\nsdk: gradio\n---\n"},
                messages=[],
            )
        return RepoUrl(f"https://hub.invalid/spaces/{repo_id}", endpoint="https://hub.invalid")

    def repo_info(self, repo_id: str, **options: Any) -> SimpleNamespace:
        self._called("repo_info", repo_id, **options)
        return SimpleNamespace(private=self._space(repo_id, options["repo_type"]).private)

    def list_repo_files(self, repo_id: str, **options: Any) -> list[str]:
        self._called("list_repo_files", repo_id, **options)
        return list(self._space(repo_id, options["repo_type"]).files)

    def upload_folder(self, **options: Any) -> SimpleNamespace:
        self._called("upload_folder", **options)
        space = self._space(options["repo_id"], options["repo_type"])
        folder = Path(options["folder_path"])
        new = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        patterns = options.get("delete_patterns") or []
        for path in filter_repo_objects(list(space.files), allow_patterns=patterns):
            if path != ".gitattributes" and not self.keep_stale:
                del space.files[path]
        for path, content in new.items():
            if path in self.corrupt:
                content = bytes([content[0] ^ 1]) + content[1:]
            if path not in self.lose:
                space.files[path] = content
        space.messages.append(options["commit_message"])
        return SimpleNamespace(oid=f"commit-{len(space.messages)}")

    def list_repo_tree(self, repo_id: str, **options: Any) -> Iterator[RepoFile | RepoFolder]:
        self._called("list_repo_tree", repo_id, **options)
        space = self._space(repo_id, options["repo_type"])
        assert options["recursive"] is True and options["revision"] == f"commit-{len(space.messages)}"
        for folder in sorted({path.rpartition("/")[0] for path in space.files} - {""}):
            yield RepoFolder(path=folder, oid="0" * 40)
        for path, content in space.files.items():
            try:
                content.decode("utf-8")
                stored, large = content, None
            except UnicodeDecodeError:
                digest = hashlib.sha256(content).hexdigest()
                text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n"
                stored, large = text.encode(), {"oid": digest, "size": len(content), "pointerSize": len(text)}
            blob = subprocess.run(["git", "hash-object", "--stdin"], input=stored, capture_output=True, check=True)
            yield RepoFile(path=path, size=len(content), oid=blob.stdout.decode().strip(), lfs=large)

    def get_space_runtime(self, repo_id: str) -> SimpleNamespace:
        self._called("get_space_runtime", repo_id)
        return SimpleNamespace(requested_hardware=self.spaces[repo_id].hardware)

    def request_space_hardware(self, repo_id: str, hardware: str) -> None:
        self._called("request_space_hardware", repo_id, hardware)
        self.spaces[repo_id].hardware = hardware


@pytest.fixture
def hub() -> Hub:
    return Hub()


# What goes up


def test_a_folder_without_git_sends_the_parts_of_a_space_without_caches_and_hidden_files(tree: Path) -> None:
    assert deploy.choose(tree) == SENT
    assert deploy.notes(tree) == []


def git(root: Path, *words: str) -> None:
    """git in a repository that knows no settings but its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    settings = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *who, *words], cwd=root, env={**clean, **settings}, check=True, capture_output=True)


def test_a_git_checkout_sends_what_git_tracks_as_it_is_now_and_says_what_differs(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    git(tree, "init", "-q")
    git(tree, "add", "--", *SENT, "tests")
    git(tree, "commit", "-q", "-m", "first")
    (tree / "app" / "new.py").write_bytes(b"")
    (tree / "app" / "page.py").write_bytes(b"print('newer')\n")
    assert deploy.choose(tree) == SENT
    assert deploy.read(tree)["app/page.py"] == b"print('newer')\n"
    assert deploy.main([SPACE, "--dry-run"], root=tree) == 0
    printed = capsys.readouterr().out
    assert "note: as they are now, which is not as committed: app/page.py\n" in printed
    left_out = next(line for line in printed.splitlines() if "git does not track them" in line)
    assert "app/new.py" in left_out and "tests" not in left_out


def test_a_tracked_file_that_is_gone_is_refused(tree: Path) -> None:
    git(tree, "init", "-q")
    git(tree, "add", "--", *SENT)
    git(tree, "commit", "-q", "-m", "first")
    (tree / "app" / "page.py").unlink()
    with pytest.raises(deploy.Refused, match=r"^app/page\.py is missing\.$"):
        deploy.read(tree)


@settings(max_examples=50, deadline=None)
@given(content=st.binary(max_size=200))
def test_the_hash_of_a_file_is_the_one_git_gives_it(content: bytes) -> None:
    done = subprocess.run(["git", "hash-object", "--stdin"], input=content, capture_output=True, check=True)
    made = deploy.item("x", content)
    assert (made.blob, made.size) == (done.stdout.decode().strip(), len(content))


def test_a_dry_run_lists_every_file_with_size_and_hash_and_needs_no_network_nor_token(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a dry run opened a connection"))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: pytest.fail("a dry run looked for a token"))
    assert deploy.main([SPACE, "--dry-run"], root=tree) == 0
    *files, front, total = capsys.readouterr().out.splitlines()
    contents = {path: (tree / path).read_bytes() for path in SENT}
    assert [line.split() for line in files] == [
        [deploy.item(path, content).blob, f"{len(content):,}", path] for path, content in contents.items()
    ]
    assert front == "front matter: A page, gradio 6.31.0, Python 3.12.12, app.py, 0 models"
    size = sum(len(content) for content in contents.values())
    assert total.startswith(f"{len(SENT)} files, {size:,} bytes, sha256 of all: ")


def test_importing_the_command_imports_neither_gradio_nor_the_hubs_client() -> None:
    code = "import sys, app.deploy; print(sorted({'gradio', 'huggingface_hub', 'torch', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# What is refused before anything is sent


def refused(capsys: pytest.CaptureFixture[str], hub: Hub, root: Path, *arguments: str) -> list[str]:
    """The sentences of a refusal, without "error: "."""
    assert deploy.main([SPACE, *arguments], root=root, api=hub) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err and "upload_folder" not in hub.calls
    return [line.removeprefix("error: ") for line in said.err.splitlines()]


@pytest.mark.parametrize(
    "name", ["page", "a/b/c", "a/", "/b", "a b/c", "a/b--c", "a/..b", "-a/b", "a/b.git", "é/b", ""]
)
def test_a_name_that_the_hub_does_not_allow_is_refused(
    name: str, tree: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    # "--" keeps argparse from reading "-a/b" as an option.
    assert deploy.main(["--", name], root=tree, api=hub) == 2
    assert capsys.readouterr().err == f"error: {name!r} is not the name of a Space; it must be like OWNER/NAME.\n"
    assert hub.calls == []


@settings(max_examples=300, deadline=None)
@given(name=st.from_regex(r"[a-zA-Z0-9_.é-]{1,8}/[a-zA-Z0-9_.-]{1,100}", fullmatch=True))
def test_every_name_that_is_taken_passes_the_hubs_own_check(name: str) -> None:
    if deploy.is_repository(name):
        validate_repo_id(name)


def test_no_token_is_one_sentence(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert deploy.main([SPACE], root=tree) == 2
    assert capsys.readouterr().err == (
        "error: no token: log in with `hf auth login`, or set HF_TOKEN to a token that may write.\n"
    )


def test_unknown_hardware_is_refused_with_the_names_there_are(
    tree: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    (said,) = refused(capsys, hub, tree, "--hardware", "abacus")
    assert said.startswith("--hardware must be one of cpu-basic, ") and said.endswith(", not 'abacus'.")
    assert "zero-a10g" in said


def test_large_files_pointers_and_links_are_refused_together(
    tree: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tree / "assets" / "large.bin").open("wb") as file:
        file.truncate(deploy.LARGEST)
    with (tree / "assets" / "just.bin").open("wb") as file:
        file.truncate(deploy.LARGEST - 1)
    (tree / "assets" / "model.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    )
    (tree / "app" / "link.py").symlink_to(tree / ".env")
    assert refused(capsys, hub, tree) == [
        "app/link.py is a link; the Hub would hold a copy of what it points to.",
        "assets/large.bin has 10,000,000 bytes; a file must stay below 10,000,000.",
        "assets/model.safetensors is a pointer of git LFS, not the file itself; run: git lfs pull",
    ]


def test_a_missing_part_is_refused(tree: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(tree / "prompts")
    (tree / "LICENSE").unlink()
    said = refused(capsys, hub, tree)
    assert "prompts has nothing to upload; a Space needs it." in said
    assert "LICENSE has nothing to upload; a Space needs it." in said


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"title": None}, "title is missing."),
        ({"sdk": None}, "sdk is missing."),
        ({"colour": "red"}, "colour is not a key of a Space."),
        ({"colorTo": "orange"}, "colorTo must be one of red, yellow, green, blue, indigo, purple, pink, gray"),
        ({"sdk": "docker"}, "sdk must be gradio, not 'docker'."),
        ({"emoji": "Race"}, "emoji must be an emoji and nothing else, not 'Race'."),
        ({"sdk_version": "6.31"}, "sdk_version must be a text, not 6.31."),
        ({"sdk_version": ">=6.31"}, "sdk_version must be one version, like 6.31.0, not '>=6.31'."),
        ({"sdk_version": "5.0.1"}, "sdk_version is 5.0.1, but requirements.txt asks for gradio<7,>=6.31."),
        ({"python_version": 3.1}, "python_version must be a text, not 3.1."),
        ({"python_version": "2.7"}, "python_version must be like 3.12 or 3.12.12, not '2.7'."),
        ({"app_file": "main.py"}, "app_file is main.py, which is not among the files of the Space."),
        ({"short_description": "x" * 61}, "short_description has 61 characters; the Hub takes 60."),
        ({"suggested_hardware": "abacus"}, "suggested_hardware must be one of cpu-basic"),
        ({"startup_duration_timeout": "soon"}, "startup_duration_timeout must be like 30m or 1h, not 'soon'."),
        ({"models": "gpt2"}, "models must be a list of texts, not 'gpt2'."),
        ({"models": ["mini"]}, "models must hold names like OWNER/NAME, not 'mini'."),
        ({"pinned": "yes"}, "pinned must be true or false, not 'yes'."),
        ({"hf_oauth_expiration_minutes": True}, "hf_oauth_expiration_minutes must be a whole number, not True."),
    ],
)
def test_front_matter_that_the_hub_would_not_take_is_refused(
    changes: dict[str, Any], sentence: str, tree: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "README.md").write_bytes(readme(**changes))
    (said,) = refused(capsys, hub, tree)
    assert said.startswith(f"README.md, front matter: {sentence}")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("# A page\n", "README.md has no front matter: its first line must be ---"),
        ("---\ntitle: x\n", "README.md has no front matter: its first line must be ---"),
        ("\n---\ntitle: x\n---\n", "README.md has no front matter: its first line must be ---"),
        ("---\ntitle: [\n---\n", "README.md has front matter that is not YAML: "),
        ("---\n- title\n---\n", "README.md has front matter that is not a mapping of keys to values."),
        ("---\ntitle: x\ntitle: y\n---\n", "README.md has front matter with title more than once."),
    ],
)
def test_a_broken_block_of_front_matter_is_refused(
    text: str, sentence: str, tree: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "README.md").write_text(text)
    (said,) = refused(capsys, hub, tree)
    assert said.startswith(sentence)


# The upload, and the look at what arrived


def test_a_new_space_gets_the_files_and_the_machine_asked_for(
    tree: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--private", "--hardware", "zero-a10g", "--message", "Hello"]
    assert deploy.main([SPACE, *options], root=tree, api=hub) == 0
    space = hub.spaces[SPACE]
    sent = {path: content for path, content in space.files.items() if path != ".gitattributes"}
    assert sent == {path: (tree / path).read_bytes() for path in SENT}
    assert (space.private, space.hardware, space.messages) == (True, "zero-a10g", ["Hello"])
    assert "request_space_hardware" not in hub.calls
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"https://hub.invalid/spaces/{SPACE}: all {len(SENT)} files are there, byte for byte"


def test_a_second_upload_deletes_what_is_gone_and_moves_to_another_machine(tree: Path, hub: Hub) -> None:
    assert deploy.main([SPACE], root=tree, api=hub) == 0
    (tree / "app" / "page.py").unlink()
    (tree / "app" / "stage.py").write_bytes(b"x = 1\n")
    assert deploy.main([SPACE, "--hardware", "t4-small"], root=tree, api=hub) == 0
    space = hub.spaces[SPACE]
    assert "app/page.py" not in space.files and space.files["app/stage.py"] == b"x = 1\n"
    assert ".gitattributes" in space.files
    assert (space.private, space.hardware) == (False, "t4-small")


@pytest.mark.parametrize(
    ("path", "known_by"), [("sparsed/models/mini.py", "SHA-1"), ("assets/model.safetensors", "SHA-256")]
)
def test_a_file_that_arrives_with_one_bit_changed_is_found(
    path: str, known_by: str, tree: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.corrupt = {path}
    assert deploy.main([SPACE, "--hardware", "t4-small"], root=tree, api=hub) == 1
    first, last = capsys.readouterr().err.splitlines()
    here = deploy.item(path, (tree / path).read_bytes())
    digest = here.blob if known_by == "SHA-1" else here.sha256
    assert re.fullmatch(rf"error: {re.escape(path)}: {known_by} {digest} here, [0-9a-f]+ on the Hub\.", first)
    assert last == f"error: https://hub.invalid/spaces/{SPACE} is not the same as this tree; run the command again."


def test_a_file_that_does_not_arrive_is_found(tree: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.lose = {"app.py"}
    assert deploy.main([SPACE], root=tree, api=hub) == 1
    assert capsys.readouterr().err.splitlines()[0] == "error: app.py: missing on the Hub."


def test_a_file_that_should_have_gone_is_found(tree: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert deploy.main([SPACE], root=tree, api=hub) == 0
    hub.spaces[SPACE].files["app/old.py"] = b"old\n"
    hub.keep_stale = True
    assert deploy.main([SPACE], root=tree, api=hub) == 1
    said = capsys.readouterr()
    assert "to delete on the Hub: app/old.py" in said.out
    assert said.err.splitlines()[0] == "error: app/old.py: on the Hub only."


def test_a_large_file_with_the_right_hash_and_another_size_is_found() -> None:
    ours = deploy.item("model.bin", BINARY)
    stored = {"oid": ours.sha256, "size": 7, "pointerSize": 130}
    theirs = RepoFile(path="model.bin", size=7, oid="0" * 40, lfs=stored)
    assert deploy.differences([ours], [theirs]) == ["model.bin: 1,280 bytes here, 7 on the Hub."]


def test_a_public_space_is_not_taken_for_a_private_one(
    tree: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.create_repo(SPACE, repo_type="space", space_sdk="gradio", exist_ok=True, private=None, space_hardware=None)
    (said,) = refused(capsys, hub, tree, "--private")
    assert said == f"{SPACE} is there already and is public; make it private first, or leave --private out."


def test_another_project_is_overwritten_only_when_asked_for(
    tree: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.create_repo(SPACE, repo_type="space", space_sdk="gradio", exist_ok=True, private=None, space_hardware=None)
    hub.spaces[SPACE].files["app.py"] = b"print('precious')\n"
    (said,) = refused(capsys, hub, tree)
    assert said == f"{SPACE} holds another project (.gitattributes, README.md, app.py); --replace overwrites it."
    assert hub.spaces[SPACE].files["app.py"] == b"print('precious')\n"
    assert deploy.main([SPACE, "--replace"], root=tree, api=hub) == 0


def test_what_the_hub_answers_is_one_line_without_a_traceback(
    tree: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fails = ConnectionError("no route to the Hub")
    assert deploy.main([SPACE], root=tree, api=hub) == 1
    assert capsys.readouterr().err == "error: the upload failed: ConnectionError: no route to the Hub\n"


class HubOverHttp(BaseHTTPRequestHandler):
    """The part of the Hub's HTTP interface that the command uses, in front of a `Hub`; every file is a plain one."""

    hub: Hub
    asked: list[str]

    def _answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _space_url(self) -> str:
        # The client takes no address but that of the Hub it asked.
        return f"http://{self.headers['Host']}/spaces/{SPACE}"

    def do_GET(self) -> None:
        self.asked.append(f"GET {self.path}")
        address, _, query = self.path.partition("?")
        if address.startswith(f"/api/spaces/{SPACE}/tree/"):
            assert "recursive=true" in query.lower()
            revision = address.rpartition("/")[2]
            options = {"recursive": True, "repo_type": "space", "revision": revision}
            if revision == "main":
                options["revision"] = f"commit-{len(self.hub.spaces[SPACE].messages)}"
            self._answer([self._entry(entry) for entry in self.hub.list_repo_tree(SPACE, **options)])
        else:
            self._answer({"error": "unknown"}, 404)

    def _entry(self, entry: RepoFile | RepoFolder) -> dict[str, Any]:
        if isinstance(entry, RepoFolder):
            return {"type": "directory", "path": entry.path, "oid": entry.tree_id, "size": 0}
        shown = {"type": "file", "path": entry.path, "oid": entry.blob_id, "size": entry.size}
        if entry.lfs is not None:
            size = entry.lfs.pointer_size
            shown["lfs"] = {"oid": entry.lfs.sha256, "size": entry.lfs.size, "pointerSize": size}
        return shown

    def do_POST(self) -> None:
        self.asked.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Authorization"] == "Bearer secret"
        address = self.path.partition("?")[0]
        if address == "/api/repos/create":
            asked = json.loads(body)
            there = SPACE in self.hub.spaces
            assert (asked["organization"], asked["name"], asked["type"]) == (*SPACE.split("/"), "space")
            options = {"repo_type": "space", "space_sdk": asked["sdk"], "exist_ok": True, "private": False}
            self.hub.create_repo(SPACE, **options, space_hardware=asked.get("hardware"))
            self._answer({"url": self._space_url()}, 409 if there else 200)
        elif address == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif address == f"/api/spaces/{SPACE}/preupload/main":
            files = [file["path"] for file in json.loads(body)["files"]]
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            self._answer({"files": [{"path": path, **plain} for path in files]})
        elif address == f"/api/spaces/{SPACE}/commit/main":
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._answer({"error": "unknown"}, 404)

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        space = self.hub.spaces[SPACE]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                space.messages.append(value["summary"])
            elif line["key"] == "deletedFile":
                del space.files[value["path"]]
            else:
                assert line["key"] == "file" and value["encoding"] == "base64"
                space.files[value["path"]] = base64.b64decode(value["content"])
        oid = f"commit-{len(space.messages)}"
        self._answer({"commitUrl": f"{self._space_url()}/commit/{oid}", "commitOid": oid})

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def over_http(hub: Hub) -> Iterator[SimpleNamespace]:
    """A `Hub` on loopback: its address, and what it was asked."""
    handler = type("Handler", (HubOverHttp,), {"hub": hub, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield SimpleNamespace(address=f"http://127.0.0.1:{server.server_address[1]}", asked=handler.asked)
        server.shutdown()


def test_the_hubs_own_client_uploads_updates_and_reads_back_over_http(
    tree: Path, hub: Hub, over_http: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    client = HfApi(endpoint=over_http.address, token="secret")
    assert deploy.main([SPACE, "--message", "first"], root=tree, api=client) == 0
    (tree / "app" / "page.py").unlink()
    assert deploy.main([SPACE, "--message", "second"], root=tree, api=client) == 0
    space = hub.spaces[SPACE]
    left = [path for path in SENT if path != "app/page.py"]
    sent = {path: content for path, content in space.files.items() if path != ".gitattributes"}
    assert sent == {path: (tree / path).read_bytes() for path in left}
    assert space.messages == ["first", "second"]
    assert over_http.asked[-1].startswith(f"GET /api/spaces/{SPACE}/tree/commit-2?")
    space.files["LICENSE"] = b"tampered\n"
    assert deploy.differences(
        [deploy.item("LICENSE", b"Apache\n")], client.list_repo_tree(SPACE, recursive=True, repo_type="space")
    )[0].startswith("LICENSE: SHA-1 ")


# This project


@pytest.fixture(scope="module")
def front() -> dict[str, Any]:
    return deploy.front_matter((ROOT / "README.md").read_text(encoding="utf-8"))


def test_the_front_matter_of_readme_is_in_order() -> None:
    assert deploy.front_matter_problems(deploy.read(ROOT)) == []


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
    deploy.write(deploy.read(ROOT), folder)
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
        "sparsed.harness", "sparsed.lm_eval_command", "sparsed.attention.triton_kernels",
        "sparsed.attention.gluon_kernels",
    )  # fmt: skip
    kind, blocks, files = json.loads(alone(uploaded, "-c", f"OPTIONAL = {optional}{code}").splitlines()[-1])
    assert kind == "Blocks" and blocks > 20
    assert {Path(file).resolve().is_relative_to(uploaded.resolve()) for file in files} == {True}


# The container


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
        ".git/config", "tests/unit/test_deploy.py", ".venv-tests/bin/python", "venv/bin/python", "runs/log.txt",
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
