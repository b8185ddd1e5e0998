"""The page's fixed texts. HTML here is ours alone; nothing from a visitor or a model is ever put into it."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from app.phrases import PERCENT

PAPER = "https://arxiv.org/abs/2509.24014"

TITLE = "SparseD live"
# What this is. A phone has room for the first sentence.
TAGLINE = (
    "Watch a diffusion language model skip what hardly matters.",
    "Each step reads the whole prompt; SparseD reads the blocks that count.",
)

# Whose they are comes first: the list is grouped by it.
ALGORITHMS = {
    "low_confidence": "LLaDA · low_confidence: surest tokens first",
    "random": "LLaDA · random: in any order",
    "origin": "Dream · origin: each token by chance",
    "maskgit_plus": "Dream · maskgit_plus: surest tokens first",
    "topk_margin": "Dream · topk_margin: clearest lead first",
    "entropy": "Dream · entropy: lowest entropy first",
}
CANVASES = {"fixed": "all masks from the beginning", "growing": "a block at a time (iLLaDA)"}
PROMPT_FORMATS = {"model": "as the model has it", "chat": "with its chat template", "raw": "raw text"}
SELECTIONS = {"paper": "as the paper says", "reference": "as the public code does it"}
GENERATION_ROWS = {"pattern": "Follow the pattern (the paper)", "full": "See all keys (ours)"}
SEEN_KEYS = {"all": "All keys", "pattern": "Their pattern’s keys"}

# What the view of one head shows.
Shades = Literal["both", "importance", "kept"]
SHADES: dict[Shades, str] = {
    "both": "blocks kept, over how important they are",
    "importance": "importance alone",
    "kept": "blocks kept alone",
}

# What the buttons do, by the id of the element.
BUTTONS = {
    "sd-another": "The next question of this kind, with another prompt.",
    "sd-run": "The lanes answer the question above, with the settings below.",
    "sd-stop": "Ends the run after the step that goes on now; what is there stays.",
    "sd-ask": "Further questions of the last run’s kind and length, with its settings: how often each lane is right.",
    "sd-series-stop": "Ends the questions; those that are answered stay counted.",
    "sd-take": "Files of the last run, a link that brings its settings back, and how programs ask.",
    "sd-insert": "Puts a short text in the form that the model knows into the box, to be changed.",
    "sd-observe-differ": "Shows the heads of one layer beside each other.",
    "sd-observe-stay": "Shows how much of the choice later steps would choose again.",
    "sd-observe-early": "Sets skip to 0 and runs.",
    "sd-own": "Shows again what the run itself has kept.",
    "sd-upload": "Opens a record that was downloaded here; nothing is sent to anybody else.",
    "sd-compare-run": "One race for each prompt length chosen, one after the other.",
    "sd-compare-stop": "Ends the comparison; the rows that are there stay.",
    "sd-compare-pin": "Keeps this comparison in the chart, beside those to come.",
    "sd-compare-clear": "Takes the pinned comparisons out of the chart.",
}

# What runs a lane. torch SDPA: scaled_dot_product_attention, whichever kernel it picks.
BACKEND_WORDS = {
    "sdpa": "torch SDPA",
    "cudnn": "cuDNN",
    "flash": "FlashAttention-2",
    "flash4": "flash-attn-4",
    "flex": "FlexAttention",
    "triton": "Triton",
}
OWN_QUESTION = "your own text"
INSERT = "Insert an example"
ASK_MORE = "20 questions like this"
FOLLOW_UP = "Ask a further question"
FOLLOW_UP_HERE = "Ask a further question about the same documents"
NO_TURNS = "{model} has no chat template: it answers single prompts, and no further question about them."
NOTHING_TO_FOLLOW = "There is no finished answer to go on from here: press Run first."
NOTHING_TO_PIN = "There is no comparison to pin yet: press Compare first."
TURN = "question {number} of a conversation"
OTHER_TEXT = "{model} was not trained on texts like this one: the speed is real, the answers are guesses."
STOPPED = "Stopped. What was written so far stays here."
NOT_KEPT = "This run could not be recorded: it cannot be played again."
START = "Press Run. Every step is timed alone, so each clock shows its own lane's work."

# What stands where there is nothing to draw yet.
NO_TIMELINE = "Each step's time appears here when a run starts."
NO_PATTERN = "The blocks a head keeps appear here at the select step."
NO_SELECTION = "The last run ended before its select step."
NOT_TRACKED = "The last run was not tracked: tick “Track the pattern” in the settings, and run."
TRACK_NEXT = "The last run was not tracked. “Track the pattern” is ticked now: press Run."

# Why no other select can be tried on the blocks of a head.
WHAT_IF_LATER = "What another select would keep can be tried here when the run is over."
WHAT_IF_UNKNOWN = "This run’s importances were not kept, so another select cannot be tried; a run made here keeps them."
WHAT_IF_BY_RULE = "Another select can be tried where SparseD chose as the paper says; these were chosen otherwise."

# How the lanes share the machine. Where they could run at the same time and do not, the reason.
IN_TURNS = "The lanes take turns on one device."
TOO_SHORT = "The lanes take turns on one GPU: steps this short would hold each other up."
NO_ROOM = "The lanes take turns on one GPU: this length does not fit on a second one."
NOT_MEASURED = "The lanes take turns on one GPU: how long a step takes is not known yet."


def held_together(processes: int) -> str:
    """How lanes run on a model of which several processes hold a share each."""
    return f"The lanes take turns; {processes} processes share every step, each with some of the heads."


def others_in_turns(devices: int) -> str:
    """How more lanes than devices share them, where there are two devices or more."""
    if devices == 2:
        return "Full attention has a GPU of its own; the other lanes take turns on another."
    return f"The first {devices - 1} lanes have a GPU each; the others take turns on another."


BOTH_TOGETHER = "Each lane has a GPU of its own; both run at the same time."
ALL_TOGETHER = "Each lane has a GPU of its own; all run at the same time."


class Scene(NamedTuple):
    """A part of the story below the race; what is drawn in it: `app.finished.story`."""

    title: str
    words: str


SCENES = {
    "masks": Scene(
        "A canvas of masks",
        "A diffusion language model starts from masks only. In every denoising step it reads the whole sequence in "
        "both directions, guesses each masked token, and commits the ones it is surest of.",
    ),
    "dense": Scene(
        "Full attention first",
        "The first steps shape the answer most (the paper), so SparseD leaves them alone: skip 0.2 means that the "
        "first fifth of the steps compute every pair of a query block and a key block.",
    ),
    "select": Scene(
        "Select: measure once",
        "In the select step attention is averaged over blocks. Each head keeps, for every query block, its most "
        "important key blocks, ranked apart for the prompt and for the answer.",
    ),
    "sparse": Scene(
        "Reuse: skip blocks",
        "Within a head the pattern hardly changes from step to step, so all later steps compute the kept blocks alone. "
        f"At 30{PERCENT} kept, attention does about a third of its work; the rest of the network costs what it did.",
    ),
    "cache": Scene(
        "Caches: skip rows",
        "A cache keeps keys and values of rows that hardly change: most steps compute a few rows, and now and then one "
        "computes all. SparseD makes those full steps cheaper, so the two go together.",
    ),
}
# Which run the scenes are drawn from; what they say where it has nothing for them.
RECORDED_STORY = "Drawn from the recorded race; your own run comes here when it is over."
OWN_STORY = "Drawn from your last run."
NO_STORY = "Your first run is drawn here when it is over."
NO_SCENE = "Nothing to draw yet: press Run."
NO_CACHE = "No lane had a cache: every step computed every row. “SparseD + cache” adds one."

# Where a step's time goes, of a run that does not say.
NO_STEPS = "What a step spends on attention, and on the rest, stands here when a run is over."
NOT_APART = "This run does not tell a step’s attention apart; one made here, on a CPU, does."

# Below the scenes, to unfold.
MORE = """
<details><summary>Reading the canvas</summary><p>A hatched cell is still masked, an underlined bold one was just
committed, plain text is settled; a bar stands where a semi-autoregressive block begins. On a canvas that grows, a cell
that is not there yet has a line below it alone. Point at a cell, or move to it with the arrow keys, for its step and
its confidence.</p></details>
<details><summary>How the race is timed</summary><p>Each step is timed alone, selection included. On one device the
lanes never run at the same time: the one that has used less time goes next. With two GPUs each lane has its own, and
both run at the same time; only where steps are so short that they would hold each other up, they take turns there too.
The line below the lanes says which. The speed-up while running compares the steps that both lanes have done; at the
end, whole runs. Short prompts gain little or nothing: there attention is a small part of the work, and the page says so
when SparseD is slower.</p></details>
<details><summary>Why not a simpler pattern?</summary><p>A further lane, in the settings, keeps as many blocks as
SparseD by a rule that is simpler: the nearest ones, the first and the nearest, some by lot, or one choice for all
heads. It is about as fast; see what it answers.</p></details>
<details><summary>What a cache costs</summary><p>What a cache keeps grows old: see whether the answer stays right. Each
lane says how many rows its step has computed. Fast-dLLM and dKV-Cache are published; together with SparseD they are our
combination.</p></details>
<details><summary>What is ours</summary><p>Two settings of SparseD are not the paper’s, and a lane that has one says so.
With full generation rows, the rows of the answer see every key in sparse steps, and only the prompt’s follow their
pattern. With a refresh, the heads select afresh every so many steps and where a semi-autoregressive block begins, in a
step with full attention that the lane’s clock counts. Recommended here are full generation rows, a fifth of the blocks
and a pattern that is made in the first step; “Accuracy against speed” shows why.</p></details>
"""


class Example(NamedTuple):
    """What one press sets and runs; every other setting goes back to its default. lanes: further ones, of
    `app.lanes.FURTHER`. says: what there is to see, at the button.
    """

    kind: str
    length: str
    question: int
    says: str
    lanes: tuple[str, ...] = ()


# What to begin with, by what each teaches. Those whose question and length the engine has are shown.
EXAMPLES = {
    "With a cache": Example(
        "two_hop", "1k", 2, "A cache makes steps over every row rare, and SparseD makes those cheaper.",
        ("sparsed+refresh",),
    ),
    "What a window overlooks": Example(
        "chain3", "2k", 0,
        "SparseD and a sliding window keep as many blocks. One of them still finds the third document that it needs.",
        ("sliding_window",),
    ),
    "Four hops, and what SparseD loses": Example(
        "chain4", "1k", 0,
        "SparseD as published chooses its blocks before the fourth hop is known. As recommended here, answers see all.",
        ("recommended",),
    ),
    "Who is older, at 4k": Example(
        "older", "4k", 4, "The longer the prompt, the more of a step is attention, and the more there is to save.",
    ),
    "Not in the documents": Example("unanswerable", "1k", 3, "What the documents do not say is not made up."),
    "Too short to gain": Example(
        "about", "short_context", 0, "Over a few words attention is a small part of the work: both lanes are as fast.",
    ),
}  # fmt: skip


def button_titles() -> dict[str, str]:
    """What buttons do, by the id of the element: those of `BUTTONS`, and the examples' in their order."""
    runs = {example_id(number): f"Runs at once. {one.says}" for number, one in enumerate(EXAMPLES.values())}
    return BUTTONS | runs


