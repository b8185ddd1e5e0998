"""What a visitor does on a page, what he sees of it, and what the page complains of meanwhile."""

from __future__ import annotations

from typing import Any

# Pages that are being left.
_leaving: set[Any] = set()


def listen(page: Any, problems: list[str]) -> None:
    """Notes what the page complains of."""

    def note(said: str) -> None:
        if page not in _leaving:
            problems.append(said)

    page.on("console", lambda message: note(f"console: {message.text}") if message.type == "error" else None)
    page.on("pageerror", lambda error: note(f"error: {error}"))
    page.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))


def reload(page: Any) -> None:
    """Loads the page anew, until it has shown its prompt. What it says while it is being left is not noted: gradio's
    client cuts off what it still asks for, and complains of that.
    """

    def left(frame: Any) -> None:
        if frame == page.main_frame:
            _leaving.discard(page)

    page.evaluate("0")  # What it said before has come when it answers.
    page.on("framenavigated", left)
    _leaving.add(page)
    page.reload()
    page.remove_listener("framenavigated", left)
    page.wait_for_selector(".sd-facts:not([hidden])")
