"""The file of API keys, read again while the endpoint runs. Each gateway reads the file of its own node."""

import logging
import threading
from collections.abc import Callable

from paliscribe.errors import UsageError
from paliscribe.online.background.store import BackgroundStore
from paliscribe.online.keys import Keys, KeySource, Tenants, caller_id, own_id
from paliscribe.storage import StorageError
from paliscribe.storage.retry import hurried

LOOK_EVERY = 1.0  # seconds
log = logging.getLogger(__name__)


class KeyFile:
    """Keeps a gateway's keys as its file has them.

    The content is compared, not the time of modification, so that a change shows on every file system and behind
    symbolic links, as Kubernetes mounts secrets. It counts once two looks in a row have found it: a file may be read
    while it is written. A file that cannot be used changes nothing.
    """

    def __init__(self, source: KeySource, keys: Keys, store: BackgroundStore | None = None) -> None:
        self._source, self._keys, self._store = source, keys, store
        self._seen: bytes | str | None = None  # content, or why there is none, at the last look
        self._taken: bytes | str | None = None  # the same, of the last look that counted
        self._tenants: Tenants = source.found
        self._to_adopt: dict[str, str] = {}  # keys whose tenants may lack what these keys have stored before
        self.usable = True

    def watch(self, tell: Callable[[bool], None] = lambda usable: None) -> None:
        """Look every second, in a thread. `tell` gets whether the file can be used."""
        stop = threading.Event()

        def loop() -> None:
            while not stop.wait(LOOK_EVERY):
                try:
                    self.look()
                    tell(self.usable)
                except Exception:  # such as of the store; the next look may succeed
                    log.exception("cannot look at the keys")

        threading.Thread(target=loop, name="keys", daemon=True).start()

    def look(self) -> None:
        """Read the file, and take its keys if it has others and they hold for a second look."""
        before, self._seen = self._seen, self._read()
        if self._seen is not None and self._seen == before != self._taken:
            self._taken = self._seen
            self._take(self._seen)
        self._adopt()

    def _read(self) -> bytes | str | None:
        if self._source.file is None:
            return None
        try:
            return self._source.read()
        except UsageError as error:
            return str(error)

    def _take(self, content: bytes | str) -> None:
        try:
            if isinstance(content, str):
                raise UsageError(content)
            tenants = self._source.parse(content)
        except UsageError as error:
            self.usable = False
            log.error("the keys stay as they were: %s", error)
            return
        if self.usable and tenants == dict(self._tenants):
            return
        self.usable = True
        if left := {digest: tenant for digest, tenant in self._tenants.items() if digest in tenants}:
            self._keys.replace(left)  # removed keys end at once, whatever the store does
        self._to_adopt |= dict(tenants.items() - self._tenants.items())
        self._adopt()  # before new keys count, so that a tenant has its files from the first call on
        self._keys.replace(tenants)
        self._tenants = tenants
        log.warning("keys %s: read again, %d keys", self._source.file, len(tenants))

    def _adopt(self) -> None:
        """Give tenants the files of their new keys; what fails is tried again at the next look."""
        try:
            with hurried():
                for digest, tenant in list(self._to_adopt.items()):
                    adopt(self._store, digest, tenant)
                    del self._to_adopt[digest]
        except StorageError as error:
            log.warning("cannot look for files of keys that have a tenant now: %s", error)


def adopt(store: BackgroundStore | None, digest: str, tenant: str) -> None:
    """Give a tenant what its key has stored before it had a tenant. Raises StorageError."""
    if store is not None and tenant:
        store.adopt(caller_id(digest, tenant), own_id(digest))
