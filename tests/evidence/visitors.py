"""Many visitors at once: python tests/evidence/visitors.py [--visitors 50] [--seconds 120]

Starts the page (`python app.py`, mini, on 127.0.0.1) and lets visitors come, spread over the time. Most are tabs and
speak the page's own protocol: a heartbeat, the events of Run one after the other, the stream of their values. Some are
programs that call /compare. One in five closes the tab in the middle of its run, one in ten sends values that cannot be
run. Everybody has a question, or a text, of his own.

Each answer must be, token by token, the one that the same run gives alone in the engine; nobody may receive anything of
another visitor; who is refused must be told why; afterwards nothing is left: no run, no visit, no trace in the log, and
as much memory as after the first few runs. Prints a table, and exits with 1 if any of that does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "app")]

from servers import Server  # noqa: E402

os.environ.setdefault("HF_HUB_OFFLINE", "1")

Way = Literal["tab", "program"]
Fate = Literal["stays", "closes", "bad"]

STEPS, GENERATION, BLOCK = 8, 32, 32
# Of a hundred visitors.
CLOSING, BAD, PROGRAMS, OWN_TEXTS = 20, 10, 25, 30
LONGEST_WAIT = 300.0
WARM_UP = 12
# How much more memory the server may have at the end.
GROWTH = 1.05
LEAKS = re.compile(r'Traceback|File \\?"|site-packages')
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Plan:
    """One visitor. at: seconds after the start. text: of his own, with a mark that nobody else's has; or None."""

    number: int
    at: float
    way: Way
    fate: Fate
    question: int
    text: str | None
    seed: int

    @property
    def mark(self) -> str:
        return mark(self.number)


def mark(number: int) -> str:
    """What stands in the texts of one visitor alone."""
    return f"visitor-{number:04d}-mark"


@dataclass
class Seen:
    """What a visitor got. state: how his run ended, or "closed", or "none". wait: seconds from asking to the first
    step. answers: by lane, the text of each cell (a tab) or of the whole (a program). received: everything.
    """

    plan: Plan
    state: str = "none"
    message: str = ""
    wait: float | None = None
    answers: dict[str, Any] = field(default_factory=dict)
    received: str = ""
    problems: list[str] = field(default_factory=list)


def plans(visitors: int, seconds: float, seed: int) -> list[Plan]:
    """The same visitors each time, for the same numbers."""
    rng = random.Random(seed)

    def share(percent: int) -> set[int]:
        return set(rng.sample(range(visitors), round(visitors * percent / 100)))

    bad, programs, texts = share(BAD), share(PROGRAMS), share(OWN_TEXTS)
    staying = [number for number in range(visitors) if number not in bad]
    closing = set(rng.sample(staying, round(visitors * CLOSING / 100)))
    made = []
    for number in range(visitors):
        fate: Fate = "bad" if number in bad else "closes" if number in closing else "stays"
        about = f"{mark(number)} was a glassblower in Tolm. Tell me about {mark(number)}." if number in texts else None
        way: Way = "program" if number in programs else "tab"
        made.append(Plan(number, seconds * number / visitors, way, fate, number, about, number % 7))
    return made


# ---------------------------------------------------------------- what is right


def expected(some: Sequence[Plan], dtype: str) -> dict[int, dict[str, tuple[list[str], str]]]:
    """Visitor → lane → the cells and the text of the same run, alone in the engine, in these numbers."""
    import sparsed
    from sparsed.answer_text import cell_texts
    from sparsed.questions.build import build_prompt

    model = sparsed.load("mini", dtype=dtype)
    right: dict[int, dict[str, tuple[list[str], str]]] = {}
    for plan in some:
        prompt = plan.text or build_prompt(model, "short_context", "about", plan.question).text
        sampler = sparsed.SamplerConfig(steps=STEPS, gen_length=GENERATION, block_length=BLOCK, seed=plan.seed)
        right[plan.number] = {}
        for lane, attention in (("dense", "dense"), ("sparse", sparsed.SparseDConfig(skip=0.2))):
            made = sparsed.generate(model, prompt, sampler=sampler, attention=attention)
            row = made.tokens[0, -GENERATION:].tolist()
            cells = cell_texts([None if token == model.mask_id else token for token in row], model.tokens_text)
            right[plan.number][lane] = (cells, made.text[0])
    return right


# ---------------------------------------------------------------- the server


