"""Limits the requests to a host that run at the same time, by what the host can take."""

import threading
import time
from types import TracebackType

from paliscribe.storage import StorageError, scheme
from paliscribe.storage.base import RETRYABLE

PAUSE = 1.0  # seconds between two reductions: failures of requests that ran together count once


class Gate:
    """A limit that halves when the host fails or asks to slow down, and grows by one a round of successes.

    Additive increase and multiplicative decrease, as in TCP (Chiu and Jain, 1989).
    """

    def __init__(self, most: int) -> None:
        self.most, self.limit = most, float(most)
        self._running, self._reduced = 0, 0.0
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._running < int(self.limit))
            self._running += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with self._changed:
            self._running -= 1
            if error is None:
                self.limit = min(self.most, self.limit + 1 / self.limit)
            elif is_temporary(error) and time.monotonic() - self._reduced > PAUSE:
                self.limit, self._reduced = max(1.0, self.limit / 2), time.monotonic()
            self._changed.notify_all()


def is_temporary(error: BaseException) -> bool:
    """Whether a request may succeed later."""
    return isinstance(error, StorageError) and error.kind in RETRYABLE


class Gates:
    """A gate for each host; a bucket counts as one."""

    def __init__(self, most: int) -> None:
        self._most, self._gates, self._lock = most, dict[str, Gate](), threading.Lock()

    def of(self, uri: str) -> Gate:
        """The gate of an address."""
        name = host(uri)
        with self._lock:
            if name not in self._gates:
                self._gates[name] = Gate(self._most)
            return self._gates[name]


def host(uri: str) -> str:
    """Scheme and host, or bucket, of an address; empty for a path."""
    return scheme(uri) + uri.partition("://")[2].partition("/")[0] if "://" in uri else ""
