"""The masked-diffusion loss, and the forward pass it needs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM

from sparsed.models.layer import after_attention, before_attention
from sparsed.training.recipe import Recipe
from sparsed.training.tokenizer import SPECIAL_TOKENS


def hidden_states(
    network: LlamaForCausalLM, ids: Tensor, positions: Tensor, compiled: dict[str, Any] | None = None
) -> Tensor:
    """Last hidden states of bidirectional rows.

    Args:
        network: the Llama to train.
        ids: int64 [rows, length].
        positions: int64 [rows, length].
        compiled: compiled stand-ins for the two halves of a layer.

    Returns:
        Hidden states [rows · length, hidden], after the final norm.
    """
    project, feed = (compiled or {}).get("project", before_attention), (compiled or {}).get("feed", after_attention)
    rows, length = ids.shape
    model = network.model
    hidden = model.embed_tokens(ids.reshape(1, -1))
    cos, sin = model.rotary_emb(hidden, positions.reshape(1, -1))
    for layer in model.layers:
        q, k, v = project(layer, hidden, cos, sin)
        heads, dim = q.shape[1], q.shape[3]
        q, k, v = (x[0].view(heads, rows, length, dim).transpose(0, 1) for x in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v)
        hidden = feed(layer, hidden, attended.transpose(1, 2).reshape(1, rows * length, heads * dim))
    return model.norm(hidden)[0]


def mask_rows(batch: dict[str, Tensor], mask: int, end: int, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Mask a batch as the diffusion process would.

    Every canvas draws its own way of masking: all of it (a share of `recipe.whole`), a span (`recipe.span`), as a
    semi-autoregressive block leaves it (`recipe.block`: what stands before the block is there, what stands behind it is
    masked), or each token with a probability drawn from U(0, 1), as within that block. On half of the rows up to 12 %
    of the given text is masked as well.

    Returns:
        Loss weights float32 [rows, length] (0 where nothing is masked) and the masked ids int64 [rows, length].
    """
    ids, turns, offsets = batch["ids"].long(), batch["turns"].long(), batch["offsets"].long()
    rows, length = ids.shape
    device = ids.device
    count = int(turns.max()) + 1
    draw = torch.rand(rows, count, 4, device=device)
    way, ratio = draw[..., 0].gather(1, turns), draw[..., 1].gather(1, turns)
    low = (draw[..., 2] ** 2 * 40).gather(1, turns)
    high = low + 1 + draw[..., 3].gather(1, turns) * (64 - low)
    uniform = torch.rand(rows, length, device=device) < ratio
    span = (offsets >= low) & (offsets < high)
    block = (span & uniform) | (offsets >= high)
    spans, blocks = recipe.whole + recipe.span, recipe.whole + recipe.span + recipe.block
    partly = torch.where(way < spans, span, torch.where(way < blocks, block, uniform))
    hide = (turns > 0) & ((way < recipe.whole) | partly)
    share = 0.12 * torch.rand(rows, 1, device=device) * (torch.rand(rows, 1, device=device) < 0.5)
    given = (turns == 0) & (ids >= len(SPECIAL_TOKENS)) & (torch.rand(rows, length, device=device) < share)
    is_end = ids == end
    later_end = is_end & F.pad(is_end[:, :-1], (1, 0))
    weights = hide * torch.where(later_end, recipe.end_weight, 1.0) + given * recipe.prompt_weight
    return weights, torch.where(hide | given, mask, ids)


def loss_of(
    network: LlamaForCausalLM,
    batch: dict[str, Tensor],
    mask: int,
    end: int,
    recipe: Recipe,
    compiled: dict[str, Any] | None,
) -> Tensor:
    """Weighted cross-entropy on masked tokens, a scalar."""
    weights, masked = mask_rows(batch, mask, end, recipe)
    hidden = hidden_states(network, masked, batch["positions"].long(), compiled)
    chosen = weights.flatten().nonzero().squeeze(1)
    logits = F.linear(hidden[chosen], network.lm_head.weight)
    losses = F.cross_entropy(logits.float(), batch["ids"].flatten()[chosen].long(), reduction="none")
    weight = weights.flatten()[chosen]
    return (losses * weight).sum() / weight.sum()


@torch.no_grad()
def probe(network: LlamaForCausalLM, sets: dict[str, dict[str, Tensor]], mask: int, end: int) -> dict[str, float]:
    """Share of answer tokens (first end token included) predicted right on wholly masked canvases, per set."""
    out = {}
    for name, batch in sets.items():
        ids, canvas = batch["ids"].long(), batch["turns"] > 0
        hidden = hidden_states(network, torch.where(canvas, mask, ids), batch["positions"].long())
        is_end = ids == end
        asked = canvas & ~(is_end & F.pad(is_end[:, :-1], (1, 0)))
        guesses = F.linear(hidden[asked.flatten()], network.lm_head.weight).argmax(-1)
        out[name] = round((guesses == ids[asked]).float().mean().item(), 4)
    return out
