"""Encoded bytes to the pixels that PaliGemma sees: upright, RGB, squeezed to a square.

Pixels equal those of transformers' Pillow image processor, which also lays transparent images on white; what it leaves
open (16-bit, rotation, animation) is settled here. Only `draft` trades that for speed. All Pillow errors are translated
here.
"""

import hashlib
import io
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from paliscribe.errors import RowError

Image.init()
KNOWN = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")  # MPO opens as JPEG
FORMATS = tuple(name for name in KNOWN if name in Image.OPEN)  # decoders inside this process, as far as Pillow has them
MAX_PIXELS = 178_956_970  # Pillow's own bound, above which it warns; above twice that it refuses, whatever is set here
DRAFT_GAP = 2  # sides of a reduced JPEG over the target's, at least: see `_reduce`
ORIENTATION = 0x0112  # the Exif tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPPING = (UPRIGHT[5], UPRIGHT[6], UPRIGHT[7], UPRIGHT[8])  # turns that make the width the height

# Odd metadata and sizes make Pillow warn, once for each place. Filtered once here: catch_warnings is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image as the engine takes it. `width` and `height`: pixels of the upright original."""

    pixels: npt.NDArray[np.uint8]  # [size, size, 3]
    width: int
    height: int
    sha256: str  # of the encoded bytes


def decode(data: bytes, size: int, *, max_pixels: int = MAX_PIXELS, draft: bool = False) -> Decoded:
    """Decode an image and squeeze it to `size` pixels a side, bicubically.

    With `draft`, a JPEG much larger than that is decoded at a reduced scale: faster, and not pixel-exact.

    Raises RowError: `empty`, `not_an_image`, `corrupt`, `too_many_pixels`. Animations and multi-picture files give
    their first frame. Size is judged by the header, before a pixel is decoded. Thread-safe.
    """
    if not data:
        raise RowError("empty", "the object has no bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > max_pixels:
            words = f"{image.width} x {image.height} pixels; at most {max_pixels:,} are decoded"
            raise RowError("too_many_pixels", words)
        whole = image.size
        box = _reduce(image, size) if draft else None
        image.load()
        turn = _turn(image)
        if box is None:
            upright = _turned(image, turn)
            squeezed, (width, height) = _squeeze(upright, size), upright.size
        else:  # turned last, as the box is that of the picture as it lies
            squeezed = _turned(_squeeze(image, size, box), turn)
            width, height = whole[::-1] if turn in SWAPPING else whole
    except (RowError, MemoryError):
        raise
    except UnidentifiedImageError:
        if _looks_known(data):
            raise RowError("corrupt", "the image's header is cut off or broken") from None
        raise RowError("not_an_image", "no image format is recognised in these bytes") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RowError("too_many_pixels", _line(error)) from error
    except Exception as error:  # hostile bytes make decoders raise almost anything
        raise RowError("corrupt", f"the image cannot be decoded: {_line(error)}") from error
    return Decoded(np.asarray(squeezed), width, height, hashlib.sha256(data).hexdigest())


def _reduce(image: Image.Image, size: int) -> tuple[float, float, float, float] | None:
    """Have a JPEG decoded at 1/2, 1/4 or 1/8, and return the box of the picture therein; None where it is too small.

    The decoder reduces each 8 x 8 block by itself, by dropping its high frequencies, which is coarser than to resize.
    So at least DRAFT_GAP times the target is left a side, and the resize does the last halving: with a gap of 1, pixels
    of photographs differ from the exact ones two to five times as much.
    """
    if not isinstance(image, JpegImageFile):  # an MPO is one too
        return None
    before = image.size
    reduced = image.draft(None, (DRAFT_GAP * size, DRAFT_GAP * size))  # None: the mode stays as it is
    return None if reduced is None or image.size == before else reduced[1]


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The turn that the Exif orientation asks for; none where it cannot be read."""
    try:
        return UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # broken metadata is no reason to lose a good picture, and raises almost anything
        return None


def _turned(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return image if turn is None else image.transpose(turn)


def _squeeze(image: Image.Image, size: int, box: tuple[float, float, float, float] | None = None) -> Image.Image:
    return _rgb(image).resize((size, size), Image.Resampling.BICUBIC, box)


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB. Transparent pixels show white: what colour they hold is chance, often black."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16- and 32-bit grey as 8-bit grey, from the smallest usual range that holds it; Pillow would clip at 255."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0, neginf=0)
    if image.mode.startswith("I;16"):
        ranges: tuple[float, ...] = (65535.0,)
    else:
        ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0, 2.0**31 - 1)
    highest = next((end for end in ranges if values.max(initial=0) <= end), ranges[-1])
    values *= 255 / highest
    return Image.fromarray(np.rint(values.clip(0, 255)).astype(np.uint8))


def _looks_known(data: bytes) -> bool:
    """Whether the first bytes are those of a format that is decoded here."""
    accepts = (Image.OPEN[name][1] for name in FORMATS)
    return len(data) >= 16 and any(accept is not None and accept(data[:16]) for accept in accepts)


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
