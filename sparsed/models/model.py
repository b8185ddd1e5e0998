"""A loaded model: network, tokenizer and what both need to be used together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from sparsed.attention.backends.registry import Problem
from sparsed.config import ResolvedSampler
from sparsed.machine import dtype_name, peak_bytes
from sparsed.models import LoadError
from sparsed.models.chat import check_messages, messages_of, pieces
from sparsed.models.fingerprint import Stamp, fingerprint, of_random_weights, stamp
from sparsed.models.numbers import numbers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sparsed.denoising.forward import Forward

_ID_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class ModelTeam(Protocol):
    """The processes that hold a network together, as the first of them sees them; see `sparsed.parallel.team.Team`."""

    size: int

    def turn(self) -> AbstractContextManager[None]: ...

    def forward(self, network: PreTrainedModel) -> Forward: ...

    def peaks(self, reset: bool = False) -> list[int]: ...


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded diffusion language model.

    network: transformers' LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM or Qwen3MoeForCausalLM, bidirectional,
    in eval mode.
    device: where token ids go in; the weights may be spread over more, see `devices`. defaults: the sampler's
    settings. max_positions: positions seen in training, in tokens. family: "llada", "illada", "llada_moe", "dream",
    "llama", "qwen2" or "qwen3". shift: the logits of position i − 1 predict position i. end_ids: every token that
    ends an answer, eos_id first. notes: sentences about how it was loaded that a user should see. team: the
    processes that hold the network together, each a share of it; None where it is whole. folder: where its files
    are; None for random weights. stamp: of these files when they were loaded. rope_factor: what the base of the
    rotary positions was multiplied by; 1 as published. quantize: what the decoder layers' weights are kept in;
    None: in dtype.
    """

    name: str
    label: str
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype
    mask_id: int
    eos_id: int
    defaults: ResolvedSampler
    max_positions: int
    family: str = "llama"
    shift: bool = False
    end_ids: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    team: ModelTeam | None = None
    folder: Path | None = None
    stamp: Stamp | None = None
    rope_factor: float = 1.0
    quantize: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "end_ids", tuple(dict.fromkeys((self.eos_id, *self.end_ids))))

    @property
    def chat(self) -> bool:
        """Does its tokenizer come with a chat template?"""
        return self.tokenizer is not None and bool(self.tokenizer.chat_template)

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Every device that holds weights, `device` first."""
        spread = getattr(self.network, "hf_device_map", None) or {}
        places = [torch.device(place) for place in spread.values() if place != "disk"]
        return tuple(dict.fromkeys((self.device, *places)))

    @property
    def numbers(self) -> str:
        """What its weights are in and, where that differs, what it computes in: "bfloat16", "int8 (bfloat16)"."""
        return numbers(dtype_name(self.dtype), self.quantize)

    @property
    def processes(self) -> int:
        """How many hold the network together."""
        return 1 if self.team is None else self.team.size

    def fingerprint(self) -> str:
        """The SHA-256 of the files it was loaded from (`sparsed.models.fingerprint`), read when first asked for; for
        random weights a name of their shape and seed. Raises LoadError where these files are no more what was loaded.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        if self.folder is None:
            return of_random_weights(self.name)
        found = fingerprint(self.folder)
        if self.stamp not in (None, stamp(self.folder)):
            raise LoadError(
                f"The files in {self.folder} were changed or removed after {self.label} was loaded from them: what it "
                f"was made of cannot be told any more. Load it again."
            )
        return found

    def problem(self, batch: int, length: int) -> Problem:
        """What a forward over so many sequences of `length` positions asks of attention in this process."""
        config: Any = self.network.config
        heads = config.num_attention_heads
        return Problem(
            device=self.device,
            dtype=self.dtype,
            batch=batch,
            # Where several processes hold the model, each attends for its own heads.
            heads=heads // self.processes,
            key_heads=config.num_key_value_heads // self.processes,
            length=length,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        )

    def peak_bytes(self, reset: bool = False) -> list[int]:
        """`sparsed.machine.peak_bytes` of every process; empty where the system does not say."""
        if self.team is not None:
            return self.team.peaks(reset)
        found = peak_bytes(self.device, reset)
        return [] if found is None else [found]

    def turn(self) -> AbstractContextManager[None]:
        """Keeps the other threads of this process from the model's team, where it has one."""
        return nullcontext() if self.team is None else self.team.turn()

    def encode(self, prompt: str | list[dict[str, str]] | Tensor, chat: bool | None = None) -> Tensor:
        """The prompt as token ids, int64 [batch, length] on the model's device.

        A string is one user message; it and a list of chat messages go through the tokenizer's chat template,
        with the header of the answer appended. chat: None does so where there is a template; False gives their plain
        text, a blank line between, every space in its place, after what the tokenizer puts before a text by itself (a
        beginning token, in some); True wants the template. A special token that is spelled
        in a message is text: it becomes the tokens of its letters. Token ids [length] or [batch, length] are used
        exactly as they are.

        Raises ValueError for an empty prompt, ids outside the vocabulary or the mask token among them (masks inside a
        prompt are not filled), a chat template that is missing or refuses the messages, or anything that is no prompt.
        """
        if isinstance(prompt, Tensor):
            if chat:
                raise ValueError("Token ids are used exactly as they are: a chat template cannot be asked for.")
            return self._check_prompt(prompt).to(self.device, torch.int64)
        if chat and not self.chat:
            raise ValueError(f"{self.label} has no chat template: its tokenizer comes with none.")
        if isinstance(prompt, str):
            prompt = messages_of(prompt)
        if not isinstance(prompt, list) or not prompt:
            raise ValueError(
                "A prompt must be a string, a list of messages with 'role' and 'content', or a tensor of token ids."
            )
        if not any(message["content"].strip() for message in check_messages(prompt)):
            raise ValueError("The prompt is empty: it must hold at least one character that is not a space.")
        template = self.chat if chat is None else chat
        ids = [] if template else self._before_text
        for piece in pieces(self.tokenizer, prompt, template):
            ids = ids + self.tokenizer(piece, add_special_tokens=False)["input_ids"]
        return torch.tensor([ids], dtype=torch.int64, device=self.device)

    @cached_property
    def _before_text(self) -> list[int]:
        """The tokens that the tokenizer puts before a plain text by itself: its beginning token, of those that do."""
        plain, whole = (self.tokenizer("x", add_special_tokens=special)["input_ids"] for special in (False, True))
        before: list[int] = whole[: whole.index(plain[0])] if plain[0] in whole else []
        return before

    def decode(self, tokens: Tensor) -> str:
        """The text of generated tokens [gen_length]: up to the first end token, special tokens left out, spaces and
        line feeds at both ends kept.
        """
        ids = tokens.tolist()
        end = next((position for position, token in enumerate(ids) if token in self.end_ids), len(ids))
        return self.tokens_text(ids[:end], special=False)

    def token_text(self, token: int) -> str:
        """The text of one token as it stands in an answer, special tokens by their names."""
        return self.tokens_text([token])

    def tokens_text(self, tokens: Sequence[int], special: bool = True) -> str:
        """The text of neighbouring tokens as they stand in an answer; special tokens by their names, or left out."""
        text = self.tokenizer.decode(
            list(tokens), skip_special_tokens=not special, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    def check_tokens(self, ids: Tensor) -> Tensor:
        """Token ids as [batch, length]; [length] is a batch of one. Raises ValueError for none, for another shape or
        dtype, and for ids outside the vocabulary.
        """
        if ids.dtype not in _ID_DTYPES or ids.ndim not in (1, 2):
            raise ValueError(
                f"Token ids must be whole numbers of shape [length] or [batch, length], not {ids.dtype} "
                f"{list(ids.shape)}."
            )
        if ids.numel() == 0:
            raise ValueError(f"The prompt is empty: token ids of shape {list(ids.shape)}.")
        vocabulary = self.network.config.vocab_size
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= vocabulary:
            raise ValueError(f"Token ids must lie between 0 and {vocabulary - 1}, not {low if low < 0 else high}.")
        return ids if ids.ndim == 2 else ids[None]

    def _check_prompt(self, ids: Tensor) -> Tensor:
        ids = self.check_tokens(ids)
        if (masks := (ids == self.mask_id).nonzero()).numel():
            raise ValueError(
                f"The token ids hold the mask token {self.mask_id} at position {int(masks[0, -1])}: masks inside a "
                f"prompt are not filled; only what follows it is generated."
            )
        return ids