def example_id(number: int) -> str:
    """The element of the example at this place of `EXAMPLES`."""
    return f"sd-example-{number}"


# The paper's observations, and what shows each on the page's run. Name → (claim, button).
OBSERVATIONS = {
    "differ": (
        "<b>Every head looks elsewhere.</b> Heads of one layer keep different blocks.",
        "Compare the heads",
    ),
    "stay": (
        "<b>A head stays with its choice.</b> Chosen afresh at later steps, its blocks are much the same.",
        "Show later steps",
    ),
    "early": (
        "<b>The first steps decide.</b> Sparse from the first step on, LLaDA answers worse (paper). Try four hops.",
        "Set skip to 0 and run",
    ),
}

# Characters that change the direction of what stands after them.
TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def straight(text: str) -> str:
    """Words from a file, to stand among ours: without what would turn them around."""
    return TURNING.sub("", text)


FOOTER = f""" <footer class="sd-footer"> <p>An independent implementation of <a href="{PAPER}" target="_blank"
rel="noopener">SparseD: Sparse Attention for Diffusion Language Models</a> (arXiv&nbsp;2509.24014); not by the
paper's authors. The people, places and works in the prompts are invented.</p> </footer>
"""

MASK_LEGEND = """
<p class="sd-mask-legend">Rows: blocks of queries. Columns: blocks of keys. Dashed: where the answer begins.
Shares are rounded up to whole blocks, prompt and answer separately. Point at a cell for its tokens.</p>
"""
