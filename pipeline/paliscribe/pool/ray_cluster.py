"""Join or start a Ray cluster, and unwrap our errors from Ray's."""

import contextlib
import gc
import io
import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants

from paliscribe.errors import PaliscribeError, RunError, TemporaryError, UsageError, clear_frames
from paliscribe.pool.joining import check_cluster

PROXIES = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "paliscribe.online.proxy:middlewares"}
TOKEN = Path("~/.ray/auth_token")  # Ray creates it, for all of a user's clusters

log = logging.getLogger(__name__)
_started = threading.Event()  # set while a Ray started by this process runs
_inner = threading.Event()  # set while a `cluster` block runs within another, or within a Ray that was there


@contextlib.contextmanager
def cluster(num_cpus: int | None = None) -> Iterator[None]:
    """Join the cluster at RAY_ADDRESS, or start Ray in this process; disconnect or stop it afterwards.

    `num_cpus`: of a Ray started here; default: the machine's. Output to stdout in the block goes to the log. Raises
    RunError if there is no cluster to join.
    """
    if ray.is_initialized():
        _disable_progress_bars()
        was_inner = _inner.is_set()
        _inner.set()
        try:
            with _redirected_stdout():
                yield
        finally:
            if not was_inner:
                _inner.clear()
        return
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address := os.environ.get("RAY_ADDRESS"):
        check_cluster()
        own = {}
    else:  # "local": never join another Ray on this machine
        own = {"address": "local", "num_cpus": num_cpus or os.cpu_count(), "include_dashboard": False}
    on_loopback = bool(own) or _is_on_loopback(address or "")
    try:
        with _loading_libraries(), _discard_stderr(), _restored_signals(), _on_loopback(on_loopback):
            ray.init(**quiet, **own, **_own_code())
    except Exception as error:  # Ray raises `Exception` itself if a node takes too long to start
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if address := os.environ.get("RAY_ADDRESS"):
            raise RunError(f"the Ray cluster at {address} cannot be joined: {line}") from error
        raise RunError(f"Ray cannot be started here: {line}") from error
    _disable_progress_bars()
    if own:
        _started.set()
    make_private()
    try:
        with _naming_the_log(), _redirected_stdout():
            yield
    except BaseException as error:
        # What the error's frames hold must go before Ray does: an iterator of Ray Data that is dropped later asks the
        # cluster for its resources, for which Ray joins or starts another one, or waits for the one that ended.
        clear_frames(error)
        gc.collect()
        raise
    finally:
        _started.clear()
        ray.shutdown()


@contextlib.contextmanager
def _naming_the_log() -> Iterator[None]:
    """Add to an error, unless a setting is wrong, where Ray's logs are."""
    try:
        yield
    except RunError as error:
        if not isinstance(error, UsageError):
            folder = f"{ray._private.worker.global_worker.node.get_session_dir_path()}/logs"  # Ray has no public name
            error.add_note(f"Ray's logs: {folder}" if started_here() else f"Ray's logs: {folder} on each node")
        raise


@contextlib.contextmanager
def _on_loopback(wanted: bool) -> Iterator[None]:
    """Let a Ray that starts here listen on loopback only, so that no other machine can join it, or join such a Ray.

    Ray replaces a loopback address by the machine's, except where its clusters have one node (Windows, macOS). The
    variable that says so is read when Ray is imported.
    """
    if not wanted:
        yield
        return
    for name, value in PROXIES.items():
        os.environ.setdefault(name, value)
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _is_on_loopback(address: str) -> bool:
    """Whether the Ray at this address listens on loopback only, as one that a run has started on this machine."""
    host, _, port = address.rpartition(":")
    if host not in ("127.0.0.1", "localhost") or not port.isdigit():
        return False
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((ray.util.get_node_ip_address(), int(port))) != 0


def make_private() -> None:
    """Take other users' rights away from Ray's token, and from the logs of a Ray that this process has started.

    Ray gives them all; to its folder also when Serve has started.
    """
    session = ray._private.worker.global_worker.node.get_session_dir_path()  # Ray has no public name
    for path, mode in (TOKEN.expanduser(), 0o600), *(((Path(session), 0o700),) if started_here() else ()):
        with contextlib.suppress(OSError):  # it is absent, or another user's
            path.chmod(mode)


def _own_code() -> dict[str, Any]:
    """A runtime_env for `ray.init` that ships this package, if a job runs it from a subfolder of its working directory.

    The nodes may not have it installed.
    """
    package, place = Path(__file__).resolve().parents[1], Path.cwd().resolve()
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and package.parent != place and package.is_relative_to(place):
        return {"runtime_env": {"py_modules": [str(package)]}}
    return {}


def started_here() -> bool:
    """Whether this process started Ray: then no node can join it, and it ends with this process."""
    return _started.is_set()


def ends_soon() -> bool:
    """Whether Ray ends with the `cluster` block that this code is in."""
    return started_here() and not _inner.is_set()


@contextlib.contextmanager
def translating() -> Iterator[None]:
    """Re-raise a PaliscribeError that Ray has wrapped; translate other Ray errors to TemporaryError."""
    try:
        yield
    except ray.exceptions.RayError as error:
        if (inner := unwrapped(error)) is not None:
            raise inner from None
        line = str(error).strip().splitlines()[-1]
        raise TemporaryError(f"a worker failed: {line}; run the same command again to resume") from error


def unwrapped(error: ray.exceptions.RayError) -> PaliscribeError | None:
    """The PaliscribeError that Ray has wrapped, or None."""
    # Ray derives a class from the error's and its own, whose message is a traceback: the error itself is its cause.
    inner: BaseException | None = getattr(error, "cause", None) or error
    while inner is not None and not isinstance(inner, PaliscribeError):
        inner = getattr(inner, "cause", None) or inner.__cause__
    return inner


@contextlib.contextmanager
def _restored_signals() -> Iterator[None]:
    """Restore the signal handlers afterwards: Ray replaces SIGTERM's, in Python to exit, in C++ to abort."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


@contextlib.contextmanager
def _loading_libraries() -> Iterator[None]:
    """Import Ray Data and Ray Serve, which takes seconds, in a thread; they are loaded when the block ends."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with ThreadPoolExecutor(1) as thread:
        loaded = thread.submit(_silence_loggers)
        yield
        loaded.result()


def _silence_loggers() -> None:
    """Keep Ray's log lines off stderr; its log folder has them. Environment variables that are set win."""
    import ray.data
    import ray.serve  # noqa: F401  # they set the levels of their loggers when they are imported

    for name in ("ray", "ray.serve", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message=".*ray_remote_args.*")


def _disable_progress_bars() -> None:
    """Disable Ray Data's progress bars."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


class _Log(io.TextIOBase):
    """A file that logs each line written to it."""

    def write(self, text: str) -> int:
        if line := text.strip():
            log.debug("%s", line)
        return len(text)


@contextlib.contextmanager
def _redirected_stdout() -> Iterator[None]:
    """Keep Ray off stdout, which is for results: a thread prints raylet warnings there at any time."""
    with contextlib.redirect_stdout(_Log()):
        yield


@contextlib.contextmanager
def _discard_stderr() -> Iterator[None]:
    """Redirect file descriptor 2 to /dev/null: Ray's C++ core prints its log level there."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
