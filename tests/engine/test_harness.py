"""lm-evaluation-harness on tiny models: generation, likelihoods, a local task, the real command line. All offline."""

from __future__ import annotations

import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsed
from sparsed import AttentionConfig, CacheConfig, SamplerConfig, SparseDConfig
from sparsed.__main__ import main
from sparsed.harness.likelihood import log_likelihoods
from sparsed.models.chat import pieces

pytest.importorskip("lm_eval", reason="lm_eval is not installed (the optional extra 'lm_eval')")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.model import CachingLM  # noqa: E402

from sparsed.denoising.answers import Answers  # noqa: E402
from sparsed.denoising.forward import LocalForward  # noqa: E402
from sparsed.harness.model import SparsedLM  # noqa: E402

pytestmark = pytest.mark.usefixtures("offline")
CPU: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
STOPS = {"until": [], "do_sample": False, "max_gen_toks": 16}


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, one, index) for index, one in enumerate(arguments)]  # type: ignore[arg-type]


def plain(lm: SparsedLM, ids: torch.Tensor) -> str:
    """Generated tokens as text: up to an end token, without masks and special tokens, spaces kept."""
    kept: list[int] = []
    for token in ids.tolist():
        if token in lm.model.end_ids:
            break
        kept += [token] if token != lm.model.mask_id else []
    return str(lm.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def test_the_harness_knows_our_model_and_its_own() -> None:
    from lm_eval.api.registry import get_model, model_registry

    assert get_model("sparsed") is SparsedLM and "hf" in model_registry


@pytest.mark.parametrize("family", ["llada", "dream", "qwen3"])
@pytest.mark.parametrize("attention", ["dense", "sparsed", "random"])
def test_answers_are_those_of_generate(harness_of, family: str, attention: str) -> None:
    sparse = {} if attention == "dense" else {"skip": 0.25, "select": 0.3, "block_size": 32}
    named = {"attention_block_size" if name == "block_size" else name: value for name, value in sparse.items()}
    lm = harness_of(family, attention=attention, steps=8, gen_length=16, batch_size=2, **named)
    prompts = ["the other " * 20, "a thin line", "their arrow " * 20, "a thick line, then another one"] * 2
    answers = lm.generate_until(asked("generate_until", *((prompt, STOPS) for prompt in prompts)), disable_tqdm=True)
    sampler = SamplerConfig(steps=8, gen_length=16, temperature=0.0)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor(lm.tokenizer.encode(prompt))
        config = "dense" if attention == "dense" else AttentionConfig(attention, **sparse)
        result = sparsed.generate(lm.model, ids, sampler=sampler, attention=config)
        assert answer == plain(lm, result.tokens[0, len(ids) :])
    assert len(set(answers)) > 1


@pytest.mark.parametrize(
    ("attention", "cache", "more", "batches"),
    [
        ("dense", {"cache": "dual"}, {"block_length": 8}, {2}),
        ("sparsed", {"cache": "refresh", "cache_refresh": 3, "cache_keys": "pattern"}, {}, {2}),
        # Sequences go one by one inside a run; with a pattern too each is a run.
        ("dense", {"cache": "prefix"}, {"block_length": 8, "threshold": 0.3}, {2}),
        ("sparsed", {"cache": "delayed"}, {"threshold": 0.3, "skip": 0}, {1}),
    ],
)
def test_answers_with_a_cache_are_those_of_generate(
    harness_of, attention: str, cache: dict[str, Any], more: dict[str, Any], batches: set[int]
) -> None:
    more = ({} if "threshold" in more else {"steps": 8}) | more
    lm = harness_of("llada", attention=attention, gen_length=16, batch_size=2, early_stop=False, **cache, **more)
    prompts = ["the other " * 20, "a thin line", "their arrow " * 20, "a thick line, then another one"] * 2
    answers = lm.generate_until(asked("generate_until", *((prompt, STOPS) for prompt in prompts)), disable_tqdm=True)
    config = "dense" if attention == "dense" else SparseDConfig(skip=more.get("skip"))
    sampler = SamplerConfig(gen_length=16, temperature=0.0, **{n: v for n, v in more.items() if n != "skip"})
    wanted = CacheConfig(cache["cache"], cache.get("cache_refresh"), cache.get("cache_keys"))
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor(lm.tokenizer.encode(prompt))
        result = sparsed.generate(lm.model, ids, sampler=sampler, attention=config, cache=wanted)
        assert answer == plain(lm, result.tokens[0, len(ids) :])
    told = lm.get_model_info()["sparsed"]
    ran = told["tasks"]["requests"]["generate_until"]
    assert told["cache"] == {"method" if name == "cache" else name[6:]: value for name, value in cache.items()}
    assert ran["cache"] == wanted.resolve().record() and ran["runs"] == len(prompts) // max(batches)
    assert ran["batch"] in batches


def test_stop_strings_cut_and_end_the_run(harness_of, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two semi-autoregressive blocks; what the first one holds is enough for a stop string in it."""
    lm = harness_of("qwen3", steps=16, gen_length=16, block_length=8, attention="dense")
    steps: list[str] = []
    real = LocalForward.logits

    def counted(self: LocalForward, ids: torch.Tensor, pass_: Any) -> torch.Tensor:
        steps.append(pass_.attention.phase)
        return real(self, ids, pass_)

    monkeypatch.setattr(LocalForward, "logits", counted)
    prompt = "some text"
    [whole] = lm.generate_until(asked("generate_until", (prompt, STOPS)), disable_tqdm=True)
    assert steps == ["dense"] * 16 and len(whole) > 8
    for stop in (whole[2], whole[3:5], ["not in it", whole[4]], "", [], "not in it"):
        steps.clear()
        request = asked("generate_until", (prompt, STOPS | {"until": stop}))
        [cut] = lm.generate_until(request, disable_tqdm=True)
        places = [whole.find(one) for one in ([stop] if isinstance(stop, str) else stop) if one and one in whole]
        assert cut == whole[: min(places, default=None)]
        # The first half of the steps fills the first eight tokens.
        assert len(steps) == 16 if not places else len(steps) <= 8


@pytest.mark.parametrize("sampled", [False, True])
def test_an_early_end_changes_no_answer(harness_of, sampled: bool) -> None:
    settings: dict[str, Any] = {"steps": 16, "gen_length": 16, "block_length": 8, "attention": "dense"}
    wishes = {"do_sample": sampled, "temperature": 1.5 if sampled else 0.0}
    prompts = ["one text", "two text", "thr text", "some other"]

    def answers(early: bool, until: list[str]) -> tuple[list[str], int]:
        lm = harness_of("qwen3", early_stop=early, **settings)
        requests = asked("generate_until", *((p, {**wishes, "until": [end]}) for p, end in zip(prompts, until)))
        found = lm.generate_until(requests, disable_tqdm=True)
        return found, sum(count.forwards for count in lm.counts.values())

    whole, every = answers(False, [""] * 4)
    ends = [text[3] for text in whole]
    early, fewer = answers(True, ends)
    assert early == answers(False, ends)[0] == [text[: text.index(end)] for text, end in zip(whole, ends)]
    assert fewer < every


def test_a_special_token_can_be_a_stop_string(harness_of, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = harness_of("llada", gen_length=8, steps=8, block_length=8)
    asked_of: list[SamplerConfig] = []
    real = sparsed.denoising.denoise

    def noted(model: Any, prompt: Any, **more: Any) -> Any:
        asked_of.append(more["sampler"])
        return real(model, prompt, **more)

    monkeypatch.setattr("sparsed.harness.model.denoise", noted)
    request = asked("generate_until", ("text", STOPS | {"until": ["<|start_header_id|>", "\n\n"]}))
    lm.generate_until(request, disable_tqdm=True)
    [sampler] = asked_of
    assert sampler.stop == ("<|start_header_id|>", "\n\n") and sampler.early_stop
    header = lm.tokenizer.convert_tokens_to_ids("<|start_header_id|>")
    text = [*lm.tokenizer.encode("  if a:"), header, *lm.tokenizer.encode(" b")]
    assert Answers(lm.model, sampler.stop).read(text) == ("  if a:", "end token")


@pytest.mark.parametrize(
    ("family", "arguments", "wishes", "want"),
    [
        # LLaDA's defaults are 128 steps for 128 tokens in blocks of 32; a canvas is whole blocks.
        ("llada", {}, {"max_gen_toks": 40}, {"gen_length": 64, "block_length": 32, "steps": 64, "temperature": 0.0}),
        ("llada", {}, {}, {"gen_length": 256, "block_length": 32, "steps": 256}),
        ("llada", {}, {"max_new_tokens": 1024}, {"gen_length": 1024, "steps": 1024}),
        ("llada", {"block_length": 16}, {"max_gen_toks": 40}, {"gen_length": 48, "block_length": 16, "steps": 48}),
        ("llada", {"steps": 8}, {"max_gen_toks": 256}, {"gen_length": 256, "steps": 8}),
        ("llada", {"gen_length": 96}, {"max_gen_toks": 5}, {"gen_length": 96, "block_length": 32, "steps": 96}),
        ("llada", {"gen_length": 20}, {}, {"gen_length": 20, "block_length": 20, "steps": 20}),
        ("llada", {}, {"gen_length": 64, "steps": 8, "block_length": 16}, {"steps": 8, "block_length": 16}),
        ("llada", {"steps": 32}, {"max_gen_toks": 64, "steps": 16}, {"steps": 32}),
        ("llada", {"threshold": 0.9}, {"max_gen_toks": 40}, {"gen_length": 64, "steps": 64, "threshold": 0.9}),
        ("llada", {"temperature": 0.3}, {"temperature": 0.0, "do_sample": False}, {"temperature": 0.3}),
        ("llada", {}, {"temperature": 0.8, "do_sample": True}, {"temperature": 0.8}),
        ("llada", {}, {"temperature": 0.8, "do_sample": False}, {"temperature": 0.0}),
        # Dream has one block, and settings of its own.
        ("dream", {}, {"max_gen_toks": 40}, {"gen_length": 40, "block_length": 40, "steps": 40, "temperature": 0.0}),
        ("dream", {}, {"do_sample": True, "temperature": 0.4, "top_p": 0.8}, {"temperature": 0.4, "top_p": 0.8}),
        ("dream", {"temperature": 0.05}, {"do_sample": False}, {"temperature": 0.05, "top_p": 0.95}),
        ("dream", {"algorithm": "low_confidence"}, {"max_gen_toks": 40}, {"gen_length": 40, "block_length": 40}),
    ],
)  # fmt: skip
def test_settings_of_a_request(harness_of, family: str, arguments: dict, wishes: dict, want: dict) -> None:
    settings = harness_of(family, **arguments)._wish({"until": ["x"], **wishes}).sampler
    assert {name: getattr(settings, name) for name in want} == want


def test_steps_keep_the_pace_of_the_defaults(tiny_folder: Path) -> None:
    """The tiny model unmasks two tokens a step (16 steps, 32 tokens in one block)."""
    settings = SparsedLM(pretrained=str(tiny_folder), **CPU)._wish({"max_gen_toks": 70}).sampler
    assert (settings.gen_length, settings.block_length, settings.steps) == (70, 70, 35)
    # With a threshold steps are an upper bound, of one a token.
    settings = SparsedLM(pretrained=str(tiny_folder), threshold=0.9, **CPU)._wish({"max_gen_toks": 70}).sampler
    assert (settings.gen_length, settings.steps) == (70, 70)


def test_a_setting_that_the_sampler_lacks_is_left_out_and_said(harness_of, caplog) -> None:
    lm = harness_of("llada")
    for _ in range(2):
        lm._wish({"do_sample": True, "temperature": 0.2, "top_p": 0.9, "num_beams": 4})
    assert [record.getMessage().split()[0] for record in caplog.records] == ["top_p", "num_beams"]


def test_sampled_repeats_differ_and_do_not_depend_on_the_batch(harness_of) -> None:
    wishes = {"until": [], "do_sample": True, "temperature": 1.5, "max_gen_toks": 8}
    answers = []
    for batch_size in (1, 4):
        lm = harness_of("qwen3", batch_size=batch_size, steps=8, gen_length=8, block_length=8, seed=7)
        # The harness repeats a request by asking for it several times.
        first, other = asked("generate_until", ("a line", wishes), ("b line", wishes))
        requests = [first, first, first, other]
        answers.append(lm.generate_until(requests, disable_tqdm=True))
    assert answers[0] == answers[1] and len(set(answers[0][:3])) == 3
    ids = torch.tensor(lm.tokenizer.encode("a line"))
    for repeat in range(3):
        sampler = SamplerConfig(8, 8, 8, temperature=1.5, seed=7 + repeat)
        assert answers[0][repeat] == plain(lm, sparsed.generate(lm.model, ids, sampler=sampler).tokens[0, len(ids) :])


def test_long_prompts_are_kept_whole_or_cut_from_the_left(harness_of, caplog) -> None:
    prompt = "".join(chr(97 + i % 26) for i in range(600))  # trained to 256 positions
    arguments: dict[str, Any] = {"steps": 4, "gen_length": 8, "block_length": 8, "attention": "dense"}
    lm = harness_of("llada", **arguments)
    ids = torch.tensor(lm.tokenizer.encode(prompt))
    sampler = SamplerConfig(4, 8, 8, temperature=0.0)

    def answer(length: int) -> str:
        tokens = sparsed.generate(lm.model, ids[-length:], sampler=sampler, attention="dense").tokens
        return plain(lm, tokens[0, length:])

    request = asked("generate_until", (prompt, STOPS))
    assert lm.generate_until(request * 2, disable_tqdm=True) == [answer(len(ids))] * 2
    assert sum("trained to 256 positions" in record.getMessage() for record in caplog.records) == 1
    short = harness_of("llada", max_length=100, **arguments)
    assert short.generate_until(request, disable_tqdm=True) == [answer(92)]
    assert answer(92) != answer(len(ids))
    with pytest.raises(ValueError, match="max_length must be above the 8 tokens of an answer, not 8"):
        harness_of("llada", max_length=8, **arguments).generate_until(request, disable_tqdm=True)
    context, continuation = lm._encode_pair(prompt, " the end")
    [want] = [x for _, x in log_likelihoods(lm.model, [(context[-(100 - len(continuation)) :], continuation)], draws=4,
                                            attention="dense")]  # fmt: skip
    few = harness_of("llada", max_length=100, mc_num=4, attention="dense")
    [(value, _)] = few.loglikelihood(asked("loglikelihood", (prompt, " the end")), disable_tqdm=True)
    assert value == pytest.approx(want.value, abs=1e-5)


def test_contexts_and_continuations_are_tokenised_as_usual(harness_of) -> None:
    """Spaces at a context's end go to the continuation; an empty context is the tokenizer's first or last token."""
    sparse = {"skip": 0.2, "select": 0.3, "block_size": 32}
    lm = harness_of(
        "llada", mc_num=6, seed=7, cfg_scale=0.5, batch_size=3, skip=0.2, select=0.3, attention_block_size=32
    )
    bos = lm.tokenizer.bos_token_id
    encode = lm.tokenizer.encode
    whole, context, long = encode("Is it  the one"), encode("Is it"), "one other " * 20 + "line"
    pairs = [
        (context, whole[len(context) :]), ([bos], encode("there")), (encode("Q"), encode(" a")),
        (encode(long), encode(" is long")),
    ]  # fmt: skip
    options: dict[str, Any] = {"draws": 6, "seed": 7, "cfg_scale": 0.5}
    want = dict(log_likelihoods(lm.model, pairs, attention=SparseDConfig(**sparse), **options))
    dense = dict(log_likelihoods(lm.model, pairs, attention="dense", **options))
    requests = asked("loglikelihood", ("Is it  ", "the one"), ("", "there"), ("Q", " a"), (long, " is long"))
    got = lm.loglikelihood(requests, disable_tqdm=True)
    assert [value for value, _ in got] == pytest.approx([want[i].value for i in range(4)], abs=1e-4)
    assert [greedy for _, greedy in got] == [want[i].greedy for i in range(4)]
    assert abs(dense[3].value - want[3].value) > 1e-3
    assert harness_of("qwen3").prefix_token_id == harness_of("qwen3").model.eos_id


def test_a_rolling_likelihood_is_the_sum_over_windows(harness_of) -> None:
    lm = harness_of("llada", mc_num=5, attention="dense", max_length=21)
    text = "abcdefghij" * 5
    ids = lm.tokenizer.encode(text)
    assert len(ids) == 50
    # Twenty tokens after one, the first after the beginning of a text; the last window is filled up with context.
    bos = lm.tokenizer.bos_token_id
    pairs = [([bos], ids[:20]), (ids[19:20], ids[20:40]), (ids[29:40], ids[40:])]
    want = dict(log_likelihoods(lm.model, pairs, draws=5, attention="dense"))
    [got, again] = lm.loglikelihood_rolling(asked("loglikelihood_rolling", (text,), (text,)), disable_tqdm=True)
    assert got == again == pytest.approx(sum(x.value for x in want.values()), abs=1e-4)


def test_a_prompt_begins_with_a_special_token_only_once(make_checkpoint, tmp_path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    folder = make_checkpoint(tmp_path / "prefixing")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", end)])
    tokenizer.save(str(folder / "tokenizer.json"))
    lm = SparsedLM(pretrained=str(folder), **CPU)
    letters = lm.tok_encode("ab", add_special_tokens=False)
    assert lm.tok_encode("ab") == [end, *letters] == lm.tok_encode("<|endoftext|>ab") and len(letters) == 2


def test_the_chat_template(harness_of) -> None:
    lm = harness_of("qwen3")
    messages = [{"role": "user", "content": "Hi"}]
    assert lm.apply_chat_template(messages).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    begun = [*messages, {"role": "assistant", "content": "Well,"}]
    assert lm.apply_chat_template(begun, add_generation_prompt=False).endswith("assistant\nWell,")
    assert lm.chat_template(True) == lm.tokenizer.chat_template and lm.chat_template(False) is None
    assert lm.tokenizer_name == lm.tokenizer.name_or_path.replace("/", "__") and "/" not in lm.tokenizer_name
    lm.tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(ValueError, match="chat template refuses these messages: no such role."):
        lm.apply_chat_template(messages)
    lm.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template: leave --apply_chat_template out"):
        lm.apply_chat_template(messages)


def test_the_harness_cache_answers_again(harness_of, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = harness_of("llada", mc_num=3, steps=4, gen_length=8, block_length=8)
    cached = CachingLM(lm, str(tmp_path / "cache.db"))
    scores, texts = asked("loglikelihood", ("a", " b"), ("a", " c")), asked("generate_until", ("a", STOPS))
    first = cached.loglikelihood(scores), cached.generate_until(texts)
    # What was found is stored as it is found, not only at the end.
    assert len(cached.dbdict) == 4  # with what they were made with
    for key in [key for key in cached.dbdict if key != "sparsed: made with"]:
        del cached.dbdict[key]
    lm.loglikelihood(scores, disable_tqdm=True), lm.generate_until(texts, disable_tqdm=True)
    assert len(cached.dbdict) == 4
    monkeypatch.setattr(SparsedLM, "_run", None)
    monkeypatch.setattr(SparsedLM, "_loglikelihood_tokens", None)
    assert (cached.loglikelihood(scores), cached.generate_until(texts)) == first


def test_a_sequence_that_memory_cannot_hold_is_named_and_what_was_answered_is_kept(
    harness_of, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the harness's own models do, the evaluation ends there."""
    lm = harness_of("llada", mc_num=3, steps=4, gen_length=8, block_length=8, is_check_greedy=False)
    cached, real, most = CachingLM(lm, str(tmp_path / "cache.db")), LocalForward.logits, 30

    def small(self: LocalForward, ids: torch.Tensor, pass_: Any) -> torch.Tensor:
        # The longest come first: here those are short of memory that come last.
        if ids.shape[1] <= most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(self, ids, pass_)

    monkeypatch.setattr(LocalForward, "logits", small)
    texts = [
        Instance("generate_until", {}, (text, STOPS), 0, ("maps", doc, 1))  # type: ignore[arg-type]
        for doc, text in ((4, "a"), (7, 40 * "b"))
    ]
    with pytest.raises(MemoryError, match=r"^maps, document 4: There is too little memory for one sequence of \d+ tok"):
        cached.generate_until(texts)
    assert len(cached.dbdict) == 2  # with what they were made with
    scores = [
        Instance("loglikelihood", {}, (text, " c"), 0, ("choices", doc, 1))  # type: ignore[arg-type]
        for doc, text in ((1, "a"), (2, 40 * "b"))
    ]
    with pytest.raises(MemoryError, match=r"^choices: There is too little memory for one sequence of \d+ tokens, its"):
        cached.loglikelihood(scores)
    assert len(cached.dbdict) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"pretrained": "no-such-model"}, "no-such-model"),
        ({"pretrained": "mini", "model": "other"}, "pretrained=mini and model=other are two names of one setting"),
        ({"atention": "dense"}, "The model argument 'atention' is unknown; there are pretrained, attention, mc_num"),
        ({"attention": "sparse"}, "attention must be one of 'dense', 'sparsed', 'sliding_window'"),
        ({"attention": "dense", "skip": 0.2}, "skip belongs to sparse attention: leave it out with attention=dense"),
        ({"skip": 2}, "skip must lie between 0 and 1, not 2"),
        ({"attention_block_size": 48}, "attention_block_size must be one of 32, 64, 128, not 48"),
        ({"block_size": 32}, "attention_block_size (32, 64 or 128) is the block of SparseD's attention, block_length"),
        ({"mc_num": 0}, "mc_num must be a whole number of at least 1, not 0"),
        ({"mc_num": 1.5}, "mc_num must be a whole number of at least 1, not 1.5"),
        ({"batch_size": "auto"}, "batch_size must be a whole number of at least 1, not 'auto'"),
        ({"max_length": 1}, "max_length must be a whole number of at least 2, not 1"),
        ({"temperature": "hot"}, "temperature must be a number, not 'hot'"),
        ({"algorithm": "greedy"}, "algorithm must be one of"),
        ({"gen_length": 64, "block_length": 16, "steps": 3}, "steps must be at least the number of"),
        ({"top_p": 0.9}, "top_p belongs to Dream's algorithms"),
        ({"threshold": 3}, "threshold must lie between 0 and 1"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"device": "tpu"}, "tpu"),
        ({"backend": "fast"}, "backend must be 'auto' or one of"),
        ({"backend": "flash4", "attention_block_size": 32}, "needs attention_block_size 128, not 32"),
        ({"dense_backend": "fast"}, "dense_backend must be 'auto' or one of"),
    ],
)
def test_wrong_arguments(tiny_folder: Path, arguments: dict[str, Any], words: str) -> None:
    source = {} if "pretrained" in arguments else {"pretrained": str(tiny_folder)}
    with pytest.raises(ValueError) as error:
        SparsedLM.create_from_arg_obj(source | arguments, {"device": "cpu", "batch_size": 1})
    assert words in str(error.value) and "\n" not in str(error.value)


