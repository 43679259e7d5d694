"""Depths, transparency and colour profiles: what is seen, not what is stored."""

import gzip
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from images.files import chunk, cmyk_profile, encoded, grey_profile, photo, png, rgb_profile, tiff
from PIL import Image, ImageCms

from paliscribe.errors import RowError
from paliscribe.images.decode import decode

SIZE = 28


def shown(data: bytes) -> list[int]:
    """Colour of the middle pixel of the decoded image."""
    return [int(value) for value in decode(data, SIZE).pixels[SIZE // 2, SIZE // 2]]


def full(value: float, kind: str = "u2", bands: int = 0) -> Any:
    return np.full((40, 40, bands) if bands else (40, 40), value, kind)


def packed(values: Any) -> bytes:
    """Samples of 12 bits, two in three bytes."""
    pairs = values.astype(int).reshape(-1, 2)
    return (
        np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1]], 1).astype("u1").tobytes()
    )


@pytest.mark.parametrize(
    ("data", "grey"),
    [
        (tiff(full(2048), bits=12, body=packed(full(2048))), 128),
        (tiff(full(4095), bits=12, body=packed(full(4095))), 255),
        (tiff(full(2048), tags={281: [4095]}), 128),
        (tiff(full(2048)), 8),
        (tiff(full(65535), photometric=0), 0),
        (tiff(full(0), photometric=0), 255),
        (tiff(full(16384), photometric=0), 191),
        (tiff(full(1.0, "f4"), photometric=0), 0),
        (tiff(full(0.5, "f4")), 128),
        (tiff(full(1.01, "f4")), 255),
        (tiff(full(1.9, "f4")), 255),
        (tiff(full(200, "f4")), 200),
        (tiff(full(260, "f4")), 255),
        (tiff(full(-3, "f4")), 0),
        (tiff(full(3_000_000_000, "u4")), 178),
        (tiff(full(2**32 - 1, "u4")), 255),
        (tiff(full(200, "u4")), 200),
        (tiff(full(2**30, "i4")), 128),
        (tiff(full(2**30, "i4"), order=">"), 128),
        (b"P5\n40 40\n4095\n" + full(2048, ">u2").tobytes(), 128),
        (b"P5\n40 40\n65535\n" + full(200, ">u2").tobytes(), 1),
        (b"P5\n40 40\n100\n" + full(50, "u1").tobytes(), 128),
        (b"P6\n40 40\n65535\n" + full(32768, ">u2", 3).tobytes(), 128),
        (b"P2\n40 40\n65535\n" + b"200 " * 1600, 1),
        (b"P2\n40 40\n65535\n" + b"32768 " * 1600, 128),
    ],
)
def test_deep_greys(data: bytes, grey: int) -> None:
    assert shown(data) == [grey] * 3


def test_highlights_of_floats_do_not_darken_the_rest() -> None:
    values = full(0.5, "f4")
    values[0, :8] = 40.0
    assert shown(tiff(values)) == [128] * 3


def test_wide_gradients_equal_their_array() -> None:
    """Within one level of 255 of the array that was written, at its own size."""
    ramp = np.linspace(0, 1, SIZE * SIZE).reshape(SIZE, SIZE)
    for kind, end in (("u2", 65535), ("f4", 1.0), ("u4", 2**32 - 1), ("i4", 2**31 - 1)):
        values = (ramp * end).astype(kind)
        for photometric in (0, 1) if kind in ("u2", "f4") else (1,):
            wanted = (1 - ramp if photometric == 0 else ramp) * 255
            pixels = decode(tiff(values, photometric=photometric), SIZE).pixels
            assert np.abs(pixels - wanted[..., None]).max() <= 1


