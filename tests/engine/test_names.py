"""A name of the catalogue and the same files in a folder are one model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sparsed
from app.engine.local import SparsedEngine
from sparsed.models import catalogue, hub
from sparsed.models.catalogue import CATALOGUE, ModelSpec
from sparsed.models.families import describe, recognise
from sparsed.paths import data_dir
from sparsed.training.data import CANVAS, MAX_POSITION

# What the published config.json of each family says of its length; the rest is small.
OFFICIAL = {
    "llada": {"max_sequence_length": 4096},
    "dream": {"max_position_embeddings": 131_072},
    "qwen3": {"max_position_embeddings": 40_960},
    "llada_moe": {"max_position_embeddings": 8192},
    "illada": {"max_position_embeddings": 8192},
}
ROWS = [pytest.param(spec, id=spec.name) for spec in CATALOGUE]
# UltraLLaDA is a LLaDA whose config.json names more positions.
LONGER = {"ultrallada": {"max_sequence_length": 131_072}}
CHAT = [
    "What is the inner a?",
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " two\n"}],
]


def official(spec: ModelSpec) -> dict[str, int]:
    return LONGER.get(spec.name, OFFICIAL.get(spec.family, {}))


@pytest.fixture
def stand_in(folder_of, tmp_path: Path) -> Callable[[ModelSpec], Path]:
    """A small random checkpoint of a row's family, as published; mini's own folder."""

    def make(spec: ModelSpec) -> Path:
        source = data_dir("assets") / "mini" if spec.bundled else folder_of(spec.family, **official(spec))
        return Path(shutil.copytree(source, tmp_path / "some folder"))

    return make


@pytest.mark.parametrize("spec", ROWS)
def test_a_name_and_a_folder_are_one_model(spec: ModelSpec, stand_in, monkeypatch) -> None:
    folder = stand_in(spec)
    asked: list[str] = []
    monkeypatch.setattr(hub, "fetch", lambda source, *_: asked.append(source) or folder)
    monkeypatch.setattr("sparsed.models.loading.pick_dtype", lambda *_: torch.float32)
    by_folder = sparsed.load(folder, device="cpu")
    for name in {spec.name, spec.name if spec.bundled else spec.source}:
        by_name = sparsed.load(name, device="cpu")
        for prompt in CHAT:
            for chat in (None, False, True):
                assert torch.equal(by_name.encode(prompt, chat), by_folder.encode(prompt, chat))
        same = ("defaults", "max_positions", "family", "shift", "chat", "mask_id", "eos_id", "end_ids", "notes")
        assert [getattr(by_name, key) for key in same] == [getattr(by_folder, key) for key in same]
        assert by_name.fingerprint() == by_folder.fingerprint()
        assert (by_name.name, by_name.label) == (spec.name, spec.label)
        # What the catalogue says before anything is loaded is what the files say.
        assert by_name.defaults == spec.defaults.resolve(spec.defaults)
        assert (by_name.max_positions, by_name.family) == (spec.trained_length, spec.family)
    told = describe(folder, "some folder")
    assert (told.family, told.trained_length, told.defaults) == (spec.family, spec.trained_length, spec.defaults)
    assert told.label == by_folder.label and told.bundled
    assert by_folder.name == "some folder"
    assert asked == ([] if spec.bundled else [spec.source] * 2)


def test_a_folder_is_described_without_heavy_libraries(folder_of) -> None:
    program = (
        "import sys; from pathlib import Path; from sparsed.models.families import describe; "
        "print(describe(Path(sys.argv[1]), 'x').trained_length, {'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder_of("dream"))], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["512", "set()"]


def test_the_page_knows_a_folder_and_a_hub_id_as_it_knows_the_name(stand_in, tmp_path: Path) -> None:
    """Before anything is loaded: the settings that it offers first are those of the model."""
    dream = catalogue.find("dream-7b-instruct")
    for name in (str(stand_in(dream)), dream.source):
        engine = SparsedEngine(any_model=True)
        engine.admit(name)
        told = engine.models()[name]
        assert (told.family, told.trained_length, told.defaults) == ("dream", dream.trained_length, dream.defaults)
    (tmp_path / "some folder/config.json").write_text("{")
    assert SparsedEngine(str(tmp_path / "some folder")).models()[str(tmp_path / "some folder")].family == ""


def test_minis_facts_are_told_alike_in_all_places() -> None:
    """The catalogue, which says them before loading; the shipped config.json; what training was made for."""
    spec = catalogue.find("mini")
    raw = json.loads((data_dir("assets") / "mini/config.json").read_text())
    said = recognise(raw, "mini")
    assert said.defaults == spec.defaults and said.trained_length == spec.trained_length == MAX_POSITION
    assert raw["sparsed"]["label"] == spec.label and spec.defaults.gen_length == CANVAS


@pytest.mark.parametrize(("positions", "trained"), [(131_072, 2048), (2048, 2048), (512, 512)])
def test_dreams_length_is_its_own_and_not_its_ancestors(folder_of, positions: int, trained: int) -> None:
    folder = folder_of("dream", max_position_embeddings=positions)
    assert sparsed.load(folder, device="cpu", dtype="float32").max_positions == trained


@pytest.mark.parametrize("family", ["llada", "dream", "qwen3"])
def test_a_folder_may_say_its_own_length_and_sampler(folder_of, checkpoints, tmp_path: Path, family: str) -> None:
    folder = Path(shutil.copytree(folder_of(family), tmp_path / family))
    said = {"trained_length": 7000, "steps": 16, "gen_length": 64, "block_length": 64}
    checkpoints.change_config(folder, sparsed=said)
    model = sparsed.load(folder, device="cpu", dtype="float32")
    assert model.max_positions == 7000
    assert (model.defaults.steps, model.defaults.gen_length, model.defaults.block_length) == (16, 64, 64)
