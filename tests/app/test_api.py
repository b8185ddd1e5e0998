"""The named endpoints, as programs use them: gradio's client in Python, plain HTTP, and MCP
(tests/evidence: the client in JavaScript)."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio_client import Client

from app.api.endpoints import add
from app.finished.replay import final_snapshot
from app.finished.run import opening
from app.server.desk import Desk
from app.server.limits import Limits
from sparsed import trace as traces
from sparsed.config import RECOMMENDED
from sparsed.runs import RunRecord

SETTINGS = [
    "model", "kind", "length", "question", "text", "steps", "gen_length", "block_length", "algorithm", "temperature",
    "threshold", "cfg_scale", "top_p", "skip", "select", "block_size", "selection", "seed", "backend", "third",
    "system", "prompt_format", "early_stop", "logits_eos_inf", "confidence_eos_eot_inf", "stop",
    "generation_rows", "refresh", "lanes", "cache_refresh", "cache_keys", "history", "canvas",
]  # fmt: skip
GOING_ON = {"loading", "preparing", "waiting", "running"}
# So long that nobody waits for its end: on the stand-in 1,000 steps of 0.02 s, in two lanes.
LONG: dict[str, Any] = {"length": "1k", "steps": 1000, "gen_length": 1000, "block_length": 1000}


@pytest.fixture(scope="module")
def connected(keeping: Any) -> Client:
    """A client of the stand-in that leaves records."""
    return Client(keeping.url, verbose=False)


@pytest.fixture
def client(connected: Client, keeping: Any) -> Iterator[Client]:
    """The same, between two of whose tests no run holds the device."""
    yield connected
    keeping.idle()


def values(client: Client, endpoint: str = "/compare", **given: Any) -> list[dict[str, Any]]:
    """Everything that a call streams. Raises what it ends with, if that is an error."""
    job = client.submit(api_name=endpoint, **given)
    seen = list(job)
    job.result(timeout=60)
    return seen


def refusal(client: Client, endpoint: str, given: dict[str, Any]) -> str:
    """The sentence that a call gets instead of an answer."""
    with pytest.raises(Exception) as refused:
        client.predict(api_name=endpoint, **given)
    assert type(refused.value).__name__ == "AppError"
    return str(refused.value)


def wait_for(what: Callable[[], bool], seconds: float = 20) -> None:
    """Until it is so."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.05)


def waiting(server: Any) -> int:
    """Runs in line for the device, the one that has it included."""
    return int(server.state()["waiting"])


# ---- what there is ---------------------------------------------------------------------------------------------


def test_four_endpoints_are_named_and_every_parameter_says_what_it_is(client: Client) -> None:
    info = client.view_api(return_format="dict", print_info=False)
    endpoints = info["named_endpoints"]
    assert set(endpoints) == {"/models", "/compare", "/sweep", "/pattern"} and info["unnamed_endpoints"] == {}
    names = {name: [one["parameter_name"] for one in about["parameters"]] for name, about in endpoints.items()}
    assert names["/models"] == []
    assert names["/compare"] == SETTINGS
    of_one_race = ("length", "text", "system", "history", "third")
    assert names["/sweep"] == ["lengths", *(name for name in SETTINGS if name not in of_one_race)]
    assert names["/pattern"] == ["run", "layer", "head", "lane", "importance"]
    for about in endpoints.values():
        assert about["description"].endswith(".")
        assert about["returns"][0]["python_type"]["type"].startswith(("dict(", "list[dict("))
        for one in about["parameters"]:
            assert one["python_type"]["type"] and one["python_type"]["description"].endswith((".", ").")), one


def test_what_may_be_left_out_has_the_default_that_is_promised(client: Client) -> None:
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    given = {one["parameter_name"]: one for one in endpoints["/compare"]["parameters"]}
    defaults = {name: one["parameter_default"] for name, one in given.items() if one["parameter_default"] is not None}
    assert all(one["parameter_has_default"] for one in given.values())
    assert defaults == {
        "model": "mini", "kind": "about", "length": "short_context", "question": 0, "text": "", "skip": 0.2,
        "selection": "paper", "seed": 0, "backend": "auto", "third": "none", "system": "", "prompt_format": "model",
        "generation_rows": "pattern", "lanes": [], "history": [],
    }  # fmt: skip
    assert [one["parameter_name"] for one in endpoints["/sweep"]["parameters"] if not one["parameter_has_default"]] == [
        "lengths"
    ]
    assert given["length"]["type"] == {
        "enum": ["short_context", "1k", "2k", "4k", "64k"],
        "additional_description": given["length"]["python_type"]["description"],
    }


