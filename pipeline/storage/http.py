"""Web servers, read only, through httpx."""

import io
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from pipeline.storage.base import ObjectInfo, StorageError, StorageErrorKind
from pipeline.storage.retry import repeated

RETRIES = 5
STATUS: dict[int, StorageErrorKind] = {
    400: "bad_uri",
    401: "forbidden",
    403: "forbidden",
    404: "missing",
    408: "unreachable",
    410: "missing",
    414: "bad_uri",
    429: "throttled",
    503: "throttled",
}
_clients: dict[tuple[int, float], Any] = {}
_lock = threading.Lock()


def client(connections: int = 32, timeout: float = 30.0) -> Any:
    """The process's client."""
    import httpx

    with _lock:
        if (connections, timeout) not in _clients:
            limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
            _clients[connections, timeout] = httpx.Client(timeout=timeout, limits=limits, follow_redirects=True)
        return _clients[connections, timeout]


def get_once(uri: str, max_bytes: int | None, connections: int = 32, timeout: float = 30.0) -> tuple[bytes, str]:
    """One attempt at a whole object: its bytes and its ETag, if it has one."""
    import httpx

    try:
        with client(connections, timeout).stream("GET", uri) as answer:
            if answer.status_code != 200:
                status = int(answer.status_code)
                kind = STATUS.get(status, "unreachable" if status >= 500 else "forbidden")
                after = answer.headers.get("Retry-After", "")
                raise StorageError(
                    kind, uri, f"the server answered {status}", float(after) if after.isdigit() else None
                )
            data = bytearray()
            for chunk in answer.iter_bytes():
                data += chunk
                if max_bytes is not None and len(data) > max_bytes:
                    raise StorageError("too_large", uri, f"more than {max_bytes:,} bytes")
            return bytes(data), str(answer.headers.get("ETag", ""))
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
        raise StorageError("bad_uri", uri, f"not an address that can be fetched ({type(error).__name__})") from error
    except httpx.HTTPError as error:
        raise StorageError("unreachable", uri, f"the server cannot be reached ({type(error).__name__})") from error


class HttpStore:
    """A folder of a web server: objects can be read, not listed and not written."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """See Store."""
        return repeated(lambda: get_once(self._uri(key), max_bytes)[0], RETRIES)

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """See Store."""
        return repeated(lambda: get_once(self._uri(key), None), RETRIES)

    def open(self, key: str) -> BinaryIO:
        """See Store. The object is fetched whole first: servers need not support ranges."""
        return io.BytesIO(self.get(key))

    def exists(self, key: str) -> bool:
        """See Store."""
        try:
            self.get(key)
        except StorageError as error:
            if error.kind == "missing":
                return False
            raise
        return True

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Web servers cannot be listed: StorageError."""
        raise StorageError("bad_uri", self.uri, "a web server's folder cannot be listed; give a manifest of addresses")

    def put(self, key: str, data: bytes) -> str:
        """Read only: StorageError."""
        self._refuse()

    def put_file(self, key: str, path: Path) -> str:
        """Read only: StorageError."""
        self._refuse()

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Read only: StorageError."""
        self._refuse()

    def put_if_match(self, key: str, data: bytes, etag: str) -> str | None:
        """Read only: StorageError."""
        self._refuse()

    def delete(self, key: str) -> None:
        """Read only: StorageError."""
        self._refuse()

    def delete_many(self, keys: Iterable[str]) -> None:
        """Read only: StorageError."""
        self._refuse()

    def _uri(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def _refuse(self) -> NoReturn:
        raise StorageError("forbidden", self.uri, "web servers are read only; write to a folder or to s3://")
