"""Puts this tree on the Hub as a Space, then checks that what lies there is what lies here:

python -m app.deploy OWNER/NAME [--dry-run] [--private] [--hardware t4-small] [--message TEXT] [--replace]

Exit status: 0 done, 1 the upload failed or the Hub holds something else than this tree, 2 refused before any file
was sent. `--dry-run` needs neither a network nor a token.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# What a Space needs, and nothing else.
SPACE = ("app", "sparsed", "assets", "prompts", "app.py", "requirements.txt", "README.md", "LICENSE")
# One file, in bytes: a larger one is a mistake here.
LARGEST = 10_000_000
POINTER = b"version https://git-lfs.github.com/spec/"
# The Hub makes it with the Space, and its client never deletes it.
OF_THE_HUB = ".gitattributes"
# A Space that has this file was made from this project.
OURS = "sparsed/__init__.py"
LISTED = 20

# The front matter that a Space with the Gradio SDK may have, by the Hub's configuration reference.
KEYS: dict[str, type] = {
    "title": str, "emoji": str, "colorFrom": str, "colorTo": str, "sdk": str, "sdk_version": str,
    "python_version": str, "app_file": str, "base_path": str, "suggested_hardware": str, "suggested_storage": str,
    "fullWidth": bool, "header": str, "short_description": str, "thumbnail": str, "license": str, "pinned": bool,
    "models": list, "datasets": list, "tags": list, "preload_from_hub": list, "hf_oauth": bool,
    "hf_oauth_scopes": list, "hf_oauth_expiration_minutes": int, "disable_embedding": bool,
    "startup_duration_timeout": str, "custom_headers": dict,
}  # fmt: skip
REQUIRED = ("title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "license")
COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
SHORT = 60
_KINDS = {str: "a text", bool: "true or false", int: "a whole number", list: "a list of texts", dict: "a mapping"}
_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)


class Refused(ValueError):
    """No file was sent; each line of the message is a sentence that says why."""


@dataclass(frozen=True)
class Item:
    """One file of the Space. path: below the root, with slashes. size: bytes. blob: the SHA-1 by which git and the
    Hub know a plain file. sha256: of the bytes, by which the Hub knows a large or binary file."""

    path: str
    size: int
    blob: str
    sha256: str


def item(path: str, content: bytes) -> Item:
    """The file at `path`, known by its bytes."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return Item(path, len(content), blob, hashlib.sha256(content).hexdigest())


def _git(root: Path, *words: str) -> list[str]:
    # Inside a git hook these variables point at another repository.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(root), *words, "-z", "--", *SPACE]
    done = subprocess.run(command, capture_output=True, env=clean)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise Refused(f"git cannot list the files of {root}: {said[-1]}")
    return [entry for entry in done.stdout.decode("utf-8", "surrogateescape").split("\0") if entry]


def _is_checkout(root: Path) -> bool:
    return (root / ".git").exists() and shutil.which("git") is not None


def choose(root: Path) -> list[str]:
    """Paths below `root` of the files to upload, sorted: those that git tracks where `root` is a git checkout, else all
    but caches and hidden ones. Raises `Refused` if git cannot list them."""
    if _is_checkout(root):
        return sorted(set(_git(root, "ls-files")))
    found = []
    for name in SPACE:
        place = root / name
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            below = path.relative_to(root)
            cache = "__pycache__" in below.parts or path.suffix == ".pyc"
            if not cache and not any(part.startswith(".") for part in below.parts) and not path.is_dir():
                found.append(below.as_posix())
    return sorted(found)


def notes(root: Path) -> list[str]:
    """What git says of the present state: files that differ from the last commit, and those left out because git does
    not track them. Empty outside a git checkout."""
    if not _is_checkout(root):
        return []
    changed = _git(root, "diff", "--name-only", "HEAD")
    untracked = _git(root, "ls-files", "--others", "--exclude-standard")
    said = []
    if changed:
        said.append(f"as they are now, which is not as committed: {_some(changed)}")
    if untracked:
        said.append(f"left out, because git does not track them: {_some(untracked)}")
    return said


