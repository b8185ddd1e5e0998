"""Quantised weights against a quantiser of double loops in float64, and everything that says which numbers they are."""

from __future__ import annotations

import json
import math
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from loops_of_bits import check_fp8
from torch import Tensor

import sparsed
from app.engine.local import SparsedEngine
from sparsed import trace
from sparsed.bench.command import main as bench
from sparsed.bench.shapes import SHAPES
from sparsed.evaluation.command import main as evaluation
from sparsed.generation.command import main as generate
from sparsed.harness.arguments import read_arguments
from sparsed.models import LoadError, quantizer, shares
from sparsed.models.catalogue import CATALOGUE
from sparsed.models.families import read_config, recognise
from sparsed.models.numbers import QUANTISED, weight_bytes
from sparsed.models.quantise import PACKED, is_quantised, network_bytes, parameters, stored
from sparsed.models.shares import random_network
from sparsed.origin import origin_of
from sparsed.paths import data_dir
from sparsed.questions.build import build_prompt

pytest.importorskip("torchao", reason="the extra 'quantize' is not installed")

FAMILIES = ("llada", "dream", "qwen3")
KINDS = ("int8", "int4")
# Of the layers' widths: some rows have whole groups of 128, some of 64 or 32.
SIZES = {
    "llada": {"d_model": 64, "mlp_hidden_size": 384},
    "dream": {"hidden_size": 64, "intermediate_size": 96},
    "qwen3": {"hidden_size": 64, "intermediate_size": 128},
}
CPU: dict[str, Any] = {"device": "cpu", "dtype": "float32"}


def load(folder: Path, kind: str | None, **more: Any) -> sparsed.Model:
    return sparsed.load(folder, **{**CPU, "quantize": kind, **more})


def ids(length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed))


def rounded(value: float) -> float:
    """To the nearest float32: what a scale is kept in."""
    return float(torch.tensor(value, dtype=torch.float64).to(torch.float32))


def choose(wanted: float, steps: range, got: float, step: float, zero: int) -> float:
    """The value of the whole number nearest to `wanted` (in steps), within `steps`; `got` decides where float32 cannot
    tell two of them apart.
    """
    near = {min(max(round(wanted + shift), steps.start), steps.stop - 1) for shift in (-1e-4, 0, 1e-4)}
    values = [(one - zero) * step for one in near]
    return min(values, key=lambda value: abs(value - got))


def by_rows(weight: Tensor, got: Tensor) -> Tensor:
    """int8: a row's scale is its largest weight over the half of 255 steps."""
    out = torch.empty_like(weight)
    for r, row in enumerate(weight.tolist()):
        step = rounded(max(abs(x) for x in row) / 127.5)
        for c, x in enumerate(row):
            out[r, c] = choose(x / step, range(-128, 128), float(got[r, c]), step, 0)
    return out


def by_groups(weight: Tensor, got: Tensor) -> Tensor:
    """int4: 16 steps from the least to the largest weight of a group, of which one is 0."""
    out, columns = torch.empty_like(weight), weight.shape[1]
    size = next(size for size in (128, 64, 32) if columns % size == 0)
    for r, row in enumerate(weight.tolist()):
        for first in range(0, columns, size):
            group = row[first : first + size]
            low, high = min(0.0, *group), max(0.0, *group)
            step = rounded((high - low) / 15)
            zero = min(max(round(-low / step), 0), 15)
            for c, x in enumerate(group, first):
                out[r, c] = choose(x / step + zero, range(16), float(got[r, c]), step, zero)
    return out


ORACLES = {"int8": by_rows, "int4": by_groups}


def used(layer: Any, columns: int) -> Tensor:
    """The weights that a layer multiplies with: what it makes of the unit vectors."""
    unit = torch.eye(columns)
    bias = 0 if layer.bias is None else layer.bias
    return (layer(unit) - bias).T.double()


