"""Groups from calls, in plain integers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import BATCH, ONLINE
from pipeline.scheduler import Item, Scheduler


def items(*lengths: int, first: int = 0) -> list[Item]:
    return [Item(first + i, 5, length) for i, length in enumerate(lengths)]


def drawn(scheduler: Scheduler) -> list[list[int]]:
    groups = []
    while group := scheduler.next_group():
        groups.append([item.ticket for item in group])
    return groups


def test_like_lengths_share_a_group() -> None:
    scheduler = Scheduler(2)
    scheduler.add(items(64, 8, 64, 8), BATCH)
    assert drawn(scheduler) == [[1, 3], [0, 2]]


def test_calls_do_not_mix() -> None:
    scheduler = Scheduler(4)
    scheduler.add(items(8, 8), BATCH)
    scheduler.add(items(8, 8, first=2), BATCH)
    assert drawn(scheduler) == [[0, 1], [2, 3]]


def test_online_first_but_batch_keeps_a_floor() -> None:
    scheduler = Scheduler(1, batch_floor=3)
    scheduler.add(items(8, 8, 8), BATCH)
    scheduler.add(items(*[8] * 6, first=10), ONLINE)
    assert [group[0] for group in drawn(scheduler)] == [10, 11, 0, 12, 13, 1, 14, 15, 2]


def test_removed_requests_do_not_run() -> None:
    scheduler = Scheduler(2)
    scheduler.add(items(8, 8, 8), BATCH)
    assert scheduler.remove(2)
    assert not scheduler.remove(2)
    assert drawn(scheduler) == [[0, 1]]
    assert len(scheduler) == 0


@given(st.lists(st.tuples(st.lists(st.integers(1, 64), max_size=9), st.sampled_from([ONLINE, BATCH])), max_size=6),
       st.integers(1, 5))  # fmt: skip
def test_every_request_runs_once(calls: list[tuple[list[int], int]], group_size: int) -> None:
    scheduler, given_out = Scheduler(group_size), 0
    for lengths, priority in calls:
        scheduler.add(items(*lengths, first=given_out), priority)
        given_out += len(lengths)
    assert len(scheduler) == given_out
    groups = drawn(scheduler)
    assert sorted(ticket for group in groups for ticket in group) == list(range(given_out))
    assert all(len(group) <= group_size for group in groups)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="group_size"):
        Scheduler(0)
