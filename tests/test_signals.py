"""Signals that end a block."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from paliscribe.errors import Stopped
from paliscribe.signals import stop_on_signals


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """The signals that the handlers of before get."""
    got: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda signum, frame: got.append(signum)) for number in numbers]
    yield got
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_block(number: signal.Signals, handled: list[int]) -> None:
    with pytest.raises(Stopped) as raised, stop_on_signals():
        signal.raise_signal(number)
    assert raised.value.exit_code == 128 + number and not handled
    signal.raise_signal(number)
    assert handled == [number]


def test_the_second_signal_goes_to_the_handlers_of_before(handled: list[int]) -> None:
    with pytest.raises(Stopped), stop_on_signals():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGTERM)
    assert handled == [signal.SIGTERM]


class Stubborn:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_a_destructor_swallows_ends_the_block(handled: list[int]) -> None:
    begun = time.monotonic()
    with pytest.raises(Stopped), stop_on_signals():
        Stubborn()
        time.sleep(30)
    assert time.monotonic() - begun < 25 and not handled


def test_cleaning_up_is_not_interrupted_again(handled: list[int]) -> None:
    cleaned = []
    with pytest.raises(Stopped), stop_on_signals():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            with contextlib.suppress(ValueError):
                time.sleep(3.5)
                raise ValueError
            cleaned.append(True)
    assert cleaned and not handled


def test_no_signal_comes_after_the_block(handled: list[int]) -> None:
    with stop_on_signals(), contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    time.sleep(2.5)
    assert not handled and not [thread for thread in threading.enumerate() if thread.name == "stop again"]


def test_another_threads_block_is_left_alone(handled: list[int]) -> None:
    ended: list[bool] = []

    def run() -> None:
        with stop_on_signals():
            time.sleep(0.5)
        ended.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    os.kill(os.getpid(), signal.SIGTERM)
    thread.join(20)
    assert ended and handled == [signal.SIGTERM]
