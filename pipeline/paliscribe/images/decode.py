"""Decodes images to PaliGemma's input pixels: Exif rotation applied, RGB, resized to a square.

Pixels equal those of transformers' Pillow image processor, which also composites transparent images on white. Cases
that it leaves open (16-bit, rotation, animation) are defined here. `draft` trades exact pixels for speed. All Pillow
errors are translated here.
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
FORMATS = tuple(name for name in KNOWN if name in Image.OPEN)  # in-process decoders that this Pillow build has
MAX_PIXELS = 178_956_970  # Pillow's own limit: it warns above, and raises above twice that
DRAFT_GAP = 2  # least ratio of a reduced JPEG's sides to the target's: see `_reduce`
ORIENTATION = 0x0112  # the Exif tag
TRANSPOSITIONS = {  # by Exif orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPS_SIDES = (TRANSPOSITIONS[5], TRANSPOSITIONS[6], TRANSPOSITIONS[7], TRANSPOSITIONS[8])  # width becomes height

# Pillow warns about unusual metadata and sizes. Filtered globally, since catch_warnings is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded image. `width`, `height`: pixels of the original after Exif rotation."""

    pixels: npt.NDArray[np.uint8]  # [size, size, 3]
    width: int
    height: int
    sha256: str  # of the encoded bytes


def decode(data: bytes, size: int, *, max_pixels: int = MAX_PIXELS, draft: bool = False) -> Decoded:
    """Decode an image and resize it to `size` x `size` pixels, bicubic, ignoring its aspect ratio.

    `draft`: decode a much larger JPEG at a reduced scale, which is faster and not pixel-exact. Of animations and
    multi-picture files the first frame is used. `max_pixels` is checked by the header, before decoding. Thread-safe.

    Raises RowError: `empty`, `not_an_image`, `corrupt`, `too_many_pixels`.
    """
    if not data:
        raise RowError("empty", "the object has no bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > max_pixels:
            words = f"{image.width} x {image.height} pixels; the limit is {max_pixels:,}"
            raise RowError("too_many_pixels", words)
        original_size = image.size
        box = _reduce(image, size) if draft else None
        image.load()
        transposition = _transposition(image)
        if box is None:
            oriented = _transposed(image, transposition)
            resized, (width, height) = _resize(oriented, size), oriented.size
        else:  # rotated last: the box is in coordinates of the unrotated image
            resized = _transposed(_resize(image, size, box), transposition)
            width, height = original_size[::-1] if transposition in SWAPS_SIDES else original_size
    except (RowError, MemoryError):
        raise
    except UnidentifiedImageError:
        if _has_known_signature(data):
            raise RowError("corrupt", "the image's header is truncated or corrupt") from None
        raise RowError("not_an_image", "no image format is recognised in these bytes") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RowError("too_many_pixels", _first_line(error)) from error
    except Exception as error:  # decoders raise almost anything on malicious input
        raise RowError("corrupt", f"the image cannot be decoded: {_first_line(error)}") from error
    return Decoded(np.asarray(resized), width, height, hashlib.sha256(data).hexdigest())


def _reduce(image: Image.Image, size: int) -> tuple[float, float, float, float] | None:
    """Set a JPEG to be decoded at 1/2, 1/4 or 1/8 scale.

    Returns the box of the image in the reduced one, (left, top, right, bottom) in pixels; None if it is not reduced.

    The decoder reduces each 8 x 8 block separately by dropping high frequencies, which is coarser than resizing. So at
    least DRAFT_GAP times the target's side is kept and the resize does the last halving: with a gap of 1, pixels of
    photographs differ from the exact ones two to five times as much.
    """
    if not isinstance(image, JpegImageFile):  # MPO is a subclass
        return None
    before = image.size
    reduced = image.draft(None, (DRAFT_GAP * size, DRAFT_GAP * size))  # None: keep the mode
    return None if reduced is None or image.size == before else reduced[1]


def _transposition(image: Image.Image) -> Image.Transpose | None:
    """The transposition for the Exif orientation; None if there is none or it is unreadable."""
    try:
        return TRANSPOSITIONS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # corrupt metadata raises almost anything, and the image itself may be fine
        return None


def _transposed(image: Image.Image, transposition: Image.Transpose | None) -> Image.Image:
    return image if transposition is None else image.transpose(transposition)


def _resize(image: Image.Image, size: int, box: tuple[float, float, float, float] | None = None) -> Image.Image:
    return _rgb(image).resize((size, size), Image.Resampling.BICUBIC, box)


def _rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB. Transparent pixels become white; their own colour is arbitrary, often black."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16- and 32-bit greyscale to 8 bits, from the smallest usual range that holds it. Pillow clips at 255."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0, neginf=0)
    if image.mode.startswith("I;16"):
        ranges: tuple[float, ...] = (65535.0,)
    else:
        ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0, 2.0**31 - 1)
    highest = next((end for end in ranges if values.max(initial=0) <= end), ranges[-1])
    values *= 255 / highest
    return Image.fromarray(np.rint(values.clip(0, 255)).astype(np.uint8))


def _has_known_signature(data: bytes) -> bool:
    """Whether the first bytes match a supported format."""
    accepts = (Image.OPEN[name][1] for name in FORMATS)
    return len(data) >= 16 and any(accept is not None and accept(data[:16]) for accept in accepts)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
