"""The lease of a run, which allows one driver at a time: an object that its owner renews by conditional puts.

A lease is stale if its content has not changed for `ttl` seconds of the *reader's* clock, so clocks need not be
synchronized. It is stale at once if its owner was a process of this boot of this machine and no longer exists.
"""

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from paliscribe.errors import TemporaryError
from paliscribe.results import state
from paliscribe.storage import StorageError, Store
from paliscribe.storage.retry import done_waiting, hurried, still_waiting

KEY = "_run/lease.json"
TTL = 60.0  # seconds
_held: set[str] = set()  # tokens of this process's leases


@dataclass(frozen=True, slots=True)
class Owner:
    """Owner of a lease. `process_start`: clock ticks after boot; with it a reused pid is not taken for the owner."""

    token: str
    host: str
    pid: int
    boot: str
    process_start: str
    since: float  # seconds since 1970; only for messages
    renewals: int = 0
    ttl: float = TTL
    waits: str = ""  # what the run waits for, in words, if for long

    @classmethod
    def current(cls, ttl: float) -> "Owner":
        """This process as an owner."""
        pid = os.getpid()
        return cls(uuid.uuid4().hex, socket.gethostname(), pid, _boot(), _started(pid) or "", time.time(), 0, ttl)

    @property
    def is_local(self) -> bool:
        """Whether the owner is or was a process of this boot of this machine, so that its existence can be checked."""
        return self.boot == _boot() != "" and self.host == socket.gethostname()

    @property
    def is_dead(self) -> bool:
        """Whether the owner was a process of this boot of this machine that no longer exists, or has given it up."""
        if self.is_local and self.pid == os.getpid() and self.token not in _held:
            return True
        return self.is_local and _started(self.pid) != self.process_start

    def as_json(self) -> bytes:
        """Canonical JSON."""
        values = asdict(self)
        if not self.waits:
            del values["waits"]  # unknown to older versions
        return state.encode(values)


def read_lease(store: Store) -> Owner | None:
    """Owner of the output's lease, or None. Raises Damaged."""
    found = _read(store)
    return found[0] if found else None


class Lease:
    """A lease held by this process; a thread renews it."""

    def __init__(self, store: Store, owner: Owner, on_lost: Callable[[], None], saying: Callable[[], str]) -> None:
        self._store, self._owner, self._on_lost, self._saying = store, owner, on_lost, saying
        self._etag = ""
        self._stop = threading.Event()
        self.lost = False
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def acquire(self, waiting: Callable[[str], None], trust_local: bool) -> None:
        """See `hold`. Raises TemporaryError."""
        _held.add(self._owner.token)
        self._etag = _acquire(self._store, self._owner, waiting, trust_local)
        self._thread.start()

    def release(self) -> None:
        """Stop renewing and delete the lease, if this process owns it, also if it was interrupted in acquiring it."""
        try:
            self._release()
        except BaseException:  # a signal: what is left would keep other drivers out while this process lives
            self._release()
            raise
        finally:
            _held.discard(self._owner.token)

    def _release(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        # The lease expires anyway: do not mask the error that ended the run.
        with contextlib.suppress(StorageError), hurried():
            if (found := _read(self._store)) is not None and found[0].token == self._owner.token:
                self._store.delete(KEY)

    def _renew(self) -> None:
        """Renew until stopped or until another owner is found; failures of the store are waited out.

        If only this driver was cut off, another may have taken the lease since: the next renewal that reaches the
        store finds it. Until then both may work, which is safe, as a shard is committed once.
        """
        since: float | None = None  # when the store began to fail
        while not self._stop.wait(self._owner.ttl / 4):
            renewed = replace(self._owner, renewals=self._owner.renewals + 1, waits=self._saying())
            try:
                with hurried():
                    etag = self._store.put_if_match(KEY, renewed.as_json(), self._etag)
                    if etag is None and (found := _read(self._store)) is not None and found[0].token == renewed.token:
                        etag = found[1]  # an earlier renewal succeeded although its response was an error
            except StorageError as error:
                since = since or time.monotonic()
                still_waiting(since, error)
                continue  # if another driver has taken the lease since, a later renewal finds that
            since = None
            done_waiting()
            if etag is None:
                self.lost = True
                self._on_lost()
                return
            self._owner, self._etag = renewed, etag
        done_waiting()


@contextlib.contextmanager
def hold(
    store: Store,
    *,
    ttl: float = TTL,
    on_lost: Callable[[], None] = lambda: None,
    waiting: Callable[[str], None] = lambda words: None,
    trust_local: bool = True,
    saying: Callable[[], str] = lambda: "",
) -> Iterator[Lease]:
    """Hold the lease of an output. `on_lost` is called from the renewing thread if the lease is lost.
    `saying`: what the run waits for, in words; the lease says it to `paliscribe status`.

    A lease that may be stale is watched for its `ttl` first, and `waiting` gets a message about that. `trust_local`:
    a living process of this machine is taken for the owner without watching; False where processes outlive their
    leases. Raises TemporaryError if another driver holds the lease.
    """
    lease = Lease(store, Owner.current(ttl), on_lost, saying)
    try:
        lease.acquire(waiting, trust_local)
        yield lease
    finally:
        lease.release()


def _acquire(store: Store, owner: Owner, waiting: Callable[[str], None], trust_local: bool) -> str:
    while True:
        if store.put_if_absent(KEY, owner.as_json()):
            found = _read(store)
            if found is not None and found[0].token == owner.token:
                return found[1]
            continue
        found = _read(store)
        if found is None:
            continue  # released in the meantime
        holder, etag = found
        if not holder.is_dead:
            _watch(store, holder, etag, waiting, trust_local)
        taken = store.put_if_match(KEY, owner.as_json(), etag)
        if taken is not None:
            return taken


def _watch(store: Store, holder: Owner, etag: str, waiting: Callable[[str], None], trust_local: bool) -> None:
    """Return if the lease is unchanged for its ttl. Raises TemporaryError as soon as its owner renews it."""
    at = f"process {holder.pid} on {holder.host}"
    if holder.is_local and trust_local:
        raise TemporaryError(f"another driver holds the lease of {store.uri}: {at}, since {_ago(holder.since)}")
    waiting(f"waiting to see whether {at} still holds the lease of this run")
    until = time.monotonic() + holder.ttl
    while time.monotonic() < until:
        time.sleep(min(1.0, holder.ttl / 10))
        found = _read(store)
        if found is None:
            return
        if found[1] != etag:
            raise TemporaryError(f"another driver holds the lease of {store.uri}: {at}, since {_ago(holder.since)}")


def _read(store: Store) -> tuple[Owner, str] | None:
    try:
        body, etag = store.get_with_etag(KEY)
    except StorageError as error:
        if error.kind == "missing":
            return None
        raise
    return state.decode(store.uri, KEY, body, state.typed(Owner)), etag


def _ago(moment: float) -> str:
    return f"{max(0, time.time() - moment):,.0f} s ago"


def _boot() -> str:
    """Id of this boot and of the pid namespace, since containers of one host may share its hostname."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Start time of a process in clock ticks after boot; None if it does not exist or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
