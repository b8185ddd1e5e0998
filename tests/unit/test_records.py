"""Folders of records, and how work is dealt out among processes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from sparsed.parallel.crew import Crew, deal
from sparsed.results_folder import Folder, check, check_alike, read_lines, strangers


def test_entries_come_back_as_they_were(tmp_path: Path) -> None:
    entries = [{"text": "naïve\u2028\x85 “line”\n"}, {"text": ""}, {"numbers": [1, 0.1, None]}]
    for number, entry in enumerate(entries):
        Folder(tmp_path, {}, f"{number}-of-3").add("records", entry)
    Folder(tmp_path, {}).add("observations", {"other": 1})
    assert list(read_lines(tmp_path, "records")) == entries


@pytest.mark.parametrize("left", range(1, 24))
def test_a_line_cut_off_anywhere_costs_that_line_alone(tmp_path: Path, left: int) -> None:
    folder = Folder(tmp_path, {})
    folder.add("records", {"n": 1})
    file = tmp_path / "records-0-of-1.jsonl"
    whole = len(file.read_bytes())
    folder.add("records", {"text": "é“ä” 日本"})
    line = file.read_bytes()[whole:]
    assert len(line) > 24
    file.write_bytes(file.read_bytes()[: whole + left])
    assert list(read_lines(tmp_path, "records")) == [{"n": 1}]
    # The process that goes on has the same name, and so the same file.
    Folder(tmp_path, {}).add("records", {"n": 2})
    assert list(read_lines(tmp_path, "records")) == [{"n": 1}, {"n": 2}]


def test_a_whole_line_without_its_end_counts(tmp_path: Path) -> None:
    folder = Folder(tmp_path, {})
    folder.add("records", {"n": 1})
    file = tmp_path / "records-0-of-1.jsonl"
    file.write_bytes(file.read_bytes()[:-1])
    folder.add("records", {"n": 2})
    assert list(read_lines(tmp_path, "records")) == [{"n": 1}, {"n": 2}]


KEY = {"weights": "5c1f", "sampler": {"steps": 8, "seed": None}, "depths": (0.0, 1.0), "versions": {"torch": "2.13.0"}}
CHANGES = {
    "weights": ({"weights": "77aa"}, '"5c1f" there, "77aa" here'),
    "sampler.steps": ({"sampler": {"steps": 16, "seed": None}}, "8 there, 16 here"),
    "sampler.seed": ({"sampler": {"steps": 8, "seed": 1}}, "null there, 1 here"),
    "depths": ({"depths": None}, r"\[0.0, 1.0\] there, null here"),
    "versions.torch": ({"versions": {"torch": "2.11.0"}}, '"2.13.0" there, "2.11.0" here'),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("whole", [True, False])
def test_a_folder_belongs_to_one_key_and_says_what_is_unlike(tmp_path: Path, name: str, whole: bool) -> None:
    Folder(tmp_path, KEY, about={"model": "mini"})
    Folder(tmp_path, KEY, "1-of-2", about={"model": "a/copy"})  # what is told about it does not matter
    changed, said = CHANGES[name]
    with pytest.raises(ValueError, match=rf"belongs to another plan \({name} is {said}\); choose another folder"):
        if whole:
            Folder(tmp_path, {**KEY, **changed})
        else:
            check(tmp_path, changed)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert json.loads((tmp_path / "plan.json").read_text("utf-8"))["model"] == "mini"


def test_what_is_not_known_yet_is_not_unlike(tmp_path: Path) -> None:
    check(tmp_path, KEY)  # nothing is there
    Folder(tmp_path, KEY)
    check(tmp_path, {"sampler": {"steps": 8}})
    with pytest.raises(ValueError, match=r'weights is "5c1f" there, null here'):
        Folder(tmp_path, {name: value for name, value in KEY.items() if name != "weights"})
    with pytest.raises(ValueError, match=r"device is null there"):  # which an older version did not keep
        Folder(tmp_path, {**KEY, "device": "cpu"})


@pytest.mark.parametrize("plan", ['{"model": "mini", "sampler": {"steps": 8}}', "[]", '{"key": 1}'])
def test_a_folder_that_does_not_say_what_it_depends_on_is_not_gone_on_with(tmp_path: Path, plan: str) -> None:
    (tmp_path / "plan.json").write_text(plan, "utf-8")
    (tmp_path / "records-0-of-1.jsonl").write_text('{"n": 1}\n', "utf-8")
    said = r"earlier version and does not say what its results depend on \(weights, sampler, depths, versions\)"
    with pytest.raises(ValueError, match=said):
        Folder(tmp_path, KEY)
    assert list(read_lines(tmp_path, "records")) == [{"n": 1}], "it can be read"
    (tmp_path / "plan.json").write_text('{"key": {"we', "utf-8")
    with pytest.raises(ValueError, match=r"plan.json is damaged .*; choose another folder"):
        Folder(tmp_path, KEY)


def test_entries_of_another_key_are_told_and_left_out(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    Folder(one, KEY).add("records", {"n": 1})
    other = Folder(two, {**KEY, "weights": "77aa"}, "1-of-2")
    other.add("records", {"n": 2})
    other.add("records", {"n": 3})
    shutil.copy(two / "records-1-of-2.jsonl", one)
    assert list(read_lines(one, "records")) == [{"n": 1}]
    assert strangers(one, "records") == {"records-1-of-2.jsonl": 2}
    assert strangers(two, "records") == strangers(one, "observations") == {}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has a disk that is always full")
def test_a_full_disk_is_said_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path, KEY)
    real = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, *_, **__: real(Path("/dev/full"), "wb", buffering=0))
        patch.setattr("sparsed.results_folder.os.SEEK_END", os.SEEK_SET)
        with pytest.raises(OSError, match="records-0-of-1.jsonl"):
            folder.add("records", {"n": 1})
    folder.add("records", {"n": 2})
    assert list(read_lines(tmp_path, "records")) == [{"n": 2}]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space")))
        with pytest.raises(OSError, match="No space"):
            Folder(tmp_path / "new", KEY)
    assert not list((tmp_path / "new").iterdir())


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for begin in (lambda: check(file, KEY), lambda: Folder(file, KEY)):
        with pytest.raises(ValueError, match="file is a file; results need a folder"):
            begin()


def test_equal_values_make_one_key_however_they_are_written(tmp_path: Path) -> None:
    for name, skip in (("0-of-2", 0), ("1-of-2", 0.0)):
        Folder(tmp_path, {"attention": {"skip": skip}}, name).add("records", {"by": name})
    assert [entry["by"] for entry in read_lines(tmp_path, "records")] == ["0-of-2", "1-of-2"]


def test_of_processes_that_begin_at_once_the_first_one_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have seen that there is no plan yet."""
    real, late = Path.exists, []

    def exists(path: Path, **more: Any) -> bool:
        if path.name == "plan.json" and not late:
            late.append(path)
            Folder(tmp_path, KEY, "1-of-2")
            return False
        return real(path, **more)

    monkeypatch.setattr(Path, "exists", exists)
    with pytest.raises(ValueError, match=r'weights is "5c1f" there, "77aa" here'):
        Folder(tmp_path, {**KEY, "weights": "77aa"}, "0-of-2")
    assert late and [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_processes_that_share_the_work_have_one_key() -> None:
    class Other(Crew):
        def agree(self, value: Any) -> Any:
            return {**value, "dtype": "bfloat16"}

    check_alike(Crew(), {"dtype": "float32"})
    with pytest.raises(ValueError, match=r'process 1 \(dtype is "bfloat16" there, "float32" here\): these are two'):
        check_alike(Other(1, 2), {"dtype": "float32"})


def test_the_costliest_work_is_dealt_first_to_whoever_has_least() -> None:
    assert deal([4**2, 8**2, 16**2, 32**2], 2) == [[3], [0, 1, 2]]
    assert deal([1] * 7, 3) == [[0, 3, 6], [1, 4], [2, 5]]
    assert deal([5, 4, 3, 3, 3], 2) == [[0, 3], [1, 2, 4]]
    assert deal([1], 3) == [[0], [], []] and deal([], 2) == [[], []]


def test_a_process_alone_does_everything_and_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with Crew.here() as crew:
        assert (crew.rank, crew.size, crew.name) == (0, 1, "0-of-1")
        assert crew.share([3, 2, 1]) == [0, 1, 2] and crew.agree("it") == "it" and crew.device(None) is None
        crew.wait()


def test_processes_that_hold_one_model_share_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun: rank 0 leads the others through all of it (`sparsed.parallel.team`)."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with Crew.here() as crew:
        assert crew == Crew() and crew.share([1, 1]) == [0, 1]
