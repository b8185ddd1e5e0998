"""The few things the page asks of the engine, behind one small interface.

`SparsedEngine` imports torch and transformers only when a method is called, so that the page is served before
they are loaded; tests put an engine of their own in its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import sparsed
from app.limits import Limits, Shape, Speed, lanes_take_turns, memory_needed
from sparsed import trace
from sparsed.config import SamplerConfig, SparseDConfig
from sparsed.machine import device_memory, dtype_name
from sparsed.models.catalogue import CATALOGUE, GENERIC_DEFAULTS, ModelSpec
from sparsed.models.hub import locate
from sparsed.prompts import KINDS, LENGTHS, build_prompt, exact_match, facts_right, token_budget
from sparsed.trace import Trace
from sparsed.turns import seat

if TYPE_CHECKING:
    from sparsed.team import Team

# How far loading is; str() of what comes is a short text: "downloading: 3.2 of 16.0 GB, file 2 of 6".
Listener = Callable[[Any], None]

# What may be a repository on the Hub. A folder is anything else that is there.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")

# One for each lane of a race.
MOST_COPIES = 3
# A copy is of use where a run over so many tokens fits beside it, so many of them generated, in such attention blocks.
ROOM_TOKENS, ROOM_GENERATED, ROOM_BLOCK = 4224, 128, 128


@dataclass(frozen=True)
class Wanted:
    """A lane of a race. attention: None for full attention. probe_steps: select afresh there, for comparison."""

    lane: str
    attention: SparseDConfig | None
    probe_steps: tuple[int, ...] = ()


def check_name(name: str) -> None:
    """Raises ValueError for what can be no model: neither in the catalogue, nor a Hub id, nor a model's folder."""
    if any(name in (spec.name, spec.source) for spec in CATALOGUE) or HUB_ID.fullmatch(name):
        return
    if not name.strip() or not (Path(name) / "config.json").is_file():
        listed = ", ".join(spec.name for spec in CATALOGUE)
        raise ValueError(f"The model {name[:80]!r} is none of {listed}, no Hub id (owner/name) and no model's folder.")


class Engine(Protocol):
    """What a page needs: models, prompts with known answers, and runs. The types are those of `sparsed`."""

    # Races that its device takes at the same time.
    at_once: int

    def models(self) -> Mapping[str, ModelSpec]:
        """What `load` takes → a row of the list. `bundled`: nothing has to be downloaded. parameters: 0 if unknown.
        """

    def admit(self, name: str) -> None:
        """Takes a model into the list that was not in it: a Hub id or a folder. Raises ValueError where that is no
        model's name, or only listed models may be loaded.
        """

    def kinds(self) -> Mapping[str, str]:
        """Question kind → label."""

    def lengths(self) -> Mapping[str, int]:
        """Prompt length name → tokens."""

    def weights(self, name: str) -> int:
        """Bytes of the model's weights in the smallest dtype that the device here takes; 0 where unknown."""

    def memory(self, model: Any = None) -> int | None:
        """Bytes free on the model's device, or on the one that a new model would get; None where unknown."""

    def fetch(self, name: str, progress: Listener) -> None:
        """Brings the model's files to this machine; may take an hour. Raises ValueError or OSError."""

    def load(self, name: str, progress: Listener) -> Any:
        """The model; takes seconds once its files are here. Raises ValueError, OSError or RuntimeError."""

    def copies(self, model: Any) -> Sequence[Any]:
        """The model, and the same on other devices, where lanes can run at the same time: at most one for each lane.
        They are freed with the model.
        """

    def shape(self, model: Any) -> Shape:
        """The sizes that decide what a run costs."""

    def speed(self, model: Any) -> Speed | None:
        """What is known of its speed without measuring it; None where it can be measured."""

    def place(self, model: Any) -> str:
        """Where the model runs, for people: "CPU · float32"."""

    def backend(self, model: Any) -> str:
        """What runs the sparse lane here; "auto" where that depends on the run."""

    def build_prompt(self, model: Any, length: str, kind: str, seed: int) -> Any:
        """A prompt with .text, .question, .answer, .tokens. Raises ValueError where none can be made."""

    def count(self, model: Any, text: str) -> int:
        """Tokens of `text` with the chat template."""

    def verdict(self, text: str, gold: str) -> tuple[bool, str]:
        """Is the answer right, and that in a few words."""

    def denoise(
        self,
        model: Any,
        prompt: str,
        sampler: SamplerConfig,
        attention: SparseDConfig | None,
        backend: str,
        probe_steps: Sequence[int] = (),
    ) -> Any:
        """A run; attention None is full attention throughout. probe_steps: select afresh there, for comparison."""

    def lend(
        self,
        model: Any,
        prompt: str,
        sampler: SamplerConfig,
        wanted: Sequence[Wanted],
        backend: str,
        first: int,
        seconds: float,
    ) -> dict[str, Any] | None:
        """The runs of a race by lane, on a device that has to be borrowed for it; None where the device is always here
        and `denoise` makes the runs. Waits for the device, which is given back when the runs are closed.

        first: see `app.race.Race`. seconds: what the race is expected to take. Raises ValueError where nothing is lent.
        """

    def record(self, runs: Mapping[str, Any], *, prompt: Any, devices: Mapping[str, int]) -> Trace | None:
        """What runs by lane did, each of one step or more; None where nothing is recorded. prompt: what `build_prompt`
        made, or a visitor's own text. devices: the number of the one that each lane had.
        """

    def decode_tokens(self, model: Any, tokens: Sequence[int]) -> str:
        """The text of some tokens as it stands in the answer, spaces kept."""

    def read_answer(self, model: Any, tokens: Sequence[int]) -> str:
        """The answer's text, up to the first end token."""


