"""Reading ahead: the same items, the same errors, and a thread that always ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import count, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rompatch.compute.prefetch import prefetched


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "rompatch-reader"]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    assert readers() == []
    yield
    assert readers() == []


class Closed:
    """Endless items that notice when they are closed."""

    def __init__(self) -> None:
        self.given, self.closed = 0, threading.Event()

    def __iter__(self) -> Iterator[int]:
        try:
            for number in count():
                self.given += 1
                yield number
        finally:
            self.closed.set()


@given(items=st.lists(st.integers()), ahead=st.integers(1, 5))
def test_the_items_are_the_same_in_the_same_order(items: list[int], ahead: int) -> None:
    assert list(prefetched(items, ahead)) == items


def test_none_is_an_item_and_an_exception_that_is_one_too() -> None:
    problem = ValueError("an item")
    assert list(prefetched([None, problem])) == [None, problem]


def test_an_error_comes_behind_the_items_before_it() -> None:
    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise UnicodeError("no text")

    items = prefetched(failing())
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(UnicodeError, match="no text"):
        next(items)
    assert readers() == []


def test_no_more_is_read_ahead_than_asked_for() -> None:
    source = Closed()
    with closing(prefetched(iter(source), 3)) as items:
        assert next(items) == 0
        time.sleep(0.05)
        assert source.given <= 1 + 3 + 1, "the one in hand, three that wait, one at the door"


@pytest.mark.parametrize("taken", [1, 2, 10])
def test_whoever_stops_early_ends_the_thread_and_closes_the_source(taken: int) -> None:
    source = Closed()
    with closing(prefetched(iter(source), 2)) as items:
        assert list(islice(items, taken)) == list(range(taken))
    assert source.closed.wait(1)


@pytest.mark.parametrize("problem", [RuntimeError, KeyboardInterrupt])
def test_an_exception_where_the_items_are_used_ends_the_thread(problem: type[BaseException]) -> None:
    source = Closed()
    with pytest.raises(problem), closing(prefetched(iter(source), 2)) as items:
        for number in items:
            if number == 3:
                raise problem
    assert source.closed.wait(1)


def test_nothing_starts_before_the_first_item_is_asked_for() -> None:
    source = Closed()
    prefetched(iter(source)).close()
    assert source.given == 0


def test_it_reads_while_the_caller_works() -> None:
    source = Closed()
    with closing(prefetched(iter(source), 4)) as items:
        next(items)
        deadline = time.monotonic() + 5
        while source.given < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert source.given >= 4
