"""Every key of config.json that would change the network is honoured as transformers does, refused, or named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import sparsed
from sparsed.models import LoadError
from sparsed.models.families import LLADA_KEYS, recognise

CLASSES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "an older name": {"type": "linear", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn by hand": {
        "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "attention_factor": 1.3,
        "beta_fast": 16, "beta_slow": 2,
    },
    "yarn of the whole length": {"rope_type": "yarn", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}  # fmt: skip


def load(folder: Path, dtype: str = "float32"):
    return sparsed.load(folder, device="cpu", dtype=dtype)


@torch.no_grad()
def logits_of(network, ids: torch.Tensor) -> torch.Tensor:
    return network(input_ids=ids[None], use_cache=False).logits[0]


@torch.no_grad()
def by_transformers(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits of transformers' own network, in float32, with a mask that hides nothing."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    network = getattr(transformers, f"{CLASSES[kind]}ForCausalLM").from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    length = len(ids)
    return network(input_ids=ids[None], attention_mask=torch.zeros(1, 1, length, length), use_cache=False).logits[0]


def some_ids(length: int) -> torch.Tensor:
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(length))


@pytest.fixture
def random_folder(folder_of, tmp_path: Path) -> Callable[..., Path]:
    """(model_type, values of its config) → a checkpoint of transformers' own class with random weights, biases too."""

    def write(kind: str, **values: Any) -> Path:
        folder = tmp_path / f"{kind}{len(list(tmp_path.iterdir()))}"
        sizes = {
            "vocab_size": 320, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 512,
            "rms_norm_eps": 1e-6, "initializer_range": 0.4, "bos_token_id": None, "eos_token_id": 263,
        }  # fmt: skip
        torch.manual_seed(0)
        network = getattr(transformers, f"{CLASSES[kind]}ForCausalLM")(
            getattr(transformers, f"{CLASSES[kind]}Config")(**{**sizes, **values})
        )
        with torch.no_grad():
            for name, weight in network.named_parameters():
                if name.endswith("bias"):
                    weight.normal_()
        network.save_pretrained(folder)
        for file in folder_of("qwen3").glob("*token*.json"):
            shutil.copy(file, folder)
        return folder

    return write


HONOURED = [
    ("llama", {"attention_bias": True}),
    ("llama", {"mlp_bias": True}),
    ("llama", {"head_dim": 20}),
    ("llama", {"hidden_act": "gelu"}),
    ("llama", {"rms_norm_eps": 0.1}),
    ("llama", {"tie_word_embeddings": True}),
    ("qwen2", {"head_dim": 16}),
    ("qwen2", {"hidden_act": "relu", "num_key_value_heads": None}),
    ("qwen2", {"use_sliding_window": False, "sliding_window": 4}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}),
    ("qwen3", {"attention_bias": True}),
    ("qwen3", {"head_dim": 24, "tie_word_embeddings": True}),
    ("qwen3", {"layer_types": ["full_attention", "full_attention"], "sliding_window": 4}),
    *((kind, {"rope_parameters": {"rope_theta": 1e4, **rope}}) for kind in CLASSES for rope in ROPES.values()),
]


@pytest.mark.parametrize(("kind", "values"), HONOURED)
def test_a_key_does_what_it_does_in_transformers(random_folder, kind: str, values: dict) -> None:
    folder = random_folder(kind, **values)
    model = load(folder)
    for length in (3, 150):
        wanted = by_transformers(folder, some_ids(length))
        assert (logits_of(model.network, some_ids(length)) - wanted).abs().max() < 1e-5 * wanted.abs().max()
    # The key matters: another network without it, or none that its weights fit.
    config = json.loads((folder / "config.json").read_text())
    fields = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "hidden_act": "silu"}
    if set(values) & {"rope_parameters", "hidden_act"}:
        changed = {key: fields[key] for key in values if key in fields}
        (folder / "config.json").write_text(json.dumps(config | changed))
        other = logits_of(load(folder).network, some_ids(150))
        assert (other - wanted).abs().max() > 1e-3 * wanted.abs().max()
    assert not [note for note in model.notes if "not known" in note]


