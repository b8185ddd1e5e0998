"""Loading: weights and tokenizer of a local folder, onto transformers' own classes, without any network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsed.attention import dispatch
from sparsed.config import SHORT_SELECT, SamplerConfig
from sparsed.models.catalogue import GENERIC_DEFAULTS, ModelSpec, find, names
from sparsed.models.probe import fastest_cpu_dtype
from sparsed.paths import data_dir

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ID_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded diffusion language model.

    network: transformers' LlamaForCausalLM, bidirectional, in eval mode. defaults: the sampler's settings,
    all set. max_positions: positions seen in training, in tokens. short_select: SparseD's default `select` for
    sequences below 4000 tokens.
    """

    name: str
    label: str
    network: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    device: torch.device
    dtype: torch.dtype
    mask_id: int
    eos_id: int
    defaults: SamplerConfig
    max_positions: int
    short_select: float = SHORT_SELECT

    def encode(self, prompt: str | list[dict[str, str]] | Tensor) -> Tensor:
        """The prompt as token ids, int64 [batch, length] on the model's device.

        A string is one user message; it and a list of chat messages go through the tokenizer's chat template,
        with the header of the answer appended. Token ids [length] or [batch, length] are used exactly as they
        are.

        Raises ValueError for an empty prompt, ids outside the vocabulary, or anything else that is no prompt.
        """
        if isinstance(prompt, Tensor):
            return self._check_ids(prompt).to(self.device, torch.int64)
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        if not isinstance(prompt, list) or not prompt or not all(_is_message(message) for message in prompt):
            raise ValueError(
                "A prompt must be a string, a list of messages with 'role' and 'content', "
                "or a tensor of token ids."
            )
        if not any(message["content"].strip() for message in prompt):
            raise ValueError("The prompt is empty: it must hold at least one character that is not a space.")
        encoded: Any = self.tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        ids: Tensor = encoded["input_ids"]
        return ids.to(self.device)

    def decode(self, tokens: Tensor) -> str:
        """The text of generated tokens [gen_length]: up to the first end token, special tokens left out."""
        ids = tokens.tolist()
        if self.eos_id in ids:
            ids = ids[: ids.index(self.eos_id)]
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text.strip()

    def _check_ids(self, ids: Tensor) -> Tensor:
        if ids.dtype not in _ID_DTYPES or ids.ndim not in (1, 2):
            raise ValueError(
                f"Token ids must be whole numbers of shape [length] or [batch, length], "
                f"not {ids.dtype} {list(ids.shape)}."
            )
        if ids.numel() == 0:
            raise ValueError(f"The prompt is empty: token ids of shape {list(ids.shape)}.")
        vocabulary = self.network.config.vocab_size
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= vocabulary:
            raise ValueError(
                f"Token ids must lie between 0 and {vocabulary - 1}, not {low if low < 0 else high}."
            )
        return ids if ids.ndim == 2 else ids[None]


