"""What --model_args and --gen_kwargs of lm-evaluation-harness may say, by our names and those of public evaluations."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsed
from sparsed import AttentionConfig, CacheConfig, SamplerConfig
from sparsed.models.catalogue import find
from sparsed.options import CACHE, add_sampler_options, sampler_of

pytest.importorskip("lm_eval", reason="lm_eval is not installed (the optional extra 'lm_eval')")

from lm_eval.api.instance import Instance  # noqa: E402

from sparsed.harness.arguments import (  # noqa: E402
    BOTH,
    GENERATION_ONLY,
    LIKELIHOOD_ONLY,
    NO_EFFECT,
    Arguments,
    read_arguments,
)
from sparsed.harness.model import SparsedLM  # noqa: E402

pytestmark = pytest.mark.usefixtures("offline")

# A value of each of the sampler's settings that is not its default, for the tiny Dream; a new setting needs a row here,
# and a place in `sparsed.harness.arguments`.
VALUES: dict[str, Any] = {
    "steps": 4, "gen_length": 24, "block_length": 24, "algorithm": "entropy", "temperature": 0.7, "seed": 5,
    "top_p": 0.8, "top_k": 7, "alg_temp": 0.5, "eps": 0.01, "cfg_scale": 1.5, "threshold": 0.6, "logits_eos_inf": True,
    "confidence_eos_eot_inf": True, "early_stop": False, "stop": ("x",),
    "canvas": "growing", "end_think_boost": 30.0, "end_think_power": 2.0,
}  # fmt: skip
# What some of them need beside them.
BESIDE: dict[str, dict[str, Any]] = {
    "canvas": {"algorithm": "maskgit_plus", "threshold": 0.6}, "end_think_power": {"end_think_boost": 30.0},
}  # fmt: skip
SAMPLER_FIELDS = [row.name for row in fields(SamplerConfig)]
# The same for the attention's, beside these.
SPARSE: dict[str, Any] = {"skip": 0.2, "select": 0.4, "attention_block_size": 32}
SPARSE_VALUES: dict[str, Any] = {
    "method": "streaming_llm", "skip": 0.5, "select": 0.2, "block_size": 64, "selection": "reference",
    "keep_importance": True, "on_no_gain": "dense", "isolated": False, "reuse": False,
    "generation_rows": "full", "refresh": 4,
}  # fmt: skip


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, one, index) for index, one in enumerate(arguments)]  # type: ignore[arg-type]


def test_every_setting_says_which_requests_it_has_an_effect_on() -> None:
    assert list(VALUES) == SAMPLER_FIELDS
    assert not GENERATION_ONLY & LIKELIHOOD_ONLY and not BOTH & (GENERATION_ONLY | LIKELIHOOD_ONLY)
    assert set(SAMPLER_FIELDS) <= GENERATION_ONLY | BOTH
    assert list(SPARSE_VALUES) == [row.name for row in fields(AttentionConfig)]
    own = {row.name for row in fields(Arguments)}
    assert set(CACHE) == {"cache", *(f"cache_{row.name}" for row in fields(CacheConfig) if row.name != "method")}
    assert set(CACHE) <= GENERATION_ONLY
    assert GENERATION_ONLY | LIKELIHOOD_ONLY <= own | set(SAMPLER_FIELDS) | set(SPARSE_VALUES) | set(CACHE)


@pytest.mark.parametrize("name", SAMPLER_FIELDS)
def test_a_setting_works_on_likelihoods_or_is_said_to_have_no_effect(harness_of, caplog, name: str) -> None:
    request = asked("loglikelihood", ("some text of the other kind", " is what it is"))

    def value(**arguments: Any) -> float:
        lm = harness_of("dream", mc_num=4, attention="dense", **arguments)
        [(found, _)] = lm.loglikelihood(request * 2, disable_tqdm=True)[:1]
        lm.loglikelihood(request, disable_tqdm=True)
        return float(found)

    plain = value()
    assert not caplog.records
    given = {**BESIDE.get(name, {}), name: VALUES[name]}
    changed = value(**given)
    said = [record.getMessage() for record in caplog.records]
    if name in GENERATION_ONLY:
        assert changed == plain and said == [f"No effect on likelihoods: {', '.join(given)}."]
    else:
        assert changed != plain and not said


@pytest.mark.parametrize("name", SPARSE_VALUES)
def test_so_does_a_setting_of_attention(harness_of, caplog, name: str) -> None:
    request = asked("loglikelihood", ("the other line of the text " * 8, " is what it is"))

    def value(**more: Any) -> float:
        lm = harness_of("llada", mc_num=6, is_check_greedy=False, **SPARSE | more)
        return float(lm.loglikelihood(request, disable_tqdm=True)[0][0])

    plain = value()
    assert not caplog.records
    public = {"block_size": "attention_block_size", "method": "attention"}.get(name, name)
    changed = value(**{public: SPARSE_VALUES[name]})
    said = [record.getMessage() for record in caplog.records]
    if public in GENERATION_ONLY:
        assert changed == plain and said == [f"No effect on likelihoods: {name}."]
    elif public in NO_EFFECT:
        assert changed == plain and said == [f"{name} has no effect here."]
    elif name == "refresh":  # on the draws; the decoding that tells what is greedy has steps
        assert public in BOTH and changed == plain
        assert said == ["refresh is without effect on likelihoods: their draws are no steps of one run."]
    else:
        assert public in BOTH and changed != plain and not said


def test_a_cache_has_no_effect_on_likelihoods_and_that_is_said(harness_of, caplog) -> None:
    """Neither on the draws nor on what is greedy."""
    request = asked("loglikelihood", ("some text of the other kind", "is it"), ("some text", " is what it is"))
    plain = harness_of("llada", mc_num=4, **SPARSE).loglikelihood(request, disable_tqdm=True)
    assert not caplog.records
    lm = harness_of("llada", mc_num=4, cache="refresh", cache_refresh=2, cache_keys="pattern", **SPARSE)
    assert lm.loglikelihood(request, disable_tqdm=True) == plain
    said = [record.getMessage() for record in caplog.records]
    assert said == ["No effect on likelihoods: cache, cache_refresh, cache_keys."]
    ran = lm.get_model_info()["sparsed"]
    assert {kind["cache"]["method"] for kind in ran["tasks"]["requests"].values()} == {"none"}


def test_weights_in_fewer_bits_are_as_many() -> None:
    """And as many as the catalogue says, those that are kept among them."""
    spec = find("mini")
    for kind in (None, "int4"):
        lm = SparsedLM("mini", device="cpu", dtype="float32", quantize=kind)
        assert lm.get_model_info()["model_num_parameters"] == spec.parameters
        named = lm.model.network.named_parameters()
        assert sum(weight.numel() for name, weight in named if "_proj" not in name) == spec.kept


@pytest.mark.parametrize("name", SAMPLER_FIELDS)
def test_a_setting_reaches_the_sampler_of_generated_answers(harness_of, caplog, name: str) -> None:
    more = {"algorithm": "maskgit_plus"} if name == "threshold" else BESIDE.get(name, {})
    lm = harness_of("dream", **{name: VALUES[name]}, **more)
    sampler = lm._wish({"do_sample": True, "until": ["y"], "max_gen_toks": 24}).sampler
    assert getattr(sampler, name) == (("y", "x") if name == "stop" else VALUES[name])
    assert not caplog.records


def test_what_belongs_to_likelihoods_is_said_at_generated_answers(harness_of, caplog) -> None:
    lm = harness_of("llada", mc_num=4, is_check_greedy=False, steps=4, gen_length=8, block_length=8, attention="dense")
    request = asked("generate_until", ("text", {"until": []}))
    lm.generate_until(request, disable_tqdm=True), lm.generate_until(request, disable_tqdm=True)
    said = [record.getMessage() for record in caplog.records]
    assert said.count("No effect on generated answers: mc_num, is_check_greedy.") == 1


def test_arguments_of_the_harness_without_effect_are_said(harness_of, caplog) -> None:
    harness_of("llada", trust_remote_code=True, max_batch_size=64)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["trust_remote_code has no effect here.", "max_batch_size has no effect here."]
    caplog.clear()
    harness_of("llada", trust_remote_code=False)
    assert not caplog.records
    harness_of("llada", attention="dense", backend="gather")
    assert [record.getMessage() for record in caplog.records] == [
        "backend has no effect here with full attention: dense_backend chooses what computes it."
    ]


@pytest.mark.parametrize(
    ("public", "ours"),
    [
        # LLaDA: eval_llada.py
        ({"model_path": "a/b", "cfg": 0.5, "is_check_greedy": False, "mc_num": 64},
         {"pretrained": "a/b", "cfg_scale": 0.5, "is_check_greedy": False, "mc_num": 64}),
        ({"gen_length": 1024, "steps": 1024, "block_length": 32, "remasking": "random"},
         {"gen_length": 1024, "steps": 1024, "block_length": 32, "algorithm": "random"}),
        ({"logits_eos_inf": "True", "confidence_eos_eot_inf": False},
         {"logits_eos_inf": True, "confidence_eos_eot_inf": False}),
        # Dream
        ({"end_think_logit_boost": 100, "end_think_boost_power": 2, "end_think_text": "</think>"},
         {"end_think_boost": 100.0, "end_think_power": 2.0}),
        ({"max_new_tokens": 256, "diffusion_steps": 128, "alg": "entropy", "alg_temp": 0.1, "top_p": 0.9},
         {"gen_length": 256, "steps": 128, "algorithm": "entropy", "alg_temp": 0.1, "top_p": 0.9}),
        ({"add_bos_token": "true", "escape_until": True, "nll_type": "mc", "log_type": "ftb"},
         {"add_bos_token": True, "escape_until": True}),
        ({"classifier_free_guidance": 1.5}, {"cfg_scale": 0.5}),
        # Fast-dLLM
        ({"use_cache": False, "dual_cache": False, "threshold": 0.9, "factor": None, "show_speed": True},
         {"threshold": 0.9, "show_speed": True}),
        ({"use_cache": True}, {"cache": "prefix"}),
        ({"use_cache": "true", "dual_cache": True, "threshold": 0.9}, {"cache": "dual", "threshold": 0.9}),
        ({"use_cache": True, "dual_cache": False, "cache": "prefix"}, {"cache": "prefix"}),
        ({"alg": "confidence_threshold", "threshold": 0.9}, {"algorithm": "maskgit_plus", "threshold": 0.9}),
        # SparseD
        ({"use_sparsed": True, "sparsed_skip": 0.2, "sparsed_select": 0.3, "sparsed_block_size": 128},
         {"attention": "sparsed", "skip": 0.2, "select": 0.3, "attention_block_size": 128}),
        ({"sparsed": False}, {"attention": "dense"}),
        ({"origin": True, "seq_len": 128, "sampling_alg": "low_confidence"},
         {"attention": "dense", "gen_length": 128, "algorithm": "low_confidence"}),
        # The same thing twice.
        ({"gen_length": 64, "max_new_tokens": 64}, {"gen_length": 64}),
    ],
)  # fmt: skip
def test_names_of_public_evaluations_mean_the_same_here(public: dict[str, Any], ours: dict[str, Any]) -> None:
    assert replace(read_arguments(public), said={}) == replace(read_arguments(ours), said={})
    assert read_arguments(public) != read_arguments({})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"use_cache": "prefix"}, "use_cache must be true or false, not 'prefix'"),
        ({"dual_cache": True}, "dual_cache=true says which cache use_cache=true is: give both"),
        ({"use_cache": True, "cache": "dual"}, "cache=dual and use_cache=True, which is cache=prefix, disagree"),
        ({"use_cache": False, "cache": "dual"}, "cache=dual and use_cache=False, which is cache=none, disagree"),
        ({"cache": "fast"}, "cache must be one of 'none', 'prefix', 'dual', 'delayed', 'refresh', not 'fast'"),
        ({"cache": "dual", "cache_refresh": 4}, "cache=dual: The cache 'dual' has no refresh: only delayed and ref"),
        ({"cache_refresh": 4}, "cache=none: The cache 'none' has no refresh"),
        ({"cache": "refresh", "cache_refresh": 0}, "cache=refresh: refresh must be at least 1, not 0"),
        ({"cache": "dual", "cache_keys": "pattern", "attention": "dense"}, "needs a pattern that is kept"),
        ({"factor": 1.0}, "decoding by a factor is not offered here; threshold=… is"),
        ({"save_dir": "there"}, "the harness's own --use_cache PATH"),
        ({"nll_type": "ar_ftb"}, "likelihoods are the Monte-Carlo estimate 'mc' here"),
        ({"log_type": "btf"}, "what is masked is the continuation"),
        ({"sampling_eps": 0.001}, "without an eps"),
        ({"max_prompt_len": 100}, "max_length=… cuts prompts here"),
        ({"parallelize": True}, "accelerate launch shares the questions among several"),
        ({"alg": "confidence_threshold"}, "alg=confidence_threshold needs threshold=…"),
        ({"classifier_free_guidance": 0.5}, "classifier_free_guidance must be a number of at least 1 (1 = off)"),
        ({"max_new_tokens": 64, "gen_length": 128},
         "max_new_tokens=64 and gen_length=128 are two names of one setting, gen_length, and disagree"),
        ({"use_sparsed": False, "attention": "sparsed"}, "are two names of one setting, attention, and disagree"),
        ({"alg": "origin", "remasking": "random"}, "are two names of one setting, algorithm, and disagree"),
        ({"use_sparsed": "maybe"}, "use_sparsed must be true or false, not 'maybe'"),
        ({"escape_until": 3}, "escape_until must be true or false, not 3"),
        ({"block_size": 32}, "block_length the semi-autoregressive block of the sampler"),
    ],
)  # fmt: skip
def test_names_that_would_mean_something_else_here_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as error:
        read_arguments(arguments)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_mask_id_is_the_checkpoints(harness_of) -> None:
    mask = harness_of("llada").model.mask_id
    assert harness_of("llada", mask_id=mask).model.mask_id == mask
    with pytest.raises(ValueError, match=f"The mask_id of .* is {mask}, not 7"):
        harness_of("llada", mask_token_id=7)


def test_generation_kwargs_have_public_names_too(harness_of, caplog) -> None:
    lm = harness_of("llada", steps=32)
    wish = lm._wish({"max_gen_toks": 64, "cfg": 0.5, "remasking": "random", "stop": "b", "until": ["a"]})
    assert (wish.sampler.cfg_scale, wish.sampler.algorithm, wish.sampler.stop) == (0.5, "random", ("a", "b"))
    assert not caplog.records
    lm._wish({"diffusion_steps": 64, "use_cache": True, "do_sample": False, "temperature": 0.8})
    assert [record.getMessage() for record in caplog.records] == [
        "temperature=0.8 of the generation_kwargs has no effect: do_sample=False.",
        "steps=64 of the generation_kwargs gives way to the model argument 32.",
        "use_cache of the generation_kwargs is no setting of this model's sampler: left out.",
    ]
    for wrong, words in (
        ({"block_size": 32}, "block_size names two things"),
        ({"max_gen_toks": 8, "max_new_tokens": 9}, "max_gen_toks=8 and max_new_tokens=9 of the generation_kwargs are"),
        ({"do_sample": "perhaps"}, "do_sample must be true or false, not 'perhaps'"),
        ({"max_gen_toks": 0}, "max_gen_toks must be a whole number of at least 1, not 0"),
        ({"alg": "random", "remasking": "low_confidence"}, "two names of one setting, algorithm"),
    ):
        with pytest.raises(ValueError, match=words):
            lm._wish(wrong)


@pytest.mark.parametrize("family", ["llada", "dream", "qwen3"])
@pytest.mark.parametrize(
    "line",
    [
        "--gen-length 40", "--gen-length 500", "--gen-length 5", "--gen-length 512 --steps 64 --block-length 64",
        "--gen-length 64 --threshold 0.8", "--gen-length 33 --block-length 8",
    ],
)  # fmt: skip
def test_a_request_is_resolved_as_by_generate_and_the_command(harness_of, family: str, line: str) -> None:
    if family == "dream" and "block" in line:
        line += " --algorithm low_confidence"
    parser = argparse.ArgumentParser()
    add_sampler_options(parser)
    command = sampler_of(parser.parse_args([*line.split(), "--temperature", "0", "--early-stop", "yes"]))
    lm = harness_of(family)
    want = command.resolve(lm.model.defaults)
    options = {name: value for name in SAMPLER_FIELDS if (value := getattr(command, name)) is not None}
    as_arguments = harness_of(family, **options)._wish({}).sampler
    length = options.pop("gen_length")
    as_request = lm._wish({**options, "do_sample": True, "max_gen_toks": length}).sampler
    run = sparsed.denoise(lm.model, torch.tensor([70, 71]), sampler=command)
    assert as_arguments == as_request == run.info.sampler == want
    assert as_arguments.changed == as_request.changed == want.changed


def test_a_request_that_is_no_text_is_one_sentence(harness_of) -> None:
    with pytest.raises(ValueError, match="The text of a request is no text: it holds half a character."):
        harness_of("qwen3").generate_until(asked("generate_until", ("\ud83d", {"until": []})), disable_tqdm=True)


@pytest.mark.parametrize("family", ["llada", "dream", "qwen3"])
def test_a_mask_token_in_a_prompt_is_text(harness_of, family: str) -> None:
    lm = harness_of(family, steps=4, gen_length=8, block_length=8, mc_num=3, attention="dense")
    mask = lm.tokenizer.convert_ids_to_tokens(lm.model.mask_id)
    prompt = f"{mask}one {mask}{mask} and{mask}"
    ids = lm.tok_encode(prompt)
    assert lm.model.mask_id in lm.tokenizer.encode(prompt) and lm.model.mask_id not in ids
    assert lm.tokenizer.decode(ids, skip_special_tokens=False).endswith(prompt)
    end = lm.tokenizer.convert_ids_to_tokens(lm.model.eos_id)
    assert lm.model.eos_id in lm.tok_encode(f"{end} {mask}")  # other special tokens are a template's
    [text] = lm.generate_until(asked("generate_until", (prompt, {"until": []})), disable_tqdm=True)
    [(value, _)] = lm.loglikelihood(asked("loglikelihood", (prompt, f" {mask}!")), disable_tqdm=True)
    assert isinstance(text, str) and value < 0


def test_prompts_begin_with_the_first_token_where_that_is_asked_for(harness_of) -> None:
    lm = harness_of("llada", add_bos_token=True)
    first = lm.tokenizer.bos_token_id
    letters = lm.tok_encode("ab", add_special_tokens=False)
    assert lm.tok_encode("ab") == [first, *letters] == lm.tok_encode(lm.tokenizer.bos_token + "ab")
    assert harness_of("llada", add_bos_token=False).tok_encode("ab") == letters
    without = harness_of("qwen3", add_bos_token=True)
    without.tokenizer.bos_token = None
    with pytest.raises(ValueError, match="has no first token: leave add_bos_token out"):
        without.tok_encode("ab")


def test_escape_until_keeps_what_follows_a_stop_string(harness_of) -> None:
    settings: dict[str, Any] = {"steps": 16, "gen_length": 16, "block_length": 8, "attention": "dense"}
    [whole] = harness_of("qwen3", **settings).generate_until(
        asked("generate_until", ("some text", {"until": []})), disable_tqdm=True
    )
    request = asked("generate_until", ("some text", {"until": [whole[2]]}))
    cut = whole[: whole.index(whole[2])]
    assert harness_of("qwen3", **settings).generate_until(request, disable_tqdm=True) == [cut]
    assert harness_of("qwen3", escape_until=True, **settings).generate_until(request, disable_tqdm=True) == [whole]


def test_greedy_is_not_decided_where_nobody_asks(harness_of) -> None:
    lm = harness_of("llada", mc_num=2, attention="dense")
    context = "abc"
    ids, sampler = torch.tensor(lm.tok_encode(context)), SamplerConfig(4, 4, 4, temperature=0.0)
    answer = sparsed.generate(lm.model, ids, sampler=sampler, attention="dense").tokens[0, -4:]
    pair = (None, lm.tok_encode(context), answer.tolist())
    lm._tasks = ["a"]
    [(value, greedy)] = lm._loglikelihood_tokens([pair], disable_tqdm=True)
    assert greedy and ("a", "greedy decoding") in lm.counts
    quick = harness_of("llada", mc_num=2, attention="dense", is_check_greedy=False)
    quick._tasks = ["a"]
    assert quick._loglikelihood_tokens([pair], disable_tqdm=True) == [(value, False)]
    assert list(quick.counts) == [("a", "loglikelihood")]


def test_an_attention_block_is_named_as_what_it_is(tiny_folder: Path) -> None:
    lm = SparsedLM(pretrained=str(tiny_folder), device="cpu", attention_block_size=64, block_length=16)
    assert lm.attention == AttentionConfig(block_size=64) and lm._wish({}).sampler.block_length == 16
