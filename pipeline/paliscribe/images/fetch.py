"""Images by address: many at a time, repeated where it helps, each failure told apart."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from paliscribe.errors import RowError
from paliscribe.storage import http, inline, s3
from paliscribe.storage.base import StorageError, scheme
from paliscribe.storage.local import LocalStore, local_path
from paliscribe.storage.retry import repeated


class Fetcher:
    """Fetches whole objects. Thread-safe; one a process is enough.

    `retries` follow the first attempt, for what may pass only; `timeout`: seconds to connect and between two pieces
    of an answer; `max_bytes`: the largest object.
    """

    def __init__(
        self, *, concurrency: int = 32, retries: int = 4, timeout: float = 30.0, max_bytes: int = 256 * 2**20
    ) -> None:
        self.concurrency, self.retries, self.timeout, self.max_bytes = concurrency, retries, timeout, max_bytes
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="fetch")

    def fetch(self, uri: str) -> bytes:
        """The bytes at this address. Raises RowError of the kind that stopped it."""
        try:
            if inline.is_inline(uri):
                return inline.decoded(uri)
            data = repeated(lambda: self._once(uri), self.retries)
        except StorageError as error:
            raise RowError(error.kind, error.message) from error
        if not data:
            raise RowError("empty", "the object has no bytes")
        return data

    def fetch_many(self, uris: Sequence[str]) -> list[bytes | RowError]:
        """The bytes at each address, or what stopped it, in order."""

        def one(uri: str) -> bytes | RowError:
            try:
                return self.fetch(uri)
            except RowError as error:
                return error

        return list(self._threads.map(one, uris))

    def _once(self, uri: str) -> bytes:
        name = scheme(uri)
        if name == "s3":
            bucket, _, key = uri.partition("://")[2].partition("/")
            return s3.get_once(bucket, key, self.max_bytes, self.concurrency, self.timeout)[0]
        if name in ("http", "https"):
            return http.get_once(uri, self.max_bytes, self.concurrency, self.timeout)[0]
        if name in ("", "file"):
            path = local_path(uri)
            return LocalStore(path.parent).get(path.name, max_bytes=self.max_bytes)
        words = f"unknown scheme {name!r}; local paths, s3://, http:// and https:// are known"
        raise StorageError("bad_uri", uri, words)
