"""One process's share of a network: some of the heads, of the MLP's columns and of the vocabulary's rows.

What is cut, and how, is transformers' own tensor-parallel plan (Megatron's: queries, keys, values, gate and up by
columns, the two output projections by rows). It loads the weights as DTensors; here the pieces become plain tensors, so
that torch.compile fuses what surrounds attention as on one device, and the sums over the processes are made by hand,
while the rest of the rows is being computed.

Every forward makes the same sums in the same order on every process. So a process that fails goes on to take part in
them, with zeros: nobody waits for it, and the next forward finds all processes where they should be.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import embedding

from sparsed.models import LoadError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sparsed.denoising.forward import Pass

# On a GPU the rows are cut into pieces: while the sum of one travels, the next one is computed. Smaller pieces than
# this are not worth their kernels.
_PIECES, _LEAST_ROWS = 4, 4096


class Share:
    """The processes' common work, seen from one of them.

    rank: 0 … size − 1. device: this process's. Sums go through torch.distributed's default group. One forward at a
    time: between `begin` and its end the sums that are still to be made are known.
    """

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size, self.device = rank, size, device
        self._left: deque[tuple[tuple[int, ...], torch.dtype]] = deque()

    def heads(self, total: int) -> slice:
        """This process's query heads, or key heads, out of `total`."""
        each = total // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def check(self, config: Any, label: str) -> None:
        """Raises LoadError where the heads (or the vocabulary) cannot be divided among the processes, or there are
        experts.
        """
        if getattr(config, "num_experts", None):
            raise LoadError(
                f"{label} has experts, which several processes cannot share here: start one process, or spread it over "
                f"GPUs with device_map='auto'."
            )
        parts = {
            "key/value heads": config.num_key_value_heads,
            "query heads": config.num_attention_heads,
            "MLP columns": config.intermediate_size,
            "tokens of vocabulary": config.vocab_size,
        }
        for what, number in parts.items():
            if number % self.size:
                raise LoadError(
                    f"{label} has {number} {what}, which {self.size} processes cannot share: start as many as divide "
                    f"{number}."
                )

    def begin(self, network: PreTrainedModel, ids: Tensor, pass_: Pass) -> None:
        """A forward over ids [batch, length] begins: the sums that it makes are those of the pass's rows."""
        config: Any = network.config
        model: Any = network.model
        width, numbers = config.hidden_size, model.norm.weight.dtype
        computed, wanted = len(ids) * pass_.rows.count(ids.shape[1]), len(pass_.wanted)
        pieces = [((count, width), numbers) for count in self.pieces(computed)]
        last = [((wanted, width), numbers)] if wanted else []
        pairs = len(ids) * pass_.attention.summed_pairs
        importance = [((pairs,), torch.float32)] if pairs else []
        self._left.clear()
        if isinstance(model.embed_tokens, SharedEmbedding):
            self._left.append(((computed, width), numbers))
        for layer in range(config.num_hidden_layers):
            # The attention output, then the MLP's.
            self._left.extend([*importance, *2 * (last if layer == config.num_hidden_layers - 1 else pieces)])

    def pieces(self, rows: int) -> list[int]:
        """How many rows are computed, and summed, at a time."""
        if self.device.type == "cpu":
            return [rows]
        count = max(1, min(_PIECES, rows // _LEAST_ROWS))
        size = -(-rows // count)
        return [min(size, rows - first) for first in range(0, rows, size)]

    def sum(self, part: Tensor) -> dist.Work | None:
        """Begins to add the processes' parts, in place; the sum is there after `wait()` of what this returns (None: at
        once).
        """
        if not part.numel():
            return None
        shape, numbers = self._left.popleft()
        assert part.numel() == torch.Size(shape).numel() and part.dtype == numbers, "sums are made in a fixed order"
        return dist.all_reduce(part, async_op=True)

    def mean(self, part: Tensor) -> Tensor:
        """The mean over all processes of their means of as many heads each, float32 and in place."""
        work = self.sum(part)
        if work is not None:
            work.wait()
        return part.div_(self.size)

    def abandon(self) -> None:
        """Takes part in the sums of this forward that are still to be made, with zeros: this process has failed."""
        while self._left:
            shape, numbers = self._left.popleft()
            dist.all_reduce(torch.zeros(shape, dtype=numbers, device=self.device))

    def gather(self, network: PreTrainedModel, part: Tensor | None, rows: int) -> Tensor | None:
        """The logits [rows, vocabulary], on the first process, from every process's part [rows, vocabulary / size].
        part: None from a process that failed.
        """
        head: Any = network.lm_head
        columns, vocabulary = head.weight.shape[0], network.config.vocab_size
        if not rows or columns == vocabulary:  # every process has the whole head
            return part
        if part is None:
            part = torch.zeros(rows, columns, dtype=head.weight.dtype, device=self.device)
        if self.rank:
            dist.gather(part.contiguous())
            return None
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.gather(part.contiguous(), parts)
        return torch.cat(parts, dim=-1)


class SharedEmbedding(nn.Module):
    """An embedding of which this process holds the rows of some tokens; the other processes add theirs."""

    def __init__(self, weight: nn.Parameter, share: Share) -> None:
        super().__init__()
        self.weight = weight
        self.share = share

    def forward(self, ids: Tensor) -> Tensor:
        """[batch, length, width] of ids [batch, length], which may be any of the vocabulary's."""
        rows = ids - self.share.rank * len(self.weight)
        ours = (rows >= 0) & (rows < len(self.weight))
        found = embedding(rows.where(ours, 0), self.weight) * ours[..., None]
        work = self.share.sum(found)
        if work is not None:
            work.wait()
        return found


def cut(network: PreTrainedModel, share: Share) -> None:
    """Cuts a whole network, which every process has made alike, by the same plan: of random weights there is no file to
    read a share from.
    """
    from transformers.distributed.tensor_parallel import replace_layer_number_by_wildcard

    plan: dict[str, str] = network.tp_plan
    pieces: dict[int, nn.Parameter] = {}
    for name, module in network.named_modules():
        style = plan.get(replace_layer_number_by_wildcard(name), "")
        by_rows = style == "rowwise"
        if not (by_rows or style.startswith("colwise") or style == "embedding_rowwise"):
            continue
        for kind, weight in list(module.named_parameters(recurse=False)):
            if id(weight) in pieces:  # a head that is tied to the embedding
                setattr(module, kind, pieces[id(weight)])
            elif by_rows and kind == "bias":
                module.register_parameter(kind, weight if share.rank == 0 else None)
            else:
                piece = weight.detach().chunk(share.size, dim=1 if by_rows else 0)[share.rank].clone()
                pieces[id(weight)] = nn.Parameter(piece, requires_grad=False)
                setattr(module, kind, pieces[id(weight)])
    _share_embedding(network, share)


def localise(network: PreTrainedModel, share: Share) -> None:
    """Makes plain tensors of the pieces that transformers loaded, and takes its own sums out of the modules."""
    from torch.distributed.tensor import DTensor, Shard

    plain: dict[int, nn.Parameter] = {}
    for module in network.modules():
        vars(module).pop("forward", None)
        for name, weight in list(module.named_parameters(recurse=False)):
            if not isinstance(weight, DTensor):
                continue
            if id(weight) not in plain:
                plain[id(weight)] = nn.Parameter(weight.to_local(), requires_grad=False)
            setattr(module, name, plain[id(weight)])
            # The sum over the processes must hold a bias once.
            if isinstance(module, nn.Linear) and weight.placements[0] == Shard(1) and share.rank:
                module.register_parameter("bias", None)
    _share_embedding(network, share)


def _share_embedding(network: PreTrainedModel, share: Share) -> None:
    """Not every version's plan cuts the embedding too."""
    model: Any = network.model
    weight = model.embed_tokens.weight
    if len(weight) < network.config.vocab_size:
        model.embed_tokens = SharedEmbedding(weight, share)