def read(root: Path) -> dict[str, bytes]:
    """The bytes of every file to upload, by path. Raises `Refused`, naming every reason: a part of the Space is
    missing, a file is too large, a link or an LFS pointer, or README's front matter is broken."""
    contents: dict[str, bytes] = {}
    wrong = []
    for path in choose(root):
        place = root / path
        if place.is_symlink() or any(parent.is_symlink() for parent in place.relative_to(root).parents if parent.name):
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
    if "README.md" in contents:
        wrong += front_matter_problems(contents)
    if wrong:
        raise Refused("\n".join(dict.fromkeys(wrong)))
    return contents


def front_matter(readme: str) -> dict[str, Any]:
    """The block between two lines of three dashes at the top of README.md. Raises ValueError if there is none, or it
    is not a YAML mapping that has each key once."""
    import yaml

    block = _FRONT_MATTER.match(readme)
    if block is None:
        raise ValueError("has no front matter: its first line must be ---, and another line --- must end the block.")
    try:
        node = yaml.compose(block[1], Loader=yaml.SafeLoader)
        found = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        raise ValueError(f"has front matter that is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ValueError("has front matter that is not a mapping of keys to values.")
    names = [key.value for key, _ in node.value]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"has front matter with {', '.join(twice)} more than once.")
    return found


def front_matter_problems(contents: Mapping[str, bytes]) -> list[str]:
    """What the Hub would not take, or would build a broken Space from, one sentence each.

    contents: bytes by path; README.md must be there, requirements.txt and the app file are looked at.
    """
    try:
        given = front_matter(contents["README.md"].decode("utf-8"))
    except ValueError as error:
        return [f"README.md {error}"]
    wrong = [f"{name} is not a key of a Space." for name in given if name not in KEYS]
    wrong += [f"{name} is missing." for name in REQUIRED if name not in given]
    for name, kind in KEYS.items():
        value = given.get(name)
        good = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
        if kind is list:
            good = good and all(isinstance(entry, str) for entry in value or ())
        if name in given and not good:
            wrong.append(f"{name} must be {_KINDS[kind]}, not {value!r}.")
    if not wrong:
        wrong = [*_values(given), *_versions(given, contents)]
        if given["app_file"] not in contents:
            wrong.append(f"app_file is {given['app_file']}, which is not among the files of the Space.")
    return [f"README.md, front matter: {sentence}" for sentence in wrong]


def _values(given: Mapping[str, Any]) -> Iterable[str]:
    if given["sdk"] != "gradio":
        yield f"sdk must be gradio, not {given['sdk']!r}."
    for name in ("colorFrom", "colorTo"):
        if given[name] not in COLOURS:
            yield f"{name} must be one of {', '.join(COLOURS)}, not {given[name]!r}."
    if not given["emoji"] or len(given["emoji"]) > 8 or any(ord(sign) < 128 for sign in given["emoji"]):
        yield f"emoji must be an emoji and nothing else, not {given['emoji']!r}."
    described = given.get("short_description", "")
    if len(described) > SHORT:
        yield f"short_description has {len(described)} characters; the Hub takes {SHORT}."
    if not re.fullmatch(r"3\.\d+(\.\d+)?", given["python_version"]):
        yield f"python_version must be like 3.12 or 3.12.12, not {given['python_version']!r}."
    if not re.fullmatch(r"[1-9]\d*[smh]", given.get("startup_duration_timeout", "30m")):
        yield f"startup_duration_timeout must be like 30m or 1h, not {given['startup_duration_timeout']!r}."
    if given.get("header", "default") not in ("default", "mini"):
        yield f"header must be default or mini, not {given['header']!r}."
    suggested = given.get("suggested_hardware")
    if suggested is not None and suggested not in hardware():
        yield f"suggested_hardware must be one of {', '.join(hardware())}, not {suggested!r}."
    for name in ("models", "datasets"):
        for entry in given.get(name, ()):
            if not is_repository(entry):
                yield f"{name} must hold names like OWNER/NAME, not {entry!r}."


