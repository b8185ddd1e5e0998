"""Small random checkpoints as the published models are laid out on disk, and plain networks that read them.

Everything here is written from the published formats: official key names, complete config.json, official kinds
of tokenizer files. Nothing is shared with the engine, so that tests can hold the two against each other.
Tests reach this module through the fixture `checkpoints`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# Byte-level spelling: Ġ is a space, Ċ a line feed.
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ċ", "Ċ"), ("e", "r"), ("i", "n"), ("Ġ", "a")]
LETTERS = sorted(ByteLevel.alphabet())
WORDS = LETTERS + [left + right for left, right in MERGES]
FIRST_SPECIAL = len(WORDS)

LLADA_SPECIAL = (
    "<|startoftext|>", "<|endoftext|>", "[CLS]", "[gMASK]", "<|mdm_mask|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
)  # fmt: skip
DREAM_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>")
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>")
MOE_SPECIAL = (
    "<|startoftext|>", "<|endoftext|>", "[CLS]", "[gMASK]", "<|mask|>", "<role>", "</role>", "<|role_end|>",
)  # fmt: skip
# The first ids of the vocabulary, before all words: bos 0, pad 1, eos 2 and the mask token 5 as published.
ILLADA_SPECIAL = ("<[BOS]>", "<[PAD]>", "<[EOS]>", "<[UNK]>", "<[SEP]>", "<[MASK]>", "<[USER]>", "<[BOT]>")
QWEN_WORDS = ("<think>", "</think>")  # added tokens, but not special ones

LLADA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>"
    "\n\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MOE_TEMPLATE = (
    "{% for message in messages %}{% set role = message['role'] | lower %}{% if role == 'user' %}"
    "{% set role = 'HUMAN' %}{% endif %}{% set role = role | upper %}"
    "<role>{{ role }}</role>{{ message['content'] }}<|role_end|>{% endfor %}"
    "{% if add_generation_prompt %}<role>ASSISTANT</role>{% endif %}"
)
ILLADA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<[BOT]>' if message['role'] == 'assistant' else '<[USER]>' + message['role'] + ': ' }}{{ message['content'] }}"
    "<[EOS]>{% endfor %}{% if add_generation_prompt %}<[BOT]>{% endif %}"
)
THINKING_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def special_id(name: str, of: tuple[str, ...]) -> int:
    """The id that the tokenizers below give to a special token."""
    return FIRST_SPECIAL + of.index(name)


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def change_config(folder: Path, **values: object) -> None:
    """Sets values of config.json after the weights were written."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", config | values)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of every shard."""
    return {key: x for file in sorted(folder.glob("*.safetensors")) for key, x in load_file(file).items()}


def write_tensors(folder: Path, tensors: dict[str, Tensor], shards: int = 1) -> None:
    """model.safetensors, or numbered shards with their index. Replaces the weights that were there."""
    for old in (*folder.glob("*.safetensors"), *folder.glob("*.index.json")):
        old.unlink()
    tensors = {key: x.contiguous() for key, x in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    keys, index = list(tensors), {}
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        mine = {key: tensors[key] for key in keys[shard::shards]}
        save_file(mine, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(mine, name))
    size = sum(x.numel() * x.element_size() for x in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": index})


def write_remote_code(folder: Path, *names: str) -> None:
    """Python files as the Hub repositories carry them. Importing one leaves a file "ran" and fails."""
    marker = folder / "ran"
    for name in names:
        (folder / f"{name}.py").write_text(
            f"from pathlib import Path\nPath({str(marker)!r}).write_text('')\nraise RuntimeError('remote code ran')\n"
        )


class _Random:
    """Random weights that make attention uneven and predictions differ from place to place."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype

    def matrix(self, rows: int, columns: int, gain: float = 1.0) -> Tensor:
        x = torch.randn(rows, columns, generator=self.generator) * gain / math.sqrt(columns)
        return x.to(self.dtype)

    def embedding(self, rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=self.generator).to(self.dtype)

    def norm(self, size: int) -> Tensor:
        return (1 + 0.2 * torch.randn(size, generator=self.generator)).to(self.dtype)

    def bias(self, size: int) -> Tensor:
        return (0.5 * torch.randn(size, generator=self.generator)).to(self.dtype)


