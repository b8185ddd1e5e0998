"""A conversation on the page: a further question after a run, with what was said before it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlparse

import pytest
from visitor import is_free, reload, serious, take

from app.texts import NOTHING_TO_FOLLOW, NOTHING_TO_PIN
from sparsed import trace

IMAGE, BOLD = '<img src=x onerror="window.hit=1">', "<img src=x onerror='window.hit=1'><b>bold</b>"
TURNS = """() => [...document.querySelectorAll(".sd-turns li")].map(
  (each) => [each.querySelector("b").textContent, each.querySelector("span").textContent])"""


def after_a_run(visit: Any, server: Any, query: str = "?steps=8", **window: Any) -> Any:
    server.idle()
    page = visit(server, query, **window)
    page.wait_for_selector('.sd-talk[data-state="off"]')
    assert page.is_disabled(".sd-talk-text") and page.is_disabled(".sd-talk-ask")
    page.click("#sd-run")
    ended(page)
    return page


def ended(page: Any) -> None:
    page.wait_for_selector('.sd-stage[data-state="done"]')
    page.wait_for_selector("#sd-run:not([disabled])")
    page.wait_for_selector(".sd-talk-text:visible:not([disabled])")


def ask(page: Any, text: str) -> None:
    before = len(page.evaluate(TURNS))
    page.fill(".sd-talk-text", text)
    page.click(".sd-talk-ask")
    page.wait_for_function("text => document.querySelector('.sd-about b')?.textContent === text", arg=text)
    # The same question may have been asked before: its turns tell that this run is over.
    page.wait_for_function("count => document.querySelectorAll('.sd-turns li').length === count", arg=before + 2)
    ended(page)


def asked_of(page: Any) -> list[dict[str, str]]:
    return json.loads(page.input_value("#sd-history textarea"))


@pytest.mark.parametrize("size", [(1440, 900), (390, 844)])
def test_a_further_question_has_what_was_said_before_it_and_a_new_conversation_forgets_it(
    visit: Any, fake: Any, size: tuple[int, int]
) -> None:
    page = after_a_run(visit, fake, viewport={"width": size[0], "height": size[1]})
    [(who, question), (whose, answer)] = page.evaluate(TURNS)
    assert (who, whose) == ("You", "Answer, Full attention") and question.endswith("Tell me about Mara Velin (0).")
    assert page.is_disabled(".sd-talk-ask")
    assert not serious(page, "#sd-prompt, #sd-talk")
    ask(page, "And when was that?")
    first, second = asked_of(page)
    assert first["role"] == "user" and first["content"].endswith("Tell me about Mara Velin (0).")
    assert len(first["content"]) > 500  # the documents are in it, however little of them is shown
    assert second == {"role": "assistant", "content": answer}
    # It is the prompt now, in the order in which it was said.
    page.click(".sd-preview summary")
    said = page.text_content(".sd-prompt-text")
    assert said == "\n\n".join([first["content"], answer, "And when was that?"])
    page.wait_for_selector(".sd-facts:has-text('question 2 of a conversation'):has-text('on this machine')")
    assert "is stopped" not in page.inner_text(".sd-facts")
    page.keyboard.press("Escape")
    # And so on, from the answer of another lane.
    page.select_option("#sd-talk-lane", "sparse")
    page.fill(".sd-talk-text", "Why?")
    page.press(".sd-talk-text", "Enter")
    page.wait_for_function("() => document.querySelector('.sd-about b')?.textContent === 'Why?'")
    ended(page)
    assert [one["role"] for one in asked_of(page)] == ["user", "assistant"] * 2
    assert [who for who, _ in page.evaluate(TURNS)] == ["You", "Answer"] * 2 + ["You", "Answer, SparseD"]
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    assert not serious(page, "#sd-prompt, #sd-talk")
    # And a new one, by the button that stands below the turns.
    page.click(".sd-talk .sd-anew")
    page.wait_for_selector('.sd-talk[data-state="off"]')
    page.wait_for_function("() => document.querySelector('.sd-question').textContent.startsWith('Tell me about')")
    assert page.input_value("#sd-history textarea") == ""
    page.wait_for_selector(".sd-facts:not(:has-text('conversation'))")
    assert page.is_hidden(".sd-prompt .sd-anew")
    page.click("#sd-run")
    ended(page)
    assert len(page.evaluate(TURNS)) == 2
    # The other way to it stands beside the next question.
    ask(page, "And then?")
    page.click(".sd-prompt .sd-anew")
    page.wait_for_function("() => document.querySelector('.sd-question').textContent.startsWith('Tell me about')")


def test_a_reload_carries_a_conversation_that_is_too_long_for_an_address(visit: Any, fake: Any) -> None:
    page = after_a_run(visit, fake, "?steps=8&length=2k")
    ask(page, "And why?")
    turns = asked_of(page)
    page.wait_for_function("() => location.search.includes('kind=own')")
    assert "history" not in page.url and "text" not in page.url
    reload(page)
    page.wait_for_function("() => document.querySelector('.sd-question')?.textContent === 'And why?'")
    assert asked_of(page) == turns


def test_a_link_with_turns_that_are_none_is_said(visit: Any, fake: Any) -> None:
    page = visit(fake, '?kind=own&text=x&history=[{"role":"assistant","content":"y"}]')
    page.wait_for_selector("#sd-linked p")
    assert page.inner_text("#sd-linked").startswith("This link cannot be followed.")
    assert "where 'user' is due" in page.inner_text("#sd-linked")


def test_what_is_said_is_text_and_a_link_carries_it(visit: Any, fake: Any) -> None:
    page = after_a_run(visit, fake, "?" + urlencode({"steps": 8, "kind": "own", "text": IMAGE}))
    ask(page, BOLD)
    assert page.evaluate("() => window.hit") is None and page.locator(".sd-talk img").count() == 0
    assert page.evaluate(TURNS)[2] == ["You", BOLD]
    # The link brings it all back.
    page.wait_for_function("() => location.search.includes('history')")
    linked = parse_qs(urlparse(page.url).query)
    assert linked["text"] == [BOLD] and linked["kind"] == ["own"]
    turns = asked_of(page)
    assert json.loads(linked["history"][0]) == turns and turns[0]["content"] == IMAGE
    other = visit(fake, "?" + urlparse(page.url).query)
    other.wait_for_function("text => document.querySelector('.sd-question').textContent === text", arg=BOLD)
    assert asked_of(other) == turns and "earlier turns" in other.inner_text("#sd-linked")
    assert other.evaluate("() => window.hit") is None and other.locator(".sd-prompt img, .sd-talk img").count() == 0
    # Half a character is replaced.
    page.bring_to_front()
    page.evaluate(
        """() => {
            const box = document.querySelector(".sd-talk-text");
            box.value = `when ${String.fromCharCode(0xd823)} was that`;
            box.dispatchEvent(new Event("input", { bubbles: true }));
        }"""
    )
    page.click(".sd-talk-ask")
    page.wait_for_function("() => document.querySelectorAll('.sd-turns li').length === 6")
    ended(page)
    assert page.evaluate(TURNS)[4] == ["You", "when \ufffd was that"]


def test_mini_answers_a_further_question_about_its_documents(visit: Any, real: Any, tmp_path: Path) -> None:
    """And the record holds the turns."""
    page = after_a_run(visit, real, "?length=short_context&kind=fact&question=4&lanes=")
    [(_, question), (_, answer)] = page.evaluate(TURNS)
    assert page.get_attribute(".sd-talk-text", "placeholder") == "Ask a further question about the same documents"
    # Of the prompt the last line is shown, which is the question.
    assert question.startswith("… ") and question.endswith("?") and "\n" not in question
    ask(page, question.removeprefix("… "))
    assert page.evaluate(TURNS)[-1][1] == answer
    prompt = trace.load(take(page, "run.json.gz", tmp_path)).prompt
    assert [role for role, _ in prompt.history] == ["user", "assistant"] and prompt.history[1][1] == answer
    documents, _, asked = prompt.history[0][1].rpartition("\n")
    assert documents.startswith("Read the documents") and prompt.text == asked and prompt.chat is True


def test_a_question_that_cannot_be_asked_says_why(visit: Any, fake: Any) -> None:
    page = after_a_run(visit, fake)

    def lose(route: Any) -> None:
        """The answer that it goes on from is gone."""
        route.continue_(post_data=re.sub(r'("lane": ?)"\w+"', r'\1"gone"', route.request.post_data))

    page.route("**/queue/join*", lose)
    page.fill(".sd-talk-text", "And then?")
    page.click(".sd-talk-ask")
    page.wait_for_selector(".toast-body")
    assert NOTHING_TO_FOLLOW in page.inner_text(".toast-body")
    page.unroute("**/queue/join*")
    is_free(page)
    assert len(page.evaluate(TURNS)) == 2
    ask(page, "And then?")


def test_nothing_is_pinned_before_a_comparison_and_the_page_says_so(visit: Any, fake: Any) -> None:
    page = visit(fake)
    page.click("#sd-compare-pin")
    page.wait_for_selector(".toast-body")
    assert NOTHING_TO_PIN in page.inner_text(".toast-body")
