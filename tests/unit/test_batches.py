"""Which sequences run together, and what follows where memory does not suffice."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest

from sparsed.batches import Fitting, must_be_alone, together
from sparsed.config import AttentionConfig, CacheConfig, SamplerConfig
from sparsed.models.catalogue import MINI_DEFAULTS


@pytest.mark.parametrize("room", [0, 1, 2, 3, 5, 100])
def test_groups_hold_equal_keys_in_order_and_are_full_but_the_last(room: int) -> None:
    items = [(number * number % 7 % 4, number) for number in range(40)]
    groups = list(together(items, lambda item: item[0], lambda key: room - key))
    assert sorted(item for group in groups for item in group) == sorted(items)
    for key in {key for key, _ in items}:
        own = [group for group in groups if group[0][0] == key]
        most = max(1, room - key)
        # By hand: those of a key, cut after every so many.
        those = [item for item in items if item[0] == key]
        assert own == [those[first : first + most] for first in range(0, len(those), most)]


def test_a_group_is_given_as_soon_as_it_is_full() -> None:
    read: list[int] = []

    def items():
        for number in (5, 6, 5, 6, 5):
            read.append(number)
            yield number

    groups = together(items(), lambda number: number, lambda _: 2)
    assert next(groups) == [5, 5] and read == [5, 6, 5]
    assert next(groups) == [6, 6] and read == [5, 6, 5, 6]
    assert list(groups) == [[5]]


@pytest.mark.parametrize("method", ["dense", "sparsed", "random", "sliding_window"])
@pytest.mark.parametrize("cache", ["none", "delayed", "dual"])
@pytest.mark.parametrize("threshold", [None, 0.9])
@pytest.mark.parametrize(("temperature", "refresh"), list(product([0.0, 0.5], [0, 4])))
def test_who_must_be_alone(method: str, cache: str, threshold: float | None, temperature: float, refresh: int) -> None:
    attention = AttentionConfig(method) if method == "dense" else AttentionConfig(method, refresh=refresh)
    sampler = SamplerConfig(threshold=threshold, temperature=temperature).resolve(MINI_DEFAULTS)
    by_lot = temperature > 0 or method == "random"
    apart = threshold is not None and method != "dense" and (cache != "none" or refresh > 0)
    assert must_be_alone(sampler, attention, CacheConfig(cache).resolve()) == (by_lot or apart)


class Device:
    """Memory for so many tokens; counts the attempts."""

    def __init__(self, most: int, length: int) -> None:
        self.most, self.length, self.tried = most, length, []

    def work(self, part: Sequence[int]) -> list[int]:
        self.tried.append(len(part))
        if len(part) * self.length > self.most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return [number * 10 for number in part]


def test_a_batch_that_is_too_much_is_halved_and_the_next_one_is_not_tried_whole() -> None:
    fitting, device = Fitting(), Device(most=350, length=100)
    made = list(fitting.pieces(range(8), 100, device.work))
    assert [list(part) for part, _ in made] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [found for _, result in made for found in result] == [number * 10 for number in range(8)]
    assert device.tried == [8, 4, 2, 2, 2, 2] and fitting.note is not None
    assert fitting.note.startswith("4 sequences of 100 tokens were too much") and "200 tokens since" in fitting.note
    # Shorter ones: as many as what did fit.
    device.length = 50
    device.tried.clear()
    assert [list(part) for part, _ in fitting.pieces(range(5), 50, device.work)] == [[0, 1, 2, 3], [4]]
    assert device.tried == [4, 1]


def test_a_sequence_that_is_too_much_by_itself_is_one_sentence() -> None:
    fitting, device = Fitting(), Device(most=350, length=400)
    with pytest.raises(MemoryError, match="one sequence of 400 tokens, its generation included: take a shorter"):
        list(fitting.pieces(range(3), 400, device.work))
    assert device.tried == [3, 1]


def test_another_error_is_raised_as_it_is() -> None:
    def work(part: Sequence[int]) -> None:
        raise RuntimeError("The model's logits are not finite")

    with pytest.raises(RuntimeError, match="not finite"):
        list(Fitting().pieces(range(3), 10, work))


def test_nothing_is_said_where_all_fits() -> None:
    fitting = Fitting()
    assert [list(part) for part, _ in fitting.pieces([1, 2, 3], 10, list)] == [[1, 2, 3]] and fitting.note is None
