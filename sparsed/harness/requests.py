"""What a request for a generated answer asks for: the sampler of its run, and how long the answer may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparsed.config import DREAM_ALGORITHMS, ResolvedSampler, SamplerConfig
from sparsed.harness.arguments import Arguments, flag, one_name_each, texts, whole
from sparsed.options import SAMPLER

# Tokens of an answer where nobody says: what every model of the harness takes.
USUAL_LENGTH = 256
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
# Settings of any autoregressive model, which tasks give without asking; LLaDA's samplers lack them.
_USUAL = ("top_p", "top_k")


@dataclass(frozen=True)
class Wish:
    """sampler: of the run. most: tokens that the answer may hold, None for all that are generated. remarks: sentences
    on what was asked for and has no effect.
    """

    sampler: ResolvedSampler
    most: int | None
    remarks: tuple[str, ...] = ()


def read_wish(asked: Mapping[str, Any], arguments: Arguments, defaults: ResolvedSampler) -> Wish:
    """A request's generation_kwargs (the task's, and those of ``--gen_kwargs``) beside the model's arguments.

    A setting is taken from the arguments, else from the request, else from the model's defaults; stop strings of both
    count. Without `do_sample`, or a temperature above 0 where it is not said, the temperature is 0. A canvas of which
    nobody gave the gen_length has max_gen_toks tokens, and the engine's rule makes whole blocks of them
    (`SamplerConfig.resolve`). Raises ValueError for settings that do not fit, and for two names of one setting that
    disagree.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    lengths = {name: whole(name, given.pop(name)) for name in _LENGTHS if name in given}
    if len(set(lengths.values())) > 1:
        said = " and ".join(f"{name}={value}" for name, value in lengths.items())
        raise ValueError(
            f"{said} of the generation_kwargs are names of one setting and disagree: --gen_kwargs max_gen_toks=… "
            f"replaces a task's own."
        )
    length = next(iter(lengths.values()), None)
    until = texts(given.pop("until", ())) + texts(given.pop("stop", ()))
    wanted, _ = one_name_each(given)
    remarks = []
    if not flag("do_sample", wanted.pop("do_sample", bool(wanted.get("temperature")))):
        if wanted.get("temperature"):
            remarks.append(
                f"temperature={wanted['temperature']} of the generation_kwargs has no effect: do_sample=False."
            )
        wanted["temperature"] = 0.0
    values = {name: value for name in SAMPLER if (value := getattr(arguments.sampler, name)) is not None}
    dream = (values.get("algorithm") or wanted.get("algorithm") or defaults.algorithm) in DREAM_ALGORITHMS
    for name, value in wanted.items():
        if name not in SAMPLER or (name in _USUAL and not dream):
            remarks.append(f"{name} of the generation_kwargs is no setting of this model's sampler: left out.")
        elif values.setdefault(name, value) != value:
            remarks.append(f"{name}={value} of the generation_kwargs gives way to the model argument {values[name]}.")
    most = length
    if "gen_length" not in values:
        values["gen_length"] = most = length or USUAL_LENGTH
    values["stop"] = texts((() if arguments.escape_until else until) + values.get("stop", ()))
    values.setdefault("early_stop", True)
    return Wish(SamplerConfig(**values).resolve(defaults), most, tuple(remarks))
