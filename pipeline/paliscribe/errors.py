"""Errors, named by their fate: by what happens next, not by what went wrong.

    PaliscribeError
    ├── RowError        the request becomes a dead letter; the run goes on
    ├── RequestError    an online call is refused (4xx, 429, 504)
    ├── ReplicaError    the replica is restarted and the call repeated
    └── RunError        the run stops with one clear line
        ├── PassingError  the same run can go on once that has passed
        └── UsageError  the request itself was wrong: exit code 2

    Stopped (a BaseException)  SIGINT or SIGTERM: the run ends cleanly and can go on

Errors of storage, Pillow, torch and Ray are translated into these in one place each
(`storage`, `images`, `model`, `pool`). `kind` is a fixed word that programs can match; the message is for people.
"""

import signal
from typing import Literal, get_args

RowErrorKind = Literal[
    "no_image",  # the manifest row names no image
    "missing",  # the object does not exist
    "forbidden",  # the credentials may not read it
    "throttled",  # the store kept asking to slow down
    "unreachable",  # the network or the store failed, after retries
    "bad_uri",  # an unknown scheme or a malformed address
    "empty",  # the object has no bytes
    "too_large",  # more bytes than allowed
    "not_an_image",  # no decoder knows the bytes
    "corrupt",  # an image that cannot be decoded to the end
    "too_many_pixels",  # a decompression bomb
    "prompt",  # the template names a column that the row lacks
    "prompt_too_long",  # the prompt does not fit
    "expired",  # the request's deadline passed first
    "replica_lost",  # the request was in flight when replicas died, repeatedly
    "model",  # the model failed on this request
]
ROW_ERROR_KINDS: tuple[str, ...] = get_args(RowErrorKind)


class PaliscribeError(Exception):
    """The root of every error that Paliscribe raises on purpose."""


class RowError(PaliscribeError):
    """One request cannot be answered: it becomes a dead letter of this `kind`."""

    def __init__(self, kind: RowErrorKind, message: str) -> None:
        super().__init__(kind, message)
        self.kind: RowErrorKind = kind
        self.message = message

    def __str__(self) -> str:
        return self.message


class RequestError(PaliscribeError):
    """An online call is refused with this HTTP `status`; `field` names what of it is at fault, if anything is.

    `retry_after`: seconds after which it is worth another try, where that is known.
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
    """The replica is unusable (device lost, engine thread dead): restart it and repeat its calls."""


class RunError(PaliscribeError):
    """The run stops. The message is one line that says what to do."""

    exit_code = 1


class PassingError(RunError):
    """The run stops for what may pass: storage or the cluster failed, or another driver is at work on it."""


class Stopped(BaseException):
    """The run was told to stop. What is committed stays, and the same command goes on from there.

    No Exception: it is raised wherever the main thread happens to be, and no library may take it for a failure of its
    own, to be wrapped or tried again.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class UsageError(RunError):
    """The request was wrong: a config key, a missing model, a changed manifest, an unwritable output."""

    exit_code = 2
