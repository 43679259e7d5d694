"""Members of zip and tar archives as images: `s3://bucket/a.zip#path/in.jpg`, `/data/a.tar#x/y.png`.

An archive's index is read once in a process, then each member by one range request; nothing is unpacked to disk. `#` is
an ordinary character of keys and file names too: an address may be a member's where what is before it ends in `.zip` or
`.tar`. If there is no such archive or member, the address is that of an ordinary object.
"""

import contextlib
import re
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Final

import numpy as np

from paliscribe.errors import RowError
from paliscribe.storage import StorageError, Store, open_store, scheme, split, tar_members, zip_members
from paliscribe.storage.base import RETRYABLE
from paliscribe.storage.zip_members import DEFLATED, STORED, Member

PACKED_NAMES: Final = r"(?:tar|zip)\.(?:gz|bz2|xz|zst|lz4|lzma|Z)|tgz|tbz2?|txz|tzst"
MARK: Final = re.compile(rf"\.(?:zip|tar|{PACKED_NAMES})#", re.IGNORECASE)
COMPRESSED: Final = re.compile(rf".*\.(?:{PACKED_NAMES})", re.IGNORECASE | re.DOTALL)
KEPT, MOST_MEMBERS = 16, 4_000_000  # archives, and members of all of them, whose index is kept: 48 bytes a member
WAY_OUT: Final = (
    "a compressed archive cannot be read by ranges; decompress it (gunzip, zstd -d), or unpack it into a folder"
)
PACKED: Final = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")  # starts of gzip, zstd, bzip2, xz
SLACK: Final = 1024  # bytes: more than most names and extra fields of a member in a zip


def splits(address: str) -> Iterator[tuple[str, str]]:
    """The archives and members that an address may mean."""
    for found in MARK.finditer(address):
        archive, name = address[: found.end() - 1], address[found.end() :]
        if name and not (_web(address) and "?" in archive):
            yield archive, name


@contextlib.contextmanager
def opened(uri: str) -> Iterator[tuple[BinaryIO, Iterator[Member], Store, str, str]]:
    """An archive's stream, its members, its store and key, and the version that is read.

    Raises StorageError, and RowError for what is no archive that can be read; both while the members are read too.
    """
    if COMPRESSED.fullmatch(uri):
        raise RowError("unsupported", WAY_OUT)
    folder, name = split(uri)
    store = open_store(folder)
    if (version := store.version(name, settled=False)) is None:
        raise RowError("unsupported", "archives are read from a folder or from s3:// only; copy it there")
    if store.get_range(name, 0, 8, version).startswith(PACKED):
        raise RowError("unsupported", WAY_OUT)
    with store.open(name) as file:
        if store.version(name, settled=False) != version:
            raise StorageError("changed", uri, "the archive was replaced during the read")
        kind = zip_members if uri.lower().endswith(".zip") else tar_members
        yield file, kind.members(file), store, name, version


class Members:
    """Reads members of archives by their addresses. Thread-safe; it keeps the indexes of the archives used last."""

    def __init__(self) -> None:
        self._kept: dict[str, _Archive] = {}
        self._lock = threading.Lock()

    def read(
        self,
        address: str,
        max_bytes: int,
        whole: Callable[[], bytes],
        allowed: Callable[[str], bool] = lambda archive: True,
    ) -> bytes:
        """The bytes of a member. Raises RowError, and what `whole` raises.

        `whole`: reads the ordinary object of this address, which is tried where no member is. `allowed`: whether an
        archive may be read; others are passed over.
        """
        problem: RowError | None = None
        for uri, name in splits(address):
            if not allowed(uri):
                continue
            try:
                return self._archive(uri).read(name, max_bytes)
            except (StorageError, RowError) as error:  # after the retries of the store
                if error.kind in RETRYABLE or (problem is None and _web(uri)):
                    raise RowError(error.kind, error.message) from None
                if problem is None or problem.kind == "missing":
                    problem = RowError(error.kind, error.message)
        try:
            return whole()
        except (StorageError, RowError) as error:
            if problem is None or error.kind in RETRYABLE:
                raise
            raise problem from None

    def _archive(self, uri: str) -> "_Archive":
        with self._lock:
            archive = self._kept.pop(uri, None) or _Archive(uri)
            self._kept[uri] = archive  # the last one used is the last one dropped
            while len(self._kept) > 1 and (
                len(self._kept) > KEPT or sum(each.members for each in self._kept.values()) > MOST_MEMBERS
            ):
                self._kept.pop(next(iter(self._kept)))
        return archive


