"""Local folders, mounted file systems included."""

import errno
import fcntl
import hashlib
import io
import os
import re
import stat
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote

from paliscribe.storage.base import ObjectInfo, Scheme, StorageError, StorageErrorKind, scheme

COARSE, FINE = 2.0, 0.1  # seconds since a change during which another one may get the same time of modification
LOCK_SECONDS = 30.0  # of waiting for a lock that is held for a moment
TEMPORARY = ".tmp-"  # name prefix of unfinished writes and of lock files: never listed
KINDS: dict[int, StorageErrorKind] = {
    errno.ENOENT: "missing",
    errno.ENOTDIR: "missing",
    errno.EACCES: "forbidden",
    errno.EPERM: "forbidden",
    errno.EROFS: "forbidden",
    errno.EISDIR: "bad_uri",
    errno.EEXIST: "bad_uri",
    errno.ENAMETOOLONG: "bad_uri",
    errno.ELOOP: "bad_uri",
}
WORDS = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "no such file",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EISDIR: "a folder where a file should be",
    errno.EEXIST: "a file where a folder should be",
}
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def local_path(uri: str) -> Path:
    """The path of a plain, `file:///path` or `file:/path` address. Raises StorageError `bad_uri` for a remote host."""
    if not scheme(uri) and "://" not in uri:
        return Path(uri)
    rest = uri.partition(":")[2]
    host, slash, path = rest[2:].partition("/") if rest.startswith("//") else ("", *rest.partition("/")[1:])
    if host.lower() not in ("", "localhost"):
        raise StorageError("bad_uri", uri, "file:// addresses have no host: file:///folder/name")
    return Path(slash + unquote(path, errors="surrogateescape"))  # as Python spells names that are not UTF-8


def is_text(name: str) -> bool:
    """Whether a name is text: a local one may be any bytes."""
    return name.isascii() or not re.search("[\ud800-\udfff]", name)


def local_address(path: str) -> str:
    """The path, or its file:// address where it is not text."""
    return path if is_text(path) else f"file://{quote(path, errors='surrogateescape')}"


def is_recent(modified: float) -> bool:
    """Whether another change might leave a file's time of modification the same, as clocks of file systems are coarse.

    `modified`: seconds since 1970. A fraction of a second shows a clock that has such.
    """
    return time.time() - modified < (FINE if modified % 1 else COARSE)


