"""Speed-ups over the prompt length that were measured elsewhere, to stand behind what is measured here."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass

from app.lengths import paper

# What was timed → plotly's name of its mark, and the mark as a letter.
MARKS = {
    "SparseD": ("diamond-open", "◇"),
    "SparseD + refresh of all rows, every 8 steps": ("triangle-up-open", "△"),
    "SparseD + Fast-dLLM, dual": ("star-open", "☆"),
    "Full attention + Fast-dLLM, dual": ("square-open", "□"),
}
SPARSED, REFRESH, DUAL, DUAL_ALONE = MARKS


@dataclass(frozen=True)
class Recorded:
    """Lines of one machine, each over its full attention."""

    machine: str  # in a few words
    whose: str  # who measured what, in a sentence
    dash: str  # plotly's name of its lines
    lines: Mapping[str, Mapping[str, float]]  # name of MARKS → prompt length → speed-up
    commands: tuple[str, ...] = ()  # that measured it, where it was measured with this project


RECORDED = (
    Recorded(
        "Two CPU cores",
        "This project: mini on two cores of an AMD EPYC (AVX-512 with bf16), torch 2.13, bfloat16, 96 tokens in 48 "
        "steps, semi-autoregressive blocks of 32, whole runs.",
        "dot",
        {
            SPARSED: {"1k": 1.13, "4k": 1.52},
            REFRESH: {"1k": 2.55, "4k": 6.38},
            DUAL: {"1k": 4.01, "4k": 10.08},
            DUAL_ALONE: {"1k": 4.74, "4k": 11.19},
        },
        ("python -m sparsed bench --gen-length 96 --lengths 4k 1k --steps 48 --cache prefix dual delayed refresh",),
    ),
    Recorded(
        "One H200 GPU",
        "This project: LLaDA-8B’s shape with random weights, bfloat16, 128 tokens in 128 steps; from 32k on, and with "
        "a cache (semi-autoregressive blocks of 32), put together from measured steps. SparseD from 8k to 32k with "
        "flash-attn-4, at 64k without it (with it: 1.62×).",
        "solid",
        {
            SPARSED: {"4k": 1.08, "8k": 1.13, "16k": 1.25, "32k": 1.42, "64k": 1.66},
            REFRESH: {"4k": 5.15, "16k": 8.45, "64k": 11.39},
            DUAL: {"4k": 8.68, "16k": 22.78, "64k": 33.80},
            DUAL_ALONE: {"4k": 9.23, "16k": 21.69, "64k": 29.23},
        },
        (
            "python -m sparsed bench --shape llada-8b --gen-length 128 --lengths 4k 8k 16k --steps 128",
            "python -m sparsed bench --shape llada-8b --gen-length 128 --lengths 32k 64k --steps 12 --compose 128 1024",
            "python -m sparsed bench --shape llada-8b --gen-length 128 --lengths 64k --steps 12 --compose 128 1024 "
            "--dense-backend cudnn --backend triton",
            "python -m sparsed bench --shape llada-8b --gen-length 128 --block-length 32 --lengths 4k 16k "
            "--steps 12 --compose 128 --cache prefix dual delayed refresh",
            "python -m sparsed bench --shape llada-8b --gen-length 128 --block-length 32 --lengths 64k "
            "--steps 8 --compose 128 --cache dual refresh prefix delayed",
        ),
    ),
    Recorded(
        "One A800 GPU, the paper",
        paper.source("llada").words,
        "dash",
        {SPARSED: {name: run.gain for name, run in paper.LLADA.items()}},
    ),
)  # fmt: skip


def legend() -> str:
    """What the lines are, as HTML: machines by their strokes, methods by their marks, and how each was measured."""
    strokes = {"solid": "", "dot": "1 4", "dash": "7 4"}
    machines = "".join(
        f'<li><svg class="sd-stroke" viewBox="0 0 28 8" aria-hidden="true"><path d="M1 4H27" '
        f'stroke-dasharray="{strokes[one.dash]}"></path></svg>{html.escape(one.machine)}</li>'
        for one in RECORDED
    )
    methods = "".join(
        f'<li><span class="sd-mark" aria-hidden="true">{letter}</span>{html.escape(name)}</li>'
        for name, (_, letter) in MARKS.items()
    )
    told = "".join(
        f"<dt>{html.escape(one.machine)}</dt><dd>{html.escape(one.whose)}"
        f"{''.join(f'<code>{html.escape(command)}</code>' for command in one.commands)}</dd>"
        for one in RECORDED
    )
    return (
        f'<div class="sd-known"><p>Grey, recorded:</p><ul>{machines}</ul><p>Marks:</p><ul>{methods}</ul>'
        "<p>In colour: your runs, on this machine.</p>"
        f"<details><summary>How the recorded lines were measured</summary><dl>{told}</dl></details></div>"
    )
