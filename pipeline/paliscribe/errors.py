"""Exceptions, classified by their consequence: what happens next, not what went wrong.

    PaliscribeError
    ├── RowError            the request becomes a dead letter; the run continues
    ├── RequestError        an HTTP request is rejected (4xx, 5xx)
    ├── ReplicaError        the replica is restarted and the call retried
    └── RunError            the run stops with a one-line message: exit code 1
        ├── TemporaryError  the run can be resumed when the cause is gone
        └── UsageError      invalid input: exit code 2

    Stopped (a BaseException)  SIGINT or SIGTERM: the run ends cleanly and can be resumed

Errors of storage, Pillow, torch and Ray are translated into these in one place each
(`storage`, `images`, `model`, `pool`). `kind` is a fixed word that programs can match; the message is for people.
"""

import difflib
import signal
import traceback
from collections.abc import Iterable
from typing import Literal, get_args

RowErrorKind = Literal[
    "no_image",  # the manifest row names no image
    "missing",  # the object does not exist
    "forbidden",  # access denied
    "throttled",  # the store kept answering with throttling, after retries
    "unreachable",  # network or server error, after retries
    "bad_uri",  # an unknown scheme or a malformed address
    "empty",  # the object has no bytes
    "too_large",  # more bytes than allowed
    "changed",  # the Parquet file or the archive that holds the image has been replaced
    "not_an_image",  # no decoder recognises the bytes
    "unsupported",  # a known format, or a variety of one, that is not read
    "corrupt",  # the image cannot be decoded completely
    "too_many_pixels",  # more pixels than allowed: a decompression bomb
    "too_costly",  # decoding takes more time or memory than allowed
    "prompt",  # the prompt cannot be rendered, such as for a missing column
    "prompt_too_long",  # more tokens or characters than allowed
    "expired",  # the request's deadline passed
    "replica_lost",  # replicas crash, hang or run out of memory whenever they work on the request
    "model",  # the model failed on this request
]
ROW_ERROR_KINDS: tuple[str, ...] = get_args(RowErrorKind)


class PaliscribeError(Exception):
    """Base class of all errors that Paliscribe raises."""


class RowError(PaliscribeError):
    """One request failed: it becomes a dead letter of this `kind`."""

    def __init__(self, kind: RowErrorKind, message: str) -> None:
        super().__init__(kind, message)
        self.kind: RowErrorKind = kind
        self.message = message

    def __str__(self) -> str:
        return self.message


class RequestError(PaliscribeError):
    """An HTTP request is rejected with this `status`.

    `field`: the invalid field, if any. `retry_after`: seconds after which to retry, if known.
    """

    def __init__(
        self, status: int, code: str, message: str, field: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(status, code, message, field, retry_after)
        self.status = status
        self.code = code
        self.message = message
        self.field = field
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message


class ReplicaError(PaliscribeError):
    """The replica is unusable (device lost, engine thread dead): restart it and retry its calls."""


class RunError(PaliscribeError):
    """The run stops. The message is one line that says what to do. Exit code 1."""

    exit_code = 1


class TemporaryError(RunError):
    """The run stops for a temporary cause: storage or the cluster failed, or another driver holds the lease."""


class Stopped(BaseException):
    """The run was stopped by a signal. Committed shards are kept, and the same command resumes from them.

    A BaseException, since it is raised wherever the main thread is: a library must not catch it as an error of its own
    and wrap or retry it.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class UsageError(RunError):
    """Invalid input: a config key, a missing model, a changed manifest, an unwritable output. Exit code 2."""

    exit_code = 2


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` with the known name that is closest to a word, whatever their case; else empty."""
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), names, n=1)
    return f" (did you mean {names[close[0]]!r}?)" if close else ""


def clear_frames(error: BaseException) -> None:
    """Clear the frames of an error and of its causes: they hold tensors, iterators and often the error itself."""
    seen: set[int] = set()
    errors: list[BaseException | None] = [error]
    while errors:
        each = errors.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            errors += [each.__cause__, each.__context__]
