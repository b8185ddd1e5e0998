"""Models of other kinds: a folder of each is refused in one sentence that says what it is and what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import sparsed
from sparsed.models import LoadError
from sparsed.models.families import describe

# What the config.json of each says of itself.
BLOCK_DIFFUSION = {
    "LLaDA2.x": {"model_type": "llada2_moe", "architectures": ["LLaDA2MoeModelLM"]},
    "SDAR": {"model_type": "sdar", "architectures": ["SDARForCausalLM"]},
    "SDAR with experts": {"model_type": "sdar_moe", "architectures": ["SDARMoeForCausalLM"]},
    "Fast-dLLM v2": {"model_type": "Fast_dLLM_Qwen", "architectures": ["Fast_dLLM_QwenForCausalLM"]},
    # Under its backbone's type, by its architecture alone.
    "Fast-dLLM v2 as a Qwen2": {"model_type": "qwen2", "architectures": ["Fast_dLLM_QwenForCausalLM"]},
    "DiffusionGemma": {"model_type": "diffusion_gemma", "architectures": ["DiffusionGemmaForBlockDiffusion"]},
}
QUANTISED = {
    "gptq": {"bits": 4, "group_size": 128, "quant_method": "gptq", "sym": True},
    "awq": {"bits": 4, "quant_method": "awq", "version": "gemm", "zero_point": True},
    "bitsandbytes": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "quant_method": "bitsandbytes"},
}


def refusal(folder: Path | str, **values: Any) -> str:
    """What loading says: one sentence."""
    with pytest.raises(LoadError) as caught:
        sparsed.load(folder, device="cpu", dtype="float32", **values)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 400
    return text


@pytest.fixture
def changed(folder_of, checkpoints, tmp_path: Path) -> Callable[..., Path]:
    """A checkpoint of a family whose config.json says something else."""

    def make(family: str, **values: Any) -> Path:
        folder = Path(shutil.copytree(folder_of(family), tmp_path / "model"))
        checkpoints.change_config(folder, **values)
        return folder

    return make


@pytest.mark.parametrize("name", BLOCK_DIFFUSION)
def test_block_diffusion(changed, name: str) -> None:
    folder = changed("dream", **BLOCK_DIFFUSION[name])
    label = name.partition(" with")[0].partition(" as")[0]
    said = refusal(folder)
    assert said == (
        f"config.json of model is of {label}, a block-diffusion model: a token of its prompt sees no later block, "
        f"where SparseD's patterns are for attention that goes both ways; choose a model of the catalogue."
    )
    with pytest.raises(LoadError) as caught:  # the page asks before anything is loaded
        describe(folder, "model")
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("label", "values"),
    [
        ("RND1", {"model_type": "rnd1", "architectures": ["RND1LM"]}),
        ("Efficient-DLM", {"model_type": "efficient_dlm"}),
        # Under its backbone's type, by its architecture alone.
        ("Efficient-DLM", {"model_type": "qwen3", "architectures": ["EfficientDLMForCausalLM"]}),
    ],
)
def test_models_whose_files_leave_something_open(changed, label: str, values: dict[str, Any]) -> None:
    assert refusal(changed("qwen3", **values)) == (
        f"config.json of model is of {label}, whose files do not say all that a run needs (its mask token, its "
        f"sampler), and nothing is guessed here; choose a model of the catalogue."
    )


def test_tokens_that_change_a_length_are_said_to_be_unsupported(folder_of, checkpoints, tmp_path: Path) -> None:
    """DreamOn's: a Dream otherwise."""
    folder = Path(shutil.copytree(folder_of("dream"), tmp_path / "dreamon"))
    said = {"delete_token_id": 7, "expand_token_id": 9, "mask_token_id": 5}
    checkpoints.write_json(folder / "generation_config.json", said)
    where = "generation_config.json of dreamon"
    wanted = (
        f"{where} has delete_token_id, expand_token_id (DreamOn): answers that grow or shrink while they are written "
        f"are not supported, and those tokens stand in an answer as they are."
    )
    assert sparsed.load(folder, device="cpu", dtype="float32").notes == (wanted,)
    checkpoints.write_json(folder / "generation_config.json", {**said, "top_p": 0.9})
    more = f"{where} has top_p: not used, samplers here have other settings."
    assert sparsed.load(folder, device="cpu", dtype="float32").notes == (wanted, more)


def test_an_adapter(checkpoints, tmp_path: Path) -> None:
    """As PEFT saves one: without a config.json."""
    checkpoints.write_json(
        tmp_path / "adapter_config.json",
        {"peft_type": "LORA", "base_model_name_or_path": "GSAI-ML/LLaDA-8B-Instruct", "r": 8, "lora_alpha": 16},
    )
    save_file({"base_model.model.lora_A.weight": torch.ones(8, 4)}, tmp_path / "adapter_model.safetensors")
    assert refusal(tmp_path) == (
        f"{tmp_path} holds adapter_config.json, which stands for an adapter (LoRA): merge it into its model, and save "
        f"that."
    )


@pytest.mark.parametrize("config", [False, True])
def test_gguf(folder_of, tmp_path: Path, config: bool) -> None:
    """A folder of it alone, one with the files of a tokenizer beside it, and the file itself."""
    folder = tmp_path / "model"
    if config:
        shutil.copytree(folder_of("llada"), folder)
        (folder / "model.safetensors").unlink()
    else:
        folder.mkdir()
    file = folder / "LLaDA-8B-Instruct-Q4_K_M.gguf"
    file.write_bytes(b"GGUF\3\0\0\0")
    for given in (folder, file):
        assert refusal(given) == (
            f"{file} holds quantised weights of llama.cpp (GGUF), which are not read here: load the safetensors that "
            f"they were made from, by their Hub id or folder."
        )


def test_gguf_beside_the_weights_is_left_alone(folder_of, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of("llada"), tmp_path / "model"))
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF\3\0\0\0")
    assert sparsed.load(folder, device="cpu", dtype="float32").notes == ()


@pytest.mark.parametrize("method", QUANTISED)
@pytest.mark.parametrize("family", ["llada", "dream", "qwen3", "llada_moe", "illada"])
def test_weights_that_others_quantised(changed, family: str, method: str) -> None:
    assert refusal(changed(family, quantization_config=QUANTISED[method])) == (
        f"config.json of model has quantization_config: the weights are quantised ({method}); only float32, bfloat16 "
        f"and float16 ones can be loaded: take the model that they were made from."
    )


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_a_model_without_a_mask_token(changed, kind: str) -> None:
    """An autoregressive one of a family that is known."""
    folder = changed("qwen3" if kind == "qwen3" else "dream", model_type=kind, mask_token_id=None)
    for file in folder.glob("*token*.json"):
        file.write_text(file.read_text().replace("<|mask|>", "<|other|>").replace('"mask_token"', '"pad_token"'))
    said = refusal(folder)
    assert said.startswith("model has no mask token (config.json and tokenizer name none that its ")
    assert said.endswith(
        "only masked diffusion models can be run here; of one, sparsed.mask_token in config.json may name the token."
    )


@pytest.mark.parametrize("kind", ["gpt2", "mamba"])
def test_an_unknown_family(changed, kind: str) -> None:
    assert refusal(changed("dream", model_type=kind)).startswith(
        f"config.json of model says model_type {kind!r}, which is no diffusion language model known here; known are "
        f"llada, Dream, illada, llama, a2d-llama,"
    )
