"""The members of a zip archive, from its central directory: ZIP64 too, in memory that does not grow with it."""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from paliscribe.errors import RowError

END, ENTRY, LOCAL = struct.Struct("<4s4H2LH"), struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
LOCATOR, END64 = struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
LONGEST_COMMENT: Final = 0xFFFF
ENCRYPTED, UTF8 = 0x1 | 0x40, 0x800  # flags
STORED, DEFLATED = 0, 8
LINK, CRYPT, SPARSE = -1, -2, -3  # in the place of a method: members that are not read
WORDS: Final = {LINK: "a link to another file", CRYPT: "encrypted", SPARSE: "a sparse file"}
METHODS: Final = {9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstandard", 95: "xz", 98: "ppmd"}
ZIP64, UNICODE = 0x0001, 0x7075  # extra fields: large numbers, and the name in UTF-8


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive.

    `at`: the offset of its bytes; in a zip that of its header. `stored`: bytes in the archive. `size`: bytes of the
    file. `method`: how it is compressed, or why it is not read. `crc`: -1 if there is none.
    """

    name: str
    at: int
    stored: int
    size: int
    method: int = STORED
    crc: int = -1


def members(file: BinaryIO) -> Iterator[Member]:
    """The files in a zip archive, in the order of its directory. Raises RowError: not one, damaged, in parts."""
    start, left, shift = _directory(file)
    file.seek(start)
    while left > 0:
        head = file.read(ENTRY.size)
        if len(head) < ENTRY.size or head[:4] != b"PK\x01\x02":
            raise RowError("corrupt", "the directory of the zip archive is damaged")
        _, version, _, flags, method, _, _, crc, stored, size, *lengths, _, _, outer, at = ENTRY.unpack(head)
        name, extra = file.read(lengths[0]), file.read(lengths[1])
        file.seek(lengths[2], 1)
        left -= ENTRY.size + sum(lengths[:3])
        fields = _fields(extra)
        size, stored, at = _large(fields.get(ZIP64, b""), size, stored, at)
        if version >> 8 == 3 and outer >> 28 == 0xA:  # made on Unix: S_IFLNK
            method = LINK
        elif flags & ENCRYPTED:
            method = CRYPT
        text = _name(name, flags, fields.get(UNICODE, b""))
        if not text.endswith("/"):
            yield Member(text, at + shift, stored, size, method, crc)


def words(method: int) -> str:
    """Why a member is not read."""
    return WORDS.get(method) or f"compressed by {METHODS.get(method, f'method {method}')}, not stored or deflated"


def data_start(local: bytes) -> int:
    """Where a member's bytes begin after its header. Raises RowError."""
    if len(local) < LOCAL.size or local[:4] != b"PK\x03\x04":
        raise RowError("corrupt", "the zip archive is damaged or cut off where the member should be")
    *_, name, extra = LOCAL.unpack(local[: LOCAL.size])
    return LOCAL.size + int(name) + int(extra)


def decompressed(data: bytes, member: Member) -> bytes:
    """A member's bytes, which are not more than its size. Raises RowError."""
    try:
        if member.method == DEFLATED:
            stream = zlib.decompressobj(-zlib.MAX_WBITS)
            data = stream.decompress(data, member.size + 1)
    except zlib.error:
        raise RowError("corrupt", "the member of the zip archive cannot be decompressed") from None
    if len(data) != member.size or zlib.crc32(data) != member.crc:
        raise RowError("corrupt", "the member of the zip archive is damaged: its size or checksum is wrong")
    return data


def _directory(file: BinaryIO) -> tuple[int, int, int]:
    """Offset and bytes of the central directory, and what must be added to the offsets in it."""
    whole = file.seek(0, 2)
    before = max(0, whole - END.size - LONGEST_COMMENT - LOCATOR.size)
    file.seek(before)
    tail = file.read()
    found = [each.start() for each in re.finditer(rb"PK\x05\x06", tail) if each.start() + END.size <= len(tail)]
    if not found:
        raise RowError("corrupt", "not a zip archive, or cut off: its directory, which is at the end, is not there")
    fits = (each for each in found if each + END.size + END.unpack_from(tail, each)[-1] == len(tail))
    place = next(fits, found[-1])  # a comment may hold the mark, and something may follow
    _, disk, first, _, _, size, offset, _ = END.unpack_from(tail, place)
    end = before + place
    if place >= LOCATOR.size and tail[place - LOCATOR.size :][:4] == b"PK\x06\x07":
        end, large = _end64(file, end, LOCATOR.unpack_from(tail, place - LOCATOR.size)[2])
        _, _, _, _, disk, first, _, _, size, offset = large
    if disk or first:
        raise RowError("unsupported", "the zip archive is one of several parts; join them (zip -s 0)")
    start = end - size
    if start < 0 or start < offset:
        raise RowError("corrupt", "the directory of the zip archive is damaged or cut off")
    return start, size, start - offset  # what is before the archive, as in one that extracts itself


def _end64(file: BinaryIO, end: int, place: int) -> tuple[int, tuple[int, ...]]:
    """The end of the directory of ZIP64, where its locator says or right before that, and its offset."""
    for at in (place, end - LOCATOR.size - END64.size):
        if 0 <= at < end:
            file.seek(at)
            found = file.read(END64.size)
            if len(found) == END64.size and found[:4] == b"PK\x06\x06":
                return at, END64.unpack(found)
    raise RowError("corrupt", "the directory of the zip archive is damaged or cut off")


def _fields(extra: bytes) -> dict[int, bytes]:
    """Extra fields by their numbers."""
    found, at = {}, 0
    while at + 4 <= len(extra):
        number, size = struct.unpack_from("<2H", extra, at)
        found[number] = extra[at + 4 : at + 4 + size]
        at += 4 + size
    return found


def _large(field: bytes, *numbers: int) -> tuple[int, ...]:
    """Sizes and offset: those that do not fit into 32 bits are in the field of ZIP64, in the same order."""
    found, at = [], 0
    for number in numbers:
        if number == 0xFFFFFFFF and at + 8 <= len(field):
            number = struct.unpack_from("<Q", field, at)[0]
            at += 8
        if number >= 2**62:
            raise RowError("corrupt", "the directory of the zip archive is damaged")
        found.append(number)
    return tuple(found)


def _name(name: bytes, flags: int, field: bytes) -> str:
    """A name as text. macOS writes UTF-8 without saying so."""
    if len(field) > 5 and field[1:5] == struct.pack("<L", zlib.crc32(name)):
        name, flags = field[5:], UTF8
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode(errors="backslashreplace") if flags & UTF8 else name.decode("cp437")