def write_llada(
    folder: Path,
    *,
    seed: int = 0,
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
    mask_predicted: bool = True,
    **changes: Any,
) -> Path:
    """A checkpoint in LLaDA's format. changes: values of config.json, which the weights follow.

    mask_predicted: False gives the mask token a logit of 0, so that it is hardly ever the most likely one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "activation_type": "silu",
        "alibi": False,
        "alibi_bias_max": 8.0,
        "architectures": ["LLaDAModelLM"],
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "attention_layer_norm_with_affine": True,
        "auto_map": {
            "AutoConfig": "configuration_llada.LLaDAConfig",
            "AutoModel": "modeling_llada.LLaDAModelLM",
            "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
        },
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": 64,
        "embedding_dropout": 0.0,
        "embedding_size": 311,
        "eos_token_id": special_id("<|endoftext|>", LLADA_SPECIAL),
        "flash_attention": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "init_cutoff_factor": None,
        "init_device": "meta",
        "init_fn": "mitchell",
        "init_std": 0.02,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": special_id("<|mdm_mask|>", LLADA_SPECIAL),
        "max_sequence_length": 256,
        "mlp_hidden_size": 80,
        "mlp_ratio": 4,
        "model_type": "llada",
        "multi_query_attention": None,
        "n_heads": 4,
        "n_kv_heads": 4,
        "n_layers": 2,
        "pad_token_id": special_id("<|endoftext|>", LLADA_SPECIAL),
        "precision": "amp_bf16",
        "residual_dropout": 0.0,
        "rms_norm_eps": 1e-05,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": 500000.0,
        "scale_logits": False,
        "transformers_version": "4.46.3",
        "use_cache": False,
        "vocab_size": 311,
        "weight_tying": False,
    }
    config |= changes
    write_json(folder / "config.json", config)

    width, heads = config["d_model"], config["n_heads"]
    small = width // heads * (config["n_kv_heads"] or heads)
    hidden = config["mlp_hidden_size"] or config["mlp_ratio"] * width
    random = _Random(seed, dtype)
    tensors = {
        "model.transformer.wte.weight": random.embedding(config["embedding_size"], width),
        "model.transformer.ln_f.weight": random.norm(width),
        "model.transformer.ff_out.weight": random.matrix(config["embedding_size"], width, 3.0),
    }
    if not mask_predicted:
        tensors["model.transformer.ff_out.weight"][config["mask_token_id"]] = 0
    if config["weight_tying"]:
        tensors["model.transformer.wte.weight"] = tensors.pop("model.transformer.ff_out.weight")
    for layer in range(config["n_layers"]):
        tensors |= {
            f"model.transformer.blocks.{layer}.{name}.weight": x
            for name, x in {
                "attn_norm": random.norm(width),
                "q_proj": random.matrix(width, width, 1.7),
                "k_proj": random.matrix(small, width, 1.7),
                "v_proj": random.matrix(small, width),
                "attn_out": random.matrix(width, width, 1.5),
                "ff_norm": random.norm(width),
                "ff_proj": random.matrix(hidden, width),
                "up_proj": random.matrix(hidden, width),
                "ff_out": random.matrix(width, hidden),
            }.items()
        }
    write_tensors(folder, tensors, shards)
    _write_tokenizer_json(folder, LLADA_SPECIAL)
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_eos_token": False,
            "bos_token": "<|startoftext|>",
            "chat_template": LLADA_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "cls_token": "[CLS]",
            "eos_token": "<|endoftext|>",
            "fast_tokenizer": True,
            "gmask_token": "[gMASK]",
            "model_max_length": 1000000000000000019884624838656,
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "PreTrainedTokenizerFast",
            "trust_remote_code": True,
        },
    )
    special = {"bos_token": "<|startoftext|>", "cls_token": "[CLS]", "eos_token": "<|endoftext|>"}
    write_json(folder / "special_tokens_map.json", special | {"pad_token": "<|endoftext|>"})
    write_remote_code(folder, "configuration_llada", "modeling_llada")
    return folder


def _qwen_layers(random: _Random, config: dict[str, Any], head_dim: int, bias: bool) -> dict[str, Tensor]:
    width, hidden = config["hidden_size"], config["intermediate_size"]
    large, small = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        mine = {
            "input_layernorm.weight": random.norm(width),
            "self_attn.q_proj.weight": random.matrix(large, width, 1.7),
            "self_attn.k_proj.weight": random.matrix(small, width, 1.7),
            "self_attn.v_proj.weight": random.matrix(small, width),
            "self_attn.o_proj.weight": random.matrix(width, large, 1.5),
            "post_attention_layernorm.weight": random.norm(width),
            "mlp.gate_proj.weight": random.matrix(hidden, width),
            "mlp.up_proj.weight": random.matrix(hidden, width),
            "mlp.down_proj.weight": random.matrix(width, hidden),
        }
        if bias:
            mine["self_attn.q_proj.bias"] = random.bias(large)
            mine["self_attn.k_proj.bias"] = random.bias(small)
            mine["self_attn.v_proj.bias"] = random.bias(small)
        else:
            # Large norms: without them every score would lie near 0.
            mine["self_attn.q_norm.weight"] = random.norm(head_dim) * 2
            mine["self_attn.k_norm.weight"] = random.norm(head_dim) * 2
        tensors |= {f"model.layers.{layer}.{name}": x for name, x in mine.items()}
    return tensors


def write_dream(
    folder: Path,
    *,
    seed: int = 0,
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
    mask_predicted: bool = True,
    **changes: Any,
) -> Path:
    """A checkpoint in Dream's format: Qwen2's keys, and a tokenizer of its own code without a tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    end = special_id("<|endoftext|>", DREAM_SPECIAL)
    config: dict[str, Any] = {
        "architectures": ["DreamModel"],
        "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
        "bos_token_id": end,
        "eos_token_id": end,
        "hidden_act": "silu",
        "hidden_size": 48,
        "initializer_range": 0.02,
        "intermediate_size": 72,
        "mask_token_id": special_id("<|mask|>", DREAM_SPECIAL),
        "max_position_embeddings": 512,
        "max_window_layers": 2,
        "model_type": "Dream",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": end,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.2",
        "use_cache": False,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 317,
    }
    config |= changes
    write_json(folder / "config.json", config)
    random = _Random(seed, dtype)
    width = config["hidden_size"]
    tensors = {
        "model.embed_tokens.weight": random.embedding(config["vocab_size"], width),
        "model.norm.weight": random.norm(width),
        "lm_head.weight": random.matrix(config["vocab_size"], width, 3.0),
    }
    if not mask_predicted:
        tensors["lm_head.weight"][config["mask_token_id"]] = 0
    tensors |= _qwen_layers(random, config, width // config["num_attention_heads"], bias=True)
    write_tensors(folder, tensors, shards)

    write_json(folder / "vocab.json", {word: i for i, word in enumerate(WORDS)})
    lines = [f"{left} {right}" for left, right in MERGES]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": _added(DREAM_SPECIAL),
            "additional_special_tokens": ["<|beginoftext|>", "<|mask|>"],
            "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
            "bos_token": "<|beginoftext|>",
            "chat_template": CHATML_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|endoftext|>",
            "errors": "replace",
            "mask_token": "<|mask|>",
            "model_max_length": 131072,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "DreamTokenizer",
            "unk_token": None,
        },
    )
    write_remote_code(folder, "configuration_dream", "modeling_dream", "tokenization_dream", "generation_utils")
    return folder


