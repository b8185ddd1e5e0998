"""The network: transformers' own class, bidirectional, whose last layer can end with the rows that are asked for.

Two modules of a loaded network are exchanged for ones of the same parameters: the rotary embedding, where the
family rotates in float32, and the last decoder layer. No function of transformers is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsed.attention import dispatch
from sparsed.models import LoadError, reason
from sparsed.models.families import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Buffers that old checkpoints carry along; they follow from the config.
_IGNORED = (".rotary_emb.inv_freq",)


class Float32Rotation(nn.Module):
    """A rotary embedding with cosines and sines in float32, so that queries and keys are rotated in float32.

    The attention function casts them back (`sparsed.attention.dispatch`), as LLaDA does. Frequencies are made on the
    device that uses them, also as LLaDA does: a GPU's powers differ from a CPU's in the last place, which bfloat16
    logits would show.
    """

    inv_freq: Tensor

    def __init__(self, theta: float, head_dim: int, device: torch.device) -> None:
        super().__init__()
        even = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
        self.register_buffer("inv_freq", 1.0 / theta ** (even / head_dim), persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, float32 [batch, length, head_dim] on x's device."""
        angles = position_ids[..., None].float() * self.inv_freq.to(x.device)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


class LastLayer(nn.Module):
    """The last decoder layer of a Llama, Qwen2 or Qwen3. Attention runs for every position; what follows it, output
    projection and MLP, works on each position alone and so runs for the wanted ones only.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.input_layernorm = layer.input_layernorm
        self.self_attn = layer.self_attn
        self.post_attention_layernorm = layer.post_attention_layernorm
        self.mlp = layer.mlp

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        wanted_rows: Tensor | None = None,
        sparsed_state: dispatch.AttentionState | None = None,
        **_: Any,
    ) -> Tensor:
        """[batch, length, width], or [n, width] for wanted_rows, int64 [n] into batch · length."""
        attention: Any = self.self_attn
        batch, length, _width = hidden_states.shape
        normed = self.input_layernorm(hidden_states)
        query, key, value = (
            project(normed).view(batch, length, -1, attention.head_dim)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        query, key = _rotate(query.transpose(1, 2), key.transpose(1, 2), position_embeddings)
        seen, _weights = dispatch.sparsed_attention(
            attention, query, key, value.transpose(1, 2), attention_mask, attention.scaling, sparsed_state
        )
        seen = seen.reshape(batch, length, -1)
        if wanted_rows is not None:
            seen = seen.flatten(0, 1)[wanted_rows]
            hidden_states = hidden_states.flatten(0, 1)[wanted_rows]
        hidden_states = hidden_states + attention.o_proj(seen)
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


def _rotate(query: Tensor, key: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    rotated: tuple[Tensor, Tensor] = apply_rotary_pos_emb(query, key, *position_embeddings)
    return rotated


def prepare(network: PreTrainedModel, *, float32_rotation: bool) -> PreTrainedModel:
    """Exchanges the two modules of a network with attention "sparsed", and sets it for inference. Returns it."""
    from accelerate.hooks import add_hook_to_module

    model: Any = network.model
    last = model.layers[-1]
    ours = LastLayer(last)
    # Weights spread over devices: the hook that brings a layer its inputs goes with the layer.
    if hasattr(last, "_hf_hook"):
        add_hook_to_module(ours, last._hf_hook)
    model.layers[-1] = ours
    if float32_rotation:
        theta = network.config.rope_parameters["rope_theta"]
        model.rotary_emb = Float32Rotation(theta, last.self_attn.head_dim, input_device(network))
    return network.eval().requires_grad_(False)


def input_device(network: PreTrainedModel) -> torch.device:
    """Where token ids go in. (Weights that accelerate keeps elsewhere come to their hook's device.)"""
    embedding: Any = network.get_input_embeddings()
    hook = getattr(embedding, "_hf_hook", None)
    place = getattr(hook, "execution_device", None)
    return embedding.weight.device if place is None else torch.device(place)


def hidden_rows(
    network: PreTrainedModel, ids: Tensor, state: dispatch.AttentionState | None, rows: Tensor | None
) -> Tensor:
    """The last hidden states of one forward over ids [batch, length]: [n, width] for rows int64 [n] into batch ·
    length, all [batch, length, width] for None.
    """
    hidden: Tensor = network.model(
        input_ids=ids, use_cache=False, sparsed_state=state, wanted_rows=rows
    ).last_hidden_state
    return hidden


def load_network(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype,
    device_map: str | Mapping[str, Any] | None,
    on_weight: Callable[[str], None],
) -> PreTrainedModel:
    """The weights of a folder of safetensors on transformers' own class.

    device_map: None puts everything on `device`; otherwise accelerate's ("auto", or module → device).
    on_weight: called with each weight's name in the network as it is loaded. Raises LoadError where weights are
    missing, left over, of another shape, or unreadable.
    """
    import transformers
    from safetensors import SafetensorError

    dispatch.register()
    where: Any = device_map
    if where is None and device.type != "cpu":
        where = {"": device}
    with quiet_transformers(on_weight):
        try:
            # dtype= converts the weights alone; .to(dtype) would round the rotary frequencies too.
            network, report = getattr(transformers, checkpoint.network).from_pretrained(
                folder,
                config=checkpoint.config,
                dtype=dtype,
                attn_implementation=dispatch.NAME,
                key_mapping=checkpoint.keys or None,
                device_map=where,
                local_files_only=True,
                use_safetensors=True,
                # What does not fit is reported below, in one sentence.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except SafetensorError as error:
            raise LoadError(f"The weights in {folder} cannot be read: {reason(error)}.") from error
        except torch.OutOfMemoryError as error:
            raise LoadError(
                f"There is too little memory on the device for the weights in {folder}: choose a smaller model, or "
                f"spread it with device_map='auto'."
            ) from error
        except (TypeError, ValueError, LookupError, ArithmeticError, OSError, RuntimeError) as error:
            raise LoadError(f"The network in {folder} cannot be built: {reason(error)}.") from error
    _check(report, folder)
    return prepare(network, float32_rotation=checkpoint.float32_rotation)


def _check(report: Mapping[str, Any], folder: Path) -> None:
    """Every weight of the network comes from the checkpoint, and every one of the checkpoint is used."""
    kinds = {"missing_keys": "missing", "mismatched_keys": "of another shape", "unexpected_keys": "left over"}
    found = {}
    for kind, word in kinds.items():
        keys = [key if isinstance(key, str) else key[0] for key in report.get(kind) or ()]
        keys = sorted(key for key in keys if not key.endswith(_IGNORED))
        if keys:
            found[word] = keys
    if found:
        some = {word: ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "") for word, keys in found.items()}
        said = "; ".join(f"{len(keys)} {word} ({some[word]})" for word, keys in found.items())
        raise LoadError(f"The weights in {folder} do not fit its config.json: {said}.")


@contextmanager
def quiet_transformers(on_weight: Callable[[str], None] | None = None) -> Iterator[None]:
    """transformers' warnings and bars off for the moment: what is wrong is said in our own sentences.

    on_weight hears of every weight that transformers would show on its bar.
    """
    from transformers.utils import logging

    def hook(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if on_weight is None or not args or kwargs.get("desc") != "Loading weights":
            return factory(*args, **kwargs)
        return _heard(args[0], on_weight)

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    before = logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _heard(items: Any, on_weight: Callable[[str], None]) -> Iterator[Any]:
    for item in items:
        yield item
        on_weight(item[0])