def test_the_models_say_what_they_need_and_what_they_are_sampled_with(client: Client) -> None:
    models = {one["name"]: one for one in client.predict(api_name="/models")}
    assert list(models) == ["mini", "dreamer", "slowpoke", "broken", "giant"]
    assert models["mini"] == {
        "name": "mini", "label": "mini (a stand-in)", "parameters": 1_000_000, "download_gb": 0.0, "bundled": True,
        "in_memory": True, "trained_length": 4096, "quantize": None, "too_large": "",
        "defaults": {
            "steps": 64, "gen_length": 64, "block_length": 64, "algorithm": "low_confidence", "temperature": 0.0,
            "threshold": None, "cfg_scale": 0.0, "top_p": 1.0, "early_stop": False, "logits_eos_inf": False,
            "confidence_eos_eot_inf": False, "stop": [], "canvas": "fixed",
        },
    }  # fmt: skip
    assert models["dreamer"]["defaults"]["algorithm"] == "maskgit_plus"
    assert models["giant"]["too_large"] == "200.0 GB of weights, 24.0 GB of memory"


# ---- a comparison ----------------------------------------------------------------------------------------------


def test_a_comparison_streams_how_far_it_is_and_ends_as_the_stage_does(
    client: Client, keeping: Any, tmp_path: Path
) -> None:
    seen = values(client, steps=32, third="random")
    last = seen[-1]
    assert {value["state"] for value in seen[:-1]} <= GOING_ON
    assert last["state"] == "done"
    running = [value for value in seen if value["state"] == "running"]
    assert len(running) >= 3
    steps = [value["lanes"]["sparse"]["step"] for value in running]
    assert steps == sorted(steps) and steps[-1] == 32
    early = running[0]["lanes"]["dense"]
    assert early["text"].count("▒") == 64 - 2 * early["step"]
    assert all(value["run"] is None and value["files"] == {} for value in seen[:-1])
    unfinished = [value for value in seen if min(lane["step"] for lane in value["lanes"].values()) < 32]
    assert all(value["gold"] is None and value["agreement"] is None for value in unfinished)

    record = tmp_path / "run.json.gz"
    record.write_bytes(httpx.get(keeping.url + last["files"]["run.json.gz"]).content)
    trace = traces.load(record)
    stage = final_snapshot(trace, judge=lambda text, gold: (text == gold, "as expected"))
    assert last["gold"] == stage["gold"] and last["question"] == stage["question"] == "Tell me about Mara Velin (0)."
    assert last["prompt_tokens"] == trace.prompt.tokens
    for lane in stage["lanes"]:
        ours = last["lanes"][lane["key"]]
        assert {name: ours[name] for name in ("label", "backend", "step", "total", "text", "right")} == {
            name: lane[name] for name in ("label", "backend", "step", "total", "text", "right")
        }
        assert ours["seconds"] == pytest.approx(lane["seconds"], abs=2e-6)
    for name in ("ratio", "text", "words"):
        assert last["speedup"][name] == stage["speedup"][name]
    for name in ("same", "compared", "text"):
        assert last["agreement"][name] == last["lanes"]["sparse"]["agreement"][name] == stage["agreement"][name]
    assert last["lanes"]["baseline"]["agreement"]["same"] == stage["lanes"][2]["same"]["same"] == 17
    assert {value["mode"] for value in running} == {last["mode"]} == {"turns"} and seen[0]["mode"] is None
    # 0.2 · 32 steps, rounded up, are dense; one more selects.
    assert last["switch_step"] == 9 and stage["lanes"][1]["phases"][-1] == ["sparse", 9, 32]
    assert last["lanes"]["dense"]["verdict"] == "as expected" and last["lanes"]["dense"]["agreement"] is None


def test_a_text_alone_is_a_prompt_of_ones_own(client: Client, keeping: Any) -> None:
    last = values(client, text="one two three <b>four</b>", steps=8, gen_length=8, block_length=8)[-1]
    assert last["state"] == "done" and last["question"] == "your own text" and last["gold"] is None
    assert last["lanes"]["sparse"]["text"] == "one two three <b>four</b>"
    assert last["lanes"]["sparse"]["right"] is None and last["lanes"]["sparse"]["verdict"] is None


def test_null_is_the_default_in_every_language(client: Client) -> None:
    last = values(client, **{**dict.fromkeys(SETTINGS), "steps": 8})[-1]
    assert last["state"] == "done" and last["lanes"]["dense"]["total"] == 8


def test_a_run_without_a_sparse_step_says_so(client: Client) -> None:
    last = values(client, steps=8, skip=1)[-1]
    assert last["state"] == "done" and last["switch_step"] is None and last["speedup"] is None
    said = "This run never becomes sparse: full attention lasts to the end."
    assert last["notes"] == [f"SparseD: {said}"]
    assert {key: lane["never_sparse"] for key, lane in last["lanes"].items()} == {"dense": False, "sparse": True}
    assert last["lanes"]["sparse"]["info"]["notes"] == [said]


