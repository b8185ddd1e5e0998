"""A decoder layer in three parts: before attention, attention, after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsed.attention import register
from sparsed.parallel.share import Share

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from sparsed.denoising.forward import Pass


class Float32Rotation(nn.Module):
    """A rotary embedding with cosines and sines in float32, so that queries and keys are rotated in float32.

    The attention function casts them back (`sparsed.attention.register`), as LLaDA does. Frequencies are made on the
    device that uses them, also as LLaDA does: a GPU's powers differ from a CPU's in the last place, which bfloat16
    logits would show.
    """

    inv_freq: Tensor

    def __init__(self, config: PreTrainedConfig, device: torch.device) -> None:
        super().__init__()
        frequencies, self.attention_scaling = rotary_frequencies(config, device)
        self.register_buffer("inv_freq", frequencies, persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, float32 [batch, length, head_dim] on x's device."""
        angles = position_ids[..., None].float() * self.inv_freq.to(x.device)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling


def rotary_frequencies(config: PreTrainedConfig, device: torch.device) -> tuple[Tensor, float]:
    """Angles a position, float32 [head_dim / 2], and what cosines and sines are multiplied by, as the config's
    rope_parameters say.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope, settings = config.rope_parameters, vars(config)
    if rope["rope_type"] != "default":
        frequencies, scaling = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, device)
        return frequencies.to(device, torch.float32), float(scaling)
    head_dim = settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"]
    even = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
    return 1.0 / rope["rope_theta"] ** (even / head_dim), 1.0


class Layer(nn.Module):
    """A decoder layer of a Llama, Qwen2, Qwen3 or Qwen3-MoE, in three parts: what comes before attention, attention,
    the rest.

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
        pass_: Pass | None = None,
        **_: Any,
    ) -> Tensor:
        """[batch, n, width] for the n rows that the pass computes; from the last layer [m, width], those it wants."""
        attention: Any = self.self_attn
        project, finish = self._parts if self.fused is None else self.fused
        if self.fused is not None:
            # One compilation for every length.
            for tensor in (hidden_states, *position_embeddings):
                torch._dynamo.maybe_mark_dynamic(tensor, 1)
        query, key, value = project(self, hidden_states, *position_embeddings)
        seen, _weights = register.sparsed_attention(
            attention, query, key, value, attention_mask, attention.scaling, pass_
        )
        seen = seen.flatten(2)
        wanted = None if pass_ is None or not self.last else pass_.wanted.to(seen.device)
        if self.share is not None:
            return self._finish_share(self.share, hidden_states, seen, wanted, finish)
        if self.fused is not None:
            torch._dynamo.maybe_mark_dynamic(seen, 1)
        if wanted is not None:
            # Few rows, another number in every step: nothing to gain from fusing.
            hidden_states, seen = hidden_states.flatten(0, 1)[wanted], seen.flatten(0, 1)[wanted]
            return after_attention(self, hidden_states, seen)
        done: Tensor = finish(self, hidden_states, seen)
        return done

    @property
    def _parts(self) -> Parts:
        """What comes before attention and after it, unfused."""
        return before_attention, after_attention if self.share is None else between_sums

    def _finish_share(
        self, share: Share, hidden: Tensor, seen: Tensor, wanted: Tensor | None, finish: Callable[..., Any]
    ) -> Tensor:
        """`after_attention` where both projections give parts of sums. Rows go piece by piece: while the sum of one
        travels, another one is computed.
        """
        shape: Sequence[int] = hidden.shape
        hidden, seen = hidden.flatten(0, 1), seen.flatten(0, 1)
        pieces = share.pieces(len(hidden))
        if wanted is not None:
            hidden, seen, shape = hidden[wanted], seen[wanted], (len(wanted), *shape[2:])
            # Few rows, another number in every step: nothing to gain from fusing.
            pieces, finish = [len(wanted)], between_sums
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
    return hidden + feed_forward(layer, layer.post_attention_layernorm(hidden))


def feed_forward(layer: Any, normed: Tensor) -> Tensor:
    """What a layer's MLP, or its router and experts, make of normed rows [..., width]."""
    # A block of experts wants three dimensions.
    written: Tensor = layer.mlp(normed) if normed.ndim == 3 else layer.mlp(normed[None])[0]
    return written


def between_sums(layer: Any, hidden: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
    """What `after_attention` does between the two sums over processes: hidden with what attention wrote, and this
    process's part of what the MLP writes, all [n, width].
    """
    hidden = hidden + attended
    return hidden, layer.mlp(layer.post_attention_layernorm(hidden))


Parts = tuple[Callable[..., tuple[Tensor, Tensor, Tensor]], Callable[..., Any]]
