"""Odd images of every format, mode, depth and container that can be written here, and mutations of them, by number.

`python tests/images/odd.py FIRST COUNT MUTATIONS` decodes images and mutations of each, and prints what came of them as
JSON. Pixels must equal those of plain Pillow for images of 8 bits, and be within one level for deep ones.
"""

import io
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from images.files import encoded, png, tiff
from PIL import Image

from paliscribe.errors import RowError
from paliscribe.images import apart
from paliscribe.images.decode import decode

SIZE = 32
MAX_PIXELS = 178_956_970
Odd = tuple[str, bytes, Any]  # name, file, and the values [height, width] of 0..255 of a deep image
ALPHA = ("LA", "RGBA", "PA")
COMPRESSIONS = ("raw", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "lzma", "zstd")
MODES: dict[str, tuple[str, ...]] = {
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("1", "L", "P", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"),
    "PPM": ("1", "L", "RGB"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA"),
    "AVIF": ("RGB", "RGBA"),
    "MPO": ("L", "RGB"),
}


def texture(rng: np.random.Generator, mode: str) -> Image.Image:
    """An image of any size up to 200 pixels a side: smooth, noisy or flat."""
    width, height = (int(side) for side in rng.integers(1, [200, 200] if rng.random() < 0.3 else [60, 60]))
    cells = rng.integers(0, 256, (1 + int(rng.integers(5)), 1 + int(rng.integers(5)), 4), dtype=np.uint8)
    image = Image.fromarray(cells, "RGBA").resize((width, height), Image.Resampling.BICUBIC)
    if rng.random() < 0.3:
        noise = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
        image = Image.blend(image, Image.fromarray(noise, "RGBA"), 0.3)
    return image.convert("LA" if mode == "LA" else "RGBA").convert(mode)


def options(rng: np.random.Generator, form: str, mode: str) -> dict[str, Any]:
    """Ways to write this format."""

    def one(*values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    if form in ("JPEG", "MPO"):
        more = {"restart_marker_rows": 1} if rng.random() < 0.2 else {}
        return {"quality": one(1, 50, 95, 100), "progressive": one(True, False), "subsampling": one(0, 1, 2)} | more
    if form == "PNG":
        return {"compress_level": one(0, 1, 9), "optimize": one(True, False)}
    if form == "WEBP":
        return {"lossless": one(True, False), "method": 0, "quality": one(1, 90), "exact": one(True, False)}
    if form == "GIF":
        return {"interlace": one(0, 1)}
    if form == "TIFF":
        return {
            "compression": one(*COMPRESSIONS, *(("group3", "group4") if mode == "1" else ())),
            "big_tiff": one(0, 1),
        }
    if form == "JPEG2000":
        tiles = {"tile_size": (64, 64)} if rng.random() < 0.3 else {}
        return {"irreversible": one(True, False), "no_jp2": one(True, False), "num_resolutions": one(1, 3)} | tiles
    return {"speed": 10, "quality": one(1, 80), "subsampling": one("4:2:0", "4:4:4")} if form == "AVIF" else {}


def ordinary(rng: np.random.Generator) -> Odd:
    form = list(MODES)[int(rng.integers(len(MODES)))]
    mode = MODES[form][int(rng.integers(len(MODES[form])))]
    image, chosen = texture(rng, mode), options(rng, form, mode)
    if form in ("MPO", "GIF", "WEBP", "TIFF") and rng.random() < 0.2:
        chosen |= {"save_all": True, "append_images": [texture(rng, mode).resize(image.size)]}
    try:
        return f"{form} {mode} {chosen}", encoded(image, form, **chosen), None
    except (OSError, ValueError, TypeError, SystemError):  # the writer lacks this combination
        return f"{form} {mode}", encoded(texture(rng, "RGB"), "PNG"), None


def deep(rng: np.random.Generator) -> Odd:
    """16 and 32 bits and floats, of the size that they are decoded to: pixels need no resizing."""
    share = rng.random((SIZE, SIZE))
    share[0, 0] = 1.0
    kind, end = [("u2", 65535), ("u4", 2**32 - 1), ("i4", 2**31 - 1), ("f4", 1.0), ("f4", 255.0), ("f4", 65535.0)][
        int(rng.integers(6))
    ]
    values = (share * end).astype(kind)
    if kind == "u2" and rng.random() < 0.4:
        if rng.random() < 0.5:
            return "PNG 16", png(values, 16), share * 255
        most = int(rng.integers(256, 65536))
        body = np.rint(share * most).astype(">u2").tobytes()
        return f"PGM {most}", b"P5\n%d %d\n%d\n" % (SIZE, SIZE, most) + body, share * 255
    photometric = int(rng.integers(2)) if kind in ("u2", "f4") else 1
    order = "<" if kind == "u4" or (photometric == 0 and kind == "u2") else "<>"[int(rng.integers(2))]
    shown = (1 - share if photometric == 0 else share) * 255
    return f"TIFF {order}{kind} {end} {photometric}", tiff(values, photometric=photometric, order=order), shown


def low(rng: np.random.Generator) -> Odd:
    """PNG of 1, 2 and 4 bits, and 16 bits in all colour types: Pillow's own pixels are the reference."""
    bits, colour, bands = [(1, 0, 1), (2, 0, 1), (4, 0, 1), (16, 2, 3), (16, 4, 2), (16, 6, 4)][int(rng.integers(6))]
    values = rng.integers(0, 2**bits, (*rng.integers(1, 60, 2), bands))
    return f"PNG {bits} {colour}", png(values, bits, colour), None


def tiled(rng: np.random.Generator) -> Odd:
    """TIFF in tiles of 16 to 64 pixels a side, grey or RGB, of 8 bits; bands together or apart."""
    width, height, wide, high = (int(side) for side in (*rng.integers(1, 130, 2), *(16 * rng.integers(1, 5, 2))))
    bands, is_apart = (1, 3)[int(rng.integers(2))], rng.random() < 0.3
    values = np.asarray(texture(rng, "RGB").resize((width, height)))[..., :bands]
    padded = np.pad(values, ((0, -height % high), (0, -width % wide), (0, 0)), mode="edge")
    rows, columns = padded.shape[0] // high, padded.shape[1] // wide
    tiles = padded.reshape(rows, high, columns, wide, bands).transpose(0, 2, 1, 3, 4)
    pieces = [tiles[..., [band]] for band in range(bands)] if is_apart else [tiles]
    body = b"".join(np.ascontiguousarray(piece).tobytes() for piece in pieces)
    length = wide * high * (1 if is_apart else bands)
    return f"TIFF tiles {wide} x {high}", tiff(values, tiles=(wide, high, length), is_apart=is_apart, body=body), None


def odd(number: int) -> Odd:
    """The image of this number."""
    rng = np.random.default_rng(number)
    makers: Sequence[Callable[[np.random.Generator], Odd]] = (*[ordinary] * 7, *[deep] * 2, low, tiled)
    return makers[int(rng.integers(len(makers)))](rng)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The file with some bytes changed, cut, doubled, or taken from elsewhere; its start more often than its rest."""
    found = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        end = len(found) if rng.random() < 0.5 else min(len(found), 128)
        at, way = int(rng.integers(end)) if end else 0, int(rng.integers(7))
        if way < 2:
            found[at : at + 1] = bytes([int(rng.integers(256))])
        elif way == 2:
            found[at : at + 4] = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\1\0\0"][
                int(rng.integers(4))
            ]
        elif way == 3:
            del found[at : at + int(rng.integers(1, 20))]
        elif way == 4:
            found[at:at] = found[at : at + int(rng.integers(1, 200))]
        elif way == 5:
            found[at:at] = rng.integers(0, 256, int(rng.integers(1, 20)), dtype=np.uint8).tobytes()
        elif rng.random() < 0.3:
            del found[at:]
    return bytes(found)


def reference(data: bytes) -> Any:
    """What plain Pillow gives: on white, RGB, resized."""
    image: Image.Image = Image.open(io.BytesIO(data))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def check(number: int) -> str:
    """Compare the pixels of an image with its reference; "" if they agree."""
    name, data, shown = odd(number)
    try:
        pixels = decode(data, SIZE).pixels
    except RowError as error:
        return f"{number} {name}: {error.kind}: {error}"
    if shown is not None:
        off = float(np.abs(pixels - shown[..., None]).max())
        return f"{number} {name}: {off:.2f} levels off" if off > 1 else ""
    return "" if np.array_equal(pixels, reference(data)) else f"{number} {name}: pixels differ"


def main() -> None:
    """Decode, and print what came of it."""
    first, count, mutations = map(int, sys.argv[1:4])
    warnings.filterwarnings("ignore")
    outcomes, wrong, slowest = Counter[str](), list[str](), (0.0, "")
    for number in range(first, first + count):
        wrong += filter(None, [check(number)])
        data = odd(number)[1]
        for turn in range(mutations):
            changed = mutated(data, np.random.default_rng((number, turn)))
            begun = time.monotonic()
            try:
                decode(changed, SIZE)
                outcomes["ok"] += 1
            except RowError as error:
                outcomes[error.kind] += 1
            except Exception as error:
                wrong.append(f"{number} {turn}: {error!r}")
            slowest = max(slowest, (time.monotonic() - begun, f"{number} {turn}"))
    processes = ["self", *(process._process.pid for process in apart._idle)]
    texts = [Path(f"/proc/{process}/status").read_text() for process in processes]
    peak = max(int(text.partition("VmHWM:")[2].split()[0]) for text in texts) * 1024
    found = {"outcomes": outcomes, "slowest": slowest, "peak": peak, "wrong": wrong}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
