"""The race: fair turns, one step at a time, nothing lost between the worker and the page."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import pytest

from app.race.line import DeviceQueue, LineFull
from app.race.race import Lane, Race
from sparsed.turns import seat

T = TypeVar("T")


@dataclass(frozen=True)
class Tick:
    index: int
    seconds: float
    began: float
    ended: float


class Runner:
    """A lane whose steps take `seconds` on its own clock, and `sleep` seconds of real time."""

    def __init__(self, steps: int, seconds: float, sleep: float = 0.0, fail_at: int | None = None) -> None:
        self.steps, self.seconds, self.sleep, self.fail_at = steps, seconds, sleep, fail_at
        self.made = 0
        self.closed = 0
        self.thread: threading.Thread | None = None

    def __next__(self) -> Tick:
        if self.made == self.steps:
            raise StopIteration
        if self.made == self.fail_at:
            raise RuntimeError("kernel error")
        # Not its number, which the system may give again.
        self.thread = threading.current_thread()
        began = time.perf_counter()
        time.sleep(self.sleep)
        self.made += 1
        return Tick(self.made - 1, self.seconds, began, time.perf_counter())

    def close(self) -> None:
        self.closed += 1


def run_in_a_loop_of_its_own(coroutine: Coroutine[Any, Any, T]) -> T:
    """In another thread: the browser tests of the same session keep an event loop running in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result(timeout=30)


def order(race: Race) -> list[str]:
    return [item.lane for update in race for item in update.steps]


def test_the_lane_with_the_smaller_clock_goes_next() -> None:
    # Clocks after each step: a 3, b 2, b 4, a 6, b 6, then equal again: the first lane goes.
    lanes = [Lane("a", Runner(4, 3.0)), Lane("b", Runner(6, 2.0))]
    assert order(Race(lanes)) == ["a", "b", "b", "a", "b", "a", "b", "b", "a", "b"]


def test_three_lanes_take_turns_by_their_clocks() -> None:
    # Clocks: a 3, b 2, c 2, b 4, c 4, a 6; then b and c once more, level with a at 6.
    lanes = [Lane("a", Runner(2, 3.0)), Lane("b", Runner(3, 2.0)), Lane("c", Runner(3, 2.0))]
    assert "".join(order(Race(lanes))) == "abcbcabc"
    assert [order(Race([Lane(key, Runner(1, 1.0)) for key in "abc"], first=n))[0] for n in range(4)] == list("abca")


@pytest.mark.parametrize(("first", "begins"), [(0, "a"), (1, "b"), (2, "a"), (3, "b")])
def test_who_begins_alternates(first: int, begins: str) -> None:
    lanes = [Lane("a", Runner(2, 1.0)), Lane("b", Runner(2, 1.0))]
    assert order(Race(lanes, first=first))[0] == begins


def test_lanes_never_run_at_the_same_time_and_not_in_the_pages_thread() -> None:
    runners = [Runner(10, 1.0, sleep=0.004), Runner(10, 0.7, sleep=0.003)]
    ticks = []
    for update in Race([Lane("a", runners[0]), Lane("b", runners[1])]):
        ticks += [item.step for item in update.steps]
    ticks.sort(key=lambda tick: tick.began)
    assert all(before.ended <= after.began for before, after in pairwise(ticks))
    assert runners[0].thread is runners[1].thread is not threading.current_thread()


def test_every_step_comes_exactly_once_and_at_most_eight_updates_a_second() -> None:
    race = Race([Lane("a", Runner(150, 1.0, sleep=0.002)), Lane("b", Runner(150, 0.5, sleep=0.002))])
    start, seen, arrived = time.monotonic(), {"a": [], "b": []}, []
    for update in race:
        arrived.append(time.monotonic())
        for item in update.steps:
            seen[item.lane].append(item.step.index)
    assert seen == {"a": list(range(150)), "b": list(range(150))}
    assert len(arrived) <= 8 * (arrived[-1] - start) + 1
    assert all(later - earlier > 0.12 for earlier, later in pairwise(arrived))


