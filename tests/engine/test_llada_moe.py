"""LLaDA-MoE: what is recognised and refused, its experts, and runs against plain networks and the published sampler."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import sparsed
from app.engine.local import SparsedEngine
from sparsed import SamplerConfig
from sparsed.bench.shapes import SHAPES
from sparsed.config import ResolvedSampler
from sparsed.models import LoadError, catalogue
from sparsed.models import layer as layer_module
from sparsed.models.families import recognise
from sparsed.models.sizes import Sizes
from sparsed.parallel.share import Share

SAMPLER = SamplerConfig(steps=8, gen_length=16, block_length=8, algorithm="low_confidence", temperature=0.0)


@pytest.fixture
def model(model_of):
    return model_of("llada_moe")


def prompt(length: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 250, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_it_is_recognised_by_its_architecture(checkpoints, model, folder_of, tmp_path: Path) -> None:
    assert model.family == "llada_moe" and not model.shift and model.chat and model.notes == ()
    known = {name: checkpoints.special_id(name, checkpoints.MOE_SPECIAL) for name in checkpoints.MOE_SPECIAL}
    assert model.mask_id == known["<|mask|>"] and model.eos_id == known["<|endoftext|>"]
    assert set(model.end_ids) == {known["<|endoftext|>"], known["<|role_end|>"]}
    assert type(model.network).__name__ == "Qwen3MoeForCausalLM"
    assert model.defaults == catalogue.LLADA_DEFAULTS.resolve(catalogue.LLADA_DEFAULTS)
    # Either says so: the number of experts, or the name of the class.
    for left in ({"architectures": ["LLaDAModelLM"]}, {"architectures": None}):
        folder = Path(shutil.copytree(folder_of("llada_moe"), tmp_path / str(left)))
        checkpoints.change_config(folder, **left)
        assert sparsed.load(folder, device="cpu", dtype="float32").family == "llada_moe"
    checkpoints.change_config(folder, architectures=["LLaDAMoEModelLM"], num_experts=None)
    with pytest.raises(LoadError, match="is not a complete LLaDA-MoE config"):
        sparsed.load(folder, device="cpu", dtype="float32")


def test_the_published_sizes_are_those_of_the_catalogue() -> None:
    import transformers

    checkpoint = recognise(dict(SHAPES["llada-moe-7b"]), "this shape")
    with torch.device("meta"):
        network = getattr(transformers, checkpoint.network)(checkpoint.config)
    for name in ("llada-moe-7b-instruct", "llada-moe-7b-base"):
        spec = catalogue.find(name)
        assert network.num_parameters() == spec.parameters and spec.family == checkpoint.family
        assert spec.trained_length == checkpoint.trained_length == 8192
    config = checkpoint.config
    assert (config.num_experts, config.num_experts_per_tok, config.norm_topk_prob) == (64, 8, False)
    # A position goes through eight experts: what an evaluation counts.
    stand_in = SimpleNamespace(network=SimpleNamespace(config=config))
    assert Sizes.of(stand_in).intermediate == 8 * 1024


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"norm_topk_prob": True}, "says norm_topk_prob True; of the LLaDA-MoE variants only norm_topk_prob False"),
        ({"moe_router_score_function": "sigmoid"}, "only moe_router_score_function 'softmax' can be run here"),
        ({"moe_router_enable_expert_bias": True}, "says moe_router_enable_expert_bias True"),
        ({"routed_scaling_factor": 2.5}, "says routed_scaling_factor 2.5"),
        ({"shared_expert_intermediate_size": 64}, "says shared_expert_intermediate_size 64"),
        ({"router_num_group": 4}, "says router_num_group 4"),
        ({"clip_qkv": 8.0}, "says clip_qkv 8.0"),
        ({"qk_layernorm": False}, "says qk_layernorm False"),
        ({"moe_layer_freq": [0, 1]}, "only experts in every layer can be run here"),
        ({"num_experts_per_tok": 7}, "says num_experts_per_tok 7; it must be from 1 to num_experts, 6"),
        ({"num_experts_per_tok": 0}, "says num_experts_per_tok 0"),
        ({"expert_intermediate_size": None}, "is not a complete LLaDA-MoE config"),
        ({"hidden_size": "wide"}, "is not a complete LLaDA-MoE config"),
        ({"rope_theta": None}, "is not a complete LLaDA-MoE config"),
        ({"partial_rotary_factor": 0.5}, "says partial_rotary_factor 0.5"),
        ({"num_experts": 7}, "do not fit its config.json: 6 missing"),
        ({"num_experts": 5}, "do not fit its config.json: 6 left over"),
        ({"expert_intermediate_size": 48}, "do not fit its config.json: 36 of another shape"),
    ],
)
def test_another_network_is_refused(checkpoints, folder_of, tmp_path: Path, values: dict, said: str) -> None:
    folder = Path(shutil.copytree(folder_of("llada_moe"), tmp_path / "moe"))
    checkpoints.change_config(folder, **values)
    with pytest.raises(LoadError, match=said) as caught:
        sparsed.load(folder, device="cpu", dtype="float32")
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".") and len(str(caught.value)) < 500


def test_an_expert_under_another_number_is_missing_and_left_over(checkpoints, folder_of, tmp_path: Path) -> None:
    """As many as there should be: stacking them in order would give each another one's place."""
    folder = Path(shutil.copytree(folder_of("llada_moe"), tmp_path / "moe"))
    tensors = checkpoints.read_tensors(folder)
    name = "model.layers.0.mlp.experts.{}.up_proj.weight"
    tensors[name.format(6)] = tensors.pop(name.format(2))
    checkpoints.write_tensors(folder, tensors)
    with pytest.raises(LoadError) as caught:
        sparsed.load(folder, device="cpu", dtype="float32")
    assert str(caught.value) == (
        f"The weights in {folder} do not fit its config.json: 1 missing ({name.format(2)}); 1 left over "
        f"({name.format(6)})."
    )


