"""Whether an image is cheap to decode, by its header alone: of usual size and structure."""

import math
import struct
from typing import Final

from paliscribe.images import avif, jpeg, png, ppm, tiff, webp
from paliscribe.images.formats import recognised

PIXELS: Final = 32_000_000  # at most; half of that in WebP, GIF and AVIF, which take more memory
SCANS: Final = 20  # of a JPEG; progressive ones have about ten
METADATA: Final = 2**20  # bytes before the picture
PIECES: Final = 5000  # chunks, blocks, strips or tiles
BITMAPS: Final = {0, 3}  # compressions of a BMP: none, and masks of colours


def is_cheap(data: bytes) -> bool:
    """Whether decoding surely takes little time and memory. False also for what is not an image."""
    return is_cheap_of(recognised(data), data)


def is_cheap_of(kind: str | None, data: bytes) -> bool:
    """Like `is_cheap`, of data whose format is recognised already."""
    if kind == "JPEG":
        return _is_cheap_jpeg(data)
    if kind == "PNG":
        return png.pixels(data) <= PIXELS and png.metadata(data, PIECES) <= METADATA
    if kind == "WEBP":
        return webp.pixels(data) <= PIXELS / 2 and webp.metadata(data, PIECES) <= METADATA
    if kind == "GIF":
        return _gif_pixels(data) <= PIXELS / 2
    if kind == "BMP":
        return _bmp_pixels(data) <= PIXELS
    if kind == "TIFF":
        return tiff.is_quiet() and tiff.pixels(data, PIECES, METADATA) <= PIXELS
    if kind == "AVIF":
        return avif.pixels(data, METADATA) <= PIXELS / 2
    return kind == "PPM" and ppm.pixels(data) <= PIXELS


def _is_cheap_jpeg(data: bytes) -> bool:
    head = jpeg.head(data)
    if head is None or head.exif > 1 or head.length > METADATA:
        return False
    return head.width * head.height <= PIXELS and jpeg.scans(data, head) <= SCANS


def _gif_pixels(data: bytes) -> float:
    """Width times height of the larger of screen and first frame; infinite if that does not come soon."""
    if len(data) < 13:
        return math.inf
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    for _ in range(PIECES):
        if data[at : at + 1] == b"," and at + 10 <= len(data):  # the first frame
            left, top, wide, high = struct.unpack_from("<HHHH", data, at + 1)
            return float(max(width, left + wide) * max(height, top + high))
        if data[at : at + 1] != b"!":
            return math.inf
        at += 2  # an extension: blocks up to an empty one
        while at < min(len(data), METADATA) and data[at]:
            at += 1 + data[at]
        at += 1
    return math.inf


def _bmp_pixels(data: bytes) -> float:
    """Width times height; infinite for compressed and old files."""
    if len(data) < 34 or int.from_bytes(data[14:18], "little") < 40:
        return math.inf
    width, height, _, _, compression = struct.unpack_from("<iiHHI", data, 18)
    return float(abs(width * height)) if compression in BITMAPS else math.inf
