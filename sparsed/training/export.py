"""Turn a training run into a folder that ``sparsed.load`` reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer

from sparsed.files import draft, write
from sparsed.models.catalogue import find
from sparsed.models.families import SETTINGS
from sparsed.training.recipe import mini_config
from sparsed.training.tokenizer import MASK, save


def export(run: Path, tokenizer: Tokenizer, out: Path, after: Path | None = None) -> None:
    """Write config.json, tokenizer files, weights and the training record.

    Args:
        run: folder of a training run (model.safetensors, checkpoint.json, log.json).
        tokenizer: the tokenizer it was trained with.
        out: folder to write; made if missing.
        after: the training.json of the model whose weights the run began with; its runs are listed first.
    """
    out.mkdir(parents=True, exist_ok=True)
    save(tokenizer, out)
    spec = find("mini")
    assert spec is not None
    config = mini_config(tokenizer.get_vocab_size()).to_dict()
    config.update(
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        sparsed={
            "label": spec.label,
            "mask_token": MASK,
            "trained_length": spec.trained_length,
            **{name: getattr(spec.defaults, name) for name in SETTINGS},
        },
    )
    write(out / "config.json", json.dumps(config, indent=1, sort_keys=True) + "\n")
    with draft(out / "model.safetensors") as place:
        shutil.copyfile(run / "model.safetensors", place)
    state = json.loads((run / "checkpoint.json").read_text())
    record = {
        "recipe": state["recipe"],
        "processes": state["processes"],
        "steps": state["step"],
        "seconds": round(state["seconds"], 1),
        "plan": _run_lengths(state["plan"][: state["step"]]),
        "log": json.loads((run / "log.json").read_text()),
    }
    earlier = [] if after is None else json.loads(after.read_text("utf-8"))["runs"]
    whole = json.dumps({"runs": [*earlier, record]}, separators=(",", ":"))
    write(out / "training.json", whole + "\n")


def _run_lengths(plan: list[int]) -> dict[str, int]:
    """Steps taken at every row length."""
    return {str(length): plan.count(length) for length in sorted(set(plan))}
