"""The trainer: masked diffusion on rows of documents and questions, on one process or several (``torchrun``).

One optimiser step sees ``tokens`` tokens a process. The network is transformers' own Llama; only the order in
which its layers are called is restated here (:func:`hidden_states`), so that everything outside attention works
on a flat [tokens, hidden] tensor whose shape never changes and is compiled once for every row length.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import LlamaForCausalLM

from sparsed.files import draft, write
from sparsed.models.layer import after_attention, before_attention
from sparsed.results_folder import differences
from sparsed.training.data import TURN_KINDS, Batches, RowMaker, stack
from sparsed.training.loss import loss_of, probe
from sparsed.training.recipe import CURRICULUM, Recipe, Stage, mini_config
from sparsed.training.tokenizer import END, MASK, special_id


class Trainer:
    """A training run that can stop at any checkpoint and go on from it.

    Args:
        recipe: the numbers.
        folder: where checkpoints, the log and the plan are written (by the first process).
        tokenizer: the bundled model's tokenizer.
        workers: data-loader processes.
        start_from: weights to begin with, a model.safetensors.
        curriculum: row lengths over time.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        tokenizer: Tokenizer,
        workers: int = 8,
        start_from: Path | None = None,
        curriculum: tuple[Stage, ...] = CURRICULUM,
    ) -> None:
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = (
            torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        self.recipe, self.folder, self.tokenizer, self.workers = recipe, folder, tokenizer, workers
        self.curriculum = curriculum
        self.start_from = None if start_from is None else hashlib.sha256(start_from.read_bytes()).hexdigest()
        self.mask, self.end = special_id(tokenizer, MASK), special_id(tokenizer, END)
        torch.manual_seed(recipe.seed)
        self.network = LlamaForCausalLM._from_config(
            mini_config(tokenizer.get_vocab_size()), attn_implementation="sdpa"
        )
        if start_from is not None:
            state = load_file(str(start_from))
            state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
            self.network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
        self.network.to(self.device)
        self.parameters = list(self.network.parameters())
        total = sum(p.numel() for p in self.parameters)
        self.gradient = torch.zeros(total, device=self.device)
        offset = 0
        for parameter in self.parameters:
            parameter.grad = self.gradient[offset : offset + parameter.numel()].view_as(parameter)
            offset += parameter.numel()
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=recipe.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=recipe.weight_decay,
            fused=self.device.type == "cuda",
        )
        self.compiled: dict[str, Any] | None = None
        if self.device.type == "cuda":
            torch._dynamo.config.recompile_limit = 64
            self.compiled = {
                "project": torch.compile(before_attention, dynamic=False),
                "feed": torch.compile(after_attention, dynamic=False),
            }
        self.log: list[dict[str, Any]] = []

    def run(self) -> None:
        """Train until the plan or the budget of seconds is used up, then save the weights."""
        started = time.perf_counter()
        state = self.folder / "checkpoint.json"
        first, used, plan = 0, 0.0, None
        if state.exists():
            saved = json.loads(state.read_text())
            unlike = differences({name: saved.get(name) for name in self._made_with()}, self._made_with())
            if unlike:
                raise ValueError(
                    f"{self.folder} holds a run of other settings ({', '.join(unlike)}): choose another folder."
                )
            first, used, plan = saved["step"], saved["seconds"], saved["plan"]
            self._resume()
        if plan is None:
            plan = self._plan()
        sets = self._probe_sets() if self.rank == 0 else {}
        started -= used
        progress = self._progress(first, len(plan), started)
        next_report = time.perf_counter() + 5
        mean_loss, seen = torch.zeros((), device=self.device), 0
        step = first
        for step, batch in enumerate(self._batches(plan, first), start=first):
            if step % 20 == 0:
                progress = self._progress(step, len(plan), started)
                if progress >= 1:
                    break
            rate = self._rate(step, progress)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.gradient.zero_()
            # Seeded by the step, so that a resumed run masks what an uninterrupted one would have masked.
            torch.manual_seed((self.recipe.seed * 1000 + self.rank) * 1_000_003 + step)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                loss = loss_of(self.network, batch, self.mask, self.end, self.recipe, self.compiled)
            loss.backward()
            if self.world > 1:
                dist.all_reduce(self.gradient)
                self.gradient /= self.world
            norm = self.gradient.norm()
            self.gradient *= (1.0 / norm.clamp(min=1.0)).nan_to_num(0.0)
            self.gradient.nan_to_num_(0.0)
            self.optimizer.step()
            mean_loss += loss.detach()
            seen += 1
            if self.rank == 0 and time.perf_counter() > next_report:
                now = time.perf_counter()
                entry: dict[str, Any] = {
                    "step": step,
                    "of": len(plan),
                    "seconds": round(now - started, 1),
                    "length": plan[step],
                    "loss": round(mean_loss.item() / seen, 4),
                    "rate": round(rate, 6),
                    "progress": round(progress, 3),
                }
                mean_loss.zero_()
                seen = 0
                if len(self.log) % 4 == 3:
                    with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                        entry["probe"] = probe(self.network, sets, self.mask, self.end)
                    self._save(step + 1, now - started, plan)
                self.log.append(entry)
                print(json.dumps(entry), flush=True)
                next_report = time.perf_counter() + max(5.0, min(15.0, self.recipe.seconds / 60))
        if self.rank == 0:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                final = probe(self.network, sets, self.mask, self.end)
            self.log.append({"step": step, "seconds": round(time.perf_counter() - started, 1), "probe": final})
            print(json.dumps(self.log[-1]), flush=True)
            self._save(step, time.perf_counter() - started, plan)
        if self.world > 1:
            dist.barrier()
            dist.destroy_process_group()

    def _rate(self, step: int, progress: float) -> float:
        """Warm-up, a constant, then a linear descent to zero."""
        recipe = self.recipe
        down = min(1.0, (1 - progress) / (1 - recipe.decay_from))
        return recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup) * max(0.0, down)

    def _progress(self, step: int, steps: int, started: float) -> float:
        """Part of the run that is over, by steps or by the first process's clock, the same on every process."""
        value = torch.tensor(
            [max(step / steps, (time.perf_counter() - started) / self.recipe.seconds)], device=self.device
        )
        if self.world > 1:
            dist.broadcast(value, 0)
        return value.item()

    def _plan(self) -> list[int]:
        """The row length of every step, from the curriculum's shares of time and the measured time of a step."""
        times = self._step_times()
        rng = random.Random(f"plan-{self.recipe.seed}")
        plan: list[int] = []
        for stage in self.curriculum:
            lengths, weights = list(stage.lengths), list(stage.lengths.values())
            mean = sum(times[length] * weight for length, weight in stage.lengths.items()) / sum(weights)
            plan += rng.choices(lengths, weights, k=max(1, round(stage.share * self.recipe.seconds / mean)))
        return plan

    def _step_times(self) -> dict[int, float]:
        """Seconds of a step for every length, measured on this machine and averaged over the processes."""
        maker = RowMaker(self.tokenizer, random.Random("times"))
        lengths = sorted({length for stage in self.curriculum for length in stage.lengths})
        seconds = torch.zeros(len(lengths), device=self.device)
        for index, length in enumerate(lengths):
            batch = self._to_device(stack(maker, length, max(1, self.recipe.tokens // length)))
            for attempt in range(5):
                if attempt == 2:
                    self._synchronize()
                    began = time.perf_counter()
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                    loss = loss_of(self.network, batch, self.mask, self.end, self.recipe, self.compiled)
                loss.backward()
            self._synchronize()
            seconds[index] = (time.perf_counter() - began) / 3 * 1.08
        if self.world > 1:
            dist.all_reduce(seconds)
            seconds /= self.world
        times = dict(zip(lengths, seconds.tolist(), strict=True))
        if self.rank == 0:
            print("seconds a step:", {length: round(value, 4) for length, value in times.items()}, flush=True)
        return times

    def _batches(self, plan: list[int], first: int) -> Iterator[dict[str, Tensor]]:
        data = Batches(self.tokenizer.to_str(), plan, self.recipe.tokens, f"{self.recipe.seed}-{self.rank}", first)
        loader = DataLoader(
            data,
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=4 if self.workers else None,
            pin_memory=self.device.type == "cuda",
        )
        for batch in loader:
            yield self._to_device(batch)

    def _probe_sets(self) -> dict[str, dict[str, Tensor]]:
        maker = RowMaker(self.tokenizer, random.Random("probe"), held_out=True)
        wanted = {512: 32, 4096: 16, 16384: 4} if self.device.type == "cuda" else {512: 2}
        sets = {}
        for length, count in wanted.items():
            for kind in TURN_KINDS:
                if kind == "arithmetic" and length > 512:
                    continue
                sets[f"{kind}@{length}"] = self._to_device(stack(maker, length, count, kind, skips=False))
        return sets

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _save(self, step: int, seconds: float, plan: list[int]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        moments = {}
        for index, parameter in enumerate(self.parameters):
            slot = self.optimizer.state.get(parameter, {})
            moments.update({f"{index}.{name}": value.detach().reshape(-1).contiguous() for name, value in slot.items()})
            moments[f"{index}.weight"] = parameter.detach().contiguous()
        save_weights(self.network, self.folder)
        body = {"step": step, "seconds": seconds, **self._made_with(), "plan": plan}
        # Moments of one step beside the number of another would be resumed as if they belonged together: both are
        # written before either takes its place.
        with draft(self.folder / "checkpoint.json") as state, draft(self.folder / "checkpoint.safetensors") as weights:
            save_file(moments, str(weights))
            state.write_text(json.dumps(body))
        write(self.folder / "log.json", json.dumps(self.log))

    def _made_with(self) -> dict[str, Any]:
        """What a run that is gone on with must have alike, as plain values for JSON."""
        return {
            "processes": self.world,
            "recipe": asdict(self.recipe),
            "curriculum": [[stage.share, [list(pair) for pair in stage.lengths.items()]] for stage in self.curriculum],
            "start_from": self.start_from,
            "tokenizer": hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest(),
        }

    def _resume(self) -> None:
        saved = load_file(str(self.folder / "checkpoint.safetensors"), device=str(self.device))
        for index, parameter in enumerate(self.parameters):
            parameter.data.copy_(saved[f"{index}.weight"])
            if f"{index}.exp_avg" in saved:
                self.optimizer.state[parameter] = {
                    "step": saved[f"{index}.step"].reshape(()),
                    "exp_avg": saved[f"{index}.exp_avg"].view_as(parameter).clone(),
                    "exp_avg_sq": saved[f"{index}.exp_avg_sq"].view_as(parameter).clone(),
                }
        log = self.folder / "log.json"
        self.log = json.loads(log.read_text()) if log.exists() else []


def save_weights(network: LlamaForCausalLM, folder: Path) -> None:
    """Write the weights as bfloat16 safetensors under transformers' own names (tied output head left out)."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().to(torch.bfloat16).cpu().contiguous()
        for name, tensor in network.state_dict().items()
        if name != "lm_head.weight"
    }
    if not all(math.isfinite(tensor.float().abs().max().item()) for tensor in state.values()):
        raise RuntimeError("The weights hold infinite or missing values; the run diverged and was not saved.")
    with draft(folder / "model.safetensors") as place:
        save_file(state, str(place), metadata={"format": "pt"})
