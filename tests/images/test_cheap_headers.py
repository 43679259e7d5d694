"""Which TIFF and AVIF files are decoded in this process: those whose header and length bound what they cost."""

import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from images.files import encoded, photo, tiff
from PIL import Image

from paliscribe.images.cheap import is_cheap

VALUES = np.zeros((64, 64, 3), np.uint8)
PICTURE = encoded(photo(), "AVIF")
EXIF = Image.Exif()
EXIF[0x9286] = b"a comment"
EXIF.get_ifd(0x8769)[0x9003] = "2026:01:01 00:00:00"


def tags(data: bytes) -> list[tuple[int, int, int, int]]:
    """The directory of a little-endian TIFF: tag, type, number and value or place."""
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    return [struct.unpack_from("<HHII", data, at + 2 + 12 * number) for number in range(count)]


def rewritten(data: bytes, changed: dict[int, tuple[int, int, int]]) -> bytes:
    """The TIFF with these entries changed or added: type, number, and value or place."""
    entries = {tag: tuple(rest) for tag, *rest in tags(data)} | changed
    body = b"".join(struct.pack("<HHII", tag, *rest) for tag, rest in sorted(entries.items()))
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + struct.pack("<H", len(entries)) + body + bytes(4)


def one_strip_many_times() -> bytes:
    """A thousand strips, all of which are the same bytes."""
    body = bytes(3 * 64)
    values = np.zeros((1000, 64, 3), np.uint8)
    data = tiff(values, body=body)
    places = struct.pack("<1000I", *[8] * 1000)
    lengths = struct.pack("<1000I", *[len(body)] * 1000)
    changed = {273: (4, 1000, len(data)), 278: (4, 1, 1), 279: (4, 1000, len(data) + len(places))}
    return rewritten(data + places + lengths, changed)


def scans_in_a_strip() -> bytes:
    inside = encoded(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    return rewritten(tiff(VALUES, body=inside), {259: (3, 1, 7), 262: (3, 1, 6)})


def long_values() -> bytes:
    data = tiff(VALUES) + bytes(2**20)
    return rewritten(data, {700: (1, 2**20, len(data) - 2**20)})


def directory_of_itself() -> bytes:
    data = tiff(VALUES)
    return rewritten(data, {34665: (4, 1, len(data))})


COSTLY: dict[str, Callable[[], bytes]] = {
    "lzma": lambda: encoded(photo(), "TIFF", compression="lzma"),
    "zstd": lambda: encoded(photo(), "TIFF", compression="zstd"),
    "group 4": lambda: encoded(photo().convert("1"), "TIFF", compression="group4"),
    "BigTIFF": lambda: encoded(photo(), "TIFF", big_tiff=True),
    "a tile of 4 billion pixels": lambda: tiff(VALUES, tiles=(2**16, 2**16, 12288), body=VALUES.tobytes()),
    "many pixels": lambda: rewritten(tiff(VALUES), {256: (4, 1, 6000), 257: (4, 1, 6000)}),
    "no pixels": lambda: rewritten(tiff(VALUES), {256: (4, 1, 0)}),
    "one strip many times": one_strip_many_times,
    "scans in a strip": scans_in_a_strip,
    "long values": long_values,
    "directories without end": directory_of_itself,
    "a value beyond the file": lambda: rewritten(tiff(VALUES), {700: (1, 100, 2**31)}),
    "a strip beyond the file": lambda: tiff(VALUES)[:4000],
    "strips and tiles": lambda: rewritten(tiff(VALUES), {322: (4, 1, 64), 323: (4, 1, 64)}),
}


@pytest.mark.parametrize("name", COSTLY)
def test_unusual_tiffs_are_not_cheap(name: str) -> None:
    assert not is_cheap(COSTLY[name]())


@pytest.mark.parametrize(
    "options",
    [
        *({"compression": name} for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")),
        {"exif": EXIF, "compression": "tiff_lzw"},
        {"icc_profile": b"x" * 3000, "dpi": (300, 300)},
        {"save_all": True, "append_images": [photo()], "compression": "tiff_deflate"},
    ],
)
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_ordinary_tiffs_are_cheap(mode: str, options: dict[str, Any]) -> None:
    if options.get("compression") != "jpeg" or mode in ("L", "RGB", "CMYK"):
        assert is_cheap(encoded(photo().convert(mode), "TIFF", **options))


@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "i4", "f4"])
@pytest.mark.parametrize("order", "<>")
def test_deep_and_tiled_tiffs_are_cheap(kind: str, order: str) -> None:
    assert is_cheap(tiff(np.zeros((64, 64), kind), order=order))
    assert is_cheap(tiff(VALUES, order=order, is_apart=True, tiles=(32, 32, 1024), body=VALUES.tobytes()))