def _versions(given: Mapping[str, Any], contents: Mapping[str, bytes]) -> Iterable[str]:
    from packaging.requirements import InvalidRequirement, Requirement

    version = given["sdk_version"]
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        yield f"sdk_version must be one version, like 6.31.0, not {version!r}."
        return
    for line in contents.get("requirements.txt", b"").decode("utf-8", "replace").splitlines():
        try:
            asked = Requirement(line.split("#")[0].strip())
        except InvalidRequirement:
            continue
        if asked.name.lower() == "gradio" and not asked.specifier.contains(version):
            yield f"sdk_version is {version}, but requirements.txt asks for gradio{asked.specifier}."


def hardware() -> tuple[str, ...]:
    """The names of the Hub's machines for a Space, as its client knows them."""
    from huggingface_hub import SpaceHardware

    return tuple(kind.value for kind in SpaceHardware)


def is_repository(name: str) -> bool:
    """Whether `name` is OWNER/NAME as the Hub allows it: letters, digits, single - _ . inside, at most 96 each."""
    parts = name.split("/")
    word = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
    whole = len(parts) == 2 and all(word.fullmatch(part) for part in parts)
    return whole and "--" not in name and ".." not in name and not name.endswith(".git")


def differences(items: Sequence[Item], tree: Iterable[Any]) -> list[str]:
    """How the Hub's files differ from ours, one sentence each; empty if they are the same, byte for byte.

    tree: what `HfApi.list_repo_tree(recursive=True)` gives. A file that the Hub keeps in its large-file store (LFS or
    Xet) is known there by the SHA-256 of its bytes, any other by git's SHA-1.
    """
    from huggingface_hub.hf_api import RepoFile

    there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    wrong = []
    for ours in items:
        theirs = there.pop(ours.path, None)
        if theirs is None:
            wrong.append(f"{ours.path}: missing on the Hub.")
            continue
        name, here, hub = "SHA-1", ours.blob, theirs.blob_id
        if theirs.lfs is not None:
            name, here, hub = "SHA-256", ours.sha256, theirs.lfs.sha256
        if hub != here:
            wrong.append(f"{ours.path}: {name} {here} here, {hub} on the Hub.")
        elif theirs.size != ours.size:
            wrong.append(f"{ours.path}: {ours.size:,} bytes here, {theirs.size:,} on the Hub.")
    return wrong + [f"{path}: on the Hub only." for path in sorted(there) if path != OF_THE_HUB]


def _upload(
    api: Any, given: argparse.Namespace, contents: Mapping[str, bytes], items: Sequence[Item]
) -> tuple[str, list[str]]:
    """Sends the files and looks at what arrived. Returns the Space's address and the differences; raises `Refused`, or
    whatever the Hub's client raises."""
    repository = given.repository
    address = api.create_repo(
        repository,
        repo_type="space",
        space_sdk="gradio",
        exist_ok=True,
        private=True if given.private else None,
        space_hardware=given.hardware,
    )
    # For a Space that was there before, `private` is ignored.
    if given.private and not api.repo_info(repository, repo_type="space").private:
        raise Refused(f"{repository} is there already and is public; make it private first, or leave --private out.")
    there = set(api.list_repo_files(repository, repo_type="space"))
    if there - {OF_THE_HUB, "README.md"} and OURS not in there and not given.replace:
        raise Refused(f"{repository} holds another project ({_some(sorted(there))}); --replace overwrites it.")
    gone = sorted(there - set(contents) - {OF_THE_HUB})
    if gone:
        print(f"to delete on the Hub: {_some(gone)}")
    # What was checked is what is sent, whoever edits the tree meanwhile.
    with tempfile.TemporaryDirectory() as folder:
        write(contents, Path(folder))
        commit = api.upload_folder(
            repo_id=repository,
            repo_type="space",
            folder_path=folder,
            commit_message=given.message,
            delete_patterns="*",
        )
    tree = api.list_repo_tree(repository, recursive=True, revision=commit.oid, repo_type="space")
    wrong = differences(items, tree)
    if given.hardware and not wrong and api.get_space_runtime(repository).requested_hardware != given.hardware:
        api.request_space_hardware(repository, given.hardware)
    return str(address), wrong


