"""Which requests run next: decisions in plain Python over integers, without tensors.

A request waits, is admitted into a slot, and leaves. Requests are admitted a *group* at a time, first in, first out
within a priority, online before batch. What a group may cost is bounded, so that a flood of new requests cannot
stall those that are being answered.
"""

import heapq
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from paliscribe.records import BATCH, ONLINE


class QueueFull(Exception):
    """A queue would grow past its bound; nothing of the call was queued."""


@dataclass(frozen=True, slots=True)
class Item:
    """One request: its ticket, its prefill (tokens of image and prompt), and the longest that its answer may be."""

    ticket: int
    tokens: int
    max_tokens: int
    priority: int = BATCH
    deadline: float | None = None  # on the clock that `expired` is given


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds the scheduler; counts of requests but for `prefill_tokens`."""

    slots: int = 32
    reserve: int = 8  # slots that batch leaves to online requests
    prefill_tokens: int = 1024  # of one group; one request always fits
    multiple: int = 1  # of rows in a decode step: beside online requests, batch fills those that would be empty
    gather: int = 1  # batch waits until so many slots are free, where others still decode: small groups cost more
    batch_floor: int = 4  # every so manieth group holds a batch request, whatever waits online
    online_queue: int = 1024
    batch_queue: int = 65536

    def __post_init__(self) -> None:
        if not 0 <= self.reserve < self.slots or not 1 <= self.gather <= self.slots - self.reserve:
            raise ValueError("slots, reserve and gather do not fit together")
        if self.prefill_tokens < 1 or self.batch_floor < 2 or min(self.online_queue, self.batch_queue) < 1:
            raise ValueError("prefill_tokens and queues must be at least 1, batch_floor at least 2")


@dataclass(slots=True)
class _Queue:
    limit: int
    items: "OrderedDict[int, Item]" = field(default_factory=OrderedDict)


class Scheduler:
    """Holds what waits and says what is admitted. Not thread-safe: its engine locks."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._queues = {ONLINE: _Queue(limits.online_queue), BATCH: _Queue(limits.batch_queue)}
        self._deadlines: list[tuple[float, int]] = []
        self._groups_without_batch = 0

    def __len__(self) -> int:
        return sum(len(queue.items) for queue in self._queues.values())

    def waiting(self, priority: int) -> int:
        """Requests of this priority that wait."""
        return len(self._queues[priority].items)

    def add(self, items: Sequence[Item]) -> None:
        """Queue a call, all of it or nothing. Raises QueueFull.

        Its requests are put in order: those with the longest answers first, so that none of them is alone at the
        end; and prompts of like length side by side.
        """
        for priority, queue in self._queues.items():
            if len(queue.items) + sum(item.priority == priority for item in items) > queue.limit:
                raise QueueFull(f"{len(queue.items)} requests wait and at most {queue.limit} may")
        for item in sorted(items, key=lambda item: (-item.max_tokens, item.tokens)):  # stable
            self._queues[item.priority].items[item.ticket] = item
            if item.deadline is not None:
                heapq.heappush(self._deadlines, (item.deadline, item.ticket))

    def put_back(self, items: Sequence[Item]) -> None:
        """Queue again, ahead of everything, what had been admitted and must start over."""
        for item in reversed(items):
            queue = self._queues[item.priority].items
            queue[item.ticket] = item
            queue.move_to_end(item.ticket, last=False)

    def remove(self, ticket: int) -> bool:
        """Take out a request that waits. False if it does not."""
        return any(queue.items.pop(ticket, None) for queue in self._queues.values())

    def expired(self, now: float) -> list[int]:
        """Tickets whose deadline has passed since the last call; they may wait, run or be gone."""
        tickets = []
        while self._deadlines and self._deadlines[0][0] <= now:
            tickets.append(heapq.heappop(self._deadlines)[1])
        return tickets

    def admit(self, free: int, live_batch: int, live_online: int = 0) -> list[Item]:
        """Take the group that is to be prefilled now, given free slots and requests under way. Empty: nothing now.

        Online requests that are under way take nothing from batch, which has all slots but the reserve.
        """
        online, batch = self._queues[ONLINE].items, self._queues[BATCH].items
        limits, soon = self.limits, live_online + min(len(online), free)
        empty = -(limits.slots - limits.reserve + soon) % limits.multiple if soon else 0
        for_batch = min(free, limits.slots - limits.reserve + empty - live_batch)
        if (live_batch or live_online) and for_batch < min(self.limits.gather, len(batch)):
            for_batch = 0
        group: list[Item] = []
        if batch and self._groups_without_batch >= self.limits.batch_floor - 1:
            self._take(group, batch, 1 if free else 0)
            for_batch -= len(group)
        self._take(group, online, free)
        self._take(group, batch, min(free, len(group) + max(0, for_batch)))
        if any(item.priority == BATCH for item in group):
            self._groups_without_batch = 0
        elif group and batch:
            self._groups_without_batch += 1
        return group

    def drain(self) -> list[Item]:
        """Empty every queue and return what waited, for an engine that closes."""
        items = [item for queue in self._queues.values() for item in queue.items.values()]
        for queue in self._queues.values():
            queue.items.clear()
        return items

    def _take(self, group: list[Item], queue: "OrderedDict[int, Item]", room: int) -> None:
        """Move requests from the head of a queue into the group: at most `room` in the group, within its cost."""
        cost = sum(item.tokens for item in group)
        while queue and len(group) < room:
            cost += next(iter(queue.values())).tokens
            if group and cost > self.limits.prefill_tokens:
                return
            group.append(queue.popitem(last=False)[1])