def load(
    name_or_path: str | Path = "mini",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Model:
    """Loads a model of the catalogue, or a local folder in the same format.

    The folder holds config.json (model_type "llama"), model.safetensors, tokenizer.json and
    tokenizer_config.json with a mask token, an end token and a chat template. An object "sparsed" in
    config.json may give mask_token, label, trained_length and the sampler's defaults (steps, gen_length,
    block_length, algorithm, temperature) and short_select.

    device: CUDA, else MPS, else CPU by default. dtype: by default bfloat16 on CUDA, float32 on MPS, and on a
    CPU the faster of float32 and bfloat16, tried out (about 0.1 s).

    Raises ValueError for an unknown name, a folder that does not hold such a model, or a dtype that is none
    of float32, bfloat16, float16; FileNotFoundError if a file is missing.
    """
    spec, folder = _locate(name_or_path)
    place = _pick_device(device)
    number = _pick_dtype(dtype, place)
    raw = _read_config(folder)
    about = raw.get("sparsed", {})
    tokenizer = _load_tokenizer(folder)
    mask_id = _token_id(tokenizer, about.get("mask_token") or tokenizer.mask_token, "mask token", folder)
    eos_id = _token_id(tokenizer, tokenizer.eos_token, "end token", folder)
    network = _load_network(folder, place, number)
    if spec is not None:
        label, defaults, trained = spec.label, spec.defaults, spec.trained_length
    else:
        label, defaults, trained = folder.name, GENERIC_DEFAULTS, network.config.max_position_embeddings
    # What the checkpoint says about itself goes before what the catalogue expects.
    settings = ("steps", "gen_length", "block_length", "algorithm", "temperature")
    return Model(
        name=spec.name if spec is not None else folder.name,
        label=about.get("label", label),
        network=network,
        tokenizer=tokenizer,
        device=place,
        dtype=number,
        mask_id=mask_id,
        eos_id=eos_id,
        defaults=replace(defaults, **{key: about[key] for key in settings if key in about}),
        max_positions=int(about.get("trained_length", trained)),
        short_select=float(about.get("short_select", SHORT_SELECT if spec is None else spec.short_select)),
    )


def _is_message(message: object) -> bool:
    return (
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
    )


def _locate(name_or_path: str | Path) -> tuple[ModelSpec | None, Path]:
    spec = find(str(name_or_path))
    if spec is not None:
        return spec, data_dir("assets") / spec.folder
    folder = Path(name_or_path).expanduser()
    if not folder.is_dir():
        listed = ", ".join(repr(name) for name in names())
        raise ValueError(
            f"There is no model {str(name_or_path)!r}. Known names: {listed}; "
            f"or give the path of a local folder."
        )
    return None, folder.resolve()


def _pick_device(device: str | torch.device | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _pick_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        if device.type == "cpu":
            return fastest_cpu_dtype()
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen not in DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.")
    assert isinstance(chosen, torch.dtype)
    return chosen


def _read_config(folder: Path) -> dict[str, Any]:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"The model folder {folder} has no {name}.")
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'} is not valid JSON: {error}.") from error
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if kind != "llama":
        raise ValueError(f"{folder / 'config.json'} must say model_type 'llama', not {kind!r}.")
    return raw


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    # The class is named: guessing it from the model's type could rebuild the tokenizer as another family's.
    from transformers import PreTrainedTokenizerFast

    with _quiet_transformers():
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def _token_id(tokenizer: PreTrainedTokenizerFast, token: str | None, what: str, folder: Path) -> int:
    number = tokenizer.get_vocab().get(token) if token is not None else None
    if number is None:
        raise ValueError(
            f"The tokenizer in {folder} has no {what} (found {token!r}): is this a masked diffusion model?"
        )
    return int(number)


def _load_network(folder: Path, device: torch.device, dtype: torch.dtype) -> LlamaForCausalLM:
    from safetensors import SafetensorError
    from transformers import LlamaConfig, LlamaForCausalLM

    dispatch.register()
    with _quiet_transformers():
        config = LlamaConfig.from_pretrained(folder, local_files_only=True)
        config.is_causal = False
        config.use_cache = False
        try:
            # dtype= converts the weights alone; .to(dtype) would round the rotary frequencies too.
            loaded: Any = LlamaForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation=dispatch.NAME,
                local_files_only=True,
                use_safetensors=True,
                # What does not fit is reported below, in one sentence.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except SafetensorError as error:
            raise ValueError(f"{folder / 'model.safetensors'} cannot be read: {error}.") from error
    network, report = loaded
    wrong = {key: sorted(map(str, report.get(key) or ())) for key in ("missing_keys", "mismatched_keys")}
    if any(wrong.values()):
        first = next(keys[0] for keys in wrong.values() if keys)
        raise ValueError(
            f"{folder / 'model.safetensors'} does not fit its config.json: "
            f"{len(wrong['missing_keys'])} weights are missing, "
            f"{len(wrong['mismatched_keys'])} have another shape (first: {first})."
        )
    network = network.to(device).eval().requires_grad_(False)
    assert isinstance(network, LlamaForCausalLM)
    return network


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """transformers' warnings and bars off for the moment: what is wrong is said in our own sentences."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
