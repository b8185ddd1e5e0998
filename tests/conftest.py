"""Fixtures: a tiny random model in mini's format, written by the tests themselves."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# Without a GPU, Triton kernels run in Triton's interpreter; it is asked for before Triton is first imported.
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|mask|>", "<|user|>", "<|assistant|>")


# "timed" holds all tests that look at a clock: they never run beside each other. Every other file is a group of its
# own; a worker that comes to one with a page starts a server and a browser for it.
TIMED_FIXTURES, PAGE_FIXTURES = {"real", "double", "dream"}, {"fake", "keeping", "chromium"}
TIMED_FILES = {"test_team", "test_team_page", "test_load"}


def kind(item: pytest.Item) -> str:
    """What a test needs: "gpu", "timed" for a clock of its own, "page" for a page, "plain" for nothing of these."""
    fixtures = set(getattr(item, "fixturenames", ()))
    if "gpu" in item.path.parts:
        return "gpu"
    if fixtures & TIMED_FIXTURES or item.path.stem in TIMED_FILES:
        return "timed"
    return "page" if fixtures & PAGE_FIXTURES else "plain"


def group(item: pytest.Item) -> str:
    """Tests of one group run in one worker, one after the other. A mark `xdist_group` goes before."""
    mark = item.get_closest_marker("xdist_group")
    if mark is not None:
        return str(mark.args[0])
    return kind(item) if kind(item) in ("gpu", "timed") else item.path.stem


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    with_page = {item.path for item in items if kind(item) == "page"}
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)), append=False)
        if kind(item) in ("timed", "page"):
            # A browser, or a clock, beside all else that the machine does: one more try, and both are reported.
            item.add_marker(pytest.mark.flaky(reruns=1))

    def turn(item: pytest.Item) -> int:
        """In this order they begin: what takes long is not left for the end."""
        if kind(item) == "timed":
            return 0
        return 1 if item.path in with_page else 2 if "engine" in item.path.parts else 3

    items.sort(key=turn)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small models lose by threads, and workers would fight for the cores."""
    import torch

    torch.set_num_threads(1)


def write_tiny_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Random weights (bf16, tied) and a tokenizer of single bytes, in the format of mini's folder."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|endoftext|>",
                "pad_token": "<|endoftext|>",
                "mask_token": "<|mask|>",
                "chat_template": CHAT_TEMPLATE,
                "clean_up_tokenization_spaces": False,
            }
        )
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        # Large weights: attention is far from uniform, and predictions differ from place to place.
        initializer_range=0.35,
        bos_token_id=None,
        eos_token_id=len(letters),
        pad_token_id=len(letters),
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    saved["sparsed"] = {
        "mask_token": "<|mask|>",
        "steps": 16,
        "gen_length": 32,
        "block_length": 32,
        "trained_length": 400,
    }
    (folder / "config.json").write_text(json.dumps(saved))
    return folder


@pytest.fixture(scope="session")
def examples() -> Callable[[str, str], str]:
    """The fenced blocks of a language on a page of the repository ("README.md", "docs/api.md" …), as one program."""

    def found(page: str, language: str) -> str:
        text = (Path(__file__).parents[1] / page).read_text(encoding="utf-8")
        blocks = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        assert blocks, f"{page} has no example in {language}"
        return "\n".join(blocks)

    return found


@pytest.fixture(scope="session")
def checkpoints() -> ModuleType:
    """The module engine/checkpoints.py (tests are no package, so it cannot be imported by name)."""
    name = "tests_engine_checkpoints"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / "engine" / "checkpoints.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder; read only."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def row_sets() -> Callable[..., dict[str, Any]]:
    """(length, block size, batch) → sets of query rows by name: int64 [1 or batch, n], ascending."""
    import torch

    def sets(length: int, size: int, batch: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(length)

        def scattered(count: int) -> torch.Tensor:
            return torch.randperm(length, generator=generator)[:count].sort().values

        every = torch.arange(length)
        count = max(1, min(size, length) // 2)
        middle = min(length // 2, length - count)
        return {
            "a block": every[None, :size],
            "the last block": every[None, (length - 1) // size * size :],
            "across a boundary": every[None, max(0, min(size, length) - 3) : size + 2],
            "one row": every[None, middle : middle + 1],
            "scattered": scattered(count)[None],
            # One sequence's rows are neighbours, the others' lie anywhere.
            "unlike sequences": torch.stack(
                [every[middle : middle + count], *(scattered(count) for _ in range(batch - 1))]
            ),
            "all": every[None],
        }

    return sets


@pytest.fixture
def make_checkpoint() -> Callable[..., Path]:
    """`write_tiny_checkpoint`, for tests that damage what it writes."""
    return write_tiny_checkpoint


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path):
    """The tiny model in float32 on the CPU. Runs keep their own state, so the tests share it."""
    import sparsed

    return sparsed.load(tiny_folder, device="cpu", dtype="float32")