class Wiring:
    """The page's events of a run, and their inputs on a fresh page, as a browser reads them from its config."""

    def __init__(self, url: str) -> None:
        config = httpx.get(f"{url}config", timeout=60).json()
        parts = {part["id"]: part["props"] for part in config["components"]}
        ids = {props.get("elem_id"): number for number, props in parts.items()}
        made = config["dependencies"]
        self.begin = next(
            one for one in made if one["backend_fn"] and [ids["sd-run"], "click"] in [list(t) for t in one["targets"]]
        )
        self.run = next(one for one in made if one.get("trigger_after") == self.begin["id"])
        self.over = next(one for one in made if one.get("trigger_after") == self.run["id"])
        self.prepare = next(
            one for one in made if one["inputs"] == self.run["inputs"] and [ids["sd-text"], "change"] in
            [list(t) for t in one["targets"]]
        )  # fmt: skip
        self.names = [parts[one].get("elem_id") for one in self.run["inputs"]]
        self.usual = {parts[one].get("elem_id"): parts[one].get("value") for one in self.run["inputs"]}

    def inputs(self, plan: Plan) -> list[Any]:
        """What the visitor has set; of one who sends what cannot be run, a different thing each."""
        given = {
            "sd-kind": "own" if plan.text else "about", "sd-length": "short_context", "sd-question": plan.question,
            "sd-text": plan.text or "", "sd-steps": STEPS, "sd-gen-length": GENERATION, "sd-block-length": BLOCK,
            "sd-seed": plan.seed, "sd-touched": "steps,gen_length,block_length",
        }  # fmt: skip
        missing = set(given) - set(self.names)
        if missing:
            raise RuntimeError(f"The page has no inputs {sorted(missing)}; it has {self.names}.")
        if plan.fate == "bad":
            given |= bad_values(plan)[0]
        return [{**self.usual, **given}[name] for name in self.names]


