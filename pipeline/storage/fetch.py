"""Images by address: many at a time, repeated where it helps, each failure told apart."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.errors import RowError
from pipeline.storage import http, s3
from pipeline.storage.base import StorageError
from pipeline.storage.local import LocalStore
from pipeline.storage.retry import repeated


class Fetcher:
    """Fetches whole objects. Thread-safe; one a process is enough."""

    def __init__(
        self, *, concurrency: int = 32, retries: int = 4, timeout: float = 30.0, max_bytes: int = 256 * 2**20
    ) -> None:
        self.concurrency, self.retries, self.timeout, self.max_bytes = concurrency, retries, timeout, max_bytes
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="fetch")

    def fetch(self, uri: str) -> bytes:
        """The bytes at this address. Raises RowError of the kind that stopped it."""
        try:
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
        parts = urlsplit(uri) if "://" in uri else None
        scheme = parts.scheme.lower() if parts else "file"
        if scheme == "s3" and parts is not None:
            bucket, key = uri.removeprefix(uri[: uri.index("://") + 3]).partition("/")[::2]
            return s3.get_once(bucket, key, self.max_bytes, self.concurrency, self.timeout)[0]
        if scheme in ("http", "https"):
            return http.get_once(uri, self.max_bytes, self.concurrency, self.timeout)[0]
        if scheme == "file":
            path = Path(unquote(parts.path) if parts else uri)
            return LocalStore(path.parent).get(path.name, max_bytes=self.max_bytes)
        raise StorageError(
            "bad_uri", uri, f"unknown scheme {scheme!r}; local paths, s3://, http:// and https:// are known"
        )