def test_every_lane_says_what_it_was_and_what_it_made(client: Client) -> None:
    last = values(client, gen_length=40, block_length=16, stop=["glass", "x"], early_stop=True)[-1]
    assert last["state"] == "done" and last["notes"][0].startswith("48 tokens are generated, not 40")
    for key, lane in last["lanes"].items():
        info = lane["info"]
        assert set(info) == set(RunRecord.__annotations__)
        assert info["sampler"]["gen_length"] == 48 and info["sampler"]["stop"] == ["glass", "x"]
        assert info["forwards"] == sum(info["phases"].values()) == lane["step"] and info["finished"]
        assert (info["phases"]["sparse"] > 0) == (key == "sparse") and info["prompt_tokens"] == last["prompt_tokens"]
        # The answer ends before a stop string, and the canvas after the answer is left as it is.
        assert lane["text"].endswith("worked as a ") and "glass" not in lane["text"]
    row = values(client, "/sweep", lengths=["short_context"], steps=8, skip=1)[-1]["rows"][0]
    assert row["never_sparse"] and row["speedup"] is None and row["notes"] == [
        "SparseD: This run never becomes sparse: full attention lasts to the end."
    ]
    assert {key: info["phases"]["dense"] for key, info in row["infos"].items()} == {"dense": 8, "sparse": 8}


def test_a_run_may_end_early_and_leave_the_rest_masked(client: Client) -> None:
    last = values(client, text="one two three", steps=16, gen_length=16, block_length=4, early_stop=True)[-1]
    for lane in last["lanes"].values():
        assert (lane["text"], lane["ended_early"]) == ("one two three", True)
        assert lane["step"] < lane["total"] == 16


def test_a_run_that_fails_ends_with_a_sentence_and_what_was_written(client: Client) -> None:
    last = values(client, text="here comes kaboom", steps=8, gen_length=8, block_length=8)[-1]
    assert last["state"] == "failed"
    assert last["message"].startswith("The run ended early in the lane “SparseD” with an error of the engine")
    assert last["lanes"]["sparse"]["step"] == 2 and "▒" in last["lanes"]["sparse"]["text"]


def test_what_is_too_much_for_this_machine_is_an_answer_not_an_error(client: Client) -> None:
    last = values(client, length="64k")[-1]
    assert last["state"] == "refused" and last["message"].startswith("65,596 tokens in 64 steps would take about")
    assert last["run"] is None and last["lanes"]["dense"]["step"] == 0
    last = values(client, model="giant")[-1]
    assert last["state"] == "refused" and "does not fit into this machine" in last["message"]


def test_two_calls_of_one_client_stand_in_line_and_each_gets_its_own_answer(client: Client) -> None:
    jobs = [client.submit(api_name="/compare", question=number, steps=64) for number in (11, 12)]
    seen = [list(job) for job in jobs]
    for number, one in zip((11, 12), seen):
        assert one[-1]["state"] == "done" and one[-1]["question"] == f"Tell me about Mara Velin ({number})."
    assert seen[0][-1]["run"] != seen[1][-1]["run"]
    waited = [value for one in seen for value in one if value["state"] == "waiting"]
    assert {value["position"] for value in waited} == {1}
    assert all(value["wait"] is not None and value["message"].startswith("Waiting for the device") for value in waited)
    assert all(value["position"] is None for one in seen for value in one if value["state"] != "waiting")


def test_each_run_of_a_call_is_a_line_of_the_journal(client: Client, keeping: Any) -> None:
    log = len(keeping.log.read_text())
    values(client, steps=8, kind="fact", length="1k")
    values(client, "/sweep", lengths=["1k", "short_context"], steps=8)
    lines = [json.loads(line) for line in keeping.log.read_text()[log:].splitlines() if line.startswith("{")]
    runs = [(line["via"], line["kind"], line["state"], line["tokens"]) for line in lines if line["event"] == "run"]
    assert runs == [("api", "fact", "done", 1020), ("sweep", "about", "done", 252), ("sweep", "about", "done", 1020)]


# ---- stopping --------------------------------------------------------------------------------------------------


def test_a_cancelled_call_frees_the_device_within_a_step(client: Client, keeping: Any) -> None:
    before = keeping.state()["steps"]
    job = client.submit(api_name="/compare", **LONG)
    for value in job:
        if value["lanes"]["dense"]["step"] >= 2:
            break
    assert waiting(keeping) == 1
    job.cancel()
    wait_for(lambda: waiting(keeping) == 0)
    made = keeping.state()["steps"]
    time.sleep(0.3)
    assert keeping.state()["steps"] == made < before + 100


@pytest.mark.parametrize("in_line", [False, True], ids=["running", "in line"])
def test_a_client_that_hangs_up_gives_its_place_back(client: Client, keeping: Any, in_line: bool) -> None:
    before = client.submit(api_name="/compare", **LONG) if in_line else None
    if in_line:
        wait_for(lambda: waiting(keeping) == 1)
    address = keeping.url + "gradio_api/call/v2/compare"
    with httpx.Client(timeout=30) as http:
        event = http.post(address, json=LONG).json()["event_id"]
        with http.stream("GET", f"{address}/{event}") as answer:
            text = ""
            for part in answer.iter_text():
                text += part
                if ('"waiting"' if in_line else '"running"') in text:
                    break
            assert waiting(keeping) == 1 + in_line
    wait_for(lambda: waiting(keeping) == int(in_line))
    if before is not None:
        before.cancel()
    wait_for(lambda: waiting(keeping) == 0)