def bad_values(plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the page's inputs, the endpoint's parameters) with one thing wrong."""
    wrong = [
        ({"sd-steps": "many"}, {"steps": -5}),
        ({"sd-model": "../../etc/passwd"}, {"model": "../../etc/passwd"}),
        ({"sd-kind": "own", "sd-text": "x" * 2_500_000}, {"text": "x" * 2_500_000}),
        ({"sd-seed": "seven"}, {"seed": "seven"}),
        ({"sd-gen-length": 10**9}, {"gen_length": 10**9}),
        ({"sd-kind": "own", "sd-text": " \n "}, {"kind": "own", "text": " \n "}),
    ]
    return wrong[plan.number % len(wrong)]  # type: ignore[return-value]


# ---------------------------------------------------------------- visitors


class Tab:
    """One browser tab without a browser."""

    def __init__(self, client: httpx.AsyncClient, wiring: Wiring, seen: Seen) -> None:
        self.client, self.wiring, self.seen = client, wiring, seen
        self.session = secrets.token_hex(6)

    async def visit(self) -> None:
        """The page itself, then Run, until the run is over or the tab is closed. A heartbeat goes on meanwhile."""
        page = await self.client.get("/")
        self.seen.received += page.text
        alive = asyncio.create_task(self._heartbeat())
        try:
            await self._run()
        finally:
            alive.cancel()
            await asyncio.gather(alive, return_exceptions=True)

    async def _heartbeat(self) -> None:
        async with self.client.stream("GET", f"/gradio_api/heartbeat/{self.session}", timeout=None) as stream:
            async for _ in stream.aiter_lines():
                pass

    async def _run(self) -> None:
        plan, seen = self.seen.plan, self.seen
        values = self.wiring.inputs(plan)
        await self._event(self.wiring.prepare, values)
        begun = await self.client.post(
            "/gradio_api/run/predict", headers=JSON,
            json={"data": [], "fn_index": self.wiring.begin["id"], "session_hash": self.session},
        )  # fmt: skip
        if begun.status_code != 200:
            seen.problems.append(f"begin answered {begun.status_code}: {begun.text[:200]}")
        asked = time.monotonic()
        closing = plan.fate == "closes"
        stage: dict[str, Any] = {}
        async for output in self._outputs(self.wiring.run, values):
            stage = self._stage(output, stage)
            if seen.wait is None and stage.get("state") == "running":
                seen.wait = time.monotonic() - asked
            under_way = stage.get("state") in ("running", "waiting")
            if closing and under_way and stage["lanes"][0]["step"] >= plan.number % 4:
                seen.state = "closed"
                return
        seen.state, seen.message = stage.get("state", "none"), stage.get("message", "")
        if seen.state == "done":
            seen.answers = {lane["key"]: [cell[0] for cell in lane["cells"]] for lane in stage["lanes"]}
        await self._event(self.wiring.over, values)

    def _stage(self, output: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
        """The newest value of the stage: it is the first output, JSON text."""
        values = output.get("data") or [None]
        value = values[0]
        if isinstance(value, dict) and "value" in value:
            value = value["value"]
        if isinstance(value, str) and value.startswith("{"):
            return json.loads(value)
        return before

    async def _event(self, event: dict[str, Any], values: list[Any]) -> None:
        async for _ in self._outputs(event, values):
            pass

    async def _outputs(self, event: dict[str, Any], values: list[Any]) -> Any:
        """Joins the queue, and yields the outputs, put together from their differences."""
        body = {"data": values, "fn_index": event["id"], "session_hash": self.session, "event_data": None}
        joined = await self.client.post("/gradio_api/queue/join", json=body)
        self.seen.received += joined.text
        if joined.status_code != 200:
            self.seen.problems.append(f"queue/join answered {joined.status_code}: {joined.text[:200]}")
            return
        data: list[Any] = []
        asked = {"params": {"session_hash": self.session}, "timeout": LONGEST_WAIT}
        async with self.client.stream("GET", "/gradio_api/queue/data", **asked) as stream:
            async for line in stream.aiter_lines():
                if not line.startswith("data:"):
                    continue
                self.seen.received += line
                message = json.loads(line[5:])
                kind = message["msg"]
                if kind in ("process_generating", "process_completed"):
                    output = message["output"]
                    if kind == "process_completed" and not message["success"]:
                        self.seen.problems.append(f"an event failed: {output}")
                    elif output.get("data"):
                        new = output["data"]
                        if kind == "process_generating" and data:
                            new = [changed(old, change) for old, change in zip(data, new, strict=True)]
                        data = new
                        yield {"data": data}
                if kind in ("process_completed", "close_stream", "unexpected_error"):
                    if kind != "process_completed":
                        self.seen.problems.append(f"the stream ended with {message}")
                    return


def changed(old: Any, changes: Any) -> Any:
    """An output after the differences that gradio sends: [how, where, value]."""
    if not isinstance(changes, list):
        return changes
    new = json.loads(json.dumps(old))
    for how, path, value in changes:
        if not path:
            new = new + value if how == "append" else value
            continue
        place = new
        for key in path[:-1]:
            place = place[key]
        last = path[-1]
        if how == "append":
            place[last] += value
        elif how == "delete":
            del place[last]
        elif how == "add" and isinstance(place, list):
            place.insert(last, value)
        else:
            place[last] = value
    return new


async def call(url: str, seen: Seen) -> None:
    """A program that calls /compare through gradio's client."""
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    plan = seen.plan
    given: dict[str, Any] = {
        "kind": "own" if plan.text else "about", "text": plan.text or "", "question": plan.question, "seed": plan.seed,
        "steps": STEPS, "gen_length": GENERATION, "block_length": BLOCK, "length": "short_context",
    }  # fmt: skip
    if plan.fate == "bad":
        given |= bad_values(plan)[1]

    def work() -> None:
        client = Client(url, verbose=False)
        asked = time.monotonic()
        try:
            job = client.submit(api_name="/compare", **given)
            last: dict[str, Any] = {}
            for last in job:
                seen.received += json.dumps(last, ensure_ascii=False)
                if seen.wait is None and last["state"] == "running":
                    seen.wait = time.monotonic() - asked
                if plan.fate == "closes" and last["state"] == "running":
                    job.cancel()
                    seen.state = "closed"
                    return
            job.result()
            seen.state, seen.message = last.get("state", "none"), last.get("message", "")
            if seen.state == "done":
                seen.answers = {key: lane["text"] for key, lane in last["lanes"].items()}
        except (AppError, ValueError) as error:
            seen.state, seen.message = "refused", str(error)
            seen.received += str(error)
        finally:
            client.close()

    await asyncio.to_thread(work)


async def visit(url: str, wiring: Wiring, plan: Plan, seen: Seen, began: float) -> None:
    """One visitor, from his coming to his going."""
    await asyncio.sleep(max(0.0, began + plan.at - time.monotonic()))
    try:
        if plan.way == "program":
            await asyncio.wait_for(call(url, seen), LONGEST_WAIT)
            return
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            await asyncio.wait_for(Tab(client, wiring, seen).visit(), LONGEST_WAIT)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what this program looks for
        seen.problems.append(f"{type(error).__name__}: {error}")


async def crowd(url: str, wiring: Wiring, coming: Sequence[Plan]) -> list[Seen]:
    """All visitors, each in his time."""
    seen = [Seen(plan) for plan in coming]
    began = time.monotonic()
    await asyncio.gather(*(visit(url, wiring, one.plan, one, began) for one in seen))
    return seen


# ---------------------------------------------------------------- the judgement


