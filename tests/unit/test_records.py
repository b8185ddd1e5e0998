"""Folders of records, and how work is dealt out among processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsed.parallel.crew import Crew, deal
from sparsed.results_folder import Folder, read_lines


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


def test_a_folder_belongs_to_one_plan_and_says_what_is_unlike(tmp_path: Path) -> None:
    plan = {"model": "mini", "sampler": {"steps": 8, "seed": None}, "depths": (0.0, 1.0)}
    Folder(tmp_path, plan)
    Folder(tmp_path, plan, "1-of-2")
    said = r'\(model is "mini" there, "dream" here, sampler.steps is 8 there, 16 here\); choose another folder'
    with pytest.raises(ValueError, match=said):
        Folder(tmp_path, {**plan, "model": "dream", "sampler": {"steps": 16, "seed": None}})
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


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