def test_the_last_update_alone_says_that_it_is_over() -> None:
    updates = list(Race([Lane("a", Runner(3, 1.0)), Lane("b", Runner(3, 1.0))], updates_per_second=1000))
    assert [update.state for update in updates[:-1]] == ["running"] * (len(updates) - 1)
    assert updates[-1].state == "done" and updates[-1].steps == ()
    assert sorted(updates[-1].finished) == ["a", "b"]


def test_the_event_loops_stream_is_the_same_stream() -> None:
    async def collect() -> list[tuple[str, int]]:
        race = Race([Lane("a", Runner(40, 1.0, sleep=0.002)), Lane("b", Runner(40, 2.0, sleep=0.002))])
        return [(item.lane, item.step.index) async for update in race.updates() for item in update.steps]

    steps = run_in_a_loop_of_its_own(collect())
    assert sorted(steps) == [(lane, index) for lane in "ab" for index in range(40)]


def test_stop_ends_within_one_step_and_frees_the_device() -> None:
    runner, freed = Runner(1000, 1.0, sleep=0.02), threading.Event()
    race = Race([Lane("a", runner)], updates_per_second=50, on_end=freed.set)
    last = None
    for update in race:
        last = update
        if runner.made >= 5 and not race._stop.is_set():
            made = runner.made
            race.stop()
    assert last is not None and last.state == "stopped"
    assert runner.made <= made + 1
    assert freed.is_set() and runner.closed == 1 and race.over


def test_a_stopped_race_still_delivers_the_steps_that_were_made() -> None:
    runner = Runner(1000, 1.0, sleep=0.01)
    race, indices = Race([Lane("a", runner)], updates_per_second=20), []
    for update in race:
        indices += [item.step.index for item in update.steps]
        if len(indices) > 3:
            race.stop()
    assert indices == list(range(runner.made))


def test_leaving_the_stream_stops_the_race() -> None:
    runner, freed = Runner(10_000, 1.0, sleep=0.005), threading.Event()
    race = Race([Lane("a", runner)], on_end=freed.set)
    for _ in race:
        break
    assert freed.wait(2) and runner.made < 200 and runner.closed == 1


def test_closing_the_event_loops_stream_stops_the_race() -> None:
    runner, freed = Runner(10_000, 1.0, sleep=0.005), threading.Event()

    async def leave() -> None:
        stream = Race([Lane("a", runner)], on_end=freed.set).updates()
        async for _ in stream:
            break
        await stream.aclose()

    run_in_a_loop_of_its_own(leave())
    assert freed.wait(2) and runner.made < 200 and runner.closed == 1


def test_an_engine_error_is_an_update_and_closes_every_lane() -> None:
    good, bad, freed = Runner(50, 1.0), Runner(50, 1.0, fail_at=3), threading.Event()
    updates = list(Race([Lane("a", good), Lane("b", bad)], on_end=freed.set))
    assert updates[-1].state == "failed" and updates[-1].error_lane == "b"
    assert str(updates[-1].error) == "kernel error"
    assert good.closed == bad.closed == 1 and freed.is_set()
    assert sum(item.lane == "b" for update in updates for item in update.steps) == 3


def test_a_race_stopped_before_it_starts_makes_no_step() -> None:
    runner, freed = Runner(5, 1.0), threading.Event()
    race = Race([Lane("a", runner)], on_end=freed.set)
    race.stop()
    assert [update.state for update in race] == ["stopped"]
    assert runner.made == 0 and runner.closed == 1 and freed.is_set()


def test_close_waits_for_the_running_step() -> None:
    runner = Runner(100, 1.0, sleep=0.05)
    race = Race([Lane("a", runner)])
    race.start()
    time.sleep(0.02)
    assert race.close(timeout=2)
    made = runner.made
    time.sleep(0.1)
    assert runner.made == made