def test_a_cancelled_sweep_frees_the_device(client: Client, keeping: Any) -> None:
    long = {**LONG, "lengths": ["1k", "2k"]}
    del long["length"]
    job = client.submit(api_name="/sweep", **long)
    for value in job:
        if value["rows"][0]["step"] >= 2:
            break
    job.cancel()
    wait_for(lambda: waiting(keeping) == 0)


# ---- what cannot be run ----------------------------------------------------------------------------------------


def test_earlier_turns_go_before_a_text_and_into_the_record(client: Client, keeping: Any, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "one two three"}, {"role": "assistant", "content": "four"}]
    last = values(client, text="five six", history=turns, steps=4)[-1]
    assert last["state"] == "done" and last["question"] == "five six" and last["prompt_tokens"] == 6
    record = tmp_path / "run.json.gz"
    record.write_bytes(httpx.get(keeping.url + last["files"]["run.json.gz"]).content)
    prompt = traces.load(record).prompt
    assert prompt.history == tuple((one["role"], one["content"]) for one in turns) and prompt.text == "five six"


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("/compare", {"steps": 0}, "The value of steps must lie between 1 and 1024, not 0."),
    ("/compare", {"steps": [8]}, "The value of steps is a list; it must be a single value."),
    ("/compare", {"steps": {"a": 1}}, "The value of steps is an object; it must be a single value."),
    ("/compare", {"steps": 10**300}, "The value of steps is a number far beyond its range."),
    ("/compare", {"steps": True}, "The value of steps must be a whole number between 1 and 1024, not"),
    ("/compare", {"steps": 7.5}, "The value of steps must be a whole number between 1 and 1024, not"),
    ("/compare", {"gen_length": 64, "block_length": 16, "steps": 3}, "steps must be at least the number"),
    ("/compare", {"gen_length": 1000, "block_length": 600}, "The generation would have 1200 tokens, rounded"),
    ("/compare", {"top_p": 0.5}, "The setting top_p would have no effect: leave it out. Only Dream's"),
    ("/compare", {"algorithm": "origin", "threshold": 0.9}, "The setting threshold would have no effect:"),
    ("/compare", {"system": "Be short."}, "The setting system would have no effect: leave it out. It belongs to"),
    ("/compare", {"history": [{"role": "user", "content": "x"}]}, "The history ends with a message of the user's"),
    ("/compare", {"text": "Hi", "history": [{"a": "b"}]}, "Message 1 of the earlier turns must be an object with"),
    ("/compare", {"text": "Hi", "length": "1k"}, "The setting length would have no effect beside a text of your own"),
    ("/compare", {"text": "Hi", "question": 7}, "The setting question would have no effect beside a text of your own"),
    ("/compare", {"stop": "END"}, "The value of stop strings must be a list of texts of 1 to 200 characters each."),
    ("/compare", {"stop": ["a"] * 17}, "The value of stop strings must have 16 texts at most, not 17."),
    ("/compare", {"prompt_format": "xml"}, "The prompt format 'xml' is not one of model, chat, raw."),
    ("/compare", {"temperature": "hot"}, "The value of temperature must be a number between 0 and 10, not 'hot'."),
    ("/compare", {"skip": 1.5}, "The value of skip must lie between 0 and 1, not 1.5."),
    ("/compare", {"block_size": 33}, "block_size must be one of 32, 64, 128, not 33."),
    ("/compare", {"selection": "mine"}, "The selection 'mine' is not one of paper, reference."),
    ("/compare", {"algorithm": 3}, "The algorithm 3 is not one of low_confidence, random, origin"),
    ("/compare", {"kind": "rhyme"}, "The question 'rhyme' is not one of about, fact, own."),
    ("/compare", {"length": 4096}, "The prompt length 4096 is not one of short_context, 1k, 2k, 4k, 64k."),
    ("/compare", {"question": -1}, "The value of question number must lie between 0 and 2147483647, not -1."),
    ("/compare", {"model": "../../etc/passwd"}, "The model '../../etc/passwd' is not one of mini, dreamer"),
    ("/compare", {"backend": "cuda"}, "The backend 'cuda' is not one of auto, gather, triton, flash4, flex."),
    ("/compare", {"third": "shared", "selection": "reference"}, "The lane “One pattern for all heads” needs"),
    ("/compare", {"text": {"a": "b"}}, "The value of text is an object; it must be a single value."),
    ("/compare", {"text": 3}, "The value of text must be a string."),
    ("/compare", {"text": "word " * 1_000_000}, "The value of text has 5,000,000 characters; it may have up to"),
    ("/compare", {"kind": "k" * 100_000}, "The value of kind has 100,000 characters; it may have up to 200."),
    ("/compare", {"kind": "own"}, "Your own text is empty: type or paste a prompt, or choose one of the questions."),
    ("/compare", {"kind": "fact", "text": "hello"}, "text is a prompt of your own, and kind asks one of"),
    ("/sweep", {"lengths": []}, "Choose at least one prompt length to compare."),
    ("/sweep", {"lengths": "1k"}, "The value of lengths must be a list of some of short_context, 1k, 2k, 4k, 64k."),
    ("/sweep", {"lengths": ["3k"]}, "The prompt length '3k' is not one of short_context, 1k, 2k, 4k, 64k."),
    ("/sweep", {"lengths": [["1k"]]}, "The value of lengths is a list; it must be a single value."),
    ("/sweep", {"lengths": ["1k"] * 1000}, "The value of lengths must be a list of some of"),
    ("/sweep", {"lengths": ["1k"], "kind": "own"}, "Your own text is empty"),
    ("/pattern", {"run": "nobody's"}, "No run of that key is kept any more"),
    ("/pattern", {"run": None}, "No run of that key is kept any more"),
    ("/pattern", {"run": ["a"]}, "The value of run is a list; it must be a single value."),
    ("/pattern", {"run": "ключ"}, "No run of that key is kept any more"),
    ("/pattern", {"run": "x", "lane": "dense"}, "No run of that key is kept any more"),
]


