"""The network: transformers' own class, bidirectional, whose last layer can end with the rows that are asked for.

In a loaded network the decoder layers are exchanged for `Layer`, which holds the same modules and calls them in the
same order; where the family rotates in float32, so is the rotary embedding. No function of transformers is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsed.attention import dispatch
from sparsed.models import LoadError, reason
from sparsed.models.families import Checkpoint
from sparsed.models.share import Share, localise

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


class Layer(nn.Module):
    """A decoder layer of a Llama, Qwen2 or Qwen3, in three parts: what comes before attention, attention, the rest.

    The rest, output projection and MLP, works on each position alone: the last layer does it for the wanted ones only.

    share: None for a whole layer. With a share, heads and MLP columns are those of this process, and the two output
    projections give parts of a sum over all processes.
    """

    def __init__(self, layer: Any, *, last: bool, share: Share | None = None) -> None:
        super().__init__()
        self.input_layernorm = layer.input_layernorm
        self.self_attn = layer.self_attn
        self.post_attention_layernorm = layer.post_attention_layernorm
        self.mlp = layer.mlp
        self.last = last
        self.share = share
        self.fused: Parts | None = None

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        wanted_rows: Tensor | None = None,
        sparsed_state: dispatch.AttentionState | None = None,
        **_: Any,
    ) -> Tensor:
        """[batch, length, width]; from the last layer [n, width] for wanted_rows, int64 [n] into batch · length."""
        attention: Any = self.self_attn
        project, finish = self._parts if self.fused is None else self.fused
        if self.fused is not None:
            # One compilation for every length.
            for tensor in (hidden_states, *position_embeddings):
                torch._dynamo.maybe_mark_dynamic(tensor, 1)
        query, key, value = project(self, hidden_states, *position_embeddings)
        seen, _weights = dispatch.sparsed_attention(
            attention, query, key, value, attention_mask, attention.scaling, sparsed_state
        )
        seen = seen.flatten(2)
        if self.share is not None:
            return self._finish_share(self.share, hidden_states, seen, wanted_rows, finish)
        if self.fused is not None:
            torch._dynamo.maybe_mark_dynamic(seen, 1)
        if self.last and wanted_rows is not None:
            # Few rows, another number in every step: nothing to gain from fusing.
            hidden_states, seen = hidden_states.flatten(0, 1)[wanted_rows], seen.flatten(0, 1)[wanted_rows]
            return after_attention(self, hidden_states, seen)
        done: Tensor = finish(self, hidden_states, seen)
        return done

    @property
    def _parts(self) -> Parts:
        """What comes before attention and after it, unfused."""
        return before_attention, after_attention if self.share is None else between_sums

    def _finish_share(
        self, share: Share, hidden: Tensor, seen: Tensor, wanted_rows: Tensor | None, finish: Callable[..., Any]
    ) -> Tensor:
        """`after_attention` where both projections give parts of sums. Rows go piece by piece: while the sum of one
        travels, another one is computed.
        """
        shape: Sequence[int] = hidden.shape
        hidden, seen = hidden.flatten(0, 1), seen.flatten(0, 1)
        pieces = share.pieces(len(hidden))
        if self.last and wanted_rows is not None:
            hidden, seen, shape = hidden[wanted_rows], seen[wanted_rows], (len(wanted_rows), *shape[2:])
            # Few rows, another number in every step: nothing to gain from fusing.
            pieces, finish = [len(wanted_rows)], between_sums
        attention: Any = self.self_attn
        sums = [(part, share.sum(part)) for part in map(attention.o_proj, seen.split(pieces))]
        waiting = []
        for piece, (part, work) in zip(hidden.split(pieces), sums):
            if work is not None:
                work.wait()
            if finish is not between_sums:
                for tensor in (piece, part):
                    torch._dynamo.maybe_mark_dynamic(tensor, 0)
            between, part = finish(self, piece, part)
            waiting.append((between, part, share.sum(part)))
        out = torch.empty_like(hidden)
        for piece, (between, part, work) in zip(out.split(pieces), waiting):
            if work is not None:
                work.wait()
            torch.add(between, part, out=piece)
        return out.view(shape)


def before_attention(layer: Any, hidden: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries, rotated keys and values of hidden [batch, length, width], each [batch, heads, length, head_dim]
    in hidden's dtype.
    """
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    attention = layer.self_attn
    batch, length, _width = hidden.shape
    normed = layer.input_layernorm(hidden)
    query, key, value = (
        project(normed).view(batch, length, -1, attention.head_dim)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    query, key = apply_rotary_pos_emb(query.transpose(1, 2), key.transpose(1, 2), cosine, sine)
    return query.to(value.dtype), key.to(value.dtype), value.transpose(1, 2)


def after_attention(layer: Any, hidden: Tensor, seen: Tensor) -> Tensor:
    """The layer's output from its input and what attention saw, both [..., width]."""
    hidden = hidden + layer.self_attn.o_proj(seen)
    done: Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return done


def between_sums(layer: Any, hidden: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
    """What `after_attention` does between the two sums over processes: hidden with what attention wrote, and this
    process's part of what the MLP writes, all [n, width].
    """
    hidden = hidden + attended
    return hidden, layer.mlp(layer.post_attention_layernorm(hidden))


Parts = tuple[Callable[..., tuple[Tensor, Tensor, Tensor]], Callable[..., Any]]


def prepare(
    network: PreTrainedModel, *, float32_rotation: bool, share: Share | None = None
) -> PreTrainedModel:
    """Exchanges modules of a network with attention "sparsed", and sets it for inference. Returns it.

    share: of a network that was cut for several processes.
    """
    from accelerate.hooks import add_hook_to_module

    model: Any = network.model
    if float32_rotation:
        head_dim = model.layers[-1].self_attn.head_dim
        theta = network.config.rope_parameters["rope_theta"]
        model.rotary_emb = Float32Rotation(theta, head_dim, input_device(network))
    last = len(model.layers) - 1
    for number, layer in enumerate(model.layers):
        ours = Layer(layer, last=number == last, share=share)
        # Weights spread over devices: the hook that brings a layer its inputs goes with the layer.
        if hasattr(layer, "_hf_hook"):
            add_hook_to_module(ours, layer._hf_hook)
        model.layers[number] = ours
    return network.eval().requires_grad_(False)


def fuse(network: PreTrainedModel) -> str | None:
    """Lets torch.compile fuse what surrounds attention: norms, rotation, the MLP's products. None, or why it cannot.

    Compiled once for all layers and all lengths, on a short trial. Intermediate results are rounded where the unfused
    network rounds them; sums may be added in another order, so bfloat16 logits can differ in the last place.
    """
    layers: Any = network.model.layers
    parts = layers[0]._parts
    options: dict[str, str | int | bool | Callable[..., Any]] = {"emulate_precision_casts": True}
    # torch counts compilations by code object, and gives up after eight: every network gets its own.
    fused: Any = tuple(torch.compile(_copied(part), options=options) for part in parts)
    for layer in layers:
        layer.fused = fused
    try:
        with torch.inference_mode():
            for length in (96, 160):
                ids = torch.zeros(1, length, dtype=torch.int64, device=input_device(network))
                if layers[0].share is None:
                    hidden_rows(network, ids, None, None)
                else:
                    _try_share(network, ids, *fused)
    except Exception as error:  # compilers fail in many ways; the network works without them
        for layer in layers:
            layer.fused = None
        return f"torch.compile is not usable here ({reason(error)})."
    return None


def _try_share(network: PreTrainedModel, ids: Tensor, project: Callable[..., Any], finish: Callable[..., Any]) -> None:
    """One layer's parts on some rows, without the sums: they may fail here and not on the other processes."""
    model: Any = network.model
    layer = model.layers[0]
    hidden = torch.ones(*ids.shape, network.config.hidden_size, dtype=model.norm.weight.dtype, device=ids.device)
    rotation = model.rotary_emb(hidden, position_ids=torch.arange(ids.shape[1], device=ids.device)[None])
    for tensor in (hidden, *rotation):
        torch._dynamo.maybe_mark_dynamic(tensor, 1)
    project(layer, hidden, *rotation)
    rows = hidden.flatten(0, 1)
    for tensor in (rows, other := rows.clone()):
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    finish(layer, rows, other)


def _copied(function: Callable[..., Any]) -> Callable[..., Any]:
    assert isinstance(function, FunctionType)
    return FunctionType(function.__code__.replace(), function.__globals__, function.__name__)


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
    share: Share | None = None,
) -> PreTrainedModel:
    """The weights of a folder of safetensors on transformers' own class.

    device_map: None puts everything on `device`; otherwise accelerate's ("auto", or module → device). share: this
    process reads its share alone, by transformers' tensor-parallel plan; all processes call this at the same time.
    on_weight: called with each weight's name in the network as it is loaded. Raises LoadError where weights are
    missing, left over, of another shape, or unreadable.
    """
    import transformers
    from safetensors import SafetensorError

    dispatch.register()
    where: dict[str, Any] = {"device_map": device_map}
    if share is not None:
        from transformers.distributed import DistributedConfig

        where = {"distributed_config": DistributedConfig(tp_size=share.size)}
    elif device_map is None and device.type != "cpu":
        where = {"device_map": {"": device}}
    with quiet_transformers(on_weight):
        try:
            # dtype= converts the weights alone; .to(dtype) would round the rotary frequencies too.
            network, report = getattr(transformers, checkpoint.network).from_pretrained(
                folder,
                config=checkpoint.config,
                dtype=dtype,
                attn_implementation=dispatch.NAME,
                key_mapping=checkpoint.keys or None,
                local_files_only=True,
                use_safetensors=True,
                # What does not fit is reported below, in one sentence.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **where,
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
    if share is not None:
        localise(network, share)
    return prepare(network, float32_rotation=checkpoint.float32_rotation, share=share)


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


# What the function below changes, and torch's default dtype while weights are loaded, belongs to the whole process.
_ONE_AT_A_TIME = RLock()


@contextmanager
def quiet_transformers(on_weight: Callable[[str], None] | None = None) -> Iterator[None]:
    """transformers' warnings and bars off for the moment: what is wrong is said in our own sentences. One thread at a
    time.

    on_weight hears of every weight that transformers would show on its bar.
    """
    from transformers.utils import logging

    def hook(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if on_weight is None or not args or kwargs.get("desc") != "Loading weights":
            return factory(*args, **kwargs)
        return _heard(args[0], on_weight)

    with _ONE_AT_A_TIME:
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
