"""PNG chunks: which of them decoding needs. What it does not need must not cost a picture, or much time."""

import math
import struct
import zlib
from collections.abc import Iterator
from typing import Final

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
NEEDED: Final = (b"tRNS", b"iCCP", b"eXIf")  # beside critical chunks
TEXTS: Final = (b"tEXt", b"zTXt", b"iTXt")
ORIENTATION: Final = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # keywords of texts that may hold it
LEAST_KEY: Final = {0: 2, 2: 6, 3: 1}  # colour type -> bytes of tRNS
MOST_TEXT: Final = 2**20  # bytes of a decompressed text or profile: Pillow raises above


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The chunks of a PNG up to IEND: name, place of the body, and its length, which may reach beyond the data."""
    at, name = len(SIGNATURE), b""
    while at + 8 <= len(data) and name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, at)
        yield name, at + 8, length
        at += 12 + length


def pixels(data: bytes) -> int:
    """Width times height, by the header."""
    width, height = struct.unpack_from(">II", data.ljust(24, b"\0"), 16)
    return int(width * height)


def metadata(data: bytes, most: int) -> float:
    """Bytes of the metadata that decoding reads; infinite for more than `most` chunks."""
    total = 0
    for number, (name, body, length) in enumerate(chunks(data)):
        if number == most:
            return math.inf
        if name[0] & 0x20 and is_needed(data, name, body, length):
            total += length
    return total


def slimmed(data: bytes) -> bytes:
    """The file without chunks that decoding does not need; the same object if it has none."""
    kept, begin = [], 0
    for name, body, length in chunks(data):
        if not is_needed(data, name, body, length):
            kept.append(data[begin : body - 8])
            begin = body + length + 4
    return b"".join([*kept, data[begin:]]) if kept else data


def is_needed(data: bytes, name: bytes, body: int, length: int) -> bool:
    """Whether decoding needs this chunk: every critical one, an ancillary one only if it is whole and not too large."""
    if not name[0] & 0x20:  # an upper-case letter: a critical chunk
        return True
    if not (name in NEEDED or (name in TEXTS and data.startswith(ORIENTATION, body))):
        return False
    end = body + length
    if zlib.crc32(data[body - 4 : end]) != int.from_bytes(data[end : end + 4]):
        return False
    if name == b"tRNS":
        return length >= LEAST_KEY.get(data[25], math.inf)
    return name in (b"eXIf", b"tEXt") or _is_small(name, data[body:end])


def _is_small(name: bytes, body: bytes) -> bool:
    """Whether a text or a profile has some, and less than MOST_TEXT bytes once decompressed."""
    packed = body.partition(b"\0")[2][1:]  # after keyword and method
    if name == b"iTXt":
        is_plain, packed = body.partition(b"\0")[2][:1] == b"\0", packed[1:].partition(b"\0")[2].partition(b"\0")[2]
        if is_plain:
            return len(packed) < MOST_TEXT
    try:
        return 0 < len(zlib.decompressobj().decompress(packed, MOST_TEXT)) < MOST_TEXT
    except zlib.error:
        return False
