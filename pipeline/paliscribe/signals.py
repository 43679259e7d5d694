"""Signals that end a command cleanly."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from paliscribe.errors import Stopped


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise Stopped on the first SIGINT or SIGTERM; the previous handlers take the second one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, before[signum])
        raise Stopped(signum)

    before = {number: signal.getsignal(number) for number in (int(signal.SIGINT), int(signal.SIGTERM))}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
