"""The engine of this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

import sparsed
from app.engine.copies import MOST_COPIES, ROOM_BLOCK, ROOM_GENERATED, ROOM_TOKENS, hear_copy
from app.engine.cost import MEMORY_SHARE, Shape, Speed, lanes_take_turns, memory_needed
from app.engine.fewer_bits import bits_of, in_fewer_bits, quantised, without_bits
from app.engine.interface import Given, Listener, PromptLike, RunLike, check_name
from app.lanes import LaneSpec
from sparsed import trace
from sparsed.config import AttentionConfig, ResolvedCache, SamplerConfig
from sparsed.machine import device_memory
from sparsed.models.catalogue import CATALOGUE, GENERIC_DEFAULTS, ModelSpec, find
from sparsed.models.chat import Message
from sparsed.models.families import describe
from sparsed.models.hub import locate
from sparsed.models.numbers import unpacked_bytes, weight_bytes
from sparsed.models.sizes import Sizes
from sparsed.questions.build import Prompt, build_prompt
from sparsed.questions.lengths import LENGTHS, token_budget
from sparsed.questions.score import exact_match, facts_right
from sparsed.questions.world import KINDS
from sparsed.trace.types import Trace

if TYPE_CHECKING:
    from sparsed.denoising.run import Run
    from sparsed.models.model import Model
    from sparsed.parallel.team import Team


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
        self._listed = self._rows(team is not None)
        self._turns = lanes_take_turns() or team is not None
        self._team = team
        # Model → the others of its copies.
        self._others: WeakKeyDictionary[Model, tuple[Model, ...]] = WeakKeyDictionary()

    def models(self) -> Mapping[str, ModelSpec]:
        return {**self._listed, **self._admitted}

    def _rows(self, team: bool) -> dict[str, ModelSpec]:
        # Under the name that was asked for: `python app.py --model` may have given a Hub id of the catalogue.
        extra = self._extra
        listed = {extra if extra == spec.source else spec.name: spec for spec in CATALOGUE}
        if not team:
            listed = {name: spec for row in listed.items() for name, spec in in_fewer_bits(*row)}
        if extra and extra not in listed:
            listed[extra] = replace(self.spec_of(extra), bundled=True)
        return listed

    def admit(self, name: str) -> None:
        if name in self.models():
            return
        if not self._any:
            whole = ", ".join(row for row in self.models() if bits_of(row) is None)
            raise ValueError(
                f"The model {name[:80]!r} is not one of {whole}. Others load where the page was "
                "started with --allow-any-model."
            )
        check_name(name)
        self._admitted[name] = self.spec_of(name)

    @staticmethod
    def spec_of(name: str) -> ModelSpec:
        """What is known of a model before it is loaded: by the catalogue, by a folder's config.json, or little."""
        if (kind := bits_of(name)) is not None:
            return quantised(name, SparsedEngine.spec_of(without_bits(name)), kind)
        short = Path(name).name or name
        if Path(name).is_dir():
            try:
                return describe(Path(name), short)
            except (ValueError, OSError):
                pass  # loading says what is wrong with it
        elif (known := find(name)) is not None:
            return known
        return ModelSpec(short, short, name, "", GENERIC_DEFAULTS, 0, parameters=0, bundled=Path(name).is_dir())

    def kinds(self) -> Mapping[str, str]:
        return KINDS

    def lengths(self) -> Mapping[str, int]:
        return {name: token_budget(name) for name in LENGTHS}

    def weights(self, name: str) -> int:
        from sparsed.models.devices import pick_device  # needs torch

        # bfloat16 or float16 everywhere but on Apple's GPUs.
        spec, itemsize = self.models()[name], 4 if pick_device(None).type == "mps" else 2
        whole = weight_bytes(spec.parameters, spec.kept or 0, itemsize, spec.quantize)
        return whole if self._team is None else whole // self._team.size

    def known_shape(self, name: str) -> Shape | None:
        spec = self.models()[name]
        return None if spec.sizes is None else _shape(spec.sizes, self.weights(name), 2, spec.quantize, self._team)

    def memory(self, model: Model | None = None) -> int | None:
        from sparsed.models.devices import pick_device  # needs torch

        device = pick_device(None) if model is None else model.device
        return device_memory(device.type, device.index)

    def fetch(self, name: str, progress: Listener) -> None:
        locate(without_bits(name), progress=progress)

    def load(self, name: str, progress: Listener) -> Model:
        model = sparsed.load(without_bits(name), quantize=bits_of(name), progress=progress, team=self._team)
        self._others[model] = () if self._turns else self._elsewhere(name, model, progress)
        return model

    def copies(self, model: Model) -> Sequence[Model]:
        return (model, *self._others.get(model, ()))

    def _elsewhere(self, name: str, model: Model, progress: Listener) -> tuple[Model, ...]:
        """The model once more on other GPUs, as far as it fits. Only on those of the same kind: on another kind a lane
        would win or lose by its GPU.
        """
        if model.device.type != "cuda":
            return ()
        import torch

        shape, kind = self.shape(model), torch.cuda.get_device_name(model.device)
        needed = shape.weight_bytes + memory_needed(shape, ROOM_TOKENS, ROOM_BLOCK, ROOM_GENERATED)
        alike = [gpu for gpu in range(torch.cuda.device_count()) if torch.cuda.get_device_name(gpu) == kind]
        found: list[Model] = []
        for gpu in alike:
            if gpu == model.device.index or len(found) == MOST_COPIES - 1:
                continue
            hear = partial(hear_copy, progress, len(found) + 2)
            try:
                free = device_memory("cuda", gpu)
                if free is not None and needed <= MEMORY_SHARE * free:
                    place = f"cuda:{gpu}"
                    copy = sparsed.load(
                        without_bits(name), device=place, dtype=model.dtype, quantize=model.quantize, progress=hear
                    )
                    found.append(copy)
            # Somebody else has that GPU or its memory. The model is here all the same, and its lanes take turns.
            except (ValueError, OSError, RuntimeError):
                continue
        return tuple(found)

    def shape(self, model: Model) -> Shape:
        from sparsed.models.llada_moe import idle_parameters  # needs torch, as does the next
        from sparsed.models.quantise import network_bytes, parameters

        shape = _shape(
            Sizes.of(model), network_bytes(model.network), model.dtype.itemsize, model.quantize, self._team
        )
        idle = idle_parameters(model.network)
        if model.quantize is None and not idle:
            return shape
        return replace(shape, parameters=parameters(model.network) - idle)

    def speed(self, model: Model) -> Speed | None:
        return None

    def place(self, model: Model) -> str:
        device = {"cpu": "CPU", "cuda": "GPU", "mps": "Apple GPU"}.get(model.device.type, model.device.type)
        if (copies := len(self.copies(model))) > 1:
            device = f"{copies} GPUs"
        elif (held := model.processes) > 1:
            device = f"{held} GPUs" if model.device.type == "cuda" else f"CPU, {held} processes"
        return f"{device} · {model.numbers}"

    def backend(self, model: Model) -> str:
        # On a GPU the kernels are tried out for each shape, when a run begins.
        return "auto" if model.device.type == "cuda" else "gather"

    def build_prompt(self, model: Model, length: str, kind: str, seed: int, chat: bool | None = None) -> Prompt:
        return build_prompt(model, length, kind, seed, chat=chat)

    def count(self, model: Model, prompt: Given, chat: bool | None = None) -> int:
        return int(model.encode(prompt, chat).shape[1])

    def verdict(self, text: str, gold: str) -> tuple[bool, str]:
        if exact_match(text, gold):
            return True, "as expected"
        right, facts, _ = facts_right(text, gold)
        return False, f"{right} of {facts} facts as expected" if facts > 1 else "not the expected answer"

    def denoise(
        self,
        model: Model,
        prompt: Given,
        sampler: SamplerConfig,
        attention: AttentionConfig,
        backend: str,
        probe_steps: Sequence[int] = (),
        chat: bool | None = None,
        cache: ResolvedCache | None = None,
    ) -> RunLike:
        return sparsed.denoise(
            model,
            prompt,
            sampler=sampler,
            attention=attention,
            backend=backend,
            probe_steps=probe_steps,
            chat=chat,
            cache=None if cache is None else cache.config,
        )

    def lend(
        self,
        model: Model,
        prompt: Given,
        sampler: SamplerConfig,
        lanes: Sequence[LaneSpec],
        backend: str,
        first: int,
        seconds: float,
        chat: bool | None = None,
    ) -> dict[str, RunLike] | None:
        return None

    def record(
        self,
        runs: Mapping[str, RunLike],
        *,
        prompt: PromptLike | str,
        devices: Mapping[str, int],
        system: str = "",
        chat: bool | None = None,
        history: Sequence[Message] = (),
    ) -> Trace | None:
        # Whoever makes runs in another way gives those that a record needs.
        made = cast("Mapping[str, Run]", runs)
        told = cast("Prompt | str", prompt)
        return trace.record(made, prompt=told, devices=devices, system=system, chat=chat, history=history)

    def decode_tokens(self, model: Model, tokens: Sequence[int]) -> str:
        return str(model.tokens_text(tokens))

    def read_answer(self, model: Model, tokens: Sequence[int], stop: Sequence[str] = ()) -> str:
        from sparsed.denoising.answers import Answers  # needs torch

        return Answers(model, stop).read(tokens).text


def _shape(sizes: Sizes, weights: int, number_bytes: int, quantize: str | None, team: Team | None) -> Shape:
    return Shape(
        layers=sizes.layers,
        hidden=sizes.hidden,
        heads=sizes.heads,
        head_dim=sizes.head_dim,
        intermediate=sizes.intermediate,
        weight_bytes=weights,
        number_bytes=number_bytes,
        vocabulary=sizes.vocabulary,
        processes=1 if team is None else team.size,
        key_heads=sizes.key_heads,
        experts=sizes.experts,
        unpacked=unpacked_bytes(sizes.hidden * sizes.intermediate, number_bytes, quantize),
    )
