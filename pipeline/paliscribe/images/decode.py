"""Decodes images to PaliGemma's input pixels: Exif rotation applied, sRGB, resized to a square.

Pixels equal those of transformers' Pillow image processor, which also composites transparent images on white, but for
pictures with a colour profile other than sRGB. Cases that it leaves open (16-bit, rotation, animation) are defined
here. `draft` trades exact pixels for speed.

An image that is cheap by its header is decoded in this process, any other one in a process that can be stopped: a file
of a few kilobytes may take minutes or gigabytes to decode.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from paliscribe.errors import RowError
from paliscribe.images import jpeg
from paliscribe.images.apart import Limits, decode_apart
from paliscribe.images.cheap import is_cheap_of
from paliscribe.images.formats import FORMATS, recognised
from paliscribe.images.pixels import Options, decode_here

__all__ = ["FORMATS", "Decoded", "Limits", "decode"]

MAX_PIXELS: Final = 178_956_970  # Pillow's own limit: it warns above, and raises above twice that
SCAN: Final = 0.5e-9  # least seconds a pixel that a scan of a JPEG takes, even an empty one


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded image. `width`, `height`: pixels of the original after Exif rotation."""

    pixels: npt.NDArray[np.uint8]  # [size, size, 3]
    width: int
    height: int
    sha256: str  # of the encoded bytes


def decode(
    data: bytes,
    size: int,
    *,
    max_pixels: int = MAX_PIXELS,
    draft: bool = False,
    limits: Limits = Limits(),  # noqa: B008  (immutable)
    timeout: float | None = None,
) -> Decoded:
    """Decode an image and resize it to `size` x `size` pixels, bicubic, ignoring its aspect ratio.

    `draft`: decode a much larger JPEG at a reduced scale, which is faster and not pixel-exact. Of animations and
    multi-picture files the first frame is used. `max_pixels` is checked by the header, before decoding. `limits`: of
    an image that is not cheap. `timeout`: seconds to wait for one. Thread-safe.

    Raises RowError: `empty`, `not_an_image`, `unsupported`, `corrupt`, `too_many_pixels`, `too_costly`, `expired`.
    """
    if not data:
        raise RowError("empty", "the object has no bytes")
    options, name = Options(size, max_pixels, draft), recognised(data)
    if is_cheap_of(name, data):
        found = decode_here(data, options, name)
    else:
        _check_scans(data, name, limits.seconds)
        found = decode_apart(data, options, limits, timeout)
    return Decoded(*found, hashlib.sha256(data).hexdigest())


def _check_scans(data: bytes, name: str | None, seconds: float) -> None:
    """Raise RowError for a JPEG whose scans alone take longer."""
    head = jpeg.head(data) if name == "JPEG" else None
    if head is not None:
        scans = jpeg.scans(data, head)
        if scans * head.width * head.height * SCAN > seconds:
            words = f"a JPEG of {scans:,} scans of {head.width} x {head.height} pixels takes more than {seconds:g} s"
            raise RowError("too_costly", words)
