"""Whether the head of the cluster still answers a driver: Ray's core ends one that has lost it, without a word.

It does so after a minute without the head's control plane (GCS), from native code, so that no error can be raised. What
is to be done is therefore said before.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

import ray

from paliscribe.batch.progress import Progress
from paliscribe.batch.session import repeating
from paliscribe.pool.joining import answering

PERIOD = 2.0  # seconds between two looks
SILENT = 10.0  # seconds without an answer after which it is said


class Hearing:
    """Looks whether a head answers. Nothing is said of one that has never answered, as one that speaks TLS."""

    def __init__(self, progress: Progress, address: str, answers: Callable[[], bool]) -> None:
        self._progress, self._address, self._answers = progress, address, answers
        self._looked, self._heard = float("-inf"), float("inf")

    def look(self) -> None:
        """Note it once if the head has not answered for `SILENT` seconds."""
        if time.monotonic() - self._looked < PERIOD:
            return
        is_heard = self._answers()
        self._looked = time.monotonic()
        if is_heard:
            self._heard = self._looked
        if self._looked - self._heard > SILENT:
            self._progress.note(
                f"the head of the Ray cluster at {self._address} has not answered for {SILENT:.0f} s; unless it comes "
                "back, Ray ends this driver soon, without a word. Run the same command again to resume, on another "
                "cluster too"
            )


@contextlib.contextmanager
def hearing(progress: Progress) -> Iterator[None]:
    """Look whether the head of this process's cluster answers, from a thread."""
    address = ray.get_runtime_context().gcs_address
    with answering(address) as answers, repeating(Hearing(progress, address, answers).look):
        yield