@pytest.mark.parametrize(("endpoint", "given", "says"), WRONG, ids=[f"{e[1:]} {str(g)[:40]}" for e, g, _ in WRONG])
def test_a_wrong_value_gets_one_sentence_and_nothing_runs(
    client: Client, keeping: Any, endpoint: str, given: dict[str, Any], says: str
) -> None:
    steps, log = keeping.state()["steps"], len(keeping.log.read_text())
    said = refusal(client, endpoint, given)
    assert said.startswith(says) and said.endswith(".") and len(said) < 500
    assert "Traceback" not in keeping.log.read_text()[log:]
    assert keeping.state()["steps"] == steps


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_json_does_not_know_gets_a_sentence_too(keeping: Any, number: str) -> None:
    log = len(keeping.log.read_text())
    address = keeping.url + "gradio_api/call/v2/compare"
    started = httpx.post(address, content=f'{{"temperature": {number}}}', headers={"Content-Type": "application/json"})
    if started.status_code == 200:
        answer = httpx.get(f"{address}/{started.json()['event_id']}", timeout=30).text
        assert answer.startswith("event: error")
        assert re.search(r'"The value of temperature must .* between 0 and 10, not', answer)
    else:
        assert started.status_code == 400
    assert "Traceback" not in keeping.log.read_text()[log:]


def built(fake_engine: ModuleType, **more: Any) -> tuple[Any, gr.Blocks]:
    """An engine, and a page with nothing but the endpoints."""
    engine = fake_engine.FakeEngine()
    with gr.Blocks() as page:
        add(Desk(engine, "mini", Limits(), **more))
    return engine, page