def test_the_pages_work_does_not_hold_up_the_lanes() -> None:
    runner = Runner(40, 1.0, sleep=0.005)
    race = Race([Lane("a", runner)], updates_per_second=1000)
    for _ in race:
        time.sleep(0.3)
        break
    assert runner.made >= 20


@pytest.mark.parametrize(
    "arguments", [{"lanes": []}, {"lanes": [Lane("a", Runner(1, 1.0))], "updates_per_second": 0}]
)
def test_impossible_races_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match="at least one lane|must be above 0"):
        Race(**arguments)


def test_the_queue_serves_in_order_and_gives_the_place_free() -> None:
    queue = DeviceQueue(capacity=3)
    tickets = [queue.join() for _ in range(3)]
    assert [ticket.position for ticket in tickets] == [0, 1, 2]
    with pytest.raises(ValueError, match="already in line"):
        queue.join()
    tickets[1].leave()
    tickets[1].leave()
    assert [tickets[0].position, tickets[2].position, len(queue)] == [0, 1, 2]
    tickets[0].leave()
    assert tickets[2].position == 0
    assert [queue.next_turn() for _ in range(3)] == [0, 1, 2]


def test_a_full_line_says_so_and_takes_whoever_comes_later() -> None:
    queue = DeviceQueue(capacity=2)
    first, _ = queue.join(), queue.join()
    with pytest.raises(LineFull, match="^2 runs are already in line for this device"):
        queue.join()
    first.leave()
    assert queue.join().position == 1


def test_whoever_is_in_line_already_lets_others_go_before() -> None:
    queue = DeviceQueue()
    greedy = [queue.join(owner="greedy") for _ in range(4)]
    one, other = queue.join(owner="one"), queue.join(owner="other")
    # The first has the device; then everybody's first run, then everybody's second.
    line = [greedy[0], one, other, greedy[1], greedy[2], greedy[3]]
    assert [ticket.position for ticket in line] == list(range(6))
    again = queue.join(owner="one")
    assert [ticket.position for ticket in (greedy[1], again, greedy[2])] == [3, 4, 5]
    # Nobody who has the device loses it.
    greedy[0].leave()
    late = queue.join(owner="late")
    assert one.position == 0 and other.position == 1 and late.position < greedy[2].position


def test_a_device_that_takes_several_runs_gives_each_a_place() -> None:
    queue = DeviceQueue(at_once=3)
    tickets = [queue.join() for _ in range(5)]
    assert [ticket.position for ticket in tickets] == [0, 0, 0, 1, 2] and queue.running == 3
    tickets[1].leave()
    assert [tickets[at].position for at in (0, 2, 3, 4)] == [0, 0, 0, 1]


def test_the_wait_is_what_those_before_are_expected_to_take() -> None:
    queue = DeviceQueue()
    runs = [queue.join(seconds) for seconds in (40.0, 10.0, None, 5.0)]
    assert runs[0].wait == 0 and runs[3].wait is None
    assert runs[1].wait == pytest.approx(40, abs=0.5) and runs[2].wait == pytest.approx(50, abs=0.5)
    runs[0].began -= 30.0
    assert runs[1].wait == pytest.approx(10, abs=0.5)
    runs[0].began -= 30.0  # it takes longer than expected
    assert runs[1].wait == 0 and runs[2].wait == pytest.approx(10, abs=0.5)
    both = DeviceQueue(at_once=2)
    some = [both.join(seconds) for seconds in (30.0, 20.0, 50.0, 1.0)]
    assert some[2].wait == pytest.approx(20, abs=0.5) and some[3].wait == pytest.approx(30, abs=0.5)


def test_a_race_that_takes_too_long_is_ended_after_its_step() -> None:
    ended = threading.Event()
    runner = Runner(1000, 1.0, sleep=0.02)
    race = Race([Lane("a", runner)], most_seconds=0.2, on_end=ended.set)
    last = list(race)[-1]
    assert last.state == "overdue" and ended.is_set() and not race.stuck
    assert 5 <= runner.made <= 15 and runner.closed == 1


