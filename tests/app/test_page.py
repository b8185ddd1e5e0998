"""The page over a stand-in engine: what it shows, and how it behaves when things go wrong."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from visitor import (
    choose,
    choose_length,
    come_near,
    facts,
    is_free,
    own_text,
    reload,
    run,
    run_to_end,
    state,
    wait_for,
)

from app.texts import BUTTONS, EXAMPLES, button_titles, example_id


def refused(page: Any, said: str) -> None:
    """The run was refused, and the page says why, in one place."""
    wait_for(page, "refused")
    page.wait_for_selector(f".sd-problem:not([hidden]):has-text('{said}')")
    assert page.is_hidden(".sd-message") and page.inner_text("body").count(said) == 1


def test_a_fresh_page_is_ready_to_run(visit, fake) -> None:
    page = visit(fake, reduced_motion="no-preference")
    assert page.title() == "SparseD live"
    assert page.inner_text(".sd-question").startswith("Tell me about Mara Velin")
    assert re.match(r"2\d\d prompt tokens · the expected answer is known", page.inner_text(".sd-facts"))
    assert page.inner_text(".sd-chips").split("\n") == ["mini", "CPU · pretended", "gather"]
    is_free(page)
    # It plays a recorded run, and says so, until the first live one.
    assert page.inner_text(".sd-recorded").startswith("Recorded")
    page.wait_for_function("() => document.querySelector('.sd-lane .sd-figures dd').textContent.startsWith('1')")
    run(page)
    page.wait_for_function("() => document.querySelector('.sd-recorded').hidden")
    wait_for(page, "done")
    assert page.is_hidden(".sd-recorded")


def test_a_fresh_page_offers_a_prompt_that_is_done_soon() -> None:
    """The longest whose race takes at most so many seconds on this machine."""
    from types import SimpleNamespace

    from app.engine.cost import Shape, Speed
    from app.race.request import parse
    from app.server.desk import Desk
    from app.server.limits import Limits
    from app.server.models import Loaded
    from sparsed.models.catalogue import GENERIC_DEFAULTS

    lengths = {"short_context": 256, "1k": 1024, "4k": 4096, "16k": 16384}
    engine: Any = SimpleNamespace(lengths=lambda: lengths, at_once=1, copies=lambda model: (model,))
    shape = Shape(6, 256, 4, 64, 512, 9_000_000, 2)
    loaded = Loaded("mini", "", "", None, shape, Speed(2e-5, 3e-8))
    asked = parse(
        model="mini", kind="about", length="1k", question=0, text="", steps=64, gen_length=64, block_length=64,
        skip=0.2, seed=0, backend="auto", defaults=GENERIC_DEFAULTS,
        models=["mini"], kinds=["about"], lengths=lengths,
    )  # fmt: skip
    desk = Desk(engine, "mini", Limits())
    assert desk.speed.longest(loaded, asked, 10.0) == "1k"
    assert desk.speed.longest(loaded, asked, 80.0) == "4k"
    assert desk.speed.longest(loaded, asked, 0.01) == "short_context"


@pytest.fixture(scope="module")
def first_run(visit_once, fake) -> Any:
    """A page whose first run is over, and another one can be started."""
    page = visit_once(fake)
    assert run_to_end(page) == "done"
    is_free(page)
    return page


@pytest.fixture
def raced(visit_once, first_run) -> Iterator[Any]:
    first_run.bring_to_front()
    yield first_run
    visit_once.check()


def test_a_run_from_beginning_to_end(raced, fake) -> None:
    page = raced
    assert re.fullmatch(r"\d\.\d\d×", page.inner_text(".sd-ratio"))
    assert page.inner_text(".sd-score-speed .sd-words") == "faster"
    assert page.inner_text(".sd-same") == "100\u00a0%"
    for lane in ("dense", "sparse"):
        card = page.locator(f'[data-lane="{lane}"]')
        assert card.locator(".sd-canvas").text_content().startswith("Mara Velin was born in Tolm")
        assert card.locator(".sd-verdict").inner_text() == "✓ as expected"
        assert card.locator(".sd-figures dd").all_inner_texts()[0] == "64 of 64"
        assert card.locator('.sd-cell[data-state="fresh"], .sd-cell[data-state="masked"]').count() == 0
        assert card.locator('.sd-cell[data-state="end"]').count() > 10
    assert page.inner_text(".sd-gold").startswith("Expected answer")
    phases = page.locator('[data-lane="sparse"] .sd-phases li').all_inner_texts()
    assert phases == ["dense steps 1–13", "select step 14", "sparse steps 15–64"]
    assert fake.state()["overlaps"] == 0


def test_the_heads_can_be_looked_at_while_the_run_goes_on(visit, fake) -> None:
    page = visit(fake)
    said = "() => document.querySelector('#sd-looking').textContent.trim()"
    assert page.evaluate(said).startswith("A recorded run of ")
    with fake.held(8) as hold:
        run(page)
        page.wait_for_function(f"() => ({said})().includes('comes here at its select step')")
        hold(40)
        page.wait_for_function(f"() => ({said})().startsWith('Your run, which goes on')")
        come_near(page, "#sd-overview")
        heads = "() => document.querySelector('#sd-overview .sd-plot').data.filter((trace) => trace.meta).length"
        page.wait_for_function(f"() => ({heads})() === 2")  # of the stand-in; the recorded model has more
        assert state(page) == "running"


def test_a_value_set_just_before_run_counts(visit, fake) -> None:
    """However slow the server is with everything but Run."""
    page = visit(fake)
    page.click("#sd-settings button")
    page.wait_for_selector("#sd-seed input")
    page.evaluate(
        """() => {
            const soon = window.fetch;
            window.fetch = async (...given) => {
                const joins = String(given[0]?.url ?? given[0]).includes("queue/");
                if (!joins) await new Promise((resume) => setTimeout(resume, 3000));
                return soon(...given);
            };
        }"""
    )
    page.fill("#sd-steps input[type=number]", "16")
    page.keyboard.press("Tab")
    page.click("#sd-run")
    page.wait_for_function("() => window.seen.some((one) => one.state === 'done')")
    assert page.locator(".sd-lane .sd-figures dd").first.inner_text() == "16 of 16"


def test_a_setting_stays_however_soon_it_is_made_after_the_drawer_was_opened(visit, fake) -> None:
    """What gradio makes when it is first shown it fills once more in the next frame, over what was typed until then."""
    page = visit(fake)
    page.evaluate(
        """() => {
            const type = () => {
                const steps = document.querySelector("#sd-steps input[type=number]");
                if (!steps) return;
                window.requestAnimationFrame = inNextFrame;
                steps.value = "16";
                steps.dispatchEvent(new Event("input", { bubbles: true }));
            };
            const inNextFrame = window.requestAnimationFrame;
            // Gradio waits for that frame with nothing but a promise.
            window.requestAnimationFrame = (go) => inNextFrame((now) => {
                if (String(go).includes("[native code]")) type();
                go(now);
            });
            document.querySelector("#sd-settings button").click();
            type();
        }"""
    )
    page.wait_for_function("() => new URLSearchParams(location.search).has('steps')")
    assert page.url.endswith("?steps=16") and page.input_value("#sd-steps input[type=number]") == "16"


def test_a_head_beyond_the_last_is_the_last(raced) -> None:
    page = raced
    come_near(page, "#sd-heatmap")
    page.wait_for_function("() => document.querySelector('#sd-heatmap .sd-plot').layout.title?.text.endsWith('head 0')")
    page.fill("#sd-head input[type=number]", "9")
    page.keyboard.press("Tab")
    page.wait_for_function("() => document.querySelector('#sd-heatmap .sd-plot').layout.title.text.endsWith('head 1')")
    assert page.locator(".toast-body").count() == 0


def test_an_example_sets_all_that_it_needs_and_runs(visit, fake) -> None:
    """Nothing of what was set before stays behind, and while it runs no other run can be begun."""
    number, example = next((i, one) for i, one in enumerate(EXAMPLES.values()) if one.kind == "about")
    title = button_titles()[example_id(number)]
    page = visit(fake)
    page.click("#sd-settings button")
    choose(page, "sd-threshold", "0.90")
    set_slider(page, "sd-skip", "0.6")
    choose(page, "sd-lanes", "^Sliding window$")
    chip = f"#{example_id(number)}"
    with fake.held(20) as hold:
        page.evaluate("window.seen.length = 0")
        page.click(chip)
        page.wait_for_function("() => window.seen.some((one) => one.state === 'running')")
        for starter in ("#sd-run", chip, "#sd-observe-early"):
            page.wait_for_selector(f"{starter}[disabled]")
        hold(-1)
        wait_for(page, "done")
    assert page.locator(".sd-lane:not([hidden])").count() == 2 + len(example.lanes)
    assert page.locator(".sd-lane .sd-figures dd").first.inner_text() == "64 of 64"
    phases = page.locator('[data-lane="sparse"] .sd-phases li').all_inner_texts()
    assert phases == ["dense steps 1–13", "select step 14", "sparse steps 15–64"]
    shows(page, "sd-threshold", "off")
    is_free(page)
    assert page.is_enabled(chip)
    page.locator(chip).hover()
    assert title.startswith("Runs at once. ") and page.get_attribute(chip, "title") == title


def test_the_address_keeps_the_settings_and_the_tab_its_last_run(visit, fake) -> None:
    page = visit(fake, "?question=3&skip=0.4&__theme=light")
    page.wait_for_selector("text=This link sets: question number 3, skip 0.4.")
    page.click("#sd-settings button")
    choose(page, "sd-threshold", "0.90")
    page.wait_for_function("() => location.search.endsWith('question=3&skip=0.4&threshold=0.9')")
    run_to_end(page)
    is_free(page)
    page.wait_for_function("() => sessionStorage.getItem('sparsed-last')")
    shown = [".sd-score-speed", ".sd-lanes", "#sd-looking"]
    before = [page.inner_text(part) for part in shown]
    address = page.url
    reload(page)
    # The visitor has set that himself: it is restored without a word.
    page.click("#sd-settings button")
    page.wait_for_selector("#sd-skip input")
    shows(page, "sd-threshold", "0.90")
    page.wait_for_function("() => !document.querySelector('.sd-lane .sd-figures dd').textContent.startsWith('–')")
    page.wait_for_function("() => document.querySelector('.sd-recorded').hidden")
    page.wait_for_function("() => document.querySelector('.sd-facts').textContent.includes('at most')")
    assert [page.inner_text(part) for part in shown] == before
    assert page.url == address and "__theme=light" in address and page.is_hidden("#sd-linked")
    assert page.input_value("#sd-skip input[type=number]") == "0.4"


def test_the_answer_is_not_sent_before_the_end(visit, fake) -> None:
    page = visit(fake)
    choose_length(page, "4k")
    page.evaluate("window.messages.length = 0")
    with fake.held(4):
        run(page)
        fake.stop(page)
    wait_for(page, "stopped")
    sent = "".join(m for m in page.evaluate("window.messages") if '"process_generating"' in m and "lanes" in m)
    assert '\\"gold\\":null' in sent and "near the river Sava ." not in sent


def test_cells_tell_their_step_and_confidence_to_pointer_and_keyboard(raced) -> None:
    page = raced
    lane = page.locator('[data-lane="sparse"]')
    lane.locator(".sd-cell").nth(1).hover()
    # What the token's row can see, tests/app/test_playhead.py holds against the pattern.
    said = lane.locator(".sd-tip").inner_text().split("\n")[0]
    assert re.fullmatch(r"Token 2: “ Velin”, committed in step \d+, confidence 0\.90", said)
    lane.locator(".sd-canvas").focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    # The pointer still lies there: what moves under it, another cell or none, takes nothing from the keyboard.
    for shift in (8, 60, 600, 0):
        page.evaluate("px => { document.querySelector('.sd-stage').style.marginTop = px + 'px'; }", shift)
        page.wait_for_timeout(250)
    assert lane.locator(".sd-tip").inner_text().startswith("Token 63: end of the answer, committed in step")
    chosen = lane.locator('.sd-cell[aria-selected="true"]')
    assert lane.locator(".sd-canvas").get_attribute("aria-activedescendant") == chosen.get_attribute("id")
    page.keyboard.press("Escape")
    assert lane.locator(".sd-tip").is_hidden()


def test_the_prompt_length_moves_what_the_visitor_has_not_set_and_is_refused_if_it_does_not_fit(visit, fake) -> None:
    page = visit(fake)
    page.click("#sd-settings button")
    select, size = "#sd-select input[type=number]", "#sd-block-size input"
    assert (page.input_value(select), page.input_value(size)) == ("0.5", "32")
    choose(page, "sd-length", "4k")
    page.wait_for_function("() => document.querySelector('#sd-block-size input').value === '128'")
    assert page.input_value(select) == "0.3"
    choose(page, "sd-block-size", "^64$")
    choose(page, "sd-length", "short context")
    page.wait_for_function("() => document.querySelector('#sd-select input[type=number]').value === '0.5'")
    assert page.input_value(size) == "64"
    choose(page, "sd-length", "64k · too long here: about")
    page.wait_for_selector(".sd-problem:not([hidden])")
    assert "Choose a shorter prompt length" in page.inner_text(".sd-problem")
    page.click("#sd-run")
    refused(page, "Choose a shorter prompt length")
    is_free(page)


def set_slider(page, element: str, value: str) -> None:
    page.fill(f"#{element} input[type=number]", value)
    page.keyboard.press("Tab")


def test_settings_that_do_not_fit_together_are_one_sentence(visit, fake) -> None:
    page = visit(fake)
    page.click("#sd-settings button")
    choose(page, "sd-block-length", "^32$")
    choose(page, "sd-gen-length", "^16$")
    # A generation is whole blocks, which is said, and the steps that follow are those of the run.
    said = "document.querySelector('.sd-prompt .sd-notes').textContent"
    page.wait_for_function(f"() => {said}.includes('32 tokens are generated, not 16')")
    page.wait_for_function("() => document.querySelector('#sd-steps input[type=number]').value === '32'")
    choose(page, "sd-gen-length", "^256$")
    page.wait_for_function("() => document.querySelector('#sd-steps input[type=number]').value === '256'")
    choose(page, "sd-block-length", "^16$")
    set_slider(page, "sd-steps", "8")
    page.wait_for_selector(".sd-problem:not([hidden])")
    assert page.inner_text(".sd-problem").startswith("“Denoising steps” must be at least")
    assert "“Generation length” / “Semi-autoregressive block length” = 16: 8 is less" in page.inner_text(".sd-problem")
    page.click("#sd-run")
    refused(page, "“Denoising steps” must be at least")


def test_an_engine_error_is_a_sentence_and_the_next_run_works(visit, fake) -> None:
    page = visit(fake)
    own_text(page, "one kaboom two three four five six")
    assert run_to_end(page) == "failed"
    said = page.inner_text(".sd-message")
    assert "SparseD" in said and "the fake kernel failed on purpose" in said and "Traceback" not in said
    is_free(page)
    # A text of one's own has no expected answer.
    own_text(page, "What is the name of the river ?")
    assert page.is_hidden("#sd-length") and "expected answer" not in page.inner_text(".sd-facts")
    assert run_to_end(page) == "done"
    assert page.inner_text('[data-lane="dense"] .sd-verdict') == "" and page.is_hidden(".sd-gold")
    guesses = "mini was not trained on texts like this one: the speed is real, the answers are guesses."
    assert page.locator(".sd-stage .sd-notes li").all_inner_texts() == [guesses]
    # What begins in the form that it knows is such a text no more; what is in the box stays.
    is_free(page)
    page.fill("#sd-text textarea", "")
    page.click("text=Insert an example")
    box = "document.querySelector('#sd-text textarea')"
    page.wait_for_function(f"() => {box}.value.endsWith('Tell me about Mara Velin (0).')")
    facts(page, "2")
    run_to_end(page)
    assert page.locator(".sd-stage .sd-notes li").count() == 0


def test_a_run_that_is_refused_leaves_the_screen_as_it_was(raced) -> None:
    page = raced
    page.wait_for_selector("#sd-replay input[type=range]:visible")
    parts = [".sd-score-speed", ".sd-lanes", "#sd-replay", "#sd-looking"]
    before = [page.inner_text(part) for part in parts]
    choose(page, "sd-kind", "Your own text")
    page.wait_for_selector("#sd-text textarea")
    page.click("#sd-run")
    refused(page, "Your own text is empty")
    is_free(page)
    assert [page.inner_text(part) for part in parts] == before
    # What was said does not stand over the next run.
    own_text(page, "one two three")
    run_to_end(page)
    assert page.is_hidden(".sd-problem") and [page.inner_text(part) for part in parts] != before


def value(page: Any, control: str) -> str:
    return page.locator(f"#{control} input").first.input_value()


def shows(page: Any, control: str, expected: str) -> None:
    """Wait until a setting has moved."""
    page.wait_for_function(
        "([control, expected]) => document.querySelector(`#${control} input`).value === expected",
        arg=[control, expected],
    )


def test_settings_follow_the_model_and_loading_shows_its_progress(visit, fake) -> None:
    page = visit(fake)
    page.click("#sd-settings button")
    set_slider(page, "sd-temperature", "0.5")
    # A list that is opened and left has set nothing.
    page.click("#sd-gen-length input")
    page.get_by_role("option").first.wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    choose(page, "sd-model", "Dreamer-7B")
    shows(page, "sd-steps", "128")
    shows(page, "sd-gen-length", "128")
    shows(page, "sd-block-length", "128")
    shows(page, "sd-top-p", "0.95")
    assert value(page, "sd-algorithm").startswith("Dream · maskgit_plus")
    assert value(page, "sd-temperature") == "0.5", "what the visitor has set stays"
    # Nothing is downloaded yet; what the algorithm does not have is switched off, with the reason.
    assert page.inner_text(".sd-facts").startswith("Dreamer-7B is not in memory: Run downloads it first (14.0 GB")
    assert page.inner_text(".sd-chips").split("\n") == ["dreamer", "not in memory"]
    assert page.is_disabled("#sd-block-length input") and page.is_enabled("#sd-top-p input[type=number]")
    assert "Dream's algorithms unmask" in page.inner_text("#sd-block-length")

    page.evaluate("window.said = []; window.seen.length = 0")
    page.evaluate(
        "document.addEventListener('sparsed:stage', (e) => window.said.push("
        "e.detail.message + ' | ' + document.querySelector('.sd-chips').innerText))"
    )
    page.click("#sd-run")
    wait_for(page, "loading")
    assert page.is_enabled("#sd-stop") and page.is_disabled("#sd-run")
    wait_for(page, "done")
    said = "\n".join(page.evaluate("window.said"))
    assert "Dreamer-7B · downloading: 3.5 of 14.0 GB, file 2 of 4" in said
    assert "loading dreamer" in said and "reading weights: 0.0 of 14.0 GB" in said
    assert page.inner_text(".sd-chips").split("\n") == ["dreamer", "CPU · pretended", "gather"]
    assert re.match(r"2\d\d prompt tokens", page.inner_text(".sd-facts"))
    assert page.input_value("#sd-model input") == "Dreamer-7B · in memory"

    # And back: the settings are mini's again, but for the visitor's own.
    choose(page, "sd-model", "mini")
    shows(page, "sd-steps", "64")
    shows(page, "sd-top-p", "1")
    assert value(page, "sd-temperature") == "0.5"
    assert page.is_disabled("#sd-top-p input[type=number]") and page.is_enabled("#sd-block-length input")
    assert "Only Dream's algorithms have it." in page.inner_text("#sd-top-p")


def test_a_model_that_is_too_large_or_does_not_load_leaves_the_page_usable(visit, fake) -> None:
    page, other = visit(fake), visit(fake)
    page.click("#sd-settings button")
    page.click("#sd-model input")
    options = [text for text in page.get_by_role("option").all_inner_texts() if text]
    assert "Broken-7B · 14.0 GB download" in options
    assert "Giant-100B · too large here: 200.0 GB of weights, 24.0 GB of memory" in options
    page.get_by_role("option", name="Giant").click()
    page.wait_for_selector(".sd-problem:not([hidden])")
    assert page.inner_text(".sd-problem").startswith("Giant-100B is too large for this machine: 200.0 GB")
    page.click("#sd-run")
    refused(page, "does not fit into this machine")
    is_free(page)
    choose(page, "sd-model", "Broken-7B")
    facts(page, "Broken-7B")
    with fake.held(2):
        run(other)
        page.click("#sd-run")
        refused(page, "Broken-7B could not be downloaded: no connection to the Hub.")
        assert state(other) == "running"
    assert page.inner_text(".sd-chips").split("\n") == ["broken", "not in memory"]
    wait_for(other, "done")
    page.click("text=Back to mini")
    facts(page, "2")
    assert page.is_hidden(".sd-problem") and page.input_value("#sd-model input").startswith("mini")
    assert run_to_end(page) == "done"


def test_stop_ends_the_waiting_for_a_model(visit, fake) -> None:
    page = visit(fake)
    page.click("#sd-settings button")
    choose(page, "sd-model", "Slowpoke-7B")
    facts(page, "Slowpoke-7B")
    page.click("#sd-run")
    wait_for(page, "loading")
    page.click("#sd-stop")
    wait_for(page, "stopped")
    assert "Slowpoke-7B goes on loading" in page.inner_text(".sd-message")
    is_free(page)
    # Nobody waits for it: another model can be chosen and run at once.
    choose(page, "sd-model", "mini")
    facts(page, "2")
    assert run_to_end(page) == "done"


def test_a_run_that_never_becomes_sparse_says_so_be_it_by_its_skip_or_by_a_threshold(visit, fake) -> None:
    page = visit(fake)
    page.click("#sd-settings button")
    set_slider(page, "sd-skip", "1")
    said = "document.querySelector('.sd-prompt .sd-notes')?.textContent"
    page.wait_for_function(f"() => {said}.includes('never becomes')")
    assert "never becomes sparse" in page.inner_text(".sd-prompt .sd-notes")
    run_to_end(page)
    assert page.locator('[data-lane="sparse"] .sd-phases li').all_inner_texts() == ["dense steps 1–64"]
    spoken = "() => document.querySelector('.sd-stage > .sd-hidden').textContent"
    page.wait_for_function(f"() => ({spoken})() === 'Both lanes are done.'")
    page.wait_for_function("() => document.querySelector('#sd-timeline .sd-plot').data?.[1]?.x.length === 64")
    assert page.evaluate("document.querySelector('#sd-timeline .sd-plot').layout.shapes") in (None, [])
    set_slider(page, "sd-skip", "0.2")
    choose(page, "sd-threshold", "0.90")
    page.wait_for_function("() => / at most on this machine ·/.test(document.querySelector('.sd-facts').textContent)")
    choose(page, "sd-algorithm", "entropy")
    page.wait_for_function("() => document.querySelector('#sd-threshold input').disabled")
    assert "Not with entropy" in page.inner_text("#sd-threshold")
    page.wait_for_function(f"() => {said}.includes('The setting “Confidence threshold” is left out. Not with entropy')")
    choose(page, "sd-algorithm", "low_confidence")
    page.wait_for_function("() => !document.querySelector('#sd-threshold input').disabled")
    page.wait_for_function("() => / at most on this machine ·/.test(document.querySelector('.sd-facts').textContent)")
    assert not page.evaluate(f"{said}.includes('left out')")
    run_to_end(page)
    assert page.locator('[data-lane="sparse"] .sd-figures dd').all_inner_texts()[0] == "11 of ≤ 64"
    assert page.locator('[data-lane="sparse"] .sd-phases li').all_inner_texts() == ["dense steps 1–11"]
    said = "SparseD: This run never became sparse: it was done after 11 steps."
    assert page.inner_text(".sd-stage .sd-notes") == said
    # No factor is reported as SparseD's, and its heading says why.
    assert page.inner_text('[data-lane="sparse"] .sd-never') == "never sparse" and page.is_hidden(".sd-score-speed")
    assert page.is_hidden('[data-lane="dense"] .sd-never')
    assert page.locator('.sd-lane .sd-cell[data-state="masked"]:not([aria-hidden])').count() == 0
    page.wait_for_function("() => document.querySelector('#sd-timeline .sd-plot').data?.[1]?.x.length === 11")
    layout = page.evaluate("document.querySelector('#sd-timeline .sd-plot').layout")
    assert layout.get("shapes") in (None, []) and layout["xaxis"]["range"][1] < 20
    # With an earlier switch it does become sparse, and the phases are those that were made.
    page.fill("#sd-skip input[type=number]", "0.05")
    page.keyboard.press("Tab")
    run_to_end(page)
    phases = page.locator('[data-lane="sparse"] .sd-phases li').all_inner_texts()
    assert phases == ["dense steps 1–4", "select step 5", "sparse steps 6–11"]


def test_two_visitors_take_turns_on_the_device_and_who_waits_can_stop_waiting(visit, fake) -> None:
    first, second = visit(fake), visit(fake)
    said = r"Waiting for the device: one run is before yours, (about \d+ s|a moment)\."
    with fake.held(2):
        run(first)
        second.click("#sd-run")
        wait_for(second, "waiting")
        assert re.fullmatch(said, second.inner_text(".sd-message"))
        second.click("#sd-stop")
        wait_for(second, "stopped")
        is_free(second)
        assert state(first) == "running"
        second.click("#sd-run")
        wait_for(second, "waiting")
        fake.stop(first)
    wait_for(first, "stopped")
    wait_for(second, "done")
    assert fake.state()["overlaps"] == 0


def test_closing_the_tab_ends_the_run_and_frees_the_device(visit, fake) -> None:
    page = visit(fake)
    choose_length(page, "4k")
    before = fake.state()["steps"]
    run(page)
    page.close()
    fake.idle()
    made = fake.state()["steps"] - before
    time.sleep(0.5)
    assert fake.state()["steps"] - before == made < 2 * 64


def test_the_design_follows_the_system_and_the_button(visit, fake) -> None:
    page = visit(fake, color_scheme="dark")
    colour = "() => getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    page.wait_for_selector("#sd-timeline .main-svg")
    tick = "() => document.querySelector('#sd-timeline .xtick text').style.fill"
    before = page.evaluate(tick)
    page.click(".sd-theme")
    light = page.evaluate(colour)
    assert sum(map(int, re.findall(r"\d+", dark)[:3])) < 150 < 600 < sum(map(int, re.findall(r"\d+", light)[:3]))
    page.wait_for_function(f"before => ({tick})() !== before", arg=before)
    reload(page)
    assert page.evaluate(colour) == light


def test_a_phone_shows_everything_without_scrolling_sideways(visit, fake) -> None:
    page = visit(fake, viewport={"width": 390, "height": 844})
    run_to_end(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    dense, sparse = (page.locator(f'[data-lane="{lane}"]').bounding_box() for lane in ("dense", "sparse"))
    # Both lanes are seen at once, side by side.
    assert sparse["x"] >= dense["x"] + dense["width"] and dense["y"] == sparse["y"]
    assert page.is_hidden("#sd-steps")


def test_a_prompt_marks_the_documents_that_its_question_needs_and_buttons_say_what_they_do(visit, fake) -> None:
    page = visit(fake)

    def says(button: str) -> str:
        page.locator(f"#{button}").hover(force=True)
        return page.locator(f"#{button}").evaluate("node => node.title || node.querySelector('button')?.title")

    page.get_by_role("tab", name="Take it away").click()
    # Another question belongs to the invented world, an example to a text of one's own.
    for button, said in BUTTONS.items():
        assert button == "sd-insert" or says(button) == said
    page.click(".sd-preview summary")
    page.wait_for_selector(".sd-prompt-text mark")
    text = page.text_content(".sd-prompt-text")
    assert text.endswith(page.inner_text(".sd-question"))
    marked = page.eval_on_selector_all(".sd-prompt-text mark", "marks => marks.map((each) => each.textContent)")
    assert marked == [text[40:70], text[200:205]]  # the stand-in's
    assert "the 2 documents" in page.get_attribute(".sd-prompt-text", "data-legend")
    page.keyboard.press("Escape")
    own_text(page, "hello there")
    assert says("sd-insert") == BUTTONS["sd-insert"]
    page.click(".sd-preview summary")
    page.wait_for_function("() => document.querySelector('.sd-prompt-text').textContent === 'hello there'")
    assert page.query_selector(".sd-prompt-text mark") is None
    assert page.get_attribute(".sd-prompt-text", "data-legend") == ""