@pytest.mark.parametrize(
    ("bits", "colour", "bands"), [(1, 0, 1), (2, 0, 1), (4, 0, 1), (8, 0, 1), (16, 0, 1), (8, 2, 3), (16, 2, 3)]
)
def test_the_transparent_colour_of_a_png_is_white(bits: int, colour: int, bands: int) -> None:
    key = (2**bits - 1) // 3 if bits < 16 else 0x1234
    other = key + 1 if bits < 16 else key + 0x100
    before = chunk(b"tRNS", struct.pack(">H", key) * bands)
    assert shown(png(full(key, "i8", bands), bits, colour, before)) == [255] * 3
    expected = round(other * 255 / (2**bits - 1))
    assert np.abs(np.subtract(shown(png(full(other, "i8", bands), bits, colour, before)), expected)).max() <= 1


def test_premultiplied_grey() -> None:
    assert shown(tiff(full(100, "u1", 2), photometric=1, tags={338: [1]})) == [255] * 3


def test_large_transparent_images_are_composed_in_strips() -> None:
    image = photo(3001, 1203)  # several strips, the last one shorter
    image.putalpha(photo(3001, 1203, seed=8).convert("L"))
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    whole = Image.alpha_composite(white, image).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    assert np.array_equal(decode(encoded(image, "TIFF"), SIZE).pixels, np.asarray(whole))


RED = Image.new("RGB", (40, 40), (200, 50, 20))
OPTIONS: dict[str, dict[str, Any]] = {"JPEG": {"quality": 100}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}


@pytest.mark.parametrize("form", OPTIONS)
def test_profiles_are_converted_to_srgb(form: str) -> None:
    plain = shown(encoded(RED, form, **OPTIONS[form]))
    turned = shown(encoded(RED, form, icc_profile=rgb_profile(order="gbr"), **OPTIONS[form]))
    assert turned[1] > 190 and max(turned[0], turned[2]) < 60  # its first colour is green
    linear = shown(encoded(RED, form, icc_profile=rgb_profile(1.0), **OPTIONS[form]))
    assert all(one > other + 20 for one, other in zip(linear, plain, strict=True))


def test_profiles_of_transparent_palette_and_grey_images() -> None:
    profile = rgb_profile(1.0)
    wanted = shown(encoded(RED, icc_profile=profile))
    assert shown(encoded(RED.convert("RGBA"), icc_profile=profile)) == wanted
    assert shown(encoded(RED.convert("P", palette=Image.Palette.ADAPTIVE), icc_profile=profile)) == wanted
    clear = Image.new("RGBA", (40, 40), (200, 50, 20, 0))
    assert shown(encoded(clear, icc_profile=profile)) == [255] * 3
    grey = Image.new("L", (40, 40), 64)
    assert 130 < shown(encoded(grey, icc_profile=grey_profile(1.0)))[0] < 145
    assert shown(encoded(grey, icc_profile=grey_profile(2.2))) != [0, 0, 0]


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_with_a_profile(form: str) -> None:
    ink = Image.new("CMYK", (40, 40), (255, 0, 0, 0))
    assert shown(encoded(ink, form))[0] < 5 < 250 < shown(encoded(ink, form))[1]  # cyan
    grey = shown(encoded(ink, form, icc_profile=cmyk_profile(50)))
    assert np.abs(np.subtract(grey, 119)).max() <= 3  # L* of 50


@pytest.mark.parametrize(
    "profile",
    [
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        b"x" * 300,
        b"",
        cmyk_profile(),
        grey_profile(1),
    ],
)
def test_srgb_and_profiles_that_do_not_fit_change_nothing(profile: bytes) -> None:
    assert np.array_equal(
        decode(encoded(photo(), icc_profile=profile), SIZE).pixels, decode(encoded(photo()), SIZE).pixels
    )


def test_lab() -> None:
    values = full(0, "u1", 3)
    values[..., 0] = 128
    assert np.abs(np.subtract(shown(tiff(values, photometric=8)), 119)).max() <= 2


