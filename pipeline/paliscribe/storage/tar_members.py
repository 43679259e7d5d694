"""The members of a tar archive, from the headers before them."""

import tarfile
from collections.abc import Iterator
from typing import BinaryIO, Final

from paliscribe.errors import RowError
from paliscribe.storage.local import is_text
from paliscribe.storage.zip_members import LINK, SPARSE, STORED, Member

MOST: Final = 1 << 20  # bytes of a header: names and pax records
BLOCK: Final = 512
DAMAGED: Final = "the tar archive is damaged or cut off: after its last whole member it has no mark of its end"


class _Headers:
    """A stream for `tarfile`, which reads headers only, of a bounded size."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > MOST:
            raise RowError("corrupt", "the tar archive has a header of more than 1 MiB")
        return self._file.read(size)


def members(file: BinaryIO) -> Iterator[Member]:
    """The files in a tar archive, in order, links too. Raises RowError: not one, or damaged after what it gave.

    The position of `file` may be changed between two members.
    """
    whole = file.seek(0, 2)
    file.seek(0)
    try:
        with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:  # type: ignore[call-overload]
            while (found := tar.next()) is not None:
                tar.members.clear()
                if not found.issparse() and found.isfile() and found.offset_data + found.size > whole:
                    raise RowError("corrupt", DAMAGED)
                if found.isfile() or found.issym() or found.islnk():
                    method = SPARSE if found.issparse() else STORED if found.isfile() else LINK
                    yield Member(_plain(found.name), found.offset_data, found.size, found.size, method)
            file.seek(tar.offset)
            if file.read(BLOCK) != bytes(BLOCK):  # the mark of the end: without it, nothing tells what is lost
                raise RowError("corrupt", DAMAGED)
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        words = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise RowError("corrupt", f"not a tar archive, or damaged: {words}") from None


def _plain(name: str) -> str:
    """A name without `./`, which `tar c .` writes, and as text."""
    while name.startswith("./"):
        name = name[2:]
    return name if is_text(name) else name.encode(errors="surrogateescape").decode(errors="backslashreplace")