def write(contents: Mapping[str, bytes], folder: Path) -> None:
    """The files below `folder`, which the Space would see."""
    for path, content in contents.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


def _some(names: Sequence[str]) -> str:
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m app.deploy", description="Uploads this tree to the Hub as a Space and checks what arrived."
    )
    parser.add_argument("repository", metavar="OWNER/NAME", help="the Space; it is created if it is not there")
    parser.add_argument("--dry-run", action="store_true", help="list what would be sent, and send nothing")
    parser.add_argument("--private", action="store_true", help="create it as a private Space")
    parser.add_argument("--hardware", help="the Space's machine, such as cpu-basic, t4-small or zero-a10g (ZeroGPU)")
    parser.add_argument("--message", default="Upload SparseD live", help="the commit's message")
    parser.add_argument("--replace", action="store_true", help="overwrite a Space that holds another project")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None, *, root: Path = ROOT, api: Any = None) -> int:
    """The command; returns its exit status. api: what stands in for `huggingface_hub.HfApi`."""
    given = _options(arguments)
    try:
        if not is_repository(given.repository):
            raise Refused(f"{given.repository!r} is not the name of a Space; it must be like OWNER/NAME.")
        if given.hardware is not None and given.hardware not in hardware():
            raise Refused(f"--hardware must be one of {', '.join(hardware())}, not {given.hardware!r}.")
        contents = read(root)
        items = [item(path, content) for path, content in contents.items()]
        _show(items, front_matter(contents["README.md"].decode("utf-8")), notes(root), given.dry_run)
        if given.dry_run:
            return 0
        api = api or _hub()
    except (Refused, OSError) as error:
        return _refuse(error)
    try:
        address, wrong = _upload(api, given, contents, items)
    except Refused as error:
        return _refuse(error)
    except Exception as error:  # the Hub's client raises errors of several HTTP libraries
        print(f"error: the upload failed: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    for sentence in wrong:
        print(f"error: {sentence}", file=sys.stderr)
    if wrong:
        print(f"error: {address} is not the same as this tree; run the command again.", file=sys.stderr)
        return 1
    print(f"{address}: all {len(items)} files are there, byte for byte")
    return 0


def _show(items: Sequence[Item], about: Mapping[str, Any], noted: Sequence[str], each: bool) -> None:
    for note in noted:
        print(f"note: {note}")
    for entry in items if each else ():
        print(f"{entry.blob} {entry.size:>12,}  {entry.path}")
    print(
        f"front matter: {about['title']}, {about['sdk']} {about['sdk_version']}, Python {about['python_version']}, "
        f"{about['app_file']}, {len(about.get('models', ()))} models"
    )
    listing = "".join(f"{entry.sha256}  {entry.path}\n" for entry in items)
    total = sum(entry.size for entry in items)
    print(f"{len(items)} files, {total:,} bytes, sha256 of all: {hashlib.sha256(listing.encode()).hexdigest()}")


def _refuse(error: Exception) -> int:
    for sentence in str(error).splitlines():
        print(f"error: {sentence}", file=sys.stderr)
    return 2


def _hub() -> Any:
    from huggingface_hub import HfApi, get_token

    token = get_token()
    if token is None:
        raise Refused("no token: log in with `hf auth login`, or set HF_TOKEN to a token that may write.")
    return HfApi(token=token)


if __name__ == "__main__":
    sys.exit(main())
