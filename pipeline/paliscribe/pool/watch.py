"""Ends the process of a replica that cannot go on, so that Serve replaces it at once and its calls are repeated.

Serve's own health check would take three periods, in which calls go on to fail there, and would then wait for them.
"""

import faulthandler
import logging
import os
import threading
import time
from typing import Protocol

LEAVE = 2.0  # seconds for the errors of its calls to leave the process
PERIOD = 1.0  # seconds between two looks, less if the limit is short

log = logging.getLogger(__name__)


class Watched(Protocol):
    """Interface of `Engine` that is watched."""

    @property
    def alive(self) -> bool:
        """False once it has failed."""

    def step_seconds(self) -> float:
        """Seconds since the current step started; 0 between steps."""

    def fail(self, why: str) -> None:
        """Fail all requests, from another thread."""


def watch(engine: Watched, limit: float) -> None:
    """End this process once the engine has failed, or one step lasts more than `limit` seconds; from a thread.

    If this thread cannot run, since a native call holds the interpreter, a timer of faulthandler that is set anew at
    each look ends the process. It writes the stack of every thread to stderr.
    """
    threading.Thread(target=_watch, args=(engine, limit), name="watch", daemon=True).start()


def _watch(engine: Watched, limit: float) -> None:
    period = min(PERIOD, limit / 4)
    while engine.alive:
        faulthandler.dump_traceback_later(limit + period, exit=True)
        if engine.step_seconds() > limit:
            faulthandler.dump_traceback()
            engine.fail(f"an engine step lasted more than {limit:g} s: the device or the request hangs")
            break
        time.sleep(period)
    log.error("the engine has failed; this replica ends and Serve starts another")
    time.sleep(LEAVE)
    os._exit(1)
