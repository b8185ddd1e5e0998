"""The few things the page asks of the engine, behind one small interface.

`SparsedEngine` imports torch and transformers only when a method is called, so that the page is served before
they are loaded; tests put an engine of their own in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import sparsed
from app.limits import Shape
from sparsed.config import SamplerConfig, SparseDConfig
from sparsed.models import catalogue


class Engine(Protocol):
    """What a page needs: models, prompts with known answers, and runs. The types are those of `sparsed`."""

    def models(self) -> Mapping[str, str]:
        """Model name → label."""

    def kinds(self) -> Mapping[str, str]:
        """Question kind → label."""

    def lengths(self) -> Mapping[str, int]:
        """Prompt length name → tokens."""

    def load(self, name: str) -> Any:
        """The model; takes seconds. Raises ValueError, FileNotFoundError or OSError."""

    def shape(self, model: Any) -> Shape:
        """The sizes that decide what a run costs."""

    def place(self, model: Any) -> str:
        """Where the model runs, for people: "CPU · float32"."""

    def backend(self, model: Any) -> str:
        """What "auto" runs for the sparse lane here."""

    def build_prompt(self, model: Any, length: str, kind: str, seed: int) -> Any:
        """A prompt with .text, .question, .answer, .tokens."""

    def count(self, model: Any, text: str) -> int:
        """Tokens of `text` with the chat template."""

    def verdict(self, text: str, gold: str) -> tuple[bool, str]:
        """Is the answer right, and that in a few words."""

    def denoise(
        self, model: Any, prompt: str, sampler: SamplerConfig, attention: SparseDConfig | None, backend: str
    ) -> Any:
        """A run; attention None is full attention throughout."""

    def decode_tokens(self, model: Any, tokens: Sequence[int]) -> str:
        """The text of some tokens as it stands in the answer, spaces kept."""

    def read_answer(self, model: Any, tokens: Sequence[int]) -> str:
        """The answer's text, up to the first end token."""


class SparsedEngine:
    """The engine of this repository."""

    def __init__(self, extra_model: str | None = None) -> None:
        self._extra = extra_model

    def models(self) -> Mapping[str, str]:
        listed = {spec.name: spec.label for spec in catalogue.CATALOGUE}
        if self._extra is not None and self._extra not in listed:
            listed[self._extra] = self._extra
        return listed

    def kinds(self) -> Mapping[str, str]:
        from sparsed.prompts import KINDS

        return KINDS

    def lengths(self) -> Mapping[str, int]:
        from sparsed.prompts import LENGTHS, token_budget

        return {name: token_budget(name) for name in LENGTHS}

    def load(self, name: str) -> Any:
        return sparsed.load(name)

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
        )

    def place(self, model: Any) -> str:
        device = {"cpu": "CPU", "cuda": "GPU", "mps": "Apple GPU"}.get(model.device.type, model.device.type)
        return f"{device} · {str(model.dtype).removeprefix('torch.')}"

    def backend(self, model: Any) -> str:
        from sparsed.attention.dispatch import pick_backend

        return pick_backend("auto")

    def build_prompt(self, model: Any, length: str, kind: str, seed: int) -> Any:
        from sparsed.prompts import build_prompt

        return build_prompt(model, length, kind, seed)

    def count(self, model: Any, text: str) -> int:
        return int(model.encode(text).shape[1])

    def verdict(self, text: str, gold: str) -> tuple[bool, str]:
        from sparsed.prompts import exact_match, facts_right

        if exact_match(text, gold):
            return True, "as expected"
        right, facts, _ = facts_right(text, gold)
        return False, f"{right} of {facts} facts as expected" if facts > 1 else "not the expected answer"

    def denoise(
        self, model: Any, prompt: str, sampler: SamplerConfig, attention: SparseDConfig | None, backend: str
    ) -> Any:
        chosen = "dense" if attention is None else attention
        return sparsed.denoise(model, prompt, sampler=sampler, attention=chosen, backend=backend)  # type: ignore[arg-type]

    def decode_tokens(self, model: Any, tokens: Sequence[int]) -> str:
        return str(
            model.tokenizer.decode(
                list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def read_answer(self, model: Any, tokens: Sequence[int]) -> str:
        import torch

        return str(model.decode(torch.tensor(list(tokens), dtype=torch.int64)))
