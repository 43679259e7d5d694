"""JPEG markers: how costly a file is, and what it lacks. Nothing is decoded here."""

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

END: Final = b"\xff\xd9"
MARKER: Final = struct.Struct(">BBH")  # with the length of the segment
START_OF_SCAN: Final = 0xDA
FRAMES: Final = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}
BASELINE: Final = (0xC0, 0xC1)
LOSSLESS: Final = {0xC3: "lossless", 0xC7: "lossless", 0xCB: "lossless", 0xCF: "lossless", 0xF7: "JPEG-LS"}
METADATA: Final = {*range(0xE1, 0xEE), 0xEF, 0xFE}  # application segments and comments
MOST: Final = 5000  # segments before the first scan
SHORTEST: Final = {0xE0: 18, 0xEE: 16}  # bytes of the segments of JFIF and Adobe, which say what the colours are


@dataclass(frozen=True, slots=True)
class Head:
    """What stands before the first scan. `length`: bytes up to the scan's header."""

    kind: int  # the frame's marker
    bits: int
    width: int
    height: int
    components: int
    exif: int  # number of Exif segments
    length: int

    @property
    def is_unusual(self) -> bool:
        """Whether decoders lack this variety."""
        return self.bits in (12, 16) or self.kind in LOSSLESS or self.components == 2

    @property
    def words(self) -> str:
        """Its variety, for messages."""
        return f"a {LOSSLESS.get(self.kind, '')} JPEG of {self.components} x {self.bits} bits".replace("  ", " ")


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The segments up to the first scan: marker, place of the marker, and the segment's end. Stops where one is odd."""
    at = 2
    last = len(data) - 4
    while at <= last:
        first, marker, length = MARKER.unpack_from(data, at)
        if first != 0xFF:
            return
        if marker == 0xFF:  # padding
            at += 1
            continue
        end = at + 2 + length
        yield marker, at, end
        if marker == START_OF_SCAN:
            return
        at = end


def head(data: bytes) -> Head | None:
    """What stands before the first scan; None if that is not regular, or more than MOST segments."""
    frame: tuple[int, ...] = ()
    exif = 0
    for marker, at, _ in itertools.islice(segments(data), MOST):
        if marker == START_OF_SCAN and frame:
            kind, bits, height, width, components = frame
            return Head(kind, bits, width, height, components, exif, at)
        exif += marker == 0xE1 and data.startswith(b"Exif\0\0", at + 4)
        if marker in FRAMES and at + 10 <= len(data):
            frame = (marker, *struct.unpack_from(">BHHB", data, at + 4))
    return None


def scans(data: bytes, head: Head) -> int:
    """The number of scans up to the end marker. Coded data cannot contain the two bytes of a marker."""
    if head.kind in BASELINE and data[head.length + 4 : head.length + 5] == bytes([head.components]):
        return 1  # decoders stop after a scan of all components
    end = data.find(END, head.length)
    return data.count(b"\xff\xda", head.length, end if end >= 0 else len(data))


def bare(data: bytes) -> bytes:
    """The file without metadata: for a decoder that objects to it."""
    kept, begin = [], 0
    for marker, at, end in segments(data):
        if marker in METADATA or end - at < SHORTEST.get(marker, 0):
            kept.append(data[begin:at])
            begin = end
    return b"".join([*kept, data[begin:]]) if kept else data


def endings(data: bytes) -> tuple[bytes, bytes]:
    """The file with an end marker, and the same with other bytes before that.

    A decoder that lacks coded data fills it up with zeros at the end marker, or reads the other bytes. So both give the
    same picture if, and only if, no coded data is missing.
    """
    whole = data.rstrip(b"\xff")
    return whole + END, whole + b"\xfe" * 64 + END
