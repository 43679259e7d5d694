"""Retries with exponential backoff and full jitter."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from paliscribe.storage.base import RETRYABLE, StorageError

T = TypeVar("T")
FIRST_WAIT, MAX_WAIT = 0.2, 20.0  # seconds


def with_retries(attempt: Callable[[], T], retries: int) -> T:
    """Call `attempt`, with up to `retries` retries of throttled and unreachable errors; Retry-After is honoured.

    Raises StorageError: the last one, or the first that is not retryable.
    """
    for number in range(retries + 1):
        try:
            return attempt()
        except StorageError as error:
            if error.kind not in RETRYABLE or number == retries:
                raise
            wait = random.uniform(0, min(MAX_WAIT, FIRST_WAIT * 2**number))
            time.sleep(min(MAX_WAIT, max(wait, error.retry_after or 0)))
    raise AssertionError("unreachable")