def write_qwen3(
    folder: Path,
    *,
    seed: int = 0,
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> Path:
    """A Qwen3 trained as a diffusion model: tied embeddings, QK-norm, mask token known to the tokenizer alone."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "architectures": ["A2DQwen3LMHeadModel"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "modeling_qwen3.A2DQwen3Config",
            "AutoModel": "modeling_qwen3.A2DQwen3Model",
            "AutoModelForMaskedLM": "modeling_qwen3.A2DQwen3LMHeadModel",
        },
        "bos_token_id": special_id("<|endoftext|>", QWEN_SPECIAL),
        "dtype": "bfloat16",
        "eos_token_id": special_id("<|im_end|>", QWEN_SPECIAL),
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 40,
        "initializer_range": 0.02,
        "intermediate_size": 56,
        "layer_types": ["full_attention", "full_attention"],
        "max_position_embeddings": 512,
        "max_window_layers": 2,
        "model_type": "a2d-qwen3",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": special_id("<|endoftext|>", QWEN_SPECIAL),
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "transformers_version": "4.57.0",
        "use_cache": False,
        "use_sliding_window": False,
        "vocab_size": 307,
    }
    config |= changes
    write_json(folder / "config.json", config)
    random = _Random(seed, dtype)
    tensors = {
        "model.embed_tokens.weight": random.matrix(config["vocab_size"], config["hidden_size"], 3.0),
        "model.norm.weight": random.norm(config["hidden_size"]),
    }
    tensors |= _qwen_layers(random, config, config["head_dim"], bias=False)
    write_tensors(folder, tensors, shards)
    _write_tokenizer_json(folder, QWEN_SPECIAL, QWEN_WORDS)
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": _added(QWEN_SPECIAL, QWEN_WORDS),
            "bos_token": None,
            "chat_template": THINKING_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "mask_token": "<|mask|>",
            "model_max_length": 131072,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    write_remote_code(folder, "modeling_qwen3")
    return folder


def write_llada_moe(
    folder: Path,
    *,
    seed: int = 0,
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
    mask_predicted: bool = True,
    **changes: Any,
) -> Path:
    """A checkpoint in LLaDA-MoE's format: LLaDA's model_type, Qwen3-MoE's keys, a mask token known to the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    end = special_id("<|endoftext|>", MOE_SPECIAL)
    config: dict[str, Any] = {
        "architectures": ["LLaDAMoEModelLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_lladamoe.LLaDAConfig",
            "AutoModel": "modeling_lladamoe.LLaDAMoEModelLM",
            "AutoModelForCausalLM": "modeling_lladamoe.LLaDAMoEModelLM",
        },
        "clip_qkv": None,
        "dense_intermediate_size": 96,
        "eos_token_id": end,
        "expert_intermediate_size": 40,
        "hidden_act": "silu",
        "hidden_size": 48,
        "initializer_range": 0.02,
        "max_position_embeddings": 512,
        "model_type": "llada",
        "moe_layer_freq": [1, 1],
        "moe_router_enable_expert_bias": False,
        "moe_router_score_function": "softmax",
        "norm_topk_prob": None,
        "num_attention_heads": 4,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "output_router_logits": False,
        "pad_token_id": end,
        "partial_rotary_factor": 1,
        "qk_layernorm": True,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 50000,
        "routed_scaling_factor": 1,
        "router_aux_loss_coef": 0.01,
        "router_num_group": None,
        "router_topk_group": None,
        "shared_expert_intermediate_size": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.53.2",
        "use_cache": False,
        "vocab_size": 313,
    }
    config |= changes
    write_json(folder / "config.json", config)
    random = _Random(seed, dtype)
    width, inner = config["hidden_size"], config["expert_intermediate_size"]
    tensors = {
        "model.embed_tokens.weight": random.embedding(config["vocab_size"], width),
        "model.norm.weight": random.norm(width),
        "lm_head.weight": random.matrix(config["vocab_size"], width, 3.0),
    }
    if not mask_predicted:
        tensors["lm_head.weight"][special_id("<|mask|>", MOE_SPECIAL)] = 0
    if config["tie_word_embeddings"]:
        tensors["model.embed_tokens.weight"] = tensors.pop("lm_head.weight")
    attention = _qwen_layers(random, {**config, "intermediate_size": 1}, width // config["num_attention_heads"], False)
    tensors |= {name: x for name, x in attention.items() if ".mlp." not in name}
    for layer in range(config["num_hidden_layers"]):
        mlp = f"model.layers.{layer}.mlp"
        # A large gain: the chosen experts differ from token to token, and their weights from one another.
        tensors[f"{mlp}.gate.weight"] = random.matrix(config["num_experts"], width, 2.0)
        for expert in range(config["num_experts"]):
            tensors[f"{mlp}.experts.{expert}.gate_proj.weight"] = random.matrix(inner, width)
            tensors[f"{mlp}.experts.{expert}.up_proj.weight"] = random.matrix(inner, width)
            tensors[f"{mlp}.experts.{expert}.down_proj.weight"] = random.matrix(width, inner, 2.0)
    write_tensors(folder, tensors, shards)
    _write_tokenizer_json(folder, MOE_SPECIAL)
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_eos_token": False,
            "bos_token": "<|startoftext|>",
            "chat_template": MOE_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "cls_token": "[CLS]",
            "eos_token": "<|endoftext|>",
            "fast_tokenizer": True,
            "gmask_token": "[gMASK]",
            "mask_token": "<|mask|>",
            "model_max_length": 1000000000000000019884624838656,
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "PreTrainedTokenizerFast",
            "trust_remote_code": True,
        },
    )
    write_remote_code(folder, "configuration_lladamoe", "modeling_lladamoe")
    return folder


