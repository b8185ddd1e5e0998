"""Puts this tree on the Hub as a Space, then checks that what lies there is what lies here:

python -m app.tools.deploy OWNER/NAME [--upload] [--private] [--hardware t4-small] [--message TEXT] [--replace]

Without --upload it lists what would be sent, which needs neither a network nor a token. Exit status: 0 done, 1 the
upload failed or the Hub holds something else than this tree, 2 refused before any file was sent.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, SpaceCard, SpaceHardware, get_token
from huggingface_hub.hf_api import RepoFile, RepoFolder
from huggingface_hub.utils import validate_repo_id
from packaging.requirements import Requirement
from yaml import YAMLError

from sparsed.edge import go_on, program

ROOT = Path(__file__).resolve().parents[2]
# What a Space needs and what its card, README.md, links to; nothing else.
SPACE = (
    "app", "sparsed", "assets", "prompts", "docs", "app.py", "requirements.txt", "README.md", "CONTRIBUTING.md",
    "CHANGELOG.md", "LICENSE",
)  # fmt: skip
# One file, in bytes: a larger one is a mistake here.
LARGEST = 10_000_000
POINTER = b"version https://git-lfs.github.com/spec/"
# The Hub makes it with the Space, and its client never deletes it.
OF_THE_HUB = ".gitattributes"
# A Space that has this file was made from this project.
OURS = "sparsed/__init__.py"


class Refused(ValueError):
    """No file was sent; each line of the message is a sentence that says why."""


def git(root: Path, *words: str) -> list[str]:
    """What git says of the parts of a Space, one entry for each file. Raises `Refused` if it fails."""
    # Inside a git hook these variables point at another repository.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(["git", "-C", str(root), *words, "-z", "--", *SPACE], capture_output=True, env=clean)
    if done.returncode:
        raise Refused(f"git cannot list the files of {root}: {done.stderr.decode(errors='replace').strip()}")
    return [entry for entry in os.fsdecode(done.stdout).split("\0") if entry]


def choose(root: Path) -> list[str]:
    """Paths below `root` of the files to upload, sorted: those that git tracks where `root` is a git checkout, else all
    but caches and hidden ones. Raises `Refused` if git cannot list them."""
    if (root / ".git").exists():
        return sorted(set(git(root, "ls-files")))
    found = [path for name in SPACE for path in [root / name, *(root / name).rglob("*")] if path.is_file()]
    names = [path.relative_to(root).as_posix() for path in found if path.suffix != ".pyc"]
    return sorted(name for name in names if "/." not in name)


def read(root: Path) -> dict[str, bytes]:
    """The bytes of every file to upload, by path. Raises `Refused`, naming every reason: a part of the Space is
    missing, a file is too large, a link or an LFS pointer, or README's front matter would make a broken Space."""
    contents: dict[str, bytes] = {}
    wrong = []
    for path in choose(root):
        place = root / path
        if place.is_symlink():
            wrong.append(f"{path} is a link; the Hub would hold a copy of what it points to.")
        elif not place.is_file():
            wrong.append(f"{path} is missing.")
        elif place.stat().st_size >= LARGEST:
            wrong.append(f"{path} has {place.stat().st_size:,} bytes; a file must stay below {LARGEST:,}.")
        else:
            contents[path] = place.read_bytes()
            if contents[path].startswith(POINTER):
                wrong.append(f"{path} is a pointer of git LFS, not the file itself; run: git lfs pull")
    for name in SPACE:
        if not any(path == name or path.startswith(f"{name}/") for path in contents):
            wrong.append(f"{name} has nothing to upload; a Space needs it.")
    wrong = wrong or [f"README.md, front matter: {sentence}" for sentence in card_problems(contents)]
    if wrong:
        raise Refused("\n".join(wrong))
    return contents


def card_problems(contents: Mapping[str, bytes]) -> Iterable[str]:
    """What in README's front matter would not build this Space, one sentence each; the Hub checks the rest itself when
    it is sent. contents: bytes by path."""
    try:
        card = SpaceCard(contents["README.md"].decode()).data.to_dict()
    except (ValueError, TypeError, YAMLError) as error:
        yield f"it cannot be read: {' '.join(str(error).split())}"
        return
    sdk, app_file, python, gradio = (card.get(f) for f in ("sdk", "app_file", "python_version", "sdk_version"))
    if sdk != "gradio":
        yield f"sdk must be gradio, not {sdk!r}."
    if app_file not in contents:
        yield f"app_file is {app_file}, which is not among the files of the Space."
    # Without quotes YAML reads 3.10 as the number 3.1.
    if not isinstance(python, str) or not re.fullmatch(r"3\.\d+(\.\d+)?", python):
        yield f"python_version must be a text like 3.12 or 3.12.12, not {python!r}."
    lines = contents["requirements.txt"].decode().splitlines()
    asked = Requirement(next(line for line in [*lines, "gradio"] if line.startswith("gradio")))
    if not re.fullmatch(r"\d+\.\d+\.\d+", str(gradio)):
        yield f"sdk_version must be one version, like 6.31.0, not {gradio!r}."
    elif not asked.specifier.contains(gradio):
        yield f"sdk_version is {gradio}, but requirements.txt asks for {asked}."


