"""Deep and odd pictures against libvips, a second reader beside Pillow and tifffile.

The tolerance is one level of 255; two where a picture was compressed with loss, or a profile is converted, which each
library does in its own steps, and for transparency of 16 bits, of which Pillow reads the upper eight. The package's
libvips reads neither JPEG 2000, HEIC nor PPM.
"""

import itertools
from typing import Any

import numpy as np
import pytest
from images.files import cmyk_profile, encoded, photo, rgb_profile
from images.test_deep_tiffs import SIZE, ramp, written
from PIL import Image

from paliscribe.images.decode import decode

pyvips = pytest.importorskip("pyvips", reason="needs libvips (the package pyvips-binary)", exc_type=ImportError)

ENDS = {"u1": 255, "u2": 65535, "u4": 2**32 - 1, "f4": 1.0}
LAYOUTS: dict[str, dict[str, Any]] = {
    "one strip": {},
    "tiles": {"tile": (16, 32)},
    "deflate": {"compression": "zlib", "rowsperstrip": 7},
    "predictor": {"compression": "zlib", "predictor": True},
}


def seen(data: bytes, end: float = 255) -> Any:
    """What libvips reads: float [SIZE, SIZE, 3] of 0..255, transparency on white."""
    image = pyvips.Image.new_from_buffer(data, "")
    values = np.asarray(image.numpy(), float) / end * 255
    values = values.reshape(*values.shape[:2], -1)
    if image.hasalpha():
        alpha = values[..., -1:] / 255
        values = values[..., :-1] * alpha + 255 * (1 - alpha)
    return np.broadcast_to(values, (SIZE, SIZE, 3))


def off(data: bytes, wanted: Any) -> float:
    return float(np.abs(decode(data, SIZE).pixels - wanted).max())


def picture(mode: str) -> Image.Image:
    return photo(SIZE, SIZE).convert(mode)


@pytest.mark.parametrize(("kind", "layout", "order"), [*itertools.product(ENDS, LAYOUTS, "<>")])
def test_grey_tiffs(kind: str, layout: str, order: str) -> None:
    if kind == "f4" and layout == "predictor":
        pytest.skip("tifffile writes it with another predictor")
    data = written((ramp(1)[..., 0] * ENDS[kind]).astype(kind), byteorder=order, **LAYOUTS[layout])
    assert off(data, seen(data, ENDS[kind])) <= 1


@pytest.mark.parametrize(("kind", "order"), [*itertools.product(["u1", "u2"], "<>")])
def test_white_is_zero(kind: str, order: str) -> None:
    data = written((ramp(1)[..., 0] * ENDS[kind]).astype(kind), photometric="miniswhite", byteorder=order)
    assert off(data, seen(data, ENDS[kind])) <= 1


@pytest.mark.parametrize(("kind", "layout", "order"), [*itertools.product(["u1", "u2"], LAYOUTS, "<>")])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colours_of_tiffs(kind: str, layout: str, order: str, planar: str) -> None:
    if planar == "separate" and layout == "tiles":
        pytest.skip("libvips does not read it; test_deep_tiffs.py compares it with tifffile")
    values = (ramp(3) * ENDS[kind]).astype(kind)
    values = np.ascontiguousarray(np.moveaxis(values, -1, 0)) if planar == "separate" else values
    data = written(values, photometric="rgb", planarconfig=planar, byteorder=order, **LAYOUTS[layout])
    assert off(data, seen(data, ENDS[kind])) <= 1


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [8, 16])
def test_pngs(bands: int, bits: int) -> None:
    values = (ramp(bands) * (2**bits - 1)).astype(f"u{bits // 8}")
    made = pyvips.Image.new_from_array(values, interpretation=INTERPRETATIONS[bands > 2, bits])
    data = made.pngsave_buffer()
    assert data[24] == bits and off(data, seen(data, 2**bits - 1)) <= (2 if bits == 16 and bands in (2, 4) else 1)


INTERPRETATIONS = {(False, 8): "b-w", (False, 16): "grey16", (True, 8): "srgb", (True, 16): "rgb16"}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("form", ["PNG", "TIFF", "GIF", "WEBP"])
def test_ordinary_pictures(form: str, mode: str) -> None:
    image = picture(mode)
    if image.mode in ("LA", "RGBA"):
        image.putalpha(
            Image.fromarray((ramp(1)[..., 0] * 255).astype("u1") if form != "GIF" else np.full((SIZE, SIZE), 255, "u1"))
        )
    data = encoded(image, form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    assert off(data, seen(data)) <= 1


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pictures_compressed_with_loss(form: str, mode: str) -> None:
    # libraries smooth colours of fewer samples each in its own way
    plain: dict[str, dict[str, Any]] = {"JPEG": {"subsampling": 0}, "AVIF": {"subsampling": "4:4:4"}}
    data = encoded(picture(mode), form, quality=90, **plain.get(form, {}))
    assert off(data, seen(data)) <= 2


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
@pytest.mark.parametrize(("mode", "profile"), [("CMYK", cmyk_profile()), ("RGB", rgb_profile(1.8, "gbr"))])
def test_profiles(form: str, mode: str, profile: bytes) -> None:
    data = encoded(
        picture(mode), form, icc_profile=profile, **({"quality": 100, "subsampling": 0} if form == "JPEG" else {})
    )
    image = pyvips.Image.new_from_buffer(data, "")
    shown = image.icc_transform("srgb", embedded=True, intent="relative", black_point_compensation=True)
    assert off(data, np.asarray(shown.numpy(), float)) <= 2
