"""iLLaDA: what is recognised and refused, its mask token, and runs against plain networks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import sparsed
from sparsed import SamplerConfig
from sparsed.bench.shapes import SHAPES
from sparsed.models import LoadError, catalogue
from sparsed.models.families import recognise
from sparsed.parallel.share import Share

SAMPLER = SamplerConfig(steps=8, gen_length=16, block_length=8, algorithm="low_confidence", temperature=0.0)


@pytest.fixture
def model(model_of):
    return model_of("illada")


def prompt(length: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(8, 250, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_it_is_recognised(model) -> None:
    assert model.family == "illada" and not model.shift and model.chat and model.notes == ()
    assert (model.mask_id, model.eos_id, set(model.end_ids)) == (5, 2, {2, 1})
    assert type(model.network).__name__ == "LlamaForCausalLM"
    assert model.network.lm_head.weight is model.network.model.embed_tokens.weight
    assert model.max_positions == 512


def test_the_published_sizes_are_those_of_the_catalogue() -> None:
    import transformers

    checkpoint = recognise(dict(SHAPES["illada-8b"]), "this shape")
    with torch.device("meta"):
        network = getattr(transformers, checkpoint.network)(checkpoint.config)
    for name in ("illada-8b-instruct", "illada-8b-base"):
        spec = catalogue.find(name)
        assert network.num_parameters() == spec.parameters and spec.family == checkpoint.family
        assert spec.trained_length == checkpoint.trained_length == 8192
        assert spec.defaults == checkpoint.defaults
    assert checkpoint.usual_mask_id == 5 and checkpoint.mask_id is None


def changed(checkpoints, folder_of, tmp_path: Path, **values: object) -> Path:
    folder = Path(shutil.copytree(folder_of("illada"), tmp_path / "illada"))
    checkpoints.change_config(folder, **values)
    return folder


def test_what_the_files_say_of_the_mask_goes_before_the_familys_table(checkpoints, folder_of, tmp_path: Path) -> None:
    folder = changed(checkpoints, folder_of, tmp_path, mask_token_id=4)
    assert sparsed.load(folder, device="cpu", dtype="float32").mask_id == 4
    checkpoints.change_config(folder, mask_token_id=None)
    about = json.loads((folder / "tokenizer_config.json").read_text())
    checkpoints.write_json(folder / "tokenizer_config.json", {**about, "mask_token": "<[SEP]>"})
    assert sparsed.load(folder, device="cpu", dtype="float32").mask_id == 4
    checkpoints.change_config(folder, sparsed={"mask_token": "<[UNK]>"})
    assert sparsed.load(folder, device="cpu", dtype="float32").mask_id == 3


def test_the_table_is_of_this_family_alone(checkpoints, folder_of, tmp_path: Path) -> None:
    """The same files under another type have no mask token, and none is guessed."""
    folder = changed(checkpoints, folder_of, tmp_path, model_type="llama", tie_word_embeddings=True)
    with pytest.raises(LoadError, match="^illada has no mask token"):
        sparsed.load(folder, device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"layer_norm_eps": 1e-5}, "says layer_norm_eps 1e-05; of the iLLaDA variants only layer_norm_eps None can be"),
        ({"head_dim": 32}, "says head_dim 32: an iLLaDA's is hidden_size / num_attention_heads, here 64 / 4"),
        ({"rope_theta": None}, "is not a complete iLLaDA config"),
        ({"rms_norm_eps": None}, "is not a complete iLLaDA config"),
        ({"hidden_size": "wide"}, "is not a complete iLLaDA config"),
        ({"num_attention_heads": 0}, "does not describe a Llama network"),
        ({"partial_rotary_factor": 0.5}, "says partial_rotary_factor 0.5"),
        ({"sliding_window": 128}, "asks for sliding_window 128"),
        ({"num_hidden_layers": 3}, "do not fit its config.json: 9 missing"),
        ({"num_hidden_layers": 1}, "do not fit its config.json: 9 left over"),
        ({"intermediate_size": 80}, "of another shape"),
        ({"attention_bias": True}, "do not fit its config.json: 8 missing"),
        ({"tie_word_embeddings": False}, "do not fit its config.json: 1 missing"),
    ],
)
def test_another_network_is_refused(checkpoints, folder_of, tmp_path: Path, values: dict, said: str) -> None:
    folder = changed(checkpoints, folder_of, tmp_path, **values)
    with pytest.raises(LoadError, match=said) as caught:
        sparsed.load(folder, device="cpu", dtype="float32")
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".") and len(str(caught.value)) < 500


def test_the_head_is_tied_where_config_json_says_nothing(checkpoints, folder_of, tmp_path: Path) -> None:
    """A copy of the embeddings beside them is the same head; another one is wrong."""
    folder = Path(shutil.copytree(folder_of("illada"), tmp_path / "illada"))
    tensors = checkpoints.read_tensors(folder)
    embeddings = tensors["model.embed_tokens.weight"]
    checkpoints.write_tensors(folder, {**tensors, "lm_head.weight": embeddings.clone()})
    network = sparsed.load(folder, device="cpu", dtype="float32").network
    assert network.lm_head.weight is network.model.embed_tokens.weight
    checkpoints.write_tensors(folder, {**tensors, "lm_head.weight": embeddings + 1})
    with pytest.raises(LoadError, match="ties the head to the embeddings, and the weights hold a head of its own"):
        sparsed.load(folder, device="cpu", dtype="float32")


def test_a_rotation_whose_base_stands_with_its_other_parameters(checkpoints, folder_of, model, tmp_path: Path) -> None:
    """As transformers 5 saves it."""
    folder = Path(shutil.copytree(folder_of("illada"), tmp_path / "illada"))
    raw = json.loads((folder / "config.json").read_text())
    base = raw.pop("rope_theta")
    raw["rope_parameters"] = {"rope_type": "default", "rope_theta": base}
    checkpoints.write_json(folder / "config.json", raw)
    ids = prompt(60)
    with torch.no_grad():
        a, b = (
            one.network(input_ids=ids, use_cache=False).logits
            for one in (sparsed.load(folder, device="cpu", dtype="float32"), model)
        )
    assert torch.equal(a, b)


def test_eight_processes_can_share_the_published_sizes() -> None:
    config = recognise(dict(SHAPES["illada-8b"]), "this shape").config
    for size in (2, 4, 8):
        Share(0, size, torch.device("cpu")).check(config, "iLLaDA")
    with pytest.raises(LoadError, match="iLLaDA has 8 key/value heads, which 16 processes cannot share"):
        Share(0, 16, torch.device("cpu")).check(config, "iLLaDA")