def write_illada(
    folder: Path,
    *,
    seed: int = 0,
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
    mask_predicted: bool = True,
    **changes: Any,
) -> Path:
    """A checkpoint in iLLaDA's format: Llama's keys, a tied head, and a mask token that nothing says to be one."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "architectures": ["ILLaDAForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_illada.ILLaDAConfig",
            "AutoModel": "modeling_illada.ILLaDAForCausalLM",
            "AutoModelForCausalLM": "modeling_illada.ILLaDAForCausalLM",
        },
        "bos_token_id": 0,
        "dtype": "bfloat16",
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 72,
        "layer_norm_eps": None,
        "max_position_embeddings": 512,
        "mlp_bias": False,
        "model_type": "illada",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "pad_token_id": 1,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 200000.0,
        "transformers_version": "4.57.1",
        "vocab_size": 309,
    }
    config |= changes
    write_json(folder / "config.json", config)
    random = _Random(seed, dtype)
    width, heads = config["hidden_size"], config["num_attention_heads"]
    # The head's gain: the embeddings serve as the head too.
    tensors = {
        "model.embed_tokens.weight": random.matrix(config["vocab_size"], width, 3.0),
        "model.norm.weight": random.norm(width),
    }
    if not mask_predicted:
        tensors["model.embed_tokens.weight"][5] = 0
    layers = _qwen_layers(random, config, width // heads, bias=False)
    tensors |= {name: x for name, x in layers.items() if "_norm." not in name}
    write_tensors(folder, tensors, shards)
    tokenizer = _tokenizer([*ILLADA_SPECIAL, *WORDS])
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in ILLADA_SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "bos_token": "<[BOS]>",
            "chat_template": ILLADA_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<[EOS]>",
            "model_max_length": 1000000000000000019884624838656,
            "pad_token": "<[PAD]>",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    write_remote_code(folder, "configuration_illada", "modeling_illada")
    return folder


def _added(special: tuple[str, ...], words: tuple[str, ...] = ()) -> dict[str, object]:
    shape = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {
        str(FIRST_SPECIAL + i): {"content": name, **shape, "special": name in special}
        for i, name in enumerate(special + words)
    }


def _tokenizer(vocabulary: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(BPE(vocab={word: i for i, word in enumerate(vocabulary)}, merges=MERGES))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    return tokenizer


def _write_tokenizer_json(folder: Path, special: tuple[str, ...], words: tuple[str, ...] = ()) -> None:
    tokenizer = _tokenizer(WORDS)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in words])
    tokenizer.save(str(folder / "tokenizer.json"))


_QWEN_NAMES = {
    "embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head",
    "attn_norm": "model.layers.{}.input_layernorm", "ff_norm": "model.layers.{}.post_attention_layernorm",
    "q": "model.layers.{}.self_attn.q_proj", "k": "model.layers.{}.self_attn.k_proj",
    "v": "model.layers.{}.self_attn.v_proj", "out": "model.layers.{}.self_attn.o_proj",
    "q_norm": "model.layers.{}.self_attn.q_norm", "k_norm": "model.layers.{}.self_attn.k_norm",
    "gate": "model.layers.{}.mlp.gate_proj", "up": "model.layers.{}.mlp.up_proj",
    "down": "model.layers.{}.mlp.down_proj",
}  # fmt: skip
_LLADA_NAMES = {
    "embed": "model.transformer.wte", "norm": "model.transformer.ln_f", "head": "model.transformer.ff_out",
    "attn_norm": "model.transformer.blocks.{}.attn_norm", "ff_norm": "model.transformer.blocks.{}.ff_norm",
    "q": "model.transformer.blocks.{}.q_proj", "k": "model.transformer.blocks.{}.k_proj",
    "v": "model.transformer.blocks.{}.v_proj", "out": "model.transformer.blocks.{}.attn_out",
    "gate": "model.transformer.blocks.{}.ff_proj", "up": "model.transformer.blocks.{}.up_proj",
    "down": "model.transformer.blocks.{}.ff_out",
}  # fmt: skip


def scaled_rotation(
    scaling: dict[str, Any], theta: float, head_dim: int, positions: int
) -> tuple[list[float], float]:
    """Angles a position, one for each pair of components, in Python's floats, and the factor of cosines and sines.

    Written from the papers: position interpolation (linear), YaRN's equations, Llama 3.1's wavelengths. positions: the
    longest sequence that config.json names, which stands in for an original length that it does not give.
    """
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    factor, trained = scaling.get("factor", 1.0), scaling.get("original_max_position_embeddings", positions)
    pairs = head_dim // 2
    plain = [theta ** (-2 * i / head_dim) for i in range(pairs)]
    if kind == "default":
        return plain, 1.0
    if kind == "linear":
        return [speed / factor for speed in plain], 1.0
    speeds = []
    if kind == "llama3":
        slow, fast = scaling["low_freq_factor"], scaling["high_freq_factor"]
        for speed in plain:
            turns = trained * speed / (2 * math.pi)  # of this pair over the original length
            if turns > fast:
                speeds.append(speed)
            elif turns < slow:
                speeds.append(speed / factor)
            else:
                share = (turns - slow) / (fast - slow)
                speeds.append((1 - share) * speed / factor + share * speed)
        return speeds, 1.0
    assert kind == "yarn"
    ends = []
    for turns in (scaling.get("beta_fast", 32), scaling.get("beta_slow", 1)):
        ends.append(head_dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta)))
    first, last = max(math.floor(ends[0]), 0), min(math.ceil(ends[1]), head_dim - 1)
    for i, speed in enumerate(plain):
        share = (i - first) / (last - first)
        share = min(max(share, 0.0), 1.0)  # 0: as it was; 1: interpolated
        speeds.append(share * speed / factor + (1 - share) * speed)
    strength = scaling.get("attention_factor", 0.1 * math.log(factor) + 1)
    return speeds, strength


class PlainNetwork:
    """The published network of a checkpoint folder, one sequence at a time, bidirectional, in plain torch.

    dtype: of weights and arithmetic. In bfloat16 LLaDA rotates queries and keys in float32, the others in
    bfloat16, and torch's fused attention stands in for the matmuls (a product of its own would round
    differently); otherwise attention is two matmuls and a softmax.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, rope_factor: float = 1.0) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.experts, self.chosen = config.get("num_experts", 0), config.get("num_experts_per_tok", 0)
        self.llada = config["model_type"] == "llada" and not self.experts
        self.names = _LLADA_NAMES if self.llada else _QWEN_NAMES
        self.weights = {key: x.to(dtype) for key, x in read_tensors(folder).items()}
        self.dtype = dtype
        if self.llada:
            self.layers, self.heads = config["n_layers"], config["n_heads"]
            self.kv_heads, width = config["n_kv_heads"] or config["n_heads"], config["d_model"]
        else:
            self.layers, self.heads = config["num_hidden_layers"], config["num_attention_heads"]
            self.kv_heads, width = config["num_key_value_heads"], config["hidden_size"]
        self.head_dim = config.get("head_dim") or width // self.heads
        self.eps, self.theta = config["rms_norm_eps"], float(config["rope_theta"]) * rope_factor
        scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
        positions = config["max_sequence_length" if self.llada else "max_position_embeddings"]
        # Angles a position, and what cosines and sines are multiplied by, where config.json scales them.
        self.scaled = scaled_rotation(scaling, self.theta, self.head_dim, positions) if scaling else None

    def logits(self, ids: Tensor) -> Tensor:
        """[length] → [length, vocabulary]."""
        return self.run(ids)[0]

    def run(self, ids: Tensor, seen: list[Tensor] | None = None) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Logits, and every layer's rotated queries [heads, length, head_dim] and keys, one for each query head.

        seen: for each layer bool [heads, length, length], which keys a query sees; None: all.
        """
        x = self.weights[self.names["embed"] + ".weight"][ids]
        made = []
        for layer in range(self.layers):
            h = self._rms(x, self._weight("attn_norm", layer))
            q, k, v = (self._heads(h, name, layer) for name in ("q", "k", "v"))
            q, k = self._rotate(q), self._rotate(k)
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, 0) for t in (k, v))
            made.append((q, k))
            mixed = self._attention(q, k, v, None if seen is None else seen[layer])
            x = x + self._linear(mixed.transpose(0, 1).flatten(1), "out", layer)
            h = self._rms(x, self._weight("ff_norm", layer))
            x = x + self.mlp(h, layer)
        x = self._rms(x, self._weight("norm"))
        head = self.names["head"] + ".weight"
        tied = self.names["embed"] + ".weight"
        return x @ self.weights[head if head in self.weights else tied].T, made

    def mlp(self, x: Tensor, layer: int) -> Tensor:
        """[n, width] → [n, width]; with experts each position goes through those that its router chose, weighted with
        their shares of the softmax over all.
        """
        if not self.experts:
            gate = self._linear(x, "gate", layer)
            return self._linear(torch.nn.functional.silu(gate) * self._linear(x, "up", layer), "down", layer)
        linear = torch.nn.functional.linear
        named = f"model.layers.{layer}.mlp"
        wide = torch.float32 if self.dtype == torch.bfloat16 else self.dtype
        # In bfloat16 two shares are often equal; the published code takes what torch.topk does.
        shares, chosen = linear(x, self.weights[f"{named}.gate.weight"]).to(wide).softmax(-1).topk(self.chosen)
        parts = x.new_empty(*chosen.shape, x.shape[-1])
        for expert in range(self.experts):
            n, place = (chosen == expert).nonzero(as_tuple=True)
            gate, up, down = (
                self.weights[f"{named}.experts.{expert}.{name}_proj.weight"] for name in ("gate", "up", "down")
            )
            written = linear(torch.nn.functional.silu(linear(x[n], gate)) * linear(x[n], up), down)
            parts[n, place] = written * shares[n, place].to(x.dtype)[:, None]
        return parts.sum(1)

    def _weight(self, name: str, layer: int = 0) -> Tensor:
        return self.weights[self.names[name].format(layer) + ".weight"]

    def _linear(self, x: Tensor, name: str, layer: int) -> Tensor:
        bias = self.weights.get(self.names[name].format(layer) + ".bias")
        return torch.nn.functional.linear(x, self._weight(name, layer), bias)

    def _heads(self, x: Tensor, name: str, layer: int) -> Tensor:
        """[length, width] → [heads, length, head_dim], normalised where the checkpoint says so."""
        x = self._linear(x, name, layer).unflatten(-1, (-1, self.head_dim))
        norm = f"{name}_norm"
        if norm in self.names and self.names[norm].format(layer) + ".weight" in self.weights:
            x = self._rms(x, self._weight(norm, layer))
        return x.transpose(0, 1)

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        wide = x.float() if self.dtype == torch.bfloat16 else x
        return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)

    def _rotate(self, x: Tensor) -> Tensor:
        """Rotary position embedding: component i of a head pairs with component i + head_dim / 2."""
        half = self.head_dim // 2
        wide = torch.float32 if self.dtype == torch.bfloat16 else self.dtype
        speed = 1 / self.theta ** (torch.arange(0, self.head_dim, 2, dtype=wide) / self.head_dim)
        if self.scaled is not None:
            speed = torch.tensor(self.scaled[0], dtype=torch.float64).to(wide)
        angle = torch.arange(x.shape[1], dtype=wide)[:, None] * speed
        strength = 1.0 if self.scaled is None else self.scaled[1]
        cos, sin = angle.cos() * strength, angle.sin() * strength
        if self.llada:
            x = x.to(wide)
        else:
            cos, sin = cos.to(self.dtype), sin.to(self.dtype)
        first, second = x[..., :half], x[..., half:]
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
        return turned.to(self.dtype)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
        if self.dtype == torch.bfloat16 and seen is None:
            return scaled_dot_product_attention(q[None], k[None], v[None])[0]
        return masked_attention(q, k, v, seen)


def ulps(a: Tensor, b: Tensor) -> float:
    """The largest difference of two bfloat16 tensors, in units in the last place of the larger value."""
    a, b = a.double(), b.double()
    unit = torch.maximum(a.abs(), b.abs()).clamp_min(2.0**-126).log2().floor().exp2() * 2.0**-7
    return float(((a - b).abs() / unit).max())


def masked_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    """Softmax attention as two matmuls, [heads, length, head_dim]; where `seen` is False a key does not exist."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores.softmax(-1) @ v


