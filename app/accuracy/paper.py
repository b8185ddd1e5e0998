"""What the SparseD paper (arXiv 2509.24014) reports of accuracy, to stand beside what was found on mini."""

from __future__ import annotations

from app.texts import PAPER

TASK = "RULER-4k"
# Model → method → percent right.
RULER_4K = {
    "LLaDA-1.5": {"Full attention": 90.45, "SparseD": 90.89, "dKV-Cache": 88.18, "Fast-dLLM": 86.64},
    "Dream-7B": {"Full attention": 90.13, "SparseD": 89.76, "dKV-Cache": 81.41, "Fast-dLLM": 81.68},
}


def table() -> str:
    """The rows as HTML of ours."""
    methods = list(next(iter(RULER_4K.values())))
    head = "".join(f'<th scope="col">{method}</th>' for method in methods)
    rows = "".join(
        f'<tr><th scope="row">{model}</th>{"".join(f"<td>{row[method]:.2f}</td>" for method in methods)}</tr>'
        for model, row in RULER_4K.items()
    )
    return (
        f'<table class="sd-paper-table"><caption>On large models, as <a href="{PAPER}" target="_blank" rel="noopener">'
        f"the paper</a> reports it: {TASK}, percent right. Not measured here.</caption>"
        f'<thead><tr><th scope="col">Model</th>{head}</tr></thead><tbody>{rows}</tbody></table>'
    )
