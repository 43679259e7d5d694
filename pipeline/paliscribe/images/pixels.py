"""Decodes an image in this process, whatever it costs: see `decode` for the way that is bounded."""

import io
import math
import re
import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from paliscribe.errors import RowError
from paliscribe.images import colours, jpeg, png, ppm, tiff, webp
from paliscribe.images.formats import first_line, readable, refusal

MAX_SIDE: Final = 1_000_000  # pixels: to resize one side takes memory in proportion to it, whatever the other is
SHORT_OF_MEMORY: Final = "decoding the image takes more memory than it may"
MEMORY: Final = re.compile(r"memory|alloc", re.IGNORECASE)
SILENT: Final = {"WEBP": 8, "JXL": 8, "JPEG2000": 20}  # their libraries say something else; bytes that a pixel takes
DRAFT_GAP: Final = 2  # least ratio of a reduced JPEG's sides to the target's: see `_reduce`
ORIENTATION: Final = 0x0112  # the Exif tag
TRANSPOSITIONS: Final = {  # by Exif orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPS_SIDES: Final = (TRANSPOSITIONS[5], TRANSPOSITIONS[6], TRANSPOSITIONS[7], TRANSPOSITIONS[8])

Pixels = tuple[npt.NDArray[np.uint8], int, int]  # [size, size, 3], and the original's width and height
Box = tuple[float, float, float, float]  # left, top, right, bottom

# Pillow warns about unusual metadata and sizes. Filtered globally, since catch_warnings is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True, slots=True)
class Options:
    """What to decode to: see `decode.decode`."""

    size: int
    max_pixels: int
    draft: bool = False


def decode_here(data: bytes, options: Options, name: str | None) -> Pixels:
    """Decode, whatever time and memory the image takes. `name`: the format, as recognised. Thread-safe.

    Raises RowError: `not_an_image`, `unsupported`, `corrupt`, `too_many_pixels`, `too_costly`.
    """
    if name == "PNG":
        data = png.slimmed(data)
    elif name == "PPM":
        data = ppm.plain(data)
    try:
        try:
            return _decoded(data, name, options)
        except (RowError, MemoryError):
            raise
        except Exception:
            if name != "JPEG" or (found := _mended(data, options)) is None:
                raise
            return found
    except RowError:
        raise
    except MemoryError:
        raise RowError("too_costly", SHORT_OF_MEMORY) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RowError("too_many_pixels", first_line(error)) from error
    except Exception as error:  # decoders raise almost anything on malicious input
        if _is_short_of_memory(error, data, name):
            raise RowError("too_costly", SHORT_OF_MEMORY) from error
        raise refusal(data, error) from error


def _is_short_of_memory(error: Exception, data: bytes, name: str | None) -> bool:
    """Whether a library failed for want of memory, which some do not say."""
    if MEMORY.search(str(error)):
        return True
    if name not in SILENT:
        return False
    try:
        pixels = webp.pixels(data) if name == "WEBP" else _pixels(data, name)
        np.empty(SILENT[name] * int(pixels), np.uint8)
    except MemoryError:
        return True
    except Exception:  # a broken header
        return False
    return False


def _pixels(data: bytes, name: str) -> int:
    return math.prod(Image.open(io.BytesIO(data), formats=readable(name)).size)


def _decoded(data: bytes, name: str | None, options: Options) -> Pixels:
    opened = _opened(data, name, options)
    opened.image.load()
    return opened.finished(options.size)


def _mended(data: bytes, options: Options) -> Pixels | None:
    """A JPEG without its end marker, or with metadata that Pillow objects to. None if picture data is missing."""
    for each in (data, jpeg.bare(data)):
        try:
            one, other = (_opened(ending, "JPEG", options) for ending in jpeg.endings(each))
            if one.image.tobytes() == other.image.tobytes():
                return one.finished(options.size)
        except (RowError, MemoryError):
            raise
        except Exception:  # the caller tells the first one
            continue
    return None


@dataclass(frozen=True, slots=True)
class _Opened:
    """An image whose header is read. `box`: the part of it to use if it is to be decoded at a reduced scale."""

    image: Image.Image
    width: int
    height: int
    box: Box | None

    def finished(self, size: int) -> Pixels:
        """The pixels, rotated by Exif and resized."""
        transposition, (width, height) = _transposition(self.image), (self.width, self.height)
        if self.box is None:
            resized = colours.resized(_transposed(self.image, transposition), size)
        else:  # rotated last: the box is in coordinates of the unrotated image
            resized = _transposed(colours.resized(self.image, size, self.box), transposition)
        if transposition in SWAPS_SIDES:
            width, height = height, width
        return np.asarray(resized), width, height


def _opened(data: bytes, name: str | None, options: Options) -> _Opened:
    image = Image.open(io.BytesIO(data), formats=readable(name))
    width, height = image.size
    if width * height > options.max_pixels:
        raise RowError("too_many_pixels", f"{width} x {height} pixels; the limit is {options.max_pixels:,}")
    if max(width, height) > MAX_SIDE:
        raise RowError("too_many_pixels", f"{width} x {height} pixels; a side has at most {MAX_SIDE:,}")
    if name == "PNG":
        colours.scale_key(image, bits=data[24])
    tiff.correct(image)
    return _Opened(image, width, height, _reduce(image, options.size) if options.draft else None)


def _reduce(image: Image.Image, size: int) -> Box | None:
    """Set a JPEG to be decoded at 1/2, 1/4 or 1/8 scale.

    Returns the box of the image in the reduced one, in pixels; None if it is not reduced.

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
    except MemoryError:
        raise
    except Exception:  # corrupt metadata raises almost anything, and the image itself may be fine
        return None


def _transposed(image: Image.Image, transposition: Image.Transpose | None) -> Image.Image:
    return image if transposition is None else image.transpose(transposition)
