"""LLaDA-8B, iLLaDA-8B, LLaDA-MoE-7B and Dream-7B at full size, with random weights under their official names, LLaDA-8B
also in fewer bits. Prints what it measures (-s).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import pytest
import torch

import sparsed
from sparsed import SamplerConfig, SparseDConfig
from sparsed.bench import shapes
from sparsed.models.model import Model
from sparsed.models.numbers import installed
from sparsed.models.quantise import network_bytes

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)
if torch.cuda.mem_get_info()[1] < 60 * 2**30:
    pytest.skip("needs a GPU with 60 GiB of memory", allow_module_level=True)

GIB = 2**30
SHARD_BYTES = 4 * 10**9


def llada_weights(shape: dict[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of LLaDA's own checkpoint."""
    width, hidden, vocabulary = shape["d_model"], shape["mlp_hidden_size"], shape["vocab_size"]
    top = "model.transformer."
    yield top + "wte.weight", (vocabulary, width)
    for layer in range(shape["n_layers"]):
        block = f"{top}blocks.{layer}."
        for name in ("attn_norm", "ff_norm"):
            yield f"{block}{name}.weight", (width,)
        for name in ("q_proj", "k_proj", "v_proj", "attn_out"):
            yield f"{block}{name}.weight", (width, width)
        for name in ("ff_proj", "up_proj"):
            yield f"{block}{name}.weight", (hidden, width)
        yield f"{block}ff_out.weight", (width, hidden)
    yield top + "ln_f.weight", (width,)
    yield top + "ff_out.weight", (vocabulary, width)


