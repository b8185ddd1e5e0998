"""What all answers of one folder depend on: its key (`sparsed.results_folder`)."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sparsed.evaluation.cost import SIZES
from sparsed.evaluation.plan import Plan
from sparsed.machine import dtype_name
from sparsed.models.sizes import Sizes
from sparsed.options import SAMPLER
from sparsed.origin import changes, device_name, origin_of, versions
from sparsed.questions.build import prompts_version

if TYPE_CHECKING:
    import torch

    from sparsed.models.model import Model


def key_of(model: Model, plan: Plan) -> dict[str, Any]:
    """The whole key, as plain values for JSON. Each answer names its own method beside it."""
    sampler = plan.sampler.resolve(model.defaults)
    return {
        **origin_of(model),
        "sampler": {name: getattr(sampler, name) for name in SAMPLER},
        **_of_plan(plan),
    }


def about(model: Model) -> dict[str, Any]:
    """What a folder says beside its key: the model by name, and the sizes that its answers' cost is counted with."""
    return {"model": model.name, SIZES: asdict(Sizes.of(model))}


def key_before(
    plan: Plan,
    device: torch.device,
    dtype: torch.dtype | None,
    rope_factor: float | None = None,
    quantize: str | None = None,
) -> dict[str, Any]:
    """What is known of it before the model is loaded. (A gen_length that was asked for may be rounded up.)"""
    given = {name: value for name in SAMPLER if (value := getattr(plan.sampler, name)) is not None}
    given.pop("gen_length", None)
    return {
        **({} if dtype is None else {"dtype": dtype_name(dtype)}),
        "device": device_name(device),
        "versions": versions(quantize),
        "rope_factor": None,
        "quantize": None,
        **changes(rope_factor, quantize),
        "sampler": given,
        **_of_plan(plan),
    }


def _of_plan(plan: Plan) -> dict[str, Any]:
    attention = asdict(plan.attention)
    del attention["method"]
    return {
        "attention": attention, "backend": plan.backend, "depths": plan.depths, "prompts": prompts_version(),
    }  # fmt: skip