def blob(content: bytes) -> str:
    """The SHA-1 by which git, and the Hub, know a plain file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def differences(contents: Mapping[str, bytes], tree: Iterable[RepoFile | RepoFolder]) -> list[str]:
    """How the Hub's files differ from ours, one sentence each; empty if they are the same, byte for byte.

    tree: what `HfApi.list_repo_tree(recursive=True)` gives. A file that the Hub keeps in its large-file store (LFS or
    Xet) is known there by the SHA-256 of its bytes, any other by git's SHA-1.
    """
    there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile) and entry.path != OF_THE_HUB}
    wrong = []
    for path, content in contents.items():
        theirs = there.pop(path, None)
        if theirs is None:
            wrong.append(f"{path}: missing on the Hub.")
            continue
        here, hub = blob(content), theirs.blob_id
        if theirs.lfs is not None:
            here, hub = hashlib.sha256(content).hexdigest(), theirs.lfs.sha256
        if hub != here:
            wrong.append(f"{path}: {here} here, {hub} on the Hub.")
    return wrong + [f"{path}: on the Hub only." for path in sorted(there)]


def upload(api: HfApi, given: argparse.Namespace, contents: Mapping[str, bytes]) -> tuple[str, list[str]]:
    """Sends the files and looks at what arrived. Returns the Space's address and the differences; raises `Refused`, or
    whatever the Hub's client raises."""
    name, hardware = given.repository, given.hardware
    private = True if given.private else None
    address = api.create_repo(
        name, repo_type="space", space_sdk="gradio", exist_ok=True, private=private, space_hardware=hardware
    )
    # For a Space that was there before, `private` is ignored.
    if private and not api.repo_info(name, repo_type="space").private:
        raise Refused(f"{name} is there already and is public; make it private first, or leave --private out.")
    there = set(api.list_repo_files(name, repo_type="space")) - {OF_THE_HUB}
    if there - {"README.md"} and OURS not in there and not given.replace:
        raise Refused(f"{name} holds another project ({', '.join(sorted(there))}); --replace overwrites it.")
    gone = sorted(there - set(contents))
    for path in gone:
        print(f"to delete on the Hub: {path}")
    changes = [CommitOperationAdd(path, content) for path, content in contents.items()]
    commit = api.create_commit(
        name, [*changes, *map(CommitOperationDelete, gone)], commit_message=given.message, repo_type="space"
    )
    wrong = differences(contents, api.list_repo_tree(name, recursive=True, revision=commit.oid, repo_type="space"))
    if hardware and not wrong and api.get_space_runtime(name).requested_hardware != hardware:
        api.request_space_hardware(name, hardware)
    return str(address), wrong


def options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m app.tools.deploy",
        description="Lists or uploads this tree as a Space of the Hub, and checks what arrived.",
    )
    parser.add_argument("repository", metavar="OWNER/NAME", help="the Space; it is created if it is not there")
    parser.add_argument("--upload", action="store_true", help="send the files; without it they are only listed")
    parser.add_argument("--private", action="store_true", help="create it as a private Space")
    parser.add_argument("--hardware", choices=[kind.value for kind in SpaceHardware], help="the Space's machine")
    parser.add_argument("--message", default="Upload SparseD live", help="the commit's message")
    parser.add_argument("--replace", action="store_true", help="overwrite a Space that holds another project")
    return parser.parse_args(arguments)


def prepare(given: argparse.Namespace, root: Path) -> dict[str, bytes]:
    """The bytes of every file to upload, by path, after they are listed. Raises ValueError if it cannot go on."""
    if given.repository.count("/") != 1:
        raise Refused(f"{given.repository!r} is not the name of a Space; it must be like OWNER/NAME.")
    validate_repo_id(given.repository)
    contents = read(root)
    for path, content in contents.items():
        print(f"{blob(content)} {len(content):>12,}  {path}")
    print(f"{len(contents)} files, {sum(map(len, contents.values())):,} bytes")
    for line in git(root, "status", "--porcelain", "--no-renames") if (root / ".git").exists() else ():
        print(f"note: not as committed (?? is left out, because git does not track it): {line}")
    if given.upload and get_token() is None:
        raise Refused("no token: log in with `hf auth login`, or set HF_TOKEN to a token that may write.")
    return contents


def main(arguments: list[str] | None = None, *, root: Path = ROOT, endpoint: str | None = None) -> int:
    """The command; returns its exit status. endpoint: the Hub's address; None is the usual one."""
    return program(lambda: _deploy(options(arguments), root, endpoint))


def _deploy(given: argparse.Namespace, root: Path, endpoint: str | None) -> int:
    if given.upload:
        go_on()
    try:
        contents = prepare(given, root)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        return _fail(2, *str(error).splitlines())
    if not given.upload:
        print("Nothing was sent; --upload sends it.")
        return 0
    try:
        address, wrong = upload(HfApi(endpoint), given, contents)
    except Refused as error:
        return _fail(2, str(error))
    except Exception as error:  # the Hub's client raises errors of several HTTP libraries
        return _fail(1, f"the upload failed: {type(error).__name__}: {error}")
    if wrong:
        return _fail(1, *wrong, f"{address} is not the same as this tree; run the command again.")
    print(f"{address}: all {len(contents)} files are there, byte for byte")
    return 0


def _fail(status: int, *sentences: str) -> int:
    for sentence in sentences:
        print(f"error: {sentence}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
