"""What the page takes from gradio without a promise is still there, and does what it is taken for. A failure here,
after an upgrade of gradio, says what to change in app/server/gradio_internals.py.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio import mcp, route_utils, routes
from starlette.testclient import TestClient

from app.server import gradio_internals as internals


def there(holder: Any, name: str) -> Any:
    """The attribute, which must be there."""
    kind = holder.__name__ if inspect.ismodule(holder) or inspect.isclass(holder) else type(holder).__name__
    sentence = f"gradio {gr.__version__} has no {kind}.{name} any more; app/server/gradio_internals.py needs it"
    assert hasattr(holder, name), sentence
    return getattr(holder, name)


@pytest.fixture
def page() -> gr.Blocks:
    """A page with an event that repeats, one that fails, and a named endpoint."""

    def fails() -> str:
        raise KeyError("no such thing")

    def repeats(text: str, times: int = 1) -> str:
        return text * times

    with gr.Blocks(analytics_enabled=False) as made:
        given, button = gr.Textbox(), gr.Button()
        button.click(fails, None, given, queue=False, api_name="fails")
        internals.describe_parameters(gr.api(repeats)["id"], ["What to say.", "How often."])
    made.queue()
    return made


def test_the_queue_has_a_pace_that_can_be_set(page: gr.Blocks) -> None:
    queue = there(page, "_queue")
    source = inspect.getsource(type(queue))
    for name in ("sleep_when_free", "progress_update_sleep_when_free"):
        assert there(queue, name) < 0.1
        assert f"asyncio.sleep(self.{name})" in source, f"gradio {gr.__version__} waits otherwise than for {name}"
    internals.look_for_work_every(0.25, page)
    assert (queue.sleep_when_free, queue.progress_update_sleep_when_free) == (0.25, 0.25)


def test_a_session_can_be_forgotten(page: gr.Blocks) -> None:
    internals.forget_session("before it is served", page)
    holder = there(routes.App.create_app(page), "state_holder")
    assert page.state_holder is holder
    for session in ("stays", "goes"):
        holder[session].blocks_config  # noqa: B018 (looking makes the session)
    internals.forget_session("goes", page)
    internals.forget_session("never was", page)
    assert list(there(holder, "session_data")) == list(there(holder, "time_last_used")) == ["stays"]


@pytest.mark.parametrize("sent", [{"x": 1}, None, "text"])
def test_what_came_with_an_event_is_given_as_it_is(sent: Any) -> None:
    event = gr.EventData(None, sent)
    there(event, "_data")
    assert internals.sent_with(event) is sent


def test_parameters_of_an_endpoint_are_described(page: gr.Blocks) -> None:
    shown = page.get_api_info()["named_endpoints"]["/repeats"]["parameters"]
    described = [parameter["python_type"]["description"] for parameter in shown]
    assert ["What to say." in described[0], "How often." in described[1]] == [True, True], described


def test_the_exception_of_an_event_is_collected_once_for_each_that_asks(page: gr.Blocks) -> None:
    there(page, "process_api")
    app = routes.App.create_app(page)
    there(app, "blocks")
    collected: list[list[Exception]] = []

    async def asks(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            collected.append([])
            internals.collect_failures(app, collected[-1])
        await app(scope, receive, send)

    client = TestClient(asks, raise_server_exceptions=False)
    for _ in range(2):
        assert client.post("/gradio_api/run/fails", json={"data": []}).status_code == 500
    assert [[type(error) for error in errors] for errors in collected] == [[KeyError], [KeyError]]
    internals.collect_failures(object(), [])


def test_the_exceptions_known_by_name_are_there() -> None:
    homes = {"InvalidURL": httpx, "FnIndexInferError": route_utils}
    assert set(internals.BAD_REQUESTS) == set(homes)
    for name, home in homes.items():
        assert issubclass(there(home, name), Exception)


def test_the_mcp_server_says_that_it_calls_and_hands_headers_on() -> None:
    server = there(mcp, "GradioMCPServer")
    source = inspect.getsource(server)
    assert f'"{internals.MADE_BY}": "mcp"' in source, f"gradio {gr.__version__} marks calls of its MCP server otherwise"
    handed_on = inspect.getsource(there(server, "_prepare_tool_call_args"))
    assert "request.headers" in handed_on, f"gradio {gr.__version__} does not hand the headers of an MCP client on"


def test_the_button_that_shows_the_api_is_there() -> None:
    assets = Path(gr.__file__).parent / "templates" / "frontend" / "assets"
    found = [script for script in assets.glob("Blocks-*.js") if "show-api" in script.read_text(encoding="utf-8")]
    assert found and "button.show-api" in internals.SHOW_API
