"""AVIF boxes and AV1 headers: how costly an ordinary still picture is. Nothing is decoded here."""

import math
import struct
from typing import Final

BOXES: Final = 100  # at most, at a place
UNITS: Final = 1000  # of AV1
OUTSIDE: Final = {b"ftyp", b"meta", b"mdat", b"free"}  # of a still picture: a sequence has others
INSIDE: Final = {b"hdlr", b"pitm", b"iloc", b"iinf", b"iprp", b"iref"}
PICTURE: Final = b"av01"
METADATA: Final = (b"Exif", b"mime")
SEQUENCE, FRAME_HEADER, FRAME, REDUNDANT_HEADER, TILE_LIST = 1, 3, 6, 7, 8  # types of units of AV1
STILL: Final = 0b11  # the bits still_picture and reduced_still_picture_header

BOX: Final = struct.Struct(">I4s")  # length and name
FIELDS: Final = {0: "0s", 2: "H", 4: "I", 8: "Q"}  # by width

Places = dict[bytes, tuple[int, int]]  # begin and end of a box's body


def pixels(data: bytes, most_metadata: int) -> float:
    """Width times height of the picture and its transparency, together.

    Infinite for anything unusual, as sequences, grids, several frames, or more than `most_metadata` bytes of metadata.
    """
    try:
        begin, end = _boxes(data, 0, len(data), OUTSIDE)[b"meta"]
        boxes = _boxes(data, begin + 4, end, INSIDE)
        properties = _boxes(data, *boxes[b"iprp"], {b"ipco", b"ipma"})
        shown = _largest_shown(data, *properties[b"ipco"])
        kinds, places = _kinds(data, *boxes[b"iinf"]), _places(data, *boxes[b"iloc"])
        if sum(places[item][1] for item, kind in kinds.items() if kind in METADATA) + end - begin > most_metadata:
            return math.inf
        pictures = [places[item] for item, kind in kinds.items() if kind == PICTURE]
        return sum(max(shown, _coded(data[at : at + length])) for at, length in pictures)
    except (ValueError, KeyError, IndexError, struct.error):
        return math.inf


def _all_boxes(data: bytes, at: int, end: int) -> list[tuple[bytes, int, int]]:
    found: list[tuple[bytes, int, int]] = []
    while at < end:
        size, name = BOX.unpack_from(data, at)
        if size < 8 or at + size > end or len(found) == BOXES:
            raise ValueError("irregular boxes")
        found.append((name, at + 8, at + size))
        at += size
    return found


def _boxes(data: bytes, at: int, end: int, names: set[bytes]) -> Places:
    """Boxes of these names alone, none twice."""
    boxes = _all_boxes(data, at, end)
    found = {name: (begin, stop) for name, begin, stop in boxes}
    if len(found) < len(boxes) or not found.keys() <= names:
        raise ValueError("other boxes")
    return found


def _largest_shown(data: bytes, begin: int, end: int) -> int:
    """Pixels of the largest size that is said of any picture: a decoder enlarges to it."""
    sizes = [struct.unpack_from(">II", data, at + 4) for name, at, _ in _all_boxes(data, begin, end) if name == b"ispe"]
    return max(int(width * height) for width, height in sizes)


def _kinds(data: bytes, begin: int, end: int) -> dict[int, bytes]:
    """What each item is: a picture or metadata."""
    found: dict[int, bytes] = {}
    for name, at, _ in _all_boxes(data, begin + (6 if data[begin] == 0 else 8), end):
        item, protection, kind = struct.unpack_from(">HH4s", data, at + 4)
        if name != b"infe" or data[at] != 2 or protection or item in found or kind not in (PICTURE, *METADATA):
            raise ValueError("other items")
        found[item] = kind
    return found


def _places(data: bytes, begin: int, end: int) -> dict[int, tuple[int, int]]:
    """Where each item is: begin and length. One piece, in the file itself."""
    version, sizes, count = data[begin], data[begin + 4 : begin + 6], int.from_bytes(data[begin + 6 : begin + 8])
    if version > 1 or count > BOXES:
        raise ValueError("another version")
    found: dict[int, tuple[int, int]] = {}
    at = begin + 8
    widths = (2, 2 * version, 2, sizes[1] >> 4, 2, version * (sizes[1] & 15), sizes[0] >> 4, sizes[0] & 15)
    layout = struct.Struct(">" + "".join(FIELDS[width] for width in widths))
    for _ in range(count):
        item, way, _, base, pieces, _, place, length = (value or 0 for value in layout.unpack_from(data, at))
        at += layout.size
        if way or pieces != 1 or item in found or at > end or base + place + length > len(data):
            raise ValueError("items elsewhere or in pieces")
        found[item] = (base + place, length)
    return found


def _coded(data: bytes) -> int:
    """Pixels of the one frame that is coded."""
    at, frames, size = 0, 0, 0
    for _ in range(UNITS):
        if at >= len(data):
            break
        kind, flags = data[at] >> 3 & 15, data[at] & 7
        begin, end = _unit(data, at + (2 if flags & 4 else 1))
        frames += kind in (FRAME, FRAME_HEADER)
        if not flags & 2 or frames > 1 or kind in (REDUNDANT_HEADER, TILE_LIST) or (kind == SEQUENCE and size):
            raise ValueError("several frames")
        if kind == SEQUENCE:
            size = _sequence(data[begin : min(end, begin + 16)])
        at = end
    if frames != 1 or not size or at != len(data):
        raise ValueError("no frame")
    return size


def _unit(data: bytes, at: int) -> tuple[int, int]:
    """Begin and end of a unit's body. Its length, seven bits a byte, is here."""
    length = 0
    for shift in range(0, 35, 7):
        byte, at = data[at], at + 1
        length |= (byte & 127) << shift
        if byte < 128:
            return at, at + length
    raise ValueError("a long length")


def _sequence(data: bytes) -> int:
    """Width times height by the header of a sequence."""
    bits = int.from_bytes(data.ljust(16, b"\0"))
    if bits >> 123 & 3 != STILL:
        raise ValueError("no still picture")
    wide, high = (bits >> 114 & 15) + 1, (bits >> 110 & 15) + 1
    width = (bits >> 110 - wide) & (1 << wide) - 1
    height = (bits >> 110 - wide - high) & (1 << high) - 1
    return (width + 1) * (height + 1)
