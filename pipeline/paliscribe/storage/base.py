"""What a store can do, and the one error of storage."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from paliscribe.errors import PaliscribeError

StorageErrorKind = Literal["missing", "forbidden", "throttled", "unreachable", "bad_uri", "too_large"]
PASSING: frozenset[str] = frozenset({"throttled", "unreachable"})  # worth another attempt


class StorageError(PaliscribeError):
    """An object could not be read or written. Its fate depends on who asked: see `Fetcher` and `batch`."""

    def __init__(self, kind: StorageErrorKind, uri: str, message: str, retry_after: float | None = None) -> None:
        self.uri = redacted(uri)
        super().__init__(kind, self.uri, message)
        self.kind: StorageErrorKind = kind
        self.message = message
        self.retry_after = retry_after  # seconds that the store asked to wait

    def __str__(self) -> str:
        return f"{self.uri}: {self.message}"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One listed object. `modified`: seconds since 1970. `etag` is of this listing (a disk's: time and size)."""

    key: str
    size: int
    etag: str
    modified: float


class Store(Protocol):
    """A folder or prefix. Keys are relative. All methods raise StorageError and may be called from any thread."""

    uri: str

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """A whole object; `too_large` if it has more than `max_bytes`."""

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """A whole object and the tag of this version of it."""

    def open(self, key: str) -> BinaryIO:
        """Read an object of any size in constant memory; what comes back can seek."""

    def put(self, key: str, data: bytes) -> str:
        """Write a whole object at once; readers see the old or the new one. Returns its tag."""

    def put_file(self, key: str, path: Path) -> str:
        """The same from a file of any size."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create an object. True if this call created it, even where the answer was lost on the way."""

    def put_if_match(self, key: str, data: bytes, etag: str) -> str | None:
        """Replace the version with this tag. None if it has changed or gone."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects below, recursively, always in one order: by key (some stores like S3: folder by folder)."""

    def exists(self, key: str) -> bool:
        """Whether an object is there."""

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is fine."""

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove objects."""


def scheme(uri: str) -> str:
    """An address's scheme in lower case; empty for a plain path."""
    return uri.partition("://")[0].lower() if "://" in uri else ""


def is_local(uri: str) -> bool:
    """Whether an address is of this machine: a plain path or file://."""
    return scheme(uri) in ("", "file")


def redacted(uri: str) -> str:
    """The address without what may be secret: user, password and, on the web, query."""
    if not (name := scheme(uri)):
        return uri
    authority, slash, path = uri.partition("://")[2].partition("/")
    place = authority.rpartition("@")[2] + slash + path
    if name in ("http", "https"):  # `?` and `#` are letters like any other in the keys of S3
        place, *query = place.split("?", 1)
        place = place.partition("#")[0] + ("?..." if query else "")
    return f"{name}://{place}"
