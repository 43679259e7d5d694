"""The files of an output for DuckDB, whose threads read one file side by side."""

import io
import os
import threading
from typing import Any

import pyarrow as pa
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow import fs


class OutputFiles(ArrowFSWrapper):  # type: ignore[misc]
    """The files of an output; their addresses are `PROTOCOL://KEY`."""

    cachable = False

    def __init__(self, protocol: str, files: fs.FileSystem) -> None:
        self._protocol = protocol
        super().__init__(files)

    @property
    def protocol(self) -> str:
        """The scheme of the addresses."""
        return self._protocol

    def _strip_protocol(self, path: Any) -> Any:
        return (
            [*map(self._strip_protocol, path)] if isinstance(path, list) else path.removeprefix(f"{self.protocol}://")
        )

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return SharedFile(self.fs.open_input_file(path)) if mode == "rb" else super()._open(path, mode, **options)


class SharedFile(io.RawIOBase):
    """A file in which each thread has a place of its own.

    DuckDB's threads share an open file, and each seeks and then reads. With one place for all, a thread would read
    where another has gone to in between.
    """

    def __init__(self, file: pa.NativeFile) -> None:
        super().__init__()
        self._file, self._size = file, int(file.size())
        self._places: dict[int, int] = {}

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """The thread's place."""
        return self._places.get(threading.get_ident(), 0)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the thread's place."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self._size}[whence]
        self._places[threading.get_ident()] = start + offset
        return start + offset

    def read(self, size: int | None = -1) -> bytes:
        """Read at the thread's place."""
        start = self.tell()
        wanted = self._size - start if size is None or size < 0 else size
        data: bytes = self._file.read_at(max(0, wanted), start)
        self.seek(start + len(data))
        return data

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer at the thread's place."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._file.close()
        super().close()
