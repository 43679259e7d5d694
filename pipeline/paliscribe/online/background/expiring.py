"""Deletes what has expired: finished batches and background jobs, and files that no unfinished batch needs.

One driver deployment at a time does so, under a lease. Each object is deleted by its own age, its marker first; what a
crash leaves without a marker is deleted by the next pass.
"""

import itertools
import logging
import threading
import time

from paliscribe import results
from paliscribe.errors import TemporaryError
from paliscribe.online.background.store import ID_PATTERN, OPEN, TERMINAL, BackgroundStore, made_at
from paliscribe.storage import open_store
from paliscribe.storage.base import ObjectInfo

SWEEP_EVERY = 1800.0  # seconds
GRACE = 300.0  # seconds after its expiry in which a file is kept, as clocks differ and a batch may just be created
UNMARKED = 3600.0  # seconds after which an object without a marker is what a crash has left; at most the least expiry
LEASE = 60.0  # seconds without a renewal after which another deployment may sweep
JANITOR = "_janitor"  # folder of the lease
log = logging.getLogger(__name__)


class Janitor:
    """Deletes what has expired. `expire_after`: seconds, or None for files alone whose callers have asked for it."""

    def __init__(self, store: BackgroundStore, expire_after: int | None) -> None:
        self._store, self._after = store, expire_after
        self._lost = threading.Event()
        self.deleted = 0  # objects

    def run(self) -> None:
        """Sweep every half hour, for ever."""
        while True:
            try:
                self.sweep()
            except TemporaryError as error:  # another deployment sweeps
                log.info("expired files and background jobs are left alone: %s", error)
            except Exception:  # storage, or a foreign object in it; the next pass may succeed
                log.exception("cannot delete expired files and background jobs")
            time.sleep(SWEEP_EVERY)

    def sweep(self, now: float | None = None, lease: float = LEASE) -> None:
        """One pass over the store. Raises TemporaryError if another one sweeps, StorageError."""
        now = time.time() if now is None else now
        self._lost.clear()
        folder = open_store(f"{self._store.objects.uri}/{JANITOR}")
        with results.hold(folder, ttl=lease, on_lost=self._lost.set, trust_local=False):
            used = {str(job.asked.get("input_file_id")) for job in self._store.open_jobs()}
            for place, found in itertools.groupby(self._store.objects.list(), _place):
                if self._lost.is_set():
                    raise TemporaryError("another janitor has taken over")
                if keys := self._expired(place, list(found), used, now):
                    for key in keys:
                        self._store.objects.delete(key)
                    self.deleted += len(keys)

    def _expired(self, place: tuple[str, ...], found: list[ObjectInfo], used: set[str], now: float) -> list[str]:
        """Keys of a file or job to delete, the marker first; empty if it is to be kept."""
        if place[0] == OPEN and len(place) == 3:
            gone = self._store.job(place[1], place[2]) is None
            return [found[0].key] if gone and _is_old(found, now) else []
        if len(place) < 3 or place[1] not in ("files", "orders") or not ID_PATTERN.fullmatch(place[2]):
            return []
        caller, kind, name = place
        marker, keys = "/".join((*place, "meta.json" if kind == "files" else "order.json")), [one.key for one in found]
        if marker not in keys:
            return keys if _is_old(found, now) and not self._store.objects.exists(marker) else []
        rest = [key for key in keys if key != marker]
        if kind == "files":
            return [marker, *rest] if self._file(caller, name, keys, used, now) else []
        # From the index first: there a job without an order would stay.
        return [f"{OPEN}/{caller}/{name}", marker, *rest] if self._job(caller, name, now) else []

    def _file(self, caller: str, name: str, keys: list[str], used: set[str], now: float) -> bool:
        asked = any(key.endswith("/expires") for key in keys)
        if name in used or not (asked or (self._after is not None and made_at(name) + self._after < now)):
            return False  # it is not even read
        info = self._store.file(caller, name)
        until = None if info is None else info.until(self._after)
        return until is not None and until + GRACE < now

    def _job(self, caller: str, name: str, now: float) -> bool:
        if self._after is None or made_at(name) + self._after >= now:
            return False
        if (job := self._store.job(caller, name)) is None:
            return False
        state = self._store.state(job)
        status = str(state.get("status"))
        return status in TERMINAL and int(state.get(f"{status}_at", job.created_at)) + self._after < now


def _place(found: ObjectInfo) -> tuple[str, ...]:
    """The folder of the file or job that an object belongs to."""
    return tuple(found.key.split("/")[:3])


def _is_old(found: list[ObjectInfo], now: float) -> bool:
    return max(one.modified for one in found) + UNMARKED < now
