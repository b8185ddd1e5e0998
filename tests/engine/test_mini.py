"""The bundled model as a visitor meets it: it answers, dense and sparse, and its files stay small."""

from __future__ import annotations

import pytest
import torch

import sparsed
from sparsed.models.loading import Model
from sparsed.paths import data_dir
from sparsed.prompts import build_prompt, exact_match


@pytest.fixture(scope="module")
def mini() -> Model:
    return sparsed.load("mini", dtype="float32")


def test_its_files_are_small_enough_for_a_clone() -> None:
    sizes = [path.stat().st_size for path in (data_dir("assets") / "mini").iterdir()]
    assert max(sizes) < 10_000_000 and sum(sizes) < 20_000_000


@pytest.mark.parametrize("attention", ["dense", "sparsed"])
def test_it_answers_questions_about_unseen_documents(mini: Model, attention: str) -> None:
    kinds = ["about", "fact", "inverse", "two_hop", "older", "same", "unanswerable", "about"]
    prompts = [build_prompt(mini, "short_context", kind, seed) for seed, kind in enumerate(kinds)]
    # Prompts of one length run as a batch.
    ids = torch.cat([mini.encode(prompt.text) for prompt in prompts])
    chosen = "dense" if attention == "dense" else sparsed.SparseDConfig()
    result = sparsed.generate(mini, ids, attention=chosen)
    right = sum(exact_match(text, prompt.answer) for text, prompt in zip(result.text, prompts))
    assert right >= 7, list(zip(result.text, [prompt.answer for prompt in prompts]))


def test_it_does_small_sums(mini: Model) -> None:
    prompt = build_prompt(mini, "short_context", "arithmetic", 3)
    assert exact_match(sparsed.generate(mini, prompt.text).text[0], prompt.answer)


def test_the_default_of_short_prompts_keeps_the_whole_canvas(mini: Model) -> None:
    # Two attention blocks of 32 tokens: a default that dropped one of them would cut answers in half.
    prompt = build_prompt(mini, "short_context", "about", 0)
    run = sparsed.denoise(mini, prompt.text, attention=sparsed.SparseDConfig(skip=0.0))
    next(run)
    assert run.pattern is not None
    layout = run.pattern.layout
    for layer in range(len(run.pattern.layers)):
        assert bool(run.pattern.mask(layer, 0)[:, layout.prompt_blocks :].all())
