"""How alike the patterns of heads and of steps are, over the questions of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsed.evaluation.answers import ask_batch, is_watched, own_share
from sparsed.evaluation.key import about, key_of
from sparsed.evaluation.plan import Cell, Plan, file_name
from sparsed.evaluation.reading import read_observations
from sparsed.evaluation.scores import Observation
from sparsed.parallel.crew import ALONE, Crew
from sparsed.results_folder import Folder, check_alike

if TYPE_CHECKING:
    from sparsed.models.model import Model

def observe(
    model: Model,
    cells: Sequence[Cell],
    out: Path,
    *,
    plan: Plan | None = None,
    shard: tuple[int, int] = (0, 1),
    crew: Crew = ALONE,
) -> None:
    """The paper's first two observations, on the cells' questions: append how alike the masks of two heads are, and
    how alike the mask at the switch and at four later steps, to ``out``/observations-*.jsonl. shard, crew: as for
    `evaluate`.
    """
    from tqdm import tqdm

    # They need numpy and torch.
    from sparsed.attention.analysis import mean_head_overlap
    from sparsed.denoising import denoise

    plan = plan or Plan()
    key = key_of(model, plan)
    check_alike(crew, key)
    folder = Folder(out, key, file_name(shard, crew), about(model))
    done = {(one.type, one.length, one.index) for one in read_observations(out)}
    unseen = {
        (place, index): int((cell.type, cell.length, index) not in done)
        for place, cell in enumerate(cells)
        for index in range(shard[0], cell.questions, shard[1])
    }
    work = [(cells[place], index) for place, indices in own_share(cells, unseen, crew).items() for index in indices]
    for cell, index in tqdm(work, desc="observations", unit="run", disable=not is_watched(crew)):
        ids = model.encode(ask_batch(model, cell, plan, index).text)
        plain = denoise(model, ids, sampler=plan.sampler, attention=plan.attention, backend=plan.backend)
        if plain.switch_step is None:
            raise ValueError("These runs never become sparse, so there is no pattern to observe; lower skip.")
        first, last = plain.switch_step, plain.total - 1
        steps = sorted({first + (last - first) * quarter // 4 for quarter in (1, 2, 3, 4)})
        run = denoise(
            model, ids, sampler=plan.sampler, attention=plan.attention, backend=plan.backend, probe_steps=steps
        )
        result = run.result()
        assert result.pattern is not None, "a run with a switch step has a pattern"
        later = [[step, float(run.probed[step].overlap(fresh).mean())] for step, fresh in sorted(run.probes.items())]
        ran: Any = result.info.record()
        seen = Observation(cell.type, cell.length, index, mean_head_overlap(result.pattern), later, ran)
        folder.add("observations", asdict(seen))