def as_llama(folder: Path, to: Path, rope: dict) -> Path:
    """A checkpoint in LLaDA's format as the same one in Llama's."""
    from safetensors.torch import load_file, save_file

    raw = json.loads((folder / "config.json").read_text())
    shutil.copytree(folder, to)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        for pattern, target in LLADA_KEYS.items():
            name = re.sub(pattern, target, name)
        tensors[name] = tensor
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "llama", "hidden_size": raw["d_model"], "num_attention_heads": raw["n_heads"],
        "num_key_value_heads": raw["n_kv_heads"], "num_hidden_layers": raw["n_layers"],
        "intermediate_size": raw["mlp_hidden_size"], "vocab_size": raw["embedding_size"],
        "max_position_embeddings": raw["max_sequence_length"], "rms_norm_eps": raw["rms_norm_eps"],
        "rope_theta": raw["rope_theta"], "mask_token_id": raw["mask_token_id"], "eos_token_id": raw["eos_token_id"],
    }  # fmt: skip
    (to / "config.json").write_text(json.dumps({**config, **rope}))
    return to


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", ROPES)
def test_lladas_rotation_is_scaled_as_a_llamas(folder_of, tmp_path: Path, name: str, key: str) -> None:
    """Logits in float32; cosines and sines are transformers' own in float32, whatever the dtype of the weights."""
    folder = Path(shutil.copytree(folder_of("llada"), tmp_path / "llada"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: ROPES[name]}))
    twin = as_llama(folder, tmp_path / "llama", {key: ROPES[name]})
    model, ids = load(folder), some_ids(200)
    wanted = by_transformers(twin, ids)
    assert (logits_of(model.network, ids) - wanted).abs().max() < 1e-5 * wanted.abs().max()
    plain = logits_of(load(folder_of("llada")).network, ids)
    assert (plain - wanted).abs().max() > 1e-2 * wanted.abs().max()
    theirs = LlamaRotaryEmbedding(model.network.config)
    places = torch.arange(200)[None]
    for dtype in ("float32", "bfloat16"):
        rotation = load(folder, dtype).network.model.rotary_emb
        cosine, sine = rotation(torch.zeros(1, dtype=getattr(torch, dtype)), places)
        assert cosine.dtype == sine.dtype == torch.float32
        for ours, transformers_own in zip((cosine, sine), theirs(torch.zeros(1), places)):
            assert torch.allclose(ours, transformers_own, rtol=0, atol=2e-6)
    assert rotation.attention_scaling == pytest.approx(theirs.attention_scaling)
    assert (rotation.attention_scaling != 1) == name.startswith("yarn")


def test_a_llada_may_rotate_in_the_dtype_of_its_weights(folder_of, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of("llada"), tmp_path / "llada"))
    twin, ids = load(as_llama(folder, tmp_path / "llama", {}), "bfloat16"), some_ids(200)
    assert not torch.equal(logits_of(load(folder, "bfloat16").network, ids), logits_of(twin.network, ids))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_full_precision": False}))
    assert torch.equal(logits_of(load(folder, "bfloat16").network, ids), logits_of(twin.network, ids))


