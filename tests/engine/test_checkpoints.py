"""Checkpoints as they are published: what is recognised, what is refused, and logits against a plain network."""

from __future__ import annotations

import copy
import importlib
import json
import pickle
import shutil
import types
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors

import sparsed
from sparsed.models import LoadError
from sparsed.models.devices import pick_dtype

# The HTTP library that this version of huggingface_hub uses: httpx, or httpx2.
HTTP = importlib.import_module(errors.HfHubHTTPError.__mro__[1].__module__.partition(".")[0])

FAMILIES = ("llada", "dream", "qwen3", "llada_moe", "illada")


def load(folder: Path | str, **values):
    return sparsed.load(folder, **{"device": "cpu", "dtype": "float32", **values})


def refusal(folder: Path | str, **values) -> str:
    """What loading says: one sentence, which ends."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load(folder, **values)
    text = str(caught.value)
    assert "\n" not in text and text[-1] in ".?" and len(text) < 500
    return text


@pytest.fixture
def copied(folder_of, tmp_path: Path) -> Callable[..., Path]:
    """A checkpoint of its own to damage."""

    def make(family: str, **values) -> Path:
        return Path(shutil.copytree(folder_of(family, **values), tmp_path / family))

    return make


def ids(length: int, vocabulary: int = 256, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, vocabulary, (length,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits_of(network, sequence: torch.Tensor) -> torch.Tensor:
    return network(input_ids=sequence[None], use_cache=False).logits[0]


# ---- what a checkpoint says about itself ----


def test_llada_is_recognised(checkpoints, model_of, folder_of) -> None:
    model = model_of("llada")
    assert model.family == "llada" and not model.shift and model.chat
    assert model.name == folder_of("llada").name
    known = {name: checkpoints.special_id(name, checkpoints.LLADA_SPECIAL) for name in checkpoints.LLADA_SPECIAL}
    assert model.mask_id == known["<|mdm_mask|>"]
    assert model.eos_id == model.end_ids[0] == known["<|endoftext|>"]
    assert set(model.end_ids) == {known["<|endoftext|>"], known["<|eot_id|>"]}
    assert model.max_positions == 256
    wanted = sparsed.SamplerConfig(128, 128, 32, "low_confidence", 0.0)
    for name in ("steps", "gen_length", "block_length", "algorithm", "temperature"):
        assert getattr(model.defaults, name) == getattr(wanted, name)


def test_dream_is_recognised(checkpoints, model_of) -> None:
    model = model_of("dream")
    assert model.family == "dream" and model.shift and model.chat
    known = {name: checkpoints.special_id(name, checkpoints.DREAM_SPECIAL) for name in checkpoints.DREAM_SPECIAL}
    assert model.mask_id == known["<|mask|>"]
    assert model.eos_id == model.end_ids[0] == known["<|endoftext|>"]
    assert set(model.end_ids) == {known["<|endoftext|>"], known["<|im_end|>"]}
    defaults = model.defaults
    assert (defaults.algorithm, defaults.temperature, defaults.top_p) == ("maskgit_plus", 0.05, 0.95)
    assert not defaults.alg_temp and defaults.block_length in (None, defaults.gen_length)
    assert len(model.tokenizer) == checkpoints.FIRST_SPECIAL + len(checkpoints.DREAM_SPECIAL)


@pytest.mark.parametrize("kind", ["a2d-qwen3", "qwen3"])
def test_qwen3_diffusion_is_recognised(checkpoints, model_of, kind: str) -> None:
    model = model_of("qwen3", model_type=kind)
    assert model.family == "qwen3" and not model.shift and model.chat
    known = {name: checkpoints.special_id(name, checkpoints.QWEN_SPECIAL) for name in checkpoints.QWEN_SPECIAL}
    assert model.mask_id == known["<|mask|>"]
    assert model.eos_id == model.end_ids[0] == known["<|im_end|>"]
    assert set(model.end_ids) == {known["<|endoftext|>"], known["<|im_end|>"]}
    assert model.network.lm_head.weight is model.network.model.embed_tokens.weight
    assert model.defaults.algorithm == "low_confidence"


def test_qwen2_with_a_mask_token_is_recognised(model_of) -> None:
    model = model_of("dream", model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    assert model.family == "qwen2" and not model.shift and model.mask_id == model_of("dream").mask_id


def test_without_a_chat_template_text_is_text(copied, checkpoints) -> None:
    folder = copied("llada")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    checkpoints.write_json(folder / "tokenizer_config.json", config)
    model = load(folder)
    assert not model.chat
    assert model.encode("the <|eot_id|> a")[0].max() < checkpoints.FIRST_SPECIAL
    assert model.tokenizer.decode(model.encode("the <|eot_id|> a")[0]) == "the <|eot_id|> a"


def test_the_mask_token_is_found_by_its_spelling(copied, checkpoints) -> None:
    folder = copied("qwen3")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["mask_token"]
    checkpoints.write_json(folder / "tokenizer_config.json", config)
    assert load(folder).mask_id == checkpoints.special_id("<|mask|>", checkpoints.QWEN_SPECIAL)


def test_a_model_without_a_mask_token_is_refused(copied, checkpoints) -> None:
    folder = copied("qwen3")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("<|mask|>", "<|other|>").replace('"mask_token"', '"pad_token"'))
    assert "mask token" in refusal(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_generated_text_ends_at_every_end_token(model_of, family: str) -> None:
    model = model_of(family)
    words = model.tokenizer("the inner thing", add_special_tokens=False)["input_ids"]
    for end in model.end_ids:
        assert model.decode(torch.tensor([*words, end, *words])) == "the inner thing"
    assert model.decode(torch.tensor([*words, model.mask_id])) == "the inner thing"
    assert model.token_text(words[0]) == "the"


# ---- keys, files and code ----

KINDS = {
    "llada": (
        "wte", "ln_f", "transformer.ff_out", "blocks.1.attn_norm", "blocks.1.ff_norm", "blocks.0.q_proj",
        "blocks.1.k_proj", "blocks.1.v_proj", "blocks.1.attn_out", "blocks.1.ff_proj", "blocks.1.up_proj",
        "blocks.0.ff_out",
    ),
    "dream": ("embed_tokens", "lm_head", "q_proj.bias", "k_proj.bias", "v_proj.bias", "layers.1.mlp.gate_proj"),
    "qwen3": ("embed_tokens", "model.norm", "q_norm", "k_norm", "layers.1.self_attn.o_proj"),
    "llada_moe": (
        "embed_tokens", "lm_head", "q_norm", "layers.1.mlp.gate.weight", "layers.0.mlp.experts.0.gate_proj",
        "layers.1.mlp.experts.5.up_proj", "layers.1.mlp.experts.3.down_proj",
    ),
    "illada": ("embed_tokens", "model.norm", "layers.1.input_layernorm", "k_proj", "layers.1.mlp.down_proj"),
}  # fmt: skip


LLAMA_NAMES = {
    "transformer.wte": "embed_tokens",
    "transformer.ln_f": "norm",
    "model.transformer.ff_out": "lm_head",
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
    **{f"{name}_proj": f"self_attn.{name}_proj" for name in "qkv"},
}


def names_of(key: str) -> set[str]:
    """A weight's published name, and the one it has in transformers' class."""
    if "transformer." not in key:
        return {key}
    old = next(old for old in LLAMA_NAMES if f"{old}." in key)
    return {key, key.replace("transformer.blocks", "layers").replace(old, LLAMA_NAMES[old])}


@pytest.mark.parametrize(("family", "part"), [(f, part) for f, parts in KINDS.items() for part in parts])
def test_a_missing_weight_is_named(checkpoints, copied, family: str, part: str) -> None:
    folder = copied(family)
    tensors = checkpoints.read_tensors(folder)
    dropped = next(key for key in tensors if part in key)
    del tensors[dropped]
    checkpoints.write_tensors(folder, tensors)
    said = refusal(folder)
    assert "missing" in said and any(name in said for name in names_of(dropped)), said


@pytest.mark.parametrize(
    ("family", "added"),
    [
        ("llada", "model.transformer.blocks.2.q_proj.weight"),
        ("llada", "model.transformer.blocks.0.q_proj.bias"),
        ("llada", "model.transformer.wpe.weight"),
        ("dream", "model.layers.1.self_attn.o_proj.bias"),
        ("dream", "something.else"),
        ("qwen3", "model.layers.0.self_attn.q_proj.bias"),
        ("llada_moe", "model.layers.1.mlp.experts.6.up_proj.weight"),
        ("llada_moe", "model.layers.0.mlp.shared_experts.up_proj.weight"),
        ("llada_moe", "model.layers.0.mlp.gate.expert_bias"),
        ("illada", "model.layers.1.self_attn.q_norm.weight"),
        ("illada", "model.layers.0.self_attn.q_proj.bias"),
        ("illada", "model.layers.2.mlp.up_proj.weight"),
    ],
)
def test_a_weight_too_many_is_named(checkpoints, copied, family: str, added: str) -> None:
    folder = copied(family, shards=3)
    checkpoints.write_tensors(folder, checkpoints.read_tensors(folder) | {added: torch.ones(4)}, shards=3)
    said = refusal(folder)
    assert any(name in said for name in ({added} if "wpe" in added else names_of(added)))


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("llada", "model.transformer.blocks.1.k_proj.weight"),
        ("llada", "model.transformer.ff_out.weight"),
        ("dream", "model.layers.0.self_attn.q_proj.bias"),
        ("qwen3", "model.layers.1.self_attn.k_norm.weight"),
        ("llada_moe", "model.layers.1.mlp.experts.2.down_proj.weight"),
        ("llada_moe", "model.layers.0.mlp.gate.weight"),
        ("illada", "model.embed_tokens.weight"),
    ],
)
def test_another_shape_is_said(checkpoints, copied, family: str, key: str) -> None:
    folder = copied(family)
    tensors = checkpoints.read_tensors(folder)
    checkpoints.write_tensors(folder, tensors | {key: torch.cat([tensors[key], tensors[key]])})
    assert "shape" in refusal(folder)


def test_a_config_that_does_not_fit_the_weights(checkpoints, copied) -> None:
    folder = copied("llada")
    checkpoints.change_config(folder, n_layers=3)
    assert "9" in refusal(folder)
    checkpoints.change_config(folder, n_layers=1)
    assert "9" in refusal(folder)
    checkpoints.change_config(folder, n_layers=2, mlp_hidden_size=96)
    assert "shape" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.fp16.safetensors", "(it has model.fp16.safetensors, which no index names)"),
        ("pytorch_model.bin", "(pytorch_model.bin is a pickle, which can run code, and is not loaded)"),
    ],
)
def test_what_is_there_instead_of_the_weights_is_said(copied, name: str, said: str) -> None:
    folder = copied("llada")
    (folder / "model.safetensors").rename(folder / name)
    assert refusal(folder) == f"The model folder {folder} has no model.safetensors {said}."


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "gone"])
def test_a_damaged_shard(copied, family: str, damage: str) -> None:
    folder = copied(family, shards=3)
    shard = sorted(folder.glob("*.safetensors"))[1]
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-200])
    elif damage == "garbage":
        shard.write_bytes(b"\xff" * 1000)
    elif damage == "empty":
        shard.write_bytes(b"")
    else:
        shard.unlink()
    said = refusal(folder)
    assert str(folder) in said or shard.name in said


class _Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sharded", [False, True])
def test_pickles_are_refused_and_not_opened(checkpoints, copied, tmp_path: Path, family: str, sharded: bool) -> None:
    folder = copied(family)
    keys = list(checkpoints.read_tensors(folder))
    (folder / "model.safetensors").unlink()
    marker = tmp_path / "unpickled"
    names = ["pytorch_model-00001-of-00001.bin"] if sharded else ["pytorch_model.bin", "model.pt", "model.pth"]
    for name in names:
        (folder / name).write_bytes(pickle.dumps(_Bomb(marker)))
    if sharded:
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(keys, names[0])}
        checkpoints.write_json(folder / "pytorch_model.bin.index.json", index)
    assert "safetensors" in refusal(folder)
    assert not marker.exists()


def test_code_in_the_folder_never_runs(folder_of, model_of) -> None:
    for family in FAMILIES:
        folder = folder_of(family)
        assert "auto_map" in json.loads((folder / "config.json").read_text())
        code = list(folder.glob("*.py"))
        assert code
        model_of(family).encode("What?")
        load(folder)
        assert not (folder / "ran").exists()
    # They would have left a trace.
    with pytest.raises(RuntimeError, match="remote code ran"):
        exec(compile(code[0].read_text(), "code", "exec"), {})
    assert (folder / "ran").exists()
    (folder / "ran").unlink()


@pytest.mark.parametrize("kind", ["gpt2", "bert", "LLaDA-MoE", "", None, 7])
def test_an_unknown_family_is_named(checkpoints, copied, kind) -> None:
    folder = copied("dream")
    checkpoints.change_config(folder, model_type=kind)
    assert repr(kind) in refusal(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alibi", True),
        ("layer_norm_type", "default"),
        ("layer_norm_type", "low_precision"),
        ("block_type", "sequential"),
        ("attention_layer_norm", True),
        ("include_bias", True),
        ("include_qkv_bias", True),
        ("activation_type", "swiglu"),
        ("activation_type", "gelu"),
        ("rope", False),
        ("scale_logits", True),
        ("input_emb_norm", True),
        ("bias_for_layer_norm", True),
    ],
)
def test_a_llada_that_is_no_llama_is_refused(checkpoints, copied, name: str, value) -> None:
    folder = copied("llada")
    checkpoints.change_config(folder, **{name: value})
    said = refusal(folder)
    assert name in said and str(value) in said


@pytest.mark.parametrize("name", ["d_model", "n_heads", "n_layers", "max_sequence_length"])
def test_an_incomplete_llada_config_is_said(checkpoints, copied, name: str) -> None:
    folder = copied("llada")
    config = json.loads((folder / "config.json").read_text())
    del config[name]
    checkpoints.write_json(folder / "config.json", config)
    assert name in refusal(folder)


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("llada", {"n_heads": 5}),
        ("llada", {"n_heads": 0}),
        ("llada", {"n_kv_heads": 3}),
        ("llada", {"d_model": "wide"}),
        ("llada", {"n_layers": 0}),
        ("llada", {"mask_token_id": 5000}),
        ("llada", {"quantization_config": {"bits": 4}}),
        ("dream", {"hidden_size": None}),
        ("dream", {"hidden_act": "nope"}),
        ("dream", {"num_attention_heads": 5}),
        ("dream", {"rope_theta": None}),
        ("qwen3", {"head_dim": 12}),
        ("qwen3", {"vocab_size": "many"}),
        ("qwen3", {"model_type": ["qwen3"]}),
    ],
)
def test_a_config_that_makes_no_sense_is_one_sentence(checkpoints, copied, family: str, values: dict) -> None:
    folder = copied(family)
    checkpoints.change_config(folder, **values)
    refusal(folder)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none_is_one_sentence(copied, index: str) -> None:
    folder = copied("llada", shards=2)
    (folder / "model.safetensors.index.json").write_text(index)
    refusal(folder)


@pytest.mark.parametrize(
    ("family", "name", "text"),
    [
        ("llada", "config.json", "{"),
        ("llada", "config.json", "[]"),
        ("llada", "tokenizer.json", "{"),
        ("llada", "tokenizer.json", None),
        ("llada", "tokenizer_config.json", "[]"),
        ("dream", "vocab.json", "[]"),
        ("dream", "vocab.json", None),
        ("dream", "merges.txt", "one\ntwo\n"),
        ("dream", "merges.txt", None),
    ],
)
def test_a_damaged_or_missing_file_is_one_sentence(copied, family: str, name: str, text: str | None) -> None:
    folder = copied(family)
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    said = refusal(folder)
    assert name in said or (name.startswith(("tokenizer", "vocab", "merges")) and "tokenizer" in said)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("where", [{"device": "cuda"}, {"device": None, "device_map": {"": "cuda:0"}}])
def test_a_device_that_is_not_there_is_one_sentence(folder_of, where: dict) -> None:
    assert "cuda" in refusal(folder_of("llada"), **where)


# ---- logits ----

SHAPES = [
    ("llada", {}),
    ("llada", {"n_kv_heads": 2, "shards": 3}),
    ("llada", {"n_kv_heads": 1, "rope_theta": 10000.0, "rms_norm_eps": 1e-3}),
    ("llada", {"mlp_hidden_size": None, "mlp_ratio": 2, "n_kv_heads": None, "shards": 2}),
    ("llada", {"embedding_size": 320}),
    ("llada", {"weight_tying": True}),
    ("dream", {}),
    ("dream", {"num_key_value_heads": 1, "num_attention_heads": 6, "shards": 4}),
    ("dream", {"num_key_value_heads": 4, "rope_theta": 10000.0}),
    ("dream", {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
    ("qwen3", {}),
    ("qwen3", {"model_type": "qwen3", "shards": 2, "head_dim": 8}),
    ("llada_moe", {}),
    ("llada_moe", {"num_experts_per_tok": 1, "num_key_value_heads": 2, "shards": 3}),
    ("llada_moe", {"num_experts": 3, "num_experts_per_tok": 3, "tie_word_embeddings": True}),
    ("illada", {}),
    ("illada", {"num_key_value_heads": 2, "shards": 3, "tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
]


@pytest.mark.parametrize(("family", "values"), SHAPES)
def test_logits_equal_a_plain_network(checkpoints, folder_of, model_of, family: str, values: dict) -> None:
    """Every position and token, in float32, and the network's arithmetic in float64, to 1e-5 of the largest logit."""
    model, folder = model_of(family, **values), folder_of(family, **values)
    exact = checkpoints.PlainNetwork(folder, torch.float64)
    single = checkpoints.PlainNetwork(folder, torch.float32)
    double = copy.deepcopy(model.network).double()
    if family == "llada_moe":
        double.set_experts_implementation("eager")  # torch has no grouped product in float64
    for length in (1, 2, 37):
        sequence = ids(length, seed=length)
        sequence[length // 2] = model.mask_id
        wanted = exact.logits(sequence)
        scale = float(wanted.abs().max())
        assert scale > 3
        got = logits_of(model.network, sequence)
        assert got.dtype == torch.float32 and got.shape == wanted.shape
        assert (got - wanted).abs().max() < 1e-5 * scale
        assert (got - single.logits(sequence)).abs().max() < 1e-5 * scale
        assert (logits_of(double, sequence) - wanted).abs().max() < 1e-5 * scale


@pytest.mark.parametrize(("family", "values"), SHAPES)
@pytest.mark.parametrize("saved", [torch.bfloat16, torch.float32])
def test_bfloat16_logits_are_within_one_ulp(checkpoints, folder_of, model_of, family: str, values: dict, saved) -> None:
    """LLaDA's queries and keys rotate in float32, Dream's and Qwen3's in bfloat16."""
    model = model_of(family, load_dtype="bfloat16", dtype=saved, **values)
    plain = checkpoints.PlainNetwork(folder_of(family, dtype=saved, **values), torch.bfloat16)
    sequence = ids(150, seed=3)
    got, wanted = logits_of(model.network, sequence), plain.logits(sequence)
    assert got.dtype == wanted.dtype == torch.bfloat16
    assert checkpoints.ulps(got, wanted) <= 1
    # The other rotation is further away than that, so this test can tell them apart.
    plain.llada = not plain.llada
    assert checkpoints.ulps(got, plain.logits(sequence)) > 1


def test_weights_keep_the_dtype_asked_for_and_rotation_stays_exact(model_of) -> None:
    bases = {"llada": (5e5, 16), "dream": (1e6, 12), "qwen3": (1e6, 16), "llada_moe": (5e4, 12), "illada": (2e5, 16)}
    for family, (theta, dim) in bases.items():
        network = model_of(family, load_dtype="bfloat16").network
        assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
        rates = [b for name, b in network.named_buffers() if name.endswith("inv_freq")]
        exact = torch.tensor([theta ** (-2 * i / dim) for i in range(dim // 2)], dtype=torch.float64)
        assert rates and all(rate.dtype == torch.float32 for rate in rates)
        assert torch.allclose(rates[0].double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_bidirectional(model_of, family: str) -> None:
    network = model_of(family).network
    sequence = ids(20)
    other = sequence.clone()
    other[-1] = (other[-1] + 1) % 256
    before, after = logits_of(network, sequence), logits_of(network, other)
    assert ((before - after).abs().amax(-1) > 1e-3).all()


# The last layer's weights stay on the disk until it is their turn.
OFFLOADED = {
    name: "cpu" for name in ("model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.norm", "lm_head")
}
OFFLOADED["model.layers.1"] = "disk"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}, OFFLOADED])
def test_a_device_map_changes_nothing(folder_of, model_of, family: str, device_map) -> None:
    if family == "llada_moe" and device_map is OFFLOADED:
        said = refusal(folder_of(family), device=None, device_map=device_map)
        assert "are stacked when they are loaded, and cannot be left on the disk" in said
        return
    model = load(folder_of(family), device=None, device_map=device_map)
    sequence = ids(40)
    prompt = torch.where(ids(60) == model.mask_id, 7, ids(60))
    assert model.device == torch.device("cpu")
    assert torch.equal(logits_of(model.network, sequence), logits_of(model_of(family).network, sequence))
    config = sparsed.SamplerConfig(steps=4, gen_length=8, block_length=8)
    a, b = (sparsed.generate(m, prompt, sampler=config).tokens for m in (model, model_of(family)))
    assert torch.equal(a, b)


# ---- text ----

TEXTS = [
    "What is the inner a?",
    "  two  spaces, tabs\t\tand\n\n\nlines\n",
    "\n\nfirst line empty",
    "Grüße aus Köln – 日本語 🙂",
    "def f(x):\n    return {{ x }} % {% raw %}",
    "< | mask | > <|almost|> [CLS <|eot_id",
    "x",
]
SPELLED = {
    "llada": ("<|mdm_mask|>", "<|eot_id|>", "<|startoftext|>", "<|endoftext|>", "<|start_header_id|>", "[CLS]"),
    "dream": ("<|mask|>", "<|im_end|>", "<|endoftext|>", "<|im_start|>", "<|beginoftext|>"),
    "qwen3": ("<|mask|>", "<|im_end|>", "<|endoftext|>", "<|im_start|>"),
    "llada_moe": ("<|mask|>", "<|role_end|>", "<|endoftext|>", "<role>", "</role>"),
    "illada": ("<[MASK]>", "<[EOS]>", "<[BOS]>", "<[PAD]>", "<[BOT]>", "<[USER]>"),
}


def template_ids(model, messages: list[dict[str, str]]) -> list[int]:
    encoded = model.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, enable_thinking=False, tokenize=True, return_dict=True
    )
    return list(encoded["input_ids"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", TEXTS)
def test_ordinary_text_is_what_the_chat_template_makes_of_it(model_of, family: str, text: str) -> None:
    model = model_of(family)
    assert model.encode(text)[0].tolist() == template_ids(model, [{"role": "user", "content": text}])
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": text},
        {"role": "assistant", "content": text + " the end"},
        {"role": "user", "content": "again: " + text},
    ]
    assert model.encode(chat)[0].tolist() == template_ids(model, chat)


def test_templates_by_hand(checkpoints, model_of) -> None:
    """The published templates, spelled out as text."""
    heads = {
        "llada": "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nthe a<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "dream": "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nthe a<|im_end|>\n<|im_start|>assistant\n",
        "qwen3": "<|im_start|>user\nthe a<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "llada_moe": "<role>HUMAN</role>the a<|role_end|><role>ASSISTANT</role>",
        "illada": "<[BOS]><[USER]>user: the a<[EOS]><[BOT]>",
    }
    for family, text in heads.items():
        model = model_of(family)
        found = model.encode("the a")[0].tolist()
        assert model.tokenizer.decode(found, skip_special_tokens=False) == text
        # Merges are at work: "the" is one token, and so is " a".
        first = len(checkpoints.ILLADA_SPECIAL) if family == "illada" else 0
        assert first + checkpoints.WORDS.index("Ġa") in found
        assert first + checkpoints.WORDS.index("Ġthe" if family == "illada" else "the") in found


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_in_a_users_text_stay_text(checkpoints, model_of, family: str) -> None:
    model = model_of(family)
    names = {"qwen3": checkpoints.QWEN_SPECIAL, "llada_moe": checkpoints.MOE_SPECIAL}
    names |= {"llada": checkpoints.LLADA_SPECIAL, "dream": checkpoints.DREAM_SPECIAL}
    names |= {"illada": checkpoints.ILLADA_SPECIAL}
    first = 0 if family == "illada" else checkpoints.FIRST_SPECIAL
    special = set(range(first, first + len(names[family])))
    empty = [i for i in model.encode("x")[0].tolist() if i in special]
    spelled = SPELLED[family]
    texts = [*spelled, *(f"the {a}{b} in {a} a" for a, b in zip(spelled, spelled[1:]))]
    texts += [f"\ue0000\ue001\uf8ff\x00 {spelled[0]} {{{{ 7 * 7 }}}} \ufffd", f" \n{spelled[1]}\n ", spelled[0] * 3]
    for text in texts:
        found = model.encode(text)[0].tolist()
        assert [i for i in found if i in special] == empty, text
        assert text.strip() in model.tokenizer.decode(found, skip_special_tokens=False)
        # In every message of a chat, the system's and the answers' too.
        chat = [{"role": role, "content": text} for role in ("system", "user", "assistant", "user")]
        plain = [{**message, "content": "x"} for message in chat]
        found, frame = model.encode(chat)[0].tolist(), model.encode(plain)[0].tolist()
        assert [i for i in found if i in special] == [i for i in frame if i in special]
        seen, around = (model.tokenizer.decode(row, skip_special_tokens=False) for row in (found, frame))
        assert seen.count(text.strip()) == around.count(text.strip()) + 4 * text.count(text.strip())
        rendered = model.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, enable_thinking=False, tokenize=False
        )
        assert seen == rendered


def test_what_is_before_and_after_a_spelled_token_is_untouched(checkpoints, model_of) -> None:
    model = model_of("llada")
    ordinary = model.encode("the inner thing")[0].tolist()
    head = ordinary.index(checkpoints.WORDS.index("the"))
    tail = len(ordinary) - 1 - ordinary[::-1].index(checkpoints.special_id("<|eot_id|>", checkpoints.LLADA_SPECIAL))
    spelled = model.encode("the <|eot_id|> thing")[0].tolist()
    assert spelled[:head] == ordinary[:head] and spelled[tail - len(ordinary) :] == ordinary[tail:]
    inside = model.tokenizer.decode(spelled[head : tail - len(ordinary)], skip_special_tokens=True)
    assert inside == "the <|eot_id|> thing"


def test_token_ids_are_used_as_they_are(model_of) -> None:
    for family in FAMILIES:
        model = model_of(family)
        given = torch.tensor([[4, model.eos_id, 6], [1, 2, 3]])
        assert torch.equal(model.encode(given), given) and torch.equal(model.encode(given, chat=False), given)
        with pytest.raises(ValueError, match="Token ids are used exactly as they are"):
            model.encode(given, chat=True)
        given[1, 2] = model.mask_id
        with pytest.raises(ValueError, match=f"hold the mask token {model.mask_id} at position 2"):
            model.encode(given)


# ---- progress, the Hub, and what stays usable ----


def assert_progress(reports: list, stage: str, files: int) -> None:
    assert reports and {report.stage for report in reports} == {stage}
    assert len({(report.total_bytes, report.total_files) for report in reports}) == 1
    for name in ("bytes", "files"):
        values = [getattr(report, name) for report in reports]
        assert all(type(value) is int for value in values) and values == sorted(values) and values[0] >= 0
    assert reports[-1].bytes == reports[-1].total_bytes > 0
    assert reports[-1].files == reports[-1].total_files == files
    assert all(str(report) and "\n" not in str(report) for report in reports)


@pytest.mark.parametrize(("family", "shards"), [("llada", 1), ("llada", 4), ("dream", 3), ("llada_moe", 3)])
def test_progress_of_a_local_checkpoint(checkpoints, folder_of, family: str, shards: int) -> None:
    folder = folder_of(family, shards=shards)
    reports: list = []
    load(folder, progress=reports.append)
    assert_progress(reports, "weights", shards)
    assert len(reports) > shards or family == "llada_moe"  # its experts arrive as one
    weights = sum(x.numel() * x.element_size() for x in checkpoints.read_tensors(folder).values())
    files = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert weights <= reports[-1].total_bytes <= files


def hub_error(kind: type, status: int) -> Exception:
    request = HTTP.Request("GET", "https://huggingface.co/api/models/someone/some-model")
    return kind("said\nin several lines", response=HTTP.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (lambda: hub_error(errors.RepositoryNotFoundError, 404), "is no repository of the Hub"),
        (lambda: hub_error(errors.GatedRepoError, 403), "log in"),
        (lambda: hub_error(errors.RevisionNotFoundError, 404), "revision"),
        (lambda: hub_error(errors.HfHubHTTPError, 500), "could not be downloaded: the Hub answered with status 500"),
        (lambda: HTTP.ConnectError("name resolution failed"), "no connection"),
        (lambda: HTTP.ConnectTimeout("timed out"), "no connection"),
        (lambda: errors.LocalEntryNotFoundError("not in the cache"), "no connection"),
        (lambda: errors.OfflineModeIsEnabled("offline"), "no connection"),
        (lambda: ConnectionResetError("reset by peer"), "no connection"),
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_what_the_hub_says_becomes_a_sentence(monkeypatch, error, said: str, dry: bool) -> None:
    def fail(*_args, local_files_only=False, **_values):
        if local_files_only:
            raise errors.LocalEntryNotFoundError("not in the cache")
        if dry:  # as the client does it where nothing is to be downloaded yet
            raise errors.DryRunError("Dry run cannot be performed") from error()
        raise error()

    for name in ("snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, name, fail)
    text = refusal("someone/some-model", revision="v9")
    assert said in text and "someone/some-model" in text and "DryRun" not in text


@pytest.mark.parametrize("name", ["someone/some-model", "GSAI-ML/LLaDA-1.5", "llada-1.5"])
def test_offline_it_is_said_that_the_setting_is_on(monkeypatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("sparsed.models.loading.pick_dtype", lambda *_: torch.float32)
    text = refusal(name)
    assert "is not in the local cache; HF_HUB_OFFLINE is set, so that nothing is downloaded." in text
    start = "There is no folder 'someone/some-model', and as a Hub id it" if "some" in name else "GSAI-ML/LLaDA-1.5 is"
    assert text.startswith(start)


def test_a_download_from_before_generation_config_was_fetched_loads(folder_of, monkeypatch) -> None:
    def cached(_repo_id=None, *, allow_patterns, local_files_only=False, **_values):
        if not local_files_only or "generation_config.json" in allow_patterns:
            raise errors.LocalEntryNotFoundError("a file is missing")
        return str(folder_of("llada"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    assert load("someone/some-model").family == "llada"


@pytest.mark.parametrize(
    "name", ["./models/x", "models/x/y", "../x", "/nowhere", "./x", "~/no such folder", "x/", "C:\\models\\x", "a/b/"]
)
def test_a_mistyped_path_is_no_hub_id(monkeypatch, name: str) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    assert refusal(name) == f"There is no folder {name!r}."


def test_a_revision_is_of_the_hub(folder_of) -> None:
    for name in (folder_of("llada"), "mini"):
        said = f"{name} is a folder of this machine, which has no revision 'v2': leave it out."
        assert refusal(name, revision="v2") == said


def test_a_device_and_a_device_map_are_not_asked_for_together(folder_of) -> None:
    said = refusal(folder_of("llada"), device_map="auto")
    assert said == "device_map places the weights by itself: leave device out."


def test_a_file_is_no_folder(folder_of) -> None:
    assert refusal(folder_of("llada") / "config.json").endswith("config.json' (that is a file).")


def test_what_can_be_neither_is_said(monkeypatch) -> None:
    assert refusal("a--b/x") == "There is no folder 'a--b/x', and it can be no Hub id either."


def test_a_clone_is_loaded_where_it_lies_under_its_hub_id(folder_of, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder_of("llada"), "GSAI-ML/LLaDA-1.5")
    assert load("GSAI-ML/LLaDA-1.5").folder == tmp_path / "GSAI-ML/LLaDA-1.5"


class FakeHub:
    """huggingface_hub's two downloads, out of a local folder."""

    def __init__(self, source: Path, cache: Path) -> None:
        self.source, self.cache, self.asked = source, cache, list[str]()

    def matching(self, allow_patterns) -> list[Path]:
        patterns = allow_patterns if isinstance(allow_patterns, list) else [allow_patterns]
        return [file for file in sorted(self.source.iterdir()) if any(file.match(p) for p in patterns)]

    def snapshot_download(self, repo_id, *, allow_patterns, dry_run=False, local_files_only=False, **_):
        if dry_run:
            return [
                types.SimpleNamespace(
                    filename=file.name, file_size=file.stat().st_size, will_download=True, is_cached=False,
                    commit_hash="0" * 40, local_path=str(self.cache / file.name),
                )
                for file in self.matching(allow_patterns)
            ]  # fmt: skip
        if not local_files_only:
            for file in self.matching(allow_patterns):
                self.hf_hub_download(repo_id, file.name)
        return str(self.cache)

    def hf_hub_download(self, repo_id, filename, *, tqdm_class=None, **_):
        self.asked.append(filename)
        size = (self.source / filename).stat().st_size
        if tqdm_class is not None:
            with tqdm_class(total=size, initial=0, unit="B", unit_scale=True, desc=filename) as bar:
                for _ in range(size // 1000):
                    bar.update(1000)
                bar.update(size % 1000)
        return str(shutil.copy(self.source / filename, self.cache / filename))


def test_a_download_tells_how_far_it_is_and_fetches_no_code(folder_of, tmp_path, monkeypatch) -> None:
    source = Path(shutil.copytree(folder_of("llada", shards=3), tmp_path / "hub"))
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    (source / "README.md").write_text("card")
    (source / "tokenizer_code.py").write_text("raise RuntimeError")
    (tmp_path / "cache").mkdir()
    hub = FakeHub(source, tmp_path / "cache")
    for name in ("snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, name, getattr(hub, name))
    reports: list = []
    model = load("someone/some-model", progress=reports.append)
    assert "some-model" in model.name and model.family == "llada"
    assert not [name for name in hub.asked if Path(name).suffix not in (".json", ".safetensors", ".txt")]
    assert len(set(hub.asked)) == len(hub.asked)
    download = [report for report in reports if report.stage == "download"]
    assert reports[: len(download)] == download
    assert_progress(download, "download", len(hub.asked))
    assert download[-1].total_bytes == sum((source / name).stat().st_size for name in hub.asked)
    assert_progress(reports[len(download) :], "weights", 3)


def test_a_repository_without_safetensors_is_refused(folder_of, tmp_path, monkeypatch) -> None:
    source = Path(shutil.copytree(folder_of("llada"), tmp_path / "hub"))
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    (tmp_path / "cache").mkdir()
    hub = FakeHub(source, tmp_path / "cache")
    for name in ("snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, name, getattr(hub, name))
    assert "safetensors" in refusal("someone/some-model")
    assert not [name for name in hub.asked if name.endswith(".bin")]


@pytest.mark.parametrize("name", ["adapter_config.json", "quantize_config.json", "hf_quant_config.json"])
def test_another_kind_of_model_is_refused_before_it_is_downloaded(folder_of, tmp_path, monkeypatch, name: str) -> None:
    source = Path(shutil.copytree(folder_of("llada"), tmp_path / "hub"))
    (source / name).write_text("{}")
    hub = FakeHub(source, tmp_path / "cache")
    for function in ("snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, function, getattr(hub, function))
    assert refusal("someone/some-model").startswith(f"someone/some-model holds {name}, which stands for ")
    assert not hub.asked


def test_too_little_memory_is_said_with_what_would_fit(folder_of, monkeypatch) -> None:
    needed = load(folder_of("llada")).network.num_parameters() * 4
    monkeypatch.setattr("sparsed.models.devices.device_memory", lambda *_: needed - 1)
    text = refusal(folder_of("llada"))
    assert "in float32" in text
    assert text.endswith("In bfloat16 (dtype='bfloat16', --dtype bfloat16) they need 0.0 GB, which fit.")
    assert load(folder_of("llada"), dtype="bfloat16").dtype == torch.bfloat16
    monkeypatch.setattr("sparsed.models.devices.device_memory", lambda *_: needed // 2 - 1)
    for dtype in ("float32", "bfloat16", "float16"):
        text = refusal(folder_of("llada"), dtype=dtype)
        assert text.endswith("In int8 (quantize='int8', --quantize int8) they need 0.0 GB, which fit."), text
    monkeypatch.setattr("sparsed.models.devices.device_memory", lambda *_: 1)
    text = refusal(folder_of("llada"))
    assert text.endswith("Choose a smaller model, or spread it with device_map='auto'."), text


def test_what_would_fit_in_fewer_bits_is_said(monkeypatch) -> None:
    """LLaDA-8B: 16.0 GB, in int8 9.1, in int4 5.7."""
    parameters, kept = 8_015_581_184, 1_036_259_328

    def advice(free: float, kept: int, quantize: str | None = None) -> str:
        monkeypatch.setattr("sparsed.models.devices.device_memory", lambda *_: int(free * 1e9))
        with pytest.raises(LoadError, match=r" free\. ") as raised:
            pick_dtype(torch.bfloat16, torch.device("cpu"), parameters, "LLaDA", quantize, kept)
        return str(raised.value).rpartition(" free. ")[2]

    assert advice(12, kept) == "In int8 (quantize='int8', --quantize int8) they need 9.1 GB, which fit."
    assert advice(8, kept) == "In int4 (quantize='int4', --quantize int4) they need 5.7 GB, which fit."
    for free, unquantised in ((5, kept), (12, 0)):
        assert advice(free, unquantised) == "Choose a smaller model, or spread it with device_map='auto'."
    # Quantised weights are not spread.
    assert advice(5, kept, "int4") == "Choose a smaller model."


@pytest.mark.parametrize(
    ("device_map", "said"),
    [
        ("banana", "device_map must be one of auto, balanced, balanced_low_0, sequential or a device such as 'cpu' and "
         "'cuda:1', not 'banana'."),
        ("", "device_map must be one of auto"),
        ({"": "banana"}, "device must be 'cpu', 'cuda', 'cuda:1' or 'mps', not 'banana'."),
        ("cuda:99", "There is no device 'cuda:99' on this machine."),
        ({"lm_head": 99}, "There is no device 'cuda:99' on this machine."),
    ],
)  # fmt: skip
def test_a_device_map_that_is_none_is_one_sentence(folder_of, device_map, said: str) -> None:
    assert refusal(folder_of("llada"), device=None, device_map=device_map).startswith(said)


def test_too_little_memory_is_said_before_anything_is_read(folder_of, monkeypatch) -> None:
    monkeypatch.setattr("sparsed.models.devices.device_memory", lambda *_: 1000)
    reports: list = []
    assert "memory" in refusal(folder_of("llada"), progress=reports.append)
    assert not reports


def test_a_failed_load_leaves_the_model_before_usable(checkpoints, folder_of, copied) -> None:
    from transformers.utils import logging

    talk = logging.get_verbosity(), logging.is_progress_bar_enabled()
    model = load(folder_of("llada"))
    sequence = ids(40)
    before = logits_of(model.network, sequence)
    run = sparsed.denoise(model, ids(50), sampler=sparsed.SamplerConfig(steps=6, gen_length=12, block_length=6))
    expected = sparsed.generate(model, ids(50), sampler=run.sampler).tokens
    next(run)
    for family in FAMILIES:
        folder = copied(family)
        tensors = checkpoints.read_tensors(folder)
        checkpoints.write_tensors(folder, dict(list(tensors.items())[:-1]))
        refusal(folder)
        (folder / "model.safetensors").write_bytes(b"\0" * 50)
        refusal(folder)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == talk
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(logits_of(model.network, sequence), before)
    assert torch.equal(run.result().tokens, expected)
