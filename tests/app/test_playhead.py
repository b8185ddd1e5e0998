"""One playhead: whatever shows a step shows the same one, of a run that goes on as of one that is played again. And
what a token of the answer can see.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from app.finished.evidence import evidence
from app.finished.run import opening

STEPS = 16
SELECT = 5  # of so many steps with skip 0.2, counted from 1
QUERY = f"?length=short_context&steps={STEPS}&gen_length=32&block_length=32&skip=0.2"
# What each of those that follow the playhead shows now.
SHOWN = """() => {
    const at = (selector) => document.querySelector(selector)?.dataset;
    const newest = (lane) => Math.max(0, ...[...document.querySelectorAll(`[data-lane="${lane}"] .sd-cell[data-step]`)]
        .map((cell) => Number(cell.dataset.step)));
    const { steps, live, headline } = window.sparsed.playhead;
    return {
        live, headline,
        playhead: Object.fromEntries(steps.map(({ lane, step }) => [lane, step])),
        phase: steps.find(({ lane }) => lane === headline).phase,
        cells: { dense: newest("dense"), sparse: newest("sparse") },
        bars: [...document.querySelectorAll(".sd-lane:not([hidden]) [role=progressbar]")]
            .map((bar) => Math.round(bar.ariaValueNow)),
        cursor: Number(at(".sd-cursor:not([hidden])")?.step),
        map: [Number(at(".sd-map-over:not([hidden])")?.step), at(".sd-map-over")?.phase],
        said: document.querySelector(".sd-map-step")?.textContent,
        counter: [Number(at(".sd-counter:not([hidden])")?.step),
            document.querySelector(".sd-counter .sd-detail").innerText.replaceAll(",", "").match(/\\d+/g).map(Number)],
    };
}"""
PHASES = ("dense", "select", "sparse")


def phase_of(step: int) -> str:
    return PHASES[(step >= SELECT) + (step > SELECT)]


def agrees(page: Any, step: int, live: bool, layers: list[list[list[list[int]]]], apart: bool = False) -> None:
    """Everything shows this step of SparseD's lane, and of the other one unless they are apart. layers: by layer and
    head the kept key blocks of each query block.
    """
    page.wait_for_function(
        "step => window.sparsed.playhead?.steps.find(({ lane }) => lane === 'sparse').step === step"
        " && document.querySelector('.sd-cursor')?.dataset.step === String(step)"
        " && document.querySelector('.sd-map-over')?.dataset.step === String(step)",
        arg=step,
    )
    shown = page.evaluate(SHOWN)
    dense = shown["playhead"]["dense"]
    assert shown["playhead"] == {"dense": dense, "sparse": step} and shown["live"] is live
    assert dense == step or (apart and 0 < dense < step)
    assert shown["cells"] == shown["playhead"]  # each step of this run commits something
    assert shown["bars"] == pytest.approx([100 * dense / STEPS, 100 * step / STEPS], abs=0.5)
    assert shown["cursor"] == step and shown["map"] == [step, phase_of(step)] and shown["phase"] == phase_of(step)
    assert shown["said"].startswith(f"Step {step}" if step else "Before the first step")
    # The pairs of a head, the mean over all, counted one by one.
    heads = [head for layer in layers for head in layer]
    blocks = len(heads[0])
    kept = sum(len(row) for head in heads for row in head) / len(heads)
    sparse = max(0, step - SELECT)
    computed = (step - sparse) * blocks**2 + sparse * kept
    assert shown["counter"] == [step, pytest.approx([computed, step * blocks**2], abs=0.5)]
    if step:
        share = 100 * (1 - computed / (step * blocks**2))
        words = f"{share:.0f}\u00a0% of block pairs skipped" if sparse else "every block pair computed so far"
        assert page.text_content(".sd-counter p").strip() == words


def seek(page: Any, step: float) -> None:
    """Clicks in the chart, at this place of its axis."""
    place = page.evaluate(
        """(step) => {
            const plot = document.querySelector("#sd-timeline .sd-plot");
            plot.scrollIntoView({ block: "center" });
            const box = plot.getBoundingClientRect(), { xaxis, _size } = plot._fullLayout;
            return [box.left + xaxis._offset + xaxis.l2p(step), box.top + _size.t + _size.h / 4];
        }""",
        step,
    )
    page.mouse.click(*place)


def test_a_step_is_the_same_everywhere(visit, fake) -> None:
    page = visit(fake, QUERY)
    page.wait_for_selector("#sd-timeline .sd-plot[data-drawn]")
    page.wait_for_selector("#sd-heatmap .sd-plot[data-drawn]")
    # Live: before it selects, every head computes every block. (The stand-in's masks are the same in every run.)
    with fake.held(SELECT - 1) as hold:
        page.click("#sd-run")
        page.wait_for_function("() => document.querySelector('#sd-looking').textContent.includes('at its select step')")
        page.wait_for_function("() => document.querySelector('#sd-heatmap .sd-plot').layout.meta?.layer === undefined")
        blocks = page.evaluate("document.querySelector('#sd-heatmap .sd-plot').layout.meta.map.blocks")
        agrees(page, SELECT - 1, True, [[[[]] * blocks]])  # no sparse step yet
        hold(10)
        page.wait_for_function("() => document.querySelector('#sd-heatmap .sd-plot').layout.meta?.layer === 1")
        layers = [[fake.mask(layer, head) for head in (0, 1)] for layer in (0, 1, 2)]
        agrees(page, 10, True, layers, apart=True)  # whose steps are shorter by now
        # While it goes on there is nothing to go back to.
        seek(page, 3)
        agrees(page, 10, True, layers, apart=True)
    page.wait_for_selector('.sd-stage[data-state="done"]')
    page.wait_for_selector("#sd-replay input[type=range]:visible")
    # The replay: by a click in the chart, which pauses, and by the slider; in step, and as it happened.
    page.get_by_role("button", name="Play").click()
    for step in (2, SELECT, 12, STEPS):
        seek(page, step + 0.3)
        agrees(page, step, False, layers)
        assert page.get_attribute(".sd-replay", "data-playing") == "false"
        assert page.get_attribute(".sd-seek", "aria-valuetext").startswith(f"step {step} of {STEPS}:")
    page.locator(".sd-seek").evaluate("(node) => { node.value = 7; node.dispatchEvent(new Event('input')); }")
    agrees(page, 7, False, layers)
    page.check('.sd-replay input[value="clock"]')
    seek(page, 9)
    page.wait_for_function("() => document.querySelector('.sd-cursor').dataset.step === '9'")
    agrees(page, 9, False, layers, apart=True)


LIT = """() => [...document.querySelectorAll(".sd-strip-cells i")]
    .flatMap((cell, n) => (cell.dataset.kept === "" ? [n] : []))"""


def test_a_token_lights_the_blocks_that_its_row_keeps(visit, fake, fake_engine) -> None:
    page = visit(fake, QUERY)
    page.click("#sd-run")
    page.wait_for_function("() => window.seen.some((one) => one.state === 'done')")
    page.wait_for_function(
        "() => document.querySelector('#sd-heatmap .sd-plot').layout?.meta?.evidence?.needed.length === 2"
    )
    prompt, size, blocks = page.evaluate(
        "(({ prompt, size, blocks }) => [prompt, size, blocks])"
        "(document.querySelector('#sd-heatmap .sd-plot').layout.meta.evidence)"
    )
    needed = sorted({token // size for first, end in fake_engine.NEEDED for token in range(first, end)})
    page.fill("#sd-layer input[type=number]", "2")
    page.fill("#sd-head input[type=number]", "1")
    page.keyboard.press("Tab")
    page.wait_for_function(
        "() => document.querySelector('#sd-heatmap .sd-plot').layout.title.text === 'Layer 2, head 1'"
    )
    mask = fake.mask(2, 1)
    assert page.evaluate(LIT) == []
    # By keyboard, the first cell and the last one: another query block.
    for key, cell in (("Home", 0), ("End", 31)):
        page.focus('[data-lane="sparse"] .sd-canvas')
        page.keyboard.press(key)
        row = (prompt + cell) // size
        assert page.evaluate(LIT) == mask[row]
        assert page.get_attribute(".sd-map-row:not([hidden])", "data-row") == str(row)
        found = len(set(mask[row]) & set(needed))
        said = f"{len(mask[row])} of {blocks} key blocks, {found} of the {len(needed)} with needed documents"
        assert page.inner_text('[data-lane="sparse"] .sd-tip').endswith(f"Its row sees {said} (layer 2, head 1).")
        assert page.inner_text(".sd-strip-said") == (
            f"Query block {row} sees {len(mask[row])} of {blocks} key blocks in layer 2, head 1, {found} of the"
            f" {len(needed)} with needed documents."
        )
    # A cell of the map that is pointed at is told of below the map.
    place = page.evaluate(
        """() => {
            const plot = document.querySelector("#sd-heatmap .sd-plot");
            plot.scrollIntoView({ block: "center" });
            const box = plot.getBoundingClientRect(), { xaxis, yaxis } = plot._fullLayout;
            return [box.left + xaxis._offset + xaxis.l2p(3), box.top + yaxis._offset + yaxis.l2p(1)];
        }"""
    )
    page.mouse.move(*place)
    page.wait_for_selector(".sd-map-tip:not([hidden])")
    said = page.inner_text(".sd-map-tip").split("\n")
    assert [line.partition(" ·")[0] for line in said[:2]] == ["query block 1", "key block 3"]
    assert said[2:] == ["kept" if 3 in mask[1] else "skipped"]  # the stand-in has no importances
    tip, map_ = (page.locator(one).bounding_box() for one in (".sd-map-tip", ".sd-map-over"))
    assert tip["y"] >= map_["y"] + map_["height"]
    # By pointer; full attention sees everything. Nothing is pointed at: nothing is lit.
    page.hover('[data-lane="dense"] .sd-cell >> nth=3')
    assert page.evaluate(LIT) == list(range(blocks))
    page.hover("h1")
    page.wait_for_selector(".sd-map-row", state="hidden")
    assert page.evaluate(LIT) == []


def test_the_evidence_of_a_record_is_that_of_its_masks() -> None:
    run = opening()
    assert run is not None and run.pattern is not None
    layout = run.pattern.layout
    for layer, head in ((0, 0), (5, 3)):
        given = evidence(run, layer, head)
        assert given is not None and list(given["lanes"]) == [lane.key for lane in run.lanes]
        for lane, made in run.lanes.items():
            rows = given["lanes"][lane.key]
            if made.attention.dense:
                assert rows is None
                continue
            # Bit by bit, from the record's own bytes.
            pattern = made.pattern
            assert pattern is not None
            bits = "".join(f"{byte:08b}" for byte in pattern.bits[layer].tobytes())
            blocks = layout.blocks
            for number, row in enumerate(range(layout.prompt_length // layout.block_size, blocks)):
                start = (head * blocks + row) * blocks
                told = np.unpackbits(np.frombuffer(base64.b64decode(rows[number]), np.uint8))[:blocks]
                assert "".join(map(str, told)) == bits[start : start + blocks]
            assert len(rows) == blocks - layout.prompt_length // layout.block_size
    # Each hop needs a document, of which the answer has a sentence; where each begins, the record tells.
    assert run.trace.prompt.text is not None and len(given["needed"]) == run.trace.prompt.gold.count(". ") + 1 > 2
    for (first, last), (begin, end) in zip(given["needed"], run.trace.prompt.needed, strict=True):
        assert first == begin // 128 and last == (end - 1) // 128
    assert evidence(run.pattern, 1, 2)["lanes"] == {"": evidence(run, 1, 2)["lanes"]["sparse"]}
