"""Web servers (http and https), read-only, through httpx."""

import fnmatch
import re
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NoReturn, cast

from paliscribe.storage.base import ObjectInfo, Scheme, StorageError, StorageErrorKind
from paliscribe.storage.retry import with_retries

if TYPE_CHECKING:
    import httpx

RETRIES = 5
MAX_TIMEOUTS = 10  # time limit of one object, as a multiple of `timeout`: a slow server must not block a thread
PARTIAL: Final = 206
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


@dataclass(frozen=True, slots=True)
class Headers:
    """Headers of requests: `by_host` has names and values for a host, or for all below one, as `*.example.org`."""

    user_agent: str = "paliscribe"
    by_host: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()

    @classmethod
    def of(cls, user_agent: str, by_host: Mapping[str, Mapping[str, str]]) -> "Headers":
        """From settings."""
        return cls(user_agent, tuple((host, tuple(pairs.items())) for host, pairs in by_host.items()))

    def apply(self, request: "httpx.Request") -> None:
        """Set those of the request's host only: a redirect takes along what the first request had."""
        host = request.url.host
        mine = [pairs for pattern, pairs in self.by_host if fnmatch.fnmatchcase(host, pattern.lower())]
        for _, pairs in self.by_host:
            for name, _ in pairs:
                request.headers.pop(name, None)
        request.headers["User-Agent"] = self.user_agent
        for pairs in mine:
            request.headers.update(pairs)


PLAIN: Final = Headers()
_clients: dict[tuple[int, float, Headers], Any] = {}
_lock = threading.Lock()


def client(connections: int = 32, timeout: float = 30.0, headers: Headers = PLAIN) -> "httpx.Client":
    """The HTTP client of this process. It keeps no cookies and requests no content encoding."""
    import httpx

    with _lock:
        if (connections, timeout, headers) not in _clients:
            _clients[connections, timeout, headers] = httpx.Client(
                timeout=httpx.Timeout(timeout, pool=None),  # no limit for waiting on a free connection
                limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
                follow_redirects=True,
                headers={"Accept-Encoding": "identity"},
                event_hooks={"request": [headers.apply]},  # for each redirect too
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            )
        return cast("httpx.Client", _clients[connections, timeout, headers])


@contextmanager
def open_response(
    uri: str, connections: int = 32, timeout: float = 30.0, headers: Headers = PLAIN
) -> Iterator["httpx.Response"]:
    """The response to a GET, with its body unread. Raises StorageError, also for errors while the body is read."""
    import httpx

    try:
        with client(connections, timeout, headers).stream("GET", uri) as response:
            if not is_whole(response):
                status = response.status_code
                kind = STATUS.get(status, "unreachable" if status >= 500 or status == PARTIAL else "forbidden")
                words = f"the server answered {status}" + " with a part" * (status == PARTIAL)
                raise StorageError(kind, uri, words, retry_after(response), is_alone=status == PARTIAL)
            yield response
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.TooManyRedirects) as error:
        raise StorageError("bad_uri", uri, f"not an address that can be fetched ({type(error).__name__})") from error
    except httpx.HTTPError as error:
        raise StorageError("unreachable", uri, f"the server cannot be reached ({type(error).__name__})") from error


def is_whole(response: "httpx.Response") -> bool:
    """Whether a response holds the whole object: also a transformed copy (203), or a part that is all of it."""
    if response.status_code == PARTIAL:
        found = re.fullmatch(r"bytes 0-(\d+)/(\d+)", response.headers.get("Content-Range", "").strip())
        return found is not None and int(found[1]) + 1 == int(found[2])
    return response.status_code in (200, 203)


def get_once(
    uri: str, max_bytes: int | None, connections: int = 32, timeout: float = 30.0, headers: Headers = PLAIN
) -> tuple[bytes, str]:
    """Read a whole object, without retries: its bytes and its ETag, or an empty string. Raises StorageError."""
    until = time.monotonic() + MAX_TIMEOUTS * timeout
    with open_response(uri, connections, timeout, headers) as response:
        data = bytearray()
        for chunk in response.iter_bytes():
            data += chunk
            if max_bytes is not None and len(data) > max_bytes:
                raise StorageError("too_large", uri, f"more than {max_bytes:,} bytes")
            if time.monotonic() > until:
                words = f"still sending after {MAX_TIMEOUTS * timeout:g} s ({len(data):,} bytes received)"
                raise StorageError("unreachable", uri, words)
        return bytes(data), response.headers.get("ETag", "")


def retry_after(response: "httpx.Response") -> float | None:
    """Seconds to wait by the Retry-After header, which holds a number or a date."""
    value = response.headers.get("Retry-After", "")
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


class HttpStore:
    """A folder of a web server. Objects can be read; listing and writing raise StorageError."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """See Store."""
        return with_retries(lambda: get_once(self._uri(key), max_bytes)[0], RETRIES)

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """See Store."""
        return with_retries(lambda: get_once(self._uri(key), None), RETRIES)

    def open(self, key: str) -> BinaryIO:
        """See Store. Downloads to a temporary file, since servers may not support range requests."""

        def once() -> BinaryIO:
            file = tempfile.TemporaryFile()  # noqa: SIM115  (the caller closes it)
            try:
                with open_response(self._uri(key)) as response:
                    for chunk in response.iter_bytes(1 << 20):
                        file.write(chunk)
            except BaseException:
                file.close()
                raise
            file.seek(0)
            return cast(BinaryIO, file)

        return with_retries(once, RETRIES)

    def get_range(self, key: str, start: int, size: int, version: str | None = None) -> bytes:
        """Not supported, since servers differ in what they do with ranges: raises StorageError."""
        raise StorageError("bad_uri", self._uri(key), "parts of files are read from a folder or from s3:// only")

    def exists(self, key: str) -> bool:
        """See Store. Sends a GET and ignores the body, since many servers reject HEAD."""

        def once() -> bool:
            with open_response(self._uri(key)):
                return True

        try:
            return with_retries(once, RETRIES)
        except StorageError as error:
            if error.kind == "missing":
                return False
            raise

    def version(self, key: str, *, settled: bool = True) -> str | None:
        """None: servers differ in what their ETags promise."""
        return None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Not supported: raises StorageError."""
        raise StorageError("bad_uri", self.uri, "a web server's folder cannot be listed; give a manifest of addresses")

    def put(self, key: str, data: bytes) -> str:
        """Not supported: raises StorageError."""
        self._refuse()

    def put_file(self, key: str, path: Path) -> str:
        """Not supported: raises StorageError."""
        self._refuse()

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Not supported: raises StorageError."""
        self._refuse()

    def put_if_match(self, key: str, data: bytes, etag: str) -> str | None:
        """Not supported: raises StorageError."""
        self._refuse()

    def delete(self, key: str) -> None:
        """Not supported: raises StorageError."""
        self._refuse()

    def delete_many(self, keys: Iterable[str]) -> None:
        """Not supported: raises StorageError."""
        self._refuse()

    def _uri(self, key: str) -> str:
        return f"{self.uri}{'' if key.startswith('?') else '/'}{key}"

    def _refuse(self) -> NoReturn:
        raise StorageError("forbidden", self.uri, "web servers are read-only; write to a folder or to s3://")


def _get(uri: str, max_bytes: int, connections: int, timeout: float, headers: Headers = PLAIN) -> bytes:
    return get_once(uri, max_bytes, connections, timeout, headers)[0]


SCHEME = Scheme("http(s)://", HttpStore, _get, query=True, headers=True)
