"""Who runs next, in plain integers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paliscribe.engine.scheduler import Item, Limits, QueueFull, Scheduler
from paliscribe.records import BATCH, ONLINE

LIMITS = Limits(slots=8, reserve=2, prefill_tokens=40)


def items(*lengths: int, first: int = 0, priority: int = BATCH, tokens: int = 10) -> list[Item]:
    return [Item(first + i, tokens, length, priority) for i, length in enumerate(lengths)]


def tickets(group: list[Item]) -> list[int]:
    return [item.ticket for item in group]


def test_a_group_is_bounded_by_slots_and_by_prefill() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add(items(*[8] * 12))
    assert tickets(scheduler.admit(8, 0)) == [0, 1, 2, 3], "40 tokens"
    assert tickets(scheduler.admit(4, 4)) == [4, 5], "two slots are kept for online requests"
    assert scheduler.admit(2, 6) == []
    assert len(scheduler) == 6


def test_a_prompt_above_the_bound_is_prefilled_alone() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add([Item(0, 100, 8), Item(1, 10, 8)])
    assert tickets(scheduler.admit(8, 0)) == [1]
    assert tickets(scheduler.admit(7, 1)) == [0]


def test_a_group_costs_its_tokens() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add([Item(0, 10, 8), Item(1, 10, 8), Item(2, 20, 8), Item(3, 20, 8)])
    assert tickets(scheduler.admit(8, 0)) == [0, 1, 2], "10 + 10 + 20 are 40, the bound"


def test_long_answers_start_first_and_like_lengths_share_a_group() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add([Item(0, 12, 8), Item(1, 10, 64), Item(2, 10, 8), Item(3, 11, 64)])
    assert tickets(scheduler.admit(8, 0)) == [1, 3, 2]


def test_calls_are_first_in_first_out() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add(items(8, 8))
    scheduler.add(items(64, 64, first=2))
    assert tickets(scheduler.admit(8, 0)) == [0, 1, 2, 3]


def test_online_first_but_batch_keeps_a_floor() -> None:
    scheduler = Scheduler(Limits(slots=8, reserve=2, prefill_tokens=10, batch_floor=3))
    scheduler.add(items(8, 8, 8))
    scheduler.add(items(*[8] * 6, first=10, priority=ONLINE))
    groups = [tickets(scheduler.admit(4, 4)) for _ in range(9)]
    assert groups == [[10], [11], [0], [12], [13], [1], [14], [15], [2]]


def test_the_floor_of_batch_may_use_the_reserve() -> None:
    scheduler = Scheduler(Limits(slots=4, reserve=2, prefill_tokens=10, batch_floor=2))
    scheduler.add(items(8))
    scheduler.add(items(8, 8, first=10, priority=ONLINE))
    assert [tickets(scheduler.admit(1, 3)) for _ in range(3)] == [[10], [0], [11]]


def test_online_requests_use_every_slot() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add(items(8, 8, priority=ONLINE))
    assert tickets(scheduler.admit(1, 7)) == [0]
    assert scheduler.admit(0, 8) == []


def test_online_requests_under_way_take_nothing_from_batch() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add(items(8, 8, 8))
    assert tickets(scheduler.admit(2, 5, 1)) == [0], "of eight slots six are for batch"
    assert scheduler.admit(2, 6, 0) == []
    scheduler.add(items(8, 8, first=10, priority=ONLINE))
    assert tickets(scheduler.admit(4, 4, 0)) == [10, 11, 1, 2]


def test_batch_fills_the_rows_that_online_requests_leave_empty() -> None:
    scheduler = Scheduler(Limits(slots=12, reserve=4, prefill_tokens=1000, multiple=4))
    scheduler.add(items(*[8] * 12))
    assert scheduler.admit(4, 8) == [], "8 rows are full as they are"
    assert len(scheduler.admit(3, 8, 1)) == 3, "with one more request, 12 rows are decoded"
    scheduler.add(items(8, first=20, priority=ONLINE))
    assert tickets(scheduler.admit(4, 8))[0] == 20, "and one that only comes counts as well"
    assert scheduler.admit(3, 9) == [], "its rows are given back when it has ended"


def test_batch_gathers_while_others_decode() -> None:
    scheduler = Scheduler(Limits(slots=8, reserve=2, prefill_tokens=40, gather=3))
    scheduler.add(items(*[8] * 5))
    assert scheduler.admit(4, 4) == [], "two slots are free for batch, and three are worth a prefill"
    assert tickets(scheduler.admit(5, 3)) == [0, 1, 2]
    assert tickets(scheduler.admit(4, 4)) == [3, 4], "no more are to come"


def test_a_shrunk_engine_still_takes_batch() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add(items(8, 8))
    assert tickets(scheduler.admit(1, 0)) == [0], "after failures one at a time, though that is less than the reserve"
    assert scheduler.admit(0, 1) == []


def test_a_full_queue_takes_nothing_of_a_call() -> None:
    scheduler = Scheduler(Limits(slots=8, reserve=2, batch_queue=3, online_queue=1))
    scheduler.add(items(8, 8))
    with pytest.raises(QueueFull, match="2 requests are queued, the limit is 3"):
        scheduler.add([*items(8, 8, first=2), *items(8, first=4, priority=ONLINE)])
    assert (scheduler.waiting(BATCH), scheduler.waiting(ONLINE)) == (2, 0)
    scheduler.add([*items(8, first=2), *items(8, first=4, priority=ONLINE)])
    assert len(scheduler) == 4


def test_removed_and_put_back() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add(items(8, 8, 8, 8))
    assert scheduler.remove(2)
    assert not scheduler.remove(2)
    group = scheduler.admit(2, 0)
    assert tickets(group) == [0, 1]
    scheduler.put_back(group)
    assert tickets(scheduler.admit(8, 0)) == [0, 1, 3]


def test_deadlines_are_told_once() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add([Item(0, 10, 8, deadline=5.0), Item(1, 10, 8, deadline=3.0), Item(2, 10, 8)])
    assert scheduler.expired(2.9) == []
    assert scheduler.expired(5.0) == [1, 0]
    assert scheduler.expired(9.0) == []
    assert len(scheduler) == 3, "to take them out is the engine's"


Calls = list[tuple[list[tuple[int, int]], int]]
CALLS = st.tuples(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9)), max_size=9), st.sampled_from([ONLINE, BATCH])
)


@given(st.lists(CALLS, max_size=6), st.integers(1, 9), st.integers(1, 100), st.integers(1, 4))
def test_every_request_runs_once_within_the_limits(calls: Calls, slots: int, prefill: int, gather: int) -> None:
    limits = Limits(slots=slots + 2, reserve=2, prefill_tokens=prefill, gather=min(gather, slots))
    scheduler, given_out = Scheduler(limits), 0
    for lengths, priority in calls:
        scheduler.add([Item(given_out + i, n, steps, priority) for i, (n, steps) in enumerate(lengths)])
        given_out += len(lengths)
    left: dict[int, int] = {}  # ticket -> steps to go
    seen: list[int] = []
    while len(scheduler) or left:
        group = scheduler.admit(limits.slots - len(left), len(left))
        assert group or left, "nothing runs and nothing is admitted"
        assert len(group) == 1 or sum(i.tokens for i in group) <= prefill
        seen += tickets(group)
        left |= {item.ticket: item.max_tokens for item in group}
        assert len(left) <= limits.slots
        left = {ticket: steps - 1 for ticket, steps in left.items() if steps > 1}
    assert sorted(seen) == list(range(given_out))


@pytest.mark.parametrize(
    "wrong", [{"slots": 2, "reserve": 2}, {"gather": 30}, {"prefill_tokens": 0}, {"batch_floor": 1}]
)
def test_limits_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Limits(**wrong)