class _Archive:
    """An archive, with the index of one version of it. `members`: their number, 0 until it has been read."""

    def __init__(self, uri: str) -> None:
        self._uri, self._lock = uri, threading.Lock()
        self._store: Store | None = None
        self._name = self._version = ""
        self._index = _Index(())
        self._damage: RowError | None = None  # of the archive after the members that are in the index

    @property
    def members(self) -> int:
        return len(self._index)

    def read(self, name: str, max_bytes: int) -> bytes:
        """A member's bytes. Raises StorageError, `changed` if the archive has been replaced, and RowError."""
        with self._lock:
            store = self._store or self._open()
        member = self._index.find(name)
        if member is None:
            raise self._damage or RowError("missing", "the archive has no such member")
        if member.method not in (STORED, DEFLATED):
            raise RowError("unsupported", f"the member of the archive is {zip_members.words(member.method)}")
        if member.size > max_bytes or member.stored > max_bytes + max_bytes // 100 + SLACK:
            size = max(member.size, member.stored)
            raise StorageError("too_large", self._uri, f"the member has {size:,} bytes; the limit is {max_bytes:,}")
        try:
            return self._bytes(store, member)
        except StorageError:
            with self._lock:
                self._store = None  # the next member is read from the archive as it is then
            raise

    def _bytes(self, store: Store, member: Member) -> bytes:
        is_zip = self._uri.lower().endswith(".zip")
        data = store.get_range(self._name, member.at, member.stored + SLACK * is_zip, self._version)
        start = zip_members.data_start(data) if is_zip else 0
        if missing := start + member.stored - len(data):
            data += store.get_range(self._name, member.at + len(data), missing, self._version) if missing > 0 else b""
        data = data[start : start + member.stored]
        if len(data) < member.stored:
            raise RowError("corrupt", "the archive is cut off within the member")
        return zip_members.decompressed(data, member) if is_zip else data

    def _open(self) -> Store:
        """Read the index. What is damaged stays so, until the archive is dropped."""
        found, store = _Found(self._uri), open_store(split(self._uri)[0])
        self._index, self._damage = _Index(()), None
        try:
            with opened(self._uri) as (_, members, store, self._name, self._version):
                self._index = _Index(found.of(members))
            self._damage = found.damage
        except RowError as error:
            self._damage = error
        self._store = store
        return store


class _Found:
    """Members until the end or to where the archive is damaged. Raises StorageError for too many."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.damage: RowError | None = None

    def of(self, members: Iterator[Member]) -> Iterator[Member]:
        try:
            for number, member in enumerate(members):
                if number == MOST_MEMBERS:
                    raise StorageError("too_large", self._uri, f"more than {MOST_MEMBERS:,} members; split the archive")
                yield member
        except RowError as error:
            self.damage = error


class _Index:
    """Members by name; the last of equal names counts, as where an archive is unpacked."""

    def __init__(self, members: Iterable[Member]) -> None:
        flat = array("q")
        for each in members:
            flat.extend((hash(each.name), each.at, each.stored, each.size, each.method, each.crc))
        table = np.frombuffer(flat, np.int64).reshape(-1, 6) if flat else np.empty((0, 6), np.int64)
        self._table = table[np.argsort(table[:, 0], kind="stable")]

    def __len__(self) -> int:
        return len(self._table)

    def find(self, name: str) -> Member | None:
        """A member; also by the name that a reader gives it which takes UTF-8 for cp437."""
        while name.startswith("./"):
            name = name[2:]
        names = [name]
        with contextlib.suppress(UnicodeError):
            names += [name.encode("cp437").decode()] if not name.isascii() else []
        for each in names:
            place = int(np.searchsorted(self._table[:, 0], hash(each), side="right")) - 1
            if place >= 0 and self._table[place, 0] == hash(each):
                return Member(each, *map(int, self._table[place, 1:]))
        return None


def _web(uri: str) -> bool:
    return scheme(uri) in ("http", "https")