def test_arguments_of_the_command_line(tiny_folder: Path) -> None:
    """model_args go before the harness's own flags; its default device is none where there is no CUDA."""
    line = f"model={tiny_folder},dtype=auto,batch_size=3,trust_remote_code=true,select=0.4,attention=shared"
    lm = SparsedLM.create_from_arg_string(line, {"batch_size": "8", "device": "cuda:0", "max_batch_size": 64})
    assert lm.batch_size == 3 and lm.attention == AttentionConfig("shared", select=0.4)
    assert lm.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert SparsedLM.create_from_arg_obj({"pretrained": str(tiny_folder)}, {"batch_size": "8", **CPU}).batch_size == 8


def test_steps_have_to_fit_the_length_that_is_asked_for(tiny_folder: Path) -> None:
    """Blocks of 32: 7 steps suit three of them, not eight."""
    lm = SparsedLM(pretrained=str(tiny_folder), steps=7, block_length=32, **CPU)
    assert lm._wish({"max_gen_toks": 96}).sampler.steps == 7
    with pytest.raises(ValueError, match="steps must be at least the number of .* = 8: 7 is less"):
        lm._wish({"max_gen_toks": 256})


def test_a_local_task_from_end_to_end(tasks: Path, folder_of) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    folder = folder_of("qwen3")
    results = lm_eval.simple_evaluate(
        model="sparsed",
        model_args={"pretrained": str(folder), "mc_num": 8, "steps": 4, "gen_length": 8, "block_length": 8, **CPU},
        tasks=["tiny_choice", "tiny_answer"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        apply_chat_template=True,
        batch_size=2,
        bootstrap_iters=0,
    )
    model = sparsed.load(folder, device="cpu", dtype="float32")
    assert results["results"]["tiny_choice"]["sample_len"] == 3 == results["results"]["tiny_answer"]["sample_len"]
    right = []
    for sample in results["samples"]["tiny_choice"]:
        assert [choice for _, choice in sample["arguments"]] == ["yes", "no"]  # no space after a template's header
        (text,) = pieces(model.tokenizer, [{"role": "user", "content": sample["doc"]["question"]}], template=True)
        assert text.endswith("</think>\n\n")
        # The line feeds before an answer count as its own, as they do with every model of the harness.
        context = model.tokenizer.encode(text.rstrip())
        wholes = [model.tokenizer.encode(text + choice) for choice in ("yes", "no")]
        want = dict(log_likelihoods(model, [(context, whole[len(context) :]) for whole in wholes], draws=8))
        values = [float(resp[0][0]) for resp in sample["resps"]]
        assert values == pytest.approx([want[0].value, want[1].value], abs=1e-4)
        right.append(values[0] > values[1])
    assert results["results"]["tiny_choice"]["acc,none"] == pytest.approx(sum(right) / 3)
    sampler = SamplerConfig(4, 8, 8, temperature=0.0)
    for sample in results["samples"]["tiny_answer"]:
        result = sparsed.generate(model, sample["doc"]["question"], sampler=sampler)
        [[text]] = sample["resps"]
        assert text.strip() == result.text[0].split("\n")[0].strip()
    assert math.isfinite(results["results"]["tiny_answer"]["exact_match,none"])
    assert results["config"]["model_dtype"] == "torch.float32" and results["max_length"] == 512


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command in this process; test_harness_processes.py starts it as a program."""
    from lm_eval.tasks import TaskManager

    # Reading the names of all its tasks takes the harness ten seconds.
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    monkeypatch.setattr("lm_eval.__main__.setup_logging", lambda: None)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setattr(sys, "argv", ["pytest"])


def test_the_command_line(tasks: Path, tmp_path: Path, tiny_folder: Path, here: None, capsys) -> None:
    line = ["lm_eval", "--model", "sparsed", "--model_args",
            f"pretrained={tiny_folder},mc_num=4,steps=4,gen_length=32,dtype=float32",
            "--tasks", "tiny_choice,tiny_answer", "--include_path", str(tasks), "--batch_size", "2", "--device", "cpu",
            "--output_path", str(tmp_path / "out"), "--log_samples"]  # fmt: skip
    assert main(line) == 0
    said = capsys.readouterr().out
    assert "|tiny_choice|" in said and "|tiny_answer|" in said
    [written] = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(written.read_text())
    assert set(results["results"]) == {"tiny_choice", "tiny_answer"} and results["config"]["model"] == "sparsed"
    assert len(list((tmp_path / "out").rglob("samples_*.jsonl"))) == 2


def test_a_wrong_argument_on_the_command_line_is_one_sentence(
    tasks: Path, tiny_folder: Path, here: None, capsys
) -> None:
    line = ["lm_eval", "--model", "sparsed", "--model_args", f"pretrained={tiny_folder},mc_num=0", "--tasks",
            "tiny_choice", "--include_path", str(tasks)]  # fmt: skip
    assert main(line) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: mc_num must be a whole number of at least 1, not 0."
    assert sys.argv == ["pytest"]


def test_without_the_harness_the_command_says_what_to_install(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsed.harness.command.find_spec", lambda name: None)
    assert main(["lm_eval", "--model", "sparsed"]) == 2
    assert "pip install 'sparsed[lm_eval]'" in capsys.readouterr().err
