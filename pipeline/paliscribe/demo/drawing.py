"""Renders a scene with Pillow: the built-in font for printed text, upscaled digit images for handwriting."""

from functools import lru_cache
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from paliscribe.demo.digits import Split, digits
from paliscribe.demo.scenes import Background, Box, Rgb, Scene, Shape, Text, split_of

if TYPE_CHECKING:
    from collections.abc import Sequence


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB image of its own size."""
    image = _stretch(scene.background, scene.width, scene.height)
    pen = ImageDraw.Draw(image)
    for shape in scene.shapes:
        paint(pen, shape, shape.paint)
    for text in scene.texts:
        if text.kind == "handwriting":
            _write(image, text, split_of(scene.seed))
        else:
            _print(pen, text)
    return image


def paint(pen: ImageDraw.ImageDraw, shape: Shape, color: Rgb | int) -> None:
    """Paint a shape in a colour."""
    if shape.outline:
        pen.polygon(shape.outline, fill=color)
    else:
        pen.ellipse(shape.box, fill=color)


def printed_boxes(chars: "Sequence[str]", size: int, stroke: int, gap: float, room: float) -> tuple[int, list[Box]]:
    """Font size, reduced until the line fits into `room` pixels, and each character's box; baseline at y = 0."""
    while True:
        font = _font(size)
        boxes: list[Box] = []
        x = 0.0
        for char in chars:
            left, top, right, bottom = font.getbbox(char, stroke_width=stroke, anchor="ls")
            boxes.append((x, top, x + right - left, bottom))
            x = round(x + right - left + gap * size)
        if boxes[-1][2] <= room or size <= 12:
            return size, boxes
        size = min(size - 1, int(size * room / boxes[-1][2]))


@lru_cache(maxsize=256)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def _stretch(background: Background, width: int, height: int) -> Image.Image:
    small = Image.frombytes("RGB", (background.columns, background.rows), background.pixels)
    how = Image.Resampling.BILINEAR if background.smooth else Image.Resampling.NEAREST
    return small.resize((width, height), how)


def _print(pen: ImageDraw.ImageDraw, text: Text) -> None:
    font = _font(text.size)
    for glyph in text.glyphs:
        left, top, _, _ = font.getbbox(glyph.char, stroke_width=text.stroke, anchor="ls")
        place = (glyph.box[0] - left, glyph.box[1] - top)
        pen.text(place, glyph.char, text.paint, font, anchor="ls", stroke_width=text.stroke)


def _write(image: Image.Image, text: Text, split: Split) -> None:
    """Paint each digit through a mask: its 8x8 image, upscaled bicubically and sharpened."""
    images = digits(split)[0]
    for glyph in text.glyphs:
        left, top, right, bottom = (round(edge) for edge in glyph.box)
        ink = Image.fromarray(images[glyph.digit] * 15)
        mask = ink.resize((right - left, bottom - top), Image.Resampling.BICUBIC)
        image.paste(text.paint, (left, top), mask.point(_SHARPEN))


_SHARPEN = [min(255, max(0, round((level - 70) * 2.2))) for level in range(256)]
