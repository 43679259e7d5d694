"""Retries with exponential backoff and full jitter; a store that has answered before is waited for."""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from paliscribe.storage.base import RETRYABLE, StorageError

T = TypeVar("T")
FIRST_WAIT, MAX_WAIT = 0.2, 20.0  # seconds
PATIENCE = 600.0  # seconds to wait for a store that has answered this process before
HOST_PATIENCE = 120.0  # seconds to wait for a web server that has
TOLD_AFTER = 5.0  # seconds of waiting after which `waiting` names it
_answered: dict[str, float] = {}  # store -> `time.monotonic()` of its last answer to this process
_waits: dict[int, tuple[float, StorageError]] = {}  # thread -> when its call began to fail, and its last error
_thread = threading.local()


def with_retries(attempt: Callable[[], T], retries: int, store: str = "", host: str = "") -> T:
    """Call `attempt`, with up to `retries` retries of throttled and unreachable errors; Retry-After is honoured.

    `store`: a store of the run's owner, such as its endpoint. If it has answered this process before, its errors are
    retried for `PATIENCE` seconds as long as it asks to slow down or answers nobody; otherwise they are more likely a
    mistake in the settings, or a fault of this object. `host`: instead, a web server that a manifest names. It is
    waited for while it answers nobody, for `HOST_PATIENCE` seconds, and then not again until it has answered. Raises
    StorageError: the last one, or the first that is not retryable.
    """
    name, patience = (store, PATIENCE) if store else (host, HOST_PATIENCE)
    begun = seen = time.monotonic()
    failures = attempts = 0
    try:
        while True:
            try:
                found = attempt()
                _answered[name] = time.monotonic()
                return found
            except StorageError as error:
                if error.kind not in RETRYABLE:
                    raise
                waited_for = name in _answered and not getattr(_thread, "hurried", False) if name else False
                silent = (store and error.kind == "throttled") or _answered.get(name, 0.0) < seen
                seen = time.monotonic()
                failures += not (waited_for and silent and not error.is_alone and seen - begun < patience)
                if failures > retries:
                    if waited_for and host and seen - begun >= patience:
                        _answered.pop(name, None)
                    raise
                _waits[threading.get_ident()] = begun, error
                wait = random.uniform(0, min(MAX_WAIT, FIRST_WAIT * 2 ** min(attempts, 20)))
                time.sleep(min(MAX_WAIT, max(wait, error.retry_after or 0)))
                attempts += 1
    finally:
        _waits.pop(threading.get_ident(), None)


@contextlib.contextmanager
def hurried() -> Iterator[None]:
    """Calls of this thread give up after their number of retries, whatever the store."""
    before = getattr(_thread, "hurried", False)
    _thread.hurried = True
    try:
        yield
    finally:
        _thread.hurried = before


def still_waiting(since: float, error: StorageError) -> None:
    """Tell `waiting` that this thread will try again later, until `done_waiting`. `since`: `time.monotonic()`."""
    _waits[threading.get_ident()] = since, error


def done_waiting() -> None:
    """This thread waits for nothing."""
    _waits.pop(threading.get_ident(), None)


def waiting() -> str:
    """What this process waits for, in words: the call that has been failing for longest. Empty if for a moment only."""
    if not (waits := list(_waits.values())):
        return ""
    begun, error = min(waits, key=lambda wait: wait[0])
    seconds = time.monotonic() - begun
    return f"retrying for {seconds:.0f} s: {error}" if seconds > TOLD_AFTER else ""
