"""Items that are computed before they are asked for."""

import threading
from collections.abc import Iterator

import pytest

from paliscribe.batch.ahead import ahead


def test_items_come_in_order_and_not_too_far_ahead() -> None:
    computed: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            computed.append(number)
            yield number

    seen = []
    for number in ahead(items(), 3):
        assert len(computed) <= number + 4  # this one and three more
        seen.append(number)
    assert seen == list(range(20))


def test_the_next_item_is_computed_while_this_one_is_used() -> None:
    asked = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        asked.set()
        yield 2

    numbers = ahead(items(), 1)
    assert next(numbers) == 1 and asked.wait(10)
    assert list(numbers) == [2]


def test_an_error_comes_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("two")

    numbers = ahead(items(), 2)
    assert next(numbers) == 1
    with pytest.raises(ValueError, match="two"):
        next(numbers)


def test_closing_leaves_no_thread() -> None:
    before = threading.active_count()
    numbers = ahead(iter(range(100)), 2)
    assert next(numbers) == 0 and threading.active_count() == before + 1
    numbers.close()
    assert threading.active_count() == before
