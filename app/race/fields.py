"""The one table of what a visitor can set: requests, links, the page's components and the API are made from it.

A new setting of the sampler or of the attention is a field in sparsed/config/ and a row here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from app import texts
from app.lanes import FURTHER, MOST_FURTHER
from app.race.checks import (
    check_choice,
    check_names,
    check_number,
    check_switch,
    check_texts,
    check_turns,
    check_whole,
)
from sparsed.config import (
    ALGORITHMS,
    BLOCK_SIZES,
    CANVASES,
    DEFAULT_CACHE_REFRESH,
    DEFAULT_SKIP,
    GENERATION_ROWS,
    SEEN_KEYS,
    SELECTIONS,
)
from sparsed.options import ATTENTION, CACHE, SAMPLER

OWN_TEXT = "own"
MAX_STEPS = 1024
MAX_GENERATION = 1024
MAX_CHARACTERS = 600_000
MAX_NUMBER = 2**31 - 1
# Of a list of texts.
MOST_TEXTS, MOST_OF_TEXT = 16, 200
CPU_BACKENDS = ("auto", "gather")
BACKENDS = (*CPU_BACKENDS, "triton", "flash4", "flex")
NO_THIRD = "none"
# A prompt is put to the model as the model has it.
AS_MODEL = "model"

_GENERATIONS = (16, 32, 64, 128, 256)
_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Field:
    """One setting."""

    name: str
    # "choice": one of some names; "names": a list of them, of at most `high`; "whole", "number": within low … high;
    # "switch": yes or no; "texts": a list of them; "turns": messages, or JSON of them.
    kind: Literal["choice", "names", "whole", "number", "text", "switch", "texts", "turns"]
    # What the page says above it and below it, and what programs read of it.
    label: str
    help: str
    doc: str
    # What a sentence calls it; "" takes the label.
    called: str = ""
    # Whose setting it is: one of SamplerConfig, of AttentionConfig, of CacheConfig, or one of the race itself.
    home: Literal["sampler", "attention", "cache", "race"] = "race"
    # What a number must lie between, both ends included.
    low: float = 0
    high: float = MAX_NUMBER
    # All that it may be → as people read it; None where only the running page knows (models, questions, lengths).
    choices: Mapping[Any, str] | None = None
    # Numbers that the page has to choose from, of all that it may be.
    offers: tuple[float, ...] = ()
    # Or its slider there: from, to, step.
    slider: tuple[float, float, float] | None = None
    # What it is until somebody sets it; None where that depends on the page, or on what it follows.
    usual: Any = None
    # It follows the model and the prompt length until the visitor sets it himself.
    follows: bool = False
    # The value that stands for "without it": None in the request.
    off: Any = None
    # Where not every algorithm has it: a value to ask the engine with, and what is said where it does not.
    trial: Any = None
    lacking: str = ""
    # Whether programs can set it, and whether the page has it.
    in_api: bool = True
    on_page: bool = True

    @property
    def said(self) -> str:
        """What a sentence calls it."""
        return self.called or self.label[0].lower() + self.label[1:]

    def check(self, value: Any, choices: Collection[str] | None = None) -> Any:
        """The value as a request holds it; None, where it may be, is left to the defaults.

        choices: what a choice may be, where the table does not know it. Raises ValueError, one sentence.
        """
        called = self.said
        if value is None and (self.follows or self.home == "attention" or self.off is not None):
            return None
        if self.kind == "choice":
            value = check_choice(called, value, choices or self.choices or ())
        elif self.kind == "names":
            value = check_names(called, value, self.choices or (), int(self.high))
        elif self.kind == "whole":
            value = check_whole(called, value, int(self.low), int(self.high))
        elif self.kind == "number":
            value = check_number(called, value, self.low, self.high)
        elif self.kind == "switch":
            value = check_switch(called, value)
        elif self.kind == "texts":
            value = check_texts(called, value, MOST_TEXTS, MOST_OF_TEXT)
        elif self.kind == "turns":
            value = check_turns(called, value, MAX_CHARACTERS)
        return None if value == self.off else value


_KINDS = {int: "whole", float: "number", str: "choice", bool: "switch"}


def _of_engine(name: str, label: str, help: str, doc: str, **more: Any) -> Field:
    """The row of a setting of the engine: whose it is and what kind of value it takes stand in its config."""
    about = (SAMPLER | ATTENTION | CACHE)[name].metadata
    kind: Any = "texts" if about.get("many") else _KINDS[about["kind"]]
    home: Any = "sampler" if name in SAMPLER else "attention" if name in ATTENTION else "cache"
    return Field(name, kind, label, help, doc, home=home, **more)


FIELDS = (
    Field(
        "model", "choice", "Model", "Choosing one downloads nothing: that begins when you press Run.",
        "Which model answers; /models lists them. One that is not in memory is loaded first, perhaps downloaded.",
    ),
    Field(
        "kind", "choice", "Question", "What the model is asked.",
        "A kind of question; own, where it is allowed, stands for the prompt in text (a text alone is enough).",
    ),
    Field(
        "length", "choice", "Prompt length", "The longer, the more SparseD saves.",
        "Prompt length of a question, in tokens as its name says; short_context is up to 256.",
    ),
    Field(
        "question", "whole", "Question number", "Each number makes another prompt.",
        f"Number of the question, 0 to {MAX_NUMBER}: each number makes another prompt.", usual=0,
    ),
    Field(
        "text", "text", "Your own text",
        "Sent to the model as one message. Mini only knows its own small world of invented documents.",
        f"A prompt of your own instead of a question, up to {MAX_CHARACTERS:,} characters.", usual="",
    ),
    _of_engine(
        "steps", "Denoising steps", "More steps, fewer tokens each; those left over go to the first blocks.",
        f"Denoising steps, 1 to {MAX_STEPS}, at least one for each block; where blocks do not divide them, the first "
        "blocks get one more. Default: the model's.",
        called="steps", low=1, high=MAX_STEPS, slider=(8, 256, 8), follows=True,
    ),
    _of_engine(
        "gen_length", "Generation length", "Tokens the answer may have.",
        f"Tokens to generate, 1 to {MAX_GENERATION}; rounded up to whole blocks. Default: the model's.",
        low=1, high=MAX_GENERATION, offers=_GENERATIONS, follows=True,
    ),
    _of_engine(
        "block_length", "Semi-autoregressive block length",
        "Blocks of the answer are finished from left to right.",
        "Semi-autoregressive block length in tokens. Default: the model's.",
        low=1, high=MAX_GENERATION, offers=_GENERATIONS, follows=True,
        trial=1, lacking="Dream's algorithms unmask the whole at once.",
    ),
    _of_engine(
        "algorithm", "Algorithm", "Which tokens each step commits.",
        "Which tokens each step commits: LLaDA's two, then Dream's four. Default: the model's.",
        choices={name: texts.ALGORITHMS[name] for name in ALGORITHMS}, follows=True,
    ),
    _of_engine(
        "temperature", "Temperature", "0 takes the likeliest token.",
        "0 takes the likeliest token; up to 10. Default: the model's.",
        high=10, slider=(0.0, 2.0, 0.05), follows=True,
    ),
    _of_engine(
        "threshold", "Confidence threshold", "Commits every token surer than this; ends a run early.",
        "Commit every token surer than this, 0 to 1 (0 is off); ends a run early. Default: the model's.",
        high=1, offers=_THRESHOLDS, follows=True, off=0,
        trial=0.9, lacking="Not with {algorithm}, whose confidence is no probability.",
    ),
    _of_engine(
        "cfg_scale", "Guidance (CFG scale)", "0 is off; above, each step costs twice.",
        "Guidance scale, 0 (off) to 100; above 0 each step costs twice. Default: the model's.",
        called="CFG scale", high=100, slider=(0.0, 4.0, 0.25), follows=True,
    ),
    _of_engine(
        "top_p", "Top-p", "Draws from the likeliest; 1 is off.",
        "Draw from the likeliest tokens of this sum, 0.01 to 1 (off); Dream's only. Default: the model's.",
        low=0.01, high=1, slider=(0.05, 1.0, 0.05), follows=True,
        trial=0.5, lacking="Only Dream's algorithms have it.",
    ),
    _of_engine(
        "skip", "Skip", "Share of steps before the switch.",
        "Share of the steps that use full attention before SparseD's switch, 0 to 1.",
        high=1, slider=(0.0, 1.0, 0.05), usual=DEFAULT_SKIP,
    ),
    _of_engine(
        "select", "Select", "Share of key blocks a head keeps.",
        "Share of the key blocks that a head keeps, 0.01 to 1. Default: 0.5 below 4000 tokens, else 0.3.",
        low=0.01, high=1, slider=(0.05, 1.0, 0.05), follows=True,
    ),
    _of_engine(
        "block_size", "Attention block size", "Tokens per block of queries and keys.",
        "Attention block size in tokens. Default: 32 below 4000 tokens, else 128.",
        low=min(BLOCK_SIZES), high=max(BLOCK_SIZES),
        choices={size: str(size) for size in BLOCK_SIZES}, follows=True,
    ),
    _of_engine(
        "selection", "Selection", "How the blocks to keep are ranked.",
        "How the blocks to keep are ranked: as the paper says, or as its public code does it.",
        choices={name: texts.SELECTIONS[name] for name in SELECTIONS}, usual="paper",
    ),
    _of_engine(
        "seed", "Sampler seed", "All lanes use the same.",
        f"Seed of the sampler, 0 to {MAX_NUMBER}, the same for all lanes.",
        called="seed", usual=0,
    ),
    Field(
        "backend", "choice", "Sparse attention backend", "auto: the fastest on this machine.",
        "What computes the sparse attention; auto is the fastest here.",
        called="backend", choices={name: name for name in BACKENDS}, usual="auto",
    ),
    Field(
        "track", "switch", "Track the pattern", "Selects afresh at four later steps, outside the clock.",
        "", usual=False, in_api=False,
    ),
    Field(
        "third", "choice", "Third lane", "One further lane.",
        "One further lane; `lanes` takes several.",
        choices={NO_THIRD: "none", **FURTHER}, usual=NO_THIRD, off=NO_THIRD, on_page=False,
    ),
    # Programs may give arguments by their place: what is new comes last.
    Field(
        "system", "text", "System prompt", "Stands before your own text, where there is one.",
        f"A system prompt before a text of your own, up to {MAX_CHARACTERS:,} characters.", usual="",
    ),
    Field(
        "prompt_format", "choice", "Prompt format", "With the chat template, or as raw text.",
        "With the model's chat template, or as raw text. Default: with it, where the model has one.",
        choices=texts.PROMPT_FORMATS, usual=AS_MODEL, off=AS_MODEL,
    ),
    _of_engine(
        "early_stop", "Stop at the answer's end", "Leaves out what would come after the end token.",
        "End a run as soon as the answer has its end token or a stop string, with nothing masked before it; the rest "
        "stays masked. Default: the model's.",
        follows=True,
    ),
    _of_engine(
        "logits_eos_inf", "Never predict the end token", "As in LLaDA's own evaluation.",
        "Never predict the end token, as in LLaDA's own evaluation. Default: the model's.", follows=True,
    ),
    _of_engine(
        "confidence_eos_eot_inf", "Commit end tokens last", "As in LLaDA's own evaluation.",
        "Commit tokens that end the answer last, as in LLaDA's own evaluation. Default: the model's.", follows=True,
        trial=True, lacking="Not with {algorithm}, which commits positions by chance.",
    ),
    _of_engine(
        "stop", "Stop strings", "The answer's text ends before the first of them.",
        f"Up to {MOST_TEXTS} texts of at most {MOST_OF_TEXT} characters: the answer ends before the first of them. "
        "Default: the model's.",
        follows=True, on_page=False,
    ),
    _of_engine(
        "generation_rows", "Generation rows", "What the answer’s own rows see in sparse steps.",
        "What the generation's rows see in sparse steps: their pattern, as in the paper, or (full: ours) every key.",
        choices={name: texts.GENERATION_ROWS[name] for name in GENERATION_ROWS}, usual="pattern", off="pattern",
    ),
    _of_engine(
        "refresh", "Refresh the pattern every … steps", "Ours; also where a block of the answer begins.",
        f"Select afresh every so many steps, 2 to {MAX_STEPS}, and where a semi-autoregressive block begins (ours). "
        "Default: 0, once a run, as in the paper.",
        called="refresh", high=MAX_STEPS, offers=(4, 8, 16), off=0, follows=True,
    ),
    Field(
        "lanes", "names", "Further lanes", f"Beside full attention and SparseD, up to {MOST_FURTHER}.",
        f"Up to {MOST_FURTHER} lanes beside full attention and SparseD: a simpler pattern that keeps as many blocks; "
        "SparseD as recommended here, whatever SparseD's own lane has (recommended; as published where that is so); "
        "SparseD with full generation rows (full_rows; the paper's where SparseD's own lane has them); or a method and "
        "a cache, which says which rows a step computes (dense+dual, sparsed+refresh).",
        high=MOST_FURTHER, choices=FURTHER, usual=(), off=(),
    ),
    _of_engine(
        "cache_refresh", "Every row every … steps", "Of the lanes with dKV-Cache or a refresh of all rows.",
        f"Steps from one forward over every row to the next, 1 to {MAX_STEPS}, of the lanes with dKV-Cache (delayed) "
        f"or a refresh of all rows. Default: {DEFAULT_CACHE_REFRESH}.",
        called="cache refresh", low=1, high=MAX_STEPS, offers=(2, 4, 8, 16), follows=True,
    ),
    _of_engine(
        "cache_keys", "Keys that few rows see", "Of the lanes with SparseD and a cache.",
        "Which keys the steps over few rows see, of the lanes with SparseD and a cache: all of them, or their "
        "pattern's. Default: all.",
        called="cache keys", choices={name: texts.SEEN_KEYS[name] for name in SEEN_KEYS}, follows=True,
    ),
    Field(
        "history", "turns", "Earlier turns", "What was said before your text.",
        "What was said before a text of your own: messages {role, content}, user and assistant in turn, up to "
        f"{MAX_CHARACTERS:,} characters together. Needs a chat template.", usual=(),
    ),
    _of_engine(
        "canvas", "Canvas", "Whether later blocks of the answer are there as masks.",
        "fixed: every mask is there from the beginning. growing: the masks of a semi-autoregressive block are appended "
        "when the one before is done, and each longer canvas selects afresh. Default: the model's.",
        choices={name: texts.CANVASES[name] for name in CANVASES}, follows=True,
        trial="growing", lacking="Only with semi-autoregressive blocks, which {algorithm} has with a threshold alone.",
    ),
)  # fmt: skip
BY_NAME = {field.name: field for field in FIELDS}
ON_PAGE = tuple(field for field in FIELDS if field.on_page)
# What the page moves with the model and the prompt length.
FOLLOWING = tuple(field.name for field in ON_PAGE if field.follows)


def usual(model: str, kind: str, length: str | None) -> dict[str, Any]:
    """Every setting by name, as it is where nobody has set any; None for what follows the model and the length."""
    return {**{field.name: field.usual for field in FIELDS}, "model": model, "kind": kind, "length": length}
