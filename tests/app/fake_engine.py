"""A stand-in for the engine that needs no model: it follows the interface of `sparsed` and sleeps instead of
computing.

Every word is a token. Full attention and SparseD write the same answer, in an order drawn from the seed; a baseline
gets every third word wrong. A text that contains FAIL_WORD makes the lane of SparseD raise an error in its third step,
FAIL_BASELINE the third lane. With a threshold every step commits PER_STEP tokens; a run that stops early ends once the
end token and everything before it is there. It can have several devices, where lanes step at the same time. The models:
one that is here, one in Dream's manner whose download takes a second or two, one whose download never ends, one that
fails, and one that is too large.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from types import SimpleNamespace

import numpy as np

from app.engine.cost import Shape, Speed
from sparsed import trace as traces
from sparsed.attention.layout import BlockLayout
from sparsed.attention.masks import Masks
from sparsed.config import NO_CACHE, SamplerConfig, phases_of
from sparsed.models import LoadError
from sparsed.models.catalogue import DREAM_DEFAULTS, GENERIC_DEFAULTS, LLADA_DEFAULTS, ModelSpec
from sparsed.models.hub import LoadProgress

FAIL_WORD, FAIL_BASELINE, WRONG = "kaboom", "kablam", "fog"
PER_STEP = 6
GB = 10**9
MEMORY = 24 * GB
END, MASK = 0, 1
LAYERS, HEADS = 3, 2
# Tokens of two documents that every question of it needs, as if.
NEEDED = ((40, 70), (200, 205))
SEED_WORDS = (
    "Mara Velin was born in Tolm in 1911 and worked as a glassblower . She lived in Orlin , near the river Sava ."
)


def spec(name, label, defaults, parameters=7 * GB, bundled=False):
    return ModelSpec(name, label, name, "", defaults, 4096, parameters, bundled=bundled)


MODELS = {
    one.name: one
    for one in (
        spec("mini", "mini (a stand-in)", GENERIC_DEFAULTS, 10**6, bundled=True),
        spec("dreamer", "Dreamer-7B", DREAM_DEFAULTS),
        spec("slowpoke", "Slowpoke-7B", LLADA_DEFAULTS),
        spec("broken", "Broken-7B", LLADA_DEFAULTS),
        spec("giant", "Giant-100B", LLADA_DEFAULTS, 100 * GB),
    )
}


def text_of(prompt):
    """A prompt as words, whether it is a text or messages."""
    return prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)


def ours(attention):
    """Full attention, or SparseD; else it is a baseline."""
    return attention.method in ("dense", "sparsed")


class Pattern:
    def __init__(self, layout: BlockLayout, select: float, seed: int, full_blocks: int) -> None:
        self.layout, self.select, self.full_blocks = layout, select, full_blocks
        rng = np.random.default_rng(seed)
        self._masks = rng.random((LAYERS, HEADS, layout.blocks, layout.blocks)) < select
        self._masks[..., -1] = True
        self._masks[:, :, layout.blocks - full_blocks :] = True
        self.importance = None
        self.layers = [
            SimpleNamespace(kept=layout.blocks, counts=masks.sum(-1), mask=lambda masks=masks: masks)
            for masks in self._masks[:, None]
        ]

    @property
    def requested_density(self) -> float:
        return float(self._masks.mean())

    def mask(self, layer: int, head: int, batch: int = 0) -> np.ndarray:
        return self._masks[layer, head]


@dataclass
class Step:
    index: int
    total: int
    phase: str
    tokens: np.ndarray
    committed: np.ndarray
    confidence: np.ndarray
    seconds: float
    rows: int
    length: int


@dataclass
class Info:
    """What a run is, as `sparsed.denoising.info.RunInfo`, which needs torch."""

    run: Run

    def record(self):
        run, sampler = self.run, {**asdict(self.run.sampler), "stop": list(self.run.sampler.stop)}
        del sampler["changed"]
        made = Counter(step.phase for step in run.steps)
        return {
            "sampler": sampler,
            "attention": {"method": "dense"} if run.attention.dense else asdict(run.attention),
            "backend": run.backend,
            "dense_backend": "sdpa",
            "dtype": "float32",
            "device": "cpu",
            "prompt_tokens": run.prompt_length,
            "batch": 1,
            "phases": {phase: made[phase] for phase in ("dense", "select", "sparse")},
            "cache": (run.cache or NO_CACHE).record(),
            "forwards": len(run.steps),
            "rows": {
                phase: sum(step.rows for step in run.steps if step.phase == phase)
                for phase in ("dense", "select", "sparse")
            },
            "total": run.total,
            "finished": run.finished,
            "switch_step": next((step.index for step in run.steps if step.phase == "sparse"), None),
            "notes": list(run.notes),
        }


class Run:
    """Steps of `pace` seconds each, sparse ones a third shorter. Knows when two runs of one device step at the same
    time.
    """

    overlaps = 0
    steps_made = 0

    def __init__(self, model, words, answer, sampler, attention, pace, fail, cache):
        self.model = model
        self.sampler, self.pace, self.fail = sampler, pace, fail
        self.total, self.prompt_length = sampler.steps, words
        self.length = words + sampler.gen_length
        self.attention = attention.resolve(self.length)
        self.backend = "sdpa" if attention.dense else "gather"
        self.cache = cache
        blocks = sampler.gen_length // sampler.block_length
        given = self.attention.skip, "paper", self.attention.refresh
        self._phases = phases_of(self.total, *given, blocks)
        self.switch_step = self._phases.index("sparse") if "sparse" in self._phases else None
        self.pattern = None
        self.notes = list(sampler.changed)
        if not attention.dense and self.switch_step is None:
            self.notes.append("This run never becomes sparse: full attention lasts to the end.")
        if self.length > 4096 + 64:
            self.notes.append("Speed only: trained to 4096 positions.")
        self.finished = False
        self.closed = False
        self.steps = []
        self._answer = np.array((answer + [END] * sampler.gen_length)[: sampler.gen_length])
        self._order = list(range(sampler.gen_length))
        random.Random(sampler.seed).shuffle(self._order)
        self._state = np.full(sampler.gen_length, MASK)
        self._index = 0

    def __iter__(self):
        return self

    @property
    def info(self):
        return Info(self)

    def __next__(self) -> Step:
        if self.closed or self.finished:
            raise StopIteration
        stepping = self.model.stepping
        if not stepping.acquire(blocking=False):
            Run.overlaps += 1
            stepping.acquire()
        try:
            return self._step()
        finally:
            stepping.release()

    def _step(self) -> Step:
        if self.fail and self._index == 2:
            raise RuntimeError("the fake kernel failed on purpose")
        index, self._index = self._index, self._index + 1
        phase = self._phases[index]
        # With a cache the first step of a block computes every row, and every other one the block's.
        full = self.cache is None or index % (self.total * self.sampler.block_length // len(self._order)) == 0
        rows = self.length if full else self.sampler.block_length
        pace = self.pace * rows / self.length
        seconds = pace * {"dense": 1.0, "select": 1.4, "sparse": 0.66}[phase] * random.uniform(0.95, 1.05)
        time.sleep(seconds)
        count = len(self._order)
        if self.sampler.threshold is None:
            first, last = math.floor(count * index / self.total), math.floor(count * (index + 1) / self.total)
            self.finished = index + 1 == self.total
        else:
            first, last = PER_STEP * index, PER_STEP * (index + 1)
            self.finished = last >= count
        committed = np.zeros(count, dtype=bool)
        committed[self._order[first:last]] = True
        self._state = np.where(committed, self._answer, self._state)
        if self.sampler.early_stop and END in self._state:
            self.finished = self.finished or MASK not in self._state[: self._state.tolist().index(END)]
        if self.finished and self.switch_step is not None and index + 1 <= self.switch_step:
            self.notes.append(f"This run never became sparse: it was done after {index + 1} steps.")
            self.switch_step = None
        confidence = np.where(committed, 0.9, np.nan)
        Run.steps_made += 1
        step = Step(
            index, self.total, phase, self._state[None].copy(), committed[None], confidence[None], seconds, rows,
            self.length,
        )  # fmt: skip
        self.steps.append(step)
        if phase == "select":
            layout = BlockLayout(self.length, self.prompt_length, self.attention.block_size)
            full = layout.generation_query_blocks if self.attention.generation_rows == "full" else 0
            seed = (0 if ours(self.attention) else 1) + self.sampler.seed + 2 * self._phases[:index].count("select")
            self.pattern = Pattern(layout, self.attention.select, seed, full)
        return step

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeEngine:
    """See the module. pace: seconds of one dense step over 1000 tokens. keeps: leave a record of every run. devices:
    copies of a model are on so many.
    """

    pace: float = 0.02
    load_seconds: float = 0.2
    keeps: bool = False
    vocabulary: list[str] = field(default_factory=lambda: ["<end>", "<mask>"])
    at_once: int = 1
    devices: int = 1
    stepping: list[threading.Lock] = field(default_factory=lambda: [threading.Lock() for _ in range(3)])

    def admit(self, name):
        if name not in MODELS:
            raise ValueError(f"The model {name!r} is not one of {', '.join(MODELS)}.")

    def speed(self, model):
        # With several devices it decides how lanes run: no clock's jitter may.
        return Speed(self.pace / 1000, 0.0) if self.devices > 1 else None

    def lend(self, *race):
        return None

    def models(self):
        return MODELS

    def weights(self, name):
        return 2 * MODELS[name].parameters

    def known_shape(self, name):
        return None

    def memory(self, model=None):
        return MEMORY

    def kinds(self):
        return {"about": "Tell me about …", "fact": "One fact"}

    def lengths(self):
        return {"short_context": 256, "1k": 1024, "2k": 2048, "4k": 4096, "64k": 65536}

    def fetch(self, name, progress):
        files = {"dreamer": 4, "slowpoke": 1200, "broken": 1}[name]
        for file in range(files):
            progress(LoadProgress("download", file * 14 * GB // files, 14 * GB, file, files))
            time.sleep(0.5)
        if name == "broken":
            raise LoadError("Broken-7B could not be downloaded: no connection to the Hub.")

    def load(self, name, progress):
        progress(LoadProgress("weights", 10**6, 14 * GB, 0, 4))
        time.sleep(self.load_seconds)
        about = {"name": name, "chat": True, "eos_id": END, "end_ids": (END,), "mask_id": MASK}
        about["max_positions"] = MODELS[name].trained_length
        copies = [
            SimpleNamespace(**about, defaults=MODELS[name].defaults, number=number, stepping=self.stepping[number])
            for number in range(self.devices)
        ]
        copies[0].others = copies[1:]
        return copies[0]

    def copies(self, model):
        return (model, *model.others)

    def shape(self, model):
        return Shape(
            layers=LAYERS,
            hidden=64,
            heads=HEADS,
            head_dim=32,
            intermediate=128,
            weight_bytes=10**6,
            number_bytes=4,
        )

    def place(self, model):
        return "CPU · pretended"

    def backend(self, model):
        return "gather"

    def build_prompt(self, model, length, kind, seed, chat=None):
        words = (SEED_WORDS + " ") * (self.lengths()[length] // 25)
        question = f"Tell me about Mara Velin ({seed})."
        return SimpleNamespace(
            text=words + question,
            question=question,
            answer=SEED_WORDS,
            others=(),
            needed=NEEDED,
            tokens=self.lengths()[length] - 4,
            kind=kind,
            length=length,
            seed=seed,
        )

    def count(self, model, prompt, chat=None):
        return len(text_of(prompt).split())

    def verdict(self, text, gold):
        return (True, "as expected") if text == gold else (False, "not the expected answer")

    def record(self, runs, *, prompt, devices, system="", chat=None, history=()):
        """The record of runs by lane. It is built here, because `sparsed.trace.recording.record` takes torch's
        tensors."""
        if not self.keeps:
            return None
        first = next(iter(runs.values()))
        about = {"text": prompt}
        if not isinstance(prompt, str):
            about = {name: getattr(prompt, name) for name in ("text", "question", "kind", "length", "seed")}
            about |= {"gold": prompt.answer, "needed": NEEDED}
        return traces.Trace(
            created="2026-11-22T09:30:00+00:00",
            software={},
            machine={"cpu": "a stand-in"},
            model=traces.TraceModel("mini", "mini (a stand-in)", "llada", "float32", "cpu"),
            prompt=traces.TracePrompt(
                first.prompt_length,
                **about,
                system=system or None,
                chat=chat,
                history=tuple((one["role"], one["content"]) for one in history),
            ),
            sampler=first.sampler,
            batch=1,
            gen_length=first.sampler.gen_length,
            mask_id=MASK,
            end_ids=(END,),
            vocabulary=dict(enumerate(self.vocabulary)),
            fragments=(),
            lanes={key: replace(self._lane(run), device=devices[key]) for key, run in runs.items()},
        )

    def _lane(self, run):
        steps = [
            traces.TraceStep(
                step.index,
                step.phase,
                step.seconds,
                tuple(
                    traces.Commit(0, int(at), int(step.tokens[0, at]), 0.9) for at in np.flatnonzero(step.committed[0])
                ),
                None if step.rows == run.length else step.rows,
                step.seconds / 4,
            )
            for step in run.steps
        ]
        answer = [token for token in run.steps[-1].tokens[0].tolist() if token != MASK]
        return traces.Lane(
            attention=run.attention,
            backend=run.backend,
            dense_backend="sdpa",
            total=run.total,
            switch_step=run.switch_step,
            finished=run.finished,
            notes=tuple(run.notes),
            seconds=sum(step.seconds for step in run.steps),
            text=(self.read_answer(None, answer),),
            steps=tuple(steps),
            pattern=None if run.pattern is None else Masks.of(run.pattern),
            cache=run.cache or NO_CACHE,
        )

    def denoise(self, model, prompt, sampler: SamplerConfig, attention, backend, probe_steps=(), chat=None, cache=None):
        prompt, sampler = text_of(prompt), sampler.resolve(model.defaults)
        written = (SEED_WORDS if "Mara Velin" in prompt else prompt).split()
        if not ours(attention):
            written[2::3] = [WRONG] * len(written[2::3])
        answer = []
        for position, word in enumerate(written):
            piece = word if position == 0 else f" {word}"
            if piece not in self.vocabulary:
                self.vocabulary.append(piece)
            answer.append(self.vocabulary.index(piece))
        words = len(prompt.split())
        fail = not attention.dense and (FAIL_WORD if ours(attention) else FAIL_BASELINE) in prompt
        return Run(model, words, answer, sampler, attention, self.pace * (0.2 + words / 1000), fail, cache)

    def decode_tokens(self, model, tokens):
        return "".join(self.vocabulary[token] for token in tokens)

    def read_answer(self, model, tokens, stop=()):
        tokens = list(tokens)
        text = self.decode_tokens(model, tokens[: tokens.index(END)] if END in tokens else tokens)
        return text[: min((place for place in map(text.find, stop) if place >= 0), default=len(text))]
