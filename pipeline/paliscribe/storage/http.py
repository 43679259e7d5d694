"""Web servers, read only, through httpx."""

import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, cast

from paliscribe.storage.base import ObjectInfo, StorageError, StorageErrorKind
from paliscribe.storage.retry import repeated

if TYPE_CHECKING:
    import httpx

RETRIES = 5
PATIENCE = 10  # timeouts that one object may take in all, so that a server which drips holds no thread for ever
STATUS: dict[int, StorageErrorKind] = {
    400: "bad_uri",
    401: "forbidden",
    403: "forbidden",
    404: "missing",
    408: "unreachable",
    410: "missing",
    414: "bad_uri",
    425: "throttled",
    429: "throttled",
    503: "throttled",
}
_clients: dict[tuple[int, float], Any] = {}
_lock = threading.Lock()


def client(connections: int = 32, timeout: float = 30.0) -> "httpx.Client":
    """The process's client. It keeps no cookies and asks for bytes as they are stored."""
    import httpx

    with _lock:
        if (connections, timeout) not in _clients:
            _clients[connections, timeout] = httpx.Client(
                timeout=httpx.Timeout(timeout, pool=None),  # waiting for a free connection is not the server's fault
                limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
                follow_redirects=True,
                headers={"Accept-Encoding": "identity", "User-Agent": "paliscribe"},
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            )
        return cast("httpx.Client", _clients[connections, timeout])


@contextmanager
def answered(uri: str, connections: int = 32, timeout: float = 30.0) -> Iterator["httpx.Response"]:
    """The answer to a GET, its body unread. What goes wrong, also while it is read, becomes a StorageError."""
    import httpx

    try:
        with client(connections, timeout).stream("GET", uri) as answer:
            if answer.status_code != 200:
                status = answer.status_code
                kind = STATUS.get(status, "unreachable" if status >= 500 else "forbidden")
                raise StorageError(kind, uri, f"the server answered {status}", _retry_after(answer))
            yield answer
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.TooManyRedirects) as error:
        raise StorageError("bad_uri", uri, f"not an address that can be fetched ({type(error).__name__})") from error
    except httpx.HTTPError as error:
        raise StorageError("unreachable", uri, f"the server cannot be reached ({type(error).__name__})") from error


def get_once(uri: str, max_bytes: int | None, connections: int = 32, timeout: float = 30.0) -> tuple[bytes, str]:
    """One attempt at a whole object: its bytes and its ETag, if it has one."""
    until = time.monotonic() + PATIENCE * timeout
    with answered(uri, connections, timeout) as answer:
        data = bytearray()
        for chunk in answer.iter_bytes():
            data += chunk
            if max_bytes is not None and len(data) > max_bytes:
                raise StorageError("too_large", uri, f"more than {max_bytes:,} bytes")
            if time.monotonic() > until:
                words = f"still sending after {PATIENCE * timeout:g} s ({len(data):,} bytes came)"
                raise StorageError("unreachable", uri, words)
        return bytes(data), answer.headers.get("ETag", "")


def _retry_after(answer: "httpx.Response") -> float | None:
    """Seconds that the server asks to wait, given as a number or as a date."""
    value = answer.headers.get("Retry-After", "")
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


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
        """See Store: by way of a temporary file, because servers need not support ranges."""

        def once() -> BinaryIO:
            file = tempfile.TemporaryFile()  # noqa: SIM115  (the caller closes it)
            try:
                with answered(self._uri(key)) as answer:
                    for chunk in answer.iter_bytes(1 << 20):
                        file.write(chunk)
            except BaseException:
                file.close()
                raise
            file.seek(0)
            return cast(BinaryIO, file)

        return repeated(once, RETRIES)

    def exists(self, key: str) -> bool:
        """See Store. By a GET that is not read on: many servers refuse HEAD."""

        def once() -> bool:
            with answered(self._uri(key)):
                return True

        try:
            return repeated(once, RETRIES)
        except StorageError as error:
            if error.kind == "missing":
                return False
            raise

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
        return f"{self.uri}{'' if key.startswith('?') else '/'}{key}"

    def _refuse(self) -> NoReturn:
        raise StorageError("forbidden", self.uri, "web servers are read only; write to a folder or to s3://")