def line_up(
    engine: Engine, copies: Sequence[Any], prompt: str, sampler: SamplerConfig, wanted: Sequence[Wanted], backend: str
) -> dict[str, Any]:
    """The runs of a race by lane, ready for their first step. copies: of the model, one for each device that the lanes
    have (`sparsed.turns.seat`). Raises what `Engine.denoise` raises; nothing is left open then.
    """
    runs: dict[str, Any] = {}
    try:
        for lane, one in enumerate(wanted):
            model = copies[seat(lane, len(copies))]
            run = engine.denoise(model, prompt, sampler, one.attention, backend, one.probe_steps)
            runs[one.lane] = run
            # Kernels that compile or tune themselves do it here, before the clocks start (nothing on a CPU).
            warm_up = getattr(run, "warm_up", None)
            if warm_up is not None:
                warm_up()
    except BaseException:
        for run in runs.values():
            run.close()
        raise
    return runs


def _hear_copy(progress: Listener, number: int, far: Any) -> None:
    progress(f"copy {number}, on another GPU: {far}")


class SparsedEngine:
    """The engine of this repository. extra_model: one that is listed beside the catalogue. any_model: `admit` takes
    every model that can be loaded.

    On a machine with several GPUs of a kind a model is loaded on up to MOST_COPIES of them, unless SPARSED_LANES says
    that lanes take turns. Raises ValueError for another value of that variable.

    team: processes that hold every model together; then there is one of each, and its lanes take turns on all of them.
    """

    at_once = 1

    def __init__(
        self, extra_model: str | None = None, *, any_model: bool = False, team: Team | None = None
    ) -> None:
        self._extra = extra_model or ""
        self._any = any_model
        self._admitted: dict[str, ModelSpec] = {}
        self._turns = lanes_take_turns() or team is not None
        self._team = team
        # Model → the others of its copies.
        self._others: WeakKeyDictionary[Any, tuple[Any, ...]] = WeakKeyDictionary()

    def models(self) -> Mapping[str, ModelSpec]:
        # Under the name that was asked for: `python app.py --model` may have given a Hub id of the catalogue.
        extra = self._extra
        listed = {extra if extra == spec.source else spec.name: spec for spec in CATALOGUE}
        if extra and extra not in listed:
            listed[extra] = replace(self.spec_of(extra), bundled=True)
        return {**listed, **self._admitted}

    def admit(self, name: str) -> None:
        if name in self.models():
            return
        if not self._any:
            raise ValueError(
                f"The model {name[:80]!r} is not one of {', '.join(self.models())}. Others load where the page was "
                "started with --allow-any-model."
            )
        check_name(name)
        self._admitted[name] = self.spec_of(name)

    @staticmethod
    def spec_of(name: str) -> ModelSpec:
        """What is known of a model that is not in the catalogue, before it is loaded. A folder is here already."""
        short = Path(name).name or name
        return ModelSpec(short, short, name, "", GENERIC_DEFAULTS, 0, parameters=0, bundled=Path(name).is_dir())

    def kinds(self) -> Mapping[str, str]:
        return KINDS

    def lengths(self) -> Mapping[str, int]:
        return {name: token_budget(name) for name in LENGTHS}

    def weights(self, name: str) -> int:
        from sparsed.models.loading import pick_device  # needs torch

        # bfloat16 or float16 everywhere but on Apple's GPUs.
        whole = self.models()[name].parameters * (4 if pick_device(None).type == "mps" else 2)
        return whole if self._team is None else whole // self._team.size

    def memory(self, model: Any = None) -> int | None:
        from sparsed.models.loading import pick_device  # needs torch

        device = pick_device(None) if model is None else model.device
        return device_memory(device.type, device.index)

    def fetch(self, name: str, progress: Listener) -> None:
        locate(name, progress=progress)

    def load(self, name: str, progress: Listener) -> Any:
        model = sparsed.load(name, progress=progress, team=self._team)
        self._others[model] = () if self._turns else self._elsewhere(name, model, progress)
        return model

    def copies(self, model: Any) -> Sequence[Any]:
        return (model, *self._others.get(model, ()))

    def _elsewhere(self, name: str, model: Any, progress: Listener) -> tuple[Any, ...]:
        """The model once more on other GPUs, as far as it fits. Only on those of the same kind: on another kind a lane
        would win or lose by its GPU.
        """
        if model.device.type != "cuda":
            return ()
        import torch

        shape, kind = self.shape(model), torch.cuda.get_device_name(model.device)
        needed = shape.weight_bytes + memory_needed(shape, ROOM_TOKENS, ROOM_BLOCK, ROOM_GENERATED)
        alike = [gpu for gpu in range(torch.cuda.device_count()) if torch.cuda.get_device_name(gpu) == kind]
        found: list[Any] = []
        for gpu in alike:
            if gpu == model.device.index or len(found) == MOST_COPIES - 1:
                continue
            hear = partial(_hear_copy, progress, len(found) + 2)
            try:
                free = device_memory("cuda", gpu)
                if free is not None and needed <= Limits.memory_share * free:
                    found.append(sparsed.load(name, device=f"cuda:{gpu}", dtype=model.dtype, progress=hear))
            # Somebody else has that GPU or its memory. The model is here all the same, and its lanes take turns.
            except (ValueError, OSError, RuntimeError):
                continue
        return tuple(found)

    def shape(self, model: Any) -> Shape:
        config = model.network.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return Shape(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            head_dim=head_dim,
            intermediate=config.intermediate_size,
            weight_bytes=sum(weight.numel() * weight.element_size() for weight in model.network.parameters()),
            number_bytes=model.dtype.itemsize,
            vocabulary=config.vocab_size,
            processes=model.processes,
        )

    def speed(self, model: Any) -> Speed | None:
        return None

    def place(self, model: Any) -> str:
        device = {"cpu": "CPU", "cuda": "GPU", "mps": "Apple GPU"}.get(model.device.type, model.device.type)
        if (copies := len(self.copies(model))) > 1:
            device = f"{copies} GPUs"
        elif (held := model.processes) > 1:
            device = f"{held} GPUs" if model.device.type == "cuda" else f"CPU, {held} processes"
        return f"{device} · {dtype_name(model.dtype)}"

    def backend(self, model: Any) -> str:
        # On a GPU the kernels are tried out for each shape, when a run begins.
        return "auto" if model.device.type == "cuda" else "gather"

    def build_prompt(self, model: Any, length: str, kind: str, seed: int) -> Any:
        return build_prompt(model, length, kind, seed)

    def count(self, model: Any, text: str) -> int:
        return int(model.encode(text).shape[1])

    def verdict(self, text: str, gold: str) -> tuple[bool, str]:
        if exact_match(text, gold):
            return True, "as expected"
        right, facts, _ = facts_right(text, gold)
        return False, f"{right} of {facts} facts as expected" if facts > 1 else "not the expected answer"

    def denoise(
        self,
        model: Any,
        prompt: str,
        sampler: SamplerConfig,
        attention: SparseDConfig | None,
        backend: str,
        probe_steps: Sequence[int] = (),
    ) -> Any:
        chosen = "dense" if attention is None else attention
        return sparsed.denoise(
            model,
            prompt,
            sampler=sampler,
            attention=chosen,  # type: ignore[arg-type]
            backend=backend,
            probe_steps=probe_steps,
        )

    def lend(
        self,
        model: Any,
        prompt: str,
        sampler: SamplerConfig,
        wanted: Sequence[Wanted],
        backend: str,
        first: int,
        seconds: float,
    ) -> dict[str, Any] | None:
        return None

    def record(self, runs: Mapping[str, Any], *, prompt: Any, devices: Mapping[str, int]) -> Trace | None:
        return trace.record(runs, prompt=prompt, devices=devices)

    def decode_tokens(self, model: Any, tokens: Sequence[int]) -> str:
        return str(model.tokens_text(tokens))

    def read_answer(self, model: Any, tokens: Sequence[int]) -> str:
        import torch

        return str(model.decode(torch.tensor(list(tokens), dtype=torch.int64)))
