"""Decodes in other processes, which are stopped when an image takes more time or memory than it may.

A process is started when it is first needed and kept. It has none of this process's environment but paths, and writes
nothing: C libraries print warnings about bad files to stderr.
"""

import atexit
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import IO, Final

import numpy as np

from paliscribe.errors import ROW_ERROR_KINDS, RowError, RunError
from paliscribe.images.pixels import Options, Pixels

PROCESSES: Final = max(2, min(4, os.cpu_count() or 1))  # that decode at a time
PATIENCE: Final = 5.0  # times the processor time that an image may take: the machine may be busy
START_TIMEOUT: Final = 120.0  # seconds
PIPE: Final = 2**20  # bytes: encoded images go through pipes
PASSED: Final = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "TMPDIR")  # of the environment


@dataclass(frozen=True, slots=True)
class Limits:
    """What one image may take. `seconds`: of processor time. `memory`: bytes of the whole process, on Linux."""

    seconds: float = 8.0
    memory: int = 2**30


def decode_apart(data: bytes, options: Options, limits: Limits, timeout: float | None = None) -> Pixels:
    """Decode in another process. `timeout`: seconds to wait, for a free process too. Thread-safe.

    Raises RowError as `decode_here`, `too_costly` beyond the limits, `expired` after the timeout; RunError if no
    process can be started.
    """
    until = time.monotonic() + (timeout if timeout is not None else threading.TIMEOUT_MAX / 2)
    if not _free.acquire(timeout=until - time.monotonic() if timeout is not None else None):
        raise RowError("expired", "the image was not decoded in time")
    try:
        process = _taken()
        try:
            return process.decode(data, options, limits, until)
        finally:
            if process.is_usable:
                with _lock:
                    _idle.append(process)
            else:
                process.end()
    finally:
        _free.release()


class _Process:
    """One process. Not thread-safe."""

    def __init__(self) -> None:
        environment = {name: os.environ[name] for name in PASSED if name in os.environ}
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
        self.is_usable = False
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "paliscribe.images.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process, which ends the other one
            )
        except OSError as error:
            raise RunError(f"cannot start a process that decodes images: {error}") from error
        for pipe in (self._input, self._output):
            with contextlib.suppress(OSError, AttributeError):  # above a user's share, or not on Linux
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE)
        with self._stopped_at(time.monotonic() + START_TIMEOUT):
            self.is_usable = self._output.readline() == b"ready\n"
        if not self.is_usable:
            self.end()
            raise RunError(
                "a process that decodes images does not start: `python -m paliscribe.images.worker` says why"
            )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def decode(self, data: bytes, options: Options, limits: Limits, until: float) -> Pixels:
        """See `decode_apart`."""
        self.is_usable = False  # until the answer has been read
        begun = time.monotonic()
        last = begun + PATIENCE * limits.seconds
        head, pixels = None, b""
        with self._stopped_at(min(last, until)), contextlib.suppress(BrokenPipeError, ValueError):
            request = asdict(limits) | {"length": len(data), "options": asdict(options)}
            self._input.write(json.dumps(request).encode() + b"\n")
            self._input.write(data)
            self._input.flush()
            head = json.loads(self._output.readline())
            pixels = self._output.read(3 * options.size**2 if "width" in head else 0)
        if head is None:
            raise self._failure(limits, is_late=time.monotonic() >= until)
        if "width" not in head:
            self.is_usable = head["kind"] != "too_costly"  # memory may be in pieces
            raise RowError(head["kind"] if head["kind"] in ROW_ERROR_KINDS else "corrupt", str(head["message"]))
        self.is_usable = True
        shape = (options.size, options.size, 3)
        return np.frombuffer(pixels, np.uint8).reshape(shape), int(head["width"]), int(head["height"])

    def _failure(self, limits: Limits, is_late: bool) -> RowError:
        """Why the process has ended without an answer."""
        code = self._process.wait()
        if is_late:
            return RowError("expired", "the image was not decoded in time")
        if code in (-signal.SIGPROF, -signal.SIGKILL):
            return RowError("too_costly", f"decoding the image takes more than {limits.seconds:g} s of processor time")
        if code > 0:
            return RowError("too_costly", f"decoding the image takes more than {limits.memory:,} bytes of memory")
        return RowError("corrupt", f"the decoder crashed on the image ({signal.Signals(-code).name})")

    @contextlib.contextmanager
    def _stopped_at(self, moment: float) -> Iterator[None]:
        """Kill the process at this moment, unless the block has ended."""
        timer = threading.Timer(max(0.0, min(moment - time.monotonic(), threading.TIMEOUT_MAX)), self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._input, self._output):
            with contextlib.suppress(OSError):
                pipe.close()

    @property
    def _input(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _output(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout


def _taken() -> _Process:
    """A process for one image: an idle one, or a new one."""
    while True:
        with _lock:
            process = _idle.pop() if _idle else None
        if process is None:
            return _Process()
        if process.is_alive:
            return process
        process.end()


def _end_all() -> None:
    while _idle:
        _idle.pop().end()


_free, _lock = threading.BoundedSemaphore(PROCESSES), threading.Lock()
_idle: list[_Process] = []
atexit.register(_end_all)
os.register_at_fork(after_in_child=_idle.clear)  # the pipes are the parent's
