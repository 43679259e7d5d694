"""Failures kept as text. A kept exception would hold every tensor of the failed step through its traceback."""

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from paliscribe.errors import ReplicaError, clear_frames
from paliscribe.model.paligemma import Model

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """An error in one line, and whether the device ran out of memory."""

    line: str
    memory: bool


def attempt(work: Callable[[], object]) -> Failure | None:
    """Run a part of a step. Returns the failure if other requests can survive it, None on success.

    The memory that the attempt allocated is free when this returns or raises. Raises ReplicaError for a failure that no
    request survives on this device.
    """
    try:
        work()
        return None
    except Exception as error:
        failure = Failure(line(error), isinstance(error, torch.OutOfMemoryError))
        fatal = _fatal_reason(error)
        if fatal:
            log.error("%s\n%s", fatal, "".join(traceback.format_exception(error)))
        clear_frames(error)
    if fatal:
        raise ReplicaError(fatal)
    return failure


def require_memory(model: Model) -> None:
    """Raise ReplicaError if there is not even memory for one image: then the device lacks it, whatever the request."""
    pixels = np.zeros((model.image_size, model.image_size, 3), dtype=np.uint8)
    failure = attempt(lambda: model.embed_images(model.upload([pixels])))
    if failure is not None:
        raise ReplicaError(f"the device cannot take a single image any more: {failure.line}")


def line(error: BaseException) -> str:
    """An error in one line: its type, and the first line of its message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _fatal_reason(error: Exception) -> str:
    """Why the replica cannot continue after this error; empty if it can."""
    if isinstance(error, ReplicaError):
        return str(error)
    return f"the device failed: {line(error)}" if isinstance(error, torch.AcceleratorError) else ""
