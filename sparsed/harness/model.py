"""lm-evaluation-harness: the model "sparsed", any diffusion model that `sparsed.load` loads, dense or sparse.

Importing this module registers it. The harness (0.4.13) finds no models outside its own package by itself, hence
``python -m sparsed lm_eval`` (see `sparsed.harness.command`).
"""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string
from tqdm import tqdm

from sparsed.attention.backends import dense
from sparsed.attention.backends.registry import check_backend
from sparsed.config import DREAM_ALGORITHMS, METHODS, AttentionConfig, ResolvedSampler, SamplerConfig, switch_step
from sparsed.denoising import denoise
from sparsed.harness.likelihood import Likelihood, log_likelihoods
from sparsed.models.loading import load
from sparsed.options import ATTENTION, SAMPLER

_log = logging.getLogger(__name__)

_SPARSE = tuple(name for name in ATTENTION if name != "method")
_OWN = ("attention", "mc_num", "batch_size", "device", "dtype", "backend", "dense_backend", "max_length")
ARGUMENTS = ("pretrained", *_OWN, *_SPARSE, *SAMPLER)
# The harness passes them to every model. Nothing here runs remote code; a batch is as large as was said.
_IGNORED = ("trust_remote_code", "max_batch_size")
# What the harness's command line says where its user said nothing.
_DEVICE_UNSAID = "cuda:0"


