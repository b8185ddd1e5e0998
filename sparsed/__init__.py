"""SparseD for diffusion language models: full attention first, then each head's own sparse pattern, reused.

    import sparsed

    model = sparsed.load("mini")
    for step in sparsed.denoise(model, "Who founded the library in Orlin?"):
        print(step.index, step.phase, step.seconds)

Importing this package imports neither torch nor transformers: the names below that need them load on first
use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from sparsed.config import (
    METHOD_LABELS,
    METHODS,
    RECOMMENDED,
    AttentionConfig,
    CacheConfig,
    SamplerConfig,
    SparseDConfig,
)

if TYPE_CHECKING:
    from sparsed.attention.layout import BlockLayout as BlockLayout
    from sparsed.attention.pattern import LayerPattern as LayerPattern
    from sparsed.attention.pattern import Pattern as Pattern
    from sparsed.denoising import denoise as denoise
    from sparsed.denoising import generate as generate
    from sparsed.denoising.own_loop import OwnLoop as OwnLoop
    from sparsed.denoising.run import Run as Run
    from sparsed.denoising.several import Answered as Answered
    from sparsed.denoising.several import Unanswered as Unanswered
    from sparsed.denoising.several import each_answer as each_answer
    from sparsed.denoising.several import generate_all as generate_all
    from sparsed.denoising.step import Result as Result
    from sparsed.denoising.step import Step as Step
    from sparsed.models.loading import load as load
    from sparsed.models.model import Model as Model

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "METHOD_LABELS",
    "RECOMMENDED",
    "Answered",
    "AttentionConfig",
    "BlockLayout",
    "CacheConfig",
    "LayerPattern",
    "Model",
    "OwnLoop",
    "Pattern",
    "Result",
    "Run",
    "SamplerConfig",
    "SparseDConfig",
    "Step",
    "Unanswered",
    "denoise",
    "each_answer",
    "generate",
    "generate_all",
    "load",
]

_LAZY = {
    "Answered": "sparsed.denoising.several",
    "BlockLayout": "sparsed.attention.layout",
    "LayerPattern": "sparsed.attention.pattern",
    "Pattern": "sparsed.attention.pattern",
    "OwnLoop": "sparsed.denoising",
    "Result": "sparsed.denoising",
    "Run": "sparsed.denoising",
    "Step": "sparsed.denoising",
    "Unanswered": "sparsed.denoising.several",
    "denoise": "sparsed.denoising",
    "each_answer": "sparsed.denoising.several",
    "generate": "sparsed.denoising",
    "generate_all": "sparsed.denoising.several",
    "Model": "sparsed.models.model",
    "load": "sparsed.models.loading",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
