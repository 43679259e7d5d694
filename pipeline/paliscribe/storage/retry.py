"""Repeats of what is worth repeating: exponential backoff with full jitter."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from paliscribe.storage.base import PASSING, StorageError

T = TypeVar("T")
FIRST_WAIT, LONGEST_WAIT = 0.2, 20.0  # seconds


def repeated(attempt: Callable[[], T], retries: int) -> T:
    """Call until it succeeds, fails for good, or has failed `retries` + 1 times; a store's Retry-After is honoured."""
    for number in range(retries + 1):
        try:
            return attempt()
        except StorageError as error:
            if error.kind not in PASSING or number == retries:
                raise
            wait = random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2**number))
            time.sleep(min(LONGEST_WAIT, max(wait, error.retry_after or 0)))
    raise AssertionError("unreachable")