def test_a_step_that_does_not_come_back_is_given_up_but_keeps_the_device() -> None:
    ended, gate = threading.Event(), threading.Event()

    class Hanging(Runner):
        def __next__(self) -> Tick:
            if self.made == 2:
                gate.wait(20)
            return super().__next__()

    race = Race([Lane("a", Hanging(9, 1.0))], most_seconds=0.1, grace_seconds=0.1, on_end=ended.set)
    updates = list(race)
    assert updates[-1].state == "overdue" and race.stuck and not ended.is_set()
    gate.set()
    assert ended.wait(5)
    deadline = time.monotonic() + 5
    while race.stuck and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not race.stuck


def test_a_race_within_its_time_is_not_ended() -> None:
    race = Race([Lane("a", Runner(3, 1.0))], most_seconds=0.3)
    assert list(race)[-1].state == "done"
    time.sleep(0.5)
    assert not race.stuck and race.over
    with pytest.raises(ValueError, match="must be above 0"):
        Race([Lane("a", Runner(1, 1.0))], most_seconds=0)


def test_a_panic_of_a_library_is_not_the_end_of_a_good_race() -> None:
    class Panic(BaseException):
        pass

    class Panicking(Runner):
        def __next__(self) -> Tick:
            if self.made == 1:
                raise Panic
            return super().__next__()

    ended = threading.Event()
    before, threading.excepthook = threading.excepthook, lambda _: None
    try:
        last = list(Race([Lane("a", Panicking(5, 1.0))], on_end=ended.set))[-1]
    finally:
        threading.excepthook = before
    assert last.state == "failed" and ended.is_set()


# ---- several devices ---------------------------------------------------------------------------------------


class Meeting(Runner):
    """Every step waits within itself for a step of the other lane."""

    def __init__(self, steps: int, barrier: threading.Barrier) -> None:
        super().__init__(steps, 1.0)
        self.barrier = barrier

    def __next__(self) -> Tick:
        if self.made < self.steps:
            self.barrier.wait()
        return super().__next__()


class Gated(Runner):
    """Every step says that it has begun, and goes on when its gate is open."""

    def __init__(self, steps: int, fail_at: int | None = None) -> None:
        super().__init__(steps, 1.0, fail_at=fail_at)
        self.began, self.gate = threading.Event(), threading.Event()

    def __next__(self) -> Tick:
        self.began.set()
        assert self.gate.wait(20), "nobody opened the gate"
        return super().__next__()


class Ends:
    """Counts how often the devices were said to be free, and what the lanes had made then."""

    def __init__(self, *runners: Runner) -> None:
        self.runners, self.made = runners, []
        self.told = threading.Event()

    def __call__(self) -> None:
        self.made.append([runner.made for runner in self.runners])
        self.told.set()


def wait_until(said: Any) -> None:
    deadline = time.monotonic() + 20
    while not said():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)


def test_who_sits_where() -> None:
    assert [seat(lane, 1) for lane in range(3)] == [0, 0, 0]
    assert [seat(lane, 2) for lane in range(3)] == [0, 1, 1]
    assert [seat(lane, 3) for lane in range(3)] == [0, 1, 2]


def test_lanes_of_two_devices_step_at_the_same_time() -> None:
    barrier = threading.Barrier(2, timeout=20)
    runners = [Meeting(6, barrier), Meeting(6, barrier)]
    ends = Ends(*runners)
    updates = list(Race([Lane("a", runners[0], 0), Lane("b", runners[1], 1)], on_end=ends))
    assert updates[-1].state == "done" and sorted(updates[-1].finished) == ["a", "b"]
    steps = [(item.lane, item.step.index) for update in updates for item in update.steps]
    assert sorted(steps) == [(lane, index) for lane in "ab" for index in range(6)]
    threads = {runner.thread for runner in runners}
    assert len(threads) == 2 and threading.current_thread() not in threads
    assert ends.made == [[6, 6]] and [runner.closed for runner in runners] == [1, 1]


