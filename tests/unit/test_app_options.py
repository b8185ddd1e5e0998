"""python app.py's options and environment: what does not go is one sentence before gradio is imported."""

from __future__ import annotations

import pytest

from app import options


@pytest.mark.parametrize("name", ["GRADIO_SERVER_PORT", "GRADIO_NUM_PORTS"])
@pytest.mark.parametrize("value", ["banana", "", "-1", "7860.5", "٣"])
def test_what_gradio_would_fail_at_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is '.*'; it must be a whole number\.$"):
        options.read([], {name: value})
    assert options.read([], {name: "7861"}).port is None


def test_a_host_is_named_where_the_page_cannot_listen() -> None:
    assert options.cannot_listen(1, "no such") == (
        "The page cannot listen on port 1 of 'no such': choose another one with --port or --host."
    )
    assert options.cannot_listen(None) == (
        "The page cannot listen on any port that it tried: choose another one with --port."
    )
