"""The log: one line for each thing, whole and plain, and nothing of what a visitor wrote."""

from __future__ import annotations

import io
import json
import re
import sys
import threading
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest

from app.server.journal import Journal, RunReport
from tests.unit.server.logged import REPORT, SECRET, lines


class TestJournal:
    def test_writes_one_line_for_a_run_with_sorted_keys_and_utc_time_and_without_the_prompt(self) -> None:
        stream = io.StringIO()
        Journal(stream).note(REPORT)
        text = stream.getvalue()
        assert text.count("\n") == 1 and text.endswith("\n") and text.isascii()
        (said,) = lines(stream)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", said.pop("time"))
        assert list(said) == sorted(said)
        assert said == {
            "error": "",
            "event": "run",
            "gen_length": 96,
            "kind": "about",
            "lane_seconds": {"dense": 7.5, "sparse": 4.5},
            "model": "mini",
            "right": [True, False, None],
            "run": 7,
            "seconds": 12.0,
            "speedup": 1.666667,
            "state": "done",
            "steps": 48,
            "tokens": 254,
            "via": "page",
            "waited": 0.5,
        }

    def test_writes_the_prompt_in_one_line_where_it_is_told_to(self) -> None:
        stream = io.StringIO()
        Journal(stream, prompts=True).note(REPORT)
        assert lines(stream)[0]["prompt"] == "Who keeps the lighthouse of Orrin Bay? \ud800"
        assert len(stream.getvalue().splitlines()) == 1

    def test_cuts_a_prompt_at_its_limit(self) -> None:
        stream = io.StringIO()
        Journal(stream, prompts=True).note(replace(REPORT, prompt="x" * 1_000_000))
        assert lines(stream)[0]["prompt"] == "x" * 19_999 + "…"

    @pytest.mark.parametrize("field", [field.name for field in fields(RunReport) if field.name != "prompt"])
    def test_no_field_can_break_the_line_or_fill_the_log(self, field: str) -> None:
        stream = io.StringIO()
        hostile = "a\r\n{\"event\": \"run\"}\x85\u2029\x1cb" * 1000
        Journal(stream).note(replace(REPORT, **{field: hostile}))
        (said,) = lines(stream)
        assert len(stream.getvalue()) < 3000
        if field == "error":
            assert said["error"] == "unnamed"
        else:
            assert said[field].startswith('a {"event": "run"}   b') and said[field].endswith("…")
            assert len(said[field]) <= 300

    def test_keeps_a_message_given_as_the_error_out_because_it_may_quote_the_prompt(self) -> None:
        stream = io.StringIO()
        Journal(stream).note(replace(REPORT, error=f"bad text: {SECRET}"))
        Journal(stream).note(replace(REPORT, error="OutOfMemoryError"))
        assert [said["error"] for said in lines(stream)] == ["unnamed", "OutOfMemoryError"]
        assert "lighthouse" not in stream.getvalue()

    @pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
    def test_writes_numbers_that_json_does_not_know_as_null(self, number: float) -> None:
        stream = io.StringIO()
        Journal(stream).note(replace(REPORT, seconds=number, speedup=number))
        assert (lines(stream)[0]["seconds"], lines(stream)[0]["speedup"]) == (None, None)

    def test_writes_events_with_their_facts_as_plain_values(self) -> None:
        stream = io.StringIO()
        Journal(stream).event("model", name="a\nb", seconds=1.23456789, path=Path("x"), list=(1, None), map={1: "c\nd"})
        (said,) = lines(stream)
        del said["time"]
        assert said == {
            "event": "model", "list": [1, None], "map": {"1": "c d"}, "name": "a b", "path": "x", "seconds": 1.234568,
        }  # fmt: skip

    def test_says_where_an_exception_came_from_and_its_message_only_with_prompts(self) -> None:
        def fail() -> None:
            raise KeyError(SECRET)

        quiet, open_ = io.StringIO(), io.StringIO()
        for journal in (Journal(quiet), Journal(open_, prompts=True)):
            try:
                fail()
            except KeyError as error:
                journal.error(error, path="/x")
        assert "lighthouse" not in quiet.getvalue()
        (said,) = lines(quiet)
        assert (said["event"], said["error"], said["path"]) == ("error", "KeyError", "/x")
        assert re.fullmatch(r"tests/unit/server/test_journal\.py:\d+ in fail", said["trace"][-1])
        assert "lighthouse" in lines(open_)[0]["message"]

    def test_a_closed_a_missing_or_a_broken_stream_hurts_nobody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Broken(io.StringIO):
            def write(self, text: str) -> int:
                raise BrokenPipeError

        class Unsayable:
            def __str__(self) -> str:
                raise RuntimeError

        closed = io.StringIO()
        closed.close()
        for stream in (closed, Broken()):
            Journal(stream).note(REPORT)
        monkeypatch.setattr(sys, "stderr", None)
        Journal().event("start")
        well = io.StringIO()
        Journal(well).event("start", what=Unsayable())
        Journal(well).event("after")
        assert [said["event"] for said in lines(well)] == ["after"]

    def test_writes_to_the_standard_error_of_the_moment(self, capsys: pytest.CaptureFixture[str]) -> None:
        Journal().event("start")
        assert json.loads(capsys.readouterr().err)["event"] == "start"

    def test_lines_of_many_threads_stay_whole(self) -> None:
        class Slow(io.StringIO):
            """Writes in pieces, as a pipe may, and lets other threads go on between them."""

            def write(self, text: str) -> int:
                for start in range(0, len(text), 50):
                    super().write(text[start : start + 50])
                    time.sleep(0)
                return len(text)

        stream = Slow()
        journal = Journal(stream)

        def work(number: int) -> None:
            for index in range(20):
                journal.note(replace(REPORT, run=100 * number + index))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(said["run"] for said in lines(stream)) == [100 * n + i for n in range(8) for i in range(20)]

    @pytest.mark.parametrize(("value", "prompts"), [("", False), ("0", False), ("1", True), (" 1 ", True)])
    def test_reads_from_the_environment_whether_prompts_are_written(self, value: str, prompts: bool) -> None:
        assert Journal.here({"SPARSED_LOG_PROMPTS": value}).prompts is prompts
        assert Journal.here({}).prompts is False

    def test_refuses_another_value_in_the_environment(self) -> None:
        with pytest.raises(ValueError, match=r"^SPARSED_LOG_PROMPTS is 'yes'; it must be 0 or 1\.$"):
            Journal.here({"SPARSED_LOG_PROMPTS": "yes"})
