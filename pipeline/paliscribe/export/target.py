"""The destination of an export: an empty folder or prefix, to which files are written as they are made."""

import shutil
import tempfile
import uuid
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from paliscribe.errors import RunError, UsageError
from paliscribe.published.query import json_line
from paliscribe.storage import StorageError, Store, check_writable, open_store
from paliscribe.storage.parallel import REQUESTS


class Target:
    """Writes objects below a destination, small ones in threads. A context, which removes its scratch files at the end.

    `uri`: the destination. All methods raise RunError if the store fails.
    """

    def __init__(self, to: str, output: Store) -> None:
        """Raises UsageError if the destination is not empty, not writable, or inside the run's output."""
        try:
            self._store = open_store(to)
            self.uri = self._store.uri
            if f"{self.uri}/".startswith(f"{output.uri}/"):
                raise UsageError(f"--to: {self.uri} is inside the run's output; choose a place outside")
            if (found := next(iter(self._store.list()), None)) is not None:
                raise UsageError(f"--to: {self.uri} is not empty (it holds {found.key[:100]}); choose an empty place")
            check_writable(self._store, f"writable-{uuid.uuid4().hex}")
        except StorageError as error:
            raise UsageError(f"--to: {error}") from None
        self._folder = tempfile.TemporaryDirectory(prefix="paliscribe-export-")
        self._threads = ThreadPoolExecutor(REQUESTS, thread_name_prefix="export")
        self._waiting: deque[Future[str]] = deque()
        self._scratch = 0

    def __enter__(self) -> "Target":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._threads.shutdown(cancel_futures=True)
        finally:
            self._folder.cleanup()

    def put(self, key: str, data: bytes) -> None:
        """Write a small object, in a thread."""
        self._waiting.append(self._threads.submit(self._store.put, key, data))
        while len(self._waiting) > 2 * REQUESTS:
            _result(self._waiting.popleft())

    def scratch(self) -> Path:
        """The path of a new local file, which `upload` or `append` takes away."""
        self._scratch += 1
        return Path(self._folder.name) / str(self._scratch)

    def upload(self, key: str, path: Path) -> None:
        """Write an object of any size from a scratch file, and delete that."""
        try:
            self._store.put_file(key, path)
        except StorageError as error:
            raise RunError(f"--to: {error}") from None
        path.unlink()

    def lines(self, key: str | None = None) -> "Lines":
        """A new file of text, which is uploaded to this key when it is closed."""
        return Lines(self, key)

    def finish(self) -> None:
        """Wait for all that is written in threads."""
        while self._waiting:
            _result(self._waiting.popleft())


class Lines:
    """A file of UTF-8 text in the making, of any size."""

    def __init__(self, target: Target, key: str | None) -> None:
        self._target, self._key, self._path = target, key, target.scratch()
        self._file = self._path.open("w", encoding="utf-8", newline="")
        self._items = 0

    def write(self, text: str) -> None:
        """Add text as it is."""
        self._file.write(text)

    def item(self, value: Any) -> None:
        """Add an item of a JSON array, on a line, with a comma before it if it is not the first."""
        self._file.write(f"{',' if self._items else ''}\n{json_line(value)}")
        self._items += 1

    def append(self, other: "Lines") -> None:
        """Add the text of another file, which ends it."""
        other._file.close()
        with other._path.open(encoding="utf-8", newline="") as source:
            shutil.copyfileobj(source, self._file, 1 << 20)
        other._path.unlink()

    def close(self) -> None:
        """Upload the file. Raises RunError."""
        self._file.close()
        if self._key is not None:
            self._target.upload(self._key, self._path)


def _result(future: Future[str]) -> None:
    try:
        future.result()
    except StorageError as error:
        raise RunError(f"--to: {error}") from None
