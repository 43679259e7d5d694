"""Ray, joined or started, and the errors that it wraps around ours."""

import contextlib
import io
import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import ray

from paliscribe.errors import PaliscribeError, PassingError, RunError

log = logging.getLogger(__name__)
_own = threading.Event()  # set while Ray runs in this process, which started it


@contextlib.contextmanager
def cluster(num_cpus: int | None = None) -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names, or start Ray in this process; leave or stop it afterwards.

    `num_cpus`: of a Ray that is started here; default: the machine's. What is printed meanwhile goes to the log, not
    to stdout. Raises RunError if there is no cluster to join.
    """
    if ray.is_initialized():
        _quiet_data()
        with _stdout_of_our_own():
            yield
        return
    _hush()
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address := os.environ.get("RAY_ADDRESS"):
        _check_listening(address)
        own = {}
    else:  # "local": never a cluster that somebody happens to have started on this machine
        own = {"address": "local", "num_cpus": num_cpus or os.cpu_count(), "include_dashboard": False}
    try:
        with _silent(), _kept_signals():
            ray.init(**quiet, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        if address := os.environ.get("RAY_ADDRESS"):
            raise RunError(f"no Ray cluster at {address}: {line} (is RAY_AUTH_TOKEN that cluster's?)") from error
        raise RunError(f"Ray cannot be started here: {line}") from error
    _quiet_data()
    if own:
        _own.set()
    try:
        with _stdout_of_our_own():
            yield
    finally:
        _own.clear()
        ray.shutdown()


def is_own() -> bool:
    """Whether Ray was started in this process: then no node can join it, and it ends with this process."""
    return _own.is_set()


@contextlib.contextmanager
def translating() -> Iterator[None]:
    """Give back the error of ours inside what Ray wrapped around it; name what is left."""
    try:
        yield
    except ray.exceptions.RayError as error:
        if (inner := unwrapped(error)) is not None:
            raise inner from None
        line = str(error).strip().splitlines()[-1]
        raise PassingError(f"a worker failed: {line}; run the same command again to go on") from error


def unwrapped(error: ray.exceptions.RayError) -> PaliscribeError | None:
    """The error of ours that Ray has wrapped, or None."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, PaliscribeError):
        inner = getattr(inner, "cause", None) or inner.__cause__
    return inner


def _check_listening(address: str) -> None:
    """Raise RunError at once where nothing answers at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return  # `auto`, `ray://...`: for Ray to resolve
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise RunError(f"no Ray cluster at {address}: {error.strerror or error}") from error


@contextlib.contextmanager
def _kept_signals() -> Iterator[None]:
    """Put the signal handlers back afterwards: Ray takes SIGTERM over, in Python to exit, in C++ to abort."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


def _hush() -> None:
    """Keep Ray's own lines off stderr; they are in its log folder. An environment variable that is set stays."""
    import ray.data  # noqa: F401  # sets the level of its logger when it is imported

    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    for name in ("ray", "ray.serve", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message=".*ray_remote_args.*")


def _quiet_data() -> None:
    """No bars of Ray Data's own."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


class _Log(io.TextIOBase):
    """What is written to it becomes lines of a log."""

    def write(self, text: str) -> int:
        if line := text.strip():
            log.debug("%s", line)
        return len(text)


@contextlib.contextmanager
def _stdout_of_our_own() -> Iterator[None]:
    """Keep Ray off stdout, where results go: warnings of its raylet are printed there, from a thread, at any time."""
    with contextlib.redirect_stdout(_Log()):
        yield


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Send file descriptor 2 nowhere: Ray's core, in C++, reports its own log level there."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