def test_lanes_of_one_device_do_not_however_it_is_called() -> None:
    barrier = threading.Barrier(2, timeout=0.3)
    lanes = [Lane("a", Meeting(2, barrier), "gpu"), Lane("b", Meeting(2, barrier), "gpu")]
    last = list(Race(lanes))[-1]
    assert last.state == "failed" and isinstance(last.error, threading.BrokenBarrierError)
    alike = [Lane("a", Runner(4, 3.0), "gpu"), Lane("b", Runner(6, 2.0), "gpu")]
    assert order(Race(alike)) == ["a", "b", "b", "a", "b", "a", "b", "b", "a", "b"]
    assert alike[0].run.thread is alike[1].run.thread is not None


def test_on_each_device_its_lanes_take_turns() -> None:
    alone, b, c = Runner(3, 1.0), Runner(4, 3.0, sleep=0.002), Runner(6, 2.0, sleep=0.002)
    lanes = [Lane("a", alone, 0), Lane("b", b, 1), Lane("c", c, 1)]
    items = [item for update in Race(lanes, first=1) for item in update.steps]
    # As without the first lane.
    assert [item.lane for item in items if item.lane != "a"] == list("bccbcbccbc")
    assert [item.step.index for item in items if item.lane == "a"] == [0, 1, 2]
    assert alone.thread is not b.thread is c.thread is not None
    ticks = [item.step for item in items if item.lane != "a"]
    assert all(before.ended <= after.began for before, after in pairwise(ticks))
    begins = [[item.lane for update in Race(lanes_again(), first=first) for item in update.steps] for first in (1, 2)]
    assert [next(lane for lane in made if lane != "a") for made in begins] == ["b", "c"]


def lanes_again() -> list[Lane]:
    return [Lane("a", Runner(1, 1.0), 0), Lane("b", Runner(1, 1.0), 1), Lane("c", Runner(1, 1.0), 1)]


def test_stop_ends_every_lane_within_its_step() -> None:
    runners = [Gated(100), Gated(100)]
    ends = Ends(*runners)
    race = Race([Lane("a", runners[0], 0), Lane("b", runners[1], 1)], on_end=ends)
    race.start()
    for runner in runners:
        assert runner.began.wait(20)
    race.stop()
    runners[0].gate.set()
    wait_until(lambda: runners[0].made == 1)
    # The other one's step goes on, and so its device is not free.
    assert not race.close(timeout=0.1) and not ends.told.is_set() and not race.over
    runners[1].gate.set()
    assert race.close(timeout=20) and ends.made == [[1, 1]]
    updates = list(race)
    assert updates[-1].state == "stopped" and race.over and not race.stuck
    assert sorted(item.lane for update in updates for item in update.steps) == ["a", "b"]
    assert [runner.closed for runner in runners] == [1, 1]


@pytest.mark.parametrize("bad", [0, 1])
def test_an_error_in_one_lane_ends_the_other_within_its_step(bad: int) -> None:
    runners = [Gated(100), Gated(100)]
    runners[bad].fail_at = 0
    ends = Ends(*runners)
    race = Race([Lane("a", runners[0], 0), Lane("b", runners[1], 1)], on_end=ends)
    race.start()
    for runner in runners:
        assert runner.began.wait(20)
    runners[bad].gate.set()
    wait_until(race._stop.is_set)
    assert not ends.told.is_set()
    runners[1 - bad].gate.set()
    updates = list(race)
    assert updates[-1].state == "failed" and updates[-1].error_lane == "ab"[bad]
    assert str(updates[-1].error) == "kernel error"
    assert [item.lane for update in updates for item in update.steps] == ["ab"[1 - bad]]
    assert ends.made == [[0, 1] if bad == 0 else [1, 0]] and [runner.closed for runner in runners] == [1, 1]


