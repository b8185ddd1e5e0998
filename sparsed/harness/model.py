"""lm-evaluation-harness: the model "sparsed", any diffusion model that `sparsed.load` loads, dense or sparse.

Importing this module registers it. The harness (0.4.13) finds no models outside its own package by itself, hence
``python -m sparsed lm_eval`` (see `sparsed.harness.command`).
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import lm_eval.models  # noqa: F401  # which the harness leaves out once another model is registered
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string
from tqdm import tqdm

from sparsed.attention.backends import dense
from sparsed.attention.backends.registry import check_backend
from sparsed.batches import must_be_alone, naming, together
from sparsed.config import ResolvedSampler
from sparsed.denoising import denoise
from sparsed.denoising.answers import Answers
from sparsed.denoising.info import RunInfo
from sparsed.denoising.several import answers_of
from sparsed.harness.arguments import GENERATION_ONLY, LIKELIHOOD_ONLY, clear_block_size, read_arguments
from sparsed.harness.likelihood import Likelihood, log_likelihoods
from sparsed.harness.made_with import claim, forget_later, made_with
from sparsed.harness.requests import USUAL_LENGTH, Wish, read_wish
from sparsed.harness.shared import SharedLM, launched
from sparsed.harness.tokens import encode, render, written
from sparsed.machine import dtype_name
from sparsed.models.devices import pick_device, pick_dtype
from sparsed.models.loading import load
from sparsed.models.quantise import parameters
from sparsed.results_folder import check_alike
from sparsed.runs import kind_of

_log = logging.getLogger(__name__)

# What the harness's command line says where its user said nothing.
_DEVICE_UNSAID = "cuda:0"

# What requests that run together have alike: task, tokens of the prompt, sampler, tokens of an answer at most.
_Kind = tuple[str, int, ResolvedSampler, int | None]


class _Wanted(NamedTuple):
    """A request for a generated answer."""

    place: int  # among all requests
    ids: list[int]
    kind: _Kind


@register_model("sparsed")
class SparsedLM(SharedLM):
    """A diffusion language model for lm-evaluation-harness; its arguments are those of ``--model_args``.

    pretrained: a name of the catalogue, a Hub id (with revision) or a folder (default "mini"). attention: "sparsed"
    (default), a baseline (`sparsed.METHODS`) or "dense"; skip, select, attention_block_size and what else
    `sparsed.AttentionConfig` has belong to all but "dense". cache, cache_refresh, cache_keys: `sparsed.CacheConfig`, of
    generated answers alone. backend, dense_backend, device, dtype, rope_factor, quantize: as for `sparsed.denoise` and
    `sparsed.load`. mask_id: refused where it is not the checkpoint's.
    batch_size: the most canvases of one forward. mc_num: Monte-Carlo draws of a likelihood (default 128).
    is_check_greedy: whether likelihoods say if the answer is what is decoded (default true; false says no, at once).
    add_bos_token: begin prompts with the tokenizer's first token, or with nothing (default: as the tokenizer does).
    escape_until: do not cut answers at a task's stop strings. show_speed: log tokens a second at the end. The rest is
    the sampler's, see `sparsed.SamplerConfig`. The names of public evaluations are taken too, see
    `sparsed.harness.arguments`.

    Generation: see `sparsed.harness.requests.read_wish`. An answer is cut to the request's max_gen_toks where the
    canvas has more tokens. A run ends as soon as every answer of its batch is complete, unless early_stop=false. Runs
    that draw at random go one by one, so an answer never depends on the batch; the r-th repeat of a request has seed +
    r.

    Likelihoods are LLaDA's Monte-Carlo estimates, see `sparsed.harness.likelihood`. In rolling ones, a text is cut into
    windows of at most max_length tokens (default: the positions that the model was trained on), each scored after one
    token of context.

    Prompts longer than the model's training are kept whole, with one warning: cutting them from the left, as other
    models of the harness do at once, would take the chat template's first tokens and a long-context task's facts, and
    RULER beyond the trained length is what SparseD is measured on. With max_length, prompts are cut from the left to
    what leaves room for the answer.

    What was really made is counted for each task (`sparsed.harness.counts`), stands in the results under "sparsed", and
    each kind of note is logged once. Under ``accelerate launch`` each process has a whole model and a share of the
    questions.

    Raises ValueError in one sentence for an unknown argument or a wrong value, and what `sparsed.load` raises.
    """

    def __init__(self, pretrained: str | None = None, **settings: Any) -> None:
        super().__init__()
        self.arguments = arguments = read_arguments({"pretrained": pretrained, **settings})
        self.show_speed = arguments.show_speed
        self._tasks: list[str] = []  # of the likelihoods being asked for
        self.attention = arguments.attention
        self.backend, self.dense_backend = arguments.backend, arguments.dense_backend
        device, dtype = self.crew.device(arguments.device), arguments.dtype
        if dtype is None and self.crew.size > 1:
            # On a CPU a trial decides, and could decide otherwise in another process.
            dtype = dtype_name(
                self.crew.agree(pick_dtype(None, pick_device(device), 0, arguments.pretrained, arguments.quantize))
            )
        self.model = load(
            arguments.pretrained,
            device=device,
            dtype=dtype,
            rope_factor=arguments.rope_factor,
            quantize=arguments.quantize,
            revision=arguments.revision,
        )
        self.model.fingerprint()  # the results name it hours later, when the folder may hold other files
        if arguments.mask_id not in (None, self.model.mask_id):
            raise ValueError(f"The mask_id of {self.model.label} is {self.model.mask_id}, not {arguments.mask_id}.")
        dense.check(self.dense_backend, self.model.device)
        try:
            check_backend(self.backend, self.model.device, self.attention.block_size)
        except ValueError as error:
            raise ValueError(clear_block_size(error)) from None
        # What does not fit together is said here, not at the first request. Whether steps fit depends on its length.
        given = arguments.sampler
        if given.gen_length is None:
            given = replace(given, gen_length=given.block_length, steps=None)
        given.resolve(self.model.defaults)
        self.tokenizer: Any = self.model.tokenizer
        self._device = self.model.device
        if self.crew.size > 1:
            check_alike(self.crew, made_with(self.model, arguments))
        for name in arguments.ignored:
            with_dense = " with full attention: dense_backend chooses what computes it" if name == "backend" else ""
            self.say(name, f"{name} has no effect here{with_dense}.")

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> SparsedLM:
        """The model of a dictionary of arguments, which go before what the harness adds (batch size, device)."""
        added = {name: value for name, value in (additional_config or {}).items() if value is not None}
        if added.get("device") == _DEVICE_UNSAID and (not torch.cuda.is_available() or launched()):
            # There is no telling it from a user's own; another device is better than none, or than one for all.
            _log.info("The device is chosen as by sparsed.load.")
            del added["device"]
        return cls(**(added | arg_dict))

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> SparsedLM:
        """The model of "key=value,key=value"."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def batch_size(self) -> int:
        """The most canvases of one forward."""
        return self.arguments.batch_size

    @property
    def max_length(self) -> int:
        """Tokens: what prompts are cut to, else the positions that the model was trained on."""
        return self.arguments.max_length or self.model.max_positions

    @property
    def max_gen_toks(self) -> int:
        """Tokens to generate where neither model_args nor the request says."""
        return USUAL_LENGTH

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
        """What the harness writes into its results about the model: it asks when every request is answered."""
        return {
            "model_num_parameters": parameters(self.model.network),
            "model_dtype": str(self.model.dtype),
            "model_device": str(self.model.device),
            "sparsed": {
                "model": self.model.name,
                **made_with(self.model, self.arguments),
                "processes": self.crew.size,
                "tasks": self.results(),
            },
        }

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Raises ValueError where the answers of ``--use_cache`` were made with other settings."""
        super().set_cache_hook(cache_hook)
        if cache_hook.dbdict is not None:
            claim(cache_hook.dbdict, made_with(self.model, self.arguments))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages as one prompt, ending with the header of an answer or, without it, inside the last message."""
        return render(self.model, chat_history, add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; a mask token that the text spells is text. add_special_tokens None: as add_bos_token says, else
        with what the tokenizer puts around a text, unless it begins with that already.
        """
        if add_special_tokens is not None:
            return encode(self.model, string, add_special_tokens)
        first, begin = self.prefix_token_id, self.arguments.add_bos_token
        if begin is None:
            return encode(self.model, string, not string.startswith(self.tokenizer.decode([first])))
        if begin and self.tokenizer.bos_token_id is None:
            raise ValueError(f"The tokenizer of {self.model.label} has no first token: leave add_bos_token out.")
        ids = encode(self.model, string, False)
        return ids if not begin or ids[:1] == [first] else [first, *ids]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(value, greedy) of each request (context, continuation)."""
        self._tasks = [_task(request) for request in requests]
        return super().loglikelihood(requests, disable_tqdm)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        kind: str = "loglikelihood",
        **_: Any,
    ) -> list[tuple[float, bool]]:
        """(value, greedy) for requests (key of the harness's cache or None, context, continuation)."""
        self._warn_without_effect(GENERATION_ONLY, "likelihoods")
        tasks: dict[str, list[int]] = defaultdict(list)
        for index, task in enumerate(self._tasks):
            tasks[task].append(index)
        found: dict[int, Likelihood] = {}
        with tqdm(total=len(requests), desc=f"Running {kind} requests", disable=self._unwatched(disable_tqdm)) as bar:
            for task, indices in tasks.items():
                pairs = [requests[index][1:] for index in indices]
                with naming(task):
                    for place, likelihood in log_likelihoods(
                        self.model,
                        [(self._cut(context, len(answer)), answer) for context, answer in pairs],
                        draws=self.arguments.mc_num,
                        seed=self.arguments.sampler.seed or 0,
                        attention=self.attention,
                        backend=self.backend,
                        dense_backend=self.dense_backend,
                        cfg_scale=self.arguments.sampler.cfg_scale or 0.0,
                        batch_size=self.batch_size,
                        greedy=self.arguments.is_check_greedy and kind == "loglikelihood",
                        seen=partial(self._seen, task, kind),
                        fitting=self.fitting,
                    ):
                        index = indices[place]
                        found[index] = likelihood
                        if requests[index][0] is not None:
                            self.cache_hook.add_partial("loglikelihood", requests[index][0], _answer(likelihood))
                        bar.update()
        self.answered()
        return [_answer(found[index]) for index in range(len(requests))]

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
        self._tasks = [_task(requests[owner]) for owner in owners]
        totals = [0.0] * len(requests)
        found = self._loglikelihood_tokens(windows, disable_tqdm, "loglikelihood_rolling")
        for owner, (value, _) in zip(owners, found):
            totals[owner] += value
        for request, total in zip(requests, totals):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """One answer for each request (context, generation_kwargs), without the stop string that ended it."""
        self._warn_without_effect(LIKELIHOOD_ONLY, "generated answers")
        repeats: Counter[tuple[object, ...]] = Counter()
        drawn: list[tuple[object, ...]] = []
        wanted: list[_Wanted] = []
        for index, request in enumerate(requests):
            context, asked = request.args
            wish = self._wish(asked)
            sampler = wish.sampler
            if sampler.draws:
                # The harness repeats a request by asking for it several times.
                who = (request.task_name, request.doc_id, request.idx, context)
                sampler = replace(sampler, seed=sampler.seed + repeats[who])
                repeats[who] += 1
                drawn.append(request.args)
            ids = self._cut(self.tok_encode(context) or [self.prefix_token_id], sampler.gen_length)
            wanted.append(_Wanted(index, ids, (_task(request), len(ids), sampler, wish.most)))
        answers = [""] * len(requests)
        unwatched = self._unwatched(disable_tqdm)
        with tqdm(total=len(requests), desc="Running generate_until requests", disable=unwatched) as bar:
            # The longest first: what does not fit is known soon.
            wanted.sort(key=lambda one: -len(one.ids))
            for group in together(wanted, lambda one: one.kind, self._most):
                task, length, sampler, most = group[0].kind
                run = partial(self._run, task, sampler, most)
                with naming(f"{task}, document {requests[group[0].place].doc_id}"):
                    for part, texts in self.fitting.pieces(group, length + sampler.gen_length, run):
                        for one, text in zip(part, texts):
                            answers[one.place] = text
                            if not sampler.draws:
                                self.cache_hook.add_partial("generate_until", requests[one.place].args, text)
                        bar.update(len(part))
        if self.cache_hook.dbdict is not None:
            forget_later(self.cache_hook.dbdict, "generate_until", drawn)
        self.answered()
        return answers

    def _most(self, kind: _Kind) -> int:
        """How many requests of a kind run together."""
        alone = must_be_alone(kind[2], self.attention, self.arguments.cache.resolve())
        return 1 if alone else self.batch_size

    def _run(self, task: str, sampler: ResolvedSampler, most: int | None, wanted: Sequence[_Wanted]) -> list[str]:
        """The answers to prompts of equal length, of at most so many tokens each."""
        run = denoise(
            self.model,
            torch.tensor([one.ids for one in wanted]),
            sampler=sampler,
            attention=self.attention,
            cache=self.arguments.cache,
            backend=self.backend,
            dense_backend=self.dense_backend,
        )
        for _ in run:  # so that nothing is warmed up for each batch
            pass
        count = self.count(task, "generate_until", run.info, len(wanted))
        count.seconds += sum(step.seconds for step in run.steps)
        reader = Answers(self.model, sampler.stop)
        texts = []
        for answered in answers_of(run):
            row = answered.tokens.tolist()
            whole, cut = reader.read(row), reader.read(row[:most])
            if cut.text != whole.text:
                note = f"An answer was cut to the {most} tokens that max_gen_toks asks for; its canvas has {len(row)}."
                count.note(note)
                self.say(kind_of(note), note)
            texts.append(cut.text)
            count.tokens += written(self.model, row[:most])
        return texts

    def _wish(self, asked: dict[str, Any]) -> Wish:
        """What a request's generation_kwargs ask for; what has no effect is said."""
        wish = read_wish(asked, self.arguments, self.model.defaults)
        for remark in wish.remarks:
            self.say(remark, remark)
        return wish

    def _cut(self, context: list[int], answer: int) -> list[int]:
        """The context, from the left cut to what leaves room for `answer` tokens; as it is without max_length."""
        longest = self.arguments.max_length
        if longest is None:
            return context
        room = longest - answer
        if room < 1:
            raise ValueError(f"max_length must be above the {answer} tokens of an answer, not {longest}.")
        return context[-room:]

    def _seen(self, task: str, kind: str, info: RunInfo, requests: int, greedy: bool) -> None:
        """Counts what stands behind likelihoods."""
        self.count(task, "greedy decoding" if greedy else kind, info, requests)

    def _warn_without_effect(self, elsewhere: frozenset[str], here: str) -> None:
        names = self.arguments.without_effect(elsewhere)
        if names:
            self.say(here, f"No effect on {here}: {', '.join(names)}.")

    def _unwatched(self, disable_tqdm: bool) -> bool:
        """Whether there is no one to see a progress bar; the first process's share stands for the others'."""
        return disable_tqdm or self.rank > 0


def _task(request: Instance) -> str:
    return request.task_name or "requests"


def _answer(likelihood: Likelihood) -> tuple[float, bool]:
    return likelihood.value, likelihood.greedy
