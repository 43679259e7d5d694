"""Encoded bytes to the pixels that PaliGemma sees: upright, RGB, squeezed to a square.

Pixels equal those of transformers' Pillow image processor for RGB images; what it leaves open (other modes, rotation,
animation) is settled here. All Pillow errors are translated here.
"""

import hashlib
import io
import struct
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import RowError

Image.init()
KNOWN = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")  # MPO opens as JPEG
FORMATS = tuple(name for name in KNOWN if name in Image.OPEN)  # decoders inside this process, as far as Pillow has them
MAX_PIXELS = 178_956_970  # Pillow's own bound against decompression bombs, refused here before a pixel is decoded


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image as the engine takes it. `width` and `height`: pixels of the upright original."""

    pixels: npt.NDArray[np.uint8]  # [size, size, 3]
    width: int
    height: int
    sha256: str  # of the encoded bytes


def decode(data: bytes, size: int, *, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode an image and squeeze it to `size` pixels a side, bicubically.

    Raises RowError: `empty`, `not_an_image`, `corrupt`, `too_many_pixels`. Animations and multi-picture files give
    their first frame.
    """
    if not data:
        raise RowError("empty", "the object has no bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings on odd metadata and on size; size is checked below
        image = _open(data)
        if image.width * image.height > max_pixels:
            raise RowError(
                "too_many_pixels", f"{image.width} x {image.height} pixels; at most {max_pixels:,} are decoded"
            )
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)
            rgb = _rgb(upright)
            squeezed = rgb.resize((size, size), Image.Resampling.BICUBIC)
        except (OSError, ValueError, SyntaxError, EOFError, struct.error, IndexError, TypeError, KeyError) as error:
            raise RowError("corrupt", f"the image cannot be decoded: {_line(error)}") from error
    return Decoded(np.asarray(squeezed), upright.width, upright.height, hashlib.sha256(data).hexdigest())


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise RowError("not_an_image", "no image format is recognised in these bytes") from None
    except Image.DecompressionBombError as error:
        raise RowError("too_many_pixels", _line(error)) from error
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, IndexError, TypeError, KeyError) as error:
        raise RowError("corrupt", f"the image's header cannot be read: {_line(error)}") from error


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB. Transparent pixels show white, as they do on a page."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bits(image).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("LA", "La", "PA", "RGBa"):
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16- and 32-bit grey as 8-bit grey; Pillow's own conversion would clip at 255."""
    values = np.asarray(image, dtype=np.float64)
    if image.mode == "F":
        low, high = (0.0, 1.0) if values.min() >= 0 and values.max() <= 1 else (0.0, 255.0)
    else:
        low, high = 0.0, 65535.0 if values.max() > 255 or image.mode.startswith("I;16") else 255.0
    scaled = np.clip((np.nan_to_num(values) - low) / (high - low) * 255, 0, 255)
    return Image.fromarray(np.round(scaled).astype(np.uint8))


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
