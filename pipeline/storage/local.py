"""Folders of this machine."""

import fcntl
import hashlib
import io
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.storage.base import ObjectInfo, StorageError, StorageErrorKind


class LocalStore:
    """A folder. Writes go to a hidden file first and appear whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = str(folder)

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """See Store."""
        with self._translated(key), (self.folder / key).open("rb") as file:
            data = file.read(-1 if max_bytes is None else max_bytes + 1)
        if max_bytes is not None and len(data) > max_bytes:
            raise StorageError("too_large", self._uri(key), f"more than {max_bytes:,} bytes")
        return data

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """See Store."""
        data = self.get(key)
        return data, _etag(data)

    def open(self, key: str) -> BinaryIO:
        """See Store."""
        with self._translated(key):
            return (self.folder / key).open("rb")

    def put(self, key: str, data: bytes) -> str:
        """See Store."""
        with self._translated(key), self._hidden(key) as hidden:
            _write(hidden, io.BytesIO(data))
            hidden.replace(self.folder / key)
        return _etag(data)

    def put_file(self, key: str, path: Path) -> str:
        """See Store."""
        with self._translated(key), path.open("rb") as source, self._hidden(key) as hidden:
            _write(hidden, source)
            hidden.replace(self.folder / key)
        return str(path.stat().st_size)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See Store: the hidden file is linked to its name, which fails where the name is taken."""
        with self._translated(key), self._hidden(key) as hidden:
            _write(hidden, io.BytesIO(data))
            try:
                os.link(hidden, self.folder / key)
            except FileExistsError:
                return False
        return True

    def put_if_match(self, key: str, data: bytes, etag: str) -> str | None:
        """See Store. Writers that use it exclude one another by a lock on the folder."""
        with self._translated(key):
            path = self.folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if not path.exists() or _etag(path.read_bytes()) != etag:
                    return None
                return self.put(key, data)
            finally:
                os.close(descriptor)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See Store."""
        with self._translated(prefix):
            base = self.folder / prefix
            for path in _walk(base if base.is_dir() else base.parent):
                key = path.relative_to(self.folder).as_posix()
                if key.startswith(prefix) and not path.name.startswith(".tmp-"):
                    try:
                        stat = path.stat()
                    except FileNotFoundError:
                        continue  # gone since it was listed
                    yield ObjectInfo(key, stat.st_size, f"{stat.st_mtime_ns}-{stat.st_size}", stat.st_mtime)

    def exists(self, key: str) -> bool:
        """See Store."""
        with self._translated(key):
            return (self.folder / key).is_file()

    def delete(self, key: str) -> None:
        """See Store."""
        with self._translated(key):
            (self.folder / key).unlink(missing_ok=True)

    def delete_many(self, keys: Iterable[str]) -> None:
        """See Store."""
        for key in keys:
            self.delete(key)

    def _uri(self, key: str) -> str:
        return str(self.folder / key)

    @contextmanager
    def _hidden(self, key: str) -> Iterator[Path]:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = path.with_name(f".tmp-{uuid.uuid4().hex}")
        try:
            yield hidden
        finally:
            hidden.unlink(missing_ok=True)

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kind: StorageErrorKind = "unreachable"
            if isinstance(error, FileNotFoundError):
                kind = "missing"
            elif isinstance(error, PermissionError):
                kind = "forbidden"
            elif isinstance(error, (IsADirectoryError, NotADirectoryError)):
                kind = "bad_uri"
            words = {
                "missing": "no such file",
                "forbidden": "no permission",
                "bad_uri": "a folder where a file should be",
            }
            raise StorageError(kind, self._uri(key), words.get(kind, os.strerror(error.errno or 0))) from error


def _walk(folder: Path) -> Iterator[Path]:
    """Files below, in the order of their keys."""
    if not folder.is_dir():
        return
    entries = [(entry.name + ("/" if entry.is_dir() else ""), entry) for entry in os.scandir(folder)]
    for name, entry in sorted(entries, key=lambda pair: pair[0]):
        if name.endswith("/"):
            yield from _walk(Path(entry.path))
        else:
            yield Path(entry.path)


def _write(path: Path, source: BinaryIO) -> None:
    with path.open("wb") as file:
        while chunk := source.read(1 << 20):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
