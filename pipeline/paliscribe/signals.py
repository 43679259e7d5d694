"""Signals that end a command cleanly."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from paliscribe.errors import Stopped

AGAIN = 1.0  # seconds until a KeyboardInterrupt that had no effect is raised again


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """End the block by Stopped on the first SIGINT or SIGTERM; the previous handlers take the second one.

    Inside the block it is a KeyboardInterrupt, the one exception that Ray's waits (`check_signals` in Ray's
    `_raylet.pyx`) pass on from a signal handler. A destructor or a callback swallows it, so it is raised again until it
    is handled.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    main = threading.get_ident()
    received: list[int] = []
    is_left, is_repeated, sending = threading.Event(), threading.Event(), threading.Lock()

    def stop(signum: int, frame: FrameType | None) -> None:
        if is_repeated.is_set():
            is_repeated.clear()
            if is_left.is_set() or _is_stopping(sys.exc_info()[1]):
                return
        elif received:
            signal.signal(signum, before[signum])
            signal.raise_signal(signum)
            return
        else:
            received.append(signum)
        raise KeyboardInterrupt

    def repeat() -> None:
        is_late = False
        while not is_left.wait(AGAIN):
            with sending:
                if is_late and not is_left.is_set():
                    is_repeated.set()
                    signal.pthread_kill(main, received[0])
            is_late = bool(received)

    before = {number: signal.getsignal(number) for number in (int(signal.SIGINT), int(signal.SIGTERM))}
    for number in before:
        signal.signal(number, stop)
    threading.Thread(target=repeat, name="stop again", daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        if received:
            raise Stopped(received[0]) from None
        raise
    finally:
        with sending:
            is_left.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_stopping(error: BaseException | None) -> bool:
    """Whether an exception that is being handled ends the block: a KeyboardInterrupt, or one that followed it."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt | Stopped):
            return True
        error = error.__context__
    return False
