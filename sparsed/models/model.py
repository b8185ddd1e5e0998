"""A loaded model: network, tokenizer and what both need to be used together."""

from __future__ import annotations

import re
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
from sparsed.machine import peak_bytes
from sparsed.models.chat import batch_of_messages, is_message
from sparsed.models.fingerprint import fingerprint

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

    network: transformers' LlamaForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM, bidirectional, in eval mode.
    device: where token ids go in; the weights may be spread over more, see `devices`. defaults: the sampler's
    settings. max_positions: positions seen in training, in tokens. family: "llada", "dream", "llama", "qwen2" or
    "qwen3". shift: the logits of position i − 1 predict position i. chat: prompts go through the tokenizer's chat
    template. end_ids: every token that ends an answer, eos_id first. notes: sentences about how it was loaded that a
    user should see. team: the processes that hold the network together, each a share of it; None where it is whole.
    folder: where its files are; None for random weights.
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
    chat: bool = True
    end_ids: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    team: ModelTeam | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "end_ids", tuple(dict.fromkeys((self.eos_id, *self.end_ids))))

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Every device that holds weights, `device` first."""
        spread = getattr(self.network, "hf_device_map", None) or {}
        places = [torch.device(place) for place in spread.values() if place != "disk"]
        return tuple(dict.fromkeys((self.device, *places)))

    @property
    def processes(self) -> int:
        """How many hold the network together."""
        return 1 if self.team is None else self.team.size

    def fingerprint(self) -> str:
        """The SHA-256 of the files it was loaded from (`sparsed.models.fingerprint`), read when first asked for; for
        random weights a name of their shape and seed.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        # Random weights are drawn with seed 0 (`sparsed.models.shares.random_network`).
        return f"random weights of {self.name}, seed 0" if self.folder is None else fingerprint(self.folder)

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

    def encode(self, prompt: str | list[dict[str, str]] | Tensor) -> Tensor:
        """The prompt as token ids, int64 [batch, length] on the model's device.

        A string is one user message; it and a list of chat messages go through the tokenizer's chat template,
        with the header of the answer appended (for a model without chat, their plain text, a blank line
        between). A special token that is spelled in a message is text: it becomes the tokens of its letters.
        Token ids [length] or [batch, length] are used exactly as they are.

        Raises ValueError for an empty prompt, ids outside the vocabulary, or anything else that is no prompt.
        """
        if isinstance(prompt, Tensor):
            return self._check_ids(prompt).to(self.device, torch.int64)
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        if not isinstance(prompt, list) or not prompt or not all(is_message(message) for message in prompt):
            raise ValueError(
                "A prompt must be a string, a list of messages with 'role' and 'content', or a tensor of token ids."
            )
        if not any(message["content"].strip() for message in prompt):
            raise ValueError("The prompt is empty: it must hold at least one character that is not a space.")
        ids = [
            i for piece in self._pieces(prompt) for i in self.tokenizer(piece, add_special_tokens=False)["input_ids"]
        ]
        return torch.tensor([ids], dtype=torch.int64, device=self.device)

    def decode(self, tokens: Tensor) -> str:
        """The text of generated tokens [gen_length]: up to the first end token, special tokens left out."""
        ids = tokens.tolist()
        end = next((position for position, token in enumerate(ids) if token in self.end_ids), len(ids))
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text.strip()

    def token_text(self, token: int) -> str:
        """The text of one token as it stands in an answer, special tokens by their names."""
        return self.tokens_text([token])

    def tokens_text(self, tokens: Sequence[int]) -> str:
        """The text of neighbouring tokens as they stand in an answer, special tokens by their names."""
        text = self.tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def _pieces(self, messages: list[dict[str, str]]) -> list[str]:
        """The text that the model sees, cut so that no piece holds a special token from inside a message."""
        contents = [message["content"] for message in messages]
        names = [str(token) for token in self.tokenizer.added_tokens_decoder.values()]
        spelled = re.compile("(?=" + "|".join(map(re.escape, names)) + ")") if names else None
        if spelled is None or not any(spelled.search(content) for content in contents):
            return [self._render(messages)]
        # Stand-ins show where the template puts the messages; it may strip them.
        stand_ins = [f"\ue000{number}\ue001" for number in range(len(messages))]
        frame = self._render([{**m, "content": name} for m, name in zip(messages, stand_ins)])
        around = re.split("|".join(stand_ins), frame)
        stripped = "".join(batch_of_messages(around, [content.strip() for content in contents]))
        if self._render(messages) == stripped:
            contents = [content.strip() for content in contents]
        pieces = [""]
        for number, text in enumerate(batch_of_messages(around, contents)):
            # Odd ones are messages. One character of the special token stays behind, the rest goes on.
            cuts = [match.start() + 1 for match in spelled.finditer(text)] if number % 2 else []
            for start, end in zip([0, *cuts], [*cuts, None]):
                if start:
                    pieces.append("")
                pieces[-1] += text[start:end]
        return pieces

    def _render(self, messages: list[dict[str, str]]) -> str:
        if not self.chat:
            return "\n\n".join(message["content"] for message in messages)
        # A hybrid thinker (Qwen3) is asked not to think aloud; other templates do not look at it.
        text = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, enable_thinking=False
        )
        assert isinstance(text, str)
        return text

    def _check_ids(self, ids: Tensor) -> Tensor:
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
