"""Image decoding: pixels, sizes and error kinds of all formats and modes."""

import hashlib
import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paliscribe.errors import RowError
from paliscribe.images.decode import FORMATS, Decoded, decode

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # pytest resets the module's own filter
SIZE = 28
RED, WHITE = (255, 0, 0), (255, 255, 255)


def photo(width: int = 61, height: int = 40) -> Image.Image:
    """Smooth RGB noise, which distinguishes rotations, resizes and channels."""
    small = np.random.default_rng(7).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def kind(data: bytes, **options: Any) -> str:
    with pytest.raises(RowError) as caught:
        decode(data, SIZE, **options)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value.kind


def shown(image: Image.Image, form: str = "PNG", **options: Any) -> Any:
    """Colour of the middle pixel of the decoded image."""
    return decode(encoded(image, form, **options), SIZE).pixels[SIZE // 2, SIZE // 2].tolist()


def png(width: int, height: int) -> bytes:
    """A small PNG that declares this size but has almost no data."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("size", [(61, 40), (40, 61), (5, 300), (SIZE, SIZE), (1, 1), (1000, 700)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "CMYK"])
def test_pixels_equal_transformers(mode: str, size: tuple[int, int]) -> None:
    transformers = pytest.importorskip("transformers")
    image = photo(*size)
    if mode in ("RGBA", "LA"):
        image.putalpha(photo(*size).convert("L"))
    image = image.convert(mode)
    data = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    reference = transformers.SiglipImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True
    )
    expected = reference(Image.open(io.BytesIO(data)), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    decoded = decode(data, SIZE)
    assert decoded.pixels.shape == (SIZE, SIZE, 3) and decoded.pixels.dtype == np.uint8
    assert np.array_equal(np.rint((expected + 1) * 127.5), decoded.pixels)
    assert (decoded.width, decoded.height) == size
    assert decoded.sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("form", FORMATS)
def test_every_format(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {"quality": 95} if form in ("JPEG", "AVIF") else {}
    decoded = decode(encoded(photo(), form, **options), SIZE)
    assert (decoded.width, decoded.height) == (61, 40)
    exact = decode(encoded(photo()), SIZE).pixels.astype(int)
    assert np.abs(decoded.pixels - exact).mean() < (12 if form == "GIF" else 4)


def test_transparent_pixels_become_white() -> None:
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    assert shown(clear) == shown(clear, "WEBP", lossless=True) == [255, 255, 255]
    assert shown(Image.new("RGBA", (40, 40), (255, 0, 0, 128))) == [255, 127, 127]
    assert shown(Image.new("LA", (40, 40), (0, 0))) == [255, 255, 255]
    palette = Image.new("P", (40, 40), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert shown(palette) == [255, 0, 0]
    assert shown(palette, transparency=1) == shown(palette, "GIF", transparency=1) == [255, 255, 255]
    assert shown(palette, transparency=bytes([255, 0])) == [255, 255, 255]
    assert shown(Image.new("RGB", (40, 40), RED), transparency=RED) == [255, 255, 255]
    assert shown(Image.new("L", (40, 40), 9), transparency=9) == [255, 255, 255]


@pytest.mark.parametrize(
    ("values", "form", "grey"),
    [
        (np.full((40, 40), 32768, np.uint16), "PNG", 128),
        (np.full((40, 40), 200, np.uint16), "PNG", 1),
        (np.full((40, 40), 65535, np.uint16), "TIFF", 255),
        (np.full((40, 40), 32768, ">u2"), "TIFF", 128),
        (np.full((40, 40), 200, np.int32), "TIFF", 200),
        (np.full((40, 40), 32768, np.int32), "TIFF", 128),
        (np.full((40, 40), 2**30, np.int32), "TIFF", 128),
        (np.full((40, 40), -5, np.int32), "TIFF", 0),
        (np.full((40, 40), 0.5, np.float32), "TIFF", 128),
        (np.full((40, 40), 200.0, np.float32), "TIFF", 200),
        (np.full((40, 40), np.nan, np.float32), "TIFF", 0),
        (np.full((40, 40), np.inf, np.float32), "TIFF", 0),
    ],
)
def test_deep_greys_are_scaled_and_not_clipped(values: Any, form: str, grey: int) -> None:
    assert shown(Image.fromarray(values), form) == [grey] * 3


def test_one_bit_and_cmyk() -> None:
    assert shown(Image.new("1", (40, 40), 1)) == [255, 255, 255]
    red = shown(Image.new("RGB", (40, 40), RED).convert("CMYK"), "JPEG", quality=100)  # Pillow inverts as Adobe does
    assert red[0] > 250 and red[1] < 5 and red[2] < 5


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(form: str, orientation: int) -> None:
    if form not in FORMATS:
        pytest.skip(f"this Pillow has no {form}")
    corners = Image.new("RGB", (64, 32))
    for place, colour in {(0, 0): RED, (32, 0): (0, 255, 0), (0, 16): (0, 0, 255), (32, 16): WHITE}.items():
        corners.paste(colour, (*place, place[0] + 32, place[1] + 16))
    lying = {
        1: lambda i: i,
        2: lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda i: i.rotate(180),
        4: lambda i: i.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda i: i.transpose(Image.Transpose.TRANSPOSE),
        6: lambda i: i.rotate(90, expand=True),  # to be rotated clockwise
        7: lambda i: i.transpose(Image.Transpose.TRANSVERSE),
        8: lambda i: i.rotate(-90, expand=True),
    }[orientation](corners)
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encoded(lying, form, exif=exif), SIZE)
    assert (decoded.width, decoded.height) == (64, 32)
    plain = decode(encoded(corners), SIZE).pixels.astype(int)
    assert np.abs(decoded.pixels - plain).mean() < 8


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0rubbish", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\1\x12\0\3" * 9, b"Exif\0\0"]
)
def test_corrupt_exif_is_ignored(exif: bytes) -> None:
    data = encoded(photo(), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    assert np.array_equal(decode(data[:2] + segment + data[2:], SIZE).pixels, decode(data, SIZE).pixels)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_of_many_frames_is_used(form: str) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in (RED, (0, 255, 0), (0, 0, 255))]
    first = shown(frames[0], form, save_all=True, append_images=frames[1:])
    assert first[0] > 250 and max(first[1:]) < 5


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_truncated_files_are_corrupt(form: str, share: float) -> None:
    data = encoded(photo(200, 150), form)
    assert kind(data[: int(len(data) * share)]) == "corrupt"


def test_corrupt_files_raise_only_row_errors() -> None:
    rng = np.random.default_rng(0)
    for form in FORMATS:
        data = encoded(photo(), form)
        for _ in range(60):
            broken = bytearray(data)
            for at in rng.integers(0, min(len(data), 400), 6):
                broken[at] = rng.integers(256)
            try:
                decode(bytes(broken), SIZE)
            except RowError as error:
                assert error.kind in ("corrupt", "unsupported", "not_an_image", "too_many_pixels")


def test_not_an_image() -> None:
    assert kind(b"") == "empty"
    assert kind(b"<html>404 Not Found</html>") == "not_an_image"
    assert kind(b"\0") == "not_an_image"
    assert kind(encoded(photo(), "EPS")) == "not_an_image"  # its decoder would start another program
    assert kind(encoded(photo(), "PDF")) == "not_an_image"
    assert kind(encoded(photo(), "TGA")) == "unsupported"
    assert kind(encoded(photo())[:24]) == "corrupt"


@pytest.mark.parametrize("side", [13_500, 50_000])  # Pillow warns for one and raises for the other
def test_decompression_bombs_are_rejected_by_their_header(side: int) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.filterwarnings("always")
        assert kind(png(side, side)) == "too_many_pixels"
        warnings.simplefilter("error")
        assert kind(png(side, side)) == "too_many_pixels"
    assert all(issubclass(w.category, Image.DecompressionBombWarning) for w in seen)
    assert kind(png(100, 50), max_pixels=4999) == "too_many_pixels"
    assert kind(png(100, 50), max_pixels=5000) == "corrupt"


def test_decoding_is_thread_safe() -> None:
    data = [encoded(photo(100 + n, 80)) for n in range(24)]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda one: decode(one, SIZE).pixels, data))
    assert all(np.array_equal(a, decode(b, SIZE).pixels) for a, b in zip(together, data, strict=True))


def distance(one: Decoded, other: Decoded) -> float:
    """The mean difference of their pixels, 0..255."""
    return float(np.abs(one.pixels.astype(int) - other.pixels).mean())


def textured(width: int, height: int) -> Image.Image:
    """A photo with grain, which is lost at a reduced scale."""
    grain = np.random.default_rng(8).normal(0, 12, (height, width, 1))
    return Image.fromarray((np.asarray(photo(width, height)) + grain).clip(0, 255).astype(np.uint8))


# Odd sides leave the last column and row of a reduced JPEG partly empty. Below 4 x SIZE a side nothing is reduced.
@pytest.mark.parametrize("size", [(4 * SIZE, 4 * SIZE), (333, 251), (1001, 407), (130, 2000)])
def test_draft_of_large_jpegs_is_close_to_exact(size: tuple[int, int]) -> None:
    data = encoded(textured(*size), "JPEG", quality=90)
    exact, draft = decode(data, SIZE), decode(data, SIZE, draft=True)
    assert (draft.width, draft.height, draft.sha256) == (exact.width, exact.height, exact.sha256)
    assert draft.pixels.shape == exact.pixels.shape and draft.pixels.dtype == exact.pixels.dtype
    assert 0 < distance(draft, exact) < 2


@pytest.mark.parametrize("size", [(SIZE, SIZE), (61, 40), (4 * SIZE - 1, 4 * SIZE), (2000, 4 * SIZE - 1), (1, 1)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_draft_of_small_jpegs_is_exact(size: tuple[int, int], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(textured(*size), "JPEG", exif=exif)
    exact, draft = decode(data, SIZE), decode(data, SIZE, draft=True)
    assert np.array_equal(exact.pixels, draft.pixels) and (exact.width, exact.height) == (draft.width, draft.height)


@pytest.mark.parametrize("form", sorted({*FORMATS} - {"JPEG"}))
def test_draft_of_other_formats_is_exact(form: str) -> None:
    data = encoded(textured(400, 300), form)
    assert np.array_equal(decode(data, SIZE).pixels, decode(data, SIZE, draft=True).pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_draft_keeps_orientation_and_size(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(textured(333, 251), "JPEG", quality=90, exif=exif)
    exact, draft = decode(data, SIZE), decode(data, SIZE, draft=True)
    assert (draft.width, draft.height) == (exact.width, exact.height)
    assert (draft.width, draft.height) == ((333, 251) if orientation < 5 else (251, 333))
    assert 0 < distance(draft, exact) < 2


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_draft_keeps_the_mode(mode: str) -> None:
    data = encoded(textured(400, 300).convert(mode), "JPEG", quality=90)
    exact, draft = decode(data, SIZE), decode(data, SIZE, draft=True)
    assert 0 < distance(draft, exact) < 2
    if mode == "L":
        assert np.ptp(draft.pixels.astype(int), axis=2).max() == 0
    flat = encoded(Image.new("RGB", (400, 300), RED).convert(mode), "JPEG", quality=100)
    assert np.array_equal(decode(flat, SIZE).pixels, decode(flat, SIZE, draft=True).pixels)


def test_draft_of_many_frames_uses_the_first() -> None:
    frames = [textured(400, 300), Image.new("RGB", (400, 300), RED)]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "MPO"
    assert 0 < distance(decode(data, SIZE), decode(data, SIZE, draft=True)) < 2


def test_draft_raises_the_same_errors() -> None:
    data = encoded(textured(400, 300), "JPEG")
    for share in (0.1, 0.5, 0.9):
        assert kind(data[: int(len(data) * share)], draft=True) == "corrupt"
    assert kind(data, draft=True, max_pixels=400 * 300 - 1) == "too_many_pixels"  # of the original size
