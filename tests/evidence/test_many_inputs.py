"""More than five thousand bad inputs over HTTP; tests/app/test_bad_input.py sends fewer of the same."""

from __future__ import annotations

from pathlib import Path

from servers import Server
from test_bad_input import Page, Program, a_good_run_is_right, damaged_calls, damaged_events, malformed_requests, sent

EXAMPLES = 25


def test_more_than_five_thousand_inputs_later_a_good_run_is_right(tmp_path: Path) -> None:
    server = Server.watched(tmp_path, "keeping")
    try:
        server.ready()
        program = Program(server)
        damaged_events(server, Page(server), EXAMPLES)
        damaged_calls(server, program, EXAMPLES)
        malformed_requests(server, EXAMPLES)
        assert sum(sent.values()) > 5000, sent
        a_good_run_is_right(server, program)
    finally:
        server.close()
