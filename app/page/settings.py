"""The settings of a run: every control with its explanation, and how they follow the model and the prompt length."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import gradio as gr

from app import texts
from app.race import request
from app.race.request import FOLLOWING, SAMPLER_FIELDS, Request
from sparsed.config import SamplerConfig

GENERATIONS = (16, 32, 64, 128, 256)
LEAST_STEPS, MOST_STEPS = 8, 256
# The sliders, by what `request.parse` calls them: from, to.
RANGES: dict[str, tuple[float, float]] = {
    "steps": (LEAST_STEPS, MOST_STEPS), "temperature": (0.0, 2.0), "top_p": (0.05, 1.0), "cfg_scale": (0.0, 4.0),
    "skip": (0.0, 1.0), "select": (0.05, 1.0),
}  # fmt: skip
THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99)
OFF = 0
# What is said below a setting, where the algorithm has nothing else to say.
INFO = {
    "block_length": "Blocks of the answer are finished from left to right.",
    "threshold": "Commits every token surer than this; ends a run early.",
    "top_p": "Draws from the likeliest; 1 is off.",
}
MODEL_INFO = "Choosing one downloads nothing: that begins when you press Run."
ANY_MODEL_INFO = "Or type a Hub id (owner/name) or a folder. Nothing is downloaded before you press Run."
STEPS_INFO = "More steps, fewer tokens each."
STEPS_AT_MOST_INFO = "At most: the threshold may end it."



class Settings:
    """The components of the accordion, made inside the page that is being built.

    models: (label, name) of each. chosen: the name of the first one; usual: the sampler it comes with, which
    the settings start with. any_model: others can be typed.
    """

    def __init__(
        self, models: Sequence[tuple[str, str]], chosen: str, usual: SamplerConfig, *, any_model: bool = False
    ) -> None:
        usual = usual.resolve(usual)
        number: dict[str, Any] = {"precision": 0, "minimum": 0, "maximum": 2**31 - 1, "min_width": 200}
        slim: dict[str, Any] = {"min_width": 200}
        with gr.Accordion("Settings", open=False, elem_id="sd-settings"):
            with gr.Row():
                self.model = gr.Dropdown(
                    models,
                    value=chosen, label="Model", elem_id="sd-model", min_width=320, scale=4,
                    info=ANY_MODEL_INFO if any_model else MODEL_INFO, allow_custom_value=any_model,
                )  # fmt: skip
                self.question = gr.Number(
                    value=0, label="Question number", elem_id="sd-question", info="Each number makes another prompt.",
                    scale=1, **number,
                )  # fmt: skip
            gr.HTML("<h2>Sampler</h2>", apply_default_css=False)
            with gr.Row():
                self.algorithm = gr.Dropdown(
                    [(label, name) for name, label in texts.ALGORITHMS.items()], value=usual.algorithm,
                    label="Algorithm", elem_id="sd-algorithm", info="Which tokens each step commits.",
                    min_width=320, scale=2,
                )  # fmt: skip
                self.steps = gr.Slider(
                    *RANGES["steps"], value=usual.steps, step=8, label="Denoising steps", elem_id="sd-steps",
                    info=STEPS_INFO, scale=1, **slim,
                )  # fmt: skip
                self.gen_length = gr.Dropdown(
                    _numbers(usual.gen_length), value=usual.gen_length, label="Generation length",
                    elem_id="sd-gen-length", info="Tokens the answer may have.", scale=1, **slim,
                )  # fmt: skip
            with gr.Row():
                self.block_length = gr.Dropdown(
                    _numbers(usual.block_length), value=usual.block_length, label="Semi-autoregressive block length",
                    elem_id="sd-block-length", info=INFO["block_length"], **slim,
                )  # fmt: skip
                self.temperature = gr.Slider(
                    *RANGES["temperature"], value=usual.temperature, step=0.05, label="Temperature",
                    elem_id="sd-temperature", info="0 takes the likeliest token.", **slim,
                )  # fmt: skip
                self.top_p = gr.Slider(
                    *RANGES["top_p"], value=usual.top_p, step=0.05, label="Top-p", elem_id="sd-top-p",
                    info=INFO["top_p"], **slim,
                )  # fmt: skip
            with gr.Row():
                self.threshold = gr.Dropdown(
                    [("off", OFF), *((f"{value:.2f}", value) for value in THRESHOLDS)],
                    value=usual.threshold or OFF, label="Confidence threshold", elem_id="sd-threshold",
                    info=INFO["threshold"], **slim,
                )  # fmt: skip
                self.cfg_scale = gr.Slider(
                    *RANGES["cfg_scale"], value=usual.cfg_scale, step=0.25, label="Guidance (CFG scale)",
                    elem_id="sd-cfg-scale", info="0 is off; above, each step costs twice.", **slim,
                )  # fmt: skip
                self.seed = gr.Number(
                    value=0, label="Sampler seed", elem_id="sd-seed", info="All lanes use the same.", **number,
                )  # fmt: skip
            gr.HTML("<h2>SparseD</h2>", apply_default_css=False)
            with gr.Row():
                self.skip = gr.Slider(
                    *RANGES["skip"], value=0.2, step=0.05, label="Skip", elem_id="sd-skip",
                    info="Share of steps before the switch.", **slim,
                )  # fmt: skip
                self.select = gr.Slider(
                    *RANGES["select"], value=0.5, step=0.05, label="Select", elem_id="sd-select",
                    info="Share of key blocks a head keeps.", **slim,
                )  # fmt: skip
                self.block_size = gr.Dropdown(
                    [32, 64, 128], value=32, label="Attention block size", elem_id="sd-block-size",
                    info="Tokens per block of queries and keys.", **slim,
                )  # fmt: skip
            with gr.Row():
                self.selection = gr.Dropdown(
                    [(label, name) for name, label in texts.SELECTIONS.items()], value="paper", label="Selection",
                    elem_id="sd-selection", info="How the blocks to keep are ranked.", **slim,
                )  # fmt: skip
                self.backend = gr.Dropdown(
                    _backends(), value="auto", label="Sparse attention backend", elem_id="sd-backend",
                    info="auto: the fastest on this machine.", **slim,
                )  # fmt: skip
                self.third = gr.Dropdown(
                    [("none", request.NO_BASELINE), *((label, name) for name, label in request.BASELINES.items())],
                    value=request.NO_BASELINE, label="Third lane", elem_id="sd-third",
                    info="A simpler pattern that keeps as many blocks.", **slim,
                )  # fmt: skip
            self.track = gr.Checkbox(
                value=False, label="Track the pattern", elem_id="sd-track",
                info="Selects afresh at four later steps, outside the clock.",
            )  # fmt: skip
        by_name: dict[str, Any] = {
            "steps": self.steps, "gen_length": self.gen_length, "block_length": self.block_length,
            "algorithm": self.algorithm, "temperature": self.temperature, "threshold": self.threshold,
            "cfg_scale": self.cfg_scale, "top_p": self.top_p, "select": self.select, "block_size": self.block_size,
        }  # fmt: skip
        self.following = {name: by_name[name] for name in FOLLOWING}

    def within(self, given: Mapping[str, Any], defaults: SamplerConfig) -> dict[str, Any]:
        """The values, those of the sliders moved into their ranges, as the browser does it with what is typed there."""
        values = dict(given)
        for name, (low, high) in RANGES.items():
            value = values.get(name)
            if name == "steps" and defaults.steps is not None:
                low, high = min(low, defaults.steps), max(high, defaults.steps)
            # What is no number is refused by `request.parse`, and so is one that is none.
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value:
                values[name] = min(max(value, low), high)
        return values

    def follow(self, asked: Request, given: Mapping[str, Any], touched: Collection[str]) -> dict[Any, Any]:
        """Updates of the components: what the visitor has not set (`touched`) moves to what the run will use, and
        what the algorithm does not have is switched off, with the reason.

        asked: the request, resolved. given: what the components of `request.FOLLOWING` hold, by name.
        """
        sampler = asked.sampler
        unused = request.unused(sampler, sampler)
        updates = {}
        for name, component in self.following.items():
            value = getattr(sampler if name in SAMPLER_FIELDS else asked.attention, name)
            update: dict[str, Any] = {}
            if name == "threshold":
                value = value or OFF
            if name not in touched and value != given[name]:
                update["value"] = value
                if name in ("gen_length", "block_length"):
                    update["choices"] = _numbers(value)
                if name == "steps":
                    update |= {"minimum": min(LEAST_STEPS, value), "maximum": max(MOST_STEPS, value)}
            if name in INFO:
                update |= {"interactive": name not in unused, "info": unused.get(name, INFO[name])}
            if name == "steps":
                update["info"] = STEPS_AT_MOST_INFO if asked.at_most else STEPS_INFO
            if update:
                updates[component] = gr.update(**update)
        return updates


def _backends() -> list[str]:
    """Those that may run here; torch, which would know exactly, is not loaded yet."""
    return list(request.BACKENDS if shutil.which("nvidia-smi") else request.CPU_BACKENDS)


def _numbers(*more: int | None) -> list[int]:
    """Lengths to choose from, with those that a model brings along."""
    return sorted({*GENERATIONS, *(number for number in more if number)})
