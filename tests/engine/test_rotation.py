"""Rotary positions: scaled as config.json says, against plain loops over angles; stretched by rope_factor."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sparsed
from sparsed.bench.command import main as bench
from sparsed.evaluation.command import main as evaluation
from sparsed.harness.arguments import read_arguments
from sparsed.models import LoadError
from sparsed.origin import origin_of

# The third component pairs of the small heads lie between what is kept and what is interpolated.
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0.25, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 96,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn by hand": {
        "type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128, "attention_factor": 1.3,
        "beta_fast": 16, "beta_slow": 0.5,
    },
    "yarn of the whole length": {"rope_type": "yarn", "factor": 2.0},
    "none": {"rope_type": "default"},
}  # fmt: skip
FAMILIES = ("llada", "dream", "qwen3", "llada_moe", "illada")


def ids(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits_of(model, sequence: torch.Tensor) -> torch.Tensor:
    return model.network(input_ids=sequence[None], use_cache=False).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", SCALINGS)
def test_a_scaled_rotation_equals_plain_loops(checkpoints, folder_of, model_of, family: str, key: str, name) -> None:
    """Every logit, to 1e-5 of the largest; without the scaling they are further away by far."""
    values = {key: SCALINGS[name]}
    model, folder = model_of(family, **values), folder_of(family, **values)
    plain = checkpoints.PlainNetwork(folder, torch.float64)
    for length in (1, 3, 200):
        sequence = ids(length, seed=length)
        wanted = plain.logits(sequence)
        assert (logits_of(model, sequence) - wanted).abs().max() < 1e-5 * wanted.abs().max()
    if name != "none":
        other = checkpoints.PlainNetwork(folder_of(family), torch.float64).logits(sequence)
        assert (other - wanted).abs().max() > 1e-2 * wanted.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("factor", [4, 14.0, 55])
def test_rope_factor_multiplies_the_base(checkpoints, folder_of, model_of, family: str, factor: float) -> None:
    model = sparsed.load(folder_of(family), device="cpu", dtype="float32", rope_factor=factor)
    assert model.rope_factor == factor
    sequence = ids(300)
    wanted = checkpoints.PlainNetwork(folder_of(family), torch.float64, rope_factor=factor).logits(sequence)
    got = logits_of(model, sequence)
    assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert (got - logits_of(model_of(family), sequence)).abs().max() > 1e-3 * wanted.abs().max()
    # The same as a checkpoint whose config.json has that base.
    base = {"llada": 5e5, "dream": 1e6, "qwen3": 1e6, "llada_moe": 5e4, "illada": 2e5}[family]
    assert torch.equal(got, logits_of(model_of(family, rope_theta=base * factor), sequence))


def test_a_rope_factor_is_said_beside_speed_only(folder_of, model_of) -> None:
    model = sparsed.load(folder_of("llada"), device="cpu", dtype="float32", rope_factor=14)
    sampler = sparsed.SamplerConfig(steps=2, gen_length=4)
    sentence = (
        "The base of the rotary positions is 14 times the published one (rope_factor): that is for sequences longer "
        f"than the 256 positions that {model.label} was trained to, and changes its answers at every length."
    )
    for length, said in ((20, [sentence]), (300, [None, sentence])):
        notes = sparsed.denoise(model, ids(length), sampler=sampler, attention="dense").notes
        assert notes[-1] == sentence and len(notes) == len(said)
        assert [note.startswith("Speed only: trained to 256 positions") for note in notes[:-1]] == [True] * (
            len(said) - 1
        )
    for one in (model_of("llada"), sparsed.load(folder_of("llada"), device="cpu", dtype="float32", rope_factor=1)):
        assert sparsed.denoise(one, ids(20), sampler=sampler, attention="dense").notes == [] and one.rope_factor == 1


@pytest.mark.parametrize("factor", [0, 0.5, -4, float("inf"), float("nan"), True, "14"])
def test_a_rope_factor_that_is_none_is_refused(factor) -> None:
    with pytest.raises(ValueError, match=r"rope_factor must be a number of 1 or more \(1 = as published\), not "):
        sparsed.load("mini", device="cpu", dtype="float32", rope_factor=factor)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_scaled_already_is_not_stretched(folder_of, family: str) -> None:
    folder = folder_of(family, rope_scaling=SCALINGS["yarn"])
    with pytest.raises(LoadError) as caught:
        sparsed.load(folder, device="cpu", dtype="float32", rope_factor=4)
    assert str(caught.value) == (
        f"config.json of {folder.name} scales its rotation by itself (yarn): leave rope_factor out, which stretches "
        f"one that is not scaled."
    )


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_an_original_length_in_another_place_is_refused(checkpoints, folder_of, tmp_path: Path, kind: str) -> None:
    folder = Path(shutil.copytree(folder_of("qwen3", rope_scaling=SCALINGS[kind]), tmp_path / "here"))
    checkpoints.change_config(folder, original_max_position_embeddings=32)
    with pytest.raises(LoadError, match=f"beside rope_scaling, not in it: put it where type '{kind}' reads it"):
        sparsed.load(folder, device="cpu", dtype="float32")


def test_results_with_another_rope_factor_are_of_another_plan(model_of, folder_of, tmp_path: Path) -> None:
    plain = model_of("llada")
    assert "rope_factor" not in origin_of(plain)  # results from before there was one still count
    assert origin_of(replace(plain, rope_factor=4.0)) == {**origin_of(plain), "rope_factor": 4.0}
    for number, command in enumerate((evaluation, bench)):
        out = tmp_path / str(number)
        short = ["--model", "mini", "--device", "cpu", "--dtype", "float32", "--steps", "2", "--out", str(out)]
        short += ["--lengths", "200"]
        more = ["--questions", "1", "--types", "lookup", "--depths", "--methods", "dense"]
        more = ["--gen-length", "32", *more] if command is evaluation else ["--compose", "--gen-length", "32"]
        command([*short, *more, "--rope-factor", "4"])
        for other in ([], ["--rope-factor", "14"]):
            with pytest.raises(ValueError, match=r"rope_factor is 4.0 there, (null|14.0) here"):
                command([*short, *more, *other])


def test_the_harness_takes_a_rope_factor() -> None:
    assert read_arguments({"pretrained": "mini", "rope_factor": 14}).rope_factor == 14
    assert read_arguments({}).rope_factor is None


def test_random_weights_take_none() -> None:
    with pytest.raises(ValueError, match="need no stretching: leave --rope-factor out"):
        bench(["--shape", "mini", "--rope-factor", "4"])
