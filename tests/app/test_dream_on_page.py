"""The page over the real engine and a checkpoint in Dream's format, which it was given as a folder."""

from __future__ import annotations

import re

from visitor import choose, run_to_end

from sparsed.models.catalogue import find


def test_a_dream_checkpoint_from_a_folder(visit, dream) -> None:
    page = visit(dream)
    page.click("#sd-settings button")
    page.wait_for_selector("#sd-seed input")
    assert page.inner_text(".sd-chips").split("\n")[0] == "tiny-dream"
    assert page.locator("#sd-algorithm input").input_value().startswith("Dream · maskgit_plus")
    assert page.input_value("#sd-steps input[type=number]") == "128"
    assert page.input_value("#sd-top-p input[type=number]") == "0.95"
    assert page.is_disabled("#sd-block-length input")
    tokens = int(re.match(r"(\d+) prompt tokens", page.inner_text(".sd-facts")).group(1))
    assert 190 <= tokens <= 256, "counted by its own tokenizer, template included"

    # Longer than it was trained for: said before the run and during it.
    choose(page, "sd-length", "^1k")
    page.wait_for_function("() => document.querySelector('.sd-prompt .sd-notes').textContent.includes('Speed only')")
    page.fill("#sd-steps input[type=number]", "16")
    page.keyboard.press("Tab")
    assert run_to_end(page) == "done"
    assert "Speed only: trained to 512 positions" in page.inner_text(".sd-stage .sd-notes")
    phases = page.locator('[data-lane="sparse"] .sd-phases li').all_inner_texts()
    assert phases == ["dense steps 1–4", "select step 5", "sparse steps 6–16"]
    assert page.locator('.sd-canvas .sd-cell[data-state="masked"]').count() == 0
    # The map is drawn a moment after the end.
    page.wait_for_function(
        """rows => {
            const { z, meta } = document.querySelector("#sd-heatmap .sd-plot")._fullData[0];
            const kept = [...z].map((row) => [...row].flatMap((cell, at) => (cell >= meta.kept_from ? [at] : [])));
            return JSON.stringify(kept) === JSON.stringify(rows);
        }""",
        arg=dream.mask(1, 0),
    )

    # The bundled model is loaded at once when it is chosen, and the settings follow, but for the visitor's own.
    choose(page, "sd-model", "mini")
    page.wait_for_function("() => document.querySelector('.sd-chips').innerText.startsWith('mini')")
    usual = str(find("mini").defaults.gen_length)
    page.wait_for_function("usual => document.querySelector('#sd-gen-length input').value === usual", arg=usual)
    assert page.locator("#sd-algorithm input").input_value().startswith("LLaDA · low_confidence")
    assert page.input_value("#sd-steps input[type=number]") == "16"
    # What is said now is of mini: whether this length is worth while on this machine.
    assert "Speed only" not in page.inner_text(".sd-prompt .sd-notes")