@torch.no_grad()
def test_the_chosen_experts_differ_and_their_shares_are_not_divided_by_their_sum(checkpoints, model, folder_of) -> None:
    """The plain network can tell: with shares that sum to 1, or one expert less, its logits are far away."""
    plain = checkpoints.PlainNetwork(folder_of("llada_moe"), torch.float64)
    ids = prompt(60)[0]
    got = model.network(input_ids=ids[None], use_cache=False).logits[0]
    wanted = plain.logits(ids)
    assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()
    plain.chosen -= 1
    assert (plain.logits(ids) - wanted).abs().max() > 1e-2 * wanted.abs().max()


def test_its_experts_are_two_grouped_products_of_one_graph(model_of) -> None:
    """What a GPU computes without a wait for the host: no loop over experts, nothing whose size the host must know.
    Every length is the same graph, and what surrounds attention is compiled whole.
    """
    model = model_of("llada_moe", "bfloat16")
    assert model.network.config._experts_implementation == "grouped_mm"
    layer = model.network.model.layers[0]
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op in ("call_function", "call_method")])
        return graph.forward

    finish = torch.compile(layer_module.after_attention, backend=backend, fullgraph=True)
    for length in (96, 160, 12, 1000):
        hidden, seen = torch.randn(2, 1, length, 48, generator=torch.Generator().manual_seed(length)).bfloat16()
        for tensor in (hidden, seen):
            torch._dynamo.maybe_mark_dynamic(tensor, 1)
        with torch.inference_mode():
            assert torch.equal(finish(layer, hidden, seen), layer_module.after_attention(layer, hidden, seen))
    [called] = graphs
    assert sum("grouped_mm" in name for name in called) == 2
    assert not {"item", "tolist"} & set(called)
    assert not [name for name in called if "nonzero" in name or "one_hot" in name]


def test_an_estimate_counts_the_weights_that_a_token_goes_through(model) -> None:
    shape = SparsedEngine().shape(model)
    every = sum(weight.numel() for weight in model.network.parameters())
    resting = sum(
        weight.numel() // 6 * 4 for name, weight in model.network.named_parameters() if ".mlp.experts." in name
    )
    assert resting > 0 and shape.weight_bytes == 4 * every and shape.linear_flops == 2 * (every - resting)


def test_several_processes_cannot_share_its_experts(model) -> None:
    with pytest.raises(LoadError) as caught:
        Share(0, 2, torch.device("cpu")).check(model.network.config, "LLaDA-MoE")
    assert str(caught.value) == (
        "LLaDA-MoE has experts, which several processes cannot share here: start one process, or spread it over GPUs "
        "with device_map='auto'."
    )


def test_rows_of_a_batch_do_not_touch_each_other(model) -> None:
    """Experts work on the rows of all sequences together."""
    ids = prompt(40, 3, seed=5)
    resolved: ResolvedSampler = SAMPLER.resolve(model.defaults)
    together = sparsed.generate(model, ids, sampler=resolved, attention="dense").tokens
    alone = [sparsed.generate(model, row[None], sampler=resolved, attention="dense").tokens for row in ids]
    assert torch.equal(together, torch.cat(alone))