def positions(blocks: Tensor, size: int, length: int) -> Tensor:
    """A mask over blocks [heads, n, n] as one over positions [heads, length, length]."""
    return blocks.repeat_interleave(size, 1).repeat_interleave(size, 2)[:, :length, :length]


# One query block's choice: the key blocks kept, and how far the last one kept is ahead of the first one left out,
# as a share of it (infinite where nothing is left out).
Choice = tuple[set[int], float]


def _top(value: dict[int, float], count: int) -> Choice:
    """The `count` blocks of the largest values, lower ones first among equals."""
    order = sorted(value, key=lambda j: (-value[j], j))
    kept, out = order[:count], order[count:]
    lead = value[kept[-1]] / value[out[0]] - 1 if kept and out and value[out[0]] > 0 else math.inf
    return set(kept), lead


def _mean_weights(scores: Tensor, size: int, over_padding: bool) -> list[list[float]]:
    """Softmax of scores [length, keys], averaged over every (query block, key block), block by block."""
    weights = scores.double().softmax(-1)
    rows, columns = weights.shape
    means = []
    for i in range(0, rows, size):
        mine = weights[i : i + size].mean(0)
        means.append(
            [float(mine[j : j + size].sum()) / (size if over_padding else min(size, columns - j))
             for j in range(0, columns, size)]
        )  # fmt: skip
    return means