@pytest.mark.parametrize("family", ["llada", "dream", "qwen3", "llada_moe", "illada"])
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rope_scaling": {"rope_type": "banana"}}, "rope_scaling of type 'banana', which is not known; default,"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic', whose frequencies change with"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "'longrope', whose frequencies change with"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, r"of type \['yarn'\], which is not known"),
        ({"rope_scaling": {"rope_type": "linear"}}, "of type 'linear' without 'factor'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "of type 'llama3' without 'low_freq_factor'"),
        ({"rope_scaling": {"factor": 4.0}}, "has 'factor' in rope_scaling, which type 'default' does not use"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "alpha": 3}}, "has 'alpha' in rope_scaling"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}}, "of type 'mrope', which is not known"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "has 'full_attention' in rope_parameters"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "two"}}, "says factor 'two' in rope_scaling"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "says factor 0.5 in rope_scaling; it must be 1 or"),
        ({"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2}}, "has two kinds in rope_scaling"),
        ({"rope_scaling": [2]}, "must hold an object under 'rope_scaling'"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"type": "linear", "factor": 4.0}},
            "has rope_scaling and rope_parameters, which differ",
        ),
        ({"rope_parameters": {"rope_theta": 123.0}}, "says rope_theta .*, and 123.0 in rope_parameters"),
        ({"partial_rotary_factor": 0.5}, "says partial_rotary_factor 0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "says partial_rotary_factor in rope_parameters"),
        ({"use_mrope": True}, "says use_mrope True"),
        ({"per_layer_config": {"0": {"head_dim": 8}}}, "has per_layer_config"),
        ({"quantization_config": {"bits": 4}}, "has quantization_config: the weights are quantised"),
        ({"quantization": {"bits": 4}}, "has quantization: the weights are quantised"),
        ({"compression_config": {"bits": 4}}, "has compression_config: the weights are quantised"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "asks for layers of sliding_attention"),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "layer_types": None}, "sliding"),
        ({"sparsed": {"stepz": 3}}, "says sparsed.stepz, which is not known; known are mask_token, label"),
        ({"sparsed": {"steps": 0}}, "gives a sampler under 'sparsed' that cannot be: ValueError: steps must"),
        ({"sparsed": {"trained_length": 0}}, "says sparsed.trained_length 0; it must be 1 or more"),
        ({"sparsed": {"mask_token": "[NONE]"}}, r"sparsed.mask_token '\[NONE\]', which the tokenizer does not have"),
    ],
)
def test_what_would_be_another_network_is_refused(folder_of, tmp_path, family: str, values: dict, said: str) -> None:
    folder = Path(shutil.copytree(folder_of(family), tmp_path / family))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    with pytest.raises(LoadError, match=said) as caught:
        load(folder)
    text = str(caught.value)
    assert text.startswith("config.json of ") and text[-1] == "." and "\n" not in text and len(text) < 300


@pytest.mark.parametrize(
    ("family", "key", "head", "embedding"),
    [
        ("llada", "weight_tying", "model.transformer.ff_out.weight", "model.transformer.wte.weight"),
        ("dream", "tie_word_embeddings", "lm_head.weight", "model.embed_tokens.weight"),
    ],
)
def test_a_tied_head_has_no_weights_of_its_own(
    checkpoints, folder_of, tmp_path: Path, family: str, key: str, head: str, embedding: str
) -> None:
    folder = Path(shutil.copytree(folder_of(family), tmp_path / family))
    checkpoints.change_config(folder, **{key: True})
    with pytest.raises(LoadError, match="ties the head to the embeddings, and the weights hold a head of its own"):
        load(folder)
    tensors = checkpoints.read_tensors(folder)
    checkpoints.write_tensors(folder, {**tensors, head: tensors[embedding].clone()})
    network = load(folder).network
    assert network.lm_head.weight is network.model.embed_tokens.weight


@pytest.mark.parametrize("family", ["llada", "dream", "qwen3", "llada_moe", "illada"])
def test_keys_that_are_not_known_are_named(folder_of, model_of, tmp_path: Path, family: str) -> None:
    assert model_of(family).notes == ()  # as published
    folder = Path(shutil.copytree(folder_of(family), tmp_path / family))
    config = json.loads((folder / "config.json").read_text())
    more = {"logit_softcap": 30.0, "clip_qkv": None, "use_memory": False, "_name_or_path": "here", "moe_z": 8}
    (folder / "config.json").write_text(json.dumps(config | more))
    model = load(folder)
    (note,) = model.notes
    assert note == (
        f"config.json of {family} says things that are not known here and have no effect: logit_softcap, moe_z."
    )
    assert sparsed.denoise(model, "x", sampler=sparsed.SamplerConfig(steps=1, gen_length=1)).notes[0] == note


def test_nothing_is_noted_of_minis_own(tmp_path: Path) -> None:
    from sparsed.paths import data_dir

    raw = json.loads((data_dir("assets") / "mini/config.json").read_text())
    assert recognise(raw, "mini").notes == ()
