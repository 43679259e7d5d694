"""WebP chunks: how costly a file is. Nothing is decoded here."""

import math
import struct
from typing import Final

IMAGE: Final = (b"VP8 ", b"VP8L", b"ALPH", b"VP8X")


def pixels(data: bytes) -> float:
    """Width times height; infinite for an irregular header."""
    name, start = data[12:16], data[20:30]
    if len(start) == 10 and name == b"VP8 ":
        width, height = struct.unpack_from("<HH", start, 6)
        return float((width & 0x3FFF) * (height & 0x3FFF))
    if len(start) == 10 and name == b"VP8L":
        (bits,) = struct.unpack_from("<I", start, 1)
        return float(((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1))
    if len(start) == 10 and name == b"VP8X":
        return float((int.from_bytes(start[4:7], "little") + 1) * (int.from_bytes(start[7:10], "little") + 1))
    return math.inf


def metadata(data: bytes, most: int) -> float:
    """Bytes of all chunks but those of a still image; infinite for more than `most` chunks."""
    at, total = 12, 0
    for _ in range(most):
        if at + 8 > len(data):
            return total
        name, length = struct.unpack_from("<4sI", data, at)
        total += 0 if name in IMAGE else 8 + length
        at += 8 + length + length % 2
    return math.inf
