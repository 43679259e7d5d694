"""Which requests run next: decisions in plain Python over integers, without tensors.

A *call* is a list of requests submitted together. Groups are formed inside one call only, from its requests in
an order that depends on nothing but the call: the arithmetic of a group, down to the last bit of a score, is
then a function of the call and not of what else happened to be waiting, so two runs of one job give equal files.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.records import BATCH, ONLINE


@dataclass(frozen=True, slots=True)
class Item:
    """One queued request: its ticket and the two lengths (in tokens) that decide its company."""

    ticket: int
    prompt_tokens: int
    max_tokens: int


class Scheduler:
    """First in, first out within a priority; online before batch. Not thread-safe: its engine locks.

    Every `batch_floor`-th group goes to batch even while online work waits, so that neither starves.
    """

    def __init__(self, group_size: int, batch_floor: int = 4) -> None:
        if group_size < 1 or batch_floor < 2:
            raise ValueError("group_size must be at least 1 and batch_floor at least 2")
        self.group_size = group_size
        self.batch_floor = batch_floor
        self._queues: dict[int, deque[list[Item]]] = {ONLINE: deque(), BATCH: deque()}
        self._since_batch = 0

    def __len__(self) -> int:
        return sum(len(group) for queue in self._queues.values() for group in queue)

    def add(self, items: Sequence[Item], priority: int) -> None:
        """Queue one call. Requests of like length share a group: less padding, and little waiting at its end."""
        ordered = sorted(items, key=lambda item: (item.max_tokens, item.prompt_tokens))  # stable
        for start in range(0, len(ordered), self.group_size):
            self._queues[priority].append(ordered[start : start + self.group_size])

    def remove(self, ticket: int) -> bool:
        """Take a waiting request out of its group. False if it is no longer waiting."""
        for queue in self._queues.values():
            for group in queue:
                for item in group:
                    if item.ticket == ticket:
                        group.remove(item)
                        if not group:
                            queue.remove(group)
                        return True
        return False

    def next_group(self) -> list[Item]:
        """The group to run now; empty if nothing waits."""
        online, batch = self._queues[ONLINE], self._queues[BATCH]
        turn_of_batch = not online or (batch and self._since_batch >= self.batch_floor - 1)
        if turn_of_batch:
            self._since_batch = 0
            return batch.popleft() if batch else []
        self._since_batch += 1 if batch else 0
        return online.popleft()

    def drain(self) -> list[Item]:
        """Empty every queue and return what waited, for an engine that closes."""
        items = [item for queue in self._queues.values() for group in queue for item in group]
        for queue in self._queues.values():
            queue.clear()
        return items
