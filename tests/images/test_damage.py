"""Good pictures in files that are not perfect are kept; pictures that lack a part are not."""

import itertools
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from images.files import chunk, encoded, inserted, photo, segment, with_segments
from PIL import Image

from paliscribe.errors import RowError
from paliscribe.images.decode import FORMATS, decode

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # pytest resets the module's own filter
SIZE = 28
LARGE = zlib.compress(b"x" * (2 << 20))
CHUNKS = {
    "large zTXt": (b"zTXt", b"workflow\0\0" + LARGE),
    "large iTXt": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LARGE),
    "large tEXt": (b"tEXt", b"workflow\0" + b"x" * (2 << 20)),
    "large profile": (b"iCCP", b"x\0\0" + LARGE),
    "broken zTXt": (b"zTXt", b"workflow\0\0rubbish"),
    "broken profile": (b"iCCP", b"x\0\0rubbish"),
    "empty profile": (b"iCCP", b""),
    "short tRNS": (b"tRNS", b"\0"),
    "short gAMA": (b"gAMA", b"\0"),
    "short pHYs": (b"pHYs", b""),
    "short acTL": (b"acTL", b"\0"),
    "odd fcTL": (b"fcTL", bytes(30)),
    "broken eXIf": (b"eXIf", b"rubbish"),
    "private": (b"prVt", b"abc"),
}


def same(data: bytes, whole: bytes) -> bool:
    return np.array_equal(decode(data, SIZE).pixels, decode(whole, SIZE).pixels)


def kind(data: bytes) -> str:
    with pytest.raises(RowError) as caught:
        decode(data, SIZE)
    return caught.value.kind


@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize("is_damaged", [False, True])
def test_png_metadata_that_is_too_large_or_broken(name: str, is_damaged: bool) -> None:
    good = encoded(photo())
    more = chunk(*CHUNKS[name])
    if is_damaged:
        more = more[:-1] + bytes([more[-1] ^ 1])  # the checksum
    assert same(inserted(good, more), good) and same(good[:-12] + more + good[-12:], good)


@pytest.mark.parametrize("name", [b"tEXt", b"tIME", b"gAMA", b"eXIf", b"tRNS", b"iCCP"])
def test_png_with_a_wrong_checksum_of_an_ancillary_chunk(name: bytes) -> None:
    good, more = encoded(photo()), chunk(name, b"a\0\0bcdef")
    assert same(inserted(good, more[:-1] + bytes([more[-1] ^ 1])), good)


def test_a_hundred_large_texts_of_a_png() -> None:
    good = encoded(photo())
    texts = b"".join(chunk(b"zTXt", b"t%d\0\0" % n + LARGE) for n in range(100))
    assert same(inserted(good, texts), good)


def test_the_orientation_in_a_text_of_a_png_is_kept() -> None:
    good = encoded(photo())
    xmp = b"XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation='6'/>".replace(b"'", b'"')
    decoded = decode(inserted(good, chunk(b"iTXt", xmp)), SIZE)
    assert (decoded.width, decoded.height) == (40, 61)


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "baseline": ("RGB", {}),
    "progressive": ("RGB", {"progressive": True}),
    "grey": ("L", {}),
    "cmyk": ("CMYK", {}),
    "restarts": ("RGB", {"restart_marker_rows": 2}),
}


@pytest.mark.parametrize("name", KINDS)
def test_jpeg_without_its_end_marker(name: str) -> None:
    mode, options = KINDS[name]
    exif = Image.Exif()
    exif[0x0112] = 6
    good = encoded(photo(400, 300).convert(mode), "JPEG", exif=exif, **options)
    for ending in (good[:-1], good[:-2], good[:-2] + bytes(50), good[:-2] + b"rubbish", good + b"rubbish"):
        assert same(ending, good) and decode(ending, SIZE).width == 300
        assert np.array_equal(decode(ending, SIZE, draft=True).pixels, decode(good, SIZE, draft=True).pixels)
    for cut in (10, len(good) // 10, len(good) // 2, len(good) - 700):
        assert kind(good[:-cut]) == kind(good[:-cut] + b"\xff") == "corrupt"


BODIES = (
    b"",
    b"JFIF",
    b"Adobe\0",
    b"ICC_PROFILE\0",
    b"Exif\0\0II*\0",
    b"MPF\0MM\0*\0\0\0\x08",
    b"Photoshop 3.0\x008BIM\4",
)


@pytest.mark.parametrize(("marker", "body"), [*itertools.product([0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE], BODIES)])
def test_broken_metadata_of_a_jpeg(marker: int, body: bytes) -> None:
    good = encoded(photo(), "JPEG")
    assert same(with_segments(good, segment(marker, body)), good)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("rest", [b"rubbish" * 1000, bytes(1000), b"x"])
def test_bytes_after_the_picture(form: str, rest: bytes) -> None:
    good = encoded(photo(), form)
    assert same(good + rest, good)


@pytest.mark.parametrize("cut", [6, 12, 16])
def test_png_without_its_end(cut: int) -> None:
    good = encoded(photo())
    assert same(good[:-cut], good)


COMMENTED: dict[str, Callable[[bytes], bytes]] = {
    "P6": lambda body: b"P6 # one\n#two\n3 # x\n#y\n 2\n#z\n255\n" + body,
    "P5": lambda body: b"P5\n#\n9 2 255\n" + body,
    "P3": lambda body: b"P3\n3 2 #a\n255\n#b\n" + b"\n#c\n".join(b"%d" % value for value in body),
}


@pytest.mark.parametrize("name", COMMENTED)
def test_comments_of_a_ppm(name: str) -> None:
    body = bytes(range(35, 53))  # the first one is `#`
    values = np.frombuffer(body, np.uint8).reshape((2, 9) if name == "P5" else (2, 3, 3))
    assert same(COMMENTED[name](body), encoded(Image.fromarray(values)))
