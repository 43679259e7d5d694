"""Fetches trusted image addresses: concurrently, with retries, with an error kind for each failure."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from paliscribe.errors import RowError
from paliscribe.images.gate import Gates, host
from paliscribe.storage import StorageError, archives, inline, parquet, registered_scheme
from paliscribe.storage.http import PLAIN, Headers
from paliscribe.storage.retry import with_retries


class Fetcher:
    """Fetches whole objects. Thread-safe; one per process is enough.

    `concurrency`: of each host at most; less while it asks to slow down. `retries`: after the first attempt, for
    temporary errors only; a store or a web server that has answered before is waited for longer. `timeout`: seconds to
    connect, and between two reads. `max_bytes`: the largest object. `headers`: of requests to web servers.
    """

    def __init__(
        self,
        *,
        concurrency: int = 32,
        retries: int = 4,
        timeout: float = 30.0,
        max_bytes: int = 256 * 2**20,
        headers: Headers = PLAIN,
    ) -> None:
        self.concurrency, self.retries, self.timeout, self.max_bytes = concurrency, retries, timeout, max_bytes
        self.headers = headers
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="fetch")
        self._gates = Gates(concurrency)
        self._rows, self._members = parquet.Rows(), archives.Members()

    def fetch(self, uri: str) -> bytes:
        """The bytes at this address. Raises RowError."""
        gate = self._gates.of(uri)

        def once() -> bytes:
            with gate:
                return self._read(uri)

        try:
            data = inline.decoded(uri) if inline.is_inline(uri) else self._with_retries(once, uri)
        except StorageError as error:
            raise RowError(error.kind, error.message) from error
        if not data:
            raise RowError("empty", "the object has no bytes")
        if len(data) > self.max_bytes:  # of a data URL; others are not read further
            raise RowError("too_large", f"the image has {len(data):,} bytes; the limit is {self.max_bytes:,}")
        return data

    def _read(self, uri: str) -> bytes:
        """The bytes at this address, without retries. Raises StorageError, which may be temporary, or RowError."""
        if parquet.is_row(uri):
            try:
                return self._rows.read(uri, self.max_bytes)
            except StorageError as error:  # after the retries of the store
                raise RowError(error.kind, error.message) from error
        return self._members.read(uri, self.max_bytes, lambda: self._read_object(uri))

    def _read_object(self, uri: str) -> bytes:
        found = registered_scheme(uri)
        more = {"headers": self.headers} if found.headers else {}
        return found.get_once(uri, self.max_bytes, self.concurrency, self.timeout, **more)

    def _with_retries(self, once: Callable[[], bytes], uri: str) -> bytes:
        store = "" if parquet.is_row(uri) else registered_scheme(uri).store()
        return with_retries(once, self.retries, store, host(uri))

    def fetch_many(self, uris: Sequence[str]) -> list[bytes | RowError]:
        """The bytes at each address, or its error, in order. One thread reads the rows of a Parquet file, in order."""
        groups: dict[str | int, list[int]] = {}
        for place, uri in enumerate(uris):
            groups.setdefault(parquet.file_of(uri) or place, []).append(place)

        def some(places: Sequence[int]) -> list[bytes | RowError]:
            return [self._fetched(uris[place]) for place in places]

        found = zip(groups.values(), self._threads.map(some, groups.values()), strict=True)
        by_place = {place: data for places, each in found for place, data in zip(places, each, strict=True)}
        return [by_place[place] for place in range(len(uris))]

    def _fetched(self, uri: str) -> bytes | RowError:
        try:
            return self.fetch(uri)
        except RowError as error:
            return error
