"""Compute items ahead of their consumer, in a thread."""

import contextlib
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


class _End:
    """Marks the end of the items."""


def ahead(compute: Callable[[S], T], items: Generator[S], depth: int) -> Generator[T]:
    """Yield `compute` of each of `items`, at most `depth` of them before they are asked for.

    An error is raised where its item would have been. Closing waits for the item that is being computed. The thread
    closes `items`, as nothing else can be sure that they do not run: a signal may interrupt the wait.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    computed = map(compute, items)
    pending: deque[Future[T | type[_End]]] = deque()
    try:
        pending.extend(thread.submit(next, computed, _End) for _ in range(depth))
        while (item := pending.popleft().result()) is not _End:
            pending.append(thread.submit(next, computed, _End))
            yield item  # type: ignore[misc]  # not _End
    finally:
        for future in pending:
            future.cancel()
        with contextlib.suppress(RuntimeError):  # the interpreter ends, and takes no more work
            thread.submit(items.close)
        thread.shutdown()
