"""The bundled model as a visitor meets it: it answers, dense and sparse, and its files stay small."""

from __future__ import annotations

import pytest
import torch

import sparsed
from sparsed.models.model import Model
from sparsed.paths import data_dir
from sparsed.questions.build import build_prompt
from sparsed.questions.score import exact_match


@pytest.fixture(scope="module")
def mini() -> Model:
    return sparsed.load("mini", dtype="float32")


def test_its_files_are_small_enough_for_a_clone() -> None:
    sizes = [path.stat().st_size for path in (data_dir("assets") / "mini").iterdir()]
    assert max(sizes) < 10_000_000 and sum(sizes) < 20_000_000


@pytest.mark.parametrize("attention", ["dense", "sparsed"])
def test_it_answers_questions_about_unseen_documents(mini: Model, attention: str) -> None:
    kinds = ["about", "fact", "inverse", "two_hop", "several", "older", "same", "unanswerable"]
    prompts = [build_prompt(mini, "short_context", kind, seed) for seed, kind in enumerate(kinds)]
    # Prompts of one length run as a batch.
    ids = torch.cat([mini.encode(prompt.text) for prompt in prompts])
    chosen = "dense" if attention == "dense" else sparsed.SparseDConfig()
    result = sparsed.generate(mini, ids, attention=chosen)
    right = sum(exact_match(text, prompt.answer) for text, prompt in zip(result.text, prompts))
    assert right >= 7, list(zip(result.text, [prompt.answer for prompt in prompts]))


def test_it_does_word_problems(mini: Model) -> None:
    prompt = build_prompt(mini, "short_context", "arithmetic", 3)
    assert exact_match(sparsed.generate(mini, prompt.text).text[0], prompt.answer)


def test_the_published_select_leaves_its_longest_answers_whole(mini: Model) -> None:
    # The longest answers of prompts that have one, each longer than one attention block of 32.
    prompts = [build_prompt(mini, "short_context", kind, seed) for kind in ("about", "several") for seed in range(20)]
    longest = sorted(prompts, key=lambda prompt: len(mini.tokenizer.encode(prompt.answer)))[-3:]
    assert all(len(mini.tokenizer.encode(prompt.answer)) > 32 for prompt in longest)
    for prompt in longest:
        dense, sparse = (
            sparsed.generate(mini, prompt.text, attention=attention)
            for attention in ("dense", sparsed.SparseDConfig(skip=0.2, select=0.5, block_size=32))
        )
        assert sparse.text == dense.text
        assert sparse.pattern is not None and sparse.pattern.layout.generation_blocks == 3
        # Half of eight prompt blocks, and two of the three that the canvas has.
        assert all(layer.counts.unique().tolist() == [4 + 2] for layer in sparse.pattern.layers)