def layers_of(network: Any) -> dict[str, Any]:
    names = [name for name, _ in network.named_modules() if name.endswith("_proj")]
    return {name: network.get_submodule(name) for name in names}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_and_logits_are_those_of_a_quantiser_in_loops(checkpoints, folder_of, family: str, kind: str) -> None:
    """Every weight that a product uses, to the last bits of float32; the logits of a plain network with them."""
    folder = folder_of(family, **SIZES[family])
    model, plain = load(folder, kind), checkpoints.PlainNetwork(folder, torch.float64)
    exact = checkpoints.PlainNetwork(folder, torch.float64)
    parts = {"q": "self_attn.q", "k": "self_attn.k", "v": "self_attn.v", "out": "self_attn.o"}
    parts |= {name: f"mlp.{name}" for name in ("gate", "up", "down")}
    for layer in range(plain.layers):
        for name, ours in parts.items():
            stored = plain.names[name].format(layer) + ".weight"
            weight = plain.weights[stored]
            with torch.no_grad():
                got = used(model.network.get_submodule(f"model.layers.{layer}.{ours}_proj"), weight.shape[1])
            wanted = ORACLES[kind](weight, got)
            assert (got - wanted).abs().max() <= 2**-22 * weight.abs().max(), (layer, name)
            # No weight is further from what it was than half a step, and some are not there.
            step = weight.abs().amax() / 127.5 if kind == "int8" else 2 * weight.abs().amax() / 15
            assert 0 < (got - weight).abs().max() <= 0.501 * step
            plain.weights[stored] = wanted
    sequence = ids(150)
    with torch.no_grad():
        logits = model.network(input_ids=sequence[None], use_cache=False).logits[0]
    wanted, before = plain.logits(sequence), exact.logits(sequence)
    assert (logits - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert (before - wanted).abs().max() > 1e-3 * wanted.abs().max()
    with torch.no_grad():
        half = load(folder, kind, dtype="bfloat16").network(input_ids=sequence[None], use_cache=False).logits[0]
    # Rounded at every layer, the scales too: as far from the exact network as the quantisation allows, no further.
    assert (half - wanted).abs().max() < 3 * (before - wanted).abs().max() + 2**-5 * wanted.abs().max()


def test_fp8_weights_are_those_of_loops(folder_of, model_of, monkeypatch) -> None:
    """As on a GPU, by torch's slow product on a CPU, which torchao does not offer."""
    monkeypatch.setattr("torchao.quantization.quant_api._check_hardware_support", lambda granularity: None)
    monkeypatch.setattr("sparsed.models.loading.check_place", lambda *_: None)
    folder = folder_of("qwen3", **SIZES["qwen3"])
    whole, model = (load(folder, kind, dtype="bfloat16") for kind in (None, "fp8"))
    assert model.numbers == "fp8 (bfloat16)" and network_bytes(model.network) < network_bytes(whole.network)
    assert parameters(model.network) == parameters(whole.network)
    for name, layer in layers_of(model.network).items():
        weight = whole.network.get_submodule(name).weight
        with torch.inference_mode():
            got = layer(torch.eye(weight.shape[1], dtype=torch.bfloat16)).T
            assert layer(torch.empty(0, weight.shape[1], dtype=torch.bfloat16)).shape == (0, len(weight))
        check_fp8(weight.double(), got.double())
    with torch.inference_mode():
        near, exact = (one.network(input_ids=ids(100)[None], use_cache=False).logits for one in (model, whole))
    assert 0 < (near - exact).abs().max() < 0.5 * exact.abs().max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sums_are_of_scaled_weights(kind: str, dtype: torch.dtype) -> None:
    """Sums of a thousand are near those of the whole weights in every dtype; the integers' would be too large."""
    weight = (torch.rand(8, 4096, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    x = torch.full((3, 4096), 30.0, dtype=dtype)
    bias = torch.nn.Parameter(torch.arange(8).to(dtype), requires_grad=False)
    got = PACKED[kind](weight, bias)(x).double()
    wanted = x.double() @ weight.double().T + bias.double()
    assert got.dtype == torch.float64 and float(wanted.max()) > 1000
    assert (got - wanted).abs().max() < 0.01 * wanted.max()


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_norms_and_the_head_stay(folder_of, model_of, kind: str) -> None:
    model, plain = load(folder_of("llada", **SIZES["llada"]), kind), model_of("llada", **SIZES["llada"])
    for name, weight in plain.network.named_parameters():
        if not is_quantised(name):
            assert torch.equal(weight, model.network.get_parameter(name)), name
    assert model.dtype == torch.float32 and model.quantize == kind and model.numbers == f"{kind} (float32)"
    assert plain.quantize is None and plain.numbers == "float32"


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_counted_in_bytes(folder_of, kind: str) -> None:
    network = load(folder_of("llada", **SIZES["llada"]), kind).network
    wanted = 0
    for name, weight in load(folder_of("llada", **SIZES["llada"]), None).network.named_parameters():
        if not is_quantised(name):
            wanted += 4 * weight.numel()
        elif kind == "int8":
            wanted += weight.numel() + 4 * weight.shape[0]
        else:
            size = 128 if weight.shape[1] % 128 == 0 else 64
            wanted += weight.numel() // 2 + 5 * weight.numel() // size
    assert network_bytes(network) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_never_more_than_one_weight_is_loaded_and_not_yet_quantised(folder_of, monkeypatch, kind: str) -> None:
    seen = []

    def watched(network: Any, name: str, quantize: str) -> None:
        linear = [layer.weight for layer in layers_of(network).values() if isinstance(layer, torch.nn.Linear)]
        seen.append(sum(not weight.is_meta and next(stored(weight)) is weight for weight in linear))
        quantise(network, name, quantize)

    quantise = quantizer.quantise
    monkeypatch.setattr(quantizer, "quantise", watched)
    model = load(folder_of("qwen3", **SIZES["qwen3"]), kind)
    assert seen == [1] * len(layers_of(model.network))


@pytest.mark.parametrize("kind", KINDS)
def test_of_random_weights_nothing_stays_that_was_quantised(monkeypatch, kind: str) -> None:
    made, there = [], []

    def watched(network: Any, name: str, quantize: str) -> None:
        made.append(weakref.ref(network.get_parameter(name)))
        there.append(sum(weight() is not None for weight in made))
        quantise(network, name, quantize)

    quantise = shares.quantise
    monkeypatch.setattr(shares, "quantise", watched)
    mini = read_config(data_dir("assets") / "mini")
    network, _ = random_network(mini, torch.bfloat16, torch.device("cpu"), False, quantize=kind)
    assert there == [1] * len(layers_of(network))


def test_what_a_model_needs_follows_from_the_catalogue() -> None:
    """Its numbers of weights are those of its shape; the bytes by them are those that the layers take, to 1 %."""
    mini = read_config(data_dir("assets") / "mini")
    shapes = {"mini": mini, "llada-8b-instruct": SHAPES["llada-8b"], "dream-7b-instruct": SHAPES["dream-7b"]}
    shapes |= {"qwen3-0.6b-diffusion": SHAPES["qwen3-0.6b"], "illada-8b-base": SHAPES["illada-8b"]}
    import transformers

    for name, raw in shapes.items():
        spec = next(spec for spec in CATALOGUE if spec.name == name)
        checkpoint = recognise(dict(raw), name)
        with torch.device("meta"):
            network = getattr(transformers, checkpoint.network)(checkpoint.config)
        sizes = {name: weight.numel() for name, weight in network.named_parameters()}
        layers = sum(size for name, size in sizes.items() if is_quantised(name))
        assert spec.parameters - spec.kept == layers, name
    for spec in CATALOGUE:
        assert (spec.kept is None) == (spec.family == "llada_moe")
    for kind in KINDS:
        network, _ = random_network(mini, torch.bfloat16, torch.device("cpu"), False, quantize=kind)
        spec = CATALOGUE[0]
        needed = weight_bytes(spec.parameters, spec.kept, 2, kind)
        assert network_bytes(network) == pytest.approx(needed, rel=0.02)
    eight = next(spec for spec in CATALOGUE if spec.name == "llada-8b-instruct")
    found = {kind: weight_bytes(eight.parameters, eight.kept, 2, kind) / 1e9 for kind in (None, *QUANTISED)}
    assert {kind: round(size, 1) for kind, size in found.items()} == {None: 16.0, "int8": 9.1, "int4": 5.7, "fp8": 9.1}


def test_random_weights_are_the_same_in_fewer_bits() -> None:
    mini = read_config(data_dir("assets") / "mini")
    made = {kind: random_network(mini, torch.float32, torch.device("cpu"), False, quantize=kind)[0] for kind in (
        None, *KINDS,
    )}  # fmt: skip
    plain = made.pop(None)
    std = torch.cat([layer.weight.flatten() for layer in layers_of(plain).values()]).std()
    assert float(std) == pytest.approx(0.02, rel=0.01)
    assert plain.lm_head.weight is plain.model.embed_tokens.weight and bool((plain.model.norm.weight == 1).all())
    for kind, network in made.items():
        assert torch.equal(network.model.embed_tokens.weight, plain.model.embed_tokens.weight)
        assert network.lm_head.weight is network.model.embed_tokens.weight
        step = 0.1 / (127 if kind == "int8" else 7)
        for name, layer in layers_of(plain).items():
            with torch.no_grad():
                got = used(network.get_submodule(name), layer.in_features)
            assert 0 < (got - layer.weight).abs().max() < step


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_to_run_takes_them(folder_of, kind: str) -> None:
    """Full attention and SparseD, with and without a cache; the run says its numbers."""
    model = load(folder_of("llada", **SIZES["llada"]), kind)
    sampler = sparsed.SamplerConfig(steps=8, gen_length=64, block_length=32)
    for attention in ("dense", sparsed.SparseDConfig(block_size=32, skip=0.2, select=0.5)):
        for cache in (None, sparsed.CacheConfig("dual"), sparsed.CacheConfig("delayed")):
            run = sparsed.denoise(model, ids(200), sampler=sampler, attention=attention, cache=cache)
            steps = list(run)
            assert not bool((steps[-1].tokens == model.mask_id).any())
            assert run.info.dtype == f"{kind} (float32)"


def test_mini_says_the_same_in_int8() -> None:
    """The right answer, token by token that of the whole weights."""
    sampler, found = sparsed.SamplerConfig(steps=24), {}
    for kind in (None, "int8"):
        model = sparsed.load("mini", **CPU, quantize=kind)
        prompt = build_prompt(model, 200, "about", 0)
        found[kind] = sparsed.generate(model, prompt.text, sampler=sampler, attention="dense")
    assert found["int8"].text == [prompt.answer]
    assert torch.equal(found["int8"].tokens, found[None].tokens)


REFUSALS = {
    "another name": ("llada", {"quantize": "int3"}, "quantize must be one of int8, int4, fp8, or nothing, not 'int3'."),
    "fp8 on a CPU": (
        "llada", {"quantize": "fp8"},
        "fp8 needs a GPU that computes in it (Ada, Hopper or later): load {} in int8 or int4, or without quantize.",
    ),
    "experts": (
        "llada_moe", {"quantize": "int4"},
        "{} has experts, whose stacked weights cannot be quantised here: load it without quantize.",
    ),
    "spread": (
        "llada", {"quantize": "int8", "device": None, "device_map": "auto"},
        "Quantised weights stay on one device: device_map cannot spread them, leave quantize='int8' out.",
    ),
    "several processes": (
        "llada", {"quantize": "int8", "device": None, "team": SimpleNamespace(
            size=2, share=SimpleNamespace(device=torch.device("cpu"))
        )},
        "Quantised weights stay on one device: several processes cannot share them, leave quantize='int8' out.",
    ),
    "an Apple GPU": (
        "llada", {"quantize": "int8", "device": "mps"},
        "Quantised weights run on CUDA and on a CPU: load {} without quantize on mps.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_are_one_sentence(folder_of, monkeypatch, name: str) -> None:
    family, options, sentence = REFUSALS[name]
    folder = folder_of(family)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: options.get("device") == "mps")
    with pytest.raises(ValueError) as caught:
        load(folder, None, **options)
    assert str(caught.value) == sentence.format(folder.name)


def test_a_size_that_does_not_fit_is_refused(folder_of) -> None:
    folder = folder_of("llada", mlp_hidden_size=80)
    with pytest.raises(LoadError) as caught:
        load(folder, "int4")
    assert str(caught.value) == (
        f"{folder.name} has layers of size 80, and int4 takes multiples of 32: load it in int8, or without quantize."
    )
    assert load(folder, "int8").quantize == "int8"


def test_a_shape_that_is_not_the_config_s_is_refused(checkpoints, folder_of, tmp_path: Path) -> None:
    tensors = checkpoints.read_tensors(folder_of("qwen3", **SIZES["qwen3"]))
    folder = checkpoints.WRITERS["qwen3"](tmp_path, **SIZES["qwen3"])
    name = "model.layers.0.mlp.up_proj.weight"
    checkpoints.write_tensors(folder, {**tensors, name: tensors[name][:-32]})
    with pytest.raises(LoadError, match=rf"do not fit its config.json: 1 of another shape \({name}\)\."):
        load(folder, "int8")


def test_without_the_library_it_says_what_to_install(folder_of, monkeypatch) -> None:
    monkeypatch.setattr("sparsed.models.numbers.find_spec", lambda _: None)
    with pytest.raises(LoadError) as caught:
        load(folder_of("llada"), "int4")
    assert str(caught.value) == (
        "quantize='int4' needs torchao, which is not installed: install it with pip install 'sparsed[quantize]' (in a "
        "checkout pip install '.[quantize]')."
    )


def test_too_little_memory_is_told_in_these_numbers(folder_of, monkeypatch) -> None:
    folder = folder_of("llada", **SIZES["llada"])
    monkeypatch.setattr("sparsed.models.devices.device_memory", lambda *_: 100_000)
    with pytest.raises(LoadError, match=r"needs 0\.0 GB of memory for its weights in int4 \(float32\); this machine"):
        load(folder, "int4")


@pytest.mark.parametrize(("kind", "advice"), [(None, "a smaller model, or spread it with device_map='auto'."),
                                              ("int8", "choose a smaller model.")])  # fmt: skip
def test_memory_that_ends_while_loading_is_a_sentence(folder_of, monkeypatch, kind: str | None, advice: str) -> None:
    import transformers

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(transformers.Qwen3ForCausalLM, "from_pretrained", full)
    with pytest.raises(LoadError) as error:
        sparsed.load(folder_of("qwen3", **SIZES["qwen3"]), dtype="bfloat16", device="cpu", quantize=kind)
    assert str(error.value).startswith("There is too little memory on the device for the weights in ")
    assert str(error.value).endswith(advice)


def test_results_in_other_numbers_are_of_another_plan(folder_of, model_of, tmp_path: Path) -> None:
    plain = model_of("llada")
    origin, changed = origin_of(plain), origin_of(replace(plain, quantize="int8"))
    assert "quantize" not in origin and changed["quantize"] == "int8" and "torchao" in changed["versions"]
    assert "torchao" not in origin["versions"]  # results from before still count
    short = ["--model", "mini", "--device", "cpu", "--dtype", "float32", "--steps", "2", "--out", str(tmp_path)]
    short += ["--lengths", "200", "--questions", "1", "--types", "lookup", "--depths", "--methods", "dense"]
    evaluation([*short, "--gen-length", "32", "--quantize", "int8"])
    for other in ([], ["--quantize", "int4"]):
        with pytest.raises(ValueError, match=r"quantize is \"?int8\"? there, (null|\"?int4\"?) here"):
            evaluation([*short, "--gen-length", "32", *other])


def test_bench_measures_several_and_how_alike_their_tokens_are(tmp_path: Path, capsys) -> None:
    file = tmp_path / "all.json"
    common = ["--shape", "mini", "--device", "cpu", "--dtype", "float32", "--steps", "4", "--gen-length", "32"]
    common += ["--lengths", "200", "--compose"]
    bench([*common, "--quantize", "none", "int8", "int4", "--json", str(file)])
    results = json.loads(file.read_text(encoding="utf-8"))["results"]
    assert [row["dtype"] for row in results] == ["float32", "int8 (float32)", "int4 (float32)"]
    assert results[0]["same_unquantised"] is None
    for row in results[1:]:
        assert 0 <= row["same_unquantised"] <= 1
        assert row["weights"] < results[0]["weights"] and row["load_seconds"] > 0
    out = tmp_path / "folder"
    bench([*common, "--quantize", "int8", "--out", str(out)])
    capsys.readouterr()
    bench([*common, "--quantize", "int8", "none", "--out", str(out)])  # goes on with what is missing
    said = capsys.readouterr().out
    assert "1 of 2 measurements are in" in said and "same tokens as unquantised" not in said


def test_the_page_s_engine_loads_a_row_and_its_record_says_so(tmp_path: Path) -> None:
    engine = SparsedEngine()
    model = engine.load("mini@int4", lambda _: None)
    shape = engine.shape(model)
    assert model.label == engine.models()["mini@int4"].label == "mini (4.5 M parameters, bundled) in int4"
    assert engine.place(model) == f"CPU · int4 ({str(model.dtype).removeprefix('torch.')})"
    assert shape.weight_bytes == network_bytes(model.network) and shape.linear_flops == 2 * 4_459_776
    known = engine.known_shape("mini@int4")
    # It is known in 16 bits alone.
    assert replace(known, weight_bytes=0, number_bytes=0, unpacked=0) == replace(
        shape, weight_bytes=0, number_bytes=0, unpacked=0, parameters=0
    )
    assert shape.unpacked == 512 * 256 * (1 + 3 * shape.number_bytes)
    run = sparsed.denoise(model, ids(100) + 1, sampler=sparsed.SamplerConfig(steps=3), attention="dense")
    list(run)
    trace.save(trace.record(run, prompt="x"), tmp_path / "run.json")
    about = trace.load(tmp_path / "run.json").model
    assert (about.name, about.label, about.dtype) == ("mini", model.label, model.numbers)


def test_the_commands_take_them(capsys) -> None:
    assert read_arguments({"pretrained": "mini", "quantize": "int8"}).quantize == "int8"
    generate(["--device", "cpu", "--dtype", "float32", "--quantize", "int8", "--steps", "3", "--json", "--quiet"])
    record = json.loads(capsys.readouterr().out)
    assert record["dtype"] == "int8 (float32)" and record["model"]["quantize"] == "int8"
    assert math.isfinite(record["seconds"])
