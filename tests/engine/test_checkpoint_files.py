"""Files of a checkpoint's folder that would make another model: read, refused in a sentence, or named in a note."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sparsed
from sparsed.models import LoadError
from sparsed.models.files import TOKENIZER

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4976698672\n"


@pytest.fixture
def copied(folder_of, tmp_path: Path) -> Callable[..., Path]:
    """A checkpoint of its own to change."""

    def make(family: str, **values) -> Path:
        return Path(shutil.copytree(folder_of(family, **values), tmp_path / family))

    return make


def load(folder: Path):
    return sparsed.load(folder, device="cpu", dtype="float32")


def refusal(folder: Path) -> str:
    with pytest.raises(LoadError) as caught:
        load(folder)
    text = str(caught.value)
    assert "\n" not in text and text[-1] == "." and len(text) < 400
    return text


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**(json.loads(file.read_text()) if file.exists() else {}), **values}))


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "a shard", "the index", *TOKENIZER])
def test_a_git_lfs_pointer_was_not_downloaded(copied, family: str, name: str) -> None:
    folder = copied(family, shards=3)
    named = {"a shard": "model-00002-of-00003.safetensors", "the index": "model.safetensors.index.json"}
    (folder / named.get(name, name)).write_text(POINTER)
    said = refusal(folder)
    assert said == (
        f"{folder / named.get(name, name)} is a git-lfs pointer, not the file itself, which was not downloaded: run "
        f"`git lfs pull` in {folder}, or load the model by its Hub id."
    )


def test_one_file_of_weights_may_be_a_pointer_too(copied) -> None:
    folder = copied("qwen3")
    (folder / "model.safetensors").write_text(POINTER)
    assert "model.safetensors is a git-lfs pointer" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("adapter_config.json", "stands for an adapter"),
        ("quantize_config.json", "stands for quantised weights"),
        ("quant_config.json", "stands for quantised weights"),
        ("hf_quant_config.json", "stands for quantised weights"),
    ],
)
def test_a_file_that_says_that_it_is_another_model(copied, name: str, said: str) -> None:
    folder = copied("llada")
    (folder / name).write_text("{}")
    text = refusal(folder)
    assert said in text and name in text


def test_a_folder_of_an_adapter_alone(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "merge it into its model" in refusal(tmp_path)


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.int32])
def test_weights_in_few_bits_are_refused_whatever_the_config_says(checkpoints, copied, kind: torch.dtype) -> None:
    folder = copied("dream", shards=2)
    file = sorted(folder.glob("*.safetensors"))[1]
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name].to(kind)}, file, metadata={"format": "pt"})
    said = refusal(folder)
    assert f"({name}): only float32, bfloat16 and float16 weights can be loaded." in said and file.name in said


def test_two_sets_of_weights_are_refused(folder_of, copied) -> None:
    folder = copied("dream", shards=2)
    shutil.copy(folder_of("dream", seed=1) / "model.safetensors", folder)
    assert "holds model.safetensors and model.safetensors.index.json, which names others" in refusal(folder)
    # An index of that very file is none of others.
    keys = load_file(folder / "model.safetensors")
    index = {"weight_map": dict.fromkeys(keys, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert len(load(folder).notes) == 1  # the shards


def test_weights_that_nobody_names_are_named(copied, model_of) -> None:
    folder = copied("dream", shards=2)
    shutil.copy(sorted(folder.glob("*.safetensors"))[0], folder / "model-00003-of-00003.safetensors")
    (note,) = load(folder).notes
    assert note == (
        "model-00003-of-00003.safetensors of dream is not read: model.safetensors.index.json names other files."
    )
    single = copied("llada")
    for name in ("a", "b", "c", "d"):
        (single / f"{name}.safetensors").write_bytes(b"")
    (note,) = load(single).notes
    assert note == (
        "a.safetensors, b.safetensors, c.safetensors, … of llada are not read: the weights are in model.safetensors."
    )


@pytest.mark.parametrize("family", ["llada", "dream", "qwen3"])
def test_the_end_tokens_of_generation_config_count(copied, model_of, family: str) -> None:
    folder, before = copied(family), model_of(family).end_ids
    said = {"eos_token_id": [7, before[0]], "pad_token_id": 9, "bos_token_id": 3, "do_sample": False}
    change(folder / "generation_config.json", **said)
    model = load(folder)
    assert set(model.end_ids) == {*before, 7, 9} and model.eos_id == before[0] and model.notes == ()
    assert model.decode(torch.tensor([5, 6, 7, 8])) == model.decode(torch.tensor([5, 6]))


def test_a_sampler_of_generation_config_is_named_and_not_used(copied, model_of) -> None:
    folder = copied("qwen3")
    change(folder / "generation_config.json", do_sample=True, temperature=0.6, top_k=20, top_p=0.95, max_length=None)
    model = load(folder)
    assert model.defaults == model_of("qwen3").defaults
    assert model.notes == (
        "generation_config.json of qwen3 has do_sample, temperature, top_k, top_p: not used, samplers here have other "
        "settings.",
    )
    (folder / "generation_config.json").write_text("{")
    assert "generation_config.json is not valid JSON" in refusal(folder)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(copied, checkpoints) -> None:
    last = checkpoints.special_id("<|eot_id|>", checkpoints.LLADA_SPECIAL)
    said = refusal(copied("llada", embedding_size=last, vocab_size=last))
    assert f"of llada has tokens up to '<|eot_id|>' with id {last}, and config.json embeddings for {last}" in said


def test_a_tokenizer_with_fewer_tokens_than_embeddings_is_usual(model_of) -> None:
    model = model_of("llada")
    assert len(model.tokenizer) < model.network.config.vocab_size
    assert model.decode(torch.tensor([5, 310, 6])) == model.decode(torch.tensor([5, 6]))


def test_a_tokenizer_that_is_there_twice_must_be_the_same(folder_of, copied, model_of) -> None:
    folder = copied("qwen3")
    vocab = json.loads((folder_of("dream") / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(vocab))
    shutil.copy(folder_of("dream") / "merges.txt", folder)
    assert torch.equal(load(folder).encode("the a"), model_of("qwen3").encode("the a"))
    first, second = list(vocab)[:2]
    (folder / "vocab.json").write_text(json.dumps({**vocab, first: vocab[second], second: vocab[first]}))
    assert f"tokenizer.json and vocab.json in {folder} give other ids to {first!r}" in refusal(folder)


def test_a_chat_template_that_is_there_twice_must_be_the_same(copied, model_of, checkpoints) -> None:
    folder = copied("llada")
    (folder / "chat_template.jinja").write_text(checkpoints.LLADA_TEMPLATE + "\n")
    assert torch.equal(load(folder).encode("the a"), model_of("llada").encode("the a"))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert "has two chat templates, chat_template.jinja and one in tokenizer_config.json" in refusal(folder)
    about = json.loads((folder / "tokenizer_config.json").read_text())
    del about["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    model = load(folder)
    assert model.tokenizer.decode(model.encode("the a")[0]) == "the a"


def test_other_files_of_a_tokenizer_that_would_be_read_instead(copied) -> None:
    folder = copied("llada")
    change(folder / "tokenizer_config.json", fast_tokenizer_files=["tokenizer.4.0.0.json"])
    assert "names fast_tokenizer_files: only tokenizer.json can be read." in refusal(folder)
