"""The storage interface and its error class."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from paliscribe.errors import PaliscribeError

StorageErrorKind = Literal["missing", "forbidden", "throttled", "unreachable", "bad_uri", "too_large", "changed"]
RETRYABLE: frozenset[str] = frozenset({"throttled", "unreachable"})


class StorageError(PaliscribeError):
    """An object could not be read or written. Callers translate it: `Fetcher` to RowError, `batch` to RunError.

    `kind`: the cause. `uri`: without secrets. `retry_after`: seconds that the store asked to wait, if any. `is_alone`:
    whether the store works, and only this object cannot be read.
    """

    def __init__(
        self,
        kind: StorageErrorKind,
        uri: str,
        message: str,
        retry_after: float | None = None,
        *,
        is_alone: bool = False,
    ) -> None:
        self.uri = redacted(uri)
        super().__init__(kind, self.uri, message)
        self.kind: StorageErrorKind = kind
        self.message = message
        self.retry_after = retry_after
        self.is_alone = is_alone

    def __str__(self) -> str:
        return f"{self.uri}: {self.message}"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One listed object.

    `size`: bytes. `modified`: seconds since 1970. `etag`: comparable between listings only; on a local disk it is made
    of modification time and size, not of the content.
    """

    key: str
    size: int
    etag: str
    modified: float


class Store(Protocol):
    """A folder or prefix. Keys are relative to it. All methods raise StorageError and are thread-safe."""

    uri: str

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Read a whole object. Raises `too_large` for more than `max_bytes`."""

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """Read a whole object, with the ETag of the version read."""

    def open(self, key: str) -> BinaryIO:
        """A seekable stream of an object of any size, in constant memory."""

    def get_range(self, key: str, start: int, size: int, version: str | None = None) -> bytes:
        """Read some bytes of an object, fewer at its end. Raises `changed` if it is not in this `version`, if given."""

    def put(self, key: str, data: bytes) -> str:
        """Write an object atomically: readers see the old or the new one. Returns its ETag."""

    def put_file(self, key: str, path: Path) -> str:
        """Write an object atomically from a file of any size. Returns its ETag."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create an object. True if this call created it, even if the response to an attempt was lost."""

    def put_if_match(self, key: str, data: bytes, etag: str) -> str | None:
        """Replace the version with this ETag. Returns the new ETag; None if the object has changed or is missing."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """List objects recursively, in a stable order: by key (some S3-compatible stores: folder by folder)."""

    def exists(self, key: str) -> bool:
        """Whether an object exists."""

    def version(self, key: str, *, settled: bool = True) -> str | None:
        """Text that changes whenever the object's content does, found without reading it; None if there is none.

        `settled`: None also for an object so new that another change might not show.
        """

    def delete(self, key: str) -> None:
        """Delete an object; a missing object is not an error."""

    def delete_many(self, keys: Iterable[str]) -> None:
        """Delete objects; missing objects are not an error."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """The implementation of a URI scheme, registered in `storage.SCHEMES`.

    `words`: the scheme's name in messages. `open_store`: returns the store of a folder or prefix. `get_once`: reads a
    whole object without retries; its arguments are those of `storage.get_once`. Both raise StorageError. `query`: `?`
    starts a query, which is not part of an object's path. `store`: the name of the store that reads are retried for, as
    in `retry.with_retries`; empty for strangers' hosts. `headers`: whether `get_once` takes `headers`, as web servers'.
    """

    words: str
    open_store: Callable[[str], Store]
    get_once: Callable[..., bytes]
    query: bool = False
    headers: bool = False
    store: Callable[[], str] = lambda: ""


def scheme(uri: str) -> str:
    """The scheme of an address in lower case; empty for a plain path. `file:/path` has one too (RFC 8089)."""
    if uri[:6].lower() == "file:/":
        return "file"
    return uri.partition("://")[0].lower() if "://" in uri else ""


def is_local(uri: str) -> bool:
    """Whether an address is local: a plain path or file://."""
    return scheme(uri) in ("", "file")


def redacted(uri: str) -> str:
    """The address without possible secrets: user, password and, for http(s), query and fragment."""
    if not (name := scheme(uri)) or name == "file":
        return uri
    authority, slash, path = uri.partition("://")[2].partition("/")
    place = authority.rpartition("@")[2] + slash + path
    if name in ("http", "https"):  # in S3 keys, `?` and `#` are ordinary characters
        place, *query = place.split("?", 1)
        place = place.partition("#")[0] + ("?..." if query else "")
    return f"{name}://{place}"
