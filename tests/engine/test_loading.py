"""Loading a checkpoint folder, and what it says when something is wrong with it."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sparsed
from sparsed import paths
from sparsed.config import ResolvedSampler
from sparsed.models import catalogue, hub, probe


def change_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(values)
    (folder / "config.json").write_text(json.dumps(config))


def test_a_folder_says_what_it_is(tiny, tiny_folder: Path) -> None:
    assert (tiny.name, tiny.label) == (tiny_folder.name, tiny_folder.name)
    assert tiny.tokenizer.convert_ids_to_tokens(tiny.mask_id) == "<|mask|>"
    assert tiny.tokenizer.convert_ids_to_tokens(tiny.eos_id) == "<|endoftext|>"
    assert tiny.defaults == ResolvedSampler(16, 32, 32, "low_confidence", 0.0, 0, 1.0, 0, 0.0, 1e-3, 0.0, None)
    assert tiny.max_positions == 400
    assert tiny.device == torch.device("cpu") and tiny.dtype == torch.float32
    assert not tiny.network.training and not any(p.requires_grad for p in tiny.network.parameters())
    assert tiny.network.lm_head.weight is tiny.network.model.embed_tokens.weight


def test_without_the_sparsed_object_there_are_generic_defaults(tmp_path, make_checkpoint) -> None:
    folder = make_checkpoint(tmp_path / "plain")
    config = json.loads((folder / "config.json").read_text())
    del config["sparsed"]
    (folder / "config.json").write_text(json.dumps(config))
    model = sparsed.load(str(folder), device="cpu", dtype="float32")
    assert model.defaults.steps == model.defaults.gen_length == model.defaults.block_length == 64
    assert model.max_positions == 512


def test_a_catalogue_name_loads_from_assets(tmp_path, make_checkpoint, monkeypatch) -> None:
    make_checkpoint(tmp_path / "mini")
    monkeypatch.setattr(hub, "data_dir", lambda kind: {"assets": tmp_path}[kind])
    model = sparsed.load("mini", device="cpu", dtype=torch.float32)
    assert model.name == "mini" and model.label == catalogue.find("mini").label
    # The checkpoint's own word goes before the catalogue's.
    assert model.defaults.steps == 16 and model.max_positions == 400


def test_every_row_of_the_catalogue_is_complete() -> None:
    assert len(set(catalogue.names())) == len(catalogue.CATALOGUE) >= 1
    for spec in catalogue.CATALOGUE:
        complete = spec.defaults.resolve(spec.defaults)
        assert complete.resolve(complete) == complete and complete.algorithm == spec.defaults.algorithm
        assert spec.trained_length > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", torch.float16])
def test_dtype_can_be_chosen_and_rotation_stays_exact(tiny_folder: Path, dtype) -> None:
    model = sparsed.load(tiny_folder, device="cpu", dtype=dtype)
    expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert model.dtype == expected
    assert {p.dtype for p in model.network.parameters()} == {expected}
    frequencies = model.network.model.rotary_emb.inv_freq
    exact = torch.tensor([10000.0 ** (-2 * i / 16) for i in range(8)], dtype=torch.float64)
    assert frequencies.dtype == torch.float32
    assert torch.allclose(frequencies.double(), exact, rtol=1e-6, atol=0)


def test_the_probe_picks_the_faster_dtype(monkeypatch, tiny_folder: Path) -> None:
    assert probe.fastest_cpu_dtype() in (torch.float32, torch.bfloat16)
    for fast, slow in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
        seconds = {fast: 0.001, slow: 0.002}
        monkeypatch.setattr(probe, "_seconds", seconds.__getitem__)
        assert probe.fastest_cpu_dtype() == fast
        assert sparsed.load(tiny_folder, device="cpu").dtype == fast


def test_loading_needs_no_network_and_is_quiet(tiny_folder: Path, monkeypatch, capfd) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model = sparsed.load(tiny_folder, device="cpu", dtype="float32")
    model.encode("Who?")
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


def test_loading_leaves_transformers_own_settings(tiny_folder: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    sparsed.load(tiny_folder, device="cpu", dtype="float32")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(ValueError, match="no model 'maxi'.*Known names: 'mini'.*local folder"):
        sparsed.load("maxi")


def test_an_unknown_dtype_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, not 'int8'"):
        sparsed.load(tiny_folder, dtype="int8")
    with pytest.raises(ValueError, match="not torch.float64"):
        sparsed.load(tiny_folder, dtype=torch.float64)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_missing_file_is_named(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "copy"))
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {name}"):
        sparsed.load(folder, device="cpu", dtype="float32")


def damage(name: str) -> Callable[[Path], None]:
    """One way to damage a checkpoint folder."""

    def truncate(folder: Path) -> None:
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])

    def drop_weight(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    def drop_mask(folder: Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_text((folder / name).read_text().replace("<|mask|>", "<|task|>"))
        config = json.loads((folder / "tokenizer_config.json").read_text())
        del config["mask_token"]
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        change_config(folder, sparsed={})

    return {
        "truncate": truncate,
        "drop_weight": drop_weight,
        "drop_mask": drop_mask,
        "other_family": lambda folder: change_config(folder, model_type="gpt2"),
        "odd_remark": lambda folder: change_config(folder, sparsed={"trained_length": None}),
        "odd_remarks": lambda folder: change_config(folder, sparsed=[1]),
        "no_json": lambda folder: (folder / "config.json").write_text("{"),
        "a_list": lambda folder: (folder / "config.json").write_text("[]"),
        "other_shape": lambda folder: change_config(folder, intermediate_size=96),
        "more_layers": lambda folder: change_config(folder, num_hidden_layers=4),
    }[name]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("truncate", "model.safetensors cannot be read"),
        ("drop_weight", r"1 missing \(model.layers.1.mlp.up_proj.weight\)"),
        ("more_layers", "do not fit its config.json: 9 missing"),
        ("other_shape", "do not fit its config.json: 9 of another shape"),
        ("drop_mask", "has no mask token"),
        ("other_family", "model_type 'gpt2', which is no diffusion language model"),
        ("odd_remark", "says sparsed.trained_length None, which is no int"),
        ("odd_remarks", r"must hold an object under 'sparsed', not \[1\]"),
        ("no_json", "is not valid JSON"),
        ("a_list", "must hold a JSON object"),
    ],
)
def test_a_damaged_folder_is_explained(tiny_folder: Path, tmp_path: Path, name: str, said: str) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "copy"))
    damage(name)(folder)
    with pytest.raises(ValueError, match=said):
        sparsed.load(folder, device="cpu", dtype="float32")


def test_text_becomes_a_chat(tiny) -> None:
    ids = tiny.encode("Grüße")
    assert ids.dtype == torch.int64 and ids.ndim == 2
    assert tiny.tokenizer.decode(ids[0]) == "<|user|>Grüße<|endoftext|><|assistant|>"
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = tiny.tokenizer.decode(tiny.encode([*chat, {"role": "user", "content": "c"}])[0])
    assert text == "<|user|>a<|endoftext|><|assistant|>b<|endoftext|><|user|>c<|endoftext|><|assistant|>"


def test_ids_are_used_as_they_are(tiny) -> None:
    one = torch.tensor([3, 0, tiny.eos_id], dtype=torch.int32)
    assert tiny.encode(one).tolist() == [one.tolist()]
    two = torch.tensor([[1, 2], [3, 4]])
    assert torch.equal(tiny.encode(two), two)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("", "prompt is empty"),
        (" \n", "prompt is empty"),
        ([], "must be a string, a list of messages"),
        (["text"], "One prompt is a text or a list of messages; several texts go to sparsed.generate_all."),
        ([1], "Message 1 of the prompt must be an object with 'role' and 'content', both text, not 1"),
        ([{"role": "user"}], "Message 1 of the prompt must be an object with 'role' and 'content'"),
        ([{"role": "user", "content": None}], "Message 1 of the prompt must be an object"),
        ([{"role": "user", "content": "x", "name": "y"}], "Message 1 of the prompt has 'name' beside"),
        (None, "must be a string, a list of messages"),
        (torch.tensor([], dtype=torch.int64), "prompt is empty"),
        (torch.zeros(0, 4, dtype=torch.int64), "prompt is empty"),
        (torch.tensor([0.5]), "must be whole numbers"),
        (torch.tensor([True]), "must be whole numbers"),
        (torch.zeros(1, 1, 1, dtype=torch.int64), "must be whole numbers of shape"),
        (torch.tensor(3), "must be whole numbers of shape"),
        (torch.tensor([-1, 4]), "between 0 and 259, not -1"),
        (torch.tensor([260]), "between 0 and 259, not 260"),
        (torch.tensor([1, 257]), "hold the mask token 257 at position 1: masks inside a prompt are not filled"),
        (torch.tensor([[1, 2], [257, 3]]), "hold the mask token 257 at position 0"),
    ],
)
def test_what_is_no_prompt_is_refused(tiny, prompt, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tiny.encode(prompt)


def test_decoding_ends_at_the_end_token(tiny) -> None:
    plain = tiny.tokenizer("two  words .", add_special_tokens=False)["input_ids"]
    late = tiny.tokenizer("later", add_special_tokens=False)["input_ids"]
    assert tiny.decode(torch.tensor(plain)) == "two  words ."
    assert tiny.decode(torch.tensor([*plain, tiny.eos_id, *late])) == "two  words ."
    assert tiny.decode(torch.tensor([tiny.mask_id, *plain, tiny.mask_id])) == "two  words ."
    assert tiny.decode(torch.tensor([tiny.eos_id, *plain])) == ""


@pytest.mark.parametrize("text", ["    return x", "\n\n  two\t \n", " ", "x"])
def test_decoding_keeps_every_space(tiny, text: str) -> None:
    ids = tiny.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tiny.decode(torch.tensor([*ids, tiny.eos_id, *ids])) == text
    assert tiny.decode(torch.tensor(ids)) == text


def test_data_lies_in_the_clone_or_in_the_installed_package(tmp_path: Path, monkeypatch) -> None:
    package = tmp_path / "site" / "sparsed"
    package.mkdir(parents=True)
    monkeypatch.setattr(paths, "__file__", str(package / "paths.py"))
    with pytest.raises(FileNotFoundError, match="'prompts' was found neither at"):
        paths.data_dir("prompts")
    (package.parent / "prompts").mkdir()
    assert paths.data_dir("prompts") == package.parent / "prompts"
    (package / "_data" / "prompts").mkdir(parents=True)
    assert paths.data_dir("prompts") == package / "_data" / "prompts"
    with pytest.raises(ValueError, match="kind must be 'assets' or 'prompts', not 'weights'"):
        paths.data_dir("weights")
