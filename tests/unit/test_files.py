"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sparsed import files

ROOT = Path(__file__).resolve().parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def full_disk(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """After so many bytes of a file there is no room left."""

    def write_bytes(self: Path, content: bytes) -> None:
        with self.open("wb") as file:
            file.write(content[:room])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_bytes)


@pytest.mark.parametrize("content", ["ä\r\nb\n", b"\x00\xff"])
def test_what_is_written_is_what_was_given(tmp_path: Path, content: str | bytes) -> None:
    files.write(str(tmp_path / "a.txt"), content)
    assert (tmp_path / "a.txt").read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(tmp_path) == ["a.txt"]


def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "a.json"
    place.write_text("old")
    with monkeypatch.context() as patch:
        full_disk(patch, 2)
        with pytest.raises(OSError, match=r"a\.json cannot be written: no space left on device\.$") as failed:
            files.write(place, "new and longer")
    assert failed.value.errno == errno.ENOSPC and place.read_text() == "old" and names(tmp_path) == ["a.json"]


@pytest.mark.skipif(os.name != "posix", reason="limits as on POSIX")
def test_a_real_limit_leaves_the_old_file_whole(tmp_path: Path) -> None:
    """The system itself refuses the bytes."""
    place = tmp_path / "a.json"
    place.write_text("old")
    code = (
        "import resource, sys; from sparsed import files\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: files.write(sys.argv[1], 'x' * 5000)\n"
        "except OSError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, place], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{place} cannot be written: file too large.\n", done.stderr
    assert place.read_text() == "old" and names(tmp_path) == ["a.json"]


def test_a_block_that_fails_leaves_the_old_file_whole(tmp_path: Path) -> None:
    place = tmp_path / "a.webp"
    place.write_text("old")
    with pytest.raises(KeyboardInterrupt), files.draft(place) as draft:
        draft.write_text("half")
        assert draft.suffix == ".webp" and draft.parent == tmp_path
        raise KeyboardInterrupt
    with pytest.raises(FileNotFoundError, match="other"), files.draft(place):
        (tmp_path / "other").read_text()
    assert place.read_text() == "old" and names(tmp_path) == ["a.webp"]


@pytest.mark.skipif(os.name != "posix", reason="permissions as on POSIX")
def test_permissions_are_kept_and_new_files_have_the_usual_ones(tmp_path: Path) -> None:
    old, new, plain = tmp_path / "old", tmp_path / "new", tmp_path / "plain"
    old.write_text("old")
    old.chmod(0o640)
    files.write(old, "new")
    files.write(new, "new")
    plain.write_text("as usual")
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    assert stat.S_IMODE(new.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name, target in (("link", "there/file"), ("fresh", "there/none")):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "there/file").write_text("old")
    for name in ("link", "fresh"):
        files.write(tmp_path / name, "new")
        assert (tmp_path / name).is_symlink() and (tmp_path / name).read_text() == "new"
    assert names(tmp_path / "there") == ["file", "none"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="devices of Linux")
def test_what_is_no_plain_file_is_written_directly(tmp_path: Path) -> None:
    files.write("/dev/null", "gone")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(OSError, match="/dev/full cannot be written: no space left on device"):
        files.write("/dev/full", "x")
    code = "from sparsed import files; print('a', flush=True); files.write('/dev/stdout', 'b\\n'); print('c')"
    run: Any = {"cwd": ROOT, "text": True, "timeout": 60, "check": True}
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, **run).stdout == "a\nb\nc\n"
    with (tmp_path / "out").open("a") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, **run)
    assert (tmp_path / "out").read_text() == "a\nb\nc\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [("", "this is a folder"), ("none/a", "there is no such folder"), ("file/a", "there is no such folder|not a dir")],
)
def test_places_that_cannot_be_written_are_refused_beforehand(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(ValueError, match=f"^--out .* cannot be written: ({said})"):
        files.check(tmp_path / name, "--out")
    with pytest.raises(OSError, match=f"cannot be written: ({said})"):
        files.write(tmp_path / name, "new")
    with pytest.raises(OSError, match="file name too long"):
        files.write(tmp_path / ("x" * 300), "new")
    files.check(tmp_path / "file", "--out")
    files.check(tmp_path / "fresh", "--out")
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "old"


def test_a_folder_or_a_file_that_is_read_only_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root nothing is read-only: the system's answer is put in its place."""
    place = tmp_path / "a"
    place.write_text("old")

    def refused(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refused)
        with pytest.raises(PermissionError, match="a cannot be written: permission denied"):
            files.write(place, "new")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="--out .*a cannot be written: the file is read-only for this user"):
        files.check(place, "--out")
    assert place.read_text() == "old" and names(tmp_path) == ["a"]
