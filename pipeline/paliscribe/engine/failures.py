"""What is left of an error: words. The error itself would keep every tensor of what failed."""

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch

from paliscribe.errors import ReplicaError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong, in a line, and whether it was that the device's memory did not suffice."""

    line: str
    memory: bool


def attempt(work: Callable[[], object]) -> Failure | None:
    """Do a part of a step; how it failed, where other requests may survive that.

    When this returns or raises, what the attempt had allocated is free. Raises ReplicaError for a failure that no
    other request will survive on this device.
    """
    try:
        work()
        return None
    except Exception as error:
        failure = Failure(line(error), isinstance(error, torch.OutOfMemoryError))
        fatal = _fatal(error)
        if fatal:
            log.error("%s\n%s", fatal, "".join(traceback.format_exception(error)))
        let_go(error)
    if fatal:
        raise ReplicaError(fatal)
    return failure


def let_go(error: BaseException) -> None:
    """Empty the frames that an error and those behind it have passed: they hold tensors, and often the error itself."""
    seen: set[int] = set()
    errors: list[BaseException | None] = [error]
    while errors:
        each = errors.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            errors += [each.__cause__, each.__context__]


def line(error: BaseException) -> str:
    """An error in one line: its type, and the first line of what it says."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _fatal(error: Exception) -> str:
    """Why no other request will survive this error; empty if they may."""
    if isinstance(error, ReplicaError):
        return str(error)
    return f"the device failed: {line(error)}" if isinstance(error, torch.AcceleratorError) else ""