@register_model("sparsed")
class SparsedLM(TemplateLM):
    """A diffusion language model for lm-evaluation-harness; its arguments are those of ``--model_args``.

    pretrained (or model): a name of the catalogue, a Hub id or a folder (default "mini"). attention: "sparsed"
    (default), a baseline (`sparsed.METHODS`) or "dense"; skip, select, block_size (attention block size) and what else
    `sparsed.AttentionConfig` has belong to all but "dense". backend, dense_backend, device, dtype: as for
    `sparsed.denoise` and `sparsed.load`.
    batch_size: the most canvases of one forward. mc_num: Monte-Carlo draws of a likelihood (default 128). The rest is
    the sampler's, see `sparsed.SamplerConfig`.

    Generation. A setting is taken from model_args, else from the request (the task's generation_kwargs and
    ``--gen_kwargs``; without `do_sample`, temperature 0), else from the model's defaults. A request's max_gen_toks
    (default 256) is rounded up to whole semi-autoregressive blocks, and the answer may fill them. Steps that nobody
    asked for are as many a token as the model's defaults have. A run ends as soon as every answer of its batch holds
    an end token or a stop string with nothing masked before it: what would follow is cut away anyway. Runs that draw
    at random go one by one, so an answer never depends on the batch; the r-th repeat of a request has seed + r.

    Likelihoods are LLaDA's Monte-Carlo estimates, see `sparsed.harness.likelihood`. In rolling ones, a text is cut into
    windows of at most max_length tokens (default: the positions that the model was trained on), each scored after one
    token of context.

    Prompts longer than the model's training are kept whole, with one warning: cutting them from the left, as other
    models of the harness do at once, would take the chat template's first tokens and a long-context task's facts, and
    RULER beyond the trained length is what SparseD is measured on. With max_length, prompts are cut from the left to
    what leaves room for the answer.

    Raises ValueError in one sentence for an unknown argument or a wrong value, and what `sparsed.load` raises.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        model: str | None = None,
        attention: str = "sparsed",
        mc_num: int = 128,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | None = None,
        backend: str = "auto",
        dense_backend: str = "auto",
        max_length: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self._said: set[str] = set()
        unknown = [name for name in settings if name not in (*_SPARSE, *SAMPLER, *_IGNORED)]
        if unknown:
            raise ValueError(f"The model argument {unknown[0]!r} is unknown; there are {', '.join(ARGUMENTS)}.")
        if pretrained is not None and model is not None:
            raise ValueError(f"pretrained and model mean the same: give one of {pretrained!r} and {model!r}.")
        self.mc_num = _whole("mc_num", mc_num)
        self._batch_size = _whole("batch_size", batch_size)
        self._max_length = None if max_length is None else _whole("max_length", max_length, least=2)
        self._given = SamplerConfig(**{name: settings.get(name) for name in SAMPLER})
        if attention not in METHODS:
            raise ValueError(f"attention must be one of {', '.join(map(repr, METHODS))}, not {attention!r}.")
        self.attention = AttentionConfig(attention, **{name: settings.get(name) for name in _SPARSE})
        source = pretrained if pretrained is not None else model
        # A folder whose name is a number reaches us as one.
        self.model = load(
            "mini" if source is None else str(source),
            device=None if device is None else str(device),
            dtype=None if dtype == "auto" else dtype,
        )
        self.backend, self.dense_backend = backend, dense_backend
        dense.check(dense_backend, self.model.device)
        check_backend(backend, self.model.device, self.attention.block_size)
        # What does not fit together is said here, not at the first request. Whether steps fit depends on its length.
        given = self._given
        if given.gen_length is None:
            given = replace(given, gen_length=given.block_length, steps=None)
        given.resolve(self.model.defaults)
        self.tokenizer: Any = self.model.tokenizer
        self._device = self.model.device

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> SparsedLM:
        """The model of a dictionary of arguments, which go before what the harness adds (batch size, device)."""
        added = {name: value for name, value in (additional_config or {}).items() if value is not None}
        if added.get("device") == _DEVICE_UNSAID and not torch.cuda.is_available():
            # There is no telling it from a user's own; another device is better than none.
            _log.info("There is no CUDA device here: the device is chosen as by sparsed.load.")
            del added["device"]
        return cls(**(added | arg_dict))

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> SparsedLM:
        """The model of "key=value,key=value"."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def batch_size(self) -> int:
        """The most canvases of one forward."""
        return self._batch_size

    @property
    def max_length(self) -> int:
        """Tokens: what prompts are cut to, else the positions that the model was trained on."""
        return self._max_length or self.model.max_positions

    @property
    def max_gen_toks(self) -> int:
        """Tokens to generate where neither model_args nor the request says."""
        return 256

    @property
    def eot_token_id(self) -> int:
        return self.model.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands for an empty context: the tokenizer's first token, else the end token."""
        first = self.tokenizer.bos_token_id
        return self.model.eos_id if first is None else int(first)

    @property
    def tokenizer_name(self) -> str:
        """A file name for what the harness caches about prompts."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results about the model."""
        return {
            "model_num_parameters": self.model.network.num_parameters(),
            "model_dtype": str(self.model.dtype),
            "model_device": str(self.model.device),
        }

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages as one prompt, ending with the header of an answer or, without it, inside the last message."""
        if not self.tokenizer.chat_template:
            raise ValueError(f"{self.model.label} has no chat template: leave --apply_chat_template out.")
        # A hybrid thinker (Qwen3) is asked not to think aloud; other templates do not look at it.
        text = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            enable_thinking=False,
        )
        assert isinstance(text, str)
        return text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids. None: with what the tokenizer puts around a text, unless it begins with that already."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode([self.prefix_token_id]))
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=add_special_tokens)
        return ids

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """(value, greedy) for requests (key of the harness's cache or None, context, continuation)."""
        pairs = [(self._cut(context, len(answer)), answer) for _, context, answer in requests]
        self._warn([len(context) + len(answer) for context, answer in pairs], self.mc_num, "mc_num")
        found: dict[int, Likelihood] = {}
        with tqdm(total=len(pairs), desc="Running loglikelihood requests", disable=disable_tqdm) as bar:
            for index, likelihood in log_likelihoods(
                self.model,
                pairs,
                draws=self.mc_num,
                seed=self._given.seed or 0,
                attention=self.attention,
                backend=self.backend,
                dense_backend=self.dense_backend,
                cfg_scale=self._given.cfg_scale or 0.0,
                batch_size=self.batch_size,
            ):
                found[index] = likelihood
                if requests[index][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[index][0], _answer(likelihood))
                bar.update()
        return [_answer(found[index]) for index in range(len(pairs))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The estimated bound of each text's log-likelihood, in nats: the sum over its windows."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            cut = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            for context, answer in map(make_disjoint_window, cut):
                windows.append((None, context, answer))
                owners.append(index)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm)):
            totals[owner] += value
        for request, total in zip(requests, totals):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """One answer for each request (context, generation_kwargs), without the stop string that ended it."""
        asked: Counter[str] = Counter()
        groups: dict[tuple[int, ResolvedSampler], list[tuple[int, list[int]]]] = defaultdict(list)
        for index, request in enumerate(requests):
            context, wishes = request.args
            sampler = self._settings(wishes)
            if _draws(sampler):
                repeat = json.dumps([context, wishes], sort_keys=True, default=str)
                sampler = replace(sampler, seed=sampler.seed + asked[repeat])
                asked[repeat] += 1
            ids = self._cut(self.tok_encode(context) or [self.prefix_token_id], sampler.gen_length)
            groups[len(ids), sampler].append((index, ids))
        answers = [""] * len(requests)
        with tqdm(total=len(requests), desc="Running generate_until requests", disable=disable_tqdm) as bar:
            for (_, sampler), group in sorted(groups.items(), key=lambda item: -item[0][0]):
                rows = 1 if _draws(sampler) or self._by_lot() else self.batch_size
                for first in range(0, len(group), rows):
                    batch = group[first : first + rows]
                    asking = [requests[index].args for index, _ in batch]
                    texts = self._run([ids for _, ids in batch], sampler, [_until(wishes) for _, wishes in asking])
                    for (index, _), question, text in zip(batch, asking, texts):
                        answers[index] = text
                        self.cache_hook.add_partial("generate_until", question, text)
                    bar.update(len(batch))
        return answers

    def _run(self, prompts: list[list[int]], sampler: ResolvedSampler, stops: list[list[str]]) -> list[str]:
        """The answers to prompts of equal length."""
        run = denoise(
            self.model,
            torch.tensor(prompts),
            sampler=sampler,
            attention=self.attention,
            backend=self.backend,
            dense_backend=self.dense_backend,
        )
        self._warn([run.length], run.total, "steps")
        mask, special = self.model.mask_id, self.tokenizer.get_added_vocab()
        ends = [{*self.model.end_ids, *(special[stop] for stop in row if stop in special)} for row in stops]
        reached: list[int] = []
        rows: list[list[int]] = []
        for step in run:
            rows = step.tokens.tolist()
            before, reached = reached, [row.index(mask) if mask in row else len(row) for row in rows]
            if reached == before:
                continue
            texts = [self._text(row[:to], stop, end) for row, to, stop, end in zip(rows, reached, stops, ends)]
            if all(ended for _, ended in texts):
                run.close()
                return [text for text, _ in texts]
        return [self._text(row, stop, end)[0] for row, stop, end in zip(rows, stops, ends)]

    def _text(self, tokens: list[int], stops: list[str], ends: set[int]) -> tuple[str, bool]:
        """The text up to the first end token or stop string, and whether there was one. Spaces stay as they are."""
        end = next((place for place, token in enumerate(tokens) if token in ends), None)
        kept = [token for token in tokens[:end] if token != self.model.mask_id]
        text: str = self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        cut = min((place for place in map(text.find, stops) if place >= 0), default=None)
        return text[:cut], end is not None or cut is not None

    def _settings(self, wishes: dict[str, Any]) -> ResolvedSampler:
        """The resolved sampler for a request's generation_kwargs. Raises ValueError for those that do not fit."""
        defaults = self.model.defaults
        wanted: dict[str, Any] = dict(normalize_gen_kwargs(wishes, self.max_gen_toks))
        tokens = wanted.pop("max_gen_toks")
        if not wanted.pop("do_sample", None):
            wanted["temperature"] = 0.0
        values = {name: getattr(self._given, name) for name in SAMPLER}
        dream = (values["algorithm"] or wanted.get("algorithm") or defaults.algorithm) in DREAM_ALGORITHMS
        for name, value in wanted.items():
            if name == "until":
                continue
            if name not in SAMPLER or (name in ("top_p", "top_k") and not dream):
                self._say(name, f"{name} of the generation_kwargs is no setting of this model's sampler: left out.")
            elif values[name] is None:
                values[name] = value
        if values["gen_length"] is None:
            block = values["block_length"]
            if block is None and not dream and defaults.algorithm not in DREAM_ALGORITHMS:
                block = defaults.block_length
            values["gen_length"] = ceil(tokens / (block or 1)) * (block or 1)
        sampler = SamplerConfig(**values).resolve(defaults)
        if values["steps"] is not None or sampler.threshold is not None:
            return sampler
        blocks = sampler.gen_length // sampler.block_length
        steps = min(defaults.steps, defaults.gen_length) * sampler.block_length
        return replace(sampler, steps=ceil(Fraction(steps, defaults.gen_length)) * blocks)

    def _cut(self, context: list[int], answer: int) -> list[int]:
        """The context, from the left cut to what leaves room for `answer` tokens; as it is without max_length."""
        if self._max_length is None:
            return context
        room = self._max_length - answer
        if room < 1:
            raise ValueError(f"max_length must be above the {answer} tokens of an answer, not {self._max_length}.")
        return context[-room:]

    def _by_lot(self) -> bool:
        """A pattern drawn by lot belongs to a row of a batch: then there is one row, so that batches change nothing."""
        return self.attention.method == "random"

    def _warn(self, lengths: list[int], steps: int, word: str) -> None:
        trained, longest = self.model.max_positions, max(lengths, default=0)
        if longest > trained:
            self._say(
                "length",
                f"{self.model.label} was trained to {trained} positions, and a sequence here has {longest}: it is kept "
                f"whole. max_length=… cuts prompts from the left.",
            )
        attention = self.attention.resolve(longest)
        if not attention.dense and switch_step(steps, attention.skip, attention.selection) is None:
            self._say(f"never {word}", f"Attention never becomes sparse: {word} is {steps}, and skip {attention.skip}.")

    def _say(self, what: str, sentence: str) -> None:
        """A warning, once for each kind."""
        if what not in self._said:
            self._said.add(what)
            _log.warning(sentence)


def _whole(name: str, value: Any, least: int = 1) -> int:
    """A count from a command line, where it may be a string. Raises ValueError for anything below `least`."""
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}.")
    return value


def _draws(sampler: ResolvedSampler) -> bool:
    """Whether anything in a run is left to chance."""
    return bool(sampler.temperature or sampler.alg_temp or sampler.algorithm in ("random", "origin"))


def _until(wishes: dict[str, Any]) -> list[str]:
    """The stop strings of a request; an empty one stops nothing."""
    until = wishes.get("until") or []
    return [stop for stop in ([until] if isinstance(until, str) else until) if stop]


def _answer(likelihood: Likelihood) -> tuple[float, bool]:
    return likelihood.value, likelihood.greedy
