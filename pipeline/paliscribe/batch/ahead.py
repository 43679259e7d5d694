"""Compute the items of an iterator ahead of their consumer, in a thread."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class _End:
    """Marks the end of the items."""


def ahead(items: Iterator[T], depth: int) -> Generator[T]:
    """Yield `items`, computing at most `depth` of them before they are asked for.

    An error of `items` is raised where its item would have been. Closing waits for the item that is being computed.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    try:
        pending: deque[Future[T | type[_End]]] = deque(thread.submit(next, items, _End) for _ in range(depth))
        while (item := pending.popleft().result()) is not _End:
            pending.append(thread.submit(next, items, _End))
            yield item  # type: ignore[misc]  # not _End
    finally:
        thread.shutdown(cancel_futures=True)
