"""The helpers of the browser tests: what a page complains of is noted, but for what it says while it is left."""

from __future__ import annotations

from typing import Any

from visitor import listen, reload


def test_what_a_page_says_while_it_is_left_is_no_complaint_and_all_else_is(chromium: Any, fake: Any) -> None:
    context = chromium.new_context(reduced_motion="reduce")
    page, problems = context.new_page(), []
    listen(page, problems)
    page.goto(fake.url)
    page.wait_for_selector(".sd-facts:not([hidden])")
    page.evaluate("addEventListener('beforeunload', () => console.error('leaving'))")
    page.evaluate("console.error('before')")
    reload(page)
    page.evaluate("console.error('after')")
    with page.expect_event("pageerror"):
        page.evaluate("setTimeout(() => { throw new Error('thrown'); })")
    context.close()
    assert problems == ["console: before", "console: after", "error: thrown"]