def judge(seen: Seen, right: dict[str, tuple[list[str], str]] | None) -> list[str]:
    """What is wrong with what a visitor got, in sentences."""
    plan, wrong = seen.plan, list(seen.problems)
    leak = LEAKS.search(seen.received)
    if leak:
        wrong.append(f"he received {leak.group()!r}")
    others = set(re.findall(r"visitor-(\d{4})-mark", seen.received)) - {f"{plan.number:04d}"}
    if others:
        wrong.append(f"he received the text of visitors {sorted(others)}")
    if plan.fate == "bad" or seen.state in ("refused", "full", "overdue"):
        if seen.state not in ("refused", "full", "overdue") or not seen.message.endswith("."):
            wrong.append(f"told {seen.message!r} in the state {seen.state!r}")
    elif seen.state == "closed":
        if plan.fate != "closes":
            wrong.append("closed by itself")
    elif seen.state != "done":
        wrong.append(f"ended in the state {seen.state!r}: {seen.message}")
    elif right is not None:
        for lane, (cells, text) in right.items():
            got = seen.answers.get(lane)
            if got != (text if plan.way == "program" else cells):
                wrong.append(f"lane {lane} wrote {got!r}, alone it writes {(text, cells)!r}")
    return [f"visitor {plan.number} ({plan.way}, {plan.fate}): {one}" for one in wrong]


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def gather(visits: Coroutine[Any, Any, list[Seen]]) -> list[Seen]:
    """Runs them in a thread of their own: the one that calls may have an event loop already."""
    with ThreadPoolExecutor(1) as alone:
        return alone.submit(asyncio.run, visits).result()


def load(
    visitors: int, seconds: float, seed: int = 0, growth: float | None = GROWTH, warm_up: int = WARM_UP
) -> list[str]:
    """The whole test; prints the table and returns what is wrong. growth: None does not judge the memory. warm_up:
    visitors before them.
    """
    coming = plans(visitors, seconds, seed)
    asked = [plan for plan in coming if plan.fate != "bad"]
    # Which numbers are faster the server tries out when it starts; where a text means nothing they decide for a token.
    rights = [expected(asked, dtype) for dtype in ("float32", "bfloat16")]
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), SPARSED_MAX_WAITING="64", SPARSED_PUBLIC="1", SPARSED_MAX_MINUTES="5")
        try:
            server.ready()
            wiring = Wiring(server.url)
            gather(crowd(server.url, wiring, plans(warm_up, warm_up / 3, seed + 1)))
            server.idle(visits=True)
            before = server.memory()
            seen = gather(crowd(server.url, wiring, coming))
            server.idle(visits=True)
            after = server.memory()
            log = server.log.read_text(errors="replace")
        finally:
            server.close()
    # All of them must be right in the same numbers.
    judged = [[one for each in seen for one in judge(each, right.get(each.plan.number))] for right in rights]
    wrong = min(judged, key=len)
    if "Traceback" in log:
        wrong.append(f"a trace in the log: {log[log.index('Traceback') :][:3000]}")
    if before and after and growth is not None and after > growth * before:
        wrong.append(f"memory grew from {before / 2**20:.0f} to {after / 2**20:.0f} MiB")
    states = Counter(one.state for one in seen)
    waits = [one.wait for one in seen if one.wait is not None]
    rows = {
        "visitors": f"{visitors} in {seconds:g} s",
        "accepted, done": str(states["done"]),
        "refused, of them bad values": f"{states['refused']}, {sum(one.plan.fate == 'bad' for one in seen)}",
        "closed in the middle": str(states["closed"]),
        "ended otherwise": str({key: n for key, n in states.items() if key not in ("done", "refused", "closed")} or 0),
        "wait p50, p95": f"{percentile(waits, 0.5):.2f} s, {percentile(waits, 0.95):.2f} s",
        "memory before, after": " MiB, ".join(f"{(value or 0) / 2**20:.0f}" for value in (before, after)) + " MiB",
        "wrong": str(len(wrong)),
    }
    for name, value in rows.items():
        print(f"{name:<30}{value}")
    return wrong


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visitors", type=int, default=50, help="1 to 1000 (default 50)")
    parser.add_argument("--seconds", type=float, default=120, help="over which they come, at most 3600 (default 120)")
    parser.add_argument("--seed", type=int, default=0, help="who they are (default 0)")
    given = parser.parse_args(arguments)
    if not (1 <= given.visitors <= 1000 and 0 < given.seconds <= 3600):
        parser.error("--visitors must lie between 1 and 1000, --seconds between 0 and 3600")
    wrong = load(given.visitors, given.seconds, given.seed)
    for one in wrong:
        print(f"WRONG: {one}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
