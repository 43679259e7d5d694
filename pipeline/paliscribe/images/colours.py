"""Colours: any mode and depth to RGB of eight bits, transparency on white, colour profiles to sRGB."""

import functools
import io
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

STRIP: Final = 2**20  # pixels that are converted at a time, so that a large picture takes no more memory than it must
SAME: Final = 2  # difference of colours, of 255, up to which a profile counts as sRGB
FLOATS: Final = (1.0, 255.0, 65535.0)  # usual ranges of floats
OVERSHOOT: Final = 2.0  # times the end of its range that a float may reach, as after sharpening
BITS, PHOTOMETRIC, LARGEST, SAMPLE_FORMAT = 258, 262, 281, 339  # TIFF tags
WHITE_IS_ZERO, UNSIGNED = 0, 1  # their values


def resized(image: Image.Image, size: int, box: tuple[float, float, float, float] | None = None) -> Image.Image:
    """The image in sRGB, `size` x `size` pixels, bicubic. Transparent pixels are white: their own colour is arbitrary.

    `box`: the part to use, in pixels. Raises what Pillow raises.
    """
    profile = image.info.get("icc_profile")
    flat = _flat(image)
    to_srgb = _transform(profile, flat.mode) if isinstance(profile, bytes) and profile else None
    if to_srgb is None and flat.mode not in ("L", "RGB"):
        flat = flat.convert("RGB")
    is_small = flat.size == (size, size) and box is None  # then `resize` would copy it
    small = flat if is_small else flat.resize((size, size), Image.Resampling.BICUBIC, box)
    if to_srgb is not None:
        return ImageCms.applyTransform(small, to_srgb) or small
    return small if small.mode == "RGB" else small.convert("RGB")


def _flat(image: Image.Image) -> Image.Image:
    """The image in mode L, RGB or CMYK."""
    if image.mode in ("L", "RGB", "CMYK") and not image.has_transparency_data:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bits(image)
    if image.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(image, lab, ImageCms.createProfile("sRGB"), outputMode="RGB") or image
    return _on_white(image) if image.has_transparency_data else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    flat = Image.new("RGB", image.size)
    for top, bottom in _strips(image):
        strip = image.crop((0, top, image.width, bottom))
        strip = (strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA")
        white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
        flat.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return flat


def scale_key(image: Image.Image, bits: int) -> None:
    """Scale the transparent colour of a PNG of this depth to eight bits, as Pillow does with its pixels."""
    key = image.info.get("transparency")
    if bits == 16 and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)
    elif bits in (2, 4) and image.mode == "L" and isinstance(key, int):
        image.info["transparency"] = key * 255 // (2**bits - 1)


def _strips(image: Image.Image) -> list[tuple[int, int]]:
    """Top and bottom of strips of about STRIP pixels."""
    rows = max(1, STRIP // image.width)
    return [(top, min(top + rows, image.height)) for top in range(0, image.height, rows)]


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey of 12 to 32 bits and of floats to 8 bits, from its own range. Pillow would clip it at 255."""
    values: npt.NDArray[Any] = np.asarray(image)
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    if tags.get(BITS) == (32,) and tags.get(SAMPLE_FORMAT, (UNSIGNED,)) == (UNSIGNED,):
        values = values.view(np.uint32)
    scale = np.float32(255 / _highest(image, values, tags))
    key, flat = image.info.get("transparency"), np.empty(values.shape, np.uint8)
    for top, bottom in _strips(image):
        strip = values[top:bottom]
        grey = np.nan_to_num(strip.astype(np.float32), posinf=0, neginf=0) * scale
        grey = np.rint(grey.clip(0, 255))
        if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
            grey = 255 - grey
        if isinstance(key, int):
            grey[strip == key] = 255
        flat[top:bottom] = grey
    return Image.fromarray(flat)


def _highest(image: Image.Image, values: npt.NDArray[Any], tags: Any) -> float:
    """The value that is white: as the file says, else the end of the smallest usual range that holds the values."""
    if image.mode == "F":
        sample = values.ravel()[:: max(1, values.size // STRIP)]
        sample = sample[np.isfinite(sample)]
        level = float(np.percentile(sample, 99)) if sample.size else 0.0
        return next((end for end in FLOATS if level <= OVERSHOOT * end), FLOATS[-1])
    if image.format == "PPM":  # Pillow scales to 16 bits
        return 65535.0
    most = float(values.max(initial=0))
    if image.mode == "I":
        middle = 32767.0 if tags.get(BITS) == (16,) else 65535.0  # signed ones
        ranges = (255.0, middle, 2.0**32 - 1 if values.dtype == np.uint32 else 2.0**31 - 1)
        return next(end for end in ranges if most <= end)
    said = float(np.max(tags.get(LARGEST, 0)))
    return said if said > 0 and most <= said else 2.0 ** tags.get(BITS, (16,))[0] - 1


@functools.lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The conversion to sRGB; None for sRGB itself, and for a profile that is damaged or for other colours."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        made = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if mode == "CMYK":
        return made
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 16, 3)
    sample = Image.fromarray(grid) if mode == "RGB" else Image.fromarray(levels[None])
    shown = np.asarray(ImageCms.applyTransform(sample, made), dtype=int)
    return made if np.abs(shown - np.asarray(sample.convert("RGB"))).max() > SAME else None
