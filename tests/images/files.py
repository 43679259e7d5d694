"""Image files, byte by byte: PNG and TIFF of any layout, JPEG with more in it, small colour profiles."""

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def photo(width: int = 61, height: int = 40, seed: int = 7) -> Image.Image:
    """Smooth RGB noise, which distinguishes rotations, resizes and channels."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(values: Any, bits: int = 8, colour: int = 0, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of these samples [height, width] or [height, width, bands]; chunks before and after the picture."""
    height, width = values.shape[:2]
    rows = values.reshape(height, -1)
    if bits == 16:
        packed = rows.astype(">u2").view(np.uint8).reshape(height, -1)
    elif bits == 8:
        packed = rows.astype(np.uint8)
    else:
        places = np.arange(bits - 1, -1, -1)
        packed = np.packbits((rows[..., None] >> places & 1).reshape(height, -1).astype(np.uint8), axis=1)
    body = b"".join(b"\0" + row.tobytes() for row in packed)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + before + chunk(b"IDAT", zlib.compress(body)) + after + chunk(b"IEND", b"")


def inserted(data: bytes, more: bytes) -> bytes:
    """A PNG with more chunks after its header."""
    return data[:33] + more + data[33:]


def tiff(
    values: Any,
    *,
    photometric: int | None = None,
    order: str = "<",
    bits: int | None = None,
    tags: dict[int, Sequence[int]] | None = None,
    body: bytes | None = None,
    tiles: tuple[int, int, int] | None = None,
    is_apart: bool = False,
) -> bytes:
    """An uncompressed TIFF of these samples, its type from theirs.

    `tags`: more of type SHORT. `tiles`: width and height, and the bytes of one; then `body` holds them. `is_apart`: one
    band after the other.
    """
    bands = values.shape[2] if values.ndim == 3 else 1
    bits = bits or values.dtype.itemsize * 8
    form = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    body = body if body is not None else values.astype(values.dtype.newbyteorder(order)).tobytes()
    photometric = (2 if bands >= 3 else 1) if photometric is None else photometric
    shorts: dict[int, Sequence[int]] = {
        258: [bits] * bands,
        259: [1],
        262: [photometric],
        277: [bands],
        284: [1 + is_apart],
    }
    shorts |= (
        {339: [form] * bands} | ({338: [0] * (bands - 3)} if bands > 3 and photometric == 2 else {}) | (tags or {})
    )
    longs = {256: [values.shape[1]], 257: [values.shape[0]]}
    if tiles is None:
        longs |= {273: [8], 278: [values.shape[0]], 279: [len(body)]}
    else:
        wide, high, length = tiles
        places = [*range(8, 8 + len(body), length)]
        longs |= {322: [wide], 323: [high], 324: places, 325: [length] * len(places)}
    body += b"\0" * (len(body) % 2)
    more, entries = b"", []
    for tag in sorted(shorts | longs):
        kind, given = (4, longs[tag]) if tag in longs else (3, shorts[tag])
        packed = struct.pack(f"{order}{len(given)}{'I' if kind == 4 else 'H'}", *given)
        if len(packed) > 4:
            place, more = 8 + len(body) + len(more), more + packed + b"\0" * (len(packed) % 4)
            packed = struct.pack(f"{order}I", place)
        entries.append(struct.pack(f"{order}HHI", tag, kind, len(given)) + packed.ljust(4, b"\0"))
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(body) + len(more))
    return head + body + more + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def with_segments(data: bytes, *segments: bytes) -> bytes:
    """A JPEG with more segments at its start."""
    return data[:2] + b"".join(segments) + data[2:]


def empty_scans(side: int, number: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = encoded(Image.new("RGB", (side, side)), "JPEG", progressive=True)
    last = data.rfind(b"\xff\xda")
    return data[:-2] + data[last:-2] * number + b"\xff\xd9"


def _tag(name: bytes, body: bytes) -> tuple[bytes, bytes]:
    return name, body + b"\0" * (-len(body) % 4)


def _profile(colours: bytes, space: bytes, kind: bytes, tags: Sequence[tuple[bytes, bytes]]) -> bytes:
    table, bodies, place = b"", b"", 128 + 4 + 12 * len(tags)
    for name, body in tags:
        table += name + struct.pack(">II", place + len(bodies), len(body))
        bodies += body
    size = place + len(bodies)
    head = struct.pack(">I4sI4s4s4s12x4s", size, b"test", 0x02400000, kind, colours, space, b"acsp").ljust(68, b"\0")
    head += struct.pack(">iii", 63190, 65536, 54061)  # the illuminant D50
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + bodies


def _xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(value * 65536) for value in values))


def rgb_profile(gamma: float = 2.2, order: str = "rgb") -> bytes:
    """A profile of sRGB's primaries in this order, with another gamma."""
    primaries = {"r": (0.4361, 0.2225, 0.0139), "g": (0.3851, 0.7169, 0.0971), "b": (0.1431, 0.0606, 0.7141)}
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    named = [_tag(name + b"XYZ", _xyz(*primaries[one])) for name, one in zip((b"r", b"g", b"b"), order, strict=True)]
    curves = [_tag(name + b"TRC", curve) for name in (b"r", b"g", b"b")]
    text = _tag(b"desc", b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78))
    return _profile(b"RGB ", b"XYZ ", b"mntr", [text, _tag(b"wtpt", _xyz(0.9642, 1, 0.8249)), *named, *curves])


def grey_profile(gamma: float) -> bytes:
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = _tag(b"desc", b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78))
    white = _tag(b"wtpt", _xyz(0.9642, 1, 0.8249))
    return _profile(b"GRAY", b"XYZ ", b"mntr", [text, white, _tag(b"kTRC", curve)])


def cmyk_profile(lightness: float = 50.0) -> bytes:
    """A profile of a press whose inks are all grey: `lightness` (0..100) of one full ink, less of more."""
    grid = [(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    lab = [(100 * (lightness / 100) ** sum(inks), 0, 0) for inks in grid]
    cells = b"".join(struct.pack("BBB", round(light * 2.55), 128, 128) for light, _, _ in lab)
    line = bytes(range(256))
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut = b"mft1\0\0\0\0" + struct.pack("BBBB", 4, 3, 2, 0) + matrix + line * 4 + cells + line * 3
    text = _tag(b"desc", b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78))
    white = _tag(b"wtpt", _xyz(0.9642, 1, 0.8249))
    return _profile(b"CMYK", b"Lab ", b"prtr", [text, white, *(_tag(name, lut) for name in (b"A2B0", b"A2B1"))])
