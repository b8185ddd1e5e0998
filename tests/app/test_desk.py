"""What visitors share, without a browser: loading, and who stays in memory."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import json
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app.engine.cost import SHORTEST_TOGETHER, Speed
from app.engine.local import SparsedEngine
from app.figures import timeline
from app.finished import views
from app.finished.animation import to_animation
from app.finished.replay import replay_value
from app.lanes import lanes_for, lanes_of
from app.race.request import OWN_TEXT, parse
from app.server import session
from app.server.desk import Desk
from app.server.journal import Journal
from app.server.limits import Limits
from app.server.session import WARMING_UP, perform
from app.server.shown import Shown
from app.server.visits import Visit
from sparsed.attention.layout import BlockLayout
from sparsed.config import FULL_ATTENTION
from sparsed.models import LoadError
from sparsed.turns import seat

GB = 10**9


class Watched:
    """The stand-in engine with models of 14 GB beside mini; what fails, waits and is free is set from outside."""

    def __init__(self, fake: Any, memory: int | None = 40 * GB) -> None:
        self._fake = fake
        self.free = memory
        self.failing: dict[str, Exception] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.fetched: list[str] = []
        self.loaded: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fake, name)

    def memory(self, model: Any = None) -> int | None:
        return self.free

    def fetch(self, name: str, progress: Callable[[Any], None]) -> None:
        self.fetched.append(name)
        progress("downloading: 3.2 of 14.0 GB, file 2 of 6")
        self.gate.wait(10)

    def load(self, name: str, progress: Callable[[Any], None]) -> Any:
        progress("reading weights: 1.0 of 14.0 GB, file 1 of 6")
        if name in self.failing:
            raise self.failing[name]
        self.loaded.append(name)
        if self.free is not None and name != "mini":
            self.free -= 14 * GB
        return self._fake.load(name, lambda _: None)

    def shape(self, model: Any) -> Any:
        return replace(self._fake.shape(model), weight_bytes=10**6 if model.name == "mini" else 14 * GB)


@pytest.fixture
def make_engine(fake_engine: Any) -> Callable[..., Watched]:
    """memory → an engine."""
    return lambda memory=40 * GB: Watched(fake_engine.FakeEngine(pace=0.0, load_seconds=0.0), memory)


def desk_of(engine: Any) -> Desk:
    desk = Desk(engine, "mini", Limits())
    desk.models.load("mini")
    return desk


def asked_of(desk: Desk, model: str = "mini") -> Any:
    return parse(
        model=model, kind="about", length="short_context", question=0, text="", seed=0, backend="auto",
        defaults=desk.models.defaults(model), models=desk.engine.models(), kinds=["about"],
        lengths=desk.engine.lengths(),
    )  # fmt: skip


def with_third(asked: Any, third: str | None) -> Any:
    """The same request with a third lane of this pattern."""
    return replace(asked, lanes=lanes_for(asked.attention, [third] if third else []))


def test_a_failed_load_is_one_sentence_and_leaves_the_others_alone(make_engine) -> None:
    engine = make_engine()
    desk = desk_of(engine)
    desk.models.load("dreamer")
    engine.failing["slowpoke"] = LoadError("Slowpoke-7B has no safetensors.")
    with pytest.raises(LoadError, match="^Slowpoke-7B has no safetensors.$"):
        desk.models.load("slowpoke")
    assert desk.models.loaded("mini") and desk.models.loaded("dreamer") and desk.models.loaded("slowpoke") is None
    del engine.failing["slowpoke"]
    assert desk.models.load("slowpoke").name == "slowpoke"  # the next request tries again


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (KeyError("model.norm"), r"^Slowpoke-7B could not be loaded \(KeyError: 'model.norm'\)\.$"),
        (RuntimeError("[enforce fail] can't allocate memory: 17 bytes"), "ran out of memory"),
        (MemoryError(), "ran out of memory"),
        (OSError("Disk full"), r"^Slowpoke-7B could not be loaded \(OSError: Disk full\)\.$"),
    ],
)
def test_whatever_a_load_raises_becomes_a_sentence(make_engine, error: Exception, says: str) -> None:
    engine = make_engine()
    desk = desk_of(engine)
    engine.failing["slowpoke"] = error
    with pytest.raises(LoadError, match=says):
        desk.models.load("slowpoke")


def test_who_asks_for_the_same_model_waits_for_the_same_loading(make_engine) -> None:
    engine = make_engine()
    desk = desk_of(engine)
    engine.gate.clear()
    jobs = {desk.models.loading("dreamer") for _ in range(5)}
    assert len(jobs) == 1 and desk.models.under_way("dreamer") in jobs
    # The default model is not held up by somebody else's download.
    assert desk.models.loading("mini").over
    engine.gate.set()
    assert {job.result().name for job in jobs} == {"dreamer"} and engine.fetched == ["dreamer"]
    assert desk.models.under_way("dreamer") is None


def test_what_cannot_fit_is_marked_and_not_downloaded(make_engine) -> None:
    engine = make_engine(memory=24 * GB)
    desk = desk_of(engine)
    assert desk.models.too_large("giant") == "200.0 GB of weights, 24.0 GB of memory"
    assert desk.models.too_large("dreamer") == desk.models.too_large("mini") == ""
    with pytest.raises(LoadError, match="Giant-100B does not fit"):
        desk.models.load("giant")
    assert engine.fetched == []
    engine.free = None  # where the system does not say
    assert desk.models.too_large("giant") == ""


def test_the_default_model_and_the_newest_other_stay(make_engine) -> None:
    engine = make_engine()
    desk = desk_of(engine)
    desk.models.load("dreamer")
    desk.models.load("slowpoke")
    assert desk.models.loaded("mini") and desk.models.loaded("slowpoke") and desk.models.loaded("dreamer") is None


def test_a_model_that_a_run_uses_is_freed_when_the_run_is_over(make_engine) -> None:
    engine = make_engine()
    desk = desk_of(engine)
    desk.models.load("dreamer")
    release = desk.models.hold("dreamer")
    desk.models.load("slowpoke")
    assert desk.models.loaded("dreamer") and desk.models.loaded("slowpoke")
    release()
    release()
    assert desk.models.loaded("dreamer") is None and desk.models.loaded("slowpoke")


def test_where_memory_is_short_the_old_model_goes_first_unless_a_run_uses_it(make_engine) -> None:
    engine = make_engine(memory=20 * GB)
    desk = desk_of(engine)
    desk.models.load("dreamer")
    release = desk.models.hold("dreamer")
    assert desk.models.too_large("slowpoke") == ""
    with pytest.raises(LoadError, match="no room for Slowpoke-7B while a run uses Dreamer-7B"):
        desk.models.load("slowpoke")
    assert desk.models.loaded("dreamer") and "slowpoke" not in engine.loaded
    release()
    assert desk.models.loaded("dreamer") is None
    engine.free = 20 * GB
    assert desk.models.load("slowpoke").name == "slowpoke"


def test_a_model_without_a_chat_template_is_measured_too(make_engine) -> None:
    engine = make_engine()

    def no_template(*_: Any) -> Any:
        raise ValueError("This tokenizer has no chat template.")

    engine.build_prompt = no_template
    assert desk_of(engine).models.load("dreamer").speed is not None


def collect(desk: Desk, visit: Visit, asked: Any, act: Callable[[Shown], None] = lambda _: None) -> list[Shown]:
    async def run() -> list[Shown]:
        seen = []
        async for shown in perform(desk, visit, asked):
            seen.append(shown)
            act(shown)
        return seen

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, run()).result(timeout=30)


def test_a_run_shows_the_loading_and_then_runs(make_engine) -> None:
    engine = make_engine()
    desk, visit = desk_of(engine), Visit()
    engine.gate.clear()

    def act(shown: Shown) -> None:
        if shown.loading.startswith("downloading"):
            engine.gate.set()

    seen = collect(desk, visit, asked_of(desk, "dreamer"), act)
    first = seen[0]
    assert first.stage["state"] == "loading" and first.loading == "downloading: 3.2 of 14.0 GB, file 2 of 6"
    assert first.stage["message"] == f"Dreamer-7B · {first.loading}"
    assert [shown.loaded.name for shown in seen if shown.loaded] == ["dreamer"]
    assert seen[-1].over and seen[-1].stage["state"] == "done"
    assert visit.race is None and not desk.models.held("dreamer")


def test_a_third_lane_runs_in_turns_with_the_others(make_engine) -> None:
    engine = make_engine()
    desk = desk_of(engine)
    asked = with_third(asked_of(desk), "random")
    calls: list[Any] = []
    denoise = engine.denoise

    def noted(model: Any, prompt: str, sampler: Any, attention: Any, *more: Any) -> Any:
        calls.append((sampler, attention, more))
        return denoise(model, prompt, sampler, attention, *more)

    engine.denoise = noted
    seen = collect(desk, Visit(), asked)
    (sampler, full, _), (_, ours, _), (_, theirs, more) = calls
    assert full.dense and {one for one, _, _ in calls} == {sampler} and more == ("auto", (), None, None)
    assert (ours.method, theirs.method) == ("sparsed", "random") and ours.keep_importance
    assert replace(ours, keep_importance=False, method="random") == theirs
    # Three canvases from the first picture on, each step once, and the verdicts of each lane.
    assert {tuple(lane["key"] for lane in shown.stage["lanes"]) for shown in seen} == {("dense", "sparse", "baseline")}
    last = seen[-1].stage
    assert [lane["step"] for lane in last["lanes"]] == [asked.steps] * 3
    assert [lane["right"] for lane in last["lanes"]] == [True, True, False] and last["lanes"][2]["same"] is not None
    sent = sorted((one["lane"], one["step"]) for shown in seen for one in shown.stage["steps"])
    assert sent == sorted((key, n + 1) for key in ("dense", "sparse", "baseline") for n in range(asked.steps))
    lines = timeline.timeline(seen[-1].times)["data"][:3]
    assert [line["name"] for line in lines] == ["Full attention", "SparseD", "Random blocks"]
    assert not len(desk.queue)


def test_a_run_that_selects_again_shows_its_newest_pattern(fake_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SELECTED_SECONDS", 0.0)
    desk = desk_of(fake_engine.FakeEngine(pace=0.3, load_seconds=0.0, keeps=True))
    asked = parse(
        model="mini", kind="about", length="short_context", question=0, text="", seed=5, backend="auto", steps=8,
        gen_length=32, block_length=32, skip=0.0, refresh=3, generation_rows="full", block_size=32,
        defaults=desk.models.defaults("mini"), models=desk.engine.models(), kinds=["about"],
        lengths=desk.engine.lengths(),
    )  # fmt: skip
    visit = Visit()
    told: list[tuple[int, str]] = []

    def look(shown: Shown) -> None:
        assert (shown.selected is not None) == (shown.stage["selected"] > max((step for step, _ in told), default=0))
        if shown.selected is not None:
            assert shown.selected is visit.selected
            told.append((shown.stage["selected"], views.which(visit.selected, selected=visit.selected_in)))
            patterns.append(shown.selected)

    patterns: list[Any] = []
    last = collect(desk, visit, asked, look)[-1]
    # A machine that is busy may show fewer of them, in their order.
    assert len(told) > 1 and {step for step, _ in told} <= {1, 4, 7}
    for step, said in told:
        assert f"its blocks were selected in step {step}." in said
    tokens = patterns[0].layout.prompt_length
    for (step, _), pattern in zip(told, patterns, strict=True):
        number = (1, 4, 7).index(step)
        layout = BlockLayout(tokens + 32, tokens, 32)
        made = fake_engine.Pattern(layout, asked.resolve(tokens).attention.select, 5 + 2 * number, pattern.full_blocks)
        assert pattern.full_blocks == layout.generation_query_blocks
        for layer in range(fake_engine.LAYERS):
            assert (pattern.mask(layer)[0] == made.mask(layer, slice(None))).all()
    # The record holds the last one, however often it was looked at.
    assert last.kept is not None and last.kept.selected == (1, 4, 7)
    final = fake_engine.Pattern(BlockLayout(tokens + 32, tokens, 32), patterns[0].select, 9, patterns[0].full_blocks)
    assert (last.kept.pattern.mask(2)[0] == final.mask(2, slice(None))).all()


@pytest.mark.parametrize(("count", "devices"), [(4, 1), (5, 1), (5, 3)])
def test_more_lanes_race_like_three(fake_engine: Any, count: int, devices: int, tmp_path: Path) -> None:
    desk, visit = desk_of_two(fake_engine, devices, pace=0.002), Visit()
    few = asked_of(desk)
    others = [replace(few.attention, method=method) for method in ("random", "shared", "streaming_llm")]
    asked = replace(few, lanes=lanes_of([FULL_ATTENTION, few.attention, *others][:count]))
    loaded = desk.models.load("mini")
    estimated = desk.speed.estimate(loaded, asked.resolve(250), 250)
    assert estimated is not None and len(estimated.lanes) == count
    assert len(desk.speed.places(loaded, asked, 250).copies) == devices
    shown = collect(desk, visit, asked)
    last, keys = shown[-1].stage, [lane.key for lane in asked.lanes]
    assert last["state"] == "done"
    assert all([lane["key"] for lane in one.stage["lanes"]] == keys for one in shown)
    sent = sorted((one["lane"], one["step"]) for one in shown for one in one.stage["steps"])
    assert sent == sorted((key, n + 1) for key in keys for n in range(asked.steps))
    # Each is compared with full attention; the baselines of the stand-in get every third word wrong.
    alike = [lane["same"] and lane["same"]["text"] == "100\u00a0%" for lane in last["lanes"]]
    assert alike == [None, True, *[False] * (count - 2)]
    assert [lane["speedup"] is None for lane in last["lanes"]] == [True, *[False] * (count - 1)]
    assert len({lane["style"] for lane in last["lanes"]}) == len({lane["label"] for lane in last["lanes"]}) == count
    assert len(timeline.timeline(shown[-1].times)["data"]) == 2 * count
    run = shown[-1].kept
    assert run is not None and [lane.key for lane in run.lanes] == keys
    value = replay_value(run.trace)
    assert [lane["text"] for lane in value["lanes"]] == [lane["text"] for lane in last["lanes"]]
    assert value["mode"] == last["mode"] and value["speedup"] == last["speedup"]
    to_animation(run.trace, tmp_path / "race.webp", seconds=3)
    with Image.open(tmp_path / "race.webp") as picture:
        assert picture.width == 960 + 320 * (count - 2)


def test_what_a_third_lane_cannot_do_ends_the_others(make_engine) -> None:
    engine = make_engine()
    desk = desk_of(engine)
    asked = with_third(asked_of(desk), "shared")
    made: list[Any] = []
    denoise = engine.denoise

    def failing(model: Any, prompt: str, sampler: Any, attention: Any, *more: Any) -> Any:
        if attention.method == "shared":
            raise ValueError("No such pattern here.")
        made.append(denoise(model, prompt, sampler, attention, *more))
        return made[-1]

    engine.denoise = failing
    last = collect(desk, Visit(), asked)[-1]
    assert last.over and (last.stage["state"], last.stage["message"]) == ("refused", "No such pattern here.")
    assert [run.closed for run in made] == [True, True] and not len(desk.queue) and len(last.stage["lanes"]) == 3


def test_a_third_lane_counts_in_the_estimate(make_engine) -> None:
    desk = desk_of(make_engine())
    loaded = desk.models.load("mini")
    asked = asked_of(desk).resolve(250)
    two, three = (desk.speed.estimate(loaded, with_third(asked, third), 250) for third in (None, "random"))
    assert two is not None and three is not None
    assert three.seconds == pytest.approx(two.seconds + two.lanes["sparse"]) and three.memory > two.memory


@pytest.mark.parametrize(("place", "times"), [("GPU · bfloat16", 1), ("CPU · float32", 0)])
def test_warming_up_is_shown_where_kernels_are_compiled(make_engine, place: str, times: int) -> None:
    engine = make_engine()
    engine.place = lambda _model: place
    desk = desk_of(engine)
    seen = collect(desk, Visit(), asked_of(desk, "dreamer"))
    messages = [shown.stage["message"] for shown in seen]
    assert messages.count(WARMING_UP) == times
    assert seen[-1].stage["state"] == "done"
    if times:
        # Before any step was made.
        assert all(shown.times is None for shown in seen[: messages.index(WARMING_UP) + 1])


def test_a_closed_tab_keeps_its_place_until_the_device_is_warm(make_engine) -> None:
    engine = make_engine()
    desk, visit = desk_of(engine), Visit()
    asked = asked_of(desk, "dreamer")
    desk.models.load("dreamer")
    begun, go_on = threading.Event(), threading.Event()
    denoise = engine.denoise

    def slow(*given: Any) -> Any:
        run = denoise(*given)
        run.warm_up = lambda: (begun.set(), go_on.wait(10))
        return run

    engine.denoise = slow

    async def scenario() -> list[int]:
        async def watch() -> None:
            async for _ in perform(desk, visit, asked):
                pass

        watching = asyncio.create_task(watch())
        await asyncio.to_thread(begun.wait, 10)
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        places = [len(desk.queue)]
        go_on.set()
        for _ in range(100):
            await asyncio.sleep(0.05)
            if not len(desk.queue):
                break
        return [*places, len(desk.queue)]

    with ThreadPoolExecutor(1) as alone:  # Playwright has a loop in the main thread
        assert alone.submit(asyncio.run, scenario()).result() == [1, 0]
    assert not desk.models.held("dreamer") and not visit.running


def test_stop_ends_the_waiting_and_the_loading_goes_on(make_engine) -> None:
    engine = make_engine()
    desk, visit = desk_of(engine), Visit()
    engine.gate.clear()
    seen = collect(desk, visit, asked_of(desk, "dreamer"), lambda _: visit.stop())
    assert [shown.over for shown in seen] == [False, True] and seen[-1].stage["state"] == "stopped"
    assert "Dreamer-7B goes on loading" in seen[-1].stage["message"]
    job = desk.models.under_way("dreamer")
    assert job is not None and not desk.models.held("dreamer")
    # Meanwhile the model that was there before runs.
    assert collect(desk, Visit(), asked_of(desk))[-1].stage["state"] == "done"
    engine.gate.set()
    assert job.result().name == "dreamer"


def test_a_run_whose_model_fails_to_load_ends_with_the_sentence(make_engine) -> None:
    engine = make_engine()
    desk = desk_of(engine)
    engine.failing["slowpoke"] = LoadError("There is no network.")
    last = collect(desk, Visit(), asked_of(desk, "slowpoke"))[-1]
    assert last.over and (last.stage["state"], last.stage["message"]) == ("refused", "There is no network.")
    assert not desk.models.held("slowpoke")


def test_a_run_with_a_threshold_ends_early(make_engine) -> None:
    desk = desk_of(make_engine())
    asked = asked_of(desk)
    asked = replace(asked, sampler=replace(asked.sampler, threshold=0.9))
    seen = collect(desk, Visit(), asked)
    dense, sparse = seen[-1].stage["lanes"]
    assert seen[-1].stage["state"] == "done" and (dense["step"], dense["total"]) == (11, 64)
    assert sparse["phases"] == [["dense", 1, 11]]
    assert seen[-1].stage["notes"] == ["SparseD: This run never became sparse: it was done after 11 steps."]
    assert [lane["never_sparse"] for lane in seen[-1].stage["lanes"]] == [False, True]
    full, ours = (lane["info"] for lane in seen[-1].stage["lanes"])
    assert (full["phases"], full["attention"]) == ({"dense": 11, "select": 0, "sparse": 0}, {"method": "dense"})
    assert (ours["forwards"], ours["total"], ours["switch_step"]) == (11, ours["sampler"]["steps"], None)
    assert ours["notes"] == ["This run never became sparse: it was done after 11 steps."]
    assert seen[-1].stage["agreement"]["detail"].endswith("; SparseD was never sparse")
    assert timeline.timeline(seen[-1].times)["layout"]["shapes"] == []


def test_the_engines_protocol_is_what_the_page_uses(make_engine) -> None:
    """The stand-in has every method of the protocol, and so has the engine."""
    from app.engine.interface import Engine as Protocol
    from app.engine.local import SparsedEngine

    wanted = {name for name in vars(Protocol) if not name.startswith("_")}
    assert "copies" in wanted
    for engine in (make_engine(), SparsedEngine("mini")):
        assert all(hasattr(engine, name) for name in wanted)


def test_the_list_has_the_whole_catalogue_and_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    from app.engine.local import SparsedEngine
    from sparsed.models.catalogue import CATALOGUE

    monkeypatch.setattr("sparsed.models.numbers.find_spec", lambda _: None)  # with torchao there are more rows
    names = {spec.name for spec in CATALOGUE}
    assert set(SparsedEngine("mini").models()) == names
    folder = SparsedEngine("/somewhere/my-model").models()
    assert set(folder) == {*names, "/somewhere/my-model"}
    assert folder["/somewhere/my-model"].label == "my-model" and folder["/somewhere/my-model"].bundled
    # A Hub id of the catalogue is no second model.
    by_id = SparsedEngine("GSAI-ML/LLaDA-1.5").models()
    assert by_id["GSAI-ML/LLaDA-1.5"].label == "LLaDA-1.5 (8B)" and len(by_id) == len(names)


# ---------------------------------------------------------------- strangers


def journal_of(desk: Desk) -> list[dict[str, Any]]:
    """The lines that the journal of this desk has written."""
    return [json.loads(line) for line in desk.written.getvalue().splitlines()]  # type: ignore[attr-defined]


def desk_with_journal(engine: Any, **limits: Any) -> Desk:
    written = io.StringIO()
    desk = Desk(engine, "mini", Limits(**limits), Journal(written))
    desk.written = written  # type: ignore[attr-defined]
    desk.models.load("mini")
    return desk


def own_text(desk: Desk, text: str) -> Any:
    return replace(asked_of(desk), kind=OWN_TEXT, text=text)


def test_every_run_leaves_one_line_that_says_how_it_ended(make_engine) -> None:
    engine = make_engine()
    desk = desk_with_journal(engine)
    engine.failing["slowpoke"] = LoadError("There is no network.")
    collect(desk, Visit(), asked_of(desk))
    collect(desk, Visit(), own_text(desk, "a secret kaboom"))
    visit = Visit()
    collect(desk, visit, asked_of(desk), lambda shown: visit.stop() if shown.times else None)
    collect(desk, Visit(), asked_of(desk, "slowpoke"))
    desk.speed.limits = replace(desk.speed.limits, max_tokens=100)
    collect(desk, Visit(), asked_of(desk))
    lines = [line for line in journal_of(desk) if line["event"] == "run"]
    assert [line["state"] for line in lines] == ["done", "failed", "stopped", "refused", "refused"]
    assert lines[0]["right"] == [True, True] and lines[0]["tokens"] == 252 and lines[0]["via"] == "page"
    assert lines[1]["error"] == "RuntimeError" and lines[1]["kind"] == "own"
    assert not any("secret" in json.dumps(line) for line in lines)


def test_the_state_is_loading_until_the_default_model_is_there(make_engine) -> None:
    desk = Desk(make_engine(), "mini", Limits())
    assert (desk.status().state, desk.status().models) == ("loading", ())
    desk.models.load("mini")
    assert (desk.status().state, desk.status().models) == ("ok", ("mini",))


def test_a_full_line_is_a_sentence_and_a_line_in_the_journal(make_engine) -> None:
    desk = desk_with_journal(make_engine(), max_waiting=1)
    place = desk.queue.join()
    last = collect(desk, Visit(), asked_of(desk))[-1]
    assert last.stage["state"] == "refused" and "Please try again in a few minutes." in last.stage["message"]
    assert journal_of(desk)[-1]["state"] == "full"
    place.leave()
    assert collect(desk, Visit(), asked_of(desk))[-1].stage["state"] == "done"


def test_whoever_waits_is_told_his_place_and_about_how_long(make_engine) -> None:
    desk = desk_of(make_engine())
    places = [desk.queue.join(30.0), desk.queue.join(40.0)]
    waited: list[Shown] = []

    def act(shown: Shown) -> None:
        if shown.stage["state"] == "waiting":
            waited.append(shown)
            places[len(waited) - 1].leave()

    assert collect(desk, Visit(), asked_of(desk), act)[-1].stage["state"] == "done"
    first = waited[0]
    assert first.stage["message"] == "Waiting for the device: 2 runs are before yours, about 1 min."
    assert first.position == 2 and first.wait == pytest.approx(70, abs=1)
    assert waited[1].stage["message"].startswith("Waiting for the device: one run is before yours, about ")


def test_a_page_runs_one_race_at_a_time(make_engine) -> None:
    desk, visit = desk_of(make_engine()), Visit()
    seen: list[Shown] = []

    def act(shown: Shown) -> None:
        if not seen:
            seen.append(shown)
            seen.extend(collect(desk, visit, asked_of(desk)))

    assert collect(desk, visit, asked_of(desk), act)[-1].stage["state"] == "done"
    assert seen[-1].stage["state"] == "refused" and "A run of this page is going on" in seen[-1].stage["message"]
    assert not visit.running


def test_a_server_that_is_stopped_ends_its_runs_and_says_why(fake_engine: Any) -> None:
    engine = Watched(fake_engine.FakeEngine(pace=0.05, load_seconds=0.0))
    desk = desk_with_journal(engine)
    waiting = threading.Thread(target=lambda: told.append(collect(desk, Visit(), asked_of(desk))[-1]))
    told: list[Shown] = []

    def act(shown: Shown) -> None:
        if shown.times is not None and not desk.closing:
            waiting.start()
            while len(desk.queue) < 2:
                time.sleep(0.01)
            assert desk.status().state == "ok" and (desk.status().running, desk.status().waiting) == (1, 1)
            desk.close()

    last = collect(desk, Visit(), asked_of(desk), act)[-1]
    waiting.join(10)
    assert last.stage["state"] == "stopped" and last.stage["message"].startswith("This server is being stopped")
    assert last.stage["lanes"][0]["step"] < 64 and told[0].stage["message"].startswith("This server is being stopped")
    assert desk.quiet and desk.status().state == "stopping"
    late = collect(desk, Visit(), asked_of(desk))[-1]
    assert late.stage["state"] == "refused" and "Please try again in a minute" in late.stage["message"]


def test_a_run_that_takes_longer_than_announced_is_ended(fake_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Watched(fake_engine.FakeEngine(pace=0.2, load_seconds=0.0))
    desk = desk_with_journal(engine)
    monkeypatch.setattr(Limits, "announced", lambda *_: 0.3)
    last = collect(desk, Visit(), asked_of(desk))[-1]
    assert last.stage["state"] == "stopped" and "Ended: it took longer than" in last.stage["message"]
    assert "What was written so far stays here" in last.stage["message"] and last.stage["lanes"][0]["step"] < 64
    assert journal_of(desk)[-1]["state"] == "overdue" and len(desk.queue) == 0


def test_what_a_visit_kept_waits_for_a_reload_and_is_freed_then(
    fake_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = desk_of(fake_engine.FakeEngine(pace=0.0, load_seconds=0.0, keeps=True))
    visit = desk.visits.of("one")
    kept = collect(desk, visit, asked_of(desk))[-1].kept
    gone, key = weakref.ref(kept), kept.key
    assert desk.visits.kept(key) is kept
    del kept
    desk.visits.leave("one")
    del visit
    assert desk.visits.kept(key) is gone()
    now = time.monotonic
    monkeypatch.setattr("app.server.visits.time.monotonic", lambda: now() + 901)
    assert desk.visits.kept(key) is None
    gc.collect()
    assert gone() is None and desk.visits.kept(key) is None


def test_runs_of_programs_are_kept_for_a_while_and_not_too_many(
    fake_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = desk_of(fake_engine.FakeEngine(pace=0.0, load_seconds=0.0, keeps=True))
    kept = collect(desk, Visit(), asked_of(desk))[-1].kept
    runs = [replace(kept, key=f"key-{number}") for number in range(36)]
    for run in runs:
        desk.visits.remember_call(replace(run))
    assert [desk.visits.kept(run.key) is not None for run in runs] == [False] * 4 + [True] * 32
    last, now = weakref.ref(desk.visits.kept(runs[-1].key)), time.monotonic
    monkeypatch.setattr("app.server.visits.time.monotonic", lambda: now() + 901)
    assert not any(desk.visits.kept(run.key) for run in runs) and last() is None


def test_only_listed_models_may_be_loaded_unless_any_may(tmp_path: Any) -> None:
    for name in ("owner/name", "../../etc", "/etc", "file:///etc/passwd", "https://x.y/z", "mini/../..", "a" * 500):
        with pytest.raises(ValueError, match="is not one of mini, .*--allow-any-model"):
            SparsedEngine().admit(name)
    engine = SparsedEngine(any_model=True)
    for name in ("../no such", "/no such", "file:///etc/passwd", "https://x.y/z", "a/b/c", "", " ", "a/b c", "\0"):
        with pytest.raises(ValueError, match="no Hub id .* and no model's folder"):
            engine.admit(name)
    assert list(engine.models()) == list(SparsedEngine().models())
    engine.admit("owner/name")
    with pytest.raises(ValueError, match="no model's folder"):
        engine.admit(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    engine.admit(str(tmp_path))
    assert not engine.models()["owner/name"].bundled and engine.models()[str(tmp_path)].bundled


def test_a_visit_s_next_estimate_is_what_its_run_took(fake_engine: Any) -> None:
    desk, visit = desk_of(fake_engine.FakeEngine(pace=0.01, load_seconds=0.0)), Visit()
    asked = asked_of(desk)
    stage = collect(desk, visit, asked)[-1].stage
    loaded, tokens = desk.models.loaded("mini"), stage["lanes"][0]["positions"] - asked.gen_length
    resolved = asked.resolve(tokens)
    before = desk.speed.estimate(loaded, resolved, tokens)
    learned = visit.measured.applied(before, loaded, resolved, tokens)
    spent = {lane["key"]: lane["seconds"] for lane in stage["lanes"]}
    # What passed between the steps has the same share of each lane.
    shares = {key: learned.lanes[key] / seconds for key, seconds in spent.items()}
    assert learned.seconds >= 0.999 * sum(spent.values()) and shares["dense"] == pytest.approx(shares["sparse"], 1e-2)
    assert Visit().measured.applied(before, loaded, resolved, tokens) == before


def test_a_machine_that_was_busy_when_it_was_measured_is_taken_for_faster_later(make_engine) -> None:
    desk = desk_of(make_engine())
    desk.models.set_speed("mini", Speed(4e-5, 4e-8))
    desk.speed.learn("mini", 1000, [0.01] * 2)  # too few to tell
    desk.speed.learn("mini", 1000, [0.2] * 9)  # busy now
    desk.speed.learn("mini", 1000, [0.07] * 9)  # about as expected
    desk.speed.learn("unknown", 1000, [0.01] * 9)
    assert desk.models.load("mini").speed == Speed(4e-5, 4e-8)
    desk.speed.learn("mini", 1000, [0.5, 0.02, 0.02, 0.02, 0.01])
    assert desk.models.load("mini").speed.step(1000) == pytest.approx(0.02)
    # Both parts alike: a step at another length is as much faster.
    assert desk.models.load("mini").speed.step(4000) == pytest.approx(Speed(1e-5, 1e-8).step(4000))


# ---------------------------------------------------------------- several devices


LONG = Speed(per_token=1e-3, per_pair=0.0)  # 250 ms over 250 tokens
SHORT = Speed(per_token=1e-6, per_pair=0.0)


def desk_of_two(fake_engine: Any, devices: int = 2, speed: Speed | None = LONG, pace: float = 0.0) -> Desk:
    engine = fake_engine.FakeEngine(pace=pace, load_seconds=0.0, keeps=True, devices=devices)
    engine.speed = lambda model: speed
    return desk_with_journal(engine)


def places_of(desk: Desk, third: str | None = None) -> Any:
    return desk.speed.places(desk.models.load("mini"), with_third(asked_of(desk), third), 250)


def test_each_lane_has_a_device_of_its_own_where_there_are_some(fake_engine: Any) -> None:
    alone, two, three = (desk_of_two(fake_engine, devices) for devices in (1, 2, 3))
    assert [len(places_of(desk).copies) for desk in (alone, two, three)] == [1, 2, 2]
    assert [len(places_of(desk, third="random").copies) for desk in (alone, two, three)] == [1, 2, 3]
    assert [places_of(desk).why for desk in (alone, two, three)] == ["", "", ""]
    for desk in (alone, two, three):
        model = desk.models.load("mini").model
        assert places_of(desk, third="random").copies == (model, *model.others)
    estimates = [desk.speed.estimate(desk.models.load("mini"), asked_of(desk), 250) for desk in (alone, two)]
    assert estimates[0].seconds == sum(estimates[0].lanes.values())
    assert estimates[1].seconds == max(estimates[0].lanes.values())


def test_short_steps_take_turns_and_the_page_says_why(fake_engine: Any) -> None:
    desk = desk_of_two(fake_engine, speed=SHORT)
    places = places_of(desk)
    assert len(places.copies) == 1 and "steps this short would hold each other up" in places.why
    # With guidance a step has twice the rows.
    loaded, asked = desk.models.load("mini"), asked_of(desk)
    edge = Speed(0.75 * SHORTEST_TOGETHER / (250 + asked.gen_length), 0.0)
    loaded = replace(loaded, speed=edge)
    guided = replace(asked, sampler=replace(asked.sampler, cfg_scale=1.0))
    assert [len(desk.speed.places(loaded, one, 250).copies) for one in (asked, guided)] == [1, 2]


def test_without_a_speed_lanes_take_turns(fake_engine: Any) -> None:
    desk = desk_of_two(fake_engine)
    places = desk.speed.places(replace(desk.models.load("mini"), speed=None), asked_of(desk), 250)
    assert len(places.copies) == 1 and "not known yet" in places.why


def test_a_device_without_room_for_the_race_is_left_out(fake_engine: Any) -> None:
    desk = desk_of_two(fake_engine, devices=3)
    model = desk.models.load("mini").model
    free = {0: GB, 1: 10**5, 2: GB}
    desk.engine.memory = lambda one=None: GB if one is None else free[one.number]
    third = places_of(desk, third="random")
    assert [copy.number for copy in third.copies] == [0, 2] and third.why == ""
    assert [copy.number for copy in places_of(desk).copies] == [0, 2]
    free[2] = 10**5
    places = places_of(desk)
    assert places.copies == (model,) and "does not fit on a second one" in places.why
    # What is free on the others limits nothing; what is free on the first does.
    assert desk.speed.room(desk.models.load("mini")).memory == GB


def steps_at_once(shown: list[Shown]) -> set[str]:
    return {one.stage["mode"]["name"] for one in shown if one.stage["mode"] is not None}


@pytest.mark.parametrize(("third", "devices"), [(None, 2), ("random", 2), ("random", 3)])
def test_a_race_on_several_devices_runs_and_leaves_the_truth(fake_engine: Any, third: Any, devices: int) -> None:
    desk, visit = desk_of_two(fake_engine, devices), Visit()
    lanes, used = (2 if third is None else 3), []
    denoise = desk.engine.denoise
    met = threading.Barrier(2, timeout=20)

    def noted(model: Any, *more: Any) -> Any:
        run = denoise(model, *more)
        used.append(model.number)
        # Their first steps meet: the lanes of the first two devices do run at the same time.
        if len(used) <= 2:
            step = run._step
            run._step = lambda: (met.wait() if not run.steps else None, step())[1]
        return run

    desk.engine.denoise = noted
    shown = collect(desk, visit, with_third(asked_of(desk), third))
    last = shown[-1]
    assert last.stage["state"] == "done", last.stage["message"]
    assert used == [seat(lane, devices) for lane in range(lanes)] and steps_at_once(shown) == {"together"}
    kept = last.kept
    assert kept is not None and [lane.device for lane in kept.trace.lanes.values()] == used
    assert replay_value(kept.trace)["mode"] == last.stage["mode"]
    assert len(desk.queue) == 0


def test_a_race_of_short_steps_takes_turns_on_the_first_device(fake_engine: Any) -> None:
    desk, visit, used = desk_of_two(fake_engine, speed=SHORT), Visit(), []
    denoise = desk.engine.denoise
    desk.engine.denoise = lambda model, *more: (used.append(model.number), denoise(model, *more))[1]
    last = collect(desk, visit, asked_of(desk))[-1]
    assert last.stage["state"] == "done" and used == [0, 0]
    assert last.stage["mode"]["name"] == "turns" and "this short" in last.stage["mode"]["text"]
    assert [lane.device for lane in last.kept.trace.lanes.values()] == [0, 0]


LOST = "Process 2 of 2, which held a share of the model, is gone."


def test_what_is_lost_ends_the_run_that_waits_for_it_and_no_other_begins(make_engine) -> None:
    engine, stuck, free = make_engine(), threading.Event(), threading.Event()
    desk = desk_with_journal(engine)
    denoise = engine.denoise

    def waiting(*given: Any) -> Any:
        """A run whose second step waits, as on a GPU for a process that is gone."""
        run = denoise(*given)
        real = type(run).__next__

        class Waiting(type(run)):
            def __next__(self) -> Any:
                if len(self.steps) == 1:
                    stuck.set()
                    free.wait(20)
                return real(self)

        run.__class__ = Waiting
        return run

    engine.denoise = waiting
    losing = threading.Thread(target=lambda: (stuck.wait(10), desk.lose(LOST)))
    losing.start()
    try:
        last = collect(desk, Visit(), asked_of(desk))[-1]
        losing.join()
        assert last.over and last.stage["state"] == "failed" and last.stage["message"] == LOST
        assert desk.status().state == "lost"
        refused = collect(desk, Visit(), asked_of(desk))[-1]
        assert (refused.stage["state"], refused.stage["message"]) == ("refused", LOST)
        lines = journal_of(desk)
        assert [line["message"] for line in lines if line["event"] == "lost"] == [LOST]
        assert [line["error"] for line in lines if line["event"] == "run"] == ["TeamLost", ""]
    finally:
        free.set()


def test_what_is_lost_while_lanes_are_lined_up_ends_the_waiting(make_engine) -> None:
    engine, begun, free = make_engine(), threading.Event(), threading.Event()
    desk = desk_of(engine)
    denoise = engine.denoise

    def slow(*given: Any) -> Any:
        run = denoise(*given)
        run.warm_up = lambda: (begun.set(), free.wait(20))
        return run

    engine.denoise = slow
    losing = threading.Thread(target=lambda: (begun.wait(10), desk.lose(LOST)))
    losing.start()
    # The loop does not end before its threads do.
    waited: list[bool] = []

    def act(shown: Shown) -> None:
        if shown.over:
            waited.append(not free.is_set())
            free.set()

    last = collect(desk, Visit(), asked_of(desk), act)[-1]
    losing.join()
    assert (last.stage["state"], last.stage["message"], waited) == ("failed", LOST, [True])


def test_lanes_of_a_model_that_processes_share_take_turns_and_say_so(make_engine) -> None:
    engine = make_engine()
    shape = engine.shape
    engine.shape = lambda model: replace(shape(model), processes=4)
    desk = desk_of(engine)
    seen = collect(desk, Visit(), asked_of(desk))
    assert seen[-1].stage["mode"] == {
        "name": "turns", "text": "The lanes take turns; 4 processes share every step, each with some of the heads.",
    }  # fmt: skip
