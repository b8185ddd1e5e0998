"""What ``--model_args`` may say: our own names, those of the public evaluations of LLaDA, Dream, Fast-dLLM and SparseD,
and what is refused because it would mean something else here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sparsed.config import CACHES, METHODS, AttentionConfig, CacheConfig, SamplerConfig, check_keys
from sparsed.options import ATTENTION, CACHE, SAMPLER

# Another name → the setting that it means. What a setting is called here goes without a row.
ALIASES = MappingProxyType(
    {
        "model": "pretrained",
        "model_path": "pretrained",
        "torch_dtype": "dtype",
        "mask_token_id": "mask_id",
        "max_new_tokens": "gen_length",
        "seq_len": "gen_length",
        "diffusion_steps": "steps",
        "alg": "algorithm",
        "sampling_alg": "algorithm",
        "remasking": "algorithm",
        "cfg": "cfg_scale",
        "classifier_free_guidance": "cfg_scale",
        "end_think_logit_boost": "end_think_boost",
        "end_think_boost_power": "end_think_power",
        "method": "attention",
        "use_sparsed": "attention",
        "sparsed": "attention",
        "origin": "attention",
        "sparsed_skip": "skip",
        "sparsed_select": "select",
        "sparsed_block_size": "attention_block_size",
    }
)
_ONE_MODEL = "a process holds a whole model here; accelerate launch shares the questions among several"
# Other names that may say what is done here anyway (or None), and why nothing else may be said.
_FIXED: Mapping[str, tuple[tuple[Any, ...], str]] = MappingProxyType(
    {
        "factor": ((), "decoding by a factor is not offered here; threshold=… is"),
        "save_dir": ((), "answers are kept by the harness's own --use_cache PATH"),
        "nll_type": (("mc",), "likelihoods are the Monte-Carlo estimate 'mc' here"),
        "log_type": (("ftb",), "what is masked is the continuation, after its context, 'ftb'"),
        "sampling_eps": ((0,), "a draw masks from one token to all of them, each number as likely, without an eps"),
        "max_prompt_len": ((), "max_length=… cuts prompts here, to so many tokens with the answer"),
        "var": ((), "canvas=growing says it here, with steps those of the whole run, not of a block"),
        "end_think_text": (("</think>",), "end_think_boost is for the text '</think>' alone"),
        "parallelize": ((False,), _ONE_MODEL),
        "autogptq": ((False,), "quantised checkpoints are not read here"),
    }
)
# Fast-dLLM's names of its caches, of which the second says what the first one is.
_FAST_DLLM = ("use_cache", "dual_cache")
_AMBIGUOUS = (
    "block_size names two things in this field, so it is not taken: attention_block_size (32, 64 or 128) is the block "
    "of SparseD's attention, block_length the semi-autoregressive block of the sampler, both in tokens."
)
# Nothing here runs remote code, a batch is as large as was said, and nobody asks for a pattern's importances.
NO_EFFECT = ("trust_remote_code", "max_batch_size", "keep_importance")
_SPARSE = tuple(
    "attention_block_size" if name == "block_size" else name for name in ATTENTION if name not in ("method", *NO_EFFECT)
)
_OWN = (
    "attention", "mc_num", "is_check_greedy", "batch_size", "device", "dtype", "revision", "backend", "dense_backend",
    "max_length", "add_bos_token", "escape_until", "show_speed", "mask_id", "rope_factor", "quantize",
)  # fmt: skip
ARGUMENTS = ("pretrained", *_OWN, *_SPARSE, *CACHE, *SAMPLER)

# Which requests a setting has an effect on. A test holds that every field of the sampler, attention and cache is in one
# of these. (A cache reuses what an earlier step computed; the draws of a likelihood are no steps of one run, and the
# decoding that tells what is greedy belongs to them.)
GENERATION_ONLY = frozenset(
    {
        "steps", "gen_length", "block_length", "algorithm", "temperature", "top_p", "top_k", "alg_temp", "eps",
        "threshold", "logits_eos_inf", "confidence_eos_eot_inf", "early_stop", "stop", "canvas", "end_think_boost",
        "end_think_power", "on_no_gain", "escape_until", "show_speed", *CACHE,
    }
)  # fmt: skip
LIKELIHOOD_ONLY = frozenset({"mc_num", "is_check_greedy"})
BOTH = frozenset({"seed", "cfg_scale", "attention", *_SPARSE}) - GENERATION_ONLY


@dataclass(frozen=True)
class Arguments:
    """What a model of the harness is made of; see `sparsed.harness.model.SparsedLM`.

    said: setting → the name by which it was asked for. ignored: names of what has no effect.
    """

    pretrained: str = "mini"
    revision: str | None = None
    device: str | None = None
    dtype: str | None = None
    mask_id: int | None = None
    rope_factor: float | None = None
    quantize: str | None = None
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    backend: str = "auto"
    dense_backend: str = "auto"
    batch_size: int = 1
    mc_num: int = 128
    is_check_greedy: bool = True
    max_length: int | None = None
    add_bos_token: bool | None = None
    escape_until: bool = False
    show_speed: bool = False
    said: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def without_effect(self, elsewhere: frozenset[str]) -> list[str]:
        """Names of what was asked for and works `elsewhere` alone (GENERATION_ONLY, LIKELIHOOD_ONLY)."""
        return [name for setting, name in self.said.items() if setting in elsewhere]


def read_arguments(given: Mapping[str, Any]) -> Arguments:
    """The arguments of ``--model_args``; what is None counts as not given.

    Raises ValueError in one sentence for an unknown name, a value out of range, two names of one setting that
    disagree, and what is refused here.
    """
    for name, (allowed, why) in _FIXED.items():
        value = given.get(name)
        if value is not None and value not in allowed:
            raise ValueError(f"{name}={value} is not taken: {why}.")
    without = (*NO_EFFECT, *_FIXED, *_FAST_DLLM)
    values, said = one_name_each({name: value for name, value in given.items() if name not in without})
    _take_fast_dllm(given, values, said)
    if given.get("alg") == "confidence_threshold" and "threshold" not in values:
        raise ValueError("alg=confidence_threshold needs threshold=…, the confidence above which tokens are committed.")
    unknown = [name for name in values if name not in ARGUMENTS]
    if unknown:
        raise ValueError(f"The model argument {unknown[0]!r} is unknown; there are {', '.join(ARGUMENTS)}.")
    own: dict[str, Any] = {name: values[name] for name in _OWN if name in values}
    for name in ("pretrained", "revision", "device", "dtype"):
        if name in values:
            own[name] = str(values[name])  # a folder whose name is a number reaches us as one
    if own.get("dtype") == "auto":
        del own["dtype"]
    for name in ("mc_num", "batch_size", "mask_id", "max_length"):
        if name in own:
            own[name] = whole(name, own[name], least={"max_length": 2, "mask_id": 0}.get(name, 1))
    for name in ("is_check_greedy", "add_bos_token", "escape_until", "show_speed"):
        if name in own:
            own[name] = flag(said[name], own[name])
    own["attention"] = _attention(own.get("attention", "sparsed"), values)
    own["cache"] = _cache(values, own["attention"])
    own["sampler"] = SamplerConfig(**{name: values[name] for name in SAMPLER if name in values})
    ignored = [name for name in NO_EFFECT if given.get(name) not in (None, False)]
    if own["attention"].dense and own.get("backend", "auto") != "auto":
        ignored.append("backend")
    return Arguments(**own, said=said, ignored=tuple(ignored))


def one_name_each(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """(setting → value, setting → the name it was given by) of names and values as somebody wrote them; None counts as
    not given. Names that are neither ours nor an alias are kept as they are.
    """
    values: dict[str, Any] = {}
    said: dict[str, str] = {}
    for name, value in given.items():
        if value is None:
            continue
        if name == "block_size":
            raise ValueError(_AMBIGUOUS)
        setting = ALIASES.get(name, name)
        value = _meaning(name, setting, value)
        if setting in values and values[setting] != value:
            first = said[setting]
            raise ValueError(
                f"{first}={given[first]} and {name}={given[name]} are two names of one setting, {setting}, and "
                f"disagree: give one of them."
            )
        values[setting] = value
        said.setdefault(setting, name)
    return values, said


def _meaning(name: str, setting: str, value: Any) -> Any:
    """The setting's value that another name's value stands for."""
    if name in ("use_sparsed", "sparsed", "origin"):
        return "sparsed" if flag(name, value) != (name == "origin") else "dense"
    if name == "classifier_free_guidance":
        # Dream's evaluation computes un + g · (cond − un), where 1 is off.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 1:
            raise ValueError(f"{name} must be a number of at least 1 (1 = off), not {value!r}.")
        return value - 1
    if name == "alg" and value == "confidence_threshold":
        return "maskgit_plus"  # Fast-dLLM's word for it together with a threshold
    if setting == "stop":
        return texts(value)
    if setting in SAMPLER and SAMPLER[setting].metadata["kind"] is bool:
        return flag(name, value)
    return value


def _attention(method: Any, values: Mapping[str, Any]) -> AttentionConfig:
    if method not in METHODS:
        raise ValueError(f"attention must be one of {', '.join(map(repr, METHODS))}, not {method!r}.")
    settings = {name.removeprefix("attention_"): values[name] for name in _SPARSE if name in values}
    try:
        return AttentionConfig(method, **settings)
    except ValueError as error:
        raise ValueError(clear_block_size(error)) from None


def _take_fast_dllm(given: Mapping[str, Any], values: dict[str, Any], said: dict[str, str]) -> None:
    """Fast-dLLM's own names of its caches, use_cache and dual_cache, as our `cache` among values and said."""
    use, dual = (None if given.get(name) is None else flag(name, given[name]) for name in _FAST_DLLM)
    if use is None and not dual:
        return
    if dual and not use:
        raise ValueError("dual_cache=true says which cache use_cache=true is: give both.")
    meant = "dual" if dual else "prefix" if use else "none"
    if values.get("cache", meant) != meant:
        fast_dllm = f"use_cache={given['use_cache']}, which is cache={meant}"
        raise ValueError(f"cache={values['cache']} and {fast_dllm}, disagree: give one of them.")
    if use:
        values["cache"] = meant
        said.setdefault("cache", "use_cache")


def _cache(values: Mapping[str, Any], attention: AttentionConfig) -> CacheConfig:
    method = values.get("cache", "none")
    if method not in CACHES:
        raise ValueError(f"cache must be one of {', '.join(map(repr, CACHES))}, not {method!r}.")
    try:
        cache = CacheConfig(**{row.name: values[name] for name, row in CACHE.items() if name in values})
        check_keys(cache, attention)
    except ValueError as error:
        raise ValueError(f"cache={method}: {error}") from None
    return cache


def clear_block_size(error: ValueError) -> str:
    """What an error says, with the name that the attention block size has here."""
    return re.sub(r"\bblock_size\b", "attention_block_size", str(error))


def whole(name: str, value: Any, least: int = 1) -> int:
    """A count from a command line, where it may be a string. Raises ValueError for anything below `least`."""
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}.")
    return value


def flag(name: str, value: Any) -> bool:
    """Yes or no from a command line or a dictionary."""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, not {value!r}.")
    return value


def texts(value: Any) -> tuple[str, ...]:
    """One text or several; an empty one stops nothing."""
    several = value if isinstance(value, (list, tuple)) else [value]
    return tuple(dict.fromkeys(str(text) for text in several if str(text)))
