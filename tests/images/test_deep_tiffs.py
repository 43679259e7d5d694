"""Deep TIFFs against tifffile: within one level of 255 of what it reads, scaled by the range of the file."""

import io
import itertools
from typing import Any

import numpy as np
import pytest
import tifffile
from images.files import tiff
from images.test_colours import packed

from paliscribe.errors import RowError
from paliscribe.images.decode import decode

SIZE = 48  # of the pictures and of what is decoded, so that nothing is resized
ENDS = {"u1": 255, "u2": 65535, "u4": 2**32 - 1, "i4": 2**31 - 1, "f4": 1.0}
LAYOUTS: dict[str, dict[str, Any]] = {
    "one strip": {},
    "strips": {"rowsperstrip": 5},
    "tiles": {"tile": (16, 32)},
    "deflate": {"compression": "zlib", "rowsperstrip": 7},
    "deflated tiles": {"compression": "zlib", "tile": (32, 16)},
    "predictor": {"compression": "zlib", "predictor": True},
    "BigTIFF": {"bigtiff": True},
}


def ramp(bands: int = 1) -> Any:
    """[SIZE, SIZE, bands] from 0 to 1, both included; bands differ."""
    row = np.linspace(0, 1, SIZE * SIZE).reshape(SIZE, SIZE)
    return np.stack([np.roll(row, 7 * band, axis=band % 2) for band in range(bands)], axis=-1)


def written(values: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def off(data: bytes, end: float, *, is_inverted: bool = False, is_apart: bool = False) -> float:
    """Greatest difference of the decoded picture from tifffile's values, of 255."""
    values = tifffile.imread(io.BytesIO(data)).astype(float) / end * 255
    values = np.moveaxis(values, 0, -1) if is_apart else values
    wanted = (255 - values if is_inverted else values).clip(0, 255)
    wanted = wanted[..., None] if wanted.ndim == 2 else wanted
    return float(np.abs(decode(data, SIZE).pixels - wanted).max())


@pytest.mark.parametrize(("kind", "layout", "order"), [*itertools.product(ENDS, LAYOUTS, "<>")])
def test_grey(kind: str, layout: str, order: str) -> None:
    values = (ramp()[..., 0] * ENDS[kind]).astype(kind)
    if not (kind == "f4" and "predictor" in LAYOUTS[layout]) and not (layout == "BigTIFF" and order == ">"):
        data = written(values, photometric="minisblack", byteorder=order, **LAYOUTS[layout])
        assert off(data, ENDS[kind]) <= 1


@pytest.mark.parametrize(("kind", "order"), [*itertools.product(["u1", "u2", "u4", "f4"], "<>")])
def test_white_is_zero(kind: str, order: str) -> None:
    values = (ramp()[..., 0] * ENDS[kind]).astype(kind)
    data = written(values, photometric="miniswhite", byteorder=order)
    assert off(data, ENDS[kind], is_inverted=True) <= 1


@pytest.mark.parametrize(("kind", "layout", "order"), [*itertools.product(["u1", "u2"], LAYOUTS, "<>")])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colours(kind: str, layout: str, order: str, planar: str) -> None:
    if layout == "BigTIFF" and order == ">":
        return
    values = (ramp(3) * ENDS[kind]).astype(kind)
    is_apart = planar == "separate"
    stored = np.ascontiguousarray(np.moveaxis(values, -1, 0)) if is_apart else values
    data = written(stored, photometric="rgb", planarconfig=planar, byteorder=order, **LAYOUTS[layout])
    assert off(data, ENDS[kind], is_apart=is_apart) <= 1


@pytest.mark.parametrize("kind", ["u2", "u4"])
def test_big_endian_bigtiff_is_named(kind: str) -> None:
    data = written((ramp()[..., 0] * ENDS[kind]).astype(kind), byteorder=">", bigtiff=True)
    with pytest.raises(RowError, match="a big-endian BigTIFF is not supported"):
        decode(data, SIZE)


@pytest.mark.parametrize("layout", ["one strip", "deflate"])
@pytest.mark.parametrize("order", "<>")
def test_signed_sixteen_bits(layout: str, order: str) -> None:
    values = (ramp()[..., 0] * 32767).astype("i2")
    data = written(values, photometric="minisblack", byteorder=order, **LAYOUTS[layout])
    assert off(data, 32767) <= 1


@pytest.mark.parametrize("end", [1.0, 255.0, 65535.0])
@pytest.mark.parametrize("order", "<>")
def test_floats_of_each_usual_range(end: float, order: str) -> None:
    assert off(written((ramp()[..., 0] * end).astype("f4"), photometric="minisblack", byteorder=order), end) <= 1


@pytest.mark.parametrize("most", [1023, 4095, 16383])
def test_sixteen_bits_of_which_some_are_used(most: int) -> None:
    values = (ramp()[..., 0] * most).astype("u2")
    extra = [("MaxSampleValue", "H", 1, most, True)]
    assert off(written(values, photometric="minisblack", extratags=extra), most) <= 1


@pytest.mark.parametrize("order", "<>")
def test_twelve_bits(order: str) -> None:
    values = (ramp()[..., 0] * 4095).astype("u2")
    shown = decode(tiff(values, bits=12, body=packed(values), order=order), SIZE).pixels
    assert np.abs(shown - (values / 4095 * 255)[..., None]).max() <= 1


@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_transparency(kind: str) -> None:
    """On white, as the alpha of 8 or 16 bits says."""
    values = (ramp(4) * ENDS[kind]).astype(kind)
    data = written(values, photometric="rgb", extrasamples=["unassalpha"])
    shares = tifffile.imread(io.BytesIO(data)) / ENDS[kind]
    wanted = 255 * (shares[..., :3] * shares[..., 3:] + 1 - shares[..., 3:])
    assert np.abs(decode(data, SIZE).pixels - wanted).max() <= 2
