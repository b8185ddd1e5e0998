"""The stages of training, their lengths and learning rates."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedConfig

from sparsed.models.families import read_config, recognise
from sparsed.paths import data_dir


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum: its share of the whole training time and the weight of each row length."""

    share: float
    lengths: dict[int, float]


CURRICULUM = (
    Stage(0.05, {256: 1.0}),
    Stage(0.12, {512: 0.7, 256: 0.3}),
    Stage(0.10, {1024: 0.7, 512: 0.3}),
    Stage(0.10, {2048: 0.6, 1024: 0.3, 512: 0.1}),
    Stage(0.13, {4096: 0.5, 2048: 0.25, 1024: 0.15, 512: 0.1}),
    Stage(0.20, {8192: 0.3, 4096: 0.25, 16384: 0.1, 2048: 0.15, 1024: 0.1, 512: 0.1}),
    Stage(
        0.30,
        {65536: 0.01, 32768: 0.05, 16384: 0.12, 8192: 0.2, 4096: 0.24, 2048: 0.16, 1024: 0.1, 512: 0.08, 256: 0.04},
    ),
)


def shortened(curriculum: tuple[Stage, ...], longest: int) -> tuple[Stage, ...]:
    """The curriculum without rows longer than ``longest`` tokens, for machines on which those take too long."""
    kept = (Stage(s.share, {n: weight for n, weight in s.lengths.items() if n <= longest}) for s in curriculum)
    stages = tuple(stage for stage in kept if stage.lengths)
    if not stages:
        raise ValueError(f"No row of the curriculum has at most {longest} tokens; the shortest has 256.")
    return stages


def last_stages(curriculum: tuple[Stage, ...], count: int = 4) -> tuple[Stage, ...]:
    """The last stages alone, over the whole time: for weights that have seen the earlier ones."""
    kept = curriculum[-count:]
    total = sum(stage.share for stage in kept)
    return tuple(Stage(stage.share / total, stage.lengths) for stage in kept)


@dataclass(frozen=True)
class Recipe:
    """Every number of a training run; saved beside the weights.

    Attributes:
        seconds: wall-clock budget; the learning rate reaches zero when it or the plan of steps is used up.
        tokens: tokens per process and step.
        end_weight: loss weight of end tokens after the first.
        prompt_weight: loss weight of masked prompt tokens.
        whole, span, block: shares of the answers that are masked wholly, in one span, and as a semi-autoregressive
            block leaves them.
    """

    seconds: float = 600.0
    tokens: int = 65_536
    learning_rate: float = 2e-3
    warmup: int = 300
    decay_from: float = 0.45
    weight_decay: float = 0.0
    end_weight: float = 0.15
    prompt_weight: float = 0.15
    whole: float = 0.25
    span: float = 0.1
    block: float = 0.4
    seed: int = 0


def mini_config(vocabulary: int) -> PreTrainedConfig:
    """The bundled model's shape (4.46 M parameters), for a tokenizer of so many tokens."""
    config = recognise(read_config(data_dir("assets") / "mini"), "mini").config
    config.vocab_size = vocabulary
    return config
