"""Items that are computed before they are asked for."""

import contextlib
import signal
import threading
import time
from collections.abc import Generator

import pytest

from paliscribe.batch.ahead import ahead
from paliscribe.errors import Stopped
from paliscribe.signals import stop_on_signals


def numbers(end: int) -> Generator[int]:
    yield from range(end)


def test_items_come_in_order_and_not_too_far_ahead() -> None:
    computed: list[int] = []

    def compute(number: int) -> int:
        computed.append(number)
        return number * number

    seen = []
    for number in ahead(compute, numbers(20), 3):
        seen.append(number)
        assert len(computed) <= len(seen) + 3  # this one and three more
    assert seen == [number * number for number in range(20)]


def test_the_next_item_is_computed_while_this_one_is_used() -> None:
    asked = threading.Event()

    def compute(number: int) -> int:
        if number == 1:
            asked.set()
        return number

    computed = ahead(compute, numbers(2), 1)
    assert next(computed) == 0 and asked.wait(10)
    assert list(computed) == [1]


@pytest.mark.parametrize("by", ["items", "compute"])
def test_an_error_comes_in_its_place(by: str) -> None:
    def items() -> Generator[int]:
        yield 1
        if by == "items":
            raise ValueError("two")
        yield 2

    def compute(number: int) -> int:
        if number == 2:
            raise ValueError("two")
        return number

    computed = ahead(compute, items(), 2)
    assert next(computed) == 1
    with pytest.raises(ValueError, match="two"):
        next(computed)


def test_closing_closes_the_items_and_leaves_no_thread() -> None:
    before, closed = threading.active_count(), threading.Event()

    def items() -> Generator[int]:
        with contextlib.closing(numbers(100)) as found:
            try:
                yield from found
            finally:
                closed.set()

    computed = ahead(str, ahead(int, items(), 2), 2)
    assert next(computed) == "0" and threading.active_count() == before + 2
    computed.close()
    assert closed.is_set() and threading.active_count() == before


@pytest.mark.parametrize("early", [False, True], ids=["closing", "waiting"])
def test_a_signal_while_threads_compute_is_all_that_is_raised(early: bool) -> None:
    begun, goes_on, closed = threading.Event(), threading.Event(), threading.Event()

    def items() -> Generator[int]:
        try:
            yield from range(100)
        finally:
            closed.set()

    def slow(number: int) -> int:
        if number:
            begun.set()
            goes_on.wait(30)
        return number

    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT))
    with pytest.raises(Stopped) as raised, stop_on_signals():
        inner = ahead(slow, items(), 1)
        with contextlib.closing(ahead(str, inner, 1)) as computed:
            assert next(computed) == "0" and begun.wait(10)
            timer.start()
            if early:
                threading.Timer(0.6, goes_on.set).start()
                next(computed)
    assert raised.value.exit_code == 130 and not isinstance(raised.value.__context__, ValueError)
    goes_on.set()
    until = time.monotonic() + 10
    while any(thread.name.startswith("ahead") for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert closed.is_set()