def test_an_error_of_the_servers_own_is_told_to_the_log_alone(
    fake_engine: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, page = built(fake_engine)
    models = next(one.fn for one in page.fns.values() if one.api_name == "models")
    monkeypatch.setattr(engine, "weights", lambda name: {}["where the weights are"])
    with pytest.raises(gr.Error) as raised:
        models(SimpleNamespace(headers={}))
    assert raised.value.message == "The server met an error of its own and ended this call. Its log says more."
    assert raised.value.print_exception is False
    told = json.loads(capsys.readouterr().err)
    assert (told["event"], told["error"]) == ("error", "KeyError") and "<lambda>" in told["trace"][-1]


def test_any_model_may_be_named_where_the_page_takes_any(fake_engine: ModuleType) -> None:
    def allowed(page: gr.Blocks) -> dict[str, Any]:
        return dict(page.get_api_info()["named_endpoints"]["/compare"]["parameters"][0]["type"])

    assert allowed(built(fake_engine)[1])["enum"][0] == "mini"
    assert allowed(built(fake_engine, any_model=True)[1])["type"] == "string"


# ---- a pattern -------------------------------------------------------------------------------------------------


def test_the_pattern_of_a_run_is_the_one_that_its_lane_used(client: Client, keeping: Any) -> None:
    last = values(client, steps=8)[-1]
    for layer, head in ((0, 0), (2, 1)):
        found = client.predict(run=last["run"], layer=layer, head=head, api_name="/pattern")
        assert found["kept"] == keeping.mask(layer, head)
        assert found["counts"] == [len(row) for row in found["kept"]]
        assert (found["layers"], found["heads"], found["blocks"]) == (3, 2, len(found["kept"]))
        assert found["block_size"] == 32 and found["prompt_blocks"] == -(-last["prompt_tokens"] // 32)
        assert found["tokens"] == last["prompt_tokens"] + 64
        assert found["select"] == 0.5 and found["lane"] == "sparse" and found["label"] == "SparseD"
        pairs = sum(found["counts"])
        assert found["density"]["requested"] == pytest.approx(pairs / found["blocks"] ** 2)
        assert found["density"]["executed"] == pytest.approx(scores(found) / found["tokens"] ** 2)
        assert found["importance"] is None


def scores(found: dict[str, Any]) -> int:
    """Scores that the kept blocks hold; the last one may be partly filled."""
    size, blocks = found["block_size"], found["blocks"]
    tail = found["tokens"] - (blocks - 1) * size
    sizes = [size] * (blocks - 1) + [tail]
    return sum(sizes[row] * sizes[column] for row, kept in enumerate(found["kept"]) for column in kept)


def test_the_third_lane_has_a_pattern_of_its_own(client: Client) -> None:
    run = values(client, steps=8, third="random")[-1]["run"]
    ours = client.predict(run=run, layer=1, api_name="/pattern")
    theirs = client.predict(run=run, layer=1, lane="baseline", api_name="/pattern")
    assert theirs["label"] == "Random blocks" and theirs["kept"] != ours["kept"]


def test_lanes_with_a_cache_say_how_many_rows_they_computed(client: Client) -> None:
    given = {"steps": 8, "gen_length": 32, "block_length": 16, "lanes": ["sparsed+dual", "dense+delayed"]}
    given |= {"cache_refresh": 3, "cache_keys": "pattern"}
    last = values(client, **given)[-1]
    assert list(last["lanes"]) == ["dense", "sparse", "dense+delayed", "sparsed+dual"]
    whole = last["lanes"]["dense"]["info"]["prompt_tokens"] + 32
    for key, lane in last["lanes"].items():
        cached = "+" in key
        # The stand-in: all rows where a block begins, and the block's.
        assert (lane["rows"], lane["positions"]) == (16 if cached else whole, whole)
        assert sum(lane["info"]["rows"].values()) == (2 * whole + 6 * 16 if cached else 8 * whole)
        assert lane["info"]["cache"]["method"] == (key.split("+")[1] if cached else "none")
        assert (lane["speedup"] is None) == (key == "dense")


def test_a_run_with_what_is_ours_says_so_and_which_rows_see_everything(client: Client) -> None:
    given = {"steps": 8, "gen_length": 32, "block_length": 16, "refresh": 2, "third": "full_rows"}
    last = values(client, **given)[-1]
    labels = ["Full attention", "SparseD, refresh 2", "SparseD, full generation rows, refresh 2"]
    assert [lane["label"] for lane in last["lanes"].values()] == labels
    assert list(last["lanes"]) == ["dense", "sparse", "baseline"] and last["switch_step"] == 4
    # Selected in steps 3, 5 and 7, the fifth being the first of a block.
    assert last["lanes"]["sparse"]["info"]["phases"] == {"dense": 2, "select": 3, "sparse": 3}
    attention = last["lanes"]["baseline"]["info"]["attention"]
    assert (attention["method"], attention["generation_rows"], attention["refresh"]) == ("sparsed", "full", 2)
    tokens = last["prompt_tokens"]
    for lane, full in (("sparse", 0), ("baseline", (tokens + 32 + 31) // 32 - tokens // 32)):
        found = client.predict(run=last["run"], layer=1, lane=lane, api_name="/pattern")
        assert (found["full_blocks"], found["selected_in"]) == (full, 7)
        rows = found["kept"][found["blocks"] - full :]
        assert rows == [list(range(found["blocks"]))] * full
        assert found["density"]["executed"] == pytest.approx(scores(found) / found["tokens"] ** 2)


def test_one_argument_asks_for_the_recommended_setting(client: Client) -> None:
    lanes = values(client, steps=8, gen_length=32, block_length=16, lanes=["recommended", "full_rows"])[-1]["lanes"]
    assert {key: lane["label"] for key, lane in lanes.items()} == {
        "dense": "Full attention", "sparse": "SparseD", "baseline": "SparseD, recommended",
        "sparsed": "SparseD, full generation rows",
    }  # fmt: skip
    info = lanes["baseline"]["info"]
    wanted = RECOMMENDED.resolve(info["prompt_tokens"] + 32)
    kept = ("method", "skip", "select", "block_size", "selection", "isolated", "reuse", "generation_rows", "refresh")
    assert {name: info["attention"][name] for name in kept} == {name: getattr(wanted, name) for name in kept}
    # Beside the paper's, and the paper's with other generation rows.
    paper, ours = (lanes[key]["info"]["attention"] for key in ("sparse", "sparsed"))
    assert {name for name in kept if paper[name] != ours[name]} == {"generation_rows"}


def test_what_a_run_does_not_have_is_said(client: Client) -> None:
    run = values(client, steps=8)[-1]["run"]
    wrong = [
        ({"layer": 3}, "The layer 3 is not there: this run's are 0 to 2."),
        ({"layer": -1}, "The layer -1 is not there: this run's are 0 to 2."),
        ({"head": 0.5}, "The head 0.5 is not there: this run's are 0 to 1."),
        ({"head": "0"}, "The head '0' is not there: this run's are 0 to 1."),
        ({"importance": "yes"}, "The value of importance must be true or false."),
        ({"lane": "dense"}, "This run has no lane 'dense' with a pattern; it has sparse."),
        ({"lane": "baseline"}, "This run has no lane 'baseline' with a pattern; it has sparse."),
    ]
    for given, says in wrong:
        assert refusal(client, "/pattern", {"run": run, **given}) == says
    dense = values(client, steps=8, skip=1)[-1]["run"]
    assert refusal(client, "/pattern", {"run": dense}) == "This run has no pattern: it ended before its select step."


def test_the_importances_come_along_where_the_run_has_kept_them(client: Client) -> None:
    recorded = opening()
    assert recorded is not None and recorded.pattern is not None
    # The key that a fresh page offers its recorded run's files by.
    shown = re.search(r"sparsed-run/([\w-]+)/run\.json\.gz", json.dumps(client.config))
    assert shown is not None
    found = client.predict(run=shown[1], layer=2, head=3, api_name="/pattern")
    assert found["kept"] == [row.nonzero()[0].tolist() for row in recorded.pattern.mask(2)[0, 3]]
    importance = recorded.pattern.importance(2, 3)
    assert importance is not None
    assert found["importance"] == [[pytest.approx(w, abs=1e-6) for w in row] for row in importance.tolist()]
    assert client.predict(run=shown[1], importance=False, api_name="/pattern")["importance"] is None


# ---- several lengths -------------------------------------------------------------------------------------------


def test_a_sweep_streams_its_table_and_says_which_lengths_were_refused(client: Client) -> None:
    seen = values(client, "/sweep", lengths=["64k", "1k", "short_context", "1k"], steps=64)
    last = seen[-1]
    assert {value["state"] for value in seen[:-1]} == {"running"} and len(seen) > 4
    assert last["state"] == "done" and last["message"].startswith("Done: 2 of 3 lengths compared")
    progress = [value["progress"] for value in seen]
    assert progress == sorted(progress) and progress[-1] == 1
    rows = {row["length"]: row for row in last["rows"]}
    assert list(rows) == ["short_context", "1k", "64k"]
    for name in ("short_context", "1k"):
        row = rows[name]
        assert row["state"] == "done" and row["dense_right"] is True and row["sparse_right"] is True
        assert row["speedup"]["ratio"] == pytest.approx(row["dense_seconds"] / row["sparse_seconds"], rel=1e-3)
        assert row["agreement"] == {"same": 25, "compared": 25, "text": "100\u00a0%"}
        assert row["step"] == row["total"] == 128 and row["memory"] > 0
        assert list(row["lanes"]) == ["dense", "sparse"] and row["lanes"]["dense"]["speedup"] is None
        assert row["lanes"]["sparse"] == {
            "label": "SparseD", "seconds": row["sparse_seconds"], "steps": 64, "speedup": row["speedup"],
            "agreement": row["agreement"], "right": True, "never_sparse": False,
        }  # fmt: skip
    assert rows["64k"]["state"] == "refused" and rows["64k"]["message"].startswith("65,596 tokens in 64 steps")
    assert rows["64k"]["dense_seconds"] is None
    assert rows["64k"]["published"] == {"dense_seconds": 2127, "sparse_seconds": 1695, "ratio": 1.25}


# ---- the real engine -------------------------------------------------------------------------------------------


def test_the_real_model_answers_as_its_engine_wrote(real: Any) -> None:
    real.idle()
    client = Client(real.url, verbose=False)
    last = values(client, question=3, steps=24)[-1]
    assert last["state"] == "done"
    written = real.lanes()
    for key, name in (("dense", "dense"), ("sparse", "sparsed")):
        lane = last["lanes"][key]
        assert lane["step"] == lane["total"] == len(written[name])
        text = "".join(cell for cell in written[name][-1] if cell is not None)
        assert text.startswith(lane["text"]) and lane["text"]
        assert lane["right"] == (lane["text"].split() == last["gold"].split())
    dense, sparse = (last["lanes"][key]["seconds"] for key in ("dense", "sparse"))
    assert last["speedup"]["ratio"] == pytest.approx(dense / sparse, rel=1e-3)
    found = client.predict(run=last["run"], layer=1, head=2, api_name="/pattern")
    assert found["kept"] == real.mask(1, 2)
    assert found["density"]["executed"] == pytest.approx(scores(found) / found["tokens"] ** 2)


def at(server: Any, code: str) -> str:
    """An example, for this server."""
    assert "http://127.0.0.1:7860/" in code
    return code.replace("http://127.0.0.1:7860/", server.url)


def test_the_python_examples_of_the_docs_run(
    real: Any, examples: Callable[[str, str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    real.idle()
    space: dict[str, Any] = {}
    exec(compile(at(real, examples("docs/api.md", "python")), "docs/api.md", "exec"), space)
    assert "done" in capsys.readouterr().out


# ---- MCP -------------------------------------------------------------------------------------------------------


def through_mcp(server: Any, use: Callable[[Any], Any], *, way: str = "http") -> Any:
    """What `use` makes of an open session with the server's tools, in a thread: Playwright has a loop in this one.

    way: "http" (streamable HTTP) or the older "sse".
    """
    pytest.importorskip("mcp", reason="the package mcp is not installed")
    from mcp import ClientSession
    from mcp.client import sse, streamable_http

    # Its name since 1.24, and before.
    connect = getattr(streamable_http, "streamable_http_client", None) or streamable_http.streamablehttp_client
    opened = (
        connect(f"{server.url}gradio_api/mcp/") if way == "http" else sse.sse_client(f"{server.url}gradio_api/mcp/sse")
    )

    async def run() -> Any:
        async with opened as streams, ClientSession(*streams[:2]) as session:
            await session.initialize()
            return await use(session)

    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(asyncio.run(run())))
    thread.start()
    thread.join(60)
    assert made, "the session gave nothing"
    return made[0]


def test_the_endpoints_are_tools_that_say_what_they_take(keeping: Any) -> None:
    async def use(session: Any) -> Any:
        return (await session.list_tools()).tools

    tools = {tool.name: tool for tool in through_mcp(keeping, use)}
    assert set(tools) == {"models", "compare", "sweep", "pattern"}
    for tool in tools.values():
        about, _, returns = tool.description.partition(" Returns: ")
        assert about.endswith(".") and returns.endswith(".")
        assert all(one["description"] for one in tool.inputSchema["properties"].values())
    assert list(tools["compare"].inputSchema["properties"]) == SETTINGS
    assert "required" not in tools["compare"].inputSchema
    assert tools["sweep"].inputSchema["required"] == ["lengths"] and tools["pattern"].inputSchema["required"] == ["run"]
    assert tools["compare"].inputSchema["properties"]["third"]["enum"][:3] == ["none", "recommended", "full_rows"]


def test_a_language_model_can_list_the_models_and_compare(keeping: Any) -> None:
    told: list[float] = []

    async def use(session: Any) -> Any:
        async def hear(progress: float, total: float | None, message: str | None) -> None:
            told.append(progress)

        models = await session.call_tool("models", {})
        compared = await session.call_tool("compare", {"steps": 32, "question": 5}, progress_callback=hear)
        run = json.loads(compared.content[0].text)["run"]
        pattern = await session.call_tool("pattern", {"run": run, "layer": 1})
        refused = [await session.call_tool("compare", wrong) for wrong in ({"steps": 0}, {"length": "3k"})]
        return models, compared, pattern, refused

    models, compared, pattern, refused = through_mcp(keeping, use)
    assert [one["name"] for one in json.loads(models.content[0].text)][:2] == ["mini", "dreamer"]
    value = json.loads(compared.content[0].text)
    assert value["state"] == "done" and value["question"] == "Tell me about Mara Velin (5)."
    assert value["lanes"]["sparse"]["right"] is True and value["speedup"]["ratio"] > 1
    assert len(told) >= 3
    assert json.loads(pattern.content[0].text)["kept"] == keeping.mask(1, 0)
    assert [one.isError for one in refused] == [True, True]
    assert refused[0].content[0].text == "The value of steps must lie between 1 and 1024, not 0."
    assert "'3k' is not one of ['short_context', '1k', '2k', '4k', '64k']" in refused[1].content[0].text


@pytest.mark.parametrize("way", ["http", "sse"])
def test_a_run_of_some_seconds_is_waited_for(keeping: Any, way: str) -> None:
    async def use(session: Any) -> Any:
        # Longer than it takes to notice that somebody has gone.
        return await session.call_tool("compare", {"length": "1k", "steps": 128, "gen_length": 128})

    assert json.loads(through_mcp(keeping, use, way=way).content[0].text)["state"] == "done"


def test_the_run_of_a_language_model_that_is_gone_ends(keeping: Any) -> None:
    pytest.importorskip("mcp", reason="the package mcp is not installed")
    code = f"""
import asyncio
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
async def main():
    async with streamablehttp_client("{keeping.url}gradio_api/mcp/") as (read, write, _):
        async with ClientSession(read, write) as session:
            await session.initialize()
            await session.call_tool("compare", {LONG!r})
asyncio.run(main())
"""
    keeping.idle()
    client = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: waiting(keeping) == 1)
        time.sleep(1.5)
        assert waiting(keeping) == 1
    finally:
        client.kill()
        client.wait()
    wait_for(lambda: waiting(keeping) == 0)
