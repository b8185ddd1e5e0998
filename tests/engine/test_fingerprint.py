"""The fingerprint of a checkpoint: the same for the same files, another one for everything that loading reads."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tracemalloc
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

import sparsed
from sparsed.bench.shapes import load_or_make
from sparsed.models import LoadError, model
from sparsed.models.files import files_read
from sparsed.models.fingerprint import fingerprint

FAMILIES = ("llada", "dream", "qwen3")


def read_names(folder: Path) -> set[str]:
    """The files of a folder that loading opens, as Python sees it."""
    seen: set[str] = set()
    listening = True

    def hook(event: str, args: tuple) -> None:
        if listening and event == "open" and isinstance(args[0], str) and Path(args[0]).parent == folder:
            seen.add(Path(args[0]).name)

    sys.addaudithook(hook)
    sparsed.load(folder, device="cpu", dtype="float32")
    listening = False  # a hook stays until the process ends
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_of_the_files_and_not_of_their_place(folder_of, tmp_path: Path, family: str) -> None:
    folder = folder_of(family, shards=2)
    whole = fingerprint(folder)
    assert len(whole) == 64 and int(whole, 16) >= 0
    copy = Path(shutil.copytree(folder, tmp_path / "by another name"))
    (copy / "README.md").write_text("a card")
    (copy / "modeling_new.py").write_text("raise RuntimeError")
    (copy / "left-over.safetensors").write_bytes(b"not named by the index")
    assert fingerprint(copy) == whole


@pytest.mark.parametrize("family", FAMILIES)
def test_every_file_that_loading_opens_counts(folder_of, tmp_path: Path, family: str) -> None:
    folder = Path(shutil.copytree(folder_of(family, shards=2), tmp_path / family))
    read = files_read(folder)
    # Weights are opened outside of Python.
    assert read_names(folder) <= set(read)
    assert {"config.json", "model.safetensors.index.json", "tokenizer_config.json"} <= set(read)
    assert sum(name.endswith(".safetensors") for name in read) == 2
    found = {fingerprint(folder)}
    for name in read:
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(kept + b" ")
        found.add(fingerprint(folder))
        if name != "model.safetensors.index.json":
            (folder / name).unlink()
            found.add(fingerprint(folder))
        (folder / name).write_bytes(kept)
    assert len(found) == 2 * len(read)


def test_the_same_bytes_under_another_name_are_another_checkpoint(folder_of, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of("llada", shards=2), tmp_path / "copy"))
    before = fingerprint(folder)
    first, second = sorted(folder.glob("*.safetensors"))
    (tmp_path / "held").write_bytes(first.read_bytes())
    first.write_bytes(second.read_bytes())
    second.write_bytes((tmp_path / "held").read_bytes())
    assert fingerprint(folder) != before


def cached(source: Path, cache: Path, blob: Callable[[str, bytes], str]) -> Path:
    """A folder as a snapshot in the Hub's cache: links to blobs, named as `blob` says."""
    snapshot, blobs = cache / "models--a--b/snapshots/c0ffee", cache / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in source.iterdir():
        name = blob(file.name, file.read_bytes())
        (blobs / name).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.join("..", "..", "blobs", name))
    return snapshot


def hub_name(name: str, content: bytes) -> str:
    kind = hashlib.sha256 if name.endswith(".safetensors") else hashlib.sha1
    return kind(content).hexdigest()


def test_the_hubs_cache_gives_the_same_and_large_files_are_not_read_again(folder_of, tmp_path: Path) -> None:
    folder = folder_of("dream", shards=2)
    snapshot = cached(folder, tmp_path, hub_name)
    assert fingerprint(snapshot) == fingerprint(folder)
    for blob in (tmp_path / "models--a--b/blobs").iterdir():
        if len(blob.name) == 64:
            blob.write_bytes(b"")
    assert fingerprint(snapshot) == fingerprint(folder)
    # A small file has another hash in its name: it is read.
    (snapshot / "config.json").resolve().write_text("{}")
    assert fingerprint(snapshot) != fingerprint(folder)


def test_a_blob_that_several_repositories_share_is_named_by_the_first_link(folder_of, tmp_path: Path) -> None:
    folder = folder_of("dream")
    snapshot = cached(folder, tmp_path, hub_name)
    weights = snapshot.parents[1] / "blobs" / os.path.basename(os.readlink(snapshot / "model.safetensors"))
    shared = tmp_path / "blobs/ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    weights.rename(shared)
    weights.symlink_to(shared)
    assert fingerprint(snapshot) == fingerprint(folder)


def test_other_links_are_read(folder_of, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of("dream"), tmp_path / "copy"))
    elsewhere = tmp_path / "blobs" / ("0" * 64)
    elsewhere.parent.mkdir()
    (folder / "model.safetensors").rename(elsewhere)
    (folder / "model.safetensors").symlink_to(elsewhere)
    assert fingerprint(folder) == fingerprint(folder_of("dream"))


def test_files_are_read_piece_by_piece(folder_of, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of("dream"), tmp_path / "copy"))
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.truncate(64 << 20)
    tracemalloc.start()
    fingerprint(folder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_damaged_index_is_one_sentence(folder_of, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of("dream", shards=2), tmp_path / "copy"))
    (folder / "model.safetensors.index.json").write_text("[")
    with pytest.raises(LoadError, match="is not an index of safetensors files"):
        fingerprint(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(LoadError, match="in the same folder"):
        fingerprint(folder)


def test_a_model_knows_its_own_and_reads_it_once(folder_of, model_of, monkeypatch) -> None:
    loaded = sparsed.load(folder_of("qwen3"), device="cpu", dtype="float32")
    asked: list[Path] = []
    monkeypatch.setattr(model, "fingerprint", lambda folder: asked.append(folder) or fingerprint(folder))
    assert loaded.fingerprint() == loaded.fingerprint() == fingerprint(folder_of("qwen3"))
    assert asked == [folder_of("qwen3").resolve()] == [loaded.folder]
    assert model_of("dream").fingerprint() != loaded.fingerprint()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_config.json", "config.json"])
def test_files_that_changed_after_loading_give_no_fingerprint(folder_of, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(folder_of("llada"), tmp_path / "merged again and again"))
    said = "were changed or removed after .* was loaded from them: what it was made of cannot be told"
    loaded, asked_before = (sparsed.load(folder, device="cpu", dtype="float32") for _ in range(2))
    known = asked_before.fingerprint()
    kept = (folder / name).read_bytes()
    (folder / name).write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))  # as large as before
    with pytest.raises(LoadError, match=said):
        loaded.fingerprint()
    assert asked_before.fingerprint() == known != fingerprint(folder)
    shutil.rmtree(folder)
    with pytest.raises(LoadError, match=said):
        loaded.fingerprint()


def test_random_weights_are_named_by_their_shape_and_seed() -> None:
    made = load_or_make(Namespace(shape="mini", device="cpu", no_fuse=True), "float32", None)
    assert made.folder is None and made.fingerprint() == "random weights of mini, drawn layer by layer, seed 0"