class LocalStore:
    """A folder, which several machines may mount. Writes are atomic: to a temporary file, then renamed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = str(folder)

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """See Store."""
        with self._translate_errors(key):
            found = self._file(key)
            if max_bytes is not None and found.st_size > max_bytes:
                words = f"{found.st_size:,} bytes; the limit is {max_bytes:,}"
                raise StorageError("too_large", self._uri(key), words)
            return (self.folder / key).read_bytes()

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """See Store."""
        data = self.get(key)
        return data, _etag(data)

    def open(self, key: str) -> BinaryIO:
        """See Store."""
        with self._translate_errors(key):
            return (self.folder / key).open("rb")

    def get_range(self, key: str, start: int, size: int, version: str | None = None) -> bytes:
        """See Store."""
        with self._translate_errors(key):
            self._file(key)
            with (self.folder / key).open("rb", buffering=0) as file:
                if version not in (None, _version(os.fstat(file.fileno()))):
                    raise StorageError("changed", self._uri(key), "the file was replaced during the read")
                return os.pread(file.fileno(), size, start)

    def put(self, key: str, data: bytes) -> str:
        """See Store."""
        return self._put(key, io.BytesIO(data))

    def put_file(self, key: str, path: Path) -> str:
        """See Store."""
        with self._translate_errors(key), path.open("rb") as source:
            return self._put(key, source)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See Store. Hard-links a temporary file to the key, which fails if the key exists."""
        with self._translate_errors(key), self._temporary(key) as temporary:
            _write(temporary, io.BytesIO(data))
            try:
                os.link(temporary, self.folder / key)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                words = "this file system has no hard links, which safe commits need; use another one or s3://"
                raise StorageError("forbidden", self._uri(key), words) from error
            _fsync_folder(temporary.parent)
        return True

    def put_if_match(self, key: str, data: bytes, etag: str) -> str | None:
        """See Store. A lock file beside the object serialises calls."""
        with self._translate_errors(key):
            path = self.folder / key
            if not path.exists():
                return None
            with path.with_name(f"{TEMPORARY}{path.name}.lock").open("ab") as lock:
                self._wait_for_lock(key, lock.fileno())
                if not path.exists() or _etag(path.read_bytes()) != etag:
                    return None
                return self.put(key, data)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See Store. Follows symlinks, except to a folder that contains them."""
        start = prefix.rpartition("/")[0]
        with self._translate_errors(start):
            for path in _walk(self.folder / start, frozenset()):
                key = path.relative_to(self.folder).as_posix()
                if key.startswith(prefix) and not path.name.startswith(TEMPORARY):
                    try:
                        found = path.stat()
                    except FileNotFoundError:
                        continue  # deleted since it was listed, or a broken symlink
                    if stat.S_ISREG(found.st_mode):
                        etag = f"{found.st_mtime_ns}-{found.st_size}"
                        yield ObjectInfo(key, found.st_size, etag, found.st_mtime)

    def exists(self, key: str) -> bool:
        """See Store."""
        with self._translate_errors(key):
            return (self.folder / key).is_file()

    def version(self, key: str, *, settled: bool = True) -> str | None:
        """See Store: inode, time of modification, size."""
        with self._translate_errors(key):
            found = (self.folder / key).stat()
        is_new = settled and is_recent(found.st_mtime)
        return None if is_new else _version(found)

    def delete(self, key: str) -> None:
        """See Store."""
        with self._translate_errors(key):
            (self.folder / key).unlink(missing_ok=True)

    def delete_many(self, keys: Iterable[str]) -> None:
        """See Store."""
        for key in keys:
            self.delete(key)

    def _put(self, key: str, source: BinaryIO) -> str:
        with self._translate_errors(key), self._temporary(key) as temporary:
            etag = _write(temporary, source)
            temporary.replace(self.folder / key)
            _fsync_folder(temporary.parent)
        return etag

    def _wait_for_lock(self, key: str, file: int) -> None:
        """Lock a file. Raises StorageError if its holder keeps it, as one that is stopped within a write does."""
        until = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    words = "a process holds its lock and does not go on; end it if it is stopped or hangs"
                    raise StorageError("unreachable", self._uri(key), words) from None
                time.sleep(0.01)

    def _file(self, key: str) -> os.stat_result:
        """The facts of a regular file. Raises StorageError `bad_uri` for others: opening a pipe would block."""
        found = (self.folder / key).stat()
        if not stat.S_ISREG(found.st_mode):
            words = "a folder" if stat.S_ISDIR(found.st_mode) else "a device, a pipe or a socket"
            raise StorageError("bad_uri", self._uri(key), f"{words} where a file should be")
        return found

    def _uri(self, key: str) -> str:
        return str(self.folder / key)

    @contextmanager
    def _temporary(self, key: str) -> Iterator[Path]:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _translate_errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            number = error.errno or 0
            words = WORDS.get(number, os.strerror(number))
            raise StorageError(KINDS.get(number, "unreachable"), self._uri(key), words) from error
        except ValueError as error:  # a NUL character, or one outside the file system's encoding
            raise StorageError("bad_uri", self._uri(key), "not a valid path") from error


def _walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """Files of a folder, recursively, ordered by key. `above`: (device, inode) of the folders that contain it."""
    if not folder.is_dir():
        return
    found = folder.stat()
    here = (found.st_dev, found.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in entries)
    for name in names:
        if name.endswith("/"):
            yield from _walk(folder / name, above | {here})
        else:
            yield folder / name


def _write(path: Path, source: BinaryIO) -> str:
    """Copy into a new file and fsync it. Returns the content's ETag."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        while chunk := source.read(1 << 20):
            file.write(chunk)
            digest.update(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _fsync_folder(folder: Path) -> None:
    """Fsync a folder: after a power loss, no marker exists without the files that it refers to."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _version(found: os.stat_result) -> str:
    return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _open(uri: str) -> LocalStore:
    return LocalStore(local_path(uri).expanduser().absolute())


def _get(uri: str, max_bytes: int, connections: int, timeout: float) -> bytes:
    path = local_path(uri)
    return LocalStore(path.parent).get(path.name, max_bytes=max_bytes)


SCHEME = Scheme("local paths", _open, _get)