def moe_weights(shape: dict[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of LLaDA-MoE's own checkpoint: every expert by itself."""
    width, inner, vocabulary = shape["hidden_size"], shape["expert_intermediate_size"], shape["vocab_size"]
    yield "model.embed_tokens.weight", (vocabulary, width)
    for number in range(shape["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}{name}.weight", (width,)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"{layer}self_attn.{name}.weight", (width, width)
        for name in ("q_norm", "k_norm"):
            yield f"{layer}self_attn.{name}.weight", (width // shape["num_attention_heads"],)
        yield f"{layer}mlp.gate.weight", (shape["num_experts"], width)
        for expert in range(shape["num_experts"]):
            for name, size in (("gate", (inner, width)), ("up", (inner, width)), ("down", (width, inner))):
                yield f"{layer}mlp.experts.{expert}.{name}_proj.weight", size
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (vocabulary, width)


def plain_weights(shape: dict[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of Dream's own checkpoint; of iLLaDA's, which has no biases and a tied head."""
    dream = shape["model_type"] == "Dream"
    width, hidden, vocabulary = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    keys = width // shape["num_attention_heads"] * shape["num_key_value_heads"]
    yield "model.embed_tokens.weight", (vocabulary, width)
    for number in range(shape["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}{name}.weight", (width,)
        for name, size in (("q", width), ("k", keys), ("v", keys)):
            yield f"{layer}self_attn.{name}_proj.weight", (size, width)
            if dream:
                yield f"{layer}self_attn.{name}_proj.bias", (size,)
        yield f"{layer}self_attn.o_proj.weight", (width, width)
        for name in ("gate_proj", "up_proj"):
            yield f"{layer}mlp.{name}.weight", (hidden, width)
        yield f"{layer}mlp.down_proj.weight", (width, hidden)
    yield "model.norm.weight", (width,)
    if dream:
        yield "lm_head.weight", (vocabulary, width)


WEIGHTS = {
    "llada-8b": llada_weights,
    "illada-8b": plain_weights,
    "llada-moe-7b": moe_weights,
    "dream-7b": plain_weights,
}


def write_checkpoint(folder: Path, name: str, tokenizer_from: Path) -> None:
    """Shards of about 4 GB in bfloat16, their index, config.json, and some tokenizer."""
    from safetensors.torch import save_file

    shape = shapes.SHAPES[name]
    names = WEIGHTS[name](shape)
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    torch.manual_seed(0)
    for key, dimensions in names:
        weight = torch.randn(dimensions, device="cuda", dtype=torch.bfloat16) * 0.02
        weight = weight + 1 if len(dimensions) == 1 and "bias" not in key else weight
        if size > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][key] = weight.cpu()
        size += 2 * weight.numel()
    index = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(shape))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_text((tokenizer_from / file).read_text())


def prompt_of(model: Model, length: int) -> torch.Tensor:
    """Random ids below the special ones."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1000, 120_000, (1, length), generator=generator)


@pytest.fixture(scope="module", params=[*WEIGHTS, *(f"llada-8b in {kind}" for kind in ("int8", "int4", "fp8"))])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path
) -> Iterator[Model]:
    """Loaded from its shards; the files are removed afterwards, the next shape needs the room."""
    name, _, kind = request.param.partition(" in ")
    if kind and not installed():
        pytest.skip("the extra 'quantize' is not installed")
    if kind == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU does not compute in fp8")
    folder = tmp_path_factory.mktemp(name)
    write_checkpoint(folder, name, tiny_folder)
    torch.cuda.empty_cache()
    heard = []
    torch.cuda.reset_peak_memory_stats()
    start = perf_counter()
    loaded = sparsed.load(folder, quantize=kind or None, progress=heard.append)
    torch.cuda.synchronize()
    seconds = perf_counter() - start
    weights = network_bytes(loaded.network)
    assert heard[-1].bytes == heard[-1].total_bytes and (weights < 9.2e9 if kind else weights == heard[-1].bytes)
    assert heard[-1].files == heard[-1].total_files == len(list(folder.glob("*.safetensors")))
    peak = torch.cuda.max_memory_allocated()
    # One weight that is not quantised yet, the work of quantising it, and the short trial of what is compiled.
    assert not kind or peak < weights + 2e9
    print(
        f"\n{request.param}: {weights / GIB:.2f} GiB from {heard[-1].total_files} shards in {seconds:.1f} s, compiled "
        f"and tried; at most {peak / GIB:.2f} GiB"
    )
    yield loaded
    for file in folder.glob("*.safetensors"):
        file.unlink()


def test_denoises_at_4k(model: Model) -> None:
    sampler = SamplerConfig(steps=12, gen_length=128, block_length=None)
    for attention in ("dense", SparseDConfig(skip=0.2)):
        torch.cuda.reset_peak_memory_stats()
        run = sparsed.denoise(model, prompt_of(model, 4096 - 128), sampler=sampler, attention=attention)
        run.warm_up()
        result = run.result()
        assert int((result.tokens == model.mask_id).sum()) == 0
        by_phase: dict[str, list[float]] = {}
        for step in result.steps:
            by_phase.setdefault(step.phase, []).append(step.seconds)
        times = ", ".join(f"{phase} {1000 * sorted(t)[len(t) // 2]:.0f} ms" for phase, t in by_phase.items())
        peak = torch.cuda.max_memory_allocated() / GIB
        assert model.quantize is None or peak * GIB < 12e9
        print(f"4k {attention if attention == 'dense' else 'SparseD'} ({result.backend}): {times}; peak {peak:.2f} GiB")


def test_one_step_at_64k_holds_no_logits_of_the_whole_sequence(model: Model) -> None:
    length, gen_length = 65_536, 128
    sampler = SamplerConfig(steps=128, gen_length=gen_length, block_length=None)
    run = sparsed.denoise(model, prompt_of(model, length - gen_length), sampler=sampler, attention="dense")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step = next(run)
    run.close()
    peak = torch.cuda.max_memory_allocated()
    logits = length * model.network.config.vocab_size * 2
    print(
        f"64k dense step: {step.seconds:.2f} s, peak {peak / GIB:.2f} GiB, weights {before / GIB:.2f} GiB; "
        f"full logits alone would be {logits / GIB:.2f} GiB"
    )
    assert peak - before < logits
