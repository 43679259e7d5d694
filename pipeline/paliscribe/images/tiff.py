"""TIFF: how costly an ordinary file is, by its directory, and corrections of how Pillow reads deep ones."""

import ctypes
import functools
import math
import struct
from typing import Final

from PIL import Image, ImageFile, TiffImagePlugin, _imaging

from paliscribe.images import jpeg

SIZES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}  # bytes, by type
NUMBERS: Final = {3: "H", 4: "I"}  # types of the tags that are used here
USED: Final = {256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 322, 323, 324, 325}
ENTRIES: Final = 256  # of a directory
DIRECTORIES: Final = (34665, 34853, 40965)  # tags that hold the place of one: Exif, GPS, interoperability
RAW, LZW, JPEG, DEFLATE, OLD_DEFLATE, PACKBITS = 1, 5, 7, 8, 32946, 32773
COMPRESSIONS: Final = (RAW, LZW, JPEG, DEFLATE, OLD_DEFLATE, PACKBITS)  # linear in the bytes of file and picture
PHOTOMETRICS: Final = (0, 1, 2, 3, 5)  # grey, RGB, palette, CMYK
YCBCR: Final = 6
BANDS: Final = 8
PIXEL: Final = 32  # bits of a pixel once decoded; one with more counts more

NATIVE: Final = {"I;32BS": "I;32NS", "I;16BS": "I;16NS", "F;32BF": "F;32NF"}  # libtiff swaps the bytes
APART: Final = {
    "RGB": "RGB;16N",
    "RGBA": "RGBA;16N",
    "RGBX": "RGBX;16N",
    "CMYK": "CMYK;16N",
}  # mode: as libtiff gives it

Tags = dict[int, tuple[int, ...]]

II, MM = b"II", b"MM"
TiffImagePlugin.OPEN_INFO.update(  # varieties whose other byte order or photometric Pillow knows
    {
        (MM, 0, (1,), 1, (16,), ()): ("I;16B", "I;16B"),
        (MM, 1, (1,), 1, (32,), ()): ("I", "I;32BS"),
        (MM, 0, (1,), 1, (32,), ()): ("I", "I;32BS"),
        (II, 0, (1,), 1, (32,), ()): ("I", "I;32N"),
        (MM, 1, (1,), 1, (12,), ()): ("I;16", "I;12"),
    }
)


def correct(image: Image.Image) -> None:
    """Correct how Pillow has set up an opened TIFF whose samples have several bytes. It would read wrong values."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or not image.tile:
        return
    tags, first = image.tag_v2, image.tile[0]
    if first.codec_name == "libtiff":
        raw, *rest = first.args if isinstance(first.args, tuple) else (first.args,)
        if raw in NATIVE:
            image.tile = [first._replace(args=(NATIVE[raw], *rest))]
    elif tags.get(284) == 2 and max(tags.get(258, (1,))) == 16 and image.mode in APART:  # it takes them for bytes
        args = (APART[image.mode], False, tags.offset)
        image.tile = [ImageFile._Tile("libtiff", (0, 0, tags[256], tags[257]), 0, args)]
        image.use_load_libtiff = True


def pixels(data: bytes, most_pieces: int, most_metadata: int) -> float:
    """Width times height of the first page, up to the ends of its tiles; more for pixels of many bits.

    Infinite for anything unusual, as more than `most_pieces` strips and tiles or `most_metadata` bytes of tags.
    """
    try:
        return _pixels(data, _tags(data, most_metadata), most_pieces)
    except (ValueError, KeyError, struct.error):
        return math.inf


@functools.cache
def is_quiet() -> bool:
    """Stop libtiff from writing to stderr about bad files; whether that can be done."""
    try:
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)  # found in the libraries that Pillow has loaded
    except (OSError, AttributeError):
        return False
    return True


def _tags(data: bytes, most: int) -> Tags:
    """The whole numbers of the first directory."""
    order = "<" if data[:2] == b"II" else ">"
    magic, first = struct.unpack_from(order + "HI", data, 2)
    if magic != 42:
        raise ValueError("BigTIFF")
    found: Tags = {}
    total, directories = 0, [first]
    for directory in directories:  # which grow
        (entries,) = struct.unpack_from(order + "H", data, directory)
        if entries > ENTRIES or len(directories) > 1 + len(DIRECTORIES):
            raise ValueError("long directories")
        at = directory + 2
        for tag, kind, count, value in struct.iter_unpack(order + "HHII", data[at : at + 12 * entries]):
            size = SIZES[kind] * count
            total += size
            if total > most or (size > 4 and value + size > len(data)):
                raise ValueError("large values")
            if tag in DIRECTORIES:
                directories.append(value)
            elif directory == first:
                if tag in found:
                    raise ValueError("a tag that is there twice")
                if tag not in USED or kind not in NUMBERS:
                    found[tag] = ()
                elif count == 1 and size == 4:
                    found[tag] = (value,)
                else:
                    place = value if size > 4 else at + 8
                    found[tag] = struct.unpack_from(f"{order}{count}{NUMBERS[kind]}", data, place)
            at += 12
        if at != directory + 2 + 12 * entries:
            raise ValueError("a directory that is cut off")
    return found


def _pixels(data: bytes, tags: Tags, most_pieces: int) -> float:
    [width], [height], [compression], [photometric] = (tags[tag] for tag in (256, 257, 259, 262))
    [bands], [planar] = tags.get(277, (1,)), tags.get(284, (1,))
    bits = tags.get(258, (1,))
    bits *= bands if len(bits) == 1 and bands <= BANDS else 1
    is_known = photometric in PHOTOMETRICS or (photometric == YCBCR and compression == JPEG)
    if not is_known or compression not in COMPRESSIONS or len(bits) != bands:
        raise ValueError("another variety")
    if 322 in tags:
        [wide], [high], places, lengths = (tags[tag] for tag in (322, 323, 324, 325))
    else:
        [high], wide, places, lengths = tags.get(278, (height,)), width, tags[273], tags[279]
        high = min(high, height)
    if min(wide, high, width, height) < 1 or (322 in tags and 273 in tags):
        raise ValueError("no strips and no tiles")
    across, down = math.ceil(width / wide), math.ceil(height / high)
    if not len(places) == len(lengths) == across * down * (bands if planar == 2 else 1) <= most_pieces:
        raise ValueError("another number of pieces")
    if sum(lengths) > len(data):
        raise ValueError("pieces that overlap")
    for at, length in zip(places, lengths, strict=True):
        if at + length > len(data) or (compression == JPEG and not _is_plain(data[at : at + length])):
            raise ValueError("a piece that is cut off, or a JPEG of several scans")
    return across * wide * down * high * max(1.0, sum(bits) / PIXEL)


def _is_plain(data: bytes) -> bool:
    """Whether a JPEG is decoded line by line: baseline, one scan."""
    head = jpeg.head(data)
    return head is not None and head.kind in jpeg.BASELINE and jpeg.scans(data, head) == 1
