"""Scheduling: which requests run next. Plain Python over integers, no tensors.

A request is queued, admitted into a slot, and released. Requests are admitted one *group* at a time, first in, first
out within a priority, online before batch. A group's prefill is bounded in tokens, so that a burst of new requests
does not stall running ones.
"""

import heapq
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from paliscribe.records import BATCH, ONLINE


class QueueFull(Exception):
    """A queue would exceed its limit; nothing of the call was queued."""


@dataclass(frozen=True, slots=True)
class Item:
    """One request: its ticket, its prefill in tokens (image and prompt), and its answer's maximum length in tokens."""

    ticket: int
    tokens: int
    max_tokens: int
    priority: int = BATCH
    deadline: float | None = None  # on the clock passed to `expired`


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the scheduler; all count requests except `prefill_tokens`."""

    slots: int = 32
    reserve: int = 8  # slots that only online requests may use
    prefill_tokens: int = 1024  # maximum of one group; a single request is always admitted
    multiple: int = 1  # of rows in a decode step: beside online requests, batch fills the padding rows
    gather: int = 1  # while others decode, batch waits until this many slots are free: small groups cost more
    batch_floor: int = 4  # at least one batch request every N groups
    online_queue: int = 1024
    batch_queue: int = 65536

    def __post_init__(self) -> None:
        if not 0 <= self.reserve < self.slots or not 1 <= self.gather <= self.slots - self.reserve:
            raise ValueError("reserve must be below slots, gather between 1 and slots - reserve")
        if self.prefill_tokens < 1 or self.batch_floor < 2 or min(self.online_queue, self.batch_queue) < 1:
            raise ValueError("prefill_tokens and queues must be at least 1, batch_floor at least 2")


@dataclass(slots=True)
class _Queue:
    limit: int
    items: "OrderedDict[int, Item]" = field(default_factory=OrderedDict)


class Scheduler:
    """Queues requests and selects the next group. Not thread-safe: the engine locks."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._queues = {ONLINE: _Queue(limits.online_queue), BATCH: _Queue(limits.batch_queue)}
        self._deadlines: list[tuple[float, int]] = []
        self._groups_without_batch = 0

    def __len__(self) -> int:
        return sum(len(queue.items) for queue in self._queues.values())

    def waiting(self, priority: int) -> int:
        """Number of queued requests of this priority."""
        return len(self._queues[priority].items)

    def add(self, items: Sequence[Item]) -> None:
        """Queue all requests of a call, or none. Raises QueueFull.

        They are sorted: longest answers first, so that no long answer runs alone at the end; then by prompt length.
        """
        for priority, queue in self._queues.items():
            if len(queue.items) + sum(item.priority == priority for item in items) > queue.limit:
                raise QueueFull(f"{len(queue.items)} requests are queued, the limit is {queue.limit}")
        for item in sorted(items, key=lambda item: (-item.max_tokens, item.tokens)):  # stable
            self._queues[item.priority].items[item.ticket] = item
            if item.deadline is not None:
                heapq.heappush(self._deadlines, (item.deadline, item.ticket))

    def put_back(self, items: Sequence[Item]) -> None:
        """Requeue admitted requests at the front, to start over."""
        for item in reversed(items):
            queue = self._queues[item.priority].items
            queue[item.ticket] = item
            queue.move_to_end(item.ticket, last=False)

    def remove(self, ticket: int) -> bool:
        """Remove a queued request. Returns False if it is not queued."""
        return any(queue.items.pop(ticket, None) for queue in self._queues.values())

    def expired(self, now: float) -> list[int]:
        """Tickets whose deadline has passed since the last call; they may be queued, running or finished."""
        tickets = []
        while self._deadlines and self._deadlines[0][0] <= now:
            tickets.append(heapq.heappop(self._deadlines)[1])
        return tickets

    def admit(self, free: int, live_batch: int, live_online: int = 0) -> list[Item]:
        """Take the next group to prefill, given the free slots and the running requests; empty if none can start.

        Running online requests do not reduce batch's share, which is all slots except the reserve.
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
        """Empty all queues and return their requests; for closing the engine."""
        items = [item for queue in self._queues.values() for item in queue.items.values()]
        for queue in self._queues.values():
            queue.items.clear()
        return items

    def _take(self, group: list[Item], queue: "OrderedDict[int, Item]", room: int) -> None:
        """Move requests from the head of a queue into the group, up to `room` requests and the prefill limit."""
        cost = sum(item.tokens for item in group)
        while queue and len(group) < room:
            cost += next(iter(queue.values())).tokens
            if group and cost > self.limits.prefill_tokens:
                return
            group.append(queue.popitem(last=False)[1])