def paper_selection(
    q: Tensor, k: Tensor, gen_length: int, size: int, select: float, heads_scale: bool = False
) -> list[list[Choice]]:
    """Isolated selection as the paper describes it: head → query block → choice. q, k: [heads, length, head_dim]."""
    length = q.shape[1]
    n = -(-length // size)
    generation = [j for j in range(n) if j * size >= length - gen_length] or [n - 1]
    chosen = []
    for query, key in zip(q.double(), k.double()):
        rows = []
        for means in _mean_weights(query @ key.T / math.sqrt(q.shape[-1]), size, over_padding=False):
            kept, lead = set[int](), math.inf
            for side in ([j for j in range(n) if j not in generation], generation):
                count = max(1, math.ceil(Fraction(str(select)) * len(side))) if side else 0
                mine, ahead = _top({j: means[j] for j in side}, count)
                kept, lead = kept | mine, min(lead, ahead)
            rows.append((kept, lead))
        chosen.append(rows)
    return chosen


def public_selection(
    q: Tensor, k: Tensor, gen_length: int, size: int, select: float, heads_scale: bool, rounded: bool = False
) -> list[list[Choice]]:
    """Selection as the public code does it, in float64: head → query block → choice.

    heads_scale: scores are divided by √heads (LLaDA's code) instead of √head_dim. rounded: with
    averages in bfloat16, to see what that would change.
    """
    heads, length, head_dim = q.shape
    n = -(-length // size)
    last = next((j for j in range(n) if length - j * size <= gen_length), n - 1)
    divisor = math.sqrt(heads if heads_scale else head_dim)
    chosen = []
    for query, key in zip(q.double(), k.double()):
        scores = query @ key.T / divisor
        rows = []
        everything = _mean_weights(scores, size, over_padding=True)
        generation = _mean_weights(scores[:, last * size :], size, over_padding=True)
        if rounded:
            everything, generation = (torch.tensor(x).bfloat16().tolist() for x in (everything, generation))
        for over_all, over_own in zip(everything, generation):
            prompt, ahead = _top(dict(enumerate(over_all)), int(n * select) + 1)
            own, lead = _top(dict(enumerate(over_own, last)), int((n - last) * select) + 1)
            rows.append(({j for j in prompt if j < last} | own, min(ahead, lead)))
        chosen.append(rows)
    return chosen


WRITERS: dict[str, Callable[..., Path]] = {
    "llada": write_llada,
    "dream": write_dream,
    "qwen3": write_qwen3,
    "llada_moe": write_llada_moe,
    "illada": write_illada,
}