@pytest.mark.parametrize(
    "data",
    [
        tiff(full(0, "u2", 5)),
        tiff(full(0, "f4", 3)),
        tiff(full(0, "f8")),
        tiff(full(0, "u8")),
        tiff(full(0, "f2")),
        tiff(full(0, "f4"), photometric=5),
        tiff(full(0, "u2"), photometric=8),
        tiff(full(0, "u1"), tags={259: [34712]}),
        tiff(full(0, "u1", 4), photometric=1),
    ],
)
def test_whole_tiffs_of_other_varieties_are_not_called_broken(data: bytes) -> None:
    with pytest.raises(RowError) as caught:
        decode(data, SIZE)
    assert caught.value.kind == "unsupported" and "a TIFF of" in caught.value.message
    with pytest.raises(RowError) as caught:
        decode(data[: len(data) // 2], SIZE)
    assert caught.value.kind == "corrupt"


def jpeg_of(kind: int, bits: int, components: int = 3) -> bytes:
    data = bytearray(encoded(photo(), "JPEG"))
    place = data.find(b"\xff\xc0")
    data[place + 1], data[place + 4], data[place + 9] = kind, bits, components
    return bytes(data)


def bitmap(compression: int) -> bytes:
    data = bytearray(encoded(photo(), "BMP"))
    data[30] = compression
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (jpeg_of(0xC1, 12), "JPEG of 3 x 12 bits"),
        (jpeg_of(0xC3, 8), "lossless JPEG"),
        (jpeg_of(0xF7, 8), "JPEG-LS"),
        (bitmap(4), "BMP"),
        (b"8BPS\0\1" + bytes(40), "PSD"),
        (b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0" + bytes(20), "ICO"),
        (b"v/1\1" + bytes(20), "OpenEXR"),
        (b"#?RADIANCE\n" + bytes(20), "HDR"),
        (b"P7\nWIDTH 2\nHEIGHT 2\n", "PAM"),
        (b"PF\n2 2\n-1.0\n" + bytes(48), "PFM"),
        (bytes(128) + b"DICM" + bytes(20), "DICOM"),
        (encoded(photo(), "PCX"), "PCX"),
        (encoded(photo().convert("1"), "XBM"), "XBM"),
        (encoded(photo(), "TGA"), "TGA"),
        (encoded(photo(), "TGA", compression="tga_rle"), "TGA"),
        *((encoded(photo().convert(mode), "TGA")[:-26], "TGA") for mode in ("RGB", "RGBA", "L", "P")),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    ],
)
def test_known_formats_that_are_not_read(data: bytes, words: str) -> None:
    with pytest.raises(RowError) as caught:
        decode(data, SIZE)
    assert caught.value.kind == "unsupported" and words in caught.value.message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encoded(photo(), "EPS"), "EPS"),
        (encoded(photo(), "PDF"), "PDF"),
        (b"<!DOCTYPE html>\n<html><head>", "a web page"),
        (b"\n<HTML><body>404", "a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "XML"),
        (b'{"error": "not found"}', "JSON"),
        (b"\0\0\0\x18ftypmp42" + bytes(20), "a video"),
        (gzip.compress(bytes(99), mtime=0), "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
    ],
)
def test_what_comes_in_the_place_of_an_image_is_named(data: bytes, words: str) -> None:
    with pytest.raises(RowError) as caught:
        decode(data, SIZE)
    assert caught.value.kind == "not_an_image" and caught.value.message.endswith(f"look like {words}")


def test_libraries_write_nothing_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    broken = bytearray(encoded(photo(200, 150), "TIFF", compression="tiff_lzw"))
    broken[20:2000] = bytes(1980)
    for data in (bytes(broken), encoded(photo(200, 150), "TIFF", compression="jpeg")[:3000]):
        with pytest.raises(RowError):
            decode(data, SIZE)
    assert not capfd.readouterr().err
    code = "import io, sys; from PIL import Image; Image.open(io.BytesIO(sys.stdin.buffer.read())).load()"
    plain = subprocess.run([sys.executable, "-c", code], input=bytes(broken), capture_output=True)
    assert b"LZW" in plain.stderr  # what is kept away