def test_of_two_errors_the_first_is_told() -> None:
    runners = [Gated(100, fail_at=0), Gated(100, fail_at=0)]
    ends = Ends(*runners)
    race = Race([Lane("a", runners[0], 0), Lane("b", runners[1], 1)], on_end=ends)
    race.start()
    for runner in runners:
        assert runner.began.wait(20)
    runners[1].gate.set()
    wait_until(race._stop.is_set)
    runners[0].gate.set()
    last = list(race)[-1]
    assert last.state == "failed" and last.error_lane == "b" and len(ends.made) == 1


def test_a_panic_on_one_device_ends_the_other_and_is_no_good_race(monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        pass

    class Panicking(Gated):
        def __next__(self) -> Tick:
            super().__next__()
            raise Panic

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    runners = [Panicking(100), Gated(100)]
    ends = Ends(*runners)
    race = Race([Lane("a", runners[0], 0), Lane("b", runners[1], 1)], on_end=ends)
    race.start()
    for runner in runners:
        assert runner.began.wait(20)
    runners[0].gate.set()
    wait_until(race._stop.is_set)
    runners[1].gate.set()
    assert list(race)[-1].state == "failed" and len(ends.made) == 1 and runners[1].made == 1


def test_a_race_on_two_devices_that_takes_too_long_is_ended() -> None:
    runners = [Runner(10_000, 1.0, sleep=0.01), Runner(10_000, 1.0, sleep=0.01)]
    ends = Ends(*runners)
    race = Race([Lane("a", runners[0], 0), Lane("b", runners[1], 1)], most_seconds=0.2, on_end=ends)
    last = list(race)[-1]
    assert last.state == "overdue" and not race.stuck and len(ends.made) == 1
    assert all(0 < runner.made < 1000 and runner.closed == 1 for runner in runners)


def test_one_step_that_does_not_come_back_keeps_both_devices() -> None:
    good, hanging = Runner(3, 1.0), Gated(9)
    ends = Ends(good, hanging)
    race = Race([Lane("a", good, 0), Lane("b", hanging, 1)], most_seconds=0.2, grace_seconds=0.1, on_end=ends)
    updates = list(race)
    assert updates[-1].state == "overdue" and updates[-1].finished == ("a",)
    assert race.stuck and race.over and not ends.told.is_set() and good.closed == 0
    hanging.gate.set()
    wait_until(lambda: not race.stuck)
    assert ends.made == [[3, 1]] and good.closed == hanging.closed == 1


def test_the_stream_goes_on_until_the_last_device_is_done() -> None:
    quick, slow = Runner(2, 1.0), Gated(4)
    ends = Ends(quick, slow)
    race = Race([Lane("a", quick, 0), Lane("b", slow, 1)], on_end=ends)
    race.start()
    wait_until(lambda: race._finished == ["a"])
    assert not ends.told.is_set() and not race.over
    slow.gate.set()
    assert list(race)[-1].state == "done" and ends.made == [[2, 4]]


def test_a_race_that_is_given_up_ends_at_once_as_failed() -> None:
    """The step that runs waits for something that is gone: nobody waits for the step."""
    run = Gated(3)
    ends = Ends(run)
    race = Race([Lane("a", run)], on_end=ends)
    race.start()
    assert run.began.wait(20)
    error = RuntimeError("Process 2 of 2 is gone.")
    race.give_up(error)
    updates = list(race)
    assert [(update.state, update.error, update.error_lane) for update in updates] == [("failed", error, None)]
    assert race.over and race.stuck and not ends.told.is_set()
    # What was over stays as it was.
    race.give_up(RuntimeError("something else"))
    run.gate.set()
    assert ends.told.wait(20) and ends.made == [[1]]
    wait_until(lambda: not race.stuck)
    assert race._error is error


def test_a_race_that_is_over_cannot_be_given_up() -> None:
    race = Race([Lane("a", Runner(2, 1.0))])
    before = [update.state for update in race]
    race.give_up(RuntimeError("too late"))
    assert before[-1] == "done" and race._ended == "done" and race._error is None
