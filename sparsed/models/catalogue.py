"""The models that can be asked for by name. Plain values: reading the catalogue loads nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sparsed.config import SamplerConfig
from sparsed.models.sizes import Sizes

# What a folder that says nothing about itself gets.
GENERIC_DEFAULTS = SamplerConfig(
    steps=64, gen_length=64, block_length=64, algorithm="low_confidence", temperature=0.0, seed=0
)
# 96 tokens are three attention blocks of 32: the published select of 0.5 keeps two, which hold mini's longest answers.
# Semi-autoregressive blocks of 32: full attention is as right as with one block of 96, SparseD more often, and with
# Fast-dLLM's caches it has blocks to become sparse in (docs/findings.md).
MINI_DEFAULTS = SamplerConfig(
    steps=48, gen_length=96, block_length=32, algorithm="low_confidence", temperature=0.0, seed=0
)
# What the public SparseD commands use for each family (the Qwen3 model was trained and is sampled as LLaDA is).
LLADA_DEFAULTS = SamplerConfig(
    steps=128, gen_length=128, block_length=32, algorithm="low_confidence", temperature=0.0, seed=0
)
# 32 steps for each block of 32, as published; its public code looks for the answer's end after each block.
ILLADA_DEFAULTS = replace(LLADA_DEFAULTS, canvas="growing", early_stop=True)
DREAM_DEFAULTS = SamplerConfig(
    steps=128,
    gen_length=128,
    block_length=128,
    algorithm="maskgit_plus",
    temperature=0.05,
    seed=0,
    top_p=0.95,
    alg_temp=0.0,
)
# Dream documents this many positions; its config.json says 131,072, which is its autoregressive ancestor's.
DREAM_LENGTH = 2048


@dataclass(frozen=True)
class ModelSpec:
    """One row of the catalogue: a name for a checkpoint, and what must be known of it before it is loaded.

    Nothing of it is used once the checkpoint's own files are read: they say the same (a test looks), by this name or
    as a folder.

    name: what a user types. label: what a page shows. source: the checkpoint's folder inside assets/ if
    `bundled`, else its Hub id. family: see `sparsed.models.families`. defaults: the sampler's settings.
    trained_length: positions seen in training, in tokens. parameters: weights. kept: those of them that are not
    quantised (embeddings, norms, biases, the head); None where that is not known, or nothing can be. sizes: of the
    network; None where they are not known. quantize: what it is loaded in, as for `sparsed.load`.
    """

    name: str
    label: str
    source: str
    family: str
    defaults: SamplerConfig
    trained_length: int
    parameters: int
    bundled: bool = False
    kept: int | None = None
    sizes: Sizes | None = None
    quantize: str | None = None

    @property
    def download_gb(self) -> float:
        """What has to be downloaded, in 10⁹ bytes: bfloat16 weights; 0 for a bundled model."""
        return 0.0 if self.bundled else round(2 * self.parameters / 1e9, 1)


def _llada(name: str, label: str, source: str, trained_length: int = 4096) -> ModelSpec:
    return ModelSpec(
        name, label, source, "llada", LLADA_DEFAULTS, trained_length, 8_015_581_184, kept=1_036_259_328,
        sizes=Sizes(32, 4096, 32, 32, 128, 12_288, 126_464),
    )  # fmt: skip


def _moe(name: str, label: str, source: str) -> ModelSpec:
    return ModelSpec(
        name, label, source, "llada_moe", LLADA_DEFAULTS, 8192, 7_356_880_896,
        sizes=Sizes(16, 2048, 16, 16, 128, 8192, 157_184, experts=8),
    )  # fmt: skip


def _illada(name: str, label: str, source: str) -> ModelSpec:
    return ModelSpec(
        name, label, source, "illada", ILLADA_DEFAULTS, 8192, 7_615_025_152, kept=635_703_296,
        sizes=Sizes(32, 4096, 32, 8, 128, 14_336, 155_136),
    )  # fmt: skip


def _dream(name: str, label: str, source: str) -> ModelSpec:
    return ModelSpec(
        name, label, source, "dream", DREAM_DEFAULTS, DREAM_LENGTH, 7_615_616_512, kept=1_090_328_064,
        sizes=Sizes(28, 3584, 28, 4, 128, 18_944, 152_064),
    )  # fmt: skip


CATALOGUE: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="mini",
        label="mini (4.5 M parameters, bundled)",
        source="mini",
        family="llama",
        defaults=MINI_DEFAULTS,
        trained_length=66_000,
        parameters=4_459_776,
        kept=527_616,
        sizes=Sizes(6, 256, 4, 4, 64, 512, 2048),
        bundled=True,
    ),
    ModelSpec(
        name="qwen3-0.6b-diffusion",
        label="Qwen3-0.6B-diffusion",
        source="dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1",
        family="qwen3",
        defaults=LLADA_DEFAULTS,
        trained_length=40_960,
        parameters=596_049_920,
        kept=155_648_000,
        sizes=Sizes(28, 1024, 16, 8, 128, 3072, 151_936),
    ),
    _llada("llada-8b-instruct", "LLaDA-8B-Instruct", "GSAI-ML/LLaDA-8B-Instruct"),
    _llada("llada-8b-base", "LLaDA-8B-Base", "GSAI-ML/LLaDA-8B-Base"),
    _llada("llada-1.5", "LLaDA-1.5 (8B)", "GSAI-ML/LLaDA-1.5"),
    _llada("ultrallada", "UltraLLaDA (8B, 128k)", "relaxe-system-lab/UltraLLaDA", 131_072),
    _illada("illada-8b-instruct", "iLLaDA-8B-Instruct", "GSAI-ML/iLLaDA-8B-Instruct"),
    _illada("illada-8b-base", "iLLaDA-8B-Base", "GSAI-ML/iLLaDA-8B-Base"),
    _moe("llada-moe-7b-instruct", "LLaDA-MoE-7B-A1B-Instruct", "inclusionAI/LLaDA-MoE-7B-A1B-Instruct"),
    _moe("llada-moe-7b-base", "LLaDA-MoE-7B-A1B-Base", "inclusionAI/LLaDA-MoE-7B-A1B-Base"),
    _dream("dream-7b-instruct", "Dream-v0-Instruct-7B", "Dream-org/Dream-v0-Instruct-7B"),
    _dream("dream-coder-7b-instruct", "Dream-Coder-v0-Instruct-7B", "Dream-org/Dream-Coder-v0-Instruct-7B"),
    _dream("diffucoder-7b-instruct", "DiffuCoder-7B-Instruct", "apple/DiffuCoder-7B-Instruct"),
)


def find(name: str) -> ModelSpec | None:
    """The row of that name or Hub id, or None."""
    return next((spec for spec in CATALOGUE if name in (spec.name, None if spec.bundled else spec.source)), None)


def names() -> tuple[str, ...]:
    """The names in the catalogue, in order."""
    return tuple(spec.name for spec in CATALOGUE)