def longer(data: bytes, more: bytes) -> bytes:
    """An AVIF of one item with more at the end of the item."""
    place, length = data.index(b"iloc") + 22, len(data) - data.index(b"mdat") - 4
    assert int.from_bytes(data[place : place + 4]) == length
    data = data[:place] + (length + len(more)).to_bytes(4) + data[place + 4 :]
    box = data.index(b"mdat") - 4
    return data[:box] + (length + 8 + len(more)).to_bytes(4) + data[box + 4 :] + more


def sized(data: bytes, width: int, height: int) -> bytes:
    """An AVIF that says another size than is coded."""
    place = data.index(b"ispe") + 8
    return data[:place] + struct.pack(">II", width, height) + data[place + 8 :]


def test_ordinary_avifs_are_cheap() -> None:
    for mode in ("L", "RGB", "RGBA"):
        for options in ({}, {"exif": EXIF, "icc_profile": b"x" * 3000, "xmp": b"<x/>"}, {"subsampling": "4:4:4"}):
            assert is_cheap(encoded(photo().convert(mode), "AVIF", speed=10, **options))
    assert is_cheap(longer(PICTURE, b"\x7a\1\0"))  # padding


SEVERAL = [photo(seed=1), photo(seed=2)]
UNUSUAL: dict[str, Callable[[], bytes]] = {
    "a sequence": lambda: encoded(photo(), "AVIF", save_all=True, append_images=SEVERAL),
    "two frames": lambda: longer(PICTURE, b"\x32\2\0\0"),
    "a frame that is shown again": lambda: longer(PICTURE, b"\x1a\1\x80"),
    "another size": lambda: longer(PICTURE, b"\x0a\x0b" + bytes(11)),
    "units without end": lambda: longer(PICTURE, b"\x7a\0" * 2000),
    "a unit of endless length": lambda: longer(PICTURE, b"\x7a" + b"\x80" * 1000),
    "a size to which it is enlarged": lambda: sized(PICTURE, 16_000, 16_000),
    "coded larger than said": lambda: sized(encoded(Image.new("L", (4100, 4000)), "AVIF", speed=10), 61, 40),
    "a box without end": lambda: PICTURE + b"\0\0\0\0mdat",
    "a second meta box": lambda: PICTURE + b"\0\0\0\x0cmeta\0\0\0\0",
    "an item that is cut off": lambda: PICTURE[:-10],
    "much metadata": lambda: encoded(photo(), "AVIF", speed=10, xmp=b"x" * 2**20),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_avifs_are_not_cheap(name: str) -> None:
    assert not is_cheap(UNUSUAL[name]())


def test_a_broken_tiff_says_nothing_on_stderr() -> None:
    good = encoded(photo(200, 200), "TIFF", compression="tiff_lzw")
    code = (
        "import sys; from paliscribe.images.cheap import is_cheap; from paliscribe.images.decode import decode\n"
        "data = sys.stdin.buffer.read(); assert is_cheap(data)\n"
        "try: decode(data, 28)\n"
        "except Exception as error: print(error)"
    )
    bad = good[:300] + b"\xff" * 3000 + good[3300:]
    found = subprocess.run([sys.executable, "-c", code], input=bad, capture_output=True, check=True)
    assert found.stdout and not found.stderr
